# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The arguments of the modules that run on the controller only: an action plugin takes them, and a module of its name documents them."""

from __future__ import annotations

from typing import Any, Dict

VERBS = ("release", "rollback", "scale", "heal", "retire", "status", "hosts")

_DEFINITION = {"type": "dict", "required": True}
_DICT = {"type": "dict", "default": {}}
_DICTS = {"type": "list", "elements": "dict", "default": []}

FLEET_DEFINITION: Dict[str, Any] = {"verb": {"type": "str", "default": "status", "choices": list(VERBS)}}
FLEET_STATUS: Dict[str, Any] = {
    "definition": _DEFINITION,
    "instances": {"type": "dict", "required": True},
    "balancers": {"type": "list", "elements": "dict", "required": True},
    "file": {"type": "path", "default": ""},
}
RELEASE_LEDGER: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["held", "recorded", "free"], "default": "held"},
    "verb": {"type": "str", "choices": list(VERBS)},
    "definition": _DICT,
    "lease": _DICT,
    "instances": _DICTS,
    "record": {"type": "str", "default": ""},
    "reason": {"type": "str", "default": ""},
    "release": {"type": "int", "default": 0},
}
RELEASE_LEDGER_INFO: Dict[str, Any] = {"definition": _DEFINITION}
RELEASE_PLAN: Dict[str, Any] = {
    "definition": _DEFINITION,
    "goal": {"type": "dict", "required": True},
    "image": _DICT,
    "instances": _DICTS,
    "pools": _DICTS,
    "balancers": _DICTS,
    "lease": _DICT,
}
RELEASE_RESULT: Dict[str, Any] = {
    "definition": _DEFINITION,
    "lease": _DICT,
    "plan": _DICT,
    "before": _DICTS,
    "after": _DICTS,
    "failure": _DICT,
    "undoing": _DICT,
    "folder": {"type": "str", "default": ""},
}


def elsewhere(name: str) -> str:
    """What a module says that is run by itself, such as with `ansible.legacy` or through a connection of another kind."""
    return f"{name} runs on the controller, as an action plugin: call it as phoenix.fleet.{name} in a task."
