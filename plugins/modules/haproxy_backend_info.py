#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_backend_info
short_description: See a HAProxy backend as it is now
version_added: 1.0.0
description:
  - The servers of a backend, with what HAProxy's own checks say of them and the sessions they have in every HAProxy process, those
    included that a reload left behind with their connections.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.haproxy
attributes:
  check_mode:
    support: full
    description: Changes nothing.
  diff_mode:
    support: none
    description: Changes nothing.
"""

EXAMPLES = r"""
---
- name: See the shop's servers
  phoenix.fleet.haproxy_backend_info:
    name: shop
  delegate_to: lb1
  become: true
  register: seen

- name: Insist that all of them are up
  ansible.builtin.assert:
    that: seen.balancer.servers | rejectattr('up') | length == 0
"""

RETURN = r"""
balancer:
  description: The backend as HAProxy shows it.
  returned: always
  type: dict
  contains:
    host:
      description: The balancer.
      type: str
    reachable:
      description: Whether it answered. Where it did not, nothing is known of the rest.
      type: bool
    version:
      description: HAProxy's version.
      type: str
    head:
      description: What the fragment says of its fleet, C(null) where no fragment of this collection exists.
      type: dict
    servers:
      description:
        - The servers, with their state, weight, C(id), what the check says, and the sessions in all HAProxy processes. C(loaded) is false
          for one that stands in the fragment and that HAProxy does not have.
      type: list
      elements: dict
    strangers:
      description: Servers that somebody else wrote.
      type: list
      elements: dict
    pid:
      description: HAProxy's process.
      type: int
    requests:
      description: Requests, or in TCP mode connections, since that process started.
      type: int
    failures:
      description: Answers of 500 and above, or in TCP mode connections that were not made.
      type: int
    error:
      description: Why it cannot be reached.
      type: str
  sample:
    host: lb1
    reachable: true
    version: 2.6.12
    head: {ledger: 5d0f, fence: 7, fleet: shop, live: 42, next: 43, records: 190}
    servers:
      - {name: shop-r42-1, address: 192.0.2.11, port: 8080, id: 10001, weight: 100, state: ready, up: true, check: L7OK, loaded: true}
    strangers: []
    pid: 812
    requests: 3912
    failures: 0
    error: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import face


def main() -> None:
    module = AnsibleModule(argument_spec=face.PLACES, supports_check_mode=True)
    try:
        module.exit_json(**face.observe(module.params, module.check_mode, lambda text: None))
    except FleetError as error:
        module.fail_json(msg=str(error), **face.failure(error))


if __name__ == "__main__":
    main()
