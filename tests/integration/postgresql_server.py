# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real PostgreSQL server, which runs in a folder of its own and listens on nothing but a socket there. For all tests."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg


class Server:
    """PostgreSQL in a folder; the user who runs it is not root, because it refuses that."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        found = max(glob.glob("/usr/lib/postgresql/*/bin/postgres"), default="") or shutil.which("postgres") or ""
        self.bin = os.path.dirname(found)
        if not self.bin:
            raise RuntimeError("PostgreSQL is not installed: tests/setup/machine start installs it")
        self.user: Any = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self.user:
            os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        self._run("initdb", "-D", f"{folder}/data", "-U", "fleet", "-A", "trust", "--no-sync")

    def start(self) -> None:
        settings = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c max_connections=40 -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-t", "60", "-o", settings, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def send(self, number: int) -> None:
        """A signal to every one of its processes."""
        first = int(Path(f"{self.folder}/data/postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def create(self, name: str) -> str:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, database: str, user: str = "fleet") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        as_user = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}
        done = subprocess.run(
            [f"{self.bin}/{program}", *arguments], check=False, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=120, env={**os.environ, "LC_ALL": "C.UTF-8"}, **as_user,
        )
        assert done.returncode == 0, done.stdout
