# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What docker_instances, docker_instances_info and docker_image_info have of their own."""

from __future__ import annotations

from ._providers import docker
from ._sets import Face

FACE = Face(
    "docker", docker, connection=("hosts", "tls"), image=("pull", "registry"), one="container", place="engine",
    room="Take a larger fleet_docker.subnet or fleet_docker.publish_ports",
)
