# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new instance that falls once between its checks and the commit: the engine starts it again, and the release is refused all the same."""

from __future__ import annotations

import io
import tarfile

from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site

HANDLE = """#!/bin/sh
echo >> /asked
[ -e /again ] || [ $(wc -l < /asked) -lt 2 ] || { : > /again; kill $(pidof nc); }
exec /bin/answer
"""
"""It falls when it is asked a second time in its life: the controller has passed it by then, and HAProxy begins to check it."""


def falling(site: Site, image: str, tag: str) -> None:
    context = io.BytesIO()
    dockerfile = f'FROM {image}\nLABEL test={site.network}\nRUN ["/bin/sh", "-c", "mv /bin/handle /bin/answer"]\nCOPY handle /bin/handle\n'
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in (("Dockerfile", dockerfile), ("handle", HANDLE)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    site.engine.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)


def test_a_restart_before_the_commit_fails_the_release(site: Site, images: str) -> None:
    site.release()
    before = site.service()
    tag = f"{site.network}:falls"
    falling(site, f"{images}:v2", tag)
    try:
        run = site.play("release", release_image=tag)
        assert run.code != 0 and "Traceback" not in run.output, run.output
        assert "TASK [phoenix.fleet.release : Stage]" in run.output, "it had passed its checks: " + run.output
        assert "it was restarted once" in run.output and "lost its listener" in run.output, run.output
        assert site.service() == before and site.versions("web") == {"v1"}
    finally:
        for item in site.containers("web"):
            if item.attrs["Config"]["Labels"].get("test") == site.network:
                item.remove(force=True)
        site.engine.images.remove(tag, force=True)
