# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of instances that people make by hand bear the marker of the original. They are told, and never touched."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils import (
    _docker_instances,
    _instances,
    _libvirt_instances,
    _proxmox_instances,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Instance,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_api import Api
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_options import settle
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, unconditional
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import Case, taken
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, build
from ansible_collections.phoenix.fleet.tests.integration.libvirt_host import SLEEPER, LibvirtHost
from ansible_collections.phoenix.fleet.tests.integration.pve_case import ADDRESSES, MakeCase, ProxmoxCase
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import Served, marker
from ansible_collections.phoenix.fleet.tests.integration.test_docker_provider import IMAGE, DockerCase
from ansible_collections.phoenix.fleet.tests.integration.test_libvirt_provider import LibvirtCase
from ansible_collections.phoenix.fleet.tests.integration.test_proxmox_release import Place, place

__all__ = ["place"]

PROVIDERS = ("qemu", "lxc", "libvirt", "docker")


class Copier(ABC):
    """A fleet, and how somebody copies one of its instances by hand."""

    module: Any
    case: Any

    @abstractmethod
    def copied(self, instance: Instance) -> str:
        """Make a copy that runs; returns its own name or number."""

    @abstractmethod
    def lives(self, copy: str) -> bool:
        """Whether it runs."""

    @abstractmethod
    def forget(self, instances: tuple[Instance, ...]) -> None:
        """Make the instances as an earlier version made them: their markers lack what tells them from copies."""

    def act(self, **params: Any) -> dict[str, Any]:
        """The verbs of `instances`, as a play of one's own uses them."""
        given = {key: spec.get("default") for key, spec in _instances.ARGUMENTS.items()}
        given.update(fleet=self.case.fleet, provider=self.module.FACE.name, options=self.case.options, port=self.case.port, **params)
        return _instances.carry_out(given, False, print, permit=unconditional)

    def absent(self) -> dict[str, Any]:
        """PROVIDER_instances with state absent."""
        face = self.module.FACE
        given = {key: spec.get("default") for key, spec in face.arguments.items()}
        given.update(self.case.options, fleet=self.case.fleet, release=1, state="absent", stop_timeout=0)
        return dict(face.carry_out(given, False, print))


def clone_by_hand(served: Served, vmid: int, newid: int) -> None:
    """As an administrator's `qm clone` and `pct clone` do, into the fleet's pool: what is not named anew is copied, description and tags
    too (qemu-server, src/PVE/API2/Qemu.pm, "copy everything else"; pve-container, src/PVE/API2/LXC.pm).
    """
    guest = served.pve.guest(vmid)
    login = {key: value for key, value in served.options().items() if not key.startswith("api_token")}
    api = Api(settle({**login, "api_user": "root@pam", "api_password": "secret"}))
    path = f"nodes/{guest.node}/{'lxc' if 'rootfs' in guest.config else 'qemu'}"
    state, guest.status = guest.status, "stopped"  # a full clone of a running container needs a snapshot
    api.tasks.wait(api.tell("cloning", "post", f"{path}/{vmid}/clone", newid=newid, full=1, pool="fleet"), "cloning", 10)
    guest.status = state
    api.tasks.wait(api.tell("starting", "post", f"{path}/{newid}/status/start"), "starting", 10)
    copy = served.pve.guest(newid)
    assert copy.config["description"] == guest.config["description"] and copy.config["tags"] == guest.config["tags"]


class ProxmoxCopier(Copier):
    module = _proxmox_instances

    def __init__(self, case: ProxmoxCase) -> None:
        self.case = case

    def copied(self, instance: Instance, vmid: int = 205) -> str:
        clone_by_hand(self.case.served, instance.number, vmid)
        self.case.provider.cluster.forget()
        return str(vmid)

    def lives(self, copy: str) -> bool:
        guest = self.case.pve.guest(int(copy))
        return guest is not None and guest.status == "running"

    def forget(self, instances: tuple[Instance, ...]) -> None:
        for item in instances:
            grow_old(self.case.guest(item))


def grow_old(guest: Any) -> None:
    known = {key: text for key, text in marker(guest).items() if key not in ("phoenix.fleet.vmid", "phoenix.fleet.uuid")}
    guest.config["description"] = json.dumps(known)


class LibvirtCopier(Copier):
    module = _libvirt_instances

    def __init__(self, host: LibvirtHost, case: LibvirtCase) -> None:
        self.host, self.case = host, case

    def copied(self, instance: Instance) -> str:
        return self.defined(instance, f"{instance.name}-clone", self.host.put(f"{instance.name}.{instance.id[:8]}-clone.qcow2", SLEEPER))

    def defined(self, instance: Instance, name: str, disk: str = "") -> str:
        """As virt-clone does: the definition with its metadata, another name, UUID and MAC, and a copy of the disk. Without one, it is
        `virsh define` of a definition that somebody edited, whose disks are still the original's; it does not run then.
        """
        root = ElementTree.fromstring(self.case.domain(instance).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        devices = root.find("devices")
        assert devices is not None
        for part in (*devices.findall("serial"), *devices.findall("console"), *devices.findall("disk")[1:]):
            devices.remove(part)
        for path in ("uuid", "devices/interface/mac"):
            parent, child = root.find(path.rpartition("/")[0] or "."), root.find(path)
            assert parent is not None and child is not None
            parent.remove(child)
        root.find("name").text = name  # type: ignore[union-attr]
        if disk:
            root.find("devices/disk/source").set("file", disk)  # type: ignore[union-attr]
            root.find("devices/disk/driver").set("type", "raw")  # type: ignore[union-attr]
        made = self.host.connection.defineXML(ElementTree.tostring(root, encoding="unicode"))
        if disk:
            made.create()
        assert "phoenix.fleet.name" in made.XMLDesc()
        return str(made.UUIDString())

    def lives(self, copy: str) -> bool:
        return bool(self.host.connection.lookupByUUIDString(copy).isActive())

    def forget(self, instances: tuple[Instance, ...]) -> None:
        for item in instances:
            known = {key: text for key, text in item.marker.items() if key != "phoenix.fleet.uuid"}
            words = json.dumps(known).replace("&", "&amp;").replace("<", "&lt;")
            flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_AFFECT_LIVE
            uri = "urn:phoenix.fleet:instance:1"
            text = f"<instance>{words}</instance>"
            self.case.domain(item).setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "phoenix", uri, flags)


class DockerCopier(Copier):
    module = _docker_instances

    def __init__(self, case: DockerCase) -> None:
        self.case = case

    def copied(self, instance: Instance, name: str = "") -> str:
        """docker commit, docker run: the labels come along with the image."""
        with self.case.client(instance.host) as client:
            image = client.commit(instance.id, repository=f"copy-of-{instance.name}")["Id"]
            made = client.create_container_from_config({"Image": image}, name=name or None)["Id"]
            client.start(made)
            assert client.inspect_container(made)["Config"]["Labels"]["phoenix.fleet.name"] == instance.fleet
        return str(made)

    def lives(self, copy: str) -> bool:
        with self.case.client() as client:
            return bool(client.inspect_container(copy)["State"]["Running"])

    def forget(self, instances: tuple[Instance, ...]) -> None:
        """They have always had their names, and their images."""


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    with LibvirtHost(7) as made:
        made.put("sleeper.img", SLEEPER.ljust(1024 ** 2, b"\0"))
        yield made


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine("copies", 207) as made, made.client() as client:
        build(client, IMAGE)
        yield made


@pytest.fixture
def libvirt_copier(host: LibvirtHost) -> Iterator[LibvirtCopier]:
    case = LibvirtCase(host)
    yield LibvirtCopier(host, case)
    for domain in host.domains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()
    host.forget(case.fleet)


@pytest.fixture
def docker_copier(engine: DockerEngine) -> Iterator[DockerCopier]:
    yield DockerCopier(DockerCase(engine))
    with engine.client() as client:
        for item in client.containers(all=True):
            client.remove_container(item["Id"], force=True)


@pytest.fixture
def qemu_copier(make: MakeCase) -> ProxmoxCopier:
    return ProxmoxCopier(make(**ADDRESSES))


@pytest.fixture
def lxc_copier(make: MakeCase, served: Any) -> ProxmoxCopier:
    for number in (1, 2):
        served.pve.add_container(9100 + number, "box-1.0", f"pve{number}")
    return ProxmoxCopier(make("box-1.0", kind="lxc", **ADDRESSES))


@pytest.fixture(params=PROVIDERS)
def copier(request: pytest.FixtureRequest) -> Copier:
    made: Copier = request.getfixturevalue(f"{request.param}_copier")
    return made


def observed(copier: Copier) -> list[str]:
    return [item.id for item in copier.case.provider.observe(copier.case.fleet)]


# What every provider does

def test_a_copy_is_told_by_its_name_and_its_originals_and_its_address_is_taken(copier: Copier) -> None:
    made = copier.case.created(2)
    copier.copied(made[0])
    assert observed(copier) == [item.id for item in made]
    seen = copier.act(verb="observe")
    assert [(item["original"], item["host"]) for item in seen["copies"]] == [(made[0].name, made[0].host)]
    assert seen["copies"][0]["name"] and seen["copies"][0]["why"] and made[0].name != seen["copies"][0]["name"]
    copier.case.provider.destroy(made, 0)
    assert observed(copier) == [] and made[0].address in {key for _host, key in taken(copier.case)}


def test_a_copy_outlives_all_that_is_decommissioned(copier: Copier) -> None:
    made = copier.case.created(2)
    copy = copier.copied(made[0])
    seen = copier.act(verb="observe")["instances"]
    copier.act(verb="decommission", standby=seen, stop_timeout=0)
    assert copier.lives(copy)
    copier.act(verb="decommission", instances=copier.act(verb="observe")["instances"], stop_timeout=0)
    assert copier.lives(copy) and observed(copier) == []


def test_a_copy_outlives_the_module_that_is_told_absent(copier: Copier) -> None:
    case: Case = copier.case
    made = case.provider.create(case.planned(1), case.blueprint_of(""))
    copy = copier.copied(made[0])
    assert copier.absent()["changed"] and copier.lives(copy) and observed(copier) == []
    assert not copier.absent()["changed"] and copier.lives(copy)


def test_instances_of_an_earlier_version_are_still_ours(copier: Copier) -> None:
    made = copier.case.created(2)
    copier.forget(made)
    assert observed(copier) == [item.id for item in made] and copier.case.provider.copies(copier.case.fleet) == ()
    copier.case.provider.stop(made, 0)
    assert [item.id for item in copier.case.provider.start(made, copier.case.blueprint)] == [item.id for item in made]
    copier.case.provider.destroy(copier.case.provider.observe(copier.case.fleet), 0)
    assert observed(copier) == []


# Proxmox VE

def test_a_marker_names_the_vmid_from_the_first_call_and_the_uuid_once_there_is_one(qemu_copier: ProxmoxCopier) -> None:
    case = qemu_copier.case
    made = case.created(1)[0]
    clone = next(body for method, path, body in case.pve.requests if path.endswith("/clone"))
    assert f"vmid%22%3A+%22{made.number}".encode() in clone and b"fleet.uuid" not in clone
    assert (made.marker["phoenix.fleet.vmid"], made.marker["phoenix.fleet.uuid"]) == (str(made.number), made.id.split("/")[1])


def test_a_container_has_no_uuid_and_is_known_by_its_vmid(lxc_copier: ProxmoxCopier) -> None:
    made = lxc_copier.case.created(1)[0]
    assert "phoenix.fleet.uuid" not in made.marker and made.marker["phoenix.fleet.vmid"] == str(made.number)


@pytest.mark.parametrize(("elsewhere", "unique", "whose"), [
    (False, False, ""), (True, False, "its marker is that of 100000"), (True, True, "its marker is that of 100000"),
    (False, True, "its marker is that of UUID"),
])
def test_a_backup_is_ours_where_it_is_restored_to_its_own_vmid(
    qemu_copier: ProxmoxCopier, served: Served, elsewhere: bool, unique: bool, whose: str,
) -> None:
    case, vmid = qemu_copier.case, 205 if elsewhere else 100000
    made = case.created(1)[0]
    served.pve.restore(made.number, vmid, unique)
    assert observed(qemu_copier) == ([made.id] if elsewhere or not whose else [])
    assert [item.why.startswith(whose) for item in case.provider.copies(case.fleet)] == ([True] if whose else [])
    case.provider.destroy(case.provider.observe(case.fleet), 0)
    assert [vm.vmid for vm in served.pve.vms if not vm.template] == ([vmid] if whose else [])


def test_a_copy_of_an_earlier_version_is_not_taken_for_an_instance_that_is_to_be_made(qemu_copier: ProxmoxCopier, served: Served) -> None:
    case = qemu_copier.case
    planned = case.planned(1)
    made = case.provider.create(planned, case.blueprint)
    grow_old(case.guest(made[0]))
    copy = qemu_copier.copied(made[0])
    assert [item.id for item in case.provider.create(planned, case.blueprint)] == [made[0].id], "taken as it is, and not the copy"
    case.vanish(made[0])
    again = case.provider.create(planned, case.blueprint)
    assert again[0].number == made[0].number and again[0].id != made[0].id and qemu_copier.lives(copy)


def test_a_module_without_a_ledger_refuses_two_of_an_earlier_version(qemu_copier: ProxmoxCopier) -> None:
    case = qemu_copier.case
    made = case.provider.create(case.planned(1), case.blueprint_of(""))
    qemu_copier.forget(made)
    copy = qemu_copier.copied(made[0])
    with pytest.raises(RefusedError, match="2 bear its marker, of an earlier version, and nobody knows which is the copy"):
        qemu_copier.absent()
    assert qemu_copier.lives(copy) and qemu_copier.lives(str(made[0].number))


def test_clones_by_hand_outlive_releases_heals_and_the_end_of_their_fleet(place: Place) -> None:
    """Also one with the marker of an earlier version, whose original is lost: of those the ledger knows the VMIDs."""
    site, served = place.site, place.served
    site.release()
    new, old = sorted(vm.vmid for vm in served.pve.vms if not vm.template)
    grow_old(served.pve.guest(old))
    copies = {205: new, 206: old}
    for copy, original in copies.items():
        clone_by_hand(served, original, copy)
    assert site.release().changed == 0, "nothing is amiss"
    told = site.play("status")
    for slot, copy in enumerate(copies, 1):
        assert re.search(rf"{copy}.* bears the marker of \S+-r1-{slot} and is another one .*unmanaged", told.output), told.output
    served.pve.vms.remove(served.pve.guest(old))
    for verb, extra in (("heal", {}), ("release", {"release_image": "shop-2"}), ("release", {"release_image": "shop-1"}), ("rollback", {})):
        run = site.play(verb, **extra)
        assert run.code == 0, run.output
        assert {served.pve.guest(copy).status for copy in copies} == {"running"}, verb
    gone = site.play("retire", retire_confirm=place.name)
    assert gone.code == 0, gone.output
    assert [vm.vmid for vm in served.pve.vms if not vm.template] == [*copies]
    assert {served.pve.guest(copy).status for copy in copies} == {"running"}


# libvirt

def test_a_disk_that_a_copy_shares_stays_with_the_copy(libvirt_copier: LibvirtCopier, host: LibvirtHost) -> None:
    case = libvirt_copier.case
    made = case.created(1)[0]
    libvirt_copier.defined(made, "somebody-elses")
    case.provider.destroy([made], 0)
    assert [name for name in host.volumes() if name.startswith(made.name)] == [f"{made.name}.{made.id[:8]}.qcow2"]
    assert [domain.name() for domain in host.domains()] == ["somebody-elses"]


@pytest.mark.parametrize("old", [False, True])
def test_an_edited_definition_of_the_same_name_is_no_instance(libvirt_copier: LibvirtCopier, old: bool) -> None:
    """The original is taken away with `virsh undefine`, and its definition without a UUID is defined."""
    case = libvirt_copier.case
    made = case.created(1)
    if old:
        libvirt_copier.forget(made)
    instance = made[0]
    xml = case.domain(instance).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    case.vanish(instance)
    again = libvirt_copier.host.connection.defineXML(re.sub("<uuid>.*</uuid>", "", xml))
    assert observed(libvirt_copier) == [] and [item.original for item in case.provider.copies(case.fleet)] == [instance.name]
    with pytest.raises(RefusedError, match=instance.name):
        case.provider.create(case.planned(1), case.blueprint)
    assert libvirt_copier.host.connection.lookupByName(instance.name).UUIDString() == again.UUIDString()


def test_a_machine_that_is_defined_again_as_it_was_is_the_instance(libvirt_copier: LibvirtCopier) -> None:
    case = libvirt_copier.case
    made = case.created(1)
    xml = case.domain(made[0]).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    case.vanish(made[0])
    assert observed(libvirt_copier) == []
    libvirt_copier.host.connection.defineXML(xml)
    assert observed(libvirt_copier) == [made[0].id] and case.provider.copies(case.fleet) == ()
    case.provider.destroy(case.provider.observe(case.fleet), 0)
    assert libvirt_copier.host.volumes() == ["sleeper.img"]


# Docker

def test_a_container_of_a_committed_image_is_no_instance_under_its_originals_name_either(docker_copier: DockerCopier) -> None:
    case = docker_copier.case
    made = case.created(1)
    with case.client() as client:
        image = client.commit(made[0].id, repository="mine")["Id"]
        client.remove_container(made[0].id, force=True)
        copy = client.create_container_from_config({"Image": image}, name=made[0].name)["Id"]
        client.start(copy)
    told = case.provider.copies(case.fleet)
    assert observed(docker_copier) == [] and [(item.original, image in item.why) for item in told] == [(made[0].name, True)]
    with pytest.raises(RefusedError, match=made[0].name):
        case.provider.create(made, case.blueprint)
    docker_copier.act(verb="decommission", instances=[{**vars(made[0]), "id": copy}], stop_timeout=0)
    assert docker_copier.lives(copy)


def test_a_container_with_the_labels_and_another_name_is_no_instance(docker_copier: DockerCopier) -> None:
    """As "duplicate" in a user interface makes one, from the same image."""
    case = docker_copier.case
    made = case.created(1)
    with case.client() as client:
        config = {"Image": IMAGE, "Labels": made[0].marker}
        client.start(client.create_container_from_config(config, name="a-duplicate"))
    assert observed(docker_copier) == [made[0].id]
    assert [(item.name.split()[1], item.why) for item in case.provider.copies(case.fleet)] == [("a-duplicate", "it has another name")]


def test_an_image_that_was_committed_from_an_instance_may_be_released(docker_copier: DockerCopier) -> None:
    """Its labels are an earlier instance's; those of the containers made from it are their own."""
    case = docker_copier.case
    first = case.created(1)
    with case.client() as client:
        client.commit(first[0].id, repository="golden", tag="2")
    blueprint = Blueprint(case.provider.image("golden:2"), "2", "ours", "", case.options, case.port)
    second = case.provider.create(case.planned(1, release=2), blueprint)
    assert observed(docker_copier) == [first[0].id, second[0].id] and case.provider.copies(case.fleet) == ()
    with case.client() as client:
        client.tag("golden:2", "golden", "3")
        client.remove_image("golden:2")  # another name for it, so that the listing shows another one
    assert observed(docker_copier) == [first[0].id, second[0].id]
