#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_definition
short_description: Read and validate the definition of a fleet
version_added: 1.0.0
description:
  - Reads the C(fleet_*) variables of the task's host, a host in group C(fleets), converts them and fills in the defaults.
  - All mistakes are reported at once, one line each, with the variable, its value and the remedy. Nothing is touched.
  - What may be secret, an environment included, is replaced by a placeholder in the result. The other plugins of the collection read it
    from the variables again.
  - The variables are described in the argument specification of the role P(phoenix.fleet.fleet#role), entry point C(definition).
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  verb:
    description:
      - What the definition is wanted for, which decides what further variables are read, such as C(scale_size) for V(scale).
      - A fleet on hold (C(fleet_hold)) is refused for every verb but V(status) and V(hosts).
    type: str
    default: status
    choices: [release, rollback, scale, heal, retire, status, hosts]
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: Nothing is ever changed.
"""

EXAMPLES = r"""
---
- name: See the definition of each fleet
  hosts: fleets
  connection: local
  gather_facts: false
  tasks:
    - name: Read it
      phoenix.fleet.fleet_definition:
      register: fleet

    - name: Show it
      ansible.builtin.debug:
        var: fleet.definition
"""

RETURN = r"""
definition:
  description: The definition, complete, with a key for each C(fleet_*) variable; the provider's options are in C(options).
  returned: success
  type: dict
  sample:
    name: web
    image: shop:1.9
    port: 8080
    size: 2
    provider: docker
    balancers: [lb1]
    options: {memory: 256m}
goal:
  description: What the run is for, as the planner wants it. C(image) is the reference that is still to be resolved.
  returned: success
  type: dict
  sample: {verb: release, image: "shop:1.9", force: false, size: 0, to: 0, hash: "", reason: ""}
balancers:
  description: The balancers of the fleet.
  returned: success
  type: list
  elements: dict
  contains:
    host:
      description: The name in the inventory.
      type: str
    address:
      description: Where it is found, V(local) for this machine.
      type: str
  sample:
    - {host: lb1, address: 192.0.2.7}
mistakes:
  description: All mistakes, one line each.
  returned: failure
  type: list
  elements: str
  sample:
    - "fleet_port: 99999 is not a port; write a number from 1 to 65535"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.FLEET_DEFINITION, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("fleet_definition"))


if __name__ == "__main__":
    main()
