# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Where the last words of instances are kept on the controller, and for how long."""

from __future__ import annotations

import os
import re
import shutil

KEPT = 20
"""Releases of a fleet whose last words are kept, those that are being written included."""


def folder_of(state_dir: str, fleet: str, release: int) -> str:
    return os.path.join(state_dir, "last-words", f"{fleet}-r{release}")


def make_room(folder: str) -> None:
    """Remove the oldest last words of the fleet beside `folder` (see `folder_of`), which is about to be written and stays.

    Before it is written, so that a full disk has room for it. What cannot be removed stays, and fails nothing. Links are not followed.
    """
    home, own = os.path.split(folder)
    fleet = own.rpartition("-r")[0]
    try:
        with os.scandir(home) as entries:
            others = [item for item in entries if item.name != own and item.is_dir(follow_symlinks=False)]
            former = [item for item in others if re.fullmatch(re.escape(fleet) + r"-r[0-9]+", item.name)]
            former.sort(key=lambda item: item.stat(follow_symlinks=False).st_mtime, reverse=True)
    except OSError:
        return
    for item in former[KEPT - 1:]:
        shutil.rmtree(item.path, ignore_errors=True)
