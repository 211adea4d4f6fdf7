# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbooks say where there is no engine and no HAProxy: real commands of a user, without a part that they could reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.contract.ledger_contract import open_plan, release_plan

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120


class Desk:
    """A folder with an inventory: the fleets `web` and `api`. Their engine is nowhere, and their fragments are damaged, so nobody waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        common = {
            "fleet_port": 8080, "fleet_image": "shop:1", "fleet_state_dir": str(folder / "state"),
            "fleet_docker": {"hosts": ["unix:///nowhere/docker.sock"]},
        }
        self.fleets: dict[str, dict[str, Any]] = {"web": dict(common), "api": dict(common)}
        self.balancer = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "haproxy_socket": "/nowhere/admin.sock",
            "haproxy_config_dir": str(folder / "conf.d"), "haproxy_reload_command": "false",
        }

        (folder / "conf.d").mkdir()
        for name in self.fleets:
            (folder / "conf.d" / f"{name}.cfg").write_text('# phoenix.fleet {"fence": 3')

    def play(self, playbook: str, *arguments: str) -> tuple[int, str]:
        groups = {"fleets": {"hosts": self.fleets}, "balancers": {"hosts": {"lb1": self.balancer}}}
        (self.folder / "inventory.json").write_text(json.dumps(groups))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", "inventory.json", *arguments], cwd=self.folder,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PWD": str(self.folder)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_undoing_goes_on_where_the_last_words_cannot_be_kept(desk: Desk) -> None:
    instance = {"name": "web-r2-1", "host": "local", "fleet": "web", "release": 2, "slot": 1, "image": "x", "address": "", "port": 80}
    play = {
        "hosts": "web", "gather_facts": False,
        "vars": {
            "__release_failure": {"task": "Watch", "step": "watch", "result": {"msg": "web-r2-1 is not up"}},
            "__release_plan": {"opened": True, "folder": str(desk.folder / "words"), "made": [instance]},
        },
        "module_defaults": {"phoenix.fleet.instances": {"fleet": "web", "options": desk.fleets["web"]["fleet_docker"], "port": 80}},
        "tasks": [
            {"include_tasks": str(ROOT / "roles/release/tasks/undo.yml")},
            {"debug": {"msg": "it came to: {{ __release_undoing.task }}"}},
        ],
    }
    (desk.folder / "undo.yml").write_text(json.dumps([play]))
    _code, said = desk.play("undo.yml", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    assert "it came to: Resolve, and observe the instances" in said, said


@pytest.mark.parametrize("playbook", ["release", "rollback", "scale", "heal", "retire", "status", "hosts"])
def test_a_limit_out_of_a_file_means_the_hosts_in_it(desk: Desk, playbook: str) -> None:
    (desk.folder / "limit").write_text("web\n")
    code, said = desk.play(f"phoenix.fleet.{playbook}", "-l", "@limit")
    recap = said.rpartition("PLAY RECAP")[2]
    assert code and "web " in recap and "api " not in recap, said


def test_a_file_of_several_fleets(desk: Desk) -> None:
    desk.fleets["shop"] = desk.fleets["web"]
    (desk.folder / "limit").write_text("web\napi\n")
    code, said = desk.play("phoenix.fleet.status", "-l", "shop,@limit")
    assert code and all(f"{fleet} " in said.rpartition("PLAY RECAP")[2] for fleet in ("web", "api", "shop")), said


def test_a_fleet_of_the_ledger_that_no_host_stands_for_is_a_finding(desk: Desk) -> None:
    ledger = Ledger("", str(desk.folder / "state"))
    for fleet in ("web", "renamed", "shop"):
        lease = ledger.acquire(fleet, "me@here")
        open_plan(ledger, lease, partial(release_plan, fleet=fleet))
        ledger.give_back(lease)
    desk.fleets["api"]["fleet_name"] = "renamed"
    desk.fleets["web"]["fleet_balancers"] = ["lb1"]
    (desk.folder / "play.yml").write_text(json.dumps([{
        "hosts": "web", "gather_facts": False, "tasks": [{
            "phoenix.fleet.fleet_status": {
                "definition": {"name": "web", "image": "x", "port": 80, "state_dir": str(desk.folder / "state")},
                "instances": {"instances": []}, "balancers": [],
            },
        }],
    }]))
    code, said = desk.play("play.yml", "-c", "local")
    assert code == 0 and "fleet shop is in the ledger" in said and "phoenix.fleet.retire" in said, said
    assert "fleet renamed is in" not in said and "fleet web is in" not in said, said


@pytest.mark.parametrize("ill", ["silent", "damaged", "no python", "no sudo"])
def test_a_balancer_that_cannot_be_looked_at_is_told_as_one(desk: Desk, ill: str) -> None:
    if ill == "silent":
        (desk.folder / "conf.d" / "web.cfg").unlink()
    elif ill == "no python":
        desk.balancer.update(ansible_become=True, ansible_become_user="nobody", ansible_python_interpreter="/nowhere/python")
    elif ill == "no sudo":
        desk.balancer.update(ansible_become=True, ansible_become_user="nobody", ansible_become_exe="/nowhere/sudo")
    look = {
        "phoenix.fleet.haproxy_backend_info": {"name": "web"}, "delegate_to": "lb1", "loop": ["lb1"], "register": "seen",
        "failed_when": False,
    }
    tell = {"debug": {"msg": "reachable: {{ seen.results[0].balancer.reachable }}, {{ seen.results[0].balancer.error | length > 9 }}"}}
    (desk.folder / "look.yml").write_text(json.dumps([{"hosts": "web", "gather_facts": False, "tasks": [look, tell]}]))
    code, said = desk.play("look.yml")
    assert code == 0 and "reachable: False, True" in said, said
    assert "neither instances nor balancers can be observed" in desk.play("phoenix.fleet.status", "-l", "web")[1]


def test_two_fleets_do_not_write_their_status_to_one_file(desk: Desk) -> None:
    file = str(desk.folder / "status.json")
    refused = f"status_file: {file} needs exactly one fleet, and this run has web, api; add -l and one of them"
    assert desk.play("phoenix.fleet.status", "-e", f"status_file={file}")[1].count(refused) >= 2
    assert refused not in desk.play("phoenix.fleet.status", "-e", f"status_file={file}", "-l", "web")[1]
    assert refused not in desk.play("phoenix.fleet.status", "-e", "status_file=" + file + "-{{ inventory_hostname }}")[1]


def test_check_mode_says_who_is_at_work(desk: Desk) -> None:
    lease = Ledger("", str(desk.folder / "state")).acquire("web", "ann@ci")
    code, said = desk.play("phoenix.fleet.heal", "--check", "-l", "web")
    assert code and f"fleet web: held by {lease.holder} since {lease.since}" in said, said


def test_a_fleet_whose_name_cannot_be_evaluated_keeps_no_other_from_its_work(desk: Desk) -> None:
    desk.fleets["api"]["fleet_name"] = "{{ nowhere }}"
    assert "there is no socket /nowhere/docker.sock" in desk.play("phoenix.fleet.release", "-l", "web")[1]
    assert "fleet_name" in desk.play("phoenix.fleet.release", "-l", "api")[1]


def test_a_state_folder_that_cannot_be_is_named_before_the_lease(desk: Desk) -> None:
    desk.fleets["web"].update(fleet_ledger=f"sqlite:///{desk.folder}/ledger.sqlite3", fleet_state_dir="/dev/null/state")
    code, said = desk.play("phoenix.fleet.release", "-l", "web")
    assert code and "fleet_state_dir /dev/null/state: cannot be written: Not a directory" in said and "lease 1 taken" not in said, said


def test_init_writes_where_it_was_asked_to_from_here(desk: Desk) -> None:
    code, said = desk.play("phoenix.fleet.init", "-e", "init_dir=mine/fleets")
    assert code == 0 and (desk.folder / "mine" / "fleets").is_dir() and f"cd {desk.folder}/mine/fleets " in said, said
