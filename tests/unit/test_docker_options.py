# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`fleet_docker`: every mistake is told, with its path and the remedy, and what has none is converted."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._docker_options import statics, subnet_of
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._hosts import routes
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker import OPTIONS, mistakes, settle, shape
from hypothesis import given
from hypothesis import strategies as st

WHOLE: dict[str, Any] = {
    "hosts": ["unix:///var/run/docker.sock", "ssh://ops@node1", {"url": "tcp://node2:2376", "name": "two", "publish_address": "192.0.2.2"}],
    "tls": {"ca_path": "/ca.pem", "client_cert": "/cert.pem", "client_key": "/key.pem"},
    "network": "phoenix", "subnet": "172.30.0.0/16", "ip_range": "172.30.192.0/18", "address": "published",
    "publish_address": "192.0.2.1", "publish_ports": "20000-20999", "environment": {"A": "$x", "B": 7}, "secrets": {"password": "hunter2"},
    "mounts": ["/srv/data:/data:ro", {"source": "cache", "target": "/cache"}], "memory": "256m", "cpus": "1.5", "user": "app:app",
    "ulimits": {"nofile": "1024:4096", "nproc": 64}, "sealed": "yes", "log_driver": "json-file", "log_options": {"max-size": "10m"},
    "health": {"test": "wget -q localhost", "interval": "500ms", "timeout": 2, "retries": "3"}, "stop_signal": "SIGINT",
    "command": "serve --name 'a b'", "pull": "always",
    "registry": {"server": "registry.example.org:5000", "username": "u", "password": "p"},
}


def test_everything_that_is_right_is_converted() -> None:
    assert set(WHOLE) == set(OPTIONS) and mistakes(WHOLE) == []
    settled = settle(WHOLE)
    assert settled["memory"] == 256 * 1024 ** 2 and settled["cpus"] == 1.5 and settled["sealed"] is True
    assert settled["hosts"][0] == {"url": "unix:///var/run/docker.sock"}
    assert settled["mounts"] == [
        {"source": "/srv/data", "target": "/data", "read_only": True}, {"source": "cache", "target": "/cache", "read_only": False}]
    assert settled["ulimits"] == {"nofile": "1024:4096", "nproc": "64:64"} and settled["command"] == ["serve", "--name", "a b"]
    assert settled["health"] == {"test": ["CMD-SHELL", "wget -q localhost"], "interval": 0.5, "timeout": 2.0, "retries": 3}
    assert settled["environment"] == {"A": "$x", "B": "7"}


def test_settling_twice_is_settling_once() -> None:
    assert settle(settle(WHOLE)) == settle(WHOLE) and mistakes(settle(WHOLE)) == []


@pytest.mark.parametrize(("options", "line"), [
    ({"memroy": "1g"}, "fleet_docker.memroy: there is no such option; did you mean memory?"),
    ({"memory": "12x"}, "fleet_docker.memory: '12x' is not a size; write e.g. 256m"),
    ({"memory": "1m"}, "fleet_docker.memory: '1m' is less than the 6m that an engine needs; write e.g. 256m"),
    ({"cpus": "many"}, "fleet_docker.cpus: 'many' is not a number of processors; write e.g. 1.5"),
    ({"cpus": -1}, "fleet_docker.cpus: -1 is not a number of processors; write e.g. 1.5"),
    ({"publish_ports": "20000-40000"}, "fleet_docker.publish_ports: '20000-40000' reaches into the ports from 32768 up, "
     "which the kernel gives to anybody; write e.g. 20000-24999"),
    ({"publish_ports": "9-8"}, "fleet_docker.publish_ports: '9-8' is not a range from a lower to a higher port; write e.g. 20000-24999"),
    ({"publish_address": "0.0.0.0"}, "fleet_docker.publish_address: '0.0.0.0' is no address that balancers could connect to; "
     "name one of the engine's host"),
    ({"publish_address": "node1"}, "fleet_docker.publish_address: 'node1' is not an IPv4 address; write e.g. 192.0.2.10"),
    ({"subnet": "172.30.0.1/16"}, "fleet_docker.subnet: '172.30.0.1/16' is not an IPv4 network (172.30.0.1/16 has host bits set); "
     "write e.g. 172.30.0.0/16"),
    ({"subnet": "10.0.0.0/30"}, "fleet_docker.subnet: '10.0.0.0/30' is too small for two generations; "
     "take a /28 or larger, e.g. 172.30.0.0/16"),
    ({"ip_range": "10.0.0.0/24"}, "fleet_docker.ip_range: 10.0.0.0/24 does not lie in the subnet 172.30.0.0/16"),
    ({"subnet": "10.0.0.0/24", "ip_range": "10.0.0.0/24"}, "fleet_docker.ip_range: 10.0.0.0/24 is the whole subnet and leaves no "
     "address for instances; take a part of it"),
    ({"hosts": [{"url": "tcp://a:1", "subnet": "10.0.0.0/24", "ip_range": "10.1.0.0/24"}]},
     "fleet_docker.hosts[0].ip_range: 10.1.0.0/24 does not lie in the subnet 10.0.0.0/24"),
    ({"hosts": ["node1"]}, "fleet_docker.hosts[0]: 'node1' is not an engine's address; "
     "write e.g. unix:///var/run/docker.sock, tcp://node1:2376 or ssh://ops@node1"),
    ({"hosts": ["unix:///a", {"name": "x"}]}, "fleet_docker.hosts[1]: url is missing"),
    ({"hosts": [{"url": "tcp://a:1", "tls": {"ca_pth": "x"}}]},
     "fleet_docker.hosts[0].tls.ca_pth: there is no such option; did you mean ca_path?"),
    ({"hosts": [{"url": "tcp://a:1", "name": "x"}, {"url": "tcp://b:1", "name": "x"}]},
     "fleet_docker.hosts: 2 engines are named 'x'; give each a name of its own"),
    ({"tls": {"client_cert": "/c"}}, "fleet_docker.tls: client_cert and client_key belong together; name both"),
    ({"address": "nat"}, "fleet_docker.address: 'nat' is not one of network, published"),
    ({"environment": {"A": True}}, "fleet_docker.environment.A: the value is not a text; put it in quotes"),
    ({"environment": {"PHOENIX_FLEET": "x"}}, "fleet_docker.environment.PHOENIX_FLEET: every instance gets this variable from its fleet; "
     "take another name"),
    ({"environment": ["A=b"]}, "fleet_docker.environment: this is not a mapping of names to values"),
    ({"mounts": ["data"]}, "fleet_docker.mounts[0]: 'data' is not a mount; write e.g. /srv/data:/data:ro"),
    ({"mounts": ["/a:/b", "/x:/run/secrets"]}, "fleet_docker.mounts[1].target: '/run/secrets' is taken by the instance itself; "
     "mount somewhere else"),
    ({"ulimits": {"nofile": "9:8"}}, "fleet_docker.ulimits.nofile: '9:8' has a soft limit above the hard one; write e.g. 1024:4096"),
    ({"sealed": "perhaps"}, "fleet_docker.sealed: 'perhaps' is neither true nor false"),
    ({"health": {"interval": "soon"}}, "fleet_docker.health.interval: 'soon' is not a time; write seconds, or e.g. 500ms, 5s, 2m"),
    ({"health": {"cmd": "x"}},
     "fleet_docker.health.cmd: there is no such option; there are interval, retries, start_period, test, timeout"),
    ({"stop_signal": "TERM"}, "fleet_docker.stop_signal: 'TERM' is not a signal; write e.g. SIGTERM"),
    ({"command": "a 'b"}, "fleet_docker.command: this is not a command line (No closing quotation); write a list of words"),
    ({"pull": "sometimes"}, "fleet_docker.pull: 'sometimes' is not one of missing, always, never"),
    ({"registry": {"username": "u"}}, "fleet_docker.registry: username and password belong together; give both"),
])
def test_a_mistake_is_one_line_with_its_path_and_the_remedy(options: Any, line: str) -> None:
    assert mistakes(options) == [line]


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes({"memory": "x", "mounts": ["a", "b"], "environment": {"A": None, "B": []}, "nonsense": 1})
    assert [line.partition(": ")[0] for line in found] == [f"fleet_docker.{path}" for path in (
        "memory", "mounts[0]", "mounts[1]", "environment.A", "environment.B", "nonsense")]


@pytest.mark.parametrize("options", [None, {}, {key: None for key in OPTIONS}, {key: "" for key in OPTIONS}])
def test_what_is_unset_is_no_mistake(options: Any) -> None:
    assert mistakes(options) == [] and settle(options) == {}


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6), st.sampled_from(sorted(OPTIONS)))
def test_no_value_whatever_raises(value: Any, key: str) -> None:
    found = mistakes({key: value})
    assert all(line.startswith(f"fleet_docker.{key}") and "\n" not in line for line in found) or not found
    if not found:
        assert settle(settle({key: value})) == settle({key: value})


def test_a_secret_never_stands_in_a_mistake() -> None:
    found = mistakes({"secrets": {"ok": ["hunter2"], "a/b": "hunter2"}, "registry": {"username": "u", "password": ["hunter2"]}})
    assert len(found) == 3 and "hunter2" not in " ".join(found)


def test_the_shape_is_what_an_instance_is_made_of_however_it_is_written() -> None:
    assert not set(shape(WHOLE)) & {"hosts", "tls", "registry", "pull"} and shape(WHOLE)["secrets"] == {"password": "hunter2"}
    assert shape({"memory": "1g", "sealed": False, "mounts": []}) == shape({"memory": "1024m"}) == {"memory": 1024 ** 3}
    json.dumps(shape(WHOLE))


@given(st.integers(8, 28).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, 2 ** size - 1))), st.data())
def test_instances_addresses_lie_in_the_subnet_and_outside_the_engines_range(network: Any, data: Any) -> None:
    size, number = network
    subnet = ipaddress.IPv4Network((number << (32 - size), size))
    longer = data.draw(st.integers(size + 1, 31))
    part = data.draw(st.integers(0, 2 ** (longer - size) - 1))
    ip_range = ipaddress.IPv4Network((int(subnet.network_address) + (part << (32 - longer)), longer))
    for chosen in (ip_range, subnet_of({"subnet": str(subnet)})[1]):
        first, last = statics(subnet, chosen)
        gateway = next(subnet.hosts())
        assert first <= last and first > gateway and last < subnet.broadcast_address
        assert last < chosen.network_address or first > chosen.broadcast_address


def test_the_hosts_own_networks_are_read_from_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
        "docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
        "tun0 0000000A 0100000A 0003 0 0 0 000000FF 0 0 0\n"
    )
    assert [(interface, str(network), far) for interface, network, far in routes(str(table))] == [
        ("docker0", "172.17.0.0/16", False), ("tun0", "10.0.0.0/8", True),
    ]
    assert routes(str(tmp_path / "none")) == []
