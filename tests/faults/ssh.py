# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Balancers behind SSH, so that modules act there: what a killed run or a cut connection leaves acting without it."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ansible_collections.phoenix.fleet.tests.faults.command import Command, until
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.kills import follow, moments, prepare
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import free_port


@contextmanager
def server(folder: Path) -> Iterator[dict[str, Any]]:
    """An SSH server on a loopback port, with keys of its own; the variables to reach this machine by it."""
    folder.mkdir()
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, stdin=subprocess.DEVNULL)
    Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd wants it
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\nStrictModes no\n"
        f"PidFile none\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 50\n"
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")], stdin=subprocess.DEVNULL, stderr=log)
    try:
        options = f"-i {folder}/client -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
        options += f"-o ControlMaster=auto -o ControlPersist=60s -o ControlPath={folder}/%C"
        yield {
            "ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": port, "ansible_user": getpass.getuser(),
            "ansible_ssh_args": options, "ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(folder / "ansible-remote"),
        }
    finally:
        for pid in connections(folder):
            os.kill(pid, signal.SIGTERM)
        process.kill()
        process.wait()


def modules(ground: Ground, trial: Trial) -> None:
    """The run is killed, or its connections cut, while a module acts on a balancer; it goes on when the next run is there."""
    with server(ground.folder / "ssh") as variables:
        ground.balancers = {host: {**item, **variables} for host, item in ground.balancers.items()}
        ground.fleet("web")
        prepare(ground)
        with trial.load(ground):
            for step in ("Stage", "Cut over"):
                with trial.point(ground, f"the controller is killed, an orphaned module of {step} goes on"):
                    image = ground.image(ground.other())
                    command, acting = at_work(ground, step, image)
                    command.kill("everything")
                    after = ground.start("release", release_image=image)
                    after.reach("Observe the balancers")
                    time.sleep(1)  # the fault's own moment: the next run is at the balancers
                    command.signal(signal.SIGCONT, acting)
                    run = after.wait()
                    assert run.code == 0, f"the next run ended with {run.code}: {run.story[-3:]}"
                    follow(ground, "release", image)
            for step in ("Cut over",):
                with trial.point(ground, f"the connections are cut in {step}"):
                    image = ground.image(ground.other())
                    command, acting = at_work(ground, step, image)
                    command.signal(signal.SIGKILL, connections(ground.folder / "ssh"))
                    command.signal(signal.SIGCONT, acting)
                    run = command.wait()
                    assert "Traceback" not in run.output, run.output
                    follow(ground, "release", image)


def at_work(ground: Ground, step: str, image: str) -> tuple[Command, list[int]]:
    """A release whose module was stopped (SIGSTOP) at work on a balancer, in a step."""
    command = ground.start("release", hold=step, release_image=image)
    assert command.reach(step), command.output[-600:]
    until("former modules to end", lambda: not acting(ground), 20)
    command.go()
    for _attempt in moments():
        if found := acting(ground):
            command.signal(signal.SIGSTOP, found)
            return command, found
        assert command.process.poll() is None, f"it ended before a module of {step} could be stopped"
    raise AssertionError(f"no module of {step} was seen")


def acting(ground: Ground) -> list[int]:
    """Modules at work on a balancer, each with what it runs."""
    found = []
    for pid in ground.processes():
        with suppress(OSError):
            if b"AnsiballZ" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def connections(folder: Path) -> list[int]:
    """The SSH clients that use this folder, the one that the others share included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                shared = str(folder).encode() in (entry / "cmdline").read_bytes()
                if shared and (entry / "comm").read_text().strip() == "ssh":
                    found.append(int(entry.name))
    return found
