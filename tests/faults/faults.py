# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make faults`: every fault in turn, under load, and a table of what it cost.

usage: run [--list] [NAME...]   Names choose rows by their beginning. Exits 1 unless every row is 0, 0, 0.
tests/output/faults.json has it all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}:/usr/sbin:/sbin"
for variable in [name for name in os.environ if name.startswith(("ANSIBLE_", "XDG_", "DOCKER_"))]:
    del os.environ[variable]

from ansible_collections.phoenix.fleet.tests.faults import clients, kills, parts, plays, receipts, ssh  # noqa: E402
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground, build_images  # noqa: E402
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial  # noqa: E402
from ansible_collections.phoenix.fleet.tests.integration.postgresql_server import Server  # noqa: E402

Fault = Callable[[Ground, Trial], None]
OURS = 8100
"""Sites of this suite have this number and the ones after it."""


def killed_within(ground: Ground, trial: Trial) -> None:
    kills.within(ground, trial, kills.prepare(ground))


def prepared(fault: Fault) -> Fault:
    def run(ground: Ground, trial: Trial) -> None:
        kills.prepare(ground)
        fault(ground, trial)
    return run


FEW = ("Provision", "Cut over", "Drain")


def published(ground: Ground, trial: Trial) -> None:
    """Instances that are reached by ports of their host."""
    ground.fleet("web", fleet_docker={**ground.fleets["web"]["fleet_docker"], "address": "published"})
    prepared(lambda ground, trial: kills.boundaries(ground, trial, FEW, ("release", "rollback", "heal")))(ground, trial)


def standing_by(ground: Ground, trial: Trial) -> None:
    """A standby that goes on running."""
    ground.fleet("web", fleet_standby="running")
    prepared(lambda ground, trial: kills.boundaries(ground, trial, FEW, ("rollback", "release", "heal")))(ground, trial)


def postgresql(ground: Ground, trial: Trial) -> None:
    """A ledger in PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:  # a short path, for its socket
        server = Server(folder)
        server.start()
        try:
            ground.fleet("web", fleet_ledger=server.create("fleets"))
            prepared(lambda ground, trial: kills.boundaries(ground, trial, FEW, ("release", "rollback", "heal")))(ground, trial)
        finally:
            server.stop()


FAULTS: dict[str, Fault] = {
    "controller killed between steps": prepared(kills.boundaries),
    "controller killed within steps": killed_within,
    "controller killed, and the next run too": prepared(kills.twice),
    "rollback, scale, heal killed": prepared(kills.verbs),
    "retire killed": kills.retire,
    "killed, published addresses": published,
    "killed, running standby": standing_by,
    "killed, ledger in PostgreSQL": postgresql,
    "orphaned worker goes on": prepared(kills.orphans),
    "orphaned worker stands still": prepared(kills.abandoned),
    **{name: prepared(fault) for name, fault in parts.FAULTS.items()},
    "orphaned modules, cut connections": ssh.modules,
    **parts.ELSEWHERE,
    **{name: prepared(fault) for name, fault in receipts.FAULTS.items()},
    **receipts.ELSEWHERE,
    **plays.ELSEWHERE,
    **{name: prepared(fault) for name, fault in clients.FAULTS.items()},
    **clients.ELSEWHERE,
}


def perform(name: str, fault: Fault, number: int) -> Trial:
    trial = Trial(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="phoenix-faults-", ignore_cleanup_errors=True) as folder:
        ground = Ground(Path(folder), number)
        try:
            fault(ground, trial)
        except Exception as error:  # one row that cannot be measured shall not cost the others
            trial.wrong.append(f"{type(error).__name__}: {error}")
        finally:
            ground.close()
    trial.seconds = time.monotonic() - began
    return trial


def line(trial: Trial) -> str:
    figures = f"{trial.points:>6} {trial.sent:>8,} {trial.failed:>7} {len(trial.leftovers):>9} {len(trial.manual):>7} {trial.seconds:>7.0f}"
    return f"{trial.name:<43} {figures}  {'ok' if trial.good else 'NOT OK'}{'  ' + trial.by if trial.by else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults on real parts, under load.")
    parser.add_argument("names", nargs="*", help="rows, by the beginning of their names")
    parser.add_argument("--list", action="store_true", help="the names of all rows")
    options = parser.parse_args()
    chosen = [name for name in FAULTS if not options.names or name.startswith(tuple(options.names))]
    if options.list or not chosen:
        print("\n".join(FAULTS))
        return 0 if options.list else 2
    began = time.monotonic()
    build_images()
    print(f"{'fault':<43} points requests  failed leftovers  manual seconds", flush=True)
    trials = []
    for name in chosen:
        trials.append(perform(name, FAULTS[name], OURS + list(FAULTS).index(name)))
        print(line(trials[-1]), *(f"    {told}" for told in trials[-1].told()), sep="\n", flush=True)
    output = ROOT / "tests" / "output"
    output.mkdir(parents=True, exist_ok=True)
    (output / "faults.json").write_text(json.dumps([asdict(trial) for trial in trials], indent=2))
    sums = (sum(item.points for item in trials), sum(item.sent for item in trials), sum(item.failed for item in trials))
    rest = (sum(len(item.leftovers) for item in trials), sum(len(item.manual) for item in trials), time.monotonic() - began)
    print("{:<43} {:>6} {:>8,} {:>7} {:>9} {:>7} {:>7.0f}".format("all", *sums, *rest))
    return 0 if all(trial.good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
