# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The main job on Proxmox VE: the command that a user types, a real HAProxy, and a fake cluster in which nothing boots.

So that a VM can be checked and put behind HAProxy all the same, this process answers HTTP at the address of each VM that runs there, and
at no other: what is released, where the requests go and what is left is real, the VMs are not.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.tests.faults.command import Command
from ansible_collections.phoenix.fleet.tests.faults.kills import STEPS
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.pve_case import granted
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import CuttingProxy, Guests, Served, marker
from ansible_collections.phoenix.fleet.tests.load import Load

MakeSite = Callable[..., Site]


class Place:
    """A site whose fleet `web` lives on a cluster behind a proxy."""

    def __init__(self, site: Site, served: Served, proxy: CuttingProxy, guests: Guests) -> None:
        self.site, self.served, self.proxy, self.guests = site, served, proxy, guests

    def define(self, **options: Any) -> None:
        given = {"addresses": ["127.77.0.10-127.77.0.60"], **options}
        given = {key: value for key, value in given.items() if value is not None}
        self.site.fleet(
            "web", fleet_provider="proxmox", fleet_image="shop-1", fleet_port=self.guests.port, fleet_checks=[{"http": {"path": "/"}}],
            fleet_proxmox={**self.served.options(**given), "api_port": self.proxy.port},
        )

    @property
    def name(self) -> str:
        return self.site.name("web")

    def vms(self) -> dict[str, str]:
        """What there is beside the templates, as the cluster tells it."""
        return {vm.name.removeprefix(f"{self.name}-"): vm.status for vm in self.served.pve.vms if not vm.template}

    def serving(self) -> set[str]:
        return {re.sub(r".*-(r\d+)-\d+\s*", r"\1", self.site.ask("web")) for _ask in range(6)}

    def killed(self, method: str, path: str | Callable[[str], bool], after: bool, **extra: Any) -> None:
        """A release that is killed, with all that it has started, just before the cluster gets that call, or when it has just acted."""
        command = Command(self.site.folder / "killed", ["phoenix.fleet.release", "-i", str(self.site.inventory), "-e", json.dumps(extra)])
        fired = threading.Event()

        def hook(asked: str, where: str) -> None:
            if asked == method and (path(where) if callable(path) else re.search(path, where)) and not fired.is_set():
                fired.set()
                command.kill("everything")

        if after:
            self.proxy.acted = hook
        else:
            self.proxy.hook = hook
        try:
            run = command.wait()
        finally:
            self.proxy.hook = self.proxy.acted = lambda method, path: None
        assert fired.is_set() and run.code == -signal.SIGKILL, run.output


ELSEWHERE = """
from ansible.plugins.connection.local import DOCUMENTATION as LOCAL, Connection as Local
DOCUMENTATION = LOCAL.replace("name: local", "name: elsewhere")
class Connection(Local):
    transport = "elsewhere"
"""


@pytest.fixture
def place(make_site: MakeSite) -> Iterator[Place]:
    with Served() as served, CuttingProxy(served) as proxy:
        for number, digit in ((1, "1"), (2, "2")):
            for node in (1, 2):
                served.pve.add_template(9000 + 10 * number + node, f"shop-{number}", f"pve{node}", digest="sha256:" + digit * 64)
        granted(served)
        guests = Guests(served)
        made = Place(make_site("web"), served, proxy, guests)
        made.define()
        yield made
        guests.close()
        assert not served.pve.wrong


def test_a_release_a_rollback_and_the_end_lose_no_request(place: Place) -> None:
    site = place.site
    first = site.release()
    assert first.result["live"] == 1 and place.vms() == {"r1-1": "running", "r1-2": "running"}
    assert site.release().changed == 0
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        site.release(release_image="shop-2")
        assert place.serving() == {"r2"}
        back = site.play("rollback")
        assert back.code == 0, back.output
    assert load.result["failed"] == 0, (load.result, back.output)
    assert place.serving() == {"r1"}
    assert place.vms() == {"r1-1": "running", "r1-2": "running", "r2-1": "stopped", "r2-2": "stopped"}
    numbers = sorted(vm.vmid for vm in place.served.pve.vms if not vm.template)
    assert numbers == [100000, 100001, 100002, 100003]
    gone = site.play("retire", retire_confirm=place.name)
    assert gone.code == 0 and place.vms() == {}, gone.output
    site.release()
    assert min(vm.vmid for vm in place.served.pve.vms if not vm.template) == 100004, "no number is ever used again"


def test_a_fleet_whose_addresses_only_its_agents_know(place: Place) -> None:
    site, served = place.site, place.served
    original = served.pve._agent_call

    async def call(match: Any, values: Any) -> Any:
        vm = served.pve.find(values["node"], values["vmid"])
        mac = vm.config["net0"].partition("=")[2].partition(",")[0]
        vm.agent = {"interfaces": [{"name": "eth0", "hardware-address": mac.lower(), "ip-addresses": [
            {"ip-address": f"127.88.0.{vm.vmid % 250}"}]}]}
        return await original(match, values)

    served.pve._agent_call = call  # type: ignore[method-assign]
    place.define(addresses=None, agent_network="127.88.0.0/16")
    site.release()
    assert site.release().changed == 0
    site.release(release_image="shop-2")
    assert place.serving() == {"r2"} and site.release(release_image="shop-2").changed == 0


def test_heal_works_while_the_first_host_is_a_black_hole(place: Place) -> None:
    """It takes connections and never speaks: each task would wait 5 s for it, if the run did not keep which host answered."""
    site, hosts = place.site, ["127.0.0.2", "127.0.0.1"]
    place.define(api_host=hosts)
    site.release()
    lost = next(vm for vm in place.served.pve.vms if not vm.template)
    lost.status = "stopped"
    with socket.socket() as hole:
        hole.bind((hosts[0], place.proxy.port))
        hole.listen(64)
        run = site.play("heal", heal_share=100)
    assert run.code == 0, run.output
    assert list(place.vms().values()) == ["running", "running"]


KILLS = [
    ("POST", "/clone$", False), ("POST", "/clone$", True), ("PUT", "/config$", False), ("DELETE", "/qemu/", True),
    ("PUT", "/config$", True), ("POST", "/status/start$", False), ("DELETE", "/qemu/", False), ("POST", "/status/start$", True),
    ("POST", "/status/shutdown$", True),
]


def test_runs_that_are_killed_one_after_the_other_leave_nothing_that_the_last_one_does_not_put_right(place: Place) -> None:
    """Each finds what the former one has left, at another call, and is killed itself."""
    site = place.site
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=20) as load:
        for method, path, after in KILLS:
            place.killed(method, path, after, release_image="shop-2")
        site.release(release_image="shop-2")
    assert load.result["failed"] == 0, load.result
    nothing_is_left(place)


def test_runs_that_are_killed_before_each_of_their_tasks_leave_nothing_either(place: Place) -> None:
    site, images = place.site, cycle(("shop-2", "shop-1"))
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=20) as load:
        for task in STEPS:
            release = ["phoenix.fleet.release", "-i", str(site.inventory), "-e", f"release_image={next(images)}"]
            command = Command(site.folder / "killed", release, hold=task)
            assert command.reach(task), command.output
            command.kill("everything")
        site.release(release_image="shop-2")
    assert load.result["failed"] == 0, load.result
    nothing_is_left(place)


def test_a_clone_that_goes_on_after_its_run_was_killed_is_known_by_its_task(place: Place) -> None:
    pve, done = place.served.pve, asyncio.Event()
    pve.add_template(9100, "slow", "pve1", "ceph", digest="sha256:" + "9" * 64)
    granted(place.served)
    pve.time_scale = 1
    pve.ceph_slow(1.0)

    async def pause(seconds: float) -> None:
        if seconds:
            await done.wait()

    pve.pause = pause  # type: ignore[method-assign]

    def at_second() -> Callable[[str], bool]:
        polls = iter(range(1000))
        return lambda path: path.endswith("/pve1/tasks") and next(polls) == 1

    second = at_second()
    place.killed("GET", second, after=False, release_image="slow")
    assert any(vm.lock == "clone" for vm in pve.vms)
    second = at_second()
    place.proxy.hook = lambda method, path: second(path) and place.served.loop.call_soon_threadsafe(done.set)
    run = place.site.release(release_image="slow")
    told = r"waits for what a former run began: \S+-r1-[12]: cloning template 9100 .* task UPID:pve1:\S+:qmclone:9100:"
    assert re.search(told, run.output), run.output
    assert set(place.vms().values()) == {"running"} and len(place.vms()) == 2, "nothing of the killed run is left"


def nothing_is_left(place: Place) -> None:
    """Two of the live release and two of its predecessor, whole, with their disks, and nothing else; and nothing more to do."""
    site = place.site
    names = sorted(place.vms())
    live = max(int(name.split("-")[0][1:]) for name in names)
    assert place.serving() == {f"r{live}"}
    running = {name: state for name, state in place.vms().items() if state == "running"}
    assert running == {f"r{live}-{slot}": "running" for slot in (1, 2)}
    assert len(names) == 4, f"only the predecessor is kept: {names}"
    assert site.release(release_image="shop-2").changed == 0
    vms = [vm for vm in place.served.pve.vms if not vm.template]
    assert len({vm.vmid for vm in vms}) == 4 and all(marker(vm)["phoenix.fleet.complete"] for vm in vms)
    kept = {str(vm.config["scsi0"]).split(":")[1].split(",")[0] for vm in vms}
    left = {name for name, volume in place.served.pve.storages["local-zfs"]["volumes"].items() if volume["vmid"] >= 100000}
    assert left == kept, "no disk is left behind"


def test_a_release_that_fails_tells_what_the_cluster_said_and_leaves_everything_as_it_was(place: Place) -> None:
    site = place.site
    site.release()
    before = place.vms()
    for vm in place.served.pve.vms:
        if vm.name == "shop-2":
            vm.config["hookscript"] = "local:snippets/x.pl"
    run = site.play("release", release_image="shop-2")
    assert run.code != 0 and "hookscript" in run.output and "qm set 9021 --delete hookscript" in run.output
    assert place.vms() == before and place.serving() == {"r1"}


def test_the_modules_work_by_themselves(place: Place) -> None:
    options = {**place.served.options(), "addresses": ["127.77.0.10-127.77.0.60"]}
    login = {key: value for key, value in options.items() if key not in ("addresses",)}
    tasks: list[dict[str, Any]] = []
    present = {"image": "shop-1", "size": 2, "port": 80}
    for arguments in (present, present, {"state": "stopped"}, {"state": "absent"}):
        tasks.append({"phoenix.fleet.proxmox_instances": {**options, "fleet": "solo", "release": 1, **arguments}, "register": "made"})
        tasks.append({"ansible.builtin.debug": {"msg": "SAID {{ made.changed }} {{ made.instances | map(attribute='state') | list }}"}})
    tasks.insert(2, {"phoenix.fleet.proxmox_instances_info": {**login, "fleet": "solo"}, "register": "seen"})
    tasks.insert(3, {"phoenix.fleet.proxmox_image_info": {**login, "image": "shop-1"}, "register": "image"})
    words = "SAID {{ seen.instances | length }} {{ image.present }} {{ image.image.digest[:9] }}"
    tasks.insert(4, {"ansible.builtin.debug": {"msg": words}})
    playbook = place.site.folder / "modules.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    program = str(Path(sys.executable).parent / "ansible-playbook")
    # A connection to another host than this one, as far as anybody can tell: the modules are packed and sent there.
    (place.site.folder / "elsewhere.py").write_text(ELSEWHERE)
    environment = {**os.environ, "ANSIBLE_CONNECTION_PLUGINS": str(place.site.folder)}
    for connection in ("local", "elsewhere"):
        command = [program, str(playbook), "-e", f"ansible_connection={connection} ansible_python_interpreter={sys.executable}", "-vvv"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        said = re.findall(r"SAID ([^\"]*)", done.stdout)
        assert said == [
            "True ['running', 'running']", "2 ['pve1', 'pve2'] shop-1@sh",
            "False ['running', 'running']", "True ['stopped', 'stopped']", "True []"], done.stdout + done.stderr
        assert ("AnsiballZ_proxmox_instances.py" in done.stdout) == (connection == "elsewhere")
