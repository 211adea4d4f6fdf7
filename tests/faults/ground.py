# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet behind two real HAProxys, and all that may be left of it after a fault."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.phoenix.fleet.plugins.plugin_utils._ledger import Ledger
from ansible_collections.phoenix.fleet.tests.faults.command import Command, until
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import LABEL, ROOT, Run, Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess

REPOSITORY = "phoenix-faults"
KEEP_TRYING = 2


def build_images(repository: str = REPOSITORY) -> None:
    """The sample service as REPOSITORY:v1, v2, and v3, which answers 500."""
    subprocess.run([sys.executable, str(ROOT / "roles/lab/files/sample/build.py"), repository], check=True, capture_output=True)


class Ground(Site):
    """The fleet `web`: two instances, a secret, two balancers. manual counts what a person had to do beyond the next command."""

    def __init__(self, folder: Path, number: int, repository: str = REPOSITORY, balancers: Sequence[str] = ("lb1", "lb2")) -> None:
        self.proxies = {host: HAProxyProcess(folder / host, backends=("web",)).start() for host in balancers}
        super().__init__(folder, self.proxies["lb1"], number)
        self.repository = repository
        self.balancers = {host: proxy.hostvars for host, proxy in self.proxies.items()}
        self.manual = 0
        self.state = folder / "state"
        self.notes: list[str] = []
        self.fleet("web", fleet_image=f"{repository}:v1", fleet_docker={
            "network": self.network, "subnet": f"{self.base}.0/24", "ip_range": f"{self.base}.192/26", "secrets": {"password": "hushhush"},
        })

    def close(self) -> None:
        self.end_all()
        super().close()
        for proxy in self.proxies.values():
            proxy.stop()

    def behind(self, *backends: str, **settings: Any) -> None:
        """Put other HAProxys in the place of these, before the first release: with these backends, and as HAProxyProcess takes settings."""
        for host, proxy in self.proxies.items():
            proxy.stop()
            self.proxies[host] = HAProxyProcess(proxy.folder, backends=backends, **settings).start()
        self.haproxy = self.proxies["lb1"]
        self.balancers = {host: proxy.hostvars for host, proxy in self.proxies.items()}
        self._write()

    # Commands

    def start(self, verb: str, *arguments: str, hold: str = "", prefix: Sequence[str] = (),
              environment: Mapping[str, str] | None = None, inventory: Path | None = None, **extra: Any) -> Command:
        given = [verb if verb.endswith(".yml") else f"phoenix.fleet.{verb}", "-i", str(inventory or self.inventory), *arguments]
        for key, value in extra.items():
            given += ["-e", f"{key}={value}"]
        return Command(self.folder / "runs", given, hold, prefix, environment)

    def image(self, version: str) -> str:
        return f"{self.repository}:{version}"

    def other(self, fleet: str = "web") -> str:
        """The version that is not live."""
        history = self.history(fleet)
        images = {row.number: row.image for row in history.releases}
        return "v2" if images.get(history.live, "").endswith(":v1") else "v1"

    def put_right(self, verb: str, **extra: Any) -> Run:
        """The next command; where it fails, a person runs it again: each time is a manual step."""
        run = self.start(verb, **extra).wait()
        for _attempt in range(KEEP_TRYING):
            if run.code == 0:
                break
            self.manual += 1
            self.notes.append(f"{verb} {extra} ended with {run.code}: " + " / ".join(run.story[-4:]))
            run = self.start(verb, **extra).wait()
        return run

    # What is left

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.fleets["web"].get("fleet_ledger", ""), str(self.state))

    def history(self, fleet: str = "web") -> Any:
        return self.ledger.history(self.name(fleet))

    def processes(self) -> list[int]:
        """Processes of a run on this ground that are still there: orphans."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    words, state = (entry / "cmdline").read_bytes(), (entry / "stat").read_text().rpartition(")")[2][1]
                    if b"ansible" in words and str(self.folder).encode() in words and state != "Z":
                        found.append(int(entry.name))
        return found

    def end_all(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """Everything that ought not to be there once a run has ended well, orphans having had their time to end."""
        try:
            until("orphans to end", lambda: not self.processes(), 70, 0.02)
        except AssertionError:
            return [f"process {pid} of a former run" for pid in self.processes()]
        found = []
        for fleet in self.fleets:
            history = self.history(fleet)
            found += [*self._records(fleet, history), *self._instances(fleet, history)]
            for host, proxy in self.proxies.items():
                found += [f"{host}: {what}" for what in self._balancer(proxy, fleet, history)]
        return found

    def _records(self, fleet: str, history: Any) -> list[str]:
        name = self.name(fleet)
        found = [f"the chain of records: {finding}" for finding in self.ledger.verify(name)]
        if history.entry:
            found.append(f"entry {history.entry.number} ({history.entry.verb}) is open")
        if self.ledger.holder(name):
            found.append(f"the lease is held: {self.ledger.holder(name)}")
        found += [f"release r{row.number} is still open" for row in history.releases if row.status == "open"]
        live = [row.number for row in history.releases if row.status == "live"]
        if live != ([history.live] if history.live else []):
            found.append(f"live are {live}, and the fleet's is {history.live}")
        lock = self.state / f"{name}.lock"
        if lock.exists():
            with open(lock, encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{lock.name} is locked")
        known = ("ledger.sqlite3", "ledger.sqlite3-journal", "last-words", *(f"{self.name(item)}.lock" for item in self.fleets))
        return found + [f"file {path.name} in the state folder" for path in (self.state).iterdir() if path.name not in known]

    def _instances(self, fleet: str, history: Any) -> list[str]:
        found = []
        rows = {row.number: row for row in history.releases}
        members: dict[int, int] = {}
        for item in self.containers(fleet):
            number = int(item.labels[f"{LABEL}release"])
            members[number] = members.get(number, 0) + 1
            wanted = "running" if number == history.live or self.fleets[fleet].get("fleet_standby") == "running" else "exited"
            status = rows[number].status if number in rows else "unknown"
            if status not in ("live", "standby") or item.status != wanted:
                found.append(f"container {item.name} of a release that is {status}, {item.status}")
        size = rows[history.live].size if history.live else 0
        if members.get(history.live, 0) != size:
            found.append(f"{members.get(history.live, 0)} containers of r{history.live}, not {size}")
        if len(members) > (2 if history.live else 0):
            found.append(f"containers of releases {sorted(members)}")
        for volume in self.engine.volumes.list(filters={"label": f"{LABEL}name={self.name(fleet)}"}):
            labels = volume.attrs["Labels"]
            if int(labels.get(f"{LABEL}release", 0)) not in members:
                found.append(f"volume {volume.name}")
        return found

    def _balancer(self, proxy: HAProxyProcess, fleet: str, history: Any) -> list[str]:
        found = []
        names = {item.name for item in self.containers(fleet) if item.labels[f"{LABEL}release"] == str(history.live)}
        weights = proxy.weights(fleet)
        if weights != dict.fromkeys(names, 100):
            found.append(f"servers {weights}, not {sorted(names)} with 100 each")
        for name, row in proxy.servers(fleet).items():
            if row["srv_op_state"] != "2":
                found.append(f"server {name} is not up")
        text = (proxy.config_dir / f"{fleet}.cfg").read_text()
        if history.live and f'"live": {history.live}' not in text.splitlines()[0] + text.splitlines()[1]:
            found.append(f"the head does not say that r{history.live} is live: {text.splitlines()[:2]}")
        listed = {line.split()[1] for line in text.splitlines() if line.strip().startswith("server ")}
        if listed != names:
            found.append(f"the fragment lists {sorted(listed)}")
        files = sorted(path.name for path in proxy.config_dir.iterdir() if path.name != ".phoenix.fleet.lock")
        return found + ([f"files {files}"] if files != sorted(f"{name}.cfg" for name in proxy.backends) else [])

    def settle(self, deadline: float = 15) -> list[str]:
        """`leftovers`, as soon as there are none: a check of HAProxy's own may take its time to call a server up again."""
        end = time.monotonic() + deadline
        while (found := self.leftovers()) and all("is not up" in item for item in found) and time.monotonic() < end:
            time.sleep(0.05)
        return found
