# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may hold a secret leaves the controller by no way but to the engine: a canary in every such option, and everything is searched."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import MASK
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.postgresql_server import Server
from ansible_collections.phoenix.fleet.tests.integration.test_runner import artifacts, job, private, said

__all__ = ["private"]

CANARY = "Kanarienvogel"
"""In each value that may be secret, with a word for where it stands."""

PROBE = "/usr/bin/test"


def sing(site: Site, **more: str) -> None:
    """The definition with a canary wherever one may be; the keywords are further variables of the environment."""
    site.fleet(
        "web",
        fleet_checks=[
            {"http": {"path": "/health", "status": 200, "headers": {"Authorization": f"Bearer {CANARY}-header"}}},
            {"command": [PROBE, "-n", f"{CANARY}-probe"]},
        ],
        fleet_docker={
            "network": site.network, "subnet": f"{site.base}.0/24", "ip_range": f"{site.base}.192/26",
            "environment": {"DATABASE_URL": f"postgres://web:{CANARY}-url@db/orders", "DEBUG": "1", **more},
            "secrets": {"key": f"{CANARY}-file\n{CANARY}-line"},
            "log_driver": "json-file", "log_options": {"tag": f"{CANARY}-log"},
            "command": ["/bin/sh", "-c", "echo $DATABASE_URL; exec /bin/serve", f"--token={CANARY}-word"],
            "health": {"test": ["CMD", "/bin/sh", "-c", f": {CANARY}-health"], "interval": 1},
            "registry": {"server": "registry.example.org", "username": "web", "password": f"{CANARY}-registry"},
        },
    )


class Watcher:
    """Everything that a run leaves or shows."""

    def __init__(self, private: Path, site: Site) -> None:
        self.private = private
        self.site = site
        self.jobs = 0

    def run(self, playbook: str = "playbooks/release.yml", **extra: Any) -> ansible_runner.Runner:
        shutil.copy(self.site.inventory, self.private / "inventory" / "hosts.json")
        self.jobs += 1
        with self.processes():
            done = job(self.private, str(self.jobs), playbook=playbook, cmdline="--diff", verbosity=3, extravars=extra)
        assert "Traceback" not in said(done), said(done)
        assert "DATABASE_URL" in said(done) or "status" in playbook, "the names are shown"
        for path in (self.private / "artifacts").rglob("*"):
            if path.is_file() and CANARY in path.read_text(errors="replace"):
                lines = [line for line in path.read_text(errors="replace").splitlines() if CANARY in line]
                raise AssertionError(f"{path.relative_to(self.private)}: {lines[0]}"[:3000])
        return done

    @contextmanager
    def processes(self) -> Iterator[None]:
        """No command line outside of the containers has it, as often as can be looked, but the probe's own."""
        over, seen = threading.Event(), set()
        own = os.readlink("/proc/self/ns/pid")

        def look() -> None:
            while not over.is_set():
                for process in Path("/proc").glob("[0-9]*"):
                    try:
                        line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        if CANARY in line and os.readlink(process / "ns" / "pid") == own and not line.startswith(PROBE):
                            seen.add(line)
                    except OSError:
                        continue

        watch = threading.Thread(target=look)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
        assert not seen

    def kept(self) -> set[str]:
        """The files of the controller that have it, of which each has to be its owner's alone."""
        found = set()
        for path in (self.site.folder / "state").rglob("*"):
            if path.is_file() and CANARY.encode() in path.read_bytes():
                assert not path.stat().st_mode & 0o077, path
                found.add(path.relative_to(self.site.folder / "state").parts[0].replace("-journal", ""))
        assert not [path for path in self.site.haproxy.config_dir.rglob("*") if path.is_file() and CANARY in path.read_text()]
        return found


@pytest.fixture
def watcher(private: Path, site: Site) -> Watcher:
    return Watcher(private, site)


def environments(site: Site) -> list[str]:
    return [next(word for word in item.attrs["Config"]["Env"] if "DATABASE_URL" in word) for item in site.containers("web")]


def test_nobody_sees_what_may_be_secret(watcher: Watcher, site: Site, images: str) -> None:
    sing(site)
    assert watcher.run().rc == 0
    assert environments(site) == [f"DATABASE_URL=postgres://web:{CANARY}-url@db/orders"] * 2, "the engine got it"
    assert watcher.kept() == {"ledger.sqlite3"}
    hashed = artifacts(watcher.run())["phoenix_release"]["release"]["definition"]["options"]["environment"]["DATABASE_URL"]
    assert re.fullmatch("hmac:[0-9a-f]{32}", hashed)

    # The service tells its environment: in its answer to the check, and in its log.
    sing(site, BROKEN=f"{CANARY}-told")
    site.fleet("web", fleet_check_timeout=3)
    failed = watcher.run()
    assert failed.rc and "answered 500, not 200: ***" in said(failed) and "is not healthy: ***" in said(failed), said(failed)
    assert watcher.kept() == {"ledger.sqlite3", "last-words"}

    # Another environment, and back: fresh instances of r1 get what the ledger recorded of it.
    sing(site, COLOUR="green")
    site.fleet("web", fleet_check_timeout=20)
    assert watcher.run(release_image=f"{images}:v2").rc == 0
    for item in site.containers("web"):
        if "-r1-" in item.name:
            item.remove(force=True)
    site.fleet("web", fleet_docker={**site.fleets["web"]["fleet_docker"], "environment": {"DATABASE_URL": f"{CANARY}-now"}})
    wanted = site.fleets["web"]["fleet_checks"]
    site.fleet("web", fleet_checks=[{"http": {"path": "/nowhere"}}], fleet_haproxy={"check": {"path": "/health"}}, fleet_check_timeout=3)
    failed = watcher.run("playbooks/rollback.yml")
    assert failed.rc and "| ***" in said(failed), "the log of an instance whose environment is not today's"

    site.fleet("web", fleet_checks=wanted, fleet_check_timeout=20)
    back = watcher.run("playbooks/rollback.yml")
    assert back.rc == 0 and site.versions("web") == {"v1"}, said(back)
    fresh = [item for item in site.containers("web") if "-r1-" in item.name]
    assert len(fresh) == 2 and all(f"DATABASE_URL=postgres://web:{CANARY}-url@db/orders" in item.attrs["Config"]["Env"] for item in fresh)

    status = watcher.run("playbooks/status.yml", status_file=str(watcher.private / "artifacts" / "status.json"))
    assert status.rc == 0 and "r1" in said(status)


def test_a_mistake_shows_no_value_that_may_be_secret(watcher: Watcher, site: Site) -> None:
    site.fleet(
        "web", fleet_checks=[{"command": f"probe {CANARY}"}], fleet_docker={
            "environment": {"DATABASE_URL": {"url": CANARY}}, "log_options": {"tag": [CANARY]}, "command": f"serve '{CANARY}",
            "health": {"test": {"cmd": CANARY}}, "secrets": {"key": [CANARY]},
        },
    )
    refused = watcher.run()
    assert refused.rc and "command" in said(refused)


def test_what_the_engine_says_of_it_is_veiled(watcher: Watcher, site: Site) -> None:
    """The engine quotes an option that it does not know."""
    sing(site)
    site.fleet("web", fleet_docker={**site.fleets["web"]["fleet_docker"], "log_options": {"max-size": f"{CANARY}-size"}})
    refused = watcher.run()
    assert refused.rc and "***" in said(refused), said(refused)


def test_the_password_of_a_ledger_is_read_where_it_is_needed(watcher: Watcher, site: Site) -> None:
    # Not pytest's folder: that is root's alone, and too long a path for a socket.
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        server = Server(folder)
        server.start()
        try:
            sing(site)
            url = server.create("fleet").replace("postgresql://fleet@", f"postgresql+psycopg://fleet:{CANARY}-ledger@")
            site.fleet("web", fleet_ledger=url)
            assert watcher.run().rc == 0
            sing(site, COLOUR="green")
            assert artifacts(watcher.run())["phoenix_release"]["live"] == 2
            assert watcher.run("playbooks/rollback.yml").rc == 0
            assert watcher.kept() == set()
        finally:
            server.stop()


def test_a_module_that_runs_on_another_host_shows_masks(watcher: Watcher, site: Site) -> None:
    """Another user is another host. There the module fails, and Ansible shows what it was called with."""
    sing(site)
    options = {key: item for key, item in site.fleets["web"]["fleet_docker"].items() if key != "registry"}
    there = {
        "become": True, "become_user": "nobody", "become_method": "ansible.builtin.su", "become_flags": "-s /bin/sh",
        "vars": {"ansible_python_interpreter": "/usr/bin/python3"},
    }
    wanted = {"fleet": "web", "release": 1, "image": "x:1", "port": 8080, "ledger": "one of 1", "hosts": ["unix:///nowhere"], **options}
    play = {"hosts": "fleets", "connection": "local", "gather_facts": False, "tasks": [{"phoenix.fleet.docker_instances": wanted, **there}]}
    (watcher.private / "project" / "there.yml").write_text(json.dumps([play]))
    refused = watcher.run("there.yml")
    [told] = [event["event_data"]["res"] for event in refused.events if event["event"] == "runner_on_failed"]
    assert told["invocation"]["module_args"]["environment"] == {"DATABASE_URL": MASK, "DEBUG": MASK}
    assert told["invocation"]["module_args"]["ledger"] == "one of 1", "the 1 of DEBUG is no secret elsewhere"


def test_nothing_that_may_be_secret_is_in_a_variable(watcher: Watcher, site: Site, images: str) -> None:
    """A task after the role sees all that the role registered, and a job after it has its own result beside the former job's."""
    names = ("fleet", "plan", "instances", "balancers", "begun", "failure", "undoing", "words")
    held = {**{name: f"{{{{ __release_{name} | default('') }}}}" for name in names}, "result": "{{ release_result | default('') }}"}
    copied = {"content": "{{ held | to_json }}", "dest": str(watcher.private / "artifacts" / "held")}
    show = {"ansible.builtin.copy": copied, "vars": {"held": held}, "delegate_to": "localhost"}
    tell = {"ansible.builtin.debug": {"msg": "live: {{ release_result.live }}, before: {{ phoenix_release.live | default(0) }}"}}
    play = {"hosts": "fleets", "connection": "local", "gather_facts": False, "roles": ["phoenix.fleet.release"], "post_tasks": [show, tell]}
    (watcher.private / "project" / "shown.yml").write_text(json.dumps([play]))
    sing(site)
    first = watcher.run("shown.yml")
    assert first.rc == 0 and "live: 1, before: 0" in said(first), said(first)
    told = json.loads((watcher.private / "artifacts" / "held").read_text())
    assert told["plan"]["release"]["number"] == 1 and told["result"]["live"] == 1 and told["fleet"]["lease"]["fence"] == 1

    left = artifacts(first)
    assert list(left) == ["phoenix_release"]
    second = watcher.run("shown.yml", **left, release_image=f"{images}:v2")
    assert second.rc == 0 and "live: 2, before: 1" in said(second), said(second)
