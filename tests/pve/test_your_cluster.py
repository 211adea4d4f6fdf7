# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Proxmox provider on a real cluster: `make test-pve PVE_HOST=...` (docs/proxmox.md). Takes away what it has made, whatever happens.

PVE_HOST, PVE_USER, PVE_TOKEN, PVE_SECRET and PVE_TEMPLATE are needed; PVE_CA is the authority's file, PVE_OPTIONS further options as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import ProxmoxProvider, connect
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._sets import placed

NEEDED = {"PVE_HOST": "api_host", "PVE_USER": "api_user", "PVE_TOKEN": "api_token_id", "PVE_SECRET": "api_token_secret"}


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    missing = [name for name in (*NEEDED, "PVE_TEMPLATE") if not os.environ.get(name)]
    assert not missing, f"set {', '.join(missing)} (docs/proxmox.md)"
    made = {option: os.environ[name] for name, option in NEEDED.items()}
    if os.environ.get("PVE_CA"):
        made["ca_path"] = os.environ["PVE_CA"]
    return {**made, **json.loads(os.environ.get("PVE_OPTIONS") or "{}")}


@pytest.fixture
def fleet(options: dict[str, Any]) -> Iterator[str]:
    name = f"phoenix-test-{secrets.token_hex(3)}"
    yield name
    provider = connect(options)
    provider.destroy(provider.observe(name), 30)
    assert provider.observe(name) == ()


def test_two_instances_come_rest_return_and_go(options: dict[str, Any], fleet: str) -> None:
    provider: ProxmoxProvider = connect(options)
    image = provider.image(os.environ["PVE_TEMPLATE"])
    form = Blueprint(image, "test", "phoenix-test", "", options, 22)
    plan = placed(FACE, [1, 2], (), provider.pools(fleet, 22, ["local"]), {"fleet": fleet, "release": 1}, form)
    provider.preflight(plan, form)
    began = time.monotonic()
    made = provider.create(plan, form)
    print(f"\n2 instances of {image.digest} run after {time.monotonic() - began:.1f} s, at {', '.join(item.address for item in made)}")
    assert [item.state for item in made] == ["running", "running"] and all(item.address for item in made)
    assert [item.id for item in provider.create(plan, form)] == [item.id for item in made], "made once"
    provider.stop(made, 60)
    assert {item.state for item in provider.observe(fleet)} == {"stopped"}
    sealed = provider.seals(made)
    assert set(sealed) == {item.name for item in made} and provider.seals(made) == sealed
    again = provider.start(made, form)
    assert [item.id for item in again] == [item.id for item in made]
    assert not set(provider.seals(made))
    provider.destroy(made, 60)
    assert provider.observe(fleet) == ()
