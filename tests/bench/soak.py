# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Release after release under load: how many requests fail?

    tests/bench/soak [--releases 100] [--requests 200000] [--rate 300] [--size 2]

Two images in turn through `ansible-playbook phoenix.fleet.release`, until there were as many releases and as many requests as
asked for. GET and POST, kept and new connections, and every fiftieth answer takes 5 s. Writes build/soak.json; exits 1 if any
request failed, and stops at the first release that fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from lab import HERE, ROOT, Balancer, Engine, LabError, inventory, isolated, run

sys.path.insert(0, str(HERE.parent))
from load import Load

REPORT = ROOT / "build/soak.json"
DRAIN = 15  # seconds: three times the slowest answer


def main() -> int:
    parser = argparse.ArgumentParser(description="Releases again and again under load, and counts the requests that failed.")
    parser.add_argument("--releases", type=int, default=100, help="at least so many (default 100)")
    parser.add_argument("--requests", type=int, default=200_000, help="at least so many (default 200000)")
    parser.add_argument("--rate", type=float, default=300, help="requests a second (default 300)")
    parser.add_argument("--size", type=int, default=2, help="containers of the fleet (default 2)")
    options = parser.parse_args()

    def soak(folder: Path) -> int:
        engine = Engine(folder)
        seconds: list[float] = []
        mistake = ""
        with Balancer(folder / "haproxy") as balancer:
            docker = {"stop_signal": "SIGQUIT"}
            inventory(folder, balancer, fleet_image="nginx:even", fleet_size=options.size, fleet_drain_timeout=DRAIN, fleet_docker=docker)

            def release(number: int) -> None:
                image = f"nginx:{('even', 'odd')[number % 2]}"
                begin = time.monotonic()
                command = [f"{ROOT}/.venv/bin/ansible-playbook", "phoenix.fleet.release", "-i", folder / "inventory.json"]
                run(*command, "-e", f"release_image={image}", cwd=folder)
                if engine.serving().count(image) != options.size or balancer.serving() != options.size:
                    raise LabError(f"release {number}: {engine.serving()} run, {balancer.serving()} servers take traffic")
                seconds.append(time.monotonic() - begin)
                if number % 10 == 0:
                    print(f"{number} releases, {statistics.median(seconds):.1f} s each", flush=True)

            try:
                release(0)
                seconds.clear()
                longest = options.releases * 60 + options.requests / options.rate
                with Load(balancer.url, options.rate, seconds=longest, slow="/slow") as load:
                    begin = time.monotonic()
                    while len(seconds) < options.releases or (time.monotonic() - begin) * options.rate < options.requests:
                        release(len(seconds) + 1)
            except LabError as error:
                mistake = str(error)
                print(mistake)
                if not seconds:
                    return 1
        result = load.result
        report = {"releases": len(seconds), "median_s": round(statistics.median(seconds), 2), "max_s": round(max(seconds), 2)}
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps({**report, "mistake": mistake, "load": result}, indent=2) + "\n")
        print(f"{len(seconds)} releases, median {report['median_s']} s, longest {report['max_s']} s")
        print(f"{result['failed']:,} of {result['sent']:,} requests failed", *result["failures"].items(), *result["examples"], sep="\n  ")
        print("requests:", ", ".join(f"{count:,} {kind}" for kind, count in result["kinds"].items()))
        print(f"p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms, longest {result['max_ms']} ms; answers {result['answers']}")
        return 1 if result["failed"] or mistake else 0

    return isolated(soak)


if __name__ == "__main__":
    sys.exit(main())
