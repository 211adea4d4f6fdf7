# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The law that nothing is stopped that a balancer may serve: what each balancer was told of each server, and its receipts. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..module_utils._errors import RefusedError
from ..module_utils._model import Definition, History, Instance, Receipt, Registration, Server, World

ANY_WEIGHT = 100
"""The weight that is assumed where nobody knows what a balancer was told."""


def registered(former: Registration | None, server: Server, balancer: str, backend: str) -> Registration:
    """The registration of a server that a balancer is told of (again): whatever receipt there was is void."""
    weight = server.weight if server.state == "ready" else 0
    if former is None or (former.address, former.port) != (server.address, server.port):
        return Registration(server.name, balancer, backend, server.address, server.port, weight, former.turn + 1 if former else 1)
    # Since it was last confirmed to be out, or told for the first time, the highest counts.
    weight = max(weight, former.weight) if former.receipt is None else weight
    return replace(former, weight=weight, turn=former.turn + 1, receipt=None)


def confirmed(former: Registration, said: Mapping[str, Any], fence: int, at: str) -> Registration:
    """The registration with what its balancer has said of the server: see `receipts` in the module haproxy_backend.

    That a process of HAProxy lingers is no proof by itself: it keeps the address of a confirmed server from being used.
    """
    processes = tuple(str(item) for item in said.get("processes") or ())
    if said["proof"] == "lingering":
        return replace(former, receipt=replace(former.receipt, processes=processes)) if former.receipt else former
    if former.receipt is not None:
        return replace(former, receipt=replace(former.receipt, processes=processes))
    receipt = Receipt(fence, at, str(said["proof"]), int(said.get("cut") or 0), int(said.get("left") or 0), processes)
    return replace(former, receipt=receipt)


def given_up(history: History, lost: Collection[str], by: str, at: str) -> tuple[Registration, ...]:
    """The registrations at balancers that are gone for good by an operator's word, with that word as their receipt."""
    receipt = Receipt(history.fence, at, "operator", by=by)
    return tuple(
        replace(item, receipt=receipt) for item in history.registrations if item.balancer and item.balancer in lost and not item.is_settled
    )


def merged(history: History, changed: Iterable[Registration]) -> History:
    """The history with these registrations in the place of their former versions."""
    latest = {(item.server, item.balancer, item.backend): item for item in (*history.registrations, *changed)}
    return replace(history, registrations=tuple(latest.values()))


def from_before(definition: Definition, world: World, history: History, ours: Iterable[Instance]) -> tuple[Registration, ...]:
    """The registrations of instances that the ledger has none of: it is older than registrations, or has adopted them.

    Told is every balancer of the definition, and every one that lists the server.
    """
    known = {item.server for item in history.registrations}
    unknown = [item for item in ours if item.name not in known]
    hosts = dict.fromkeys((*definition.balancers, *(item.host for item in world.balancers)))
    # What is stopped may not tell its address any more.
    listed = {server.name: server.address for balancer in world.balancers for server in balancer.servers} if unknown else {}
    return tuple(
        Registration(item.name, host, definition.backend, item.address or listed.get(item.name, ""), item.port, ANY_WEIGHT)
        for item in unknown for host in hosts
    )


def elsewhere(definition: Definition, history: History) -> dict[tuple[str, str], list[str]]:
    """The (balancer, backend) that the definition does not name (any more) and that may be serving something, with the servers' names."""
    found: dict[tuple[str, str], list[str]] = {}
    balancers = frozenset(definition.balancers)
    for item in history.registrations:
        if item.may_serve and (item.balancer not in balancers or item.backend != definition.backend):
            found.setdefault((item.balancer, item.backend), []).append(item.server)
    return found


def remedy_of(definition: Definition, balancer: str, backend: str) -> str:
    """What to do about a balancer that may be serving and cannot be asked, or a backend that the fleet has left."""
    if balancer not in definition.balancers:
        return f"Put {balancer} back into fleet_balancers; if it is gone for good, say so with -e fleet_lost_balancers={balancer}"
    return (
        f"Set fleet_backend: {backend}; to move, release a fleet of another name with fleet_backend: {definition.backend}, "
        f"point the front end to it, then take this one away with phoenix.fleet.retire"
    )


def refuse_serving(
    registrations: Sequence[Registration], instances: Iterable[Instance], fresh: Iterable[Registration] = (), lost: Collection[str] = (),
) -> None:
    """Raises RefusedError, with balancer, backend and remedy, where one of these instances may still be served.

    An instance goes only if every balancer that was ever told of it has given a receipt since it was last told; what was only ever told at
    weight 0 needs none. fresh are receipts of this very run that could not be stored; they count for the turn that they were given for.
    """
    proved = {(item.server, item.balancer, item.backend, item.turn) for item in fresh if item.receipt is not None}
    by_server: dict[str, list[Registration]] = {}
    for item in registrations:
        by_server.setdefault(item.server, []).append(item)
    for instance in instances:
        known = by_server.get(instance.name)
        if known is None:
            raise RefusedError(
                f"instance {instance.name}", "the ledger does not know which balancers were told of it",
                "Nothing was stopped. Let the fleet's playbooks do it: phoenix.fleet.heal takes away what is left over",
            )
        for item in known:
            if item.may_serve and (item.server, item.balancer, item.backend, item.turn) not in proved and item.balancer not in lost:
                raise RefusedError(
                    f"instance {instance.name}",
                    f"balancer {item.balancer} was told of it in backend {item.backend}, and has not confirmed that it is out",
                    f"It was not stopped. Run phoenix.fleet.heal, which asks {item.balancer} again; "
                    f"if that is gone for good, say so with -e fleet_lost_balancers={item.balancer}",
                )


def cooling(history: History, present: Collection[str]) -> dict[str, str]:
    """The addresses, with and without port, that no instance has (`present`: their names) and must not get yet, and why."""
    found: dict[str, str] = {}
    for item in history.registrations:
        if not item.is_settled and item.server not in present:
            why = f"{item.balancer} may still send requests to it"
            if item.receipt is not None:
                why = f"HAProxy's process {item.receipt.processes[0].partition(':')[0]} on {item.balancer} may still send requests to it"
            for key in (item.address, f"{item.address}:{item.port}"):
                found.setdefault(key, f"{key} was {item.server}'s, and {why}")
    return found
