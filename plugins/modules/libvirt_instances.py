#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_instances
short_description: Keep one release of a fleet as virtual machines of libvirt
version_added: 1.0.0
description:
  - Makes O(size) virtual machines of a release, each on an overlay of a golden volume, or stops or removes them.
  - An instance that exists is never changed. Another image or option is another release, and is refused under the same O(release).
  - The metadata of every domain carries a marker with the fleet, the release and the ledger. Nothing without it, and no other release,
    is touched, whatever its name.
  - The golden volume is only read. Where its content changes, all that stands on it is refused.
  - The roles of the collection do the same with a ledger, checks and HAProxy. This module is for playbooks that use none of them.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.release_set
  - phoenix.fleet.libvirt
  - phoenix.fleet.libvirt.image
  - phoenix.fleet.libvirt.instance
options:
  image:
    description: The golden volume, as C(VOLUME) in O(pool) or as C(POOL/VOLUME). Required for O(state=present).
    type: str
  balancers:
    description: The addresses of the hosts that must reach the instances. Where one is another host, O(network) has to be routed.
    type: list
    elements: str
    default: [local]
  stop_timeout:
    description: Seconds for a polite shutdown, by the guest agent or ACPI, before it is forced.
    type: int
    default: 10
notes:
  - The seed is a disk in the NoCloud form of cloud-init. The facts C(PHOENIX_FLEET), C(PHOENIX_RELEASE), C(PHOENIX_INSTANCE) and
    C(PHOENIX_REVISION) are in C(/etc/phoenix-fleet.env), and in C(phoenix-fleet.env) on the seed for images without cloud-init.
seealso:
  - module: phoenix.fleet.libvirt_instances_info
  - module: phoenix.fleet.instances
"""

EXAMPLES = r"""
---
- name: Four instances of the shop on this host
  phoenix.fleet.libvirt_instances:
    fleet: shop
    release: 7
    image: shop-1.9.qcow2
    size: 4
    port: 8080
    memory: 512m
  register: shop

- name: Two on another host, in its routed network
  phoenix.fleet.libvirt_instances:
    uri: qemu+ssh://ops@node1.example.org/system
    network: fleet
    addresses: [192.0.2.20-192.0.2.99]
    fleet: shop
    release: 7
    image: golden/shop-1.9.qcow2
    size: 2
    port: 8080
    balancers: [192.0.2.5]
    user_data:
      package_update: false
      timezone: Etc/UTC

- name: The predecessor is gone
  phoenix.fleet.libvirt_instances:
    fleet: shop
    release: 6
    state: absent
"""

RETURN = r"""
instances:
  description: The instances of the release afterwards.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: "The name, C(FLEET-rRELEASE-SLOT).", type: str, returned: always}
    id: {description: "The domain's UUID. Empty for one that check mode would make.", type: str, returned: always}
    host: {description: "The host, V(local) for this one.", type: str, returned: always}
    fleet: {description: The fleet's name., type: str, returned: always}
    release: {description: The release's number., type: int, returned: always}
    slot: {description: The number within the release., type: int, returned: always}
    image: {description: "The golden volume by pool, name and checksum.", type: str, returned: always}
    revision: {description: The revision that it was made from., type: str, returned: always}
    address:
      description: "The address that it is reached at. Empty where only a running guest tells it, and it does not run."
      type: str
      returned: always
    port: {description: The port that it is reached at., type: int, returned: always}
    state: {description: "V(running) or V(stopped).", type: str, returned: always}
    health: {description: "V(unhealthy) where it is paused, V(none) otherwise.", type: str, returned: always}
    created: {description: "When it was made, in UTC.", type: str, returned: always}
    marker: {description: "What its metadata says about whose it is.", type: dict, returned: always}
    number: {description: "Not used here, V(0).", type: int, returned: always}
    note: {description: "Not used here, empty.", type: str, returned: always}
  sample:
    - name: web-r42-1
      id: 7d0d7e3c-2f0b-4a53-9c0f-1f6a7c9d4e21
      host: local
      fleet: web
      release: 42
      slot: 1
      image: default/shop-1.9.qcow2@sha256:9f3c1e6b7d20
      revision: 4be1c2d
      address: 192.168.122.21
      port: 8080
      state: running
      health: none
      created: "2026-11-20T03:00:00Z"
      marker: {phoenix.fleet.name: web, phoenix.fleet.release: "42"}
      number: 0
      note: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._libvirt_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import shielded


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.arguments, supports_check_mode=True)
    params, veil = shielded(module, FACE.module.OPTIONS)
    try:
        result = FACE.carry_out(params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=veil(str(error)))
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
