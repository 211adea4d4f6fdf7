# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `haproxy_backend`: in this process where HAProxy is here, and under the fleet's lease."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils._haproxy import face
from ..plugin_utils._executor import guarded
from ..plugin_utils._haproxy_action import BalancerAction, Result


class ActionModule(BalancerAction):
    ARGUMENTS = face.ARGUMENTS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        lease = params["lease"] or {}
        params["lease"] = {key: lease[key] for key in face.LEASED if key in lease}
        with guarded(lease if lease.get("url") is not None and lease.get("state_dir") else None) as guard:
            if guard.records:
                params["lease"]["records"] = guard.records
            return self.on_balancer(face.carry_out, params, task_vars)
