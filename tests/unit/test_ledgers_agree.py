# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger of the simulated world and the real one mean the same by every record, or what is proved with the first proves nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, LeaseError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Definition,
    Goal,
    History,
    Image,
    Instance,
    Plan,
    Registration,
    Release,
    Server,
)
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Lease, Ledger
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.ledger import MemoryLedger
from ansible_collections.phoenix.fleet.tests.simulation.world import Crash, HAProxy, LawBrokenError, SimulatedProvider, Site
from hypothesis import given, settings
from hypothesis import strategies as st


class TwinLedger(MemoryLedger):
    """Does everything in both, and compares what they make of it and what they then know."""

    def __init__(self, site: Site, folder: str) -> None:
        super().__init__(site)
        self.real = Ledger("", folder)
        self.leases: dict[int, Lease] = {}
        self.telling: Callable[[], object] | None = None
        self.inside = False

    @property
    def lease(self) -> Lease:
        return self.leases[self.fence]

    def acquire(self) -> int:
        lease = self.real.acquire("web", "tests")
        self.leases[lease.fence] = lease
        self.name = lease.ledger
        assert super().acquire() == lease.fence
        self._compare()
        return lease.fence

    def _check(self, fence: int) -> None:
        self._both(lambda: self.real.check(self.leases[fence]), lambda: super(TwinLedger, self)._check(fence))

    def write_intent(self, plan: Plan) -> None:
        def write() -> None:
            with self.real.planning(self.lease) as view:
                view.open(plan, "tests")

        self._both(write, lambda: super(TwinLedger, self).write_intent(plan))

    def remember(self, release: Release) -> None:
        def remember() -> None:
            with self.real.planning(self.lease) as view:
                view.remember(release)

        self._both(remember, lambda: super(TwinLedger, self).remember(release))

    def write_reserved(self, held: Mapping[str, str]) -> None:
        self._both(lambda: self.real.reserve(self.lease, held), lambda: super(TwinLedger, self).write_reserved(held))

    def write_record(self, record: str) -> None:
        self._both(lambda: self.real.record(self.lease, record), lambda: super(TwinLedger, self).write_record(record))

    def register(self, fence: int, balancer: str, backend: str, servers: Sequence[Server]) -> list[Registration]:
        self.telling = lambda: self.real.register(self.leases[fence], balancer, backend, servers)
        return super().register(fence, balancer, backend, servers)

    def keep(self, rows: Iterable[Registration]) -> None:
        rows, telling, self.telling = list(rows), self.telling, None
        if telling:
            self._both(telling, lambda: super(TwinLedger, self).keep(rows))
        else:
            super().keep(rows)

    def receive(self, fence: int, balancer: str, backend: str, said: Iterable[Mapping[str, Any]]) -> None:
        place, answers = (balancer, backend), list(said)
        simulated = super().receive
        self._both(lambda: self.real.receive(self.leases[fence], *place, answers), lambda: simulated(fence, *place, answers))

    def permit(self, instance: Instance, fence: int) -> None:
        self._both(lambda: self.real.permit(self.leases[fence], [instance]), lambda: super(TwinLedger, self).permit(instance, fence))

    def _both(self, real: Callable[[], object], simulated: Callable[[], object]) -> None:
        if self.inside:  # a part of what the real one has done already
            simulated()
            return
        self.inside = True
        try:
            answers = [_answer(act) for act in (real, simulated)]
        finally:
            self.inside = False
        told, known = (_kind(answer) for answer in answers)
        assert told == known, f"the real ledger: {answers[0] or told}; the simulated one: {answers[1] or known}"
        self._compare()
        if answers[1]:
            raise answers[1]

    def _compare(self) -> None:
        simulated, real = self.history(), self.real.history("web")
        assert plainly(simulated) == plainly(real)
        # The real one forgets what was settled.
        assert {**registered(simulated), **registered(real)} == registered(simulated)
        assert {key for key, row in registered(simulated).items() if not row[0]} <= set(registered(real))
        assert self.real.verify("web") == []


def _answer(act: Callable[[], object]) -> FleetError | LawBrokenError | None:
    try:
        act()
    except (FleetError, LawBrokenError) as error:
        return error
    return None


def _kind(answer: Exception | None) -> str:
    """What the real ledger refuses is in the simulated one, here and there, a law that no run may break."""
    return "accepted" if answer is None else "RefusedError" if isinstance(answer, LawBrokenError) else type(answer).__name__


def plainly(history: History) -> dict[str, Any]:
    """What both know: not times, words, nor that the real one also writes down its intents."""
    known: dict[str, Any] = {key: getattr(history, key) for key in ("ledger", "fence", "live", "next_release", "next_server", "records")}
    entry = history.entry
    known["entry"] = entry and (entry.verb, entry.source, entry.target, [record for record in entry.records if record != "intent"])
    known["rows"] = [(row.number, row.status, row.digest, row.size, row.definition) for row in history.releases]
    known["recency"] = [row.number for row in sorted(history.releases, key=lambda row: row.committed) if row.committed]
    return {**known, **{key: dict(getattr(history, key)) for key in ("servers", "reserved", "issued")}}


def registered(history: History) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """What each balancer was told of each server, whether that is settled first; not how often, nor when it was confirmed."""
    return {
        (item.server, item.balancer, item.backend):
        (item.is_settled, item.address, item.port, item.weight, item.receipt and replace(item.receipt, at=""))
        for item in history.registrations
    }


def release(image: str, force: bool = False) -> Goal:
    return Goal("release", Image(image, f"sha256:{image}"), "h", force)


goals = st.sampled_from([
    release("shop:1"), release("shop:2", force=True), release("shop:bad"), Goal("rollback"), Goal("heal"), Goal("scale", size=1),
    Goal("scale", size=3), Goal("retire"),
])


faults = st.sampled_from(["killed", "a balancer is silent"])
Run = tuple[Goal, int | str, str]
"""What it is for, at which instant something befalls it (0 is never), and what."""


@given(
    st.lists(st.tuples(goals, st.integers(1, 150), faults), min_size=1, max_size=5), st.sampled_from(["network", "dynamic"]),
    st.integers(0, 2),
)
@settings(max_examples=60)
def test_every_record_means_the_same_in_both(runs: list[Run], kind: str, keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fleet_in(folder, [*runs, (Goal("heal"), 0, "")], kind, keep)


RECORDS = ("commit", "revert", "retire", "done", "wave 1 open", "wave 1 passed")


@pytest.mark.parametrize(("goal", "instant", "records"), [
    (None, "", None), (release("shop:2"), "after create", ()), (release("shop:2"), "before drain", ("commit",)),
    (Goal("scale", size=3), "after create", ()), (Goal("retire"), "before drain", ()),
], ids=["nothing begun", "not committed", "committed", "same release", "going"])
def test_records_that_no_run_would_write_there_mean_the_same_in_both(
    tmp_path: Path, goal: Goal | None, instant: str, records: tuple[str, ...] | None,
) -> None:
    for number, more in enumerate(product(RECORDS, RECORDS)):
        ledger = fleet_in(str(tmp_path / str(number)), [(goal, instant, "killed")] if goal else [], balancers=1)
        assert (ledger.entry and ledger.entry.records) == records
        for record in more:
            with suppress(FleetError, LawBrokenError):
                ledger.record(record, ledger.fence)


def fleet_in(folder: str, runs: list[Run], kind: str = "network", keep: int = 1, balancers: int = 2) -> TwinLedger:
    """The ledgers of a fleet after these runs, each with what befalls it, and at which instant."""
    site = Site(bad_images={"sha256:shop:bad"})
    site.balancers = [HAProxy(site, f"lb{number}") for number in range(1, balancers + 1)]
    names = tuple(item.host for item in site.balancers)
    provider = SimulatedProvider(site, kind=kind, ids=(100, 999) if kind == "dynamic" else (0, 0))
    ledger = TwinLedger(site, folder)
    fleet = Fleet(site, provider, ledger, Definition("web", "shop:1", 8080, keep=keep, balancers=names))

    def befall(fault: str) -> None:
        if fault == "killed":
            raise Crash
        site.balancers[-1].reachable = False

    tick = site.tick
    for goal, at, fault in [(release("shop:1"), 0, ""), *runs]:
        site.ticks, site.events = 0, {at: partial(befall, fault)} if isinstance(at, int) else {}

        def told(what: str, at: int | str = at, fault: str = fault) -> None:
            tick(what)
            if what == at:
                befall(fault)

        site.tick = told  # type: ignore[method-assign]
        with suppress(Crash, FleetError):
            fleet.run(goal)
        site.events.clear()
        site.tick = tick  # type: ignore[method-assign]
        site.balancers[-1].reachable = True
        site.pass_time()
        for box in site.boxes.values():  # those that serve are refused
            with suppress(RefusedError):
                ledger.permit(box.instance, ledger.fence)
    return ledger


def test_both_retire_what_falls_out_of_retention(tmp_path: Path) -> None:
    ledger = fleet_in(str(tmp_path), [(release("shop:2"), 0, ""), (release("shop:3"), 0, "")])
    assert {number: row.status for number, row in ledger.releases.items()} == {1: "retired", 2: "standby", 3: "live"}


def test_both_refuse_a_run_that_lost_its_lease(tmp_path: Path) -> None:
    ledger = fleet_in(str(tmp_path), [(release("shop:2"), "before drain", "killed")])
    former = ledger.acquire()
    ledger.acquire()
    assert ledger.entry is not None and ledger.plan is not None
    instance = next(iter(ledger.site.boxes.values())).instance
    acts = (
        lambda: ledger.record("commit", former), lambda: ledger.open(ledger.plan, former), lambda: ledger.reserve({}, former),
        lambda: ledger.register(former, "lb1", "web", ()), lambda: ledger.permit(instance, former),
        lambda: ledger.receive(former, "lb1", "web", [{"name": instance.name, "proof": "idle"}]),
    )
    for act in acts:
        with pytest.raises(LeaseError):
            act()


def test_both_refuse_an_address_that_another_instance_holds(tmp_path: Path) -> None:
    ledger = fleet_in(str(tmp_path), [])
    key = next(key for key, name in ledger.reserved.items() if name == "web-r1-1")
    with pytest.raises(RefusedError):
        ledger.write_reserved({key: "web-r1-2"})
