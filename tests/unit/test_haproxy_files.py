# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing a fragment, and what a run that is killed meanwhile leaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import _files as files


def half(path: str) -> None:
    """Killed when the new text is written and not yet in its place."""
    with files.candidate(path, "half"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg"
    path.write_text("before")
    for _kill in range(2):
        process = multiprocessing.get_context("fork").Process(target=half, args=(str(path),))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    with files.candidate(str(path), "after") as new:
        files.replace(new, str(path))
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("web.cfg", "after")]
