# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nothing is stopped that a balancer may serve: balancers and backends that leave the definition, with a real engine and real HAProxys."""

from __future__ import annotations

import json
import sqlite3

import pytest
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess
from ansible_collections.phoenix.fleet.tests.load import Load


@pytest.fixture
def second(site: Site, second: HAProxyProcess) -> HAProxyProcess:
    """v1 behind both balancers."""
    site.release()
    return second


def registrations(site: Site) -> dict[tuple[str, str], str]:
    """(server, balancer) -> how its being out was proved, `-` where there is no receipt."""
    ledger = Ledger("", str(site.folder / "state"))
    rows = [item for item in ledger.history(site.name("web")).registrations if item.balancer]
    return {(item.server.removeprefix(site.name("web") + "-"), item.balancer): item.receipt.proof if item.receipt else "-" for item in rows}


def test_every_balancer_gives_a_receipt_for_what_is_stopped(site: Site, images: str, second: HAProxyProcess) -> None:
    assert registrations(site) == {(f"r1-{slot}", host): "-" for slot in (1, 2) for host in ("lb1", "lb2")}
    site.release(release_image=f"{images}:v2")
    old, new = ({(f"r{number}-{slot}", host) for slot in (1, 2) for host in ("lb1", "lb2")} for number in (1, 2))
    assert registrations(site) == {**dict.fromkeys(old, "idle"), **dict.fromkeys(new, "-")}


def test_a_balancer_that_the_inventory_has_lost_goes_on_serving(site: Site, images: str, second: HAProxyProcess) -> None:
    """A dynamic source that returned half of the group: its instances were stopped while it served them."""
    lost = site.balancers.pop("lb2")
    site.fleet("web")
    before = site.service()
    with Load(second.url("web") + "/", rate=50) as load:
        verbs = {"release": {"release_image": f"{images}:v2"}, "scale": {"scale_size": 1}, "retire": {"retire_confirm": site.name("web")}}
        for verb, extra in {**verbs, "heal": {}}.items():
            run = site.play(verb, **extra)
            assert run.code and "balancer lb2: it may be serving" in run.output and "-e fleet_lost_balancers=lb2" in run.output, run.output
    assert load.result["failed"] == 0 and site.service() == before
    site.play("status", status_file=str(site.folder / "status.json"))
    findings = json.loads((site.folder / "status.json").read_text())["findings"]
    assert any("lb2 may be serving" in item and "fleet_lost_balancers=lb2" in item for item in findings), findings

    second.stop()  # gone for good, with its machine
    gone = site.release(release_image=f"{images}:v2", fleet_lost_balancers=["lb2"])
    assert gone.result["live"] == 2 and registrations(site)["r1-1", "lb2"] == "operator"
    receipt = next(
        item.receipt for item in Ledger("", str(site.folder / "state")).history(site.name("web")).registrations
        if item.balancer == "lb2" and item.receipt
    )
    assert receipt.by and "@" in receipt.by
    assert site.release(release_image=f"{images}:v2").changed == 0
    site.balancers["lb2"] = lost
    site.fleet("web")
    both = site.play("release", fleet_lost_balancers="lb2")
    assert both.code and "fleet_lost_balancers: lb2 is in fleet_balancers as well" in both.output, both.output


def test_a_backend_is_not_left_while_it_serves(make_site: object, images: str) -> None:
    """fleet_backend was changed together with the image: the former backend kept its weights on stopped containers."""
    site: Site = make_site("web", "shop")  # type: ignore[operator]
    site.fleet("web", fleet_image=f"{images}:v1")
    site.release()
    site.fleet("web", fleet_image=f"{images}:v2", fleet_backend="shop")
    before = site.service()
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        for verb, extra in (("release", {}), ("retire", {"retire_confirm": site.name("web")}), ("heal", {})):
            run = site.play(verb, **extra)
            assert run.code and "backend web on lb1: it may be serving" in run.output and "Set fleet_backend: web" in run.output, run.output
    assert load.result["failed"] == 0 and site.service() == before
    assert site.versions("web") == {"v1"}


def test_a_ledger_from_before_there_were_receipts(site: Site, images: str, second: HAProxyProcess) -> None:
    site.release(release_image=f"{images}:v2")
    with sqlite3.connect(site.folder / "state" / "ledger.sqlite3") as file:
        file.execute("DROP TABLE phoenix_registrations")
        file.execute("UPDATE phoenix_ledger SET version = 3")
    with Load(second.url("web") + "/", rate=50) as load:
        site.release(release_image=f"{images}:v1")
    assert load.result["failed"] == 0
    assert site.kept("web") == ["r2-1", "r2-2", "r3-1", "r3-2"]


def test_modules_without_a_lease_leave_a_fleets_instances_alone(site: Site) -> None:
    site.release()
    before = site.service()
    fleet = site.name("web")
    observed = {"phoenix.fleet.instances": {"verb": "observe", "fleet": fleet, "port": 8080}, "register": "seen"}
    by_hand = {"phoenix.fleet.instances": {"verb": "decommission", "fleet": fleet, "instances": "{{ seen.instances }}"}}
    absent = {"phoenix.fleet.docker_instances": {
        "fleet": fleet, "release": 1, "state": "absent", "ledger": "{{ seen.instances[0].marker['phoenix.fleet.ledger'] }}",
    }}
    for task in (by_hand, absent):
        run = site.own_play([{"hosts": "web", "gather_facts": False, "connection": "local", "tasks": [observed, task]}])
        assert run.code and "it belongs to ledger" in run.output and "a balancer may be serving it" in run.output, run.output
    assert site.service() == before
