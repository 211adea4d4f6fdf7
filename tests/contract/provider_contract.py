# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every provider keeps, the simulated one included. A subclass has a fixture `case` that gives a Case of a new, empty fleet.

    class TestDocker(ProviderContract):
        @pytest.fixture
        def case(self) -> Iterator[Case]: ...
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance, Pool
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, Provider

LEDGER = "phoenix.fleet.ledger"
AWAKE = ("running", "restarting")


class Case(ABC):
    """A fleet that has no instance yet, and what may befall its instances.

    blueprint is what its instances are made from; balancers are as in Provider.pools; timeout is how long a polite stop may take.
    """

    provider: Provider
    fleet: str
    port: int
    blueprint: Blueprint
    balancers: Sequence[str] = ("local",)
    timeout: int = 5

    @abstractmethod
    def crash(self, instance: Instance) -> None:
        """Its process ends by itself, now."""

    @abstractmethod
    def alter(self, instance: Instance) -> None:
        """Somebody changes its root file system."""

    @abstractmethod
    def vanish(self, instance: Instance) -> None:
        """Somebody removes it behind the provider's back."""

    @abstractmethod
    def stranger(self) -> AbstractContextManager[str]:
        """Something of somebody else's lives where instances live, without a marker; gives its name."""

    @abstractmethod
    def lives(self, stranger: str) -> bool:
        """Whether that is still as it was."""

    @abstractmethod
    def silent(self) -> AbstractContextManager[Provider]:
        """The same provider, while the other side gives no answer."""

    def blueprint_of(self, ledger: str) -> Blueprint:
        """The same blueprint for another ledger."""
        return replace(self.blueprint, ledger=ledger)

    def planned(self, count: int, release: int = 1, first: int = 1, fleet: str = "") -> tuple[Instance, ...]:
        """Instances as a plan has them: spread over the pools, each at its lowest free place."""
        fleet = fleet or self.fleet
        pools = self.provider.pools(fleet, self.port, self.balancers)
        shared: dict[str, Iterator[tuple[str, int]]] = {}
        free = {pool.host: shared.setdefault(pool.realm or pool.host, _free(pool)) for pool in pools}
        made = []
        for slot in range(first, first + count):
            host = pools[(slot - 1) % len(pools)].host
            address, port = next(free[host])
            name = f"{fleet}-r{release}-{slot}"
            item = Instance(name, host, fleet, release, slot, self.blueprint.image.digest, address, port, self.blueprint.revision)
            made.append(replace(item, number=self.numbered(name, pools[0].ids[0])))
        return tuple(made)

    def numbered(self, name: str, first: int) -> int:
        """The number of the instance of that name where they have numbers: the same for the same name, else never the same."""
        self.numbers = getattr(self, "numbers", {})
        return self.numbers.setdefault(name, first + len(self.numbers)) if first else 0

    def created(self, count: int, release: int = 1, first: int = 1) -> tuple[Instance, ...]:
        return self.provider.create(self.planned(count, release, first), self.blueprint)


def _free(pool: Pool) -> Iterator[tuple[str, int]]:
    return (place for place in _places(pool) if pool.key(*place) not in pool.taken)


def _places(pool: Pool) -> list[tuple[str, int]]:
    if pool.kind == "dynamic":
        return [("", pool.ports[0])] * 100
    if pool.kind == "published":
        return [(pool.first, port) for port in range(pool.ports[0], pool.ports[1] + 1)]
    first, last = int(ipaddress.ip_address(pool.first)), int(ipaddress.ip_address(pool.last))
    return [(str(ipaddress.ip_address(number)), pool.ports[0]) for number in range(first, min(last, first + 500) + 1)]


def seen(case: Case) -> dict[str, Instance]:
    return {item.name: item for item in case.provider.observe(case.fleet)}


def taken(case: Case) -> set[tuple[str, str]]:
    return {(pool.host, key) for pool in case.provider.pools(case.fleet, case.port, case.balancers) for key in pool.taken}


def keys(case: Case, instances: Sequence[Instance]) -> set[tuple[str, str]]:
    pools = {pool.host: pool for pool in case.provider.pools(case.fleet, case.port, case.balancers)}
    return {(item.host, pools[item.host].key(item.address, item.port)) for item in instances if pools[item.host].kind != "dynamic"}


class ProviderContract:
    def test_names_an_image_by_what_cannot_change(self, case: Case) -> None:
        image = case.provider.image(case.blueprint.image.reference)
        assert image.digest and image == case.provider.image(case.blueprint.image.reference) == case.blueprint.image

    def test_refuses_an_image_that_does_not_exist_with_a_remedy(self, case: Case) -> None:
        with pytest.raises(RefusedError, match="phoenix-test-absent") as refused:
            case.provider.image("phoenix-test-absent:1")
        assert refused.value.remedy

    def test_sees_nothing_of_a_fleet_that_has_nothing(self, case: Case) -> None:
        assert case.provider.observe(case.fleet) == ()

    def test_creates_what_was_planned_and_shows_it_as_it_is(self, case: Case) -> None:
        planned = case.planned(3)
        made = case.provider.create(planned, case.blueprint)
        for plan, item in zip(planned, made, strict=True):
            assert (item.name, item.host, item.fleet) == (plan.name, plan.host, plan.fleet)
            assert (item.release, item.slot) == (plan.release, plan.slot)
            assert (item.image, item.revision) == (case.blueprint.image.digest, case.blueprint.revision)
            assert item.state in AWAKE and item.port == plan.port and plan.address in ("", item.address)
            assert item.created and item.marker[LEDGER] == case.blueprint.ledger
            assert item.marker["phoenix.fleet.hash"] == case.blueprint.hash
        assert len({item.id for item in made}) == 3 and all(item.id for item in made)
        assert {item.id for item in case.provider.observe(case.fleet)} == {item.id for item in made}

    def test_a_place_is_taken_until_its_instance_is_destroyed(self, case: Case) -> None:
        made = case.created(2)
        held = keys(case, made)
        assert held <= taken(case)
        case.provider.stop(made, case.timeout)
        assert held <= taken(case)
        case.provider.destroy(made, case.timeout)
        assert not held & taken(case)

    def test_taking_up_a_creation_again_changes_nothing(self, case: Case) -> None:
        planned = case.planned(2)
        first = case.provider.create(planned[:1], case.blueprint)
        both = case.provider.create(planned, case.blueprint)
        assert both[0].id == first[0].id and len(seen(case)) == 2

    def test_a_name_that_another_ledger_holds_is_refused_and_the_rest_is_made(self, case: Case) -> None:
        planned = case.planned(3)
        theirs = case.provider.create(planned[1:2], case.blueprint_of("theirs"))
        with pytest.raises(FleetError) as refused:
            case.provider.create(planned, case.blueprint)
        assert planned[1].name in str(refused.value) and planned[0].name not in str(refused.value)
        now = seen(case)
        assert set(now) == {item.name for item in planned}
        assert now[planned[1].name].id == theirs[0].id and now[planned[1].name].marker[LEDGER] == "theirs"

    def test_sees_its_own_fleet_only(self, case: Case) -> None:
        made = case.created(1)
        other = case.fleet + "x"
        theirs = case.provider.create(case.planned(1, fleet=other), case.blueprint)
        try:
            assert [item.id for item in case.provider.observe(case.fleet)] == [made[0].id]
        finally:
            case.provider.destroy(theirs, case.timeout)

    def test_stops_and_starts_without_a_change_of_identity_or_address(self, case: Case) -> None:
        made = case.created(2)
        for _time in range(2):  # twice is the same as once
            case.provider.stop(made, case.timeout)
            assert {item.state for item in case.provider.observe(case.fleet)} == {"stopped"}
        for _time in range(2):
            again = case.provider.start(tuple(seen(case).values()), case.blueprint)
            assert [(item.id, item.address, item.port) for item in again] == [(item.id, item.address, item.port) for item in made]
            assert all(item.state in AWAKE for item in again)

    def test_stopping_some_leaves_the_others(self, case: Case) -> None:
        made = case.created(3)
        case.provider.stop(made[:1], case.timeout)
        now = seen(case)
        assert now[made[0].name].state == "stopped"
        assert all(now[item.name].state in AWAKE for item in made[1:])

    def test_destroys_to_the_last_and_again(self, case: Case) -> None:
        made = case.created(2)
        for _time in range(2):
            case.provider.destroy(made, case.timeout)
            assert case.provider.observe(case.fleet) == ()

    def test_destroys_what_is_stopped(self, case: Case) -> None:
        made = case.created(1)
        case.provider.stop(made, case.timeout)
        case.provider.destroy(made, case.timeout)
        assert case.provider.observe(case.fleet) == ()

    def test_nothing_is_done_to_one_without_the_permit(self, case: Case) -> None:
        made = case.created(2)

        def permit(item: Instance) -> None:
            if item.name == made[0].name:
                raise RefusedError(f"instance {item.name}", "a balancer may be serving it")

        with pytest.raises(FleetError, match=f"{made[0].name}.* a balancer may be serving it"):
            case.provider.stop(made[:1], case.timeout, permit)
        with pytest.raises(FleetError, match=f"{made[0].name}.* a balancer may be serving it"):
            case.provider.destroy(made[:1], case.timeout, permit)
        assert {item.id: item.state in AWAKE for item in case.provider.observe(case.fleet)} == {item.id: True for item in made}
        case.provider.destroy(made[1:], case.timeout, permit)
        assert [item.id for item in case.provider.observe(case.fleet)] == [made[0].id]

    def test_what_was_started_since_the_plan_was_made_is_left_alone(self, case: Case) -> None:
        made = case.created(1)
        case.provider.stop(made, case.timeout)
        planned = tuple(seen(case).values())
        case.provider.start(planned, case.blueprint)
        with pytest.raises(RefusedError, match=f"{made[0].name}: it was started since the plan was made"):
            case.provider.destroy(planned, case.timeout)
        assert [(item.id, item.state in AWAKE) for item in case.provider.observe(case.fleet)] == [(made[0].id, True)]

    def test_what_is_started_between_its_stop_and_its_removal_is_left_alone(self, case: Case) -> None:
        made = case.created(1)
        asked: list[str] = []

        def permit(item: Instance) -> None:
            asked.append(item.name)
            if len(asked) > 1 and seen(case)[item.name].state == "stopped":  # as after a controller was suspended there
                case.provider.start(tuple(seen(case).values()), case.blueprint)

        with pytest.raises(RefusedError, match=f"{made[0].name}: it was started since the plan was made"):
            case.provider.destroy(made, case.timeout, permit)
        assert [(item.id, item.state in AWAKE) for item in case.provider.observe(case.fleet)] == [(made[0].id, True)]

    def test_destroying_a_release_leaves_the_other(self, case: Case) -> None:
        old, new = case.created(2, 1), case.created(2, 2)
        case.provider.destroy(old, case.timeout)
        assert {item.id: item.state for item in case.provider.observe(case.fleet)} == {item.id: "running" for item in new}

    def test_one_that_vanished_is_no_reason_to_leave_the_rest(self, case: Case) -> None:
        made = case.created(2)
        case.vanish(made[0])
        case.provider.stop(made, case.timeout)
        assert [(item.id, item.state) for item in case.provider.observe(case.fleet)] == [(made[1].id, "stopped")]
        case.provider.destroy(made, case.timeout)
        assert case.provider.observe(case.fleet) == ()

    def test_starting_one_that_vanished_is_refused_by_name(self, case: Case) -> None:
        made = case.created(1)
        case.provider.stop(made, case.timeout)
        case.vanish(made[0])
        with pytest.raises(RefusedError, match=made[0].name):
            case.provider.start(made, case.blueprint)

    @pytest.mark.parametrize("change", ["ledger", "release"])
    def test_never_touches_one_whose_marker_says_otherwise(self, case: Case, change: str) -> None:
        theirs = case.provider.create(case.planned(1), case.blueprint_of("theirs"))[0]
        mistaken = replace(theirs, marker={**theirs.marker, LEDGER: "ours"}) if change == "ledger" else replace(theirs, release=7)
        acts = (case.provider.stop, case.provider.destroy)
        for act in acts:
            with pytest.raises(RefusedError, match=theirs.name):
                act([mistaken], case.timeout)
        with pytest.raises(RefusedError, match=theirs.name):
            case.provider.start([mistaken], case.blueprint)
        assert [(item.id, item.state) for item in case.provider.observe(case.fleet)] == [(theirs.id, "running")]

    def test_destroys_by_id_and_not_by_name(self, case: Case) -> None:
        old = case.created(1)
        case.vanish(old[0])
        new = case.created(1)  # of the same name, maybe at the same address
        case.provider.destroy(old, case.timeout)
        assert [item.id for item in case.provider.observe(case.fleet)] == [new[0].id]

    def test_never_touches_a_stranger(self, case: Case) -> None:
        with case.stranger() as stranger:
            made = case.created(2)
            case.provider.stop(made, case.timeout)
            case.provider.start(made, case.blueprint)
            case.provider.destroy(made, case.timeout)
            assert case.lives(stranger)

    def test_one_that_crashed_is_seen_as_it_is_and_leaves_last_words(self, case: Case) -> None:
        made = case.created(2)
        case.crash(made[0])
        words = {item.name: item for item in case.provider.last_words(made)}
        assert set(words) == {item.name for item in made}
        crashed, well = words[made[0].name], words[made[1].name]
        assert crashed.state not in ("running", "vanished") or crashed.restarts > 0
        assert (well.state, well.restarts) == ("running", 0)

    def test_one_that_vanished_says_so(self, case: Case) -> None:
        made = case.created(1)
        case.vanish(made[0])
        assert [item.state for item in case.provider.last_words(made)] == ["vanished"]

    def test_a_seal_lasts_until_somebody_starts_or_changes_what_is_stopped(self, case: Case) -> None:
        made = case.created(4)
        assert case.provider.seals(made) == {}
        case.provider.stop(made, case.timeout)
        sealed = case.provider.seals(made)
        assert set(sealed) == {item.name for item in made} and len(set(sealed.values())) == len(made)
        assert case.provider.seals(made) == sealed
        case.vanish(made[0])
        case.alter(made[1])
        case.provider.start(made[2:3], case.blueprint)
        now = case.provider.seals(made)
        assert set(now) == {made[1].name, made[3].name}
        case.provider.stop(made[2:3], case.timeout)
        now = case.provider.seals(made)
        assert {name for name, seal in now.items() if seal == sealed[name]} == {made[3].name}

    def test_an_image_that_instances_use_is_never_removed(self, case: Case) -> None:
        made = case.created(2)
        case.provider.stop(made, case.timeout)
        assert case.provider.remove_images(()) == () == case.provider.remove_images([case.blueprint.image])
        assert [item.state for item in case.provider.start(made, case.blueprint)] == ["running"] * len(made)

    def test_a_plan_that_fits_passes_the_preflight(self, case: Case) -> None:
        case.provider.preflight(case.planned(1), case.blueprint)
        assert case.provider.observe(case.fleet) == ()

    def test_nothing_to_do_is_no_mistake(self, case: Case) -> None:
        assert case.provider.create((), case.blueprint) == () == case.provider.start((), case.blueprint)
        case.provider.stop((), case.timeout)
        case.provider.destroy((), case.timeout)
        assert case.provider.last_words(()) == () and case.provider.seals(()) == {}

    def test_silence_is_never_taken_for_an_answer(self, case: Case) -> None:
        planned, made = case.planned(1, 2), case.created(1)
        with case.silent() as silent:
            for ask in (
                lambda: silent.image(case.blueprint.image.reference), lambda: silent.observe(case.fleet),
                lambda: silent.pools(case.fleet, case.port, case.balancers), lambda: silent.preflight(planned, case.blueprint),
                lambda: silent.create(planned, case.blueprint), lambda: silent.start(made, case.blueprint),
                lambda: silent.stop(made, case.timeout), lambda: silent.destroy(made, case.timeout), lambda: silent.last_words(made),
                lambda: silent.seals(made),
            ):
                with pytest.raises(UnreachableError) as unreachable:
                    ask()
                assert unreachable.value.remedy
        assert [(item.id, item.state) for item in case.provider.observe(case.fleet)] == [(made[0].id, "running")]
