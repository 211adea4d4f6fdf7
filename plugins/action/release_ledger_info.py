# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `release_ledger_info`: what the ledger knows of a fleet. Creates nothing."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils import _arguments
from ..module_utils._model import Definition, from_dict, to_dict
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._ledger import Ledger
from ..plugin_utils._status import told


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.RELEASE_LEDGER_INFO

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        definition = from_dict(Definition, {"image": "", "port": 0, **params["definition"]})
        ledger = Ledger(definition.ledger, definition.state_dir)
        history = ledger.history(definition.name)
        return {
            "changed": False,
            "fleet": definition.name,
            "ledger": history.ledger,
            "live": history.live,
            "since": history.since,
            "next_release": history.next_release,
            "releases": [told(item) for item in history.releases],
            "entry": to_dict(history.entry) if history.entry else None,
            "lease": ledger.holder(definition.name),
            "findings": ledger.verify(definition.name),
        }
