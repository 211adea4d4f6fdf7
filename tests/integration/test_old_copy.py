# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A ledger that is backed up and restored as docs/ledger.md says, and two copies of one ledger that go on side by side."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import ROOT, Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess
from ansible_collections.phoenix.fleet.tests.load import Load


def back_up(state: Path, to: Path) -> None:
    """With the command of the documentation."""
    (command,) = re.findall(r"^python3 -c .*", (ROOT / "docs/ledger.md").read_text(), re.MULTILINE)
    command = command.replace("python3", sys.executable).replace("~/.local/state/phoenix.fleet/ledger.sqlite3", f"{state}/ledger.sqlite3")
    subprocess.run(command.replace("backup.sqlite3", str(to)), shell=True, check=True)


def test_two_copies_of_a_ledger_and_two_balancers(site: Site, images: str, second: HAProxyProcess, tmp_path: Path) -> None:
    name, new, old = site.name("web"), site.folder / "state", site.folder / "restored"
    site.release(release_image=f"{images}:v1")
    back_up(new, tmp_path / "backup.sqlite3")
    site.release(release_image=f"{images}:v2")
    old.mkdir(mode=0o700)
    shutil.copy(tmp_path / "backup.sqlite3", old / "ledger.sqlite3")
    before = site.service()
    assert (Ledger("", str(old)).history(name).live, Ledger("", str(new)).history(name).live) == (1, 2)

    site.fleet("web", fleet_state_dir=str(old))
    for verb in ("heal", "rollback"):
        run = site.play(verb)
        assert run.code and "It is an old copy: use the newest" in run.output and "fleet_adopt" in run.output, run.output
        assert site.service() == before
    with Load(site.haproxy.url("web") + "/", rate=50) as one, Load(second.url("web") + "/", rate=50) as two:
        run = site.play("heal", fleet_adopt=True)
    assert run.code == 0 and "takes over r2" in run.output, run.output
    assert one.result["failed"] == 0 and two.result["failed"] == 0
    assert site.versions("web") == {"v2"} and site.running("web") == ["r2-1", "r2-2"]
    adopted, given_up = Ledger("", str(old)), Ledger("", str(new)).history(name)
    history = adopted.history(name)
    assert history.live == 2 and history.fence > given_up.fence and history.records > given_up.records
    assert history.next_release >= 3 and adopted.verify(name) == []

    before = site.service()
    site.fleet("web", fleet_state_dir=str(new))
    while Ledger("", str(new)).history(name).fence <= history.fence:  # until the fence of the one that was given up is the higher one
        run = site.play("heal")
        assert run.code and "another copy of this ledger has taken the fleet" in run.output and "fleet_adopt" in run.output, run.output
    for arguments in (("heal", "--check"), ("rollback",), ("release", "--check")):
        assert "another copy of this ledger has taken" in site.play(*arguments).output
    assert "was taken over by another copy of this ledger; use that one" in site.play("status").output
    assert site.service() == before

    site.fleet("web", fleet_state_dir=str(old))
    site.release(release_image=f"{images}:v1")
    assert site.versions("web") == {"v1"} and list(site.haproxy.servers()) == list(second.servers()) != []
    assert sorted(site.running("web")) == ["r3-1", "r3-2"]
