# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The law "nothing is stopped that any balancer may serve" holds for every sequence of acts, not only for the role's.

The simulated world raises LawBrokenError where an instance goes that a balancer's fragment or runtime would serve, reachable or not,
in the definition or not, in whichever backend (`Site.may_go`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Definition,
    Goal,
    History,
    Image,
    Instance,
    Receipt,
    Registration,
    Server,
    Step,
)
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _registrations as law
from ansible_collections.phoenix.fleet.plugins.plugin_utils._planner import plan
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.ledger import MemoryLedger
from ansible_collections.phoenix.fleet.tests.simulation.world import Crash, HAProxy, SimulatedProvider, Site
from hypothesis import event, example, given, note, settings
from hypothesis import strategies as st

BACKENDS = ("web", "shop")
HOSTS = ("lb1", "lb2", "lb3")


class Lawless(Site):
    """Only the law of this page: a play that skips the checks may well send requests to what does not answer."""

    def check_laws(self, what: str) -> None:
        pass

    def promoted(self, before: Server | None, after: Server) -> None:
        pass


class OthersPlay(Fleet):
    """The role's acts within somebody else's play: what fails is passed over, and steps are skipped, repeated or reordered."""

    mess: list[tuple[str, int]] = []
    deaf = False

    def _pursue(self, goal: Goal, fence: int):  # type: ignore[no-untyped-def]
        world = self.world(fence)
        made = plan(self.definition, world, self.ledger.history(), goal)
        self.plans.append(made)
        if not made.waves:
            return made
        ours = [item for item in world.instances if self.is_ours(item)]
        self.ledger.keep(law.from_before(self.definition, world, self.ledger.history(), ours))
        self.ledger.open(made, fence)
        answering = [item for item in self.balancers if item.host not in made.silent]
        for step in self.disturbed([step for wave in made.waves for step in wave]):
            note(f"{goal.verb}: {step.kind}")
            try:
                self._step(made, step, answering, fence)
            except FleetError as error:
                note(f"  {error}")
                if not self.deaf:
                    raise
        if made.closes:
            self.ledger.record("done", fence)
        return made

    def is_ours(self, item: Instance) -> bool:
        return item.marker.get("phoenix.fleet.ledger") == self.ledger.name

    def disturbed(self, steps: list[Step]) -> list[Step]:
        for how, where in self.mess:
            at = where % len(steps)
            if how == "skip" and len(steps) > 1:
                steps.pop(at)
            elif how == "repeat":
                steps.insert((where * 7) % (len(steps) + 1), steps[at])
            elif how == "late":
                steps.append(steps.pop(at))
            elif how == "early":
                steps.insert(0, steps.pop(at))
            elif how == "crash":
                steps = steps[:at] or steps
        return steps


def fleet_of(size: int, keep: int, standby: str) -> OthersPlay:
    site = Lawless(bad_images={"sha256:shop:bad"})
    site.balancers = [HAProxy(site, host, backend) for host in HOSTS for backend in BACKENDS]
    definition = Definition("web", "shop:1", 8080, size=size, keep=keep, standby=standby, balancers=HOSTS[:2], backend="web")
    return OthersPlay(site, SimulatedProvider(site), MemoryLedger(site), definition)


def release(image: str, force: bool = False) -> Goal:
    return Goal("release", Image(image, f"sha256:{image}"), "h", force)


goals = st.one_of(
    st.builds(release, st.sampled_from(["shop:1", "shop:2", "shop:bad"]), st.booleans()),
    st.sampled_from([Goal("rollback"), Goal("heal"), Goal("scale", size=1), Goal("scale", size=3), Goal("retire")]),
)
messes = st.lists(st.tuples(st.sampled_from(["skip", "repeat", "late", "early", "crash"]), st.integers(0, 20)), max_size=4)
definitions = st.tuples(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True), st.sampled_from(BACKENDS))
mishaps = st.lists(st.tuples(st.sampled_from(["vanish", "return", "restart", "kill", "lost"]), st.integers(0, 9)), max_size=2)
runs = st.tuples(goals, messes, st.booleans(), definitions, mishaps)

USUAL = (["lb1", "lb2"], "web")
FIRST = (release("shop:1"), [], False, USUAL, [])
some_fleet = st.builds(fleet_of, st.integers(1, 3), st.integers(0, 1), st.sampled_from(["stopped", "running"]))


# A bad image under ignore_errors: every step is tried, whatever failed before it.
@example(fleet_of(2, 1, "stopped"), [FIRST, (release("shop:bad"), [], True, USUAL, [])])
# The backend changes together with the image.
@example(fleet_of(2, 0, "stopped"), [FIRST, (release("shop:2"), [], False, (["lb1", "lb2"], "shop"), [])])
# Half of the balancers' group is missing from the inventory.
@example(fleet_of(2, 0, "stopped"), [FIRST, (release("shop:2"), [], True, (["lb1"], "web"), [])])
@given(some_fleet, st.lists(runs, min_size=2, max_size=5))
@settings(max_examples=600)
def test_nothing_is_stopped_that_any_balancer_may_serve(fleet: OthersPlay, plays: list) -> None:  # type: ignore[type-arg]
    for goal, mess, deaf, (balancers, backend), misfortunes in plays:
        lost: tuple[str, ...] = ()
        for what, which in misfortunes:
            balancer = fleet.site.balancers[which % len(fleet.site.balancers)]
            if what in ("vanish", "return"):
                balancer.reachable = what == "return"
            elif what == "restart":
                balancer.restart()
            elif what == "kill":
                names = sorted(box.instance.name for box in fleet.site.boxes.values())
                fleet.site.kill(names[which % len(names)]) if names else None
        fleet.definition = replace(fleet.definition, balancers=tuple(balancers), backend=backend, lost_balancers=lost)
        fleet.mess, fleet.deaf = mess, deaf
        try:
            fleet.run(goal)
            event(f"{goal.verb} ended")
        except Crash:
            event("crash")
        except FleetError as error:
            note(f"{goal.verb}: {error}")
            event(f"{goal.verb} {type(error).__name__}")
        fleet.site.pass_time()


# The law by itself

WEB = Instance("web-r1-1", "local", "web", 1, 1, "shop:1", "10.0.0.1", 80)
SERVED = Registration("web-r1-1", "lb1", "web", "10.0.0.1", 80, weight=100)
OUT = replace(SERVED, receipt=Receipt(7, "2026-11-26T03:00:00Z"))


def test_an_instance_goes_when_every_balancer_that_was_told_has_given_a_receipt() -> None:
    law.refuse_serving([OUT, replace(OUT, balancer="lb2")], [WEB])
    with pytest.raises(RefusedError, match=r"balancer lb2 was told of it in backend web.*fleet_lost_balancers=lb2"):
        law.refuse_serving([OUT, replace(SERVED, balancer="lb2")], [WEB])
    with pytest.raises(RefusedError, match="in backend former"):
        law.refuse_serving([OUT, replace(SERVED, backend="former")], [WEB])
    with pytest.raises(RefusedError, match="does not know which balancers"):
        law.refuse_serving([], [WEB])


def test_what_had_no_traffic_goes_without_a_receipt_and_its_address_stays_reserved() -> None:
    staged = replace(SERVED, weight=0)
    law.refuse_serving([staged], [WEB])
    assert "10.0.0.1" in law.cooling(History("x", registrations=(staged,)), ())
    assert law.cooling(History("x", registrations=(staged,)), {"web-r1-1"}) == {}
    assert law.cooling(History("x", registrations=(OUT,)), ()) == {}


def test_a_receipt_is_void_once_the_balancer_is_told_again() -> None:
    again = law.registered(OUT, Server("web-r1-1", "10.0.0.1", 80, 1, weight=0), "lb1", "web")
    assert (again.receipt, again.weight, again.turn) == (None, 0, OUT.turn + 1)
    again = law.registered(again, Server("web-r1-1", "10.0.0.1", 80, 1, weight=100), "lb1", "web")
    assert law.registered(again, Server("web-r1-1", "10.0.0.1", 80, 1, weight=0), "lb1", "web").may_serve
    # One that could not be stored counts for the turn that it was given for.
    law.refuse_serving([SERVED], [WEB], fresh=[OUT])
    with pytest.raises(RefusedError, match="has not confirmed"):
        law.refuse_serving([replace(SERVED, turn=2)], [WEB], fresh=[OUT])


def test_a_process_that_lingers_proves_nothing_and_cools_the_address_down() -> None:
    lingers = {"proof": "lingering", "processes": ["4711:99"]}
    assert law.confirmed(SERVED, lingers, 7, "now") == SERVED
    cut = law.confirmed(SERVED, {"proof": "deadline", "cut": 2, "processes": ["4711:99"]}, 7, "now")
    assert cut.receipt and (cut.receipt.proof, cut.receipt.cut, cut.is_settled) == ("deadline", 2, False)
    assert "HAProxy's process 4711 on lb1" in law.cooling(History("x", registrations=(cut,)), ())["10.0.0.1:80"]
    ended = law.confirmed(cut, {"proof": "idle", "processes": []}, 8, "later")
    assert ended.is_settled and ended.receipt and ended.receipt.proof == "deadline"


def test_the_word_of_an_operator_is_a_receipt_with_a_name() -> None:
    given = law.given_up(History("x", fence=9, registrations=(SERVED, replace(SERVED, balancer="lb2"))), ("lb2",), "alice@ops", "now")
    assert [(item.balancer, item.receipt) for item in given] == [("lb2", Receipt(9, "now", "operator", by="alice@ops"))]


# The planner refuses before anything is made what the act would refuse afterwards


def served(balancers: tuple[str, ...] = ("lb1", "lb2"), **more: object) -> Fleet:
    """A fleet whose first release serves on these balancers."""
    site = Site(bad_images={"sha256:shop:bad"})
    site.balancers = [HAProxy(site, host, backend) for host in HOSTS for backend in BACKENDS]
    definition = Definition("web", "shop:1", 8080, balancers=balancers, backend="web", **more)  # type: ignore[arg-type]
    fleet = Fleet(site, SimulatedProvider(site), MemoryLedger(site), definition)
    fleet.run(release("shop:1"))
    site.pass_time()
    return fleet


CHANGES = [release("shop:2"), Goal("heal"), Goal("scale", size=3), Goal("retire")]


@pytest.mark.parametrize("goal", CHANGES, ids=lambda goal: goal.verb)
def test_a_balancer_that_the_inventory_has_lost_is_named_before_anything_is_touched(goal: Goal) -> None:
    fleet = served()
    fleet.definition = replace(fleet.definition, balancers=("lb1",))
    with pytest.raises(RefusedError, match=r"balancer lb2: it may be serving web-r1-1 and 1 others.*-e fleet_lost_balancers=lb2"):
        fleet.run(goal)
    assert {name for _host, name in fleet.site.boxes} == {"web-r1-1", "web-r1-2"}
    assert fleet.ledger.entry is None


@pytest.mark.parametrize("goal", CHANGES, ids=lambda goal: goal.verb)
def test_a_backend_that_still_serves_is_not_left(goal: Goal) -> None:
    fleet = served()
    fleet.definition = replace(fleet.definition, backend="shop")
    with pytest.raises(RefusedError, match=r"backend web on lb1: it may be serving.*Set fleet_backend: web; to move"):
        fleet.run(goal)
    assert {name for _host, name in fleet.site.boxes} == {"web-r1-1", "web-r1-2"}


def test_a_balancer_that_is_gone_for_good_by_an_operators_word_holds_nothing_up() -> None:
    fleet = served(keep=0)
    lost = [item for item in fleet.site.balancers if item.host == "lb2"]
    fleet.definition = replace(fleet.definition, balancers=("lb1",), lost_balancers=("lb2",))
    for item in lost:
        fleet.site.balancers.remove(item)
    fleet.ledger.keep(law.given_up(fleet.ledger.history(), ("lb2",), "alice", "000099"))
    fleet.run(release("shop:2"))
    assert {name for _host, name in fleet.site.boxes} == {"web-r2-1", "web-r2-2"}


def test_a_balancer_that_comes_back_and_serves_nothing_gives_its_receipt_by_being_looked_at() -> None:
    fleet = served(keep=0)
    for item in fleet.site.balancers:
        if item.host == "lb2":
            item.fragment, item.lines = {}, {}
    fleet.run(release("shop:2"))
    assert {name for _host, name in fleet.site.boxes} == {"web-r2-1", "web-r2-2"}


def test_standbys_of_a_ledger_from_before_are_asked_for_their_receipts() -> None:
    fleet = served()
    fleet.run(release("shop:2"))
    fleet.site.pass_time()
    fleet.ledger.registrations.clear()
    fleet.run(release("shop:1", force=True))
    assert {name for _host, name in fleet.site.boxes} == {"web-r2-1", "web-r2-2", "web-r3-1", "web-r3-2"}


def test_addresses_are_used_again_late_and_the_oldest_first() -> None:
    site = Site()
    site.balancers = [HAProxy(site, "lb1", "web")]
    definition = Definition("web", "shop:1", 8080, size=1, keep=0, balancers=("lb1",), backend="web")
    fleet = Fleet(site, SimulatedProvider(site, room=4), MemoryLedger(site), definition)
    seen = []
    for _release in range(7):
        fleet.run(release("shop:1", force=True))
        site.pass_time()
        seen += [box.instance.address for box in site.boxes.values()]
    assert [address.rpartition(".")[2] for address in seen] == ["1", "2", "3", "4", "1", "2", "3"]


def test_no_room_names_what_cools_down() -> None:
    fleet = served(("lb1",), keep=0)
    fleet.provider.room = 4
    fleet.run(release("shop:2"))
    fleet.site.pass_time()
    process = Receipt(2, "now", "deadline", cut=1, processes=("4711:99",))
    rows = [item for item in fleet.ledger.registrations.values() if item.balancer and "-r1-" in item.server]
    fleet.ledger.keep(replace(item, receipt=process) for item in rows)
    with pytest.raises(RefusedError, match=r"10\.0\.1\.1 was web-r1-1's, and HAProxy's process 4711 on lb1 may still send requests to it"):
        fleet.plan(release("shop:1", force=True))
