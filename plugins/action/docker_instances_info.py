# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `docker_instances_info`: the same work in the controller's process."""

from __future__ import annotations

from typing import Any, Dict

from ..module_utils import _docker_instances
from ..plugin_utils._action import FleetAction, Result


class ActionModule(FleetAction):
    ARGUMENTS = _docker_instances.INFO_ARGUMENTS

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        return self.on_host(_docker_instances.info, params, task_vars)
