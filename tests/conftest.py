# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every test: a home of its own, the environment's commands first, and nothing skipped in CI."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Generator

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("ANSIBLE_", "XDG_", "DOCKER_", "PG", "LIBVIRT_")


# No test is about time: a busy machine is slow, and nothing is wrong with that.
settings.register_profile("fleet", parent=settings(), deadline=None)
settings.load_profile("fleet")


def pytest_configure() -> None:
    # Whoever runs them may have settings for all of these; a proxy would be asked for what is on this machine.
    for name in [name for name in os.environ if name.startswith(FOREIGN) or name.lower().endswith("_proxy")]:
        del os.environ[name]
    home = ROOT / "build" / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(home), LC_ALL="C.UTF-8", PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _not_in_ci(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _not_in_ci(report)


def _not_in_ci(report: pytest.TestReport | pytest.CollectReport) -> pytest.TestReport | pytest.CollectReport:
    """A test that is skipped in CI proves nothing and looks like one that passed."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
