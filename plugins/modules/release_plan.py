#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_plan
short_description: Plan what brings a fleet from what is observed to its goal
version_added: 1.0.0
description:
  - Takes the definition, the world as it was observed and the ledger's history, and returns waves of steps. No I/O decides anything, so
    the same input always gives the same plan.
  - Under a lease the intent is written to the ledger before the plan is returned. In check mode nothing is written.
  - Runs on the controller only.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  definition:
    description: The definition, from M(phoenix.fleet.fleet_definition).
    type: dict
    required: true
  goal:
    description: The goal, from M(phoenix.fleet.fleet_definition).
    type: dict
    required: true
  image:
    description: What the image means now, from M(phoenix.fleet.instances) with C(verb=observe) and C(image).
    type: dict
    default: {}
  instances:
    description: The fleet's instances, from M(phoenix.fleet.instances) with C(verb=observe).
    type: list
    elements: dict
    default: []
  pools:
    description: Where instances may be placed, from M(phoenix.fleet.instances) with C(verb=observe).
    type: list
    elements: dict
    default: []
  balancers:
    description: The balancers, from M(phoenix.fleet.haproxy_backend_info).
    type: list
    elements: dict
    default: []
  lease:
    description: The lease of the run, from M(phoenix.fleet.release_ledger).
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: The plan is made and returned, its intent is not written.
  diff_mode:
    support: full
    description: The plan, a line for each step.
"""

EXAMPLES = r"""
---
- name: Plan a release
  phoenix.fleet.release_plan:
    definition: "{{ fleet.definition }}"
    goal: "{{ fleet.goal }}"
    image: "{{ seen.image }}"
    instances: "{{ seen.instances }}"
    pools: "{{ seen.pools }}"
    balancers: "{{ balancers.results | map(attribute='balancer') }}"
    lease: "{{ lease.lease }}"
  register: plan
"""

RETURN = r"""
waves:
  description: The waves of the plan, each a dictionary from the kind of a step to what it works on. None, where the goal holds already.
  returned: success
  type: list
  elements: dict
verb:
  description: The undertaking.
  returned: success
  type: str
source:
  description: The number of the release that was live, 0 for none.
  returned: success
  type: int
target:
  description: The number of the release that the plan is about.
  returned: success
  type: int
outcome:
  description: The target's status once the plan is carried out.
  returned: success
  type: str
  sample: live
release:
  description: The target as the ledger records it, but for what may be secret in its C(definition), of which it is a hash.
  returned: success
  type: dict
reasons:
  description: Why the plan is what it is.
  returned: success
  type: list
  elements: str
  sample: [image changed, keeps r41 as standby]
again:
  description: Whether this plan only puts a former run right, and the goal needs another one.
  returned: success
  type: bool
backend:
  description: The backend's options that the plan brings, if any, and which servers they are for.
  returned: success
  type: dict
balancers:
  description: The balancers that the steps are carried out on, those that gave no answer left out.
  returned: success
  type: list
  elements: str
next:
  description: The number that the next release will have.
  returned: success
  type: int
made:
  description: The instances that the plan creates or starts.
  returned: success
  type: list
  elements: dict
folder:
  description: Where the last words of these instances are kept, should they fail.
  returned: success
  type: str
opened:
  description: Whether the intent was written.
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.RELEASE_PLAN, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("release_plan"))


if __name__ == "__main__":
    main()
