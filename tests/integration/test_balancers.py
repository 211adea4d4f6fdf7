# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""More than one balancer, and one that is reached over a real SSH connection, where the module does what the action plugin does here."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess, free_port
from ansible_collections.phoenix.fleet.tests.load import Load


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Dict[str, Any]]:
    """The connection variables of this machine by way of an sshd of the test's own, on loopback."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    port = free_port()
    settings = tmp_path / "sshd_config"
    settings.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(settings)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "sshd does not listen"
    yield {
        "ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": port,
        "ansible_ssh_private_key_file": str(tmp_path / "user"), "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    }
    server.terminate()
    server.wait(10)


def test_every_balancer_is_brought_along(site: Site, images: str, second: HAProxyProcess) -> None:
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=50) as one, Load(second.url("web") + "/", rate=50) as two:
        run = site.release(release_image=f"{images}:v2")
    assert one.result["failed"] == 0 and two.result["failed"] == 0
    assert list(site.haproxy.servers()) == list(second.servers()) != []
    assert "lb1 2/2 up" in run.output and "lb2 2/2 up" in run.output

    second.stop()
    before = site.service()
    refused = site.play("release", release_image=f"{images}:v1")
    assert refused.code != 0 and "balancer lb2: it cannot be observed" in refused.output
    assert site.service() == before and site.versions("web") == {"v2"}

    second.start()
    assert site.release(release_image=f"{images}:v1").result["live"] == 3


def test_a_balancer_over_ssh(site: Site, images: str, ssh: Dict[str, Any]) -> None:
    site.balancers["lb1"] = {**site.haproxy.hostvars, **ssh}
    # By its address the balancer is this machine, so that an instance's own address will do; it asks the checks itself.
    site.fleet("web", fleet_check_from="balancer")
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        run = site.release(release_image=f"{images}:v2")
    assert load.result["failed"] == 0 and site.versions("web") == {"v2"}
    assert "2/2 up" in run.output, "the module's progress is told"
    assert site.release(release_image=f"{images}:v2").changed == 0
    broken = site.play("release", release_image=f"{images}:v3", fleet_check_timeout=3)
    assert broken.code != 0 and "answered 500" in broken.output and site.versions("web") == {"v2"}


def test_another_health_check_never_judges_those_who_serve(site: Site, images: str) -> None:
    site.release()
    with Load(site.haproxy.url("web") + "/", rate=50) as load:
        refused = site.play("release", release_image=f"{images}:v2", fleet_haproxy={"check": {"path": "/nowhere"}}, fleet_check_timeout=4)
        assert refused.code != 0 and "L7STS" in refused.output
        site.release(release_image=f"{images}:v2", fleet_haproxy={"check": {"path": "/"}})
    assert load.result["failed"] == 0, load.result["examples"]
    assert site.versions("web") == {"v2"}
    assert "elders" not in (site.haproxy.config_dir / "web.cfg").read_text()
