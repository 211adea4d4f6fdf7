# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `release_addresses`: what only a started instance tells goes into the wave's later steps and into the ledger."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils._model import Definition, Instance, Pool, Step, from_dict, to_dict
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import definition_of
from ..plugin_utils._ledger import Lease, Ledger
from ..plugin_utils._placement import addressed, reservations

ARGUMENTS: Dict[str, Any] = {
    "definition": {"type": "dict", "required": True},
    "lease": {"type": "dict", "default": {}},
    "wave": {"type": "dict", "required": True},
    "instances": {"type": "list", "elements": "dict", "required": True},
    "pools": {"type": "list", "elements": "dict", "default": []},
}


class ActionModule(FleetAction):
    ARGUMENTS = ARGUMENTS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        definition: Definition = definition_of(params["definition"], task_vars, self._templar)
        found = [from_dict(Instance, item) for item in params["instances"]]
        pools = {pool.host: pool for pool in (from_dict(Pool, item) for item in params["pools"])}
        steps = addressed([from_dict(Step, step) for step in params["wave"].values()], found)
        held = {key: item.name for item in found for key in reservations(item, pools)}
        if params["lease"].get("fence") and not self._task.check_mode:
            # Before anybody is told of an address, the ledger knows whose it is.
            Ledger(definition.ledger, definition.state_dir).reserve(from_dict(Lease, params["lease"]), held)
        wave = {kind: {**step, **to_dict(now)} for (kind, step), now in zip(params["wave"].items(), steps, strict=True)}
        return {"changed": False, "wave": wave}
