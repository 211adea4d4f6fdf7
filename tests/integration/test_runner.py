# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The repository as a project of AWX: its collections installed by requirements.yml, a playbook by its file, a job by ansible-runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import ROOT, Site

DEADLINE = 120


@pytest.fixture
def private(tmp_path: Path, site: Site) -> Path:
    """AWX's private data directory: the project as Git has it, and the collections that a project sync installs."""
    folder = tmp_path / "private"
    project = folder / "project"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)
    collections = folder / "requirements_collections"
    only = {"ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false"}
    subprocess.run(
        ["ansible-galaxy", "collection", "install", "--offline", "-r", "collections/requirements.yml", "-p", str(collections)],
        cwd=project, env={**os.environ, **only}, check=True, capture_output=True,
    )
    (folder / "inventory").mkdir()
    shutil.copy(site.inventory, folder / "inventory" / "hosts.json")
    (folder / "env").mkdir()
    (folder / "env" / "envvars").write_text(json.dumps(only))
    return folder


def job(private: Path, ident: str, playbook: str = "playbooks/release.yml", **settings: Any) -> ansible_runner.Runner:
    for left in ("cmdline", "extravars", "settings"):  # AWX makes this folder anew for each job
        (private / "env" / left).unlink(missing_ok=True)
    return ansible_runner.run(
        private_data_dir=str(private), ident=ident, playbook=playbook, limit="web", quiet=True, timeout=DEADLINE, **settings
    )


def said(run: ansible_runner.Runner) -> str:
    return str(run.stdout.read())


def events(run: ansible_runner.Runner, kind: str) -> list[dict[str, Any]]:
    return [event["event_data"] for event in run.events if event["event"] == kind]


def artifacts(run: ansible_runner.Runner) -> dict[str, Any]:
    """What AWX hands to the next job of a workflow, as extra variables."""
    left: dict[str, Any] = events(run, "playbook_on_stats")[-1]["artifact_data"]
    return left


def test_job_and_what_it_leaves_for_a_workflow(private: Path, site: Site, images: str) -> None:
    planned = job(private, "1", cmdline="--check --diff", extravars={"release_image": f"{images}:v1", "awx_user_name": "ada"})
    assert planned.rc == 0, said(planned)
    assert not site.containers("web")

    # A survey sends an empty string for what was left empty.
    done = job(private, "2", extravars={"release_image": "", "awx_user_name": "ada"})
    assert done.rc == 0 and done.status == "successful", said(done)
    assert artifacts(done)["phoenix_release"]["live"] == 1
    assert site.versions("web") == {"v1"}
    told = [event["stdout"] for event in done.events if event["event"] == "verbose"]
    assert any("is live" in text for text in told), "progress is told as it happens"

    again = job(private, "3")
    assert again.rc == 0 and not any(again.stats["changed"].values()), said(again)


def test_ledger_that_would_vanish_with_the_job_is_refused(private: Path, site: Site) -> None:
    variables = {name: value for name, value in site.fleets["web"].items() if name != "fleet_state_dir"}
    (private / "inventory" / "hosts.json").write_text(json.dumps({
        "fleets": {"hosts": {"web": variables}}, "balancers": {"hosts": site.balancers},
    }))
    refused = job(private, "1", extravars={"awx_job_id": 7})
    assert refused.rc != 0 and "fleet_ledger" in said(refused), said(refused)
    assert not site.containers("web")


def test_cancelled_job_is_put_right_by_the_next(private: Path, site: Site, images: str) -> None:
    """AWX cancels by SIGKILL; nothing of the run's own gets to clean up."""
    site.release()
    cancelled = job(
        private, "1", extravars={"release_image": f"{images}:v2"}, settings={"idle_timeout": DEADLINE},
        cancel_callback=lambda: "r2-1" in site.kept("web"),
    )
    assert cancelled.status == "canceled" and cancelled.rc != 0
    assert site.versions("web") <= {"v1", "v2"}

    # A worker of the killed run may go on for as long as its lease lasts; then the fleet is free.
    deadline = time.monotonic() + 90
    while True:
        done = job(private, f"again-{time.monotonic_ns()}", extravars={"release_image": f"{images}:v2"})
        if done.rc == 0 or time.monotonic() > deadline:
            break
    assert done.rc == 0, said(done)
    assert site.versions("web") == {"v2"}
    assert site.release(release_image=f"{images}:v2").changed == 0
