# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may still serve and is no longer asked: a balancer or a backend that left the definition, an act that comes back too late."""

from __future__ import annotations

import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ansible_collections.phoenix.fleet.tests.faults.command import until
from ansible_collections.phoenix.fleet.tests.faults.ground import Ground
from ansible_collections.phoenix.fleet.tests.faults.kills import follow, prepare
from ansible_collections.phoenix.fleet.tests.faults.parts import APART, revive, second
from ansible_collections.phoenix.fleet.tests.faults.trial import Trial
from ansible_collections.phoenix.fleet.tests.integration.postgresql_server import Server


def refused(ground: Ground, verb: str, *said: str, **extra: Any) -> None:
    """The command ends, says this, and what serves is as it was."""
    before = ground.service()
    run = ground.start(verb, **extra).wait()
    assert run.code != 0 and "Traceback" not in run.output, f"{verb} ended with {run.code}: {run.story[-3:]}"
    assert all(item in run.output for item in said), f"{verb} does not say {said}: {run.story[-3:]}"
    assert ground.service() == before, f"{verb} has changed what serves"


def lost(ground: Ground, trial: Trial) -> None:
    """lb2 leaves the inventory while it serves, comes back, and is then really gone: by an operator's word."""
    said = ("balancer lb2: it may be serving", "-e fleet_lost_balancers=lb2")
    image = ground.image(ground.other())
    with trial.load(ground):
        for verb, extra in {"release": {"release_image": image}, "heal": {}, "scale": {"scale_size": 1}}.items():
            with trial.point(ground, f"{verb} without lb2"), without(ground, "lb2"):
                refused(ground, verb, *said, **extra)
        with trial.point(ground, "lb2 is in the inventory again"):
            follow(ground, "release", image)
    with trial.load(ground, "lb1"):
        gone = ground.proxies.pop("lb2")
        gone.kill()
        with without(ground, "lb2"), trial.point(ground, "lb2 is gone for good"):
            image = ground.image(ground.other())
            refused(ground, "release", *said, release_image=image)
            ground.put_right("release", release_image=image, fleet_lost_balancers="lb2")
            follow(ground, "release", image)
        ground.proxies["lb2"] = gone.start()
        with trial.point(ground, "lb2 is there after all"):
            follow(ground, "release", ground.image(ground.other()))


@contextmanager
def without(ground: Ground, host: str) -> Iterator[None]:
    """As a dynamic inventory that returns less than there is."""
    all_of_them = ground.balancers
    ground.balancers = {name: item for name, item in all_of_them.items() if name != host}
    ground.fleet("web")
    try:
        yield
    finally:
        ground.balancers = all_of_them
        ground.fleet("web")


def moved(ground: Ground, trial: Trial) -> None:
    """fleet_backend is changed together with the image, put back, and released."""
    ground.behind("web", "shop")
    prepare(ground)
    image = ground.image(ground.other())
    with trial.load(ground):
        for verb, extra in {"release": {"release_image": image}, "heal": {}, "retire": {"retire_confirm": ground.name("web")}}.items():
            with trial.point(ground, f"{verb} with another backend"):
                ground.fleet("web", fleet_backend="shop")
                try:
                    refused(ground, verb, "backend web on lb1: it may be serving", "Set fleet_backend: web", **extra)
                finally:
                    ground.fleet("web", fleet_backend="web")
                assert not any(proxy.servers("shop") for proxy in ground.proxies.values()), "the other backend has servers"
        with trial.point(ground, "the backend is what it was"):
            follow(ground, "release", image)


def suspended(ground: Ground, trial: Trial, within: Sequence[bool] = (False, True)) -> None:
    """A controller stands still before it decommissions, or within that; another one, with the same ledger, heals and rolls back."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:  # a short path, for its socket
        server = Server(folder)
        server.start()
        try:
            ground.fleet("web", fleet_ledger=server.create("fleets"))
            prepare(ground)
            with trial.load(ground):
                for act in within:
                    with trial.point(ground, f"suspended {'within' if act else 'before'} Decommission"):
                        come_back(ground, act)
        finally:
            server.stop()


def come_back(ground: Ground, within: bool) -> None:
    former, ids = ground.history().live, identities(ground)
    with Gate(ground.folder / "engine.sock") as gate:
        command = ground.start(
            "release", hold="Decommission", prefix=APART, environment={"DOCKER_HOST": gate.url}, release_image=ground.image(ground.other()),
        )
        assert command.reach("Decommission") and ground.history().live != former, command.output[-600:]
        if within:
            # The act has checked its fence and asked for its permits; which containers run it learns when it goes on.
            gate.close()
            command.go()
            until("the act to ask its engine", gate.reached.is_set)
        command.signal(signal.SIGSTOP, command.workers())
        for verb, extra in (("heal", {"fleet_takeover": "true"}), ("rollback", {})):
            run = ground.start(verb, inventory=second(ground), **extra).wait()
            assert run.code == 0, f"{verb} elsewhere ended with {run.code}: {run.story[-4:]}"
        back = ground.history().live
        assert (back, identities(ground)) == (former, ids), f"not the containers of r{former} are back, but r{back}: {run.story[-9:]}"
        before = ground.service()
        gate.open()
        revive(command)
        assert ground.service() == before, "what came back too late has changed what serves"


def identities(ground: Ground) -> list[str]:
    return [item.id for item in ground.containers("web") if item.status == "running"]


class Gate:
    """The engine's socket, by a way on which questions after its containers can be kept waiting."""

    ENGINE = "/var/run/docker.sock"
    QUESTION = re.compile(rb"GET \S*/containers/json")

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.reached = threading.Event()
        self._passes = threading.Event()
        self._passes.set()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._path = path

    def close(self) -> None:
        self._passes.clear()

    def open(self) -> None:
        self._passes.set()

    def __enter__(self) -> Gate:
        self._door.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.open()
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._path.unlink()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _address = self._door.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self.ENGINE)
                for pair in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while words := source.recv(65536):
                if not self._passes.is_set() and self.QUESTION.search(words):
                    self.reached.set()
                    self._passes.wait()
                sink.sendall(words)
            sink.shutdown(socket.SHUT_WR)


FAULTS = {
    "balancer lost from the inventory": lost,
}

ELSEWHERE = {
    "backend changed with the image": moved,
    "controller suspended while it decommissions": suspended,
}
"""These begin with a fleet that was not released yet."""
