# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For runs under libfaketime 0.9.10, which reckons the deadline of Python's sleep (clock_nanosleep) with the faked clock, and fails."""

from __future__ import annotations

import select
import time

time.sleep = lambda seconds: None if select.select([], [], [], max(0.0, seconds)) else None
