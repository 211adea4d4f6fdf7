# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `instance_checks`: asks from the controller's process, or has the module ask from a balancer."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils import _checks
from ..module_utils._instances import connect
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._executor import guarded


class ActionModule(FleetAction):
    ARGUMENTS = _checks.ARGUMENTS
    QUOTES = True

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        with guarded(params["lease"]):
            return self._ask(params, task_vars)

    def _ask(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        provider = connect(params["provider"], params["options"]) if params["provider"] else None
        if self.is_here():
            return _checks.carry_out(params, bool(self._task.check_mode), self.say, provider)
        # The provider's socket and secrets stay here: only the questions are asked from the other host.
        self._task.args = {key: params[key] for key in ("instances", "checks", "timeout", "fleet")}
        result = self.on_host(_checks.carry_out, params, task_vars)
        if provider is not None and not self._task.check_mode:
            instances = _checks.instances_of(params)
            if result.get("failed"):
                told = [f"{name} {line}" for name, lines in _checks.told_by(provider, instances).items() for line in lines]
                result["msg"] = "\n".join([str(result.get("msg", "")), *told])
            else:
                _checks.verify(instances, provider)
        return result
