# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The marker that every instance bears, wherever it lives, and the facts that are known within it. Pure."""

from __future__ import annotations

from typing import Dict, Mapping, Optional

from .._errors import RefusedError
from .._model import Instance
from .base import Blueprint

LABEL = "phoenix.fleet."
NAME, RELEASE, SLOT, LEDGER = LABEL + "name", LABEL + "release", LABEL + "slot", LABEL + "ledger"
# By which an instance is told from a copy of it, which bears the same marker; VMID where instances have numbers, UUID where they have one.
VMID, UUID = LABEL + "vmid", LABEL + "uuid"
# Beside the marker: what a stopped instance does not tell.
ADDRESS = LABEL + "address"


def marker_of(instance: Instance, blueprint: Blueprint, created: str) -> Dict[str, str]:
    return {
        NAME: instance.fleet, RELEASE: str(instance.release), SLOT: str(instance.slot), LEDGER: blueprint.ledger,
        LABEL + "image": blueprint.image.digest, LABEL + "revision": blueprint.revision, LABEL + "created": created,
        LABEL + "hash": blueprint.hash,
    }


def name_in(marker: Mapping[str, str]) -> str:
    """The name of the instance that a marker was made for. Raises KeyError where it is not a whole one."""
    return f"{marker[NAME]}-r{marker[RELEASE]}-{marker[SLOT]}"


def facts_of(instance: Instance, blueprint: Blueprint) -> Dict[str, str]:
    """The environment by which an instance knows who it is."""
    return {
        "PHOENIX_FLEET": instance.fleet, "PHOENIX_RELEASE": str(instance.release), "PHOENIX_INSTANCE": instance.name,
        "PHOENIX_REVISION": blueprint.revision,
    }


def said_by(instance: Instance) -> str:
    """The part of a marker that says whose the instance is, in words."""
    return f"fleet {instance.fleet}, release {instance.release}, ledger {instance.marker.get(LEDGER) or '(none)'}"


def refuse_leased(instance: Instance) -> None:
    """Raises RefusedError where an instance belongs to a ledger: only under its lease it is known whether a balancer may still serve it."""
    ledger = instance.marker.get(LEDGER)
    if ledger:
        raise RefusedError(
            f"instance {instance.name}", f"it belongs to ledger {ledger}, and a balancer may be serving it",
            "It was not touched. Let the fleet's playbooks take it away (phoenix.fleet.heal, phoenix.fleet.retire), or give their lease",
        )


def refuse_other(item: Instance, now: Optional[Instance], where: str = "") -> None:
    """Identity before force: raises RefusedError where `item` was never observed, or what is seen under its id `now` bears another marker.

    where is the instance that is seen, in words. None is seen where it vanished.
    """
    if not item.id:
        raise RefusedError(item.name, "it was planned but never observed, so its id is not known", "Observe the fleet first")
    if now and said_by(now) != said_by(item):
        raise RefusedError(
            where, f"its marker says {said_by(now)}, not {said_by(item)}", "It belongs to somebody else and was not touched",
        )
