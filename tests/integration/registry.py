# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container registry of a test's own, on loopback, for one account. Engines trust 127.0.0.0/8 without TLS."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import docker
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DEADLINE, until

USERNAME, PASSWORD = "deployer", "swordfish-7"
HTPASSWD = f"{USERNAME}:$2b$04$oNEmvCLWSzerdHD7FEC6puV95NlV2jUzMo15wp0M7NGn1phxHmQWa\n"


class Registry:
    """The registry of Debian's package docker-registry, as a process with a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="phoenix-registry-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None
        (self.folder / "htpasswd").write_text(HTPASSWD)
        (self.folder / "config.json").write_text(json.dumps({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": f"{self.folder}/data"}, "delete": {"enabled": True}},
            "http": {"addr": self.server},
            "auth": {"htpasswd": {"realm": "test", "path": f"{self.folder}/htpasswd"}},
        }))

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, str]:
        """What fleet_docker.registry says to get in."""
        return {"server": self.server, "username": USERNAME, "password": PASSWORD}

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            command = ["docker-registry", "serve", f"{self.folder}/config.json"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        until(f"the registry at {self.server} answers", self._answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(DEADLINE)
        self.process = None

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def push(self, client: docker.APIClient, image: str, name: str) -> str:
        """Push a local image as `name` (REPOSITORY:TAG); returns its name in the registry. No trace of that name stays on the engine."""
        repository, tag = f"{self.server}/{name}".rsplit(":", 1)
        client.tag(image, repository, tag)
        account = {"username": USERNAME, "password": PASSWORD}
        lines = list(client.push(repository, tag, stream=True, decode=True, auth_config=account))
        errors = [line["error"] for line in lines if "error" in line]
        assert not errors, errors
        client.remove_image(f"{repository}:{tag}")
        return f"{repository}:{tag}"

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://{self.server}/v2/", timeout=5).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True
