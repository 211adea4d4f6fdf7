# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other people's plays: whatever surrounds the role, a bad image changes nothing, and the run says so. A real engine, a real HAProxy."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Run, Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess
from ansible_collections.phoenix.fleet.tests.load import Load

ROLE = "phoenix.fleet.release"
Play = dict[str, Any]


@pytest.fixture(scope="module")
def place(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two fleets, web and api, whose v1 serves. No test of this page may change what serves."""
    folder = tmp_path_factory.mktemp("plays")
    haproxy = HAProxyProcess(folder / "haproxy", backends=("web", "api"))
    haproxy.start()
    site = Site(folder, haproxy, zlib.crc32(b"other plays") % 8192)
    try:
        for name in ("web", "api"):
            site.fleet(name, fleet_image=f"{images}:v1", fleet_check_timeout=2)
        site.release()
        yield site
    finally:
        site.close()
        haproxy.stop()


def play(*tasks: Play, hosts: str = "web", **keywords: Any) -> list[Play]:
    """Somebody's play, which goes on after the role where it may, and tells what it heard."""
    heard = {"debug": {"msg": "{{ inventory_hostname }} HEARD failed={{ release_result.failed | default(false) }}"}}
    return [{"hosts": hosts, "gather_facts": False, "tasks": [*tasks, heard], **keywords}]


def role(**keywords: Any) -> Play:
    return {"name": "Ship it", "import_role": {"name": ROLE}, **keywords}


def included(**keywords: Any) -> Play:
    applied = {"apply": keywords.pop("apply")} if "apply" in keywords else {}
    return {"name": "Ship it", "include_role": {"name": ROLE, **applied}, **keywords}


# name: the play, ansible-playbook's arguments, whether the run as a whole ends well
TABLE: dict[str, tuple[list[Play], tuple[str, ...], bool]] = {
    "nothing": (play(role()), (), False),
    "ignore_errors on the role": (play(role(ignore_errors=True)), (), True),
    "ignore_errors on the play": (play(role(), ignore_errors=True), (), True),
    "ignore_errors on an include": (play(included(apply={"ignore_errors": True})), (), True),
    "ignore_unreachable": (play(role(), ignore_unreachable=True), (), False),
    "any_errors_fatal": (play(role(), any_errors_fatal=True), (), False),
    "max_fail_percentage": (play(role(), max_fail_percentage=0), (), False),
    "serial": (play(role(), serial=1), (), False),
    "throttle": (play(role(throttle=1)), (), False),
    "strategy free": (play(role(), strategy="free"), (), False),
    "strategy host_pinned": (play(role(), strategy="host_pinned"), (), False),
    "no_log": (play(role(no_log=True)), (), False),
    "become": (play(role(become=True), become=True, become_user="nobody"), (), False),
    "run_once": (play(role(run_once=True)), (), False),
    "tags": (play(role(tags=["ship"])), ("--tags", "ship,always"), False),
    "one fork": (play(role()), ("-f", "1"), False),
    "twice in a play": (play(role(ignore_errors=True), role(ignore_errors=True)), (), True),
    "in a loop": (play(included(loop=[1, 2], apply={"ignore_errors": True})), (), True),
    "in a block with its own rescue": (play({"block": [role()], "rescue": [{"debug": {"msg": "theirs"}}]}), (), True),
    "in a block of handlers' flush": (play({"block": [role()], "always": [{"meta": "flush_handlers"}]}), (), False),
    "delegated": (play(role(delegate_to="localhost")), (), False),
    "connection": (play(role(), connection="ssh"), (), False),
}


def ended(site: Site, fleet: str) -> bool:
    """Whether nothing is left for a next run to put right."""
    return Ledger("", str(site.folder / "state")).history(site.name(fleet)).entry is None


def told(run: Run, fleet: str) -> str:
    """What the play heard of a fleet: `True`, `False`, or nothing where it was not reached."""
    found = re.findall(rf"{fleet} HEARD failed=(\w+)", run.output)
    return found[-1] if found else ""


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_image_changes_nothing(place: Site, images: str, name: str) -> None:
    plays, arguments, ends_well = TABLE[name]
    before = place.service()
    with Load(place.haproxy.url("web") + "/", rate=50) as load:
        run = place.own_play(plays, *arguments, release_image=f"{images}:v3")
    assert load.result["failed"] == 0, (load.result, run.output)
    assert (run.code == 0) == ends_well, run.output
    assert told(run, "web") == ("True" if ends_well else ""), run.output
    assert place.service() == before, run.output
    assert "did not go live" in run.output or name == "no_log", run.output
    assert ended(place, "web"), run.output


# Two fleets, of which one fails: the other is either released, or as it was.
BOTH: dict[str, tuple[list[Play], tuple[str, ...]]] = {
    "linear": (play(role(), hosts="fleets"), ()),
    "any_errors_fatal": (play(role(), hosts="fleets", any_errors_fatal=True), ()),
    "any_errors_fatal and free": (play(role(), hosts="fleets", any_errors_fatal=True, strategy="free"), ()),
    "max_fail_percentage": (play(role(), hosts="fleets", max_fail_percentage=10), ()),
    "serial": (play(role(), hosts="fleets", serial=1), ()),
    "run_once": (play(role(run_once=True), hosts="fleets"), ()),
    "one fork": (play(role(), hosts="fleets"), ("-f", "1")),
    "ignore_errors and any_errors_fatal": (play(role(), hosts="fleets", any_errors_fatal=True, ignore_errors=True), ()),
}


@pytest.mark.parametrize("name", BOTH)
def test_a_fleet_that_fails_takes_no_healthy_one_with_it(place: Site, images: str, name: str) -> None:
    plays, arguments = BOTH[name]
    web, api = (place.name(fleet) for fleet in ("web", "api"))
    before = {fleet: [(item.id, item.status) for item in place.containers(fleet) if item.status == "running"] for fleet in ("web", "api")}
    wanted = "v2" if place.versions("api") == {"v1"} else "v1"
    place.fleet("web", fleet_image=f"{images}:v3")
    place.fleet("api", fleet_image=f"{images}:{wanted}")
    try:
        with Load(place.haproxy.url("web") + "/", rate=25) as one, Load(place.haproxy.url("api") + "/", rate=25) as two:
            run = place.own_play(plays, *arguments)
    finally:
        place.fleet("web", fleet_image=f"{images}:v1")
    assert (one.result["failed"], two.result["failed"]) == (0, 0), run.output
    assert [(item.id, item.status) for item in place.containers("web") if item.status == "running"] == before["web"], run.output
    assert f"of fleet {web} did not go live" in run.output, run.output
    released = place.versions("api") == {wanted}
    assert released != ([(item.id, item.status) for item in place.containers("api") if item.status == "running"] == before["api"])
    assert released or f"fleet {api}" in run.output or name in ("serial", "run_once"), run.output
    if not released:
        place.fleet("api", fleet_image=f"{images}:{(place.versions('api')).pop()}")
    assert ended(place, "web") and ended(place, "api"), run.output


@pytest.mark.parametrize("keywords", [{"check_mode": True}, {"apply": {"check_mode": True}}], ids=["import", "include"])
def test_check_mode_on_the_role_touches_nothing(place: Site, images: str, keywords: Play) -> None:
    before = place.world()
    task = included(**keywords) if "apply" in keywords else role(**keywords)
    run = place.own_play(play(task), release_image=f"{images}:v2")
    assert run.code == 0 and "nothing was touched" in run.output and place.world() == before, run.output


def test_a_run_that_begins_in_the_middle_does_nothing_and_says_so(place: Site, images: str) -> None:
    before = place.world()
    for task in ("Finish", "Look once more", "Plan"):
        run = place.own_play(play(role()), "--start-at-task", task, release_image=f"{images}:v2")
        assert run.code and place.world() == before, run.output
    assert Path(place.inventory).exists()
