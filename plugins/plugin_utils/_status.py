# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What a fleet is like: for machines, for people, and whatever is not as it should be. Pure: observed in, words out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..module_utils._model import Balancer, Definition, History, Instance, Release, Server, World, to_dict
from . import _registrations as law
from ._placement import standing
from ._scene import UNSEEN, identified, named, without_copies
from ._story import way_back

RELEASES = 5
"""How many releases people are shown."""


def status(
    definition: Definition, world: World, history: History, lease: Mapping[str, str] | None = None, broken: Sequence[str] = (),
    unseen: str = "",
) -> dict[str, Any]:
    """The status as JSON (DESIGN, Public contract). lease and broken are the ledger's `holder` and `verify`.

    unseen says why the instances could not be observed; world has none then, and nothing is concluded from that.
    """
    world = identified(definition, without_copies(world, history), history)
    rows = {row.number: row for row in history.releases}
    live = rows.get(history.live)
    found = [*broken, *_of_ledger(definition, history, lease), *_of_registrations(definition, history)]
    found += _of_balancers(definition, world, history)
    found += [f"the instances cannot be observed: {unseen}"] if unseen else _of_instances(definition, world, history)
    found += [
        f"{item.name} bears the marker of {item.original} and is another one ({item.why}): unmanaged, it is never touched; remove it "
        "yourself if nobody needs it" for item in world.copies
    ]
    return {
        "fleet": definition.name,
        "live": {"release": live.number, "image": live.image, "revision": live.revision, "since": history.since} if live else None,
        "instances": [to_dict(item) for item in sorted(world.instances, key=lambda item: (item.release, item.slot, item.host))],
        "balancers": {balancer.host: {"servers": [_shown(server) for server in _listed(balancer)]} for balancer in world.balancers},
        "releases": [told(row) for row in history.releases],
        "lease": {"holder": lease["holder"], "until": lease["until"]} if lease else None,
        "findings": list(dict.fromkeys(found)),
    }


def unlisted(fleets: Iterable[str], ledger: str) -> list[str]:
    """Findings about the fleets that a ledger knows and the inventory does not: nobody looks after them."""
    remedy = "put it back into the group fleets; where it is not wanted any more, take it away with phoenix.fleet.retire"
    return [f"fleet {name} is in the ledger {ledger} and no host of this inventory; {remedy}" for name in fleets]


def told(release: Release) -> dict[str, Any]:
    """A release as the status has it."""
    names = ("number", "status", "image", "revision", "by", "started", "finished", "reason")
    return {name: getattr(release, name) for name in names}


def _shown(server: Server) -> dict[str, Any]:
    return {
        "name": server.name, "address": f"{server.address}:{server.port}", "state": server.state, "weight": server.weight,
        "check": server.check, "sessions": server.sessions,
    }


def _listed(balancer: Balancer) -> tuple[Server, ...]:
    return (*balancer.servers, *balancer.strangers)


# Findings

def _heal(definition: Definition) -> str:
    return f"ansible-playbook phoenix.fleet.heal -l {definition.name}"


def _heals(definition: Definition) -> str:
    return f"{_heal(definition)} puts it right"


def _of_ledger(definition: Definition, history: History, lease: Mapping[str, str] | None) -> Iterator[str]:
    entry = history.entry
    if entry is not None and lease is None:
        what = f"the {entry.verb} of r{entry.target}" if entry.target else f"the {entry.verb}"
        yield f"{what} did not end, its last record is {entry.records[-1] if entry.records else 'missing'}; {_heals(definition)}"


def _of_registrations(definition: Definition, history: History) -> Iterator[str]:
    """What left the definition and may be serving, and addresses that wait for a receipt from there."""
    for (host, backend), names in law.elsewhere(definition, history).items():
        where = f"{host} is not in fleet_balancers" if host not in definition.balancers else f"fleet_backend is {definition.backend}"
        yield (
            f"{host} may be serving {', '.join(names)} in backend {backend}, and {where}. {law.remedy_of(definition, host, backend)}"
        )
    yield from dict.fromkeys(law.cooling(history, {item.server for item in history.registrations if item.may_serve}).values())


def _of_balancers(definition: Definition, world: World, history: History) -> Iterator[str]:
    observed = {balancer.host for balancer in world.balancers}
    for host in definition.balancers:
        if host not in observed:
            yield f"{host} was not observed"
    answering = [balancer for balancer in world.balancers if balancer.reachable]
    for balancer in world.balancers:
        if not balancer.reachable:
            yield f"{balancer.host} cannot be observed ({balancer.error or 'it gives no answer'}), and may be serving anything"
    for balancer in answering:
        yield from _of_head(definition, balancer, history)
    instances = {item.name: item for item in world.instances}
    vouched = _vouched(definition, world)
    names = {server.name for balancer in answering for server in balancer.servers}
    for balancer in answering:
        listed = {server.name: server for server in balancer.servers}
        for name in sorted(names - listed.keys()):
            yield f"{balancer.host} has no server {name}, and others do; {_heals(definition)}"
        for server in listed.values():
            seen = bool(world.instances) and server.name not in vouched
            yield from _of_server(definition, balancer, server, instances.get(server.name), seen, history)
        for server in balancer.strangers:
            yield f"{balancer.host} has the server {server.name} ({server.address}:{server.port}), which is not of this fleet"


def _vouched(definition: Definition, world: World) -> dict[str, int]:
    """The servers that every balancer calls up, and of which no listing shows whether they run; with their releases."""
    shown = {item.name for item in world.instances if item.state != "unknown"}
    up = [{server.name for server in balancer.servers if server.up} for balancer in world.balancers if balancer.reachable]
    found = (named(definition.name).fullmatch(name) for name in sorted(set.intersection(*up) - shown if up else ()))
    return {match[0]: int(match[1]) for match in found if match}


def _of_head(definition: Definition, balancer: Balancer, history: History) -> Iterator[str]:
    head = balancer.head
    if head is None:
        if history.live:
            yield f"{balancer.host} has no fragment of this fleet; {_heals(definition)}"
        return
    if head.fleet and head.fleet != definition.name:
        yield f"the backend {definition.backend} on {balancer.host} belongs to fleet {head.fleet}; set fleet_backend to another one"
    elif head.ledger == history.ledger and not head.is_of(history):
        yield f"{balancer.host} was taken over by another copy of this ledger; use that one, or -e fleet_adopt=true"
    elif head.ledger and not head.is_of(history):
        mine = f"not to {history.ledger}" if history.ledger else "and there is none here yet"
        yield f"{balancer.host} belongs to the ledger {head.ledger}, {mine}; to take it over: -e fleet_adopt=true"
    elif head.is_later_than(history):
        known = f"was told of {head.records} records and this ledger has only {history.records}"
        if head.fence > history.fence:
            known = f"knows run {head.fence} and this ledger only {history.fence}"
        yield f"{balancer.host} {known}: it is an old copy; use the newest, or -e fleet_adopt=true"
    elif head.live != history.live and history.entry is None:
        yield f"on {balancer.host} {_release(head.live)} is live, in the ledger {_release(history.live)}; {_heals(definition)}"


def _of_server(
    definition: Definition, balancer: Balancer, server: Server, instance: Instance | None, seen: bool, history: History,
) -> Iterator[str]:
    who = f"server {server.name} on {balancer.host}"
    if instance is None:
        if seen:
            yield f"{who} has no instance; {_heals(definition)}"
        return
    if instance.address and (instance.address, instance.port) != (server.address, server.port):
        places = f"{server.address}:{server.port}, its instance at {instance.address}:{instance.port}"
        yield f"{who} is at {places}; {_heals(definition)}"
    if history.entry is not None:
        return
    if instance.release != history.live:
        if server.weight and server.state == "ready":
            yield f"{who} takes traffic, and r{instance.release} is not live; {_heals(definition)}"
    elif server.state != "ready" or not server.weight:
        how = server.state if server.state != "ready" else "at weight 0"
        yield f"{who} is {how}, and so takes no new requests; {_heals(definition)}"
    elif not server.up:
        yield f"{who} is not up ({server.check or 'no check has passed'}); {_heal(definition)} replaces it if it stays so"


def _of_instances(definition: Definition, world: World, history: History) -> Iterator[str]:
    rows = {row.number: row for row in history.releases}
    answering = [balancer for balancer in world.balancers if balancer.reachable]
    vouched = _vouched(definition, world)
    seen = {item.name for item in world.instances}
    for name in sorted(vouched.keys() - seen):
        yield f"no listing shows {name}, and every balancer calls it up: it stays; see whether it runs, and who has hidden it"
    for name in sorted(standing(world.pools, history) - seen):
        if named(definition.name).fullmatch(name):
            yield f"instance {name} is left alone: {UNSEEN}"
    count = list(vouched.values()).count(history.live)
    for item in world.instances:
        owner = item.marker.get("phoenix.fleet.ledger", history.ledger)
        row = rows.get(item.release)
        if owner != history.ledger and item.name not in history.reserved.values():
            yield f"instance {item.name} on {item.host} belongs to another ledger ({owner or 'none'}); to take it over: -e fleet_adopt=true"
        elif item.note:
            count += item.release == history.live and item.state == "running"
            up = "; every balancer calls it up" if item.name in vouched else ""
            yield f"instance {item.name} on {item.host} is left alone: {item.note}{up}"
        elif item.release == history.live:
            count += 1
            if item.state != "running":
                yield f"instance {item.name} on {item.host} is {item.state}; {_heals(definition)}"
            elif item.health == "unhealthy":
                yield f"instance {item.name} on {item.host} is unhealthy; {_heals(definition)}"
            if history.entry is None and answering and not any(server.name == item.name for each in answering for server in each.servers):
                yield f"instance {item.name} on {item.host} is behind no balancer; {_heals(definition)}"
        elif history.entry is None and (row is None or row.status in ("failed", "retired")):
            why = f"r{item.release} is {row.status}" if row else f"the ledger knows no r{item.release}"
            yield f"instance {item.name} on {item.host} is left over: {why}; {_heal(definition)} takes it away"
        elif history.entry is None and definition.standby == "stopped" and item.state == "running":
            yield f"instance {item.name} on {item.host} runs, and r{item.release} is a standby; {_heal(definition)} takes it away"
    live = rows.get(history.live)
    if live is not None and count < live.size:
        yield f"{count} of {live.size} instances of r{live.number} exist; {_heal(definition)} makes the others"


def _release(number: int) -> str:
    return f"r{number}" if number else "nothing"


# For people

def lines(definition: Definition, told: Mapping[str, Any], now: str) -> list[str]:
    """The status in lines, without the fleet's name; now is the time that ages are counted to (ISO 8601)."""
    result = [_headline(told, now), *([f"on hold: {definition.hold}"] if definition.hold else [])]
    result += _table("instances", [
        (item["name"], item["host"], _place(item), item["state"], item["health"].replace("none", ""), age(item["created"], now))
        for item in told["instances"]
    ])
    result += _table("balancers", [
        (host, server["name"], server["address"], server["state"], str(server["weight"]), server["check"], _connections(server["sessions"]))
        for host, balancer in told["balancers"].items() for server in balancer["servers"]
    ])
    result += _table("releases", [
        (f"r{row['number']}", row["status"], row["image"], row["by"], age(row["finished"] or row["started"], now), row["reason"])
        for row in reversed(told["releases"][-RELEASES:])
    ])
    if told["lease"]:
        result += ["", f"lease     {told['lease']['holder']} is at work"]
    result += _table("findings", [(item,) for item in told["findings"]])
    return result + _commands(definition, told)


def _headline(told: Mapping[str, Any], now: str) -> str:
    live = told["live"]
    if not live:
        return "nothing is live"
    serving = {
        server["name"] for balancer in told["balancers"].values() for server in balancer["servers"]
        if server["weight"] and server["state"] == "ready"
    }
    since = age(live["since"], now)
    parts = [f"r{live['release']} {live['image']} is live" + (f" for {since}" if since else ""), f"{len(serving)} serving"]
    return ", ".join(parts + ([f"revision {live['revision']}"] if live["revision"] else []))


def _commands(definition: Definition, told: Mapping[str, Any]) -> list[str]:
    limit = f"-l {definition.name}"
    result = [""]
    former = [row["number"] for row in told["releases"] if row["status"] == "standby"]
    if former and told["live"]:
        result.append(f"back      {way_back(definition.name, told['live']['release'], former)}")
    return [*result, f"forward   ansible-playbook phoenix.fleet.release {limit} -e release_image=IMAGE"]


def _table(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    made = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip() for row in rows]
    return ["", *(f"{title if not number else '':<10}{line}" for number, line in enumerate(made))]


def _place(item: Mapping[str, Any]) -> str:
    return f"{item['address']}:{item['port']}" if item["address"] else "-"


def _connections(count: int) -> str:
    return f"{count} connection{'' if count == 1 else 's'}"


def age(then: str, now: str) -> str:
    """The time between two moments in its largest unit (`3 h`); empty where one cannot be read."""
    try:
        seconds = int((datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds())
    except (ValueError, TypeError):
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(0, seconds)} s"
