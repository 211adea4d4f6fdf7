# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a cluster does not show, or shows wrongly: pvestatd that is dead, nodes that hang or are lost, guests that a backup has started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Definition, Goal, Instance, Plan, Server, Step, World
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE
from ansible_collections.phoenix.fleet.plugins.plugin_utils._status import status
from ansible_collections.phoenix.fleet.tests.integration.pve_case import ADDRESSES, MakeCase, impatient, make, served
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import Served
from ansible_collections.phoenix.fleet.tests.simulation.executor import Fleet
from ansible_collections.phoenix.fleet.tests.simulation.world import HAProxy, LawBrokenError, Site
from ansible_collections.phoenix.fleet.tests.unit.test_ledgers_agree import TwinLedger

__all__ = ["impatient", "make", "served"]


class Journal:
    """What a run keeps and says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def began(self, task: str, doing: str) -> None:
        pass

    def under_way(self) -> Mapping[str, str]:
        return {}

    def say(self, text: str) -> None:
        self.said.append(text)


# pvestatd

def test_what_pvestatd_does_not_tell_is_asked_of_the_node(make: MakeCase, served: Served) -> None:
    case = make(**ADDRESSES)
    made = case.created(4)
    served.pve.stop_pvestatd("pve2")
    case = make_again(case)
    seen = case.provider.observe(case.fleet)
    assert [(item.name, item.state, item.note, item.address) for item in seen] == [
        (item.name, "running", "", item.address) for item in made]
    case.provider.stop(seen, 1)
    assert {item.state for item in make_again(case).provider.observe(case.fleet)} == {"stopped"}


def test_a_node_whose_pvestatd_is_dead_gets_no_new_instances(make: MakeCase, served: Served) -> None:
    served.pve.stop_pvestatd("pve2")
    assert {item.host for item in make(**ADDRESSES).created(2)} == {"pve1"}
    served.pve.stop_pvestatd("pve1")  # or pve-cluster has just been restarted: nothing is known of any storage
    with pytest.raises(RefusedError, match="storage local-zfs on node pve1: it is unknown. pvestatd tells nothing of it"):
        make(**ADDRESSES).created(1, 2)


# Nodes that give no answer

def test_a_node_that_hangs_is_asked_once_and_its_instances_are_left_alone(make: MakeCase, served: Served) -> None:
    case = make(**ADDRESSES)
    made = {item.host: item for item in case.created(2)}
    served.pve.hang("pve2")
    case = make_again(case)
    seen = {item.host: item for item in case.provider.observe(case.fleet)}
    assert (seen["pve1"].state, seen["pve1"].note) == ("running", "")
    assert (seen["pve2"].state, seen["pve2"].number) == ("unknown", made["pve2"].number)
    assert seen["pve2"].note.startswith("node pve2 cannot be asked: no answer came from the node (596 Connection timed out); bring it back")
    assert {item.host for item in case.planned(2, 2)} == {"pve1"}
    assert len(case.provider.create(case.planned(1, 2), case.blueprint)) == 1
    case.provider.destroy([made["pve1"]], 1)
    with pytest.raises(UnreachableError, match="pve2.*596"):
        case.provider.destroy([made["pve2"]], 1)
    assert served.pve.in_vain["pve2"] <= 3, "a question is asked again when its answer gets lost at once, and a node never"
    served.pve.hang("pve2", False)
    assert {item.note for item in make_again(case).provider.observe(case.fleet)} == {""}


def test_all_nodes_but_the_one_that_is_asked_may_be_dead(make: MakeCase, served: Served) -> None:
    case = make(**ADDRESSES)
    made = case.created(2)
    for node in ("pve1", "pve2"):
        served.pve.hang(node)
    case = make_again(case)
    assert {item.state for item in case.provider.observe(case.fleet)} == {"unknown"}
    assert case.provider.pools(case.fleet, 80, ["local"]) == ()
    served.pve.hang("pve1", False)
    served.pve.lose("pve2")
    lost = next(item for item in make_again(case).provider.observe(case.fleet) if item.state == "unknown")
    assert (lost.name, lost.number) == ("", next(item.number for item in made if item.host == "pve2")), "no round-robin data, no name"


def make_again(case: Any) -> Any:
    """The same fleet in the next task."""
    case.provider = connect(case.options)
    return case


# Whole runs

class GuestSite(Site):
    """Where instances are guests of the cluster: they answer at the addresses of their configurations."""

    served: Served

    def answers(self, server: Server) -> bool:
        nodes = self.served.pve.nodes
        return any(
            vm.status == "running" and vm.qmpstatus == "running" and nodes[vm.node].get("online", True)
            and str(vm.config.get("ipconfig0")).startswith(f"ip={server.address}/") for vm in self.served.pve.vms
        )

    def check_laws(self, what: str) -> None:
        running = [vm for vm in self.served.pve.vms if vm.status == "running"]
        addresses = [address for vm in running if (address := vm.config.get("ipconfig0"))]
        if len(set(addresses)) < len(addresses):
            raise LawBrokenError(f"{what}: two guests with one address: {sorted((vm.config['ipconfig0'], vm.name) for vm in running)}")


class GuestFleet(Fleet):
    """A fleet of guests, with the real provider, planner and ledger (SQLite, beside the simulated one) and simulated balancers."""

    def __init__(self, served: Served, folder: Path, **more: Any) -> None:
        self.served = served
        self.journal = Journal()
        self.options = served.options(**ADDRESSES)
        site = GuestSite()
        site.served = served
        site.balancers = [HAProxy(site, f"lb{number}") for number in (1, 2)]
        definition = Definition("web", "shop-1.0", 8080, provider="proxmox", balancers=("lb1", "lb2"), options=self.options, **more)
        super().__init__(site, connect(self.options), TwinLedger(site, str(folder)), definition)  # type: ignore[arg-type]

    def world(self, fence: int = 0) -> World:
        self.provider: Any = connect(self.options, self.journal)  # each task asks anew
        return super().world(fence)

    def blueprint(self, made: Plan) -> Blueprint:
        form = super().blueprint(made)
        return Blueprint(form.image, form.hash, form.ledger, form.revision, self.options, 8080)

    def _step(self, made: Plan, step: Step, answering: Sequence[HAProxy], fence: int) -> Sequence[Instance] | None:
        if step.kind != "check":
            return super()._step(made, step, answering, fence)
        if not all(self.site.answers(Server(item.name, item.address, item.port, 0)) for item in step.instances):
            raise DeadlineError("checks", "somebody does not answer")
        return None

    def release(self, image: str) -> None:
        self.go(Goal("release", connect(self.options).image(image), "h"))

    def go(self, goal: Goal) -> Plan:
        """Run, and let HAProxy make its checks. Returns the first plan."""
        first = len(self.plans)
        self.run(goal)
        self.site.pass_time()
        return self.plans[first]

    def guests(self) -> dict[str, Any]:
        return {vm.name: vm for vm in self.served.pve.vms if vm.name.startswith("web-")}

    def serving(self) -> set[str]:
        return set.intersection(*({name for name, line in item.lines.items() if line.takes_traffic} for item in self.site.balancers))

    def findings(self) -> list[str]:
        found: list[str] = status(self.definition, self.world(), self.ledger.history())["findings"]
        return found


@pytest.fixture
def fleet_of(served: Served, tmp_path: Path) -> Iterator[Callable[..., GuestFleet]]:
    for number, image in enumerate(("shop-2.0", "shop-3.0", "shop-4.0")):
        for node in (1, 2):
            served.pve.add_template(9100 + 10 * number + node, image, f"pve{node}", digest=f"sha256:{number}" + "6" * 63)
    yield lambda **more: GuestFleet(served, tmp_path, **more)


def test_heal_does_nothing_while_pvestatd_is_dead_and_everything_serves(fleet_of: Callable[..., GuestFleet], served: Served) -> None:
    fleet = fleet_of()
    fleet.release("shop-1.0")
    before = {name: vm.vmid for name, vm in fleet.guests().items()}
    for nodes in (["pve2"], ["pve1", "pve2"]):
        for node in nodes:
            served.pve.stop_pvestatd(node)
        assert fleet.go(Goal("heal")).waves == ()
        assert {name: vm.vmid for name, vm in fleet.guests().items()} == before and fleet.serving() == set(before)
        assert fleet.findings() == []


def test_what_a_hanging_node_serves_is_kept_by_heal_and_said(fleet_of: Callable[..., GuestFleet], served: Served) -> None:
    fleet = fleet_of()
    fleet.release("shop-1.0")
    served.pve.hang("pve2")
    made = fleet.go(Goal("heal"))
    why = "node pve2 cannot be asked: no answer came from the node (596 Connection timed out); bring it back, or remove it"
    assert made.waves == () and made.reasons[0].startswith(f"web-r1-2 is left alone: {why}")
    assert made.reasons[0].endswith("; every balancer calls it up")
    assert [item for item in fleet.findings() if "web-r1-2" in item and why in item and item.endswith("calls it up")]
    assert fleet.serving() == {"web-r1-1", "web-r1-2"}
    # The others go on: one of them dies, and its successor comes to a node that answers.
    fleet.guests()["web-r1-1"].status = "stopped"
    fleet.site.pass_time()
    fleet.go(Goal("heal"))
    assert fleet.serving() == {"web-r1-2", "web-r1-3"} and fleet.guests()["web-r1-3"].node == "pve1"
    # A release replaces it like any other; its machine is left until its node answers again.
    address = fleet.guests()["web-r1-2"].config["ipconfig0"]
    fleet.release("shop-2.0")
    assert fleet.serving() == {"web-r2-1", "web-r2-2"} and fleet.guests()["web-r1-2"].status == "running"
    fleet.release("shop-3.0")
    assert address not in {vm.config["ipconfig0"] for name, vm in fleet.guests().items() if name != "web-r1-2"}
    served.pve.hang("pve2", False)
    fleet.go(Goal("heal"))
    assert "web-r1-2" not in fleet.guests() and fleet.findings() == []


@pytest.mark.parametrize("images", [["shop-2.0"], ["shop-2.0", "shop-3.0", "shop-4.0"], []], ids=["standby", "retired", "live"])
def test_a_lost_node_comes_back_with_its_guests(
    fleet_of: Callable[..., GuestFleet], served: Served, images: list[str],
) -> None:
    """Node lost, heal, releases, and then it is there again and starts all that has `onboot`: nobody else has its address."""
    fleet = fleet_of()
    fleet.release("shop-1.0")
    lost = fleet.guests()["web-r1-2"]
    assert lost.node == "pve2"
    served.pve.lose("pve2")
    fleet.site.pass_time()
    made = fleet.go(Goal("heal"))
    assert "web-r1-2 is left alone: node pve2 is offline; bring it back, or remove it from the cluster with its guests" in made.reasons
    assert fleet.serving() == {"web-r1-1", "web-r1-3"}
    for image in images:
        fleet.release(image)
    number = 1 + len(images)
    assert any(finding.startswith("instance web-r1-2 on pve2 is left alone: node pve2 is offline") for finding in fleet.findings())
    with pytest.raises(RefusedError, match="web-r1-2: node pve2 is offline.*Until then the fleet cannot be taken away whole"):
        fleet.run(Goal("retire"))
    live = fleet.serving()
    assert live == ({f"web-r{number}-1", f"web-r{number}-2"} if images else {"web-r1-1", "web-r1-3"})

    served.pve.lose("pve2", False)
    assert lost.status == "running"
    fleet.site.check_laws("the node is back")
    fleet.site.pass_time()
    assert fleet.serving() == live
    assert any("instance web-r1-2 on pve2" in finding and "phoenix.fleet.heal" in finding for finding in fleet.findings())
    fleet.go(Goal("heal"))
    assert "web-r1-2" not in fleet.guests() and fleet.serving() == live
    assert fleet.findings() == [] and fleet.go(Goal("heal")).waves == ()
    assert "web-r1-2" not in fleet.ledger.reserved.values() or fleet.plan(Goal("heal")).waves == ()


def test_a_fleet_is_taken_away_whole_when_its_lost_node_is_back(fleet_of: Callable[..., GuestFleet], served: Served) -> None:
    fleet = fleet_of()
    fleet.release("shop-1.0")
    served.pve.lose("pve2")
    fleet.site.pass_time()
    with pytest.raises(RefusedError, match="web-r1-2"):
        fleet.run(Goal("retire"))
    served.pve.lose("pve2", False)
    fleet.go(Goal("retire"))
    assert fleet.guests() == {} and fleet.ledger.reserved == {}


# Backups

def test_a_standby_that_a_backup_has_started_is_a_standby(fleet_of: Callable[..., GuestFleet], served: Served) -> None:
    fleet = fleet_of()
    fleet.release("shop-1.0")
    fleet.release("shop-2.0")
    standby = fleet.guests()["web-r1-1"]
    served.pve.begin_backup(standby.vmid)
    made = fleet.go(Goal("heal"))
    assert made.waves == () and standby.lock == "backup" and standby.status == "running"
    assert made.reasons[0].startswith("web-r1-1 is left alone: a backup is at work on it")
    assert [item.state for item in fleet.world().instances if item.release == 1] == ["stopped", "stopped"]
    assert any(item.startswith("instance web-r1-1 on pve1 is left alone: a backup is at work on it") for item in fleet.findings())
    # A rollback makes another in its place.
    fleet.go(Goal("rollback"))
    assert fleet.serving() == {"web-r1-2", "web-r1-3"}
    served.pve.end_backup(standby.vmid)
    fleet.go(Goal("heal"))
    assert "web-r1-1" not in fleet.guests() and fleet.findings() == []


def test_an_instance_serves_on_while_it_is_backed_up(fleet_of: Callable[..., GuestFleet], served: Served) -> None:
    fleet = fleet_of()
    fleet.release("shop-1.0")
    guest = fleet.guests()["web-r1-1"]
    served.pve.begin_backup(guest.vmid)
    assert fleet.go(Goal("heal")).waves == () and fleet.serving() == {"web-r1-1", "web-r1-2"}
    # Its successors take over; it goes when its backup has ended.
    fleet.release("shop-2.0")
    assert fleet.serving() == {"web-r2-1", "web-r2-2"} and guest.status == "running"
    assert fleet.guests()["web-r1-2"].status == "stopped"
    assert any("web-r1-1" in item and "backup" in item for item in fleet.findings())
    served.pve.end_backup(guest.vmid)
    assert any("web-r1-1 on pve1 runs, and r1 is a standby" in item for item in fleet.findings())
    fleet.go(Goal("heal"))
    assert guest.status == "stopped" and fleet.findings() == []


@pytest.mark.parametrize("keep", [0, 1], ids=["destroyed", "stopped"])
def test_a_backup_that_begins_after_the_plan_fails_no_run(fleet_of: Callable[..., GuestFleet], served: Served, keep: int) -> None:
    fleet = fleet_of(keep=keep)
    fleet.release("shop-1.0")
    guest = fleet.guests()["web-r1-1"]
    tick = fleet.site.tick

    def begin(what: str) -> None:
        if what in ("before stop", "before destroy") and not guest.lock:
            served.pve.begin_backup(guest.vmid)
        tick(what)

    fleet.site.tick = begin  # type: ignore[method-assign]
    fleet.release("shop-2.0")
    fleet.site.tick = tick  # type: ignore[method-assign]
    assert fleet.serving() == {"web-r2-1", "web-r2-2"} and guest.status == "running"
    assert [text for text in fleet.journal.said if "web-r1-1" in text and "a backup is at work on it" in text]
    served.pve.end_backup(guest.vmid)
    fleet.go(Goal("heal"))
    assert fleet.findings() == [] and (fleet.guests()["web-r1-1"].status == "stopped" if keep else "web-r1-1" not in fleet.guests())


def test_without_a_lease_a_backup_is_refused_by_name(make: MakeCase, served: Served) -> None:
    case = make(**ADDRESSES)
    item = case.created(1)[0]
    served.pve.begin_backup(item.number)
    for act in (case.provider.stop, case.provider.destroy):
        with pytest.raises(RefusedError, match="locked \\(backup\\)"):
            act([item], 1)
    assert case.guest(item).status == "running"


def test_a_container_is_never_started_by_its_backup(make: MakeCase, served: Served) -> None:
    served.pve.add_container(9011, "shop-ct")
    case = make("shop-ct", kind="lxc", nodes=["pve1"], **ADDRESSES)
    one, other = case.created(2)
    case.provider.stop([other], 1)
    for item in (one, other):
        served.pve.begin_backup(item.number)
    seen = {item.name: item for item in make_again(case).provider.observe(case.fleet)}
    assert (seen[one.name].state, seen[other.name].state) == ("running", "stopped")
    assert all("a backup is at work on it" in item.note for item in seen.values())


def test_the_module_makes_nothing_beside_what_no_node_shows(make: MakeCase, served: Served) -> None:
    """Without a ledger, nobody knows the name and the address of a guest on a lost node."""
    case = make(**ADDRESSES)
    params = {
        **dict.fromkeys(FACE.arguments), **case.options, "fleet": case.fleet, "release": 1, "state": "present", "image": "shop-1.0",
        "size": 2, "port": 8080, "balancers": ["local"], "revision": "", "ledger": "", "stop_timeout": 1,
    }
    assert len(FACE.carry_out(params, False, print)["instances"]) == 2
    served.pve.lose("pve2")
    for state in ("present", "absent"):
        with pytest.raises(UnreachableError, match="instance 100001 on pve2: node pve2 is offline"):
            FACE.carry_out({**params, "state": state}, False, print)
    served.pve.lose("pve2", False)
    assert FACE.carry_out({**params, "state": "absent"}, False, print)["instances"] == []
