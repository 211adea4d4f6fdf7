# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients that stay, at a real HAProxy: kept connections to processes that a reload left behind, sticky ones, and what is said of both."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import backend as backends
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import face
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.backend import Receipt
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Server
from ansible_collections.phoenix.fleet.tests.integration import haproxy_process
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess, wait_until
from ansible_collections.phoenix.fleet.tests.integration.test_haproxy_backend import (
    OPTIONS,
    Origins,
    alive,
    aside,
    backend,
    names,
    servers,
    websocket,
)
from ansible_collections.phoenix.fleet.tests.load import Load

Start = Callable[..., HAProxyProcess]


@pytest.fixture(name="origins")
def started_origins() -> Iterator[Origins]:
    made = Origins()
    yield made
    made.stop()


@pytest.fixture(name="start")
def starter(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    def begin(**settings: Any) -> HAProxyProcess:
        haproxy = HAProxyProcess(tmp_path / "haproxy", **settings)
        request.addfinalizer(haproxy.stop)
        return haproxy.start()

    return begin


def asked(haproxy: HAProxyProcess, name: str = "web", **params: Any) -> dict[str, Any]:
    """What the module `haproxy_backend` returns, without going through Ansible."""
    variables = {key[len("haproxy_"):]: value for key, value in haproxy.hostvars.items() if key.startswith("haproxy_")}
    made = {key: given.get("default") for key, given in face.ARGUMENTS.items()}
    return face.carry_out({**made, **variables, "name": name, "host": "lb1", **params}, False, lambda text: None)


def lines(wanted: tuple[Server, ...]) -> list[dict[str, Any]]:
    return [{"name": item.name, "address": item.address, "port": item.port, "id": item.id, "weight": item.weight, "state": item.state}
            for item in wanted]


def places(wanted: tuple[Server, ...]) -> list[dict[str, Any]]:
    return [{"name": item.name, "address": item.address, "port": item.port, "confirmed": False} for item in wanted]


def kept(haproxy: HAProxyProcess) -> http.client.HTTPConnection:
    """A client that has been answered, and keeps its connection without asking for anything."""
    line = http.client.HTTPConnection("127.0.0.1", haproxy.ports[haproxy.backends[0]], timeout=10)
    line.request("GET", "/")
    assert line.getresponse().read()
    return line


CLOSED = {**OPTIONS, "options": ["option http-server-close"]}
"""The connection to a server ends with each answer, so that nothing in the kernel tells of a client that is kept."""


def idle(server: Server) -> dict[str, Any]:
    return {"name": server.name, "address": server.address, "port": server.port, "proof": "idle", "cut": 0, "left": 0, "processes": []}


@pytest.mark.parametrize("master", [True, False])
def test_a_server_that_left_gets_a_receipt_and_one_that_is_listed_none(start: Start, origins: Origins, master: bool) -> None:
    haproxy = start(master=master)
    ports = origins.start(3)
    old, new = servers(1, ports[:1]), servers(2, ports[1:2])
    assert asked(haproxy, servers=lines(old), options=OPTIONS)["receipts"] == []
    assert asked(haproxy, servers=lines((*aside(old), *new)), confirm=places((*old, *new)))["receipts"] == []
    assert asked(haproxy, state="observed", confirm=places((*old, *new)))["receipts"] == []
    assert asked(haproxy, wait_for="idle", wait_servers=names(old), confirm=places(old))["receipts"] == [], "it is listed"
    assert asked(haproxy, servers=lines(new), confirm=places((*old, *new)))["receipts"] == [idle(old[0])]
    # Again, by a run that took over from one that was killed; and of a server that has the name and not the place.
    moved = Server(new[0].name, "127.0.0.1", ports[2], 1)
    told = asked(haproxy, state="observed", confirm=places((*old, *new, moved)))["receipts"]
    assert told == [idle(old[0]), idle(moved)]
    # What the fragment lists is not out, though HAProxy has forgotten it.
    haproxy.cli(f"set server web/{new[0].name} state maint")
    haproxy.cli(f"del server web/{new[0].name}")
    assert haproxy.servers() == {}
    assert asked(haproxy, state="observed", confirm=places(new))["receipts"] == []


def test_a_backend_that_is_gone_confirms_all_and_one_that_somebody_else_wrote_only_what_it_lists_nowhere(
    start: Start, origins: Origins
) -> None:
    haproxy = start(backends=("web",), extra="backend other\n    server theirs 127.0.0.1:9\n")
    (haproxy.config_dir / "api.cfg").unlink(missing_ok=True)
    old = servers(1, origins.start(1))
    assert asked(haproxy, "api", servers=lines(old), options=OPTIONS)["receipts"] == []
    assert asked(haproxy, "api", state="absent")["receipts"] == [idle(old[0])]
    assert asked(haproxy, "api", state="observed", confirm=places(old))["receipts"] == [idle(old[0])]
    assert asked(haproxy, "api", state="absent", confirm=places(old))["receipts"] == [idle(old[0])]
    theirs = Server("theirs", "127.0.0.1", 9, 1)
    haproxy.cli("set server other/theirs state maint")
    haproxy.cli("del server other/theirs")
    assert haproxy.servers("other") == {}
    assert asked(haproxy, "other", state="observed", confirm=places((theirs, *old)))["receipts"] == [idle(old[0])], "the file lists it"


@pytest.mark.parametrize("master", [True, False])
def test_a_kept_client_of_a_process_left_behind_keeps_its_server_until_it_goes(
    start: Start, origins: Origins, master: bool
) -> None:
    haproxy = start(master=master)
    ports = origins.start(2)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    asked(haproxy, servers=lines(old), options=CLOSED)
    client = kept(haproxy)
    before = haproxy.pid
    haproxy.reload()
    told: list[str] = []
    balancer = backend(haproxy)
    balancer.apply((*aside(old), *new))

    def ask(names: Any, timeout: float, on_progress: Any, out: Any = ()) -> list[str]:
        # The drain has begun: the client asks once more, of a process that cannot be told of new weights.
        told.append(f"waits for {', '.join(names)}")
        client.request("GET", "/")
        told.append(client.getresponse().read().decode().strip())
        client.close()
        return type(balancer).wait_idle(balancer, names, timeout, on_progress, out)

    balancer.wait_idle = ask  # type: ignore[method-assign]
    outcome = balancer.apply(new, drain_timeout=30)
    assert told == ["waits for web-r1-1", str(ports[0])]
    assert outcome.receipts == [Receipt("web-r1-1", "127.0.0.1", ports[0], "idle")]
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.parametrize("master", [True, False])
def test_past_the_deadline_the_receipt_says_which_process_may_still_send_clients(
    start: Start, origins: Origins, master: bool
) -> None:
    haproxy = start(master=master)
    ports = origins.start(2)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    asked(haproxy, servers=lines(old), options=CLOSED)
    client = kept(haproxy)
    before = haproxy.pid
    haproxy.reload()
    (receipt,) = asked(haproxy, servers=lines(new), drain_timeout=1)["receipts"]
    assert {key: receipt[key] for key in ("name", "proof", "cut", "left")} == {"name": "web-r1-1", "proof": "deadline", "cut": 0, "left": 1}
    assert [identity.partition(":")[0] for identity in receipt["processes"]] == [str(before)]
    (again,) = asked(haproxy, state="observed", confirm=places(old))["receipts"]
    assert again == {**receipt, "proof": "lingering"}
    # A run that was killed before the ledger had the receipt: the next one's drain has the same deadline.
    (third,) = asked(haproxy, servers=lines(new), drain_timeout=1, confirm=places(old))["receipts"]
    assert third == {**receipt, "left": 1}
    # One that the ledger has a receipt of holds nothing up.
    (seen,) = asked(haproxy, servers=lines(new), drain_timeout=3600, confirm=[{**places(old)[0], "confirmed": True}])["receipts"]
    assert seen["proof"] == "lingering"
    client.close()
    wait_until(lambda: not Path(f"/proc/{before}").exists(), "the former process to end")
    assert asked(haproxy, state="observed", confirm=places(old))["receipts"] == [idle(old[0])]


def test_what_is_cut_at_the_deadline_is_said(start: Start, origins: Origins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "CUT_PATIENCE", 1.0)
    haproxy = start()
    ports = origins.start(2)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    asked(haproxy, servers=lines(old), options=OPTIONS)
    line = websocket(haproxy)
    assert asked(haproxy, servers=lines(new), drain_timeout=0)["receipts"] == [{**idle(old[0]), "proof": "deadline", "cut": 1}]
    assert not alive(line)


@pytest.mark.parametrize("way", ["another name", "no master"])
def test_a_process_left_behind_is_seen_however_haproxy_was_started(
    tmp_path: Path, origins: Origins, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, way: str
) -> None:
    """Under another program's name; and without a master at all, where the next process is told to end the former one (-sf)."""
    haproxy = HAProxyProcess(tmp_path / "haproxy", master=False)
    program = str(shutil.which(haproxy_process.PROGRAM, path=os.environ["PATH"] + ":/usr/sbin"))
    request.addfinalizer(haproxy.stop)
    if way == "another name":
        monkeypatch.setattr(haproxy_process, "PROGRAM", shutil.copy(program, tmp_path / "haproxy-2.8"))
        haproxy.start()
    else:
        haproxy.run.mkdir(mode=0o700)
        begin(haproxy, program)
    ports = origins.start(1)
    old = servers(1, ports)
    (haproxy.config_dir / "web.cfg").write_text(
        f"backend web\n    mode http\n    server web-r1-1 127.0.0.1:{ports[0]} id 10011 check inter 1s fastinter 200ms\n"
    )
    reloaded(haproxy, program, way)
    client = kept(haproxy)
    former = reloaded(haproxy, program, way)
    haproxy.cli("set server web/web-r1-1 state maint")
    haproxy.cli("del server web/web-r1-1")
    (haproxy.config_dir / "web.cfg").write_text("backend web\n    mode http\n")
    (receipt,) = asked(haproxy, state="observed", confirm=places(old))["receipts"]
    assert (receipt["proof"], [told.partition(":")[0] for told in receipt["processes"]]) == ("lingering", [str(former)])
    client.close()
    wait_until(lambda: not running(former), "the former process to end")
    assert asked(haproxy, state="observed", confirm=places(old))["receipts"] == [idle(old[0])]


def begin(haproxy: HAProxyProcess, program: str, former: int = 0) -> None:
    command = [program, "-db", "-f", str(haproxy.config), "-f", str(haproxy.config_dir), *(["-sf", str(former)] if former else [])]
    haproxy.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    wait_until(lambda: haproxy._answers() and haproxy.pid != former, "HAProxy to answer")


def reloaded(haproxy: HAProxyProcess, program: str, way: str) -> int:
    """Reloads, and returns the former process."""
    former = haproxy.pid
    if way == "no master":
        begin(haproxy, program, former)
    else:
        haproxy.reload()
    return former


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_reload_command_leaves_the_master_socket_to_tell_and_to_cut(start: Start, origins: Origins, tmp_path: Path) -> None:
    haproxy = start()
    assert haproxy.process is not None
    ports = origins.start(2)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    ran = tmp_path / "ran"
    place = {"master_socket": "", "reload_command": f"sh -c 'touch {ran}; kill -USR2 {haproxy.process.pid}'"}
    asked(haproxy, servers=lines(old), options=OPTIONS, **place)
    assert ran.exists(), "reloads go by the command"
    line = websocket(haproxy)
    haproxy.reload()
    (receipt,) = asked(haproxy, servers=lines(new), drain_timeout=0, **place)["receipts"]
    assert (receipt["proof"], receipt["cut"], receipt["left"]) == ("deadline", 1, 0)
    assert not alive(line), "only through the master is a connection of a former process cut"


# Reloads in quick succession


class Storm:
    """A reload every 0.7 s, as service discovery does it, until the block ends, or by itself."""

    def __init__(self, haproxy: HAProxyProcess, most: int = 60) -> None:
        self.haproxy = haproxy
        self.most = most
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._blow)

    def _blow(self) -> None:
        for _number in range(self.most):
            if self.over.wait(0.7):
                return
            self.haproxy.reload(wait=False)

    def __enter__(self) -> Storm:
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.over.set()
        self.thread.join(30)


SLOWLY = "backend other\n    server a 127.0.0.1:9 check inter 1s\n    server b 127.0.0.1:9 check inter 1s\n"
"""Checks by whose interval HAProxy spreads the first ones of all, so that no process of the storm comes to all servers."""


def test_a_storm_of_reloads_keeps_neither_a_release_nor_the_way_back(start: Start, origins: Origins) -> None:
    haproxy = start(extra=SLOWLY)
    ports = origins.start(6)
    old, new = servers(1, ports[:3]), servers(2, ports[3:])
    backend(haproxy).apply(old, OPTIONS)
    with Load(haproxy.url(), rate=40) as load, Storm(haproxy):
        # A Backend for each step, as each task has one: none knows what another has seen.
        backend(haproxy).apply((*old, *aside(new)), OPTIONS)
        haproxy.reload()
        backend(haproxy).wait_up(names(new), 10)
        backend(haproxy).apply((*aside(old), *new), OPTIONS, wait_timeout=10)
        haproxy.reload()
        backend(haproxy).wait_up(names(new), 5)
        backend(haproxy).apply((*old, *aside(new)), OPTIONS, wait_timeout=10)
        backend(haproxy).apply(old, OPTIONS, drain_timeout=10)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == dict.fromkeys(names(old), 100), "and no twin is left"


def test_a_server_that_fails_its_check_passes_no_gate_in_a_storm_either(start: Start, origins: Origins) -> None:
    haproxy = start(extra=SLOWLY)
    ports = origins.start(3)
    new = servers(2, ports)
    with Storm(haproxy):
        backend(haproxy).apply(aside(new), OPTIONS)
        gate = backend(haproxy)
        gate.wait_up(names(new), 10)
        origins.sick.add(ports[0])
        wait_until(lambda: gate.seen() and ("web-r2-1", "127.0.0.1", ports[0]) not in gate.passed, "a check that takes the proof back")
        with pytest.raises(DeadlineError, match=r"1 of 3 servers are not up: web-r2-1 "):
            gate.wait_up(names(new), 6)


# Sticky clients


class Sticky:
    """Clients that come back with the cookie that they were given, one request after another, every tenth of a second's length."""

    def __init__(self, haproxy: HAProxyProcess, count: int = 6, keep: bool = True) -> None:
        self.haproxy = haproxy
        self.keep = keep
        self.failures: list[str] = []
        self.answers: list[Counter[int]] = [Counter() for _client in range(count)]
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(answers,)) for answers in self.answers]

    def _ask(self, answers: Counter[int]) -> None:
        line = http.client.HTTPConnection("127.0.0.1", self.haproxy.ports["web"], timeout=20)
        headers: dict[str, str] = {}
        number = 0
        while not self.over.is_set():
            number += 1
            try:
                line.request("GET", "/slow" if number % 40 == 3 else "/", headers=headers)
                answer = line.getresponse()
                body = answer.read()
                if answer.status != 200:
                    raise OSError(f"{answer.status} {body!r}")
                answers[int(body)] += 1
                cookie = answer.getheader("Set-Cookie")
                if cookie:
                    headers["Cookie"] = cookie.partition(";")[0]
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                line.close()
            if not self.keep:
                line.close()

    def __enter__(self) -> Sticky:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)

    def now(self, least: int = 10) -> list[set[int]]:
        """For each client the ports that answer it from now on."""
        before = [Counter(answers) for answers in self.answers]
        pairs = list(zip(self.answers, before, strict=True))
        wait_until(lambda: all(sum(now.values()) >= sum(then.values()) + least for now, then in pairs), "answers", lambda: self.failures)
        return [set(now - then) for now, then in pairs]


TABLE = ["stick-table type ip size 1k expire 1h", "stick on src"]
STAYS: dict[str, dict[str, Any]] = {
    "cookie": {**OPTIONS, "cookie": "SRV"},
    "table": {**OPTIONS, "options": TABLE},
    "persist": {**OPTIONS, "cookie": "SRV", "options": ["option persist"]},
    "tcp": {"mode": "tcp", "options": TABLE},
}


@pytest.mark.parametrize("how", list(STAYS))
def test_sticky_clients_are_on_the_new_release_when_the_drain_ends(start: Start, origins: Origins, how: str) -> None:
    options = STAYS[how]
    haproxy = start(mode=options["mode"])
    ports = origins.start(6)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:2]), options)
    old = servers(1, ports[:2])
    with Sticky(haproxy, keep=how != "tcp") as clients:
        clients.now()  # the first ones come at once, before any of them is remembered
        assert all(len(seen) == 1 for seen in clients.now()), "each stays with one server"
        for number, chosen in ((2, ports[2:4]), (3, ports[4:])):
            new = servers(number, chosen)
            balancer.apply((*old, *aside(new)), options)
            balancer.wait_up(names(new), 10)
            balancer.apply((*aside(old), *new), options)
            assert set.union(*clients.now()) <= {item.port for item in old}, "they do not move by weights"
            outcome = balancer.apply(new, options, drain_timeout=20)
            before = [origins.hits[item.port] for item in old]
            assert outcome.receipts == [Receipt(item.name, item.address, item.port, "idle") for item in old]
            assert all(seen <= set(chosen) for seen in clients.now())
            assert all(len(seen) == 1 for seen in clients.now()), "and stay there"
            assert before == [origins.hits[item.port] for item in old], "nothing reaches the former release after its receipt"
            old = new
    assert clients.failures == []
    assert list(haproxy.servers()) == names(old)


def test_sticky_clients_of_adopted_servers_move_too(start: Start, origins: Origins) -> None:
    haproxy = start()
    ports = origins.start(3)
    theirs = "".join(f"    server s{port} 127.0.0.1:{port} cookie s{port}\n" for port in ports[:2])
    (haproxy.config_dir / "web.cfg").write_text(f"backend web\n    cookie SRV insert indirect nocache\n{theirs}")
    haproxy.reload()
    balancer, new = backend(haproxy), servers(1, ports[2:])
    with Sticky(haproxy) as clients:
        assert all(len(seen) == 1 for seen in clients.now())
        balancer.apply(new, OPTIONS, adopt=True, drain_timeout=20)
        assert clients.now() == [{ports[2]}] * 6
    assert clients.failures == []


def test_where_only_a_reload_moves_clients_and_there_is_no_way_to_reload_nothing_is_made(start: Start, origins: Origins) -> None:
    haproxy = start()
    options = STAYS["persist"]
    ports = origins.start(2)
    backend(haproxy).apply(servers(1, ports[:1]), options)
    helpless = backend(haproxy, master_socket="", reload_command="")
    with pytest.raises(RefusedError, match="haproxy_reload_command"):
        helpless.apply((*servers(1, ports[:1]), *aside(servers(2, ports[1:]))))
    assert list(haproxy.servers()) == ["web-r1-1"]
