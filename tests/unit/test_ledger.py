# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger in an SQLite file: what every ledger keeps, and what can befall a file."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, InvalidError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Server
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _ledger, _process, _tables
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Lease, Ledger
from ansible_collections.phoenix.fleet.plugins.plugin_utils._process import Process
from ansible_collections.phoenix.fleet.tests.contract import ledger_contract as contract


class TestFile(contract.LedgerContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> contract.Place:
        return "", str(tmp_path / "state")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger("", str(tmp_path / "state"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False).returncode:
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_only_its_owner_reads_it(ledger: Ledger) -> None:
    ledger.acquire("web", "me@here")
    folder = Path(ledger.state_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_copy_that_others_could_read_becomes_its_owners_alone(ledger: Ledger) -> None:
    ledger.acquire("web", "me@here")
    for path in Path(ledger.state_dir).iterdir():
        path.chmod(0o644)
    ledger.acquire("api", "me@here")
    test_only_its_owner_reads_it(ledger)


def test_a_holder_from_before_the_last_boot_is_gone(ledger: Ledger) -> None:
    ledger.acquire("web", "me@here")
    with contract.changing(ledger) as connection:
        before = Process("another-boot", "pid:[1]", 1, "1")
        connection.execute(sa.update(_tables.FLEETS).values(holder=_ledger.json.dumps(_ledger.asdict(before)), expires=1e12))
    assert ledger.holder("web") is None
    assert ledger.acquire("web", "you@here").fence == 2


def test_a_file_named_by_its_url(tmp_path: Path) -> None:
    path = tmp_path / "odd name?%#" / "fleet.db"
    ledger = Ledger(sa.URL.create("sqlite", database=str(path)).render_as_string(), str(tmp_path / "state"))
    ledger.acquire("web", "me@here")
    assert path.exists()


@pytest.mark.parametrize(("url", "message"), [
    ("postgres", "fleet_ledger: this is no database URL; write postgresql://USER@HOST/DATABASE or sqlite:////PATH"),
    ("mysql://fleet:hunter2@db/fleet", "fleet_ledger: mysql is not supported; write postgresql"),
    ("sqlite:///ledger.db", 'fleet_ledger: "ledger.db" is no absolute path; write sqlite:////PATH'),
    ("sqlite://", 'fleet_ledger: "" is no absolute path'),
])
def test_a_url_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Ledger(url, "/tmp")
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_does_not_answer() -> None:
    ledger = Ledger("postgresql://fleet:hunter2@127.0.0.1:9/fleet", "/tmp")
    for act in (lambda: ledger.history("web"), lambda: ledger.acquire("web", "me@here")):
        with pytest.raises(UnreachableError, match=r"^ledger postgresql.*:\*\*\*@127\.0\.0\.1:9/fleet: .*refused.* Check ") as caught:
            act()
        assert "hunter2" not in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    code = """
import sys
sys.modules[sys.argv[1]] = None
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
try:
    Ledger(sys.argv[2], "/tmp")
except Exception as error:
    print(error)
"""
    for package, url, requirement in (("sqlalchemy", "", "SQLAlchemy>=2"), ("psycopg", "postgresql://db/fleet", "psycopg[binary]")):
        said = subprocess.run([sys.executable, "-c", code, package, url], capture_output=True, text=True, check=True).stdout
        assert said.endswith(f'is missing on this controller. Install it: {sys.executable} -m pip install "{requirement}"\n')


@pytest.mark.parametrize("content", [b"# Notes\n" * 1000, b"SQLite format 3\x00" + b"\xff" * 9000])
def test_a_file_that_is_no_ledger(ledger: Ledger, content: bytes) -> None:
    path = Path(ledger.name)
    path.parent.mkdir()
    path.write_bytes(content)
    for act in (lambda: ledger.history("web"), lambda: ledger.acquire("web", "me@here")):
        with pytest.raises(RefusedError, match=r"no SQLite database \(.*\)\. Restore it; .*fleet_adopt=true"):
            act()
    assert path.read_bytes() == content


def test_a_ledger_that_lost_pages(ledger: Ledger) -> None:
    ledger.acquire("web", "me@here")
    path = Path(ledger.name)
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(RefusedError, match="damaged"):
        ledger.history("web")


def test_tables_of_somebody_else(ledger: Ledger) -> None:
    Path(ledger.state_dir).mkdir()
    with sqlite3.connect(ledger.name) as connection:
        connection.execute("CREATE TABLE phoenix_ledger (a)")
    for act in (lambda: ledger.history("web"), lambda: ledger.acquire("web", "me@here")):
        with pytest.raises(RefusedError, match="its table phoenix_ledger is not one of phoenix.fleet"):
            act()


def test_tables_of_a_later_collection(ledger: Ledger) -> None:
    ledger.acquire("web", "me@here")
    with contract.changing(ledger) as connection:
        connection.execute(sa.update(_tables.LEDGER).values(version=99))
    with pytest.raises(RefusedError, match="made by a later phoenix.fleet .* Update the collection"):
        ledger.history("web")


def test_tables_of_an_earlier_collection(ledger: Ledger) -> None:
    first = ledger.acquire("web", "me@here")
    with contract.changing(ledger) as connection:
        _tables.BANDS.drop(connection)
        _tables.TASKS.drop(connection)
        _tables.TURNS.drop(connection)
        connection.execute(sa.update(_tables.LEDGER).values(version=1))
    with ledger.turn(first, "removals on ceph", 1, 0), ledger.turn(first, "removals on ceph", 1, 0):
        pass  # a run that an earlier collection began goes on with them
    assert (ledger.history("web").issued, ledger.under_way("web")) == ({}, {}), "it can be read as it is"
    second = ledger.acquire("web", "me@here")
    assert (second.ledger, second.fence) == (first.ledger, first.fence + 1)
    with contract.changing(ledger) as connection:
        assert connection.scalar(sa.select(_tables.LEDGER.c.version)) == _tables.VERSION
        assert connection.execute(sa.select(_tables.BANDS)).all() == connection.execute(sa.select(_tables.TASKS)).all() == []


def test_an_empty_file_is_a_ledger_to_be(ledger: Ledger) -> None:
    Path(ledger.state_dir).mkdir()
    Path(ledger.name).touch()
    assert ledger.history("web").ledger == ""
    assert ledger.acquire("web", "me@here").fence == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = Ledger("", str(tmp_path / "file" / "state"))
    with pytest.raises(UnreachableError, match=r"cannot be written: Not a directory\. Let this user write to .*/state, or set fle"):
        ledger.acquire("web", "me@here")


def test_a_folder_on_a_network_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ledger, "_network_filesystem", lambda folder: "nfs4")
    with pytest.raises(RefusedError, match=r"network file system \(nfs4\).*Set fleet_state_dir to a local folder"):
        ledger.acquire("web", "me@here")


@pytest.mark.parametrize(("kind", "refused"), [
    ("ext4", False), ("xfs", False), ("overlay", False), ("fuseblk", False), ("fuse.fuse-overlayfs", False), ("nfs4", True), ("cifs", True),
    ("9p", True), ("virtiofs", True), ("beegfs", True), ("gpfs", True), ("fuse.sshfs", True), ("fuse.s3fs", True), ("fuse.rclone", True),
])
def test_what_is_a_network_file_system(kind: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text(f"1 1 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path} rw - {kind} host:/x rw\n")

    def opened(_path: str, **options: str) -> object:
        return (tmp_path / "mounts").open(**options)  # type: ignore[call-overload]

    monkeypatch.setattr(_ledger, "open", opened, raising=False)
    assert _ledger._network_filesystem(str(tmp_path)) == (kind if refused else "")


def test_a_ledger_deleted_under_a_run(ledger: Ledger) -> None:
    lease = ledger.acquire("web", "me@here")
    os.unlink(ledger.name)
    for act in (ledger.check, ledger.renew, lambda lease: ledger.record(lease, "commit"), lambda lease: contract.open_plan(ledger, lease)):
        with pytest.raises(FleetError, match="is no longer there"):
            act(lease)
    ledger.give_back(lease)
    assert not os.path.exists(ledger.name)


def test_a_full_disk_prevents_the_new_and_not_the_undoing(small_disk: Path) -> None:
    ledger = Ledger("", str(small_disk / "state"))
    lease = ledger.acquire("web", "me@here")
    contract.released(ledger, lease)
    contract.open_plan(ledger, lease)
    old, new = (Server(f"web-r{number}-1", f"10.3.{number}.1", 80, 10000 + number, 100) for number in (1, 2))
    staged = [old, replace(new, weight=0)]
    ledger.register(lease, "lb1", "web", staged)
    filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(filler, b"x" * 1024)
    os.close(filler)
    for number in range(1000):
        ledger.began(lease, f"UPID:{number}", "x" * 100)
    assert len(ledger.under_way("web")) < 1000, "what finds no room is not kept, and stops nothing"
    before = ledger.history("web")
    with pytest.raises(UnreachableError, match=rf"the disk is full\. Free some space in {small_disk}/state and run again"):
        while True:
            contract.open_plan(ledger, lease, lambda history: contract.release_plan(history, size=50))
            before = ledger.history("web")
    assert ledger.history("web") == before
    ledger.check(lease)
    ledger.renew(lease)
    with ledger.turn(lease, "removals on ceph", 1, 0):
        pass  # it has one, kept or not
    ledger.register(lease, "lb1", "web", staged)
    (waiting,) = ledger.register(lease, "lb1", "web", [old])
    out = {"name": new.name, "address": new.address, "port": new.port, "proof": "idle"}
    (heard,) = ledger.receive(lease, "lb1", "web", [out])
    assert waiting.server == new.name == heard.server and heard.receipt, "it counts in this run, wherever it is kept"
    contract.open_plan(ledger, lease, lambda history: contract.Plan(
        "abort", 1, before.next_release - 1, outcome="failed", reasons=("it was not to be " * 1000,)))
    (small_disk / "filler").unlink()
    ledger.record(lease, "done")
    assert ledger.history("web").entry is None
    assert ledger.verify("web") == []


def test_another_program_keeps_the_file_locked(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = ledger.acquire("web", "me@here")
    monkeypatch.setattr(_ledger, "PATIENCE", 0)
    other = sqlite3.connect(ledger.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.history("web").fence == 1
    with pytest.raises(UnreachableError, match="another process has locked it .* fuser -v"):
        ledger.renew(lease)
    other.close()


@pytest.mark.parametrize("url", [
    "postgresql://fleet:hunter2@127.0.0.1:1/fleet", "postgresql://fleet@127.0.0.1:1/fleet?password=hunter2&sslmode=prefer",
    "postgresql://fleet@127.0.0.1:1/fleet?sslpassword=hunter2",
])
def test_a_lease_shows_no_password(url: str) -> None:
    ledger = Ledger(url, "/tmp")
    assert ledger.has_password
    assert "hunter2" not in ledger.name and "127.0.0.1" in ledger.name
    with pytest.raises(UnreachableError) as caught:
        ledger.history("web")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(ledger._explanation(Exception("no user hunter2 here")))
    assert not Ledger("postgresql://fleet@127.0.0.1/fleet", "/tmp").has_password
    assert Lease("", "web", 0, "", "/tmp").holder == ""


def test_a_process_in_another_namespace_is_unknown() -> None:
    me = Process.of(os.getpid())
    assert me.state() == _process.RUNNING
    for other in (replace(me, boot="another"), replace(me, namespace="pid:[1]"), replace(me, namespace="")):
        assert other.state() == _process.UNKNOWN


def test_a_process_is_ended_with_all_that_it_started() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        child = Process.of(int(shell.stdout.readline()))
        Process.of(shell.pid).end()
        assert shell.wait() == -9
        contract.until(lambda: child.state() == _process.GONE, "the child goes on")


def test_a_process_that_is_another_by_now_is_not_ended() -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        seen = Process.of(sleeper.pid)
        Process(seen.boot, seen.namespace, seen.pid, "1").end()
        assert seen.state() == _process.RUNNING
        seen.end()
        assert sleeper.wait() == -9
