# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Instances as virtual machines or containers of a Proxmox VE cluster.

Whose a guest is, its description says, from the very call that makes it. Its VMID comes from the ledger and is never used again, so that
making it twice is refused by the cluster itself, and looking at that one id tells what became of a call that got no answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import secrets
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar

from .._concurrency import each
from .._errors import DeadlineError, InvalidError, RefusedError, UnreachableError
from .._model import Copy, Image, Instance, LastWords, Pool
from ._marker import LABEL, LEDGER, NAME, RELEASE, SLOT, VMID, facts_of, name_in, refuse_other
from ._options import gaps
from ._proxmox_api import BUSY, Api, Refusal, UnknownOutcomeError, is_fine, remedy_for, required_sdk
from ._proxmox_cluster import BACKUP, Cluster, Found
from ._proxmox_guest import (
    COMPLETE,
    MAKING,
    NONCE,
    TAG,
    Guest,
    Template,
    Volume,
    addresses_of,
    clone_params,
    config_params,
    described,
    instance_in,
    is_cdrom,
    macs_of,
    root_of,
    told_by_agent,
    told_by_container,
    unlike,
    uuid_in,
    volumes_of,
    whose_marker,
)
from ._proxmox_options import IMAGE, OPTIONS, band_of, mistakes, ranges_of, settle, shape
from ._proxmox_preflight import Missing, free_memory, held_at, of_nodes, of_permissions, of_storages, of_tags, of_templates, source_of
from .base import Blueprint, Journal, Permit, leave_started, unconditional

__all__ = ["IMAGE", "OPTIONS", "ProxmoxProvider", "connect", "mistakes", "settle", "shape"]

T = TypeVar("T")
LEFT = re.compile(r"(?:Could not remove disk|failed to get path and owner of volume) '([^']+)'[^:]*: *(.*)")
REALM = "proxmox"
"""What all nodes share, of whatever cluster: a VMID or an address of one fleet is no other fleet's of the same ledger."""

PER_NODE = 4
"""Guests of one node that are worked on at a time: a node answers with three workers."""

PER_STORAGE = 6
"""Clones on one storage at a time: each holds its lock for a second or so, and who waits for that for 10 s is sent away."""

PER_REMOVAL = 1
"""Removals on one shared storage at a time: a disk whose turn does not come in these 10 s stays behind, and its guest is gone."""

BUSY_PAUSES = (2.0, 5.0, 10.0, 20.0)
"""Seconds, half of them or half as many more, before what ended for want of a lock is tried once more: others may hold it as well."""

CLONING = {"linked": 600.0, "full": 7200.0}
STARTING, ENDING = 300.0, 300.0
"""Seconds for tasks of PVE; a stop has the polite time beside that."""

TELLING, BETWEEN = 300.0, 3.0
"""Seconds in which an instance has to tell its address, and between two questions: an agent that is not up yet keeps a worker for 3 s."""

ZFS_SETTLES = 6.0
"""Seconds after which ZFS counts what was written last: it does so with each group of transactions, every 5 s."""

CLONE = "clone:"
"""With this begins what the journal keeps before a clone is told, since its UPID may never come: the node and VMID of the template follow,
the clone's VMID, and its nonce."""

LOOKING, APART = 40.0, 2.0
"""Seconds to look for what a call without an answer has done, longer than PVE itself waits for an answer (30), and between two looks."""


def connect(options: Mapping[str, Any], journal: Optional[Journal] = None) -> ProxmoxProvider:
    """A provider on the cluster of `fleet_proxmox`. Raises InvalidError for its mistakes."""
    found = mistakes(options)
    if found:
        raise InvalidError(found)
    required_sdk()
    settled = settle(options)
    return ProxmoxProvider(Api(settled), settled, journal)


class ProxmoxProvider:
    """The provider protocol (see base.py) on a cluster."""

    def __init__(self, api: Api, options: Mapping[str, Any], journal: Optional[Journal] = None) -> None:
        self.api = api
        self.options = options
        self.journal = journal
        self.cluster = Cluster(api, options)
        self._gates: Dict[Tuple[str, ...], threading.BoundedSemaphore] = {}
        self._gates_lock = threading.Lock()
        self._shared_storages: Optional[Set[str]] = None
        self._answered: Set[str] = set()
        """The tasks of this run whose UPID came: what such a task works at is no riddle."""

    # --- asking -------------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> Image:
        found = self.cluster.templates(reference)
        digests = {item.digest for item in found}
        if len(digests) > 1 or (len(found) > 1 and not all(item.stated for item in found)):
            raise RefusedError(
                f"template {reference}", "there are several: " + ", ".join(f"{item.guest.vmid} on {item.guest.node}" for item in found),
                "Name one by its VMID; or, where they are the same image, write one and the same line phoenix.fleet.image: sha256:... into "
                "the description of each",
            )
        return Image(reference, found[0].digest)

    def present(self, image: Image) -> Tuple[str, ...]:
        """The nodes that have this image."""
        return tuple(sorted(item.guest.node for item in self.cluster.replicas(image)))

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> Tuple[Pool, ...]:
        """One for each node that is online, named in `nodes` if any are, and has memory for one more instance."""
        found = self.cluster.survey()
        ranges, band = ranges_of(self.options), band_of(self.options)
        taken = {f"#{guest.vmid}" for guest in self.cluster.guests() if band[0] <= guest.vmid <= band[1]}
        for item in found:
            taken |= {*addresses_of(item.config), (item.marker or item.claimed or {}).get(LABEL + "address", "")}
        if ranges:
            low, high = ranges[0][0], ranges[-1][1]
            taken |= {*gaps(ranges), str(self.options.get("gateway", ""))}
            ends = (str(low), str(high))
        held = tuple(sorted(taken - {""}))
        nodes = [node["node"] for node in self._nodes() if free_memory(node) >= int(self.options.get("memory", 0))]
        if not ranges:
            return tuple(Pool(node, "dynamic", ports=(port, port), taken=held, realm=REALM, ids=band) for node in nodes)
        return tuple(Pool(node, "network", *ends, (port, port), held, REALM, band) for node in nodes)

    def _nodes(self) -> List[Mapping[str, Any]]:
        """The nodes that instances may be placed on, in the order in which the definition names them.

        Whose pvestatd is late is taken where there is no other: it often hangs on a dead storage, on which a clone would hang as well.
        """
        nodes = {node["node"]: node for node in self.cluster.nodes() if node["status"] == "online"}
        wanted = [nodes[name] for name in self.options.get("nodes") or sorted(nodes) if name in nodes]
        return [node for node in wanted if not node["stale"]] or wanted

    def observe(self, fleet: str) -> Tuple[Instance, ...]:
        self._outlast(self.journal.under_way() if self.journal else {})
        self.cluster.forget()
        found = [item for item in self.cluster.survey() if item.marker and item.marker[NAME] == fleet]
        instances = [instance_in(item.guest, item.config, item.marker or {}, item.note) for item in found]
        instances = self._with_addresses(list(zip(found, instances)), patience=0.0)
        return tuple(sorted([*instances, *self._out_of_reach(fleet)], key=lambda item: (item.release, item.slot, item.host)))

    def copies(self, fleet: str) -> Tuple[Copy, ...]:
        pairs = ((item, item.claimed) for item in self.cluster.survey() if item.claimed and item.claimed[NAME] == fleet)
        return tuple(
            Copy(item.guest.words, item.guest.node, name_in(marker), f"its marker is {whose_marker(item.guest, item.config, marker)}")
            for item, marker in pairs
        )

    def _outlast(self, tasks: Mapping[str, str]) -> None:
        """Wait until these tasks have ended: what a killed run began goes on without it. What an offline node was at is over.

        A clone that was told and not answered has no UPID. It is one of its template's clones that is under way, and until it has ended
        nobody but the cluster sees what it makes.
        """
        nodes = sorted({name.split(":")[1] for name in tasks} & set(self.cluster.online())) if tasks else []
        listings = each(lambda node: self.api.ask("listing tasks", f"nodes/{node}/tasks", source="active", limit=1000) or [], nodes)
        busy = {task["upid"]: task for listing in listings for task in listing if not task.get("endtime")}
        waits = {upid: doing for upid, doing in tasks.items() if upid in busy}
        answered = {doing for name, doing in tasks.items() if not name.startswith(CLONE)}
        for name, doing in tasks.items():
            if name.startswith(CLONE) and doing not in answered:
                waits.update({upid: doing for upid, task in busy.items() if upid not in tasks and clones(task, *name.split(":")[1:3])})

        def outlast(upid: str) -> None:
            if self.journal:
                self.journal.say(f"waits for what a former run began: {waits[upid]}, task {upid}")
            self.api.tasks.wait(upid, waits[upid], max(CLONING.values()))

        each(outlast, waits)

    def _out_of_reach(self, fleet: str) -> List[Instance]:
        """What is the fleet's by its tag, on nodes that cannot be asked. Nothing can be done to it before its node is back.

        Of its name only its VMID may be left, from which the ledger knows it.
        """
        found = []
        for guest in self.cluster.guests():
            why = self.cluster.unreachable.get(guest.node)
            if why and f"{TAG}.{fleet}" in guest.tags:
                release, _dash, slot = guest.name.rpartition("-r")[2].partition("-")
                numbers = (int(release), int(slot)) if release.isdigit() and slot.isdigit() else (0, 0)
                note = f"node {guest.node} {why}; bring it back, or remove it from the cluster with its guests"
                found.append(Instance(
                    guest.name, guest.node, fleet, *numbers, "", "", 0, id=f"{guest.vmid}/unknown", state="unknown",
                    number=guest.vmid, note=note,
                ))
        return found

    def seals(self, instances: Sequence[Instance]) -> Mapping[str, str]:
        """A few questions for each that is stopped, and for each of its disks.

        A start leaves a task behind, which all see who have Sys.Audit on the node, and others if it was theirs (pve-manager
        `PVE/API2/Tasks.pm`). A guest that runs writes to its disks: the listing of a storage of files tells that, ZFS where it is asked for
        one volume, RBD in steps of 4 MiB, and LVM-thin never. Where a start by somebody else cannot be seen for certain, that is said.
        """
        stopped = [item for item in self._own(instances) if item.guest.status != "running"]
        held = self.api.ask("asking for permissions", "access/permissions") if stopped else {}
        storages = [item for item in self.cluster.resources() if item.get("type") == "storage"]
        kinds = {(item["node"], item["storage"]): str(item.get("plugintype")) for item in storages}
        blind: List[Found] = []

        def seal(item: Found) -> Tuple[str, str]:
            guest = item.guest
            tasks = self.api.ask("listing tasks", f"nodes/{guest.node}/tasks", source="all", vmid=guest.vmid, limit=50) or []
            begun = [(int(task["starttime"]), task["upid"]) for task in tasks if str(task.get("type", "")).endswith("start")]
            latest = max(begun, default=(0, ""))[0]
            volumes = volumes_of(item.config)
            if any(kinds.get((guest.node, volume.storage), "").startswith("zfs") for volume in volumes):
                ended = max((int(task.get("endtime") or 0) for task in tasks), default=0)
                time.sleep(min(max(ended + ZFS_SETTLES - time.time(), 0.0), ZFS_SETTLES))
            disks = [disk for volume in volumes for disk in self._disk(item, volume)]
            certain = {f"{volume.storage}:{volume.name}" for volume in volumes if kinds.get((guest.node, volume.storage)) != "rbd"}
            if "Sys.Audit" not in held_at(held, f"/nodes/{guest.node}") and not any(disk[2] and disk[0] in certain for disk in disks):
                blind.append(item)
            known = [item.id, item.config.get("digest"), sorted(upid for when, upid in begun if when == latest), sorted(disks, key=str)]
            return str(guest.name), hashlib.sha256(json.dumps(known).encode()).hexdigest()

        seals = dict(each(seal, stopped))
        if blind and self.journal:
            names = ", ".join(sorted(item.guest.name for item in blind))
            silent = ", ".join(sorted({volume.storage for item in blind for volume in volumes_of(item.config)}))
            nodes = " and ".join(sorted({f"/nodes/{item.guest.node}" for item in blind}))
            words = f"storage {silent} does not tell, and {self.api.who} has no Sys.Audit on {nodes}"
            self.journal.say(f"{names}: whether somebody else starts it meanwhile is unknown: {words}")
        return seals

    def _disk(self, item: Found, volume: Volume) -> List[List[Any]]:
        """A disk's volume id, size, used size and time of change, as far as they are told; none where it cannot be seen."""
        guest = item.guest
        volid = f"{volume.storage}:{volume.name}"
        listed = [entry for entry in self._contents(guest.node, volume.storage, guest.vmid) if entry.get("volid") == volid]
        used = listed[0].get("used") if listed else None
        if listed and not used and not is_cdrom(item.config, volume):
            try:
                used = self.api.ask(f"asking for {volid}", f"nodes/{guest.node}/storage/{volume.storage}/content/{volid}").get("used")
            except (RefusedError, UnreachableError):
                used = None
        return [[volid, entry.get("size"), used, entry.get("ctime")] for entry in listed]

    def remove_images(self, images: Sequence[Image]) -> Tuple[str, ...]:
        return ()

    def last_words(self, instances: Sequence[Instance], log: bool = True) -> Tuple[LastWords, ...]:
        self.cluster.forget()
        here = {found.id: found for found in self.cluster.survey()}

        def words(item: Instance) -> LastWords:
            found = here.get(item.id)
            if not found:
                return LastWords(item.name, "vanished", None, 0)
            guest = found.guest
            state = instance_in(guest, found.config, found.marker or {}).state
            lines = self._task_lines(guest) if log else []
            return LastWords(item.name, state, None, 0, tuple(lines), {"guest": found.guest.words, "config": dict(found.config)})

        return tuple(each(words, instances))

    def _task_lines(self, guest: Guest) -> List[str]:
        """What PVE did with a guest, and its words where that failed. What the guest itself has written is in none of its listings."""
        tasks = self.api.ask("listing tasks", f"nodes/{guest.node}/tasks", source="all", vmid=guest.vmid, limit=20) or []
        lines = []
        for task in tasks[::-1]:
            lines.append(f"{task.get('type')} {task.get('status') or 'running'}")
            if task.get("endtime") and not is_fine(str(task.get("status"))):
                lines += self.api.tasks.last_lines(task["upid"])
        return lines

    # --- acting -------------------------------------------------------------------------------------------------------

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        self._preflight(instances, blueprint, settled_of(blueprint))

    def _preflight(self, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> List[Template]:
        """The templates that the instances are made from, one for each of them."""
        templates = self.cluster.replicas(blueprint.image)
        resources = self.cluster.resources()
        storages = {(item["node"], item["storage"]): item for item in resources if item.get("type") == "storage"}
        sources = [source_of(item, templates, resources, storages, options) for item in instances]
        missing = [*of_templates(dict.fromkeys(sources), options), *of_nodes(instances, resources, options)]
        missing += of_storages(list(zip(instances, sources)), storages, options)
        missing += of_permissions(self.api.ask("asking for permissions", "access/permissions"), self.api.who, sources, options)
        missing += of_tags(self.api.ask("asking for the cluster's options", "cluster/options") or {}, instances, sources, options)
        missing += self._missing_pool(options) + self._missing_quorum()
        if missing:
            missing = list(dict.fromkeys(missing))
            what, cause, remedy = missing[0]
            if len(missing) > 1:
                lines = [f"  {what}: {cause}. {remedy}" for what, cause, remedy in missing]
                what, cause, remedy = f"{len(missing)} things are missing", "\n".join(["", *lines]), "Then run again"
            raise RefusedError(what, cause, remedy)
        return sources

    def _missing_pool(self, options: Mapping[str, Any]) -> List[Missing]:
        pool = options.get("pool")
        known = [item.get("poolid") for item in self.api.ask("listing pools", "pools") or []] if pool else []
        if not pool or pool in known:
            return []
        remedy = "Make it (pvesh create /pools --poolid " + pool + f"), and give {self.api.who} Pool.Audit on /pool/{pool}"
        return [(f"pool {pool}", "it does not exist, or may not be seen", remedy)]

    def _missing_quorum(self) -> List[Missing]:
        try:
            status = self.api.ask("asking for the cluster's state", "cluster/status") or []
        except Refusal as error:
            if error.status != 403:
                raise
            return []  # without Sys.Audit the first clone tells it, before anything is made
        lost = any(item.get("type") == "cluster" and not int(item.get("quorate", 1)) for item in status)
        remedy = "Bring its other nodes back: without a majority nothing can be changed"
        return [(f"the cluster of {self.api.where}", "it has lost its quorum", remedy)] if lost else []

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        if not instances:
            return ()
        options = settled_of(blueprint)
        self.cluster.forget()
        sources = self._preflight(instances, blueprint, options)
        created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        here = self.cluster.survey()

        def make(pair: Tuple[Instance, Template]) -> None:
            item, template = pair
            if not item.number:
                words = f"instances: {item.name} has no number; plan it from the pools, whose ids it needs one of"
                raise InvalidError([words])
            found = self._taken_as_it_is(item, blueprint, here)
            if found is None:
                nonce = secrets.token_hex(8)
                found = self._cloned(item, template, options, described(item, blueprint, created, nonce), nonce)
            if COMPLETE not in (found.marker or {}):
                found = self._configured(item, found, options, blueprint, created)
            self._started(found)

        each(make, list(zip(instances, sources)), self._width(instances))
        return self._as_seen(instances)

    def _taken_as_it_is(self, item: Instance, blueprint: Blueprint, here: Sequence[Found]) -> Optional[Found]:
        """The guest that is this instance already, made by a former call. Raises RefusedError where the number is somebody else's."""
        wanted = {
            NAME: item.fleet, RELEASE: str(item.release), SLOT: str(item.slot), LEDGER: blueprint.ledger,
            LABEL + "hash": blueprint.hash, LABEL + "image": blueprint.image.digest,
        }
        for found in here:
            marker = found.marker or {}
            # Without a VMID it may be a copy's marker.
            same_name = VMID in marker and all(marker.get(key) == wanted[key] for key in (NAME, RELEASE, SLOT))
            if found.guest.vmid != item.number and not same_name:
                continue
            differs = [key for key in wanted if marker.get(key) != wanted[key]]
            if differs:
                raise RefusedError(
                    f"{item.name}: {found.guest.words}",
                    f"its {differs[0]} is {marker.get(differs[0]) or '(none)'}, not {wanted[differs[0]] or '(none)'}",
                    "It belongs to somebody else and was not touched; release under another number, or set fleet_proxmox.vmid_range "
                    "to a range that nobody else uses",
                )
            return self.cluster.settled(found)
        return None

    def _cloned(self, item: Instance, template: Template, options: Mapping[str, Any], description: str, nonce: str) -> Found:
        source = template.guest
        doing = f"{item.name}: cloning template {source.vmid} on node {source.node} as {item.number} on node {item.host}"
        params = clone_params(item, template, options, description)
        target = options.get("storage") or (template.volumes[0].storage if template.volumes else "")
        gates = [(("node", source.node), PER_NODE)]
        if source.kind == "lxc":
            gates.append((("template", str(source.vmid)), 1))  # PVE locks a container's template for the whole copy
        places = [replace(source, vmid=item.number, node=node) for node in dict.fromkeys((source.node, item.host))]

        if self.journal:
            self.journal.began(f"{CLONE}{source.node}:{source.vmid}:{item.number}:{nonce}", doing)

        def clone() -> Found:
            with self._turns("clones", [target], PER_STORAGE, CLONING[options["clone"]]), ExitStack() as stack:
                for name, width in gates:
                    stack.enter_context(self._gate(name, width))
                return self._clone(doing, item, source, params, nonce, CLONING[options["clone"]])

        return self._patiently(clone, lambda: all(self.cluster.look(place) is None for place in places))

    def _clone(self, doing: str, item: Instance, source: Guest, params: Mapping[str, Any], nonce: str, seconds: float) -> Found:
        died = ""
        for attempt in (1, 2):
            try:
                upid = self.api.tell(doing, "post", f"{source.path}/clone", **params)
                self._fine(upid, doing, seconds)
                break
            except UnknownOutcomeError as error:
                died = error.cause if isinstance(error, DiedError) else died
                found = self._appeared(item, source, nonce, seconds)
                if found is not None:
                    return found
                if attempt == 2:
                    raise
                # It was not done: the VMID is free, and nobody else can have it meanwhile.
            except Refusal as error:
                if not error.taken:
                    raise
                # Taken by what an earlier call of ours has made, whose answer got lost? Only its nonce tells.
                found = self._appeared(item, source, nonce, seconds)
                if found is None and died:
                    words = f"its task was ended from outside ({died}), and what it left keeps the number"
                    raise RefusedError(doing, words, remains(replace(source, vmid=item.number))) from None
                if found is None:
                    remedy = "Somebody else has it: run again for the next one, or set fleet_proxmox.vmid_range to a range of its own"
                    raise RefusedError(error.what, error.cause, remedy) from None
                return found
        found = self._appeared(item, source, nonce, LOOKING)
        if found is None:
            cause = "PVE says that it is done, and the guest is not there, or is another's"
            raise RefusedError(doing, cause, "See the task's log on that node")
        return found

    def _appeared(self, item: Instance, source: Guest, nonce: str, seconds: float) -> Optional[Found]:
        """The guest with our nonce under the instance's number, once it is whole; None where no call of ours makes it."""
        began = time.monotonic()
        guest = replace(source, vmid=item.number, node=item.host, name=item.name, template=False)
        while True:
            busy = self._is_cloning(source)  # asked first: what ends now is seen by the look that follows
            found = self.cluster.look(guest) or (self.cluster.look(replace(guest, node=source.node)) if source.node != item.host else None)
            if found and found.marker and found.marker[NONCE] != nonce:
                return None
            if found and found.marker and not found.guest.lock:
                return found
            if found and found.guest.lock not in MAKING and not found.marker:
                return None
            passed = time.monotonic() - began
            if passed > (seconds if busy else LOOKING if found else APART):
                if found is not None:
                    raise DeadlineError(
                        f"{item.name}: {found.guest.words}", f"it is locked ({found.guest.lock}) for more than {passed:.0f} s",
                        f"If no task works on it, run on node {found.guest.node}: {found.guest.unlock}",
                    )
                return None
            time.sleep(min(APART, 0.2 + passed / 4))

    def _is_cloning(self, source: Guest) -> bool:
        """Whether a clone of that template is under way that may be the one whose answer got lost."""
        tasks = self.api.ask("listing tasks", f"nodes/{source.node}/tasks", source="active", vmid=source.vmid, limit=100) or []
        unknown = [task for task in tasks if task["upid"] not in self._answered and not task.get("endtime")]
        return any(clones(task, source.node, source.vmid) for task in unknown)

    def _configured(self, item: Instance, found: Found, options: Mapping[str, Any], blueprint: Blueprint, created: str) -> Found:
        guest = found.guest
        doing = f"{item.name}: configuring {guest.words}"
        created = (found.marker or {}).get(LABEL + "created", created)
        description = described(item, blueprint, created, (found.marker or {})[NONCE], uuid_in(found.config), complete=True)
        with self._gate(("node", guest.node), PER_NODE):
            root = root_of(found.config)
            if options.get("disk") and root and options["disk"] > root.size:
                size, digest = f"{-(-options['disk'] // 1024 ** 2)}M", found.config["digest"]
                upid = self._again(doing, found, "put", f"{guest.path}/resize", disk=root.key, size=size, digest=digest)
                self._fine(upid, doing, ENDING)
                found = self.cluster.verified(found)
            params = config_params(item, found.config, {**options, "kind": guest.kind}, description, facts_of(item, blueprint))
            # PVE keeps one key after the other, in no order, and may refuse in the middle: only what was read back is called complete.
            complete = params.pop("description")
            self._again(doing, found, "put", f"{guest.path}/config", **params)
            before, found = found.config, self.cluster.verified(found)
            wrong = unlike(params, before, found.config)
            if wrong:
                words = f"PVE took it, and {'; '.join(wrong)}"
                raise RefusedError(doing, words, "See who else changes guests of this pool, then run again")
            self._again(doing, found, "put", f"{guest.path}/config", description=complete, digest=found.config["digest"])
            return found

    def _again(self, doing: str, found: Found, method: str, path: str, **params: Any) -> Any:
        """Tell what does no harm when it is told twice; after an unknown outcome only to the very guest."""
        try:
            return self.api.tell(doing, method, path, **params)
        except UnknownOutcomeError:
            now = self.cluster.verified(found)
            if "digest" in params:
                params["digest"] = now.config["digest"]
            return self.api.tell(doing, method, path, **params)

    def _started(self, found: Found) -> None:
        guest = found.guest
        doing = f"starting {guest.words}"
        with self._gate(("node", guest.node), PER_NODE):
            for attempt in (1, 2):
                try:
                    upid = self.api.tell(doing, "post", f"{guest.path}/status/start")
                    status = self._ended(upid, doing, STARTING)
                except (UnknownOutcomeError, Refusal) as error:
                    if self._status(guest) == "running":
                        return
                    if attempt == 2 or not isinstance(error, UnknownOutcomeError):
                        raise
                    continue
                if status and "already running" not in status:
                    raise RefusedError(doing, f"PVE says: {status}", remedy_of(status, guest))
                return

    def _status(self, guest: Guest) -> str:
        """running or stopped, now; after a call without an answer, once nothing more happens to it."""
        began = time.monotonic()
        while True:
            try:
                state = self.api.ask(f"looking at {guest.words}", f"{guest.path}/status/current")
            except Refusal as error:
                if (error.hidden or error.absent) and self.cluster.look(guest) is None:
                    raise RefusedError(guest.words, "it vanished", "See who removes guests there, then run again") from None
                raise
            tasks = self.api.ask("listing tasks", f"nodes/{guest.node}/tasks", source="active", vmid=guest.vmid, limit=20) or []
            if not any(not task.get("endtime") for task in tasks) or time.monotonic() - began > LOOKING:
                return str(state.get("status"))
            time.sleep(0.5)

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        if not instances:
            return ()
        present = self._own(instances)
        lost = {item.id for item in instances} - {found.id for found in present}
        if lost:
            names = ", ".join(item.name for item in instances if item.id in lost)
            raise RefusedError(names, "vanished from the cluster", "Release anew, or heal")

        def wake(found: Found) -> None:
            now = self.cluster.verified(found)
            if not int(now.config.get("onboot") or 0):
                self._again(f"starting {now.guest.words}", now, "put", f"{now.guest.path}/config", onboot=1, digest=now.config["digest"])
            self._started(now)

        each(wake, [found for found in present if found.guest.status != "running"], self._width(instances))
        return self._as_seen(instances)

    def stop(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        awake = [found for found in self._own(instances) if found.guest.status == "running"]
        planned = {item.id: item for item in instances}

        def rest(found: Found) -> None:
            permit(planned[found.id])
            self._unless_backed_up(found, lambda: put_to_rest(found))

        def put_to_rest(found: Found) -> None:
            self._shut_down(found, timeout)
            now = self.cluster.same(found)
            if now is not None and int(now.config.get("onboot") or 0):
                # A node that restarts would start it again.
                self._again(f"stopping {now.guest.words}", now, "put", f"{now.guest.path}/config", onboot=0, digest=now.config["digest"])

        each(rest, awake, self._width(instances))
        self.cluster.forget()

    def _shut_down(self, found: Found, timeout: int) -> None:
        """Politely, by its agent or ACPI; what still runs then is stopped by the same task, which has the lock all the time."""
        now = self.cluster.same(found)
        if now is None:
            return
        guest = now.guest
        doing = f"stopping {guest.words}"
        self._refuse_locked(now, doing)
        with self._gate(("node", guest.node), PER_NODE):
            for attempt in (1, 2):
                try:
                    upid = self.api.tell(doing, "post", f"{guest.path}/status/shutdown", forceStop=1, timeout=max(1, timeout))
                    status = self._ended(upid, doing, timeout + ENDING)
                except (UnknownOutcomeError, Refusal) as error:
                    if self.cluster.same(now) is None or self._status(guest) == "stopped":
                        return
                    if attempt == 2 or not isinstance(error, UnknownOutcomeError):
                        raise
                    continue
                if status and "not running" not in status:
                    raise RefusedError(doing, f"PVE says: {status}", remedy_of(status, guest))
                return

    def destroy(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        planned = {item.id: item for item in instances}
        present = self._own(instances)
        stray = self._stray(present)
        leaks: List[Leak] = []
        removed: List[Found] = []

        def end(found: Found) -> None:
            self._unless_backed_up(found, lambda: put_to_an_end(found))

        def put_to_an_end(found: Found) -> None:
            item = planned[found.id]
            leave_started(item, replace(item, state=found.guest.status))
            permit(item)
            if found.guest.status == "running":
                self._shut_down(found, timeout)
                permit(item)
            now = self.cluster.same(found)
            if now is not None:
                try:
                    leaks.extend(self._removed(now, partial(permit, item)))
                except RefusedError as error:
                    # PVE itself refuses to remove what somebody has started meanwhile.
                    if "is running" in error.cause:
                        leave_started(replace(item, state="stopped"), replace(item, state="running"))
                    raise
                removed.append(now)

        each(end, present, self._width(instances))
        self.cluster.forget()
        numbers = {found.guest.vmid for found in removed}
        left = [guest.words for guest in self.cluster.guests() if guest.vmid in numbers and self._is_same(guest, removed)]
        if left:
            raise RefusedError(", ".join(left), "PVE says that it is removed, and still lists it", "Run again")
        leaks += [*self._left_over(removed), *(leak for vmid, leak in stray if vmid in numbers)]
        if leaks:
            raise left_behind(leaks)

    def _unless_backed_up(self, found: Found, act: Callable[[], None]) -> None:
        """Do it, or leave the guest to its backup, which may take hours: then the run says so and goes on; a later one does the rest."""
        if not self._is_left(found):
            try:
                act()
            except RefusedError:
                now = self.cluster.same(found)
                if now is None or not self._is_left(now):
                    raise

    def _is_left(self, found: Found) -> bool:
        left = found.guest.lock == BACKUP and self.journal is not None
        if left and self.journal:
            self.journal.say(f"{found.guest.words} is left alone: a backup is at work on it; the next run does what is to be done")
        return left

    def _removed(self, found: Found, permit: Callable[[], None]) -> List[Leak]:
        """Remove a stopped guest with its disks and all that refers to it; returns the disks that PVE could not remove."""
        guest = found.guest
        doing = f"destroying {guest.words}"
        self._refuse_locked(found, doing)
        if COMPLETE not in (found.marker or {}) and int(found.config.get("protection") or 0):
            # Nobody has protected it: it has that from its template, and its making was interrupted.
            self._again(doing, found, "put", f"{guest.path}/config", protection=0, digest=found.config["digest"])

        def remove() -> List[Leak]:
            storages = {volume.storage for volume in volumes_of(found.config)}
            with self._turns("removals", storages, PER_REMOVAL, ENDING), self._gate(("node", guest.node), PER_NODE):
                return self._remove(doing, found)

        def is_there() -> bool:
            permit()
            return self.cluster.same(found) is not None

        return self._patiently(remove, is_there)

    def _remove(self, doing: str, found: Found) -> List[Leak]:
        guest = found.guest
        for attempt in (1, 2):
            try:
                upid = self.api.tell(doing, "delete", guest.path, purge=1)
                status = self._ended(upid, doing, ENDING, warnings=True)
            except (UnknownOutcomeError, Refusal) as error:
                if self._gone_or_idle(found) is None:
                    upid = self._task_of(guest, "destroy", "all")
                    status = self.api.tasks.wait(upid, doing, ENDING) if upid else "OK"
                    if is_fine(status):
                        return self._told_of_removal(guest)
                    raise RefusedError(doing, f"PVE says: {status}", remains(guest)) from None
                if attempt == 2 or not isinstance(error, UnknownOutcomeError):
                    raise
                continue
            if status.startswith("WARNINGS"):
                return self._leaks_in(upid, guest) or [Leak("something", guest.node, f"{guest.words}, task {upid}: {status}")]
            if status:
                failed = refused_task(doing, status, guest)
                failed.remedy = failed.remedy or (remains(guest) if self.cluster.same(found) is None else "")
                raise failed
            return []
        return []

    def _leaks_in(self, upid: str, guest: Guest) -> List[Leak]:
        """The disks that a removal could not remove, by its log (qemu-server `PVE/QemuServer.pm` destroy_vm)."""
        found = (LEFT.search(line) for line in self.api.tasks.last_lines(upid, 500))
        return [Leak(match.group(1), guest.node, match.group(2)) for match in found if match]

    def _told_of_removal(self, guest: Guest) -> List[Leak]:
        """The same of a removal whose answer got lost: its task is the guest's last one."""
        kind = "qmdestroy" if guest.kind == "qemu" else "vzdestroy"
        tasks = self.api.ask("listing tasks", f"nodes/{guest.node}/tasks", source="all", vmid=guest.vmid, typefilter=kind, limit=5) or []
        seen = [task["upid"] for task in tasks if task.get("type") == kind]
        if not seen and self.journal:
            words = f"look for its disks: pvesm list STORAGE --vmid {guest.vmid}"
            self.journal.say(f"{guest.words} is gone, and the task that removed it cannot be seen; {words}")
        return [leak for upid in seen for leak in self._leaks_in(upid, guest)]

    def _gone_or_idle(self, found: Found) -> Optional[Found]:
        """The guest, once no task of ours removes it any more; None when it is gone, or out of sight."""
        began = time.monotonic()
        while True:
            busy = self._task_of(found.guest, "destroy", "active")
            now = self.cluster.same(found)
            if not busy and (now is None or now.guest.lock != "destroyed") or time.monotonic() - began > ENDING:
                return now
            time.sleep(0.5)

    def _task_of(self, guest: Guest, kind: str, source: str) -> str:
        """The UPID of the newest task of that kind on a guest, among those that are active, or all. Its VMID was never another's."""
        tasks = self.api.ask("listing tasks", f"nodes/{guest.node}/tasks", source=source, vmid=guest.vmid, limit=50) or []
        found = [task for task in tasks if str(task.get("type", "")).endswith(kind) and (source == "all" or not task.get("endtime"))]
        return str(max(found, key=lambda task: task.get("starttime") or 0)["upid"]) if found else ""

    def _left_over(self, gone: Sequence[Found]) -> List[Leak]:
        """The disks of these guests that a listing still shows: one listing for each storage.

        It shows them to those alone who may see disks of VMIDs that are in no pool any more (pve-storage `PVE/Storage.pm`
        check_volume_access), which the documented roles do not allow: there the removal's own task is the proof (see _leaks_in).
        """
        wanted = {f"{volume.storage}:{volume.name}" for found in gone for volume in volumes_of(found.config)}
        return [leak for _vmid, leak in self._listed(gone) if leak.volume in wanted]

    def _stray(self, present: Sequence[Found]) -> List[Tuple[int, Leak]]:
        """Disks of these guests that their configurations do not name, as a clone leaves them that failed and was tried again.

        They are to be seen as long as the guests are there.
        """
        named = {f"{volume.storage}:{volume.name}" for found in present for volume in volumes_of(found.config)}
        named |= {str(value) for found in present for key, value in found.config.items() if key.startswith("unused")}
        disks = [(vmid, leak) for vmid, leak in self._listed(present) if re.search(r"-(disk-\d+|cloudinit)\b", leak.volume)]
        return [(vmid, replace(leak, why="no configuration named it")) for vmid, leak in disks if leak.volume not in named]

    def _listed(self, guests: Sequence[Found]) -> List[Tuple[int, Leak]]:
        """The disks of these guests' VMIDs on the storages that they use: one listing for each storage, and node where it is local.

        A storage that cannot be listed keeps nobody from removing guests: their disks there are told by the removal.
        """
        shared, online = self._shared(), self.cluster.online()
        numbers = {found.guest.vmid for found in guests}
        uses = {(found.guest.node, volume.storage) for found in guests for volume in volumes_of(found.config)}
        places = {("" if storage in shared else node, storage) for node, storage in uses}
        found: List[Tuple[int, Leak]] = []
        for node, storage in sorted(places):
            asked = node or next(iter(online), "")
            with suppress(RefusedError, UnreachableError):
                for item in self._contents(asked, storage, None):
                    if int(item.get("vmid") or 0) in numbers:
                        found.append((int(item["vmid"]), Leak(str(item["volid"]), asked, "it is still listed")))
        return found

    def _shared(self) -> Set[str]:
        """The storages that all nodes share; asked for once, since that does not change under a run."""
        if self._shared_storages is None:
            storages = [item for item in self.cluster.resources() if item.get("type") == "storage"]
            self._shared_storages = {item["storage"] for item in storages if int(item.get("shared") or 0)}
        return self._shared_storages

    def _contents(self, node: str, storage: str, vmid: Optional[int]) -> List[Mapping[str, Any]]:
        params: Dict[str, Any] = {"vmid": vmid} if vmid else {}
        return list(self.api.ask(f"listing storage {storage} on node {node}", f"nodes/{node}/storage/{storage}/content", **params) or [])

    # --- whose is it --------------------------------------------------------------------------------------------------

    def _own(self, instances: Sequence[Instance]) -> List[Found]:
        """Those of `instances` that exist, as they are now. Raises RefusedError where the marker is not the one expected."""
        if not instances:
            return []
        self.cluster.forget()
        here = {found.id: found for found in self.cluster.survey() if found.marker}
        present = []
        for item in instances:
            found = here.get(item.id)
            if found is None:
                refuse_other(item, None)
                self._refuse_unreachable(item)
                continue
            now = instance_in(found.guest, found.config, found.marker or {})
            refuse_other(item, now, f"{now.name}: {found.guest.words}")
            if found.guest.ha:
                raise RefusedError(
                    f"{now.name}: {found.guest.words}", f"it is managed by HA ({found.guest.ha}), which would undo what is done to it",
                    f"Take it out: ha-manager remove {'vm' if found.guest.kind == 'qemu' else 'ct'}:{found.guest.vmid}",
                )
            present.append(found)
        return present

    def _refuse_unreachable(self, item: Instance) -> None:
        """One that is not listed has vanished, unless its node cannot be asked: then nobody knows."""
        why = self.cluster.unreachable.get(item.host)
        if why:
            remedy = "Bring the node back, or remove it from the cluster with its guests"
            raise UnreachableError(f"{item.name} on node {item.host}", f"the node {why}", remedy)

    def _is_same(self, guest: Guest, gone: Sequence[Found]) -> bool:
        now = self.cluster.look(guest)
        return now is not None and now.id in {found.id for found in gone}

    def _refuse_locked(self, found: Found, doing: str) -> None:
        guest = found.guest
        if guest.lock:
            raise RefusedError(
                doing, f"it is locked ({guest.lock})",
                f"Wait for the task that holds it; if none does, run on node {guest.node}: {guest.unlock}",
            )

    def _as_seen(self, instances: Sequence[Instance]) -> Tuple[Instance, ...]:
        self.cluster.forget()
        wanted, numbers = {item.name for item in instances}, {item.number for item in instances}
        here = [found for found in self.cluster.survey() if found.marker]
        pairs = [(found, instance_in(found.guest, found.config, found.marker or {}, found.note)) for found in here]
        pairs = [(found, item) for found, item in pairs if item.name in wanted]
        pairs.sort(key=lambda pair: pair[1].number in numbers)  # the last of a name counts, and a copy may bear it, too
        seen = {item.name: item for item in self._with_addresses(pairs, TELLING)}
        for item in instances:
            if item.name not in seen:
                self._refuse_unreachable(item)
        lost = [item.name for item in instances if item.name not in seen]
        if lost:
            raise RefusedError(", ".join(lost), "vanished right after the start", "See who removes guests there, then run again")
        return tuple(seen[item.name] for item in instances)

    def _with_addresses(self, pairs: Sequence[Tuple[Found, Instance]], patience: float) -> List[Instance]:
        """The instances with the addresses that only they can tell. They are asked one at a time on each node, since a guest that is not
        up yet keeps one of its three workers for seconds. Without patience each is asked once, and may stay without one.
        """
        silent = [pair for pair in pairs if not pair[1].address and pair[1].state == "running"]
        nodes: Dict[str, List[Tuple[Found, Instance]]] = {}
        for pair in silent:
            nodes.setdefault(pair[0].guest.node, []).append(pair)
        told: Dict[str, str] = {}

        def ask_all(waiting: List[Tuple[Found, Instance]]) -> None:
            deadline = time.monotonic() + patience
            while waiting:
                said: Dict[str, str] = {}
                for found, item in waiting:
                    told[item.id], said[item.id] = self._told(found)
                waiting = [pair for pair in waiting if not told[pair[1].id]]
                if not waiting or not patience:
                    return
                if time.monotonic() > deadline:
                    found, item = waiting[0]
                    raise DeadlineError(
                        f"{item.name}: {found.guest.words}", f"it told no address within {patience:.0f} s; last it said: {said[item.id]}",
                        "Install qemu-guest-agent in the template and set its agent option; or give fixed fleet_proxmox.addresses",
                    )
                time.sleep(BETWEEN)

        each(ask_all, list(nodes.values()), max(2, len(nodes)))
        return [replace(item, address=told.get(item.id) or item.address) for _found, item in pairs]

    def _told(self, found: Found) -> Tuple[str, str]:
        """The address that a guest tells, and what it said."""
        guest, within = found.guest, self.options.get("agent_network")
        try:
            if guest.kind == "lxc":
                answer = self.api.ask(f"asking {guest.words} for its address", f"{guest.path}/interfaces")
                return told_by_container(answer, macs_of(found.config), within), "no address that fits"
            answer = self.api.ask(f"asking {guest.words} for its address", f"{guest.path}/agent/network-get-interfaces")
            return told_by_agent(answer, macs_of(found.config), within), "no address that fits its MAC"
        except Refusal as error:
            if "No QEMU guest agent configured" in error.said:
                remedy = "Set its agent option in the template: qm set TEMPLATE --agent 1; or give fixed fleet_proxmox.addresses"
                raise RefusedError(guest.words, f"PVE says: {error.said}", remedy) from None
            if error.status == 403 and self.cluster.look(guest) is not None:
                raise
            return "", error.said

    # --- limits -------------------------------------------------------------------------------------------------------

    def _gate(self, name: Tuple[str, ...], width: int) -> threading.BoundedSemaphore:
        with self._gates_lock:
            return self._gates.setdefault(name, threading.BoundedSemaphore(width))

    @contextmanager
    def _turns(self, what: str, storages: Iterable[str], width: int, seconds: float) -> Iterator[None]:
        """A turn at each of these storages: of this run's for every one, of all runs of the ledger for one that nodes share.

        PVE takes the cluster's lock on a shared storage for each disk that it makes or removes, and gives up after 10 s (pve-storage
        `PVE/Storage.pm` vdisk_clone, vdisk_free; pve-cluster `PVE/Cluster.pm` cfs_lock). Raises DeadlineError after `seconds`.
        """
        shared = self._shared()
        with ExitStack() as stack:
            for storage in sorted(storages):
                stack.enter_context(self._gate((what, storage), width if storage in shared else PER_STORAGE))
                if self.journal and storage in shared:
                    stack.enter_context(self.journal.turn(f"{REALM} {what} on storage {storage}", width, seconds))
            yield

    def _patiently(self, act: Callable[[], T], is_undone: Callable[[], bool]) -> T:
        """Act; again, after a pause, where PVE's task ended for want of a lock and nothing was done. Raises BusyError in the end."""
        for pause in BUSY_PAUSES:
            try:
                return act()
            except BusyError:
                time.sleep(pause * random.uniform(0.5, 1.5))
                if not is_undone():
                    raise
        return act()

    def _width(self, instances: Sequence[Instance]) -> int:
        return PER_NODE * max(1, len(Counter(item.host for item in instances)))

    def _ended(self, upid: Any, doing: str, seconds: float, warnings: bool = False) -> str:
        """What a task ended with, empty where that is fine. warnings: those are told too."""
        if not isinstance(upid, str) or not upid.startswith("UPID:"):
            return ""  # older versions do it at once, and answer nothing
        self._answered.add(upid)
        try:
            if self.journal:
                self.journal.began(upid, doing)
        finally:
            status = self.api.tasks.wait(upid, doing, seconds)
        if status.startswith(("unexpected status", "unable to")):
            raise DiedError(doing, f"PVE says: {status}", f"See the log of task {upid}")
        return "" if is_fine(status) and not (warnings and status != "OK") else status

    def _fine(self, upid: Any, doing: str, seconds: float) -> None:
        status = self._ended(upid, doing, seconds)
        if status:
            raise refused_task(doing, status)


@dataclass(frozen=True)
class Leak:
    """A disk that was left over: its whole volume id, a node that has its storage, and why it was not removed."""

    volume: str
    node: str
    why: str


def left_behind(leaks: Iterable[Leak]) -> RefusedError:
    """One error that names each disk once, with the first that was said of it, and the command that removes it."""
    known: Dict[str, Leak] = {}
    for leak in leaks:
        known.setdefault(leak.volume, leak)
    disks = [known[volume] for volume in sorted(known)]
    words = "; ".join(f"{leak.volume} on node {leak.node} ({leak.why})" for leak in disks)
    commands = "; ".join(f"pvesm free {leak.volume}" for leak in disks if ":" in leak.volume)
    remedy = "The instances are gone, these disks are not. As root, on that node" + (f": {commands}" if commands else ", see that task")
    return RefusedError("destroying", f"PVE did not remove {words}", remedy)


class BusyError(RefusedError):
    """A task of PVE's ended for want of a lock that something else held, and has done nothing."""


def refused_task(doing: str, said: str, guest: Optional[Guest] = None) -> RefusedError:
    """What a task of PVE's ended with, in its own words."""
    kind = BusyError if BUSY.search(said) else RefusedError
    return kind(doing, f"PVE says: {said}", remedy_of(said, guest))


class DiedError(UnknownOutcomeError):
    """A task's worker is gone without a last word: the node was restarted, or somebody killed it."""


def clones(task: Mapping[str, Any], node: str, vmid: Any) -> bool:
    """Whether a task makes clones of that template. It bears the template's number and not the clone's (facts: UPID)."""
    return str(task.get("type")) in ("qmclone", "vzclone") and task.get("node") == node and str(task.get("id")) == str(vmid)


def remains(guest: Guest) -> str:
    """How a person takes away what a token cannot even see, since it is not in the pool, or no longer."""
    command = "qm" if guest.kind == "qemu" else "pct"
    words = f"run on node {guest.node}: {command} unlock {guest.vmid}; {command} destroy {guest.vmid} --purge"
    return f"It may be outside of the pool, where the token cannot see it. If no task works on it, {words}"


def remedy_of(said: str, guest: Optional[Guest] = None) -> str:
    if guest and "is locked" in said:
        return f"Wait for the task that holds it; if none does, run on node {guest.node}: {guest.unlock}"
    if BUSY.search(said):
        return "Something else has that lock again and again: a backup, or other clones there. Run again when it has ended"
    return remedy_for(500, said, "the token")


def settled_of(blueprint: Blueprint) -> Dict[str, Any]:
    found = mistakes(blueprint.options)
    if found:
        raise InvalidError(found)
    return settle(blueprint.options)
