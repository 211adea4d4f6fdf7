# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What a Proxmox VE cluster shows: its guests, whose they are, and its templates. It asks, and never acts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .._concurrency import each
from .._errors import FleetError, RefusedError, UnreachableError
from .._model import Image
from ._proxmox_api import Api, Refusal
from ._proxmox_guest import MAKING, TAG, Guest, Template, guest_in, identity, marker_in, template_in, whose_marker
from ._proxmox_options import band_of
from ._proxmox_preflight import held_at

NEVER = float("-inf")
FRESH = 3.0
"""Seconds for which one look at the cluster serves several questions of one task."""

KINDS = ("qemu", "lxc")
BACKUP = "backup"
OFFLINE = "is offline"

MAKING_TAKES = 7200.0
"""Seconds for which a guest that is being made or removed is waited for: a full clone takes its time."""


@dataclass(frozen=True)
class Found:
    """A guest that may be an instance, with its configuration, and its marker where it has one. claimed is a marker of another's."""

    guest: Guest
    config: Mapping[str, Any]
    marker: Optional[Mapping[str, str]]
    note: str = ""
    claimed: Optional[Mapping[str, str]] = None

    @property
    def id(self) -> str:
        return identity(self.guest, self.config, self.marker) if self.marker else ""


class Cluster:
    """One cluster, as it is when it is asked. What it said serves for a moment; `forget` before an act and after it."""

    def __init__(self, api: Api, options: Mapping[str, Any]) -> None:
        self.api = api
        self.options = options
        self.unreachable: Dict[str, str] = {}
        """Why nodes cannot be asked, in words. Who gave no answer once is not asked again: each time takes half a minute or more."""
        self.forget()

    def forget(self) -> None:
        self._seen: Tuple[float, List[Found]] = (NEVER, [])
        self._known: Tuple[float, List[Mapping[str, Any]]] = (NEVER, [])
        self._told: Tuple[float, Dict[Tuple[str, int], Mapping[str, Any]]] = (NEVER, {})
        self._held: Tuple[float, Mapping[str, Mapping[str, Any]]] = (NEVER, {})

    def resources(self) -> List[Mapping[str, Any]]:
        """Nodes, storages and guests of the whole cluster.

        The cluster's listing has the status of nodes and guests, and their names, from pvestatd: `unknown`, or not at all, where that is
        five minutes late (PVE/API2Tools.pm, pmxcfs/status.c), though everything runs. So each node is asked itself: `online` are those
        that answer, and `stale` those among them of which pvestatd says nothing.
        """
        listed, entries = self._listed(), self._entries()
        found: List[Mapping[str, Any]] = []
        for item in listed:
            if item.get("type") == "node":
                status = "offline" if item["node"] in self.unreachable else "online"
                item = {**item, "status": status, "stale": status == "online" and item.get("status") != "online"}
            elif item.get("type") in KINDS:
                entry = entries.get((item["node"], int(item["vmid"])), {})
                item = {**item, **{key: entry[key] for key in ("name", "status", "template", "maxdisk") if entry.get(key)}}
            found.append(item)
        return found

    def _listed(self) -> List[Mapping[str, Any]]:
        when, known = self._known
        if not known or time.monotonic() - when > FRESH:
            known = list(self.api.ask("looking at the cluster", "cluster/resources") or [])
            self._known = (time.monotonic(), known)
        return known

    def _entries(self) -> Dict[Tuple[str, int], Mapping[str, Any]]:
        """What the nodes themselves say of their guests, by node and VMID. All are asked at once, and none that has given no answer."""
        when, known = self._told
        if time.monotonic() - when <= FRESH:
            return known
        nodes = [item for item in self._listed() if item.get("type") == "node"]
        self.unreachable = {name: why for name, why in self.unreachable.items() if why != OFFLINE}
        self.unreachable.update((item["node"], OFFLINE) for item in nodes if item.get("status") == "offline")
        kinds = {(item["node"], item["type"]) for item in self._listed() if item.get("type") in KINDS}
        places = sorted(kinds | {(item["node"], self.options["kind"]) for item in nodes})
        places = [(node, kind) for node, kind in places if node not in self.unreachable]
        listings = each(lambda place: self._listing(*place), places, len(places))
        told = {(node, int(item["vmid"])): item for (node, _kind), listing in zip(places, listings) for item in listing}
        self._told = (time.monotonic(), told)
        return told

    def _listing(self, node: str, kind: str) -> List[Mapping[str, Any]]:
        try:
            return list(self.api.ask(f"listing node {node}", f"nodes/{node}/{kind}") or [])
        except (RefusedError, UnreachableError) as error:
            self._lost(node, error)
            return []

    def _lost(self, node: str, error: FleetError) -> None:
        self.unreachable.setdefault(node, f"cannot be asked: {error.cause}")

    def nodes(self) -> List[Mapping[str, Any]]:
        return [item for item in self.resources() if item.get("type") == "node"]

    def online(self) -> List[str]:
        """The names of the nodes that answer."""
        return sorted(item["node"] for item in self.nodes() if item["status"] == "online")

    def guests(self) -> List[Guest]:
        return [guest_in(item) for item in self.resources() if item.get("type") in KINDS]

    def survey(self) -> List[Found]:
        """Every guest that may be an instance of ours: in the band of VMIDs, in the pool, or with our tag. Each is read, since the
        cluster's own listing has no descriptions. What is on nodes that cannot be asked is not among them.
        """
        when, known = self._seen
        if known and time.monotonic() - when <= FRESH:
            return known
        band, pool = band_of(self.options), self.options.get("pool")
        self._refuse_blind()
        online = self.online()
        candidates = [
            guest for guest in self.guests()
            if guest.node in online and (band[0] <= guest.vmid <= band[1] or (pool and guest.pool == pool) or TAG in guest.tags)
        ]
        looks = each(self._settled_look, candidates, 4 * max(2, len(online)))
        found = [item for item in looks if item is not None and not int(item.config.get("template") or 0)]
        # Once more where that took its time: what was made or removed meanwhile has another state now.
        listed = self._entries()
        fresh = []
        for item in found:
            if item.guest.node in self.unreachable:
                continue
            entry = listed.get((item.guest.node, item.guest.vmid), {})
            status = entry.get("status") or item.guest.status
            name = entry.get("name") or item.guest.name or item.config.get("name") or item.config.get("hostname") or ""
            fresh.append(self._noted(replace(item, guest=replace(item.guest, status=str(status), name=str(name)))))
        self._seen = (time.monotonic(), fresh)
        return fresh

    def _noted(self, item: Found) -> Found:
        """Quarantine: a lock that no task holds any more cannot be taken away through the API."""
        guest = item.guest
        if item.marker and guest.lock == BACKUP:
            return self._under_backup(item)
        if not item.marker or not guest.lock or guest.status == "running":
            return item
        return replace(item, note=f"it is locked ({guest.lock}), and no task works on it; run on node {guest.node}: {guest.unlock}")

    def _under_backup(self, item: Found) -> Found:
        """vzdump starts a VM that is stopped, paused and without a life of its own (PVE/VZDump/QemuServer.pm,
        enforce_vm_running_for_backup): that is stopped. One that runs goes on. Neither can be touched until the backup has ended.
        """
        guest = item.guest
        if guest.kind == "qemu" and guest.status == "running":
            state = self.api.ask(f"looking at {guest.words}", f"{guest.path}/status/current")
            guest = replace(guest, status="stopped" if state.get("qmpstatus") == "prelaunch" else "running")
        note = f"a backup is at work on it, and the next run does what is to be done; if none is, run on node {guest.node}: {guest.unlock}"
        return replace(item, guest=guest, note=note)

    def _settled_look(self, guest: Guest) -> Optional[Found]:
        if guest.node in self.unreachable:
            return None
        try:
            found = self.look(guest)
            return self.settled(found) if found else None
        except UnreachableError as error:
            self._lost(guest.node, error)
            return None

    def settled(self, found: Found) -> Found:
        """The guest when what is being done to it is over: a killed run's clone goes on without it, and tells whose it is only late."""
        began = time.monotonic()
        while found.guest.lock in (*MAKING, "destroyed") and time.monotonic() - began < MAKING_TAKES:
            tasks = self.api.ask("listing tasks", f"nodes/{found.guest.node}/tasks", source="active", limit=500) or []
            kinds = ("qmclone", "vzclone", "qmcreate", "vzcreate", "qmdestroy", "vzdestroy")
            busy = any(str(task.get("type")) in kinds and not task.get("endtime") for task in tasks)
            if busy:
                time.sleep(1.0)
            now = self.look(found.guest)
            if now is None:
                return replace(found, marker=None)
            found = now
            if not busy:
                break
        return found

    def permissions(self) -> Mapping[str, Mapping[str, Any]]:
        """What the token may do, by path: what it holds and its user holds as well."""
        when, held = self._held
        if not held or time.monotonic() - when > FRESH:
            held = dict(self.api.ask("asking for permissions", "access/permissions") or {})
            self._held = (time.monotonic(), held)
        return held

    def look(self, guest: Guest) -> Optional[Found]:
        """One guest as it is now; None where it is not on that node, or is none of ours.

        A guest is in the pool from the end of its clone (`PVE/API2/Qemu.pm` clone_vm) to the middle of its removal (destroy_vm), and before
        and after that a token that may see the pool alone is told that it lacks permission. So it is where nothing is at all.
        """
        try:
            config = self.api.maybe(f"looking at {guest.words}", f"{guest.path}/config")
        except Refusal as error:
            if not error.hidden or not self._sees_the_pool(guest):
                raise
            config = None
        if config is None:
            return None
        marker = marker_in(config)
        found = Found(replace(guest, lock=str(config.get("lock") or "")), config, marker)
        return replace(found, marker=None, claimed=marker) if marker and whose_marker(guest, config, marker) else found

    def _sees_the_pool(self, guest: Guest) -> bool:
        """Whether a guest with one of our VMIDs could be seen if it were in our pool. If not, a privilege is missing, and not the guest."""
        band, pool = band_of(self.options), self.options.get("pool")
        return bool(pool) and band[0] <= guest.vmid <= band[1] and "VM.Audit" in held_at(self.permissions(), f"/pool/{pool}")

    def _refuse_blind(self) -> None:
        """A listing leaves out what may not be seen: without this privilege every instance of the pool would look lost."""
        pool, who = self.options.get("pool"), self.api.who
        if pool and "VM.Audit" not in held_at(self.permissions(), f"/pool/{pool}"):
            command = f"pveum acl modify /pool/{pool} --{'tokens' if '!' in who else 'users'} '{who}' --roles ROLE"
            words = f"{who} lacks VM.Audit on /pool/{pool}, so that no guest in it can be seen"
            raise RefusedError("permissions", words, f"Give it a role with that, on the token and on its user: {command}")

    def same(self, found: Found) -> Optional[Found]:
        """The very guest once more, read just before something is done to it; None where it vanished, or its VMID is another's now."""
        now = self.look(found.guest)
        return replace(now, note=found.note) if now is not None and now.id == found.id else None

    def verified(self, found: Found) -> Found:
        """As `_same`, where it has to be there."""
        now = self.same(found)
        if now is None:
            raise RefusedError(found.guest.words, "it is another one now, or gone, and was not touched", "Run again")
        return now

    def templates(self, reference: str) -> List[Template]:
        """The templates of that name or VMID, one for each node that has a replica. Raises RefusedError where there is none."""
        kind = self.options["kind"]
        guests = [guest for guest in self.guests() if guest.kind == kind]
        named = [guest for guest in guests if reference in (guest.name, str(guest.vmid))]
        if not named:
            known = ", ".join(sorted({guest.name for guest in guests if guest.template})[:10]) or "none"
            known += "".join(f"; node {node} {why}" for node, why in sorted(self.unreachable.items()))
            remedy = f"Check the name; templates of kind {kind} that {self.api.who} may see: {known}"
            raise RefusedError(f"template {reference}", f"no guest of that name or VMID is seen at {self.api.where}", remedy)
        within = [guest for guest in named if guest.node in self.online()]
        if not within:
            node = named[0].node
            raise UnreachableError(f"template {reference}", f"node {node} {self.unreachable[node]}", "Bring the node back")
        looks = each(self.look, within)
        found = [template_in(replace(look.guest, name=str(look.config.get("name") or look.config.get("hostname") or look.guest.name)),
                             look.config) for look in looks if look is not None and int(look.config.get("template") or 0)]
        if not found:
            guest = within[0]
            command = f"{'qm' if kind == 'qemu' else 'pct'} template {guest.vmid}"
            raise RefusedError(f"template {reference}", f"{guest.words} is no template", f"Make it one on that node: {command}")
        return found

    def replicas(self, image: Image) -> List[Template]:
        """The templates that are this very image. Raises RefusedError where it is there no more."""
        name = image.digest.rpartition("@")[0] or image.reference
        found = [item for item in self.templates(name) if item.digest == image.digest]
        if not found:
            raise RefusedError(
                f"template {name}", f"none is the image {image.digest} any more",
                "A template is never changed or replaced: make one of another name, and release that",
            )
        return found
