#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxmox_instances_info
short_description: List a fleet's instances on a Proxmox VE cluster
version_added: 1.0.0
description:
  - Lists the guests that carry the fleet's marker, running or not.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.proxmox
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
  - module: phoenix.fleet.proxmox_instances
"""

EXAMPLES = r"""
---
- name: See the shop
  phoenix.fleet.proxmox_instances_info:
    api_host: pve1.example.org
    api_user: fleet@pve
    api_token_id: ci
    api_token_secret: "{{ vault_pve_token }}"
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
    name:
      description: The name, C(FLEET-rRELEASE-SLOT). Empty, and its release and slot 0, where its node gives no answer and nobody knows it.
      type: str
      returned: always
    id:
      description: "The VMID with the UUID and the nonce that tell it from a later guest. Empty for one that check mode would make."
      type: str
      returned: always
    host: {description: The node., type: str, returned: always}
    fleet: {description: The fleet's name., type: str, returned: always}
    release: {description: The release's number., type: int, returned: always}
    slot: {description: The number within the release., type: int, returned: always}
    image: {description: The template by name and digest., type: str, returned: always}
    revision: {description: The revision that it was made from., type: str, returned: always}
    address:
      description: "The address that it is reached at. Empty where only a running guest tells it, and it does not run."
      type: str
      returned: always
    port: {description: The port that it is reached at., type: int, returned: always}
    state:
      description: V(running), V(stopped), V(created) where its making was interrupted, or V(unknown) where its node gives no answer.
      type: str
      returned: always
    health: {description: "V(unhealthy) where its making was interrupted, V(none) otherwise.", type: str, returned: always}
    created: {description: "When it was made, in UTC.", type: str, returned: always}
    marker: {description: "What its description says about whose it is.", type: dict, returned: always}
    number: {description: Its VMID., type: int, returned: always}
    note: {description: "What an operator has to do before anything can be done to it, such as unlocking it.", type: str, returned: always}
  sample:
    - name: web-r42-1
      id: 100042/7d0d7e3c-2f0b-4a53-9c0f-1f6a7c9d4e21/9f3c1e6b7d2090ab
      host: pve1
      fleet: web
      release: 42
      slot: 1
      image: shop-1.9@sha256:9f3c1e6b7d20
      revision: 4be1c2d
      address: 192.0.2.21
      port: 8080
      state: running
      health: none
      created: "2026-11-20T03:00:00Z"
      marker: {phoenix.fleet.name: web, phoenix.fleet.release: "42"}
      number: 100042
      note: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.info_arguments, supports_check_mode=True)
    try:
        result = FACE.info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
