# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the verbs of any provider are given, and what they keep of the instances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.action import instances as instances_action
from ansible_collections.phoenix.fleet.plugins.module_utils import _instances
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Definition, Instance, LastWords, to_dict
from ansible_collections.phoenix.fleet.plugins.plugin_utils._definition import published, recorded
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.contract.ledger_contract import release_plan

WORDS = (LastWords("web-r2-1", "stopped", 1, 3, ("no config",)),)


def test_last_words_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    assert _instances._keep(folder, WORDS, check_mode=False) == str(folder)
    assert {item.name: item.stat().st_mode & 0o777 for item in folder.iterdir()} == {"web-r2-1.log": 0o600, "web-r2-1.json": 0o600}


def test_last_words_that_cannot_be_written_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    with pytest.raises(UnreachableError, match="the last words cannot be kept: Not a directory. Free some space"):
        _instances._keep(tmp_path / "in the way" / "words", WORDS, check_mode=False)


def test_an_earlier_release_is_made_as_the_ledger_recorded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the task says: it has the number of the release, and of its environment no more than hashes."""
    past = Definition("web", "shop:1", 8080, options={"memory": "64m", "environment": {"A": "then"}, "secrets": {"key": "then"}})
    today = Definition("web", "shop:2", 9090, options={"memory": "128m", "environment": {"A": "now"}, "secrets": {"key": "now"}})
    ledger = Ledger("", str(tmp_path))
    lease = ledger.acquire("web", "me@here")
    with ledger.planning(lease) as view:
        plan = release_plan(view.history())
        assert plan.release
        view.open(replace(plan, release=replace(plan.release, definition=recorded(past, b"key"))), "me")
    action = object.__new__(instances_action.ActionModule)
    action._task = SimpleNamespace(check_mode=False, diff=False)
    action._templar = None
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(instances_action, "read_again", lambda *_of_today: today)
    monkeypatch.setattr(action, "on_host", lambda work, params, task_vars: given.append(params) or {})
    release = {"number": 1, "definition": published(recorded(past, b"key"), b"key")}
    action.act({
        "release": release, "lease": to_dict(lease), "record": "", "options": today.options, "port": today.port, "wave": {},
        "receipts": [], "folder": "", "verb": "provision",
    }, {})
    assert given[0]["port"] == 8080
    assert given[0]["options"] == {"memory": 64 << 20, "environment": {"A": "then"}, "secrets": {"key": "now"}}


def test_the_seals_of_a_standby_are_kept_although_a_removal_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback would find it stopped by nobody knows whom, and make another in its place."""
    kept: dict[str, str] = {}

    class Leaking:
        def stop(self, *_what: Any) -> None:
            pass

        def seals(self, standby: list[Instance]) -> dict[str, str]:
            return {item.name: "sealed" for item in standby}

        def destroy(self, *_what: Any) -> None:
            raise RefusedError("destroying web-r1-1", "a disk was left over", "Remove it")

    monkeypatch.setattr(_instances, "connect", lambda *_how: Leaking())
    old, standby = (to_dict(Instance(f"web-r{number}-1", "h", "web", number, 1, "", "", 0, id="x", state="running")) for number in (1, 2))
    params = {
        "verb": "decommission", "fleet": "web", "provider": "docker", "options": {}, "instances": [old], "standby": [standby],
        "stop_timeout": 1,
    }
    with pytest.raises(RefusedError):
        _instances.carry_out(params, False, print, permit=print, seal=kept.update)
    assert kept == {"web-r2-1": "sealed"}
