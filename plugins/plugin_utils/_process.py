# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Who holds a lease: one process, told apart from every other one, and whether it still lives."""

from __future__ import annotations

import glob
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

RUNNING, STOPPED, GONE, UNKNOWN = "running", "stopped", "gone", "unknown"


@dataclass(frozen=True)
class Process:
    """A process as nothing else can be: boot, PID namespace, PID and start time (ticks since boot). An empty field is not known."""

    boot: str
    namespace: str
    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process with this PID in our own namespace."""
        return cls(boot_id(), _namespace(), pid, _stat(pid)[1])

    def state(self) -> str:
        """running, stopped (by SIGSTOP), gone, or unknown.

        A PID means something only inside its own namespace: two containers share a boot id and not their PIDs (measured). A zombie is
        gone: it acts no more, whether its parent has noticed or not.
        """
        if self.boot != boot_id() or not self.namespace or self.namespace != _namespace():
            return UNKNOWN
        code, start, _parent = _stat(self.pid)
        if not code:
            return RUNNING if _exists(self.pid) else GONE  # /proc hides other users' processes where it is mounted with hidepid
        if (self.start and start != self.start) or code in "ZX":
            return GONE
        return STOPPED if code in "Tt" else RUNNING

    def is_at_work(self) -> bool:
        """Neither gone nor stopped, as far as can be seen from here, and none of the processes that it forked was stopped: with a worker
        that stands still a run stands still.
        """
        state = self.state()
        if state != RUNNING:
            return state == UNKNOWN
        return not any(_stat(pid)[0] in tuple("Tt") for pid in _forked(self.pid))

    def end(self) -> None:
        """SIGKILL this very process and what it started, whatever became of its PID meanwhile."""
        # Where it is gone, its PID may be another's by now, and so are that one's children.
        family = [self] if self.state() in (RUNNING, STOPPED) else []
        for parent in family:
            family += [Process(self.boot, self.namespace, pid, start) for pid, start in _children(parent.pid)]
        for process in family:
            try:
                handle = os.pidfd_open(process.pid)  # from here on the PID cannot come to mean another process
            except OSError:
                continue
            try:
                if process.state() in (RUNNING, STOPPED):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            except OSError:
                pass  # another user's: its fence is too low by now, which stops it just as well
            finally:
                os.close(handle)


def maker() -> Process | None:
    """The process that made this one, which is the run where this is a worker of Ansible's; None where nobody did.

    Where it has ended, so says its state: an orphan never takes its new parent for it.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not parent.pid:
        return None
    return Process.of(parent.pid) if os.getppid() == parent.pid else Process(boot_id(), _namespace(), parent.pid, "0")


def boot_id() -> str:
    """Of the running kernel; containers share it with their host."""
    return _read("/proc/sys/kernel/random/boot_id")


def uptime() -> float:
    """Seconds since the boot, sleep included: a clock that nobody can set, the same in every container of this machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _namespace() -> str:
    try:
        # Where /proc belongs to another namespace than we do, its PIDs are not ours, and nothing can be said.
        return os.readlink("/proc/self/ns/pid") if os.readlink("/proc/self") == str(os.getpid()) else ""
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str, int]:
    """State code, start time and parent; empty where there is no such process to be seen. facts: proc(5), fields 3, 22 and 4."""
    text = _read(f"/proc/{pid}/stat")
    fields = text[text.rfind(")") + 1 :].split()  # the name in field 2 may hold blanks and brackets
    return (fields[0], fields[19], int(fields[1])) if len(fields) > 19 else ("", "", 0)


def _children(pid: int) -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            _code, start, parent = _stat(int(name))
            if parent == pid:
                found.append((int(name), start))
    return found


def _forked(pid: int) -> list[int]:
    """Its children, cheaply where the kernel tells them (CONFIG_PROC_CHILDREN)."""
    lists = glob.glob(f"/proc/{pid}/task/*/children")
    return [int(child) for path in lists for child in _read(path).split()] if lists else [child for child, _start in _children(pid)]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
