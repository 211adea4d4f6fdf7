# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What a run keeps from one task to the next, each of which is a process of its own."""

from __future__ import annotations

folder = ""
"""A folder that is there as long as the run, for its user alone; empty where nobody knows of one, as in a module on a host."""
