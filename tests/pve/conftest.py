# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report of the steps that can be pasted into an issue: no secret is in it, and no name of a host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.tests.pve.your_cluster import FACTS, masked

_ENDED: list[tuple[str, str, float, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    report = yield
    title = str(getattr(item, "function", item).__doc__ or item.name).strip().splitlines()[0].rstrip(".")
    title += f" ({item.callspec.id})" if hasattr(item, "callspec") else ""
    if report.when == "call" or report.outcome != "passed":
        why = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
        why = call.excinfo.exconly() if report.failed and call.excinfo else why.removeprefix("Skipped: ")
        failed = "failed" if report.when == "call" else f"failed in its {report.when}"
        word = {"passed": "ok", "failed": failed}.get(report.outcome, "skipped")
        _ENDED.append((title, word, call.duration, masked(" ".join(why.split()))[:600]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    say = terminalreporter.write_line
    say("")
    say("---- phoenix.fleet on Proxmox VE; paste this into an issue ----")
    for line in FACTS:
        say(masked(line))
    say("")
    say("| step | result | seconds | why |")
    say("|---|---|---|---|")
    for title, word, seconds, why in _ENDED:
        say(f"| {title} | {word} | {seconds:.1f} | {re.sub(r'[|]', '/', why)} |")
    say("---- end ----")
