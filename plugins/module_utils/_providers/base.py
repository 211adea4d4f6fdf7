# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The protocol that every provider keeps. tests/contract holds the suite that each of them passes, the simulated one included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Mapping, Protocol, Sequence, Tuple

from .._errors import RefusedError
from .._model import Copy, Image, Instance, LastWords, Pool


@dataclass(frozen=True)
class Blueprint:
    """What every instance of one release is made from. options are the provider's own (fleet_docker).

    port is the service's within an instance: a published instance's own port is another.
    """

    image: Image
    hash: str = ""
    ledger: str = ""
    revision: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    port: int = 0


class Journal(Protocol):
    """Where a provider whose cluster works on by itself keeps the tasks that it began, so that they outlive the controller."""

    def began(self, task: str, doing: str) -> None:
        """Keep a task by the cluster's own name for it, with what it does, in words."""

    def under_way(self) -> Mapping[str, str]:
        """What was begun since the fleet's last undertaking ended, perhaps by a run that was killed, and may still be at work."""

    def turn(self, name: str, width: int, seconds: float) -> ContextManager[None]:
        """Wait for a turn at what bears only `width` at a time, over all runs of the ledger. Raises DeadlineError after `seconds`."""

    def say(self, text: str) -> None:
        """Tell whoever watches the run."""


Permit = Callable[[Instance], None]
"""Asked right before an instance is stopped or removed; raises FleetError where it must be left alone."""


def unconditional(instance: Instance) -> None:
    """The permit of those who answer for it themselves."""


def leave_started(planned: Instance, now: Instance) -> None:
    """Raises RefusedError where an instance that did not run when the plan was made runs now: somebody has brought it back."""
    awake = ("running", "restarting")
    if planned.state not in (*awake, "planned") and now.state in awake:
        raise RefusedError(f"instance {now.name}", "it was started since the plan was made", "It was left alone. Run the same again")


class Provider(Protocol):
    """Instances of one kind. All methods work on whole sets, concurrently and bounded, and touch nothing without our marker.

    Every method raises UnreachableError where the other side gives no answer, and RefusedError where it says no. Where some
    of a set fail, the rest is carried out first, and one error then names each that failed.
    """

    def image(self, reference: str) -> Image:
        """What the reference means now. A registry is asked before a local image, a local image needs no registry."""

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> Tuple[Pool, ...]:
        """Where instances may be placed, in order of preference for an even spread, with what is taken there by anybody.

        balancers are the addresses of the balancers' hosts, "local" for this one. Raises RefusedError with the remedy
        where one of them could not reach the instances.
        """

    def observe(self, fleet: str) -> Tuple[Instance, ...]:
        """All instances that carry the fleet's marker, running or not, in one listing per engine or node."""

    def copies(self, fleet: str) -> Tuple[Copy, ...]:
        """What bears the fleet's marker, and is none of its instances (see Copy). No other method knows of it, but for its address, which
        is taken.
        """

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        """Raises RefusedError naming what is missing for these instances to exist beside those that run: memory, network, image."""

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        """Create and start planned instances; returns them as observed. One whose name and marker exist already is taken as it is."""

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        """Start what was stopped, with the current secrets; returns them as observed. Running ones are left alone."""

    def stop(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        """The polite signal, then, timeout seconds later, the kill. Stopped or vanished ones are left alone.

        permit is asked for each instance right before anything is done to it.
        """

    def destroy(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        """Stop politely, then remove by id what bears our marker, with everything made for it alone. Vanished ones are fine.

        permit as for `stop`. What did not run when `instances` were observed, and runs now, is left alone: RefusedError names it.
        """

    def remove_images(self, images: Sequence[Image]) -> Tuple[str, ...]:
        """Remove these golden images wherever the fleet's instances may live, never by force; tells in words what went and what could not.

        One stays that any container uses, whoever's, or that has a name besides these references. Nothing is removed where golden
        images are the operator's own, as templates and volumes are.
        """

    def seals(self, instances: Sequence[Instance]) -> Mapping[str, str]:
        """By name, what tells whether a stopped instance is still as it was: the same text until somebody starts it, or changes its
        root file system. One that runs, or vanished, has none.
        """

    def last_words(self, instances: Sequence[Instance], log: bool = True) -> Tuple[LastWords, ...]:
        """What each of them has to say; an instance that vanished says so. Without the log it may cost less."""
