# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger in a real PostgreSQL server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import to_dict
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _executor, _ledger, _tables
from ansible_collections.phoenix.fleet.plugins.plugin_utils._executor import guarded
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.plugins.plugin_utils._process import Process
from ansible_collections.phoenix.fleet.tests.contract import ledger_contract as contract
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import ROOT
from ansible_collections.phoenix.fleet.tests.integration.postgresql_server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not pytest's folder: that is root's alone, and too long a path for a socket.
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        server = Server(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def place(server: Server, tmp_path: Path) -> contract.Place:
    return server.create(f"fleet-{uuid.uuid4().hex[:12]}"), str(tmp_path / "state")


class TestPostgreSQL(contract.LedgerContract):
    pass


def test_a_holder_on_another_machine_is_judged_by_its_deadline(place: contract.Place) -> None:
    ledger = Ledger(*place)
    ledger.acquire("web", "other@machine")
    with contract.changing(ledger) as connection:
        other = Process("another-boot", "pid:[1]", 1, "1")
        connection.execute(sa.update(_tables.FLEETS).values(holder=_ledger.json.dumps(_ledger.asdict(other))))
    with pytest.raises(_ledger.LeaseError, match="cannot be seen from here"):
        ledger.acquire("web", "me@here")
    with contract.changing(ledger) as connection:
        connection.execute(sa.text("UPDATE phoenix_fleets SET expires = extract(epoch FROM clock_timestamp()) - 1"))
    assert ledger.acquire("web", "me@here").fence == 2


def test_many_make_one_ledger(server: Server, tmp_path: Path) -> None:
    place = server.create(f"fleet-{uuid.uuid4().hex[:12]}"), str(tmp_path)
    gate = os.pipe()
    holders = [contract.Holder(place, gate) for _number in range(6)]
    for end in gate:
        os.close(end)
    answers = [holder.answer() for holder in holders]
    for holder in holders:
        holder.end()
    assert answers.count("fence 1") == 1, answers
    assert all(answer == "fence 1" or "held by" in answer for answer in answers), answers


def test_a_user_who_may_not_create_tables(server: Server, place: contract.Place) -> None:
    with psycopg.connect(place[0], autocommit=True) as connection:
        connection.execute('DROP ROLE IF EXISTS "nobody"')
        connection.execute('CREATE ROLE "nobody" LOGIN')
    url = place[0].replace("fleet@", "nobody@")
    assert Ledger(url, place[1]).history("web").ledger == ""
    with pytest.raises(UnreachableError, match="permission denied for schema public.*may create tables there"):
        Ledger(url, place[1]).acquire("web", "me@here")


def test_a_database_that_does_not_exist(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match='database "nothing" does not exist'):
        Ledger(server.url("nothing"), str(tmp_path)).history("web")


def test_only_its_owner_reads_it_and_no_error_quotes_a_row(server: Server, place: contract.Place) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    contract.open_plan(ledger, lease)
    with psycopg.connect(place[0], autocommit=True) as connection:
        connection.execute('DROP ROLE IF EXISTS "reader"')
        connection.execute('CREATE ROLE "reader" LOGIN')
        connection.execute("ALTER TABLE phoenix_events ADD CHECK (record <> 'done')")
    with psycopg.connect(place[0].replace("fleet@", "reader@")) as other, pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("SELECT definition FROM phoenix_releases")
    with pytest.raises(UnreachableError, match="violates check constraint") as refused:
        ledger.record(lease, "done", "hushhush")
    assert "hushhush" not in str(refused.value)


def test_a_server_that_dies_and_returns(server: Server, place: contract.Place) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    contract.released(ledger, lease)
    before = ledger.history("web")
    server.stop()
    try:
        for act in (ledger.check, ledger.renew, lambda lease: ledger.record(lease, "done"), lambda lease: ledger.history("web")):
            with pytest.raises(UnreachableError, match="Check fleet_ledger, that the server runs"):
                act(lease)
    finally:
        server.start()
    assert ledger.history("web") == before
    ledger.check(lease)


def test_a_server_that_dies_under_a_transaction(server: Server, place: contract.Place) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    before = ledger.history("web")
    try:
        with pytest.raises(UnreachableError), ledger.planning(lease) as view:
            view.open(contract.release_plan(view.history()), "ann")
            server.stop()
    finally:
        server.start()
    assert ledger.history("web") == before


def test_a_row_that_another_keeps_locked(place: contract.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    monkeypatch.setattr(_ledger, "PATIENCE", 1)
    with psycopg.connect(place[0]) as other:
        other.execute("SELECT * FROM phoenix_fleets FOR UPDATE")
        assert ledger.history("web").fence == 1
        with pytest.raises(UnreachableError, match="lock timeout"):
            ledger.renew(lease)


# A backup, with the commands of docs/ledger.md


def test_a_backup_is_the_ledger_again(server: Server, place: contract.Place, tmp_path: Path) -> None:
    page = (ROOT / "docs/ledger.md").read_text()
    (dump,) = re.findall(r"^pg_dump .*", page, re.MULTILINE)
    (restore,) = re.findall(r"`(psql .*?)`", page)
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    contract.released(ledger, lease)
    ledger.give_back(lease)
    with psycopg.connect(place[0], autocommit=True) as connection:
        connection.execute("CREATE TABLE somebody_else (a int)")
    run(server, dump.replace("postgresql://fleet@db.example.org/fleet", place[0]), tmp_path)
    before = ledger.history("web")
    contract.released(ledger, ledger.acquire("web", "me@here"))
    fresh = server.create(f"fleet-{uuid.uuid4().hex[:12]}")
    run(server, f'{restore} "{fresh}"', tmp_path)
    restored = Ledger(fresh, place[1])
    assert (restored.history("web"), restored.verify("web"), restored.secret) == (before, [], ledger.secret)
    with psycopg.connect(fresh) as connection:
        assert connection.execute("SELECT to_regclass('somebody_else')").fetchone() == (None,)
    assert restored.acquire("web", "me@here").fence == before.fence + 1


def run(server: Server, command: str, folder: Path) -> None:
    path = f"{server.bin}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, timeout=60)


# A server that gives no answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ledger, "PATIENCE", 2)
    monkeypatch.setattr(_ledger, "SILENCE", 2)
    monkeypatch.setattr(_executor, "PATIENCE", 2)
    monkeypatch.setattr(_executor, "HEARTBEAT", 0.1)


@contextmanager
def silenced(server: Server) -> Iterator[None]:
    """All its processes stand still: the kernel still takes what is sent to them."""
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)


def outcome(act: Callable[[], Any]) -> Any:
    """What it raised, or returned; it must come to an end."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits for ever"
    return found[0]


def test_a_server_that_accepts_and_never_speaks(impatient: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ledger = Ledger(f"postgresql://fleet@127.0.0.1:{mute.getsockname()[1]}/fleet?gssencmode=disable", str(tmp_path))
        for act in (lambda: ledger.history("web"), lambda: ledger.acquire("web", "me@here")):
            error = outcome(act)
            assert isinstance(error, UnreachableError) and "timeout" in str(error), error


def test_a_server_that_stands_still(server: Server, place: contract.Place, impatient: None) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")
    with silenced(server):
        for act in (lambda: ledger.check(lease), lambda: ledger.renew(lease), lambda: ledger.record(lease, "done"), lambda: ledger.id):
            error = outcome(act)
            assert isinstance(error, UnreachableError) and "Check fleet_ledger, that the server runs" in str(error), error
    ledger.check(lease)


@pytest.mark.parametrize("moment", ["statement", "commit"])
def test_a_server_that_stands_still_in_the_middle(server: Server, place: contract.Place, impatient: None, moment: str) -> None:
    ledger = Ledger(*place)
    lease = ledger.acquire("web", "me@here")

    def act() -> None:
        with ledger.planning(lease) as view:
            plan = contract.release_plan(view.history())
            if moment == "commit":
                view.open(plan, "ann")
            server.send(signal.SIGSTOP)
            if moment == "statement":
                view.open(plan, "ann")

    try:
        error = outcome(act)
    finally:
        server.send(signal.SIGCONT)
    assert isinstance(error, UnreachableError) and "the server has given no answer for 2 s" in str(error), error
    ledger.check(lease)


def test_an_act_ends_though_the_server_stands_still(server: Server, place: contract.Place, impatient: None) -> None:
    lease = Ledger(*place).acquire("web", "me@here")

    def act() -> str:
        with guarded(to_dict(lease)) as guard:
            server.send(signal.SIGSTOP)
            with pytest.raises(UnreachableError):
                guard.check()
        return "ended"

    try:
        assert outcome(act) == "ended"
    finally:
        server.send(signal.SIGCONT)
