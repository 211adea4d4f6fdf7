# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Proxmox provider and storages: their locks, what is left on them, what can be seen of them, and what a template brings along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.action.instances import _Journal
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import proxmox
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.integration.pve_case import ADDRESSES, MakeCase, ProxmoxCase, grant
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import ROLES, CuttingProxy, Served


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxmox, "BUSY_PAUSES", (0.02, 0.05, 0.1, 0.2), raising=False)


@pytest.fixture
def shared(served: Served, make: MakeCase) -> Callable[..., ProxmoxCase]:
    """Fleets whose one template is on a storage that all nodes share."""
    served.pve.add_template(9100, "shop-shared", "pve1", "ceph", ide2="ceph:vm-9100-cloudinit,media=cdrom")
    served.pve.add_container(9110, "shop-ct", "pve1", "ceph")
    return lambda image="shop-shared", **options: make(image, **{**ADDRESSES, **options})


def least_privileged(served: Served, *more: tuple[str, str]) -> None:
    """The roles of the documentation for the templates on shared storage, and `more`: paths with a privilege each."""
    names = {"pool": "fleet", "storage": "ceph", "bridge": "vmbr0"}
    for path, privileges in ROLES.items():
        for template in (9100, 9110):
            grant(served, path.format(template=template, **names), *privileges)
    for path, privilege in more:
        grant(served, path, privilege)


# Locks of a whole cluster

def test_a_clone_that_does_not_get_the_lock_of_its_storage_is_tried_again(shared: Any, served: Served) -> None:
    case = shared()
    served.pve.held["ceph"] = 3
    assert [item.state for item in case.created(2)] == ["running", "running"]
    assert len([vm for vm in served.pve.vms if not vm.template]) == 2
    assert served.pve.calls["POST /nodes/{node}/qemu/{vmid}/clone"] == 5


def test_a_container_that_does_not_get_the_lock_is_tried_again_and_so_is_its_removal(shared: Any, served: Served) -> None:
    case = shared("shop-ct", kind="lxc")
    served.pve.held["ceph"] = 1
    made = case.created(1)
    served.pve.held["ceph"] = 1
    case.provider.destroy(made, 1)
    assert case.provider.observe(case.fleet) == () and not served.pve.held["ceph"]


def test_a_lock_that_is_never_to_be_had_ends_with_the_words_of_pve_and_nothing_made(shared: Any, served: Served) -> None:
    case = shared()
    served.pve.held["ceph"] = 100
    with pytest.raises(RefusedError, match="cfs-lock 'storage-ceph' error: got lock request timeout.*Something else"):
        case.created(1)
    assert not [vm for vm in served.pve.vms if not vm.template]


def test_disks_that_a_removal_left_over_are_named_with_the_command(shared: Any, served: Served) -> None:
    case = shared()
    made = case.created(1)
    served.pve.held["ceph"] = 1
    with pytest.raises(RefusedError) as refused:
        case.provider.destroy(made, 1)
    volume = f"ceph:vm-{made[0].number}-disk-0"
    assert volume in str(refused.value) and "got lock request timeout" in str(refused.value)
    assert f"pvesm free {volume}" in refused.value.remedy
    assert case.provider.observe(case.fleet) == ()


def test_one_fleet_removes_one_at_a_time_from_a_shared_storage(shared: Any, served: Served) -> None:
    case = shared()
    served.pve.bears = {"destroy": 1}
    case.provider.destroy(case.created(8), 1)
    assert not [name for name in served.pve.storages["ceph"]["volumes"] if name.startswith("vm-100")]
    assert served.pve.most["destroy", "ceph"] == 1 and served.pve.most["clone", "ceph"] <= 6


def test_two_runs_share_the_room_on_a_storage(shared: Any, served: Served, tmp_path: Path) -> None:
    """Two fleets of one ledger, each in a run of its own: together they clone six at a time, and remove one."""
    served.pve.bears = {"clone": 6, "destroy": 1}
    cases = [shared(), shared(vmid_range="200000-200099", addresses=["10.77.1.10-10.77.1.99"], gateway="10.77.1.1")]
    failed: list[BaseException] = []

    def run(case: ProxmoxCase) -> None:
        try:
            ledger = Ledger("", str(tmp_path))
            lease = ledger.acquire(case.fleet, "tests")
            case.provider = connect(case.options, _Journal(lease, print))
            case.provider.destroy(case.created(8), 1)
            ledger.give_back(lease)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert served.pve.most["clone", "ceph"] <= 6 and served.pve.most["destroy", "ceph"] == 1


def test_what_a_removal_left_over_is_found_when_its_answer_is_lost(shared: Any, served: Served) -> None:
    least_privileged(served)
    with CuttingProxy(served) as proxy:
        case = shared(api_port=proxy.port)
        made = case.created(1)
        served.pve.held["ceph"] = 1
        proxy.cut.append(("DELETE", f"/{made[0].number}$"))
        with pytest.raises(RefusedError, match=f"ceph:vm-{made[0].number}-disk-0.*got lock request timeout"):
            case.provider.destroy(made, 1)


def test_a_disk_that_a_failed_clone_left_is_found_when_its_guest_is_removed(shared: Any, served: Served) -> None:
    """Under the documented role its owner must still be there to be seen."""
    least_privileged(served)
    case = shared()
    made = case.created(1)
    stray = f"vm-{made[0].number}-disk-7"
    served.pve.storages["ceph"]["volumes"][stray] = {"content": "images", "size": 1, "vmid": made[0].number, "format": "raw"}
    with pytest.raises(RefusedError, match=f"ceph:{stray} on node pve.*pvesm free ceph:{stray}"):
        case.provider.destroy(made, 1)
    assert case.provider.observe(case.fleet) == ()


def test_a_storage_that_cannot_be_listed_keeps_nobody_from_removing(shared: Any, served: Served) -> None:
    case = shared()
    made = case.created(1)
    served.pve.storages["ceph"]["active"] = 0
    case.provider.destroy(made, 1)
    assert case.provider.observe(case.fleet) == ()


# What a template brings along

def refused(case: ProxmoxCase, words: str, size: int = 2) -> None:
    planned = case.planned(size)
    with pytest.raises(RefusedError, match=words):
        connect(case.options).preflight(planned, case.blueprint)


@pytest.mark.parametrize(("drive", "words"), [
    ({"ide3": "local:iso/debian.iso,media=cdrom"}, "ide3.*local:iso/debian.iso.*qm set 9100 --delete ide3"),
    ({"ide2": "local-zfs:vm-9100-cloudinit,media=cdrom"}, "ide2.*qm set 9100 --delete ide2.*qm set 9100 --ide2 STORAGE:cloudinit"),
])
def test_a_cd_rom_on_local_storage_keeps_clones_on_its_node(shared: Any, served: Served, drive: dict[str, str], words: str) -> None:
    case = shared()
    served.pve.vm(9100).config.update(drive)
    refused(case, f"node pve2: template 9100 on node pve1.*{words}")
    case = shared(nodes=["pve1"])
    assert {item.host for item in case.created(2)} == {"pve1"}


def test_a_cd_rom_of_a_node_itself_is_refused(shared: Any, served: Served) -> None:
    case = shared(nodes=["pve1"])
    served.pve.vm(9100).config["ide3"] = "cdrom,media=cdrom"
    refused(case, "ide3 is that node's own CD-ROM.*qm set 9100 --delete ide3")


@pytest.mark.parametrize("kind", ["dir", "nfs"])
def test_linked_clones_of_containers_need_a_storage_of_volumes(shared: Any, served: Served, kind: str) -> None:
    case = shared("shop-ct", kind="lxc")
    served.pve.storages["ceph"]["type"] = kind
    refused(case, f"storage ceph: linked clones of containers cannot be made on one of type {kind}.*fleet_proxmox.clone to full")
    case = shared("shop-ct", kind="lxc", clone="full")
    assert len(case.created(2)) == 2


def test_a_containers_template_is_the_same_image_while_somebody_clones_it(shared: Any, served: Served) -> None:
    served.pve.ct(9110).config["description"] = "The golden image"
    before = shared("shop-ct", kind="lxc").blueprint.image
    served.pve.ct(9110).lock = "disk"
    case = shared("shop-ct", kind="lxc")
    assert case.blueprint.image == before
    case.provider.preflight(case.planned(1), case.blueprint)
    served.pve.ct(9110).config["memory"] = 4096
    assert shared("shop-ct", kind="lxc").blueprint.image != before


def test_what_is_set_is_all_there_is_of_it(shared: Any, served: Served) -> None:
    """A user who sets memory, cores and networks gets these, and nothing of the template's beside them."""
    served.pve.vm(9100).config.update({
        "balloon": 4096, "memory": 8192, "sockets": 2, "vcpus": 3, "net1": "virtio=BC:24:11:00:00:02,bridge=vmbr1",
        "ipconfig1": "ip=10.9.9.9/24"})
    case = shared(memory="1g", cores=2, networks=["vmbr0"])
    config = case.guest(case.created(1)[0]).config
    assert {key: str(config.get(key)) for key in ("memory", "balloon", "cores", "sockets")} == {
        "memory": "1024", "balloon": "1024", "cores": "2", "sockets": "1"}
    assert not {"net1", "ipconfig1", "vcpus"} & set(config)


def test_a_container_has_the_networks_that_are_set_and_no_others(shared: Any, served: Served) -> None:
    served.pve.ct(9110).config["net1"] = "name=eth1,bridge=vmbr1,ip=10.9.9.9/24,type=veth"
    case = shared("shop-ct", kind="lxc", networks=["vmbr0"])
    assert "net1" not in case.guest(case.created(1)[0]).config


def test_an_address_that_every_instance_would_inherit_is_refused(shared: Any, served: Served) -> None:
    served.pve.vm(9100).config.update({"net1": "virtio=BC:24:11:00:00:02,bridge=vmbr1", "ipconfig1": "ip=10.9.9.9/24"})
    served.pve.ct(9110).config["net1"] = "name=eth1,bridge=vmbr1,ip=dhcp,ip6=2001:db8::1/64,type=veth"
    refused(shared(), "its ipconfig1 gives every instance the address 10.9.9.9/24.*qm set 9100 --delete ipconfig1", 1)
    refused(shared("shop-ct", kind="lxc"), "its net1 gives every instance the address 2001:db8::1/64.*networks", 1)
    shared(networks=["vmbr0"]).created(1)


def test_the_templates_bridges_are_asked_for_and_of_a_vlan_its_own_path(shared: Any, served: Served) -> None:
    """A clone asks for them although `networks` replaces them (qemu-server `PVE/API2/Qemu.pm` clone_vm)."""
    least_privileged(served)
    for who in served.pve.acl or {}:
        served.pve.acl[who] = [entry for entry in served.pve.acl[who] if not entry[0].startswith("/sdn")]
    case = shared(networks=[{"bridge": "vmbr1", "vlan": 7}])
    refused(case, "lacks SDN.Use on /sdn/zones/localnetwork/vmbr0", 1)
    grant(served, "/sdn/zones/localnetwork/vmbr0", "SDN.Use")
    refused(case, "lacks SDN.Use on /sdn/zones/localnetwork/vmbr1/7", 1)
    grant(served, "/sdn/zones/localnetwork/vmbr1/7", "SDN.Use")
    assert case.guest(case.created(1)[0]).config["net0"] == "virtio,bridge=vmbr1,tag=7"


# What can be seen

class Watched:
    """A fleet with a lease on a ledger, whose words are kept."""

    def __init__(self, case: ProxmoxCase, folder: Path) -> None:
        self.said: list[str] = []
        lease = Ledger("", str(folder)).acquire(case.fleet, "tests")
        self.provider = connect(case.options, _Journal(lease, self.said.append))


def started_by_root(served: Served, guest: Any) -> None:
    """Somebody else starts it, and stops it again; by a process with a lower id than any before."""
    served.pve._pids = iter(range(1, 100))

    async def nothing() -> None:
        pass

    served.do(lambda: served.pve.task(guest.node, "qmstart", guest.vmid, "root@pam", nothing))


@pytest.mark.parametrize("kind", ["zfspool", "rbd"])
def test_what_was_written_to_a_standby_shows_in_the_size_of_its_disk(shared: Any, served: Served, kind: str) -> None:
    """Their listings do not tell it, and the volume itself does; under the documented role."""
    least_privileged(served)
    served.pve.storages["ceph"]["type"] = kind
    case = shared()
    made = case.created(1)
    case.provider.stop(made, 1)
    before = case.provider.seals(made)
    assert before and case.provider.seals(made) == before
    case.alter(made[0])
    assert case.provider.seals(made) != before


@pytest.mark.parametrize("kind", ["lvmthin", "rbd"])
def test_that_a_start_by_somebody_else_cannot_be_seen_is_told(shared: Any, served: Served, kind: str, tmp_path: Path) -> None:
    least_privileged(served)
    served.pve.storages["ceph"]["type"] = kind
    case = shared(nodes=["pve1"])
    made = case.created(1)
    watched = Watched(case, tmp_path)
    watched.provider.stop(made, 1)
    before = watched.provider.seals(made)
    assert f"{made[0].name}" in watched.said[-1] and "Sys.Audit on /nodes/pve1" in watched.said[-1] and "ceph" in watched.said[-1]
    started_by_root(served, case.guest(made[0]))
    assert watched.provider.seals(made) == before


def test_who_may_see_all_tasks_of_a_node_sees_every_start(shared: Any, served: Served, tmp_path: Path) -> None:
    least_privileged(served, ("/nodes", "Sys.Audit"))
    served.pve.storages["ceph"]["type"] = "lvmthin"
    case = shared(nodes=["pve1"])
    made = case.created(1)
    watched = Watched(case, tmp_path)
    watched.provider.stop(made, 1)
    before = watched.provider.seals(made)
    started_by_root(served, case.guest(made[0]))
    assert watched.provider.seals(made) != before and not watched.said
