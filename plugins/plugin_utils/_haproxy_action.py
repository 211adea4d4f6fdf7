# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What the action plugins share that act on a balancer: its variables, its name, and one shape for a balancer that gives no answer."""

from __future__ import annotations

from typing import Any, Dict

from ansible.errors import AnsibleError

from ..module_utils._errors import FleetError, UnreachableError
from ..module_utils._haproxy.face import PLACES, compact
from ..module_utils._model import Balancer, to_dict
from ._action import FleetAction, Result, Work

__all__ = ["BalancerAction", "Result"]


class BalancerAction(FleetAction):
    """Takes what is not given of socket, master_socket, reload_command, config and config_dir from the balancer's variables haproxy_*."""

    def balancer(self, task_vars: Dict[str, Any]) -> str:
        """The inventory's name of the balancer that the task works on."""
        return str(self._task.delegate_to or task_vars.get("inventory_hostname") or "")

    def on_balancer(self, work: Work, params: Dict[str, Any], task_vars: Dict[str, Any], only_looks: bool = False) -> Result:
        """`on_host`, with the balancer's own variables and name. One that gives no answer fails with `balancer.reachable` false.

        only_looks: so does one that cannot be looked at for another reason, such as a damaged fragment. Who acts must refuse that.
        """
        host = self.balancer(task_vars)
        for key in PLACES:
            if key != "name" and not params.get(key):
                params[key] = self._variable(f"haproxy_{key}", host, task_vars)
        self._task.args = {key: value for key, value in params.items() if value is not None}
        if params.get("options"):
            # A module refuses None where there are choices, and that is what Ansible makes of an option within that was not given.
            self._task.args["options"] = compact(params["options"])
        try:
            result = self.on_host(work, {**params, "host": host}, task_vars)
        except (FleetError, AnsibleError) as error:
            if not only_looks and not isinstance(error, UnreachableError):
                raise
            result = {"failed": True, "reachable": False, "msg": str(error)}
        if result.get("reachable") is False or only_looks and result.get("failed"):
            result["balancer"] = to_dict(Balancer(host, reachable=False, error=str(result.get("msg", ""))))
        elif "balancer" in result:
            result["balancer"]["host"] = host
        if not self._task.diff:
            result.pop("diff", None)
        return result

    def _variable(self, name: str, host: str, task_vars: Dict[str, Any]) -> Any:
        """A variable of the host that the task is delegated to, whose own ones Ansible keeps apart; None where it is not set."""
        if self._task.delegate_to:
            hostvars = task_vars.get("hostvars", {})
            return hostvars[host].get(name) or None if host in hostvars else None
        return self._templar.template(task_vars[name]) or None if name in task_vars else None
