# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `haproxy_backend_info`: in this process where HAProxy is here."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils._haproxy import face
from ..plugin_utils._haproxy_action import BalancerAction, Result


class ActionModule(BalancerAction):
    ARGUMENTS = face.PLACES

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        return self.on_balancer(face.observe, params, task_vars, only_looks=True)
