#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_status
short_description: Tell what a fleet is like
version_added: 1.0.0
description:
  - Prints what is live, the instances, the servers of every balancer, the last releases and the commands to go back and forward, and
    returns the same for machines.
  - The findings name whatever is not as it should be, each with what puts it right.
  - Changes nothing, and needs no lease. Runs on the controller only.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  definition:
    description: The definition, from M(phoenix.fleet.fleet_definition).
    type: dict
    required: true
  instances:
    description: The result of M(phoenix.fleet.instances) with C(verb=observe). A failed one becomes a finding.
    type: dict
    required: true
  balancers:
    description: The balancers, from M(phoenix.fleet.haproxy_backend_info). One that cannot be observed becomes a finding.
    type: list
    elements: dict
    required: true
  file:
    description: A file to write the status to, as JSON, one for each fleet.
    type: path
    default: ""
attributes:
  check_mode:
    support: full
    description: O(file) is not written.
  diff_mode:
    support: none
    description: Changes nothing.
"""

EXAMPLES = r"""
---
- name: Tell what the fleet is like
  phoenix.fleet.fleet_status:
    definition: "{{ fleet.definition }}"
    instances: "{{ instances }}"
    balancers: "{{ balancers.results | map(attribute='balancer') }}"
    file: /var/lib/fleet/web.json
"""

RETURN = r"""
status:
  description: The fleet's status.
  returned: success
  type: dict
  contains:
    fleet:
      description: The fleet.
      returned: success
      type: str
    live:
      description: The live release with C(release), C(image), C(revision) and C(since); none where nothing is live.
      returned: success
      type: dict
    instances:
      description: All instances of the fleet.
      returned: success
      type: list
      elements: dict
    balancers:
      description: For each balancer its C(servers), each with C(name), C(address), C(state), C(weight), C(check) and C(sessions).
      returned: success
      type: dict
    releases:
      description:
        - All releases, the first one first, each with C(number), C(status), C(image), C(revision), C(by), C(started), C(finished)
          and C(reason).
      returned: success
      type: list
      elements: dict
    lease:
      description: Who is at work on the fleet, as C(holder) and C(until); none where nobody is.
      returned: success
      type: dict
    findings:
      description: Whatever is not as it should be.
      returned: success
      type: list
      elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.FLEET_STATUS, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("fleet_status"))


if __name__ == "__main__":
    main()
