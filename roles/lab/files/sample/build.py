# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Builds the golden images of the sample service: phoenix-sample:v1, v2, and v3, which starts and is not healthy.

usage: build.py [REPOSITORY]    Prints one line for each image that is new. Needs busybox-static and an engine, no registry,
no internet, and neither the docker command nor buildx: the engine's own build API does it.
"""

from __future__ import annotations

import io
import pathlib
import sys
import tarfile

import docker
import docker.errors

HERE = pathlib.Path(__file__).parent
VERSIONS = {"v1": "", "v2": "", "v3": "the orders database is not at db.internal:5432"}


def context() -> bytes:
    """The build's context as a tar archive, the same bytes each time, so that the engine's cache finds the same image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (HERE / "Dockerfile", HERE / "serve", HERE / "handle", pathlib.Path("/bin/busybox")):
            member = tarfile.TarInfo(path.name)
            member.mode = 0o755
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))
    return buffer.getvalue()


def main(repository: str = "phoenix-sample") -> None:
    engine = docker.from_env()
    archive = context()
    for version, broken in VERSIONS.items():
        tag = f"{repository}:{version}"
        try:
            before = engine.images.get(tag).id
        except docker.errors.ImageNotFound:
            before = None
        image = engine.images.build(
            fileobj=io.BytesIO(archive), custom_context=True, tag=tag, rm=True, buildargs={"VERSION": version, "BROKEN": broken}
        )[0]
        if image.id != before:
            print(f"{tag} {image.id}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, docker.errors.DockerException) as error:
        sys.exit(f"The golden images were not built: {error}. Is a Docker engine running, and busybox-static installed?")
