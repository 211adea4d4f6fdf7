# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The main job with virtual machines: they boot, serve behind a real HAProxy under load, are kept as standby, come back and go."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.libvirt import connect
from ansible_collections.phoenix.fleet.tests.integration.conftest import ROOT
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import wait_until
from ansible_collections.phoenix.fleet.tests.integration.libvirt_host import LibvirtHost
from ansible_collections.phoenix.fleet.tests.load import Load

IMAGES = {version: f"phoenix-sample-{version}.qcow2" for version in ("v1", "v2", "v3")}


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    subprocess.run([str(ROOT / "tests/vm/build")], check=True, capture_output=True)
    with LibvirtHost(3) as made:
        for name in IMAGES.values():
            made.put(name, ROOT / "build/vm" / name)
        yield made


@pytest.fixture
def site(make_site: Callable[..., Site], host: LibvirtHost) -> Site:
    """A site with one fleet, `web`, of two machines with v1 that are emulated. Its definition differs from a container fleet's in
    the provider, the image and the provider's options alone."""
    site = make_site("web")
    site.fleet(
        "web", fleet_provider="libvirt", fleet_image=IMAGES["v1"], fleet_check_timeout=120, fleet_stop_timeout=30,
        fleet_libvirt={"pool": host.name, "network": host.name, "memory": "256m", "domain_type": "qemu"},
    )
    return site


def machines(host: LibvirtHost) -> dict[str, bool]:
    """By name without its fleet (`r1-1`): whether it runs."""
    return {re.sub(r"^web-\d+-", "", item.name()): bool(item.isActive()) for item in sorted(host.domains(), key=lambda item: item.name())}


def left(host: LibvirtHost) -> set[str]:
    """The instances that volumes were made for, or addresses reserved."""
    made = [name for name in host.volumes() if name not in IMAGES.values()]
    return {re.sub(r"^web-\d+-(r\d+-\d+).*", r"\1", name) for name in made + [name for name, _address in host.reservations()]}


def test_release_standby_rollback_and_retirement_lose_no_request(site: Site, host: LibvirtHost) -> None:
    first = site.release()
    assert first.result["live"] == 1 and machines(host) == {"r1-1": True, "r1-2": True}
    assert {re.sub(r".*\((.*)\)\s*", r"\1", site.ask("web")) for _time in range(8)} == {f"{site.name('web')}-r1-{slot}" for slot in (1, 2)}
    assert site.release().changed == 0
    before = {item.name(): item.UUIDString() for item in host.domains()}

    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        second = site.release(release_image=IMAGES["v2"])
    assert load.result["failed"] == 0 and load.result["sent"] > 200, load.result
    assert second.result["live"] == 2 and site.versions("web") == {"v2"}
    assert machines(host) == {"r1-1": False, "r1-2": False, "r2-1": True, "r2-2": True}
    assert {item.name(): item.autostart() for item in host.domains()} == {
        item.name(): int(bool(item.isActive())) for item in host.domains()}, "what serves comes back with its host, a standby does not"

    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        back = site.play("rollback")
    assert back.code == 0, back.output
    assert load.result["failed"] == 0 and load.result["sent"] > 200, load.result
    assert site.versions("web") == {"v1"} and machines(host) == {"r1-1": True, "r1-2": True, "r2-1": False, "r2-2": False}
    assert {name: uuid for name, uuid in before.items() if host.connection.lookupByUUIDString(uuid).isActive()} == before, "the very same"

    gone = site.play("retire", retire_confirm=site.name("web"))
    assert gone.code == 0, gone.output
    assert machines(host) == {} and left(host) == set()


def test_what_is_not_kept_is_destroyed_with_its_disks_and_a_broken_image_is_refused(site: Site, host: LibvirtHost) -> None:
    site.fleet("web", fleet_keep=0)
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        assert site.release(release_image=IMAGES["v2"]).result["live"] == 2
    assert load.result["failed"] == 0 and load.result["sent"] > 200, load.result
    assert machines(host) == {"r2-1": True, "r2-2": True} and left(host) == {"r2-1", "r2-2"}

    site.fleet("web", fleet_check_timeout=30)
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        run = site.play("release", release_image=IMAGES["v3"])
    assert run.code != 0 and "did not go live" in run.output and "Traceback" not in run.output, run.output
    assert load.result["failed"] == 0, load.result
    assert site.versions("web") == {"v2"} and machines(host) == {"r2-1": True, "r2-2": True} and left(host) == {"r2-1", "r2-2"}
    kept = (site.folder / "state").rglob("*-r3-1.log")
    assert any("orders database" in path.read_text() for path in kept), "the console of what was taken away"


def test_a_machine_with_uefi_tells_its_address_by_its_agent_and_leaves_politely(host: LibvirtHost) -> None:
    options = {
        "pool": host.name, "network": host.name, "memory": "256m", "domain_type": "qemu", "firmware": "uefi", "addresses": "agent",
        "user_data": {"packages": ["jq"]},
    }
    provider = connect(options)
    pool = provider.pools("far", 8080, ["192.0.2.200"])[0]
    assert pool.kind == "dynamic"
    image = provider.image(IMAGES["v1"])
    planned = Instance("far-r1-1", pool.host, "far", 1, 1, image.digest, "", 8080, "4be1c2d")
    try:
        made = provider.create([planned], Blueprint(image, "0123456789abcdef", "ours", "4be1c2d", options, 8080))
        assert made[0].address.startswith(f"{host.base}.2") and provider.observe("far") == made
        wait_until(lambda: "(far-r1-1)" in page(made[0]), "the machine to serve", deadline=60)
        nvram = host.xml(made[0].id).findtext("os/nvram")
        assert nvram and Path(nvram).exists()
        provider.stop(made, 60)
        assert host.connection.lookupByUUIDString(made[0].id).state()[1] == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, "by itself, not by force"
        assert any("reboot: Power down" in line for line in provider.last_words(made)[0].log)
        provider.destroy(made, 0)
        assert not Path(nvram).exists() and not [name for name in left(host) if name.startswith("far-")]
    finally:
        provider.destroy(provider.observe("far"), 0)


def page(instance: Instance) -> str:
    try:
        with urllib.request.urlopen(f"http://{instance.address}:{instance.port}/", timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
