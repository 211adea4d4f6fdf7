# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Where instances that are yet to be made will be reached: a host, an address and a port for each. Pure."""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..module_utils._errors import RefusedError
from ..module_utils._model import Instance, Pool

Place = tuple[str, str, int]
"""Host, address, port. The address is empty where the provider finds it out after the start."""


def places(fleet: str, pools: Sequence[Pool], port: int, count: int, beside: Iterable[str], taken: Collection[str]) -> list[Place]:
    """`count` free places, spread evenly over the pools, the lowest first in each.

    beside are the hosts of the instances that the new ones will stand beside. taken holds what is in use beyond `Pool.taken`:
    pool keys, and reservations as `HOST KEY`. Raises RefusedError with the remedy where the pools have not enough.
    """
    standing: dict[str, int] = {}
    for host in beside:
        standing[host] = standing.get(host, 0) + 1
    used = set(taken)
    open_pools = [(standing.get(pool.host, 0), rank, pool, _free(pool, port, used)) for rank, pool in enumerate(pools)]
    heapq.heapify(open_pools)
    found: list[Place] = []
    while len(found) < count:
        if not open_pools:
            raise RefusedError(
                f"fleet {fleet}", f"{count} instances need a place each, and {_described(pools)} for {len(found)}",
                "Widen the provider's range of addresses or ports, lower fleet_keep or fleet_size, or add a host",
            )
        held, rank, pool, free = open_pools[0]
        place = next(free, None)
        if place is None:
            heapq.heappop(open_pools)
            continue
        found.append(place)
        heapq.heapreplace(open_pools, (held + 1, rank, pool, free))
    return found


def reservation(instance: Instance, pools: Mapping[str, Pool]) -> str:
    """`HOST KEY` of an instance, empty while its address is not known."""
    if not instance.address:
        return ""
    pool = pools.get(instance.host)
    return f"{instance.host} {pool.key(instance.address, instance.port) if pool else instance.address}"


def place_of(key: str, pools: Mapping[str, Pool], port: int) -> Place | None:
    """The place that a reservation `HOST KEY` is for, None where it is for none that is still free."""
    host, _space, rest = key.partition(" ")
    pool = pools.get(host)
    if pool is None or pool.kind == "dynamic" or rest in pool.taken:
        return None
    if pool.kind == "published":
        address, _colon, number = rest.rpartition(":")
        return host, address, int(number)
    return host, rest, port


def _free(pool: Pool, port: int, used: set[str]) -> Iterator[Place]:
    """The free places of a pool, one by one. What is yielded is added to `used`, since two hosts may share one range."""
    if pool.kind == "dynamic":
        while True:
            yield pool.host, "", port
    held = set(pool.taken)
    first, last = ipaddress.ip_address(pool.first), ipaddress.ip_address(pool.last)
    ports = range(pool.ports[0], pool.ports[1] + 1) if pool.kind == "published" else (port,)
    for number in ports:
        for offset in range(int(last) - int(first) + 1):
            address = str(first + offset)
            key = pool.key(address, number)
            if key not in held and key not in used and f"{pool.host} {key}" not in used:
                used.add(key)
                yield pool.host, address, number


def _described(pools: Sequence[Pool]) -> str:
    if not pools:
        return "no engine or node has a place"
    ranges = [
        f"{pool.host} ({pool.first}" + (f", ports {pool.ports[0]} to {pool.ports[1]})" if pool.kind == "published" else f" to {pool.last})")
        for pool in pools
    ]
    return f"{', '.join(ranges)} {'has' if len(pools) == 1 else 'have'} room"
