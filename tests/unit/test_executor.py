# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Acting under a lease, with real processes: what a killed run has left holding the fleet's lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, LeaseError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Plan, to_dict
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _executor
from ansible_collections.phoenix.fleet.plugins.plugin_utils._executor import guarded
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger("", str(tmp_path))


def act(lease: dict[str, Any], ready: Any) -> None:
    with guarded(lease):
        ready.set()
        signal.pause()


@pytest.fixture
def worker(ledger: Ledger, request: pytest.FixtureRequest) -> Any:
    """A worker within an act, of a run that has ended since; its lease."""
    lease = to_dict(ledger.acquire("web", "me"))
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=act, args=(lease, ready))
    process.start()
    request.addfinalizer(process.kill)
    assert ready.wait(20)
    return process


def test_an_act_learns_how_many_records_the_fleet_has(ledger: Ledger) -> None:
    lease = ledger.acquire("web", "me")
    with guarded(to_dict(lease)) as before:
        assert before.head.records == 0
    with ledger.planning(lease) as view:
        view.open(Plan("heal", 0, 0), "me")
    with guarded(to_dict(lease)) as after:
        assert after.head.records == 1
    assert (ledger.history("web").records, ledger.acquire("web", "the next", takeover=True).fence) == (1, 2)  # a run alone writes none


def next_lease(ledger: Ledger) -> dict[str, Any]:
    return to_dict(ledger.acquire("web", "the next", takeover=True))


def test_an_orphan_that_stands_still_is_ended_by_the_next_run(ledger: Ledger, worker: Any) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    with guarded(next_lease(ledger)):
        worker.join(20)
        assert worker.exitcode == -signal.SIGKILL


def test_an_orphan_that_does_not_come_to_an_end_is_ended_when_patience_is(ledger: Ledger, worker: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_executor, "LOCK_PATIENCE", 0.2)
    with guarded(next_lease(ledger)):
        worker.join(20)
        assert worker.exitcode == -signal.SIGKILL


def test_nobody_ends_a_worker_of_another_ledger(ledger: Ledger, worker: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(_executor, "LOCK_PATIENCE", 0.2)
    other = Ledger(f"sqlite:///{tmp_path}/other.sqlite3", str(tmp_path))
    for _fence in range(3):
        lease = other.acquire("web", "a namesake", takeover=True)
    with pytest.raises(DeadlineError, match="fuser"), guarded(to_dict(lease)):
        pytest.fail("it acted beside the other")
    assert worker.is_alive()


def test_a_holder_that_did_not_say_who_it_is_is_only_waited_for(ledger: Ledger, worker: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(_executor, "LOCK_PATIENCE", 0.2)
    path = tmp_path / "web.lock"
    for former in ("", path.read_text().replace(f'"pid": {worker.pid}', '"pid": 4194305')):
        path.write_text(former)
        with pytest.raises(DeadlineError, match="fuser"), guarded(next_lease(ledger)):
            pytest.fail("it acted beside the other")
    assert worker.is_alive()


def test_who_has_lost_the_fleet_ends_nobody_and_does_not_act(ledger: Ledger, worker: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_executor, "LOCK_PATIENCE", 0.2)
    lost = next_lease(ledger)
    next_lease(ledger)
    with pytest.raises(LeaseError), guarded(lost):
        pytest.fail("it acted without the fleet")
    assert worker.is_alive()


def test_an_act_learns_in_the_middle_that_the_fleet_was_taken_over(ledger: Ledger) -> None:
    lease = to_dict(ledger.acquire("web", "me"))
    with pytest.raises(LeaseError, match="took it over"), guarded(lease) as guard:
        guard.check()
        next_lease(ledger)
        guard.check()
        pytest.fail("it went on without the fleet")


def test_without_a_lease_there_is_nothing_to_check() -> None:
    with guarded(None) as guard:
        guard.check()
        assert guard.head.records == 0


def orphaned(lease: dict[str, Any], told: Any) -> None:
    """A run: its worker acts, and asks again when the run is no more."""
    def work() -> None:
        with guarded(lease) as guard:
            told.send("acting")
            run = _executor.maker()
            while run and run.state() != "gone":
                run = _executor.maker()
            try:
                guard.check()
                told.send("went on")
            except LeaseError as error:
                told.send(str(error))

    CONTEXT.Process(target=work).start()
    signal.pause()


def test_a_worker_whose_run_is_no_more_does_nothing_more(ledger: Ledger) -> None:
    heard, told = CONTEXT.Pipe(duplex=False)
    run = CONTEXT.Process(target=orphaned, args=(to_dict(ledger.acquire("web", "me")), told))
    run.start()
    assert heard.poll(20) and heard.recv() == "acting"
    run.kill()
    run.join(20)
    assert heard.poll(20)
    assert f"its run, process {run.pid}, has ended. Nothing more is done here" in heard.recv()
