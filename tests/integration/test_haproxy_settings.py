# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a definition may say of HAProxy, HAProxy takes; and what stands there from before goes on serving."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, InvalidError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import fragment as fragments
from ansible_collections.phoenix.fleet.plugins.plugin_utils._definition import define
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import PROGRAM, HAProxyProcess
from ansible_collections.phoenix.fleet.tests.integration.test_haproxy_backend import (
    LEASE,
    OPTIONS,
    Origins,
    aside,
    backend,
    certificate,
    names,
    servers,
)
from ansible_collections.phoenix.fleet.tests.load import Load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Start = Callable[..., HAProxyProcess]


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    def begin(**given: Any) -> HAProxyProcess:
        haproxy = HAProxyProcess(tmp_path / "haproxy", **given)
        request.addfinalizer(haproxy.stop)
        return haproxy.start()

    return begin


@pytest.fixture
def origins() -> Iterator[Origins]:
    made = Origins()
    yield made
    made.stop()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Origins, dict[str, Any]]]:
    """Services that talk TLS, and the options of HAProxy for them."""
    key, crt = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    made = Origins(context)
    yield made, {**OPTIONS, "server": {"ssl": True, "ca_file": str(crt), "sni": "shop.example", "alpn": "http/1.1", "maxconn": 100}}
    made.stop()


# Checks of other kinds


def test_an_external_check_that_passes_calls_a_server_up(start: Start, origins: Origins, tmp_path: Path) -> None:
    """HAProxy would crash on a server that was added at run time, so each release comes by a reload. A script decides."""
    script = tmp_path / "check"
    ports = origins.start(3)
    script.write_text(f'#!/bin/sh\ntest "$4" != {ports[2]}\n')
    script.chmod(0o755)
    haproxy = start(extra="global\n    external-check\n    insecure-fork-wanted\n")
    options = {"mode": "http", "options": ["option external-check", f"external-check command {script}"]}
    balancer = backend(haproxy)
    balancer.apply(servers(1, ports[:1]), options, wait_timeout=10)
    balancer.wait_up(["web-r1-1"], 10)
    with Load(haproxy.url(), rate=50) as load:
        actions = balancer.apply(servers(2, ports[1:2]), options, wait_timeout=10).actions
        assert "reloaded HAProxy" in actions and not [line for line in actions if line.startswith("add server")]
    assert load.result["failed"] == 0, load.result
    (seen,) = balancer.observe().servers
    assert (seen.name, seen.up, seen.check) == ("web-r2-1", True, "PROCOK")
    assert "reloaded HAProxy" not in balancer.apply(servers(2, ports[1:2]), options).actions
    with pytest.raises(DeadlineError, match="web-r3-1 PROCERR"):
        balancer.apply(servers(3, ports[2:]), options, wait_timeout=1)
    assert haproxy.weights() == {"web-r2-1": 100, "web-r3-1": 0}


def test_an_external_check_without_leave_for_it_says_what_is_missing(start: Start, origins: Origins) -> None:
    options = {"mode": "http", "options": ["option external-check", "external-check command /bin/true"]}
    with pytest.raises(RefusedError, match=r"unable to find required 'global\.external-check'"):
        backend(start()).apply(servers(1, origins.start(1)), options)


def test_an_adopted_backends_external_check_crashes_nothing(start: Start, origins: Origins) -> None:
    haproxy = start(extra="global\n    external-check\n    insecure-fork-wanted\n")
    ports = origins.start(2)
    lines = ["mode http", "option external-check", "external-check command /bin/true", f"server old 127.0.0.1:{ports[0]} check inter 100ms"]
    (haproxy.config_dir / "web.cfg").write_text("\n    ".join(["backend web", *lines]) + "\n")
    haproxy.reload()
    balancer = backend(haproxy)
    (old,) = balancer.observe().strangers
    with Load(haproxy.url(), rate=50) as load:
        balancer.apply((old, *aside(servers(2, ports[1:]))), {"mode": "http"}, LEASE, adopt=True)
        balancer.wait_up(["web-r2-1"], 10)
        balancer.apply(servers(2, ports[1:]), {"mode": "http"}, LEASE, adopt=True)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == {"web-r2-1": 100}


# What is verified


def test_tls_that_was_left_unverified_before_goes_on_and_is_no_longer_begun(start: Start, tls: tuple[Origins, dict[str, Any]]) -> None:
    origins, _options = tls
    haproxy = start()
    ports = origins.start(2)
    balancer = backend(haproxy)
    unsaid = {**OPTIONS, "server": {"ssl": True}}
    with pytest.raises(InvalidError, match=r"server\.ssl: without ca_file .* or write verify: none"):
        balancer.apply(servers(1, ports[:1]), unsaid)
    said = {**OPTIONS, "server": {"ssl": True, "verify": "none"}}
    balancer.apply(servers(1, ports[:1]), said)
    path = haproxy.config_dir / "web.cfg"
    path.write_text(path.read_text().replace(', "verify": "none"', ""))
    assert fragments.parse(path.read_text()).options == unsaid  # type: ignore[union-attr]
    with Load(haproxy.url(), rate=50) as load:
        balancer.apply((*servers(1, ports[:1]), *aside(servers(2, ports[1:]))))
        balancer.wait_up(["web-r2-1"], 10)
        actions = balancer.apply(servers(2, ports[1:]), said).actions
    assert load.result["failed"] == 0, load.result
    assert "reloaded HAProxy" not in actions and haproxy.weights() == {"web-r2-1": 100}


# Somebody else's, and ours


def test_a_backend_with_tls_that_a_module_wrote_can_be_adopted(start: Start, tls: tuple[Origins, dict[str, Any]]) -> None:
    """As long a line as there is: its words and those that keep an earlier `defaults` from it were more than HAProxy reads."""
    origins, options = tls
    haproxy = start(defaults=["default-server inter 7s weight 3 observe layer7 maxqueue 1"])
    ports = origins.start(2)
    balancer = backend(haproxy)
    options["server"].update(maxconn=100)
    old, new = servers(1, ports[:1]), servers(2, ports[1:])
    balancer.apply(old, options)
    with Load(haproxy.url(), rate=50) as load:
        balancer.stamp(LEASE, adopt=True)
        haproxy.reload()
        balancer.apply((*old, *aside(new)), options, LEASE, adopt=True)
        haproxy.reload()
        balancer.wait_up([*names(old), *names(new)], 10)
        assert [server.name for server in balancer.observe(lease=LEASE).strangers] == names(old)
        balancer.apply((*aside(old, "drain"), *new), options, LEASE, adopt=True)
        balancer.apply(new, options, LEASE, adopt=True)
    assert load.result["failed"] == 0, load.result
    assert haproxy.weights() == {"web-r2-1": 100}


def test_a_line_that_haproxy_would_cut_is_not_written(start: Start, origins: Origins) -> None:
    haproxy = start()
    path = haproxy.config_dir / "web.cfg"
    many = " ".join(["no-backup"] * 57)
    path.write_text(f"backend web\n    mode http\n    server old 127.0.0.1:{origins.start(1)[0]} {many}\n")
    haproxy.reload()
    balancer = backend(haproxy)
    before = path.read_text()
    with pytest.raises(RefusedError, match="the line of server old would have 65 words, and HAProxy reads 64"):
        balancer.apply(balancer.observe().strangers, {}, LEASE, adopt=True)
    assert path.read_text() == before


# Whatever is accepted


CERTIFICATE = "/etc/ssl/certs/ca-certificates.crt"
TLS = {"ssl": True, "verify": "none"}
GOOD: list[dict[str, Any]] = [
    {"balance": text} for text in (
        "roundrobin", "leastconn", "first", "source", "random", "random(3)", "uri", "uri len 9 depth 2 whole", "uri path-only",
        "url_param id", "url_param id check_post", "url_param id check_post 10", "hdr(x-user)", "hdr(host) use_domain_only", "rdp-cookie",
        "rdp-cookie(mstshash)", "hash src", "hash req.hdr(host),lower", "hash  path",
    )
] + [{"inter": text} for text in ("1us", "999us", "1ms", "2147483647ms", "24d", "596h")] + [
    {"timeouts": dict.fromkeys(fragments.TIMEOUTS, text)} for text in ("1us", "2147483s", "24d")
] + [{"server": {**TLS, "sni": text}} for text in ("shop.example", "str(shop.example)", "req.hdr(host),lower", "ssl_fc_sni()", "a_b")] + [
    {"server": {**TLS, "alpn": text}} for text in ("h2,http/1.1", "x" * 255)
] + [{"options": [text]} for text in (
    'http-request set-header X "a # b"', "http-request set-header X 'a\\'", 'http-request set-header X "${HOME-x y}z"',
    r"http-request set-header X a\ b\x41\'\\", 'http-request set-header X é # "', "acl a src " + " ".join(["192.0.2.1"] * 61),
)] + [
    {"rise": 100, "fall": 100}, {"server": {"ssl": True, "ca_file": CERTIFICATE, "maxconn": 10**9, "send_proxy_v2": True}},
    {"check": {"path": "/a%20b?c=d&e=(f)", "status": "200,300-302", "host": "[::1]:80"}}, {"check": {"path": "/", "status": [200, 204]}},
    {"check": {"path": "/" + "a" * 900}},
]
BAD: list[dict[str, Any]] = [
    {"balance": text} for text in (
        "url_param", "url_param id other", "hdr", "hdr()", "hdr(a b)", "hdr(a) b", "hash", "hash src b", "hash req.hdr(host", "random(0)",
        "random(x)", "uri len", "uri len 0", "uri other", "rdp-cookie()", "roundrobin x", "source(a)", "static-rr",
    )
] + [{"inter": text} for text in ("100d", "25d", "2147483648ms", "999999999h")] + [
    {"timeouts": {name: "25d"}} for name in fragments.TIMEOUTS
] + [
    {"server": {**TLS, "sni": text}} for text in ("münchen.example", "str(é)", "str(a,b)", "req.hdr(host", "str(a)b", "(x)", "a<<b", "a,b")
] + [
    {"server": {**TLS, "alpn": text}} for text in ("é", "h2,", "x" * 256)
] + [{"server": server} for server in ({"ssl": True}, {"ssl": True, "verify": "required"}, {"ssl": True, "ca_file": "/é"},
                                       {**TLS, "ca_file": CERTIFICATE}, {"verify": "none"}, {"ssl": True, "verify": "some"})] + [
    {"options": [text]} for text in (
        'http-request set-header X "a', "http-request set-header X 'a", "http-request set-header X a\\", 'http-request set-header X a\\"b"',
        'http-request set-header X "${A"', 'http-request set-header X "$"', 'http-request set-header X "$1"',
        'http-request set-header X "\\xzz"', "http-request set-header X \\x4", '"server" x 192.0.2.1:80', "acl a src " + "192.0.2.1 " * 62,
        "bind :80", "default_backend x", "use_backend x", "declare capture request len 5", "monitor fail if TRUE",
        "tcp-request connection accept", "tcp-request session accept", "disabled", "dispatch 192.0.2.1:80",
    )
] + [{"cookie": "é"}, {"check": {"path": "/é"}}, {"check": {"path": "/a", "host": "é"}}, {"check": {"path": "/" + "a" * 1001}},
     {"mode": "tcp", "balance": "hdr(x)"}]
"""Most of them HAProxy refuses, which came to light when the instances were there; the rest it would take for something else."""


def accepted(haproxy: dict[str, Any]) -> dict[str, Any]:
    raw = {"fleet_image": "shop:1", "fleet_port": 80, "fleet_haproxy": haproxy}
    return dict(define(raw, balancers=["lb1"], hosts=["lb1"], name="web", state_dir="/state").haproxy)


def complaint(folder: Path, options: dict[str, Any]) -> str:
    """What HAProxy says against a backend with these options; empty where it takes it."""
    assert not fragments.mistakes("web", servers(1, [80, 81]), options)
    text = fragments.render(fragments.Fragment("web", options=options, servers=servers(1, [80, 81])))
    path = folder / "web.cfg"
    path.write_text("defaults\n    mode http\n    timeout client 1s\nfrontend web\n    bind 127.0.0.1:1\n    default_backend web\n" + text)
    environment = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin"}
    done = subprocess.run([PROGRAM, "-c", "-f", str(path)], env=environment, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stderr + done.stdout


@pytest.mark.parametrize("haproxy", GOOD, ids=str)
def test_what_is_good_is_accepted_by_the_definition_and_by_haproxy(tmp_path: Path, haproxy: dict[str, Any]) -> None:
    assert complaint(tmp_path, accepted(haproxy)) == ""


@pytest.mark.parametrize("haproxy", BAD, ids=str)
def test_what_haproxy_would_not_take_is_refused_before_anything_is_made(haproxy: dict[str, Any]) -> None:
    with pytest.raises(InvalidError) as caught:
        accepted(haproxy)
    (key,) = (name for name in haproxy if name != "mode")
    assert len(caught.value.mistakes) == 1 and caught.value.mistakes[0].startswith(f"fleet_haproxy.{key}")
    assert ";" in caught.value.mistakes[0], "a remedy"


def test_whatever_the_definition_accepts_a_running_haproxy_takes_as_a_server(start: Start) -> None:
    """The same words go to the file and to `add server`, which is more particular."""
    haproxy = start()
    for number, options in enumerate(accepted(item) for item in GOOD if item.keys() & {"server", "inter", "rise"}):
        (server,) = servers(number, [80])
        if not (options["server"] or {}).get("ca_file"):  # it would have to be loaded by the file first
            words = f"{fragments.address(server)} {fragments.tail(server, options)} weight 0"
            assert "New server registered" in haproxy.cli(f"add server web/{server.name} {words}"), options


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*GOOD, *BAD]), min_size=2, max_size=4))
def test_what_the_definition_accepts_haproxy_accepts(tmp_path: Path, chosen: list[dict[str, Any]]) -> None:
    merged: dict[str, Any] = {}
    for item in chosen:
        merged.update(item)
    try:
        options = accepted(merged)
    except InvalidError:
        return
    assert complaint(tmp_path, options) == ""
