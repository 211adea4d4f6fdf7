# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may be secret is masked by its place, found in messages by its value, and given to Ansible as `no_log`."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._docker_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import InvalidError
from ansible_collections.phoenix.fleet.plugins.module_utils._instances import OPTIONS
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import MASK, for_ansible, hidden, masked, replaced, shielded, veiled

SPEC = {"options": {
    "name": {"type": "str"}, "key": {"type": "str", "no_log": True}, "environment": {"type": "dict", "private": True},
    "words": {"type": "list", "elements": "str", "private": True},
    "deep": {"type": "list", "elements": "dict", "options": {"token": {"type": "str", "no_log": True}, "user": {"type": "str"}}},
}}
VALUE = {
    "name": "web", "key": "swordfish", "environment": {"URL": "postgres://u:hunter2@db/x", "DEBUG": "1", "SITE": "web"},
    "words": ["serve", "--token=open-sesame"], "deep": [{"token": "correct-horse", "user": "ann"}, {"user": None}],
}


def test_what_may_be_secret_is_masked_with_all_that_is_within_it() -> None:
    assert masked(VALUE, SPEC) == {
        "name": "web", "key": MASK, "environment": {"URL": MASK, "DEBUG": MASK, "SITE": MASK}, "words": [MASK, MASK],
        "deep": [{"token": MASK, "user": "ann"}, {}],
    }
    only = replaced(VALUE, SPEC, lambda item: MASK, ("no_log",))
    assert only["environment"] == VALUE["environment"] and only["key"] == only["deep"][0]["token"] == MASK


@pytest.mark.parametrize("told, veiled_", [
    ("bad option URL=postgres://u:hunter2@db/x", "bad option URL=***"), ("password hunter2 was refused", "password *** was refused"),
    ("the key is swordfish, 1 of web", "the key is ***, 1 of web"), ("got open-sesame", "got ***"), ("cut: correct-ho…", "cut: ***…"),
    ("serve", "serve"), ("correct", "correct"),
])
def test_a_message_holds_neither_a_secret_nor_the_password_within_one(told: str, veiled_: str) -> None:
    assert veiled(told, hidden(VALUE, SPEC)) == veiled_


def test_what_anybody_may_see_elsewhere_is_no_secret() -> None:
    value = {"name": "shop.example.org", "environment": {"SITE": "shop.example.org", "LINES": "first line\nshort\nlast line"}}
    assert hidden(value, SPEC) == ("first line", "last line")


def test_ansible_takes_for_no_log_what_is_private() -> None:
    made = for_ansible(SPEC["options"])
    assert [name for name, rule in made.items() if rule.get("no_log")] == ["key", "environment", "words"]
    assert made["deep"]["options"]["token"]["no_log"] and "private" not in json.dumps(made)


def test_a_module_shows_masks_and_hides_no_number_that_an_environment_has() -> None:
    module: Any = SimpleNamespace(params=VALUE, no_log_values={"swordfish", "1", "correct-horse", "web"})
    params, veil = shielded(module, SPEC["options"])
    assert params == VALUE and module.params == masked(VALUE, SPEC) and module.no_log_values == {"swordfish", "correct-horse"}
    assert veil("hunter2 and 1") == "*** and 1"


def test_the_options_that_may_hold_secrets() -> None:
    """A new option belongs here, or somebody has thought of it."""
    specs = {provider: for_ansible(options) for provider, options in OPTIONS.items()}
    marked = {provider: [name for name, rule in options.items() if rule.get("no_log")] for provider, options in specs.items()}
    assert marked == {
        "docker": ["environment", "secrets", "log_options", "health", "command"], "proxmox": ["api_token_secret", "api_password"],
        "libvirt": ["user_data"],
    }


def test_a_placeholder_is_no_value() -> None:
    params = {**dict.fromkeys(FACE.arguments), "fleet": "web", "release": 1, "size": 1, "port": 80, "image": "x:1", "stop_timeout": 1}
    with pytest.raises(InvalidError, match="environment: a placeholder of a masked definition; give the value"):
        FACE.carry_out({**params, "state": "present", "environment": {"A": MASK}}, True, print)
