# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The main job, end to end: the command that a user types, a real engine, a real HAProxy."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import until
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.load import Load

MakeSite = Callable[..., Site]
Values = dict[str, Any]
Words = tuple[str, ...]


def test_first_release_and_the_same_again(site: Site) -> None:
    first = site.release()
    assert first.result["live"] == 1 and first.changed > 0
    assert site.running("web") == ["r1-1", "r1-2"]
    assert site.versions("web") == {"v1"}

    before = site.service()
    again = site.release()
    assert again.changed == 0 and "nothing to do" in again.output
    assert site.service() == before


def test_next_image_loses_no_request(site: Site, images: str) -> None:
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=100) as load:
        run = site.release(release_image=f"{images}:v2")
    assert load.result["failed"] == 0, load.result
    assert run.result["live"] == 2 and site.versions("web") == {"v2"}
    assert site.running("web") == ["r2-1", "r2-2"]
    assert site.kept("web") == ["r1-1", "r1-2", "r2-1", "r2-2"], "the predecessor is kept"
    assert site.release(release_image=f"{images}:v2").changed == 0

    third = site.release(release_image=f"{images}:v1")
    assert third.result["live"] == 3 and site.versions("web") == {"v1"}
    assert site.kept("web") == ["r2-1", "r2-2", "r3-1", "r3-2"], "one predecessor is kept"


def test_heal_replaces_one_share_after_the_other(site: Site) -> None:
    site.fleet("web", fleet_size=3)
    site.release()
    gone, dead, _well = site.containers("web")
    gone.remove(force=True)
    dead.stop(timeout=0)
    until("HAProxy to notice", lambda: [row["srv_op_state"] for row in site.haproxy.servers("web").values()].count("0") == 2)
    assert "share in percent" in site.play("heal", heal_share=200).output
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        run = site.play("heal")
    assert run.code == 0 and load.result["failed"] == 0, (run.output, load.result)
    provisions = re.findall(r"r1 \S+ started$|\S+-r1-\d+ started$", run.output, re.M)
    assert len(provisions) == 2, run.output
    assert site.running("web") == ["r1-3", "r1-4", "r1-5"] == site.kept("web")
    assert site.play("heal").changed == 0


def test_what_serves_stays_although_the_engine_lists_it_no_more(site: Site, images: str) -> None:
    """Renamed by hand, a container is no instance to its engine. HAProxy calls it up: heal leaves it in service, a release takes it out."""
    site.release()
    item, servers = site.containers("web")[0], site.haproxy.weights("web")
    name = item.name
    item.rename(f"{name}-mine")
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        healed = site.play("heal")
        assert healed.code == 0 and site.haproxy.weights("web") == servers, healed.output
        told = site.play("status").output
        assert f"{name}-mine" in told and f"no listing shows {name}, and every balancer calls it up" in told, told
        site.release(release_image=f"{images}:v2")
        assert site.versions("web") == {"v2"}
        item.reload()
        assert item.status == "running", "it is nobody's, and was stopped"
        item.rename(name)
        assert site.play("heal").code == 0
    assert load.result["failed"] == 0, load.result
    assert site.running("web") == ["r2-1", "r2-2"]


def test_change_of_definition_alone_is_a_release(site: Site) -> None:
    site.release()
    site.fleet("web", fleet_docker={**site.fleets["web"]["fleet_docker"], "environment": {"COLOUR": "green"}})
    assert site.release().result["live"] == 2
    assert all("COLOUR=green" in item.attrs["Config"]["Env"] for item in site.containers("web") if item.status == "running")
    assert site.release().changed == 0


def test_moved_tag_is_a_release(site: Site, images: str) -> None:
    tag = f"{images}:moving-{site.network}"
    try:
        site.engine.images.get(f"{images}:v1").tag(tag)
        site.fleet("web", fleet_image=tag)
        site.release()
        site.engine.images.get(f"{images}:v2").tag(tag)
        assert site.release().result["live"] == 2
        assert site.versions("web") == {"v2"}
        again = site.release()
        assert again.changed == 0, again.output
    finally:
        site.engine.images.remove(tag)


def test_size_changes_together_with_the_image(site: Site, images: str) -> None:
    site.release()
    site.fleet("web", fleet_size=3, fleet_image=f"{images}:v2")
    assert site.release().result["live"] == 2
    assert site.running("web") == ["r2-1", "r2-2", "r2-3"]
    assert site.versions("web") == {"v2"}
    assert site.release().changed == 0


def test_force_releases_the_same_anew(site: Site) -> None:
    site.release()
    assert site.release(release_force=True).result["live"] == 2
    assert site.running("web") == ["r2-1", "r2-2"]


def test_check_shows_the_plan_and_touches_nothing(site: Site, images: str) -> None:
    before = site.world()
    first = site.release("--check", "--diff")
    assert f"{images}:v1" in first.output and f"{site.name('web')}-r1-2" in first.output
    assert site.world() == before and not site.containers("web")

    site.release()
    before = site.world()
    second = site.release("--check", "--diff", release_image=f"{images}:v2")
    assert f"{images}:v2" in second.output and f"{site.name('web')}-r2-2" in second.output
    assert site.world() == before
    assert site.release().changed == 0, "a plan that was only shown has left no release behind"


def test_broken_image_is_refused_and_the_world_is_as_before(site: Site, images: str) -> None:
    site.release()
    site.fleet("web", fleet_check_timeout=3)
    before = site.service()
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        run = site.play("release", release_image=f"{images}:v3")
    assert run.code != 0 and "Traceback" not in run.output
    assert load.result["failed"] == 0, load.result
    told = " ".join(" ".join(run.story[-12:]).split())
    for words in ("did not go live", "-r2-1", "500", "orders database", "r1 serves"):
        assert words in told, run.output
    assert site.service() == before
    kept = [path for path in (site.folder / "state").rglob("*-r2-1*") if path.is_file()]
    assert any("orders database" in path.read_text() for path in kept), "the last words of what was taken away"

    site.fleet("web", fleet_check_timeout=20)
    assert site.release(release_image=f"{images}:v2").result["live"] == 3, "numbers are never used twice"


def test_fleets_of_one_run_neither_wait_for_one_another_nor_fail_together(make_site: MakeSite, images: str, tmp_path: Path) -> None:
    site = make_site("good", "bad", "slow")
    ready = tmp_path / "ready"
    site.fleet("good", fleet_image=f"{images}:v1")
    site.fleet("bad", fleet_image=f"{images}:v3", fleet_check_timeout=3)
    site.fleet("slow", fleet_image=f"{images}:v1", fleet_checks=[{"command": ["/usr/bin/test", "-e", str(ready)]}], fleet_check_timeout=120)
    with ThreadPoolExecutor() as background:
        running = background.submit(site.play, "release")
        try:
            until("the good fleet to serve", lambda: running.done() or any(site.haproxy.weights("good").values()))
            assert not running.done() and not any(site.haproxy.weights("slow").values())
        finally:
            ready.touch()
        run = running.result()
    assert run.code != 0 and "did not go live" in run.output, run.output
    assert site.versions("good") == site.versions("slow") == {"v1"}, run.output
    assert not any(site.haproxy.weights("bad").values())


MISTAKES: list[tuple[str, Values, Words]] = [
    ("no image", {"fleet_image": ""}, ("fleet_image",)),
    ("unknown image", {"fleet_image": "phoenix-test:nowhere"}, ("phoenix-test:nowhere",)),
    ("misspelt variable", {"fleet_check_timout": 5}, ("fleet_check_timout", "fleet_check_timeout")),
    ("wrong type", {"fleet_size": "two"}, ("fleet_size", "two")),
    ("no instance", {"fleet_size": 0}, ("fleet_size", "0")),
    ("impossible name", {"fleet_name": "Web_1"}, ("fleet_name", "Web_1")),
    ("port out of range", {"fleet_port": 70000}, ("fleet_port", "70000")),
    ("unknown strategy", {"fleet_strategy": "big_bang"}, ("fleet_strategy", "big_bang", "blue_green")),
    ("unknown provider", {"fleet_provider": "dockr"}, ("fleet_provider", "dockr", "docker")),
    ("unknown balancer", {"fleet_balancers": ["lb9"]}, ("fleet_balancers", "lb9")),
    ("unknown check", {"fleet_checks": [{"htpp": {}}]}, ("fleet_checks", "htpp")),
    ("unknown provider option", {"fleet_docker": {"netwrok": "x"}}, ("netwrok", "network")),
    ("engine down", {"fleet_docker": {"hosts": ["unix:///nowhere/docker.sock"]}}, ("/nowhere/docker.sock",)),
    ("ledger out of reach", {"fleet_ledger": "postgresql+psycopg://me:hushhush@127.0.0.1:9/x"}, ("127.0.0.1", "ledger")),
    ("state folder impossible", {"fleet_state_dir": "/proc/nowhere"}, ("/proc/nowhere",)),
    ("several at once", {"fleet_size": "two", "fleet_port": 0, "fleet_keep": -1}, ("fleet_size", "fleet_port", "fleet_keep")),
    ("fleet on hold", {"fleet_hold": "the audit is on"}, ("the audit is on",)),
]


@pytest.mark.parametrize("mistake, variables, words", MISTAKES, ids=[item[0].replace(" ", "-") for item in MISTAKES])
def test_bad_input_is_refused_before_anything_is_touched(site: Site, mistake: str, variables: Values, words: Words) -> None:
    site.fleet("web", **variables)
    before = site.service()
    run = site.play("release")
    assert run.code != 0, run.output
    assert all(word in run.output for word in words), run.output
    assert "Traceback" not in run.output and "hushhush" not in run.output, run.output
    assert site.service() == before


BALANCERS: list[tuple[str, Values, Words]] = [
    ("no socket", {"haproxy_socket": "/nowhere/admin.sock"}, ("/nowhere/admin.sock", "lb1")),
    ("folder not read by HAProxy", {"haproxy_config_dir": "/nowhere/conf.d"}, ("/nowhere/conf.d",)),
]


@pytest.mark.parametrize("mistake, variables, words", BALANCERS, ids=[item[0].replace(" ", "-") for item in BALANCERS])
def test_balancer_that_cannot_be_worked_with_is_refused(site: Site, mistake: str, variables: Values, words: Words) -> None:
    site.balancers["lb1"].update(variables)
    site.fleet("web")
    before = site.service()
    run = site.play("release")
    assert run.code != 0 and "Traceback" not in run.output, run.output
    assert all(word in run.output for word in words), run.output
    assert site.service() == before


def test_limits_that_name_no_fleet_are_refused(make_site: MakeSite, images: str) -> None:
    site = make_site("web", "api")
    site.fleet("web", fleet_image=f"{images}:v1")
    site.fleet("api", fleet_image=f"{images}:v1")
    outside = site.play("release", "-l", "lb1")
    assert outside.code != 0 and "lb1" in outside.output
    unknown = site.play("release", "-l", "wbe")
    assert unknown.code != 0 and "wbe" in unknown.output
    everywhere = site.play("release", release_image=f"{images}:v2")
    assert everywhere.code != 0 and "release_image" in everywhere.output
    assert not site.containers("web") and not site.containers("api")
