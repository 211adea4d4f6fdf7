# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of a failure."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Balancer, Definition, Head, Plan
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _story


@pytest.mark.parametrize(("result", "told"), [
    ({"msg": "the engine is down"}, "the engine is down"),
    ({"msg": "  \n"}, "it gave no reason"),
    ({"results": [{"item": "lb1", "failed": True, "msg": "no route"}, {"item": "lb2"}]}, "lb1: no route"),
    ({"results": [{"item": "", "failed": True, "msg": "1 of 2 did not pass"}]}, "1 of 2 did not pass"),
    ({"results": [{"item": host, "failed": True, "msg": "no route"} for host in ("lb1", "lb1", "lb2")]}, "lb1: no route; lb2: no route"),
])
def test_a_failure_is_told_with_whoever_failed(result: dict[str, Any], told: str) -> None:
    assert _story.reason({"task": "Check", "result": result}) == told


@pytest.mark.parametrize(("failure", "told"), [
    ("2 of 2 failed:\n  web-r7-1: no such file\n  web-r7-2: no such file\nCheck the image", "2 of 2 failed: web-r7-1: no such file"),
    ("disk full. Free it.", "disk full. Free it"),
])
def test_the_one_message_of_a_run_that_failed_names_a_cause(failure: str, told: str) -> None:
    definition, plan = Definition("web", "shop:1", 80), Plan("release", 3, 7, waves=((),))
    _lines, message = _story.ending(definition, plan, (), (), 1.0, failure=failure, undoing="", folder="", check=False)
    assert message == f"r7 of fleet web did not go live: {told}"


@pytest.mark.parametrize(("closes", "told"), [(True, "nothing was changed"), (False, "the next run goes on from here")])
def test_a_run_that_had_nothing_to_undo_says_what_comes_next(closes: bool, told: str) -> None:
    definition, plan = Definition("web", "shop:1", 80), Plan("abort", 0, 0, closes=closes)
    _lines, message = _story.ending(definition, plan, (), (), 1.0, failure="lb1 refused", undoing="", folder="", check=False)
    assert message == f"lb1 refused. {told}"


@pytest.mark.parametrize(("source", "target", "more"), [(1, 2, ""), (2, 1, " -e rollback_to=2")])
def test_the_way_back_is_a_command_that_goes_there(source: int, target: int, more: str) -> None:
    after = (Balancer("lb1", head=Head("ours", 1, "web", target, 3)),)
    plan = Plan("release", source, target, "live", waves=((),))
    lines, message = _story.ending(Definition("web", "shop:1", 80), plan, (), after, 1.0, failure="", undoing="", folder="", check=False)
    assert (lines[-1], message) == (f"back: ansible-playbook phoenix.fleet.rollback -l web{more}", "")
