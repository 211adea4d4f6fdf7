# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `haproxy_backend`: in this process where HAProxy is here, and under the fleet's lease."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils._haproxy import face
from ..module_utils._model import Balancer, Server, from_dict, to_dict
from ..plugin_utils._executor import Guard, guarded
from ..plugin_utils._haproxy_action import BalancerAction, Result
from ..plugin_utils._ledger import Lease, Ledger


class ActionModule(BalancerAction):
    ARGUMENTS = face.ARGUMENTS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        lease = params["lease"] or {}
        params["lease"] = {key: lease[key] for key in face.LEASED if key in lease}
        with guarded(lease if lease.get("url") is not None and lease.get("state_dir") else None) as guard:
            if guard.head.fence:
                if params["adopt"] and params["state"] == "observed" and not self._task.check_mode:
                    self._adopt(from_dict(Lease, lease), guard, params, task_vars)
                params["lease"] = {key: getattr(guard.head, key) for key in face.LEASED}
            if not lease.get("fence") or lease.get("url") is None or self._task.check_mode:
                return self.on_balancer(face.carry_out, params, task_vars)
            return self._registered(from_dict(Lease, lease), params, task_vars)

    def _adopt(self, lease: Lease, guard: Guard, params: Dict[str, Any], task_vars: Dict[str, Any]) -> None:
        """Look before anything is written there: where this balancer knows of more than the ledger, the ledger goes on above that."""
        unleased = {**params["lease"], "fence": 0}
        seen = self.on_balancer(face.carry_out, {**params, "lease": unleased}, task_vars)
        balancer = from_dict(Balancer, seen.get("balancer") or {"host": ""})
        if balancer.head and balancer.head.fleet in ("", lease.fleet) and not balancer.head.is_known_to(guard.head):
            highest = max((server.id for server in (*balancer.servers, *balancer.strangers)), default=0)
            Ledger(lease.url, lease.state_dir).adopt(lease, balancer.head, highest)
            guard.check()

    def _registered(self, lease: Lease, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        """The ledger keeps what the balancer is told before it is told, and its receipts for what is out."""
        ledger, place = Ledger(lease.url, lease.state_dir), (self.balancer(task_vars), params["name"])
        servers = [from_dict(Server, item) for item in params["servers"] or ()]
        waiting = ledger.register(lease, *place, servers)
        params["confirm"] = [
            {"name": item.server, "address": item.address, "port": item.port, "confirmed": item.receipt is not None} for item in waiting
        ]
        result = self.on_balancer(face.carry_out, params, task_vars)
        result["registrations"] = [to_dict(item) for item in ledger.receive(lease, *place, result.get("receipts") or ())]
        return result
