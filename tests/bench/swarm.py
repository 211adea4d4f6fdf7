# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The release as Docker Swarm does it: swarm.py SIZE IMAGE. Prints the seconds until the update calls itself completed, as JSON.

The first call makes the swarm and the service. start-first, all at once, watched for 2 s. Its containers are on the engine's
own bridge: Swarm's routing mesh wants IPVS, which not every kernel has, so Swarm releases without serving requests here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import docker

size, image = sys.argv[1:]
engine = docker.APIClient()


def cli(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within 300 s: {what}")
        time.sleep(0.05)


def running() -> int:
    return len(engine.containers(filters={"label": "com.docker.swarm.service.name=web"}))


def completed() -> bool:
    update = engine.inspect_service("web").get("UpdateStatus") or {"State": "updating"}
    if update["State"] not in ("updating", "completed"):
        raise SystemExit(f"the update is {update['State']}: {update['Message']}")
    return update["State"] == "completed"


if engine.info()["Swarm"]["LocalNodeState"] == "inactive":
    cli("swarm", "init", "--advertise-addr", "127.0.0.1", "--task-history-limit", "0")
if not engine.services(filters={"name": "web"}):
    update = ["--update-order", "start-first", "--update-parallelism", "0", "--update-monitor", "2s"]
    network = ["--network", "bridge", "--endpoint-mode", "dnsrr"]
    cli("service", "create", "--detach", "--no-resolve-image", "--name", "web", "--replicas", size, *update, *network, image)
    until(lambda: running() == int(size), f"{size} tasks running")
else:
    begin = time.monotonic()
    cli("service", "update", "--detach", "--no-resolve-image", "--image", image, "web")
    until(completed, "the update completed")
    print(json.dumps({"completed": round(time.monotonic() - begin, 3)}))
