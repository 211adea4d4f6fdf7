# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Removes what the lab's releases left in the engine: containers, volumes, the network and the sample images, by their marks.

Prints one line for each. What bears no mark of a fleet, or that of another ledger than the lab's, is not touched.
"""

from __future__ import annotations

import docker
import docker.errors

NETWORK = "phoenix-lab"
LEDGER = "phoenix.fleet.ledger"


def main() -> None:
    try:
        engine = docker.from_env()
        engine.ping()
    except docker.errors.DockerException:
        return  # no engine, nothing in it
    there = engine.containers.list(all=True, filters={"network": NETWORK, "label": LEDGER})
    for ledger in sorted({container.labels[LEDGER] for container in there}):
        mark = {"label": f"{LEDGER}={ledger}"}
        for container in engine.containers.list(all=True, filters=mark):
            container.remove(force=True, v=True)
            print(container.name)
        for volume in engine.volumes.list(filters=mark):
            volume.remove()
            print(volume.name)
    for network in engine.networks.list(names=[f"^{NETWORK}$"]):
        network.remove()
        print(network.name)
    for image in engine.images.list("phoenix-sample"):
        for tag in image.tags:
            if tag.startswith("phoenix-sample:"):
                engine.images.remove(tag)
                print(tag)


if __name__ == "__main__":
    main()
