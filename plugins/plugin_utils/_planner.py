# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""From the world to the goal: `plan`, a pure function, for every verb and for whatever a crashed run has left.

It thinks in three strides. **Settle**: which release is to be live, after a run that did not end? **Aim**: which instances are to
serve, and which are kept? **Wave**: the steps from what is seen to the aim. All verbs share the third, so an act is safe for all or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from ..module_utils._errors import InvalidError, RefusedError
from ..module_utils._model import Definition, Entry, Goal, History, Instance, Plan, Release, Server, Step, World
from ._placement import bands, numbered, place_of, places, reservations
from ._registrations import cooling, remedy_of
from ._scene import LIVE, Scene, carried_out, runs

KINDS = ("create", "start", "check", "stage", "gate", "commit", "switch", "watch", "drain", "retire", "stop", "destroy")
"""The kinds of steps in the order in which a wave carries them out, each at most once.

create, start, check, stop, destroy carry `instances`; stage, switch and drain carry in `servers` all that the backend shall have from
then on, and a drain waits until nobody is connected to what it takes out; gate and watch carry the servers that must be up; commit and
retire are records and carry `release`.
"""

MELTDOWN_COUNT = 5
MELTDOWN_SHARE = 0.2
"""So many, and so large a share of a fleet, do not fail by themselves: the cause lies elsewhere (facts: peers.md, BOSH's resurrector)."""

Waves = tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class Aim:
    """What shall be true when a plan is carried out.

    wanted are the instances of `live` that serve; unproven are those among them that must pass checks and gate first. keep are the
    releases whose instances stay as standby, inspect is one whose instances stay as they are. unserved is a release that was
    never given traffic: its instances may go even while a balancer is silent. later are the names of what another wave will take away:
    until then it stays as it is.
    """

    live: int
    wanted: tuple[Instance, ...] = ()
    unproven: frozenset[str] = frozenset()
    keep: frozenset[int] = frozenset()
    inspect: int = 0
    unserved: int = 0
    later: frozenset[str] = frozenset()
    commit: bool = False
    retire: bool = False


def plan(definition: Definition, world: World, history: History, goal: Goal) -> Plan:
    """The plan for a goal, or, where a former run must be put right first, the plan for that alone, with `again` set.

    No waves: the goal holds. Same arguments, same plan; linear in the number of instances and servers. Raises InvalidError for a
    goal that makes no sense, and RefusedError, with the remedy, where acting could hurt: `hold`, somebody else's instances, servers or
    backend, instances out of the definition's reach, a silent balancer, no place left, a meltdown, a release to go back to that does
    not exist or was rejected.
    """
    _refuse_goal(definition, goal)
    scene = Scene(definition, world, history)
    _refuse_strangers(scene, goal)
    _refuse_move(scene, goal)
    _refuse_elsewhere(scene, goal)
    if goal.verb != "abort" and (adoption := _adoption(scene, goal)):
        return adoption
    live, settled = _settle(scene, goal)
    if settled is not None:
        return settled
    if goal.verb == "abort":
        under_way = scene.history.entry is not None
        return Plan("abort", live, live, reasons=("what serves stays" if under_way else "nothing is left to undo",), closes=not under_way)
    _refuse_silence(scene, goal)
    return _GOALS[goal.verb](scene, live, goal)


# Refusals

def _refuse_goal(definition: Definition, goal: Goal) -> None:
    mistakes = []
    if not 1 <= goal.share <= 100:
        mistakes.append(f"heal_share: {goal.share} is no share in percent; write a number from 1 to 100")
    if goal.verb not in _GOALS and goal.verb != "abort":
        mistakes.append(f"verb: '{goal.verb}' is unknown; known are {', '.join(_GOALS)} and abort")
    if goal.verb == "release" and goal.image is None:
        mistakes.append("image: missing; a release needs one")
    if goal.verb == "scale" and goal.size < 1:
        mistakes.append(f"scale_size: {goal.size} is too small; at least 1 (to take the fleet away, use the playbook retire)")
    if mistakes:
        raise InvalidError(mistakes)
    if definition.hold and goal.verb != "abort":
        raise RefusedError(f"fleet {definition.name}", f"it is on hold: {definition.hold}", "Remove fleet_hold to let changes through")
    if definition.strategy != "blue_green" and goal.verb in ("release", "rollback"):
        cause = f"strategy {definition.strategy} is not planned by this version"
        raise RefusedError(f"fleet {definition.name}", cause, "Set fleet_strategy: blue_green")


_ADOPT = "If this fleet is to be taken over from it, add -e fleet_adopt=true"


def _refuse_strangers(scene: Scene, goal: Goal) -> None:
    name, history = scene.definition.name, scene.history
    for balancer in scene.answering:
        head = balancer.head
        if head and head.fleet and head.fleet != name:
            cause = f"its backend belongs to fleet {head.fleet}"
            raise RefusedError(f"balancer {balancer.host}", cause, "Set fleet_backend to a backend of its own")
        if scene.definition.adopt or not head:
            continue
        if head.ledger and not head.is_of(history):
            cause = f"fleet {name} belongs to ledger {head.ledger} there, and this is {history.ledger or 'none yet'}"
            if head.ledger == history.ledger:
                cause = f"another copy of this ledger has taken fleet {name} over there"
            raise RefusedError(f"balancer {balancer.host}", cause, _ADOPT)
        if head.fence > history.fence:
            raise RefusedError(
                f"balancer {balancer.host}", f"run {head.fence} of fleet {name} was there, and this ledger knows only {history.fence}",
                f"It is an old copy: use the newest. {_ADOPT}",
            )
        if head.records > history.records:
            raise RefusedError(
                f"balancer {balancer.host}",
                f"it was told of {head.records} records of fleet {name}, and this ledger has only {history.records}",
                f"It is an old copy: use the newest. {_ADOPT}",
            )
    if scene.definition.adopt or goal.verb == "abort":
        return
    if scene.strangers:
        host, server = scene.strangers[0]
        raise RefusedError(
            f"balancer {host}",
            f"the backend of fleet {name} has somebody else's servers, such as {server.name} ({server.address}:{server.port})",
            "Remove them or set fleet_backend; to let the fleet replace them, add -e fleet_adopt=true",
        )
    if scene.foreign:
        item = scene.foreign[0]
        owner = item.marker.get("phoenix.fleet.ledger") or "none"
        raise RefusedError(f"instance {item.name} on {item.host}", f"it belongs to fleet {name} of another ledger ({owner})", _ADOPT)


def _refuse_move(scene: Scene, goal: Goal) -> None:
    """A provider lists its own instances only: what runs elsewhere would look dead, and be neither gone back to nor taken away."""
    definition, entry = scene.definition, scene.history.entry
    if goal.verb == "abort":
        return
    holding = {scene.numbers(name)[0] for name in scene.history.reserved.values()} | ({entry.source, entry.target} if entry else set())
    for row in scene.history.releases:
        home = row.definition.get("provider", definition.provider)
        if home != definition.provider and (row.status in ("live", "standby") or row.number in holding):
            raise RefusedError(
                f"fleet {definition.name}", f"fleet_provider is {definition.provider}, and its r{row.number} lives at {home}",
                f"Set fleet_provider: {home}; to move, release a fleet of another name, then take this one away with phoenix.fleet.retire",
            )
    # What is not up may have died with its host, and leaving that out of the definition is the way to go on.
    seen, homes = {item.name for item in scene.ours}, {pool.realm or pool.host for pool in scene.world.pools}
    for key, name in scene.history.reserved.items():
        host = key.partition(" ")[0]
        if name in scene.sights and scene.sights[name].up and name not in seen and host not in homes:
            raise RefusedError(
                f"instance {name}", f"it is up and lives at {host}, which is not in fleet_{definition.provider}",
                f"Put {host} back; to give it up, stop its instances first, then run phoenix.fleet.heal",
            )


def _refuse_elsewhere(scene: Scene, goal: Goal) -> None:
    """A balancer or backend that the definition does not name any more may go on serving what this run would stop."""
    if goal.verb == "abort":
        return
    for (host, backend), names in scene.elsewhere.items():
        many = f"{names[0]} and {len(names) - 1} others" if len(names) > 1 else names[0]
        missing = host not in scene.definition.balancers
        why = "is not in fleet_balancers" if missing else f"fleet_backend is {scene.definition.backend} now"
        raise RefusedError(
            f"balancer {host}" if missing else f"backend {backend} on {host}", f"it may be serving {many}, and {why}",
            remedy_of(scene.definition, host, backend),
        )


def _refuse_silence(scene: Scene, goal: Goal) -> None:
    for host, error in scene.silent.items():
        raise RefusedError(
            f"balancer {host}", f"it cannot be observed ({error}), and may be serving what this {goal.verb} would take away",
            f"Bring it back; if it is gone for good, take it out of fleet_balancers and say so with -e fleet_lost_balancers={host}",
        )


def _refuse_unseen(scene: Scene, goal: Goal) -> None:
    """A fleet that is taken away holds nothing any more: an address that comes back with its node would be another fleet's by then."""
    for name, why in scene.unseen.items() if goal.verb != "abort" else ():
        raise RefusedError(f"instance {name}", f"{why}. Until then the fleet cannot be taken away whole", "Then run again")


# Settle: what a run that did not end means

def _settle(scene: Scene, goal: Goal) -> tuple[int, Plan | None]:
    """The release that is to be live, and the plan that puts a crashed run right, None where the goal's own plan does that as well."""
    entry = scene.history.entry
    if entry is None:
        return scene.history.live, None
    if entry.verb == "retire":
        if "retire" in entry.records:
            _refuse_unseen(scene, goal)
            return 0, _forward(scene, goal, entry)
        return entry.source, None if goal.verb == "retire" else _back(scene, goal, entry, served=True)
    if entry.source == entry.target:
        return scene.history.live, _give_up(scene, entry) if goal.verb == "abort" else None
    committed = "commit" in entry.records or scene.is_weighted(entry.target)
    if not committed:
        return entry.source, _back(scene, goal, entry, served=False)
    former, latter = scene.up_count(entry.source), scene.up_count(entry.target)
    if "revert" in entry.records or (goal.verb == "abort" and goal.force and "retire" not in entry.records):
        # Never reversed. With nothing to go back to, whatever the goal is must be able to repair it. Nor with too little, as long as the
        # rejected one serves everywhere: where it does not, it would get traffic anew meanwhile.
        enough = former and (former >= _size_of(scene, entry.source) or not _serves_everywhere(scene, entry.target))
        if enough or not entry.source or goal.verb == "abort":
            return entry.source, _back(scene, goal, entry, served=True)
        return entry.source, None
    if "retire" in entry.records or latter >= _size_of(scene, entry.target):
        return entry.target, _forward(scene, goal, entry)
    if former and former >= latter:
        return entry.source, _back(scene, goal, entry, served=True)
    if not entry.source and goal.verb == "abort" and not latter:
        return 0, _back(scene, goal, entry, served=True)
    # Neither is whole, and the predecessor is no better: the goal goes on from here, so that a fix can always be released.
    return entry.target, None


def _size_of(scene: Scene, release: int) -> int:
    return scene.rows[release].size if release in scene.rows else 1


def _serves_everywhere(scene: Scene, release: int) -> bool:
    return all(scene.is_settled(name) for name in scene.servers_of.get(release, ()))


def _forward(scene: Scene, goal: Goal, entry: Entry) -> Plan:
    """Complete what was committed: nothing is made, since the release is whole (or there is no way back)."""
    row = scene.rows.get(entry.target)
    wanted = _best(scene, entry.target, row.size if row else 0)
    aim = Aim(
        entry.target, wanted, keep=_standbys(scene, entry.target, entry.source) if entry.target else frozenset(),
        commit=entry.verb != "retire" and "commit" not in entry.records, retire="retire" not in entry.records,
    )
    reason = f"r{entry.target} was committed and is up" if entry.target else f"the {entry.verb} had begun"
    return _put_right(scene, goal, entry, aim, entry.verb, "live" if entry.target else "retired", f"{reason}: this completes it")


def _back(scene: Scene, goal: Goal, entry: Entry, served: bool) -> Plan:
    """The source serves as before, and what was made for the target goes. served: the target may have had traffic."""
    listed = [name for name in scene.servers_of.get(entry.source, ()) if not served or entry.source == 0]
    known = {item.name: item for item in scene.instances_of.get(entry.source, ())}
    chosen = [known.get(name) or _as_listed(scene, name) for name in listed]
    if served:
        chosen += [item for item in known.values() if runs(item)]
    rejected = frozenset({entry.target} if served and entry.target else ())
    aim = Aim(
        entry.source, tuple(chosen), keep=_standbys(scene, entry.source, without=rejected),
        unproven=frozenset(item.name for item in chosen if served and not scene.is_listed(item.name)),
        # The first release of a fleet is kept to be looked at; the next run takes it away.
        inspect=0 if entry.source or chosen else entry.target, unserved=0 if served else entry.target,
    )
    where = f"back to r{entry.source}" if entry.source else "nothing was live before"
    what = f"r{entry.target}" if entry.target else f"the {entry.verb}"
    why = "it was committed, and is not up" if served and entry.target else "it was not committed"
    if goal.verb == "abort" and goal.reason:
        why = goal.reason
    return _put_right(scene, goal, entry, aim, "abort", "failed", f"{what} did not end ({why}): {where}")


def _give_up(scene: Scene, entry: Entry) -> Plan | None:
    """Undo a scale or a heal: what serves stays, what was made and does not serve goes."""
    members = scene.instances_of.get(entry.source, ())
    wanted = tuple(item for item in members if (scene.serves(item.name) if scene.answering else runs(item)))
    aim = Aim(entry.source, wanted, keep=_standbys(scene, entry.source))
    reason = f"the {entry.verb} of r{entry.source} did not end: what serves stays"
    return _put_right(scene, Goal("abort"), entry, aim, "abort", "failed", reason)


def _put_right(scene: Scene, goal: Goal, entry: Entry, aim: Aim, verb: str, outcome: str, reason: str) -> Plan:
    steps = _wave(scene, aim)
    reasons = [reason]
    for host, error in scene.silent.items():
        reasons.append(f"balancer {host} cannot be observed ({error}): what it may still serve is left alone")
    if scene.silent and not aim.unserved:
        # Law 4. The weights move where somebody answers; all that ends something waits.
        steps = tuple(step for step in steps if KINDS.index(step.kind) < KINDS.index("drain"))
        if not steps:
            if goal.verb != "abort":
                _refuse_silence(scene, goal)
            return Plan("abort", entry.source, entry.target, outcome, reasons=tuple(reasons))
    made = _plan(scene, verb, entry.source, entry.target, (steps,), aim, outcome=outcome, reasons=reasons, again=goal.verb != "abort")
    closes = (not scene.silent or bool(aim.unserved)) and not (outcome == "retired" and scene.unseen)
    return replace(made, silent=tuple(scene.silent), closes=closes)


def _adoption(scene: Scene, goal: Goal) -> Plan | None:
    """Take a fleet over whose history this ledger does not have: what is live is what the newest head says and a balancer serves."""
    history = scene.history
    heads = [(item.head.fence, item.head.live, item.host) for item in scene.answering if item.head]
    if not scene.definition.adopt or not heads:
        return None
    if history.entry and all(item.head is None or item.head.is_known_to(history) for item in scene.answering):
        return None
    _fence, live, host = max(heads)
    if not live or (live == history.live and live in scene.rows) or not scene.is_weighted(live):
        return None
    _refuse_silence(scene, goal)
    wanted = tuple(item for item in scene.instances_of.get(live, ()) if scene.serves(item.name))
    known = next((item for item in wanted if item.image), Instance("", "", "", 0, 0, "", "", 0))
    row = Release(
        live, "open", known.image, known.image, known.marker.get("phoenix.fleet.hash", ""), max(1, len(scene.servers_of[live])),
        revision=known.revision,
    )
    reason = f"takes over r{live}, which is live by the head on {host}"
    waves = ((Step("commit", release=live),),)
    return _plan(scene, "adopt", history.live, live, waves, Aim(live, wanted), release=row, reasons=[reason], again=True)


# Goals

def _release(scene: Scene, live: int, goal: Goal) -> Plan:
    if goal.image is None:
        raise InvalidError(["release_image: missing; a release needs an image"])
    row = _row(scene, live) if live else None
    size, reasons = _size(scene, row)
    if row and not goal.force and (row.digest, row.hash) == (goal.image.digest, goal.hash):
        if row.definition.get("size") not in (None, 0, scene.definition.size):
            row = _overruling(row, 0)  # fleet_size was changed since: it counts from now on, and so does its next change
        return _same(scene, row, size, reasons)
    number = max(scene.history.next_release, max(scene.numbers_seen(), default=0) + 1)
    new = Release(number, "open", goal.image.reference, goal.image.digest, goal.hash, size, revision=scene.definition.revision)
    wanted = _filled(scene, new, ())
    if row is None:
        reasons = ["first release" if not scene.rows else "nothing is live", *reasons]
    elif row.digest != goal.image.digest:
        reasons = ["image changed" if row.image != goal.image.reference else f"{row.image} is another image now", *reasons]
    else:
        reasons = ["definition changed" if row.hash != goal.hash else "forced", *reasons]
    return _replaced(scene, "release", live, new, wanted, reasons)


def _rollback(scene: Scene, live: int, goal: Goal) -> Plan:
    now = _row(scene, live, "rollback")
    former = [row for row in _by_recency(scene, live) if row.status in ("standby", "retired")]
    if goal.to == live:
        return _as_it_is(scene, now, f"r{live} is live")
    if goal.to:
        row = scene.rows.get(goal.to)
        known = ", ".join(f"r{item.number}" for item in former) or "none"
        if row is None or row not in former:
            cause = "no such release is recorded" if row is None else "it was rejected" if row.status == "failed" else f"it is {row.status}"
            raise RefusedError(f"release r{goal.to} of fleet {scene.definition.name}", cause, f"Releases to go back to: {known}")
    else:
        later = [row.number for row in former if row.number > live]
        if later:
            others = ", ".join(str(row.number) for row in former)
            reason = f"r{max(later)} was rolled back already; to go elsewhere, -e rollback_to= one of {others}"
            return _as_it_is(scene, now, reason)
        if not former:
            raise RefusedError(f"fleet {scene.definition.name}", f"r{live} has no predecessor", "Release an earlier image instead")
        row = former[0]
    target = replace(_overruling(row, now.definition.get("size", 0)), size=now.size)
    members = scene.instances_of.get(target.number, ())
    kept = [item for item in members if item.health != "unhealthy" and item.state != "restarting" and (runs(item) or not item.note)]
    chosen = _distinct(sorted(kept, key=lambda item: (not runs(item), item.slot)))[:target.size]
    reasons = [f"back from r{live}", f"{len(chosen)} of {target.size} kept as standby"]
    return _replaced(scene, "rollback", live, target, _filled(scene, target, chosen), reasons)


def _scale(scene: Scene, live: int, goal: Goal) -> Plan:
    row = _overruling(_row(scene, live, "scale"), scene.definition.size)
    return _same(scene, row, goal.size, [f"size {row.size} -> {goal.size}"] if row.size != goal.size else [])


def _heal(scene: Scene, live: int, goal: Goal) -> Plan:
    if live:
        row = _row(scene, live)
        return _same(scene, row, row.size, [], goal.share)
    return _finished(scene, "heal", 0, None, Aim(0, keep=_standbys(scene, 0)), ["nothing is live: what failed is taken away"])


def _retire(scene: Scene, live: int, goal: Goal) -> Plan:
    _refuse_unseen(scene, goal)
    waves = _waves(scene, Aim(0, retire=True)) if any(not item.note for item in scene.ours) or scene.sights or live else ()
    return _plan(scene, "retire", live, 0, waves, Aim(0), outcome="retired", reasons=["the fleet is taken away, its history stays"])


_GOALS: dict[str, Callable[[Scene, int, Goal], Plan]] = {
    "release": _release, "rollback": _rollback, "scale": _scale, "heal": _heal, "retire": _retire,
}


def _replaced(scene: Scene, verb: str, live: int, new: Release, wanted: tuple[Instance, ...], reasons: list[str]) -> Plan:
    """Another release takes over."""
    keep = _standbys(scene, new.number, live)
    aim = Aim(
        new.number, wanted, frozenset(item.name for item in wanted if not scene.is_settled(item.name) or not scene.is_up(item.name)), keep,
        commit=True, retire=bool(live or scene.sights),
    )
    kept = sorted(keep & (scene.instances_of.keys() | {live}))
    reasons += [f"keeps {' and '.join(f'r{number}' for number in kept)} as standby"] if kept else []
    waves = _waves(scene, aim)
    gone = sorted({item.release for wave in waves for step in wave if step.kind == "destroy" for item in step.instances} - {new.number})
    reasons += [f"takes away {' and '.join(f'r{number}' for number in gone)}"] if gone else []
    return _plan(scene, verb, live, new.number, waves, aim, release=new, reasons=reasons)


def _same(scene: Scene, row: Release, size: int, reasons: list[str], share: int = Goal("heal").share) -> Plan:
    """The live release with `size` instances that are well: others are made, and what is broken or too many goes.

    What is broken is replaced in waves of at most `share` percent of the fleet, and at least one, so that replacements that turn out no
    better, or a judgement that was wrong, cost no more than that: the first wave that fails ends it.
    """
    members = scene.instances_of.get(row.number, ())
    well = [item for item in members if _is_well(scene, item)]
    chosen = _distinct(sorted(well, key=lambda item: _rank(scene, item)))
    _refuse_meltdown(scene, row, len(chosen))
    new = replace(row, size=size)
    wanted = _filled(scene, new, chosen[:size])
    unproven = frozenset(item.name for item in wanted if not scene.is_up(item.name))
    aim = Aim(row.number, wanted, unproven, _standbys(scene, row.number), commit=size != row.size)
    names, fit = {item.name for item in members}, {item.name for item in well}
    reasons = reasons + [f"{item.name} is not well" for item in members if item.name not in fit]
    reasons += [f"{name} has vanished" for name in scene.servers_of.get(row.number, ()) if name not in names]
    if size != row.size:
        return _finished(scene, "scale", row.number, new, aim, reasons)
    broken = sorted((names | set(scene.servers_of.get(row.number, ()))) - {item.name for item in wanted}, key=scene.numbers)
    return _finished(scene, "heal", row.number, new, aim, reasons, _in_shares(scene, aim, broken, max(1, size * share // 100)))


def _in_shares(scene: Scene, aim: Aim, broken: Sequence[str], share: int) -> Waves:
    """The waves to the aim, each of which makes at most `share` instances, and takes as many of the broken ones away."""
    fresh = [item.name for item in aim.wanted if item.state == "planned"]
    waves: list[tuple[Step, ...]] = []
    for done in range(share, max(len(fresh), 1) + share, share):
        waiting = set(fresh[done:])
        made = {item.name: item for item in scene.instances_of.get(aim.live, ())} if waves else {}
        wanted = tuple(made.get(item.name, item) for item in aim.wanted if item.name not in waiting)
        unproven = frozenset(item.name for item in wanted if not scene.is_up(item.name))
        later = frozenset(broken[done:] if waiting else ())
        more = _waves(scene, replace(aim, wanted=wanted, unproven=unproven, later=later))
        waves += more
        if waiting:
            world = scene.world
            for wave in more:
                world = carried_out(world, wave, scene.history.ledger)
            scene = Scene(scene.definition, world, replace(scene.history, entry=None))
    return tuple(waves)


def _as_it_is(scene: Scene, row: Release, reason: str) -> Plan:
    """Nothing else is to become live; what is not well is put right on the way."""
    made = _same(scene, row, row.size, [])
    return made if made.waves else replace(made, reasons=(reason,))


def _finished(
    scene: Scene, verb: str, live: int, row: Release | None, aim: Aim, reasons: list[str], waves: Waves | None = None,
) -> Plan:
    waves = _waves(scene, aim) if waves is None else waves
    if waves and not reasons:
        reasons = ["a former run did not end" if scene.history.entry else "puts right what is not as it should be"]
    return _plan(scene, verb, live, live, waves, aim, release=row, reasons=reasons if waves else [])


def _size(scene: Scene, row: Release | None) -> tuple[int, list[str]]:
    """The size of a release, and why: the definition's, unless a scale came after it."""
    asked = scene.definition.size
    if row is None or row.size == asked:
        return asked, []
    if row.definition.get("size") == asked:
        return row.size, [f"keeps size {row.size} of the scale after fleet_size {asked} was set"]
    return asked, [f"size {row.size} -> {asked}"]


def _overruling(row: Release, size: int) -> Release:
    """The release as one whose own size, by a scale, holds until fleet_size is another than this; 0: until any change of it."""
    return replace(row, definition={**row.definition, "size": size})


def _refuse_meltdown(scene: Scene, row: Release, well: int) -> None:
    servers = scene.servers_of.get(row.number, ())
    expected = row.size if scene.history.entry is None else sum(scene.serves(name) for name in servers)
    down = expected - well
    if down >= MELTDOWN_COUNT and down >= MELTDOWN_SHARE * expected:
        raise RefusedError(
            f"fleet {scene.definition.name}",
            f"{down} of {expected} instances of r{row.number} are not well, and so many do not fail by themselves",
            "Look for what they share (engine, network, a service that they need); to replace them all, release with -e release_force=true",
        )


# Aim: which instances

def _is_well(scene: Scene, item: Instance) -> bool:
    """Fit to serve: it runs, is where the balancers think, and is not called down, or set aside by somebody's hand, by any of them."""
    if not runs(item):
        return False
    sight = scene.sights.get(item.name)
    if sight is None:
        return True
    if item.address and (item.address, item.port) != (sight.server.address, sight.server.port):
        return False
    if scene.history.entry is None:
        return sight.up == sight.listed and not sight.aside
    # A crashed run leaves servers that have no traffic, drain or are not yet up: the gate judges them. What is in maintenance it would
    # wait for in vain, since no check is made of that.
    return sight.up == sight.listed or not (sight.weighted or sight.aside)


def _rank(scene: Scene, item: Instance) -> tuple[bool, bool, int, str]:
    return not scene.serves(item.name), not scene.is_up(item.name), item.slot, item.host


def _best(scene: Scene, release: int, size: int) -> tuple[Instance, ...]:
    """The running instances of a release, at most `size`, those that serve first."""
    running = [item for item in scene.instances_of.get(release, ()) if runs(item)]
    return tuple(_distinct(sorted(running, key=lambda item: _rank(scene, item)))[:size])


def _distinct(instances: Iterable[Instance]) -> list[Instance]:
    """The first of each name: two engines may each have one after a run that acted late."""
    return list({item.name: item for item in reversed(list(instances))}.values())[::-1]


def _filled(scene: Scene, row: Release, chosen: Iterable[Instance]) -> tuple[Instance, ...]:
    """The chosen instances, and as many planned ones beside them as the release's size needs."""
    definition, history = scene.definition, scene.history
    chosen = list(chosen)
    missing = row.size - len(chosen)
    if missing <= 0:
        return tuple(chosen)
    used = {item.slot for item in scene.instances_of.get(row.number, ())}
    used |= {scene.numbers(name)[1] for name in (*scene.servers_of.get(row.number, ()), *scene.standing)
             if scene.numbers(name)[0] == row.number}
    slots = islice((slot for slot in count(1) if slot not in used), missing)
    names = {slot: f"{definition.name}-r{row.number}-{slot}" for slot in slots}
    port = int(row.definition.get("port", definition.port))
    # A crashed run's worker may still make what it was told to: then at the same place, so that it is what is wanted.
    again: dict[str, list[str]] = {}
    for key, name in history.reserved.items() if history.entry else ():
        again.setdefault(name, []).append(key)
    found = {}
    standing = Counter(item.host for item in chosen)
    for slot, name in names.items():
        if name in again and (place := place_of(again[name], scene.world.pools, port, standing)):
            found[slot] = place
            standing[place[0]] += 1
    rest = [slot for slot in names if slot not in found]
    chilled = cooling(history, {item.name for item in scene.ours})
    free = places(definition.name, scene.world.pools, port, len(rest), standing.elements(), _taken(scene), chilled, history.released)
    found.update(zip(rest, free, strict=True))
    image = row.digest or row.image
    made = [
        Instance(name, found[slot][0], definition.name, row.number, slot, image, found[slot][1], found[slot][2], row.revision)
        for slot, name in names.items()
    ]
    former = [again.get(item.name, ()) for item in made]
    seen = [item.number for item in scene.world.instances]
    numbers = numbered(definition.name, [item.host for item in made], former, scene.pools, history, seen)
    return (*chosen, *(replace(item, number=number) if number else item for item, number in zip(made, numbers, strict=True)))


def _taken(scene: Scene) -> set[str]:
    """All places that are spoken for, by whatever is seen, and by reservations."""
    history = scene.history
    taken: set[str] = set()
    for sight in scene.sights.values():
        taken |= {sight.server.address, f"{sight.server.address}:{sight.server.port}"}
    for item in scene.world.instances:
        taken |= {item.address, f"{item.address}:{item.port}"}
    # A reservation of ours lapses when nothing bears its name or its number any more and no crashed run may still make it.
    held = {item.name for item in scene.ours} | scene.sights.keys() | scene.unsettled | scene.standing
    keep_all = bool(history.entry or scene.silent or not scene.world.pools)
    return taken | {key for key, name in history.reserved.items() if keep_all or name in held or scene.numbers(name) == (0, 0)}


def _as_listed(scene: Scene, name: str) -> Instance:
    """A server whose instance is not ours, or not there, as an instance: only its server is ever spoken of."""
    server = scene.sights[name].server
    release, slot = scene.numbers(name)
    return Instance(name, "", scene.definition.name, release, slot, "", server.address, server.port, state="running")


def _row(scene: Scene, live: int, verb: str = "") -> Release:
    if not live:
        raise RefusedError(f"fleet {scene.definition.name}", f"nothing is live that {verb} could work on", "Release first")
    if live not in scene.rows:
        raise RefusedError(f"release r{live} of fleet {scene.definition.name}", "it is live, and the ledger has no record of it", _ADOPT)
    return scene.rows[live]


def _by_recency(scene: Scene, live: int, former: int = 0) -> list[Release]:
    """All releases that were live, but the one that is: the latest first, by their commits. Clocks may be set meanwhile."""
    rows = [row for row in scene.history.releases if row.status in ("live", "standby", "retired") and row.number != live]
    return sorted(rows, key=lambda row: (row.number == former, row.committed, row.finished, row.number), reverse=True)


def _standbys(scene: Scene, live: int, former: int = 0, without: frozenset[int] = frozenset()) -> frozenset[int]:
    """The releases to keep beside `live`: the last `fleet_keep` that were live. Failed ones do not count."""
    rows = [row.number for row in _by_recency(scene, live, former) if row.status != "retired" and row.number not in without]
    return frozenset(rows[:scene.definition.keep])


# Wave: the steps

def _waves(scene: Scene, aim: Aim) -> Waves:
    """One wave; before it, where room is needed, one that takes away what failed runs have left."""
    steps = _wave(scene, aim)
    if not any(step.kind == "create" for step in steps):
        return (steps,) if steps else ()
    stay = {item.name for item in aim.wanted} | scene.sights.keys() | scene.unconfirmed
    proven = {row.number for row in scene.history.releases if row.status in ("live", "standby")} | aim.keep | {aim.live, scene.history.live}
    leftovers = tuple(
        item for item in scene.ours if item.release not in proven and item.name not in stay and not item.note
    )
    if not leftovers:
        return (steps,)
    gone = {(item.name, item.host) for item in leftovers}
    *others, last = steps
    rest = tuple(item for item in last.instances if (item.name, item.host) not in gone)
    return (Step("destroy", instances=leftovers),), (*others, replace(last, instances=rest)) if rest else tuple(others)


def _wave(scene: Scene, aim: Aim) -> tuple[Step, ...]:
    """The steps from what is seen to the aim. Without a crash before it, a step that would change nothing is left out."""
    ids = _numbered(scene, aim)
    wanted = {item.name: item for item in aim.wanted}
    leaving = [name for name in scene.sights if name not in wanted and name not in aim.later]
    backend = bool(scene.answering)
    unproven = [item for item in aim.wanted if item.name in aim.unproven]
    create = [item for item in aim.wanted if item.state == "planned"]
    # Where a run was killed before it had learned an address, starting what runs already tells it.
    start = [item for item in unproven if item.state != "planned" and (item.state != "running" or not item.address)]
    stage = backend and any(not scene.is_listed(name) for name in wanted)
    switch = backend and any(not scene.is_settled(name) for name in wanted) or bool(wanted) and any(scene.serves(name) for name in leaving)
    # After a crash a fragment may say what its HAProxy does not show yet, so it is written anew. And the entry wants to be closed.
    crashed = scene.history.entry is not None
    stop, destroy = _unwanted(scene, aim)
    # Whoever was told of what goes is asked for its receipt, also where nothing is listed any more.
    unconfirmed = backend and any(item.name in scene.unconfirmed for item in (*stop, *destroy))
    # Who is about to take over must be up now, not only when the world was observed. What was down before is nobody's proof.
    trusted = [item for item in aim.wanted if item.name in aim.unproven or scene.is_up(item.name)]

    def lines(items: Iterable[Instance]) -> tuple[Server, ...]:
        return tuple(_server(scene, item, ids, LIVE) for item in items)

    steps: list[Step | None] = [
        Step("create", instances=tuple(create)) if create else None,
        Step("start", instances=tuple(start)) if start else None,
        Step("check", instances=tuple(unproven)) if unproven else None,
        Step("stage", servers=_listing(scene, aim, ids, _staged)) if stage else None,
        Step("gate", servers=lines(trusted)) if trusted and backend and (unproven or switch) else None,
        Step("commit", release=aim.live) if aim.commit else None,
        Step("switch", servers=_listing(scene, aim, ids, _draining)) if switch else None,
        Step("watch", servers=lines(trusted)) if trusted and switch else None,
        Step("drain", servers=_listing(scene, aim, ids)) if leaving or unconfirmed or (crashed and backend) else None,
        Step("retire", release=aim.live) if aim.retire else None,
        Step("stop", instances=stop) if stop else None,
        Step("destroy", instances=destroy) if destroy or (crashed and not backend) else None,
    ]
    return tuple(step for step in steps if step is not None)


def _unwanted(scene: Scene, aim: Aim) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """What is stopped, and what is destroyed."""
    serving = {(item.name, item.host) for item in aim.wanted}
    spare = {(item.name, item.host) for number in aim.keep for item in _spare(scene, number)}
    stop: list[Instance] = []
    destroy: list[Instance] = []
    for item in scene.ours:
        waits = item.name in aim.later or (aim.inspect and item.release == aim.inspect)
        if (item.name, item.host) in serving or waits or item.note:
            continue
        if scene.silent and (item.release != aim.unserved or not aim.unserved):
            continue
        if item.release != aim.live and item.release in aim.keep and (item.name, item.host) not in spare:
            if scene.definition.standby == "stopped" and item.state in ("running", "restarting"):
                stop.append(item)
        else:
            destroy.append(item)
    return tuple(stop), tuple(destroy)


def _spare(scene: Scene, release: int) -> list[Instance]:
    """What a standby has beyond the size of its release: what came back with its node, when others had taken its place already."""
    idle = scene.definition.standby == "stopped"
    members = [item for item in scene.ours if item.release == release and not item.note]
    return sorted(members, key=lambda item: (runs(item) == idle, item.slot, item.host))[_size_of(scene, release):]


Manner = Callable[[Scene, Aim, str], Server]


def _listing(scene: Scene, aim: Aim, ids: dict[str, int], leaving: Manner | None = None) -> tuple[Server, ...]:
    """All that the backend shall have: the wanted servers, and, in the given manner, those that leave. Without one they are out.

    Those with a weight come first: applied in this order, others have taken over before one loses its traffic. It is one list for all
    balancers: where one of them lacks a server that serves elsewhere, its backend brings that in at weight 0 and waits for the check
    before it gives it the weight (see `unproven` in _haproxy/backend.py).
    """
    wanted = {item.name: item for item in aim.wanted}
    made = [_server(scene, item, ids, 0 if leaving is _staged and not scene.serves(item.name) else LIVE) for item in aim.wanted]
    made += [_staged(scene, aim, name) for name in scene.sights if name in aim.later]
    if leaving is not None:
        made += [leaving(scene, aim, name) for name in scene.sights if name not in wanted and name not in aim.later]
    return tuple(sorted(made, key=lambda server: (not server.weight, *scene.numbers(server.name), server.name)))


def _server(scene: Scene, item: Instance, ids: dict[str, int], weight: int) -> Server:
    sight = scene.sights.get(item.name)
    if weight and not item.release and sight and sight.weight:
        weight = sight.weight
    address = item.address or (sight.server.address if sight else "")
    return Server(item.name, address, item.port, ids[item.name], weight)


def _staged(scene: Scene, aim: Aim, name: str) -> Server:
    """What leaves keeps its traffic until the others are proven, but where it does not run it never comes anew.

    Nor does what was rejected, where a run was killed while it took its traffic away: on a part of the balancers it has none.
    """
    sight = scene.sights[name]
    release, _slot = scene.numbers(name)
    entry, row = scene.history.entry, scene.rows.get(release)
    rejected = bool(row and row.status == "failed") or bool(entry and entry.target == release and entry.source == aim.live != release)
    goes_on = sight.weighted and (scene.is_listed(name) or name in scene.running or release == 0)
    goes_on = goes_on and not (rejected and not scene.everywhere(sight.weighted))
    weight = (LIVE if release else sight.weight) if goes_on else 0
    state = "ready" if goes_on or not sight.aside else "drain"
    return Server(name, sight.server.address, sight.server.port, sight.server.id, weight, state)


def _draining(scene: Scene, aim: Aim, name: str) -> Server:
    sight = scene.sights[name]
    return Server(name, sight.server.address, sight.server.port, sight.server.id, 0, "drain")


# The plan

def _numbered(scene: Scene, aim: Aim) -> dict[str, int]:
    """HAProxy's id of every server that the fleet has or will have: known ones keep theirs, new ones are above all that was ever seen."""
    history = scene.history
    ids = {item.name: history.servers[item.name] for item in scene.ours if item.name in history.servers}
    ids.update((name, sight.server.id) for name, sight in scene.sights.items())
    following = max([history.next_server - 1, *history.servers.values(), *ids.values()]) + 1
    for item in aim.wanted:
        if item.name not in ids:
            ids[item.name] = following
            following += 1
    return ids


def _reserved(scene: Scene, aim: Aim) -> dict[str, str]:
    """`HOST KEY` -> name of all that the fleet holds, what a crashed run or a silent balancer may still hold included."""
    here = [item for item in (*scene.ours, *aim.wanted) if item.host and item.state != "unknown"]
    held = {key: item.name for item in here for key in reservations(item, scene.pools)}
    seen = set(held.values())
    # Where nobody can say which numbers are taken, all may be.
    keep_all = bool(scene.history.entry or not scene.world.pools)
    for key, name in scene.history.reserved.items():
        # What is seen holds what it has; a silent balancer may still send requests to where it was.
        unseen = name not in seen and (keep_all or name in scene.sights or name in scene.unsettled or name in scene.standing)
        if scene.numbers(name) != (0, 0) and (scene.silent or unseen):
            held.setdefault(key, name)
    return held


def _of_what_stays(scene: Scene) -> Iterator[str]:
    """Of what can neither be asked nor touched."""
    notes = {**scene.unseen, **{item.name: item.note for item in scene.ours if item.note}}
    for name, why in notes.items():
        yield f"{name} is left alone: {why}" + ("; every balancer calls it up" if name in scene.vouched else "")
    for name in scene.vouched:
        if name not in notes:
            yield f"no listing shows {name}, and every balancer calls it up: that counts"


def _plan(
    scene: Scene, verb: str, source: int, target: int, waves: Waves, aim: Aim, outcome: str = "live",
    release: Release | None = None, reasons: Iterable[str] = (), again: bool = False,
) -> Plan:
    reasons = (*reasons, *_of_what_stays(scene))
    if not waves:
        return Plan(verb, source, target, outcome, (), release, reasons, again)
    ids = {name: number for name, number in _numbered(scene, aim).items() if scene.numbers(name) != (0, 0)}
    issued = bands((item for item in aim.wanted if item.state == "planned"), scene.pools)
    return Plan(verb, source, target, outcome, waves, release, reasons, again, ids, _reserved(scene, aim), issued=issued)
