# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `release_plan`: the world and the history in, a plan out, its intent in the ledger."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Dict, Mapping

from ..module_utils import _arguments
from ..module_utils._instances import connect, told
from ..module_utils._model import (
    Balancer,
    Definition,
    Goal,
    History,
    Image,
    Instance,
    Plan,
    Pool,
    Registration,
    Step,
    World,
    from_dict,
    to_dict,
)
from ..module_utils._providers.base import Blueprint
from ..plugin_utils import _story
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import definition_hash, published, recorded, revived
from ..plugin_utils._diagnostics import folder_of
from ..plugin_utils._executor import guarded
from ..plugin_utils._ledger import Lease, Ledger, timestamp
from ..plugin_utils._planner import plan
from ..plugin_utils._registrations import from_before, given_up, merged
from ..plugin_utils._scene import Scene


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.RELEASE_PLAN

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        definition = self.whole(params, task_vars)
        world = World(
            instances=tuple(from_dict(Instance, item) for item in params["instances"]),
            balancers=tuple(from_dict(Balancer, item) for item in params["balancers"]),
            pools=tuple(from_dict(Pool, item) for item in params["pools"]),
        )
        with guarded(params["lease"]):
            return self._decide(definition, world, params)

    def _decide(self, definition: Definition, world: World, params: Mapping[str, Any]) -> Result:
        lease = params["lease"]
        ledger = Ledger(definition.ledger, definition.state_dir)
        key = ledger.secret or os.urandom(32)  # no ledger yet: no hash of a secret is without a key
        goal = _goal(params, definition_hash(definition, key))
        history = self._known(definition, ledger.history(definition.name), params)[0]
        if goal.verb == "rollback":
            world = self._trusted(definition, world, history)
        made = _told(plan(definition, world, history, goal), recorded(definition, key), definition.size)
        for line in _story.plan_lines(definition, history, made):
            self.say(f"{definition.name}  {line}")
        created = tuple(item for wave in made.waves for step in wave if step.kind == "create" for item in step.instances)
        if created and made.release:
            image = Image(made.release.image, made.release.digest)
            # An earlier release comes back as it was recorded, with the secrets of today.
            options = revived(definition, made.release.definition).options
            connect(definition.provider, options).preflight(created, Blueprint(image=image, options=options))
        check = bool(self._task.check_mode)
        if made.waves and not check:
            made = self._open(ledger, definition, world, goal, params)
        elif made.release and made.release not in history.releases and lease.get("fence") and not check:
            with ledger.planning(from_dict(Lease, lease)) as view:
                view.remember(made.release)
        result = _result(definition, history, made, key)
        result["opened"] = bool(made.waves) and not check and bool(lease)
        if self._task.diff:
            result["diff"] = {"prepared": "\n".join(_story.wave_lines(made.waves))}
        return result

    def _trusted(self, definition: Definition, world: World, history: History) -> World:
        """The world, in which a standby that is not as it was when it was stopped is called unhealthy."""
        recorded = {name: seal for row in history.releases for name, seal in row.seals.items()}
        standby = [item for item in world.instances if item.release != history.live and not item.note]
        stopped = [item for item in standby if item.state != "running" and item.name in recorded]
        seals = connect(definition.provider, definition.options).seals(stopped) if stopped else {}
        changed = [item for item in standby if not is_sealed(item, recorded.get(item.name, ""), seals.get(item.name, ""))]
        for line in told(changed):
            self.say(f"{definition.name}  {line} changed since being stopped: not used again")
        return replace(world, instances=tuple(replace(item, health="unhealthy") if item in changed else item for item in world.instances))

    def _open(self, ledger: Ledger, definition: Definition, world: World, goal: Goal, params: Mapping[str, Any]) -> Plan:
        """Plan once more inside the ledger's transaction, so that the numbers and addresses are still free when they are written."""
        with ledger.planning(from_dict(Lease, params["lease"])) as view:
            history, given = self._known(definition, view.history(), params)
            made = _told(plan(definition, world, history, goal), recorded(definition, ledger.secret), definition.size)
            scene = Scene(definition, world, history)
            view.open(made, _by(params), (*given, *from_before(definition, world, history, scene.ours)))
        return made

    def _known(self, definition: Definition, history: History, params: Mapping[str, Any]) -> tuple[History, tuple[Registration, ...]]:
        """The history with the operator's word for balancers that are gone for good, and that word."""
        given = given_up(history, definition.lost_balancers, _by(params), timestamp())
        return merged(history, given), given


def _by(params: Mapping[str, Any]) -> str:
    """Who runs this, without the process."""
    return str(params["lease"].get("holder", "")).rpartition(" pid ")[0]


def is_sealed(item: Instance, recorded: str, seal: str) -> bool:
    """Whether an instance may serve again: it ran all the time, or is stopped just as the ledger recorded it."""
    return seal == recorded and bool(seal) != (item.state == "running")


def _goal(params: Mapping[str, Any], hashed: str) -> Goal:
    given = dict(params["goal"])
    if given.get("failure"):
        given["reason"] = _story.cause(given["failure"])
        # What failed the watch is rejected, however well it looks when the undoing comes to it.
        given["force"] = given["failure"].get("step") == "watch"
    image = from_dict(Image, params["image"]) if params["image"] else None
    return replace(from_dict(Goal, {key: value for key, value in given.items() if key != "image"}), image=image, hash=hashed)


def _told(made: Plan, definition: Mapping[str, Any], size: int) -> Plan:
    """The plan with what the ledger keeps of the definition in its new release; size is what was asked for, which a scale may have
    overruled (see `_overruling` in the planner).
    """
    if made.release is None or made.release.definition:
        return made
    return replace(made, release=replace(made.release, definition={**definition, "size": size}))


def _result(definition: Definition, history: History, made: Plan, key: bytes) -> Result:
    if made.release is not None:
        made = replace(made, release=replace(made.release, definition=published(made.release.definition, key)))
    instances = [item for wave in made.waves for step in wave if step.kind in ("create", "start") for item in step.instances]
    return {
        "changed": bool(made.waves),
        **to_dict(made),
        "waves": [{step.kind: _step(made, step) for step in wave} for wave in made.waves],
        "next": max(history.next_release, made.target + 1),
        "backend": _backend(definition, made),
        "balancers": [host for host in definition.balancers if host not in made.silent],
        "made": [to_dict(item) for item in instances],
        "folder": folder_of(definition.state_dir, definition.name, made.target),
    }


def _backend(definition: Definition, made: Plan) -> Dict[str, Any]:
    """What the plan does with the backend's options: another release brings its own, undoing it takes them back, all else leaves them."""
    if made.outcome == "failed":
        return {"options": None, "options_for": "former"}
    brings = made.outcome == "live" and made.source != made.target and not made.again
    return {"options": dict(definition.haproxy) if brings else None, "options_for": "new"}


def _step(made: Plan, step: Step) -> Dict[str, Any]:
    """A step for wave.yml. `live` is what a fragment's head says from this step on: the source until the commit, then the target."""
    forward = made.outcome != "failed" and step.kind != "stage"
    return {**to_dict(step), "live": made.target if forward else made.source}
