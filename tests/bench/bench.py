# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same release by phoenix.fleet and by what one would otherwise use, in one run, on one machine, under load.

    tests/bench/run [--sizes 10,50] [--runs 5] [--methods limit,fleet,rollback,rollback-running,loops,swarm] [--references FOLDER]

Prints a table of medians and ratios, and writes build/bench.json. docs/benchmark.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import CACHE, HERE, INSIDE, ROOT, Balancer, Engine, LabError, inventory, isolated, run, until

sys.path.insert(0, str(HERE.parent))
from load import Load

RATE = 200
VENV = CACHE / "bench-venv"
REPORT = ROOT / "build/bench.json"
# In this order: an engine that was in a swarm is slower afterwards (seen: 12 %), and what is compared stands side by side.
METHODS = {
    "limit": "the two APIs, in parallel",
    "reference-limit": "reference: raw_release.py",
    "limit-fixed": "the same, fixed addresses",
    "fleet": "phoenix.fleet.release",
    "rollback": "phoenix.fleet.rollback",
    "rollback-running": "rollback, standby running",
    "loops": "playbook with loops",
    "reference-loops": "reference: naive.yml",
    "swarm": "docker service update",
}


@dataclass(frozen=True)
class Measured:
    """One release: seconds as they count, of the command as a whole, of processors, and of its parts; peak_mb of its largest process.

    Of a rollback those seconds count that pass until its predecessor has all traffic; release are those of the release that it takes back.
    """

    seconds: float
    whole: float
    processor: float
    peak_mb: float
    sent: int
    failed: int
    failures: dict[str, int]
    parts: dict[str, float] = field(default_factory=dict)
    release: float = 0


def command(method: str, size: int, number: int, image: str, folder: Path, references: str) -> list[str]:
    """What releases `size` containers of `image` by this method."""
    haproxy = f"{folder}/haproxy"
    loops = [f"{VENV}/bin/ansible-playbook", "-i", "localhost,", "-e", f"ansible_python_interpreter={VENV}/bin/python", "-e"]
    return {
        "limit": [sys.executable, f"{HERE}/limit.py", str(size), image, str(number), f"{haproxy}/admin.sock"],
        "limit-fixed": [sys.executable, f"{HERE}/limit.py", str(size), image, str(number), f"{haproxy}/admin.sock", "fixed"],
        "fleet": [f"{ROOT}/.venv/bin/ansible-playbook", "phoenix.fleet.release", "-i", f"{folder}/inventory.json"]
        + ["-e", f"release_image={image}"],
        "rollback": [f"{ROOT}/.venv/bin/ansible-playbook", "phoenix.fleet.rollback", "-i", f"{folder}/inventory.json"],
        "loops": [*loops, f"size={size} image={image} number={number} haproxy_dir={haproxy}", f"{HERE}/loops.yml"],
        "swarm": [sys.executable, f"{HERE}/swarm.py", str(size), image],
        "reference-limit": [sys.executable, f"{references}/raw_release.py", str(size), image, str(number), f"{haproxy}/admin.sock"],
        "reference-loops": [*loops, f"n={size} image={image} tag={number} conf_dir={haproxy}/conf.d pidfile={haproxy}/pid"]
        + [f"{references}/naive.yml"],
    }[method]


def release(arguments: list[str], folder: Path) -> tuple[float, float, float, dict[str, float]]:
    """Runs one release: the seconds it took, those of processors, the peak memory of its largest process in MB, the seconds of its parts.

    A program that prints a JSON object of its phases is timed by its last phase, without the start of its interpreter.
    Parts of a playbook are its tasks, timed by when their names appear. Raises LabError with what was said.
    """
    said: list[str] = []
    parts: dict[str, float] = {}
    task = ""
    last = begin = time.monotonic()
    process = subprocess.Popen(arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if header := re.match(r"(?:TASK|PLAY|PLAY RECAP) \[?([^]*]*)", line):
            now = time.monotonic()
            parts[task or "start"] = round(parts.get(task or "start", 0) + now - last, 3)
            last, task = now, header[1].strip()
    status, usage = os.wait4(process.pid, 0)[1:]
    process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.monotonic() - begin
    if process.returncode:
        raise LabError(f"{' '.join(arguments)} ended with {process.returncode}:\n{''.join(said)}")
    if said and said[-1].startswith("{"):
        parts = json.loads(said[-1])
    return whole, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, parts


def measure(method: str, size: int, runs: int, engine: Engine, folder: Path, references: str) -> list[Measured]:
    """Releases again and again, the two images in turn; the first release, of an empty fleet, does not count."""
    static = ""
    if method == "swarm":  # serves nothing, so a container that is never replaced gets the requests: the machine has the same to do
        static = f"backend web\n    server bystander {engine.start('nginx:even')[1]}:80 check\n"
    folder.mkdir()
    measured = []
    with Balancer(folder / "haproxy", *[static] if static else []) as balancer:
        inventory(folder, balancer, fleet_image="nginx:even", fleet_size=size, fleet_keep=0)
        for number in range(1, runs + 2):
            image = f"nginx:{('even', 'odd')[number % 2]}"
            arguments = command(method, size, number, image, folder, references)
            if number == 1:
                release(arguments, folder)
            else:
                with Load(balancer.url, RATE) as load:
                    whole, processor, peak, parts = release(arguments, folder)
                counted = whole if method in ("fleet", "loops", "reference-loops") else max(parts.values())
                told = load.result
                measured.append(Measured(counted, whole, processor, peak, told["sent"], told["failed"], told["failures"], parts))
            done(engine, balancer, [image] * size + ["nginx:even"] * bool(static), 1 if static else size)
    return measured


def measure_rollback(standby: str, size: int, runs: int, engine: Engine, folder: Path) -> list[Measured]:
    """Releases and goes back, again and again: r1 is the predecessor every time. Both happen under load, and all requests count."""
    folder.mkdir()
    measured = []
    kept = ["nginx:{}" if standby == "running" else "exited"] * size
    with Balancer(folder / "haproxy") as balancer:
        inventory(folder, balancer, fleet_image="nginx:even", fleet_size=size, fleet_keep=1, fleet_standby=standby)
        release(command("fleet", size, 1, "nginx:even", folder, ""), folder)
        for number in range(2, runs + 2):
            with Load(balancer.url, RATE) as load:
                before = release(command("fleet", size, number, "nginx:odd", folder, ""), folder)[0]
                done(engine, balancer, ["nginx:odd"] * size + [state.format("even") for state in kept], size)
                with Watch(lambda: balancer.weighted() == {f"web-r1-{slot + 1}" for slot in range(size)}) as watch:
                    whole, processor, peak, parts = release(command("rollback", size, number, "", folder, ""), folder)
            done(engine, balancer, ["nginx:even"] * size + [state.format("odd") for state in kept], size)
            told = load.result
            measured.append(Measured(
                watch.seconds(), whole, processor, peak, told["sent"], told["failed"], told["failures"], parts, release=before,
            ))
    return measured


class Watch:
    """While the block lasts: looks every 10 ms, beside it, whether something holds already; `seconds` after its beginning it did."""

    def __init__(self, holds: Callable[[], bool]):
        self.holds = holds
        self.found: float | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        while not self.ended.wait(0.01):
            if self.holds():
                self.found = time.monotonic() - self.began
                return

    def seconds(self) -> float:
        if self.found is None:
            raise LabError("the predecessor never had all traffic, as far as HAProxy tells")
        return self.found

    def __enter__(self) -> Watch:
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def done(engine: Engine, balancer: Balancer, images: list[str], servers: int) -> None:
    """All methods have the same to do: raises LabError unless exactly these containers run and so many servers take traffic."""
    want = sorted(images)
    until(lambda: sorted(engine.serving()) == want, lambda: f"the containers to be {want}, they are {sorted(engine.serving())}")
    until(lambda: balancer.serving() == servers, lambda: f"{servers} servers in HAProxy, {balancer.ask('show servers state')}")


def summary(method: str, size: int, measured: list[Measured], limit: float) -> dict[str, Any]:
    seconds = [m.seconds for m in measured]
    median = statistics.median(seconds)
    return {
        "method": method,
        "size": size,
        "median_s": round(median, 2),
        "min_s": round(min(seconds), 2),
        "max_s": round(max(seconds), 2),
        "ratio": round(median / (limit or median), 2) if limit or method == "limit" else None,
        "sent": sum(m.sent for m in measured),
        "failed": sum(m.failed for m in measured),
        "served": method != "swarm",
        "ratio_release": round(median / statistics.median(m.release for m in measured), 2) if measured[0].release else None,
        "processor_s": round(statistics.median(m.processor for m in measured), 2),
        "peak_mb": round(max(m.peak_mb for m in measured)),
        "runs": [asdict(m) for m in measured],
    }


HEADER = (
    f"{'':27} {'N':>4} {'median s':>9} {'min .. max':>15} {'x limit':>8} {'x release':>10} "
    f"{'sent':>8} {'failed':>7} {'CPU s':>7} {'peak MB':>8}"
)


def line(r: dict[str, Any]) -> str:
    name, spread, failed = METHODS[r["method"]], f"{r['min_s']:.2f} .. {r['max_s']:.2f}", r["failed"] if r["served"] else "-"
    times = f"{r['median_s']:9.2f} {spread:>15} {r['ratio'] or '-':>8} {r['ratio_release'] or '-':>10}"
    return f"{name:27} {r['size']:4} {times} {r['sent']:8,} {failed:>7} {r['processor_s']:7.2f} {r['peak_mb']:8}"


def machine() -> dict[str, Any]:
    def version(*words: str) -> str:
        return run(*words).stdout.splitlines()[0]

    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": run("docker", "version", "--format", "{{.Server.Version}}").stdout.strip(),
        "haproxy": version("haproxy", "-v"),
        "ansible": version(f"{ROOT}/.venv/bin/ansible", "--version"),
        "ansible of the loops": version(f"{VENV}/bin/ansible", "--version") if VENV.exists() else "",
    }


def prepare(methods: list[str]) -> None:
    """A virtual environment with the PyPI package `ansible`, as a user has it, for the playbook with loops."""
    python = VENV / "bin/python"
    wanted = "import docker, requests, ansible_collections.community.docker"
    if not any("loops" in method for method in methods):
        return
    if not python.exists() or subprocess.run([python, "-c", wanted], capture_output=True, check=False).returncode:
        print(f"Installing ansible from PyPI into {VENV.relative_to(ROOT)}")
        run(sys.executable, "-m", "venv", VENV)
        run(python, "-m", "pip", "install", "--quiet", "ansible==12.*", "docker", "requests")


def main() -> int:
    parser = argparse.ArgumentParser(description="One release by phoenix.fleet and by what one would otherwise use, on one machine.")
    parser.add_argument("--sizes", default="10,50", help="numbers of containers (default 10,50)")
    parser.add_argument("--runs", type=int, default=5, help="releases per method and size that count (default 5)")
    parser.add_argument("--methods", default="limit,limit-fixed,fleet,rollback,rollback-running,loops,swarm", help="default: all")
    parser.add_argument("--references", default="", help="a folder with raw_release.py and naive.yml to compare with")
    options = parser.parse_args()
    asked, sizes = options.methods.split(","), [int(size) for size in options.sizes.split(",")]
    if options.references:
        asked += ["reference-limit", "reference-loops"]
    references = os.path.abspath(options.references)
    if unknown := set(asked) - set(METHODS):
        parser.error(f"unknown method {', '.join(unknown)}")
    methods = [method for method in METHODS if method in asked]

    def inside(folder: Path) -> int:
        engine = Engine(folder)
        results, mistakes = [], []
        for size in sizes:
            limit = 0.0
            for method in methods:
                place = folder / f"{method}-{size}"
                if method.startswith("rollback") and size != sizes[0]:
                    continue  # measured at the first size only: it costs a release each time, and twice the containers
                try:
                    if method.startswith("rollback"):
                        standby = "running" if method.endswith("running") else "stopped"
                        measured = measure_rollback(standby, size, options.runs, engine, place)
                    else:
                        measured = measure(method, size, options.runs, engine, place, references)
                except LabError as error:
                    mistakes.append(f"{method}, N = {size}: {error}")
                    print(mistakes[-1], flush=True)
                else:
                    results.append(summary(method, size, measured, limit))
                    limit = limit or results[-1]["median_s"] * (method == "limit")
                    print(line(results[-1]), flush=True)
                engine.clear()
        report = {"rate": RATE, "machine": machine(), "results": results, "mistakes": mistakes}
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=2) + "\n")
        print("", HEADER, *map(line, results), "", f"written to {REPORT.relative_to(ROOT)}", sep="\n")
        return 1 if mistakes else 0

    if INSIDE not in os.environ:
        prepare(methods)
    return isolated(inside)


if __name__ == "__main__":
    sys.exit(main())
