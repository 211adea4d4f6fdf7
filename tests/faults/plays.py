# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other people's plays around the role, with an image that answers 500 for one of two fleets; and with the controller killed."""

from __future__ import annotations

import json

from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial
from ansible_collections.phoenix.fleet.tests.integration.test_other_plays import BOTH, TABLE, told

PLAYS = ("ignore_errors on the role", "ignore_errors on the play", "in a loop", "any_errors_fatal", "max_fail_percentage")
KILLED = {"any_errors_fatal": "Check"}
"""Before which task the controller is killed: there both fleets are under way."""


def surrounded(ground: Ground, trial: Trial) -> None:
    ground.behind("web", "api")
    ground.fleet("web", fleet_check_timeout=4)
    ground.fleet("api", **{key: ground.fleets["web"][key] for key in ("fleet_image", "fleet_docker", "fleet_check_timeout")})
    ground.release()
    with trial.load(ground):
        for name in PLAYS:
            with trial.point(ground, name):
                attempt(ground, name)
        for name, step in KILLED.items():
            with trial.point(ground, f"{name}, killed before {step}"):
                attempt(ground, name, step)


def attempt(ground: Ground, name: str, step: str = "") -> None:
    """web gets the bad image, api a good one where the play is for both; a plain heal follows."""
    path = ground.folder / "own.yml"
    path.write_text(json.dumps((TABLE.get(name) or BOTH[name])[0]))
    before = served(ground)
    ground.fleet("api", fleet_image=ground.image(ground.other("api")))
    ground.fleet("web", fleet_image=ground.image("v3"))
    try:
        command = ground.start(str(path), hold=step)
        if step:
            assert command.reach(step), command.output[-600:]
            command.kill("everything")
        else:
            run = command.wait()
            assert "did not go live" in run.output, run.story[-4:]
            assert name in BOTH and run.code or run.code == 0 and told(run, "web") == "True", f"it ended with {run.code}: {run.story[-4:]}"
    finally:
        for fleet in ground.fleets:
            ground.fleet(fleet, fleet_image=ground.image("v1" if ground.other(fleet) == "v2" else "v2"))
    assert served(ground) == before, "another release of web runs"
    healed = ground.put_right("heal")
    assert step or not healed.changed, f"heal had something to do: {healed.story[-4:]}"
    assert served(ground) == before, "another release of web serves"


def served(ground: Ground) -> list[str]:
    """What runs of web's live release."""
    live = str(ground.history().live)
    return [item.id for item in ground.containers("web") if item.status == "running" and item.labels["phoenix.fleet.release"] == live]


ELSEWHERE = {"a bad image in other people's plays": surrounded}
