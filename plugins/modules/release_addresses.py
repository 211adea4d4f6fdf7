#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_addresses
short_description: Complete a wave with the addresses that started instances have told
version_added: 1.0.0
description:
  - Where a provider finds an instance's address out only after the start, a plan's later steps do not have it yet. This fills it in.
  - The ledger keeps the addresses before anybody is told of them. One that another instance of the ledger holds is refused.
  - Runs on the controller only.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  definition:
    description: The definition, from M(phoenix.fleet.fleet_definition).
    type: dict
    required: true
  lease:
    description: The lease of the run, from M(phoenix.fleet.release_ledger). Without one nothing is recorded.
    type: dict
    default: {}
  wave:
    description: The wave, one of those from M(phoenix.fleet.release_plan).
    type: dict
    required: true
  instances:
    description: The instances as M(phoenix.fleet.instances) with C(verb=create) and C(verb=start) returned them.
    type: list
    elements: dict
    required: true
  pools:
    description: Where instances may be placed, from M(phoenix.fleet.instances) with C(verb=observe).
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
    description: Nothing is recorded.
  diff_mode:
    support: none
    description: Nothing but the ledger changes.
"""

EXAMPLES = r"""
---
- name: Learn where they are
  phoenix.fleet.release_addresses:
    definition: "{{ fleet.definition }}"
    lease: "{{ lease.lease }}"
    wave: "{{ plan.waves[0] }}"
    instances: "{{ created.instances }}"
    pools: "{{ observed.pools }}"
  register: learned
"""

RETURN = r"""
wave:
  description: The wave with the addresses in its instances and servers.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "definition": {"type": "dict", "required": True},
            "lease": {"type": "dict", "default": {}},
            "wave": {"type": "dict", "required": True},
            "instances": {"type": "list", "elements": "dict", "required": True},
            "pools": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    module.fail_json(msg="release_addresses is an action plugin: call it as phoenix.fleet.release_addresses in a task on the controller.")


if __name__ == "__main__":
    main()
