# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of a fleet: nothing amiss where all is well, and each thing that is amiss by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Balancer,
    Copy,
    Definition,
    Entry,
    Head,
    History,
    Instance,
    Pool,
    Release,
    Server,
    World,
)
from ansible_collections.phoenix.fleet.plugins.plugin_utils._status import age, lines, status
from hypothesis import given
from hypothesis import strategies as st

NOW = "2026-03-02T12:00:00Z"
DEFINITION = Definition("web", "shop:2", 80, balancers=("lb1", "lb2"), backend="web")


def instance(release: int, slot: int, **changes: Any) -> Instance:
    made = Instance(
        f"web-r{release}-{slot}", "local", "web", release, slot, "sha256:1", f"10.0.{release}.{slot}", 80, state="running",
        created="2026-03-02T10:00:00Z", marker={"phoenix.fleet.ledger": "L"},
    )
    return replace(made, **changes)


def server(release: int, slot: int, **changes: Any) -> Server:
    made = Server(f"web-r{release}-{slot}", f"10.0.{release}.{slot}", 80, 10000 + slot, 100, "ready", up=True, check="L7OK", sessions=3)
    return replace(made, **changes)


def release(number: int, status: str, **changes: Any) -> Release:
    made = Release(
        number, status, f"shop:{number}", "sha256:1", "abc", 2, revision="g1", by="ann@here", started="2026-03-01T12:00:00Z",
        finished="2026-03-01T12:00:09Z",
    )
    return replace(made, **changes)


BALANCERS = tuple(Balancer(host, head=Head("L", 7, "web", 2, 3), servers=(server(2, 1), server(2, 2))) for host in ("lb1", "lb2"))
WORLD = World((instance(1, 1, state="stopped"), instance(1, 2, state="stopped"), instance(2, 1), instance(2, 2)), BALANCERS)
HISTORY = History(
    "L", fence=7, live=2, next_release=3, releases=(release(1, "standby"), release(2, "live")), since="2026-03-01T12:00:09Z",
)


def findings(world: World = WORLD, history: History = HISTORY, definition: Definition = DEFINITION, **others: Any) -> list[str]:
    found = status(definition, world, history, **others)["findings"]
    assert all(item for item in found)
    return list(found)


def on_lb1(**changes: Any) -> World:
    return replace(WORLD, balancers=(replace(BALANCERS[0], **changes), BALANCERS[1]))


def test_a_fleet_that_is_well() -> None:
    told = status(DEFINITION, WORLD, HISTORY)
    assert told["findings"] == []
    assert set(told) == {"fleet", "live", "instances", "balancers", "releases", "lease", "findings"}
    assert told["live"] == {"release": 2, "image": "shop:2", "revision": "g1", "since": "2026-03-01T12:00:09Z"}
    assert told["balancers"]["lb1"]["servers"][0] == {
        "name": "web-r2-1", "address": "10.0.2.1:80", "state": "ready", "weight": 100, "check": "L7OK", "sessions": 3,
    }
    assert list(told["releases"][0]) == ["number", "status", "image", "revision", "by", "started", "finished", "reason"]
    assert told["lease"] is None
    assert json.loads(json.dumps(told)) == told


def test_what_people_see() -> None:
    held = {"holder": "ann@here pid 7", "state": "running", "since": NOW, "until": NOW}
    history = replace(HISTORY, releases=(*HISTORY.releases, release(3, "failed", reason="web-r3-1 answered 500")))
    assert lines(DEFINITION, status(DEFINITION, WORLD, history, held, ("the chain is broken",)), NOW) == [
        "r2 shop:2 is live for 23 h, 2 serving, revision g1",
        "",
        "instances web-r1-1  local  10.0.1.1:80  stopped  2 h",
        "          web-r1-2  local  10.0.1.2:80  stopped  2 h",
        "          web-r2-1  local  10.0.2.1:80  running  2 h",
        "          web-r2-2  local  10.0.2.2:80  running  2 h",
        "",
        "balancers lb1  web-r2-1  10.0.2.1:80  ready  100  L7OK  3 connections",
        "          lb1  web-r2-2  10.0.2.2:80  ready  100  L7OK  3 connections",
        "          lb2  web-r2-1  10.0.2.1:80  ready  100  L7OK  3 connections",
        "          lb2  web-r2-2  10.0.2.2:80  ready  100  L7OK  3 connections",
        "",
        "releases  r3  failed   shop:3  ann@here  23 h  web-r3-1 answered 500",
        "          r2  live     shop:2  ann@here  23 h",
        "          r1  standby  shop:1  ann@here  23 h",
        "",
        "lease     ann@here pid 7 is at work",
        "",
        "findings  the chain is broken",
        "",
        "back      ansible-playbook phoenix.fleet.rollback -l web",
        "forward   ansible-playbook phoenix.fleet.release -l web -e release_image=IMAGE",
    ]


def test_the_way_back_from_a_rollback_names_the_release() -> None:
    rows = (release(1, "live"), release(2, "standby"))
    told = lines(DEFINITION, status(DEFINITION, WORLD, replace(HISTORY, live=1, releases=rows)), NOW)
    assert told[-2] == "back      ansible-playbook phoenix.fleet.rollback -l web -e rollback_to=2"


def test_a_fleet_that_was_never_released() -> None:
    told = status(DEFINITION, World(balancers=(Balancer("lb1"), Balancer("lb2"))), History(""))
    assert (told["live"], told["findings"]) == (None, [])
    assert lines(DEFINITION, told, NOW) == [
        "nothing is live", "", "forward   ansible-playbook phoenix.fleet.release -l web -e release_image=IMAGE",
    ]


HEAL = "ansible-playbook phoenix.fleet.heal -l web"
LEFT = (*WORLD.instances, instance(3, 1))
GONE = on_lb1(servers=(server(2, 1), server(2, 2, up=False)))
LOST = instance(2, 2, host="pve2", state="unknown", address="", number=7, note="node pve2 is offline")
LOSING = replace(HISTORY, reserved={"pve #7": "web-r2-2"})


@pytest.mark.parametrize(("world", "history", "finding"), [
    (on_lb1(reachable=False, error="timed out", head=None, servers=()), HISTORY,
     "lb1 cannot be observed (timed out), and may be serving anything"),
    (replace(WORLD, balancers=BALANCERS[:1]), HISTORY, "lb2 was not observed"),
    (on_lb1(servers=BALANCERS[0].servers[:1]), HISTORY, f"lb1 has no server web-r2-2, and others do; {HEAL} puts it right"),
    (on_lb1(head=None), HISTORY, f"lb1 has no fragment of this fleet; {HEAL} puts it right"),
    (on_lb1(head=Head("M", 7, "web", 2, 3)), HISTORY, "lb1 belongs to the ledger M, not to L; to take it over: -e fleet_adopt=true"),
    (on_lb1(head=Head("L", 8, "web", 2, 3)), HISTORY,
     "lb1 knows run 8 and this ledger only 7: it is an old copy; use the newest, or -e fleet_adopt=true"),
    (on_lb1(head=Head("L", 7, "web", 2, 3, 9)), HISTORY,
     "lb1 was told of 9 records and this ledger has only 0: it is an old copy; use the newest, or -e fleet_adopt=true"),
    (on_lb1(head=Head("L", 7, "web", 1, 3)), HISTORY, f"on lb1 r1 is live, in the ledger r2; {HEAL} puts it right"),
    (on_lb1(head=Head("L", 7, "api", 2, 3)), HISTORY, "the backend web on lb1 belongs to fleet api; set fleet_backend to another one"),
    (on_lb1(strangers=(Server("old", "10.9.9.9", 81, 1),)), HISTORY, "lb1 has the server old (10.9.9.9:81), which is not of this fleet"),
    (on_lb1(servers=(server(2, 1, state="drain"), server(2, 2))), HISTORY,
     f"server web-r2-1 on lb1 is drain, and so takes no new requests; {HEAL} puts it right"),
    (on_lb1(servers=(server(2, 1, weight=0), server(2, 2))), HISTORY,
     f"server web-r2-1 on lb1 is at weight 0, and so takes no new requests; {HEAL} puts it right"),
    (on_lb1(servers=(server(2, 1, up=False, check="L4CON"), server(2, 2))), HISTORY,
     f"server web-r2-1 on lb1 is not up (L4CON); {HEAL} replaces it if it stays so"),
    (on_lb1(servers=(server(2, 1, port=81), server(2, 2))), HISTORY,
     f"server web-r2-1 on lb1 is at 10.0.2.1:81, its instance at 10.0.2.1:80; {HEAL} puts it right"),
    (replace(WORLD, balancers=tuple(replace(item, servers=(*item.servers, server(1, 1))) for item in BALANCERS)), HISTORY,
     f"server web-r1-1 on lb2 takes traffic, and r1 is not live; {HEAL} puts it right"),
    (replace(GONE, instances=WORLD.instances[:3]), HISTORY, f"1 of 2 instances of r2 exist; {HEAL} makes the others"),
    (replace(GONE, instances=WORLD.instances[:3]), HISTORY, f"server web-r2-2 on lb1 has no instance; {HEAL} puts it right"),
    (replace(WORLD, instances=WORLD.instances[:3]), HISTORY,
     "no listing shows web-r2-2, and every balancer calls it up: it stays; see whether it runs, and who has hidden it"),
    (replace(WORLD, instances=(*WORLD.instances[:3], replace(LOST, name="", release=0, slot=0))), LOSING,
     "instance web-r2-2 on pve2 is left alone: node pve2 is offline; every balancer calls it up"),
    (replace(GONE, instances=(*WORLD.instances[:3], LOST)), LOSING, "instance web-r2-2 on pve2 is left alone: node pve2 is offline"),
    (replace(WORLD, pools=(Pool("pve1", "network", taken=("#7",), realm="pve"),)), replace(LOSING, reserved={"pve #7": "web-r2-3"}),
     "instance web-r2-3 is left alone: its number is taken, and nothing else can be observed of it; bring its host back"),
    (replace(WORLD, instances=(*WORLD.instances, instance(1, 3))), HISTORY,
     f"instance web-r1-3 on local runs, and r1 is a standby; {HEAL} takes it away"),
    (replace(WORLD, instances=(instance(2, 1), instance(2, 2, state="stopped"))), HISTORY,
     f"instance web-r2-2 on local is stopped; {HEAL} puts it right"),
    (replace(WORLD, instances=(instance(2, 1), instance(2, 2, health="unhealthy"))), HISTORY,
     f"instance web-r2-2 on local is unhealthy; {HEAL} puts it right"),
    (replace(WORLD, instances=(*WORLD.instances, instance(2, 3))), HISTORY,
     f"instance web-r2-3 on local is behind no balancer; {HEAL} puts it right"),
    (replace(WORLD, instances=LEFT), HISTORY, f"instance web-r3-1 on local is left over: the ledger knows no r3; {HEAL} takes it away"),
    (replace(WORLD, instances=LEFT), replace(HISTORY, releases=(*HISTORY.releases, release(3, "failed"))),
     f"instance web-r3-1 on local is left over: r3 is failed; {HEAL} takes it away"),
    (replace(WORLD, instances=(*WORLD.instances[:3], instance(2, 2, marker={"phoenix.fleet.ledger": "M"}))), HISTORY,
     "instance web-r2-2 on local belongs to another ledger (M); to take it over: -e fleet_adopt=true"),
    (WORLD, replace(HISTORY, entry=Entry(3, "release", 2, 3, ("intent", "commit"))),
     f"the release of r3 did not end, its last record is commit; {HEAL} puts it right"),
])
def test_what_is_amiss_is_named(world: World, history: History, finding: str) -> None:
    assert finding in findings(world, history)


def test_a_run_at_work_is_no_finding() -> None:
    history = replace(HISTORY, entry=Entry(3, "release", 2, 3, ("intent",)))
    world = replace(WORLD, instances=LEFT, balancers=tuple(
        replace(item, servers=(*item.servers, server(3, 1, weight=0, up=False))) for item in BALANCERS))
    assert findings(world, history, lease={"holder": "ann@here pid 7", "until": NOW}) == []


def test_nothing_is_concluded_from_instances_that_were_not_seen() -> None:
    assert findings(replace(WORLD, instances=()), unseen="engine down") == ["the instances cannot be observed: engine down"]


NUMBER = st.integers(1, 3)
INSTANCES = st.lists(st.builds(instance, NUMBER, NUMBER, state=st.sampled_from(["running", "stopped"]))).map(tuple)
SERVERS = st.lists(st.builds(server, NUMBER, NUMBER, weight=st.sampled_from([0, 100]), up=st.booleans()), max_size=4).map(tuple)
SEEN = st.lists(st.builds(Balancer, st.sampled_from(["lb1", "lb2"]), st.booleans(), servers=SERVERS), max_size=2).map(tuple)


@given(st.builds(World, INSTANCES, SEEN))
def test_any_world_can_be_told(world: World) -> None:
    told = status(DEFINITION, world, HISTORY)
    assert json.loads(json.dumps(told)) == told
    assert len(set(told["findings"])) == len(told["findings"])
    assert lines(DEFINITION, told, NOW)


def test_ages() -> None:
    then = ("2026-03-02T11:59:59Z", "2026-03-02T11:58:00Z", "2026-02-27T12:00:00+00:00", "", "soon", "2026-03-03T00:00:00Z")
    assert [age(item, NOW) for item in then] == ["1 s", "2 min", "3 d", "", "", "0 s"]


def test_a_copy_is_told_with_its_original_and_is_no_instance() -> None:
    copy = Copy("VM 205 (Copy-of-VM-web-r2-1) on node pve1", "pve1", "web-r2-1", "its marker is that of 100002")
    assert findings(replace(WORLD, copies=(copy,))) == [
        "VM 205 (Copy-of-VM-web-r2-1) on node pve1 bears the marker of web-r2-1 and is another one (its marker is that of 100002): "
        "unmanaged, it is never touched; remove it yourself if nobody needs it",
    ]


def test_of_two_with_an_earlier_versions_marker_the_ledger_knows_the_instance() -> None:
    numbered = tuple(replace(item, number=100000 + index) for index, item in enumerate(WORLD.instances))
    history = replace(HISTORY, reserved={f"proxmox #{item.number}": item.name for item in numbered})
    assert findings(replace(WORLD, instances=numbered), history) == []
    copy = replace(numbered[2], id="205/uuid/nonce", number=205)
    told = status(DEFINITION, replace(WORLD, instances=(*numbered, copy)), history)
    assert len(told["instances"]) == 4 and len(told["findings"]) == 1 and "guest 205 bears the marker of web-r2-1" in told["findings"][0]


def test_an_earlier_versions_marker_of_another_ledger_is_left_to_that() -> None:
    foreign = instance(2, 3, id="9/uuid/nonce", number=9, marker={"phoenix.fleet.ledger": "theirs"})
    assert "belongs to another ledger" in findings(replace(WORLD, instances=(*WORLD.instances, foreign)))[0]
