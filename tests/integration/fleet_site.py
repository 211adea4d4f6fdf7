# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A place to release to, made for one test: an inventory, a real HAProxy, a network of the real engine, and the commands a user types."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping

import docker

ROOT = Path(__file__).resolve().parents[2]
LABEL = "phoenix.fleet."
DEADLINE = 240


@dataclass(frozen=True)
class Run:
    """What a command said and how it ended."""

    code: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts, by Ansible's own recap."""
        return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", self.recap))

    @property
    def recap(self) -> str:
        return self.output.rpartition("PLAY RECAP")[2]

    @property
    def story(self) -> List[str]:
        """The lines before the recap, blank ones left out."""
        return [line for line in self.output.rpartition("PLAY RECAP")[0].splitlines() if line.strip()]

    @property
    def result(self) -> Dict[str, Any]:
        """What the run left for workflows by set_stats."""
        found = re.search(r"RUN: (\{.*\})", self.recap)
        assert found, self.output
        value: Dict[str, Any] = json.loads(found.group(1))["phoenix_release"]
        return value


class Site:
    """Fleets of one test behind one HAProxy (a HAProxyProcess that runs), which has a backend for each of them.

    number, from 0 to 8191, keeps this site apart from others on the same engine: a fleet `web` is named `web-NUMBER` there,
    so that its containers are `web-NUMBER-r1-1`, on a network of the site's own.
    """

    def __init__(self, folder: Path, haproxy: Any, number: int) -> None:
        self.folder = folder
        self.haproxy = haproxy
        self.number = number
        self.network = f"phoenix-test-{number}"
        self.base = f"10.{224 + number // 256}.{number % 256}"
        self.engine = docker.from_env()
        self.fleets: Dict[str, Dict[str, Any]] = {}
        self.balancers: Dict[str, Dict[str, Any]] = {"lb1": haproxy.hostvars}
        self.inventory = folder / "inventory.json"

    def fleet(self, name: str, **variables: Any) -> None:
        """Write the definition of a fleet into the inventory: two instances of the sample service, and what `variables` say instead."""
        self.fleets[name] = {
            "fleet_name": self.name(name),
            "fleet_backend": name,
            "fleet_port": 8080,
            "fleet_checks": [{"http": {"path": "/health", "status": 200}}],
            "fleet_check_timeout": 20,
            "fleet_drain_timeout": 5,
            "fleet_stop_timeout": 2,
            "fleet_state_dir": str(self.folder / "state"),
            "fleet_docker": {"network": self.network, "subnet": f"{self.base}.0/24", "ip_range": f"{self.base}.192/26"},
            **self.fleets.get(name, {}),
            **variables,
        }
        self._write()

    def name(self, fleet: str) -> str:
        return f"{fleet}-{self.number}"

    def _write(self) -> None:
        groups = {"fleets": {"hosts": self.fleets}, "balancers": {"hosts": self.balancers}}
        self.inventory.write_text(json.dumps(groups, indent=2))

    def play(self, playbook: str, *arguments: str, environment: Mapping[str, str] | None = None, **extra: Any) -> Run:
        """Run `ansible-playbook phoenix.fleet.PLAYBOOK` with `extra` as -e, as a user does; or a playbook of one's own, by its path."""
        program = str(Path(sys.executable).parent / "ansible-playbook")
        name = playbook if playbook.endswith(".yml") else f"phoenix.fleet.{playbook}"
        command = [program, name, "-i", str(self.inventory), *arguments]
        if extra:
            command += ["-e", json.dumps(extra)]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, "ANSIBLE_SHOW_CUSTOM_STATS": "1", "ANSIBLE_NOCOLOR": "1", **(environment or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, check=False,
        )
        return Run(done.returncode, done.stdout)

    def own_play(self, plays: List[Dict[str, Any]], *arguments: str, **extra: Any) -> Run:
        """Run somebody's own playbook."""
        path = self.folder / "own.yml"
        path.write_text(json.dumps(plays))
        return self.play(str(path), *arguments, **extra)

    def release(self, *arguments: str, **extra: Any) -> Run:
        """A release that must succeed."""
        run = self.play("release", *arguments, **extra)
        assert run.code == 0, run.output
        return run

    def containers(self, fleet: str) -> List[Any]:
        """The fleet's containers by name, as the engine tells them and not as the collection does."""
        found = self.engine.containers.list(all=True, filters={"label": f"{LABEL}name={self.name(fleet)}"})
        return sorted(found, key=lambda item: str(item.name))

    def kept(self, fleet: str) -> List[str]:
        """The fleet's instances, running or not, as `r1-1`."""
        return [item.name.replace(f"{self.name(fleet)}-", "") for item in self.containers(fleet)]

    def running(self, fleet: str) -> List[str]:
        return [item.name.replace(f"{self.name(fleet)}-", "") for item in self.containers(fleet) if item.status == "running"]

    def ask(self, fleet: str, path: str = "/") -> str:
        """One request through HAProxy, on a connection of its own."""
        with urllib.request.urlopen(self.haproxy.url(fleet) + path, timeout=10) as answer:
            return str(answer.read().decode())

    def versions(self, fleet: str, requests: int = 8) -> set[str]:
        """Which versions of the sample service answer."""
        return {re.sub(r".*shop (\S+) .*", r"\1", self.ask(fleet).strip()) for _ask in range(requests)}

    def world(self) -> Dict[str, Any]:
        """All that a run which touches nothing must leave as it was; any other stamps heads with its fence, and writes into the ledger."""
        found = [item for fleet in sorted(self.fleets) for item in self.containers(fleet)]
        containers = [(item.id, item.status, item.attrs["State"]["StartedAt"]) for item in found]
        files = {path.name: path.read_text() for path in sorted(self.haproxy.config_dir.glob("*.cfg"))}
        servers = [(fleet, self.haproxy.weights(fleet)) for fleet in sorted(self.fleets)]
        networks = sorted(item.name for item in self.engine.networks.list() if item.name == self.network)
        state = self.folder / "state"
        ledger = sorted(str(path.relative_to(state)) for path in state.rglob("*")) if state.exists() else []
        return {
            "containers": containers,
            "servers": servers,
            "networks": networks,
            "heads": [re.findall(r"^#.*", text, re.MULTILINE) for text in files.values()],
            "fragments": {name: re.sub(r"^#.*", "", text, flags=re.MULTILINE) for name, text in files.items()},
            "ledger": ledger,
        }

    def service(self) -> Dict[str, Any]:
        """The part of the world that users of the service could notice."""
        world = self.world()
        return {key: world[key] for key in ("containers", "servers", "fragments")}

    def close(self) -> None:
        """Take away what the test's fleets left: containers and volumes by their label, the network by its name."""
        for fleet in self.fleets:
            for item in self.containers(fleet):
                item.remove(force=True, v=True)
            for volume in self.engine.volumes.list(filters={"label": f"{LABEL}name={self.name(fleet)}"}):
                volume.remove()
        for network in self.engine.networks.list(names=[self.network]):
            if network.name == self.network:
                network.remove()
        self.engine.close()
