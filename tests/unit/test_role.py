# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role does what the simulation does, or what is proved with the simulation proves nothing of the role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.phoenix.fleet.plugins.plugin_utils._planner import KINDS

TASKS = Path(__file__).resolve().parents[2] / "roles" / "release" / "tasks"

# What the simulated executor does for each kind of step (tests/simulation/executor.py, Fleet._step), as a module and the arguments that
# make it so. `record` before the acts of its task, `register` in the ledger before each haproxy_backend: their action plugins do that.
DOES: dict[str, tuple[str, dict[str, str]]] = {
    "create": ("instances", {"verb": "provision"}),
    "start": ("instances", {"verb": "provision"}),
    "check": ("instance_checks", {}),
    "stage": ("haproxy_backend", {"servers": "stage.servers", "live": "stage.live"}),
    "gate": ("haproxy_backend", {"wait_for": "up", "wait_servers": "gate.servers"}),
    "commit": ("release_ledger", {"state": "recorded", "record": "commit"}),
    "switch": ("haproxy_backend", {"servers": "switch.servers", "live": "switch.live"}),
    "watch": ("haproxy_backend", {"wait_for": "up", "wait_servers": "watch.servers"}),
    "drain": ("haproxy_backend", {"servers": "drain.servers", "live": "drain.live"}),
    "retire": ("instances", {"verb": "decommission", "record": "retire is defined"}),
    "stop": ("instances", {"verb": "decommission", "standby": "stop.instances"}),
    "destroy": ("instances", {"verb": "decommission", "instances": "destroy.instances"}),
}


def tasks(file: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load((TASKS / file).read_text())
    return loaded


def kinds_of(task: dict[str, Any]) -> list[str]:
    return re.findall(r"__release_\w+\.(\w+) is defined", str(task.get("when", "")))


def module_of(task: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = next(key for key in task if key.startswith("phoenix.fleet."))
    return name.rpartition(".")[2], task[name]


def test_a_wave_has_every_kind_of_step_once_and_in_the_planners_order() -> None:
    found = [kind for task in tasks("wave.yml") for kind in kinds_of(task)]
    assert found == list(KINDS) == list(DOES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_what_the_simulation_takes_it_for(kind: str) -> None:
    task = next(item for item in tasks("wave.yml") if kind in kinds_of(item))
    module, arguments = module_of(task)
    assert module == DOES[kind][0]
    for name, wanted in DOES[kind][1].items():
        assert wanted in str(arguments[name])
    assert task["vars"]["__release_step"] in kinds_of(task)
    on_balancers = module == "haproxy_backend"
    assert ("__release_plan.balancers" in str(task.get("loop"))) == (on_balancers or kind == "check")


def test_receipts_of_this_run_reach_the_act_that_stops() -> None:
    drain = next(item for item in tasks("wave.yml") if "drain" in kinds_of(item))
    _module, arguments = module_of(next(item for item in tasks("wave.yml") if "destroy" in kinds_of(item)))
    assert drain["register"] in arguments["receipts"]


def test_no_keyword_of_a_play_reaches_the_work() -> None:
    """What the play says of errors holds for the last task alone: a failure before it is undone."""
    block = next(item for item in tasks("main.yml") if "block" in item)
    assert {key: block[key] for key in ("ignore_errors", "ignore_unreachable", "any_errors_fatal", "become", "throttle")} == {
        "ignore_errors": False, "ignore_unreachable": False, "any_errors_fatal": False, "become": False, "throttle": 0,
    }
    assert "rescue" in block
    last = tasks("main.yml")[-1]
    assert module_of(last)[0] == "release_result" and last["register"] == "release_result"
    assert not {"ignore_errors", "ignore_unreachable", "any_errors_fatal"} & last.keys()
