# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Acting under a lease: nobody else acts on the fleet meanwhile, and who lost the fleet acts no more."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import IO, Callable, Iterator, Mapping, Optional

from ..module_utils._errors import DeadlineError, FleetError, LeaseError, UnreachableError
from ..module_utils._model import Head, from_dict
from ._ledger import PATIENCE, TIME_TO_LIVE, Lease, Ledger
from ._process import GONE, RUNNING, STOPPED, Process, maker

HEARTBEAT = TIME_TO_LIVE / 6
"""Seconds between two renewals."""

LOOK = 1.0
"""Seconds between two looks at the run, for the process that keeps its lease; of the run's end the kernel tells it at once."""

LOCK_PATIENCE = 60.0
"""Seconds to wait for an act of the same fleet on this machine to end. Then a killed run's orphan is ended; a stopped one, at once."""

LAST_GRACE = 5.0
"""Seconds in which what was ended must let the lock go."""

SIGNATURE = 256
"""Bytes in the lock's file that say who holds it: always as many, so that writing them needs no room on a full disk."""


class Guard:
    """What an act knows of the lease that it works under. head is what the heads of fragments are to say of it, as of the last check."""

    def __init__(self, ledger: Optional[Ledger] = None, lease: Optional[Lease] = None, run: Optional[Process] = None) -> None:
        self._ledger = ledger
        self._lease = lease
        self._run = run
        self.head = Head()
        self.check()

    def check(self) -> None:
        """Ask the ledger whether the fleet is still this act's: right before each batch that stops or destroys, 1 ms with SQLite.

        For some 25 s after it nobody takes the fleet over unasked. Who was suspended meanwhile learns here that others went on, and a
        worker that its run is no more. Raises LeaseError where the fleet was taken over or the run has ended, UnreachableError where the
        ledger gives no answer: then nobody knows. Without a lease there is nothing to ask.
        """
        if self._ledger is None or self._lease is None:
            return
        if self._run is not None and self._run.state() == GONE:
            cause = f"its run, process {self._run.pid}, has ended"
            raise LeaseError(f"fleet {self._lease.fleet}", cause, "Nothing more is done here; the next run puts right what it left")
        self.head = self._ledger.check(self._lease)


@contextmanager
def guarded(data: Optional[Mapping[str, object]]) -> Iterator[Guard]:
    """Hold `<fleet>.lock`, check the fence, and renew the lease until the block ends. Yields the Guard to check it again by.

    data is a Lease as a dictionary; None, or a lease of check mode (fence 0), guards nothing. Raises LeaseError where the
    fleet was taken over before the act or during it, DeadlineError where another act holds the lock for too long.
    """
    if not data or not data.get("fence"):
        yield Guard()
        return
    lease = from_dict(Lease, data)
    ledger = Ledger(lease.url, lease.state_dir)
    with _locked(ledger, lease):
        run = maker()
        guard = Guard(ledger, lease, run)
        heart = _Heart(partial(ledger.renew, lease), run)
        heart.start()
        try:
            yield guard
        finally:
            heart.stop()
        if heart.lost is not None:
            raise heart.lost


@contextmanager
def _locked(ledger: Ledger, lease: Lease) -> Iterator[None]:
    path = os.path.join(lease.state_dir, f"{lease.fleet}.lock")
    state_folder(lease.state_dir)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        # Made beforehand, so that who holds the lock has said so within a moment.
        signature = _signature(lease)
        alarm = threading.Event()
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                orphan = _orphan(file, lease)
                state = orphan.state() if orphan is not None else GONE
                late = time.monotonic() - deadline
                if late >= (LAST_GRACE if state in (RUNNING, STOPPED) else 0):
                    raise DeadlineError(
                        f"fleet {lease.fleet}", f"another act on it has held {path} for more than {LOCK_PATIENCE:.0f} s",
                        f"See who holds it with: fuser -v {path}",
                    ) from None
                if orphan is not None and (state == STOPPED or late >= 0):
                    ledger.check(lease)  # only the fleet's present holder may end what a former one has left
                    orphan.end()
                alarm.wait(0.05)
        try:
            os.pwrite(file.fileno(), signature, 0)
        except OSError:
            pass  # on a full disk a new lock's file stays empty: then an orphan can only be waited for
        yield


def state_folder(path: str) -> None:
    """Make the folder of locks and last words. Raises UnreachableError where that cannot be, or nothing could be written there."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        cause = f"cannot be written: {error.strerror}"
        raise UnreachableError(f"fleet_state_dir {path}", cause, "Set it to a folder that this user may write to") from None


def _signature(lease: Lease) -> bytes:
    holder = asdict(Process.of(os.getpid()))
    return json.dumps({"ledger": lease.ledger, "fence": lease.fence, "holder": holder}).encode().ljust(SIGNATURE)


def _orphan(file: IO[bytes], lease: Lease) -> Optional[Process]:
    """Who holds the lock with a lower fence of our ledger than ours: a worker of a run that is no more."""
    try:
        signature = json.loads(os.pread(file.fileno(), SIGNATURE, 0))
        former = signature["ledger"] == lease.ledger and signature["fence"] < lease.fence
        return Process(**signature["holder"]) if former else None
    except (ValueError, KeyError, TypeError):
        return None


class _Heart(threading.Thread):
    """Renews every few seconds while the run is at work, and remembers the error where that was refused."""

    def __init__(self, renew: Callable[[], None], run: Optional[Process]) -> None:
        super().__init__(daemon=True)
        self.renew = renew
        self.of = run
        self.lost: Optional[LeaseError] = None
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(HEARTBEAT):
            if self.of is not None and not self.of.is_at_work():
                continue
            try:
                self.renew()
            except LeaseError as error:
                self.lost = error
                return
            except FleetError:
                # The ledger gives no answer. The lease lives on for a while, and the next check tells.
                continue

    def stop(self) -> None:
        self._end.set()
        self.join(PATIENCE)


def keep(lease: Lease, run: Process) -> int:
    """See to it that all leases of the run in this ledger are renewed between its acts as well, for as long as it is at work.

    A run waits between its acts: for a fork, for other fleets, for a person. One process renews for the whole run: a fork of the worker
    that came first, since what it needs is loaded there and a password in the ledger's URL goes nowhere. It has a session of its own and
    none of our files, so that nobody waits for it, and ends with the run, however that ends. Where it cannot be made, or cannot see the
    run, the acts renew as ever. Returns its PID; 0 where there is one already, or none can be.
    """
    if run.state() != RUNNING:
        return 0
    ledger = Ledger(lease.url, lease.state_dir)
    name = hashlib.sha256(f"{ledger.name} {run}".encode()).hexdigest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as token:
        try:
            token.bind(f"\0phoenix.fleet.lease {name}")  # nobody else can while we or our child has it; nothing is ever sent to it
            pid = os.fork()
        except OSError:
            return 0
        if pid:
            return pid
        try:
            _detach(token.fileno())
            heart = _Heart(partial(ledger.renew_all, run), run)
            heart.start()
            end = select.poll()
            with suppress(OSError):
                end.register(os.pidfd_open(run.pid), select.POLLIN)
            while heart.is_alive() and run.state() in (RUNNING, STOPPED):
                end.poll(LOOK * 1000)
        finally:
            os._exit(0)


def _detach(kept: int) -> None:
    """Leave the run's session, and all of its files but one."""
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # Filled instead of closed: what Python still has of the run's files may close their numbers some day, which are nobody else's then.
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) != kept:
            os.dup2(null, int(name))
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("fleet-lease")
