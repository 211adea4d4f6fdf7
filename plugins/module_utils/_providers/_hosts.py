# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Which hosts are this one, and which two are the same."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import List, Tuple

LOOPBACK = ("local", "localhost", "ip6-localhost")


def is_here(host: str) -> bool:
    """True for a name or address of this machine: one that a socket can be bound to."""
    if host in LOOPBACK:
        return True
    for address in resolved(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
            return True
        except OSError:
            continue
    return False


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
    try:
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return []
    found = []
    for interface, destination, gateway, flags, *rest in rows:
        address, mask = (socket.inet_ntoa(struct.pack("=L", int(text, 16))) for text in (destination, rest[3]))
        if int(flags, 16) & 1 and mask != "0.0.0.0":
            found.append((interface, ipaddress.IPv4Network(f"{address}/{mask}", strict=False), int(gateway, 16) != 0))
    return found
