# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Many at once, bounded: everything is tried, then every failure is reported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, List, Optional, Tuple, TypeVar

from ._errors import FleetError, InvalidError, RefusedError, UnreachableError

T = TypeVar("T")
R = TypeVar("R")
LIMIT = 8


def each(work: Callable[[T], R], items: Iterable[T], limit: int = LIMIT) -> List[R]:
    """The results of `work` for all items, in their order, at most `limit` at a time.

    All are tried, also where some fail. Then raises what `together` makes of the FleetErrors. Other exceptions are defects
    and pass as they are.
    """
    everything = list(items)
    if len(everything) < 2:
        return [work(item) for item in everything]

    def attempt(item: T) -> Tuple[Optional[R], Optional[FleetError]]:
        try:
            return work(item), None
        except FleetError as error:
            return None, error

    with ThreadPoolExecutor(max_workers=min(limit, len(everything))) as pool:
        outcomes = list(pool.map(attempt, everything))
    failures = [error for result, error in outcomes if error is not None]
    if failures:
        raise together(failures, len(everything))
    return [result for result, error in outcomes]  # type: ignore[misc]


def together(failures: List[FleetError], of: int) -> FleetError:
    """One error for all of `failures`, with a line for each in its cause; `of` is how many were tried.

    It is Unreachable, Refused or Invalid where all of them are, and has their remedy where they have one in common.
    """
    if len(failures) == 1:
        return failures[0]
    if all(isinstance(error, InvalidError) for error in failures):
        return InvalidError(list(dict.fromkeys(line for error in failures if isinstance(error, InvalidError) for line in error.mistakes)))
    kind = next((item for item in (UnreachableError, RefusedError) if all(isinstance(error, item) for error in failures)), FleetError)
    remedies = {error.remedy for error in failures}
    remedy = remedies.pop() if len(remedies) == 1 else ""
    lines = [f"{error.what}: {error.cause}" if remedy else str(error) for error in failures]
    return kind(f"{len(failures)} of {of} failed", "\n".join(["", *(f"  {line}" for line in dict.fromkeys(lines))]), remedy)
