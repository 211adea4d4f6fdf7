# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backends of a real HAProxy, under load: nothing is lost, whatever is done to it meanwhile."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import (
    DeadlineError,
    FleetError,
    InvalidError,
    LeaseError,
    RefusedError,
    UnreachableError,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import backend as backends
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import client as clients
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import face
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.backend import Backend
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Head, Plan, Server, to_dict
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess, free_port, wait_until
from ansible_collections.phoenix.fleet.tests.load import Load

LEASE = Head("ledger-a", 7, "web")
OPTIONS: dict[str, Any] = {"mode": "http", "check": {"path": "/health", "status": 200}}


class Origins:
    """Small services on loopback ports. They answer with their port; /slow takes a second; an Upgrade is echoed until it is closed."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.tls = tls
        self.sick: set[int] = set()
        self.hits: Counter[int] = Counter()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def start(self, count: int) -> list[int]:
        async def begin() -> list[int]:
            made = [await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls) for _number in range(count)]
            return [int(server.sockets[0].getsockname()[1]) for server in made]

        return asyncio.run_coroutine_threadsafe(begin(), self.loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
                await reader.readexactly(length)
                path = head.split()[1]
                if "upgrade: websocket" in head.lower():
                    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                 b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
                    while data := await reader.read(100):
                        writer.write(data)
                    return
                if path == "/health":
                    status = "503 Sick" if port in self.sick else "200 OK"
                else:
                    status = "200 OK"
                    self.hits[port] += 1
                    await asyncio.sleep(1.0 if path == "/slow" else 0.002)
                body = f"{port}\n".encode()
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


@pytest.fixture
def origins() -> Iterator[Origins]:
    made = Origins()
    yield made
    made.stop()


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., HAProxyProcess]:
    def begin(**settings: Any) -> HAProxyProcess:
        haproxy = HAProxyProcess(tmp_path / "haproxy", **settings)
        request.addfinalizer(haproxy.stop)
        return haproxy.start()

    return begin


@pytest.fixture
def haproxy(start: Callable[..., HAProxyProcess]) -> HAProxyProcess:
    return start()


def backend(haproxy: HAProxyProcess, name: str = "web", **settings: Any) -> Backend:
    variables = haproxy.hostvars
    place = {key: variables.get(f"haproxy_{key}", "") for key in ("socket", "master_socket", "reload_command", "config", "config_dir")}
    return Backend(name, **{**place, "host": "lb1", **settings})


def servers(release: int, ports: list[int], weight: int = 100, state: str = "ready") -> tuple[Server, ...]:
    first = 10001 + 10 * release
    return tuple(Server(f"web-r{release}-{slot + 1}", "127.0.0.1", port, first + slot, weight, state) for slot, port in enumerate(ports))


def aside(lines: tuple[Server, ...], state: str = "ready") -> tuple[Server, ...]:
    return tuple(replace(server, weight=0, state=state) for server in lines)


def names(lines: tuple[Server, ...]) -> list[str]:
    return [server.name for server in lines]


def release(balancer: Backend, old: tuple[Server, ...], new: tuple[Server, ...], between: Callable[[], None] = lambda: None) -> None:
    """What the waves of a release do."""
    balancer.apply((*old, *aside(new)), OPTIONS, LEASE)
    between()
    balancer.wait_up(names(new), 10)
    between()
    balancer.apply((*aside(old), *new), OPTIONS, LEASE, live=2)
    between()
    balancer.apply((*aside(old, "drain"), *new), OPTIONS, LEASE)
    between()
    balancer.wait_idle(names(old), 10)
    between()
    balancer.apply(new, OPTIONS, LEASE)
    between()


def websocket(haproxy: HAProxyProcess) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", haproxy.ports["web"]), timeout=10)
    line.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                 b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert b"101" in line.recv(1000)
    return line


def alive(line: socket.socket) -> bool:
    try:
        line.sendall(b"ping")
        return line.recv(100) == b"ping"
    except OSError:
        return False


# Nothing is lost


@pytest.mark.parametrize("disturb", ["nothing", "reload", "signal"])
def test_releases_lose_nothing_under_load(haproxy: HAProxyProcess, origins: Origins, disturb: str) -> None:
    ports = origins.start(6)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:2]), OPTIONS, LEASE)
    between = {"nothing": lambda: None, "reload": haproxy.reload, "signal": lambda: haproxy.reload(wait=False)}[disturb]
    with Load(haproxy.url(), rate=80, slow="/slow") as load:
        release(balancer, servers(1, ports[:2]), servers(2, ports[2:4]), between)
        release(balancer, servers(2, ports[2:4]), servers(3, ports[4:]), between)
        wait_until(lambda: all(origins.hits[port] > 5 for port in ports[4:]), "requests at the newest release")
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == dict.fromkeys(names(servers(3, ports[4:])), 100)
    assert backend(haproxy).apply(servers(3, ports[4:]), OPTIONS, LEASE).actions == []


def test_a_restart_finds_the_same_backend(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(4)
    old, new = servers(1, ports[:2]), servers(2, ports[2:])
    balancer = backend(haproxy)
    balancer.apply(old, OPTIONS, LEASE)
    balancer.apply((*old, *aside(new)), OPTIONS, LEASE)
    haproxy.kill()
    haproxy.start()
    assert haproxy.weights() == {**dict.fromkeys(names(old), 100), **dict.fromkeys(names(new), 0)}
    balancer = backend(haproxy)
    balancer.apply((*aside(old, "drain"), *new), OPTIONS, LEASE)
    haproxy.restart()
    assert haproxy.weights() == {**dict.fromkeys(names(old), 0), **dict.fromkeys(names(new), 100)}
    balancer = backend(haproxy)
    assert {server.state for server in balancer.observe().servers} == {"ready"}
    balancer.apply((*aside(old, "drain"), *new), OPTIONS, LEASE)
    assert [server.state for server in balancer.observe().servers if server.name in names(old)] == ["drain", "drain"]


def test_a_server_that_haproxy_has_forgotten_is_told_from_those_it_has(haproxy: HAProxyProcess, origins: Origins) -> None:
    lines = servers(1, origins.start(2))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS, LEASE)
    for command in ("set server web/web-r1-2 state maint", "del server web/web-r1-2"):
        haproxy.cli(command)
    assert {server.name: server.loaded for server in balancer.observe().servers} == {"web-r1-1": True, "web-r1-2": False}
    balancer.apply(lines, OPTIONS, LEASE)
    assert all(server.loaded and server.up for server in balancer.observe().servers)


def test_a_reload_between_the_fragment_and_the_commands_loses_nothing(
    haproxy: HAProxyProcess, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = origins.start(4)
    old, new = servers(1, ports[:2]), servers(2, ports[2:])
    balancer = backend(haproxy)
    balancer.apply(old, OPTIONS, LEASE)
    ask = clients.Client.ask

    def reload_first(self: clients.Client, *commands: str) -> Any:
        if any(not command.startswith("show ") for command in commands):
            haproxy.reload()
        return ask(self, *commands)

    monkeypatch.setattr(clients.Client, "ask", reload_first)
    with Load(haproxy.url(), rate=50) as load:
        release(balancer, old, new)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == dict.fromkeys(names(new), 100)


def test_a_server_that_is_added_at_its_weight_takes_no_traffic_before_its_check(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), OPTIONS)
    origins.sick.add(ports[1])
    with pytest.raises(DeadlineError, match="web-r1-2 L7STS"):
        balancer.apply(servers(1, ports), OPTIONS, wait_timeout=1)
    assert haproxy.weights() == {"web-r1-1": 100, "web-r1-2": 0}
    origins.sick.clear()
    balancer.apply(servers(1, ports), OPTIONS, wait_timeout=10)
    assert haproxy.weights() == {"web-r1-1": 100, "web-r1-2": 100}


def test_a_server_that_is_down_takes_nobodys_place_however_often_it_is_tried(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), OPTIONS)
    origins.sick.add(ports[1])
    with Load(haproxy.url(), rate=50) as load:
        for _attempt in range(2):
            with pytest.raises(DeadlineError, match="web-r2-1 L7STS"):
                balancer.apply(servers(2, ports[1:]), OPTIONS, wait_timeout=1)
        origins.sick.clear()
        balancer.apply(servers(2, ports[1:]), OPTIONS, wait_timeout=10)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == {"web-r2-1": 100}


# Draining


def test_what_is_under_way_ends_before_its_server_leaves(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), OPTIONS)
    with Load(haproxy.url() + "/slow", rate=20) as load:
        wait_until(lambda: origins.hits[ports[0]] > 10, "slow requests")
        told: list[str] = []
        balancer.apply(servers(2, ports[1:]), OPTIONS, drain_timeout=10, on_progress=told.append)
    assert load.result["failed"] == 0, load.result
    assert told[0].startswith("r1 connections ")
    assert "cut" not in told[0]
    assert list(haproxy.weights()) == ["web-r2-1"]


Draining = tuple[HAProxyProcess, Backend, tuple[Server, ...], tuple[Server, ...]]


@pytest.fixture
def draining(start: Callable[..., HAProxyProcess], origins: Origins, master: bool, monkeypatch: pytest.MonkeyPatch) -> Draining:
    """A backend with its first release, which is not waited for long once connections are cut, and the second, which is not there yet."""
    monkeypatch.setattr(backends, "CUT_PATIENCE", 0.5)
    haproxy = start(master=master)
    ports = origins.start(2)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    balancer = backend(haproxy)
    balancer.apply(old, OPTIONS)
    return haproxy, balancer, old, new


@pytest.mark.parametrize("master", [True, False])
def test_a_long_connection_lives_until_the_deadline_also_in_a_worker_that_a_reload_left_behind(draining: Draining, master: bool) -> None:
    haproxy, balancer, old, new = draining
    before = websocket(haproxy)
    haproxy.reload()
    now = websocket(haproxy)
    (seen,) = balancer.observe().servers
    assert seen.sessions == 2
    balancer.apply((*aside(old, "drain"), *new), OPTIONS)
    assert alive(before)
    assert alive(now)
    actions = balancer.wait_idle(names(old), 0.5)
    assert actions == (["cut 2 of web-r1-1"] if master else ["cut 1 of web-r1-1", "left 1 of web-r1-1"])
    assert not alive(now)
    assert alive(before) is not master, "an old worker's connection is cut through the master's socket only"
    # What cannot be cut is told, and does not end the run: the deadline has passed.
    actions = balancer.apply(new, OPTIONS, drain_timeout=0).actions
    assert ("left 1 of web-r1-1" in actions) is not master
    assert list(haproxy.servers()) == names(new)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("master", [True, False])
def test_a_reload_during_the_drain_hides_nobody_who_is_connected(
    draining: Draining, master: bool, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    haproxy, balancer, old, new = draining
    line = websocket(haproxy)
    wait = Backend.wait_idle

    def disturbed(self: Backend, *arguments: Any) -> list[str]:
        haproxy.reload()
        monkeypatch.setattr(Backend, "wait_idle", wait)
        if killed:
            raise KeyboardInterrupt
        return wait(self, *arguments)

    monkeypatch.setattr(Backend, "wait_idle", disturbed)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            balancer.apply(new, OPTIONS, drain_timeout=0.5)
        # Without a master socket nobody tells which servers the former process knows: that it lives counts for all.
        assert {server.name: server.sessions for server in balancer.observe().servers} == {"web-r1-1": 1, "web-r2-1": 0 if master else 1}
    actions = balancer.apply(new, OPTIONS, drain_timeout=0.5).actions
    assert ("cut 1 of web-r1-1" if master else "left 1 of web-r1-1") in actions
    assert alive(line) is not master
    assert list(haproxy.servers()) == names(new)
    assert "web-r1-1" not in (haproxy.config_dir / "web.cfg").read_text()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_requests_of_one_http2_client_hide_no_other_client_of_an_old_worker(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    port = free_port()
    silent = socket.create_server(("127.0.0.1", 0))
    extra = f"frontend h2\n    bind 127.0.0.1:{port} proto h2\n    default_backend other\n"
    haproxy = start(extra=extra + f"backend other\n    server s 127.0.0.1:{silent.getsockname()[1]}\n")
    balancer = backend(haproxy)
    balancer.apply(servers(1, origins.start(1)), OPTIONS)
    idle = http.client.HTTPConnection("127.0.0.1", haproxy.ports["web"], timeout=10)
    idle.request("GET", "/")
    assert idle.getresponse().read()
    with socket.create_connection(("127.0.0.1", port)) as busy:
        asked = b"".join(frame(1, 5, number, b"\x82\x86\x84\x41\x01x") for number in (1, 3, 5, 7))
        busy.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + asked)
        wait_until(lambda: haproxy.cli("show sess").count("be=other srv=s") == 4, "four requests")
        haproxy.reload()
        assert [server.sessions for server in balancer.observe().servers] == [1]
    idle.close()
    silent.close()


# Who may, and what is refused


def test_an_older_fence_and_another_ledger_are_refused_by_name(haproxy: HAProxyProcess, origins: Origins) -> None:
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS, LEASE, live=41, next_release=42)
    assert balancer.stamp(replace(LEASE, fence=8)).actions == []
    before = (haproxy.config_dir / "web.cfg").read_text()
    with pytest.raises(LeaseError, match="8"):
        balancer.apply(aside(lines), OPTIONS, LEASE)
    with pytest.raises(RefusedError, match="ledger-a"):
        balancer.apply(aside(lines), OPTIONS, Head("ledger-b", 99, "web"))
    with pytest.raises(RefusedError, match="ledger-a"):
        balancer.stamp(Head("ledger-b", 99, "web"))
    with pytest.raises(RefusedError, match="web"):
        balancer.apply(aside(lines), OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before
    with pytest.raises(LeaseError, match="go on above that"):
        balancer.stamp(Head("ledger-b", 3, "web"), adopt=True)
    balancer.stamp(Head("ledger-b", 9, "web"), adopt=True)
    assert balancer.observe().head == Head("ledger-b", 9, "web", 41, 42)
    with pytest.raises(RefusedError, match="ledger-b"):
        balancer.apply(aside(lines), OPTIONS, replace(LEASE, fence=8), adopt=True)
    with pytest.raises(RefusedError, match="it belongs to the fleet web, not to api"):
        balancer.stamp(Head("ledger-b", 99, "api"), adopt=True)
    assert balancer.observe().head == Head("ledger-b", 9, "web", 41, 42)


def test_servers_that_were_written_under_no_lease_are_a_fleets_strangers(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    balancer = backend(haproxy)
    old = (Server("shop-a", "127.0.0.1", ports[0], 10001, 100),)
    new = servers(2, ports[1:])
    balancer.apply(old, OPTIONS)
    before = (haproxy.config_dir / "web.cfg").read_text()
    params = {key: spec.get("default") for key, spec in face.ARGUMENTS.items()}
    params.update(name="web", socket=str(haproxy.socket), config_dir=str(haproxy.config_dir), config=str(haproxy.config), state="observed")
    seen = face.carry_out({**params, "lease": {"ledger": "ledger-a", "fence": 7, "fleet": "web"}}, False, print)["balancer"]
    assert [server["name"] for server in seen["strangers"]] == ["shop-a"] and not seen["servers"]
    for lines in (new, (*old, *aside(new))):
        with pytest.raises(RefusedError, match="servers of somebody else: shop-a"):
            balancer.apply(lines, OPTIONS, LEASE)
    with pytest.raises(RefusedError, match="servers of somebody else: shop-a"):
        balancer.remove(LEASE)
    assert (haproxy.config_dir / "web.cfg").read_text() == before
    with Load(haproxy.url(), rate=50) as load:
        balancer.stamp(LEASE, adopt=True)
        assert [server.name for server in balancer.observe(lease=LEASE).strangers] == ["shop-a"]
        balancer.apply((*old, *aside(new)), OPTIONS, LEASE, adopt=True)
        haproxy.reload()
        balancer.wait_up([*names(old), *names(new)], 10)
        balancer.apply((*aside(old, "drain"), *new), OPTIONS, LEASE, adopt=True)
        balancer.apply(new, OPTIONS, LEASE, adopt=True)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == {"web-r2-1": 100}


STRANGER = """\
backend web
    mode http
    balance leastconn
    timeout server 40s
    http-reuse always
    server old 127.0.0.1:{port} check weight 5
"""


def test_somebody_elses_servers_are_refused_and_with_adopt_replaced_without_loss(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    path = haproxy.config_dir / "web.cfg"
    path.write_text(STRANGER.format(port=ports[0]))
    haproxy.reload()
    balancer = backend(haproxy)
    (old,) = balancer.observe().strangers
    assert (old.name, old.weight, balancer.observe().head) == ("old", 5, None)
    with pytest.raises(RefusedError, match="old"):
        balancer.apply(servers(1, ports[1:]), OPTIONS, LEASE)
    assert path.read_text() == STRANGER.format(port=ports[0])
    new = servers(1, ports[1:])
    with Load(haproxy.url(), rate=50) as load:
        balancer.apply((old, *aside(new)), OPTIONS, LEASE, adopt=True)
        assert [server.name for server in balancer.observe().strangers] == ["old"]
        with pytest.raises(RefusedError, match="old"):
            balancer.apply(new, OPTIONS, LEASE)
        haproxy.reload()
        balancer.wait_up(names(new), 10)
        balancer.apply((*aside((old,), "drain"), *new), OPTIONS, LEASE, adopt=True)
        balancer.wait_idle(["old"], 5)
        balancer.apply(new, OPTIONS, LEASE, adopt=True)
    assert load.result["failed"] == 0, load.result
    assert list(haproxy.servers()) == names(new)
    assert balancer.observe().strangers == ()
    text = path.read_text()
    assert "http-reuse always" in text
    assert "timeout server 40s" in text


def test_a_backend_in_another_file_is_refused_with_where_it_stands(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    haproxy = start(prepared=False, extra="backend web\n    mode http\n")
    with pytest.raises(RefusedError, match=r"haproxy\.cfg, line"):
        backend(haproxy).apply(servers(1, origins.start(1)), OPTIONS)
    assert not list(haproxy.config_dir.glob("*.cfg"))


def test_a_configuration_that_haproxy_does_not_accept_touches_nothing(haproxy: HAProxyProcess, origins: Origins) -> None:
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS)
    before, pid = sorted((path.name, path.read_text()) for path in haproxy.config_dir.glob("*.cfg")), haproxy.pid
    with pytest.raises(RefusedError, match="bogus"):
        balancer.apply(lines, {**OPTIONS, "options": ["bogus line"]})
    with pytest.raises(InvalidError, match="static-rr"):
        balancer.apply(lines, {**OPTIONS, "balance": "static-rr"})
    (haproxy.config_dir / "zz.cfg").write_text("backend zz\n    nonsense\n")
    with pytest.raises(RefusedError, match=r"zz\.cfg"):
        balancer.apply([*lines, *servers(2, origins.start(1))], OPTIONS)
    # A release that is under way ends all the same: other weights and fewer servers need nobody's leave.
    balancer.apply(aside(lines), OPTIONS)
    balancer.apply(lines, OPTIONS)
    assert sorted((path.name, path.read_text()) for path in haproxy.config_dir.glob("*.cfg") if path.name != "zz.cfg") == before
    (haproxy.config_dir / "zz.cfg").write_text("backend zz\n    nonsense\n    use-server x\n")
    balancer.apply((), OPTIONS)
    assert haproxy.servers() == {}
    assert haproxy.pid == pid


def test_a_line_that_needs_another_that_is_gone_is_noticed_before_anything_is_written(haproxy: HAProxyProcess, origins: Origins) -> None:
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy)
    balancer.apply(lines, {**OPTIONS, "options": ["stick-table type ip size 10k expire 1m", "stick on src"]})
    before = (haproxy.config_dir / "web.cfg").read_text()
    for check_mode in (True, False):
        with pytest.raises(RefusedError, match="does not accept the new configuration"):
            backend(haproxy, check_mode=check_mode).apply(lines, {**OPTIONS, "options": ["stick on src"]})
    assert (haproxy.config_dir / "web.cfg").read_text() == before


@pytest.mark.parametrize("lease", [None, LEASE])
@pytest.mark.parametrize(("own", "other"), [
    ("    use-server app1 if { path_beg /admin }\n", ""),
    ("    use-server 'ap'p1 if { path_beg /admin }\n", ""),
    ("    http-request deny if { srv_is_up(web/app1) }\n", ""),
    ("", "backend other\n    server x 127.0.0.1:1 track web/app1\n"),
])
def test_a_server_that_another_line_refers_to_is_not_taken_away(
    start: Callable[..., HAProxyProcess], origins: Origins, own: str, other: str, lease: Head | None
) -> None:
    haproxy = start(prepared=False, backends=())
    ports = origins.start(2)
    path = haproxy.config_dir / "web.cfg"
    path.write_text(f"backend web\n    mode http\n{own}    server app1 127.0.0.1:{ports[0]} check\n")
    (haproxy.config_dir / "zz.cfg").write_text(other)
    haproxy.reload()
    before = path.read_text()
    balancer = backend(haproxy)
    (old,) = balancer.observe().strangers
    new = servers(1, ports[1:])
    # A fleet's strangers leave in the end, so that it is told before a release begins.
    with pytest.raises(RefusedError, match="would not start without app1"):
        balancer.apply((old, *aside(new)) if lease else new, OPTIONS, lease, adopt=True)
    assert path.read_text() == before
    assert list(haproxy.servers("web")) == ["app1"]
    balancer.apply((old, *new), OPTIONS, adopt=True)
    haproxy.restart()
    path.write_text("\n".join(line for line in path.read_text().splitlines() if line.strip() != own.strip()) + "\n")
    (haproxy.config_dir / "zz.cfg").write_text("")
    haproxy.reload()
    backend(haproxy).apply(new, OPTIONS, lease, adopt=True)
    haproxy.restart()
    assert list(haproxy.servers("web")) == names(new)


def test_a_folder_that_haproxy_does_not_load_is_refused(haproxy: HAProxyProcess, origins: Origins, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(RefusedError, match="does not load"):
        backend(haproxy, config_dir=str(tmp_path / "elsewhere")).apply(servers(1, origins.start(1)), OPTIONS)
    assert not list((tmp_path / "elsewhere").glob("*.cfg"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk_leaves_the_old_fragment(tmp_path: Path, origins: Origins, request: pytest.FixtureRequest) -> None:
    haproxy = HAProxyProcess(tmp_path / "haproxy", prepared=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(haproxy.config_dir)], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", str(haproxy.config_dir)], check=True))
    request.addfinalizer(haproxy.stop)
    (haproxy.config_dir / "web.cfg").write_text("backend web\n    mode http\n")
    haproxy.start()
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS)
    before = (haproxy.config_dir / "web.cfg").read_text()
    with open(haproxy.config_dir / "filler", "wb") as filler, pytest.raises(OSError, match="space"):
        filler.write(b"x" * 100_000)
    with pytest.raises(RefusedError, match="Make room"):
        balancer.apply(aside(lines), OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before
    assert haproxy.weights() == {"web-r1-1": 100}
    assert not [path.name for path in haproxy.config_dir.iterdir() if path.name.startswith(".web")]


# Backends that come, change and go


def test_a_backend_that_haproxy_does_not_have_costs_one_reload_and_goes_with_another(
    start: Callable[..., HAProxyProcess], origins: Origins
) -> None:
    haproxy = start(backends=("web",))
    lines = servers(1, origins.start(1))
    api = backend(haproxy, "api")
    pid = haproxy.pid
    assert "reloaded HAProxy" in api.apply(lines, OPTIONS, replace(LEASE, fleet="api")).actions
    assert haproxy.pid != pid
    pid = haproxy.pid
    assert not api.apply(lines, OPTIONS, replace(LEASE, fleet="api")).changed
    assert haproxy.pid == pid
    assert haproxy.weights("api") == {"web-r1-1": 100}
    api.remove(replace(LEASE, fleet="api"))
    assert not (haproxy.config_dir / "api.cfg").exists()
    assert "Can't find backend" in haproxy.cli("show servers state api")
    assert not api.remove(replace(LEASE, fleet="api")).changed


def test_a_backend_that_a_front_end_refers_to_stays_empty_and_marked(haproxy: HAProxyProcess, origins: Origins) -> None:
    balancer = backend(haproxy)
    balancer.apply(servers(1, origins.start(1)), OPTIONS, LEASE, live=41, next_release=42)
    assert "web-r1-1" not in backend(haproxy, check_mode=True).remove(LEASE).after
    assert haproxy.weights() == {"web-r1-1": 100}
    assert balancer.remove(LEASE).changed
    assert haproxy.servers() == {}
    assert balancer.observe().head == Head("ledger-a", 7, "web", 0, 42)
    assert not balancer.remove(LEASE).changed
    haproxy.restart()


def test_changed_settings_are_loaded_by_a_reload_even_after_a_crash_before_it(
    haproxy: HAProxyProcess, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS)
    changed = {**OPTIONS, "timeouts": {"server": "7s"}}

    def crash(*_arguments: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Backend, "_reload", crash)
        balancer.apply(lines, changed)
    pid = haproxy.pid
    assert balancer.apply(lines, changed).actions == ["reloaded HAProxy"]
    assert haproxy.pid != pid
    assert balancer.apply(lines, changed).actions == []


def test_a_reload_that_fails_brings_the_former_fragment_back(haproxy: HAProxyProcess, origins: Origins, tmp_path: Path) -> None:
    lines = servers(1, origins.start(1))
    balancer = backend(haproxy, master_socket="", reload_command="false")
    before, pid = (haproxy.config_dir / "web.cfg").read_text(), haproxy.pid
    with pytest.raises(RefusedError, match="'false' ended with 1"):
        balancer.apply(lines, OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before
    assert haproxy.pid == pid


@pytest.mark.parametrize(("command", "told"), [
    ("nonexistent reload", "cannot be run: .*No such file"), ("sh -c 'kill", "cannot be run: No closing quotation"), (" ", "cannot be run"),
    ("sleep 60", "has not ended"),
])
def test_a_reload_command_that_cannot_be_run_brings_the_former_fragment_back(
    haproxy: HAProxyProcess, origins: Origins, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    monkeypatch.setattr(backends, "RELOAD_PATIENCE", 0.2)
    before = (haproxy.config_dir / "web.cfg").read_text()
    with pytest.raises(RefusedError, match=told):
        backend(haproxy, master_socket="", reload_command=command).apply(servers(1, origins.start(1)), OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before


def test_without_a_way_to_reload_nothing_is_touched(haproxy: HAProxyProcess, origins: Origins) -> None:
    before = (haproxy.config_dir / "web.cfg").read_text()
    with pytest.raises(RefusedError, match="haproxy_reload_command"):
        backend(haproxy, master_socket="", reload_command="").apply(servers(1, origins.start(1)), OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before


def test_a_front_end_of_the_backends_name_does_not_count(haproxy: HAProxyProcess, origins: Origins) -> None:
    balancer = backend(haproxy)
    balancer.apply(servers(1, origins.start(1)), OPTIONS)
    line = websocket(haproxy)
    (seen,) = balancer.observe().servers
    assert seen.sessions == 1
    line.close()
    assert balancer.wait_idle(["web-r1-1"], 5) == []


# Other ways to talk to a server


def test_tcp(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    haproxy = start(mode="tcp")
    ports = origins.start(2)
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), {"mode": "tcp"})
    with Load(haproxy.url(), rate=50) as load:
        balancer.apply((*servers(1, ports[:1]), *aside(servers(2, ports[1:]))), {"mode": "tcp"})
        balancer.wait_up(["web-r2-1"], 10)
        assert [server.check for server in balancer.observe().servers] == ["L4OK", "L4OK"]
        balancer.apply((*aside(servers(1, ports[:1])), *servers(2, ports[1:])), {"mode": "tcp"})
        wait_until(lambda: origins.hits[ports[1]] > 0, "a connection to the new server")
    assert load.result["failed"] == 0, load.result


def test_a_strangers_defaults_do_not_reach_the_backend(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    haproxy = start(prepared=False, backends=(), defaults=("mode tcp", "option httpchk GET /nowhere", "balance source"))
    front = f"frontend f\n    mode http\n    bind 127.0.0.1:{free_port()}\n    default_backend web\n"
    (haproxy.config_dir / "web.cfg").write_text("backend web\n    mode http\n")
    (haproxy.config_dir / "zz.cfg").write_text(front)
    haproxy.reload()
    ports = origins.start(2)
    backend(haproxy).apply(servers(1, ports), OPTIONS)
    haproxy.reload()
    assert haproxy.weights("web") == {"web-r1-1": 100, "web-r1-2": 100}


def shown(haproxy: HAProxyProcess) -> dict[str, list[str]]:
    """What HAProxy tells of each server's settings."""
    columns = ("svname", "act", "bck", "slim", "qlimit", "check_status", "check_rise", "check_fall", "agent_status", "cookie", "status")
    rows = [row for row in csv.DictReader(haproxy.cli("show stat -1 4 -1")[2:].splitlines()) if row["pxname"] == "web"]
    states = ("srv_uweight", "srv_admin_state", "srv_use_ssl", "srv_check_port", "srv_check_addr", "srv_agent_addr", "srv_agent_port")
    known = haproxy.servers()
    # -1 for TLS is what 3.0 shows of no-ssl.
    return {
        row["svname"]: [row[key] for key in columns] + [known[row["svname"]][key].replace("-1", "0") for key in states] for row in rows
    }


@pytest.mark.parametrize("given", [
    "ssl verify none", "check-ssl verify none", "send-proxy", "send-proxy-v2", "check-send-proxy", "send-proxy-v2-ssl", "backup",
    "disabled", "maxconn 1 minconn 1 maxqueue 1", "weight 7 slowstart 1h", "no-check", "observe layer7 on-error mark-down",
])
def test_a_strangers_default_server_does_not_reach_the_servers(start: Callable[..., HAProxyProcess], origins: Origins, given: str) -> None:
    haproxy = start(defaults=(f"default-server {given}",))
    ports = origins.start(2)
    balancer = backend(haproxy)
    balancer.apply((), OPTIONS)
    balancer.apply(servers(1, ports), OPTIONS, wait_timeout=10)
    before = shown(haproxy)
    haproxy.reload()
    balancer.wait_up(["web-r1-1", "web-r1-2"], 10)
    assert shown(haproxy) == before
    assert not origins.hits, "a check with a PROXY header asks for no /health"


def test_a_strangers_default_server_that_cannot_be_taken_back_is_refused(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    haproxy = start(defaults=("default-server inter 3s source 127.0.0.2",))
    before = (haproxy.config_dir / "web.cfg").read_text()
    with pytest.raises(RefusedError, match=r"source in the default-server of .*haproxy\.cfg, after line"):
        backend(haproxy).apply(servers(1, origins.start(1)), OPTIONS)
    assert (haproxy.config_dir / "web.cfg").read_text() == before


def test_an_adopted_server_keeps_what_the_defaults_give_it(start: Callable[..., HAProxyProcess], origins: Origins) -> None:
    haproxy = start(defaults=("default-server maxconn 7",))
    ports = origins.start(2)
    path = haproxy.config_dir / "web.cfg"
    path.write_text(f"backend web\n    default-server minconn 3\n    server old 127.0.0.1:{ports[0]} check\n")
    haproxy.reload()
    balancer = backend(haproxy)
    (old,) = balancer.observe().strangers
    balancer.apply((*servers(1, ports[1:]), old), OPTIONS, adopt=True)
    haproxy.reload()
    assert {name: row[3] == "7" for name, row in shown(haproxy).items()} == {"old": True, "web-r1-1": False}
    text = path.read_text()
    assert text.index("server old") < text.rindex("default-server minconn 3") < text.index("server web-r1-1")


def test_a_strangers_state_file_is_not_loaded(start: Callable[..., HAProxyProcess], origins: Origins, tmp_path: Path) -> None:
    state = tmp_path / "state"
    haproxy = start(defaults=("load-server-state-from-file global",), extra=f"global\n    server-state-file {state}\n")
    lines = servers(1, origins.start(2))
    balancer = backend(haproxy)
    balancer.apply(lines, OPTIONS)
    state.write_text(haproxy.cli("show servers state"))
    balancer.apply((lines[0], *aside(lines[1:])), OPTIONS)
    haproxy.reload()
    assert haproxy.weights() == {"web-r1-1": 100, "web-r1-2": 0}


def certificate(folder: Path) -> tuple[Path, Path]:
    key, crt = folder / "key.pem", folder / "crt.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=shop.example", "-addext", "subjectAltName=DNS:shop.example"]
    subprocess.run(["openssl", "req", *kind, *name, "-keyout", str(key), "-out", str(crt)], check=True, capture_output=True)
    return key, crt


def test_tls_to_the_servers_is_verified(haproxy: HAProxyProcess, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    key, crt = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    origins = Origins(context)
    request.addfinalizer(origins.stop)
    ports = origins.start(2)
    options = {**OPTIONS, "server": {"ssl": True, "ca_file": str(crt), "sni": "shop.example"}}
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), options)
    with Load(haproxy.url(), rate=20) as load:
        balancer.apply((*servers(1, ports[:1]), *aside(servers(2, ports[1:]))), options)
        balancer.wait_up(["web-r2-1"], 10)
        balancer.apply(servers(2, ports[1:]), options)
        wait_until(lambda: origins.hits[ports[1]] > 0, "a request by TLS")
    assert load.result["failed"] == 0, load.result
    with pytest.raises(DeadlineError, match="L6RSP"):
        wrong = {**options, "server": {**options["server"], "sni": "other.example"}}
        balancer.apply((*servers(2, ports[1:]), *aside(servers(3, ports[:1]))), wrong)
        balancer.wait_up(["web-r3-1"], 2)


# What cannot be reached, and the module's words


@pytest.mark.parametrize(("path", "error", "words"), [
    ("/nonexistent/admin.sock", UnreachableError, "haproxy_socket"), ("/dev/null", UnreachableError, "nobody listens"),
])
def test_a_socket_that_does_not_answer(path: str, error: type[FleetError], words: str) -> None:
    with pytest.raises(error, match=words):
        Backend("web", path, "", host="lb1").observe()


def test_a_socket_of_too_low_a_level(start: Callable[..., HAProxyProcess], origins: Origins, tmp_path: Path) -> None:
    low = f"/tmp/haproxy-low-{os.getpid()}.sock"
    haproxy = start(extra=f"global\n    stats socket {low} mode 600 level operator\n")
    backend(haproxy).apply(servers(1, origins.start(1)), OPTIONS)
    with pytest.raises(RefusedError, match="level admin"):
        backend(haproxy, socket=low).apply((), OPTIONS)
    os.unlink(low)


def test_check_mode_touches_nothing_and_says_what_it_would_do(haproxy: HAProxyProcess, origins: Origins) -> None:
    ports = origins.start(2)
    backend(haproxy).apply(servers(1, ports[:1]), OPTIONS, LEASE)
    before = sorted((path.name, path.read_text()) for path in haproxy.config_dir.glob("*.cfg"))
    outcome = backend(haproxy, check_mode=True).apply(servers(2, ports[1:]), OPTIONS, LEASE)
    assert any(action.startswith("add server web/web-r2-1") for action in outcome.actions)
    assert "web-r2-1" in outcome.after
    assert sorted((path.name, path.read_text()) for path in haproxy.config_dir.glob("*.cfg")) == before
    assert haproxy.weights() == {"web-r1-1": 100}
    with pytest.raises(RefusedError, match="bogus"):
        backend(haproxy, check_mode=True).apply(servers(1, ports[:1]), {**OPTIONS, "options": ["bogus line"]}, LEASE)


def play(folder: Path, haproxy: HAProxyProcess, tasks: list[dict[str, Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    inventory = {"all": {"hosts": {"web": {"ansible_connection": "local"}, "lb1": haproxy.hostvars}}}
    (folder / "inventory.json").write_text(json.dumps(inventory))
    (folder / "play.yml").write_text(json.dumps([{"hosts": "web", "gather_facts": False, "tasks": tasks}]))
    program = str(Path(sys.executable).parent / "ansible-playbook")
    return subprocess.run(
        [program, "-i", "inventory.json", "play.yml", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("form", ["action", "module"])
def test_the_same_in_process_and_as_a_module(haproxy: HAProxyProcess, origins: Origins, tmp_path: Path, form: str) -> None:
    lines = [{"name": f"shop-{port}", "address": "127.0.0.1", "port": port} for port in origins.start(2)]
    params: dict[str, Any] = {
        "name": "web", "options": OPTIONS, "servers": lines, "socket": str(haproxy.socket), "master_socket": str(haproxy.master_socket),
        "config_dir": str(haproxy.config_dir),
    }
    if form == "module":
        command = [sys.executable, "-m", "ansible_collections.phoenix.fleet.plugins.modules.haproxy_backend"]
        done = subprocess.run(command, input=json.dumps({"ANSIBLE_MODULE_ARGS": params}), capture_output=True, text=True, check=False)
        assert json.loads(done.stdout)["changed"], done.stdout + done.stderr
        done = subprocess.run(command, input=json.dumps({"ANSIBLE_MODULE_ARGS": params}), capture_output=True, text=True, check=False)
        assert not json.loads(done.stdout)["changed"], done.stdout
    else:
        task = {"phoenix.fleet.haproxy_backend": {key: params[key] for key in ("name", "options", "servers")}, "delegate_to": "lb1"}
        run = play(tmp_path, haproxy, [task, {**task, "register": "again"}, {"ansible.builtin.assert": {"that": "again is not changed"}}])
        assert run.returncode == 0, run.stdout
        asked = {"name": "web", "wait_for": "up", "wait_servers": ["nobody"], "wait_timeout": 0}
        wait = {"phoenix.fleet.haproxy_backend": asked, "delegate_to": "lb1"}
        run = play(tmp_path, haproxy, [wait])
        assert "nobody is not registered" in run.stdout + run.stderr
        assert "Traceback" not in run.stdout + run.stderr
    assert haproxy.weights() == {line["name"]: 100 for line in lines}


def test_an_old_copy_of_the_ledger_is_refused_however_often_it_tries(haproxy: HAProxyProcess, origins: Origins, tmp_path: Path) -> None:
    """With the head that a real run leaves: the number of records comes from the ledger, at each act anew."""
    (port,) = origins.start(1)
    ledger, file = Ledger("", str(tmp_path)), tmp_path / "ledger.sqlite3"

    def act() -> str:
        lease = to_dict(ledger.acquire("web", "me", takeover=True))
        task = {"name": "web", "servers": [{"name": "web-r1-1", "address": "127.0.0.1", "port": port}], "lease": lease}
        done = play(tmp_path, haproxy, [{"phoenix.fleet.haproxy_backend": task, "delegate_to": "lb1"}])
        return done.stdout + done.stderr if done.returncode else "done"

    assert act() == "done"
    copy = file.read_bytes()
    lease = ledger.acquire("web", "me", takeover=True)
    with ledger.planning(lease) as view:
        view.open(Plan("heal", 0, 0), "me")
    assert act() == "done"
    head = backend(haproxy).observe().head
    assert head and (head.fence, head.records) == (3, 1)
    file.write_bytes(copy)
    for fence in (2, 3, 4):
        said = act()
        assert ledger.history("web").fence == fence
        assert ("a later run has the fence 3" if fence < 3 else "had 1 records of the fleet, and this one has 0. It is an old copy") in said
    assert backend(haproxy).observe().head == head


def test_mistakes_are_told_all_at_once(haproxy: HAProxyProcess) -> None:
    bad = [{"name": "a b", "address": "shop.example", "port": 0, "weight": 100, "state": "ready"}]
    params = {key: spec.get("default") for key, spec in face.ARGUMENTS.items()}
    params.update(name="web", socket=str(haproxy.socket), config_dir=str(haproxy.config_dir), servers=bad, options={"inter": "1"})
    with pytest.raises(InvalidError) as caught:
        face.carry_out(params, False, lambda text: None)
    assert len(caught.value.mistakes) == 4


def test_a_wait_that_ends_says_what_it_last_saw(haproxy: HAProxyProcess, origins: Origins) -> None:
    (port,) = origins.start(1)
    origins.sick.add(port)
    balancer = backend(haproxy)
    balancer.apply(servers(1, [port], weight=0), OPTIONS)
    with pytest.raises(DeadlineError, match=r"1 of 1 servers are not up: web-r1-1 (L7STS|INI)"):
        balancer.wait_up(["web-r1-1"], 0.5)
