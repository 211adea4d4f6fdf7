# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of C(fleet_proxmox), shared by the modules of the Proxmox VE provider."""

    DOCUMENTATION = r"""
options:
  api_host:
    description:
      - Nodes of the cluster, each by a name or an address that its certificate has, as a list or separated by commas. Needed.
      - The first that answers is kept for the run. Another one is taken where it does not connect within 5 seconds, or gives no answer.
    type: list
    elements: str
  api_port:
    description: The port of their API, V(8006) by default.
    type: int
  api_user:
    description: The user with its realm, such as V(fleet@pve). Needed.
    type: str
  api_token_id:
    description: The name of the user's token. Its least privileges are in the collection's documentation of Proxmox VE.
    type: str
  api_token_secret:
    description: The token's secret.
    type: str
  api_password:
    description: The user's password, where there is no token.
    type: str
  validate_certs:
    description: Whether a node's certificate has to be valid for its name in O(api_host), V(true) by default.
    type: bool
  ca_path:
    description: The certificate of the authority that has signed theirs. On a node it is C(/etc/pve/pve-root-ca.pem).
    type: path
  pool:
    description: The resource pool that instances are in. A token that has its privileges on this pool alone can touch nothing else.
    type: str
  vmid_range:
    description:
      - The VMIDs for instances, V(100000-999999) by default. Nobody else should use them.
      - Fleets of one ledger may share a range. A VMID is never used again.
    type: str
  agent_network:
    description: The network that an address has to lie in, where guests have several.
    type: str
requirements:
  - proxmoxer (2.2 or later)
  - requests
  - Proxmox VE 8.2 or later
"""

    IMAGE = r"""
options:
  kind:
    description: Virtual machines, V(qemu) by default, or containers, V(lxc).
    type: str
    choices: [qemu, lxc]
"""

    INSTANCE = r"""
options:
  nodes:
    description:
      - The nodes that instances are spread over, by default all that are online and have room.
      - Each needs a replica of the template, or the template is on shared storage.
    type: list
    elements: str
  storage:
    description: The storage for the disks of full clones, by default the template's.
    type: str
  clone:
    description: V(linked) clones share the template's disk and are the default. V(full) ones have a copy of it.
    type: str
    choices: [linked, full]
  cores:
    description: The cores of an instance, in one socket; by default the template's cores and sockets.
    type: int
  memory:
    description:
      - The memory of an instance, such as V(2g), of which a balloon takes nothing away; by default the template's memory and balloon.
      - With it, a node without room is left out.
    type: str
  disk:
    description: The size of an instance's first disk, such as V(20g), by default the template's. It can only be larger than that.
    type: str
  networks:
    description:
      - The network devices, by default the template's. Each is a bridge, or a mapping of C(bridge), C(vlan), C(model), C(firewall), C(mtu).
      - The template's further network devices are taken away.
    type: list
    elements: raw
  addresses:
    description:
      - The IPv4 addresses for instances, each V(FIRST-LAST) or one alone. They need room for two generations and what is kept.
      - By default, and with V(agent), an instance tells its address itself once it runs. A virtual machine needs the guest agent for that.
    type: list
    elements: str
  prefix:
    description: The length of the network's prefix of O(addresses), V(24) by default.
    type: int
  gateway:
    description: The gateway for instances with fixed O(addresses).
    type: str
  nameserver:
    description: The name servers for instances.
    type: list
    elements: str
  ci_user:
    description: The user that cloud-init sets up. Only for O(kind=qemu).
    type: str
  ssh_keys:
    description: The public keys of that user. Only for O(kind=qemu).
    type: list
    elements: str
  facts:
    description:
      - Whether a virtual machine is told C(PHOENIX_FLEET), C(PHOENIX_RELEASE), C(PHOENIX_INSTANCE) and C(PHOENIX_REVISION).
      - V(true) by default. They are the family of its SMBIOS, which it reads from C(/sys/class/dmi/id/product_family).
    type: bool
  tags:
    description: Tags for instances, beside those of the collection.
    type: list
    elements: str
"""
