# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A ledger in memory, for one fleet: what each record means, and nothing else of the real one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import LeaseError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import (
    Entry,
    Head,
    History,
    Instance,
    Plan,
    Registration,
    Release,
    Server,
)
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _registrations as law

from .world import LawBrokenError, Site


class MemoryLedger:
    """Each method is one transaction, with an instant before and after it at which a run may crash."""

    def __init__(self, site: Site, name: str = "ours") -> None:
        self.site = site
        self.name = name
        self.fence = 0
        self.raised = 0
        self.lineage = ""
        self.live = 0
        self.next_release = 1
        self.next_server = 10001
        self.releases: dict[int, Release] = {}
        self.entry: Entry | None = None
        self.plan: Plan | None = None
        self.outcome = ""
        self.retires: set[int] = set()
        self.servers: dict[str, int] = {}
        self.reserved: dict[str, str] = {}
        self.issued: dict[str, int] = {}
        self.clock = 0
        self.records = 0
        self.registrations: dict[tuple[str, str, str], Registration] = {}
        site.rejected = lambda: [row.number for row in self.releases.values() if row.status == "failed"]

    def history(self) -> History:
        rows = tuple(self.releases[number] for number in sorted(self.releases))
        return History(
            self.name, self.fence, self.live, self.next_release, self.next_server, rows, self.entry, dict(self.servers),
            dict(self.reserved), issued=dict(self.issued), records=self.records,
            lineage=self.lineage, registrations=tuple(self.registrations.values()),
            released=self._released(),
        )

    def _released(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in self.registrations.values():
            if item.balancer and item.receipt:
                for key in (item.address, f"{item.address}:{item.port}"):
                    found[key] = max(found.get(key, ""), item.receipt.at)
        return found

    # Registrations

    def keep(self, rows: Iterable[Registration]) -> None:
        self.registrations.update({(item.server, item.balancer, item.backend): item for item in rows})

    def register(self, fence: int, balancer: str, backend: str, servers: Sequence[Server]) -> list[Registration]:
        self._check(fence)
        self.site.tick(f"before {balancer} is registered")
        there = {key[0]: item for key, item in self.registrations.items() if key[1:] == (balancer, backend)}
        listed = [server for server in servers if self.site.numbers(server.name)]
        self.keep(law.registered(there.get(server.name), server, balancer, backend) for server in listed)
        self.site.tick(f"after {balancer} is registered")
        names = {server.name for server in listed}
        return [item for item in there.values() if item.server not in names and not item.is_settled]

    def receive(self, fence: int, balancer: str, backend: str, said: Iterable[Mapping[str, Any]]) -> None:
        self._check(fence)
        self.clock += 1
        for answer in said:
            key = (str(answer["name"]), balancer, backend)
            self.keep([law.confirmed(self.registrations[key], answer, fence, f"{self.clock:06}")])
        self.site.tick(f"after the receipts of {balancer}")

    def permit(self, instance: Instance, fence: int) -> None:
        self._check(fence)
        law.refuse_serving(tuple(self.registrations.values()), [instance])

    def acquire(self) -> int:
        self.fence, self.raised = self.fence + 1, 0
        return self.fence

    def head(self, fence: int, fleet: str) -> Head:
        """What the heads say of the run with this fence."""
        raised = self.raised if self.fence - self.raised == fence else 0
        return Head(self.name, fence + raised, fleet, self.live, self.next_release, self.records, self.lineage)

    def adopt(self, fence: int, head: Head, server: int) -> None:
        self._check(fence)
        if head.is_known_to(self.head(fence, head.fleet)):
            return
        known = [part for part in self.lineage.split("/") if part]
        former = [] if head.line in (self.name, *known) else [head.line]
        self.site.copies += 1
        self.lineage = "/".join([*known[:-1], *former, known[-1]] if self.raised else [*known, *former, f"copy{self.site.copies}"])
        following = max(self.fence, head.fence) + 1
        self.fence, self.raised = following, self.raised + following - self.fence
        self.records = max(self.records, head.records) + 1
        self.next_release, self.next_server = max(self.next_release, head.next), max(self.next_server, server + 1)

    def _check(self, fence: int) -> None:
        if fence != self.fence - self.raised:
            raise LeaseError("fleet", f"run {fence} has lost its lease to {self.fence}")

    def open(self, plan: Plan, fence: int) -> None:
        self._check(fence)
        self.site.tick("before the intent")
        self.write_intent(plan)
        self.site.tick("after the intent")

    def write_intent(self, plan: Plan) -> None:
        made = [item for wave in plan.waves for step in wave if step.kind in ("create", "start") for item in step.instances]
        self.keep(Registration(item.name, "", "") for item in made)
        entry = self.entry
        same = entry is not None and entry.target == plan.target
        if entry and same and plan.outcome == "failed":
            self.outcome = "failed"
            served = "commit" in entry.records or any(step.kind == "switch" for wave in plan.waves for step in wave)
            if served and entry.source != entry.target:
                self._revert(entry)
        elif entry and same and plan.verb == entry.verb:
            self._hold(plan)
        else:
            if entry:
                self._close(entry)
            row = plan.release
            if row and row.number not in self.releases:
                if row.number < self.next_release and plan.verb != "adopt":
                    raise LawBrokenError(f"release {row.number} is used again")
                self.releases[row.number] = replace(row, status="open")
                self.next_release = max(self.next_release, row.number + 1)
            self.entry = Entry(0, plan.verb, plan.source, plan.target)
            self.records += 1
            self.outcome, self.retires = plan.outcome, set()
            self._hold(plan)
            self._retire(plan)
        if plan.release:
            self.remember(plan.release)
        self.plan = plan

    def remember(self, release: Release) -> None:
        self.releases[release.number] = replace(self.releases[release.number], definition=release.definition)

    def _hold(self, plan: Plan) -> None:
        others = {key: name for key, name in self.reserved.items() if not self.site.numbers(name)}
        self.servers, self.reserved = dict(plan.servers), {**others, **plan.reserved}
        self.issued.update(plan.issued)
        self.next_server = max([self.next_server - 1, *self.servers.values()]) + 1

    def _retire(self, plan: Plan) -> None:
        """What falls out of retention: the plan takes instances of it away, and holds nothing for any other."""
        gone = {item.name: item.release for wave in plan.waves for step in wave if step.kind == "destroy" for item in step.instances}
        held = {name.rpartition("-")[0] for name in {*plan.servers, *plan.reserved.values()} - set(gone)}
        self.retires |= {number for name, number in gone.items() if name.rpartition("-")[0] not in held}

    def reserve(self, held: Mapping[str, str], fence: int) -> None:
        self._check(fence)
        self.site.tick("before the addresses")
        former = [key for key, name in self.reserved.items() if name in held.values() and " #" not in key]
        self.write_reserved(held)
        for key in former:
            if key not in held:
                del self.reserved[key]
        self.site.tick("after the addresses")

    def write_reserved(self, held: Mapping[str, str]) -> None:
        for key, name in held.items():
            if self.reserved.get(key, name) != name:
                raise RefusedError(name, f"{key} is what {self.reserved[key]} holds")
        self.reserved.update(held)

    def record(self, record: str, fence: int) -> None:
        self._check(fence)
        self.site.tick(f"before the record {record}")
        self.write_record(record)
        live = [row.number for row in self.releases.values() if row.status == "live"]
        if len(live) > 1 or live != [self.live] * len(live):
            raise LawBrokenError(f"live are {live}, the ledger says {self.live}")
        self.site.tick(f"after the record {record}")

    def write_record(self, record: str) -> None:
        entry = self.entry
        if entry is None and record == "done":
            return
        if entry is None or self.plan is None:
            raise LawBrokenError(f"record {record} without an entry")
        if record == "commit" and ("revert" in entry.records or not entry.target):
            raise RefusedError("release", "it was rejected, and is never promoted")
        if record == "revert":
            self._revert(entry)
        elif record not in entry.records or record not in ("commit", "retire"):
            self.entry = entry = replace(entry, records=(*entry.records, record))
            self.records += 1
        if record == "commit":
            self._commit(entry)
        elif record == "done":
            self._finish(entry)
            self._close(entry)

    def _finish(self, entry: Entry) -> None:
        if self.outcome == "live" and self.live == entry.target:
            going = {number for number in self.retires if number in self.releases and self.releases[number].status == "standby"}
        elif self.outcome == "retired" and "retire" in entry.records:
            going = {number for number, row in self.releases.items() if row.status in ("live", "standby")}
            waiting = {item.server for item in self.registrations.values() if not item.is_settled}
            self.live, self.servers = 0, {}
            self.reserved = {key: name for key, name in self.reserved.items() if name in waiting or not self.site.numbers(name)}
        else:
            return
        for number in going:
            self._mark(number, "retired")

    def _commit(self, entry: Entry) -> None:
        assert self.plan is not None
        if self.live in self.releases and self.live != entry.target:
            self._mark(self.live, "standby")
        self.live = entry.target
        self.clock += 1
        self._mark(entry.target, "live")
        size = self.plan.release.size if self.plan.release else self.releases[entry.target].size
        self.releases[entry.target] = replace(self.releases[entry.target], finished=f"{self.clock:06}", size=size, committed=self.clock)

    def _revert(self, entry: Entry) -> None:
        if "revert" in entry.records:
            return
        self.entry = replace(entry, records=(*entry.records, "revert"))
        self.records += 1
        if entry.source == entry.target:
            return
        if self.live == entry.target:
            self.live = entry.source
            self._mark(entry.source, "live")
        self._mark(entry.target, "failed")

    def _close(self, entry: Entry) -> None:
        if entry.target in self.releases and self.releases[entry.target].status == "open":
            self._mark(entry.target, "failed")
        self.entry = None

    def _mark(self, number: int, status: str) -> None:
        if number in self.releases:
            self.releases[number] = replace(self.releases[number], status=status)
