# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""`fleet_libvirt`: every option read, converted and checked. Pure; knows no host."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

from ._options import AGENT, Ends, Mistake, addresses, choice, count, ends_of, overlaps, read, size, ssh_keys, text

OPTIONS: Dict[str, Any] = {
    "uri": {"type": "str"},
    "pool": {"type": "str"},
    "network": {"type": "str"},
    "memory": {"type": "str"},
    "vcpus": {"type": "int"},
    "domain_type": {"type": "str", "choices": ["kvm", "qemu"]},
    "firmware": {"type": "str", "choices": ["bios", "uefi"]},
    "user_data": {"type": "raw", "no_log": True},
    "ssh_keys": {"type": "list", "elements": "str", "no_log": False},  # public ones
    "addresses": {"type": "list", "elements": "str"},
}
IMAGE: Dict[str, Any] = {"noun": "an image", "remedy": "write the volume that is the golden image, as VOLUME or POOL/VOLUME"}
DEFAULTS: Dict[str, Any] = {
    "uri": "qemu:///system", "pool": "default", "network": "default", "memory": 1024 ** 3, "vcpus": 1, "firmware": "bios",
}
# What decides where and by whom an instance is made, not what it is.
_NO_SHAPE = ("uri", "addresses")


def mistakes(options: Any, path: str = "fleet_libvirt") -> List[str]:
    """All that is wrong with `fleet_libvirt`, a line for each, beginning with the path of the value; empty where nothing is.

    Values may be strings where numbers are meant, as `-e` gives them. user_data is never shown.
    """
    return read(options, path, _READERS, _together)[1]


def settle(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Options without mistakes, converted and complete: memory in bytes, user_data as one text, addresses as `agent` or ranges."""
    return {**DEFAULTS, **read(options, "", _READERS, _together)[0]}


def shape(options: Mapping[str, Any]) -> Dict[str, Any]:
    """The part that shapes an instance, settled, for the hash of a definition. user_data stands in clear: the caller hides it."""
    return {key: value for key, value in settle(options).items() if key not in _NO_SHAPE}


def ranges_of(options: Mapping[str, Any]) -> Tuple[Ends, ...]:
    """The addresses of settled options as pairs of first and last; none where the network decides, or the guest's agent tells."""
    given = options.get("addresses") or []
    return () if given == AGENT else tuple(ends_of(item) for item in given)


def _together(settled: Mapping[str, Any]) -> Iterable[Tuple[str, str]]:
    """What is wrong between values that are right by themselves."""
    for words in overlaps(ranges_of(settled)):
        yield "addresses", words


# --- one reader per option: the value converted, or a Mistake -----------------------------------------------------------

def _user_data(value: Any) -> str:
    """cloud-config as a mapping, or what cloud-init takes as a text: its first line says what it is. JSON is YAML to cloud-init."""
    if isinstance(value, Mapping):
        return "#cloud-config\n" + json.dumps(value, sort_keys=True) + "\n"
    if not isinstance(value, str) or not value.startswith("#"):
        raise Mistake("this is no user data; write a mapping, or a text that begins with #cloud-config or #!")
    return value if value.endswith("\n") else value + "\n"


_NAME = r"[^\s/<>&\"'\x00-\x1f]{1,200}"
_READERS: Dict[str, Callable[[Any], Any]] = {
    "uri": text(
        r"qemu(\+(unix|ssh|libssh2?|tls|tcp))?://([^\s/@:]+@)?[^\s/@]*/(system|session)(\?\S*)?", "a connection of libvirt",
        "qemu:///system or qemu+ssh://ops@node1/system",
    ),
    "pool": text(_NAME, "a name of a storage pool", "default"),
    "network": text(_NAME, "a name of a network of libvirt", "default"),
    "memory": size("32m", "a virtual machine"),
    "vcpus": count,
    "domain_type": choice("kvm", "qemu"),
    "firmware": choice("bios", "uefi"),
    "user_data": _user_data,
    "ssh_keys": ssh_keys,
    "addresses": addresses,
}
