# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run as the role does it: lease, observe, plan, waves, last record; and abort when something fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, FleetError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Balancer,
    Definition,
    Goal,
    Image,
    Instance,
    Plan,
    Server,
    Step,
    World,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _registrations as law
from ansible_collections.phoenix.fleet.plugins.plugin_utils._placement import addressed, reservations
from ansible_collections.phoenix.fleet.plugins.plugin_utils._planner import KINDS, plan
from ansible_collections.phoenix.fleet.plugins.plugin_utils._scene import Scene

from .ledger import MemoryLedger
from .world import HAProxy, LawBrokenError, SimulatedProvider, Site


class Fleet:
    """One fleet with all that its runs need. plans are those that were made, for tests to look at, opened the last that has its intent."""

    def __init__(self, site: Site, provider: SimulatedProvider, ledger: MemoryLedger, definition: Definition) -> None:
        self.site = site
        self.provider = provider
        self.ledger = ledger
        self.definition = definition
        self.plans: list[Plan] = []
        self.opened: Plan | None = None

    @property
    def balancers(self) -> list[HAProxy]:
        """Those of the definition, with its backend."""
        here = [item for item in self.site.balancers if item.backend == self.definition.backend]
        return [item for item in here if item.host in self.definition.balancers]

    def world(self, fence: int = 0) -> World:
        pools = self.provider.pools(self.definition.name, self.definition.port, ())
        balancers = tuple(self._observe(item, fence, stamps=True) for item in self.balancers)
        if fence:  # what the fleet has left is asked for its receipts
            for item in self.site.balancers:
                if item.host in self.definition.balancers and item.backend != self.definition.backend:
                    self._observe(item, fence)
        return World(self.provider.observe(self.definition.name), balancers, pools)

    def _observe(self, balancer: HAProxy, fence: int, stamps: bool = False) -> Balancer:
        head = balancer.head
        if fence and stamps and self.definition.adopt and balancer.reachable and head and head.fleet in ("", self.definition.name):
            self.ledger.adopt(fence, head, max((server.id for server in balancer.fragment.values()), default=0))
        stamp = self.ledger.head(fence, self.definition.name) if fence and stamps else None
        waiting = self.ledger.register(fence, balancer.host, balancer.backend, ()) if fence else []
        seen = balancer.observe(stamp, self.definition.adopt)
        if fence:
            self.ledger.receive(fence, balancer.host, balancer.backend, balancer.receipts(waiting))
        return seen

    def plan(self, goal: Goal) -> Plan:
        return plan(self.definition, self.world(), self.ledger.history(), goal)

    def run(self, goal: Goal) -> None:
        """Raises FleetError where the goal was not reached, after having undone what can be undone; Crash where the run was killed."""
        fence = self.ledger.acquire()
        try:
            if self._pursue(goal, fence).again and self._pursue(goal, fence).again:
                raise DeadlineError(f"fleet {self.definition.name}", "the world changed while it was put right", "Run again")
        except FleetError as error:
            try:
                self._pursue(Goal("abort", reason=str(error)), fence)
            except FleetError as another:
                raise error from another
            raise

    def _pursue(self, goal: Goal, fence: int) -> Plan:
        world = self.world(fence)
        made = plan(self.definition, world, self.ledger.history(), goal)
        self.plans.append(made)
        self._check_places(made, world)
        if not made.waves and made.release:
            self.ledger.remember(made.release)
        if made.waves:
            scene = Scene(self.definition, world, self.ledger.history())
            self.ledger.keep(law.from_before(self.definition, world, self.ledger.history(), scene.ours))
            self.ledger.open(made, fence)
            self.opened = made
            for wave in made.waves:
                self._carry_out(made, wave, fence)
            if made.closes:
                self.ledger.record("done", fence)
        return made

    def _check_places(self, made: Plan, world: World) -> None:
        """What is planned has a place of its own."""
        planned = [item for wave in made.waves for step in wave if step.kind == "create" for item in step.instances]
        places = [(item.address, item.port) for item in (*planned, *world.instances) if item.address]
        if len(set(places)) < len(places) or len({item.name for item in planned}) < len(planned):
            raise LawBrokenError(f"planned twice: {places}")

    def _carry_out(self, made: Plan, wave: Sequence[Step], fence: int) -> None:
        kinds = [KINDS.index(step.kind) for step in wave]
        if kinds != sorted(set(kinds)):
            raise LawBrokenError(f"steps in disorder: {[step.kind for step in wave]}")
        answering = [item for item in self.balancers if item.host not in made.silent]
        found: list[Instance] = []
        for kind in [step.kind for step in wave]:
            if kind not in ("create", "start") and any(not item.address for step in wave for item in _begun(step)):
                wave = self._learn(wave, found, fence)
            step = next(step for step in wave if step.kind == kind)
            self.site.tick(f"before {kind}")
            found += self._step(made, step, answering, fence) or ()
            self.site.tick(f"after {kind}")

    def _learn(self, wave: Sequence[Step], found: Sequence[Instance], fence: int) -> Sequence[Step]:
        """As the role's task does: the later steps get the addresses, and the ledger keeps them before anybody else hears of them."""
        pools = {pool.host: pool for pool in self.provider.pools(self.definition.name, self.definition.port, ())}
        steps = addressed(wave, found, self.ledger.reserved)
        self.ledger.reserve({key: item.name for item in found for key in reservations(item, pools)}, fence)
        return steps

    def _step(self, made: Plan, step: Step, answering: Sequence[HAProxy], fence: int) -> Sequence[Instance] | None:
        if step.kind in ("create", "start"):
            begun: Sequence[Instance] = getattr(self.provider, step.kind)(step.instances, self.blueprint(made))
            return begun
        elif step.kind in ("stop", "destroy"):
            getattr(self.provider, step.kind)(step.instances, self.definition.stop_timeout, lambda item: self.ledger.permit(item, fence))
        elif step.kind == "check":
            self.site.pass_time()
            names = {item.name for item in step.instances}
            silent = [name for (_host, name), box in self.site.boxes.items() if name in names and not box.answers]
            if silent or names - {name for _host, name in self.site.boxes}:
                raise DeadlineError("checks", f"{silent or names} do not answer")
        elif step.kind in ("commit", "retire"):
            self.ledger.record(step.kind, fence)
        elif step.kind in ("gate", "watch"):
            self.site.pass_time()
            self._wait(step, answering)
        else:
            self._apply(made, step, answering, fence)
        return None

    def blueprint(self, made: Plan) -> Blueprint:
        assert made.release is not None
        return Blueprint(Image(made.release.image, made.release.digest), made.release.hash, self.ledger.name, made.release.revision)

    def _wait(self, step: Step, answering: Sequence[HAProxy]) -> None:
        for balancer in answering:
            if not balancer.reachable:
                raise UnreachableError(f"balancer {balancer.host}", "no route to host")
            for server in step.servers:
                line = balancer.lines.get(server.name)
                if line is None or not (line.checked and line.up):
                    raise DeadlineError(f"balancer {balancer.host}", f"{server.name} is not up")

    def _apply(self, made: Plan, step: Step, answering: Sequence[HAProxy], fence: int) -> None:
        forward = made.outcome == "live" and step.kind != "stage"
        live = made.target if forward else made.source
        following = max(self.ledger.next_release, made.target + 1)
        head = replace(self.ledger.head(fence, self.definition.name), live=live, next=following)
        servers = [Server(s.name, s.address, s.port, s.id, s.weight, s.state) for s in step.servers]
        lost = None
        for balancer in answering:
            try:
                waiting = self.ledger.register(fence, balancer.host, balancer.backend, servers)
                balancer.apply(servers, head)
                self.ledger.receive(fence, balancer.host, balancer.backend, balancer.receipts(waiting))
            except UnreachableError as error:
                lost = error
        if lost:
            raise lost


def _begun(step: Step) -> Sequence[Instance]:
    return step.instances if step.kind in ("create", "start") else ()
