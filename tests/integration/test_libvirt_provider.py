# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt provider on a real libvirt and emulated machines: the contract of all providers, and what is libvirt's own.

The machines here start a boot sector that only sleeps, which is all that most of it needs; those of test_libvirt_release.py boot.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import InvalidError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._libvirt_domain import mac_of
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
    for one in made:
        host.forget(one.fleet)  # what a machine that vanished has left


class TestReserved(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase) -> LibvirtCase:
        return make()


# Nothing is left

def test_what_is_destroyed_leaves_no_disk_no_seed_no_log_and_no_reservation(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    made = case.created(2)
    assert [name.rpartition(".")[2] for name in host.volumes() if name != IMAGE] == ["iso", "log", "qcow2"] * 2
    assert host.reservations() == sorted([(item.name, item.address) for item in made] * 2), "for now, and when the network starts again"
    (host.folder / f"{made[0].name}.{made[0].id[:8]}.log.0").write_text("put aside by virtlogd")
    case.provider.destroy(made, 0)
    assert host.volumes() == [IMAGE] and host.reservations() == []


def test_one_that_vanished_takes_its_disks_and_its_reservation_along(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    old = case.created(1)
    case.vanish(old[0])
    assert len(host.volumes()) == 4 and host.reservations()
    new = case.created(1)
    assert new[0].address != old[0].address, "the place is taken as long as its reservation is there"
    assert {address for _name, address in host.reservations()} == {new[0].address}, "one name, one reservation"
    case.provider.destroy(old, 0)
    assert [item.id for item in case.provider.observe(case.fleet)] == [new[0].id]
    assert {name.split(".")[1] for name in host.volumes() if name != IMAGE} == {new[0].id[:8]}


@pytest.mark.parametrize("step", ["make_volume", "reserve"])
def test_a_creation_that_was_cut_short_is_found_and_finished(
    make: MakeCase, host: LibvirtHost, monkeypatch: pytest.MonkeyPatch, step: str,
) -> None:
    case = make()
    planned = case.planned(1)

    def killed(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(case.provider.host, step, killed)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            case.provider.create(planned, case.blueprint)
    assert [(item.name, item.state) for item in case.provider.observe(case.fleet)] == [(planned[0].name, "stopped")]
    made = case.provider.create(planned, case.blueprint)
    assert made[0].state == "running" and len(host.volumes()) == 4 and len(host.reservations()) == 2
    case.provider.destroy(made, 0)
    assert host.volumes() == [IMAGE] and host.reservations() == []


# Golden volumes

def test_a_base_that_changed_is_refused_by_all_that_stands_on_it(make: MakeCase, host: LibvirtHost) -> None:
    host.put("changing.img", SLEEPER.ljust(1024 ** 2, b"\0"))
    case = make()
    case.blueprint = replace(case.blueprint, image=case.provider.image("changing.img"))
    made = case.created(1)
    case.provider.stop(made, 0)
    host.put("changing.img", SLEEPER.ljust(1024 ** 2, b"x"))
    for act in (
        lambda: case.provider.image("changing.img"), lambda: case.provider.image(case.blueprint.image.digest),
        lambda: case.provider.start(made, case.blueprint), lambda: case.created(1, 2),
    ):
        with pytest.raises(RefusedError, match=r"changing\.img: its content changed"):
            act()
    assert [item.state for item in case.provider.observe(case.fleet)] == ["stopped"]
    case.provider.destroy(made, 0)
    assert case.provider.image("changing.img").digest != case.blueprint.image.digest
    with pytest.raises(RefusedError, match=r"changing\.img: its content changed: it has checksum sha256:"):
        case.provider.create(case.planned(1, 3), case.blueprint)  # a rollback to what no longer exists
    os.unlink(host.folder / "changing.img")


def test_the_base_is_never_written(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    before = (host.folder / IMAGE).read_bytes()
    case.created(1)
    disks = host.xml(case.provider.observe(case.fleet)[0].id).findall("devices/disk")
    assert [disk.find("backingStore/source").get("file") for disk in disks[:1]] == [str(host.folder / IMAGE)]  # type: ignore[union-attr]
    assert disks[1].find("readonly") is not None
    assert (host.folder / IMAGE).read_bytes() == before


def test_an_overlay_is_no_golden_volume(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    item = case.created(1)[0]
    with pytest.raises(RefusedError, match="itself an overlay.*qemu-img convert"):
        case.provider.image(f"{item.name}.{item.id[:8]}.qcow2")


def test_a_base_is_read_once_whoever_asks_and_once_more_when_it_changed(
    make: MakeCase, host: LibvirtHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each asks from an empty home, as a job in an execution environment does."""
    size = 8 * 1024 ** 2
    case = make()

    def passed(number: int) -> int:
        for name in ("HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / f"home{number}"))
        cut = Cut()
        try:
            connect({**case.options, "uri": cut.uri}).image("large.img")
            return cut.passed
        finally:
            cut.close()

    host.put("large.img", SLEEPER.ljust(size, b"x"))
    first, second = passed(1), passed(2)
    assert first > size and second < size // 50
    host.put("large.img", SLEEPER.ljust(size, b"y"))
    third, fourth = passed(3), passed(4)
    assert third > size and fourth < size // 50
    for note in (b"{}", b"not a checksum", b"x" * size):
        host.put("large.img.phoenix-checksum", note)
        assert size < passed(5) < size * 3 // 2, "what is none is neither believed nor read whole"
    for name in ("large.img", "large.img.phoenix-checksum"):
        os.unlink(host.folder / name)


# Addresses

def test_others_in_the_network_keep_their_addresses(make: MakeCase, host: LibvirtHost) -> None:
    case = make(addresses=[f"{host.base}.10-{host.base}.12"])
    network = host.network
    section, add, delete = (
        libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE)
    theirs = f"<host mac='52:54:00:00:00:99' name='printer' ip='{host.base}.10'/>"
    network.update(add, section, -1, theirs, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)
    try:
        made = case.created(2)
        assert [item.address for item in made] == [f"{host.base}.11", f"{host.base}.12"]
        mac = host.xml(made[0].id).find("devices/interface/mac")
        assert mac is not None and mac.get("address") == mac_of(made[0].address)
        case.provider.destroy(made, 0)
        assert host.reservations() == [("printer", f"{host.base}.10")]
    finally:
        network.update(delete, section, -1, theirs, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)


def test_a_reservation_is_there_again_for_one_that_is_started(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    made = case.created(1)
    case.provider.stop(made, 0)
    host.network.update(
        libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1,
        f"<host ip='{made[0].address}'/>", libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE | libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG,
    )
    assert host.reservations() == []
    case.provider.start(made, case.blueprint)
    assert host.reservations() == [(made[0].name, made[0].address)] * 2


def test_a_balancer_elsewhere_cannot_reach_an_isolated_network(make: MakeCase) -> None:
    with pytest.raises(RefusedError, match="cannot reach an address in network phoenix-test-1, which is isolated.*routed"):
        make().provider.pools("web", 8080, ["192.0.2.200"])


def test_addresses_of_another_network_are_a_mistake(make: MakeCase) -> None:
    with pytest.raises(InvalidError, match=r"fleet_libvirt\.addresses: 192\.0\.2\.10 is not in network phoenix-test-1"):
        make(addresses=["192.0.2.10"]).provider.pools("web", 8080, ["local"])


# What is missing

@pytest.mark.parametrize(("options", "words"), [
    ({"pool": "nowhere"}, "Storage pool not found.*fleet_libvirt.pool"),
    ({"network": "nowhere"}, "Network not found.*fleet_libvirt.network"),
])
def test_what_the_host_does_not_have_is_told_with_the_remedy(make: MakeCase, options: Any, words: str) -> None:
    case = make()
    provider = connect({**case.options, **options})
    with pytest.raises(RefusedError, match=words):
        provider.pools(case.fleet, 8080, ["local"]) if "network" in options else provider.image(IMAGE)


def test_a_network_that_does_not_run_is_told_with_the_command(make: MakeCase, host: LibvirtHost) -> None:
    case = make()
    host.network.destroy()
    try:
        with pytest.raises(RefusedError, match="is not active. Run there: virsh net-start phoenix-test-1"):
            case.provider.pools(case.fleet, 8080, ["local"])
    finally:
        host.network.create()


@pytest.mark.parametrize("kind", ["pool", "network"])
def test_what_is_not_there_after_the_hosts_restart_is_told_with_the_command_that_keeps_it(
    make: MakeCase, host: LibvirtHost, kind: str,
) -> None:
    case, item = make(), getattr(host, kind)
    short = "net" if kind == "network" else kind
    item.setAutostart(0)
    with pytest.raises(RefusedError, match=f"{kind} {host.name} does not start with the host.*virsh {short}-autostart {host.name}"):
        case.created(1)
    xml = item.XMLDesc()
    if kind == "pool":
        item.destroy()
    item.undefine()  # a network still runs
    if kind == "pool":
        host.connection.storagePoolCreateXML(xml)
    with pytest.raises(RefusedError, match=f"{kind} {host.name} is gone when the host restarts.*virsh {short}-define") as refused:
        case.created(1)
    assert case.provider.observe(case.fleet) == ()
    commands = str(refused.value).partition("Run there: ")[2]
    subprocess.run(commands.replace("virsh", "virsh -c qemu:///system"), shell=True, check=True, capture_output=True, cwd=host.folder)
    os.unlink(host.folder / f"{host.name}.xml")
    assert item.isPersistent() and item.autostart()
    case.created(1)


def test_a_host_keeps_memory_for_itself(make: MakeCase, host: LibvirtHost) -> None:
    total = host.connection.getInfo()[1]
    case = make(memory=f"{total - 600}m")
    with pytest.raises(RefusedError, match=f"and {max(512, total // 10)} MiB are the host's own.*Lower fleet_libvirt.memory"):
        case.provider.preflight(case.planned(1), case.blueprint)


def test_both_generations_have_to_fit_into_the_hosts_memory(make: MakeCase, host: LibvirtHost) -> None:
    half = host.connection.getInfo()[1] * 6 // 10
    case = make(memory=f"{half}m")
    with pytest.raises(RefusedError, match=f"2 instances of {half} MiB need .*Lower fleet_libvirt.memory"):
        case.created(2)
    assert case.provider.observe(case.fleet) == () and host.volumes() == [IMAGE]


# Connections

def test_a_host_behind_ssh_is_like_this_one(make: MakeCase, host: LibvirtHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"  # the far side of a connection, without its network
    ssh.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    case = make(uri="qemu+ssh://ops@192.0.2.200:2222/system")
    case.balancers = ("192.0.2.200",)
    made = case.created(2)
    assert [(item.host, item.state) for item in made] == [("192.0.2.200", "running")] * 2
    case.provider.stop(made, 0)
    assert len(case.provider.seals(made)) == 2
    case.provider.destroy(made, 0)
    assert host.volumes() == [IMAGE]
    asked = (tmp_path / "asked").read_text()
    assert "-p 2222 -l ops" in asked and "BatchMode=yes" in asked, "nobody can be asked"
    ssh.write_text("#!/bin/sh\necho Host key verification failed >&2\nexit 255\n")
    with pytest.raises(UnreachableError, match="Host key verification failed.*Try: ssh ops@192.0.2.200:2222 virsh"):
        connect(case.options)


def test_no_libvirt_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file or directory.*systemctl start libvirtd"):
        connect({"uri": f"qemu+unix:///system?socket={tmp_path}/none"})
