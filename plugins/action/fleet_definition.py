# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `fleet_definition`: the variables of the task's host as one validated definition."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils import _arguments
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import told, wanted


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.FLEET_DEFINITION

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        return {"changed": False, **told(*wanted(task_vars, self._templar, params["verb"]), task_vars)}
