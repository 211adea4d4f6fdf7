# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run of ansible-playbook that can be held at a task, frozen and killed, in part or as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Run

HERE = Path(__file__).resolve().parent
DEADLINE = 200.0
END = "(the end)"


def until(what: str, holds: Callable[[], Any], deadline: float = DEADLINE, pause: float = 0.005) -> Any:
    """Poll until `holds()` is truthy, and return that. Raises AssertionError saying what was waited for."""
    end = time.monotonic() + deadline
    while not (value := holds()):
        assert time.monotonic() < end, f"waited {deadline:.0f} s for {what}"
        time.sleep(pause)
    return value


class Command:
    """ansible-playbook, under way in a session (so a process group) of its own, beside the test.

    hold is the task at which it waits until `go()`: no task is under way then. prefix goes before the command (faketime, unshare).
    """

    def __init__(self, folder: Path, arguments: Sequence[str], hold: str = "", prefix: Sequence[str] = (),
                 environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"run-{time.monotonic_ns()}"
        self._events, self._hold, self._output = (stem.with_suffix(end) for end in (".events", ".hold", ".output"))
        self._hold.write_text(hold)
        self._events.touch()
        program = str(Path(sys.executable).parent / "ansible-playbook")
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [*prefix, program, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={
                    **os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
                    "ANSIBLE_CALLBACKS_ENABLED": "fault_points", "FAULT_EVENTS": str(self._events),
                    "FAULT_HOLD": str(self._hold), **(environment or {}),
                },
            )

    # Where it is

    def tasks(self) -> list[tuple[float, str]]:
        """The tasks that have begun: when (monotonic seconds), and which."""
        lines = self._events.read_text().splitlines()
        return [(float(when), name) for when, name in (line.split(" ", 1) for line in lines if " " in line)]

    def reach(self, task: str, occurrence: int = 1) -> bool:
        """Wait until the task has begun; False where the run ended without it."""
        def there() -> str:
            names = [name for _when, name in self.tasks()]
            return "there" if names.count(task) >= occurrence else "ended" if self.process.poll() is not None else ""
        return bool(until(f"the task {task}\n{self.output}", there) == "there")

    def go(self, hold: str = "") -> None:
        """Let it go on, until the task `hold` where one is named."""
        self._hold.write_text(hold)

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait(self) -> Run:
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill("everything")
            raise AssertionError(f"it did not end in {DEADLINE:.0f} s:\n{self.output}") from None
        return Run(self.process.returncode, self.output)

    # What befalls it

    def workers(self) -> list[int]:
        """The processes that it has started, and those that these have started."""
        family = [self.process.pid]
        for pid in family:
            with suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    family += [int(child) for child in (thread / "children").read_text().split()]
        return family[1:]

    def signal(self, number: int, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, mode: str) -> None:
        """SIGKILL. alone: ansible-playbook and nothing else; group: its process group; workers: what it has started, so that itself goes on
        and ends; everything: as when a machine or a container ends."""
        if mode == "workers":
            self.signal(signal.SIGKILL, self.workers())
        elif mode == "alone":
            self.process.kill()
        elif mode == "group":
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGSTOP)  # so that it starts nothing more
            self.signal(signal.SIGKILL, [*self.workers(), self.process.pid])
        self.process.wait(DEADLINE)
