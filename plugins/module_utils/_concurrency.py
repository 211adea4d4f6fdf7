# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Many at once, bounded: everything is tried, then every failure is reported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, List, Optional, Tuple, TypeVar

from ._errors import FleetError

T = TypeVar("T")
R = TypeVar("R")
LIMIT = 8


def each(work: Callable[[T], R], items: Iterable[T], limit: int = LIMIT) -> List[R]:
    """The results of `work` for all items, in their order, at most `limit` at a time.

    All are tried, also where some fail. Then raises the FleetError of a single failure, or for several one error of
    their class (FleetError where they differ) whose cause has a line for each. Other exceptions are defects and pass as they are.
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
    """One error for all of `failures`; `of` is how many were tried."""
    if len(failures) == 1:
        return failures[0]
    kinds = {type(error) for error in failures}
    kind = kinds.pop() if len(kinds) == 1 else FleetError
    lines = list(dict.fromkeys(str(error) for error in failures))
    text = "\n".join(["", *(f"  {line}" for line in lines)])
    if issubclass(kind, FleetError) and kind.__init__ is FleetError.__init__:
        return kind(f"{len(failures)} of {of} failed", text)
    return FleetError(f"{len(failures)} of {of} failed", text)
