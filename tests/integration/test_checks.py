# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checks that really ask: services that are well, ill, slow, silent or gone, and containers that exit; as a call, a task and a module."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils import _checks
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance, LastWords
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker import connect
from ansible_collections.phoenix.fleet.plugins.plugin_utils._definition import MASK

TOKEN = "sesame-opens-the-door"
SCRIPT = "echo cannot reach the database; exit 3"


class Service(http.server.ThreadingHTTPServer):
    """Answers /health with 503 until it was asked `ill` times, and then with `ok`; /drip without an end; /short with less than it said;
    /private with the token alone.
    """

    request_queue_size = 256
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.ill = 0
        self.asked: list[dict[str, str]] = []
        self.over = threading.Event()


class Answer(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers))
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"ok")
            return
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.over.wait(0.05):
                self.wfile.write(b".")
            return
        ill = self.path == "/health" and len(self.server.asked) <= self.server.ill
        denied = self.path == "/private" and self.headers.get("Authorization") != TOKEN
        body = b"warming up" if ill else b"go away" if denied else b"ok"
        self.send_response(503 if ill else 401 if denied else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def instance(port: int, slot: int = 1, **more: Any) -> Instance:
    whole = {"name": f"web-r1-{slot}", "host": "local", "fleet": "web", "release": 1, "slot": slot, "image": "x", "address": "127.0.0.1"}
    return Instance(**{**whole, "port": port, **more})


def run(instances: list[Instance], *checks: dict[str, Any], timeout: float = 60, **more: Any) -> tuple[_checks.Outcome, ...]:
    return _checks.run(instances, _checks.normal(checks), timeout, **more)


@contextmanager
def refused() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_many_that_are_well_pass_all_their_checks(service: Service) -> None:
    told = f'test "$PHOENIX_ADDRESS:$PHOENIX_PORT" = 127.0.0.1:{service.server_port} && expr "$PHOENIX_INSTANCE" : web-r1-'
    fifty = [instance(service.server_port, slot) for slot in range(1, 51)]
    outcomes = run(fifty, {"http": {"body": "ok"}}, {"tcp": {}}, {"command": ["/bin/sh", "-c", told]})
    assert [outcome.attempts for outcome in outcomes] == [1] * 50 and len(service.asked) == 50


def test_one_that_becomes_well_is_asked_until_it_is(service: Service) -> None:
    service.ill = 3
    told: list[str] = []
    (outcome,) = run([instance(service.server_port)], {"http": {"path": "/health", "status": 200}}, say=told.append)
    assert outcome.passed and outcome.attempts == 4


def test_headers_and_host_are_sent(service: Service) -> None:
    run([instance(service.server_port)], {"http": {"path": "/private", "headers": {"Authorization": TOKEN}, "host": "shop.example.org"}})
    assert service.asked[0]["Host"] == "shop.example.org"


def test_one_that_is_ill_is_named_with_the_check_and_the_last_answer(service: Service) -> None:
    service.ill = 10**6
    with refused() as port, pytest.raises(DeadlineError) as caught:
        run(
            [instance(service.server_port, 1), instance(port, 2)], {"tcp": {}}, {"http": {"path": "/health", "status": 200}}, timeout=0.7,
        )
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 of 2 instances did not pass their checks in ")
    assert f"  web-r1-1 at 127.0.0.1:{service.server_port}: http /health: answered 503, not 200: warming up" in lines
    assert f"  web-r1-2 at 127.0.0.1:{port}: tcp: connection refused" in lines
    assert "fleet_check_timeout" in lines[-1]


def test_a_command_that_fails_is_told_with_its_output(service: Service) -> None:
    with pytest.raises(DeadlineError, match="command /bin/sh: ended with 4: no database"):
        run([instance(service.server_port)], {"command": ["/bin/sh", "-c", "echo no database >&2; exit 4"]}, timeout=0.3)
    with pytest.raises(DeadlineError, match="/no/such/probe: no such file"):
        run([instance(service.server_port)], {"command": ["/no/such/probe"]}, timeout=0.3)


@pytest.mark.parametrize(("check", "words"), [
    ({"http": {"path": "/drip"}}, "no answer in time"), ({"command": ["/bin/sh", "-c", "sleep 900 & sleep 900"]}, "did not end in time"),
])
def test_an_answer_without_an_end_is_given_up(service: Service, check: dict[str, Any], words: str) -> None:
    assert _checks.attempt(check, instance(service.server_port), time.monotonic() + 0.3) == words


def test_half_an_answer_is_no_pass(service: Service) -> None:
    words = _checks.attempt({"http": {"path": "/short"}}, instance(service.server_port), time.monotonic() + 10)
    assert words == "IncompleteRead: IncompleteRead(2 bytes read, 998 more expected)"


def test_silence_is_no_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(DeadlineError, match="http /: no answer in time"):
        run([instance(mute.getsockname()[1])], {"http": {}}, timeout=0.5)


def test_nonsense_is_no_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def babble() -> None:
            while True:
                try:
                    connection, unused = server.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.close()

        threading.Thread(target=babble, daemon=True).start()
        with pytest.raises(DeadlineError, match="http /: "):
            run([instance(server.getsockname()[1])], {"http": {}}, timeout=0.5)


# What the provider knows

class Said:
    """A provider that says of every instance what it was told to say."""

    def __init__(self, state: str = "running", restarts: int = 0, gone: bool = False) -> None:
        self.state, self.restarts, self.gone = state, restarts, gone

    def observe(self, fleet: str) -> tuple[Instance, ...]:
        return () if self.gone else (instance(1, id="1f", state=self.state),)

    def last_words(self, instances: Any, log: bool = True) -> tuple[LastWords, ...]:
        assert all(item.id for item in instances), "only what was observed has an id"
        return tuple(LastWords(item.name, self.state, 3, self.restarts, ("cannot bind",)) for item in instances)


@pytest.mark.parametrize(("provider", "words"), [
    (Said("restarting"), "it is restarting"), (Said("stopped"), "it is stopped"), (Said(restarts=1), "it was restarted once"),
    (Said(gone=True), "it is gone"),
])
def test_one_that_passed_but_does_not_run_on_fails(service: Service, provider: Any, words: str) -> None:
    with pytest.raises(DeadlineError, match=words):
        run([instance(service.server_port)], {"http": {}}, provider=provider)


def test_what_ran_before_is_not_condemned_for_restarts_of_long_ago(service: Service) -> None:
    class Restarting(Said):
        def last_words(self, instances: Any, log: bool = True) -> tuple[LastWords, ...]:
            self.restarts += self.state == "running" and bool(service.asked)
            return super().last_words(instances, log)

    before = instance(service.server_port, id="1f", state="running")
    run([before], {"http": {}}, provider=Said(restarts=3))  # type: ignore[arg-type]
    _checks.verify([before], Said(restarts=3))  # type: ignore[arg-type]
    service.asked.clear()
    with pytest.raises(DeadlineError, match="it was restarted once"):
        run([before], {"http": {}}, provider=Restarting(restarts=3))  # type: ignore[arg-type]


def test_one_that_exited_does_not_wait_for_the_deadline() -> None:
    with refused() as port, pytest.raises(DeadlineError) as caught:
        run([instance(port)], {"http": {}}, timeout=10**6, provider=Said("stopped"))  # type: ignore[arg-type]
    assert "http /: connection refused; it is stopped" in str(caught.value) and "    | cannot bind" in str(caught.value)


def test_another_instance_of_the_same_name_is_not_taken_for_it(service: Service) -> None:
    with pytest.raises(DeadlineError, match="it is gone"):
        run([instance(service.server_port, id="2e")], {"tcp": {}}, provider=Said())  # type: ignore[arg-type]


def test_a_container_that_crashes_is_told_with_its_exit_code_and_log(images: str) -> None:
    options = {"network": "checks-test", "subnet": "10.214.7.0/24", "command": ["/bin/sh", "-c", SCRIPT]}
    provider = connect(options)
    image: Image = provider.image(f"{images}:v1")
    pool = provider.pools("checks-test", 8080, ["local"])[0]
    planned = instance(8080, name="checks-test-r1-1", fleet="checks-test", host=pool.host, image=image.digest, address=pool.first)
    try:
        provider.create([planned], Blueprint(image, hash="x", ledger="checks-test", options=options))
        with pytest.raises(DeadlineError) as caught:
            run([planned], {"http": {"path": "/health"}}, timeout=600, provider=provider)
        assert "with exit code 3" in str(caught.value) and "    | cannot reach the database" in str(caught.value)
    finally:
        provider.destroy(provider.observe("checks-test"), 0)
        subprocess.run(["docker", "network", "rm", "checks-test"], check=True, capture_output=True)


# As a task

@pytest.fixture
def play(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """play(ARGUMENTS, KEYWORDS, WORD...) runs one task `instance_checks` on a host named web."""
    def run_it(arguments: dict[str, Any], keywords: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
        task = {"name": "Check", "phoenix.fleet.instance_checks": arguments, "register": "checked", **keywords}
        show = {"name": "Show", "ansible.builtin.debug": {"var": "checked"}}
        plays = [{"name": "Try it", "hosts": "web", "connection": "local", "gather_facts": False, "tasks": [task, show]}]
        (tmp_path / "play.json").write_text(json.dumps(plays))
        (tmp_path / "inventory.json").write_text(json.dumps({
            "fleets": {"hosts": {"web": {
                "fleet_image": "shop:1", "fleet_port": 80, "ansible_python_interpreter": sys.executable,
                "fleet_checks": [{"http": {"path": "/private", "headers": {"Authorization": TOKEN}}}],
            }}},
            "balancers": {"hosts": {"lb1": {"ansible_connection": "local"}}},
        }))
        command = ["ansible-playbook", "-i", str(tmp_path / "inventory.json"), str(tmp_path / "play.json"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run_it


def asked(service: Service, **more: Any) -> dict[str, Any]:
    return {"instances": [{"name": "web-r1-1", "address": "127.0.0.1", "port": service.server_port}], "fleet": "web", **more}


def test_a_task_tells_how_many_passed(service: Service, play: Any) -> None:
    done = play(asked(service, checks=[{"http": {"path": "/health", "status": [200]}}]), {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  web  1 pass their checks" in done.stdout and '"attempts": 1' in done.stdout


def test_check_mode_asks_nobody(service: Service, play: Any) -> None:
    done = play(asked(service, checks=[{"http": {}}]), {}, "--check")
    assert done.returncode == 0 and service.asked == [], done.stdout + done.stderr


def test_a_task_that_fails_says_why_without_a_traceback(service: Service, play: Any) -> None:
    service.ill = 10**6
    done = play(asked(service, checks=[{"http": {"path": "/health"}}], timeout=1), {})
    assert done.returncode == 2 and "answered 503, not 200-399: warming up" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_definitions_masked_headers_are_sent_in_clear(service: Service, play: Any) -> None:
    shown = [{"http": {"path": "/private", "headers": {"Authorization": MASK}}}]
    done = play(asked(service, checks=shown), {}, "-vvv")
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_module_does_the_same_on_another_host(service: Service, play: Any) -> None:
    """Another user is another host: no plugin of the controller's process can do it."""
    there = {
        "become": True, "become_user": "nobody", "become_method": "ansible.builtin.su", "become_flags": "-s /bin/sh",
        "vars": {"ansible_python_interpreter": "/usr/bin/python3"},
    }
    good = play(asked(service, checks=[{"http": {"path": "/private", "headers": {"Authorization": TOKEN}}}]), there, "-vvv")
    assert good.returncode == 0 and '"attempts": 1' in good.stdout and "ANSIBALLZ" in good.stdout.upper(), good.stdout + good.stderr
    assert TOKEN not in good.stdout + good.stderr and '"attempts": 1' in good.stdout
    probe = play(asked(service, checks=[{"command": ["/bin/sh", "-c", f"echo {TOKEN}; exit 3", TOKEN]}], timeout=1), there, "-vvv")
    assert probe.returncode == 2 and "ended with 3: " in probe.stdout and TOKEN not in probe.stdout + probe.stderr, probe.stdout
    bad = play(asked(service, checks=[{"http": {"path": "/private"}}], timeout=1), there)
    assert bad.returncode == 2 and "answered 401, not 200-399: go away" in bad.stdout + bad.stderr
