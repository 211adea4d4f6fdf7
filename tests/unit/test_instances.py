# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the verbs of any provider keep of the instances."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils import _instances
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import LastWords

WORDS = (LastWords("web-r2-1", "stopped", 1, 3, ("no config",)),)


def test_last_words_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    assert _instances._keep(folder, WORDS, check_mode=False) == str(folder)
    assert {item.name: item.stat().st_mode & 0o777 for item in folder.iterdir()} == {"web-r2-1.log": 0o600, "web-r2-1.json": 0o600}


def test_last_words_that_cannot_be_written_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    with pytest.raises(UnreachableError, match="the last words cannot be kept: Not a directory. Free some space"):
        _instances._keep(tmp_path / "in the way" / "words", WORDS, check_mode=False)
