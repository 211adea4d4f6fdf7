# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The words of the project as frozen dataclasses, and nothing else.

Ansible hands data from task to task as plain dictionaries: `to_dict` and `from_dict` are the two ways across.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, Mapping, Optional, Tuple, Type, TypeVar, Union

T = TypeVar("T")


@dataclass(frozen=True)
class Image:
    """A golden image: what the user wrote, and the name that cannot change (a digest, or a local image's id)."""

    reference: str
    digest: str


@dataclass(frozen=True)
class Instance:
    """One container or VM: planned (id is empty) or observed.

    state: planned, created, running, restarting, stopped, unknown (its host gives no answer). health: healthy, unhealthy, starting, none.
    id is the engine's own, never reused; marker is what the instance itself carries (phoenix.fleet.*). number is the one that the
    ledger issued to it where its pool has ids (a VMID), 0 elsewhere. note says why nothing can be done to it, and what an operator has to
    do about that: while there is one, the instance is left alone, whether it serves or not. Of one whose state is unknown the name may be
    lacking: the ledger knows it by its number.
    """

    name: str
    host: str
    fleet: str
    release: int
    slot: int
    image: str
    address: str
    port: int
    revision: str = ""
    id: str = ""
    state: str = "planned"
    health: str = "none"
    created: str = ""
    marker: Mapping[str, str] = field(default_factory=dict, hash=False)
    number: int = 0
    note: str = ""


@dataclass(frozen=True)
class Copy:
    """What bears the marker of an instance and is another one: a clone made by hand, or a backup restored beside it. It is unmanaged, so
    told and never touched. name is its own, in words; original is the instance's; why says by what it is known.
    """

    name: str
    host: str
    original: str
    why: str


@dataclass(frozen=True)
class LastWords:
    """What an instance left behind: its state, exit code, restarts, last log lines and the engine's own description."""

    name: str
    state: str
    exit_code: Optional[int]
    restarts: int
    log: Tuple[str, ...] = ()
    inspect: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Server:
    """A line of a backend, desired or observed.

    state: ready, drain, maint. weight: 0 to 256. id: HAProxy's numeric id, the same on every balancer.
    The rest is observed only: up means that HAProxy's own checks have fully passed (facts: rise+fall-1 of health), steady is false
    between two verdicts, sessions counts current and queued ones in every HAProxy process, and loaded is false for a line of the
    fragment that HAProxy has forgotten or was not told of yet.
    """

    name: str
    address: str
    port: int
    id: int
    weight: int = 0
    state: str = "ready"
    up: bool = False
    steady: bool = True
    check: str = ""
    sessions: int = 0
    loaded: bool = True


@dataclass(frozen=True)
class Head:
    """The comment at the top of a fragment: who may write it (ledger, fence), and what it would take to go on without a ledger.

    records is how many of the fleet the ledger had when this was written. Every run raises the fence, one that is refused too, but
    writes no record then: so an old copy of the ledger never catches up. lineage tells two copies of one ledger apart: it gets a new last
    part whenever a copy takes the fleet over (fleet_adopt), and its former parts are the lines that this copy goes on from.
    """

    ledger: str = ""
    fence: int = 0
    fleet: str = ""
    live: int = 0
    next: int = 1
    records: int = 0
    lineage: str = ""

    @property
    def line(self) -> str:
        """Whose this is: the newest part of the lineage, of a fleet that was never taken over its ledger."""
        return (self.lineage or self.ledger).rpartition("/")[2]

    def is_known_to(self, known: Union[Head, History]) -> bool:
        """Whether `known` has written this, or what it goes on from has, and whether it says nothing later."""
        return not self.ledger or (self.is_of(known) and not self.is_later_than(known))

    def is_of(self, known: Union[Head, History]) -> bool:
        return self.line in (known.ledger, *known.lineage.split("/"))

    def is_later_than(self, known: Union[Head, History]) -> bool:
        """Whether a run has written this that `known`, a ledger's history or another head, does not know of."""
        return self.fence > known.fence or self.records > known.records


@dataclass(frozen=True)
class Balancer:
    """One HAProxy as observed. head is None where no fragment of ours exists. strangers are servers that are not ours.

    requests and failures are the backend's counters (req_tot and hrsp_5xx; sessions and econ in tcp mode) since the process pid started.
    """

    host: str
    reachable: bool = True
    version: str = ""
    head: Optional[Head] = None
    servers: Tuple[Server, ...] = ()
    strangers: Tuple[Server, ...] = ()
    error: str = ""
    pid: int = 0
    requests: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Pool:
    """Where the instances of one engine or node may be reached: every address from first to last, on every port.

    kind network: an instance has an address of its own and the service's port; kind published: the host's address and
    a port of its own; kind dynamic: the provider finds the address out after the start.
    taken are the keys (see `key`) that are in use already, by whomever.
    realm names what several hosts share, such as a cluster: an address or number is then unique within it, and not only on its host.
    ids are the first and the last number that instances may get (0: they need none); the key of a number is `#NUMBER`.
    """

    host: str
    kind: str
    first: str = ""
    last: str = ""
    ports: Tuple[int, int] = (0, 0)
    taken: Tuple[str, ...] = ()
    realm: str = ""
    ids: Tuple[int, int] = (0, 0)

    def key(self, address: str, port: int) -> str:
        """What must be unique in this pool: the address alone, or address and port where instances share the host's address."""
        return f"{address}:{port}" if self.kind == "published" else address


@dataclass(frozen=True)
class Definition:
    """A fleet as its owner wrote it: every value validated, converted and complete."""

    name: str
    image: str
    port: int
    provider: str = "docker"
    size: int = 2
    checks: Tuple[Mapping[str, Any], ...] = ({"tcp": {}},)
    check_timeout: int = 60
    check_from: str = "controller"
    balancers: Tuple[str, ...] = ()
    backend: str = ""
    haproxy: Mapping[str, Any] = field(default_factory=dict, hash=False)
    strategy: str = "blue_green"
    drain_timeout: int = 30
    stop_timeout: int = 10
    keep: int = 1
    keep_images: Optional[int] = None
    standby: str = "stopped"
    hold: str = ""
    state_dir: str = ""
    ledger: str = ""
    takeover: bool = False
    adopt: bool = False
    lost_balancers: Tuple[str, ...] = ()
    revision: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Release:
    """One generation of a fleet as the ledger knows it.

    status: open (being made), live, standby, failed, retired. hash is that of the definition's part that shapes an
    instance; definition is that part itself, without secrets. Times are ISO 8601 in UTC.
    committed grows with every commit of the fleet (0: it was never live), so it tells the order where clocks cannot.
    seals are those of its stopped instances, by name (see Provider.seals).
    """

    number: int
    status: str
    image: str
    digest: str
    hash: str
    size: int
    revision: str = ""
    definition: Mapping[str, Any] = field(default_factory=dict, hash=False)
    by: str = ""
    started: str = ""
    finished: str = ""
    reason: str = ""
    committed: int = 0
    seals: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Entry:
    """One undertaking in the ledger. source and target are release numbers (0: none); records are in the order written."""

    number: int
    verb: str
    source: int
    target: int
    records: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """A balancer's confirmation that a server is out of one of its backends: when (ISO 8601), under which fence, and how it was proved.

    proof: `idle` (no HAProxy process holds a connection to it), `deadline` (the drain timed out: `cut` connections were cut, `left` could
    not be), `operator` (by the word of `by`: that balancer is gone for good). processes are those of HAProxy (`PID:START`) that lived on
    and may still send requests to the address: it cools down until they have ended.
    """

    fence: int
    at: str = ""
    proof: str = "idle"
    cut: int = 0
    left: int = 0
    processes: Tuple[str, ...] = ()
    by: str = ""


@dataclass(frozen=True)
class Registration:
    """What one balancer was told of one server in one of its backends, and its receipt since it was last told.

    weight is the highest that it was told: 0 means that the server never had traffic there. turn counts how often it was told, so that a
    receipt for an earlier time is known. Without a balancer it says only that the ledger knows of everything that was told of the server.
    """

    server: str
    balancer: str
    backend: str
    address: str = ""
    port: int = 0
    weight: int = 0
    turn: int = 1
    receipt: Optional[Receipt] = None

    @property
    def may_serve(self) -> bool:
        """The balancer may be sending requests to the server."""
        return bool(self.balancer) and self.weight > 0 and self.receipt is None

    @property
    def is_settled(self) -> bool:
        """Nobody there sends anything to its address any more."""
        return not self.balancer or (self.receipt is not None and not self.receipt.processes)


@dataclass(frozen=True)
class History:
    """What the ledger knows of one fleet. entry is the undertaking that is not done yet, if there is one.

    reserved maps the pool keys (`HOST KEY`) that instances of this ledger, of any fleet, hold to their instances' names.
    servers maps instance names of this fleet to the ids that HAProxy knows them by. since is when live became so (ISO 8601).
    issued maps bands of numbers (`HOST FIRST`, see Pool.ids) to the lowest number that no fleet of this ledger ever got from it.
    records is how many were written of this fleet, lineage what its heads say (see Head). registrations are those of its servers;
    released maps addresses, with and without port, that instances of this ledger had, to when the last of them was confirmed to be out
    (ISO 8601).
    """

    ledger: str
    fence: int = 0
    live: int = 0
    next_release: int = 1
    next_server: int = 1
    releases: Tuple[Release, ...] = ()
    entry: Optional[Entry] = None
    servers: Mapping[str, int] = field(default_factory=dict, hash=False)
    reserved: Mapping[str, str] = field(default_factory=dict, hash=False)
    since: str = ""
    issued: Mapping[str, int] = field(default_factory=dict, hash=False)
    records: int = 0
    registrations: Tuple[Registration, ...] = ()
    released: Mapping[str, str] = field(default_factory=dict, hash=False)
    lineage: str = ""


@dataclass(frozen=True)
class World:
    """What is observed now. Observed, never remembered."""

    instances: Tuple[Instance, ...] = ()
    balancers: Tuple[Balancer, ...] = ()
    pools: Tuple[Pool, ...] = ()
    copies: Tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Goal:
    """What a run is for. verb: release, rollback, scale, heal, retire, abort. Only the fields of the verb matter.

    force: release the same anew; abort what was committed, however well it looks. share: how many percent of the fleet a heal
    replaces at once.
    """

    verb: str
    image: Optional[Image] = None
    hash: str = ""
    force: bool = False
    size: int = 0
    to: int = 0
    reason: str = ""
    share: int = 20


@dataclass(frozen=True)
class Step:
    """One kind of act on a whole set. Which fields matter follows from the kind: see `KINDS` in the planner."""

    kind: str
    instances: Tuple[Instance, ...] = ()
    servers: Tuple[Server, ...] = ()
    release: int = 0


@dataclass(frozen=True)
class Plan:
    """Waves of steps from the world to the goal, with the reasons in words. No waves: the goal holds already.

    source and target are release numbers (0: none); release is the target as it will be recorded; outcome is the target's status
    once the plan is carried out (live, failed, retired). again: this plan only puts a former run right, and the goal needs
    another plan after it. servers and reserved are all that the fleet holds while the plan is carried out, issued the bands that it
    takes numbers from (see History).
    silent are the balancers that gave no answer, which the steps leave out. closes: the entry is done when the plan is carried
    out; otherwise (degraded: a silent balancer may still serve what ought to go) it stays open, and the run must end as failed.
    """

    verb: str
    source: int
    target: int
    outcome: str = "live"
    waves: Tuple[Tuple[Step, ...], ...] = ()
    release: Optional[Release] = None
    reasons: Tuple[str, ...] = ()
    again: bool = False
    servers: Mapping[str, int] = field(default_factory=dict, hash=False)
    reserved: Mapping[str, str] = field(default_factory=dict, hash=False)
    silent: Tuple[str, ...] = ()
    closes: bool = True
    issued: Mapping[str, int] = field(default_factory=dict, hash=False)


def to_dict(value: Any) -> Dict[str, Any]:
    """A dataclass as plain data, tuples as lists, for Ansible."""
    return {key: _plain(item) for key, item in asdict(value).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(kind: Type[T], data: Mapping[str, Any]) -> T:
    """The dataclass that `to_dict` was given, nested ones included; unknown keys are ignored, so that results may carry more."""
    return kind(**{item.name: _revived(item.name, data[item.name]) for item in fields(kind) if item.name in data})  # type: ignore[arg-type]


_NESTED: Dict[str, Any] = {
    "instances": Instance, "copies": Copy, "servers": Server, "strangers": Server, "balancers": Balancer, "pools": Pool,
    "releases": Release, "entry": Entry, "head": Head, "image": Image, "release": Release, "registrations": Registration,
    "receipt": Receipt,
}


def _revived(name: str, value: Any) -> Any:
    kind = _NESTED.get(name)
    if name == "waves":
        return tuple(tuple(from_dict(Step, step) for step in wave) for wave in value)
    if isinstance(value, Mapping):
        return from_dict(kind, value) if kind and name not in ("servers",) else dict(value)
    if isinstance(value, (list, tuple)):
        return tuple(from_dict(kind, item) if kind and isinstance(item, Mapping) else item for item in value)
    return value
