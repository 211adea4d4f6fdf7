# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Proxmox provider on a real cluster: `make test-pve PVE_HOST=...` (docs/proxmox.md). Takes away what it has made, whatever happens.

Each test is a step of the report, under the first line of its docstring.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, RefusedError
from ansible_collections.phoenix.fleet.tests.pve.your_cluster import FACTS, Yours


@pytest.fixture(scope="session")
def yours() -> Iterator[Yours]:
    made = Yours(os.environ)
    yield made
    made.close()
    FACTS.extend(f"NOT TAKEN AWAY, do so yourself: {line}" for line in made.left)
    assert not made.left


@pytest.fixture
def admin(yours: Yours) -> Yours:
    if yours.admin is None:
        pytest.skip("needs an administrator's login: PVE_ADMIN=root@pam PVE_ADMIN_PASSWORD=...")
    return yours


def given(yours: Yours, name: str, why: str) -> str:
    if name not in yours.given:
        pytest.skip(f"needs {name}: {why}")
    return yours.given[name]


def test_two_instances(yours: Yours) -> None:
    """Two instances come, rest, return and go"""
    fleet = yours.fleet()
    plan = fleet.plan(2)
    fleet.provider.preflight(plan, fleet.form)
    made = fleet.provider.create(plan, fleet.form)
    assert [item.state for item in made] == ["running", "running"] and all(item.address for item in made)
    assert [item.id for item in fleet.provider.create(plan, fleet.form)] == [item.id for item in made], "made once"
    fleet.provider.stop(made, 60)
    assert {item.state for item in fleet.observe()} == {"stopped"}
    sealed = fleet.provider.seals(made)
    assert fleet.provider.seals(made) == sealed
    again = fleet.provider.start(made, fleet.form)
    assert [item.id for item in again] == [item.id for item in made]
    assert not set(fleet.provider.seals(made))
    fleet.remove()


ACTS = {"a clone": "POST /clone$", "a configuration": "PUT /config$", "a start": "POST /status/start$", "a removal": "DELETE /(qemu|lxc)/"}


@pytest.mark.parametrize("call", ACTS.values(), ids=ACTS.keys())
def test_a_lost_answer(yours: Yours, call: str) -> None:
    """An act is looked up whose answer got lost"""
    method, _space, path = call.partition(" ")
    proxy = yours.cutting()
    fleet = yours.fleet(**proxy.options)
    proxy.cut.append((method, path))
    made = fleet.create(1)
    assert [item.state for item in made] == ["running"] and len(fleet.observe()) == 1
    fleet.provider.destroy(made, 30)
    assert fleet.observe() == () and len(proxy.lost) == 1


def test_a_copy_by_hand(admin: Yours) -> None:
    """A copy that somebody makes of an instance is none of ours, and is left alone"""
    fleet = admin.fleet()
    item = fleet.create(1)[0]
    fleet.provider.stop([item], 60)
    kind = fleet.options.get("kind", "qemu")
    copy, name = item.number + 10, "name" if kind == "qemu" else "hostname"
    path = f"nodes/{item.host}/{kind}/{copy}"
    admin.later(f"copy {copy}", lambda: admin.remove_guest(path))
    pool = {"pool": fleet.options["pool"]} if "pool" in fleet.options else {}
    admin.do("post", f"nodes/{item.host}/{kind}/{item.number}/clone", newid=copy, full=1, **pool, **{name: "by-hand"})
    assert [seen.number for seen in fleet.observe()] == [item.number], "the copy is taken for ours"
    assert [str(copy) in seen.name for seen in fleet.provider.copies(fleet.name)] == [True], "the copy is not told"
    fleet.provider.destroy(fleet.observe(), 30)
    assert admin.ask(f"{path}/config")[name] == "by-hand"


def test_sixteen_on_shared_storage(yours: Yours) -> None:
    """Sixteen instances on shared storage come at once, and go without a disk left behind"""
    fleet = yours.fleet(given(yours, "PVE_SHARED", "a template on storage that all nodes share"))
    made = fleet.create(16)
    assert {item.state for item in made} == {"running"}
    fleet.remove()


def test_a_backup(admin: Yours) -> None:
    """A standby is backed up while heal looks: it stays a standby, and the backup ends well"""
    storage = given(admin, "PVE_BACKUP", "a storage for backups")
    fleet = admin.fleet()
    made = fleet.create(2)
    fleet.provider.stop(made, 60)
    item, kind = made[0], fleet.options.get("kind", "qemu")
    content = f"nodes/{item.host}/storage/{storage}/content"

    def remove() -> None:
        for entry in admin.ask(content, content="backup", vmid=item.number):
            admin.do("delete", f"{content}/{entry['volid']}")

    admin.later(f"backup of {item.number}", remove)
    assert admin.admin
    upid = admin.admin.tell("backing up", "post", f"nodes/{item.host}/vzdump", vmid=item.number, storage=storage, mode="snapshot")
    locked = admin.until(lambda: admin.ask(f"nodes/{item.host}/{kind}/{item.number}/config").get("lock") == "backup", 60, 0.2)
    seen = {found.number: found for found in fleet.observe()}
    ended = admin.admin.tasks.wait(upid, "backing up", 1800)
    assert ended == "OK" or ended.startswith("WARNINGS"), ended
    if not locked:
        pytest.skip("the backup had ended before it was seen; a larger template takes longer")
    assert seen[item.number].state != "running" or seen[item.number].note, seen
    assert {found.state for found in fleet.observe()} == {"stopped"}


def test_restricted_tags(admin: Yours) -> None:
    """Tags that users may not set are told with the remedy, and nothing is called complete"""
    given(admin, "PVE_TAGS", "1 allows to restrict tags for the whole cluster for a moment")
    before = admin.ask("cluster/options").get("user-tag-access")
    words = ",".join(f"{key}={';'.join(value) if isinstance(value, list) else value}" for key, value in (before or {}).items())
    back: dict[str, Any] = {"user-tag-access": words} if before else {"delete": "user-tag-access"}
    admin.later("user-tag-access of the datacenter", lambda: admin.do("put", "cluster/options", **back))
    fleet = admin.fleet()
    admin.do("put", "cluster/options", **{"user-tag-access": "user-allow=none"})
    try:
        with pytest.raises(RefusedError, match="user-allow-list"):
            fleet.create(1)
    finally:
        admin.do("put", "cluster/options", **back)
    assert [item.health for item in fleet.observe()] == ["unhealthy"]
    fleet.remove()


def test_a_killed_worker(yours: Yours) -> None:
    """The worker of a clone is killed: it is told, and nothing of it runs"""
    fleet = yours.fleet(**({} if "storage" in yours.options else {"clone": "full"}))
    plan = fleet.plan(1)
    source = fleet.provider.cluster.replicas(fleet.form.image)[0].guest
    told: list[FleetError] = []

    def create() -> None:
        try:
            fleet.provider.create(plan, fleet.form)
        except FleetError as error:
            told.append(error)

    work = threading.Thread(target=create)
    work.start()

    def cloning() -> Any:
        tasks = fleet.provider.api.ask("listing tasks", f"nodes/{source.node}/tasks", source="active", vmid=source.vmid)
        return next((task["upid"] for task in tasks if task["type"].endswith("clone") and not task.get("endtime")), None)

    upid = yours.until(lambda: cloning() or not work.is_alive(), 60, 0.1)
    number = plan[0].number
    if isinstance(upid, str):
        remove = f"! qm config {number} || {{ qm unlock {number}; qm destroy {number} --purge; }}"
        if "PVE_SSH" in yours.given and yours.on_node(source.node, f"kill -9 {int(upid.split(':')[2], 16)}"):
            yours.later(f"what a killed clone left of {number}", lambda: yours.on_node(source.node, remove))
        else:
            fleet.provider.api.tell("stopping a clone", "delete", f"nodes/{source.node}/tasks/{upid}")
    work.join(900)
    if not told:
        pytest.skip("the clone had ended before it was killed; a larger template takes longer")
    assert not work.is_alive() and str(number) in str(told[0]), told
    assert not [item for item in fleet.observe() if item.state == "running"]


def test_a_template_with_a_local_iso(admin: Yours) -> None:
    """A template with an ISO on one node's storage is refused before anything is made"""
    iso = given(admin, "PVE_ISO", "an ISO on local storage, such as local:iso/debian.iso")
    template = admin.templates(given(admin, "PVE_SHARED", "a template on storage that all nodes share"))[0]
    others = tuple(sorted({item["node"] for item in admin.ask("cluster/resources", type="node")} - {template.guest.node}))
    if not others or template.guest.kind != "qemu":
        pytest.skip("needs a second node, and virtual machines")
    number = int(admin.ask("cluster/nextid"))
    path, name = f"nodes/{template.guest.node}/qemu/{number}", f"{admin.name}-iso"
    admin.later(f"template {number}", lambda: admin.remove_guest(path))
    admin.do("post", f"{template.guest.path}/clone", newid=number, name=name, full=1)
    admin.do("put", f"{path}/config", sata5=f"{iso},media=cdrom")
    admin.do("post", f"{path}/template")
    if admin.secret:
        admin.grant_template(admin.templates(name)[0])
    fleet = admin.fleet(name)
    with pytest.raises(RefusedError, match="iso|local storage"):
        fleet.provider.preflight(fleet.plan(1, others), fleet.form)
    assert fleet.observe() == ()


def test_pvestatd_stops(yours: Yours) -> None:
    """A node whose pvestatd has stopped for six minutes is no lost node"""
    given(yours, "PVE_PVESTATD", "1 allows to stop pvestatd of one node for about ten minutes")
    fleet = yours.fleet()
    made = fleet.create(2)
    node = made[0].host

    def state() -> str:
        known = fleet.provider.api.ask("looking at the cluster", "cluster/resources")
        return next(str(item.get("status")) for item in known if item.get("type") == "node" and item["node"] == node)

    yours.later(f"pvestatd of {node}", lambda: yours.on_node(node, "systemctl start pvestatd"))
    yours.on_node(node, "systemctl stop pvestatd")
    if not yours.until(lambda: state() != "online", 1500):
        pytest.skip(f"{node} was online all the time: pvestatd was not stopped within 25 minutes")
    assert [(item.name, item.state) for item in fleet.observe()] == [(item.name, "running") for item in made]
    yours.on_node(node, "systemctl start pvestatd")
    assert yours.until(lambda: state() == "online", 1500), f"{node} does not come back: systemctl start pvestatd"
    assert [(item.name, item.state) for item in fleet.observe()] == [(item.name, "running") for item in made]
