# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What libvirt_instances, libvirt_instances_info and libvirt_image_info have of their own."""

from __future__ import annotations

from ._providers import libvirt
from ._sets import Face

FACE = Face(
    "libvirt", libvirt, connection=("uri",), image=("pool",), one="domain", place="host",
    room="Take more fleet_libvirt.addresses, or a larger fleet_libvirt.network",
)
