# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients that stay, at a real HAProxy: kept connections to processes that a reload left behind, sticky ones, and what is said of both."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import backend as backends
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import face
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.backend import Receipt
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Server
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
    return [{"name": item.name, "address": item.address, "port": item.port} for item in wanted]


def kept(haproxy: HAProxyProcess) -> http.client.HTTPConnection:
    """A client that has been answered, and keeps its connection without asking for anything."""
    line = http.client.HTTPConnection("127.0.0.1", haproxy.ports[haproxy.backends[0]], timeout=10)
    line.request("GET", "/")
    assert line.getresponse().read()
    return line


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
    asked(haproxy, servers=lines(old), options=OPTIONS)
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
    asked(haproxy, servers=lines(old), options=OPTIONS)
    client = kept(haproxy)
    before = haproxy.pid
    haproxy.reload()
    (receipt,) = asked(haproxy, servers=lines(new), drain_timeout=1)["receipts"]
    assert {key: receipt[key] for key in ("name", "proof", "cut", "left")} == {"name": "web-r1-1", "proof": "deadline", "cut": 0, "left": 1}
    assert [identity.partition(":")[0] for identity in receipt["processes"]] == [str(before)]
    (again,) = asked(haproxy, state="observed", confirm=places(old))["receipts"]
    assert again == {**receipt, "proof": "lingering"}
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
