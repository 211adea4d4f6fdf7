# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `release_ledger`: a fleet's lease and records."""

from __future__ import annotations

import getpass
import multiprocessing
import os
import socket
import time
from typing import Any, Dict, Mapping

from ..module_utils import _arguments
from ..module_utils._checks import verify
from ..module_utils._errors import InvalidError, LeaseError
from ..module_utils._instances import connect
from ..module_utils._model import Definition, Instance, from_dict, to_dict
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import shown_ledger, told, wanted
from ..plugin_utils._executor import keep, state_folder
from ..plugin_utils._ledger import Lease, Ledger
from ..plugin_utils._process import Process


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.RELEASE_LEDGER
    QUOTES = True

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        fleet: Result = {}
        if params["verb"]:
            definition, goal = wanted(task_vars, self._templar, params["verb"])
            fleet = told(definition, goal, task_vars)
        else:
            params["definition"] = {"image": "", "port": 0, **params["definition"]}
            definition = self.whole(params, task_vars) if params["instances"] else from_dict(Definition, params["definition"])
        ledger = Ledger(definition.ledger, definition.state_dir)
        if params["state"] == "held":
            return {**self._hold(definition, ledger, task_vars), **fleet, "former": _former(definition, ledger, task_vars)}
        if self._task.check_mode or not params["lease"].get("fence"):
            return {"changed": False, "lease": _shown(params["lease"])}
        lease = from_dict(Lease, params["lease"])
        if params["state"] == "free":
            ledger.give_back(lease)
            return {"changed": False, "lease": {}}
        if not params["record"]:
            raise InvalidError(["record: missing; say which one is to be written, such as done"])
        instances = [from_dict(Instance, item) for item in params["instances"]]
        if instances:
            verify(instances, connect(definition.provider, definition.options))
        ledger.record(lease, params["record"], params["reason"], params["release"])
        return {"changed": True, "lease": _shown(params["lease"])}

    def _hold(self, definition: Definition, ledger: Ledger, task_vars: Mapping[str, Any]) -> Result:
        if self._task.check_mode:
            holder = ledger.holder(definition.name)
            if holder and not definition.takeover:
                remedy = "Look again when it has ended: what it is doing looks like what a killed run has left"
                raise LeaseError(f"fleet {definition.name}", f"held by {holder['holder']} since {holder['since']}", remedy)
            lease = Lease(definition.ledger, definition.name, 0, ledger.id, definition.state_dir)
        else:
            # This is one task's worker; the run is the process that made it, and not whoever adopts it when that has ended.
            maker = multiprocessing.parent_process()
            run = maker.pid if maker and maker.pid else os.getppid()
            process = Process.of(run)
            if definition.ledger:
                state_folder(definition.state_dir)
            lease = ledger.acquire(definition.name, _who(task_vars), takeover=definition.takeover, pid=run)
            if os.getppid() != run:
                ledger.give_back(lease)
                raise LeaseError(f"fleet {definition.name}", f"the run that asked for it, process {run}, has ended", "Run it again")
            keep(lease, process)
            self.say(f"{definition.name}  lease {lease.fence} taken ({lease.holder})")
        return {"changed": False, "lease": {**_shown(to_dict(lease)), "monotonic": time.monotonic()}}


def _shown(lease: Mapping[str, Any]) -> Dict[str, Any]:
    """A lease for the tasks that follow: they read the password of its URL in the fleet's variables."""
    return {**lease, "url": shown_ledger(lease["url"])} if lease.get("url") else dict(lease)


def _former(definition: Definition, ledger: Ledger, task_vars: Mapping[str, Any]) -> list[Dict[str, str]]:
    """Where the fleet was behind a balancer or in a backend that the definition names no more, and whose receipt is waited for."""
    known = (task_vars.get("groups") or {}).get("all") or ()
    places = {(item.balancer, item.backend) for item in ledger.history(definition.name).registrations if not item.is_settled}
    current = {(host, definition.backend) for host in definition.balancers}
    return [{"balancer": host, "backend": backend} for host, backend in sorted(places - current) if host in known]


def _who(task_vars: Mapping[str, Any]) -> str:
    """Who runs this, and where: AWX's user and job where there is one."""
    user = task_vars.get("awx_user_name") or task_vars.get("tower_user_name") or os.environ.get("SUDO_USER") or _login()
    job = task_vars.get("awx_job_id") or task_vars.get("tower_job_id")
    return f"{user}@{socket.gethostname()}" + (f" job {job}" if job else "")


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that nobody has named
        return str(os.getuid())
