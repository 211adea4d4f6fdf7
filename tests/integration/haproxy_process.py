# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real HAProxy, master and worker, in a folder of its own and on loopback. For all tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

DEADLINE = 15.0
PROGRAM = os.environ.get("HAPROXY_PROGRAM", "haproxy")
"""The HAProxy to test with, so that another version than the machine's can be tried."""


class HAProxyProcess:
    """HAProxy with a front end on a loopback port for each of `backends`, and an empty `conf.d` backend for each of them.

    folder is made. master=False starts it without a master socket. settings are further lines of its `defaults`.
    user: there is no master at all, and it drops root to be that user. environment: what it gets beside the test's own.
    """

    def __init__(
        self, folder: Path, backends: Sequence[str] = ("web",), master: bool = True, defaults: Sequence[str] = (), mode: str = "http",
        prepared: bool = True, extra: str = "", user: str = "", environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.backends = tuple(backends)
        self.mode = mode
        self.user = user
        self.environment = dict(environment or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "haproxy.cfg"
        self.config_dir = self.folder / "conf.d"
        self.config_dir.mkdir(exist_ok=True)
        self.log = self.folder / "haproxy.log"
        # A socket's path has at most 107 bytes, and pytest's folders are long.
        self.run = Path(f"/tmp/haproxy-{os.getpid()}-{id(self):x}")
        self.socket = self.run / "admin.sock"
        self.master_socket = self.run / "master.sock" if master and not user else None
        self.ports = {backend: free_port() for backend in self.backends}
        self.process: subprocess.Popen[bytes] | None = None
        self.config.write_text(self._text(defaults, extra))
        if prepared:
            for backend in self.backends:
                (self.config_dir / f"{backend}.cfg").write_text(
                    f"backend {backend}\n    mode {mode}\n    timeout connect 5s\n    timeout server 1m\n"
                )

    def _text(self, defaults: Sequence[str], extra: str) -> str:
        lines = [
            "global", f"    stats socket {self.socket} mode 600 level admin", "    stats timeout 30s", "    hard-stop-after 60s",
            *([f"    user {self.user}"] if self.user else []),
            "defaults", f"    mode {self.mode}", "    timeout connect 5s", "    timeout client 60s", "    timeout server 60s",
            *(f"    {line}" for line in defaults),
        ]
        for backend, port in self.ports.items():
            lines += [f"frontend {backend}", f"    bind 127.0.0.1:{port}", f"    mode {self.mode}", f"    default_backend {backend}"]
            lines += ["    option idle-close-on-response"] if self.mode == "http" else []
        return "\n".join(lines) + "\n" + extra

    # Life

    def start(self) -> HAProxyProcess:
        self.run.mkdir(mode=0o700, exist_ok=True)
        command = [PROGRAM, *([] if self.user else ["-W"]), "-db", "-f", str(self.config), "-f", str(self.config_dir)]
        command += ["-S", str(self.master_socket)] if self.master_socket else []
        with open(self.log, "ab") as log:
            environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin", **self.environment}
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        wait_until(self._answers, "HAProxy to answer", self.log.read_text)
        return self

    def _master_listens(self) -> bool:
        # A signal that reaches the master while it loads itself is lost (measured on 2.6.12): it has no handler for it yet.
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        blocked, caught = (int(re.search(rf"{key}:\s*(\w+)", status).group(1), 16) for key in ("SigBlk", "SigCgt"))  # type: ignore[union-attr]
        bit = 1 << (signal.SIGUSR2 - 1)
        return bool(caught & bit and not blocked & bit)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.pid)
        except OSError:
            return False

    def reload(self, wait: bool = True) -> None:
        """SIGUSR2 for the master, as systemd does; waits until another worker answers."""
        assert self.process is not None
        wait_until(self._master_listens, "HAProxy's master", self.log.read_text)
        before = self.pid if wait else 0
        self.process.send_signal(signal.SIGUSR2)
        if wait:
            wait_until(lambda: self._pid_now() not in (0, before), "another worker", self.log.read_text)

    def restart(self) -> None:
        self.stop(keep=True)
        self.start()

    def stop(self, keep: bool = False) -> None:
        """End it and every worker of it; keep leaves the folder of the sockets, for a start."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if not keep and self.run.exists():
            for path in self.run.iterdir():
                path.unlink()
            self.run.rmdir()

    def kill(self) -> None:
        """SIGKILL for the master and its workers, as a power cut."""
        assert self.process is not None
        for pid in [*self.workers(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process = None

    def workers(self) -> List[int]:
        """The process ids of all workers, by the kernel."""
        assert self.process is not None
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    # What a user asks

    @property
    def hostvars(self) -> Dict[str, Any]:
        """The variables of a host in group `balancers`."""
        made = {
            "ansible_connection": "local", "haproxy_socket": str(self.socket), "haproxy_config": str(self.config),
            "haproxy_config_dir": str(self.config_dir),
        }
        if self.master_socket:
            return {**made, "haproxy_master_socket": str(self.master_socket)}
        return {**made, "haproxy_master_socket": "", "haproxy_reload_command": f"kill -USR2 {self.process.pid if self.process else 0}"}

    def url(self, backend: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[backend or self.backends[0]]}"

    def cli(self, command: str) -> str:
        """One command, by this test's own means."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(DEADLINE)
            line.connect(str(self.socket))
            line.sendall(command.encode() + b"\n")
            line.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: line.recv(65536), b"")).decode()

    @property
    def pid(self) -> int:
        """The current worker."""
        found = dict(re.findall(r"^(Pid|Stopping): (\d+)", self.cli("show info"), re.M))
        return int(found["Pid"]) if found.get("Stopping") == "0" else 0

    def _pid_now(self) -> int:
        try:
            return self.pid
        except OSError:
            return 0

    @property
    def version(self) -> Tuple[int, int]:
        found = re.search(r"Version: (\d+)\.(\d+)", self.cli("show info"))
        assert found
        return int(found.group(1)), int(found.group(2))

    def servers(self, backend: str = "") -> Dict[str, Mapping[str, str]]:
        """The rows of `show servers state` by server."""
        text = self.cli(f"show servers state {backend or self.backends[0]}")
        rows = [line.split() for line in text.splitlines()[1:] if line.strip()]
        if not rows:
            return {}
        return {row[3]: dict(zip(rows[0][1:], row, strict=True)) for row in rows[1:]}

    def weights(self, backend: str = "") -> Dict[str, int]:
        """The weight of each server that is neither in drain nor in maintenance; those have 0."""
        return {
            name: int(row["srv_uweight"]) if row["srv_admin_state"] == "0" else 0 for name, row in self.servers(backend).items()
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, what: str, shown: Any = lambda: "", deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:.0f} s for {what}\n{shown()}"
        time.sleep(0.01)
