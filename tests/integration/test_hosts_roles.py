# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks hosts, init and lab on this machine, with real HAProxy and dockerd processes; all their files in temporary folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.fragment import Fragment, render
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, free_port

ANSIBLE = Path(sys.executable).parent / "ansible-playbook"
SYSTEM_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
FOLDER = "phoenix-hosts-"
HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


class Result:
    def __init__(self, run: subprocess.CompletedProcess[str]) -> None:
        self.rc, self.said = run.returncode, run.stdout + run.stderr
        self.changed = sum(int(count) for count in re.findall(r"changed=(\d+)", run.stdout))


def play(
    name: str, *options: str, variables: dict[str, Any] | None = None, inventory: Path | None = None, path: str = "",
    apart: Sequence[str] = (),
) -> Result:
    command = [*apart, str(ANSIBLE), f"phoenix.fleet.{name}", "-e", json.dumps(variables or {}), *options]
    command += ["-i", str(inventory)] if inventory else []
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PATH": f"{path}{os.pathsep if path else ''}{os.environ['PATH']}"}
    return Result(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False))


def eventually(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def status(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def end(pidfile: Path, program: str) -> None:
    """Ends the process that the file names, if it still is that program."""
    try:
        pid = int(pidfile.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() == program:
            os.kill(pid, signal.SIGTERM)
            line = Path(f"/proc/{pid}/cmdline")  # empty, not gone, where nobody has asked for the exit status yet
            eventually(lambda: not line.exists() or not line.read_bytes(), f"{program} ends")
    except (OSError, ValueError):
        pass


class Machine:
    """A balancer whose HAProxy, configuration and start options are in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        (root / "haproxy.cfg").write_text("global\n    maxconn 1000\n\ndefaults\n    timeout connect 5s\n")
        (root / "default").write_text("# nothing set here\n")
        self.host: dict[str, Any] = {
            **HERE,
            "haproxy_config": str(root / "haproxy.cfg"), "haproxy_config_dir": str(root / "conf.d"), "haproxy_pidfile": str(root / "pid"),
            "haproxy_socket": str(root / "run" / "admin.sock"), "haproxy_master_socket": str(root / "run" / "master.sock"),
            "haproxy_frontends": [{"name": "http", "bind": f"127.0.0.1:{self.port}", "backend": "shop"}],
        }
        packaging = {"file": str(root / "default"), "variable": "EXTRAOPTS", "preset": "", "before": ""}
        self.variables = {"__haproxy_init": "by_hand", "__haproxy_packaging": {"Debian": packaging, "RedHat": packaging}}

    def play(self, *options: str, path: str = "") -> Result:
        inventory = self.root / "inventory.yml"
        inventory.write_text(json.dumps({"balancers": {"hosts": {"lb1": self.host}}}))
        return play("hosts", *options, variables=self.variables, inventory=inventory, path=path)

    def files(self) -> dict[str, bytes]:
        kept = [path for path in self.root.rglob("*") if path.is_file() and path.name not in ("pid", "inventory.yml")]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in kept}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if not shutil.which("haproxy", path=SYSTEM_PATH):
        pytest.skip("no haproxy on this machine")
    made = Machine(tmp_path)
    yield made
    end(tmp_path / "pid", "haproxy")


def test_a_balancer_is_set_up_once(machine: Machine) -> None:
    before = machine.files()
    foreseen = machine.play("--check", "--diff")
    assert foreseen.rc == 0, foreseen.said
    assert foreseen.changed > 0 and machine.files() == before

    first = machine.play()
    assert first.rc == 0, first.said
    eventually(lambda: status(machine.port) == 503, "the front end answers that its backend has no servers")
    assert (machine.root / "run" / "admin.sock").is_socket() and (machine.root / "run" / "master.sock").is_socket()
    assert (machine.root / "default").read_text().startswith("# nothing set here\n")
    assert machine.files()["haproxy.cfg"] == before["haproxy.cfg"]
    assert (machine.root / "conf.d" / "shop.cfg").read_text() == render(Fragment("shop", options={"mode": "http"}))

    for options in ((), ("--check", "--diff")):
        again = machine.play(*options)
        assert again.rc == 0 and again.changed == 0, again.said


def test_what_is_there_goes_on(machine: Machine) -> None:
    other = free_port()
    legacy = f"frontend legacy\n    bind 127.0.0.1:{other}\n    mode http\n    timeout client 5s\n    http-request return status 204\n"
    (machine.root / "conf.d").mkdir()
    (machine.root / "conf.d" / "10-legacy.cfg").write_text("listen more\n    mode http\n    timeout client 5s\n")
    config = (machine.root / "haproxy.cfg").read_text() + "defaults\n    mode tcp\n\n" + legacy
    (machine.root / "haproxy.cfg").write_text(config)
    (machine.root / "default").write_text('EXTRAOPTS="-V"\n')
    arguments = ["-W", "-D", "-p", str(machine.root / "pid"), "-f", str(machine.root / "haproxy.cfg")]
    subprocess.run(["haproxy", *arguments], check=True, env={**os.environ, "PATH": SYSTEM_PATH})
    eventually(lambda: status(other) == 204, "the earlier front end answers")

    done = machine.play()
    assert done.rc == 0, done.said
    eventually(lambda: status(machine.port) == 503 and status(other) == 204, "both front ends answer")
    assert (machine.root / "haproxy.cfg").read_text() == config
    assert (machine.root / "default").read_text().startswith('EXTRAOPTS="-V -S ')
    assert machine.play().changed == 0

    machine.host["haproxy_frontends"] += [{"name": "tcp", "bind": f"127.0.0.1:{free_port()}", "mode": "tcp", "backend": "queue"}]
    pid = (machine.root / "pid").read_text()
    more = machine.play()
    assert more.rc == 0 and more.changed > 0, more.said
    assert (machine.root / "pid").read_text() == pid, "one more front end costs a reload, not a restart"
    eventually(lambda: status(machine.port) == 503, "the front end answers after the reload")


def test_a_broken_front_end_is_refused_and_nothing_happens(machine: Machine) -> None:
    assert machine.play().rc == 0
    eventually(lambda: status(machine.port) == 503, "the front end answers")
    before = machine.files()
    machine.host["haproxy_frontends"][0]["options"] = ["no-such-keyword at all"]
    broken = machine.play()
    assert broken.rc != 0 and "no-such-keyword" in broken.said, broken.said
    assert machine.files() == before and status(machine.port) == 503


def test_all_mistakes_are_named_before_anything_is_changed(machine: Machine) -> None:
    machine.host["haproxy_frontends"] += [{"name": "http", "bind": ":1"}, {"name": "a b", "bind": ":1"}]
    (machine.root / "default").write_text('EXTRAOPTS="-S /run/other.sock"\n')
    (machine.root / "haproxy.cfg").write_text(f"global\n    stats socket {machine.host['haproxy_socket']} mode 660\n")
    before = machine.files()
    refused = machine.play()
    assert refused.rc != 0 and machine.files() == before
    for words in ("nothing was changed", "same name", "a b", "/run/other.sock", "level admin"):
        assert words in refused.said, refused.said


def test_an_old_haproxy_is_refused_by_version(machine: Machine) -> None:
    old = machine.root / "bin" / "haproxy"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'HA-Proxy version 2.4.22-f8e3218 2023/02/14 - https://haproxy.org/'\n")
    old.chmod(0o755)
    before = machine.files()
    refused = machine.play(path=str(old.parent))
    assert refused.rc != 0 and "HAProxy 2.4 is installed, and fleets need 2.6" in refused.said, refused.said
    assert machine.files() == before


def test_an_inventory_without_hosts_is_an_error(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"fleets": {"hosts": {"web": {}}}}))
    for options in ((), ("-l", "web")):
        refused = play("hosts", *options, inventory=inventory)
        assert refused.rc != 0 and "neither of the groups balancers and engines" in refused.said, refused.said


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets, whose paths have at most 107 bytes: pytest's own folders are too deep for an engine's."""
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dockerd", path=SYSTEM_PATH), reason="needs dockerd, and root to start it")
def test_an_engine_is_started_where_none_answers(short_path: Path) -> None:
    host = {
        **HERE,
        "docker_engine_socket": f"{short_path}/docker.sock", "docker_engine_config": f"{short_path}/daemon.json",
        "docker_engine_pidfile": f"{short_path}/pid", "docker_engine_log": f"{short_path}/log",
        "docker_engine_options": [f"--data-root={short_path}/data", f"--exec-root={short_path}/exec", "--bridge=none", "--iptables=false"],
    }
    inventory = short_path / "inventory.yml"
    inventory.write_text(json.dumps({"engines": {"hosts": {"engine1": host}}}))
    # In a network of its own: a dockerd without a bridge removes docker0, whosever it is (seen with 20.10).
    arguments: dict[str, Any] = {"inventory": inventory, "variables": {"__docker_engine_init": "by_hand"}, "apart": ["unshare", "--net"]}
    try:
        first = play("hosts", **arguments)
        assert first.rc == 0 and first.changed == 1, first.said
        again = play("hosts", **arguments)
        assert again.rc == 0 and again.changed == 0 and "is left alone" in again.said, again.said
    finally:
        end(short_path / "pid", "dockerd")


def test_init_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    assert play("init", "--check", variables={"init_dir": str(folder)}).rc == 0 and not folder.exists()
    first = play("init", variables={"init_dir": str(folder)})
    assert first.rc == 0 and first.changed == 1, first.said
    (folder / "inventory.yml").write_text("# mine\n")
    (folder / "README.md").unlink()
    again = play("init", variables={"init_dir": str(folder)})
    assert again.rc == 0 and (folder / "inventory.yml").read_text() == "# mine\n" and (folder / "README.md").exists(), again.said
    assert play("init", variables={"init_dir": str(folder)}).changed == 0


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dockerd", path=SYSTEM_PATH), reason="needs dockerd, and root to start it")
def test_the_lab_comes_once_and_goes(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an engine of its own, since on the machine's there may be a lab that somebody uses."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/lab"):  # by a run of the tests that was killed
        assert play("lab", variables={"lab_dir": str(left), "lab_state": "absent"}).rc == 0
    with DockerEngine("lab", 205) as own, own.client() as engine:
        monkeypatch.setenv("DOCKER_HOST", own.url)
        variables = {"lab_dir": str(short_path / "lab"), "lab_port": free_port(), "lab_subnet": own.subnet}
        try:
            first = play("lab", variables=variables)
            assert first.rc == 0, first.said
            eventually(lambda: status(variables["lab_port"]) == 503, "the lab's HAProxy answers")
            assert len(engine.images("phoenix-sample")) == 3
            again = play("lab", variables={**variables, "lab_dir": os.path.relpath(variables["lab_dir"])})
            assert again.rc == 0 and again.changed == 0, again.said
            taken = play("lab", variables={**variables, "lab_dir": str(short_path / "other")})
            assert taken.rc != 0 and "Something else answers" in taken.said, taken.said
        finally:
            gone = play("lab", variables={**variables, "lab_state": "absent"})
        assert gone.rc == 0, gone.said
        assert status(variables["lab_port"]) == 0 and not (short_path / "lab").exists() and not engine.images("phoenix-sample")
        assert play("lab", variables={**variables, "lab_state": "absent"}).changed == 0
