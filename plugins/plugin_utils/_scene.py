# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The world as the planner looks at it: indexed once, in time linear in its size. It says what is, never what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..module_utils._model import Balancer, Copy, Definition, History, Instance, Pool, Release, Server, Step, World
from ._placement import reservations, standing
from ._registrations import elsewhere, from_before

LIVE = 100
"""The weight of a live server. HAProxy takes 0 to 256; a canary's share needs room above and below."""

UNSEEN = "its number is taken, and nothing else can be observed of it; bring its host back"


def without_copies(world: World, history: History) -> World:
    """The world in which those are no instances, but copies, of which only the ledger knows it: their markers, of an earlier version,
    do not name their numbers, and it has issued theirs to nobody of that name.
    """
    old = {
        item.id: item for item in world.instances
        if item.id and item.number and "phoenix.fleet.vmid" not in item.marker and item.marker.get("phoenix.fleet.ledger") == history.ledger
    }
    issued = {(name, key.rpartition(" #")[2]) for key, name in history.reserved.items()} if old else set()
    copies = {key: item for key, item in old.items() if (item.name, str(item.number)) not in issued}
    told = [Copy(f"guest {item.number}", item.host, item.name, "the ledger knows it under another VMID") for item in copies.values()]
    kept = tuple(item for item in world.instances if item.id not in copies)
    return replace(world, instances=kept, copies=(*world.copies, *told)) if copies else world


@dataclass
class Sight:
    """What all answering balancers together say of one server: on how many it is what. listed on none: it is in a fragment only."""

    server: Server
    listed: int = 0
    up: int = 0
    weighted: int = 0  # takes traffic: ready, with a weight
    settled: int = 0  # exactly as a live server should be
    aside: int = 0  # not in state ready
    sessions: int = 0
    weight: int = 0


class Scene:
    """A world seen by one ledger's planner.

    ours are the fleet's instances that this ledger may touch, foreign those that carry another ledger's marker. Servers that bear
    no name of this fleet's are release 0; strangers are those of them that were never ours to begin with. unconfirmed are the servers of
    which some balancer was told and has given no receipt, unsettled also those to whose address HAProxy may still send requests.
    standing are the names of all that exist by their number, unseen those of them of which no more is known, and what to do about that.

    A server that every answering balancer calls up stands for its instance where no listing shows that: then `instances_of` has it as
    running, and `vouched` its name. Silence proves nothing; what is observed to be stopped is stopped.
    """

    def __init__(self, definition: Definition, world: World, history: History) -> None:
        self.definition = definition
        self.world = world = identified(definition, without_copies(world, history), history)
        self.history = history
        self.rows: dict[int, Release] = {row.number: row for row in history.releases}
        self.pools: dict[str, Pool] = {pool.host: pool for pool in world.pools}
        self.answering: tuple[Balancer, ...] = tuple(item for item in world.balancers if item.reachable)
        self.silent: dict[str, str] = {
            item.host: item.error.rstrip(".") or "it gives no answer" for item in world.balancers if not item.reachable
        }
        observed = {item.host for item in world.balancers}
        self.silent.update({host: "it was not observed" for host in definition.balancers if host not in observed})
        # What the definition names no more cannot be asked, and may be serving.
        self.elsewhere = elsewhere(definition, history)
        for host, backend in self.elsewhere:
            self.silent.setdefault(host if backend == definition.backend else f"{host} (backend {backend})", "it is not in the definition")
        self._name = named(definition.name)
        self._numbers: dict[str, tuple[int, int]] = {}
        self.standing = {name for name in standing(world.pools, history) if self.numbers(name)[0]}
        self._index_servers()
        self._index_instances()
        unknown = from_before(definition, world, history, self.ours)
        self.unconfirmed: set[str] = {item.server for item in (*history.registrations, *unknown) if item.balancer and not item.receipt}
        self.unsettled: set[str] = {item.server for item in (*history.registrations, *unknown) if not item.is_settled}

    def _index_servers(self) -> None:
        self.sights: dict[str, Sight] = {}
        self.servers_of: dict[int, list[str]] = {}
        self.strangers: list[tuple[str, Server]] = []
        for balancer in self.answering:
            self.strangers += [(balancer.host, server) for server in balancer.strangers]
            for server in (*balancer.servers, *(balancer.strangers if self.definition.adopt else ())):
                self._see(server)

    def _see(self, server: Server) -> None:
        sight = self.sights.get(server.name)
        if sight is None:
            sight = self.sights[server.name] = Sight(server)
            self.servers_of.setdefault(self.numbers(server.name)[0], []).append(server.name)
        if not server.loaded:
            return
        ready = server.state == "ready"
        sight.listed += 1
        sight.up += server.up
        sight.weighted += ready and server.weight > 0
        sight.settled += ready and server.weight == LIVE
        sight.aside += not ready
        sight.sessions += server.sessions
        sight.weight = max(sight.weight, server.weight)

    def _index_instances(self) -> None:
        self.ours: list[Instance] = []
        self.foreign: list[Instance] = []
        self.instances_of: dict[int, list[Instance]] = {}
        for item in sorted(self.world.instances, key=lambda item: (item.release, item.slot, item.host, item.id)):
            if item.fleet != self.definition.name:
                continue
            if not self.is_ours(item):
                self.foreign.append(item)
                if not self.definition.adopt:
                    continue
            if item.state == "unknown" and item.name in self.sights:
                server = self.sights[item.name].server
                item = replace(item, address=server.address, port=server.port)
            self.ours.append(item)
            self.instances_of.setdefault(item.release, []).append(item)
        shown = {item.name for item in self.world.instances if item.fleet == self.definition.name and item.state != "unknown"}
        lost = {item.name: item for item in self.ours if item.state == "unknown"}
        unseen = sorted((self.standing | lost.keys()) - shown)
        self.unseen = {name: lost[name].note if name in lost else UNSEEN for name in unseen}
        self.vouched = [name for name in self.sights if self.numbers(name)[0] and name not in shown and self.is_up(name)]
        for name in self.vouched:
            self._vouch(name, lost.get(name))
        self.running = {item.name for items in self.instances_of.values() for item in items if runs(item)}

    def _vouch(self, name: str, lost: Instance | None) -> None:
        server, (release, slot) = self.sights[name].server, self.numbers(name)
        item = lost or Instance(name, "", self.definition.name, release, slot, "", server.address, server.port)
        item = replace(item, state="running", note="")
        others = [other for other in self.instances_of.get(release, ()) if other.name != name]
        self.instances_of[release] = sorted([*others, item], key=lambda item: (item.slot, item.host, item.id))

    def is_ours(self, instance: Instance) -> bool:
        """Its marker names our ledger, or our ledger has adopted it: then it holds a reservation for just this name at just this place."""
        if self.history.ledger and instance.marker.get("phoenix.fleet.ledger") == self.history.ledger:
            return True
        keys = reservations(instance, self.pools)
        return bool(keys) and all(self.history.reserved.get(key) == instance.name for key in keys)

    def numbers(self, name: str) -> tuple[int, int]:
        """Release and slot in a server's or instance's name; (0, 0) where it is not one of this fleet's."""
        known = self._numbers.get(name)
        if known is None:
            found = self._name.fullmatch(name)
            known = self._numbers[name] = (int(found[1]), int(found[2])) if found else (0, 0)
        return known

    # Questions about one server

    def everywhere(self, count: int) -> bool:
        return count == len(self.answering)

    def is_listed(self, name: str) -> bool:
        """Every answering balancer has it."""
        return self.everywhere(self.sights[name].listed if name in self.sights else 0)

    def is_up(self, name: str) -> bool:
        """Every answering balancer has it, and calls it up."""
        return self.everywhere(self.sights[name].up if name in self.sights else 0)

    def is_settled(self, name: str) -> bool:
        """Every answering balancer has it as a live server should be."""
        return self.everywhere(self.sights[name].settled if name in self.sights else 0)

    def serves(self, name: str) -> bool:
        """Some answering balancer gives it traffic."""
        return name in self.sights and self.sights[name].weighted > 0

    # Questions about a release

    def up_count(self, release: int) -> int:
        """How many of its instances run, or are vouched for, and are up on the answering balancer that sees the fewest.

        Where no balancer lists any of them, the running ones count: nobody says that they are not well.
        """
        if release not in self.servers_of or not self.answering:
            return sum(runs(item) for item in self.instances_of.get(release, ()))
        counts = dict.fromkeys((item.host for item in self.answering), 0)
        names = {name for name in self.servers_of[release] if not release or name in self.running}
        for balancer in self.answering:
            counts[balancer.host] = sum(server.up for server in (*balancer.servers, *balancer.strangers) if server.name in names)
        return min(counts.values())

    def is_weighted(self, release: int) -> bool:
        """Some answering balancer gives traffic to one of its servers."""
        return any(self.sights[name].weighted for name in self.servers_of.get(release, ()))

    def numbers_seen(self) -> Iterator[int]:
        """Every release number that something bears."""
        yield from self.instances_of
        yield from self.servers_of
        yield from self.rows
        for balancer in self.answering:
            if balancer.head:
                yield balancer.head.next - 1
        for item in self.foreign:
            yield item.release


def carried_out(world: World, wave: Iterable[Step], ledger: str) -> World:
    """The world as it will be when a wave of this ledger's has gone well, so that the next one can be planned from there."""
    steps = {step.kind: step for step in wave}
    made = {item.name: item for kind in ("create", "start") if kind in steps for item in steps[kind].instances}
    gone, idle = ({(item.name, item.host) for item in steps[kind].instances} if kind in steps else set() for kind in ("destroy", "stop"))
    marker = {"phoenix.fleet.ledger": ledger}
    seen = [item for item in world.instances if item.name not in made and (item.name, item.host) not in gone]
    instances = [replace(item, state="stopped") if (item.name, item.host) in idle else item for item in seen]
    instances += [replace(item, state="running", marker=item.marker or marker) for item in made.values()]
    listing = next((steps[kind].servers for kind in ("drain", "switch", "stage") if kind in steps), None)
    proven = {server.name for server in steps["gate"].servers} if "gate" in steps else set()

    def settled(balancer: Balancer) -> Balancer:
        if listing is None or not balancer.reachable:
            return balancer
        up = proven | {server.name for server in balancer.servers if server.up}
        return replace(balancer, servers=tuple(replace(server, up=server.name in up) for server in listing), strangers=())

    return replace(world, instances=tuple(instances), balancers=tuple(map(settled, world.balancers)))


def runs(instance: Instance) -> bool:
    return instance.state == "running" and instance.health != "unhealthy"


def identified(definition: Definition, world: World, history: History) -> World:
    """The world, in which what no host shows any more is who the ledger knows by its number; what it does not know so is left out.

    Its marker cannot be read, nor perhaps its name: nobody else has its number, since none is issued twice.
    """
    known = {key.partition(" #")[2]: name for key, name in history.reserved.items() if " #" in key}
    names = named(definition.name)

    def found(item: Instance) -> Iterator[Instance]:
        if item.state != "unknown":
            yield item
        elif match := names.fullmatch(known.get(str(item.number), "")):
            yield replace(
                item, name=match[0], release=int(match[1]), slot=int(match[2]), marker={"phoenix.fleet.ledger": history.ledger},
            )

    return replace(world, instances=tuple(now for item in world.instances for now in found(item)))


def named(fleet: str) -> re.Pattern[str]:
    """What the names of a fleet's instances are like, with release and slot."""
    return re.compile(rf"{re.escape(fleet)}-r([1-9][0-9]*)-([1-9][0-9]*)")
