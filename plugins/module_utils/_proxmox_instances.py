# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What proxmox_instances, proxmox_instances_info and proxmox_image_info have of their own."""

from __future__ import annotations

from ._providers import proxmox
from ._sets import Face

FACE = Face(
    "proxmox", proxmox, connection=(
        "api_host", "api_port", "api_user", "api_token_id", "api_token_secret", "api_password", "validate_certs", "ca_path", "pool",
        "vmid_range", "agent_network",
    ),
    image=("kind",), one="guest", place="node", room="Take more fleet_proxmox.addresses, or more nodes",
)
