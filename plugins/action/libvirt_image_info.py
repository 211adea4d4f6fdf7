# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `libvirt_image_info`: the same work in the controller's process."""

from __future__ import annotations

from ..module_utils._libvirt_instances import FACE
from ..plugin_utils._action import FaceAction


class ActionModule(FaceAction):
    ARGUMENTS = FACE.image_arguments
    WORK = staticmethod(FACE.image_info)
