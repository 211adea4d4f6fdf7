# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that the providers' modules for one release of a fleet have in common."""

    DOCUMENTATION = r"""
options:
  fleet:
    description: The fleet's name, up to 40 lower-case letters, digits and dashes.
    type: str
    required: true
  release:
    description: The release's number. Others of the fleet are left alone.
    type: int
    required: true
  state:
    description:
      - V(present) makes what is missing, starts what is stopped, and removes what is beyond O(size).
      - V(stopped) stops the release's instances, V(absent) removes them with what was made for them alone.
    type: str
    default: present
    choices: [present, stopped, absent]
  size:
    description: How many instances.
    type: int
    default: 1
  port:
    description: The port that the service listens on inside an instance. Required for O(state=present).
    type: int
  revision:
    description: A revision to record in the marker.
    type: str
    default: ""
  ledger:
    description: The id of the ledger that the marker names. Instances of another one are refused.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Nothing is made, started, stopped or removed, and the result says what would be.
  diff_mode:
    support: full
    description: The release's instances before and after.
"""
