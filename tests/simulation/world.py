# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A world in memory: engines with instances, HAProxies with a fragment and a runtime, and laws that are checked at every instant.

What HAProxy does here is what it was measured to do (facts: haproxy.md): a server that is new to it takes traffic before its first
check, a restart goes back to the fragment, sessions outlive a weight of 0, and a server that is removed cuts those it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Balancer, Head, Image, Instance, LastWords, Pool, Server
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint


class LawBrokenError(AssertionError):
    """Something happened that must never happen."""


class Crash(BaseException):
    """The controller is killed at this instant. No error handler sees it, as none sees SIGKILL."""


@dataclass
class Box:
    """An instance as it is. well: it answers. killed: by the outside world, not by us."""

    instance: Instance
    well: bool = True
    killed: bool = False

    @property
    def answers(self) -> bool:
        return self.well and self.instance.state == "running"


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

    def __init__(self, site: Site, host: str) -> None:
        self.site = site
        self.host = host
        self.reachable = True
        self.head: Head | None = None
        self.fragment: dict[str, Server] = {}
        self.lines: dict[str, Line] = {}
        self.strangers: tuple[Server, ...] = ()

    def observe(self, stamp: Head | None = None, adopt: bool = False) -> Balancer:
        """As `haproxy_backend` state=observed does: the run's fence goes into our own head."""
        if not self.reachable:
            return Balancer(self.host, reachable=False, error="no route to host")
        if stamp and self.head and (adopt or (self.head.ledger == stamp.ledger and self.head.fence <= stamp.fence)):
            self.head = replace(self.head, ledger=stamp.ledger, fence=stamp.fence)
        servers = [replace(line.server, up=line.checked and line.up, sessions=line.sessions) for line in self.lines.values()]
        servers += [replace(server, state="maint") for name, server in self.fragment.items() if name not in self.lines]
        return Balancer(self.host, head=self.head, servers=tuple(servers), strangers=self.strangers)

    def apply(self, servers: Sequence[Server], head: Head) -> None:
        """Write the fragment, then bring the runtime to it, command by command."""
        if not self.reachable:
            raise UnreachableError(f"balancer {self.host}", "no route to host")
        if self.head and self.head.fence > head.fence:
            raise RefusedError(f"balancer {self.host}", f"fence {head.fence} is older than {self.head.fence}")
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
        for name in [name for name in self.lines if name not in wanted]:
            if self.lines[name].sessions:
                raise LawBrokenError(f"{self.host}: {name} is deregistered with {self.lines[name].sessions} sessions")
            del self.lines[name]
            self.site.tick(f"{self.host} {name} deregistered")

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
    kills: int = 0
    fleet: str = "web"

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
                box.instance, box.killed = replace(box.instance, state="stopped"), True
                self.kills += 1

    def pass_time(self) -> None:
        for balancer in self.balancers:
            balancer.pass_time()

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
                elif not (box and box.killed) and self.numbers(name):
                    raise LawBrokenError(f"{what}: {balancer.host} sends requests to {name}, which does not answer")
            if serving < self.need - self.kills:
                raise LawBrokenError(f"{what}: only {serving} of {self.need} serve on {balancer.host}")

    def promoted(self, before: Server | None, after: Server) -> None:
        """A server is given traffic."""
        if after.weight and not (before and before.weight) and self.numbers(after.name) in set(self.rejected()):
            raise LawBrokenError(f"{after.name} was rejected, and is given traffic")

    def numbers(self, name: str) -> int:
        prefix, _dash, rest = name.rpartition("-r")
        return int(rest.partition("-")[0]) if prefix == self.fleet else 0

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
    """The provider protocol on a Site."""

    def __init__(self, site: Site, hosts: Sequence[str] = ("local",), kind: str = "network", room: int = 60) -> None:
        self.site = site
        self.hosts = tuple(hosts)
        self.kind = kind
        self.room = room

    def image(self, reference: str) -> Image:
        if reference.startswith("missing"):
            raise RefusedError(f"image {reference}", "no engine and no registry has it", "Check the name, or build it")
        return Image(reference, reference if "@sha256:" in reference else f"sha256:{reference}")

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> tuple[Pool, ...]:
        made = []
        for number, host in enumerate(self.hosts, 1):
            taken = {item.address if self.kind == "network" else f"{item.address}:{item.port}" for item in self._on(host)}
            first, last, ports = f"10.0.{number}.1", f"10.0.{number}.{self.room}", (0, 0)
            if self.kind == "published":
                last, ports = first, (20000, 20000 + self.room - 1)
            made.append(Pool(host, self.kind, *(("", "") if self.kind == "dynamic" else (first, last)), ports, tuple(sorted(taken - {""}))))
        return tuple(made)

    def _on(self, host: str) -> list[Instance]:
        return [box.instance for box in self.site.boxes.values() if box.instance.host == host]

    def observe(self, fleet: str) -> tuple[Instance, ...]:
        found = (box.instance for box in self.site.boxes.values() if box.instance.fleet == fleet)
        return tuple(sorted(found, key=lambda item: (item.release, item.slot, item.host)))

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        if blueprint.image.digest.startswith("sha256:missing"):
            raise RefusedError(f"image {blueprint.image.reference}", "no engine has it", "Build or load it")

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> tuple[Instance, ...]:
        return tuple(self.create_one(item, blueprint) for item in instances)

    def create_one(self, planned: Instance, blueprint: Blueprint) -> Instance:
        site = self.site
        site.tick(f"before {planned.name} is made")
        existing = site.boxes.get((planned.host, planned.name))
        if existing:
            if existing.instance.marker.get("phoenix.fleet.ledger") != blueprint.ledger:
                raise RefusedError(f"instance {planned.name} on {planned.host}", "its name is taken by somebody else's")
            return existing.instance
        site.serial += 1
        address = planned.address or f"10.9.{site.serial // 250}.{site.serial % 250 + 1}"
        for balancer in site.balancers:
            for server in (*balancer.fragment.values(), *(line.server for line in balancer.lines.values())):
                if (server.address, server.port) == (address, planned.port) and server.name != planned.name:
                    raise LawBrokenError(f"{planned.name} is made at {address}, which {balancer.host} knows as {server.name}")
        marker = {
            "phoenix.fleet.name": planned.fleet, "phoenix.fleet.release": str(planned.release), "phoenix.fleet.slot": str(planned.slot),
            "phoenix.fleet.image": blueprint.image.digest, "phoenix.fleet.revision": blueprint.revision,
            "phoenix.fleet.created": f"2026-01-01T00:{site.serial // 60 % 60:02}:{site.serial % 60:02}Z",
            "phoenix.fleet.ledger": blueprint.ledger, "phoenix.fleet.hash": blueprint.hash,
        }
        made = replace(
            planned, id=f"id{site.serial}", state="running", address=address, image=blueprint.image.digest, revision=blueprint.revision,
            marker=marker, created=marker["phoenix.fleet.created"],
        )
        site.boxes[made.host, made.name] = Box(made, well=blueprint.image.digest not in site.bad_images)
        site.tick(f"{planned.name} is made")
        return made

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> tuple[Instance, ...]:
        return tuple(self._to(item, "running") for item in instances)

    def stop(self, instances: Sequence[Instance], timeout: int) -> None:
        for item in instances:
            self._to(item, "stopped")

    def _to(self, item: Instance, state: str) -> Instance:
        self.site.tick(f"before {item.name} is {state}")
        box = self._mine(item)
        if box is None:
            if state == "running":
                raise RefusedError(f"instance {item.name} on {item.host}", "it has vanished")
            return item
        if state == "stopped" and box.instance.state == "running":
            self.site.may_go(box.instance)
        box.instance = replace(box.instance, state=state)
        self.site.tick(f"{item.name} is {state}")
        return box.instance

    def destroy(self, instances: Sequence[Instance], timeout: int) -> None:
        for item in instances:
            self.site.tick(f"before {item.name} is destroyed")
            box = self._mine(item)
            if box:
                self.site.may_go(box.instance)
                del self.site.boxes[item.host, item.name]
                self.site.tick(f"{item.name} is destroyed")

    def last_words(self, instances: Sequence[Instance]) -> tuple[LastWords, ...]:
        boxes = [(item, self._mine(item)) for item in instances]
        return tuple(LastWords(item.name, box.instance.state if box else "vanished", None if box is None else 0, 0) for item, box in boxes)

    def _mine(self, item: Instance) -> Box | None:
        """By id, with our marker: names and addresses get reused."""
        box = self.site.boxes.get((item.host, item.name))
        if box is None or (item.id and box.instance.id != item.id):
            return None
        if box.instance.marker.get("phoenix.fleet.name") != item.fleet:
            raise LawBrokenError(f"{item.name} on {item.host} is a stranger's")
        return box


def picture(site: Site) -> Mapping[str, Any]:
    """All that a run could have changed, to compare."""
    return {
        "boxes": {key: box.instance for key, box in sorted(site.boxes.items())},
        "balancers": {item.host: (dict(item.fragment), {name: line.server for name, line in item.lines.items()}, item.strangers) for item in site.balancers},
    }
