# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet on a fake Proxmox VE cluster, for the contract of all providers and for what is Proxmox VE's own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _proxmox_api, proxmox
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, Provider
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import Case
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import GIB, ROLES, TOKEN, USER, Served

ADDRESSES = {"addresses": ["10.77.0.10-10.77.0.99"], "gateway": "10.77.0.1"}


class ProxmoxCase(Case):
    """A fleet on a cluster of two nodes with a replica of the template on each. Options are those of `fleet_proxmox`, without the login."""

    port = 8080

    def __init__(self, served: Served, image: str = "shop-1.0", **options: Any) -> None:
        self.served = served
        self.options = served.options(**options)
        self.provider: Provider = connect(self.options)
        self.fleet = f"t{secrets.token_hex(3)}"
        self.blueprint = Blueprint(self.provider.image(image), "0123456789abcdef", "ours", "4be1c2d", self.options, self.port)

    @property
    def pve(self) -> Any:
        return self.served.pve

    def guest(self, instance: Instance) -> Any:
        return self.pve.guest(int(instance.id.partition("/")[0]))

    def crash(self, instance: Instance) -> None:
        guest = self.guest(instance)
        guest.status = "stopped"

    def alter(self, instance: Instance) -> None:
        """Writing to a disk makes it use more of its storage."""
        config = self.guest(instance).config
        storage, _colon, name = str(config.get("scsi0") or config["rootfs"]).partition(",")[0].partition(":")
        known = {"content": "images", "vmid": instance.number, "size": GIB, "ctime": 1}
        volume = self.pve.storages[storage].setdefault("volumes", {}).setdefault(name, known)
        volume["used"] = volume.get("used", 0) + 4096

    def vanish(self, instance: Instance) -> None:
        guest = self.guest(instance)
        (self.pve.vms if guest in self.pve.vms else self.pve.cts).remove(guest)

    @contextmanager
    def stranger(self) -> Iterator[str]:
        made = self.pve.add_vm(100050, f"{self.fleet}-r1-x", node="pve1", status="running", pool="fleet", config={"description": "mine"})
        yield str(made.vmid)

    def lives(self, stranger: str) -> bool:
        guest = self.pve.vm(int(stranger))
        return guest is not None and guest.status == "running" and guest.config["description"] == "mine"

    @contextmanager
    def silent(self) -> Iterator[Provider]:
        self.served.shut()
        try:
            yield self.provider
        finally:
            self.served.open()


MakeCase = Callable[..., ProxmoxCase]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a real cluster seconds, takes this one nothing."""
    monkeypatch.setattr(_proxmox_api, "POLL", (0.01, 0.2))
    monkeypatch.setattr(proxmox, "BETWEEN", 0.05)
    monkeypatch.setattr(proxmox, "APART", 0.2)
    monkeypatch.setattr(proxmox, "ZFS_SETTLES", 0.0)
    monkeypatch.setattr(proxmox, "TELLING", 5.0)


@pytest.fixture
def served(impatient: None) -> Iterator[Served]:
    with Served() as made:
        for number in (1, 2):
            made.pve.add_template(9000 + number, "shop-1.0", f"pve{number}")
        yield made
        assert not made.pve.wrong


@pytest.fixture
def make(served: Served) -> MakeCase:
    return lambda image="shop-1.0", **options: ProxmoxCase(served, image, **options)


def agents(served: Served) -> None:
    """Every VM tells an address of its own, as soon as it runs."""
    original = served.pve._agent_call

    async def call(match: Any, values: Any) -> Any:
        vm = served.pve.find(values["node"], values["vmid"])
        mac = vm.config["net0"].partition("=")[2].partition(",")[0]
        vm.agent = {"interfaces": [
            {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
            {"name": "docker0", "hardware-address": "02:42:00:00:00:00", "ip-addresses": [{"ip-address": "172.17.0.1"}]},
            {"name": "eth0", "hardware-address": mac.lower(), "ip-addresses": [
                {"ip-address": "fe80::1"}, {"ip-address": f"10.88.{vm.vmid // 250 % 250}.{vm.vmid % 250}"}]},
        ]}
        return await original(match, values)

    served.pve._agent_call = call


def granted(served: Served, without: str = "") -> None:
    """The roles of the documentation, and nothing else, for the token and its user, on every template that there is."""
    for path, names in ROLES.items():
        places = {path.format(template=vm.vmid, pool="fleet", storage=storage, bridge="vmbr0")
                  for vm in [*served.pve.vms, *served.pve.cts] if vm.template for storage in ("local-zfs", "ceph")}
        for real in places:
            grant(served, real, *(names - {without}))


def grant(served: Served, path: str, *privileges: str) -> None:
    """To the token and to its user: privilege separation takes both."""
    for who in (USER, f"{USER}!{TOKEN}"):
        served.pve.grant(who, path, *privileges)
