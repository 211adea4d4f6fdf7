# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt provider on a real libvirt and emulated machines: the contract of all providers, and what is libvirt's own.

The machines here start a boot sector that only sleeps, which is all that most of it needs; those of test_libvirt_release.py boot.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, Provider
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.libvirt import connect
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import Case, ProviderContract
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import wait_until
from ansible_collections.phoenix.fleet.tests.integration.libvirt_host import SLEEPER, Cut, LibvirtHost

IMAGE = "sleeper.img"


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    with LibvirtHost(1) as made:
        made.put(IMAGE, SLEEPER.ljust(1024 ** 2, b"\0"))
        yield made


class LibvirtCase(Case):
    """A fleet of machines that sleep. Options are those of `fleet_libvirt`, without pool and network."""

    port = 8080
    timeout = 0  # nobody is awake in there to be polite to

    def __init__(self, host: LibvirtHost, **options: Any) -> None:
        self.host = host
        self.options = {"pool": host.name, "network": host.name, "memory": "32m", "domain_type": "qemu", **options}
        self.provider: Provider = connect(self.options)
        self.fleet = f"t{secrets.token_hex(3)}"
        self.blueprint = Blueprint(self.provider.image(IMAGE), "0123456789abcdef", "ours", "4be1c2d", self.options, self.port)

    def domain(self, instance: Instance) -> libvirt.virDomain:
        return self.host.connection.lookupByUUIDString(instance.id)

    def crash(self, instance: Instance) -> None:
        self.host.kill(instance.name)
        wait_until(lambda: not self.domain(instance).isActive(), f"{instance.name} to be gone")

    def alter(self, instance: Instance) -> None:
        path = self.host.xml(instance.id).find("devices/disk/source").get("file")  # type: ignore[union-attr]
        subprocess.run(["qemu-io", "-c", "write 65536 512", str(path)], check=True, capture_output=True)

    def vanish(self, instance: Instance) -> None:
        domain = self.domain(instance)
        if domain.isActive():
            domain.destroy()
        domain.undefine()

    @contextmanager
    def stranger(self) -> Iterator[str]:
        name = f"{self.fleet}-r1-x"
        domain = self.host.connection.createXML(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><os><type machine='q35'>hvm</type></os>"
            f"<devices><interface type='network'><source network='{self.host.name}'/></interface></devices></domain>"
        )
        yield name
        domain.destroy()

    def lives(self, stranger: str) -> bool:
        return bool(self.host.connection.lookupByName(stranger).isActive())

    @contextmanager
    def silent(self) -> Iterator[Provider]:
        cut = Cut()
        provider = connect({**self.options, "uri": cut.uri})
        cut.close()
        yield provider


MakeCase = Callable[..., LibvirtCase]


@pytest.fixture
def make(host: LibvirtHost) -> Iterator[MakeCase]:
    """A fleet with these options."""
    made: list[LibvirtCase] = []

    def case(**options: Any) -> LibvirtCase:
        made.append(LibvirtCase(host, **options))
        return made[-1]

    yield case
    provider = connect({"pool": host.name, "network": host.name})
    for one in made:
        for fleet in (one.fleet, one.fleet + "x"):
            provider.destroy(provider.observe(fleet), 0)
    for domain in host.domains():
        domain.destroy()


class TestReserved(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase) -> LibvirtCase:
        return make()
