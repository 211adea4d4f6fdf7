#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_instances_info
short_description: List a fleet's instances on a host of libvirt
version_added: 1.0.0
description:
  - Lists the domains that carry the fleet's marker, running or not.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.libvirt
options:
  fleet:
    description: The fleet's name.
    type: str
    required: true
  release:
    description: Only the instances of this release.
    type: int
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: There is nothing to compare.
seealso:
  - module: phoenix.fleet.libvirt_instances
"""

EXAMPLES = r"""
---
- name: See the shop
  phoenix.fleet.libvirt_instances_info:
    fleet: shop
  register: shop
"""

RETURN = r"""
instances:
  description: The instances, by release and slot.
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


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.info_arguments, supports_check_mode=True)
    try:
        result = FACE.info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
