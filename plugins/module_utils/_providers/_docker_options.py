# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""`fleet_docker`: every option read, converted and checked. Pure; knows no engine."""

from __future__ import annotations

import ipaddress
import re
import shlex
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

from ._options import Mistake, boolean, choice, count, fields, items, pairs, read, size, text

SUBNET = "172.30.0.0/16"
PUBLISH_PORTS = "20000-24999"
OURS = ("PHOENIX_FLEET", "PHOENIX_RELEASE", "PHOENIX_INSTANCE", "PHOENIX_REVISION")

TLS_OPTIONS: Dict[str, Any] = {
    "ca_path": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
}
REGISTRY_OPTIONS: Dict[str, Any] = {
    "server": {"type": "str", "default": "docker.io"},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
}
OPTIONS: Dict[str, Any] = {
    "hosts": {"type": "list", "elements": "raw"},
    "tls": {"type": "dict", "options": TLS_OPTIONS},
    "network": {"type": "str"},
    "subnet": {"type": "str"},
    "ip_range": {"type": "str"},
    "address": {"type": "str", "choices": ["network", "published"]},
    "publish_address": {"type": "str"},
    "publish_ports": {"type": "str"},
    "environment": {"type": "dict", "private": True},
    "secrets": {"type": "dict", "no_log": True},
    "mounts": {"type": "list", "elements": "raw"},
    "memory": {"type": "str"},
    "cpus": {"type": "float"},
    "user": {"type": "str"},
    "ulimits": {"type": "dict"},
    "sealed": {"type": "bool"},
    "log_driver": {"type": "str"},
    "log_options": {"type": "dict", "private": True},
    "health": {"type": "dict", "private": True},
    "stop_signal": {"type": "str"},
    "command": {"type": "raw", "private": True},
    "pull": {"type": "str", "choices": ["missing", "always", "never"]},
    "registry": {"type": "dict", "options": REGISTRY_OPTIONS},
}
# What decides where and by whom an instance is made, not what it is.
_NO_SHAPE = ("hosts", "tls", "registry", "pull")


def mistakes(options: Any, path: str = "fleet_docker") -> List[str]:
    """All that is wrong with `fleet_docker`, a line for each, beginning with the path of the value; empty where nothing is.

    Values may be strings where numbers or booleans are meant, as `-e` gives them. Those that may be secret are never shown.
    """
    return read(options, path, _READERS, _together)[1]


def settle(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Options without mistakes, converted: memory in bytes, times in seconds, lists for what may be one, unset ones left out."""
    return read(options, "", _READERS, _together)[0]


def shape(options: Mapping[str, Any]) -> Dict[str, Any]:
    """The part that shapes an instance, settled, for the hash of a definition. Secrets stand in clear: the caller hides them."""
    return {key: value for key, value in settle(options).items() if key not in _NO_SHAPE and value not in ({}, [], False)}


def _together(settled: Mapping[str, Any]) -> Iterable[Tuple[str, str]]:
    """What is wrong between values that are right by themselves."""
    whole = [("", dict(settled))]
    for index, host in enumerate(settled.get("hosts", [])):
        if set(host) & {"subnet", "ip_range"}:
            whole.append((f"hosts[{index}].", dict(settled, **host)))
    for prefix, site in whole:
        subnet = ipaddress.IPv4Network(site.get("subnet", SUBNET))
        if site.get("ip_range"):
            ip_range = ipaddress.IPv4Network(site["ip_range"])
            if not ip_range.subnet_of(subnet):
                yield f"{prefix}ip_range", f"{ip_range} does not lie in the subnet {subnet}"
            elif ip_range == subnet:
                yield f"{prefix}ip_range", f"{ip_range} is the whole subnet and leaves no address for instances; take a part of it"
    names = [host["name"] for host in settled.get("hosts", []) if "name" in host]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "hosts", f"{names.count(name)} engines are named '{name}'; give each a name of its own"


def subnet_of(site: Mapping[str, Any]) -> Tuple[ipaddress.IPv4Network, ipaddress.IPv4Network]:
    """Subnet and ip_range of an engine's settled settings. Without ip_range the subnet's upper quarter is left to the engine."""
    subnet = ipaddress.IPv4Network(site.get("subnet", SUBNET))
    ip_range = ipaddress.IPv4Network(site["ip_range"]) if site.get("ip_range") else list(subnet.subnets(prefixlen_diff=2))[3]
    return subnet, ip_range


def statics(subnet: ipaddress.IPv4Network, ip_range: ipaddress.IPv4Network) -> Tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """First and last address for instances: the longer run outside `ip_range`, without gateway (the first host) and broadcast."""
    low, high = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    below = (low, min(int(ip_range.network_address) - 1, high))
    above = (max(int(ip_range.broadcast_address) + 1, low), high)
    first, last = max(below, above, key=lambda run: run[1] - run[0])
    return ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)


def port_range(text: str) -> Tuple[int, int]:
    first, _dash, last = text.partition("-")
    return int(first), int(last or first)


# --- one reader per option: the value converted, or a Mistake -----------------------------------------------------------

def _cpus(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0.01 <= number < 100000:
        raise Mistake(f"{value!r} is not a number of processors; write e.g. 1.5")
    return number


def _seconds(value: Any) -> float:
    match = re.match(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h)?$", str(value))
    if isinstance(value, bool) or not match:
        raise Mistake(f"{value!r} is not a time; write seconds, or e.g. 500ms, 5s, 2m")
    seconds = float(match.group(1)) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match.group(2) or "s"]
    if 0 < seconds < 0.001:
        raise Mistake(f"{value!r} is less than the millisecond that an engine can tell")
    return seconds


def _network(value: Any) -> str:
    try:
        network = ipaddress.IPv4Network(str(value))
    except ValueError as error:
        raise Mistake(f"{value!r} is not an IPv4 network ({error}); write e.g. {SUBNET}") from None
    return str(network)


def _subnet(value: Any) -> str:
    network = _network(value)
    if ipaddress.IPv4Network(network).prefixlen > 28:
        raise Mistake(f"{value!r} is too small for two generations; take a /28 or larger, e.g. {SUBNET}")
    return network


def _address(value: Any) -> str:
    try:
        address = ipaddress.IPv4Address(str(value))
    except ValueError:
        raise Mistake(f"{value!r} is not an IPv4 address; write e.g. 192.0.2.10") from None
    if address.is_unspecified:
        raise Mistake(f"{value!r} is no address that balancers could connect to; name one of the engine's host")
    return str(address)


def _ports(value: Any) -> str:
    if not re.match(r"^\d{1,5}(-\d{1,5})?$", str(value)):
        raise Mistake(f"{value!r} is not a range of ports; write e.g. {PUBLISH_PORTS}")
    first, last = port_range(str(value))
    if not 1 <= first <= last:
        raise Mistake(f"{value!r} is not a range from a lower to a higher port; write e.g. {PUBLISH_PORTS}")
    if last >= 32768:
        raise Mistake(f"{value!r} reaches into the ports from 32768 up, which the kernel gives to anybody; write e.g. {PUBLISH_PORTS}")
    return str(value)


def _named(name: Any, pattern: str, what: str) -> str:
    if not re.match(rf"^(?:{pattern})$", str(name)):
        raise Mistake(f"{name!r} is not {what}")
    return str(name)


def _variables(value: Any) -> Dict[str, str]:
    def one(name: Any, item: Any) -> Tuple[str, str]:
        _named(name, r"[^=\s\x00]+", "a name for a variable")
        if name in OURS:
            raise Mistake("every instance gets this variable from its fleet; take another name")
        if isinstance(item, bool) or not isinstance(item, (str, int, float)) or "\x00" in str(item):
            raise Mistake("the value is not a text; put it in quotes")
        return str(name), str(item)

    return pairs(value, "names to values", one)


def _secrets(value: Any) -> Dict[str, str]:
    def one(name: Any, item: Any) -> Tuple[str, str]:
        _named(name, r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", "a name for a file; use letters, digits, dots, dashes and underscores")
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise Mistake("the value is not a text; put it in quotes")
        return str(name), str(item)

    return pairs(value, "names to secrets", one)


def _texts(value: Any) -> Dict[str, str]:
    def one(name: Any, item: Any) -> Tuple[str, str]:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise Mistake("the value is not a text; put it in quotes")
        return str(name), str(item)

    return pairs(value, "options to values", one)


def _tls(value: Any) -> Dict[str, Any]:
    path = text(r"[^\x00]+", "a path", "/etc/docker/tls/ca.pem")
    settled = fields(value, {"ca_path": path, "client_cert": path, "client_key": path, "validate_certs": boolean}, "TLS options")
    if ("client_cert" in settled) != ("client_key" in settled):
        raise Mistake("client_cert and client_key belong together; name both")
    return dict({"validate_certs": True}, **settled)


_URL = r"(unix:///\S+|tcp://[^\s/:]+:\d{1,5}|tcp://\[[0-9a-fA-F:]+\]:\d{1,5}|ssh://([^\s/:@]+@)?[^\s/:@]+(:\d{1,5})?)/?"
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def _host(value: Any) -> Dict[str, Any]:
    url = text(_URL, "an engine's address", "unix:///var/run/docker.sock, tcp://node1:2376 or ssh://ops@node1")
    if isinstance(value, str):
        return {"url": url(value)}
    readers = {
        "url": url, "name": text(_HOST, "a name for an engine", "node1"), "publish_address": _address,
        "network": _NAME, "subnet": _subnet, "ip_range": _network, "tls": _tls,
    }
    return fields(value, readers, "an engine's url, name and further settings", ["url"])


def _mount(value: Any) -> Dict[str, Any]:
    example = "/srv/data:/data:ro"
    if isinstance(value, str):
        match = re.match(r"^([^:]+):([^:]+?)(?::(ro|rw))?$", value)
        if not match:
            raise Mistake(f"{value!r} is not a mount; write e.g. {example}")
        value = {"source": match.group(1), "target": match.group(2), "read_only": match.group(3) == "ro"}
    target = text(r"/[^:\x00]*", "an absolute path within the instance", "/data")
    source = text(r"/[^:\x00]*|[A-Za-z0-9][A-Za-z0-9_.-]+", "an absolute path or the name of a volume", "/srv/data")
    readers = {"source": source, "target": target, "read_only": boolean}
    mount = dict({"read_only": False}, **fields(value, readers, "source and target", ["source", "target"]))
    if mount["target"].rstrip("/") in ("", "/run/secrets"):
        raise Mistake(f"{mount['target']!r} is taken by the instance itself; mount somewhere else", "target")
    return mount


def _ulimits(value: Any) -> Dict[str, str]:
    def one(name: Any, item: Any) -> Tuple[str, str]:
        _named(name, r"[a-z]+", "a limit; write e.g. nofile")
        if isinstance(item, Mapping):
            item = f"{item.get('soft')}:{item.get('hard')}"
        match = re.match(r"^(-1|\d+)(?::(-1|\d+))?$", str(item))
        if isinstance(item, bool) or not match:
            raise Mistake(f"{item!r} is not a limit; write a number, or soft:hard, e.g. 1024:4096")
        soft, hard = int(match.group(1)), int(match.group(2) or match.group(1))
        if hard != -1 and (soft == -1 or soft > hard):
            raise Mistake(f"{item!r} has a soft limit above the hard one; write e.g. 1024:4096")
        return str(name), f"{soft}:{hard}"

    return pairs(value, "limits to numbers", one)


def _test(value: Any) -> List[str]:
    if isinstance(value, str):
        return ["CMD-SHELL", value]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(item, (str, int)) for item in value):
        raise Mistake("this is not a command; write a line for the instance's shell, or a list of words")
    words = [str(item) for item in value]
    return words if words[0] in ("CMD", "CMD-SHELL", "NONE") else ["CMD", *words]


def _health(value: Any) -> Dict[str, Any]:
    readers = {"test": _test, "interval": _seconds, "timeout": _seconds, "start_period": _seconds, "retries": count}
    return fields(value, readers, "test, interval, timeout, start_period and retries")


def _command(value: Any) -> List[str]:
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise Mistake(f"this is not a command line ({error}); write a list of words") from None
    words = value if isinstance(value, (list, tuple)) else []
    if not words or not all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in words):
        raise Mistake("this is not a command; write a list of words, e.g. [serve, --port, '8080']")
    return [str(item) for item in words]


def _registry(value: Any) -> Dict[str, str]:
    def password(item: Any) -> str:
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise Mistake("the value is not a text; put it in quotes")
        return str(item)

    server = text(r"[A-Za-z0-9.\[\]-]+(:\d+)?", "a registry's host name", "registry.example.org")
    readers = {"server": server, "username": text(r"\S+", "a user's name", "deploy"), "password": password}
    settled = fields(value, readers, "server, username and password")
    if ("username" in settled) != ("password" in settled):
        raise Mistake("username and password belong together; give both")
    return settled


_NAME = text(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a name for a network", "phoenix")
_READERS: Dict[str, Callable[[Any], Any]] = {
    "hosts": lambda value: items(value, _host),
    "tls": _tls,
    "network": _NAME,
    "subnet": _subnet,
    "ip_range": _network,
    "address": choice("network", "published"),
    "publish_address": _address,
    "publish_ports": _ports,
    "environment": _variables,
    "secrets": _secrets,
    "mounts": lambda value: items(value, _mount),
    "memory": size("6m", "an engine"),
    "cpus": _cpus,
    "user": text(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?", "a user", "app, or 1000:1000"),
    "ulimits": _ulimits,
    "sealed": boolean,
    "log_driver": text(r"[A-Za-z0-9][A-Za-z0-9_./:-]*", "a log driver", "json-file"),
    "log_options": _texts,
    "health": _health,
    "stop_signal": text(r"SIG[A-Z0-9+-]+|\d{1,2}", "a signal", "SIGTERM"),
    "command": _command,
    "pull": choice("missing", "always", "never"),
    "registry": _registry,
}
