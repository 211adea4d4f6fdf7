# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Last words do not grow for ever, and nothing else goes with them."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.action import instances as instances_action
from ansible_collections.phoenix.fleet.plugins.module_utils import _instances
from ansible_collections.phoenix.fleet.plugins.module_utils._model import LastWords
from ansible_collections.phoenix.fleet.plugins.plugin_utils._diagnostics import KEPT, folder_of, make_room
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger


def spoken(state: Path, fleet: str, release: int, at: int) -> Path:
    """Last words of a release, written so many seconds into some day."""
    folder = Path(folder_of(str(state), fleet, release))
    folder.mkdir(parents=True)
    (folder / f"{fleet}-r{release}-1.log").write_text("no config\n")
    os.utime(folder, (1_000_000 + at, 1_000_000 + at))
    return folder


def names(state: Path) -> set[str]:
    return {item.name for item in (state / "last-words").iterdir()}


def test_the_newest_are_kept_and_with_them_those_of_the_release_that_is_written(tmp_path: Path) -> None:
    for number in range(1, 31):
        spoken(tmp_path, "web", number, at=number)
    oldest = folder_of(str(tmp_path), "web", 1)
    make_room(oldest)
    assert names(tmp_path) == {"web-r1", *(f"web-r{number}" for number in range(30, 30 - KEPT + 1, -1))}


def test_nothing_else_goes_with_them(tmp_path: Path) -> None:
    for number in range(1, 31):
        spoken(tmp_path, "web-r1", number, at=number)  # a fleet may have such a name
        spoken(tmp_path, "web", number, at=number)
    others = tmp_path / "last-words"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (others / "web-r0").symlink_to(elsewhere)
    (others / "web-r31").touch()
    (others / "web-r2-notes").mkdir()
    (others / "web-r3" / "link").symlink_to(elsewhere)
    os.utime(others / "web-r3", (1_000_003, 1_000_003))
    make_room(folder_of(str(tmp_path), "web", 40))
    left = names(tmp_path)
    assert {"web-r0", "web-r31", "web-r2-notes"} <= left and "web-r3" not in left and (elsewhere / "precious").exists()
    assert len([name for name in left if name.startswith("web-r1-r")]) == 30


def test_what_cannot_be_removed_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_room(folder_of(str(tmp_path / "none"), "web", 1))
    for number in range(1, 31):
        spoken(tmp_path, "web", number, at=number)

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "rmdir", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    make_room(folder_of(str(tmp_path), "web", 31))
    assert len(names(tmp_path)) == 30


def test_who_writes_last_words_makes_room_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 31):
        spoken(tmp_path, "web", number, at=number)
    lease = Ledger("", str(tmp_path)).acquire("web", "tests")
    folder = folder_of(str(tmp_path), "web", 2)  # an old release, whose standby failed to start again
    action = object.__new__(instances_action.ActionModule)
    action._task = SimpleNamespace(check_mode=False, diff=False)
    words = (LastWords("web-r2-1", "stopped", 1, 0, ("no config",)),)
    monkeypatch.setattr(action, "on_host", lambda *_work: {"folder": _instances._keep(folder, words, check_mode=False)})
    action.act({
        "verb": "last_words", "lease": asdict(lease), "folder": folder, "release": {}, "record": "", "wave": {}, "keep_images": None,
        "receipts": [],
    }, {})
    assert len(names(tmp_path)) == KEPT and Path(folder, "web-r2-1.log").exists()
    make_room(folder_of(str(tmp_path), "web", 31))
    assert "web-r2" in names(tmp_path)  # what was written last is the newest, whatever its number
