# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Where instances that are yet to be made will be reached: a host, an address and a port for each. Pure."""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from ..module_utils._errors import RefusedError
from ..module_utils._model import History, Instance, Pool, Server, Step

Place = tuple[str, str, int]
"""Host, address, port. The address is empty where the provider finds it out after the start."""

NEEDY = ("check", "stage", "gate", "switch", "watch")
"""The kinds of steps that need to know where an instance is."""


def places(
    fleet: str, pools: Sequence[Pool], port: int, count: int, beside: Iterable[str], taken: Collection[str],
    cooling: Mapping[str, str] | None = None, released: Mapping[str, str] | None = None,
) -> list[Place]:
    """`count` free places, spread evenly over the pools: those never used first, the lowest of them first, then the one used longest ago.

    beside are the hosts of the instances that the new ones will stand beside. taken holds what is in use beyond `Pool.taken`:
    pool keys, and reservations as `HOST KEY`. cooling maps pool keys that must not be used yet to why, released those that were used
    before to when they became free (ISO 8601). Raises RefusedError with the remedy where the pools have not enough.
    """
    standing: dict[str, int] = {}
    for host in beside:
        standing[host] = standing.get(host, 0) + 1
    used = {*taken, *(cooling or ())}
    open_pools = [(standing.get(pool.host, 0), rank, pool, _free(pool, port, used, released or {})) for rank, pool in enumerate(pools)]
    heapq.heapify(open_pools)
    found: list[Place] = []
    while len(found) < count:
        if not open_pools:
            cause = f"{count} instances need a place each, and {_described(pools)} for {len(found)}"
            raise RefusedError(
                f"fleet {fleet}", "; ".join([cause, *_chilled(pools, cooling or {})]),
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


def reservations(instance: Instance, pools: Mapping[str, Pool]) -> tuple[str, ...]:
    """What an instance holds that nobody else may have, each as `HOST KEY`: its address, once that is known, and its number.

    HOST is the realm where several hosts share addresses and numbers.
    """
    pool = pools.get(instance.host)
    # A host that takes no new instances now, an offline node for example, is of the same realm as the others.
    home = pool.realm or pool.host if pool else next((item.realm for item in pools.values() if item.realm), instance.host)
    address = pool.key(instance.address, instance.port) if pool else instance.address
    keys = ([address] if instance.address else []) + ([f"#{instance.number}"] if instance.number else [])
    return tuple(f"{home} {key}" for key in keys)


def standing(pools: Iterable[Pool], history: History) -> set[str]:
    """The names of all whose number is listed as taken. They exist, also where nothing else can be observed of them."""
    return {
        history.reserved[key] for pool in pools for taken in pool.taken
        if taken.startswith("#") and (key := f"{pool.realm or pool.host} {taken}") in history.reserved
    }


def place_of(keys: Iterable[str], pools: Iterable[Pool], port: int, standing: Mapping[str, int]) -> Place | None:
    """The place that one of these reservations is for, None where it is for none that is still free.

    Of several hosts of its realm it is the one with the fewest instances by `standing`.
    """
    for key in keys:
        home, _space, rest = key.partition(" ")
        free = [pool for pool in pools if (pool.realm or pool.host) == home and pool.kind != "dynamic" and rest not in pool.taken]
        if rest.startswith("#") or not free:
            continue
        pool = min(free, key=lambda item: standing.get(item.host, 0))
        if pool.kind == "published":
            address, _colon, number = rest.rpartition(":")
            return pool.host, address, int(number)
        return pool.host, rest, port
    return None


def numbered(
    fleet: str, hosts: Sequence[str], former: Sequence[Iterable[str]], pools: Mapping[str, Pool], history: History, seen: Iterable[int],
) -> list[int]:
    """A number for an instance on each of `hosts`, 0 where its pool has no ids. former are the reservations that each held already.

    Numbers only grow: each is above all that this ledger ever issued in the pool's band, or in one that overlaps it, and above those of
    `seen`, the fleet's own instances as observed. So nothing that is remembered by its number can ever mean another. Raises
    RefusedError where a band is used up.
    """
    fresh: dict[str, Iterator[int]] = {}
    made = []
    for host, keys in zip(hosts, former, strict=True):
        pool = pools[host]
        if not pool.ids[1]:
            made.append(0)
            continue
        home, taken = pool.realm or pool.host, set(pool.taken)
        again = (key.partition(" #")[2] for key in keys if key.startswith(f"{home} #"))
        number = next((int(text) for text in again if f"#{text}" not in taken and pool.ids[0] <= int(text) <= pool.ids[1]), 0)
        if not number:
            if home not in fresh:
                fresh[home] = _unissued(pool, home, history, seen)
            number = next(number for number in fresh[home] if f"#{number}" not in taken and f"{home} #{number}" not in history.reserved)
        if number > pool.ids[1]:
            raise RefusedError(
                f"fleet {fleet}", f"no number is left from {pool.ids[0]} to {pool.ids[1]} on {home}, since none is ever used again",
                "Widen the provider's range of ids",
            )
        made.append(number)
    return made


def _unissued(pool: Pool, home: str, history: History, seen: Iterable[int]) -> Iterator[int]:
    first, last = pool.ids
    start = max([first, *(number + 1 for number in seen if first <= number <= last)])
    for band, following in history.issued.items():
        owner, _space, begin = band.rpartition(" ")
        if owner == home and int(begin) <= last and following > first:
            start = max(start, following)
    return count(start)


def bands(instances: Iterable[Instance], pools: Mapping[str, Pool]) -> dict[str, int]:
    """`HOST FIRST` of the bands that these instances have their numbers from, with the lowest number above theirs."""
    found: dict[str, int] = {}
    for item in instances:
        if item.number:
            pool = pools[item.host]
            band = f"{pool.realm or pool.host} {pool.ids[0]}"
            found[band] = max(found.get(band, 0), item.number + 1)
    return found


def addressed(steps: Iterable[Step], found: Iterable[Instance], reserved: Mapping[str, str]) -> tuple[Step, ...]:
    """The steps of a wave with the addresses that were found out only after the start, of `found`, the instances as observed then.

    reserved (see History) has those of the waves before. Raises RefusedError where a step still has an instance or a server without one.
    """
    known = {name: address for key, name in reserved.items() if not (address := key.partition(" ")[2]).startswith("#")}
    known.update((item.name, item.address) for item in found if item.address)

    def filled(item: Instance) -> Instance:
        return replace(item, address=known[item.name]) if not item.address and item.name in known else item

    def listed(server: Server) -> Server:
        return replace(server, address=known[server.name]) if not server.address and server.name in known else server

    made = tuple(replace(step, instances=tuple(map(filled, step.instances)), servers=tuple(map(listed, step.servers))) for step in steps)
    lost = [item.name for step in made if step.kind in NEEDY for item in step.instances if not item.address]
    lost += [server.name for step in made if step.kind in NEEDY for server in step.servers if not server.address]
    if lost:
        names = ", ".join(dict.fromkeys(lost))
        raise RefusedError(names, "no address was found out", "See the provider's options for addresses, or run again")
    return made


def _free(pool: Pool, port: int, used: set[str], released: Mapping[str, str]) -> Iterator[Place]:
    """The free places of a pool, one by one. What is yielded is added to `used`, since two hosts may share one range."""
    if pool.kind == "dynamic":
        while True:
            yield pool.host, "", port
    held = set(pool.taken)
    former: list[tuple[str, str, int]] = []
    for address, number in _every(pool, port):
        key = pool.key(address, number)
        if key in released:
            former.append((released[key], address, number))
        elif key not in held and _claim(pool, key, used):
            yield pool.host, address, number
    for _when, address, number in sorted(former, key=lambda item: item[0]):
        key = pool.key(address, number)
        if key not in held and _claim(pool, key, used):
            yield pool.host, address, number


def _every(pool: Pool, port: int) -> Iterator[tuple[str, int]]:
    first, last = ipaddress.ip_address(pool.first), ipaddress.ip_address(pool.last)
    for number in range(pool.ports[0], pool.ports[1] + 1) if pool.kind == "published" else (port,):
        for offset in range(int(last) - int(first) + 1):
            yield str(first + offset), number


def _claim(pool: Pool, key: str, used: set[str]) -> bool:
    if key in used or f"{pool.realm or pool.host} {key}" in used:
        return False
    used.add(key)
    return True


def _chilled(pools: Sequence[Pool], cooling: Mapping[str, str]) -> list[str]:
    """Why places of these pools that nobody has cannot be used yet."""
    fixed = [pool for pool in pools if cooling and pool.kind != "dynamic"]
    keys = {pool.key(address, number) for pool in fixed for address, number in _every(pool, pool.ports[0])}
    return [why for key, why in cooling.items() if key in keys][:3]


def _described(pools: Sequence[Pool]) -> str:
    if not pools:
        return "no engine or node has a place"
    ranges = [
        f"{pool.host} ({pool.first}" + (f", ports {pool.ports[0]} to {pool.ports[1]})" if pool.kind == "published" else f" to {pool.last})")
        for pool in pools
    ]
    return f"{', '.join(ranges)} {'has' if len(pools) == 1 else 'have'} room"
