#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_result
short_description: End a run, say how it ended, and fail unless the goal holds
version_added: 1.0.0
description:
  - The last task of every verb. It writes the last record of what was carried out and gives the lease back.
  - It compares what the balancers show with what was planned, prints the ending in a line or two, hands it to workflows as
    C(phoenix_release), and fails where the goal was not reached.
  - Runs on the controller only.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  definition:
    description: The definition, from M(phoenix.fleet.fleet_definition).
    type: dict
    required: true
  lease:
    description: The lease of the run, from M(phoenix.fleet.release_ledger).
    type: dict
    default: {}
  plan:
    description: The last plan, from M(phoenix.fleet.release_plan).
    type: dict
    default: {}
  before:
    description: What M(phoenix.fleet.haproxy_backend) said of every balancer at the start.
    type: list
    elements: dict
    default: []
  after:
    description: What M(phoenix.fleet.haproxy_backend_info) said of every balancer at the end.
    type: list
    elements: dict
    default: []
  failure:
    description: The task that failed and its result, empty where none did.
    type: dict
    default: {}
  undoing:
    description: The same for what failed while the failure was being undone.
    type: dict
    default: {}
  folder:
    description: Where the last words of the instances that were taken away are kept.
    type: str
    default: ""
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
- name: Say how it ended
  phoenix.fleet.release_result:
    definition: "{{ fleet.definition }}"
    plan: "{{ plan }}"
    after: "{{ balancers.results }}"
  register: release_result
"""

RETURN = r"""
fleet:
  description: The fleet's name.
  returned: always
  type: str
verb:
  description: The undertaking.
  returned: always
  type: str
live:
  description: The number of the release that every balancer that answers calls live, 0 for none.
  returned: always
  type: int
release:
  description: The release that the plan was about. What may be secret in its C(definition) is a hash under the ledger's key.
  returned: success
  type: dict
planned:
  description: Whether there was anything to do.
  returned: always
  type: bool
message:
  description: How it ended, in words.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.RELEASE_RESULT, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("release_result"))


if __name__ == "__main__":
    main()
