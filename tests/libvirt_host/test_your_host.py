# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt provider on a host of your own: `make test-libvirt URI=... VOLUME=...` (docs/libvirt.md). Takes away what it has made,
whatever happens, and prints a report.

VOLUME is needed, a golden volume as `fleet_image` names one; URI is by default this machine's. OPTIONS are further ones of fleet_libvirt,
as JSON. PORT is one that the image's service listens on, which this machine reaches. REBOOT=1 waits for you to restart the host, any other
word is the command that does.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import libvirt
import pytest
import yaml
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._libvirt_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.libvirt import LibvirtProvider, connect
from ansible_collections.phoenix.fleet.plugins.module_utils._sets import placed
from ansible_collections.phoenix.fleet.tests.report import Report, SkipStep

SERVES, GOES, RETURNS = 180, 900, 900
"""Seconds for the service of an instance that boots, for the host to go once it was asked to, and for it to be back with its machines."""
STOPS = 60


@pytest.fixture
def options() -> dict[str, Any]:
    assert os.environ.get("VOLUME"), "set VOLUME, the golden volume (docs/libvirt.md)"
    uri = {"uri": os.environ["URI"]} if os.environ.get("URI") else {}
    return {**uri, **json.loads(os.environ.get("OPTIONS") or "{}")}


@pytest.fixture
def report(options: dict[str, Any]) -> Iterator[Report]:
    uri = urlsplit(options.get("uri", "qemu:///system"))
    made = Report("phoenix.fleet, make test-libvirt", {uri.netloc: "HOST", uri.hostname or "": "HOST"})
    yield made
    print(f"\n--- the report ---\n{made.text()}\n--- its end ---")


class Site:
    """The fleet that is tried, and a copy that somebody makes of one of its instances."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.fleet = f"phoenix-test-{secrets.token_hex(3)}"
        self.copy = f"{self.fleet}-copy"
        self.connect()

    def connect(self) -> None:
        self.provider: LibvirtProvider = connect(self.options)

    def states(self) -> list[str]:
        return [item.state for item in self.provider.observe(self.fleet)]

    def facts(self) -> dict[str, str]:
        link = self.provider.host.connection
        host = ElementTree.fromstring(link.getCapabilities()).find("host")
        assert host is not None
        return {
            "collection": str(yaml.safe_load((Path(__file__).parents[2] / "galaxy.yml").read_text())["version"]),
            "python": platform.python_version(), "libvirt-python": _version(libvirt.getVersion()),
            "connection": f"{urlsplit(self.provider.host.uri).scheme}", "libvirt": _version(link.getLibVersion()),
            link.getType(): _version(link.getVersion()), "processor": str(host.findtext("cpu/arch")),
            "kinds": ", ".join(sorted(self.provider.host.kinds())),
            "security": ", ".join(item.text or "" for item in host.findall("secmodel/model")) or "none",
            "pool": str(ElementTree.fromstring(self.provider.host.pool(self.provider.options["pool"]).XMLDesc()).get("type")),
            "network": self.provider.host.network(self.provider.options["network"])[1].mode or "isolated",
        }

    def copied(self, instance: Instance) -> None:
        """The definition with its metadata under another name and UUID, without disks and network: it harms nobody, and runs."""
        root = ElementTree.fromstring(self.provider.host.domain(instance.id).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        devices, uuid = root.find("devices"), root.find("uuid")
        assert devices is not None and uuid is not None
        for part in list(devices):
            if part.tag in ("disk", "interface", "serial", "console", "channel"):
                devices.remove(part)
        root.remove(uuid)
        root.find("name").text = self.copy  # type: ignore[union-attr]
        self.provider.host.connection.defineXML(ElementTree.tostring(root, encoding="unicode")).create()

    def used(self) -> int:
        """The processor time of the live instance since it was started, in nanoseconds."""
        live = self.provider.observe(self.fleet)[0]
        return int(self.provider.host.domain(live.id).info()[4])

    def copy_runs(self) -> bool:
        return bool(self.provider.host.named(self.copy).isActive())

    def left(self, instances: Sequence[Instance]) -> list[str]:
        """What is still there of instances that were destroyed."""
        pool = self.provider.host.pool(self.provider.options["pool"])
        self.provider.host.refresh(pool)
        hosts = self.provider.host.network(self.provider.options["network"])[1].hosts
        return [name for name in [item.name() for item in pool.listAllVolumes()] + [name for _mac, _address, name in hosts]
                if name.startswith(tuple(item.name for item in instances))]

    def clean(self) -> None:
        self.connect()
        self.provider.destroy(self.provider.observe(self.fleet), STOPS)
        domain = self.provider.host.named(self.copy)
        if domain is not None:
            with suppress(libvirt.libvirtError):
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def _version(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def until(what: str, holds: Callable[[], bool], seconds: float) -> None:
    """Look once a second. Raises AssertionError after so many."""
    print(f"    waits for {what}, {seconds:.0f} s at most", flush=True)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(1)


def answers(item: Instance, port: int) -> bool:
    with suppress(OSError), socket.create_connection((item.address, port), 2):
        return True
    return False


def test_two_instances_come_rest_return_and_go(options: dict[str, Any], report: Report) -> None:
    with report.step("connect"):
        site = Site(options)
        report.facts.update(site.facts())
    try:
        _try(site, report)
    finally:
        with report.step("take away whatever is left"):
            site.clean()


def _try(site: Site, report: Report) -> None:
    volume, port, provider = os.environ["VOLUME"], int(os.environ.get("PORT") or 0), site.provider
    with report.step("look at the golden volume"):
        image = provider.image(volume)
    with report.step("look at it again, as another job does") as told:
        began = time.monotonic()
        assert connect(site.options).image(volume) == image
        told.append(f"its checksum is known after {time.monotonic() - began:.2f} s")
    form = Blueprint(image, "test", "phoenix-test", "", site.options, port or 22)
    with report.step("plan two instances, and see what they lack"):
        pools = provider.pools(site.fleet, port or 22, ["local"] if provider.host.name == "local" else [provider.host.name])
        plan = placed(FACE, [1, 2], (), pools, {"fleet": site.fleet, "release": 1}, form)
        provider.preflight(plan, form)
    with report.step("make them") as told:
        made = provider.create(plan, form)
        assert site.states() == ["running"] * 2 and all(item.address for item in made)
        assert [item.id for item in provider.create(plan, form)] == [item.id for item in made], "made once"
        told.append(f"{len(made)} run, each at an address of its own")
    with report.step("their service answers"):
        if not port:
            raise SkipStep("set PORT")
        until(f"port {port} of both", lambda: all(answers(item, port) for item in made), SERVES)
    with report.step("stop them") as told:
        began = time.monotonic()
        provider.stop(made, STOPS)
        assert site.states() == ["stopped"] * 2
        told.append("politely" if time.monotonic() - began < STOPS else f"by cutting the power after {STOPS} s: no agent, no power button")
    with report.step("seal them"):
        sealed = provider.seals(made)
        assert len(sealed) == 2 and provider.seals(made) == sealed
    live, standby = made
    with report.step("start one again, the other is a standby"):
        assert [item.id for item in provider.start([live], form)] == [live.id]
        assert site.states() == ["running", "stopped"] and provider.seals(made) == {standby.name: sealed[standby.name]}
        if port:
            until(f"port {port} of it", lambda: answers(live, port), SERVES)
    with report.step("a copy by hand is no instance"):
        site.copied(live)
        assert [item.original for item in provider.copies(site.fleet)] == [live.name] and len(site.states()) == 2
    with report.step("restart the host") as told:
        command = os.environ.get("REBOOT")
        if not command:
            raise SkipStep("set REBOOT=1, or to the command that restarts it")
        told.append(_restarted(site, command))
        if port:
            until(f"port {port} of the live one", lambda: answers(live, port), SERVES)
    with report.step("destroy them") as told:
        running = site.copy_runs()
        site.provider.destroy(site.provider.observe(site.fleet), STOPS)
        assert site.states() == [] and site.left(made) == []
        assert site.copy_runs() == running
        told.append("nothing is left, and the copy is as it was")


def _restarted(site: Site, command: str) -> str:
    """Wait until the host has gone and is back, with the live instance running and the standby not. Returns what is told of it."""
    link = site.provider.host.connection
    before = site.used()
    if command == "1":
        print("    restart the host now, for example: ssh HOST reboot", flush=True)
    else:
        subprocess.run(command, shell=True, check=False, timeout=GOES)

    def gone() -> bool:
        try:
            return not (link.isAlive() and link.getHostname())
        except libvirt.libvirtError:
            return True

    def back() -> bool:
        try:
            site.connect()
            return site.states() == ["running", "stopped"]
        except UnreachableError:
            return False

    began = time.monotonic()
    until("the host to go", gone, GOES)
    until("the host, with the live instance running and the standby stopped", back, RETURNS)
    assert site.used() < before, "the live instance ran all the while: that was a restart of libvirt, and not of the host"
    others = "the copy is started, too (libvirt-guests does that)" if site.copy_runs() else "the copy is not started"
    return f"gone and back in {time.monotonic() - began:.0f} s, the live instance runs, the standby does not; {others}"
