# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Instances as virtual machines of libvirt, through libvirt-python: overlays of a golden volume, each with a seed of cloud-init.

The domain is the record of everything that is made for an instance: it is defined first, with the marker, and removed last.
What a crash leaves is therefore always found by its marker.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .._concurrency import each
from .._errors import DeadlineError, InvalidError, RefusedError
from .._model import Copy, Image, Instance, LastWords, Pool
from . import _libvirt_seed as seeds
from ._hosts import same_place
from ._libvirt_domain import (
    NETWORK,
    PAUSED,
    POOL,
    RUNNING,
    Machine,
    Network,
    Volume,
    domain_xml,
    is_reserved,
    mac_in,
    mac_of,
    outside,
    prefix_of,
    random_mac,
    room,
    told_by_agent,
    volumes_of,
)
from ._libvirt_host import Host, required_sdk
from ._libvirt_options import IMAGE, OPTIONS, mistakes, ranges_of, settle, shape
from ._marker import ADDRESS, LABEL, LEDGER, NAME, RELEASE, SLOT, UUID, facts_of, marker_of, name_in, refuse_other
from ._options import AGENT
from .base import Blueprint, Permit, leave_started, unconditional

try:
    import libvirt as sdk
except ImportError:
    sdk = None

__all__ = ["IMAGE", "OPTIONS", "LibvirtProvider", "connect", "mistakes", "settle", "shape"]

POLL = 0.2  # seconds between two looks at what is expected
AGAIN = 5  # seconds until a machine that has not gone is asked again: while it boots, nobody hears the first time
AGENT_PATIENCE = 180  # seconds until an agent has told the address of an instance
LOG_LINES, LOG_BYTES = 50, 65536
LEAST_ROOM = 64 * 1024 ** 2  # bytes that an overlay takes by the time its machine has booted
LEAST_OWN, OWN_SHARE = 512 * 1024 ** 2, 10  # what a host keeps of its memory for itself and QEMU: so many bytes, or one part in so many
_REFERENCE = re.compile(r"^(?:(?P<pool>[^/@]+)/)?(?P<name>[^/@]+)(?:@sha256:(?P<sha>[0-9a-f]{64}))?$")


def connect(options: Mapping[str, Any]) -> LibvirtProvider:
    """A provider on the host of `fleet_libvirt`. Raises InvalidError for its mistakes, UnreachableError where libvirt is silent."""
    found = mistakes(options)
    if found:
        raise InvalidError(found)
    required_sdk()
    settled = settle(options)
    return LibvirtProvider(Host(settled["uri"]), settled)


class LibvirtProvider:
    """The provider protocol (see base.py) on one host that runs libvirt."""

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        self.host = host
        self.options = options

    # --- asking -------------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> Image:
        pool, name, wanted = parts_of(reference, self.options["pool"])
        handle, volume = self._golden(reference, pool, name)
        checksum = self.host.checksum(self.host.pool(pool), handle, volume)
        if wanted and wanted != checksum:
            raise RefusedError(
                f"image {pool}/{name}", f"its content changed: it has checksum sha256:{checksum}, not sha256:{wanted}",
                "Put the former content back; a new version needs a volume of its own",
            )
        self._unchanged(pool, name, checksum)
        return Image(reference, f"{pool}/{name}@sha256:{checksum}")

    def present(self, image: Image) -> Tuple[str, ...]:
        """The names of the hosts that have this image."""
        pool, name, _checksum = parts_of(image.digest, self.options["pool"])
        return (self.host.name,) if self.host.volume(self.host.pool(pool), name)[1] else ()

    def _golden(self, reference: str, pool: str, name: str) -> Tuple[Any, Volume]:
        """The volume that an image is. Raises RefusedError where there is none, or one that cannot be a base."""
        home = self.host.pool(pool)
        handle, volume = self.host.volume(home, name)
        if not volume:
            raise RefusedError(
                f"image {reference}", f"storage pool {pool} on host {self.host.name} has no volume {name}",
                f"Upload it (virsh vol-create-as, vol-upload), or see what there is: virsh vol-list {pool}",
            )
        if volume.format not in ("qcow2", "raw"):
            remedy = "Convert it: qemu-img convert -O qcow2"
            raise RefusedError(f"image {reference}", f"it is of format {volume.format or 'unknown'}", remedy)
        if volume.backed:
            remedy = "Make one volume of the two: qemu-img convert -O qcow2"
            raise RefusedError(f"image {reference}", "it is itself an overlay of another volume, which may change", remedy)
        return handle, volume

    def _unchanged(self, pool: str, name: str, checksum: str) -> None:
        """Refuse a base that has another content than the one on which instances stand: their overlays are broken by it."""
        for item in self.host.instances():
            theirs = _REFERENCE.match(item.image)
            if theirs and (theirs["pool"], theirs["name"]) == (pool, name) and theirs["sha"] != checksum:
                raise RefusedError(
                    f"image {pool}/{name}", f"its content changed, and {item.name} stands on the former one (sha256:{theirs['sha']})",
                    "Put the former content back, and give the new one a name of its own",
                )

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> Tuple[Pool, ...]:
        if self.options.get("addresses") == AGENT:
            self.host.network(self.options["network"])
            return (Pool(self.host.name, "dynamic", ports=(port, port)),)
        handle, network = self._static_network(self.options["network"])
        far = [balancer for balancer in balancers if not same_place(self.host.name, balancer)]
        if far and network.mode in ("", "nat"):
            raise RefusedError(
                f"fleet {fleet}, host {self.host.name}",
                f"balancer {far[0]} is on another host and cannot reach an address in network {network.name}, which is "
                + ("behind address translation" if network.mode else "isolated"),
                "Name a routed network in fleet_libvirt.network, or a bridge with fleet_libvirt.addresses: agent",
            )
        first, last, others = room(network, ranges_of(self.options))
        wrong = outside(network, [str(first), str(last)])
        if wrong:
            words = f"{wrong[0]} is not in network {network.name}, which is {network.subnet}"
            raise InvalidError([f"fleet_libvirt.addresses: {words}; take addresses of it"])
        taken = {str(network.gateway), *others, *(address for _mac, address, _name in network.hosts)}
        taken |= {address for mac, address in self.host.leases(handle) if mac != mac_of(address)}
        bearers = (*self.host.instances(), *(item for item, _whose in self.host.copies()))
        taken |= {item.address for item in bearers if item.address}
        return (Pool(self.host.name, "network", str(first), str(last), (port, port), tuple(sorted(taken))),)

    def _static_network(self, name: str) -> Tuple[Any, Network]:
        """A network in which addresses can be reserved."""
        handle, network = self.host.network(name)
        if network.subnet is None or not network.serves:
            raise RefusedError(
                f"network {name} on host {self.host.name}", "libvirt serves no DHCP in it, so that no address can be reserved",
                "Name another network in fleet_libvirt.network, or set fleet_libvirt.addresses to agent",
            )
        return handle, network

    def observe(self, fleet: str) -> Tuple[Instance, ...]:
        return tuple(each(self._located, self.host.instances(fleet)))

    def copies(self, fleet: str) -> Tuple[Copy, ...]:
        return tuple(
            Copy(f"domain {item.name} on host {self.host.name}", self.host.name, name_in(item.marker), f"its marker is {whose}")
            for item, whose in self.host.copies() if item.fleet == fleet
        )

    def _located(self, instance: Instance) -> Instance:
        """An instance with the address that its guest's agent tells now, where it has no planned one."""
        if instance.address or instance.state != "running":
            return instance
        return replace(instance, address=self._told(instance))

    def _told(self, instance: Instance) -> str:
        domain = self.host.domain(instance.id)
        if domain is None:
            return ""
        source = sdk.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        try:
            found = self.host.call(f"asking the agent of {instance.name}", domain.interfaceAddresses, source)
            return told_by_agent(found, mac_in(self.host.call(f"looking at {instance.name}", domain.XMLDesc)))
        except RefusedError:  # no agent answers yet
            return ""

    def seals(self, instances: Sequence[Instance]) -> Mapping[str, str]:
        """By the overlay's size and times: libvirt gives it another owner when its domain starts, and the guest writes when it boots."""
        running = self.host.running() if instances else set()

        def seal(item: Instance) -> Optional[Tuple[str, str]]:
            if not item.id or item.id in running or not self.host.domain(item.id):
                return None
            pool = self.host.pool(self._pool_of(item))
            _handle, volume = self.host.volume(pool, volumes_of(item.name, item.id)[0])
            known = json.dumps([item.id, volume.touched if volume else ""])
            return item.name, hashlib.sha256(known.encode()).hexdigest()

        return dict(pair for pair in each(seal, instances) if pair)

    def remove_images(self, images: Sequence[Image]) -> Tuple[str, ...]:
        return ()

    def last_words(self, instances: Sequence[Instance], log: bool = True) -> Tuple[LastWords, ...]:
        return tuple(each(lambda item: self._last_words(item, log), instances))

    def _last_words(self, instance: Instance, log: bool) -> LastWords:
        domain = self.host.domain(instance.id)
        if domain is None:
            return LastWords(instance.name, "vanished", None, 0)
        state, reason = self.host.call(f"looking at {instance.name}", domain.state)
        xml = self.host.call(f"looking at {instance.name}", domain.XMLDesc)
        word = "running" if state in RUNNING + PAUSED else "stopped"
        lines = self._console(instance) if log else ()
        return LastWords(instance.name, word, None, 0, lines, {"state": state, "reason": reason, "xml": xml})

    def _console(self, instance: Instance) -> Tuple[str, ...]:
        """The last lines of what the machine wrote to its serial console."""
        try:
            handle, volume = self.host.volume(self.host.pool(self._pool_of(instance)), volumes_of(instance.name, instance.id)[2])
            found = bytearray()
            if volume and volume.size:
                self.host.read(handle, found.extend, max(0, volume.size - LOG_BYTES))
        except RefusedError:
            return ()
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]", "", found.decode("utf-8", "replace"))
        return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-LOG_LINES:]

    # --- acting -------------------------------------------------------------------------------------------------------

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        if instances:
            self._prepared(instances, blueprint, settled_of(blueprint))

    def _prepared(self, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> Tuple[Machine, Volume]:
        """What the instances are made with and from; raises RefusedError naming what they lack."""
        seeds.required_library()
        for item in instances:
            self._at_home(item)
        self.image(blueprint.image.digest)
        pool, name, _checksum = parts_of(blueprint.image.digest, options["pool"])
        _handle, base = self._golden(blueprint.image.digest, pool, name)
        self._lasting(dict.fromkeys((options["pool"], pool)), options["network"])
        folder = self._with_room(options["pool"], len(instances))
        self._with_addresses(options["network"], [item.address for item in instances if item.address])
        self._with_memory(instances, options["memory"])
        kind = self._kind(options)
        if options["firmware"] == "uefi" and not self.host.has_uefi(kind):
            remedy = "Install it there (apt-get install ovmf), or set fleet_libvirt.firmware to bios"
            raise RefusedError(f"host {self.host.name}", "it has no UEFI firmware for virtual machines", remedy)
        arch = self.host.arch()
        return Machine(kind, arch, options["memory"], options["vcpus"], options["firmware"], options["network"], folder), base

    def _lasting(self, pools: Iterable[str], network: str) -> None:
        """Raises RefusedError where the machines would not come back when their host has restarted."""
        found = self.host.fleeting(pools, network)
        if found:
            raise RefusedError(
                f"host {self.host.name}", ", and ".join(cause for cause, _command in found) + ", so its machines would not come back",
                "Run there: " + "; ".join(command for _cause, command in found),
            )

    def _with_room(self, name: str, count: int) -> str:
        """The folder of the storage pool that `count` overlays fit into."""
        pool = self.host.pool(name)
        free, need = int(self.host.call("looking at a storage pool", pool.info)[3]), LEAST_ROOM * count
        if free < need:
            raise RefusedError(
                f"storage pool {name} on host {self.host.name}",
                f"{free // 1024 ** 2} MiB are free, and {count} instances need {need // 1024 ** 2} MiB to boot",
                "Free space there, or name another one in fleet_libvirt.pool",
            )
        return self.host.folder(pool)

    def _with_addresses(self, name: str, addresses: Sequence[str]) -> None:
        network = self._static_network(name)[1] if addresses else self.host.network(name)[1]
        wrong = outside(network, addresses)
        if wrong:
            cause = f"it is not in network {name} on host {self.host.name}, which is {network.subnet}"
            raise RefusedError(f"address {wrong[0]}", cause, "Plan the instances from the pools")

    def _with_memory(self, instances: Sequence[Instance], memory: int) -> None:
        names = {item.name for item in instances}
        promised = sum(size for name, size in self.host.promised().items() if name not in names)
        total, need = self.host.memory(), memory * len(instances)
        own = max(LEAST_OWN, total // OWN_SHARE)
        if promised + need > total - own:
            raise RefusedError(
                f"host {self.host.name}", f"{len(instances)} instances of {memory // 1024 ** 2} MiB need {need // 1024 ** 2} MiB, but of "
                f"{total // 1024 ** 2} MiB the machines that run may take {promised // 1024 ** 2} MiB, and {own // 1024 ** 2} MiB are the "
                "host's own",
                "Lower fleet_libvirt.memory or fleet_size, or stop machines that nobody needs",
            )

    def _kind(self, options: Mapping[str, Any]) -> str:
        """kvm where the host has it, unless the definition says otherwise."""
        kinds = self.host.kinds()
        wanted = str(options.get("domain_type") or ("kvm" if "kvm" in kinds else "qemu"))
        if wanted not in kinds:
            raise RefusedError(
                f"host {self.host.name}", f"it cannot run domains of type {wanted}, but {', '.join(sorted(kinds)) or 'none'}",
                "Set fleet_libvirt.domain_type to one that it can, or enable virtualisation there",
            )
        return wanted

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        if not instances:
            return ()
        options = settled_of(blueprint)
        machine, base = self._prepared(instances, blueprint, options)
        created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        each(lambda item: self._create(item, blueprint, options, machine, base, created), instances)
        return self._as_seen(instances)

    def _create(
        self, instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], machine: Machine, base: Volume, created: str,
    ) -> None:
        made = self._defined(instance, blueprint, options, machine, created)
        if made.id in self.host.running():
            return
        pool = self.host.pool(self._pool_of(made))
        overlay, seed, log = volumes_of(made.name, made.id)
        disc = seeds.image(seeds.files(
            made.id, made.name, facts_of(made, blueprint), options.get("ssh_keys", ()), options.get("user_data", ""),
        ))
        self.host.make_volume(pool, log, "raw")
        self.host.make_volume(pool, seed, "raw", disc)
        self.host.make_volume(pool, overlay, "qcow2", base=base)
        self._start(made)

    def _defined(
        self, instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], machine: Machine, created: str,
    ) -> Instance:
        """The instance as its domain shows it, which is defined where there is none of its name."""
        if self.host.named(instance.name) is None:
            identity = str(uuid.uuid4())
            marker = {
                **marker_of(instance, blueprint, created), UUID: identity, ADDRESS: f"{instance.address}:{instance.port}",
                POOL: options["pool"], NETWORK: options["network"],
            }
            mac = mac_of(instance.address) if instance.address else random_mac(identity)
            xml = domain_xml(instance.name, identity, mac, machine, marker)
            try:
                self.host.call(f"defining {instance.name}", self.host.connection.defineXML, xml)
            except RefusedError:
                if self.host.named(instance.name) is None:
                    raise  # else somebody else was quicker
        return self._taken_as_it_is(instance, blueprint)

    def _taken_as_it_is(self, instance: Instance, blueprint: Blueprint) -> Instance:
        """The instance that has the name already, if it is the same."""
        found = self.host.look(self.host.named(instance.name))
        marker = found.marker if found else {}
        wanted = marker_of(instance, blueprint, "")
        differs = [key for key in (NAME, RELEASE, SLOT, LEDGER, LABEL + "hash", LABEL + "image") if marker.get(key) != wanted[key]]
        if differs or not found:
            raise RefusedError(
                f"domain {instance.name} on host {self.host.name}",
                f"its {differs[0]} is {marker.get(differs[0]) or '(none)'}, not {wanted[differs[0]] or '(none)'}",
                "Release under another number, or remove that domain yourself if nobody needs it",
            )
        return found

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        if not instances:
            return ()
        present = self._own(instances)
        lost = {item.id for item in instances} - {item.id for item in present}
        if lost:
            names = ", ".join(item.name for item in instances if item.id in lost)
            raise RefusedError(names, f"vanished from host {self.host.name}", "Release anew, or heal")
        idle = [item for item in present if item.state != "running"]
        for image in sorted({item.image for item in idle}):
            self.image(image)  # an overlay on a base that changed is broken
        each(self._start, idle)
        return self._as_seen(instances)

    def _start(self, instance: Instance) -> None:
        """Start the domain of an instance, at its address, and again whenever its host starts."""
        domain = self.host.domain(instance.id)
        if domain is None:
            raise RefusedError(instance.name, f"vanished from host {self.host.name}", "Release anew, or heal")
        if instance.address:
            self._reserve(instance)
        self.host.call(f"marking {instance.name} for the host's start", domain.setAutostart, 1)
        try:
            self.host.call(f"starting {instance.name}", domain.create)
        except RefusedError:
            if instance.id not in self.host.running():
                raise

    def _reserve(self, instance: Instance) -> None:
        handle, network = self._static_network(self._network_of(instance))
        if is_reserved(network, instance.name, instance.address):
            return
        for mac, address, name in network.hosts:
            # Of one that somebody removed behind our back: nobody else has this name, and a MAC that follows from the address.
            if name == instance.name and mac == mac_of(address):
                self.host.reserve(handle, name, address, gone=True)
        self.host.reserve(handle, instance.name, instance.address)

    def stop(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        awake = [item for item in self._own(instances) if item.state == "running"]
        for item in awake:
            permit(item)
            domain = self.host.domain(item.id)
            if domain is not None:  # a standby stays stopped when its host starts
                self.host.maybe(f"marking {item.name} as standby", domain.setAutostart, 0)
        self._end(awake, timeout, permit)

    def _end(self, instances: Sequence[Instance], timeout: int, permit: Permit) -> None:
        """The polite request to all, then, timeout seconds later, the power cut for those that still run."""
        running = self.host.running() if instances else set()
        waiting = [item for item in instances if item.id in running]
        started, asked = time.monotonic(), 0
        while waiting and time.monotonic() < started + timeout:
            if time.monotonic() >= started + asked * AGAIN:
                for item in waiting:
                    permit(item)
                    self._ask_to_leave(item, first=not asked)
                asked += 1
            time.sleep(POLL)
            running = self.host.running()
            waiting = [item for item in waiting if item.id in running]

        def cut(item: Instance) -> None:
            permit(item)
            self._power_off(item)

        each(cut, waiting)

    def _ask_to_leave(self, instance: Instance, first: bool) -> None:
        """Through the guest's agent where one answers, else by the power button; later by the power button alone."""
        domain = self.host.domain(instance.id)
        if domain is None:
            return
        flags = 0 if first else sdk.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN

        def ask() -> None:
            try:
                domain.shutdownFlags(flags)
            except sdk.libvirtError:  # it has gone already, or hears nothing yet: what counts is whether it still runs
                pass

        # libvirt returns when the guest has gone (an agent has no other answer), which is for the deadline to wait for.
        threading.Thread(target=ask, daemon=True).start()

    def _power_off(self, instance: Instance) -> None:
        domain = self.host.domain(instance.id)
        try:
            if domain is not None:
                self.host.maybe(f"stopping {instance.name}", domain.destroy)
        except RefusedError:
            if instance.id in self.host.running():
                raise

    def destroy(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        if not instances:
            return
        planned = {item.id: item for item in instances}
        present = self._own(instances)
        for item in present:
            leave_started(planned[item.id], item)
        self._end([item for item in present if item.state == "running"], timeout, permit)

        def remove(item: Instance) -> None:
            permit(item)
            if item.id in self.host.running():
                leave_started(replace(item, state="stopped"), replace(item, state="running"))
            self._remove(item)

        each(remove, instances)
        self._prove(instances)

    def _remove(self, instance: Instance) -> None:
        """Everything that was made for an instance, the domain last, because it is how the rest is found again."""
        if instance.address:
            self._give_back(instance)
        for pool, volumes in self._volumes_of(instance):
            for volume in volumes:
                self.host.maybe(f"removing volume {volume.name()} of {instance.name}", volume.delete)
        domain = self.host.domain(instance.id)
        if domain is not None:
            flags = (
                sdk.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sdk.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | sdk.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | sdk.VIR_DOMAIN_UNDEFINE_NVRAM
            )
            self.host.maybe(f"removing {instance.name}", domain.undefineFlags, flags)

    def _give_back(self, instance: Instance) -> None:
        name = self._network_of(instance)
        try:
            handle, network = self.host.network(name)
        except RefusedError:  # the network has gone, or does not run, and nobody can be given the address
            return
        namesake = self.host.look(self.host.named(instance.name))
        if namesake and namesake.id != instance.id:  # it may have the address, too, of this one that vanished
            return
        if is_reserved(network, instance.name, instance.address):
            try:
                self.host.reserve(handle, instance.name, instance.address, gone=True)
            except RefusedError:
                if is_reserved(self.host.network(name)[1], instance.name, instance.address):
                    raise

    def _volumes_of(self, instance: Instance) -> List[Tuple[Any, List[Any]]]:
        """The volumes of one instance, logs that were put aside included, in the pool that it was made in, if that is still there; without
        those that another domain has, too, such as a copy that somebody made of the definition alone.
        """
        try:
            pool = self.host.pool(self._pool_of(instance))
        except RefusedError:
            if self.host.domain(instance.id) is None:
                return []
            raise
        self.host.refresh(pool)
        volumes = self.host.volumes(pool, prefix_of(instance.name, instance.id))
        others = self.host.definitions(instance.id) if volumes else ""
        return [(pool, [volume for volume in volumes if f"'{volume.path()}'" not in others])]

    def _prove(self, instances: Sequence[Instance]) -> None:
        """Raises RefusedError naming whatever is still there of what was destroyed."""
        left = [f"domain {item.name}" for item in self.host.instances() if item.id in {one.id for one in instances}]
        for item in instances:
            left += [f"volume {volume.name()}" for _pool, volumes in self._volumes_of(item) for volume in volumes]
        if left:
            raise RefusedError(
                f"host {self.host.name}", f"still there after it was removed: {', '.join(left)}", "Run again, and see who makes it anew",
            )

    # --- parts --------------------------------------------------------------------------------------------------------

    def _at_home(self, instance: Instance) -> None:
        if instance.host != self.host.name:
            raise RefusedError(
                instance.name, f"it lives on host {instance.host}, and fleet_libvirt.uri leads to {self.host.name}",
                "Put the connection back until its instances are gone",
            )

    def _own(self, instances: Sequence[Instance]) -> List[Instance]:
        """Those of `instances` that exist, as they are now. Raises RefusedError where the marker is not the one expected."""
        seen = {item.id: item for item in self.host.instances()} if instances else {}
        found = []
        for item in instances:
            self._at_home(item)
            now = seen.get(item.id)
            refuse_other(item, now, f"domain {(now or item).name} on host {self.host.name}")
            if now:
                found.append(now)
        return found

    def _pool_of(self, instance: Instance) -> str:
        return instance.marker.get(POOL) or str(self.options["pool"])

    def _network_of(self, instance: Instance) -> str:
        return instance.marker.get(NETWORK) or str(self.options["network"])

    def _as_seen(self, instances: Sequence[Instance]) -> Tuple[Instance, ...]:
        """The instances as observed, once each has an address. Raises DeadlineError where an agent does not tell it in time."""
        deadline = time.monotonic() + AGENT_PATIENCE
        while True:
            seen = {item.name: item for fleet in sorted({item.fleet for item in instances}) for item in self.observe(fleet)}
            lost = [item.name for item in instances if item.name not in seen]
            if lost:
                remedy = "See who removes domains there, then run again"
                raise RefusedError(", ".join(lost), f"vanished from host {self.host.name} right after the start", remedy)
            found = tuple(seen[item.name] for item in instances)
            silent = [item.name for item in found if not item.address]
            if not silent:
                return found
            if time.monotonic() > deadline:
                raise DeadlineError(
                    ", ".join(silent), f"no guest agent told its address within {AGENT_PATIENCE} s",
                    "Put qemu-guest-agent into the golden image, or leave fleet_libvirt.addresses to the network",
                )
            time.sleep(POLL)


def parts_of(reference: str, pool: str) -> Tuple[str, str, str]:
    """Pool, volume and checksum (empty where it names none) of an image's name. Raises InvalidError."""
    found = _REFERENCE.match(reference)
    if not found:
        raise InvalidError([f"fleet_image: {reference} is not an image; {IMAGE['remedy']}"])
    return found["pool"] or pool, found["name"], found["sha"] or ""


def settled_of(blueprint: Blueprint) -> Dict[str, Any]:
    found = mistakes(blueprint.options)
    if found:
        raise InvalidError(found)
    return settle(blueprint.options)
