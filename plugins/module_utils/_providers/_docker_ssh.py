# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The docker SDK's way to an engine through the user's own ssh, with a deadline.

The SDK reads and writes ssh's pipes and never gives up: an ssh that hangs, in a handshake or over a question on a terminal, held the run
for ever. Here its timeout means what it means for every other transport, the longest silence.
"""

from __future__ import annotations

import importlib
import io
import os
import select
import socket
import sys
import types
from typing import Any, Optional


class _Later(types.ModuleType):
    """Stands for a module that is loaded when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


SSHSocket: Any
SSHConnection: Any
SSHConnectionPool: Any
SSHHTTPAdapter: Any
# The SDK imports paramiko, which takes 0.1 s (measured), need not be there, and is not used: the user's ssh makes our connections.
_PARAMIKO = sys.modules.setdefault("paramiko", _Later("paramiko"))
try:
    from docker.api import client
    from docker.transport import sshconn
except ImportError:  # no SDK: then nobody comes here
    SSHSocket = SSHConnection = SSHConnectionPool = SSHHTTPAdapter = object
else:
    SSHSocket, SSHConnection = sshconn.SSHSocket, sshconn.SSHConnection
    SSHConnectionPool, SSHHTTPAdapter = sshconn.SSHConnectionPool, sshconn.SSHHTTPAdapter
    vars(client)["SSHHTTPAdapter"] = SSHHTTPAdapter  # who has imported the SDK before, without paramiko, has it without this name
finally:
    if isinstance(_PARAMIKO, _Later):
        del sys.modules["paramiko"]

ATOMIC = 512
"""POSIX's least PIPE_BUF: where a pipe is writable, so much can be written without waiting."""


class Socket(SSHSocket):  # type: ignore[misc]
    """An ssh and its pipes, as a socket. Raises socket.timeout where neither side of it moves for its timeout."""

    def sendall(self, data: bytes) -> None:
        self._write(data)

    def _write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            self.wait(self.proc.stdin.fileno(), select.POLLOUT)
            left = left[os.write(self.proc.stdin.fileno(), left[:ATOMIC]):]
        return len(data)

    def makefile(self, mode: str) -> Any:
        if not self.proc:
            self.connect()
        reader: Any = io.BufferedReader(_Answers(self))
        reader.channel = self
        return reader

    def wait(self, descriptor: int, event: int) -> None:
        seconds: Optional[float] = self.gettimeout()
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(None if seconds is None else seconds * 1000):
            self.proc.kill()
            raise socket.timeout("timed out")

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            pass  # it has ended, and its pipe with it


class _Answers(io.RawIOBase):
    """What ssh prints."""

    def __init__(self, ssh: Socket) -> None:
        self.ssh = ssh
        self.pipe = ssh.proc.stdout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.ssh.wait(self.pipe.fileno(), select.POLLIN)
        data = os.read(self.pipe.fileno(), len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def close(self) -> None:
        self.pipe.close()
        super().close()


class Connection(SSHConnection):  # type: ignore[misc]
    def connect(self) -> None:
        self.sock = Socket(self.ssh_host)
        self.sock.settimeout(self.timeout)
        self.sock.connect()


class Pool(SSHConnectionPool):  # type: ignore[misc]
    def _new_conn(self) -> Connection:
        return Connection(None, self.timeout, self.ssh_host)


class Adapter(SSHHTTPAdapter):  # type: ignore[misc]
    """In the place of the SDK's own, which was made with the same settings."""

    def __init__(self, other: Any) -> None:
        super().__init__(other.ssh_host, timeout=other.timeout, max_pool_size=other.max_pool_size, shell_out=True)

    def get_connection(self, url: Any, proxies: Any = None) -> Pool:
        return Pool(timeout=self.timeout, maxsize=self.max_pool_size, host=self.ssh_host)
