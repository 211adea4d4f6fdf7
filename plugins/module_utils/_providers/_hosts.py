# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Which hosts are this one, and which two are the same."""

from __future__ import annotations

import socket
from typing import List

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
