# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real parts for the tests: golden images, and sites to release to."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Callable, Iterator

import pytest
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess
from ansible_collections.phoenix.fleet.tests.integration.pve_case import impatient, make, served

__all__ = ["impatient", "make", "served"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def images() -> str:
    """The repository that holds the sample service as v1, v2 and v3, of which the last one is broken."""
    repository = "phoenix-test"
    subprocess.run([sys.executable, str(ROOT / "roles/lab/files/sample/build.py"), repository], check=True, capture_output=True)
    return repository


@pytest.fixture
def make_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """make_site(FLEET...) gives a Site whose HAProxy has a front end for each of these fleets. All is taken away after the test."""
    sites: list[Site] = []

    def make(*fleets: str) -> Site:
        # Tests run side by side on one engine: each has names and a network of its own, which follow from the test's name.
        number = zlib.crc32(f"{request.node.nodeid} {len(sites)}".encode()) % 8192
        haproxy = HAProxyProcess(tmp_path / f"haproxy{len(sites)}", backends=fleets)
        haproxy.start()
        request.addfinalizer(haproxy.stop)
        folder = tmp_path / f"site{len(sites)}"
        folder.mkdir()
        site = Site(folder, haproxy, number)
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site], images: str) -> Site:
    """A site with one fleet, `web`, of two instances of the sample service's v1. Nothing is released yet."""
    site = make_site("web")
    site.fleet("web", fleet_image=f"{images}:v1")
    return site


@pytest.fixture
def second(site: Site, tmp_path: Path) -> Iterator[HAProxyProcess]:
    """Another HAProxy, which the site's fleet has as balancer lb2."""
    haproxy = HAProxyProcess(tmp_path / "second", backends=("web",))
    haproxy.start()
    site.balancers["lb2"] = haproxy.hostvars
    site.fleet("web")
    yield haproxy
    haproxy.stop()
