# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The short version of `make faults`: a few faults of each kind that need no engine of their own, under load. See docs/faults.md."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.phoenix.fleet.tests.faults import kills, parts
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial

FAULTS: dict[str, Callable[[Ground, Trial], None]] = {
    "killed between steps": lambda ground, trial: kills.boundaries(ground, trial, ("Commit", "Drain"), ("release", "heal")),
    "killed within steps": lambda ground, trial: kills.within(ground, trial, {}, ("Provision", "Cut over"), (0.5,), ("release",)),
    "orphan stands still": lambda ground, trial: kills.abandoned(ground, trial, ("Cut over",)),
    "container ends before the commit": lambda ground, trial: parts.exits(ground, trial, ("Commit",)),
    "HAProxy restarted": lambda ground, trial: parts.restarted(ground, trial, ("Cut over",)),
    "two at once": lambda ground, trial: parts.two_at_once(ground, trial, 1),
}


@pytest.fixture(scope="module")
def ground(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One fleet, released once, for all faults: each of them leaves it as it ought to be, or has failed."""
    number = zlib.crc32(__name__.encode()) % 8192
    ground = Ground(tmp_path_factory.mktemp("ground"), number, images)
    try:
        ground.release()
        yield ground
    finally:
        ground.close()


@pytest.mark.parametrize("name", FAULTS, ids=[name.replace(" ", "-") for name in FAULTS])
def test_fault_costs_no_request_leaves_nothing_and_wants_nobody(ground: Ground, name: str) -> None:
    trial = Trial(name)
    FAULTS[name](ground, trial)
    assert trial.good, "\n".join(trial.told())
