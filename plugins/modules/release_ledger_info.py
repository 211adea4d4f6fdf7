#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_ledger_info
short_description: What the ledger knows of a fleet
version_added: 1.0.0
description:
  - Returns a fleet's releases, who holds its lease, what is under way, and whether its chain of records is whole.
  - Needs no lease, and creates nothing where there is no ledger yet.
  - Runs on the controller only. Needs SQLAlchemy 2 there, and psycopg 3 for PostgreSQL.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  definition:
    description:
      - The definition, from M(phoenix.fleet.fleet_definition). Of it, C(name), C(ledger) and C(state_dir) matter.
    type: dict
    required: true
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Changes nothing.
"""

EXAMPLES = r"""
---
- name: See the history of the fleet web
  phoenix.fleet.release_ledger_info:
    definition:
      name: web
      state_dir: /var/lib/phoenix.fleet
  register: history
"""

RETURN = r"""
fleet:
  description: The fleet.
  returned: success
  type: str
ledger:
  description: The id of the ledger, empty where there is none yet.
  returned: success
  type: str
live:
  description: The number of the live release, 0 for none.
  returned: success
  type: int
since:
  description: Since when it is live, in UTC.
  returned: success
  type: str
next_release:
  description: The number that the next release will have.
  returned: success
  type: int
releases:
  description: All releases of the fleet, the first one first.
  returned: success
  type: list
  elements: dict
  contains:
    number:
      description: Its number.
      returned: success
      type: int
    status:
      description: One of C(open), C(live), C(standby), C(failed) and C(retired).
      returned: success
      type: str
    image:
      description: The image as it was asked for.
      returned: success
      type: str
    revision:
      description: The Git revision of the definition.
      returned: success
      type: str
    by:
      description: Who released it.
      returned: success
      type: str
    started:
      description: When it was begun, in UTC.
      returned: success
      type: str
    finished:
      description: When it became live or failed, in UTC.
      returned: success
      type: str
    reason:
      description: Why it failed.
      returned: success
      type: str
entry:
  description: What is under way or was left unfinished, with its records; none where everything is done.
  returned: success
  type: dict
lease:
  description: Who holds the fleet, since when and until when; none where nobody does.
  returned: success
  type: dict
findings:
  description: What is wrong with the chain of records.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils import _arguments


def main() -> None:
    module = AnsibleModule(argument_spec=_arguments.RELEASE_LEDGER_INFO, supports_check_mode=True)
    module.fail_json(msg=_arguments.elsewhere("release_ledger_info"))


if __name__ == "__main__":
    main()
