# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients that stay: with their server by a table or a cookie, or on a connection to a HAProxy that a reload left behind; and a storm."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.phoenix.fleet.tests.faults.command import Command, until
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.kills import follow, prepare
from ansible_collections.phoenix.fleet.tests.faults.parts import again, judge, newest
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess


class Client:
    """One connection to one balancer, with whatever cookie it was given. What it asks, and what fails, counts in the row."""

    def __init__(self, trial: Trial, proxy: HAProxyProcess) -> None:
        self.trial = trial
        self.line = http.client.HTTPConnection("127.0.0.1", proxy.ports["web"], timeout=20)
        self.headers: dict[str, str] = {}

    def ask(self, path: str = "/") -> str:
        """The version and the instance that answer; empty where the request failed, which is not repeated."""
        self.trial.sent += 1
        try:
            self.line.request("GET", path, headers=self.headers)
            answer = self.line.getresponse()
            body = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"{answer.status} {body!r}")
        except (OSError, http.client.HTTPException) as error:
            self.trial.failed += 1
            self.trial.examples.append(f"client that stays, {path}: {error!r}")
            self.line.close()
            return ""
        if cookie := answer.getheader("Set-Cookie"):
            self.headers["Cookie"] = cookie.partition(";")[0]
        return body.rpartition("shop ")[2].strip()


class Regulars:
    """Clients that ask again and again, until the block ends; some requests take a second."""

    def __init__(self, trial: Trial, ground: Ground, count: int = 3) -> None:
        self.clients = [Client(trial, proxy) for proxy in ground.proxies.values() for _number in range(count)]
        self.answers: list[list[str]] = [[] for _client in self.clients]
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=pair) for pair in zip(self.clients, self.answers, strict=True)]

    def _ask(self, client: Client, answers: list[str]) -> None:
        while not self.over.wait(0.1):
            answers.append(client.ask("/slow?s=1" if len(answers) % 20 == 10 else "/"))

    def __enter__(self) -> Regulars:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)

    def now(self, least: int = 6) -> list[set[str]]:
        """For each client who answers it from now on."""
        before = [len(answers) + 1 for answers in self.answers]  # without what is under way
        until("the clients' answers", lambda: all(len(now) >= then + least for now, then in zip(self.answers, before, strict=True)), 60)
        return [set(answers[then:]) for answers, then in zip(self.answers, before, strict=True)]


PERSISTENT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "stick table": ({"options": ["stick-table type ip size 1k expire 1h", "stick on src"]}, ("release", "rollback")),
    "cookie": ({"cookie": "SRV"}, ("release",)),
}


def sticky(ground: Ground, trial: Trial) -> None:
    """Clients that only maintenance moves: all are on the new release when the drain ends, and none was cut."""
    ground.fleet("web", fleet_drain_timeout=30)
    for name, (options, verbs) in PERSISTENT.items():
        ground.fleet("web", fleet_haproxy=options)
        ground.put_right("release", release_image=ground.image(ground.other()))
        with trial.load(ground), Regulars(trial, ground) as clients:
            clients.now()  # the first ones come at once, before any of them is remembered
            assert all(len(seen) == 1 for seen in clients.now()), f"{name}: they do not stay with one server"
            for verb in verbs:
                with trial.point(ground, f"{verb} with a {name}"):
                    former, version = ground.history().live, ground.other()
                    follow(ground, verb, ground.image(version))
                    seen = set.union(*clients.now())
                    assert {item.partition(" ")[0] for item in seen} == {version}, f"who answers: {seen}"
                    assert proofs(ground, former) == {"idle"}, f"not all of r{former} were idle: {proofs(ground, former)}"


def proofs(ground: Ground, number: int) -> set[str]:
    """How it was proved that the servers of a release are out."""
    own = [item for item in ground.history().registrations if item.server.startswith(f"{ground.name('web')}-r{number}-") and item.balancer]
    return {item.receipt.proof if item.receipt else "none" for item in own}


def kept(ground: Ground, trial: Trial, master: bool = True) -> None:
    """HAProxy is reloaded before the cutover: who is connected to the former process asks it again when the former release drains."""
    ground.behind("web", master=master)
    ground.fleet("web", fleet_drain_timeout=10)
    prepare(ground)
    with trial.load(ground):
        with trial.point(ground, "an idle client asks while its instance is drained"):
            former = ground.history().live
            command, clients = left_behind(ground, trial)
            command.go()
            time.sleep(1)  # the fault's own moment: the drain is under way
            assert all(client.ask() for client in clients)
            finished(command)
            assert proofs(ground, former) == {"idle"}, proofs(ground, former)
        with trial.point(ground, "an idle client stays past the deadline"):
            ground.fleet("web", fleet_drain_timeout=2)
            former = ground.history().live
            command, clients = left_behind(ground, trial)
            command.go()
            finished(command)
            assert proofs(ground, former) == {"deadline"}, proofs(ground, former)
            held = {item.address for item in ground.history().registrations if item.receipt and item.receipt.processes}
            assert held, "no receipt names the process that may still send requests"
            follow(ground, "release", ground.image(ground.other()))
            assert not held & addresses(ground), "an address is given out to which a former process may still send requests"
            for client in clients:
                client.line.close()


def left_behind(ground: Ground, trial: Trial) -> tuple[Command, list[Client]]:
    """A release that is about to drain, and for each balancer a client whose HAProxy was reloaded before the cutover."""
    command = ground.start("release", hold="Cut over", release_image=ground.image(ground.other()))
    assert command.reach("Cut over"), command.output[-600:]
    clients = [Client(trial, proxy) for proxy in ground.proxies.values()]
    assert all(client.ask() for client in clients)
    for proxy in ground.proxies.values():
        proxy.reload()
    command.go("Drain")
    assert command.reach("Drain"), command.output[-600:]
    return command, clients


def finished(command: Command) -> None:
    run = command.wait()
    assert run.code == 0, f"it ended with {run.code}: {run.story[-4:]}"


def addresses(ground: Ground) -> set[str]:
    running = [item for item in ground.containers("web") if item.status == "running"]
    return {network["IPAddress"] for item in running for network in item.attrs["NetworkSettings"]["Networks"].values()}


SLOWLY = "backend other\n    server a 127.0.0.1:9 check inter 1s\n    server b 127.0.0.1:9 check inter 1s\n"
"""Checks by whose interval HAProxy spreads the first ones of all, so that no process of the storm comes to all servers."""


def storm(ground: Ground, trial: Trial) -> None:
    """A reload every 0.7 s, as service discovery does it: a release, and one that is undone after it was staged."""
    ground.behind("web", extra=SLOWLY)
    ground.fleet("web", fleet_size=3)
    prepare(ground)
    with trial.load(ground):
        with trial.point(ground, "release in the storm"), blowing(ground):
            follow(ground, "release", ground.image(ground.other()))
        with trial.point(ground, "undo in the storm"), blowing(ground):
            before = ground.history().live
            command = ground.start("release", hold="Commit", release_image=ground.image(ground.other()))
            assert command.reach("Commit"), command.output[-600:]
            item = next(item for item in ground.containers("web") if item.name.endswith(f"-r{newest(ground)}-1"))
            os.kill(item.attrs["State"]["Pid"], signal.SIGKILL)
            until("the engine to start it again", lambda: again(item), 30, 0.05)
            command.go()
            judge(command.wait(), "restarted", ground, before)


@contextmanager
def blowing(ground: Ground, most: int = 120) -> Iterator[None]:
    over = threading.Event()

    def blow(proxy: HAProxyProcess) -> None:
        for _number in range(most):
            if over.wait(0.7):
                return
            proxy.reload(wait=False)

    winds = [threading.Thread(target=blow, args=(proxy,)) for proxy in ground.proxies.values()]
    for wind in winds:
        wind.start()
    try:
        yield
    finally:
        over.set()
        for wind in winds:
            wind.join()


FAULTS = {"sticky clients": sticky}

ELSEWHERE = {
    "idle clients of a former HAProxy": kept,
    "idle clients, no master socket": lambda ground, trial: kept(ground, trial, master=False),
    "a reload every 0.7 s": storm,
}
"""These begin with a fleet that was not released yet."""
