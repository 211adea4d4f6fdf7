# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""A backend as it should be, and what it takes to get there: the fragment first, then the run-time API.

`commands` and its neighbours are pure. `Backend` is the shell: it observes, writes, runs and waits. Everything is an idempotent
difference between what is wanted and what HAProxy says, so that a reload, a restart or a kill at any moment loses nothing.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import os
import re
import shlex
import socket as sockets
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from .._errors import DeadlineError, FleetError, InvalidError, LeaseError, RefusedError, UnreachableError
from .._model import Balancer, Head, Server
from . import _files as files
from . import fragment as fragments
from .client import STUCK, Client, Info, table
from .fragment import Fragment

MASTER_SOCKET = "/run/haproxy-master.sock"
"""Where Debian's and Ubuntu's packages have it."""

UNJUDGED = ("", "INI", "off")
"""Words for a check that has not spoken yet: HAProxy sends traffic to such a server, dead or alive (facts 1.3)."""

PASSED = ("L4OK", "L6OK", "L7OK", "PROCOK")
"""Words for a check that has passed, the last of an external one. L7OKC is not among them: such a server asks to be left out."""

STREAM = re.compile(r" fe=(\S+) be=(\S+) srv=(\S+) .*? scf=\[[^]]*fd=(-?[0-9]+)")
"""A line of `show sess`: front end, backend, server and the descriptor of the client's connection."""

STICKY = re.compile(r"(cookie|stick|stick-table|appsession|persist|option\s+persist|force-persist)\s")
"""Lines by which a client stays with its server, also while that is in drain: only maint moves it (facts 0)."""

FORCED = re.compile(r"(option\s+persist|force-persist)\s|.*\son-marked-down\s+shutdown-sessions\s")
"""Lines by which it stays in maint too, or is cut off there: only a process that does not know the server moves it without loss."""

PROBE = ".phoenix-probe"
"""How the name of a server's twin ends, that is there to be checked and never has a client."""

VERDICT_PATIENCE = 3.0
RELOAD_PATIENCE = 60.0
CUT_PATIENCE = 5.0
ROUNDS = 20


Place = Tuple[str, str, int]
"""A server by its name, address and port."""


# Pure: what HAProxy says, and what to tell it


def read(name: str, states: str, stats: str) -> Tuple[Server, ...]:
    """The servers of a backend, from `show servers state NAME` and `show stat`, with the sessions of this process.

    up follows facts 1.3: the last check passed (3), health is full (rise+fall-1), the server runs (2), checks are on and not paused.
    A server without a check is up as long as it runs.
    The whole table is filtered by backend and server, since a front end may bear the backend's name.
    """
    rows = statistics(name, stats)
    found = []
    for row in table(states):
        if len(row) < 19 or row[1] != name:
            continue
        stat = rows.get(row[3], {})
        operation, admin, weight, verdict, health, checking = (int(row[index]) for index in (5, 6, 7, 11, 12, 13))
        full = int(stat.get("check_rise") or 0) + int(stat.get("check_fall") or 0) - 1
        check = (stat.get("check_status") or "").replace("* ", "")
        up = (operation == 2 or row[3].endswith(PROBE)) and (
            verdict == 3 and health == full > 0 and checking & 0xC == 0x4 and check in PASSED or not checking & 0x2
        )
        found.append(Server(
            name=row[3], address=row[4], port=int(row[18]), id=int(row[2]), weight=weight,
            state="maint" if admin & 0x23 else "drain" if admin & 0x18 else "ready",
            up=up, steady=up or operation == 0,
            check="none" if not checking & 0x2 else "off" if not checking & 0x4 else check,
            sessions=int(stat.get("scur") or 0) + int(stat.get("qcur") or 0),
        ))
    return tuple(found)


def statistics(name: str, text: str) -> Dict[str, Mapping[str, str]]:
    """The rows of a backend's servers in `show stat`, by server. Raises RefusedError where that is no such table: no data is no zero."""
    if not text.startswith("# pxname,svname,"):
        raise RefusedError("HAProxy", f"its statistics cannot be read: {text[:80]!r}", "See whether its version is 2.6 or later.")
    return {row["svname"]: row for row in csv.DictReader(io.StringIO(text[2:].strip())) if row["pxname"] == name}


def lingering(name: str, stats: str, streams: str) -> Dict[str, int]:
    """The sessions of a backend's servers in a process that takes no new clients, from `show stat` and then `show sess`.

    A client's idle connection to such a process counts for every server that the process knows: its next request is answered by
    that process, which cannot be told of new weights, and may go to any of them (seen: 503 once the instance was stopped).
    A front end counts connections, and one of HTTP/2 carries many requests: it is busy where a stream has its descriptor. Asked in this
    order, a client that moves or leaves between the two answers may be counted too often, and is never missed.
    """
    idle = sum(int(row["scur"] or 0) for row in csv.DictReader(io.StringIO(stats[2:].strip())) if row["svname"] == "FRONTEND")
    busy: Set[str] = set()
    count: Counter[str] = Counter()
    for found in STREAM.finditer(streams):
        front, back, server, connection = found.groups()
        if front != "GLOBAL":
            busy.add(connection)
            if server == "<none>":
                idle += back in (name, front, "<NONE>")
            elif back == name:
                count[server] += 1
    idle = max(0, idle - len(busy))
    return {
        server: idle + max(count[server], int(row["scur"] or 0) + int(row["qcur"] or 0)) for server, row in statistics(name, stats).items()
    }


def receipts(seen: Seen, out: Sequence[Server], cut: Mapping[str, int], otherwise: str) -> List[Receipt]:
    """A receipt for each of these servers, which are out of the backend; otherwise is the proof where they are not idle everywhere."""
    made: List[Receipt] = []
    for server in out if "" not in seen.elsewhere else ():
        ended, left = cut.get(server.name, 0), seen.behind(server)
        know = tuple(sorted(identity for identity, count in seen.elsewhere.items() if place(server) in count))
        busy = bool(ended or left)
        made.append(Receipt(
            server.name, server.address, server.port, otherwise if busy else "idle", ended, left, know if busy else (),
        ))
    return made


def _at(server: Server, told: str) -> bool:
    """Whether this may be the server's address and port, as HAProxy writes them."""
    host, _colon, port = told.rpartition(":")
    return not port.isdigit() or (_spelled(host.strip("[]")), int(port)) == place(server)[1:]


def counters(row: Mapping[str, str]) -> Tuple[int, int]:
    """Requests and failures of a backend since its process started: of HTTP its 5xx, of TCP connections that were not made."""
    total, failed = ("stot", "econ") if row.get("mode") == "tcp" else ("req_tot", "hrsp_5xx")
    return int(row.get(total) or 0), int(row.get(failed) or 0)


def commands(
    backend: str, observed: Sequence[Server], desired: Sequence[Server], options: Mapping[str, Any],
    version: Tuple[int, int] = (2, 6), stuck: Collection[str] = (), at_once: bool = False, lines: Sequence[str] = (),
) -> List[str]:
    """The next commands on the way from what is observed to what is desired; none where only waiting is left, or nothing.

    Servers are added at weight 0 with their check on, weights rise before others fall, and a server that is not desired goes
    through drain and maint, one round each and only while nobody is connected to it, before it is deleted. stuck names servers
    that HAProxy 2.6 and 2.8 refused to delete: entering maint anew makes them drop their idle connections (facts 1.4). at_once: to maint
    with clients, of whom sticky ones would never leave otherwise; what is under way ends, and the next request goes elsewhere.
    lines are the backend's own: a server that is added has no dynamic cookie until that is said (facts 1.2).
    """
    seen = {server.name: server for server in observed}
    wanted = {server.name: server for server in desired}
    first: List[str] = []
    rise: List[str] = []
    fall: List[str] = []
    last: List[str] = []
    for server in desired:
        path, now = f"{backend}/{server.name}", seen.get(server.name)
        if now is None:
            first += [f"add server {path} {fragments.address(server)} {fragments.tail(server, options)} weight 0", f"enable health {path}"]
            first += [f"set server {path} state {server.state}"] if server.state != "maint" else []
        elif same(now, server):
            weight = server.weight if server.state == "ready" else 0
            if now.check == "off":
                first.append(f"enable health {path}")
            if now.weight != weight:
                (rise if weight > now.weight else fall).append(f"set server {path} weight {weight}")
            if now.state != server.state:
                (rise if server.state == "ready" else fall).append(f"set server {path} state {server.state}")
    if (first or rise) and any(line.split()[0] == "cookie" and "dynamic" in line.split() for line in lines):
        first.append(f"enable dynamic-cookie backend {backend}")
    for server in observed:
        if server.name not in wanted or not same(server, wanted[server.name]):
            last += _leaving(f"{backend}/{server.name}", server, version, server.name in stuck, at_once)
    return first + rise + fall + last


def _leaving(path: str, now: Server, version: Tuple[int, int], stuck: bool, at_once: bool) -> List[str]:
    if now.state == "ready":
        return [f"set server {path} weight 0", f"set server {path} state {'maint' if at_once else 'drain'}"]
    if now.state == "drain" and (at_once or not now.sessions):
        return [f"set server {path} state maint"]
    if now.sessions:
        return []
    anew = [f"set server {path} state drain", f"set server {path} state maint"] if stuck else []
    return [*anew, *([f"wait 2s srv-removable {path}"] if version >= (3, 0) else []), f"del server {path}"]


def parting(
    observed: Sequence[Server], desired: Sequence[Server], written: Sequence[Server], at_once: bool = False
) -> Tuple[Server, ...]:
    """Those of the fragment's servers that are to leave and are not out of use yet: the fragment keeps them, without traffic.

    A process that is reloaded or restarted meanwhile then still knows them, so that whoever is connected to them is still counted.
    """
    return tuple(
        replace(server, weight=0, state="maint" if at_once else "drain" if server.state == "ready" else server.state)
        for server in observed
        if (server.state == "ready" or server.sessions) and not _listed(server, desired) and _listed(server, written)
    )


def together(desired: Sequence[Server], kept: Sequence[Server], written: Sequence[Server]) -> Sequence[Server]:
    """What is desired beside what is kept, in the order of the fragment, so that nothing is written anew for the order alone."""
    names = {server.name for server in kept}
    order = {server.name: number for number, server in enumerate(written)}
    lines = (*(server for server in desired if server.name not in names), *kept)
    return sorted(lines, key=lambda server: order.get(server.name, len(order))) if kept else desired


def _listed(server: Server, servers: Sequence[Server]) -> bool:
    return any(same(server, item) for item in servers)


def same(one: Server, other: Server) -> bool:
    """Whether two lines mean the same server: names alone do not make it so."""
    return (one.name, one.address, one.port, one.id) == (other.name, other.address, other.port, other.id)


def place(server: Union[Server, Receipt]) -> Place:
    """Where a server is, in one notation whoever wrote its address, and under which name: its id is the backend's own affair."""
    return server.name, _spelled(server.address), server.port


def _spelled(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address  # a path, or a name that is not resolved


def passing(before: Collection[Place], servers: Sequence[Server]) -> Set[Place]:
    """The servers that passed HAProxy's checks when last they spoke, by what was known before and what a worker shows now.

    After a reload the next worker has not asked anybody yet. What a worker has fully called up stays proven until a check says no,
    in whichever worker: so reloads in quick succession, of which no worker lives to ask all servers, keep nobody waiting.
    """
    made = {place(server) for server in servers if server.up}
    failed = {place(server) for server in servers if not server.up and server.check not in UNJUDGED and not server.check.endswith("OK")}
    return (set(before) | made) - failed


def unproven(observed: Sequence[Server], desired: Sequence[Server], passed: Collection[Place] = ()) -> Tuple[str, ...]:
    """The names of servers that would take traffic before a check has said anything of them, or healthy ones' place while it says no.

    Where as many that are up serve afterwards as before, what is down is not waited for: so a release goes back at once.
    passed are those that count as up although this worker has not asked them yet (see `passing`).
    """
    observed = [replace(server, up=server.up or place(server) in passed) for server in observed]
    seen = {server.name: server for server in observed}
    wanted = [server for server in desired if server.state == "ready" and server.weight > 0]
    before = sum(server.up and server.state == "ready" and server.weight > 0 for server in observed)
    after = sum(_listed(server, observed) and seen[server.name].up for server in wanted)
    names = []
    for server in wanted:
        now = seen.get(server.name)
        if now is None or not same(now, server):
            now = replace(server, state="maint")
        idle = now.weight == 0 or now.state != "ready"
        if now.state == "maint" or (idle and not now.up and (after < before or now.check in UNJUDGED)):
            names.append(server.name)
    return tuple(names)


def staged(observed: Sequence[Server], desired: Sequence[Server], names: Collection[str]) -> Tuple[Server, ...]:
    """What is observed, with the unproven servers beside it at weight 0. One of another address leaves before its successor can come."""
    wanted = {server.name: server for server in desired if server.name in names}
    kept = [server for server in observed if server.name not in wanted]
    clash = {server.name for server in observed if server.name in wanted and not same(server, wanted[server.name])}
    return (*kept, *(replace(server, weight=0) for server in wanted.values() if server.name not in clash))


def admitted(name: str, where: str, head: Optional[Head], lease: Optional[Head], takeover: bool) -> None:
    """Raises RefusedError or LeaseError where the holder of this lease may not write here.

    With takeover it may whichever ledger the head names. Another fleet's backend is never taken, and fence and records never fall.
    """
    what = f"backend {name} on {where}"
    if head is None or not head.ledger:
        return
    if lease is None or not lease.ledger:
        raise RefusedError(
            what, f"it belongs to the fleet {head.fleet} (release {head.live} is live)",
            "Change it with the fleet's playbooks, or pass their lease.",
        )
    if head.fleet != lease.fleet:
        raise RefusedError(what, f"it belongs to the fleet {head.fleet}, not to {lease.fleet}", "Choose another fleet_backend.")
    above = "Take it over with the fleet's playbooks, which go on above that." if takeover else ""
    if not head.is_of(lease) and not takeover:
        if head.ledger == lease.ledger:
            raise RefusedError(
                what, f"another copy of this ledger has taken the fleet {head.fleet} over (release {head.live} is live)",
                "Use that copy. If it is lost or given up, take the backend over with fleet_adopt: true.",
            )
        raise RefusedError(
            what, f"it belongs to the ledger {head.ledger} (fleet {head.fleet}, release {head.live} is live), not to {lease.ledger}",
            "If that ledger is lost or given up, take the backend over with fleet_adopt: true.",
        )
    if 0 < lease.fence < head.fence:
        raise LeaseError(
            what, f"a later run has the fence {head.fence}, this one {lease.fence}",
            above or "Let the later run finish. If the ledger is an old copy, restored for example, take over with fleet_adopt: true.",
        )
    if lease.fence and lease.records < head.records:
        raise RefusedError(
            what, f"it was written when the ledger had {head.records} records of the fleet, and this one has {lease.records}",
            above or "It is an old copy: use the newest. If there is none, take over with fleet_adopt: true.",
        )


# The shell


@dataclass(frozen=True)
class Seen:
    """One observation: who answered, whether it has the backend, and the backend's servers (up, check and sessions included).

    elsewhere: for each other process, by its identity, its sessions with those of the servers that it knows. Identity "" stands for
    processes that nobody can name. probes are twins of servers (see `Backend._probe`), and no servers.
    """

    info: Info
    exists: bool
    servers: Tuple[Server, ...]
    requests: int = 0
    failures: int = 0
    elsewhere: Mapping[str, Mapping[Place, int]] = field(default_factory=dict, hash=False)
    probes: Tuple[Server, ...] = ()

    def behind(self, server: Server) -> int:
        """The sessions with this server in other processes than the current worker."""
        return sum(count.get(place(server), 0) for count in self.elsewhere.values())


@dataclass(frozen=True)
class Receipt:
    """That a server is out of this backend, and how that is proved.

    proof idle: no process has a connection to it, or a client that could still be sent to it. deadline: the drain's time was over; cut
    connections were cut, left could not be, and processes (`Info.identity`) are those that live and know the server. lingering:
    it is out, and these processes still live and may answer a client from it.
    """

    name: str
    address: str
    port: int
    proof: str
    cut: int = 0
    left: int = 0
    processes: Tuple[str, ...] = ()


@dataclass
class Outcome:
    """What was done, in words and commands, the fragment before and after, and a receipt for each server that was taken out."""

    actions: List[str]
    before: Optional[str] = None
    after: str = ""
    receipts: List[Receipt] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.actions)


class Backend:
    """One backend of one HAProxy. host is the balancer's name in messages.

    master_socket None: the one that HAProxy was started with, or the distribution's, where it belongs to the same HAProxy; "": none.
    Where there is a reload_command, reloads go by it; the master then only tells of HAProxy's processes.
    Every method raises UnreachableError where HAProxy does not answer, RefusedError where it, or a check of ours, says no.
    """

    def __init__(
        self, name: str, socket: str, master_socket: Optional[str] = None, reload_command: str = "",
        config: str = "/etc/haproxy/haproxy.cfg", config_dir: str = "/etc/haproxy/conf.d", host: str = "", check_mode: bool = False,
    ) -> None:
        if not fragments.NAME.fullmatch(name):
            raise InvalidError([f"name: {name!r} is no name of a backend; use letters, digits, _ . : and -"])
        self.name = name
        self.host = host or sockets.gethostname()
        self.what = f"backend {name} on {self.host}"
        self.reload_command = reload_command
        self.config = config
        self.config_dir = config_dir
        self.path = os.path.join(config_dir, f"{name}.cfg")
        self.check_mode = check_mode
        self.ended: Counter[str] = Counter()  # what has been cut so far, by server
        self.passed: Set[Place] = set()  # what has been seen to pass its checks and not to fail since
        self.client = Client(socket)
        self._find_master(master_socket)

    def _find_master(self, wanted: Optional[str]) -> None:
        if wanted == "":
            return
        pid = self.client.info().pid
        path = wanted or files.master_socket(pid) or (MASTER_SOCKET if os.path.exists(MASTER_SOCKET) else "")
        if not path:
            return
        self.client.master_path = path
        deadline = time.monotonic() + 0.3
        while pid not in self._workers(wanted):
            # Between the worker's and the master's answer it may have been reloaded.
            pid = self.client.info().pid
            if time.monotonic() > deadline:
                self.client.master_path = ""
                if wanted:
                    raise RefusedError(
                        f"the sockets {self.client.path} and {path} on {self.host}", "they belong to different HAProxys",
                        "Set haproxy_socket and haproxy_master_socket to those of one.",
                    )
                return
            time.sleep(0.02)

    def _workers(self, wanted: Optional[str]) -> Tuple[int, ...]:
        try:
            return self.client.processes().workers
        except UnreachableError:
            if wanted:
                raise
            return ()  # a socket that nobody asked for, left behind by another HAProxy

    # Observing

    def observe(self, patience: float = 0.0, lease: Optional[Head] = None) -> Balancer:
        """The backend as it is now. Servers of a backend without our head, and adopted ones, are strangers; under a lease also those
        that were written under none.

        A server that the fragment lists and HAProxy does not have, after a kill for example, is shown in state maint. patience:
        seconds to wait while a server with traffic is between two verdicts: one check that was missed on a busy machine is none.
        """
        deadline = time.monotonic() + patience
        current = self._fragment(lease)
        seen = self.seen()
        while any(server.weight and not server.steady for server in seen.servers) and time.monotonic() < deadline:
            time.sleep(0.05)
            seen = self.seen()
        told: Dict[str, Any] = {
            "host": self.host, "version": seen.info.version, "pid": seen.info.pid, "requests": seen.requests, "failures": seen.failures,
        }
        if current is None:
            return Balancer(**told, strangers=seen.servers)
        present = {server.name for server in seen.servers}
        missing = tuple(
            replace(server, state="maint", check="not loaded", loaded=False) for server in current.servers if server.name not in present
        )
        return Balancer(
            **told, head=current.head,
            servers=tuple(server for server in (*seen.servers, *missing) if server.name not in current.adopted),
            strangers=tuple(server for server in seen.servers if server.name in current.adopted),
        )

    def seen(self, everywhere: bool = True, out: Sequence[Server] = ()) -> Seen:
        """What HAProxy says of the backend; everywhere: sessions in all of its processes, not only in the current worker.

        out: further servers to ask other processes for, which the current worker has no more.
        """
        info, (states, stats) = self.client.ask(f"show servers state {self.name}", "show stat -1 6 -1")
        exists = "Can't find backend" not in states
        found = read(self.name, states, stats) if exists else ()
        servers = tuple(server for server in found if not server.name.endswith(PROBE))
        probes = tuple(server for server in found if server.name.endswith(PROBE))
        self.passed = passing(self.passed, (*servers, *(replace(probe, name=probe.name[:-len(PROBE)]) for probe in probes)))
        seen = Seen(
            info, exists, servers, *counters(statistics(self.name, stats).get("BACKEND", {})),
            elsewhere=self._elsewhere(info, (*servers, *out)) if everywhere and (servers or out) else {}, probes=probes,
        )
        return replace(seen, servers=tuple(replace(server, sessions=server.sessions + seen.behind(server)) for server in servers))

    def _elsewhere(self, info: Info, servers: Sequence[Server]) -> Mapping[str, Mapping[Place, int]]:
        """Sessions of these servers in HAProxy's other processes, which a reload left behind with their connections (see `Seen`)."""
        if not self.client.master_path:
            return self._elsewhere_by_kernel(info, servers)
        made: Dict[str, Mapping[Place, int]] = {}
        for pid in self.client.processes().workers:
            if pid != info.pid:
                told, stats, streams = (self.client.worker(pid, command) for command in ("show info", "show stat -1 7 -1", "show sess"))
                if not told or not stats or not streams:
                    continue  # it has ended meanwhile
                count, rows = lingering(self.name, stats, streams), statistics(self.name, stats)
                known = [server for server in servers if server.name in rows and _at(server, rows[server.name].get("addr") or "")]
                started = re.search(r"^Start_time_sec: ?([0-9]+)", told, re.M)
                made[f"{pid}:{started.group(1) if started else 0}"] = {place(server): count[server.name] for server in known}
        return made

    def _elsewhere_by_kernel(self, info: Info, servers: Sequence[Server]) -> Mapping[str, Mapping[Place, int]]:
        """Nobody tells what such a process knows, and of an idle client the kernel does not tell which backend it came for: a process
        that lives, lives for some client, who may be sent to any of the servers."""
        addresses = [(server.address, server.port) for server in servers]
        others = files.others(info.pid)
        if others is None:
            found = files.connections(None, addresses)
            return {"": {place(server): found.get((server.address, server.port), 0) for server in servers}}
        made: Dict[str, Mapping[Place, int]] = {}
        for pid, identity in others.items():
            found = files.connections([pid], addresses)
            made[identity] = {place(server): max(1, found.get((server.address, server.port), 0)) for server in servers}
        return made

    def _fragment(self, lease: Optional[Head] = None) -> Optional[Fragment]:
        """What is written; under a lease, servers that were written under none are somebody else's."""
        text = files.read(self.path)
        try:
            found = fragments.parse(text) if text is not None else None
        except RefusedError as error:
            raise RefusedError(f"{self.path} on {self.host}", error.cause, error.remedy) from None
        if found is not None and found.name != self.name:
            raise RefusedError(f"{self.path} on {self.host}", f"it holds the backend {found.name}", f"Rename it to {found.name}.cfg.")
        leased = lease is not None and bool(lease.ledger)
        return fragments.estranged(found) if found is not None and leased and not found.head.ledger else found

    # Acting

    def stamp(self, lease: Head, adopt: bool = False) -> Outcome:
        """Write the lease's ledger, fence and fleet into the head, so that an older holder's acts are refused from now on.

        Where there is no fragment of ours there is nothing to protect and nothing is written. adopt takes over another ledger's
        head, or one whose fence is higher than that ledger knows, or servers that were written under no lease.
        """
        with files.locked(self.config_dir):
            current = self._fragment(lease)
            if current is None or (current.adopted and not current.head.ledger and not adopt):
                return Outcome([])
            admitted(self.name, self.host, current.head, lease, adopt)
            outcome = Outcome([])
            self._write(replace(current, head=_headed(current.head, lease)), outcome)
            return outcome

    def apply(
        self, servers: Optional[Sequence[Server]] = None, options: Optional[Mapping[str, Any]] = None, lease: Optional[Head] = None,
        live: Optional[int] = None, next_release: Optional[int] = None, adopt: bool = False, drain_timeout: float = 30,
        wait_timeout: float = 60, on_progress: Callable[[str], None] = lambda text: None, options_for: str = "all",
        asked: Sequence[Server] = (),
    ) -> Outcome:
        """Bring the backend to these servers and options; None leaves the ones that are there.

        options_for: `all` servers, or only the `new` ones, or `former` for the options before that (see `fragments.turned`).

        A server that no check has spoken of is first staged at weight 0 and waited for, at most wait_timeout seconds. A server that
        is not listed is drained, at most drain_timeout seconds, and deregistered. asked are servers that an earlier run may have taken out
        without a receipt: other processes of HAProxy have as long to let go of them.
        Raises besides InvalidError for bad input, LeaseError for a fence that is too low, DeadlineError for a wait.
        """
        outcome = Outcome([])
        deadline = 0.0
        late = waited = False
        parted: Dict[Place, Server] = {place(server): server for server in asked}
        self.passed = set()
        while True:
            with files.locked(self.config_dir):
                # Past the deadline only the current worker has a say, which would not delete a server that it still uses.
                seen, target = self._begin(options, lease, adopt, options_for, everywhere=not late)
                servers = target.servers if servers is None else servers
                self._judge(servers, options, lease)
                target = replace(target, head=_headed(target.head, lease, live, next_release))
                if any(map(FORCED.match, self._lines(seen.info, target))):
                    self._can_reload()
                if not outcome.actions:
                    self._may_leave(seen, target, servers, lease)
                cold = () if self.check_mode else unproven(seen.servers, servers, self.passed)
                aim = staged(seen.servers, servers, cold) if cold else servers
                leaving = [server.name for server in seen.servers if not _listed(server, aim)]
                parted.update({place(server): server for server in seen.servers if not _listed(server, aim)})
                given = self._lines(seen.info, target, leaving)
                forced = leaving and any(map(FORCED.match, given))
                at_once = late or any(map(STICKY.match, given))
                kept = () if self.check_mode or forced else parting(seen.servers, aim, target.servers, at_once)
                target = fragments.with_servers(target, together(aim, kept, target.servers))
                # Stale, so that a reload is due: the next process does not know them, and this one ends with its clients.
                target = replace(target, stale=seen.info.identity) if forced else target
                seen = self._settle(seen, target, outcome, not late, at_once)
                gone = [server for server in seen.servers if not _listed(server, aim)]
                if not self.check_mode and not gone and not cold:
                    staying = {place(server) for server in servers}
                    out = [server for where, server in parted.items() if where not in staying]
                    # Another process may know them too, one that a reload has just left behind for example: it has until the deadline.
                    last = self.seen(out=out) if out else seen
                    if late or not any(last.behind(server) for server in out):
                        outcome.receipts = receipts(last, out, self.ended, "deadline")
                        return outcome
                    gone = [replace(server, sessions=last.behind(server)) for server in out]
            if self.check_mode:
                return outcome
            if leaving and not gone and not waited:
                on_progress(f"{_whose(leaving)}connections 0")
            if gone:
                deadline = deadline or time.monotonic() + drain_timeout
                if time.monotonic() > deadline + 2 * CUT_PATIENCE:
                    raise DeadlineError(
                        self.what, f"{', '.join(server.name for server in gone)} could not be deregistered in {drain_timeout:.0f} s",
                        "See who is connected with: show sess, on HAProxy's socket. Run it again to go on.",
                    )
                if any(server.sessions for server in gone):
                    waited = True
                    timeout = max(0.0, deadline - time.monotonic())
                    outcome.actions += self.wait_idle([server.name for server in gone], timeout, on_progress, gone)
                    late = time.monotonic() >= deadline
            else:
                self._wait_up(cold, wait_timeout)

    def remove(self, lease: Optional[Head] = None, adopt: bool = False, drain_timeout: float = 30,
               on_progress: Callable[[str], None] = lambda text: None) -> Outcome:
        """Take the backend away: drained, without servers, then out of HAProxy by a reload.

        An empty one stays while a front end refers to it.
        """
        current = self._fragment()
        if current is None:
            seen = self.seen()
            if seen.servers:
                raise RefusedError(self.what, "it is not ours and has servers", "Remove it where it was written.")
            return Outcome([])
        outcome = Outcome([], before=files.read(self.path) or "")
        if current.servers or self.seen().servers:
            outcome = self.apply((), lease=lease, live=0, adopt=adopt, drain_timeout=drain_timeout, on_progress=on_progress)
        with files.locked(self.config_dir):
            current = fragments.with_servers(self._fragment(lease) or current, ())
            admitted(self.name, self.host, current.head, lease, False)
            info = self.client.info()
            if files.validate(info, self.path, None) is not None:
                # A front end refers to it: without the backend HAProxy would not start.
                self._write(replace(current, head=_headed(current.head, lease, 0)), outcome)
                return outcome
            outcome.actions.append(f"removed {self.path}")
            outcome.after = ""
            if not self.check_mode:
                self._can_reload()
                text = files.read(self.path)
                files.remove(self.path)
                self._reload(info, text, outcome, present=False)
        return outcome

    def confirm(self, asked: Sequence[Server]) -> List[Receipt]:
        """A receipt for each of these servers that is out of this backend, which may be gone itself. Waits for nothing.

        A line of the same name and another address is another server. None where nobody can tell of HAProxy's other processes.
        """
        with files.locked(self.config_dir):
            current = self._fragment()
            seen = self.seen(out=asked)
            listed = {place(server) for server in (*seen.servers, *(current.servers if current else ()))}
            written = set() if current else self._written(seen.info)
            out = [server for server in asked if place(server) not in listed and server.name not in written]
            return receipts(seen, out, {}, "lingering")

    def _written(self, info: Info) -> Set[str]:
        """The names of the servers that any of HAProxy's files gives this backend: it may have forgotten some until its next reload."""
        words = (line.split() for _path, section in self._sections(info) for line in section.lines)
        return {line[1] for line in words if line[0] == "server" and len(line) > 1}

    def _sections(self, info: Info) -> List[Tuple[str, fragments.Section]]:
        """Where HAProxy's files have a backend of this name."""
        found = ((path, section) for path in files.listing(info) for section in fragments.sections(files.read(path) or ""))
        return [(path, section) for path, section in found if section.keyword in ("backend", "listen") and section.name == self.name]

    def _begin(
        self, options: Optional[Mapping[str, Any]], lease: Optional[Head], adopt: bool, options_for: str, everywhere: bool,
    ) -> Tuple[Seen, Fragment]:
        """What there is: HAProxy's word, and the fragment, of which somebody else's backend has become one where it may."""
        seen = self.seen(everywhere)
        current = self._fragment(lease)
        if current is not None:
            admitted(self.name, self.host, current.head, lease, False)
            current = fragments.turned(current, options, options_for)
        else:
            current = self._adopted(seen, options or {}, adopt)
        foreign = [server.name for server in seen.servers if server.name in current.adopted]
        if foreign and not adopt:
            raise RefusedError(
                self.what, f"it has servers of somebody else: {', '.join(foreign)}",
                "Choose another backend with fleet_backend, or take it over with fleet_adopt: true.",
            )
        return seen, current

    def _adopted(self, seen: Seen, options: Mapping[str, Any], adopt: bool) -> Fragment:
        files.listed(seen.info, self.path, self.config, self.config_dir)
        for path, section in self._sections(seen.info):
            if os.path.realpath(path) != os.path.realpath(self.path):
                raise RefusedError(
                    self.what, f"it stands in {path}, line {section.number}",
                    f"Move that section into a file of its own, {self.path}, and reload HAProxy; or choose another fleet_backend.",
                )
        text = files.read(self.path)
        if seen.servers and (text is None or not adopt):
            names = ", ".join(server.name for server in seen.servers)
            raise RefusedError(
                self.what, f"it has servers of somebody else{'' if text else ', in none of its files'}: {names}",
                "Choose another backend with fleet_backend, or take it over with fleet_adopt: true." if text else "Reload HAProxy first.",
            )
        if text is None:
            return Fragment(self.name, options=options)
        return fragments.adopt(self.name, text, seen.servers, options)

    def _judge(self, wanted: Sequence[Server], options: Optional[Mapping[str, Any]], lease: Optional[Head]) -> None:
        # What stands there HAProxy has accepted, though it might not be accepted from anybody today.
        found = fragments.mistakes(self.name, wanted, options or {})
        if lease is not None and lease.ledger and not lease.fleet:
            found.append("lease: it names no fleet")
        if found:
            raise InvalidError(found, f"backend {self.name}")

    def _may_leave(self, seen: Seen, target: Fragment, servers: Sequence[Server], lease: Optional[Head]) -> None:
        """Raises RefusedError where HAProxy could not start without those that are to leave, a fleet's strangers among them.

        HAProxy is asked, which takes its time, only where any line is of a kind that can name a server.
        """
        doomed = target.adopted if lease is not None and lease.ledger else ()
        rest = [server for server in servers if server.name not in doomed]
        leaving = [server.name for server in target.servers if not _listed(server, rest)]
        texts = (files.read(path) or "" for path in files.listing(seen.info)) if leaving else ()
        if not any(fragments.REFERENCE.search(re.sub(r"[\"'\\]", "", text)) for text in texts):
            return
        with files.candidate(self.path, fragments.render(fragments.with_servers(target, rest)), elsewhere=True) as path:
            complaint = files.validate(seen.info, self.path, path)
        # What is broken already is no reason to stop half-way.
        if complaint is not None and files.validate(seen.info, self.path, self.path) is None:
            raise RefusedError(
                self.what, f"HAProxy would not start without {', '.join(leaving)}: {complaint}",
                "Nothing was changed. Take the line that refers to it away, and reload HAProxy.",
            )

    def _lines(self, info: Info, target: Fragment, leaving: Collection[str] = ()) -> List[str]:
        """The backend's lines, each with a blank at its end, and where servers are to leave what any `defaults` may add to them.

        Which one does is not asked: what only moves clients sooner does no harm.
        """
        made = [*fragments.settings(target), *target.kept, *target.adopted.values()]
        for path in files.listing(info) if leaving else ():
            made += [line for part in fragments.sections(files.read(path) or "") if part.keyword == "defaults" for line in part.lines]
        return [f"{line} " for line in made]

    def _settle(self, seen: Seen, target: Fragment, outcome: Outcome, everywhere: bool, at_once: bool = False) -> Seen:
        """The fragment first, then the commands, until HAProxy says that only waiting is left. The lock is held."""
        current = self._fragment()
        if current is None or fragments.shape(current) != fragments.shape(target):
            target = replace(target, stale=seen.info.identity)
        names = {server.name for server in seen.servers}
        missing = [server.name for server in target.servers if server.name not in names] if fragments.external(target) else []
        due = not seen.exists or target.stale == seen.info.identity or bool(missing)
        if due:
            self._can_reload()
        before = self._write(target, outcome)
        if self.check_mode:
            outcome.actions += ["reloaded HAProxy"] if due else self._next(seen, target, (), at_once)
            return seen
        if due:
            self.passed = set()  # what passed a check that may be another one now
            self._reload(seen.info, before, outcome, present=True)
            seen = self.seen(everywhere)
        stuck: Set[str] = set()
        for attempt in range(ROUNDS):
            todo = self._next(seen, target, stuck, at_once)
            if not todo:
                return seen
            if stuck:
                time.sleep(0.02)  # idle connections are closed by the threads that own them
            try:
                replies = self.client.ask(*todo)[1]
            except (RefusedError, UnreachableError):
                # A reload within the batch makes its commands pointless: the new worker has loaded the fragment.
                if self.client.info().identity == seen.info.identity or attempt == ROUNDS - 1:
                    raise
            else:
                outcome.actions += todo
                stuck |= {line.rpartition("/")[2] for line, reply in zip(todo, replies) if line.startswith("del ") and STUCK in reply}
            seen = self.seen(everywhere)
        raise DeadlineError(
            self.what, f"after {ROUNDS} rounds HAProxy still needs: {'; '.join(todo[:3])}",
            "Look for somebody else who changes the backend at the same time.",
        )

    def _next(self, seen: Seen, target: Fragment, stuck: Collection[str], at_once: bool) -> List[str]:
        lines = self._lines(seen.info, target)
        todo = commands(self.name, seen.servers, target.servers, target.options, seen.info.release, stuck, at_once, lines)
        if fragments.external(target) and any(command.startswith("add server ") for command in todo):
            raise RefusedError(self.what, "somebody has deleted a server that was just loaded", "Run it again; see who else changes it.")
        return [*(f"del server {self.name}/{probe.name}" for probe in seen.probes), *todo]

    def _write(self, target: Fragment, outcome: Outcome) -> Optional[str]:
        """Write the fragment where its text differs, after HAProxy has accepted it; returns the text before.

        A fence alone is no change that anybody asked for, so that running a verb twice changes nothing the second time.
        """
        before, after = files.read(self.path), fragments.render(target)
        wrong = fragments.too_long(after)
        if wrong:
            raise RefusedError(self.what, wrong, "Nothing was changed. Write what its servers share into a default-server line above it.")
        outcome.before = (before or "") if outcome.before is None else outcome.before
        outcome.after = after
        if before == after:
            return before
        if before is None or _unfenced(before) != _unfenced(after):
            outcome.actions.append(f"wrote {self.path}")
        with files.candidate(self.path, after, elsewhere=self.check_mode) as path:
            if before is None or not _fewer(before, after):
                info = self.client.info()
                files.listed(info, self.path, self.config, self.config_dir)
                self._inherits_nothing(info)
                complaint = files.validate(info, self.path, path)
                if complaint is not None:
                    raise RefusedError(
                        self.what, f"HAProxy does not accept the new configuration: {complaint}",
                        "Nothing was changed. Correct fleet_haproxy, or the file that is named.",
                    )
            if not self.check_mode:
                files.replace(path, self.path)
        return before

    def _inherits_nothing(self, info: Info) -> None:
        paths = [os.path.realpath(path) for path in files.listing(info, self.path)]
        given = fragments.lasting({path: files.read(path) or "" for path in paths}, os.path.realpath(self.path))
        if given:
            raise RefusedError(
                self.what, f"every server would get {given}, and one that is added at run time does not",
                "Nothing was changed. Write it into the backends that need it, and reload HAProxy.",
            )

    def _can_reload(self) -> None:
        if not self.client.master_path and not self.reload_command:
            raise RefusedError(
                self.what, "it takes a reload of HAProxy, and there is neither a master socket nor a reload command",
                "Start HAProxy with -S /run/haproxy-master.sock, or set haproxy_reload_command, 'systemctl reload haproxy' for example.",
            )

    def _reload(self, old: Info, before: Optional[str], outcome: Outcome, present: bool) -> None:
        """Reload; where that fails the former fragment (None: no file) returns, and HAProxy is reloaded back."""
        outcome.actions.append("reloaded HAProxy")
        try:
            self._reload_once(old, present)
        except FleetError as error:
            files.restore(self.path, before)
            try:
                self._reload_once(self.client.info(), None)
            except FleetError as second:
                raise RefusedError(error.what, f"{error.cause}; the former {self.path} is back, but {second.cause}", error.remedy) from None
            raise RefusedError(error.what, f"{error.cause}; the former {self.path} is back and loaded", error.remedy) from None

    def _reload_once(self, old: Info, present: Optional[bool]) -> None:
        what = f"the reload of HAProxy on {self.host}"
        reloads = self.client.processes().reloads if self.client.master_path else -1
        if self.reload_command:
            try:
                words = shlex.split(self.reload_command)
                done = subprocess.run(words, capture_output=True, text=True, timeout=RELOAD_PATIENCE, check=False)
            except subprocess.TimeoutExpired:
                cause = f"{self.reload_command!r} has not ended in {RELOAD_PATIENCE:.0f} s"
                raise DeadlineError(what, cause, "See: journalctl -u haproxy") from None
            except (OSError, ValueError, IndexError) as error:
                raise RefusedError(what, f"{self.reload_command!r} cannot be run: {error}", "Correct haproxy_reload_command.") from None
            if done.returncode:
                told = " ".join((done.stderr or done.stdout).split())[-300:]
                raise RefusedError(what, f"{self.reload_command!r} ended with {done.returncode}: {told}", "See: journalctl -u haproxy")
        deadline = time.monotonic() + RELOAD_PATIENCE
        while time.monotonic() < deadline:
            if self.client.master_path:
                now = self.client.processes()
                if now.reloads == reloads and not self.reload_command:
                    # Sent, or sent anew: what reaches a master that is loading itself is lost (measured on 2.6.12).
                    self.client.master("reload")
                    time.sleep(0.05)
                    continue
                if now.failed and now.reloads != reloads:
                    raise RefusedError(what, "the new process did not start", "See: journalctl -u haproxy")
            info, (states,) = self.client.ask(f"show servers state {self.name}")
            if info.identity != old.identity:
                exists = "Can't find backend" not in states
                if present is None or exists == present:
                    return
                told = "has no" if present else "still has the"
                raise RefusedError(what, f"the new process {told} backend {self.name}", "See which files HAProxy loads: its -f options.")
            time.sleep(0.02)
        raise DeadlineError(what, f"no new process within {RELOAD_PATIENCE:.0f} s", "See: journalctl -u haproxy")

    # Waiting

    def wait_up(self, names: Collection[str], timeout: float) -> None:
        """Until HAProxy's own checks have called each of these servers fully up, from now on, and none has failed since.

        Raises DeadlineError saying what each of the others shows.
        """
        self.passed = set()
        self._wait_up(names, timeout)

    def _wait_up(self, names: Collection[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        workers: Set[str] = set()
        while True:
            seen = self.seen(everywhere=False)
            servers = {server.name: server for server in seen.servers}
            proven = {server.name for server in seen.servers if place(server) in self.passed and server.state != "maint"}
            missing = [name for name in names if name not in proven]
            late = time.monotonic() > deadline
            if len(workers) > 1 and (late or not missing):
                self._unprobe()
            if not missing:
                return
            if late:
                shown = ", ".join(f"{name} {_verdict(servers.get(name))}" for name in missing)
                raise DeadlineError(
                    self.what, f"after {timeout:.0f} s {len(missing)} of {len(names)} servers are not up: {shown}",
                    "See the service's own log, and that this balancer reaches its address.",
                )
            if workers and seen.info.identity not in workers:
                self._probe(missing)
            workers.add(seen.info.identity)
            time.sleep(0.02)

    def _probe(self, names: Collection[str]) -> None:
        """Register a twin of each of these servers in maintenance, where HAProxy checks it after 0.1 s and sends it nobody (facts 1.3).

        A worker spreads its first checks over the longest interval of all servers, always in the same order, so that reloads in quick
        succession could keep it from ever asking the last ones (measured on 2.6.12). A twin in the next worker is another one.
        """
        try:
            with files.locked(self.config_dir):
                current, seen = self._fragment(), self.seen(everywhere=False)
                if current is None or fragments.external(current) or any(map(FORCED.match, self._lines(seen.info, current))):
                    return  # no such check of an added server; and who stays with one in maintenance could be sent to its twin
                apart = {*current.adopted, *current.elders, *(probe.name[:-len(PROBE)] for probe in seen.probes)}
                todo: List[str] = []
                for server in current.servers:
                    if server.name in names and server.name not in apart:
                        twin = replace(server, name=server.name + PROBE, id=2**31 - server.id)
                        path = f"{self.name}/{twin.name}"
                        todo.append(f"add server {path} {fragments.address(twin)} {fragments.tail(twin, current.options)} weight 0")
                        todo.append(f"enable health {path}")
                self.client.ask(*todo)
        except FleetError:
            pass  # reloaded meanwhile, for example: the servers are asked in their turn

    def _unprobe(self) -> None:
        try:
            self.client.ask(*(f"del server {self.name}/{probe.name}" for probe in self.seen(everywhere=False).probes))
        except FleetError:
            pass  # the next change of the backend takes them away, and so does a reload

    def wait_idle(
        self, names: Collection[str], timeout: float, on_progress: Callable[[str], None] = lambda text: None, out: Sequence[Server] = (),
    ) -> List[str]:
        """Until no process of HAProxy has a session with these servers. At the deadline the rest is cut.

        Returns in words what was cut, and what is left because it could not be (`left 1 of web-r41-1`), which is no error: the deadline
        has passed, and whoever stops the server ends it.

        timeout in seconds. on_progress gets one line when it is over: the counts on the way, and the time it took.
        out are those of these servers that the current worker may have no more, while others do.
        """
        start = time.monotonic()
        counts: List[int] = []
        late: Optional[Dict[str, int]] = None
        pause = 0.02
        patience = 0.0
        while True:
            seen = self.seen(out=out)
            open_now = {server.name: seen.behind(server) for server in out}
            open_now.update((server.name, server.sessions) for server in seen.servers if server.name in names)
            open_now = {name: count for name, count in open_now.items() if count}
            total = sum(open_now.values())
            if not counts or counts[-1] != total:
                counts.append(total)
            waited = time.monotonic() - start
            if not total or (late is not None and waited > timeout + patience):
                break
            if waited >= timeout and late is None:
                patience = CUT_PATIENCE if self._cut(open_now, seen) else 0.0
                late = open_now
                pause = 0.02
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        # Only what is gone was cut: without a master socket nothing reaches an old worker's connections.
        ended = {name: count - open_now.get(name, 0) for name, count in sorted((late or {}).items())}
        self.ended.update({name: count for name, count in ended.items() if count > 0})
        actions = [f"cut {count} of {name}" for name, count in ended.items() if count > 0]
        actions += [f"left {count} of {name}" for name, count in sorted(open_now.items())]
        told = " .. ".join(str(count) for count in _few(counts))
        on_progress(", ".join([f"{_whose(names)}connections {told}  {time.monotonic() - start:.1f} s of {timeout:.0f}", *actions]))
        return actions

    def _cut(self, names: Collection[str], seen: Seen) -> bool:
        """End the sessions of these servers, in the current worker by one command each, in old ones one by one (facts 2, reload traps).

        Returns whether there was any to end: an idle client has none.
        """
        if self.check_mode:
            return False
        here = [server for server in seen.servers if server.name in names]
        info, _replies = self.client.ask(*(f"shutdown sessions server {self.name}/{server.name}" for server in here))
        ended = any(server.sessions > seen.behind(server) for server in here)
        for pid in self.client.processes().workers if self.client.master_path else ():
            if pid != info.pid:
                for line in self.client.worker(pid, "show sess").splitlines():
                    words = line.split()
                    if f"be={self.name}" in words and any(f"srv={name}" in words for name in names):
                        self.client.worker(pid, f"shutdown session {words[0].rstrip(':')}")
                        ended = True
        return ended


def _headed(head: Head, lease: Optional[Head], live: Optional[int] = None, next_release: Optional[int] = None) -> Head:
    """The head under this lease. A lease of check mode has the fence 0 and leaves the head's."""
    made = replace(head, live=head.live if live is None else live, next=head.next if next_release is None else next_release)
    if lease is not None and lease.ledger:
        made = replace(made, ledger=lease.ledger, fleet=lease.fleet)
    if lease is not None and lease.fence:
        made = replace(made, fence=lease.fence, records=lease.records, lineage=lease.lineage)
    return made


def _unfenced(text: str) -> str:
    return re.sub(r'"(fence|records)": \d+|"lineage": "[^"]*"', "", text, count=3)


def _fewer(before: str, after: str) -> bool:
    """Whether HAProxy reads the same with at most other weights and fewer servers: what it has accepted it accepts (see `_may_leave`)."""
    (former, servers), (latter, fewer) = _settled(before), _settled(after)
    return former == latter and fewer <= servers


def _settled(text: str) -> Tuple[List[str], Set[str]]:
    """The lines that HAProxy reads: those of the backend in their order, and those of its servers, weights aside."""
    lines = [re.sub(r" weight [0-9]+| disabled| # (drain|maint)$", "", line) for line in text.splitlines() if not line.startswith("#")]
    servers = {line for line in lines if line.lstrip().startswith("server ")}
    return [line for line in lines if line not in servers], servers


def _verdict(server: Optional[Server]) -> str:
    if server is None:
        return "is not registered"
    return f"{server.check or 'unchecked'}" + ("" if server.state == "ready" else f" ({server.state})")


def _whose(names: Collection[str]) -> str:
    """The release that all these servers are of, as the beginning of a sentence; empty where they are of several, or of none."""
    releases = {match.group(1) if match else "" for match in (re.search(r"-(r[0-9]+)-[0-9]+$", name) for name in names)}
    return f"{min(releases)} " if len(releases) == 1 and releases != {""} else ""


def _few(counts: Sequence[int]) -> List[int]:
    """The first, the last, and at most two between."""
    return list(counts) if len(counts) < 5 else [counts[0], counts[len(counts) // 3], counts[2 * len(counts) // 3], counts[-1]]


def standing(servers: Sequence[Mapping[str, Any]], observed: Sequence[Server]) -> Tuple[Server, ...]:
    """Servers as a user lists them: an id that is not given is the observed one, or the next that is free, from 10001."""
    known = {server.name: server.id for server in observed}
    free = max([10000, *known.values(), *(int(item["id"]) for item in servers if item.get("id"))]) + 1
    made: List[Server] = []
    for item in servers:
        number = item.get("id") or known.get(item["name"])
        if not number:
            number, free = free, free + 1
        made.append(Server(
            item["name"], item["address"], int(item["port"]), int(number),
            100 if item.get("weight") is None else int(item["weight"]), item.get("state") or "ready",
        ))
    return tuple(made)
