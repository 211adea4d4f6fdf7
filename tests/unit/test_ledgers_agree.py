# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger of the simulated world and the real one mean the same by every record, or what is proved with the first proves nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Definition, Goal, History, Image, Plan
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.ledger import MemoryLedger
from ansible_collections.phoenix.fleet.tests.simulation.world import Crash, HAProxy, SimulatedProvider, Site
from hypothesis import given, settings
from hypothesis import strategies as st


class TwinLedger(MemoryLedger):
    """Does everything in both, and compares what they then know."""

    def __init__(self, site: Site, folder: str) -> None:
        super().__init__(site)
        self.real = Ledger("", folder)

    def acquire(self) -> int:
        self.lease = self.real.acquire("web", "tests")
        self.name = self.lease.ledger
        return self._same(super().acquire())

    def write_intent(self, plan: Plan) -> None:
        with self.real.planning(self.lease) as view:
            view.open(plan, "tests")
        super().write_intent(plan)
        self._same()

    def write_reserved(self, held: Mapping[str, str]) -> None:
        self.real.reserve(self.lease, held)
        super().write_reserved(held)
        self._same()

    def write_record(self, record: str) -> None:
        self.real.record(self.lease, record)
        super().write_record(record)
        self._same()

    def _same(self, value: Any = None) -> Any:
        assert plainly(self.history()) == plainly(self.real.history("web"))
        assert self.real.verify("web") == []
        return value


def plainly(history: History) -> dict[str, Any]:
    """What both know: not times, words, nor that the real one also writes down its intents."""
    entry = history.entry and (history.entry.verb, history.entry.source, history.entry.target, set(history.entry.records) - {"intent"})
    known = {"live": history.live, "next": history.next_release, "server": history.next_server, "fence": history.fence, "entry": entry}
    known["records"] = history.records
    rows = [(row.number, row.status if row.status != "retired" else "standby", row.digest, row.size) for row in history.releases]
    return {**known, "rows": rows, **{key: dict(getattr(history, key)) for key in ("servers", "reserved", "issued")}}


def release(image: str, force: bool = False) -> Goal:
    return Goal("release", Image(image, f"sha256:{image}"), "h", force)


goals = st.sampled_from([
    release("shop:1"), release("shop:2", force=True), release("shop:bad"), Goal("rollback"), Goal("heal"), Goal("scale", size=1),
    Goal("scale", size=3), Goal("retire"),
])


@given(st.lists(st.tuples(goals, st.integers(1, 150)), min_size=1, max_size=5), st.sampled_from(["network", "dynamic"]))
@settings(max_examples=60)
def test_every_record_means_the_same_in_both(runs: list[tuple[Goal, int]], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(bad_images={"sha256:shop:bad"})
        site.balancers = [HAProxy(site, "lb1")]
        provider = SimulatedProvider(site, kind=kind, ids=(100, 999) if kind == "dynamic" else (0, 0))
        fleet = Fleet(site, provider, TwinLedger(site, folder), Definition("web", "shop:1", 8080, balancers=("lb1",)))
        for goal, at in [(release("shop:1"), 0), *runs, (Goal("heal"), 0)]:
            site.ticks, site.events = 0, {at: crash}
            try:
                fleet.run(replace(goal))
            except (Crash, FleetError):
                pass
            site.pass_time()


def crash() -> None:
    raise Crash
