# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""HAProxy's command line interface (the `stats socket` and the master's). Standard library only, since it runs where HAProxy runs.

Sources: facts 1.7, measured on HAProxy 2.6 to 3.4. A connection that was opened before a reload goes on talking to the old process,
which answers "New server registered." and forgets it; so every batch has a connection of its own that begins with `show info`.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import time
from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from .._errors import RefusedError, UnreachableError

OLDEST = (2, 6)
PROMPT = b"\n> "
PATIENCE = 5.0
"""Seconds in which a HAProxy that is restarting has to take connections again."""

LONGEST = 8192
"""Bytes of a command: half of HAProxy's default buffer, at whose end 3.4.0 splits a line and runs the rest as another command."""

SICK = "See whether it runs: systemctl status haproxy"
HINTS = (
    ("Permission denied", "Give the socket 'level admin' on its stats socket line in HAProxy's global section."),
    ("dynamic load balancing", "Use roundrobin, leastconn, random, first, or a hash with the line 'hash-type consistent'."),
    ("non dynamic", "Use roundrobin, leastconn, random, first, or a hash with the line 'hash-type consistent'."),
    ("unable to load", "Let HAProxy's configuration name the file too, so that it is loaded before HAProxy locks itself into its chroot."),
    ("pointing to it", "Take the line that refers to it, such as use-server or track, away and reload HAProxy."),
    ("with the same", "Another server of the backend has this name or id: list it, or remove it."),
)


@dataclass(frozen=True)
class Info:
    """The worker that answers: its process id, its version and when it was started (seconds since 1970).

    opener is the user id of whoever opened the socket, by the kernel's word; the others are the answer's own.
    """

    pid: int
    version: str
    started: int = 0
    opener: int = -1

    @property
    def release(self) -> Tuple[int, int]:
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)

    @property
    def identity(self) -> str:
        """Names this very process: a process id alone is used again."""
        return f"{self.pid}:{self.started}"


@dataclass(frozen=True)
class Processes:
    """What the master tells: its workers' process ids, how often it was told to reload, and how many reloads in a row have failed."""

    workers: Tuple[int, ...]
    reloads: int
    failed: int


class Client:
    """The admin socket of one HAProxy, and the master's where there is one (else "")."""

    def __init__(self, path: str, master: str = "", timeout: float = 10.0) -> None:
        self.path = path
        self.master_path = master
        self.timeout = timeout

    def info(self) -> Info:
        return self.ask()[0]

    def ask(self, *commands: str) -> Tuple[Info, List[str]]:
        """Run commands in the current worker, one in flight at a time; returns who answered, and the replies.

        Raises RefusedError naming the command and the reply where HAProxy says no (see `accepted`; "" and tables are fine), and
        UnreachableError where there is no answer, or only from a process that is stopping.
        """
        for command in commands:
            safe(command)
        deadline = time.monotonic() + self.timeout
        patience = time.monotonic() + PATIENCE
        while True:
            begun = False
            try:
                with _Connection(self.path, deadline, patience) as line:
                    info = _info(line.ask("show info"), self.path)
                    if info is not None:
                        info = replace(info, opener=line.opener())
                        replies = []
                        for command in commands:
                            begun = begun or not command.startswith("show ")
                            reply = line.ask(command)
                            accepted(command, reply, self.path)
                            replies.append(reply)
                        return info, replies
            except UnreachableError:
                # A process that ends cuts its connections. To ask again is safe as long as nothing was changed.
                if begun or time.monotonic() > patience:
                    raise
            if time.monotonic() > deadline:
                cause = f"for {self.timeout:.0f} s only a process that is stopping has answered"
                raise UnreachableError(f"HAProxy at {self.path}", cause, "See whether it is being stopped: systemctl status haproxy")
            time.sleep(0.01)

    def master(self, command: str, timeout: float = 0) -> str:
        """One command for the master; one that is loading itself anew is waited for. For a worker of it see `worker`."""
        safe(command)
        deadline = time.monotonic() + (timeout or self.timeout)
        while True:
            try:
                with _Connection(self.master_path, deadline, deadline, interactive=False) as line:
                    reply = line.once(command)
                if reply or command == "reload" or "shutdown " in command:
                    return reply
                raise UnreachableError(f"HAProxy's master at {self.master_path}", f"no answer to {command!r}", SICK)
            except UnreachableError:
                # While it loads itself anew it cuts connections that it had accepted (measured on 2.6.12).
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def worker(self, pid: int, command: str) -> str:
        """One command, which may be given twice, for a worker of the master's, a former one for example; empty where that has ended.

        One that is ending stands on the master's list for a while. Then it is said that it cannot be connected to, or nothing at all:
        in 3 of 150 endings 3.0.11 had taken the question and never answered. That is no proof of anything, and whether it has ended is
        known when it is off the list. Raises UnreachableError where it still is on it, and silent, after the timeout.
        """
        deadline = time.monotonic() + self.timeout
        patience = 1.0
        while True:
            try:
                reply = self.master(f"@!{pid} {command}", patience)
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
                patience *= 2  # it may only be slow
                continue
            if "Can't find the target PID" in reply:
                return ""
            if "Can't connect to the target CLI" not in reply:
                return reply
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"HAProxy's process {pid} at {self.master_path}", f"it is listed, and has taken no command for {self.timeout:.0f} s",
                    f"See what it does: ps -fp {pid}",
                )
            time.sleep(0.02)

    def processes(self) -> Processes:
        text = self.master("show proc")
        rows = [row.split() for row in text.splitlines() if re.match(r"\d+\s+(master|worker)\s", row)]
        failed = re.search(r"\[failed: (\d+)\]", text)
        return Processes(
            workers=tuple(int(row[0]) for row in rows if row[1] == "worker"),
            reloads=next((int(row[2]) for row in rows if row[1] == "master" and row[2].isdigit()), 0),
            failed=int(failed.group(1)) if failed else 0,
        )


def safe(command: str) -> None:
    """Raises RefusedError for what HAProxy would read as more than this one command (facts: `;`, a newline, `<<` and a backslash)."""
    what = f"the command {command[:80]!r}"
    if re.search(r"[;\\\x00-\x1f\x7f]|<<", command) or not command.isascii():
        raise RefusedError(what, "it holds characters that would end it", "Use letters, digits, _ . : and - in names.")
    if len(command) > LONGEST:
        raise RefusedError(what, f"it has {len(command)} bytes, more than {LONGEST}", "Use shorter options of the server.")


def accepted(command: str, reply: str, where: str = "") -> None:
    """Raises RefusedError unless the reply is what HAProxy says when the command has done its work."""
    if command.startswith("show "):
        good = not reply.lstrip().startswith(("Unknown command", "Permission denied", "This command is restricted", "No such proxy"))
    elif command.startswith("add server "):
        good = "New server registered." in reply
    elif command.startswith("del server "):
        good = "Server deleted." in reply or STUCK in reply
    elif command.startswith("wait "):
        good = reply.strip().startswith(("Done.", "Failed."))
    elif command.startswith("shutdown session "):
        good = not reply.strip() or "No such session" in reply
    else:
        good = not reply.strip()
    if not good:
        told = " ".join(reply.split())[:300]
        remedy = next((hint for sign, hint in HINTS if sign in reply), "")
        raise RefusedError(f"HAProxy at {where}" if where else "HAProxy", f"it answered {told!r} to {command!r}", remedy)


STUCK = "still has connections"
"""In the reply to `del server` where a connection is left; not an error, but a reason to come again."""


def table(text: str) -> List[List[str]]:
    """The rows of a table that HAProxy prints, without its comments."""
    return [row.split() for row in text.splitlines() if row.strip() and not row.startswith("#")]


def _info(text: str, where: str) -> Optional[Info]:
    """None where the process is stopping. Raises RefusedError for a version that cannot register servers."""
    found = dict(re.findall(r"^([A-Za-z_-]+): ?(.*)$", text, re.M))
    if not found.get("Pid", "").isdigit() or "Version" not in found:
        accepted("set", text or "nothing", where)
    if found.get("Stopping", "0") != "0":
        return None
    info = Info(int(found["Pid"]), found["Version"], int(found.get("Start_time_sec", "0") or 0))
    if info.release < OLDEST:
        raise RefusedError(f"HAProxy {info.version} at {where}", "it registers no servers while it runs", "Install HAProxy 2.6 or later.")
    return info


class _Connection:
    """One connection to a CLI socket, which must be made by `patience` (HAProxy may be restarting) and answer by `deadline`."""

    def __init__(self, path: str, deadline: float, patience: float, interactive: bool = True) -> None:
        self.path = path
        self.deadline = deadline
        self.patience = patience
        self.interactive = interactive

    def __enter__(self) -> _Connection:
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(max(0.1, self.deadline - time.monotonic()))
            try:
                self.socket.connect(self.path)
                if self.interactive:
                    self.socket.sendall(b"prompt\n")
                    self._read()
                return self
            except (OSError, UnreachableError) as error:
                self.socket.close()
                if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
                    remedy = "Set ansible_become: true for this balancer, or run as root."
                    raise RefusedError(f"HAProxy's socket {self.path}", "permission denied", remedy) from None
                if time.monotonic() > self.patience:
                    raise _silent(self.path, error, self.interactive) from None
                time.sleep(0.02)

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def opener(self) -> int:
        """The user id of the process that listened there first; a reload hands the socket on, and dropping root changes nothing of it."""
        return int(struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1])

    def ask(self, command: str) -> str:
        try:
            self.socket.sendall(command.encode() + b"\n")
            return self._read()
        except OSError as error:
            raise UnreachableError(
                f"HAProxy at {self.path}", f"no answer to {command!r}: {error}", SICK
            ) from None

    def _read(self) -> str:
        # Replies are framed by the prompt: splitting at blank lines is not reliable (facts: `Server deleted.` has one newline or two).
        data = b""
        while not (data.endswith(PROMPT) or data == PROMPT[1:]):
            piece = self.socket.recv(65536)
            if not piece:
                raise UnreachableError(f"HAProxy at {self.path}", "it closed the connection", SICK)
            data += piece
        return data[: -len(PROMPT)].decode(errors="replace") if len(data) >= len(PROMPT) else ""

    def once(self, command: str) -> str:
        """The reply up to the end of the connection: the master's prompt is another, and `reload` closes it without one."""
        data = b""
        try:
            self.socket.sendall(command.encode() + b"\n")
            self.socket.shutdown(socket.SHUT_WR)
            while True:
                piece = self.socket.recv(65536)
                if not piece:
                    break
                data += piece
        except OSError as error:
            if command != "reload":
                raise UnreachableError(
                    f"HAProxy's master at {self.path}", f"no answer to {command!r}: {error}", SICK
                ) from None
        return data.decode(errors="replace")


def _silent(path: str, error: Exception, admin: bool) -> UnreachableError:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOENT:
        remedy = "set haproxy_socket to the path on its line 'stats socket PATH level admin'"
        remedy = remedy if admin else "set haproxy_master_socket to the path after its option -S"
        return UnreachableError(f"HAProxy's socket {path}", "it does not exist", f"Start HAProxy, or {remedy}.")
    if code == errno.ECONNREFUSED:
        return UnreachableError(f"HAProxy's socket {path}", "nobody listens there", "Start HAProxy: systemctl start haproxy")
    return UnreachableError(f"HAProxy's socket {path}", str(error), SICK)
