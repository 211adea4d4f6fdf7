# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of C(fleet_libvirt), shared by the modules of the libvirt provider."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The connection to libvirt, V(qemu:///system) by default. A host behind ssh is V(qemu+ssh://USER@HOST/system).
      - Over ssh nobody can be asked for a password or a host's key, so keys and C(known_hosts) have to be in place.
    type: str
requirements:
  - libvirt-python (on Debian for its own Python C(python3-libvirt))
  - pycdlib (on Debian for its own Python C(python3-pycdlib))
  - libvirt 7.0 or later on the host
"""

    IMAGE = r"""
options:
  pool:
    description: The storage pool of the disks, and of an image that names none, V(default) by default. It has to be a folder.
    type: str
"""

    INSTANCE = r"""
options:
  network:
    description:
      - The network of libvirt that instances are in, V(default) by default.
      - Each address is reserved in it for as long as the instance exists, so that it outlives restarts of the machine and of the host.
    type: str
  memory:
    description: The memory of an instance, such as V(512m), V(1g) by default.
    type: str
  vcpus:
    description: The virtual processors of an instance, V(1) by default.
    type: int
  domain_type:
    description: V(kvm) is virtualised and the default where the host has it, V(qemu) is emulated.
    type: str
    choices: [kvm, qemu]
  firmware:
    description: V(bios) by default, or V(uefi) without Secure Boot.
    type: str
    choices: [bios, uefi]
  user_data:
    description:
      - What cloud-init shall do besides, a mapping of cloud-config, or a text that begins with C(#cloud-config) or C(#!).
      - It may hold secrets, so it is shown nowhere and kept in no ledger. A changed one is a new release, and whatever is made anew for a
        rollback gets the current one. M(phoenix.fleet.libvirt_instances) by itself does not tell a changed one from the former.
    type: raw
  ssh_keys:
    description: The public keys of the image's default user.
    type: list
    elements: str
  addresses:
    description:
      - The IPv4 addresses for instances, each V(FIRST-LAST) or one alone. They need room for two generations and what is kept.
      - By default those that the network gives to nobody itself, or where there are too few of them, as in V(default), all of it.
      - With V(agent) an instance tells its address itself once it runs, by the guest agent. That is for bridges, without DHCP of libvirt.
    type: list
    elements: str
"""
