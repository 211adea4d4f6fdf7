# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What befalls the parts: containers, HAProxy, the engine, the disk, the clock, the ledger, and a second controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
from ansible_collections.phoenix.fleet.tests.faults.command import HERE, Command, until
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.kills import follow, frozen, prepare
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, copy
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Run
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess

# Containers

LISTEN = f"nc -{'l' * 64} -p 8080 -e"
COMMANDS = {
    "exits at once": ("echo the licence has expired; exit 3", "exit code 3"),
    "never listens": ("sleep 1000", "connection refused"),
    "takes a minute for each answer": (f"{LISTEN} /bin/sh -c 'sleep 60'", "no answer"),
    "listens late": ("sleep 2; exec /bin/serve", ""),
    "ignores the stop signal": (f"{LISTEN} /bin/handle", ""),
}
"""What a container runs instead of its image's command, and what is said of it where its release is not to succeed."""


def containers(ground: Ground, trial: Trial, names: Sequence[str] = tuple(COMMANDS)) -> None:
    """Containers that do not do what they ought to, from the start."""
    options = ground.fleets["web"]["fleet_docker"]
    with trial.load(ground):
        for name in names:
            command, said = COMMANDS[name]
            with trial.point(ground, name):
                before = ground.history().live
                ground.fleet("web", fleet_check_timeout=6, fleet_docker={**options, "command": ["/bin/sh", "-c", command]})
                run = ground.start("release").wait()
                ground.fleet("web", fleet_check_timeout=20, fleet_docker=options)
                judge(run, said, ground, before)
        with trial.point(ground, "answers 500"):
            before = ground.history().live
            ground.fleet("web", fleet_check_timeout=6)
            run = ground.start("release", release_image=ground.image("v3")).wait()
            ground.fleet("web", fleet_check_timeout=20)
            judge(run, "answered 500", ground, before)
        with trial.point(ground, "the successor of one that ignores the stop signal"):
            follow(ground, "release", ground.image(ground.other()))


def judge(run: Run, said: str, ground: Ground, before: int) -> None:
    """said is what the refusal has to say; empty where the release has to succeed."""
    if not said:
        assert run.code == 0, f"it was refused: {run.story[-3:]}"
        assert ground.history().live != before, "it is not live"
    else:
        assert run.code != 0 and "did not go live" in run.output and said in run.output, f"it ended with {run.code}: {run.story[-3:]}"
        assert "Traceback" not in run.output, run.output
        assert ground.history().live == before, "it is live"


def exits(ground: Ground, trial: Trial, steps: Sequence[str] = ("Stage", "Wait until every balancer calls them up", "Commit")) -> None:
    """A container that ended, and was started again by the engine, after it had passed the check and before the commit."""
    with trial.load(ground):
        for step in steps:
            with trial.point(ground, f"a container ends before {step}"):
                before = ground.history().live
                command = ground.start("release", hold=step, release_image=ground.image(ground.other()))
                assert command.reach(step), command.output[-600:]
                item = next(item for item in ground.containers("web") if item.name.endswith(f"-r{newest(ground)}-1"))
                os.kill(item.attrs["State"]["Pid"], signal.SIGKILL)
                until("the engine to start it again", lambda item=item: again(item), 30, 0.05)
                command.go()
                judge(command.wait(), "restarted", ground, before)


def newest(ground: Ground) -> int:
    return max(int(item.labels["phoenix.fleet.release"]) for item in ground.containers("web"))


def again(item: Any) -> bool:
    item.reload()
    return bool(item.attrs["RestartCount"] and item.status == "running")


# HAProxy

def storm(ground: Ground, trial: Trial, verbs: Sequence[str] = ("release", "release", "rollback", "scale")) -> None:
    """Every HAProxy is reloaded, again and again, while runs are at work."""
    over = threading.Event()
    reloads = {host: 0 for host in ground.proxies}

    def blow(host: str, proxy: HAProxyProcess) -> None:
        while not over.wait(0.4):
            proxy.reload()
            reloads[host] += 1

    for verb in verbs:
        with trial.load(ground), trial.point(ground, f"{verb} in the storm"):
            over.clear()
            winds = [threading.Thread(target=blow, args=pair) for pair in ground.proxies.items()]
            for wind in winds:
                wind.start()
            try:
                follow(ground, verb, ground.image(ground.other()))
            finally:
                over.set()
                for wind in winds:
                    wind.join()
    trial.by = f"{sum(reloads.values())} reloads"


BALANCER = ("Observe the balancers", "Stage", "Commit", "Cut over", "Drain", "Decommission")


def restarted(ground: Ground, trial: Trial, steps: Sequence[str] = BALANCER) -> None:
    """lb2 is stopped and started between two steps. Requests that it answers itself cannot be had meanwhile: they go to lb1."""
    with trial.load(ground, "lb1"):
        for step in steps:
            with trial.point(ground, f"lb2 restarted before {step}"):
                image = ground.image(ground.other())
                command = ground.start("release", hold=step, release_image=image)
                assert command.reach(step), command.output[-600:]
                ground.proxies["lb2"].restart()
                with trial.load(ground, "lb2"):
                    command.go()
                    run = command.wait()
                    assert run.code == 0, f"it ended with {run.code}: {run.story[-3:]}"


def killed(ground: Ground, trial: Trial, steps: Sequence[str] = BALANCER) -> None:
    """lb2 is killed between two steps, and back after the run."""
    with trial.load(ground, "lb1"):
        for step in steps:
            with trial.point(ground, f"lb2 killed before {step}"):
                image = ground.image(ground.other())
                command = ground.start("release", hold=step, release_image=image)
                assert command.reach(step), command.output[-600:]
                ground.proxies["lb2"].kill()
                command.go()
                run = command.wait()
                ground.proxies["lb2"].start()
                assert run.code != 0 and "Traceback" not in run.output, f"it ended with {run.code}: {run.story[-3:]}"
                with trial.load(ground, "lb2"):
                    follow(ground, "release", image)


# The engine

def engine_restarted(ground: Ground, trial: Trial, live_restore: bool = False, number: int = 1) -> None:
    """An engine of this fault's own is restarted, or down, at a step. Without live-restore that kills every instance: no load meanwhile."""
    engine = DockerEngine(f"faults{number}", number, arguments=("--live-restore",) if live_restore else ())
    with engine, engine.client() as client, docker.APIClient() as machine:
        for version in ("v1", "v2"):
            copy(ground.image(version), machine, client)
        ground.engine.close()
        ground.engine = docker.DockerClient(base_url=engine.url, timeout=60)
        ground.fleet("web", fleet_docker={**ground.fleets["web"]["fleet_docker"], "hosts": [engine.url]})
        try:
            prepare(ground)
            if live_restore:
                with trial.load(ground):
                    _engine_points(ground, trial, engine, live_restore)
            else:
                _engine_points(ground, trial, engine, live_restore)
        finally:
            for item in ground.containers("web"):
                item.remove(force=True)
            ground.engine.close()
            ground.engine = docker.from_env()


def _engine_points(ground: Ground, trial: Trial, engine: DockerEngine, live_restore: bool) -> None:
    for step, down in (("Provision", False), ("Check", True), ("Cut over", False), ("Decommission", True)):
        with trial.point(ground, f"the engine is {'down' if down else 'restarted'} at {step}"):
            image = ground.image(ground.other())
            command = ground.start("release", hold=step, release_image=image)
            assert command.reach(step), command.output[-600:]
            engine.stop()
            if not live_restore:  # its instances have ended: before HAProxy has seen it nothing says that they serve again
                until("HAProxy to notice", lambda: not any(up(proxy) for proxy in ground.proxies.values()), 30, 0.05)
            if not down:
                engine.start()
            command.go()
            run = command.wait()
            assert "Traceback" not in run.output, run.output
            if down:
                assert run.code != 0, "it ended well without an engine"
                engine.start()
            until("the instances to serve again", lambda: all(serves(proxy) for proxy in ground.proxies.values()), 60, 0.1)
            if live_restore:
                follow(ground, "release", image)
            else:
                with trial.load(ground):
                    follow(ground, "release", image)


def serves(proxy: HAProxyProcess) -> bool:
    """All that have a weight are up."""
    weighted = [name for name, row in proxy.servers("web").items() if row["srv_uweight"] != "0"]
    return bool(weighted) and up(proxy) >= set(weighted)


def up(proxy: HAProxyProcess) -> set[str]:
    return {name for name, row in proxy.servers("web").items() if row["srv_op_state"] == "2"}


# A second controller

def two_at_once(ground: Ground, trial: Trial, rounds: int = 3) -> None:
    """Two releases of one ledger are started together: one goes through, the other says who holds the fleet."""
    with trial.load(ground):
        for number in range(rounds):
            with trial.point(ground, f"two at once, round {number + 1}"):
                commands = [ground.start("release", release_image=ground.image(ground.other())) for _start in range(2)]
                runs = [command.wait() for command in commands]
                lost = [run for run in runs if run.code]
                assert len(lost) == 1 and "held by" in lost[0].output, [run.story[-3:] for run in runs]


def two_ledgers(ground: Ground, trial: Trial, rounds: int = 2) -> None:
    """Another controller, with a ledger of its own, releases the same fleet at the same time."""
    stranger = second(ground)
    with trial.load(ground):
        for number in range(rounds):
            with trial.point(ground, f"two ledgers, round {number + 1}"):
                image = ground.image(ground.other())
                theirs = ground.start("release", inventory=stranger, release_image=image)
                ours = ground.start("release", release_image=image)
                refused = theirs.wait()
                assert refused.code != 0 and "ledger" in refused.output and "Traceback" not in refused.output, refused.story[-3:]
                assert ours.wait().code == 0, ours.output[-1500:]


def second(ground: Ground) -> Path:
    """The inventory of a controller with another ledger."""
    path = ground.folder / "stranger.json"
    text = json.dumps(json.loads(ground.inventory.read_text())).replace(str(ground.folder / "state"), str(ground.folder / "stranger"))
    path.write_text(text)
    return path


def two_firsts(ground: Ground, trial: Trial) -> None:
    """Two ledgers, and a fleet that nobody has released yet. No load: nothing serves."""
    with trial.point(ground, "two first releases at once"):
        stranger = second(ground)
        commands = [ground.start("release"), ground.start("release", inventory=stranger)]
        codes = [command.wait().code for command in commands]
        assert 0 not in codes or codes.count(0) == 1, "both say that they have released"
        if codes[1] == 0:
            ground.state = ground.folder / "stranger"
            ground.inventory = stranger
        ground.put_right("release")


# Stopped holders

APART = ("unshare", "--pid", "--fork", "--kill-child")
"""A PID namespace of its own, so that nobody sees the process that a lease names. HAProxy's processes are seen in there as before."""


def stopped(ground: Ground, trial: Trial) -> None:
    """A run stands still (SIGSTOP) until another has taken its fleet, and goes on (SIGCONT)."""
    with trial.load(ground):
        for step in ("Stage", "Drain"):
            with trial.point(ground, f"stopped before {step} in a container of its own, past its lease"):
                image = ground.image(ground.other())
                command = ground.start("release", hold=step, prefix=APART, release_image=image)
                assert command.reach(step) and "Put everything back" not in command.output, command.output[-600:]
                command.signal(signal.SIGSTOP, command.workers())
                early = ground.start("release", release_image=image).wait()
                assert early.code != 0 and "held by" in early.output, early.story[-3:]
                until("the lease to expire", lambda: ground.ledger.holder(ground.name("web")) is None, 60, 0.2)
                follow(ground, "release", image)
                revive(command)
        with trial.point(ground, "stopped on this machine, then a takeover"):
            image = ground.image(ground.other())
            command, worker = frozen(ground, "Cut over", image)
            command.signal(signal.SIGSTOP, [command.process.pid])
            early = ground.start("release", release_image=image).wait()
            assert early.code != 0 and "SIGSTOP" in early.output and "fleet_takeover" in early.output, early.story[-3:]
            ground.put_right("release", release_image=image, fleet_takeover="true")
            until("the stopped run to end", lambda: command.process.poll() is not None, 20)
            follow(ground, "release", image)


def revive(command: Command) -> None:
    """Let a run go on whose fleet was taken: it must see that, and end as failed."""
    command.go()
    command.signal(signal.SIGCONT, command.workers())
    run = command.wait()
    assert run.code != 0 and "lost its lease" in run.output and "Traceback" not in run.output, f"{run.code}: {run.story[-6:]}"


# Disks

@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system in memory there, with no room to spare."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is left there."""
    path = folder / "full"
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    try:
        yield
    finally:
        path.unlink()


def full_ledger(ground: Ground, trial: Trial,
                steps: Sequence[str] = ("Lease", "Plan", "Provision", "Commit", "Decommission", "Finish")) -> None:
    """No room under the ledger from a step on."""
    with small_disk(ground.folder / "state", "600k"):
        prepare(ground)
        with trial.load(ground):
            for step in steps:
                filled(ground, trial, step, ground.folder / "state")


def full_fragments(ground: Ground, trial: Trial,
                   steps: Sequence[str] = ("Observe the balancers", "Stage", "Cut over", "Drain")) -> None:
    """No room under the fragments of lb2 from a step on."""
    ground.proxies["lb2"].stop()
    folder = ground.proxies["lb2"].config_dir
    with small_disk(folder, "64k"):
        proxy = HAProxyProcess(ground.proxies["lb2"].folder, backends=("web",)).start()
        ground.proxies["lb2"] = proxy
        ground.balancers["lb2"] = proxy.hostvars
        ground.fleet("web")
        try:
            prepare(ground)
            with trial.load(ground):
                for step in steps:
                    filled(ground, trial, step, folder)
        finally:
            proxy.stop()


def filled(ground: Ground, trial: Trial, step: str, folder: Path) -> None:
    with trial.point(ground, f"the disk is full from {step} on"):
        image = ground.image(ground.other())
        command = ground.start("release", hold=step, release_image=image)
        assert command.reach(step), command.output[-600:]
        with full(folder):
            command.go()
            run = command.wait()
            assert "Traceback" not in run.output, run.output
            assert run.code == 0 or "full" in run.output or "No space" in run.output, run.story[-4:]
        follow(ground, "release", image)


# The clock

def clock(ground: Ground, trial: Trial) -> None:
    """The controller's clock (libfaketime, not the machine's) is days ahead or behind, and is set while a run is at work."""
    with trial.load(ground):
        for first, then in (("+3d", "-3d"), ("-3d", "+3d")):
            with trial.point(ground, f"killed with the clock at {first}, put right with it at {then}"):
                image = ground.image(ground.other())
                command = ground.start("release", hold="Cut over", environment=faked(ground, first), release_image=image)
                command.reach("Cut over")
                command.kill("everything")
                run = ground.start("release", environment=faked(ground, then), release_image=image).wait()
                assert run.code == 0, run.story[-4:]
                follow(ground, "release", image)
        with trial.point(ground, "the clock is set back, and forward, within a run"):
            image = ground.image(ground.other())
            command = ground.start("release", hold="Check", environment=faked(ground, "+0d"), release_image=image)
            assert command.reach("Check"), command.output
            faked(ground, "-2d")
            command.go("Commit")
            command.reach("Commit")
            faked(ground, "+5d")
            command.go()
            run = command.wait()
            assert run.code == 0, run.story[-4:]
        with trial.point(ground, "a rollback with the clock far behind goes to the predecessor"):
            live = ground.history().live
            run = ground.start("rollback", environment=faked(ground, "-30d")).wait()
            assert run.code == 0 and ground.history().live == live - 1, (live, ground.history().live, run.story[-4:])


def faked(ground: Ground, offset: str) -> Mapping[str, str]:
    file = ground.folder / "clock"
    file.write_text(f"{offset}\n")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    modules = os.pathsep.join(filter(None, (str(HERE / "clock"), os.environ.get("PYTHONPATH"))))
    return {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": modules,
    }


# The ledger

def deleted(ground: Ground, trial: Trial, steps: Sequence[str] = ("", "Check", "Commit", "Cut over", "Drain")) -> None:
    """The ledger's file is deleted: between two runs, or while one is at work."""
    trial.by = "-e fleet_adopt=true"
    with trial.load(ground):
        for step in steps:
            with trial.point(ground, f"the ledger is deleted before {step or 'a run'}"):
                image = ground.image(ground.other())
                if step:
                    command = ground.start("release", hold=step, release_image=image)
                    assert command.reach(step), command.output
                    delete(ground)
                    command.go()
                    run = command.wait()
                else:
                    delete(ground)
                    run = ground.start("release", release_image=image).wait()
                assert run.code != 0 and "fleet_adopt" in run.output and "Traceback" not in run.output, f"{run.code}: {run.story[-4:]}"
                ground.put_right("release", release_image=image, fleet_adopt="true")
                follow(ground, "release", image)


def delete(ground: Ground) -> None:
    for path in ground.state.glob("ledger.sqlite3*"):
        path.unlink()


FAULTS = {
    "containers that do not serve": containers,
    "containers that end after the check": exits,
    "HAProxy reloaded in a storm": storm,
    "HAProxy restarted": restarted,
    "HAProxy killed": killed,
    "two releases at once, one ledger": two_at_once,
    "two releases at once, two ledgers": two_ledgers,
    "holder stopped, and going on": stopped,
    "clock set forward and back": clock,
    "ledger deleted": deleted,
}

ELSEWHERE = {
    "two first releases, two ledgers": two_firsts,
    "engine restarted": engine_restarted,
    "engine restarted with live-restore": lambda ground, trial: engine_restarted(ground, trial, live_restore=True, number=2),
    "disk full under the ledger": full_ledger,
    "disk full under the fragments": full_fragments,
}
"""These begin with a fleet that was not released yet."""
