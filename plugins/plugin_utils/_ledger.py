# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The ledger: the history of entries and records, and the lease that lets one run at a time change a fleet.

SQLite where one machine releases, PostgreSQL where several do. Every method is one transaction, durable when it returns.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from ..module_utils._errors import DeadlineError, FleetError, InvalidError, LeaseError, RefusedError, UnreachableError
from ..module_utils._model import Entry, Head, History, Image, Instance, Plan, Receipt, Registration, Release, Server, to_dict
from . import _registrations as law
from . import _tables as t
from ._process import GONE, RUNNING, STOPPED, UNKNOWN, Process, boot_id, uptime
from ._tables import sa

TIME_TO_LIVE = float(os.environ.get("PHOENIX_FLEET_LEASE_SECONDS", "30"))
"""Seconds that a lease lives after its last renewal, for whoever cannot see the holder's process. The variable is for tests."""

RENEWAL = TIME_TO_LIVE / 6
"""Seconds after which `check` renews as well."""

PATIENCE = 10
"""Seconds to wait for the database: for a connection, for a lock, for an answer."""

SILENCE = PATIENCE + 2
"""Seconds after which a PostgreSQL server that says nothing is hung up on. A little more: what it has to say of a lock comes first."""

TURN_INTERVAL = 0.3
"""Seconds between two looks at whose turn it is."""

NETWORK = (
    "nfs", "cifs", "smb", "afs", "ceph", "lustre", "gfs", "ocfs", "9p", "virtiofs", "beegfs", "gpfs", "orangefs", "coda", "ncp", "fuse.",
)
"""How the types of file systems begin that several machines may write to, or that are served by a program that may not pass locks on."""

KEPT = 1000
"""How many records of a fleet are kept. What is older goes at the end of a run, see `forget`."""

FIRST_SERVER = 10001
"""The first server id; HAProxy itself numbers the servers of configuration files from 1."""

ADOPT = "adopt"
"""The record of a takeover from a ledger that has written more, written by `adopt`."""

RECORDS = re.compile(r"wave [1-9][0-9]* (open|passed)|commit|revert|retire|done")


@dataclass(frozen=True)
class Lease:
    """The right to change one fleet, as it was acquired. fence is higher than any before; 0 is a lease of check mode, which is none."""

    url: str
    fleet: str
    fence: int
    ledger: str
    state_dir: str
    holder: str = ""
    since: str = ""


class Ledger:
    """One ledger. url is an SQLAlchemy URL, empty for the SQLite file `ledger.sqlite3` in state_dir.

    Nothing is opened before the first call and nothing is created before the first `acquire`. Every method raises
    UnreachableError where the database gives no answer, and RefusedError where what it holds is not a ledger.
    A password in the URL is in no message.
    """

    def __init__(self, url: str, state_dir: str) -> None:
        self.url = url
        self.state_dir = state_dir
        if sa is None:
            raise _missing("SQLAlchemy", "SQLAlchemy>=2")
        parsed = _parsed(url, state_dir)
        self._file = parsed.database if parsed.drivername == "sqlite" else ""
        # libpq reads a password of its own, and that of a key, out of the query as well.
        query = {key: values for key, values in parsed.normalized_query.items() if "password" in key}
        self._passwords = [str(item) for values in ((parsed.password,), *query.values()) for item in values if item]
        self.name = self._file or parsed.difference_update_query(query).render_as_string(hide_password=True)
        if self._file:
            self._engine = sa.create_engine(parsed, creator=self._connect_file, poolclass=sa.pool.NullPool)
        else:
            try:
                self._engine = sa.create_engine(
                    parsed,
                    poolclass=sa.pool.NullPool,
                    connect_args={"connect_timeout": PATIENCE, "tcp_user_timeout": PATIENCE * 1000},
                )
            except ImportError:
                raise _missing("psycopg", "psycopg[binary]") from None
            sa.event.listen(self._engine, "do_connect", _connect)
        sa.event.listen(self._engine, "begin", self._begin)

    # Who it is

    @property
    def has_password(self) -> bool:
        """Whether the URL holds a password, and must not be shown."""
        return bool(self._passwords)

    @property
    def id(self) -> str:
        """The ledger's id, a UUID; empty where there is no ledger yet."""
        with self._reading() as (_connection, identity):
            return identity.id if identity else ""

    @property
    def secret(self) -> bytes:
        """The key for hashes of secrets, made with the ledger; empty where there is no ledger yet."""
        with self._reading() as (_connection, identity):
            return bytes.fromhex(identity.secret) if identity else b""

    # The lease

    def acquire(self, fleet: str, by: str, takeover: bool = False, pid: int | None = None) -> Lease:
        """Take the fleet for the process `pid` (of this PID namespace; our own by default), and raise its fence.

        A holder that is gone is succeeded at once; one that cannot be seen from here, when its deadline has passed. takeover
        succeeds any holder, and ends it where it is stopped (SIGSTOP) on this machine. by says who, for people. Raises LeaseError
        with the holder, since when, and the remedy.
        """
        me = Process.of(pid or os.getpid())
        with self._writing(create=fleet) as (connection, identity):
            connection.execute(_new_fleet(fleet))
            row = self._row(connection, identity, fleet, lock=True)
            now = self._clock(connection)
            holder = _process(row)
            if holder is not None and not takeover and (holder != me or row.held_by != by):
                state = self._state(holder)
                if state in (RUNNING, STOPPED) or (state == UNKNOWN and row.expires > now):
                    raise LeaseError(f"fleet {fleet}", *_held_words(row, holder, state, row.expires - now))
            lease = Lease(self.url, fleet, row.fence + 1, identity.id, self.state_dir, f"{by} pid {me.pid}", timestamp())
            self._set(
                connection, fleet, fence=lease.fence, raised=0, holder=_held(me), held_by=by, held_since=lease.since,
                expires=now + TIME_TO_LIVE,
            )
        if holder is not None and holder != me and self._state(holder) == STOPPED:
            holder.end()
        return lease

    def check(self, lease: Lease) -> Head:
        """Raise LeaseError unless the fleet is still this lease's. Renews it where that is due. Returns what heads are to say of it now."""
        with self._reading() as (connection, identity):
            row = self._verified(connection, identity, lease)
            due = row.expires - self._clock(connection) < TIME_TO_LIVE - RENEWAL
        if due:
            self.renew(lease)
        return _head(identity, row)

    def renew(self, lease: Lease) -> None:
        """Put the lease's deadline off. Raises LeaseError where the fleet is no longer this lease's.

        On a full disk nothing is put off, and nothing is lost: nobody else can take the fleet there either.
        """
        try:
            with self._writing() as (connection, identity):
                self._verified(connection, identity, lease, lock=True)
                self._set(connection, lease.fleet, expires=self._clock(connection) + TIME_TO_LIVE)
        except _FullError:
            with self._reading() as (connection, identity):
                self._verified(connection, identity, lease)

    def renew_all(self, run: Process) -> None:
        """Put the deadlines of all fleets off that this run holds. One that somebody works on just now is left to them."""
        with self._writing() as (connection, identity):
            if identity is not None:
                held = sa.select(t.FLEETS.c.name).where(t.FLEETS.c.holder == _held(run)).with_for_update(skip_locked=True)
                expires = self._clock(connection) + TIME_TO_LIVE
                connection.execute(sa.update(t.FLEETS).where(t.FLEETS.c.name.in_(held)).values(expires=expires))

    def give_back(self, lease: Lease) -> None:
        """End the lease, and forget what is too old to be kept. Nothing happens where it was lost already."""
        try:
            with self._writing() as (connection, identity):
                _Book(connection, self._verified(connection, identity, lease, lock=True)).forget()
        except (LeaseError, _FullError):
            pass
        with self._writing() as (connection, identity):
            if identity is not None and identity.id == lease.ledger:
                connection.execute(
                    sa.update(t.FLEETS)
                    .where(t.FLEETS.c.name == lease.fleet, t.FLEETS.c.fence - t.FLEETS.c.raised == lease.fence)
                    .values(holder=None, held_by=None, held_since=None, expires=None)
                )

    def adopt(self, lease: Lease, head: Head, server: int = 0) -> None:
        """Take the fleet over from whoever wrote a head that this ledger does not know (`fleet_adopt`): another ledger, or a newer copy.

        It goes on above the head's fence and records, its releases and server ids (`server` is the highest seen), in a lineage of its own:
        so whoever goes on with the other one is refused everywhere, and who was never here is not. The lease stays as it is; only what
        heads are to say of it changes (see `check`). Nothing happens where the head is known.
        """
        with self._writing() as (connection, identity):
            row = self._verified(connection, identity, lease, lock=True)
            if not head.is_known_to(_head(identity, row)):
                _Book(connection, row).adopt(identity.id, head, server)

    def holder(self, fleet: str) -> dict[str, str] | None:
        """Who holds the fleet now: holder, state (running, stopped, unknown), since, until (ISO 8601); None where nobody does."""
        with self._reading() as (connection, identity):
            row = self._row(connection, identity, fleet) if identity else None
            holder = _process(row)
            if row is None or holder is None:
                return None
            state = self._state(holder)
            left = row.expires - self._clock(connection)
        if state == GONE or (state == UNKNOWN and left <= 0):
            return None
        return {"holder": f"{row.held_by} pid {holder.pid}", "state": state, "since": row.held_since, "until": timestamp(left)}

    # The history

    def fleets(self) -> list[str]:
        """The names of all fleets in this ledger."""
        with self._reading() as (connection, identity):
            return list(connection.scalars(sa.select(t.FLEETS.c.name).order_by(t.FLEETS.c.name))) if identity else []

    def standing(self) -> list[str]:
        """The fleets of this ledger that were not taken away: of which something is live, under way or held."""
        with self._reading() as (connection, identity):
            if identity is None:
                return []
            held = sa.select(t.RESERVATIONS.c.fleet)
            chosen = sa.or_(t.FLEETS.c.live > 0, t.FLEETS.c.entry > 0, t.FLEETS.c.name.in_(held))
            return list(connection.scalars(sa.select(t.FLEETS.c.name).where(chosen).order_by(t.FLEETS.c.name)))

    def history(self, fleet: str) -> History:
        """What is known of the fleet; an empty History of an unknown fleet or of a ledger that does not exist yet."""
        with self._reading() as (connection, identity):
            return _history(connection, identity, fleet)

    @contextmanager
    def planning(self, lease: Lease) -> Iterator[Planning]:
        """One transaction in which a plan is made from the history and written down; nobody else plans meanwhile.

        With a lease of check mode (fence 0) it only reads.
        """
        # What it enters is left by the with-statements in there: pylint: disable=contextmanager-generator-missing-cleanup
        if not lease.fence:
            with self._reading() as (connection, identity):
                yield Planning(connection, identity, lease, None)
            return
        view = None
        try:
            with self._writing() as (connection, identity):
                # The reservations are all fleets' own: so two plans never choose one address. SQLite has one writer anyway.
                if identity is not None:
                    connection.execute(sa.select(t.LEDGER.c.id).with_for_update())
                view = Planning(connection, identity, lease, self._verified(connection, identity, lease, lock=True))
                yield view
        except _FullError:
            if view is None or not view.undoing:
                raise

    def record(self, lease: Lease, record: str, reason: str = "", release: int = 0) -> None:
        """Write one record of the open entry, with what follows from it. Raises RefusedError where it cannot follow the ones before.

        record: "wave K open", "wave K passed", "commit", "revert", "retire" (of `release`), "done". A commit, revert or done
        that stands already is not written twice, so that an answer that got lost can be asked for again.
        """
        if not RECORDS.fullmatch(record):
            raise InvalidError([f'record: "{record}" is not known; write wave K open, wave K passed, commit, revert, retire or done'])
        with self._writing() as (connection, identity):
            _Book(connection, self._verified(connection, identity, lease, lock=True)).record(record, reason, release)

    def reserve(self, lease: Lease, held: Mapping[str, str]) -> None:
        """Keep what instances turned out to hold (`HOST KEY` to their names), beside all that the plan reserved for others.

        An address that one of them had before, and has no more, is anybody's. Raises RefusedError where another instance of this ledger
        holds what one of them turned out to hold.
        """
        with self._writing() as (connection, identity):
            self._verified(connection, identity, lease, lock=True)
            # As for a plan: whoever reserves has the ledger to itself.
            connection.execute(sa.select(t.LEDGER.c.id).with_for_update())
            table = t.RESERVATIONS
            for row in connection.execute(sa.select(table).where(table.c.key.in_(list(held)))).all():
                if row.instance != held[row.key] or row.fleet != lease.fleet:
                    cause = f"{row.key} is what {row.instance} of fleet {row.fleet} holds"
                    remedy = "See who else gives addresses out there, then run again"
                    raise RefusedError(f"instance {held[row.key]}", cause, remedy)
            former = sa.or_(table.c.key.in_(list(held)), table.c.key.not_like("% #%"))
            own = (table.c.fleet == lease.fleet, table.c.instance.in_(list(held.values())))
            connection.execute(sa.delete(table).where(*own, former))
            rows = [{"key": key, "fleet": lease.fleet, "instance": name} for key, name in held.items()]
            if rows:
                connection.execute(sa.insert(table), rows)

    def seal(self, lease: Lease, instances: Iterable[Instance], seals: Mapping[str, str]) -> None:
        """Keep by what stopped instances are known again (see Provider.seals), until a plan starts them.

        A seal that stands is not replaced: whoever was started by somebody else meanwhile does not become trusted by being stopped.
        On a full disk none is kept, and a rollback will make fresh instances.
        """
        try:
            with self._writing() as (connection, identity):
                book = _Book(connection, self._verified(connection, identity, lease, lock=True))
                for number in sorted({item.release for item in instances}):
                    book.seal(number, {item.name: seals[item.name] for item in instances if item.release == number and item.name in seals})
        except _FullError:
            pass

    def register(
        self, lease: Lease, balancer: str, backend: str, servers: Iterable[Server] | None = None,
    ) -> tuple[Registration, ...]:
        """Keep that a balancer is about to be told of `servers` in `backend` (None: it is only looked at), before it is.

        Returns the registrations there of which a receipt, or the end of a process that lingers, is waited for: those told now left out.
        """
        own = re.compile(rf"{re.escape(lease.fleet)}-r[1-9][0-9]*-[1-9][0-9]*")
        listed = [server for server in servers or () if own.fullmatch(server.name)]
        known: dict[str, Registration] = {}
        new: list[Registration] = []
        try:
            with self._writing() if listed else self._reading() as (connection, identity):
                self._verified(connection, identity, lease, lock=bool(listed))
                known = {item.server: item for item in _registrations(connection, lease.fleet, balancer, backend)}
                new = [law.registered(known.get(server.name), server, balancer, backend) for server in listed]
                _store(connection, lease, new)
        except _FullError:
            # What says nothing new need not be written, so that undoing goes on.
            if any(item.server not in known or replace(item, turn=known[item.server].turn) != known[item.server] for item in new):
                raise
        told = {item.server for item in new}
        return tuple(item for item in known.values() if item.server not in told and not item.is_settled)

    def receive(self, lease: Lease, balancer: str, backend: str, said: Iterable[Mapping[str, Any]]) -> tuple[Registration, ...]:
        """Keep what a balancer has said of servers that are out of `backend` (see `receipts` in the module haproxy_backend).

        Returns the registrations with their receipts. On a full disk they are not kept: then they count in this run alone.
        """
        heard = {str(item["name"]): item for item in said}
        if not heard:
            return ()
        new: list[Registration] = []
        try:
            with self._writing() as (connection, identity):
                self._verified(connection, identity, lease, lock=True)
                for item in _registrations(connection, lease.fleet, balancer, backend):
                    answer = heard.get(item.server)
                    if answer and (answer["address"], int(answer["port"])) == (item.address, item.port):
                        new.append(law.confirmed(item, answer, lease.fence, timestamp()))
                _store(connection, lease, new)
        except _FullError:
            pass
        return tuple(new)

    def permit(
        self, lease: Lease, instances: Iterable[Instance], fresh: Iterable[Registration] = (), lost: Iterable[str] = (),
    ) -> None:
        """Raises LeaseError where the fleet is no longer this lease's, RefusedError where one of the instances may still be served.

        To be asked right before each instance is stopped or destroyed. fresh and lost: see `refuse_serving`.
        """
        with self._reading() as (connection, identity):
            self._verified(connection, identity, lease)
            law.refuse_serving(_registrations(connection, lease.fleet), instances, fresh, frozenset(lost))

    def began(self, lease: Lease, task: str, doing: str) -> None:
        """Keep a task that a cluster was given, until the undertaking has ended. On a full disk it is not kept."""
        try:
            with self._writing() as (connection, identity):
                self._verified(connection, identity, lease)
                connection.execute(sa.insert(t.TASKS).values(task=task, fleet=lease.fleet, doing=doing))
        except _FullError:
            pass

    def under_way(self, fleet: str) -> dict[str, str]:
        """The tasks that were kept, and what they do."""
        with self._reading() as (connection, identity):
            if identity is None or identity.version < 3:
                return {}
            kept = connection.execute(sa.select(t.TASKS.c.task, t.TASKS.c.doing).where(t.TASKS.c.fleet == fleet))
            return {row.task: row.doing for row in kept}

    @contextmanager
    def turn(self, lease: Lease, name: str, width: int, seconds: float, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Wait until fewer than `width` others that came before are at work on `name`, whatever fleet's, and keep a place there meanwhile.

        A run that was killed loses its places with its lease. Raises DeadlineError after `seconds`, LeaseError where the fleet is
        another's. say is told once who is waited for. Nobody is waited for on a full disk, nor in the tables of an earlier collection
        (see `_upgrade`).
        """
        number = self._queue(lease, name)
        deadline, told = time.monotonic() + seconds, say is None
        try:
            while number:
                ahead = self._ahead(lease, name, number)
                if len(ahead) < width:
                    break
                who = ", ".join(sorted(set(ahead)))
                if time.monotonic() > deadline:
                    remedy = "See what those runs are at (phoenix.fleet.status), then run again"
                    raise DeadlineError(name, f"no turn within {seconds:.0f} s; at work or ahead: fleet {who}", remedy)
                if say and not told:
                    say(f"waits for its turn: {name}, after fleet {who}")
                    told = True
                time.sleep(TURN_INTERVAL)
            yield
        finally:
            if number:
                self._leave(name, number)

    def _queue(self, lease: Lease, name: str) -> int:
        """The number of a new place behind all others, 0 where none is kept."""
        try:
            with self._writing() as (connection, identity):
                self._verified(connection, identity, lease)
                if identity.version < 5:
                    return 0
                connection.execute(sa.select(t.LEDGER.c.id).with_for_update())
                rows = self._places(connection, identity, name)
                void = [row.number for row, held in rows if not held]
                connection.execute(sa.delete(t.TURNS).where(t.TURNS.c.name == name, t.TURNS.c.number.in_(void)))
                number = max((row.number for row, _held in rows), default=0) + 1
                connection.execute(sa.insert(t.TURNS).values(name=name, number=number, fleet=lease.fleet, fence=lease.fence))
                return number
        except _FullError:
            return 0

    def _ahead(self, lease: Lease, name: str, number: int) -> list[str]:
        """The fleets of the places before this one."""
        with self._reading() as (connection, identity):
            self._verified(connection, identity, lease)
            return [row.fleet for row, held in self._places(connection, identity, name) if held and row.number < number]

    def _leave(self, name: str, number: int) -> None:
        with suppress(_FullError), self._writing() as (connection, identity):
            if identity is not None:
                connection.execute(sa.delete(t.TURNS).where(t.TURNS.c.name == name, t.TURNS.c.number == number))

    def _places(self, connection: Any, identity: Any, name: str) -> list[tuple[Any, bool]]:
        """The rows of a name in their order, each with whether its lease is held."""
        rows = connection.execute(sa.select(t.TURNS).where(t.TURNS.c.name == name).order_by(t.TURNS.c.number)).all()
        now = self._clock(connection)
        fleets = {row.fleet: self._row(connection, identity, row.fleet) for row in rows}

        def is_held(place: Any) -> bool:
            row = fleets[place.fleet]
            holder = _process(row)
            if holder is None or row.fence - row.raised != place.fence:
                return False
            state = self._state(holder)
            return state in (RUNNING, STOPPED) or (state == UNKNOWN and row.expires > now)

        return [(row, is_held(row)) for row in rows]

    def spent_images(self, lease: Lease, keep: int) -> tuple[Image, ...]:
        """The images that only releases out of retention used, the newest `keep` left out: by digest, once for each name they were given.

        What the open entry takes out of retention counts as out of it. There are none before the commit, and none while undoing.
        """
        with self._reading() as (connection, identity):
            return _Book(connection, self._verified(connection, identity, lease)).spent_images(keep)

    def verify(self, fleet: str) -> list[str]:
        """Findings about the fleet's records: every one that was changed, removed or slipped in. Empty where the chain is whole."""
        with self._reading() as (connection, identity):
            row = self._row(connection, identity, fleet) if identity else None
            if row is None:
                return []
            number, chain = row.checkpoint, row.checkpoint_hash
            for event in connection.execute(sa.select(t.EVENTS).where(t.EVENTS.c.fleet == fleet).order_by(t.EVENTS.c.number)):
                # Adopting goes on above the numbers of the other ledger, and says where it went on from.
                number = event.number if event.record == ADOPT and event.data.get("after") == number else number + 1
                if event.number != number:
                    return [f"the ledger's record {number} of {fleet} is missing"]
                if event.hash != _hash(chain, event._mapping):
                    return [f"the ledger's record {number} of {fleet} ({event.record}, {event.at}) is not what was written"]
                chain = event.hash
            if (number, chain) != (row.records, row.chain):
                return [f"the ledger's records of {fleet} end with {number}, but {row.records} were written"]
        return []

    # Transactions

    @contextmanager
    def _reading(self) -> Iterator[tuple[Any, Any]]:
        """A snapshot: the connection and the ledger's own row, which is None where there is no ledger."""
        if self._file and not os.path.exists(self._file):
            yield None, None
            return
        with self._explained(), self._engine.connect() as connection:
            if not self._file:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection, self._identity(connection)

    @contextmanager
    def _writing(self, create: str = "") -> Iterator[tuple[Any, Any]]:
        """As `_reading`, with changes, committed at the end. create (for a fleet) makes the ledger where there is none, or upgrades it."""
        if self._file and create:
            self._make_file()
        if self._file and not os.path.exists(self._file):
            yield None, None
            return
        with self._explained(), self._engine.connect() as connection:
            connection = connection.execution_options(phoenix_write=True)
            identity = self._identity(connection)
            if create and (identity is None or identity.version < t.VERSION):
                identity = self._create(connection) if identity is None else self._upgrade(connection, create)
            yield connection, identity
            connection.commit()

    def _begin(self, connection: Any) -> None:
        write = connection.get_execution_options().get("phoenix_write", False)
        if self._file:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        elif write:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE}s'")

    def _connect_file(self) -> sqlite3.Connection:
        # No isolation level: the driver begins nothing by itself. A persistent journal keeps its blocks, so that a small change
        # succeeds on a full disk; unlike a write-ahead log it needs no space to be read. synchronous is FULL unless told otherwise.
        uri = f"file:{quote(self._file)}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = PERSIST")
        return connection

    def _make_file(self) -> None:
        folder = os.path.dirname(self._file)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            # It keeps environments, in which secrets may be: a file that was restored from elsewhere becomes its owner's alone as well.
            for path in (self._file, f"{self._file}-journal"):
                if os.path.exists(path) and os.stat(path).st_mode & 0o077:
                    os.chmod(path, 0o600)
        except OSError as error:
            raise UnreachableError(
                f"ledger {self.name}", f"cannot be written: {error.strerror}",
                f"Let this user write to {folder}, or set fleet_state_dir to a folder where it may",
            ) from None
        kind = _network_filesystem(folder)
        if kind:
            raise RefusedError(
                f"ledger {self.name}", f"{folder} is on a network file system ({kind}), where SQLite's locks do not hold",
                "Set fleet_state_dir to a local folder, or fleet_ledger to the URL of a PostgreSQL database",
            )

    def _identity(self, connection: Any, anew: bool = False) -> Any:
        if not connection.in_transaction():
            connection.begin()  # outside of the try: a lock that cannot be had says nothing about the tables
        try:
            rows = connection.execute(sa.select(t.LEDGER)).all()
            cause = "is empty"
        except (sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            connection.rollback()
            there = connection.dialect.has_table(connection, t.LEDGER.name)
            connection.rollback()
            if not there:
                return None
            if not anew:
                return self._identity(connection, anew=True)  # somebody has made it meanwhile
            rows, cause = [], str(error.orig).splitlines()[0]
        if len(rows) != 1:
            cause = f"its table {t.LEDGER.name} is not one of phoenix.fleet ({cause})"
            raise RefusedError(f"ledger {self.name}", cause, "Set fleet_ledger to another database")
        if rows[0].version > t.VERSION:
            raise RefusedError(
                f"ledger {self.name}", f"it was made by a later phoenix.fleet (tables {rows[0].version}, this one knows {t.VERSION})",
                "Update the collection on this controller",
            )
        return rows[0]

    def _create(self, connection: Any) -> Any:
        if not self._file:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7450861)")  # any number, as long as all of us take the same
        if not connection.dialect.has_table(connection, t.LEDGER.name):
            t.TABLES.create_all(connection, checkfirst=False)
            new = {"version": t.VERSION, "id": str(uuid.uuid4()), "secret": secrets.token_hex(32), "created": timestamp()}
            connection.execute(sa.insert(t.LEDGER).values(new))
        return self._identity(connection)

    def _upgrade(self, connection: Any, fleet: str) -> Any:
        """Add the tables and columns that an earlier version did not have. Raises RefusedError while a run holds another fleet than this.

        An earlier collection refuses a later one's tables at every call: in the middle of its work it would neither go on nor back.
        """
        if not self._file:
            connection.exec_driver_sql("LOCK TABLE phoenix_fleets IN ACCESS EXCLUSIVE MODE")
        identity = self._identity(connection)
        if identity.version >= t.VERSION:  # somebody has done it meanwhile
            return identity
        now = self._clock(connection)
        for row in connection.execute(t.fleets(identity.version).where(t.FLEETS.c.name != fleet, t.FLEETS.c.holder.is_not(None))):
            holder = Process(**json.loads(row.holder))
            state = self._state(holder)
            if state in (RUNNING, STOPPED) or (state == UNKNOWN and row.expires > now):
                words, remedy = _held_words(row, holder, state, row.expires - now)
                cause = f"its tables ({identity.version}) are an earlier collection's, and its fleet {row.name} is {words}"
                raise RefusedError(f"ledger {self.name}", cause, f"{remedy}, for fleet {row.name}. Then run again")
        t.TABLES.create_all(connection)
        for table in t.TABLES.tables.values():
            there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
            for column in table.c:
                if column.name not in there:
                    words = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {words}")
        connection.execute(sa.update(t.LEDGER).values(version=t.VERSION))
        return self._identity(connection)

    # Rows

    def _row(self, connection: Any, identity: Any, fleet: str, lock: bool = False) -> Any:
        chosen = t.fleets(identity.version).where(t.FLEETS.c.name == fleet)
        return connection.execute(chosen.with_for_update() if lock else chosen).one_or_none()

    def _set(self, connection: Any, fleet: str, **values: Any) -> None:
        connection.execute(sa.update(t.FLEETS).where(t.FLEETS.c.name == fleet).values(values))

    def _verified(self, connection: Any, identity: Any, lease: Lease, lock: bool = False) -> Any:
        if identity is None or identity.id != lease.ledger:
            raise LeaseError(
                f"fleet {lease.fleet}", f"the ledger {self.name} that this run began with is no longer there",
                "Restore it; without a copy of it, run again with fleet_adopt=true, which goes on from what the balancers say",
            )
        row = self._row(connection, identity, lease.fleet, lock)
        if row is None or row.fence - row.raised != lease.fence or row.holder is None:
            taken = f"{row.held_by} took it over at {row.held_since}" if row is not None and row.holder else "it was given back"
            raise LeaseError(
                f"fleet {lease.fleet}", f"this run has lost its lease {lease.fence}: {taken}",
                "This run does no more; see what is live with phoenix.fleet.status",
            )
        return row

    def _clock(self, connection: Any) -> float:
        """Seconds by which leases expire: the server's, or of this machine's boot, which nobody can set."""
        if self._file:
            return uptime()
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")))

    def _state(self, holder: Process) -> str:
        # A file belongs to one machine: who wrote it before the last boot is gone.
        return GONE if self._file and holder.boot != boot_id() else holder.state()

    # Errors

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._explanation(error.orig) from None
        except sqlite3.Error as error:
            raise self._explanation(error) from None

    def _explanation(self, error: Any) -> FleetError:
        what = f"ledger {self.name}"
        if not self._file:
            # Not its details: they may be a whole row.
            cause = " ".join(str(getattr(getattr(error, "diag", None), "message_primary", None) or error).split())
            for password in self._passwords:
                cause = cause.replace(password, "***")
            return UnreachableError(what, cause, "Check fleet_ledger, that the server runs, and that its user may create tables there")
        code = str(getattr(error, "sqlite_errorname", ""))
        folder = os.path.dirname(self._file)
        if code == "SQLITE_FULL":
            return _FullError(what, "the disk is full", f"Free some space in {folder} and run again: what is recorded stands")
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return UnreachableError(what, f"cannot be opened or written ({error})", f"Let this user write to {folder} and the files in it")
        if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return RefusedError(
                what, f"is damaged, or no SQLite database ({error})",
                "Restore it; without a copy, move it away and run again with fleet_adopt=true, which goes on from what the balancers say",
            )
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return UnreachableError(what, f"another process has locked it for {PATIENCE} s", f"See which with: fuser -v {self._file}")
        return UnreachableError(what, str(error), f"See that {folder} can be written")


class Planning:
    """The transaction in which a plan is made and written down. undoing: what was opened takes things away, and can do without a record."""

    def __init__(self, connection: Any, identity: Any, lease: Lease, row: Any) -> None:
        self._connection = connection
        self._identity = identity
        self._lease = lease
        self._row = row
        self.undoing = False

    def history(self) -> History:
        """What is known of the fleet."""
        return _history(self._connection, self._identity, self._lease.fleet)

    def open(self, plan: Plan, by: str, registrations: Iterable[Registration] = ()) -> None:
        """Write the plan's intent, its release where that is new, and what the fleet holds from now on.

        registrations are those that changed before the plan was made (see `from_before` and `given_up`).
        A plan for the open entry's target goes on with that entry; one that takes a committed release back reverts it by that.
        Otherwise the open entry is closed, its target failed unless it was committed. What only undoes succeeds on a full disk
        too. Raises RefusedError where the number or an address was taken meanwhile.
        """
        if self._row is None:
            raise RefusedError(f"fleet {self._lease.fleet}", "nothing is recorded in check mode", "Run without --check")
        made = [Registration(item.name, "", "") for item in _made(plan)]
        _store(self._connection, self._lease, [*made, *registrations])
        _forget(self._connection, self._lease.fleet, plan)
        self.undoing = _Book(self._connection, self._row).open(plan, by)

    def remember(self, release: Release) -> None:
        """Keep the definition of a release that stands, where its plan turned out to have nothing to do."""
        _Book(self._connection, self._row).remember(release)


class _Book:
    """What each record means for the tables, in a transaction that holds the fleet's row."""

    def __init__(self, connection: Any, row: Any) -> None:
        self._connection = connection
        self._row = dict(row._mapping)
        self._changed: dict[str, Any] = {}
        self._fleet: str = row.name
        self._now = timestamp()

    def open(self, plan: Plan, by: str) -> bool:
        """Whether it would do no harm if nothing of this were written."""
        entry = self._entry()
        why = "; ".join(plan.reasons)
        same = entry is not None and entry.target == plan.target
        undoing = same and plan.outcome == "failed"
        if undoing:
            written = _records(self._connection, self._fleet, entry.number)
            served = "commit" in written or any(step.kind == "switch" for wave in plan.waves for step in wave)
            if served and entry.source != entry.target and "revert" not in written:
                self._append(entry.number, "revert", why, {"source": entry.source, "target": entry.target, "release": entry.target})
                self._revert(entry, why)
                undoing = False
            self._change_entry(entry, outcome="failed", reason=why)
        elif same and plan.verb == entry.verb:
            if entry.size and plan.release is not None:
                # Another size was asked for since: it counts with the commit, which may stand already.
                self._change_entry(entry, size=plan.release.size)
            self._reserve(plan)
        else:
            if entry is not None:
                self._close(entry, entry.reason or f"given up for {plan.verb} by {by}")
            size = self._write_release(plan, plan.release, by) if plan.release is not None else 0
            self._append(self._new_entry(plan, by, size), "intent", why, _intent(plan, by))
            self._reserve(plan)
        if plan.release is not None:
            self.remember(plan.release)
        made = _made(plan)
        for number in sorted({item.release for item in made}):
            self.seal(number, {}, without={item.name for item in made})
        self._flush()
        return undoing

    def adopt(self, ledger: str, head: Head, server: int) -> None:
        row, records = self._row, self._row["records"]
        fence = max(row["fence"], head.fence) + 1
        known = [part for part in row["lineage"].split("/") if part]
        former = [] if head.line in (ledger, *known) else [head.line]
        # One of its own for each run: where that takes over several balancers, they go on as one.
        parts = [*known[:-1], *former, known[-1]] if row["raised"] else [*known, *former, secrets.token_hex(4)]
        self._set(
            fence=fence, raised=row["raised"] + fence - row["fence"], lineage="/".join(parts),
            next_release=max(row["next_release"], head.next), next_server=max(row["next_server"], server + 1),
        )
        self._append(0, ADOPT, "", {"head": to_dict(head), "after": records}, max(records, head.records) + 1)
        self._flush()

    def forget(self) -> None:
        """Keep the newest KEPT records, and the entries and releases that they speak of; the chain begins behind the rest from now on.

        Stay do as well: what the open entry has written, releases that are live, standby or hold anything, and of those that were
        rejected the newest of each digest, since that is what holds it off. Numbers are the fleet's own.
        """
        events, entries, releases = t.EVENTS.c, t.ENTRIES.c, t.RELEASES.c
        of_fleet = events.fleet == self._fleet
        newest = sa.select(events.number).where(of_fleet).order_by(events.number.desc())
        last = self._connection.scalar(newest.offset(KEPT).limit(1)) or 0
        if self._row["entry"]:
            first = self._connection.scalar(sa.select(sa.func.min(events.number)).where(of_fleet, events.entry == self._row["entry"]))
            last = self._connection.scalar(newest.where(events.number <= min(last, (first or last) - 1)).limit(1)) or 0
        if not last:
            return
        checkpoint = self._connection.scalar(sa.select(events.hash).where(of_fleet, events.number == last))
        self._connection.execute(sa.delete(t.EVENTS).where(of_fleet, events.number <= last))
        self._set(checkpoint=last, checkpoint_hash=checkpoint)
        spoken = sa.select(events.entry).where(of_fleet)
        self._connection.execute(sa.delete(t.ENTRIES).where(entries.fleet == self._fleet, entries.number.not_in(spoken)))
        named = {number for row in self._connection.execute(sa.select(entries.source, entries.target).where(entries.fleet == self._fleet))
                 for number in row}
        for table in (t.RESERVATIONS, t.SERVERS):
            named.update(map(_release_of, self._connection.scalars(sa.select(table.c.instance).where(table.c.fleet == self._fleet))))
        named.update(map(_release_of, (item.server for item in _registrations(self._connection, self._fleet) if not item.is_settled)))
        held: set[str] = set()
        chosen = sa.select(releases.number, releases.status, releases.digest).where(releases.fleet == self._fleet)
        for row in self._connection.execute(chosen.order_by(releases.number.desc())).all():
            holds = row.status == "failed" and row.digest not in held
            held.update([row.digest] if holds else [])
            if not holds and row.status in ("failed", "retired") and row.number not in named:
                self._connection.execute(sa.delete(t.RELEASES).where(releases.fleet == self._fleet, releases.number == row.number))
        self._flush()

    def remember(self, release: Release) -> None:
        self._mark(release.number, definition=_plain(release.definition))

    def seal(self, number: int, seals: Mapping[str, str], without: Iterable[str] = ()) -> None:
        """Add seals to those of a release that stand, of which `without` are given up first."""
        where = (t.RELEASES.c.fleet == self._fleet, t.RELEASES.c.number == number)
        standing = self._connection.scalar(sa.select(t.RELEASES.c.seals).where(*where)) or {}
        wanted = {**seals, **{name: seal for name, seal in standing.items() if name not in without}}
        if wanted != standing:
            self._mark(number, seals=wanted)

    def spent_images(self, keep: int) -> tuple[Image, ...]:
        entry = self._entry()
        if entry is None or not (entry.outcome == "retired" or (entry.outcome == "live" and self._row["live"] == entry.target)):
            return ()
        columns = [t.RELEASES.c[name] for name in ("fleet", "number", "status", "image", "digest")]
        rows = self._connection.execute(sa.select(*columns).order_by(t.RELEASES.c.number.desc())).all()
        own = [row for row in rows if row.fleet == self._fleet]
        leaving = {row.number for row in own if row.number in entry.retires or entry.outcome == "retired"}
        used = {
            row.digest for row in rows
            if row.status not in ("retired", "failed") and not (row.fleet == self._fleet and row.number in leaving)
        }
        spent = [Image(row.image, row.digest) for row in own if row.digest and row.digest not in used]
        newest = list(dict.fromkeys(image.digest for image in spent))[:keep]
        return tuple(image for image in dict.fromkeys(spent) if image.digest not in newest)

    def record(self, record: str, reason: str, release: int) -> None:
        entry = self._entry()
        if entry is None:
            if record == "done":
                return
            raise RefusedError(f"fleet {self._fleet}", f"nothing is under way that a record {record} could belong to", "Run it again")
        written = _records(self._connection, self._fleet, entry.number)
        if record == "commit" and ("revert" in written or not entry.target):
            raise RefusedError(f"fleet {self._fleet}", f"release {entry.target} was rejected, and is never promoted", "Release again")
        if record in ("revert", "retire") and record in written:
            return
        if record != "commit" or record not in written:
            self._append(entry.number, record, reason, {"source": entry.source, "target": entry.target, "release": release or entry.target})
        if record == "commit":
            self._commit(entry)
        elif record == "revert":
            self._revert(entry, reason)
        elif record == "done":
            self._finish(entry, written)
            self._close(entry, reason or entry.reason)
        self._flush()

    def _commit(self, entry: Any) -> None:
        if self._row["live"] != entry.target:
            self._mark(self._row["live"], "live", status="standby")
            self._set(live=entry.target, since=self._now)
        size = {"size": entry.size} if entry.size else {}
        self._mark(entry.target, status="live", committed=entry.number, finished=self._now, reason="", **size)

    def _revert(self, entry: Any, reason: str) -> None:
        if entry.source == entry.target:
            return
        if self._row["live"] == entry.target:
            self._mark(entry.source, status="live")
            self._set(live=entry.source, since=self._now if entry.source else "")
        self._mark(entry.target, status="failed", finished=self._now, reason=reason)

    def _finish(self, entry: Any, written: tuple[str, ...]) -> None:
        if entry.outcome == "live" and self._row["live"] == entry.target:
            for number in entry.retires:
                self._mark(number, "standby", status="retired")
        elif entry.outcome == "retired" and "retire" in written:
            for status in ("live", "standby"):
                self._mark(None, status, status="retired")
            self._set(live=0, since="")
            self._connection.execute(sa.delete(t.SERVERS).where(t.SERVERS.c.fleet == self._fleet))
            # An address to which a balancer may still send requests stays taken.
            waiting = {item.server for item in _registrations(self._connection, self._fleet) if not item.is_settled}
            free = (t.RESERVATIONS.c.fleet == self._fleet, t.RESERVATIONS.c.instance.not_in(sorted(waiting)))
            self._connection.execute(sa.delete(t.RESERVATIONS).where(*free))

    def _close(self, entry: Any, reason: str) -> None:
        self._mark(entry.target, "open", status="failed", finished=self._now, reason=reason)
        self._change_entry(entry, finished=self._now, reason=reason)
        self._connection.execute(sa.delete(t.TASKS).where(t.TASKS.c.fleet == self._fleet))
        self._set(entry=0)

    def _new_entry(self, plan: Plan, by: str, size: int) -> int:
        highest = self._connection.scalar(sa.select(sa.func.max(t.ENTRIES.c.number)).where(t.ENTRIES.c.fleet == self._fleet))
        number = int(highest or 0) + 1
        self._insert(
            t.ENTRIES, fleet=self._fleet, number=number, verb=plan.verb, source=plan.source, target=plan.target, outcome=plan.outcome,
            size=size, retires=_emptied(plan, self._fleet), by=by, started=self._now, finished="", reason="",
        )
        self._set(entry=number)
        return number

    def _write_release(self, plan: Plan, release: Release, by: str) -> int:
        """Write a new release. Returns the size that a known one takes by the commit."""
        following = self._row["next_release"]
        if plan.verb == "release" and release.number < following:
            raise RefusedError(f"fleet {self._fleet}", f"release {release.number} was taken meanwhile", f"Run again, for {following}")
        where = (t.RELEASES.c.fleet == self._fleet, t.RELEASES.c.number == release.number)
        if self._connection.scalar(sa.select(t.RELEASES.c.number).where(*where)) is not None:
            return release.size
        self._insert(
            t.RELEASES, fleet=self._fleet, number=release.number, status="open", image=release.image, digest=release.digest,
            hash=release.hash, size=release.size, revision=release.revision, definition=_plain(release.definition), by=by,
            started=self._now, finished="", reason="", committed=0, seals={},
        )
        self._set(next_release=max(following, release.number + 1))
        return 0

    def _reserve(self, plan: Plan) -> None:
        table = t.RESERVATIONS
        for other in self._connection.execute(sa.select(table).where(table.c.fleet != self._fleet)):
            if other.key in plan.reserved:
                raise RefusedError(
                    f"fleet {self._fleet}", f"{other.key} was taken meanwhile, by {other.instance} of fleet {other.fleet}", "Run again"
                )
        self._replace(table, "key", "instance", plan.reserved)
        known = {row.band: row.following for row in self._connection.execute(sa.select(t.BANDS))}
        for band, following in plan.issued.items():
            if band not in known:
                self._insert(t.BANDS, band=band, following=following)
            elif following > known[band]:
                self._connection.execute(sa.update(t.BANDS).where(t.BANDS.c.band == band).values(following=following))
        self._replace(t.SERVERS, "instance", "id", plan.servers)
        highest = max(plan.servers.values(), default=0)
        if highest >= self._row["next_server"]:
            self._set(next_server=highest + 1)

    def _replace(self, table: Any, key: str, value: str, wanted: Mapping[str, Any]) -> None:
        rows = self._connection.execute(sa.select(table.c[key], table.c[value]).where(table.c.fleet == self._fleet))
        former = {row[0]: row[1] for row in rows}
        if former == wanted:
            return
        self._connection.execute(sa.delete(table).where(table.c.fleet == self._fleet))
        if wanted:
            self._connection.execute(sa.insert(table), [{"fleet": self._fleet, key: name, value: item} for name, item in wanted.items()])

    def _append(self, entry: int, record: str, reason: str, data: Mapping[str, Any], number: int = 0) -> None:
        event = {
            "fleet": self._fleet, "number": number or self._row["records"] + 1, "entry": entry, "record": record, "reason": reason,
            "data": _plain(data), "fence": self._row["fence"], "at": self._now,
        }
        event["hash"] = _hash(self._row["chain"], event)
        self._insert(t.EVENTS, **event)
        self._set(records=event["number"], chain=event["hash"])

    def _entry(self) -> Any:
        if not self._row["entry"]:
            return None
        where = (t.ENTRIES.c.fleet == self._fleet, t.ENTRIES.c.number == self._row["entry"])
        return self._connection.execute(sa.select(t.ENTRIES).where(*where)).one()

    def _change_entry(self, entry: Any, **values: Any) -> None:
        if any(entry._mapping[key] != value for key, value in values.items()):
            where = (t.ENTRIES.c.fleet == self._fleet, t.ENTRIES.c.number == entry.number)
            self._connection.execute(sa.update(t.ENTRIES).where(*where).values(values))

    def _mark(self, number: int | None, current: str = "", **values: Any) -> None:
        change = sa.update(t.RELEASES).where(t.RELEASES.c.fleet == self._fleet).values(values)
        if number is not None:
            change = change.where(t.RELEASES.c.number == number)
        if current:
            change = change.where(t.RELEASES.c.status == current)
        self._connection.execute(change)

    def _insert(self, table: Any, **values: Any) -> None:
        self._connection.execute(sa.insert(table).values(values))

    def _set(self, **values: Any) -> None:
        self._row.update(values)
        self._changed.update(values)

    def _flush(self) -> None:
        if self._changed:
            self._connection.execute(sa.update(t.FLEETS).where(t.FLEETS.c.name == self._fleet).values(self._changed))


class _FullError(UnreachableError):
    """The disk is full."""


def timestamp(seconds: float = 0.0) -> str:
    """The time now, or so many seconds from now, in UTC as ISO 8601. For people: nothing is ever judged by it."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _history(connection: Any, identity: Any, fleet: str) -> History:
    if identity is None:
        return History(ledger="", next_server=FIRST_SERVER)
    reserved = {row.key: row.instance for row in connection.execute(sa.select(t.RESERVATIONS.c.key, t.RESERVATIONS.c.instance))}
    issued = {row.band: row.following for row in connection.execute(sa.select(t.BANDS))} if identity.version > 1 else {}
    row = connection.execute(t.fleets(identity.version).where(t.FLEETS.c.name == fleet)).one_or_none()
    if row is None:
        return History(ledger=identity.id, next_server=FIRST_SERVER, reserved=reserved, issued=issued)
    columns = [t.RELEASES.c[name] for name in Release.__dataclass_fields__]
    releases = connection.execute(sa.select(*columns).where(t.RELEASES.c.fleet == fleet).order_by(t.RELEASES.c.number))
    servers = connection.execute(sa.select(t.SERVERS.c.instance, t.SERVERS.c.id).where(t.SERVERS.c.fleet == fleet))
    entry = None
    if row.entry:
        columns = [t.ENTRIES.c[name] for name in ("number", "verb", "source", "target")]
        open_entry = connection.execute(sa.select(*columns).where(t.ENTRIES.c.fleet == fleet, t.ENTRIES.c.number == row.entry)).one()
        entry = Entry(**open_entry._mapping, records=_records(connection, fleet, row.entry))
    return History(
        ledger=identity.id, fence=row.fence, live=row.live, next_release=row.next_release, next_server=row.next_server,
        releases=tuple(Release(**release._mapping) for release in releases), entry=entry,
        servers={server.instance: server.id for server in servers}, reserved=reserved, since=row.since, issued=issued,
        records=row.records, lineage=row.lineage, registrations=_registrations(connection, fleet) if identity.version > 3 else (),
        released=_released(connection) if identity.version > 3 else {},
    )


def _registrations(connection: Any, fleet: str, balancer: str | None = None, backend: str = "") -> tuple[Registration, ...]:
    """Those of a fleet's servers; with a balancer only those at one of its backends."""
    table = t.REGISTRATIONS
    chosen = sa.select(table).where(table.c.fleet == fleet).order_by(table.c.server, table.c.balancer, table.c.backend)
    if balancer is not None:
        chosen = chosen.where(table.c.balancer == balancer, table.c.backend == backend)
    return tuple(
        Registration(
            row.server, row.balancer, row.backend, row.address, row.port, row.weight, row.turn,
            Receipt(**{**row.receipt, "processes": tuple(row.receipt["processes"])}) if row.receipt else None,
        )
        for row in connection.execute(chosen)
    )


def _store(connection: Any, lease: Lease, rows: Iterable[Registration]) -> None:
    """Write registrations, in the place of their former versions."""
    table = t.REGISTRATIONS
    for item in rows:
        key = {"fleet": lease.fleet, "server": item.server, "balancer": item.balancer, "backend": item.backend}
        value = {
            "address": item.address, "port": item.port, "weight": item.weight, "turn": item.turn, "fence": lease.fence,
            "told": timestamp(), "receipt": _plain(to_dict(item.receipt)) if item.receipt else sa.null(),
        }
        where = [table.c[name] == text for name, text in key.items()]
        if not connection.execute(sa.update(table).where(*where).values(value)).rowcount:
            connection.execute(sa.insert(table).values({**key, **value}))


def _forget(connection: Any, fleet: str, plan: Plan) -> None:
    """Remove the registrations of servers that are no more: once nobody waits for anything there, and their address is another's."""
    table = t.REGISTRATIONS
    held = {key.partition(" ")[2]: name for key, name in plan.reserved.items()}
    for item in _registrations(connection, fleet):
        now = held.get(item.address) or held.get(f"{item.address}:{item.port}")
        if item.server not in plan.servers and item.is_settled and (not item.balancer or now not in (None, item.server)):
            where = (table.c.fleet == fleet, table.c.server == item.server, table.c.balancer == item.balancer)
            connection.execute(sa.delete(table).where(*where, table.c.backend == item.backend))


def _released(connection: Any) -> dict[str, str]:
    """The addresses, with and without port, that servers had which are out, and since when."""
    table = t.REGISTRATIONS
    found: dict[str, str] = {}
    for row in connection.execute(sa.select(table.c.address, table.c.port, table.c.receipt).where(table.c.balancer != "")):
        if row.receipt:
            for key in (row.address, f"{row.address}:{row.port}"):
                found[key] = max(found.get(key, ""), row.receipt["at"])
    return found


def _records(connection: Any, fleet: str, entry: int) -> tuple[str, ...]:
    chosen = sa.select(t.EVENTS.c.record).where(t.EVENTS.c.fleet == fleet, t.EVENTS.c.entry == entry).order_by(t.EVENTS.c.number)
    return tuple(connection.scalars(chosen))


def _new_fleet(fleet: str) -> Any:
    return sa.text(
        "INSERT INTO phoenix_fleets (name, fence, live, since, next_release, next_server, entry, records, chain) "
        f"VALUES (:name, 0, 0, '', 1, {FIRST_SERVER}, 0, 0, '') ON CONFLICT DO NOTHING"
    ).bindparams(name=fleet)


def _emptied(plan: Plan, fleet: str) -> list[int]:
    """The releases of which a plan leaves nothing."""
    gone = {item.name: item.release for wave in plan.waves for step in wave if step.kind == "destroy" for item in step.instances}
    left = [name for name in {*plan.reserved.values(), *plan.servers} if name not in gone]
    return sorted(number for number in set(gone.values()) if not any(name.startswith(f"{fleet}-r{number}-") for name in left))


def _release_of(name: str) -> int:
    """The release in an instance's name."""
    found = re.search(r"-r([1-9][0-9]*)-[1-9][0-9]*$", name)
    return int(found[1]) if found else 0


def _made(plan: Plan) -> list[Instance]:
    return [item for wave in plan.waves for step in wave if step.kind in ("create", "start") for item in step.instances]


def _intent(plan: Plan, by: str) -> dict[str, Any]:
    made = _made(plan)
    return {
        "verb": plan.verb, "source": plan.source, "target": plan.target, "outcome": plan.outcome, "by": by,
        "digest": plan.release.digest if plan.release else "", "hash": plan.release.hash if plan.release else "",
        "addresses": {item.name: f"{item.host} {item.address}:{item.port}" for item in made},
        "servers": {item.name: plan.servers[item.name] for item in made if item.name in plan.servers},
    }


def _hash(former: str, event: Mapping[str, Any]) -> str:
    """Of a record: of its columns but the hash, in a form that is the same everywhere, and of the record before it."""
    body = {key: value for key, value in event.items() if key != "hash"}
    return hashlib.sha256(f"{former}\n{json.dumps(body, sort_keys=True, ensure_ascii=True)}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As it will be read back: Ansible's own kinds of text and number become plain ones."""
    return json.loads(json.dumps(value))


def _head(identity: Any, row: Any) -> Head:
    return Head(identity.id, row.fence, row.name, row.live, row.next_release, row.records, row.lineage)


def _connect(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    return _bounded(dialect.dbapi).connect(*arguments, **options)


@functools.cache
def _bounded(psycopg: Any) -> Any:
    """psycopg's connection, which waits for no answer longer than SILENCE.

    By itself it waits for ever for a server that stands still or went away behind a proxy: its kernel acknowledges all that is sent, so TCP
    sees nothing wrong. The timeouts of PostgreSQL are the server's own.
    """

    class Bounded(psycopg.Connection):  # type: ignore[misc]
        def wait(self, *arguments: Any, **options: Any) -> Any:
            late = threading.Event()
            alarm = threading.Timer(SILENCE, self._hang_up, (late,))
            alarm.daemon = True
            alarm.start()
            try:
                return super().wait(*arguments, **options)
            except psycopg.Error:
                if late.is_set():
                    raise psycopg.OperationalError(f"the server has given no answer for {SILENCE} s") from None
                raise
            finally:
                alarm.cancel()

        def _hang_up(self, late: threading.Event) -> None:
            late.set()
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    return Bounded


def _held(process: Process) -> str:
    return json.dumps(asdict(process))


def _process(row: Any) -> Process | None:
    return Process(**json.loads(row.holder)) if row is not None and row.holder else None


def _held_words(row: Any, holder: Process, state: str, left: float) -> tuple[str, str]:
    who = f"held by {row.held_by} pid {holder.pid} since {row.held_since}"
    if state == RUNNING:
        return f"{who}, which is at work on this machine", "Wait for it to end; if it never will, add -e fleet_takeover=true"
    if state == STOPPED:
        return (
            f"{who}, which was stopped (SIGSTOP) on this machine",
            f"Let it go on with kill -CONT {holder.pid}, or end it and take over with -e fleet_takeover=true",
        )
    return (
        f"{who}, which cannot be seen from here; unless it renews the lease, that ends in {left:.0f} s",
        "Wait for it to end; if it is known to be dead, add -e fleet_takeover=true",
    )


def _missing(name: str, requirement: str) -> FleetError:
    remedy = f'Install it: {sys.executable} -m pip install "{requirement}"'
    return FleetError("the ledger", f"the Python package {name} is missing on this controller", remedy)


def _parsed(url: str, state_dir: str) -> Any:
    """The URL, with the file's path or the driver settled. Raises InvalidError without ever showing the URL: it may hold a password."""
    if not url:
        return sa.URL.create("sqlite", database=os.path.join(os.path.expanduser(state_dir), "ledger.sqlite3"))
    try:
        parsed = sa.make_url(str(url))
    except (sa.exc.ArgumentError, ValueError):
        raise InvalidError(["fleet_ledger: this is no database URL; write postgresql://USER@HOST/DATABASE or sqlite:////PATH"]) from None
    kind = parsed.drivername.partition("+")[0]
    if kind == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise InvalidError([f"fleet_ledger: {kind} is not supported; write postgresql://USER@HOST/DATABASE or sqlite:////PATH"])
    if not os.path.isabs(parsed.database or ""):
        raise InvalidError([f'fleet_ledger: "{parsed.database or ""}" is no absolute path; write sqlite:////PATH, with four slashes'])
    return parsed.set(drivername="sqlite")


def _network_filesystem(folder: str) -> str:
    """The type of the file system, where that is one of several machines; empty otherwise. facts: proc(5), mountinfo."""
    path = os.path.realpath(folder)
    found, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                head, _dash, tail = line.partition(" - ")
                point = head.split()[4].replace("\\040", " ")
                if len(point) >= len(found) and (path == point or path.startswith(point.rstrip("/") + "/")):
                    found, kind = point, tail.split()[0]
    except OSError:
        return ""
    return kind if kind.startswith(NETWORK) and kind != "fuse.fuse-overlayfs" else ""  # that is a container's own root
