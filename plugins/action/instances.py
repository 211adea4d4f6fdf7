# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `instances`: the same work in the controller's process, under the fleet's lease."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils import _instances
from ..module_utils._model import Instance, from_dict
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import read, revived
from ..plugin_utils._executor import guarded
from ..plugin_utils._ledger import Lease, Ledger


class ActionModule(FleetAction):
    ARGUMENTS = _instances.ARGUMENTS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        record = params["release"].get("definition")
        if record:
            # The instances of an earlier release are started from what was recorded of it, with the secrets of today.
            definition, _goal = read(task_vars, self._templar)
            params["options"] = dict(revived(definition, record).options)
        with guarded(params["lease"]):
            result = self.on_host(_instances.carry_out, params, task_vars)
            if result.get("seals") and params["lease"].get("fence"):
                lease = from_dict(Lease, params["lease"])
                stopped = [from_dict(Instance, item) for item in result["instances"]]
                Ledger(lease.url, lease.state_dir).seal(lease, stopped, result["seals"])
        if not self._task.diff:
            result.pop("diff", None)
        return result
