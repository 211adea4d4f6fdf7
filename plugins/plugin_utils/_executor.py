# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Acting under a lease: nobody else acts on the fleet meanwhile, and who lost the fleet acts no more."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import Iterator, Mapping, Optional

from ..module_utils._errors import DeadlineError, FleetError, LeaseError
from ..module_utils._model import from_dict
from ._ledger import Lease, Ledger

HEARTBEAT = 5.0
"""Seconds between two renewals while an act is going on; the lease lives for 30."""

LOCK_PATIENCE = 60.0
"""Seconds to wait for an act of the same fleet on this machine to end, a killed run's orphan for example."""


@contextmanager
def guarded(data: Optional[Mapping[str, object]]) -> Iterator[None]:
    """Hold `<fleet>.lock`, check the fence, and renew the lease until the block ends.

    data is a Lease as a dictionary; None, or a lease of check mode (fence 0), guards nothing. Raises LeaseError where the
    fleet was taken over before the act or during it, DeadlineError where another act holds the lock for too long.
    """
    if not data or not data.get("fence"):
        yield
        return
    lease = from_dict(Lease, data)
    ledger = Ledger(lease.url, lease.state_dir)
    with _locked(lease):
        ledger.check(lease)
        heart = _Heart(ledger, lease)
        heart.start()
        try:
            yield
        finally:
            heart.stop()
        if heart.lost is not None:
            raise heart.lost


@contextmanager
def _locked(lease: Lease) -> Iterator[None]:
    path = os.path.join(lease.state_dir, f"{lease.fleet}.lock")
    os.makedirs(lease.state_dir, mode=0o700, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        alarm = threading.Event()
        waited = 0.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited >= LOCK_PATIENCE:
                    raise DeadlineError(
                        f"fleet {lease.fleet}", f"another act on it has held {path} for more than {LOCK_PATIENCE:.0f} s",
                        f"See who holds it with: fuser -v {path}",
                    ) from None
                alarm.wait(0.05)
                waited += 0.05
        yield


class _Heart(threading.Thread):
    """Renews the lease every few seconds, and remembers the error where that was refused."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        super().__init__(daemon=True)
        self.ledger = ledger
        self.lease = lease
        self.lost: Optional[LeaseError] = None
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(HEARTBEAT):
            try:
                self.ledger.renew(self.lease)
            except LeaseError as error:
                self.lost = error
                return
            except FleetError:
                # The ledger gives no answer. The lease lives on for a while, and the next check tells.
                continue

    def stop(self) -> None:
        self._end.set()
        self.join()
