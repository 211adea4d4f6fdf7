# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going back, on real parts: the standby serves again if it is just as it was, and is replaced by the same image where it is not."""

from __future__ import annotations

import io
import json
import tarfile

import docker
import pytest
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import until
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Run, Site


def rollback(site: Site, *arguments: str, **extra: object) -> Run:
    run = site.play("rollback", *arguments, **extra)
    assert run.code == 0, run.output
    return run


def write(site: Site, name: str, path: str) -> None:
    """As `docker cp` does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(path[1:]))
    site.engine.api.put_archive(f"{site.name('web')}-{name}", "/", buffer.getvalue())


def two_releases(site: Site, images: str) -> dict[str, str]:
    """v1, then v2, which is live; returns the ids of the standby by name."""
    site.release()
    site.release(release_image=f"{images}:v2")
    return {item.name.rpartition("-r")[2]: item.id for item in site.containers("web") if item.status == "exited"}


def test_an_untouched_standby_serves_again_and_one_that_changed_never(site: Site, images: str) -> None:
    standby = two_releases(site, images)
    assert sorted(standby) == ["1-1", "1-2"]
    went = rollback(site)
    assert went.result["live"] == 1 and "rollback_to=2" in went.result["message"]
    assert site.versions("web") == {"v1"} and site.running("web") == ["r1-1", "r1-2"]
    assert {item.name.rpartition("-r")[2]: item.id for item in site.containers("web") if item.status == "running"} == standby
    again = rollback(site)
    assert again.changed == 0, again.output

    write(site, "r2-1", "/etc/planted")
    site.engine.containers.get(f"{site.name('web')}-r2-2").remove(force=True)
    back = rollback(site, rollback_to=2)
    assert back.result["live"] == 2 and site.versions("web") == {"v2"}
    assert "r2-1" in back.output and "changed since being stopped" in back.output
    fresh = [item for item in site.containers("web") if item.status == "running"]
    assert len(fresh) == 2 and not any(item.diff() and "/etc/planted" in json.dumps(item.diff()) for item in fresh)
    assert len({item.attrs["Image"] for item in fresh}) == 1
    assert fresh[0].attrs["Image"] == site.engine.images.get(f"{images}:v2").id


def test_one_that_somebody_started_and_stopped_is_replaced(site: Site, images: str) -> None:
    standby = two_releases(site, images)
    touched = site.engine.containers.get(standby["1-1"])
    touched.start()
    touched.stop(timeout=1)
    other = site.engine.containers.get(standby["1-2"])
    other.start()  # and this one runs on
    assert rollback(site).result["live"] == 1 and site.versions("web") == {"v1"}
    assert not {item.id for item in site.containers("web")} & set(standby.values())


def test_a_running_standby_needs_no_seal_and_may_have_had_an_accident(site: Site, images: str) -> None:
    site.fleet("web", fleet_standby="running")
    site.release()
    former = {item.id for item in site.containers("web")}
    site.release(release_image=f"{images}:v2")
    assert site.running("web") == ["r1-1", "r1-2", "r2-1", "r2-2"]
    one = site.engine.containers.get(f"{site.name('web')}-r1-1")
    one.exec_run(["sh", "-c", "kill 1"])
    until("the engine has restarted it", lambda: one.reload() or (one.attrs["RestartCount"], one.status) == (1, "running"))
    assert rollback(site).result["live"] == 1
    assert former <= {item.id for item in site.containers("web")}


def test_going_back_to_any_release_whose_image_is_there(site: Site, images: str) -> None:
    tag = f"{site.network}:going"
    build = io.BytesIO(f"FROM {images}:v1\nLABEL test={site.network}\n".encode())
    site.engine.images.build(fileobj=build, tag=tag, rm=True)
    try:
        site.fleet("web", fleet_image=tag)
        site.release()
        site.release(release_image=f"{images}:v2")
        site.release(release_image=f"{images}:v1")
        assert site.kept("web") == ["r2-1", "r2-2", "r3-1", "r3-2"]
        assert rollback(site, rollback_to=1).result["live"] == 1
        assert {item.attrs["Config"]["Labels"]["test"] for item in site.containers("web") if item.status == "running"} == {site.network}
        site.release(release_image=f"{images}:v2")
        site.release(release_image=f"{images}:v1")

        site.engine.images.remove(tag, force=True)
        with pytest.raises(docker.errors.ImageNotFound):
            site.engine.images.get(tag)
        before = site.service()
        for arguments in (["--check"], []):
            run = site.play("rollback", *arguments, rollback_to=1)
            assert run.code != 0 and "Traceback" not in run.output
            assert f"image {tag}: engine local does not have sha256:" in run.output, run.output
            assert site.service() == before
        unknown = site.play("rollback", rollback_to=77)
        assert unknown.code != 0 and "r77" in unknown.output and "Releases to go back to" in unknown.output
        assert site.service() == before
    finally:
        for item in site.containers("web"):
            item.remove(force=True)
        if site.engine.images.list(tag):
            site.engine.images.remove(tag, force=True)


def test_a_standby_of_a_rollback_that_failed_is_as_good_as_before(site: Site, images: str) -> None:
    standby = two_releases(site, images)
    site.fleet("web", fleet_checks=[{"http": {"path": "/health"}}, {"command": ["false"]}], fleet_check_timeout=2)
    failed = site.play("rollback")
    assert failed.code != 0 and site.versions("web") == {"v2"}, failed.output
    until("the standby is stopped again", lambda: site.running("web") == ["r2-1", "r2-2"])
    site.fleet("web", fleet_checks=[{"http": {"path": "/health"}}], fleet_check_timeout=20)
    assert rollback(site).result["live"] == 1
    assert {item.id for item in site.containers("web") if item.status == "running"} == set(standby.values())


def test_images_go_with_the_releases_that_fall_out_of_retention_and_not_before(site: Site, images: str) -> None:
    """Its own images, which nobody else's tests use."""
    golden: dict[str, str] = {}
    for name, version in (("one", "v1"), ("two", "v2"), ("bad", "v3"), ("three", "v1")):
        text = f"FROM {images}:{version}\nLABEL {site.network}={name}"
        made = site.engine.images.build(fileobj=io.BytesIO(text.encode()), tag=f"{site.network}:{name}", rm=True)[0]
        golden[name] = str(made.id)

    def left() -> set[str]:
        there = {item.id for item in site.engine.images.list(all=True)}
        return {name for name, digest in golden.items() if digest in there}

    try:
        site.fleet("web", fleet_keep_images=0, fleet_check_timeout=6)
        for name in ("one", "two"):
            site.release(release_image=f"{site.network}:{name}")
        assert site.play("release", release_image=f"{site.network}:bad").code != 0
        assert left() == {"one", "two", "bad", "three"}  # nothing goes while something is put back
        run = site.release(release_image=f"{site.network}:three")
        assert left() == {"two", "three"}, run.output
        assert f"image {golden['one']} removed from engine local" in run.output
        rollback(site)
        assert site.versions("web") == {"v2"} and left() == {"two", "three"}
        site.fleet("web", fleet_keep_images=1)
        assert site.play("retire", retire_confirm=site.name("web")).code == 0
        assert left() == {"three"}
    finally:
        site.close()
        for name in left():
            site.engine.images.remove(f"{site.network}:{name}", force=True)
