#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_ledger
short_description: Hold a fleet's lease, and write records to its ledger
version_added: 1.0.0
description:
  - The ledger keeps the history of a fleet's releases and lets one run at a time change it. It is an SQLite file in the state directory,
    or a PostgreSQL database where several controllers release.
  - A run takes the fleet's lease, which raises its fence, writes records before it acts, and gives the lease back.
  - A holder whose process is gone is succeeded at once. One that cannot be seen from here is succeeded 30 seconds after its last renewal.
  - Runs on the controller only. Needs SQLAlchemy 2 there, and psycopg 3 for PostgreSQL.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  state:
    description:
      - V(held) takes the lease, and fails where another run holds it, saying which, since when, and what to do.
      - V(recorded) writes O(record). Where O(instances) are given, they have to run, and not to have been restarted.
      - V(free) gives the lease back.
    type: str
    choices: [held, recorded, free]
    default: held
  verb:
    description:
      - What the run is about to do. The definition is then read from the variables of the task's host, as by
        M(phoenix.fleet.fleet_definition), and returned with the lease.
    type: str
    choices: [release, rollback, scale, heal, retire, status, hosts]
  definition:
    description:
      - The definition, where O(verb) is not given. Of it, C(name), C(ledger), C(state_dir) and C(takeover) matter; with O(instances), where
        they live as well.
    type: dict
    default: {}
  lease:
    description:
      - The lease, from this module with O(state=held).
      - Required to record and to give back. A lease of check mode (C(fence) is 0) records nothing.
    type: dict
    default: {}
  instances:
    description: The instances that must run as they were started, else nothing is recorded and the task fails with their last words.
    type: list
    elements: dict
    default: []
  record:
    description:
      - The record of the undertaking that is open.
      - One of C(wave K open) and C(wave K passed) with a number, C(commit), C(revert), C(retire) and C(done).
      - Required with O(state=recorded).
    type: str
    default: ""
  reason:
    description: Why, for C(revert) and C(done) of what failed.
    type: str
    default: ""
  release:
    description: The release that the record is about, where that is not the one that the undertaking brings to life.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: No lease is taken and nothing is written.
  diff_mode:
    support: none
    description: The records are the difference.
"""

EXAMPLES = r"""
---
- name: Take the fleet
  phoenix.fleet.release_ledger:
    state: held
    definition: "{{ fleet.definition }}"
  register: lease

- name: Record that the release is live
  phoenix.fleet.release_ledger:
    state: recorded
    record: commit
    definition: "{{ fleet.definition }}"
    lease: "{{ lease.lease }}"

- name: Give the fleet back
  phoenix.fleet.release_ledger:
    state: free
    definition: "{{ fleet.definition }}"
    lease: "{{ lease.lease }}"
"""

RETURN = r"""
definition:
  description: The validated definition, as M(phoenix.fleet.fleet_definition) returns it.
  returned: with O(verb)
  type: dict
goal:
  description: The goal, for M(phoenix.fleet.release_plan).
  returned: with O(verb)
  type: dict
balancers:
  description: The balancers, each with C(host) and C(address).
  returned: with O(verb)
  type: list
  elements: dict
former:
  description:
    - Where the fleet was before, each with C(balancer) and C(backend), as long as that is in the inventory and has not confirmed that
      all of the fleet's servers are out.
  returned: with O(state=held)
  type: list
  elements: dict
lease:
  description: The lease that the other modules ask for; empty once it is given back.
  returned: success
  type: dict
  contains:
    fence:
      description: The number of the lease, higher than any before; 0 in check mode.
      returned: success
      type: int
      sample: 12
    fleet:
      description: The fleet.
      returned: success
      type: str
    holder:
      description: Who holds it.
      returned: success
      type: str
      sample: root@controller pid 4711
    since:
      description: Since when, in UTC.
      returned: success
      type: str
      sample: "2026-03-01T12:00:00Z"
    ledger:
      description: The id of the ledger.
      returned: success
      type: str
    url:
      description: The URL of the ledger without its password, empty for the file in the state directory.
      returned: success
      type: str
    state_dir:
      description: The state directory.
      returned: success
      type: str
    monotonic:
      description: When the lease was taken, by the controller's monotonic clock.
      returned: success
      type: float
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.RELEASE_LEDGER, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("release_ledger"))


if __name__ == "__main__":
    main()
