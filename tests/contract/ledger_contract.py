# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every ledger keeps, whatever database it is in. A subclass has a fixture `place` that gives (url, state_dir) of a new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, InvalidError, LeaseError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Head, History, Instance, Plan, Release, Server, Step
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _executor, _ledger, _process, _tables
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import FIRST_SERVER, Lease, Ledger
from ansible_collections.phoenix.fleet.plugins.plugin_utils._process import GONE, Process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Place = tuple[str, str]


def release_plan(history: History, size: int = 2, fleet: str = "web", **changes: Any) -> Plan:
    """What the planner makes of an ordinary release: the new ones created, the old ones kept."""
    number = history.next_release
    made = tuple(
        Instance(f"{fleet}-r{number}-{slot}", "local", fleet, number, slot, "sha256:1", f"10.{len(fleet)}.{number}.{slot}", 80)
        for slot in range(1, size + 1)
    )
    plan = Plan(
        "release", history.live, number, waves=((Step("create", made), Step("commit", release=number)),),
        release=Release(number, "open", f"shop:{number}", "sha256:1", "abc", size, revision="g1", definition={"port": 80}),
        reasons=("image changed",),
        servers={**history.servers, **{item.name: history.next_server + index for index, item in enumerate(made)}},
        reserved={**{key: name for key, name in history.reserved.items() if name.startswith(f"{fleet}-")},
                  **{f"local {item.address}": item.name for item in made}},
    )
    return replace(plan, **changes)


def open_plan(ledger: Ledger, lease: Lease, make: Callable[[History], Plan] = release_plan) -> Plan:
    with ledger.planning(lease) as view:
        plan = make(view.history())
        view.open(plan, "ann")
    return plan


def stopped(target: int, *slots: int) -> tuple[Instance, ...]:
    return tuple(Instance(f"web-r{target}-{slot}", "local", "web", target, slot, "sha256:1", "", 80, state="stopped") for slot in slots)


def released(ledger: Ledger, lease: Lease) -> int:
    plan = open_plan(ledger, lease)
    ledger.record(lease, "commit")
    ledger.record(lease, "done")
    return plan.target


def statuses(history: History) -> dict[int, str]:
    return {item.number: item.status for item in history.releases}


@contextmanager
def changing(ledger: Ledger) -> Iterator[Any]:
    """The database as somebody sees it who is not the collection."""
    with ledger._engine.connect() as connection:
        yield connection
        connection.commit()


class Holder:
    """Another process that takes a fleet and keeps it until it is ended. error is what it was refused with."""

    def __init__(self, place: Place, gate: tuple[int, int] | None = None) -> None:
        told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(120)  # it never outlives a test that went wrong by much
            try:
                if gate is not None:
                    os.close(gate[1])
                    os.read(gate[0], 1)  # all of them start when the last of its other ends is closed
                lease = Ledger(*place).acquire("web", "other@host")
                os.write(tell, f"fence {lease.fence}".encode())
            except BaseException as error:
                os.write(tell, str(error).encode())
                os._exit(1)
            os.close(tell)
            while True:
                signal.pause()
        os.close(tell)
        self._told = told
        self.ended = False

    def answer(self) -> str:
        text = b""
        while part := os.read(self._told, 4096):
            text += part
        os.close(self._told)
        return text.decode()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Run:
    """A run as Ansible is one: a process, two workers of which have taken a fleet each and ended, and one that is at its next task.

    keeper renews its leases.
    """

    def __init__(self, ledger: Ledger) -> None:
        told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(120)
            run = Process.of(os.getpid())
            for fleet in ("web", "api"):
                worker = os.fork()
                if worker == 0:
                    try:
                        lease = ledger.acquire(fleet, "other@host", pid=run.pid)
                        os.write(tell, f"{_executor.keep(lease, run)} {lease.fence} {lease.ledger}\n".encode())
                    finally:
                        os._exit(0)
                os.waitpid(worker, 0)
            worker = os.fork()
            if worker:
                os.write(tell, f"{worker}\n".encode())
                os.close(tell)
            while True:
                signal.pause()
        os.close(tell)
        with os.fdopen(told) as file:
            keeper, fence, ident = file.readline().split()
            assert file.readline().split()[0] == "0", "one is enough"
            self.worker = int(file.readline())
        self.keeper = Process.of(int(keeper))
        self.lease = Lease(ledger.url, "web", int(fence), ident, ledger.state_dir)

    def end(self) -> None:
        for pid in (self.worker, self.pid):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


# The ledger's code as it was before tables of version 4, word for word.
EARLIER = Path(__file__).with_name("ledger-of-tables-3.tar.gz")


class Earlier:
    """A run of the collection as it was before tables of version 4, in a process of its own: it takes `api`, and goes on when told to."""

    def __init__(self, folder: Path, place: Place) -> None:
        with tarfile.open(EARLIER) as archive:
            archive.extractall(folder, filter="data")
        code = """
import sys
import tarfile
from plugins.plugin_utils._ledger import Ledger
ledger = Ledger(*sys.argv[1:])
lease = None
for line in sys.stdin:
    try:
        if lease is None:
            lease = ledger.acquire("api", "earlier@host")
        ledger.check(lease)
        print("well", ledger.history("api").fence, flush=True)
    except Exception as error:
        print(str(error), flush=True)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *place], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def does(self) -> str:
        """What becomes of its next act."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@contextmanager
def elsewhere() -> Iterator[None]:
    """As somebody in another PID namespace, who goes by the deadline of a lease that is held in ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_process, "_namespace", lambda: "pid:[1]")
        yield


@contextmanager
def holding(place: Place) -> Iterator[Holder]:
    holder = Holder(place)
    try:
        assert holder.answer().startswith("fence")
        yield holder
    finally:
        holder.end()


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


VERBS = ("release", "rollback", "abort", "commit", "revert", "retire", "done", "wave 1 open", "crash")


class LedgerContract:
    # Reading

    def test_reading_creates_nothing(self, place: Place) -> None:
        ledger = Ledger(*place)
        assert ledger.history("web") == History(ledger="", next_server=FIRST_SERVER)
        assert (ledger.id, ledger.secret, ledger.fleets(), ledger.verify("web"), ledger.holder("web")) == ("", b"", [], [], None)
        with ledger.planning(Lease(place[0], "web", 0, "", place[1])) as view:
            assert view.history().next_release == 1
        assert ledger.id == ""
        assert not os.path.exists(place[1])

    def test_an_id_and_a_secret_for_good(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        assert lease.ledger == ledger.id == Ledger(*place).id
        assert len(ledger.secret) == 32
        assert ledger.secret == Ledger(*place).secret
        Ledger(*place).acquire("api", "me@here")
        assert ledger.fleets() == ["api", "web"]

    # Images

    def test_images_are_spent_when_no_release_in_retention_uses_them(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease, other = ledger.acquire("web", "me@here"), ledger.acquire("shop", "me@here")

        def release(of: Lease, digest: str, *gone: int, end: str = "done") -> None:
            """Of an image of that digest, with which these releases fall out of retention."""
            open_plan(ledger, of, lambda history: leaving(with_image(release_plan(history, 1, of.fleet), digest), *gone))
            if end == "done":
                ledger.record(of, "commit")
                ledger.record(of, end)

        def with_image(plan: Plan, digest: str) -> Plan:
            assert plan.release
            return replace(plan, release=replace(plan.release, image=f"shop:{plan.target}", digest=digest))

        def leaving(plan: Plan, *numbers: int) -> Plan:
            steps = Step("destroy", tuple(item for number in numbers for item in stopped(number, 1)))
            names = {f"web-r{number}-1" for number in numbers}
            return replace(
                plan, waves=(*plan.waves, (steps,)), servers={name: number for name, number in plan.servers.items() if name not in names},
                reserved={key: name for key, name in plan.reserved.items() if name not in names},
            )

        def spent(keep: int = 0) -> list[tuple[str, str]]:
            return [(image.digest, image.reference) for image in ledger.spent_images(lease, keep)]

        release(lease, "a")  # 1
        release(lease, "b")  # 2
        release(other, "b")  # another fleet's, live
        release(lease, "a", 1)  # 3: the image of release 1 is in use again
        assert spent() == []  # nothing is under way
        release(lease, "c", 2, end="")  # 4
        assert spent() == []  # not committed: it may be undone
        ledger.record(lease, "commit")
        assert spent() == []  # b is the other fleet's
        ledger.record(lease, "done")
        release(lease, "d", 3)  # 5
        open_plan(ledger, lease, lambda history: leaving(with_image(release_plan(history, 1), "e"), 4))  # 6
        ledger.record(lease, "commit")
        assert spent() == [("c", "shop:4"), ("a", "shop:3"), ("a", "shop:1")]
        assert spent(1) == [("a", "shop:3"), ("a", "shop:1")] and spent(2) == []
        open_plan(ledger, lease, lambda history: Plan("abort", 5, 6, "failed"))
        assert spent() == []  # and none is removed while something is put back

    # The lease

    def test_of_many_exactly_one_proceeds(self, place: Place) -> None:
        gate = os.pipe()
        holders = [Holder(place, gate) for _number in range(6)]
        for end in gate:
            os.close(end)
        try:
            answers = [holder.answer() for holder in holders]
            assert answers.count("fence 1") == 1, answers
            winner = holders[answers.index("fence 1")]
            for answer in answers:
                assert answer == "fence 1" or f"held by other@host pid {winner.pid} since 20" in answer, answer
            assert Ledger(*place).history("web").fence == 1
        finally:
            for holder in holders:
                holder.end()

    def test_a_killed_holder_is_succeeded_at_once(self, place: Place) -> None:
        with holding(place) as holder:
            with pytest.raises(LeaseError, match=rf"pid {holder.pid} since .*, which is at work on this machine\. Wait for it"):
                Ledger(*place).acquire("web", "me@here")
            holder.send(signal.SIGKILL)  # and nobody has waited for it yet: a zombie holds nothing
            until(lambda: Ledger(*place).holder("web") is None, "the killed holder still holds")
            assert Ledger(*place).acquire("web", "me@here").fence == 2

    def test_a_pid_that_came_to_mean_another_process_holds_nothing(self, place: Place) -> None:
        ledger = Ledger(*place)
        ledger.acquire("web", "other@host", pid=os.getppid())
        self._holder(ledger, replace(Process.of(os.getppid()), start="1"))
        assert ledger.holder("web") is None
        assert ledger.acquire("web", "me@here").fence == 2

    def test_a_holder_that_cannot_be_seen_is_judged_by_its_deadline(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "other@container")
        self._holder(ledger, replace(Process.of(os.getpid()), namespace="pid:[1]", pid=7))
        with pytest.raises(LeaseError, match=r"held by other@container pid 7 since .* cannot be seen from here; .* ends in \d+ s"):
            ledger.acquire("web", "me@here")
        self._expire(ledger)
        ledger.renew(lease)
        with pytest.raises(LeaseError):
            ledger.acquire("web", "me@here")
        self._expire(ledger)
        assert ledger.holder("web") is None
        ledger.check(lease)  # past its deadline, but nobody came: it may go on, and is renewed by that
        with pytest.raises(LeaseError):
            ledger.acquire("web", "me@here")
        self._expire(ledger)
        assert ledger.acquire("web", "me@here").fence == 2
        for act in (ledger.check, ledger.renew, lambda lease: ledger.record(lease, "done")):
            with pytest.raises(LeaseError, match="has lost its lease 1: me@here took it over at"):
                act(lease)

    @pytest.fixture
    def run(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
        monkeypatch.setattr(_ledger, "TIME_TO_LIVE", 2.0)
        monkeypatch.setattr(_executor, "HEARTBEAT", 0.2)
        monkeypatch.setattr(_executor, "LOOK", 0.05)
        run = Run(Ledger(*place))
        yield run
        run.end()
        until(lambda: run.keeper.state() == GONE, "it goes on after the run's end")

    def test_a_run_keeps_its_leases_while_it_waits_between_two_acts(self, place: Place, run: Run) -> None:
        ledger = Ledger(*place)
        first = self._now(ledger) + _ledger.TIME_TO_LIVE
        until(lambda: self._now(ledger) > first + _ledger.TIME_TO_LIVE, "time stands still")
        for fleet in ("web", "api"):
            with elsewhere(), pytest.raises(LeaseError, match="cannot be seen from here"):
                ledger.acquire(fleet, "me@here")
        ledger.check(run.lease)
        ledger.give_back(run.lease)
        assert ledger.holder("web") is None
        until(lambda: self._now(ledger) > first + 2 * _ledger.TIME_TO_LIVE, "time stands still")
        assert ledger.acquire("web", "me@here").fence == 2

    def test_a_killed_run_loses_its_lease(self, place: Place, run: Run) -> None:
        os.kill(run.pid, signal.SIGKILL)
        until(lambda: run.keeper.state() == GONE, "it goes on")
        self._lapses(place)

    @pytest.mark.parametrize("who", ["pid", "worker"])
    def test_a_run_that_stands_still_loses_its_lease(self, place: Place, run: Run, who: str) -> None:
        os.kill(getattr(run, who), signal.SIGSTOP)
        self._lapses(place)
        os.kill(getattr(run, who), signal.SIGCONT)
        Ledger(*place).renew_all(Process.of(run.pid))  # what was lost it does not get back
        with pytest.raises(LeaseError, match="me@here took it over"):
            Ledger(*place).check(run.lease)

    def test_a_lease_whose_keeper_is_killed_is_renewed_by_acts(self, place: Place, run: Run) -> None:
        os.kill(run.keeper.pid, signal.SIGKILL)
        until(lambda: run.keeper.state() == GONE, "it goes on")
        Ledger(*place).renew(run.lease)
        with elsewhere(), pytest.raises(LeaseError):
            Ledger(*place).acquire("web", "me@here")
        self._lapses(place)

    def _lapses(self, place: Place) -> None:
        with elsewhere():
            until(lambda: Ledger(*place).holder("web") is None, "it keeps the fleet")
            assert Ledger(*place).acquire("web", "me@here").fence == 2

    def _now(self, ledger: Ledger) -> float:
        with changing(ledger) as connection:
            return ledger._clock(connection)

    def test_takeover_takes_a_live_lease(self, place: Place) -> None:
        with holding(place) as holder:
            lease = Ledger(*place).acquire("web", "me@here", takeover=True)
            assert lease.fence == 2
            assert os.waitpid(holder.pid, os.WNOHANG) == (0, 0)  # its fence stops it, not we

    def test_takeover_ends_a_stopped_holder(self, place: Place) -> None:
        with holding(place) as holder:
            holder.send(signal.SIGSTOP)
            os.waitpid(holder.pid, os.WUNTRACED)
            with pytest.raises(LeaseError, match=rf"was stopped \(SIGSTOP\).*kill -CONT {holder.pid}.*fleet_takeover=true"):
                Ledger(*place).acquire("web", "me@here")
            assert Ledger(*place).acquire("web", "me@here", takeover=True).fence == 2
            assert os.WTERMSIG(os.waitpid(holder.pid, 0)[1]) == signal.SIGKILL
            holder.ended = True

    def test_the_same_run_may_take_it_anew(self, place: Place) -> None:
        ledger = Ledger(*place)
        first = ledger.acquire("web", "me@here")
        second = ledger.acquire("web", "me@here")
        assert second.fence == first.fence + 1
        with pytest.raises(LeaseError):
            ledger.check(first)
        ledger.give_back(first)  # what was lost cannot be given back
        ledger.check(second)
        ledger.give_back(second)
        assert ledger.holder("web") is None
        with pytest.raises(LeaseError, match="given back"):
            ledger.check(second)

    def test_fleets_are_held_apart(self, place: Place) -> None:
        with holding(place):
            assert Ledger(*place).acquire("api", "me@here").fence == 1

    def test_a_ledger_that_was_replaced_is_noticed(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        for act in (ledger.check, ledger.renew, lambda lease: ledger.record(lease, "done")):
            with pytest.raises(LeaseError, match="is no longer there"):
                act(replace(lease, ledger="another"))
        ledger.give_back(replace(lease, ledger="another"))
        ledger.check(lease)

    def _holder(self, ledger: Ledger, process: Process) -> None:
        with changing(ledger) as connection:
            connection.execute(sa.update(_tables.FLEETS).values(holder=_ledger.json.dumps(_ledger.asdict(process))))

    def _expire(self, ledger: Ledger) -> None:
        with changing(ledger) as connection:
            connection.execute(sa.update(_tables.FLEETS).values(expires=ledger._clock(connection) - 1))

    # Versions

    def test_an_earlier_collection_is_not_stranded_in_the_middle_of_its_work(self, place: Place, tmp_path: Path) -> None:
        ledger = Ledger(*place)
        earlier = Earlier(tmp_path / "earlier", place)
        with earlier.process:
            assert earlier.does() == "well 1\n"
            assert ledger.history("api").lineage == "", "it can be read as it is"
            assert (ledger.verify("api"), ledger.holder("web")) == ([], None)
            for _attempt in range(2):
                with pytest.raises(RefusedError, match=r"tables \(3\) .* fleet api is held by earlier@host pid .* Wait for it.* Then run"):
                    ledger.acquire("web", "me@here")
            assert earlier.does() == "well 1\n"
            earlier.process.kill()
        assert ledger.acquire("web", "me@here").fence == 1
        assert ledger.acquire("api", "me@here").fence == 2
        later = Earlier(tmp_path / "later", place)
        with later.process:
            words = f"made by a later phoenix.fleet (tables {_tables.VERSION}, this one knows 3). Update the collection on this controller"
            assert words in later.does()
            later.process.kill()

    # What is forgotten

    def test_old_records_go_and_leave_a_checkpoint(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_ledger, "KEPT", 8)
        ledger = Ledger(*place)
        for number in range(1, 13):
            lease = ledger.acquire("web", "me@here")
            digest = "sha256:bad" if number in (2, 4) else f"sha256:{number}"
            plan = open_plan(ledger, lease, lambda history, digest=digest: self._of_digest(release_plan(history), digest))  # type: ignore[misc]
            if digest != "sha256:bad":
                ledger.record(lease, "commit")
            if number == 12:  # cut off: what is open stays
                for turn in range(1, 20):
                    ledger.record(lease, f"wave {turn} open")
            else:
                ledger.record(lease, "done")
            before = ledger.history("web")
            ledger.give_back(lease)
            after = ledger.history("web")
            assert ledger.verify("web") == []
            assert (after.records, after.entry, after.live, after.next_release, after.next_server, after.reserved, after.servers) == (
                before.records, before.entry, before.live, before.next_release, before.next_server, before.reserved, before.servers)
            assert {row.number for row in after.releases if row.status in ("live", "standby", "open")} == {
                row.number for row in before.releases if row.status in ("live", "standby", "open")}
        assert plan.target == 12
        assert [row.number for row in ledger.history("web").releases if row.digest == "sha256:bad"] == [4], "held off still"
        events = _tables.EVENTS
        with changing(ledger) as connection:
            kept = list(connection.scalars(sa.select(events.c.number).order_by(events.c.number)))
            assert len(kept) == 21 and kept[-1] == ledger.history("web").records
            connection.execute(sa.delete(events).where(events.c.number == kept[0]))
        assert ledger.verify("web") == [f"the ledger's record {kept[0]} of web is missing"]

    def test_what_is_kept_is_verified_from_the_checkpoint(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_ledger, "KEPT", 4)
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        for _number in range(4):
            released(ledger, lease)
        ledger.give_back(lease)
        assert ledger.verify("web") == []
        for change in ({"checkpoint": 7}, {"checkpoint": 0}, {"checkpoint_hash": "0" * 64}):
            with changing(ledger) as connection:
                before = {key: getattr(connection.execute(sa.select(_tables.FLEETS)).one(), key) for key in change}
                connection.execute(sa.update(_tables.FLEETS).values(change))
            assert ledger.verify("web"), change
            with changing(ledger) as connection:
                connection.execute(sa.update(_tables.FLEETS).values(before))
        assert ledger.verify("web") == []

    def _of_digest(self, plan: Plan, digest: str) -> Plan:
        """The plan with another image, which leaves nothing of former releases."""
        assert plan.release is not None
        own = {name: plan.servers[name] for name in plan.servers if name.startswith(f"web-r{plan.target}-")}
        reserved = {key: name for key, name in plan.reserved.items() if name in own}
        return replace(plan, release=replace(plan.release, digest=digest), servers=own, reserved=reserved)

    def test_the_fleets_that_stand(self, place: Place) -> None:
        ledger = Ledger(*place)
        assert ledger.standing() == []
        ledger.acquire("api", "me@here")
        lease = ledger.acquire("web", "me@here")
        assert ledger.standing() == []
        released(ledger, lease)
        assert ledger.standing() == ["web"]
        open_plan(ledger, lease, lambda history: Plan("retire", 1, 0, outcome="retired"))
        ledger.record(lease, "retire")
        ledger.record(lease, "done")
        assert (ledger.standing(), ledger.fleets()) == ([], ["api", "web"])

    # Taking over (fleet_adopt)

    def test_what_is_adopted_goes_on_above_it(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        before = ledger.check(lease)
        other = Head(before.ledger, 25, "web", 7, 9, 30)  # a newer copy of the same ledger
        ledger.adopt(lease, other, server=10044)
        first = ledger.check(lease)
        assert (first.fence, first.records, first.next) == (26, 31, 9)
        assert first.lineage and "/" not in first.lineage and not first.is_known_to(other) and other.is_known_to(first)
        for again in (other, first, before):
            ledger.adopt(lease, again)
        assert ledger.check(lease) == first
        ledger.adopt(lease, Head("another", 40, "web", 7, 12, 3, "another-s"))  # on the next balancer, in the same run
        second = ledger.check(lease)
        assert (second.fence, second.records, second.lineage) == (41, 32, f"another-s/{first.lineage}")
        assert first.is_of(second) and other.is_of(second)
        history = ledger.history("web")
        assert (history.fence, history.lineage, history.next_server, history.next_release) == (41, second.lineage, 10045, 12)
        assert ledger.verify("web") == []
        open_plan(ledger, lease)  # the lease stays as it is
        ledger.record(lease, "commit")
        ledger.give_back(lease)
        assert ledger.holder("web") is None
        assert ledger.acquire("web", "me@here").fence == 42
        with pytest.raises(LeaseError):
            ledger.check(lease)
        assert ledger.verify("web") == []

    def test_a_gap_that_nothing_was_adopted_for_is_found(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        ledger.adopt(lease, Head("another", 25, "web", 7, 9, 30))
        events = _tables.EVENTS
        with changing(ledger) as connection:
            connection.execute(sa.delete(events).where(events.c.number == 3))
        assert "record 4 of web" in ledger.verify("web")[0] or "record 3 of web is missing" in ledger.verify("web")[0]

    # Records

    def test_a_release_becomes_live_and_its_predecessor_standby(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        assert released(ledger, lease) == 1
        plan = open_plan(ledger, lease)
        history = ledger.history("web")
        assert history.entry is not None
        assert (history.entry.verb, history.entry.source, history.entry.target, history.entry.records) == ("release", 1, 2, ("intent",))
        assert (history.live, history.next_release, history.next_server) == (1, 3, FIRST_SERVER + 4)
        assert statuses(history) == {1: "live", 2: "open"}
        assert history.servers == plan.servers
        assert history.reserved == plan.reserved
        ledger.record(lease, "wave 1 open")
        ledger.record(lease, "commit")
        ledger.record(lease, "commit")  # the answer to the first one got lost
        history = ledger.history("web")
        assert history.entry is not None
        assert history.entry.records == ("intent", "wave 1 open", "commit")
        assert (history.live, statuses(history)) == (2, {1: "standby", 2: "live"})
        ledger.record(lease, "done")
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert history.entry is None
        release = history.releases[1]
        assert (release.image, release.by, release.definition, release.reason) == ("shop:2", "ann", {"port": 80}, "")
        assert release.started <= release.finished == history.since
        assert ledger.verify("web") == []

    def test_a_release_that_was_never_committed_has_failed(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        plan = open_plan(ledger, lease)
        open_plan(ledger, lease, lambda history: Plan(
            "abort", 1, 2, outcome="failed", release=plan.release, reasons=("web-r2-1 answered 500",), servers={}, reserved={}))
        history = ledger.history("web")
        assert history.entry is not None
        assert history.entry.verb == "release"
        assert history.reserved == plan.reserved  # until it is done
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, statuses(history), history.entry) == (1, {1: "live", 2: "failed"}, None)
        assert history.releases[1].reason == "web-r2-1 answered 500"

    def test_a_new_entry_closes_the_one_that_a_crash_left(self, place: Place) -> None:
        ledger = Ledger(*place)
        open_plan(ledger, ledger.acquire("web", "me@here"))
        lease = ledger.acquire("web", "me@here")
        assert released(ledger, lease) == 2
        history = ledger.history("web")
        assert statuses(history) == {1: "failed", 2: "live"}
        assert history.releases[0].reason == "given up for release by ann"

    def test_going_on_keeps_the_records(self, place: Place) -> None:
        ledger = Ledger(*place)
        open_plan(ledger, ledger.acquire("web", "me@here"))
        lease = ledger.acquire("web", "me@here")
        ledger.record(lease, "commit")
        more = {"local 10.9.9.9": "web-r1-3"}
        open_plan(ledger, lease, lambda history: Plan("release", 0, 1, again=True, servers=history.servers, reserved=more))
        history = ledger.history("web")
        assert history.entry is not None
        assert history.entry.records == ("intent", "commit")
        assert history.reserved == more

    def test_a_reverted_release_is_never_promoted(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        open_plan(ledger, lease)
        ledger.record(lease, "commit")
        ledger.record(lease, "revert", "errors after the switch")
        with pytest.raises(RefusedError, match="release 2 was rejected"):
            ledger.record(lease, "commit")
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, statuses(history)) == (1, {1: "live", 2: "failed"})
        assert history.releases[1].reason == "errors after the switch"

    def test_a_rollback_revives_a_standby(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        released(ledger, lease)
        open_plan(ledger, lease, lambda history: Plan("rollback", 2, 1, servers=history.servers, reserved=history.reserved))
        assert statuses(ledger.history("web")) == {1: "standby", 2: "live"}
        ledger.record(lease, "commit")
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, statuses(history), history.next_release) == (1, {1: "live", 2: "standby"}, 3)
        assert history.releases[0].committed > history.releases[1].committed > 0

    def test_a_seal_stands_until_a_plan_starts_its_instance(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "ann")
        first = released(ledger, lease)
        released(ledger, lease)
        one, two = stopped(first, 1, 2)

        def seals() -> dict[str, str]:
            return dict(ledger.history("web").releases[0].seals)

        assert seals() == {}
        ledger.seal(lease, [one, two], {one.name: "a", two.name: "b"})
        ledger.seal(lease, [one], {one.name: "z"})
        assert seals() == {one.name: "a", two.name: "b"}, "who was started and stopped by somebody else is not trusted anew"
        back = Plan("rollback", 2, first, waves=((Step("start", (one,)), Step("commit", release=first)),))
        open_plan(ledger, lease, lambda history: replace(back, servers=history.servers, reserved=history.reserved))
        assert seals() == {two.name: "b"}
        ledger.seal(lease, [one], {one.name: "c"})
        assert seals() == {one.name: "c", two.name: "b"} and ledger.verify("web") == []
        ledger.acquire("web", "bob", takeover=True)
        with pytest.raises(LeaseError):
            ledger.seal(lease, [one], {one.name: "d"})

    def test_taking_back_what_was_committed_reverts_it_first(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        open_plan(ledger, lease)
        ledger.record(lease, "commit")
        open_plan(ledger, lease, lambda history: Plan("abort", 1, 2, outcome="failed", reasons=("it is not up",)))
        history = ledger.history("web")
        assert history.entry is not None
        assert history.entry.records == ("intent", "commit", "revert")
        assert (history.live, statuses(history)) == (1, {1: "live", 2: "failed"})
        ledger.record(lease, "done")
        assert ledger.history("web").releases[1].reason == "it is not up"

    def test_an_aborted_retire_retires_nothing(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        open_plan(ledger, lease, lambda history: Plan("retire", 1, 0, outcome="retired", servers=history.servers))
        open_plan(ledger, lease, lambda history: Plan("abort", 1, 0, outcome="failed"))
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, statuses(history), len(history.servers)) == (1, {1: "live"}, 2)

    def test_an_adopted_release_keeps_its_number(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        open_plan(ledger, lease, lambda history: Plan(
            "adopt", 0, 41, release=Release(41, "open", "shop:1", "sha256:1", "abc", 2), servers={"web-r41-1": 12345}))
        ledger.record(lease, "commit")
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, history.next_release, history.next_server, statuses(history)) == (41, 42, 12346, {41: "live"})

    def test_what_falls_out_of_retention_is_retired(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        released(ledger, lease)
        old = tuple(Instance(f"web-r1-{slot}", "local", "web", 1, slot, "", "", 80) for slot in (1, 2))
        kept = tuple(Instance(f"web-r2-{slot}", "local", "web", 2, slot, "", "", 80) for slot in (1, 2))

        def make(history: History) -> Plan:
            plan = release_plan(history)
            return replace(plan, waves=(*plan.waves, (Step("retire", release=2), Step("stop", kept), Step("destroy", old))))

        open_plan(ledger, lease, make)
        ledger.record(lease, "commit")
        ledger.record(lease, "retire", release=2)
        assert statuses(ledger.history("web")) == {1: "standby", 2: "standby", 3: "live"}
        ledger.record(lease, "done")
        assert statuses(ledger.history("web")) == {1: "retired", 2: "standby", 3: "live"}

    def test_retire_frees_everything_and_keeps_the_history(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        open_plan(ledger, lease, lambda history: Plan(
            "retire", 1, 0, outcome="retired", servers=history.servers, reserved=history.reserved))
        ledger.record(lease, "retire")
        assert ledger.history("web").live == 1
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, history.since, history.servers, history.reserved, statuses(history)) == (0, "", {}, {}, {1: "retired"})
        assert (history.next_release, history.next_server) == (2, FIRST_SERVER + 2)

    def test_a_scale_changes_the_size(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        known = ledger.history("web").releases[0]
        open_plan(ledger, lease, lambda history: Plan(
            "scale", 1, 1, release=replace(known, size=5), servers=history.servers, reserved=history.reserved))
        assert ledger.history("web").releases == (known,)  # until it is reached
        ledger.record(lease, "commit")
        ledger.record(lease, "done")
        history = ledger.history("web")
        assert (history.live, [(item.status, item.size) for item in history.releases]) == (1, [("live", 5)])

    def test_what_a_size_overrules_is_kept_with_a_plan_and_without(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        known = ledger.history("web").releases[0]
        overruling = replace(known, size=5, definition={**known.definition, "size": 2})
        open_plan(ledger, lease, lambda history: Plan(
            "scale", 1, 1, release=overruling, servers=history.servers, reserved=history.reserved))
        ledger.record(lease, "commit")
        ledger.record(lease, "done")
        assert ledger.history("web").releases[0].definition == overruling.definition
        with ledger.planning(lease) as view:
            view.remember(replace(known, size=7))
        (row,) = ledger.history("web").releases
        assert (row.definition, row.size, ledger.verify("web")) == (known.definition, 5, [])

    def test_what_was_taken_meanwhile_is_refused(self, place: Place) -> None:
        ledger = Ledger(*place)
        web = ledger.acquire("web", "me@here")
        api = ledger.acquire("api", "me@here")
        before = ledger.history("web")
        released(ledger, web)
        with pytest.raises(RefusedError, match=r"release 1 was taken meanwhile\. Run again, for 2"):
            open_plan(ledger, web, lambda history: release_plan(before))
        with pytest.raises(RefusedError, match=r"local 10\.3\.1\.1 was taken meanwhile, by web-r1-1 of fleet web\. Run again"):
            open_plan(ledger, api, lambda history: release_plan(history, reserved={"local 10.3.1.1": "api-r1-1"}))
        assert ledger.history("api").entry is None  # nothing of a refused plan is left
        assert ledger.history("api").reserved == ledger.history("web").reserved

    def test_a_band_of_numbers_is_every_fleets_and_never_goes_back(self, place: Place) -> None:
        ledger = Ledger(*place)
        web, api = ledger.acquire("web", "ann"), ledger.acquire("api", "ann")
        open_plan(ledger, web, lambda history: release_plan(history, issued={"pve 100": 103}))
        assert ledger.history("api").issued == ledger.history("web").issued == {"pve 100": 103}
        open_plan(ledger, api, lambda history: release_plan(
            history, fleet="api", reserved={}, issued={"pve 100": 102, "pve 500": 501}))
        assert ledger.history("web").issued == {"pve 100": 103, "pve 500": 501}
        open_plan(ledger, web, lambda history: Plan("retire", 1, 0, outcome="retired"))
        ledger.record(web, "retire")
        ledger.record(web, "done")
        assert ledger.history("web").issued == {"pve 100": 103, "pve 500": 501}

    def test_what_instances_turn_out_to_hold_is_kept_beside_what_was_planned(self, place: Place) -> None:
        ledger = Ledger(*place)
        web, api = ledger.acquire("web", "ann"), ledger.acquire("api", "ann")
        plan = open_plan(ledger, web)
        others = {key: name for key, name in plan.reserved.items() if name not in ("web-r1-1", "web-r1-2")}
        number, held = {"pve #100": "web-r1-1"}, {"pve 10.0.0.1": "web-r1-1", "pve 10.0.0.2": "web-r1-2"}
        ledger.reserve(web, {**number, "pve 10.0.0.7": "web-r1-1"})
        for _time in range(2):
            ledger.reserve(web, held)
        assert ledger.history("web").reserved == {**others, **number, **held}, "an address that it has no more is anybody's"
        with pytest.raises(RefusedError, match="pve 10.0.0.2 is what web-r1-2 of fleet web holds"):
            ledger.reserve(api, {"pve 10.0.0.3": "api-r1-1", "pve 10.0.0.2": "api-r1-2"})
        assert ledger.history("web").reserved == {**others, **number, **held}
        ledger.reserve(api, {})
        ledger.acquire("web", "bob", takeover=True)
        with pytest.raises(LeaseError):
            ledger.reserve(web, {"pve 10.0.0.9": "web-r1-9"})

    def test_nothing_is_stopped_without_the_receipt_of_every_balancer_that_was_told(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        item = Instance("web-r1-1", "local", "web", 1, 1, "shop:1", "10.0.0.1", 80)
        server = Server(item.name, item.address, item.port, 10001, 100)
        out = {"name": item.name, "address": item.address, "port": item.port, "proof": "idle", "cut": 0, "left": 0, "processes": []}
        with pytest.raises(RefusedError, match="does not know which balancers were told"):
            ledger.permit(lease, [item])
        open_plan(ledger, lease)
        ledger.permit(lease, [item])  # the ledger knows that nobody was told
        assert ledger.register(lease, "lb1", "web", [replace(server, weight=0)]) == ()
        ledger.permit(lease, [item])  # it had no traffic
        ledger.register(lease, "lb1", "web", [server])
        ledger.register(lease, "lb2", "web", [server, replace(server, name="a-strangers", id=9)])
        with pytest.raises(RefusedError, match="balancer lb1 was told of it in backend web"):
            ledger.permit(lease, [item])
        assert [waiting.server for waiting in ledger.register(lease, "lb1", "web", ())] == ["web-r1-1"]
        ledger.receive(lease, "lb1", "web", [out])
        ledger.receive(lease, "lb2", "web", [{**out, "address": "10.0.0.9"}])  # another server of that name
        with pytest.raises(RefusedError, match="balancer lb2"):
            ledger.permit(lease, [item])
        (kept,) = ledger.receive(lease, "lb2", "web", [{**out, "proof": "deadline", "cut": 3, "processes": ["4711:99"]}])
        ledger.permit(lease, [item])
        assert kept.receipt and (kept.receipt.fence, kept.receipt.cut, kept.receipt.processes) == (lease.fence, 3, ("4711:99",))
        assert kept in ledger.history("web").registrations
        assert [waiting.server for waiting in ledger.register(lease, "lb2", "web")] == ["web-r1-1"]  # a process lingers
        assert ledger.register(lease, "lb1", "web") == ()
        ledger.register(lease, "lb1", "web", [server])  # told anew, the receipt is void
        with pytest.raises(RefusedError, match="balancer lb1"):
            ledger.permit(lease, [item])
        assert ledger.history("web").released.keys() == {"10.0.0.1", "10.0.0.1:80"}
        later = ledger.acquire("web", "another", takeover=True)
        with pytest.raises(LeaseError, match="lost its lease"):
            ledger.permit(lease, [item])
        with pytest.raises(LeaseError, match="lost its lease"):
            ledger.register(lease, "lb1", "web", [server])
        assert {item.balancer for item in ledger.history("web").registrations if item.server == item.server} == {"", "lb1", "lb2"}
        ledger.give_back(later)

    def test_a_receipt_keeps_its_address_reserved_until_nobody_lingers(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        ledger.register(lease, "lb1", "web", [Server("web-r1-1", "10.3.1.1", 80, 10001, 100)])
        open_plan(ledger, lease, lambda history: Plan(
            "retire", 1, 0, outcome="retired", servers=history.servers, reserved=history.reserved))
        ledger.record(lease, "retire")
        ledger.record(lease, "done")
        assert ledger.history("web").reserved == {"local 10.3.1.1": "web-r1-1"}

    def test_what_a_cluster_was_given_to_do_is_kept_until_the_undertaking_ends(self, place: Place) -> None:
        ledger = Ledger(*place)
        lost = ledger.acquire("web", "me@here")
        other = ledger.acquire("api", "me@here")
        open_plan(ledger, lost)
        ledger.began(lost, "UPID:pve1:1", "cloning web-r1-1")
        ledger.began(other, "UPID:pve1:2", "cloning api-r1-1")
        lease = ledger.acquire("web", "me@here", takeover=True)
        with pytest.raises(LeaseError):
            ledger.began(lost, "UPID:pve1:3", "cloning web-r1-2")
        assert ledger.under_way("web") == {"UPID:pve1:1": "cloning web-r1-1"}
        ledger.record(lease, "done")
        assert (ledger.under_way("web"), ledger.under_way("api")) == ({}, {"UPID:pve1:2": "cloning api-r1-1"})

    def test_turns_are_taken_in_the_order_in_which_they_were_asked_for(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_ledger, "TURN_INTERVAL", 0.01)
        ledger = Ledger(*place)
        leases = {name: ledger.acquire(name, "me@here") for name in ("web", "api", "shop")}
        said: list[str] = []
        order: list[str] = []

        def wait(fleet: str) -> None:
            with Ledger(*place).turn(leases[fleet], "removals on ceph", 1, 30, said.append):
                order.append(fleet)

        waiting = {name: threading.Thread(target=wait, args=(name,)) for name in ("api", "shop")}
        with ledger.turn(leases["web"], "removals on ceph", 1, 30):
            for count, thread in enumerate(waiting.values(), 1):
                thread.start()
                until(lambda count=count: len(said) == count, "it does not wait")  # type: ignore[misc]
            with ledger.turn(leases["web"], "removals on nfs", 1, 0), ledger.turn(leases["web"], "clones on ceph", 2, 0):
                order.append("web")
        for thread in waiting.values():
            thread.join(60)
        assert order == ["web", "api", "shop"]
        assert said == [f"waits for its turn: removals on ceph, after fleet {who}" for who in ("web", "api, web")]

    def test_no_more_than_that_have_their_turn_and_a_wait_for_it_ends(self, place: Place) -> None:
        ledger = Ledger(*place)
        web, api = ledger.acquire("web", "me@here"), ledger.acquire("api", "me@here")
        with ledger.turn(web, "clones on ceph", 2, 0), ledger.turn(api, "clones on ceph", 2, 0):
            words = "clones on ceph: no turn within 0 s; at work or ahead: fleet api, web"
            with pytest.raises(DeadlineError, match=words), ledger.turn(api, "clones on ceph", 2, 0):
                pass
        with ledger.turn(api, "clones on ceph", 1, 0):
            pass

    def test_a_run_that_lost_its_lease_has_lost_its_turn(self, place: Place) -> None:
        ledger = Ledger(*place)
        lost, api = ledger.acquire("web", "me@here"), ledger.acquire("api", "me@here")
        with ledger.turn(lost, "removals on ceph", 1, 0):
            lease = ledger.acquire("web", "me@here", takeover=True)
            with ledger.turn(api, "removals on ceph", 1, 0), pytest.raises(LeaseError), ledger.turn(lost, "removals on ceph", 1, 0):
                pass
        with ledger.turn(lease, "removals on ceph", 1, 0):
            ledger.give_back(lease)
            with ledger.turn(api, "removals on ceph", 1, 0):
                pass

    def test_a_killed_run_keeps_nobody_waiting(self, place: Place) -> None:
        ledger = Ledger(*place)
        holder = Holder(place)
        try:
            lease = Lease(place[0], "web", int(holder.answer().split()[1]), ledger.id, place[1])
            api = ledger.acquire("api", "me@here")
            with ledger.turn(lease, "removals on ceph", 1, 0):
                with pytest.raises(DeadlineError), ledger.turn(api, "removals on ceph", 1, 0):
                    pass
                holder.end()
                with ledger.turn(api, "removals on ceph", 1, 0):
                    pass
        finally:
            holder.end()

    def test_records_that_make_no_sense(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        with pytest.raises(InvalidError, match='record: "comit" is not known; write wave K open'):
            ledger.record(lease, "comit")
        with pytest.raises(RefusedError, match="nothing is under way"):
            ledger.record(lease, "commit")
        with pytest.raises(RefusedError, match="check mode"):
            open_plan(ledger, Lease(place[0], "web", 0, "", place[1]))

    def test_large_fleets(self, place: Place) -> None:
        ledger = Ledger(*place)
        lease = ledger.acquire("web", "me@here")
        plan = open_plan(ledger, lease, lambda history: release_plan(history, size=10_000))
        assert len(plan.reserved) == 10_000
        history = ledger.history("web")
        assert (history.reserved, history.servers) == (plan.reserved, plan.servers)

    # The chain

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(number=st.integers(1, 8), harm=st.sampled_from(
        ["delete", "insert", "forge", "number", "entry", "record", "reason", "data", "fence", "at", "hash", "swap"]))
    def test_a_changed_record_is_found(self, place: Place, number: int, harm: str) -> None:
        ledger = Ledger(*place)
        fleet = f"web{len(ledger.fleets())}"
        lease = ledger.acquire(fleet, "me@here")
        for _count in range(3):
            open_plan(ledger, lease, lambda history: release_plan(history, fleet=fleet, reserved={}))
            ledger.record(lease, "commit")
            ledger.record(lease, "done")
        assert ledger.verify(fleet) == []
        with changing(ledger) as connection:
            mine = _tables.EVENTS.c.fleet == fleet
            chosen = sa.and_(mine, _tables.EVENTS.c.number == number)
            row = dict(connection.execute(sa.select(_tables.EVENTS).where(chosen)).one()._mapping)
            if harm == "delete":
                connection.execute(sa.delete(_tables.EVENTS).where(chosen))
            elif harm == "insert":
                connection.execute(sa.insert(_tables.EVENTS).values({**row, "number": 10}))
            elif harm == "forge":  # with a hash that fits it, but not the one after it
                before = sa.select(_tables.EVENTS.c.hash).where(mine, _tables.EVENTS.c.number == number - 1)
                row["reason"] = "changed"
                row["hash"] = _ledger._hash(connection.scalar(before) or "", row)
                connection.execute(sa.update(_tables.EVENTS).where(chosen).values(row))
            elif harm == "swap":
                for one, other in ((number, 99), (number + 1, number), (99, number + 1)):
                    connection.execute(sa.update(_tables.EVENTS).where(mine, _tables.EVENTS.c.number == one).values(number=other))
            else:
                value: Any = {"data": {"changed": 1}, "number": 77, "entry": 77, "fence": 77}.get(harm, "changed")
                connection.execute(sa.update(_tables.EVENTS).where(chosen).values({harm: value}))
        assert len(ledger.verify(fleet)) == 1

    # Crashes and sequences

    def test_a_crash_between_any_two_statements_leaves_all_or_nothing(self, place: Place) -> None:
        ledger = Ledger(*place)
        acts: list[Callable[[Ledger, Lease], object]] = [
            open_plan,
            lambda ledger, lease: ledger.record(lease, "commit"),
            lambda ledger, lease: ledger.record(lease, "revert", "why"),
            lambda ledger, lease: ledger.record(lease, "done"),
            open_plan,
            open_plan,
        ]
        lease = ledger.acquire("web", "me@here")
        released(ledger, lease)
        crashes = 0
        for act in acts:
            before = ledger.history("web")
            for count in range(100):
                if not self._crashes(place, lambda ledger, act=act: act(ledger, lease), count):
                    break
                crashes += 1
                assert ledger.history("web") == before
                assert ledger.verify("web") == []
            assert ledger.history("web") != before
            assert ledger.verify("web") == []
        assert crashes > 5 * len(acts)
        assert statuses(ledger.history("web")) == {1: "live", 2: "failed", 3: "failed", 4: "open"}

    def test_a_crash_while_the_ledger_is_made(self, place: Place) -> None:
        for count in range(100):
            if not self._crashes(place, lambda ledger: ledger.acquire("web", "me@here", pid=os.getppid()), count):
                break
        assert count > 5
        ledger = Ledger(*place)
        assert ledger.history("web").fence == 1

    def _crashes(self, place: Place, act: Callable[[Ledger], object], count: int) -> bool:
        """Whether a process that does this is killed before the statement after `count` others; False: it came to its end."""
        pid = os.fork()
        if pid == 0:
            try:
                ledger = Ledger(*place)
                done = 0

                def kill(*_arguments: object) -> None:
                    nonlocal done
                    if done == count:
                        os.kill(os.getpid(), signal.SIGKILL)
                    done += 1

                sa.event.listen(ledger._engine, "before_cursor_execute", kill)
                sa.event.listen(ledger._engine, "commit", kill)
                act(ledger)
            except BaseException as error:
                os.write(2, f"{error}\n".encode())
                os._exit(1)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), "the act failed: see its words above"
        return status != 0

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(verbs=st.lists(st.sampled_from(VERBS), max_size=25))
    def test_any_sequence_leaves_a_history_that_makes_sense(self, place: Place, verbs: list[str]) -> None:
        ledger = Ledger(*place)
        fleet = f"web{len(ledger.fleets())}"
        lease = ledger.acquire(fleet, "me@here")
        issued: dict[str, int] = {}
        top = 1
        for verb in verbs:
            before = ledger.history(fleet)
            lease = self._play(ledger, lease, before, verb)
            history = ledger.history(fleet)
            live = [item.number for item in history.releases if item.status == "live"]
            assert live == ([history.live] if history.live else [])
            assert bool(history.live) == bool(history.since)
            assert [item.number for item in history.releases] == list(range(1, history.next_release))
            openings = [item.number for item in history.releases if item.status == "open"]
            assert openings == [] or (history.entry is not None and openings == [history.entry.target])
            assert all(number == issued.setdefault(name, number) for name, number in history.servers.items())
            assert len(set(issued.values())) == len(issued)
            assert history.next_server > max(issued.values(), default=0)
            assert history.next_release >= top and history.fence >= before.fence
            top = history.next_release
            failed = {item.number for item in before.releases if item.status in ("failed", "retired")}
            if verb != "rollback":
                assert failed <= {item.number for item in history.releases if item.status in ("failed", "retired")}
            assert ledger.verify(fleet) == []

    def _play(self, ledger: Ledger, lease: Lease, history: History, verb: str) -> Lease:
        if verb == "crash":
            return ledger.acquire(lease.fleet, "me@here")
        if verb == "release":
            open_plan(ledger, lease, lambda seen: release_plan(seen, fleet=lease.fleet, reserved={}))
        elif verb == "abort":
            if history.entry:
                open_plan(ledger, lease, lambda seen: Plan("abort", seen.live, seen.entry.target if seen.entry else 0, outcome="failed"))
        elif verb == "rollback":
            standby = [item.number for item in history.releases if item.status == "standby"]
            if standby:
                open_plan(ledger, lease, lambda seen: Plan("rollback", seen.live, standby[-1], servers=seen.servers))
        elif verb == "retire":
            open_plan(ledger, lease, lambda seen: Plan("retire", seen.live, 0, outcome="retired", servers=seen.servers))
        elif history.entry and history.entry.target or verb == "done":
            try:
                ledger.record(lease, verb, "why")
            except RefusedError as error:
                assert "nothing is under way" in str(error) or "rejected" in str(error)
        return lease

    def test_fleets_of_one_ledger_plan_at_the_same_time(self, place: Place) -> None:
        names = ["a", "bb", "ccc", "dddd"]
        children = []
        Ledger(*place).acquire("web", "me@here")
        for name in names:
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                try:
                    ledger = Ledger(*place)
                    lease = ledger.acquire(name, "me@here")
                    for _count in range(5):
                        open_plan(ledger, lease, lambda history, name=name: release_plan(history, fleet=name))
                        ledger.record(lease, "commit")
                        ledger.check(lease)
                        ledger.record(lease, "done")
                except BaseException as error:
                    os.write(2, f"{error!r}\n".encode())
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(names)
        ledger = Ledger(*place)
        for name in names:
            history = ledger.history(name)
            assert (history.live, history.next_release, len(history.reserved)) == (5, 6, 40)
            assert ledger.verify(name) == []
