# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""`fleet_proxmox`: every option read, converted and checked. Pure; knows no cluster."""

from __future__ import annotations

import ipaddress
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

from ._options import AGENT, Ends, Mistake, addresses, boolean, choice, ends_of, fields, items, overlaps, read, size, ssh_keys, text

VMIDS = "100000-999999"
OPTIONS: Dict[str, Any] = {
    "api_host": {"type": "list", "elements": "str"},
    "api_port": {"type": "int"},
    "api_user": {"type": "str"},
    "api_token_id": {"type": "str", "no_log": False},
    "api_token_secret": {"type": "str", "no_log": True},
    "api_password": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool"},
    "ca_path": {"type": "path"},
    "kind": {"type": "str", "choices": ["qemu", "lxc"]},
    "nodes": {"type": "list", "elements": "str"},
    "pool": {"type": "str"},
    "storage": {"type": "str"},
    "clone": {"type": "str", "choices": ["linked", "full"]},
    "vmid_range": {"type": "str"},
    "cores": {"type": "int"},
    "memory": {"type": "str"},
    "disk": {"type": "str"},
    "networks": {"type": "list", "elements": "raw"},
    "addresses": {"type": "list", "elements": "str"},
    "prefix": {"type": "int"},
    "gateway": {"type": "str"},
    "agent_network": {"type": "str"},
    "nameserver": {"type": "list", "elements": "str"},
    "ci_user": {"type": "str"},
    "ssh_keys": {"type": "list", "elements": "str", "no_log": False},
    "facts": {"type": "bool"},
    "tags": {"type": "list", "elements": "str"},
}
IMAGE: Dict[str, Any] = {"noun": "a template", "remedy": "write the name of a template, or its VMID"}
DEFAULTS: Dict[str, Any] = {
    "api_port": 8006, "validate_certs": True, "kind": "qemu", "clone": "linked", "vmid_range": VMIDS, "addresses": AGENT, "prefix": 24,
    "facts": True,
}
# What decides where and by whom an instance is made, not what it is.
_NO_SHAPE = (
    "api_host", "api_port", "api_user", "api_token_id", "api_token_secret", "api_password", "validate_certs", "ca_path", "nodes", "pool",
    "vmid_range", "addresses", "agent_network",
)


def mistakes(options: Any, path: str = "fleet_proxmox") -> List[str]:
    """All that is wrong with `fleet_proxmox`, a line for each, beginning with the path of the value; empty where nothing is.

    Values may be strings where numbers or booleans are meant, as `-e` gives them. Values of secrets are never shown.
    """
    return read(options, path, _READERS, _together)[1]


def settle(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Options without mistakes, converted and complete: memory and disk in bytes, addresses as `agent` or ranges."""
    return {**DEFAULTS, **read(options, "", _READERS, _together)[0]}


def shape(options: Mapping[str, Any]) -> Dict[str, Any]:
    """The part that shapes an instance, settled, for the hash of a definition."""
    return {key: value for key, value in settle(options).items() if key not in _NO_SHAPE and value not in ({}, [], False)}


def ranges_of(options: Mapping[str, Any]) -> List[Ends]:
    """The addresses of settled options as pairs of first and last; none where the instances tell them."""
    given = options.get("addresses", AGENT)
    return [] if given == AGENT else sorted(ends_of(item) for item in given)


def band_of(options: Mapping[str, Any]) -> Tuple[int, int]:
    first, _dash, last = str(options["vmid_range"]).partition("-")
    return int(first), int(last)


def _together(settled: Mapping[str, Any]) -> Iterable[Tuple[str, str]]:
    """What is wrong between values that are right by themselves."""
    for key, example in (("api_host", "pve1.example.org"), ("api_user", "fleet@pve")):
        if not settled.get(key):
            yield key, f"missing; write e.g. {example}"
    if ("api_token_id" in settled) != ("api_token_secret" in settled):
        yield "api_token_id", "it belongs to api_token_secret; give both"
    if ("api_token_secret" in settled) == ("api_password" in settled):
        yield "api_token_secret", "give either a token's secret or api_password"
    for words in overlaps(ranges_of(settled)):
        yield "addresses", words
    if settled.get("gateway") and not ranges_of(settled):
        yield "gateway", "it belongs to addresses; without them the network tells an instance its gateway"
    if settled.get("storage") and settled.get("clone", "linked") == "linked":
        yield "storage", "a linked clone is where its template is; set clone to full, or leave storage out"
    if settled.get("kind") == "lxc":
        for key in ("ci_user", "ssh_keys"):
            if settled.get(key):
                yield key, "a container has no cloud-init; put it into the template"


# --- one reader per option: the value converted, or a Mistake -----------------------------------------------------------

def _band(value: Any) -> str:
    first, _dash, last = str(value).partition("-")
    if not (first.strip().isdigit() and last.strip().isdigit()):
        raise Mistake(f"{value!r} is not a range of VMIDs; write e.g. {VMIDS}")
    if not 100 <= int(first) <= int(last) <= 999_999_999:
        raise Mistake(f"{value!r} is not a range from a lower to a higher VMID, from 100 to 999999999; write e.g. {VMIDS}")
    return f"{int(first)}-{int(last)}"


def _secret(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Mistake("the value is not a text; put it in quotes")
    return str(value)


def _token(value: Any) -> str:
    """A token's own name: PVE shows it as USER@REALM!NAME, and takes it as USER@REALM!NAME=SECRET."""
    if "=" in str(value):
        raise Mistake("what stands behind = is the token's secret; write that into api_token_secret, and here the name alone")
    return text(r"[A-Za-z][A-Za-z0-9._-]+", "the name of a token", "fleet")(str(value).rpartition("!")[2])


def _number(low: int, high: int, what: str) -> Callable[[Any], int]:
    def reader(value: Any) -> int:
        if isinstance(value, bool) or not str(value).isdigit() or not low <= int(value) <= high:
            raise Mistake(f"{value!r} is not {what} from {low} to {high}")
        return int(value)

    return reader


def _address(value: Any) -> str:
    try:
        return str(ipaddress.IPv4Address(str(value)))
    except ValueError:
        raise Mistake(f"{value!r} is not an IPv4 address; write e.g. 192.0.2.1") from None


def _network(value: Any) -> str:
    try:
        return str(ipaddress.IPv4Network(str(value)))
    except ValueError as error:
        raise Mistake(f"{value!r} is not an IPv4 network ({error}); write e.g. 192.0.2.0/24") from None


def _listed(reader: Callable[[Any], Any]) -> Callable[[Any], List[Any]]:
    return lambda value: items(value.replace(",", " ").split() if isinstance(value, str) else value, reader)


def _nic(value: Any) -> Dict[str, Any]:
    bridge = text(r"[A-Za-z][A-Za-z0-9_.-]{0,14}", "a bridge", "vmbr0")
    readers = {
        "bridge": bridge, "vlan": _number(1, 4094, "a VLAN"), "model": choice("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"),
        "firewall": boolean, "mtu": _number(576, 65520, "an MTU"),
    }
    return {"bridge": bridge(value)} if isinstance(value, str) else fields(value, readers, "bridge, vlan, model, firewall, mtu", ["bridge"])


_NODE = text(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", "the name of a node", "pve1")
_READERS: Dict[str, Callable[[Any], Any]] = {
    "api_host": _listed(text(r"[A-Za-z0-9.:\[\]-]+", "a host name or an address", "pve1.example.org")),
    "api_port": _number(1, 65535, "a port"),
    "api_user": text(r"[^\s:/@]+@[A-Za-z][A-Za-z0-9._-]+", "a user with its realm", "fleet@pve"),
    "api_token_id": _token,
    "api_token_secret": _secret,
    "api_password": _secret,
    "validate_certs": boolean,
    "ca_path": text(r"[^\x00]+", "a path", "/etc/pve/pve-root-ca.pem"),
    "kind": choice("qemu", "lxc"),
    "nodes": _listed(_NODE),
    "pool": text(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,2}", "a pool", "fleet"),
    "storage": text(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "a storage", "local-zfs"),
    "clone": choice("linked", "full"),
    "vmid_range": _band,
    "cores": _number(1, 8192, "a number of cores"),
    "memory": size("16m", "an instance"),
    "disk": size("1m", "an instance"),
    "networks": lambda value: items(value, _nic),
    "addresses": addresses,
    "prefix": _number(1, 32, "a length of a network's prefix"),
    "gateway": _address,
    "agent_network": _network,
    "nameserver": _listed(_address),
    "ci_user": text(r"[A-Za-z_][A-Za-z0-9_.-]*", "a user", "admin"),
    "ssh_keys": ssh_keys,
    "facts": boolean,
    "tags": _listed(text(r"[a-z0-9_][a-z0-9_.+-]*", "a tag", "production")),
}
