# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Every error that the collection raises on purpose. Each says the object, the cause and the remedy."""

from __future__ import annotations

from typing import Sequence


class FleetError(Exception):
    """Something is not as it must be. `what` names the object, `cause` what was seen, `remedy` what to do."""

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what, cause, remedy)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.what}: {self.cause}".replace(": \n", ":\n") if self.cause else self.what
        if not self.remedy:
            return text
        return f"{text}\n{self.remedy}" if "\n" in text else f"{text.rstrip('.')}. {self.remedy}"


class InvalidError(FleetError):
    """The input has mistakes; `mistakes` holds one line for each, and nothing was touched."""

    def __init__(self, mistakes: Sequence[str], what: str = "invalid input") -> None:
        super().__init__(what, "\n".join(mistakes))
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return self.mistakes[0] if len(self.mistakes) == 1 else "\n".join(["", *(f"  {line}" for line in self.mistakes)])


class UnreachableError(FleetError):
    """An engine, a balancer or the ledger gave no answer; what it does now is not known."""


class RefusedError(FleetError):
    """The other side answered, and said no; or acting would touch what belongs to somebody else."""


class DeadlineError(FleetError):
    """A wait ended without what it waited for. `cause` says what was last seen."""


class LeaseError(FleetError):
    """Somebody else holds the fleet, or this run lost it."""
