# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real run in a PID namespace of its own, as in a container: all others go by its lease's deadline. The ledger is PostgreSQL's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import LeaseError
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _tables
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.contract.ledger_contract import changing, until
from ansible_collections.phoenix.fleet.tests.integration.postgresql_server import Server

TIME_TO_LIVE = 3

# Two fleets, of which `fast` waits for `slow` between two of its acts: that is what the strategy linear does.
PLAY = """\
- hosts: fleets
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - phoenix.fleet.release_ledger:
        state: held
        definition: {name: "{{ inventory_hostname }}", ledger: "{{ ledger }}", state_dir: "{{ folder }}"}
      register: fleet
    - ansible.builtin.wait_for: {path: "{{ folder }}/gate", timeout: 100, sleep: 1}
      when: inventory_hostname == "slow"
    - phoenix.fleet.release_ledger:
        state: recorded
        record: done
        definition: {name: "{{ inventory_hostname }}", ledger: "{{ ledger }}", state_dir: "{{ folder }}"}
        lease: "{{ fleet.lease }}"
"""


class Command:
    """ansible-playbook with one fork, under a shell that outlives it: killing it does not end the namespace, and so what it started."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "play.yml").write_text(PLAY)
        program = str(Path(sys.executable).parent / "ansible-playbook")
        told = json.dumps({"ledger": url, "folder": str(folder)})
        play = [program, "play.yml", "-f", "1", "-i", "inventory.json", "-e", told]
        (folder / "inventory.json").write_text(json.dumps({"fleets": {"hosts": {"fast": {}, "slow": {}}}}))
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; echo $? > code; sleep 100', "sh", *play],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PHOENIX_FLEET_LEASE_SECONDS": str(TIME_TO_LIVE)},
            )

    @property
    def run(self) -> int:
        (shell,) = children(self.process.pid)
        # What renews the leases is that one's child too by now: it is the first process of the namespace.
        (run,) = [pid for pid in children(shell) if "fleet-lease" not in Path(f"/proc/{pid}/comm").read_text()]
        return run

    def waiting(self) -> list[int]:
        """The worker that waits at the gate: the one that has started a module."""
        return [worker for worker in children(self.run) if children(worker)]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lease-") as folder:
        server = Server(folder)
        server.start()
        yield server.create("fleet")
        server.stop()


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Ledger:
    with sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        _tables.TABLES.drop_all(connection)
    return Ledger(url, str(tmp_path))


@pytest.fixture
def command(url: str, ledger: Ledger, tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path, url)
    try:
        until(lambda: len(ledger.fleets()) == 2 and all(map(ledger.holder, ("fast", "slow"))), "it takes no lease", 60)
        yield command
    finally:
        command.process.kill()
        command.process.wait(20)


def deadline(ledger: Ledger, fleet: str) -> float:
    with changing(ledger) as connection:
        return float(connection.scalar(sa.select(_tables.FLEETS.c.expires).where(_tables.FLEETS.c.name == fleet)))


def now(ledger: Ledger) -> float:
    with changing(ledger) as connection:
        return ledger._clock(connection)


def test_a_run_keeps_its_fleets_from_its_first_task_to_its_last(command: Command, ledger: Ledger, tmp_path: Path) -> None:
    first = max(deadline(ledger, fleet) for fleet in ("fast", "slow"))
    until(lambda: now(ledger) > first + TIME_TO_LIVE, "time stands still")
    for fleet in ("fast", "slow"):
        with pytest.raises(LeaseError, match="cannot be seen from here"):
            ledger.acquire(fleet, "me@here")
    (tmp_path / "gate").touch()
    until((tmp_path / "code").exists, "it does not end", 60)
    assert (tmp_path / "code").read_text() == "0\n", command.output.read_text()
    until(lambda: not any(map(ledger.holder, ("fast", "slow"))), "something renews a lease whose run has ended")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
def test_a_run_that_is_killed_or_stopped_loses_them(command: Command, ledger: Ledger, number: int) -> None:
    os.kill(command.run, number)
    until(lambda: not any(map(ledger.holder, ("fast", "slow"))), "something goes on renewing")
    assert ledger.acquire("fast", "me@here").fence == 2


def test_a_worker_that_is_stopped_takes_its_run_s_fleets_with_it(command: Command, ledger: Ledger) -> None:
    until(command.waiting, "it does not come to the gate")
    os.kill(command.waiting()[0], signal.SIGSTOP)
    until(lambda: ledger.holder("fast") is None, "something goes on renewing")
