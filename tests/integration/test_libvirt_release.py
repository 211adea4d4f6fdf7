# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The main job with virtual machines: they boot, serve behind a real HAProxy under load, are kept as standby, come back and go."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
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
CLOUD = "phoenix-cloud.qcow2"  # as people run it: systemd, and Debian's cloud-init that reads the seed
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPhoenixFleetPhoenixFleetPhoenixFleetPhoenixF ops@example"
FINISHED = "/run/cloud-init/result.json"  # written at the end of each boot
RATE = 10  # requests a second: each is a process of its own in the machine, whose processor is emulated
BOOT = 240  # seconds until it serves where the processor is emulated, on a busy host


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    for kind in ("sample", "cloud"):
        subprocess.run([str(ROOT / "tests/vm/build"), kind], check=True, capture_output=True)
    with LibvirtHost(3) as made:
        for name in (*IMAGES.values(), CLOUD):
            made.put(name, ROOT / "build/vm" / name)
        yield made


@pytest.fixture
def site(make_site: Callable[..., Site], host: LibvirtHost) -> Iterator[Site]:
    """A site with one fleet, `web`, of two machines with v1 that are emulated. Its definition differs from a container fleet's in
    the provider, the image and the provider's options alone. Its machines go with it."""
    site = make_site("web")
    site.fleet(
        "web", fleet_provider="libvirt", fleet_image=IMAGES["v1"], fleet_check_timeout=120, fleet_stop_timeout=30,
        fleet_libvirt={"pool": host.name, "network": host.name, "memory": "256m", "domain_type": "qemu"},
        # While two others boot, on two processors that other tests use too, an emulated machine may take seconds for an answer.
        fleet_haproxy={"inter": "3s", "fall": 5},
    )
    yield site
    provider = connect({"pool": host.name, "network": host.name})
    provider.destroy(provider.observe(site.name("web")), 0)


def machines(host: LibvirtHost) -> dict[str, bool]:
    """By name without its fleet (`r1-1`): whether it runs."""
    return {re.sub(r"^web-\d+-", "", item.name()): bool(item.isActive()) for item in sorted(host.domains(), key=lambda item: item.name())}


def left(host: LibvirtHost) -> set[str]:
    """The instances that volumes were made for, or addresses reserved."""
    made = [name for name in host.volumes() if name not in (*IMAGES.values(), CLOUD)]
    return {re.sub(r"^web-\d+-(r\d+-\d+).*", r"\1", name) for name in made + [name for name, _address in host.reservations()]}


def test_release_standby_rollback_and_retirement_lose_no_request(site: Site, host: LibvirtHost) -> None:
    first = site.release()
    assert first.result["live"] == 1 and machines(host) == {"r1-1": True, "r1-2": True}
    assert {re.sub(r".*\((.*)\)\s*", r"\1", site.ask("web")) for _time in range(8)} == {f"{site.name('web')}-r1-{slot}" for slot in (1, 2)}
    assert site.release().changed == 0
    before = {item.name(): item.UUIDString() for item in host.domains()}

    with Load(site.haproxy.url("web") + "/", rate=RATE) as load:
        second = site.release(release_image=IMAGES["v2"])
    assert load.result["failed"] == 0, load.result["examples"]
    assert second.result["live"] == 2 and site.versions("web") == {"v2"}
    assert machines(host) == {"r1-1": False, "r1-2": False, "r2-1": True, "r2-2": True}
    assert {item.name(): item.autostart() for item in host.domains()} == {
        item.name(): int(bool(item.isActive())) for item in host.domains()}, "what serves comes back with its host, a standby does not"

    with Load(site.haproxy.url("web") + "/", rate=RATE) as load:
        back = site.play("rollback")
    assert back.code == 0, back.output
    assert load.result["failed"] == 0, load.result["examples"]
    assert site.versions("web") == {"v1"} and machines(host) == {"r1-1": True, "r1-2": True, "r2-1": False, "r2-2": False}
    assert {name: uuid for name, uuid in before.items() if host.connection.lookupByUUIDString(uuid).isActive()} == before, "the very same"

    gone = site.play("retire", retire_confirm=site.name("web"))
    assert gone.code == 0, gone.output
    assert machines(host) == {} and left(host) == set()


def test_what_is_not_kept_is_destroyed_with_its_disks_and_a_broken_image_is_refused(site: Site, host: LibvirtHost) -> None:
    site.fleet("web", fleet_keep=0)
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=RATE) as load:
        assert site.release(release_image=IMAGES["v2"]).result["live"] == 2
    assert load.result["failed"] == 0, load.result["examples"]
    assert machines(host) == {"r2-1": True, "r2-2": True} and left(host) == {"r2-1", "r2-2"}

    site.fleet("web", fleet_check_timeout=30)
    with Load(site.haproxy.url("web") + "/", rate=RATE) as load:
        run = site.play("release", release_image=IMAGES["v3"])
    assert run.code != 0 and "did not go live" in run.output and "Traceback" not in run.output, run.output
    assert load.result["failed"] == 0, load.result["examples"]
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


def test_cloud_init_carries_out_the_seed_and_the_machine_serves_again_after_a_stop(host: LibvirtHost) -> None:
    options = {
        "pool": host.name, "network": host.name, "memory": "384m", "domain_type": "qemu", "ssh_keys": [KEY],
        "user_data": {
            "write_files": [{"path": "/etc/own", "content": "mine, größer\n"}],
            "runcmd": ["echo $(hostname) >> /var/lib/ran"],
        },
    }
    provider = connect(options)
    image = provider.image(CLOUD)
    pool = provider.pools("cloud", 8080, [])[0]
    planned = Instance("cloud-r1-1", pool.host, "cloud", 1, 1, image.digest, f"{host.base}.9", 8080, "4be1c2d")
    blueprint = Blueprint(image, "0123456789abcdef", "ours", "4be1c2d", options, 8080)
    try:
        made = provider.create([planned], blueprint)
        assert made[0].address == f"{host.base}.9"
        domain = host.connection.lookupByUUIDString(made[0].id)
        wait_until(lambda: page(made[0]) == "hello from shop v1 (cloud-r1-1)\n", "the machine to serve by its name", deadline=BOOT)
        wait_until(lambda: read(domain, FINISHED), "cloud-init to finish", deadline=BOOT)
        assert json.loads(read(domain, FINISHED))["v1"]["errors"] == []
        facts = read(domain, "/etc/phoenix-fleet.env").splitlines()
        assert {"PHOENIX_FLEET=cloud", "PHOENIX_INSTANCE=cloud-r1-1", "PHOENIX_RELEASE=1", "PHOENIX_REVISION=4be1c2d"} <= set(facts), facts
        assert read(domain, "/etc/own") == "mine, größer\n" and read(domain, "/var/lib/ran") == "cloud-r1-1\n", "the user's own part"
        assert KEY in read(domain, "/home/debian/.ssh/authorized_keys").splitlines(), "of the user that Debian's cloud-init makes"

        provider.stop(made, 120)
        assert domain.state()[1] == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, "by itself, not by force"
        provider.start(made, blueprint)
        wait_until(lambda: page(made[0]) == "hello from shop v1 (cloud-r1-1)\n", "the machine to serve by its name", deadline=BOOT)
        wait_until(lambda: read(domain, FINISHED), "cloud-init to finish", deadline=BOOT)
        assert read(domain, "/var/lib/ran") == "cloud-r1-1\n", "what is for the first boot happened once"
        provider.stop(made, 120)
        assert domain.state()[1] == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, "by itself, not by force"
        provider.destroy(made, 0)
        assert machines(host) == {} and left(host) == set()
    finally:
        provider.destroy(provider.observe("cloud"), 0)


def page(instance: Instance) -> str:
    try:
        with urllib.request.urlopen(f"http://{instance.address}:{instance.port}/", timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def read(domain: libvirt.virDomain, path: str) -> str:
    """A file inside, through the guest's agent; empty where there is none, or no agent yet."""
    def ask(command: str, **arguments: object) -> object:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 30, 0)
        return json.loads(answer)["return"]

    try:
        handle = ask("guest-file-open", path=path, mode="r")
        content = ask("guest-file-read", handle=handle, count=65536)
        ask("guest-file-close", handle=handle)
    except libvirt.libvirtError:
        return ""
    assert isinstance(content, dict)
    return base64.b64decode(content["buf-b64"]).decode()
