# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever happens to a fleet, the laws hold at every instant, and the next runs put it right.

The laws themselves are checked by the simulated world, around each single change (tests/simulation/world.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Definition, Goal, Image, Instance
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.ledger import MemoryLedger
from ansible_collections.phoenix.fleet.tests.simulation.world import Box, Crash, HAProxy, SimulatedProvider, Site
from hypothesis import event, example, given, note, settings
from hypothesis import strategies as st

GOOD = ["shop:1", "shop:2", "shop:3"]
BAD = "shop:bad"


STRANGERS = {
    ("host1", "db"): Instance("db", "host1", "", 0, 0, "db:1", "192.0.2.1", 5432, id="db", state="running"),
    ("host1", "web-r1-9"): Instance("web-r1-9", "host1", "", 0, 0, "shop:1", "192.0.2.2", 80, id="by hand", state="running"),
    ("host1", "web2-r1-1"): Instance(
        "web2-r1-1", "host1", "web2", 1, 1, "shop:1", "192.0.2.3", 80, id="2", state="running", marker={"phoenix.fleet.ledger": "ours"},
    ),
}


def fleet_of(
    size: int = 2, balancers: int = 2, hosts: int = 1, kind: str = "network", ids: tuple[int, int] = (0, 0), **more: Any,
) -> Unlucky:
    site = Site(bad_images={f"sha256:{BAD}"})
    site.boxes.update((place, Box(item)) for place, item in STRANGERS.items())
    site.balancers = [HAProxy(site, f"lb{number}") for number in range(1, balancers + 1)]
    # The hosts of a cluster share a range of addresses, and none of them publishes ports.
    ids = (0, 0) if kind == "published" else ids
    provider = SimulatedProvider(site, [f"host{number}" for number in range(1, hosts + 1)], kind, ids=ids)
    names = tuple(item.host for item in site.balancers)
    return Unlucky(site, provider, MemoryLedger(site), Definition("web", "shop:1", 8080, size=size, balancers=names, **more))


def release(image: str, force: bool = False, shape: str = "h") -> Goal:
    return Goal("release", Image(image, f"sha256:{image}"), shape, force)


fleets = st.builds(
    fleet_of, size=st.integers(1, 4), balancers=st.integers(1, 3), hosts=st.integers(1, 3), keep=st.integers(0, 2),
    kind=st.sampled_from(["network", "published", "dynamic"]), standby=st.sampled_from(["stopped", "running"]),
    ids=st.sampled_from([(0, 0), (100, 999)]),
)
goals = st.one_of(
    st.builds(release, st.sampled_from(GOOD), st.booleans()),
    st.sampled_from([release(BAD), Goal("rollback"), Goal("heal"), Goal("scale", size=1), Goal("scale", size=4), Goal("retire")]),
)
instants = st.integers(1, 120)


def attempt(fleet: Unlucky, goal: Goal) -> str:
    """One run, with the capacity that it owes at every instant: that of the smaller of what was and what is asked for."""
    fleet.site.need = owed(fleet, goal)
    fleet.site.ticks = 0
    for number, act in enumerate(fleet.late):
        fleet.site.events.setdefault(3 + 11 * number, act)
    fleet.late.clear()
    try:
        fleet.run(goal)
    except Crash:
        return "crashed"
    except FleetError as error:
        note(f"{goal.verb}: {error}")
        return "failed"
    return "reached"


def owed(fleet: Unlucky, goal: Goal) -> int:
    """How many instances serve now on the balancer that has the fewest, or how many will do."""
    entry = fleet.ledger.entry
    if goal.verb == "retire" or (entry and entry.verb == "retire"):
        return 0
    if entry and not entry.source and "revert" in entry.records:
        return 0  # a first release that was rejected goes out of traffic, and there is nothing to go back to
    if entry and "revert" in entry.records and fleet.returned:
        return 0  # of what was rejected and has come back, nothing is given traffic anew, wherever it had any before its host was lost
    now = min(capacity(fleet, balancer, bool(entry)) for balancer in fleet.site.balancers)
    sizes = [row.size for row in fleet.ledger.releases.values() if row.status in ("live", "open")]
    return min([now, fleet.definition.size, *sizes, *([goal.size] if goal.verb == "scale" else [])]) + fleet.site.kills


def capacity(fleet: Unlucky, balancer: HAProxy, torn: bool) -> int:
    """How many take traffic and answer. torn: two releases may share it, and one of them goes on."""
    names = [name for name, line in balancer.lines.items() if line.takes_traffic and fleet.site.answers(line.server)]
    parts = Counter(fleet.site.numbers(name) for name in names)
    return max(parts.values(), default=0) if torn else len(names)


class Unlucky(Fleet):
    """late is what a killed run's workers will still do while the next run is under way."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.late: list[Callable[[], None]] = []
        self.returned = False

    def orphan(self) -> None:
        """Whatever the run was about to make, its workers will make some day. There are none before the intent is written."""
        made = self.opened if self.plans and self.opened is self.plans[-1] else None
        for item in made.waves[-1][0].instances if made and made.waves and made.waves[-1][0].kind == "create" else ():
            self.late.append(lambda item=item: self.provider.late(item, self.blueprint(made)))  # type: ignore[misc,arg-type]


def crash() -> None:
    raise Crash


def finish(fleet: Unlucky) -> None:
    """No more faults: within three runs the fleet heals, and then there is nothing left to do."""
    fleet.site.events.clear()
    for act in fleet.late:
        act()
    fleet.late.clear()
    for balancer in fleet.site.balancers:
        balancer.reachable = True
    fleet.site.pass_time()
    for _again in range(3):
        if attempt(fleet, Goal("heal")) == "reached" and not fleet.plans[-1].waves:
            break
    whole(fleet)


def whole(fleet: Unlucky) -> None:
    site, ledger, definition = fleet.site, fleet.ledger, fleet.definition
    assert {place: site.boxes.pop(place).instance for place in STRANGERS} == STRANGERS
    assert not fleet.plan(Goal("heal")).waves
    assert ledger.entry is None
    rows = ledger.releases
    serving = {box.instance.name for box in site.boxes.values() if box.instance.release == ledger.live}
    assert len(serving) == (rows[ledger.live].size if ledger.live else 0)
    for balancer in site.balancers:
        assert set(balancer.lines) == set(balancer.fragment) == serving
        assert all((line.server.weight, line.server.state) == (100, "ready") for line in balancer.lines.values())
    others = {box.instance.release for box in site.boxes.values()} - {ledger.live}
    assert len(others) <= definition.keep and all(rows[number].status == "standby" for number in others)
    if definition.standby == "stopped":
        assert all(box.instance.state == "stopped" for box in site.boxes.values() if box.instance.release in others)
    for mark in ("#", "."):  # nobody holds two numbers, or two addresses
        holders = [name for key, name in ledger.reserved.items() if mark in key]
        assert len(set(holders)) == len(holders)


pasts = st.one_of(st.just([]), st.lists(goals, max_size=3).map(lambda more: [release("shop:1"), *more]))


@given(fleets, pasts, goals, instants, goals, instants, st.booleans(), st.booleans())
@settings(max_examples=1000)
def test_crashed_anywhere_and_planned_again(
    fleet: Unlucky, past: list[Goal], goal: Goal, at: int, other: Goal, then: int, same: bool, at_once: bool,
) -> None:
    """Killed at any instant; then the same command, or another one, killed as well; then nothing more happens to it."""
    for item in past:
        attempt(fleet, item)
    fleet.site.events = {at: crash}
    event(f"{goal.verb} {attempt(fleet, goal)}")
    if not at_once:
        fleet.site.pass_time()
    fleet.site.events = {then: crash}
    attempt(fleet, goal if same else other)
    finish(fleet)


@st.composite
def misfortunes(draw: st.DrawFn) -> list[tuple[int, str, int]]:
    """When, what, and to which: instances die, balancers vanish, come back, restart, lose what they knew; the controller is killed."""
    kinds = st.sampled_from(["crash", "orphan", "kill", "vanish", "return", "restart"])
    return draw(st.lists(st.tuples(instants, kinds, st.integers(0, 7)), min_size=1, max_size=4))


def strike(fleet: Unlucky, kind: str, which: int) -> None:
    site = fleet.site
    balancer = site.balancers[which % len(site.balancers)]
    if kind == "orphan":
        fleet.orphan()
    if kind in ("crash", "orphan"):
        raise Crash
    if kind == "kill":
        names = sorted(box.instance.name for box in site.boxes.values() if box.instance.fleet == "web" and box.instance.state == "running")
        site.kill(names[which % len(names)]) if names else None
    elif kind == "vanish":
        balancer.reachable = False
    elif kind == "return":
        balancer.reachable = True
    elif kind == "restart":
        balancer.restart()


# An instance that is made anew under a name whose former bearer told another address.
@example(fleet_of(size=1, balancers=1, keep=0, kind="dynamic"), [], [
    (release("shop:1"), [(30, "crash", 0)], False),
    (Goal("scale", size=4), [(1, "kill", 0), (10, "crash", 0)], False),
    (Goal("heal"), [(1, "kill", 0), (16, "crash", 0)], False),
])
# A first release that serves in part: there is nothing to go back to, so what serves stays.
@example(fleet_of(size=4, balancers=1, keep=0, kind="dynamic"), [], [
    (release("shop:1"), [(5, "kill", 0)], False),
    (release("shop:1"), [(45, "crash", 0)], False),
    (release(BAD), [(1, "kill", 0)], False),
])
# A release that was rejected serves still, and one of the predecessor's instances has died meanwhile.
@example(fleet_of(size=4, balancers=3, keep=0), [release("shop:1")], [
    (release("shop:1", True), [(74, "vanish", 0), (75, "restart", 1), (99, "kill", 0)], False),
])
# A balancer has lost a rejected release's traffic already, the other one could not be reached then.
@example(fleet_of(size=3, balancers=2, keep=0), [release("shop:1")], [
    (release("shop:1", True), [(84, "crash", 0)], False),
    (release(BAD), [(1, "restart", 1), (2, "vanish", 0)], False),
])
# Each of two releases has lost one instance, when a run is killed that shifts the traffic from one to the other: together more serve.
@example(fleet_of(size=3, balancers=1, keep=0), [], [
    (release("shop:1"), [(27, "kill", 0)], False),
    (release("shop:1", True), [(27, "kill", 2), (38, "crash", 0)], False),
])
@given(fleets, pasts, st.lists(st.tuples(goals, misfortunes(), st.booleans()), min_size=1, max_size=3))
@settings(max_examples=1000)
def test_the_world_falls_apart_meanwhile(
    fleet: Unlucky, past: list[Goal], runs: list[tuple[Goal, list[tuple[int, str, int]], bool]],
) -> None:
    for item in past:
        attempt(fleet, item)
    for goal, faults, calm in runs:
        fleet.site.events = {at: (lambda kind=kind, which=which: strike(fleet, kind, which)) for at, kind, which in faults}
        event(f"{goal.verb} {attempt(fleet, goal)}")
        if calm:
            fleet.site.pass_time()
    finish(fleet)


kinds = st.sampled_from(["fleet_size", "scale", "rollback"])
changes = st.tuples(kinds, st.integers(1, 4), st.sampled_from(GOOD[:2]), instants, st.booleans())


@given(st.lists(changes, min_size=1, max_size=6))
def test_the_size_is_the_one_that_was_asked_for_last(wishes: list[tuple[str, int, str, int, bool]]) -> None:
    """By a change of fleet_size, which the next release sees, or by a scale; whatever is killed, healed or rolled back in between."""
    fleet = fleet_of(size=2)
    attempt(fleet, release("shop:1"))
    recorded(fleet)
    wanted = 2
    for kind, size, image, at, healed in wishes:
        goal = {"fleet_size": release(image), "scale": Goal("scale", size=size), "rollback": Goal("rollback")}[kind]
        if kind == "fleet_size" and size != fleet.definition.size:
            fleet.definition = replace(fleet.definition, size=size)
            wanted = size
        elif kind == "scale":
            wanted = size
        for event_ in ({at: crash}, {}, {}):
            fleet.site.events = dict(event_)
            fleet.site.pass_time()
            outcome = attempt(fleet, goal)
            recorded(fleet)
            if outcome == "crashed" and healed:
                fleet.site.events.clear()
                attempt(fleet, Goal("heal"))
        assert fleet.ledger.releases[fleet.ledger.live].size == wanted


def recorded(fleet: Unlucky) -> None:
    """As the action plugin does it: a new release is recorded with the fleet_size that was asked for."""
    rows = fleet.ledger.releases
    new = {number: replace(row, definition={"size": fleet.definition.size}) for number, row in rows.items() if not row.definition}
    rows.update(new)


@given(
    st.integers(1, 12), st.integers(1, 3), st.sampled_from(["network", "published", "dynamic"]), st.integers(1, 100),
    st.dictionaries(st.integers(1, 12), st.sampled_from(["dies", "drained by hand", "vanishes"]), max_size=4), instants,
)
def test_a_heal_replaces_no_more_than_its_share_at_once(
    size: int, balancers: int, kind: str, share: int, mishaps: dict[int, str], at: int,
) -> None:
    fleet = fleet_of(size=size, balancers=balancers, kind=kind)
    for place in STRANGERS:  # one of them has a name that this fleet comes to
        del fleet.site.boxes[place]
    attempt(fleet, release("shop:1"))
    fleet.site.pass_time()
    ill = {f"web-r1-{slot}": mishap for slot, mishap in mishaps.items() if slot <= size}
    for name, mishap in ill.items():
        if mishap == "drained by hand":
            line = fleet.site.balancers[0].lines[name]
            line.server = replace(line.server, state="drain")
        else:
            fleet.site.kill(name)
        if mishap == "vanishes":
            del fleet.site.boxes["host1", name]
    fleet.site.pass_time()
    limit = max(1, size * share // 100)
    made = fleet.plan(Goal("heal", share=share))
    assert len(made.waves) == -(-len(ill) // limit)
    for wave in made.waves:
        acts = {step.kind: step for step in wave}
        assert 0 < len(acts["create"].instances) <= limit
        leaving = {server.name for server in acts["switch"].servers} - {server.name for server in acts["drain"].servers}
        assert 0 < len(leaving) <= limit and ("destroy" not in acts or len(acts["destroy"].instances) <= limit)
    fleet.site.events = {at: crash}
    outcome = attempt(fleet, Goal("heal", share=share))
    event(outcome)
    fleet.site.events.clear()
    fleet.site.pass_time()
    assert attempt(fleet, Goal("heal", share=share)) == "reached" and not fleet.plan(Goal("heal")).waves
    names = {name for _host, name in fleet.site.boxes}
    assert len(names) == size and (outcome == "crashed" or not names & ill.keys())


clusters = st.builds(
    fleet_of, size=st.integers(1, 4), balancers=st.integers(1, 2), hosts=st.integers(2, 3), keep=st.integers(0, 2),
    kind=st.sampled_from(["network", "dynamic"]), standby=st.sampled_from(["stopped", "running"]), ids=st.just((100, 999)),
)
silences = st.tuples(st.sampled_from(["names", "hosts"]), st.integers(0, 255))


def hush(fleet: Unlucky, part: str, which: int) -> None:
    """Whatever part of the listing is silent: any instances, or all that some hosts of a cluster have. Everything goes on meanwhile."""
    provider = fleet.provider
    names = sorted(box.instance.name for box in fleet.site.boxes.values() if box.instance.marker and box.instance.fleet == "web")
    hosts = [host for host in provider.hosts if provider.ids[1] and part == "hosts"]
    provider.unasked = {host for bit, host in enumerate(hosts) if which >> bit & 1}
    provider.omitted = {name for bit, name in enumerate(names) if part == "names" and which >> bit & 1}


def up_everywhere(fleet: Unlucky) -> set[str]:
    return set.intersection(*(
        {name for name, line in item.lines.items() if line.checked and line.takes_traffic} for item in fleet.site.balancers
    ))


@given(st.one_of(fleets, clusters), pasts, st.lists(st.tuples(goals, silences, instants, silences, instants), max_size=4))
@settings(max_examples=500)
def test_no_heal_takes_traffic_from_what_every_balancer_calls_up(
    fleet: Unlucky, past: list[Goal], runs: list[tuple[Goal, tuple[str, int], int, tuple[str, int], int]],
) -> None:
    """Whatever part of the listing is silent, in whatever order of verbs, and wherever they are killed."""
    for item in past:
        attempt(fleet, item)
    for goal, silence, at, another, then in runs:
        hush(fleet, *silence)
        fleet.site.events = {at: crash}
        attempt(fleet, goal)
        fleet.site.events.clear()
        fleet.site.pass_time()
        hush(fleet, *another)
        entry, row = fleet.ledger.entry, fleet.ledger.releases.get(fleet.ledger.live)
        up = up_everywhere(fleet)
        if entry is None and row is not None and len(up) <= row.size:
            fleet.site.must_serve = up
            event(f"{len(up)} up, {len(up & {item.name for item in fleet.provider.observe('web')})} of them listed")
        fleet.site.events = {then: crash}
        attempt(fleet, Goal("heal"))
        fleet.site.must_serve = set()
    fleet.site.events.clear()
    hush(fleet, "", 0)
    finish(fleet)


@given(st.one_of(fleets, clusters), pasts, goals, instants, goals, st.integers(0, 255))
@settings(max_examples=500)
def test_a_listing_that_is_silent_changes_no_plan_for_what_is_up(
    fleet: Unlucky, past: list[Goal], goal: Goal, at: int, other: Goal, which: int,
) -> None:
    """Also after a crash: which release is to be live, and who serves in the end, is the same."""
    for item in past:
        attempt(fleet, item)
    fleet.site.events = {at: crash}
    event(attempt(fleet, goal))
    fleet.site.pass_time()
    up = {name for bit, name in enumerate(sorted(up_everywhere(fleet))) if which >> bit & 1}
    for wish in (other, Goal("heal"), Goal("abort")):
        told = []
        for omitted in (set(), up):
            fleet.provider.omitted = omitted
            try:
                made = fleet.plan(wish)
            except FleetError as error:
                told.append((str(error), 0, 0, ()))
                continue
            last = next((step.servers for wave in made.waves[::-1] for step in wave[::-1] if step.kind in ("drain", "switch", "stage")), ())
            told.append((made.verb, made.source, made.target, tuple((server.name, server.weight, server.state) for server in last)))
        assert told[0] == told[1] or "cannot be taken away whole" in told[1][0]


def lost_host(fleet: Unlucky, number: int, lost: bool) -> None:
    host = fleet.provider.hosts[number % len(fleet.provider.hosts)]
    fleet.site.lose(host, lost)
    fleet.returned = fleet.returned or not lost
    (fleet.provider.unasked.add if lost else fleet.provider.unasked.discard)(host)


fates = st.tuples(goals, st.sampled_from(["", "lost", "back"]), st.integers(0, 2), st.integers(2, 120))


# What is undone keeps the servers of what cannot be seen, as they are.
@example(fleet_of(size=2, balancers=2, hosts=3, keep=0, ids=(100, 999)), [
    (release(BAD), "lost", 0, 2), (Goal("heal"), "lost", 1, 44),
])
@given(clusters, st.lists(fates, min_size=1, max_size=6))
@settings(max_examples=500)
def test_what_comes_back_with_its_host_has_its_address_for_itself(
    fleet: Unlucky, runs: list[tuple[Goal, str, int, int]],
) -> None:
    """Hosts lose their power and come back, with all that they had, in whatever order of verbs. Nothing is left of it in the end."""
    attempt(fleet, release("shop:1"))
    for goal, fate, which, at in runs:
        fleet.site.events = {at: crash}
        if fate:
            fleet.site.events[1] = partial(lost_host, fleet, which, fate == "lost")
        event(f"{goal.verb} {attempt(fleet, goal)}")
        fleet.site.pass_time()
    for number in range(len(fleet.provider.hosts)):
        lost_host(fleet, number, False)
    finish(fleet)
    if not fleet.ledger.live:
        return
    before = {box.instance.name for box in fleet.site.boxes.values()}
    attempt(fleet, release("shop:1", force=True))
    after = {box.instance.name for box in fleet.site.boxes.values()}
    assert set(fleet.ledger.reserved.values()) <= before | after, "nothing is held for what is no more"
