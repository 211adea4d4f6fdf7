# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Which hosts are this one, and which two are the same."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from typing import List, Tuple

LOOPBACK = ("local", "localhost", "ip6-localhost")


def is_here(host: str) -> bool:
    """True for a name or address of this machine: one that a socket can be bound to."""
    return host in LOOPBACK or any(map(_is_own, resolved(host)))


def _is_own(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    try:
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    if ip.is_loopback or _told(f"/proc/sys/net/ipv{ip.version}/ip_nonlocal_bind").strip() != "1":
        return True
    # Where that is set, as beside keepalived, every address can be bound to: then the kernel's own tables count.
    if ip.version == 6:
        return any(line.startswith(ip.packed.hex()) for line in _told("/proc/net/if_inet6").splitlines())
    return re.search(rf"-- {re.escape(address)}\n\s+/32 host LOCAL", _told("/proc/net/fib_trie")) is not None


def _told(path: str) -> str:
    """What the kernel says there, nothing where it has no such file."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def resolved(host: str) -> List[str]:
    """The addresses of a host, none where the name is not known here."""
    try:
        return sorted({str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)})
    except OSError:
        return []


def same_place(home: str, balancer: str) -> bool:
    """True where the balancer's address is the engine's own host."""
    if home == "local" or is_here(balancer):
        return home == "local" and is_here(balancer)
    return home == balancer or bool(set(resolved(home)) & set(resolved(balancer)))


def routes(path: str = "/proc/net/route") -> List[Tuple[str, ipaddress.IPv4Network, bool]]:
    """This machine's IPv4 routes but the default one: interface, network, and whether that is reached through a gateway.

    None where the kernel does not tell. The table has an address as the number that its bytes are in this machine's memory.
    """
    rows = [line.split() for line in _told(path).splitlines()[1:]]
    found = []
    for interface, destination, gateway, flags, *rest in rows:
        address, mask = (socket.inet_ntoa(struct.pack("=L", int(text, 16))) for text in (destination, rest[3]))
        if int(flags, 16) & 1 and mask != "0.0.0.0":
            found.append((interface, ipaddress.IPv4Network(f"{address}/{mask}", strict=False), int(gateway, 16) != 0))
    return found
