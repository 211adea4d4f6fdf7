# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated world keeps the contract of the real providers, or what is proved in it proves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import Case, ProviderContract
from ansible_collections.phoenix.fleet.tests.simulation.world import Box, SimulatedProvider, Site


class SimulatedCase(Case):
    fleet = "web"
    port = 8080
    blueprint = Blueprint(Image("shop:1", "sha256:shop:1"), hash="h", ledger="ours", revision="abc")

    def __init__(self, kind: str, ids: tuple[int, int] = (0, 0)) -> None:
        self.site = Site()
        self.provider = SimulatedProvider(self.site, ("one", "two"), kind, ids=ids)

    def crash(self, instance: Instance) -> None:
        self.site.kill(instance.name)

    def alter(self, instance: Instance) -> None:
        self.site.boxes[instance.host, instance.name].serial += 1

    def vanish(self, instance: Instance) -> None:
        del self.site.boxes[instance.host, instance.name]

    @contextmanager
    def stranger(self) -> Iterator[str]:
        self.site.boxes["one", "db"] = Box(Instance("db", "one", "", 0, 0, "db:1", "10.0.1.1", 5432, id="theirs", state="running"))
        yield "db"

    def lives(self, stranger: str) -> bool:
        return self.site.boxes["one", stranger].instance.state == "running"

    @contextmanager
    def silent(self) -> Iterator[SimulatedProvider]:
        self.provider.silent = True
        yield self.provider
        self.provider.silent = False


class TestSimulatedProvider(ProviderContract):
    @pytest.fixture(params=["network", "published", "dynamic", "cluster"])
    def case(self, request: pytest.FixtureRequest) -> SimulatedCase:
        return SimulatedCase("network", (100, 999)) if request.param == "cluster" else SimulatedCase(request.param)
