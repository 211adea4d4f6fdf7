# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner by example. A plan is told as text, a line for each step, so that an example reads like the run it stands for.

Worlds come about by runs in the simulated world: what a release leaves behind is what the next plan finds.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, FleetError, InvalidError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Balancer,
    Definition,
    Goal,
    Head,
    History,
    Image,
    Instance,
    Plan,
    Pool,
    Receipt,
    Registration,
    Release,
    Server,
    World,
)
from ansible_collections.phoenix.fleet.plugins.plugin_utils._planner import plan
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.ledger import MemoryLedger
from ansible_collections.phoenix.fleet.tests.simulation.world import Box, Crash, HAProxy, SimulatedProvider, Site, picture


def fleet_of(
    size: int = 2, balancers: int = 1, hosts: int = 1, kind: str = "network", room: int = 60, ids: tuple[int, int] = (0, 0), **more: Any,
) -> Fleet:
    site = Site(bad_images={"sha256:shop:bad"})
    site.balancers = [HAProxy(site, f"lb{number}") for number in range(1, balancers + 1)]
    names = tuple(item.host for item in site.balancers)
    provider = SimulatedProvider(site, [f"host{number}" for number in range(1, hosts + 1)], kind, room, ids)
    return Fleet(site, provider, MemoryLedger(site), Definition("web", "shop:1", 8080, size=size, balancers=names, **more))


def released(*images: str, **more: Any) -> Fleet:
    """A fleet after these releases, each of which went well."""
    fleet = fleet_of(**more)
    for image in images:
        fleet.run(release(image))
    return fleet


def release(image: str, shape: str = "h", force: bool = False) -> Goal:
    return Goal("release", Image(image, f"sha256:{image}"), shape, force)


def crashed(fleet: Fleet, goal: Goal, instant: str, times: int = 1, settled: bool = True) -> Fleet:
    """The fleet after a run that was killed when the simulated world had just said `instant`, for the so-many-eth time.

    settled: some time has passed since.
    """
    tick, seen = fleet.site.tick, Counter[str]()

    def dying(what: str) -> None:
        tick(what)
        seen[what] += 1
        if what == instant and seen[what] == times:
            raise Crash

    fleet.site.tick = dying  # type: ignore[method-assign]
    with pytest.raises(Crash):
        fleet.run(goal)
    fleet.site.tick = tick  # type: ignore[method-assign]
    if settled:
        fleet.site.pass_time()
    return fleet


def told(made: Plan) -> list[str]:
    """Each step as a line; waves are parted by a rule. A server is NAME=WEIGHT, or NAME~ where it drains."""
    lines: list[str] = []
    for wave in made.waves:
        lines += ["--"] if lines else []
        for step in wave:
            things = [_short(item.name) for item in step.instances]
            things += [_short(item.name) + (f"={item.weight}" if item.state == "ready" else "~") for item in step.servers]
            lines.append(" ".join([step.kind, *(things or ([f"r{step.release}"] if step.kind in ("commit", "retire") else []))]))
    return lines


def _short(name: str) -> str:
    return name.removeprefix("web-")


# A release

def test_the_first_release() -> None:
    made = fleet_of().plan(release("shop:1"))
    assert told(made) == [
        "create r1-1 r1-2", "check r1-1 r1-2", "stage r1-1=0 r1-2=0", "gate r1-1=100 r1-2=100", "commit r1", "switch r1-1=100 r1-2=100",
        "watch r1-1=100 r1-2=100",
    ]
    assert (made.source, made.target, made.outcome, made.reasons) == (0, 1, "live", ("first release",))
    assert made.release == Release(1, "open", "shop:1", "sha256:shop:1", "h", 2)


def test_another_image_takes_over_before_the_former_goes() -> None:
    made = released("shop:1").plan(release("shop:2"))
    assert told(made) == [
        "create r2-1 r2-2",
        "check r2-1 r2-2",
        "stage r1-1=100 r1-2=100 r2-1=0 r2-2=0",
        "gate r2-1=100 r2-2=100",
        "commit r2",
        "switch r2-1=100 r2-2=100 r1-1~ r1-2~",
        "watch r2-1=100 r2-2=100",
        "drain r2-1=100 r2-2=100",
        "retire r2",
        "stop r1-1 r1-2",
    ]
    assert made.reasons == ("image changed", "keeps r1 as standby")


@pytest.mark.parametrize(("goal", "reason"), [
    (release("shop:2"), "image changed"),
    (release("shop:1", "another"), "definition changed"),
    (release("shop:1", force=True), "forced"),
    (replace(release("shop:1"), image=Image("shop:1", "sha256:moved")), "shop:1 is another image now"),
])
def test_what_makes_a_release_and_why(goal: Goal, reason: str) -> None:
    made = released("shop:1").plan(goal)
    assert made.target == 2 and made.reasons[0] == reason


def test_the_same_again_is_nothing() -> None:
    assert released("shop:1").plan(release("shop:1")).waves == ()


def test_the_same_with_another_size_is_a_scale_of_what_is_live() -> None:
    fleet = released("shop:1")
    fleet.definition = replace(fleet.definition, size=3)
    made = fleet.plan(release("shop:1"))
    assert (made.verb, made.target, made.reasons) == ("scale", 1, ("size 2 -> 3",))
    assert told(made)[0] == "create r1-3"


def test_another_image_with_another_size() -> None:
    fleet = released("shop:1")
    fleet.definition = replace(fleet.definition, size=3)
    made = fleet.plan(release("shop:2"))
    assert told(made)[0] == "create r2-1 r2-2 r2-3" and made.reasons[:2] == ("image changed", "size 2 -> 3")


@pytest.mark.parametrize(("keep", "stopped", "destroyed"), [(0, [], [2]), (1, [2], [1]), (2, [2], [])])
def test_retention(keep: int, stopped: list[int], destroyed: list[int]) -> None:
    fleet = released("shop:1", "shop:2", keep=keep)
    made = fleet.plan(release("shop:3"))
    acts = {step.kind: sorted({item.release for item in step.instances}) for wave in made.waves for step in wave if step.instances}
    assert (acts.get("stop", []), acts.get("destroy", [])) == (stopped, destroyed)


def test_a_running_standby_is_not_stopped() -> None:
    assert told(released("shop:1", standby="running").plan(release("shop:2")))[-1] == "retire r2"


def test_a_failed_release_is_taken_away_and_the_former_goes_on() -> None:
    fleet = released("shop:1")
    before = picture(fleet.site)
    with pytest.raises(FleetError):
        fleet.run(release("shop:bad"))
    assert told(fleet.plans[-1]) == ["drain r1-1=100 r1-2=100", "destroy r2-1 r2-2"]
    assert fleet.plans[-1].reasons[0].startswith("r2 did not end (checks: ")
    assert picture(fleet.site) == before
    assert fleet.plan(release("shop:3")).target == 3  # numbers are never used again


def test_a_failed_first_release_is_kept_to_be_looked_at_and_taken_away_by_the_next_run() -> None:
    fleet = fleet_of()
    with pytest.raises(FleetError):
        fleet.run(release("shop:bad"))
    assert {name for _host, name in fleet.site.boxes} == {"web-r1-1", "web-r1-2"}
    assert told(fleet.plan(release("shop:1")))[:3] == ["destroy r1-1 r1-2", "--", "create r2-1 r2-2"]
    assert told(fleet.plan(Goal("heal"))) == ["destroy r1-1 r1-2"]


def test_a_first_release_that_serves_in_part_stays_when_a_later_run_fails() -> None:
    fleet = crashed(fleet_of(), release("shop:1"), "after switch")
    fleet.site.kill("web-r1-1")
    fleet.site.pass_time()
    undone = fleet.plan(Goal("abort", reason="a balancer refused"))
    assert (undone.waves, undone.target, undone.closes, undone.reasons) == ((), 1, False, ("what serves stays",))
    fleet.run(Goal("heal"))
    assert fleet.ledger.live == 1 and fleet.ledger.entry is None


# Where

@pytest.mark.parametrize(("kind", "places"), [
    ("network", ["host1 10.0.1.1:8080", "host2 10.0.2.1:8080", "host1 10.0.1.2:8080"]),
    ("published", ["host1 10.0.1.1:20000", "host2 10.0.2.1:20000", "host1 10.0.1.1:20001"]),
    ("dynamic", ["host1 :8080", "host2 :8080", "host1 :8080"]),
])
def test_instances_are_spread_evenly_lowest_places_first(kind: str, places: list[str]) -> None:
    made = fleet_of(size=3, hosts=2, kind=kind).plan(release("shop:1"))
    assert [f"{item.host} {item.address}:{item.port}" for item in made.waves[0][0].instances] == places


def test_a_place_is_free_when_nobody_has_reserved_it_lives_there_or_is_still_registered() -> None:
    fleet = fleet_of(size=1)
    fleet.ledger.reserved = {"host1 10.0.1.1": "other-r7-1", "host1 10.0.1.2": "web-r1-9"}  # of the second nothing is left
    fleet.site.boxes["host1", "db"] = Box(Instance("db", "host1", "", 0, 0, "db:1", "10.0.1.2", 5432, state="running"))
    fleet.site.balancers[0].lines = {}
    world = replace(fleet.world(), balancers=(Balancer("lb1", servers=(Server("web-r1-8", "10.0.1.3", 8080, 10001),)),))
    made = plan(fleet.definition, world, fleet.ledger.history(), release("shop:1"))
    assert made.waves[0][0].instances[0].address == "10.0.1.4"
    assert made.servers["web-r2-1"] == 10002


def test_no_room_is_refused_with_the_remedy() -> None:
    with pytest.raises(RefusedError, match=r"2 instances need a place each, and host1 \(10.0.1.1 to 10.0.1.3\) has room for 1. Widen"):
        released("shop:1", room=3).plan(release("shop:2"))


def test_what_is_reserved_is_all_that_the_fleet_holds() -> None:
    made = released("shop:1").plan(release("shop:2"))
    assert made.reserved == {
        "host1 10.0.1.1": "web-r1-1", "host1 10.0.1.2": "web-r1-2", "host1 10.0.1.3": "web-r2-1", "host1 10.0.1.4": "web-r2-2",
    }
    assert made.servers == {"web-r1-1": 10001, "web-r1-2": 10002, "web-r2-1": 10003, "web-r2-2": 10004}


# Other verbs

def test_rollback_starts_the_standby_and_is_a_release_otherwise() -> None:
    made = released("shop:1", "shop:2").plan(Goal("rollback"))
    assert told(made)[:5] == [
        "start r1-1 r1-2", "check r1-1 r1-2", "stage r2-1=100 r2-2=100 r1-1=0 r1-2=0", "gate r1-1=100 r1-2=100", "commit r1",
    ]
    assert (made.source, made.target) == (2, 1) and "keeps r2 as standby" in made.reasons


def test_rollback_replaces_what_is_missing_or_tampered_with() -> None:
    fleet = released("shop:1", "shop:2")
    box = fleet.site.boxes["host1", "web-r1-1"]
    box.instance = replace(box.instance, health="unhealthy")  # as a provider says of a standby whose files were changed
    made = fleet.plan(Goal("rollback"))
    assert told(made)[:2] == ["create r1-3", "start r1-2"]
    assert made.waves[0][0].instances[0].image == "sha256:shop:1"
    assert told(made)[-1] == "destroy r1-1"


@pytest.mark.parametrize(("runs", "target"), [
    ([], 2),
    (["rollback"], None),  # again is nothing: it holds
    (["rollback", "shop:4"], 2),  # what was live before, not the highest number
    (["rollback to 1", "shop:4"], 1),
    (["rollback", "rollback to 3"], 2),
    (["shop:bad"], 2),  # what failed does not count
])
def test_where_a_rollback_goes(runs: list[str], target: int | None) -> None:
    fleet = released("shop:1", "shop:2", "shop:3", keep=3)
    for run in runs:
        goal = Goal("rollback", to=int(run.partition("to ")[2] or 0)) if run.startswith("rollback") else release(run)
        try:
            fleet.run(goal)
        except FleetError:
            assert run == "shop:bad"
    made = fleet.plan(Goal("rollback"))
    assert (made.target if made.waves else None) == target


def test_a_clock_that_was_set_back_changes_no_predecessor() -> None:
    fleet = released("shop:1", "shop:2", "shop:3", keep=3)
    fleet.ledger.releases[1] = replace(fleet.ledger.releases[1], finished="2099")
    assert fleet.plan(Goal("rollback")).target == 2


def test_rollback_to_a_release_of_which_nothing_is_left() -> None:
    made = released("shop:1", "shop:2", "shop:3").plan(Goal("rollback", to=1))
    assert told(made)[0] == "create r1-1 r1-2"


@pytest.mark.parametrize(("to", "words"), [(9, "no such release is recorded. Releases to go back to: r1"), (3, "it was rejected")])
def test_where_a_rollback_never_goes(to: int, words: str) -> None:
    fleet = released("shop:1", "shop:2")
    with pytest.raises(FleetError):
        fleet.run(release("shop:bad"))
    with pytest.raises(RefusedError, match=words):
        fleet.plan(Goal("rollback", to=to))


def test_scale_up_leaves_the_others_alone() -> None:
    assert told(released("shop:1").plan(Goal("scale", size=3))) == [
        "create r1-3", "check r1-3", "stage r1-1=100 r1-2=100 r1-3=0", "gate r1-1=100 r1-2=100 r1-3=100", "commit r1",
        "switch r1-1=100 r1-2=100 r1-3=100", "watch r1-1=100 r1-2=100 r1-3=100",
    ]


def test_scale_down_drains_first() -> None:
    assert told(released("shop:1").plan(Goal("scale", size=1))) == [
        "gate r1-1=100", "commit r1", "switch r1-1=100 r1-2~", "watch r1-1=100", "drain r1-1=100", "destroy r1-2",
    ]


def test_a_release_keeps_the_size_of_a_later_scale_and_says_so() -> None:
    fleet = released("shop:1")
    fleet.run(Goal("scale", size=3))
    made = fleet.plan(release("shop:2"))
    assert made.release and made.release.size == 3
    assert "keeps size 3 of the scale after fleet_size 2 was set" in made.reasons
    fleet.definition = replace(fleet.definition, size=4)
    made = fleet.plan(release("shop:2"))
    assert made.release and made.release.size == 4


@pytest.mark.parametrize(("mishap", "reason"), [
    ("stopped", "web-r1-1 is not well"), ("unhealthy", "web-r1-1 is not well"), ("drained", "web-r1-1 is not well"),
    ("vanished", "web-r1-1 has vanished"),
])
def test_heal_replaces_what_is_not_well(mishap: str, reason: str) -> None:
    fleet = released("shop:1")
    box, line = fleet.site.boxes["host1", "web-r1-1"], fleet.site.balancers[0].lines["web-r1-1"]
    fleet.site.died.add("web-r1-1")
    if mishap == "vanished":
        del fleet.site.boxes["host1", "web-r1-1"]
        fleet.site.pass_time()
    elif mishap == "drained":
        line.server = replace(line.server, state="drain")
    else:
        box.instance = replace(box.instance, **({"state": "stopped"} if mishap == "stopped" else {"health": "unhealthy"}))
    made = fleet.plan(Goal("heal"))
    assert told(made)[0] == "create r1-3" and made.reasons == (reason,)
    fleet.run(Goal("heal"))
    assert {name for _host, name in fleet.site.boxes} == {"web-r1-2", "web-r1-3"} == set(fleet.site.balancers[0].lines)


def test_heal_replaces_a_share_at_once() -> None:
    fleet = released("shop:1", size=4)
    fleet.site.kill("web-r1-1")
    del fleet.site.boxes["host1", "web-r1-3"]
    fleet.site.died.add("web-r1-3")
    fleet.site.pass_time()
    assert told(fleet.plan(Goal("heal"))) == [  # 20 % of 4 are less than one: one at a time
        "create r1-5", "check r1-5", "stage r1-1=100 r1-2=100 r1-3=100 r1-4=100 r1-5=0", "gate r1-2=100 r1-4=100 r1-5=100",
        "switch r1-2=100 r1-3=100 r1-4=100 r1-5=100 r1-1~", "watch r1-2=100 r1-4=100 r1-5=100",
        "drain r1-2=100 r1-3=100 r1-4=100 r1-5=100", "destroy r1-1",
        "--",
        "create r1-6", "check r1-6", "stage r1-2=100 r1-3=100 r1-4=100 r1-5=100 r1-6=0", "gate r1-2=100 r1-4=100 r1-5=100 r1-6=100",
        "switch r1-2=100 r1-4=100 r1-5=100 r1-6=100 r1-3~", "watch r1-2=100 r1-4=100 r1-5=100 r1-6=100",
        "drain r1-2=100 r1-4=100 r1-5=100 r1-6=100",
    ]
    assert len(fleet.plan(Goal("heal", share=50)).waves) == 1
    fleet.run(Goal("heal"))
    assert {name for _host, name in fleet.site.boxes} == {"web-r1-2", "web-r1-4", "web-r1-5", "web-r1-6"}
    assert not fleet.plan(Goal("heal")).waves


def test_a_heal_ends_with_the_first_share_that_is_no_better() -> None:
    fleet = released("shop:1", size=4)
    for slot in (1, 2, 3):
        fleet.site.kill(f"web-r1-{slot}")
    fleet.site.bad_images.add("sha256:shop:1")
    with pytest.raises(DeadlineError, match="web-r1-5"):
        fleet.run(Goal("heal"))
    assert {name for _host, name in fleet.site.boxes} <= {f"web-r1-{slot}" for slot in range(1, 5)}


def test_a_heal_that_was_killed_does_not_wait_for_what_is_in_maintenance() -> None:
    fleet = released("shop:1")
    line = fleet.site.balancers[0].lines["web-r1-1"]
    line.server = replace(line.server, state="maint")
    crashed(fleet, Goal("heal"), "before create")
    line.checked = False  # HAProxy makes no checks there
    made = told(fleet.plan(Goal("heal")))
    assert made[0] == "create r1-3" and made[-1] == "destroy r1-1"


def test_heal_puts_a_balancer_right_that_forgot_everything() -> None:
    fleet = released("shop:1", balancers=2)
    fleet.site.balancers[1].lines.clear()
    assert told(fleet.plan(Goal("heal"))) == [
        "check r1-1 r1-2", "stage r1-1=100 r1-2=100", "gate r1-1=100 r1-2=100", "switch r1-1=100 r1-2=100", "watch r1-1=100 r1-2=100",
    ]


@pytest.mark.parametrize(("size", "down", "refused"), [(5, 4, False), (5, 5, True), (20, 5, True), (40, 5, False), (40, 8, True)])
def test_meltdown_guard(size: int, down: int, refused: bool) -> None:
    """So many do not fail by themselves (facts: peers.md, BOSH: 5 and 20 %)."""
    fleet = released("shop:1", size=size, room=200)
    for slot in range(1, down + 1):
        fleet.site.kill(f"web-r1-{slot}")
    if refused:
        with pytest.raises(RefusedError, match=f"{down} of {size} instances of r1 are not well"):
            fleet.plan(Goal("heal"))
    else:
        made = fleet.plan(Goal("heal"))
        assert sum(len(step.instances) for wave in made.waves for step in wave if step.kind == "create") == down
    assert fleet.plan(release("shop:1", force=True)).target == 2


def test_retire() -> None:
    made = released("shop:1", "shop:2").plan(Goal("retire"))
    assert told(made) == ["drain", "retire r0", "destroy r1-1 r1-2 r2-1 r2-2"]
    assert (made.source, made.target, made.outcome) == (2, 0, "retired")


# After a crash

@pytest.mark.parametrize(("instant", "first", "reason"), [
    ("after create", "drain r1-1=100 r1-2=100", "r2 did not end (it was not committed): back to r1"),
    ("after gate", "drain r1-1=100 r1-2=100", "r2 did not end (it was not committed): back to r1"),
    ("after the record commit", "gate r2-1=100 r2-2=100", "r2 was committed and is up: this completes it"),
    ("lb1 after the fragment", "drain r1-1=100 r1-2=100", "r2 did not end (it was not committed): back to r1"),
    ("after watch", "drain r2-1=100 r2-2=100", "r2 was committed and is up: this completes it"),
    ("after the record retire", "drain r2-1=100 r2-2=100", "r2 was committed and is up: this completes it"),
])
def test_a_killed_release_is_completed_or_never_happened(instant: str, first: str, reason: str) -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), instant)
    made = fleet.plan(Goal("heal"))
    assert (told(made)[0], made.reasons[0], made.again) == (first, reason, True)


def test_traffic_proves_a_commit_whose_record_is_missing() -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), "after switch")
    assert fleet.ledger.entry
    fleet.ledger.entry = replace(fleet.ledger.entry, records=())
    made = fleet.plan(Goal("heal"))
    assert told(made)[0] == "commit r2"


def test_committed_and_not_up_goes_back_and_is_never_promoted_again() -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), "after switch")
    fleet.site.kill("web-r2-1")
    fleet.site.pass_time()
    made = fleet.plan(Goal("heal"))
    assert told(made) == [
        "gate r1-1=100 r1-2=100", "switch r1-1=100 r1-2=100 r2-1~ r2-2~", "watch r1-1=100 r1-2=100",
        "drain r1-1=100 r1-2=100", "destroy r2-1 r2-2",
    ]
    assert made.outcome == "failed"
    fleet = crashed(fleet, Goal("heal"), "after the intent")
    fleet.site.boxes["host1", "web-r2-1"].instance = replace(fleet.site.boxes["host1", "web-r2-1"].instance, state="running")
    fleet.site.pass_time()
    assert fleet.plan(Goal("heal")).outcome == "failed"


def test_there_is_no_way_back_after_the_retirement() -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), "after the record retire")
    fleet.site.kill("web-r2-1")
    fleet.site.pass_time()
    made = fleet.plan(Goal("heal"))
    assert (made.target, made.outcome) == (2, "live")
    assert told(made)[-2:] == ["stop r1-1 r1-2", "destroy r2-1"]


def test_a_fix_can_be_released_when_neither_generation_is_up() -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), "after switch")
    for name in ("web-r1-1", "web-r1-2", "web-r2-1", "web-r2-2"):
        fleet.site.kill(name)
    fleet.site.pass_time()
    made = fleet.plan(release("shop:3"))
    assert (made.verb, made.source, made.target, made.again) == ("release", 2, 3, False)


def test_what_failed_the_watch_is_rejected_however_well_it_looks_afterwards() -> None:
    fleet = crashed(released("shop:1"), release("shop:2"), "after switch")
    assert fleet.plan(Goal("abort")).outcome == "live", "whole, and committed: it goes on"
    made = fleet.plan(Goal("abort", force=True))
    assert (made.source, made.target, made.outcome) == (1, 2, "failed")
    assert any(line.startswith("switch r1-1=100 r1-2=100 r2-1~") for line in told(made))


# Every balancer

# Clusters, whose instances have numbers and share a range of addresses

def created(fleet: Fleet, goal: Goal) -> list[tuple[str, str, int]]:
    made = [item for wave in fleet.plan(goal).waves for step in wave if step.kind == "create" for item in step.instances]
    return [(item.host, item.address, item.number) for item in made]


def test_numbers_only_grow_and_addresses_are_shared_by_a_cluster() -> None:
    fleet = released("shop:1", hosts=2, ids=(100, 999))
    assert sorted(item.number for item in fleet.provider.observe("web")) == [100, 101]
    assert created(fleet, release("shop:2")) == [("host1", "10.0.1.3", 102), ("host2", "10.0.1.4", 103)]
    fleet.run(Goal("retire"))
    assert fleet.provider.observe("web") == ()
    # The addresses that nobody ever had come first.
    assert created(fleet, release("shop:1")) == [("host1", "10.0.1.3", 102), ("host2", "10.0.1.4", 103)]


@pytest.mark.parametrize(("issued", "first"), [
    ({"cluster 100": 150}, 150), ({"cluster 50": 120}, 120), ({"cluster 140": 160}, 160), ({"cluster 500": 600}, 100),
    ({"cluster 50": 100}, 100), ({"elsewhere 100": 150}, 100),
])
def test_a_number_of_an_overlapping_band_is_never_issued_again(issued: dict[str, int], first: int) -> None:
    fleet = fleet_of(ids=(100, 199))
    fleet.ledger.issued = issued
    assert [number for _host, _address, number in created(fleet, release("shop:1"))] == [first, first + 1]


def test_a_number_that_a_stranger_has_is_left_out() -> None:
    fleet = fleet_of(ids=(100, 199))
    fleet.site.boxes["host1", "db"] = Box(Instance("db", "host1", "", 0, 0, "", "10.0.1.1", 80, id="x", number=100))
    assert created(fleet, release("shop:1")) == [("host1", "10.0.1.2", 101), ("host1", "10.0.1.3", 102)]


def test_a_lost_ledger_begins_above_the_numbers_that_are_seen() -> None:
    fleet = released("shop:1", ids=(100, 199), adopt=True)
    fleet.ledger = MemoryLedger(fleet.site, "new")
    fleet.run(Goal("heal"))
    assert [number for _host, _address, number in created(fleet, release("shop:2"))] == [102, 103]


def test_a_band_that_is_used_up_is_refused_before_anything_is_made() -> None:
    fleet = released("shop:1", ids=(100, 102))
    with pytest.raises(RefusedError, match="no number is left from 100 to 102 on cluster.*Widen"):
        fleet.plan(release("shop:2"))


def test_a_killed_run_s_numbers_and_addresses_are_its_instances_own() -> None:
    fleet = crashed(released("shop:1", hosts=2, ids=(100, 999)), Goal("scale", size=4), "before create web-r1-4")
    assert created(fleet, Goal("scale", size=4)) == [("host2", "10.0.1.4", 103)]


def test_what_an_operator_has_to_free_first_is_left_alone_and_told() -> None:
    fleet = released("shop:1", "shop:2", ids=(100, 999), keep=0)
    box = Box(Instance("web-r1-1", "host1", "web", 1, 1, "", "10.0.1.1", 8080, id="x", number=100, note="run qm unlock 100 there"))
    box.instance = replace(box.instance, marker={"phoenix.fleet.ledger": "ours", "phoenix.fleet.release": "1"})
    fleet.site.boxes["host1", "web-r1-1"] = box
    assert not fleet.plan(Goal("heal")).waves
    made = fleet.plan(release("shop:1"))
    assert "web-r1-1 is left alone: run qm unlock 100 there" in made.reasons
    assert not any(item.release == 1 for wave in made.waves for step in wave if step.kind in ("destroy", "stop") for item in step.instances)
    assert made.reserved["cluster #100"] == "web-r1-1"


# Addresses that are found out only after the start

@pytest.mark.parametrize("instant", ["after create web-r2-2", "before the addresses", "after the addresses", "before stage"])
def test_a_run_killed_before_an_address_was_recorded_leaves_nothing(instant: str) -> None:
    fleet = crashed(released("shop:1", kind="dynamic"), release("shop:2"), instant)
    fleet.run(release("shop:3"))
    assert {item.release for item in fleet.provider.observe("web") if item.state == "running"} == {3}
    assert not [name for name in fleet.ledger.reserved.values() if name.startswith("web-r2-")]
    assert len([name for name in fleet.ledger.reserved.values() if name.startswith("web-r3-")]) == 2


def test_an_instance_whose_address_nobody_has_heard_yet_is_asked_for_it() -> None:
    fleet = released("shop:1", kind="dynamic")
    fleet.site.kill("web-r1-1")
    crashed(fleet, Goal("heal"), "after create web-r1-3", settled=False)
    assert [item.address for item in fleet.provider.observe("web") if item.name == "web-r1-3"] == [""]
    assert "start r1-3" in told(fleet.plan(Goal("heal")))
    fleet.run(Goal("heal"))
    assert not fleet.plan(Goal("heal")).waves


def test_an_address_that_another_instance_holds_is_refused() -> None:
    fleet = released("shop:1", kind="dynamic")
    fleet.ledger.reserved["host1 10.9.0.5"] = "other-r1-1"
    with pytest.raises(RefusedError, match="other-r1-1"):
        fleet.run(release("shop:2"))
    assert {item.release for item in fleet.provider.observe("web")} == {1}


def test_a_silent_balancer_refuses_before_anything_is_made() -> None:
    fleet = released("shop:1", balancers=2)
    fleet.site.balancers[1].reachable = False
    with pytest.raises(RefusedError, match="balancer lb2: it cannot be observed .* Bring it back; .* -e fleet_lost_balancers=lb2"):
        fleet.plan(release("shop:2"))


def test_a_balancer_that_was_not_observed_is_silent() -> None:
    fleet = released("shop:1", balancers=2)
    world = fleet.world()
    with pytest.raises(RefusedError, match="balancer lb2: it cannot be observed"):
        plan(fleet.definition, replace(world, balancers=world.balancers[:1]), fleet.ledger.history(), release("shop:2"))


def test_a_silent_balancer_after_the_commit_moves_the_weights_elsewhere_and_stops_nothing() -> None:
    fleet = crashed(released("shop:1", balancers=2), release("shop:2"), "after the record commit")
    fleet.site.balancers[1].reachable = False
    made = fleet.plan(Goal("heal"))
    assert [line.split()[0] for line in told(made)] == ["gate", "switch", "watch"]
    assert (made.silent, made.closes) == (("lb2",), False)
    with pytest.raises(RefusedError, match="balancer lb2"):
        fleet.run(Goal("heal"))
    assert fleet.ledger.entry and all(box.instance.state == "running" for box in fleet.site.boxes.values())
    fleet.site.balancers[1].reachable = True
    fleet.run(Goal("heal"))
    assert [box.instance.state for box in fleet.site.boxes.values() if box.instance.release == 1] == ["stopped", "stopped"]


def test_a_silent_balancer_before_the_commit_does_not_keep_what_was_made() -> None:
    fleet = crashed(released("shop:1", balancers=2), release("shop:2"), "after stage")
    fleet.site.balancers[1].reachable = False
    made = fleet.plan(Goal("abort"))
    assert told(made) == ["drain r1-1=100 r1-2=100", "destroy r2-1 r2-2"] and made.closes
    assert set(made.reserved) >= {"host1 10.0.1.3", "host1 10.0.1.4"}  # lb2 may still know their addresses


def test_a_silent_balancer_keeps_everything_old_whatever_retention_says() -> None:
    fleet = crashed(released("shop:1", "shop:2", balancers=2), release("shop:3"), "after stage")
    fleet.site.balancers[1].reachable = False
    fleet.definition = replace(fleet.definition, keep=0)
    assert told(fleet.plan(Goal("abort")))[-1] == "destroy r3-1 r3-2"


# Out of reach

GOALS = (release("shop:1"), release("shop:2"), Goal("rollback"), Goal("scale", size=3), Goal("heal"), Goal("retire"))


def settled(fleet: Fleet, provider: str) -> Fleet:
    """The fleet, with its releases recorded as the provider's."""
    rows = fleet.ledger.releases
    rows.update({number: replace(row, definition={"provider": provider, "port": 8080}) for number, row in rows.items()})
    return fleet


@pytest.mark.parametrize("goal", GOALS)
def test_another_provider_is_refused_while_a_release_lives_at_the_former(goal: Goal) -> None:
    fleet = settled(released("shop:1", "shop:2"), "docker")
    before = picture(fleet.site)
    fleet.provider.hosts = ("kvm1",)
    fleet.definition = replace(fleet.definition, provider="libvirt")
    with pytest.raises(RefusedError, match="fleet web: fleet_provider is libvirt, and its r1 lives at docker. Set fleet_provider: docker"):
        fleet.run(goal)
    assert picture(fleet.site) == before


def test_another_provider_is_refused_while_a_release_is_unfinished_and_taken_when_all_is_retired() -> None:
    fleet = settled(crashed(fleet_of(), release("shop:1"), "after create"), "docker")
    libvirt = replace(fleet.definition, provider="libvirt")
    docker, fleet.definition = fleet.definition, libvirt
    with pytest.raises(RefusedError, match="its r1 lives at docker"):
        fleet.plan(release("shop:2"))
    fleet.definition = docker
    fleet.run(Goal("retire"))
    fleet.definition = libvirt
    fleet.run(release("shop:2"))
    assert fleet.ledger.live == 2


def test_another_provider_is_refused_while_a_failed_first_release_is_kept_to_be_looked_at() -> None:
    fleet = fleet_of()
    with pytest.raises(FleetError):
        fleet.run(release("shop:bad"))
    settled(fleet, "docker").definition = replace(fleet.definition, provider="libvirt")
    with pytest.raises(RefusedError, match="its r1 lives at docker"):
        fleet.plan(release("shop:2"))


@pytest.mark.parametrize("goal", GOALS)
def test_a_host_is_not_left_out_while_instances_on_it_are_up(goal: Goal) -> None:
    fleet = released("shop:1", "shop:2", hosts=2)
    fleet.site.pass_time()
    before = picture(fleet.site)
    fleet.provider.hosts = ("host2",)
    with pytest.raises(RefusedError, match="instance web-r2-1: it is up and lives at host1, which is not in fleet_docker. Put host1 back"):
        fleet.run(goal)
    assert picture(fleet.site) == before


def test_a_host_that_died_is_left_out_and_the_others_go_on() -> None:
    fleet = released("shop:1", hosts=2)
    fleet.site.kill("web-r1-1")
    fleet.site.pass_time()
    fleet.provider.hosts = ("host2",)
    fleet.run(Goal("heal"))
    assert sorted(fleet.site.balancers[0].lines) == ["web-r1-2", "web-r1-3"]


# Strangers

def foreign(fleet: Fleet) -> Fleet:
    """The same world, seen with a ledger that is new."""
    return Fleet(fleet.site, fleet.provider, MemoryLedger(fleet.site, "new"), fleet.definition)


def test_another_ledgers_fleet_is_refused_by_name() -> None:
    fleet = foreign(released("shop:1"))
    with pytest.raises(RefusedError, match="balancer lb1: fleet web belongs to ledger ours there, and this is new. .*fleet_adopt=true"):
        fleet.plan(release("shop:2"))
    fleet.site.balancers[0].head = None
    with pytest.raises(RefusedError, match=r"instance web-r1-1 on host1: it belongs to fleet web of another ledger \(ours\)"):
        fleet.plan(release("shop:2"))


def test_an_old_copy_of_the_ledger_is_refused() -> None:
    fleet = released("shop:1")
    fleet.ledger.fence = 0
    with pytest.raises(RefusedError, match="balancer lb1: run 1 of fleet web was there, and this ledger knows only 0"):
        fleet.plan(release("shop:2"))


@pytest.mark.parametrize("goal", [
    Goal("heal"), Goal("rollback"), Goal("scale", size=3), release("shop:2"), release("shop:3"), Goal("retire"),
])
def test_an_old_copy_of_the_ledger_never_catches_up_by_being_refused(goal: Goal) -> None:
    fleet = released("shop:1", "shop:2")
    copy = deepcopy(vars(fleet.ledger) | {"site": None})
    fleet.run(release("shop:3"))
    vars(fleet.ledger).update(copy | {"site": fleet.site})
    before = picture(fleet.site)
    for _attempt in range(4):
        for attempt in (fleet.plan, fleet.run):
            with pytest.raises(RefusedError, match="balancer lb1: .*old copy: use the newest.*fleet_adopt=true"):
                attempt(goal)
    assert picture(fleet.site) == before and fleet.ledger.live == 2
    fleet.definition = replace(fleet.definition, adopt=True)
    fleet.run(Goal("heal"))
    assert fleet.ledger.live == 3  # what serves goes on, and the ledger learns of it
    fleet.definition = replace(fleet.definition, adopt=False)
    assert fleet.plan(Goal("heal")).waves == ()


def test_who_goes_on_with_the_other_copy_of_the_ledger_is_refused_whatever_its_fence() -> None:
    fleet = released("shop:1", "shop:2")
    fleet.site.balancers.append(HAProxy(fleet.site, "lb2"))
    fleet.definition = replace(fleet.definition, balancers=("lb1", "lb2"))
    fleet.run(Goal("heal"))
    old = deepcopy(vars(fleet.ledger) | {"site": None})
    fleet.run(release("shop:3"))
    new = deepcopy(vars(fleet.ledger) | {"site": None})

    vars(fleet.ledger).update(old | {"site": fleet.site})
    fleet.definition = replace(fleet.definition, adopt=True)
    fleet.run(Goal("heal"))
    assert (fleet.ledger.live, fleet.ledger.fence > new["fence"], fleet.ledger.records > new["records"]) == (3, True, True)
    heads = [balancer.head for balancer in fleet.site.balancers]
    assert all(head and head.lineage == "copy1" and head.fence == fleet.ledger.fence for head in heads)
    fleet.definition = replace(fleet.definition, adopt=False)
    adopted = deepcopy(vars(fleet.ledger) | {"site": None})

    vars(fleet.ledger).update(new | {"site": fleet.site})
    before = picture(fleet.site)
    for _attempt in range(8):  # its fence is the higher one in the end
        for attempt in (fleet.plan, fleet.run):
            with pytest.raises(RefusedError, match="another copy of this ledger has taken fleet web over there.*fleet_adopt=true"):
                attempt(Goal("heal"))
    assert fleet.ledger.fence > adopted["fence"] and picture(fleet.site) == before

    vars(fleet.ledger).update(adopted | {"site": fleet.site})
    fleet.run(release("shop:4"))
    assert fleet.ledger.live == 4


def test_a_lost_ledger_loses_history_and_never_the_service() -> None:
    fleet = foreign(released("shop:1", "shop:2"))
    fleet.definition = replace(fleet.definition, adopt=True)
    made = fleet.plan(release("shop:3"))
    assert (made.target, made.again, made.reasons) == (2, True, ("takes over r2, which is live by the head on lb1",))
    fleet.site.need = 2
    fleet.run(release("shop:3"))
    assert fleet.ledger.live == 3
    fleet.definition = replace(fleet.definition, adopt=False)
    assert fleet.plan(Goal("heal")).waves == ()  # what was adopted is ours from then on
    assert told(fleet.plan(Goal("rollback")))[0] == "start r2-1 r2-2"


def strangers(fleet: Fleet) -> Fleet:
    fleet.site.need = 1
    fleet.site.balancers[0].strangers = (Server("legacy", "192.0.2.1", 80, 1, 1, up=True),)
    return fleet


def test_somebody_elses_servers_are_refused_and_nothing_is_touched() -> None:
    fleet = strangers(fleet_of())
    with pytest.raises(RefusedError, match=r"lb1: the backend of fleet web has somebody else's servers, such as legacy \(192.0.2.1:80\)"):
        fleet.plan(release("shop:1"))


@pytest.mark.parametrize(("head", "adopt", "words"), [
    (Head(), False, "lb1: the backend of fleet web has somebody else's servers, such as shop-a"),
    (Head("ours", 5, "api", 3, 4), True, "balancer lb1: its backend belongs to fleet api"),
])
def test_a_backend_without_a_lease_or_of_another_fleet_stays_as_it_is(head: Head, adopt: bool, words: str) -> None:
    fleet = fleet_of(adopt=adopt)
    balancer = fleet.site.balancers[0]
    balancer.head, balancer.fragment = head, {"shop-a": Server("shop-a", "192.0.2.1", 80, 10001, 100)}
    with pytest.raises(RefusedError, match=words):
        fleet.run(release("shop:1"))
    assert (balancer.head, list(balancer.fragment)) == (head, ["shop-a"])


def test_adopted_servers_serve_until_the_cutover_and_are_never_stopped() -> None:
    fleet = strangers(fleet_of(adopt=True))
    assert told(fleet.plan(release("shop:1")))[2:] == [
        "stage legacy=1 r1-1=0 r1-2=0", "gate r1-1=100 r1-2=100", "commit r1", "switch r1-1=100 r1-2=100 legacy~",
        "watch r1-1=100 r1-2=100", "drain r1-1=100 r1-2=100", "retire r1",
    ]


# Refusals

@pytest.mark.parametrize(("goal", "words"), [
    (Goal("update"), "verb: 'update' is unknown"), (Goal("scale"), "scale_size: 0 is too small"), (Goal("release"), "image: missing"),
])
def test_goals_that_make_no_sense(goal: Goal, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        fleet_of().plan(goal)


@pytest.mark.parametrize("verb", ["rollback", "scale"])
def test_verbs_that_need_a_live_release(verb: str) -> None:
    with pytest.raises(RefusedError, match=f"nothing is live that {verb} could work on"):
        fleet_of().plan(Goal(verb, size=2))


@pytest.mark.parametrize("verb", ["release", "rollback", "scale", "heal", "retire"])
def test_hold(verb: str) -> None:
    goal = replace(release("shop:2"), verb=verb, size=3)
    with pytest.raises(RefusedError, match="fleet web: it is on hold: inventory week. Remove fleet_hold"):
        released_on_hold().plan(goal)


def released_on_hold() -> Fleet:
    fleet = released("shop:1")
    fleet.definition = replace(fleet.definition, hold="inventory week")
    return fleet


# Ten thousand

class Name(str):
    """A text whose every comparison is a call, and so is counted."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


class Row(tuple[Any, ...]):
    """A tuple that is counted when it is walked, by whatever walks it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self[index]

    def __contains__(self, wanted: object) -> bool:
        return any(item == wanted for item in self)


class Table(dict[Any, Any]):
    """A dictionary that is counted when it is walked."""

    def __iter__(self) -> Iterator[Any]:
        yield from Row(dict.__iter__(self))

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def big(size: int = 4, balancers: int = 2, releases: int = 0, others: int = 0) -> tuple[Definition, World, History]:
    """A fleet of that size, live, with one standby, on balancers and 20 hosts. releases came before, others are of other fleets."""
    marker = {"phoenix.fleet.ledger": "ours"}
    hosts = [Name(f"host{number}") for number in range(20)]
    standby, live = releases + 1, releases + 2

    def instances(number: int, state: str, part: int) -> Iterator[Instance]:
        for slot in range(1, size + 1):
            address, name = Name(f"10.{part}.{slot // 250}.{slot % 250 + 1}"), Name(f"web-r{number}-{slot}")
            yield Instance(name, hosts[slot % 20], "web", number, slot, "sha256:1", address, 80, id=f"{number}-{slot}", state=state,
                           marker=marker)

    serving = tuple(instances(live, "running", 2))
    servers = Row(Server(item.name, item.address, 80, 10000 + item.slot, 100, up=True) for item in serving)
    head = Head("ours", 1, "web", live, live + 1)
    pools = Row(Pool(host, "network", f"10.{50 + number}.0.1", f"10.{50 + number}.255.254") for number, host in enumerate(hosts))
    lbs = [Name(f"lb{number}") for number in range(1, balancers + 1)]
    stopped = instances(standby, "stopped", 1)
    world = World(Row((*stopped, *serving)), Row(Balancer(host, head=head, servers=servers) for host in lbs), pools)
    rows = Row((
        *(Release(number, "retired", "shop:0", Name(f"sha256:{number}"), "h", size, committed=number) for number in range(1, standby)),
        Release(standby, "standby", "shop:1", "sha256:1", "h", size, committed=standby),
        Release(live, "live", "shop:2", "sha256:2", "h", size, committed=live),
    ))
    reserved = Table({Name(f"{item.host} {item.address}"): item.name for item in world.instances})
    reserved.update({Name(f"host1 10.51.{number // 250}.{number % 250 + 1}"): Name(f"api-r1-{number}") for number in range(others)})
    ids = Table({server.name: server.id for server in servers})
    told = Row(
        Registration(item.name, host, "web", item.address, 80, 100, receipt=None if item.release == live else Receipt(1))
        for item in world.instances for host in lbs
    )
    history = History("ours", 1, live, live + 1, 40000, rows, servers=ids, reserved=reserved, registrations=told)
    return Definition("web", "shop:3", 80, size=size, balancers=Row(lbs), backend="web"), world, history


Planner = Callable[[Definition, World, History, Goal], Plan]


def work(planner: Planner, goal: Goal, **grown: int) -> int:
    """How many instructions of Python the planner carries out, those of comparing names and walking through the world included."""
    made, count, former = big(**grown), 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _value: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        planner(*made, goal)
    finally:
        sys.settrace(former)
    return count


def is_linear(planner: Planner, goal: Goal, what: str, number: int) -> bool:
    """Twice as many more of something cost twice as much more. What the plan costs whatever there is of it does not blur that."""
    few, more, most = (work(planner, goal, **{what: times * number}) for times in (1, 2, 4))
    return most - more < 2.2 * (more - few)


verbs = [release("shop:3"), Goal("rollback"), Goal("heal"), Goal("scale", size=3), Goal("retire")]


@pytest.mark.parametrize("goal", verbs, ids=lambda goal: goal.verb)
@pytest.mark.parametrize(("what", "number"), [("size", 50), ("balancers", 20), ("releases", 50), ("others", 50)])
def test_the_cost_of_a_plan_grows_with_the_world_and_no_faster(goal: Goal, what: str, number: int) -> None:
    assert is_linear(plan, goal, what, number)


def walks_servers(_definition: Definition, world: World, _history: History) -> None:
    for balancer in world.balancers:
        for server in balancer.servers:
            assert sum(other.id == server.id for other in balancer.servers) == 1


def looks_names_up_in_a_list(_definition: Definition, world: World, history: History) -> None:
    names = list(history.reserved.values())
    assert all(item.name in names for item in world.instances)


def walks_reservations(_definition: Definition, world: World, history: History) -> None:
    assert all(any(name == item.name for name in history.reserved.values()) for item in world.instances)


def copies_instances(_definition: Definition, world: World, _history: History) -> None:
    assert all([*world.instances, item] for item in world.instances)


def compares_releases(_definition: Definition, _world: World, history: History) -> None:
    assert all(history.releases.index(row) < len(history.releases) for row in history.releases)


@pytest.mark.parametrize(("planted", "what", "number"), [
    (walks_servers, "size", 50), (looks_names_up_in_a_list, "size", 50), (walks_reservations, "size", 50), (copies_instances, "size", 50),
    (compares_releases, "releases", 50),
])
def test_work_that_grows_faster_is_seen(planted: Callable[[Definition, World, History], None], what: str, number: int) -> None:
    def planner(definition: Definition, world: World, history: History, goal: Goal) -> Plan:
        planted(definition, world, history)
        return plan(definition, world, history, goal)

    assert not is_linear(planner, release("shop:3"), what, number)


@pytest.mark.parametrize("goal", [release("shop:3"), Goal("rollback"), Goal("heal"), Goal("retire")], ids=lambda goal: goal.verb)
def test_ten_thousand_instances(goal: Goal) -> None:
    """Seconds are only told."""
    definition, world, history = big(10_000)
    began = time.process_time()
    made = plan(definition, world, history, goal)
    print(f"{goal.verb} of 10,000 instances planned in {time.process_time() - began:.2f} s of CPU")
    assert made.waves or goal.verb == "heal"


# Copies

@pytest.mark.parametrize("verb", ["heal", "release", "retire"])
def test_a_copy_with_a_marker_of_an_earlier_version_is_in_no_step(verb: str) -> None:
    fleet = released("shop:1", ids=(100, 999))
    for box in fleet.site.boxes.values():
        old = {key: text for key, text in box.instance.marker.items() if key != "phoenix.fleet.vmid"}
        box.instance = replace(box.instance, marker=old)
    original = fleet.site.boxes["host1", "web-r1-1"]
    copy = replace(original.instance, id="another", number=205, address="10.0.1.55")
    fleet.site.boxes["host1", "a copy"] = Box(copy)
    fleet.site.kill("web-r1-2")
    made = fleet.plan(release("shop:2") if verb == "release" else Goal(verb))
    touched = {item.id for wave in made.waves for step in wave for item in step.instances}
    assert made.waves and "another" not in touched and "cluster #205" not in made.reserved
    assert verb != "retire" or original.instance.id in touched
