#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxmox_instances
short_description: Keep one release of a fleet as guests of a Proxmox VE cluster
version_added: 1.0.0
description:
  - Makes O(size) instances of a release by cloning a template, spread evenly over the cluster's nodes, or stops or removes them.
  - An instance that exists is never changed. Another template or option is another release, and is refused under the same O(release).
  - The description of every guest carries a marker with the fleet, the release and the ledger, from the call that makes it. Nothing without
    it, and no other release, is touched, whatever its VMID.
  - The roles of the collection do the same with a ledger, checks and HAProxy. This module is for playbooks that use none of them.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.release_set
  - phoenix.fleet.proxmox
  - phoenix.fleet.proxmox.image
  - phoenix.fleet.proxmox.instance
options:
  image:
    description: The template, by its name or VMID. Required for O(state=present).
    type: str
  balancers:
    description: The addresses of the hosts that must reach the instances. They need a route to O(addresses).
    type: list
    elements: str
    default: [local]
  stop_timeout:
    description: Seconds for a polite shutdown, by the guest agent or ACPI, before it is forced.
    type: int
    default: 10
notes:
  - Without a ledger the VMIDs are the ones above all that are in use in O(vmid_range). With one they are never used again.
seealso:
  - module: phoenix.fleet.proxmox_instances_info
  - module: phoenix.fleet.instances
"""

EXAMPLES = r"""
---
- name: Four instances of the shop with fixed addresses
  phoenix.fleet.proxmox_instances:
    api_host: pve1.example.org
    api_user: fleet@pve
    api_token_id: ci
    api_token_secret: "{{ vault_pve_token }}"
    ca_path: /etc/ssl/pve-root-ca.pem
    pool: fleet
    fleet: shop
    release: 7
    image: shop-1.9
    size: 4
    port: 8080
    cores: 2
    memory: 2g
    addresses: [192.0.2.20-192.0.2.99]
    gateway: 192.0.2.1
  register: shop

- name: The predecessor is gone
  phoenix.fleet.proxmox_instances:
    api_host: pve1.example.org
    api_user: fleet@pve
    api_token_id: ci
    api_token_secret: "{{ vault_pve_token }}"
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
