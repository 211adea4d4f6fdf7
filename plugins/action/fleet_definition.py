# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `fleet_definition`: the variables of the task's host as one validated definition."""

from __future__ import annotations

from typing import Any, Dict, Mapping

from ..module_utils import _arguments
from ..module_utils._errors import RefusedError
from ..module_utils._model import to_dict
from ..plugin_utils import _definition
from ..plugin_utils._action import FleetAction, Result


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.FLEET_DEFINITION

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        verb = params["verb"]
        definition, goal = _definition.read(task_vars, self._templar, verb, lambda: _definition.default_revision(task_vars))
        if definition.hold and verb in _definition.CHANGING:
            raise RefusedError(f"fleet {definition.name} is on hold", definition.hold, "Unset fleet_hold to go on.")
        return {
            "changed": False,
            "definition": _definition.shown(definition),
            "goal": {**to_dict(goal), "image": definition.image if verb == "release" else ""},
            "balancers": [{"host": host, "address": _address(host, task_vars["hostvars"][host])} for host in definition.balancers],
        }


def _address(host: str, variables: Mapping[str, Any]) -> str:
    """`local` for a balancer on this machine, else where Ansible finds it."""
    return "local" if variables.get("ansible_connection") == "local" else str(variables.get("ansible_host") or host)
