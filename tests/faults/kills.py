# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller killed: at every step's boundary, within every step, twice, in every verb, and with workers that act on without it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from ansible_collections.phoenix.fleet.tests.faults.command import END, Command, until
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial

STEPS = (
    "Lease", "Resolve, and observe the instances", "Observe the balancers", "Plan", "Provision", "Check", "Stage",
    "Wait until every balancer calls them up", "Commit", "Cut over", "Watch", "Drain", "Decommission", "Look once more", "Finish",
)
"""The tasks of a release that replaces another and takes a third one away. Each is a boundary: between it and the one before."""

ACTS = (
    "Lease", "Observe the balancers", "Plan", "Provision", "Check", "Stage", "Wait until every balancer calls them up", "Commit",
    "Cut over", "Watch", "Drain", "Decommission", "Finish",
)
"""Those that do something, and are killed within it as well."""

FRACTIONS = (0.3, 0.7)
MODES = ("alone", "group", "workers", "everything")
AFTER = ("release", "heal", "release", "rollback", "release", "scale")
"""The verb that follows a kill: half of the time the same command."""


def durations(command: Command) -> dict[str, float]:
    """How long each task of a finished run took, in seconds; the first of several of one name."""
    tasks = [*command.tasks(), (time.monotonic(), END)]
    made: dict[str, float] = {}
    for (began, name), (ended, _next) in zip(tasks, tasks[1:], strict=False):
        made.setdefault(name, ended - began)
    return made


def follow(ground: Ground, verb: str, image: str) -> None:
    """The next command after a kill, and what must be true then."""
    if verb == "release":
        ground.put_right("release", release_image=image)
        rows = {row.number: row for row in ground.history().releases}
        live = rows.get(ground.history().live)
        assert live is not None and live.image == image, f"{image} is not live: {live}"
        assert ground.versions("web", 2) == {image.rpartition(":")[2]}, "another version answers"
    elif verb == "scale":
        size = {row.number: row.size for row in ground.history().releases}.get(ground.history().live, 2)
        ground.put_right("scale", scale_size=2 if size > 2 else 3)
    else:
        ground.put_right(verb)
    assert ground.versions("web", 2) <= {"v1", "v2"}


def prepare(ground: Ground) -> dict[str, float]:
    """Three releases, so that the next one has something to take away. Returns how long each task of the last one took."""
    for version in ("v1", "v2", "v1"):
        command = ground.start("release", release_image=ground.image(version))
        run = command.wait()
        assert run.code == 0, run.output
    return durations(command)


def boundaries(ground: Ground, trial: Trial, steps: Sequence[str] = STEPS, after: Sequence[str] = AFTER) -> None:
    """SIGKILL between two steps."""
    modes, verbs = cycle(("alone", "group", "everything")), cycle(after)
    with trial.load(ground):
        for step in steps:
            mode, verb = next(modes), next(verbs)
            with trial.point(ground, f"{mode} killed before {step}, then {verb}"):
                image = ground.image(ground.other())
                command = ground.start("release", hold=step, release_image=image)
                assert command.reach(step), f"it ended before: {command.output[-600:]}"
                command.kill(mode)
                follow(ground, verb, image)


def within(ground: Ground, trial: Trial, took: dict[str, float], acts: Sequence[str] = ACTS, fractions: Sequence[float] = FRACTIONS,
           after: Sequence[str] = AFTER[::-1]) -> None:
    """SIGKILL while a step is under way."""
    modes, verbs = cycle(MODES), cycle(after)
    with trial.load(ground):
        for step, fraction in ((step, fraction) for fraction in fractions for step in acts):
            mode, verb = next(modes), next(verbs)
            with trial.point(ground, f"{mode} killed {fraction:.0%} into {step}, then {verb}"):
                image = ground.image(ground.other())
                command = ground.start("release", release_image=image)
                assert command.reach(step), f"it ended before: {command.output[-600:]}"
                time.sleep(fraction * took.get(step, 0.1))  # the fault's own moment, no synchronisation
                command.kill(mode)
                follow(ground, verb, image)


TWICE = (
    ("Provision", "Decommission"), ("Stage", "Plan"), ("Commit", "Drain"), ("Cut over", "Decommission"),
    ("Drain", "Finish"),
)


def twice(ground: Ground, trial: Trial) -> None:
    """The run that puts a killed one right is killed as well."""
    with trial.load(ground):
        for first, second in TWICE:
            with trial.point(ground, f"killed at {first}, the next run at {second}"):
                image = ground.image(ground.other())
                for step in (first, second):
                    command = ground.start("release", hold=step, release_image=image)
                    command.reach(step)
                    command.kill("everything")
                follow(ground, "release", image)


VERBS = (
    ("rollback", "Provision", "rollback"), ("rollback", "Commit", "heal"), ("rollback", "Drain", "rollback"),
    ("scale", "Stage", "scale"), ("scale", "Cut over", "heal"), ("scale", "Drain", "heal"), ("heal", "Provision", "heal"),
    ("heal", "Cut over", "release"), ("heal", "Decommission", "heal"),
)


def verbs(ground: Ground, trial: Trial) -> None:
    """The other verbs are killed at their steps."""
    with trial.load(ground):
        for verb, step, then in VERBS:
            with trial.point(ground, f"{verb} killed at {step}, then {then}"):
                image = {row.number: row for row in ground.history().releases}[ground.history().live].image
                size = len(ground.running("web"))
                extra = {"scale_size": 2 if size > 2 else 3} if verb == "scale" else {}
                if verb == "heal":
                    name = ground.containers("web")[-1].name
                    item = next(item for item in reversed(ground.containers("web")) if item.status == "running")
                    for proxy in ground.proxies.values():
                        proxy.cli(f"set server web/{item.name} state maint")
                    assert name
                command = ground.start(verb, hold=step, **extra)
                if command.reach(step):
                    command.kill("everything")
                if then == "release":
                    follow(ground, "release", image)
                else:
                    ground.put_right(then, **(extra if then == "scale" else {}))


FROZEN = ("Provision", "Stage", "Cut over", "Drain", "Decommission")


def orphans(ground: Ground, trial: Trial, steps: Sequence[str] = FROZEN) -> None:
    """A worker whose run is killed stands still in the middle of its act, and goes on while the next run is at work."""
    with trial.load(ground):
        for step in steps:
            with trial.point(ground, f"an orphan of {step} goes on"):
                image = ground.image(ground.other())
                command, worker = frozen(ground, step, image)
                command.kill("alone")
                after = ground.start("release", release_image=image)
                after.reach("Observe the balancers")
                command.signal(signal.SIGCONT, worker)
                run = after.wait()
                assert run.code == 0, f"the next run ended with {run.code}: {run.story[-3:]}"
                follow(ground, "release", image)


def abandoned(ground: Ground, trial: Trial, steps: Sequence[str] = ("Provision", "Cut over")) -> None:
    """The same, and nobody lets the orphan go on: it holds the fleet's lock for good."""
    with trial.load(ground):
        for step in steps:
            with trial.point(ground, f"an orphan of {step} stands still"):
                image = ground.image(ground.other())
                command, worker = frozen(ground, step, image)
                command.kill("alone")
                follow(ground, "release", image)
                command.signal(signal.SIGCONT, worker)


def frozen(ground: Ground, step: str, image: str) -> tuple[Command, list[int]]:
    """A release whose worker was stopped (SIGSTOP) within a step, holding the fleet's lock."""
    command = ground.start("release", hold=step, release_image=image)
    command.reach(step)
    command.go()
    for _attempt in moments():
        worker = command.workers()
        if worker and locked(ground, worker):
            command.signal(signal.SIGSTOP, worker)
            # Not within a transaction, which takes a millisecond: there it would stop every other run of this ledger as well.
            if not any(opened(ground, pid) for pid in worker):
                return command, worker
            command.signal(signal.SIGCONT, worker)
        assert command.process.poll() is None, f"it ended before a worker of {step} could be stopped"
    raise AssertionError(f"no worker of {step} was seen with the lock")


def locked(ground: Ground, pids: Sequence[int]) -> bool:
    """Whether one of these processes says in the fleet's lock file that it holds it."""
    try:
        return json.loads((ground.state / f"{ground.name('web')}.lock").read_text())["holder"]["pid"] in pids
    except (OSError, ValueError):
        return False


def opened(ground: Ground, pid: int) -> bool:
    """Whether the process has the ledger's file open, or has ended."""
    try:
        return any(str(path.readlink()).startswith(str(ground.state / "ledger")) for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True


def moments(seconds: float = 30) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield None
        time.sleep(0.001)


RETIRE = ("Cut over", "Drain", "Decommission", "Give the backend up", "Finish")


def retire(ground: Ground, trial: Trial) -> None:
    """The fleet is taken away, killed at each step of that. Without load: nothing shall serve in the end."""
    for step in RETIRE:
        with trial.point(ground, f"retire killed at {step}, then retire"):
            ground.put_right("release", release_image=ground.image("v1"))
            command = ground.start("retire", hold=step, retire_confirm=ground.name("web"))
            command.reach(step)
            command.kill("everything")
            ground.put_right("retire", retire_confirm=ground.name("web"))
            until("the orphans to end", lambda: not ground.processes(), 60)
            assert not ground.containers("web"), f"containers: {ground.kept('web')}"
            volumes = ground.engine.volumes.list(filters={"label": f"phoenix.fleet.name={ground.name('web')}"})
            assert not volumes, f"volumes: {volumes}"
            for host, proxy in ground.proxies.items():
                assert not proxy.weights("web"), f"{host}: {proxy.weights('web')}"
