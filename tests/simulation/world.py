# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A world in memory: engines with instances, HAProxies with a fragment and a runtime, and laws that are checked at every instant.

What HAProxy does here is what it was measured to do (facts: haproxy.md): a server that is new to it takes traffic before its first
check, a restart goes back to the fragment, sessions outlive a weight of 0, and a server that is removed cuts those it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Balancer,
    Copy,
    Head,
    Image,
    Instance,
    LastWords,
    Pool,
    Registration,
    Server,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, Permit, leave_started, unconditional

LEDGER = "phoenix.fleet.ledger"


class LawBrokenError(AssertionError):
    """Something happened that must never happen."""


class Crash(BaseException):
    """The controller is killed at this instant. No error handler sees it, as none sees SIGKILL."""


@dataclass
class Box:
    """An instance as it is. well: it answers, if it runs. serial grows with each start and each change by somebody's hand.

    shy: where addresses are found out, nobody has yet heard its own. That takes time, or a start that waits for it. dark: its host has no
    power, and starts it again when it has.
    """

    instance: Instance
    well: bool = True
    serial: int = 0
    shy: bool = False
    dark: bool = False

    @property
    def answers(self) -> bool:
        return self.well and self.instance.state == "running" and not self.dark


@dataclass
class Line:
    """A server in a running HAProxy. checked: HAProxy's own checks have fully run since it came; up is what they say."""

    server: Server
    checked: bool = False
    up: bool = True
    sessions: int = 0

    @property
    def takes_traffic(self) -> bool:
        return self.server.state == "ready" and self.server.weight > 0 and self.up


class HAProxy:
    """One balancer. reachable is seen from the controller: its clients reach it always."""

    def __init__(self, site: Site, host: str, backend: str = "") -> None:
        self.site = site
        self.host = host
        self.backend = backend
        self.reachable = True
        self.head: Head | None = None
        self.fragment: dict[str, Server] = {}
        self.lines: dict[str, Line] = {}
        self.strangers: tuple[Server, ...] = ()

    def observe(self, stamp: Head | None = None, adopt: bool = False) -> Balancer:
        """As `haproxy_backend` state=observed does: the run's fence goes into our own head, and what has no ledger is a stranger's."""
        if not self.reachable:
            return Balancer(self.host, reachable=False, error="no route to host")
        strange = bool(stamp and self.head and not self.head.ledger)
        if stamp and self.head and self.head.fleet in ("", stamp.fleet) and (
            (adopt or not strange or not self.fragment) and self.head.is_known_to(stamp)
        ):
            told = {key: getattr(stamp, key) for key in ("ledger", "fence", "fleet", "records", "lineage")}
            self.head = replace(self.head, **told)
        servers = [replace(line.server, up=line.checked and line.up, sessions=line.sessions) for line in self.lines.values()]
        servers += [replace(server, state="maint", loaded=False) for name, server in self.fragment.items() if name not in self.lines]
        if strange:
            return Balancer(self.host, head=self.head, strangers=(*self.strangers, *servers))
        return Balancer(self.host, head=self.head, servers=tuple(servers), strangers=self.strangers)

    def apply(self, servers: Sequence[Server], head: Head) -> None:
        """Write the fragment, then bring the runtime to it, command by command."""
        if not self.reachable:
            raise UnreachableError(f"balancer {self.host}", "no route to host")
        if self.head and not self.head.is_known_to(head):
            raise RefusedError(f"balancer {self.host}", f"{head} is older than {self.head}")
        wanted = {server.name: server for server in servers}
        if len(wanted) < len(servers) or len({server.id for server in servers}) < len(servers):
            raise LawBrokenError(f"{self.host}: two servers of one name or id: {servers}")
        self.strangers = tuple(server for server in self.strangers if server.name not in wanted)
        self.site.tick(f"{self.host} before the fragment")
        self.fragment, self.head = dict(wanted), head
        self.site.tick(f"{self.host} after the fragment")
        for server in servers:
            line = self.lines.get(server.name)
            if line is None or (line.server.address, line.server.port, line.server.id) != (server.address, server.port, server.id):
                self._new(server)
            elif line.server != server:
                self.site.promoted(line.server, server)
                line.server = server
            else:
                continue
            self.site.tick(f"{self.host} {server.name} weight {server.weight} {server.state}")
        leaving = [name for name in self.lines if name not in wanted]
        for name in leaving:
            if name in self.lines:  # a restart meanwhile has forgotten it
                self.lines[name].server = replace(self.lines[name].server, weight=0, state="drain")
                self.site.tick(f"{self.host} {name} drained")
        if any(name in self.lines and self.lines[name].sessions for name in leaving):
            self.site.pass_time()
        for name in leaving:
            line = self.lines.pop(name, None)
            if line and line.sessions:
                raise LawBrokenError(f"{self.host}: {name} is deregistered with {line.sessions} sessions")
            self.site.tick(f"{self.host} {name} deregistered")

    def receipts(self, waiting: Iterable[Registration]) -> list[dict[str, Any]]:
        """Of those that are neither in the fragment nor in the running backend."""
        if not self.reachable:
            return []
        known = {(item.name, item.address, item.port) for item in (*self.fragment.values(), *(line.server for line in self.lines.values()))}
        gone = [item for item in waiting if (item.server, item.address, item.port) not in known]
        return [{"name": item.server, "address": item.address, "port": item.port, "proof": "idle"} for item in gone]

    def _new(self, server: Server) -> None:
        if not server.address:
            raise LawBrokenError(f"{self.host}: {server.name} has no address")
        if self.site.ids.setdefault(server.id, server.name) != server.name:
            raise LawBrokenError(f"id {server.id} of {server.name} was {self.site.ids[server.id]}'s")
        self.site.promoted(None, server)
        self.lines[server.name] = Line(server)

    def restart(self) -> None:
        """Everything but the fragment is forgotten, connections included (whose loss is the restart's, not ours)."""
        self.lines = {name: Line(server) for name, server in self.fragment.items()}

    def pass_time(self) -> None:
        """Long enough for all checks to be made and for all sessions to end that get no new requests."""
        for line in self.lines.values():
            line.checked, line.up = True, self.site.answers(line.server)
            line.sessions = 3 if line.takes_traffic else 0


@dataclass
class Site:
    """All of it. `tick` is called around every single change: there a run may crash, other things may happen, and laws are checked."""

    balancers: list[HAProxy] = field(default_factory=list)
    pools: tuple[Pool, ...] = ()
    boxes: dict[tuple[str, str], Box] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    bad_images: set[str] = field(default_factory=set)
    rejected: Callable[[], Iterable[int]] = tuple
    need: int = 0
    ticks: int = 0
    events: dict[int, Callable[[], None]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    serial: int = 0
    died: set[str] = field(default_factory=set)
    kills: int = 0
    copies: int = 0
    fleet: str = "web"
    numbers_given: dict[int, str] = field(default_factory=dict)
    must_serve: set[str] = field(default_factory=set)

    def tick(self, what: str) -> None:
        self.ticks += 1
        self.log.append(what)
        self.check_laws(what)
        event = self.events.pop(self.ticks, None)
        if event:
            event()

    # The outside world

    def answers(self, server: Server) -> bool:
        return any(
            box.answers and (box.instance.address, box.instance.port) == (server.address, server.port) for box in self.boxes.values()
        ) or any(server in balancer.strangers for balancer in self.balancers)

    def kill(self, name: str) -> None:
        """An instance dies by itself."""
        for box in self.boxes.values():
            if box.instance.name == name and box.instance.state == "running":
                box.instance = replace(box.instance, state="stopped")
                self.died.add(name)
                self.kills += 1

    def lose(self, host: str, lost: bool = True) -> None:
        """A host loses its power, or has it again."""
        for box in self.boxes.values():
            if box.instance.host == host and box.instance.marker:
                self.kills += lost and box.answers and any(box.instance.name in balancer.lines for balancer in self.balancers)
                box.dark = lost
                (self.died.add if lost else self.died.discard)(box.instance.name)

    def pass_time(self) -> None:
        for balancer in self.balancers:
            balancer.pass_time()
        for box in self.boxes.values():
            box.shy = False

    # The laws

    def check_laws(self, what: str) -> None:
        addresses = [(box.instance.address, box.instance.port) for box in self.boxes.values()]
        if len(set(addresses)) < len(addresses):
            raise LawBrokenError(f"{what}: two instances at one address: {sorted(addresses)}")
        by_address = {(box.instance.address, box.instance.port): box for box in self.boxes.values()}
        for balancer in self.balancers:
            serving = 0
            for name, line in balancer.lines.items():
                if not line.takes_traffic:
                    continue
                line.sessions = 3
                box = by_address.get((line.server.address, line.server.port))
                if box and box.answers and box.instance.name != name:
                    raise LawBrokenError(f"{what}: {balancer.host} sends requests for {name} to {box.instance.name}")
                if box and box.answers:
                    serving += 1
                elif name not in self.died and self.numbers(name):
                    raise LawBrokenError(f"{what}: {balancer.host} sends requests to {name}, which does not answer")
            lost = {name for name in self.must_serve if name not in balancer.lines or not balancer.lines[name].takes_traffic}
            if lost:
                raise LawBrokenError(f"{what}: {balancer.host} gives no more traffic to {sorted(lost)}")
            if serving < self.need - self.kills:
                raise LawBrokenError(f"{what}: only {serving} of {self.need} serve on {balancer.host}")

    def promoted(self, before: Server | None, after: Server) -> None:
        """A server is given traffic."""
        if after.weight and not (before and before.weight) and self.numbers(after.name) in set(self.rejected()):
            raise LawBrokenError(f"{after.name} was rejected, and is given traffic")

    def numbers(self, name: str) -> int:
        prefix, _dash, rest = name.rpartition("-r")
        return int(rest.partition("-")[0]) if prefix == self.fleet else 0

    def may_have(self, name: str, address: str, port: int) -> None:
        """No address is given to anybody while a balancer, reachable or not, knows it as somebody else's."""
        for balancer in self.balancers:
            for server in (*balancer.fragment.values(), *(line.server for line in balancer.lines.values())):
                if (server.address, server.port) == (address, port) and server.name != name:
                    raise LawBrokenError(f"{name} is made at {address}, which {balancer.host} knows as {server.name}")

    def may_go(self, instance: Instance) -> None:
        """Nothing is stopped that any balancer serves, reachable or not, or would serve after a restart."""
        place = (instance.address, instance.port)
        for balancer in self.balancers:
            for server in (*balancer.fragment.values(), *(line.server for line in balancer.lines.values())):
                if (server.address, server.port) == place and server.weight and server.state == "ready":
                    raise LawBrokenError(f"{instance.name} goes while {balancer.host} may serve it")
            for line in balancer.lines.values():
                if (line.server.address, line.server.port) == place and line.sessions:
                    raise LawBrokenError(f"{instance.name} goes with {line.sessions} sessions on {balancer.host}")


class SimulatedProvider:
    """The provider protocol on a Site. It passes the contract of the real ones (tests/unit/test_simulation.py)."""

    def __init__(
        self, site: Site, hosts: Sequence[str] = ("local",), kind: str = "network", room: int = 60, ids: tuple[int, int] = (0, 0),
    ) -> None:
        """ids: the hosts are a cluster, which shares one range of addresses, and where everything has a number (see Pool)."""
        self.site = site
        self.hosts = tuple(hosts)
        self.kind = kind
        self.room = room
        self.ids = ids
        self.silent = False
        self.unasked: set[str] = set()
        """Hosts of a cluster that give no answer: nothing but the numbers of what they have is known."""
        self.omitted: set[str] = set()
        """The names of instances that no listing shows, for whatever reason."""

    # Asking

    def image(self, reference: str) -> Image:
        self._answer()
        if not reference.startswith("shop:"):
            raise RefusedError(f"image {reference}", "no engine and no registry has it", "Check the name, or build it")
        return Image(reference, f"sha256:{reference}")

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> tuple[Pool, ...]:
        self._answer()
        pools = tuple(self._pool(host, f"10.0.{1 if self.ids[1] else number}", port) for number, host in enumerate(self.hosts, 1))
        numbers = tuple(f"#{box.instance.number}" for box in self.site.boxes.values() if box.instance.number)
        return tuple(
            replace(pool, realm="cluster", ids=self.ids, taken=pool.taken + numbers) if self.ids[1] else pool
            for pool in pools if pool.host not in self.unasked
        )

    def _is_shown(self, instance: Instance) -> bool:
        return instance.host not in self.unasked and instance.name not in self.omitted

    def _pool(self, host: str, network: str, port: int) -> Pool:
        here = [box.instance for box in self.site.boxes.values() if box.instance.host == host or self.ids[1]]
        here = [item for item in here if self._is_shown(item)]
        if self.kind == "dynamic":
            return Pool(host, "dynamic", ports=(port, port))
        if self.kind == "published":
            ports = (20000, 20000 + self.room - 1)
            return Pool(host, "published", f"{network}.1", f"{network}.1", ports, tuple(f"{item.address}:{item.port}" for item in here))
        return Pool(host, "network", f"{network}.1", f"{network}.{self.room}", (port, port), tuple(item.address for item in here))

    def observe(self, fleet: str) -> tuple[Instance, ...]:
        self._answer()
        boxes = [box for box in self.site.boxes.values() if box.instance.fleet == fleet and box.instance.host in self.hosts]
        found = (self._as_seen(box) for box in boxes if box.instance.name not in self.omitted)
        return tuple(sorted(found, key=lambda item: (item.release, item.slot, item.host)))

    def _as_seen(self, box: Box) -> Instance:
        """Where addresses are found out, what is stopped or has just been made does not tell its own."""
        if box.instance.host in self.unasked:
            note = f"{box.instance.host} gives no answer"
            return Instance("", box.instance.host, self.site.fleet, 0, 0, "", "", 0, state="unknown", number=box.instance.number, note=note)
        hidden = self.kind == "dynamic" and box.instance.marker and (box.shy or box.instance.state != "running")
        return replace(box.instance, address="") if hidden else box.instance

    def copies(self, fleet: str) -> tuple[Copy, ...]:
        return ()

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        self._answer()
        self.image(blueprint.image.reference)

    def seals(self, instances: Sequence[Instance]) -> dict[str, str]:
        self._answer()
        found = [(item.name, self._found(item)) for item in instances]
        return {name: f"{box.instance.id} {box.serial}" for name, box in found if box and box.instance.state != "running"}

    def remove_images(self, images: Sequence[Image]) -> tuple[str, ...]:
        return ()

    def last_words(self, instances: Sequence[Instance], log: bool = True) -> tuple[LastWords, ...]:
        self._answer()
        found = [(item.name, self._found(item)) for item in instances]
        return tuple(LastWords(name, box.instance.state if box else "vanished", None, 0) for name, box in found)

    # Acting

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> tuple[Instance, ...]:
        def create(item: Instance) -> Instance:
            return self._create(item, blueprint)

        return self._heard(self._each(instances, create))

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> tuple[Instance, ...]:
        return self._heard(self._each(instances, self._start))

    def _heard(self, made: tuple[Instance, ...]) -> tuple[Instance, ...]:
        """A start waits until each has told its address."""
        for item in made:
            self.site.boxes[item.host, item.name].shy = False
        return made

    def stop(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        self._each(instances, self._stop, permit)

    def destroy(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        def destroy(item: Instance) -> Instance:
            box = self._found(item)
            if box:
                leave_started(item, box.instance)
                self._stop(item)
                permit(item)
                leave_started(replace(item, state="stopped"), box.instance)
                self.site.may_go(box.instance)
                del self.site.boxes[item.host, item.name]
            return item

        self._each(instances, destroy, permit)

    def _create(self, planned: Instance, blueprint: Blueprint) -> Instance:
        site = self.site
        existing = site.boxes.get((planned.host, planned.name))
        if existing:
            if existing.instance.marker.get(LEDGER) != blueprint.ledger:
                raise RefusedError(f"instance {planned.name} on {planned.host}", "its name is taken by somebody else's")
            return existing.instance
        if planned.host in self.unasked:
            raise UnreachableError(f"instance {planned.name} on {planned.host}", "its host gives no answer")
        if bool(planned.number) != bool(self.ids[1]):
            raise LawBrokenError(f"{planned.name} has the number {planned.number}")
        if planned.number:
            former = site.numbers_given.setdefault(planned.number, planned.name)
            if former != planned.name:
                raise LawBrokenError(f"{planned.name} has the number {planned.number}, which was {former}'s")
            if any(box.instance.number == planned.number for box in site.boxes.values()):
                raise RefusedError(f"instance {planned.name} on {planned.host}", f"number {planned.number} is already in use")
        site.serial += 1
        address = planned.address or f"10.9.{site.serial // 250}.{site.serial % 250 + 1}"
        # A node of a cluster does not know what the others have; an engine knows all that it has, listed or not.
        shown = [box.instance for box in site.boxes.values() if self._is_shown(box.instance) or not self.ids[1]]
        if any((item.address, item.port) == (address, planned.port) for item in shown):
            raise RefusedError(f"instance {planned.name} on {planned.host}", f"address {address} is already in use")
        site.may_have(planned.name, address, planned.port)
        made = replace(
            planned, id=f"id{site.serial}", state="running", address=address, image=blueprint.image.digest, revision=blueprint.revision,
            created=f"2026-01-01T{site.serial // 3600 % 24:02}:{site.serial // 60 % 60:02}:{site.serial % 60:02}Z",
        )
        marker = {
            "phoenix.fleet.name": made.fleet, "phoenix.fleet.release": str(made.release), "phoenix.fleet.slot": str(made.slot),
            "phoenix.fleet.image": made.image, "phoenix.fleet.revision": made.revision, "phoenix.fleet.created": made.created,
            LEDGER: blueprint.ledger, "phoenix.fleet.hash": blueprint.hash,
        }
        if made.number:
            marker["phoenix.fleet.vmid"] = str(made.number)
        made = replace(made, marker=marker)
        site.boxes[made.host, made.name] = Box(made, well=made.image not in site.bad_images, shy=True)
        return made

    def late(self, planned: Instance, blueprint: Blueprint) -> None:
        """A killed run's worker makes what it was told to, long after. Only the engine's own rules hold it back: names and addresses."""
        with suppress(RefusedError):
            self._create(planned, blueprint)

    def _start(self, item: Instance) -> Instance:
        box = self._found(item)
        if box is None:
            raise RefusedError(f"instance {item.name} on {item.host}", "it has vanished")
        if box.instance.state != "running":
            box.instance = replace(box.instance, state="running")
            box.serial += 1
            box.shy = True
            self.site.died.discard(item.name)
        return box.instance

    def _stop(self, item: Instance) -> Instance:
        box = self._found(item)
        if box is None:
            return item
        if box.instance.state == "running":
            self.site.may_go(box.instance)
        box.instance = replace(box.instance, state="stopped")
        return box.instance

    def _found(self, item: Instance) -> Box | None:
        """By id, with the marker that the caller says it has: names, addresses and ids get reused. None where it vanished."""
        box = self.site.boxes.get((item.host, item.name))
        if box is not None and box.instance.host in self.unasked:
            raise UnreachableError(f"instance {item.name} on {item.host}", "its host gives no answer")
        if box is None or box.instance.id != item.id:
            return None
        actual, said = box.instance.marker, item.marker
        if actual.get(LEDGER) != said.get(LEDGER) or actual.get("phoenix.fleet.release") != str(item.release):
            raise RefusedError(f"instance {item.name} on {item.host}", "its marker says that it is somebody else's")
        return box

    def _each(
        self, instances: Sequence[Instance], act: Callable[[Instance], Instance], permit: Permit = unconditional,
    ) -> tuple[Instance, ...]:
        """One by one, with an instant before and after each; all are tried before the first error is raised."""
        self._answer()
        done, errors = [], []
        for item in instances:
            self.site.tick(f"before {act.__name__.strip('_<>')} {item.name}")
            try:
                permit(item)
                done.append(act(item))
            except RefusedError as error:
                errors.append(error)
            self.site.tick(f"after {act.__name__.strip('_<>')} {item.name}")
        if errors:
            raise RefusedError("; ".join(str(error) for error in errors))
        return tuple(done)

    def _answer(self) -> None:
        if self.silent:
            raise UnreachableError("the simulated engines", "no answer", "Let them speak again")


def picture(site: Site) -> Mapping[str, Any]:
    """All that a run could have changed, to compare."""
    seen: dict[str, Any] = {f"{host} {name}": box.instance for (host, name), box in sorted(site.boxes.items())}
    for item in site.balancers:
        seen[item.host] = dict(item.fragment), {name: line.server for name, line in item.lines.items()}, item.strangers
    return seen
