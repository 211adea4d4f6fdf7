# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tells the fault suite where a run is: a line in FAULT_EVENTS as each task begins. It waits at the task that the file FAULT_HOLD names."""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fault_points
type: notification
short_description: Tells the fault suite where a run is
description: Appends the name of each task that begins to a file, and waits at a task for as long as another file names it.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "fault_points"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._tell(task.get_name().rpartition(" : ")[2])

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._tell("(the end)")

    def _tell(self, name: str) -> None:
        with open(os.environ["FAULT_EVENTS"], "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {name}\n")
        # No task of the run is under way now: this process is where it would be between two.
        while self._held() == name:
            time.sleep(0.005)

    def _held(self) -> str:
        try:
            with open(os.environ["FAULT_HOLD"], encoding="utf-8") as file:
                return file.read()
        except OSError:
            return ""
