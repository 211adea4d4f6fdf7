#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_instances_info
short_description: List a fleet's containers on Docker engines
version_added: 1.0.0
description:
  - Lists the instances of a fleet on all O(hosts), running or not, in one listing per engine.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.docker
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
  - module: phoenix.fleet.docker_instances
"""

EXAMPLES = r"""
---
- name: See the shop
  phoenix.fleet.docker_instances_info:
    fleet: shop
  register: shop

- name: Tell where it runs
  ansible.builtin.debug:
    msg: "{{ shop.instances | map(attribute='address') }}"
"""

RETURN = r"""
instances:
  description: The instances, sorted by release and slot. Empty where there are none.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: "The name, C(FLEET-rRELEASE-SLOT).", type: str, returned: always}
    id: {description: The engine's own id. Empty for one that check mode would make., type: str, returned: always}
    host: {description: The name of the engine., type: str, returned: always}
    fleet: {description: The fleet's name., type: str, returned: always}
    release: {description: The release's number., type: int, returned: always}
    slot: {description: The number within the release., type: int, returned: always}
    image: {description: "The image by its digest, or by its id.", type: str, returned: always}
    revision: {description: The revision that it was made from., type: str, returned: always}
    address: {description: The address that it is reached at., type: str, returned: always}
    port: {description: The port that it is reached at., type: int, returned: always}
    state: {description: "V(created), V(running), V(restarting) or V(stopped).", type: str, returned: always}
    health: {description: "The engine's health check, V(healthy), V(unhealthy), V(starting) or V(none).", type: str, returned: always}
    created: {description: "When it was made, in UTC.", type: str, returned: always}
    marker: {description: The labels that say whose it is., type: dict, returned: always}
    number: {description: "Its number where the ledger issues one, here always 0.", type: int, returned: always}
    note: {description: "What somebody has to do before anything can be done to it, here always empty.", type: str, returned: always}
  sample:
    - name: web-r42-1
      id: 9f3c1e6b7d20
      host: local
      fleet: web
      release: 42
      slot: 1
      image: shop@sha256:9f3c1e6b7d20
      revision: 4be1c2d
      address: 172.30.0.2
      port: 8080
      state: running
      health: healthy
      created: "2026-11-20T03:00:00Z"
      marker: {phoenix.fleet.name: web, phoenix.fleet.release: "42"}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._docker_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.info_arguments, supports_check_mode=True)
    try:
        result = FACE.info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
