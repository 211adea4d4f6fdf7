# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What became of each step on a host or cluster of a reader's own, as text that can be pasted into an issue."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class SkipStep(Exception):
    """Why a step was left out."""


class Report:
    """Steps in their order. secrets are never printed: each is replaced by the word that stands for it."""

    def __init__(self, title: str, secrets: dict[str, str]) -> None:
        self.title = title
        self.secrets = {secret: word for secret, word in secrets.items() if secret}
        self.facts: dict[str, str] = {}
        self.steps: list[tuple[str, str, float, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """One step, with a list for what is to be told of it. What it raises is told, and raised again, but for a SkipStep."""
        began = time.monotonic()
        words: list[str] = []
        self._say(f"... {name}")
        outcome = "ok"
        try:
            yield words
        except SkipStep as reason:
            outcome, words = "skipped", [str(reason)]
        except BaseException as error:
            outcome, words = "FAILED", [*words, f"{type(error).__name__}: {error}"]
            raise
        finally:
            self.steps.append((name, outcome, time.monotonic() - began, "; ".join(words)))

    def text(self) -> str:
        lines = [self.title, "", *(f"{key:<18}{value}" for key, value in self.facts.items()), ""]
        lines += [f"{outcome:<8}{seconds:>7.1f} s  {name}{': ' if words else ''}{words}" for name, outcome, seconds, words in self.steps]
        return self._masked("\n".join(lines))

    def _say(self, text: str) -> None:
        print(self._masked(text), file=sys.stderr, flush=True)

    def _masked(self, text: str) -> str:
        for secret, word in self.secrets.items():
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", word, text)
        return text
