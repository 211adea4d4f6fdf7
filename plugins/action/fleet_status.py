# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `fleet_status`: what was observed and what the ledger knows, as lines and as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, Dict, Iterable, List, Mapping

from ..module_utils import _arguments
from ..module_utils._errors import InvalidError, UnreachableError
from ..module_utils._model import Balancer, Copy, Definition, Instance, Pool, World, from_dict
from ..plugin_utils import _status
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._ledger import Ledger, timestamp


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.FLEET_STATUS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        definition = from_dict(Definition, params["definition"])
        _refuse_sharing(params["file"], task_vars)
        seen = params["instances"]
        unseen = "" if "instances" in seen else str(seen.get("msg", "no answer"))
        balancers = tuple(from_dict(Balancer, item) for item in params["balancers"])
        if unseen and not any(item.reachable for item in balancers):
            cause = f"neither instances nor balancers can be observed: {unseen}"
            raise UnreachableError(f"fleet {definition.name}", cause, "See that this controller reaches them, and that they run")
        instances = tuple(from_dict(Instance, item) for item in seen.get("instances", ()))
        pools = tuple(from_dict(Pool, item) for item in seen.get("pools", ()))
        copies = tuple(from_dict(Copy, item) for item in seen.get("copies", ()))
        world = World(instances, balancers, pools, copies)
        ledger = Ledger(definition.ledger, definition.state_dir)
        name = definition.name
        broken = [*ledger.verify(name), *_status.unlisted(_missing(ledger.standing(), name, task_vars), ledger.name)]
        told = _status.status(definition, world, ledger.history(name), ledger.holder(name), broken, unseen)
        for line in _status.lines(definition, told, timestamp()):
            self.say(f"{name}  {line}".rstrip())
        if params["file"] and not self._task.check_mode:
            _write(params["file"], json.dumps(told, indent=2) + "\n")
        return {"changed": False, "status": told}


def _missing(standing: Iterable[str], own: str, task_vars: Mapping[str, Any]) -> List[str]:
    """Which of these fleets no host of the inventory stands for, whatever the limit. Variables are dear: looked at where names differ."""
    hostvars = task_vars.get("hostvars", {})
    missing = [name for name in standing if name != own and name not in hostvars]
    hosts = task_vars.get("groups", {}).get("fleets", ()) if missing else ()
    named = {str(hostvars[host].get("fleet_name", "")) for host in hosts}
    return [name for name in missing if name not in named]


def _refuse_sharing(path: str, task_vars: Mapping[str, Any]) -> None:
    """Of two fleets that write to one file only the last would be told."""
    host, hosts = task_vars.get("inventory_hostname"), list(task_vars.get("ansible_play_hosts_all") or ())
    if path and any(other != host and task_vars["hostvars"][other].get("status_file") == path for other in hosts):
        raise InvalidError([
            f"status_file: {path} needs exactly one fleet, and this run has {', '.join(hosts)}; add -l and one of them, or give each a file"
        ])


def _write(path: str, text: str) -> None:
    """Whole or not at all: who reads the file never sees a half."""
    folder = os.path.dirname(os.path.abspath(path))
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        cause = f"cannot be written: {error.strerror}"
        raise UnreachableError(f"status_file {path}", cause, "Name a file in a folder that exists") from None
