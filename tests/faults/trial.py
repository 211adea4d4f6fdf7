# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One row of the table: faults of one kind under load, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.load import Load

RATE = 20.0


@dataclass
class Trial:
    """leftovers and manual say what was left and what a person had to do; wrong says what the run itself should have done otherwise."""

    name: str
    points: int = 0
    sent: int = 0
    failed: int = 0
    leftovers: list[str] = field(default_factory=list)
    manual: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)
    by: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not (self.failed or self.leftovers or self.manual or self.wrong) and self.points > 0

    @contextmanager
    def load(self, ground: Ground, *hosts: str, rate: float = RATE) -> Iterator[None]:
        """Requests to these balancers (to all, where none is named), for every fleet, for as long as the block lasts."""
        places = [ground.proxies[host].url(fleet) for host in hosts or tuple(ground.proxies) for fleet in ground.fleets]
        loads = [Load(f"{place}/", rate=rate, slow="/slow?s=1") for place in places]
        try:
            with ExitStack() as stack:
                for item in loads:
                    stack.enter_context(item)
                yield
        finally:
            for item in loads:
                self.sent += item.result.get("sent", 0)
                self.failed += item.result.get("failed", 0)
                self.examples += item.result.get("examples", [])

    @contextmanager
    def point(self, ground: Ground, what: str) -> Iterator[None]:
        """One fault and what puts it right. Afterwards nothing may be left of it."""
        self.points += 1
        began = time.monotonic()
        notes = len(ground.notes)
        try:
            yield
        except AssertionError as error:
            self.wrong.append(f"{what}: {error}")
            ground.end_all()  # so that this fault does not spoil the next one
        self.leftovers += [f"{what}: {item}" for item in ground.settle()]
        self.manual += [f"{what}: {item}" for item in ground.notes[notes:]]
        self.seconds += time.monotonic() - began

    def told(self) -> list[str]:
        """What is wrong, line by line."""
        return [
            *(f"left over: {item}" for item in self.leftovers), *(f"manual step: {item}" for item in self.manual),
            *(f"not as it should be: {item}" for item in self.wrong), *(f"failed request: {item}" for item in self.examples),
        ]
