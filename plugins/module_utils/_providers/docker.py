# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Instances as containers of one or several Docker engines, through the low-level client of the docker SDK.

An instance costs two calls (create, start); everything else is one listing per engine. What the listing of a stopped
container does not tell (its published port, its memory limit) stands in labels of ours.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import tarfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Container, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .._concurrency import LIMIT, each
from .._errors import FleetError, InvalidError, RefusedError
from .._model import Copy, Image, Instance, LastWords, Pool
from ._docker_container import (
    MEMORY,
    SECRETS,
    STATES,
    account_in,
    container_config,
    digests_of,
    first_name,
    held_addresses,
    held_ports,
    is_id,
    mount_of,
    names_registry,
    repository_of,
    secrets_archive,
    secrets_of,
    tagged,
)
from ._docker_engine import Engine, Refusal, required_sdk, sites
from ._docker_options import OPTIONS, PUBLISH_PORTS, mistakes, port_range, settle, shape, statics
from ._hosts import resolved, routes, same_place
from ._marker import ADDRESS, LABEL, LEDGER, NAME, RELEASE, SLOT, marker_of, refuse_other
from .base import Blueprint, Permit, leave_started, unconditional

__all__ = ["OPTIONS", "DockerProvider", "connect", "mistakes", "settle", "shape"]

NETWORK = "phoenix"
NETWORK_PATIENCE = 3  # seconds for a network that another run is making
LOG_LINES = 50


def connect(options: Mapping[str, Any]) -> DockerProvider:
    """A provider on the engines of `fleet_docker`. Raises InvalidError for its mistakes, UnreachableError where an engine is silent."""
    found = mistakes(options)
    if found:
        raise InvalidError(found)
    required_sdk()
    settled = settle(options)
    return DockerProvider(each(lambda site: Engine(site, settled.get("registry")), sites(settled)), settled)


class DockerProvider:
    """The provider protocol (see base.py) on Docker engines."""

    def __init__(self, engines: Sequence[Engine], options: Mapping[str, Any]) -> None:
        self.engines = tuple(engines)
        self.options = options
        self._by_name = {engine.name: engine for engine in engines}

    # --- asking -------------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> Image:
        engine = self.engines[0]
        if "@sha256:" in reference:
            return Image(reference, f"{repository_of(reference)}@{reference.split('@')[1]}")
        local = engine.maybe(f"asking for image {reference}", "inspect_image", reference)
        if not local and (is_id(reference) or self.options.get("pull") == "never"):
            reason = "" if is_id(reference) else ", and fleet_docker.pull is never"
            raise RefusedError(f"image {reference}", f"engine {engine.name} does not have it{reason}", "Build or load it on every engine")
        known = digests_of(reference, local or {})
        if local and (is_id(reference) or not (known or names_registry(reference))):
            return Image(reference, local["Id"])  # built or loaded there: under this name it was never in a registry
        if local and self.options.get("pull") == "never":
            return Image(reference, known[0] if known else local["Id"])
        # Only the registry knows what a tag means now.
        try:
            return Image(reference, f"{repository_of(reference)}@{engine.ask_registry(reference, bool(local))}")
        except Refusal as error:
            # With containerd's store an engine says of every image that it was in a registry. Those without a slash in their name are
            # shown to everybody there: one that is not was built or loaded here.
            if local and "/" not in reference and error.status in (401, 403, 404):
                return Image(reference, local["Id"])
            raise

    def present(self, image: Image) -> Tuple[str, ...]:
        """The names of the engines that have this image."""
        found = each(lambda engine: engine.maybe(f"asking for image {image.digest}", "inspect_image", image.digest), self.engines)
        return tuple(engine.name for engine, local in zip(self.engines, found) if local)

    def pools(self, fleet: str, port: int, balancers: Sequence[str]) -> Tuple[Pool, ...]:
        kinds = [self._reached_by(fleet, engine, balancers) for engine in self.engines]
        self._distinct(kinds)
        return tuple(each(lambda pair: self._pool(port, *pair), list(zip(self.engines, kinds))))

    def _reached_by(self, fleet: str, engine: Engine, balancers: Sequence[str]) -> Tuple[str, str]:
        """How the balancers reach instances on this engine: (network, "") or (published, address)."""
        far = [balancer for balancer in balancers if not same_place(engine.home, balancer)]
        wanted = self.options.get("address")
        if wanted == "network" and far:
            raise RefusedError(
                f"fleet {fleet}, engine {engine.name}",
                f"balancer {far[0]} is on another host and cannot reach an address on the engine's network",
                "Set fleet_docker.address to published",
            )
        if wanted == "network" or (not wanted and not far):
            return "network", ""
        address = engine.publish_address
        if not address and engine.home == "local":
            address = "127.0.0.1" if not far else None
        elif not address:
            address = next((item for item in resolved(engine.home) if ":" not in item), None)
        if not address or (far and ipaddress.ip_address(address).is_loopback):
            raise RefusedError(
                f"fleet {fleet}, engine {engine.name}",
                f"balancer {(far or ['?'])[0]} cannot reach ports published on {address or 'an address that is not known'}",
                "Set fleet_docker.publish_address to an address of the engine's host that the balancers reach",
            )
        if ipaddress.ip_address(address) in engine.subnet:  # by which an instance's own address is told from a published one
            raise RefusedError(
                f"fleet {fleet}, engine {engine.name}", f"ports published on {address} are within the fleets' own subnet {engine.subnet}",
                "Set fleet_docker.subnet (and ip_range, where it is set) to a network that is free there, such as a /24 of 10.0.0.0/8",
            )
        return "published", address

    def _distinct(self, kinds: Sequence[Tuple[str, str]]) -> None:
        """Engines on one host must not give the same address twice."""
        known: List[Tuple[Engine, Tuple[str, str]]] = []
        for engine, kind in zip(self.engines, kinds):
            for other, others in known:
                both = f"fleet_docker.hosts: engines {other.name} and {engine.name}"
                if kind[0] == "network" == others[0] and engine.home == other.home and engine.subnet.overlaps(other.subnet):
                    raise InvalidError([f"{both} are on one host and both use {engine.subnet}; give each a subnet of its own"])
                if kind == others and kind[0] == "published":
                    raise InvalidError([f"{both} both publish on {kind[1]}; give each a publish_address of its own"])
            known.append((engine, kind))

    def _pool(self, port: int, engine: Engine, kind: Tuple[str, str]) -> Pool:
        containers = engine.containers()
        if kind[0] == "network":
            self._network(engine)
            first, last = statics(engine.subnet, engine.ip_range)
            held = held_addresses(containers, engine.network or NETWORK)
            return Pool(engine.name, "network", str(first), str(last), (port, port), tuple(sorted(set(held))))
        address = kind[1]
        silent = [
            item for item in containers if item.get("State") not in ("running", "paused") and ADDRESS not in (item.get("Labels") or {})
        ]
        described = each(lambda item: engine.maybe("looking at a container", "inspect_container", item["Id"]), silent)
        bindings = {item["Id"]: (item["HostConfig"].get("PortBindings") or {}) for item in described if item}
        held_here = {number for item in containers for number in held_ports(item, bindings.get(item["Id"], {}), address)}
        return Pool(
            engine.name, "published", address, address, port_range(self.options.get("publish_ports", PUBLISH_PORTS)),
            tuple(f"{address}:{number}" for number in sorted(held_here)),
        )

    def observe(self, fleet: str) -> Tuple[Instance, ...]:
        seen = [item for found in each(lambda engine: engine.instances(fleet), self.engines) for item in found]
        return tuple(sorted(seen, key=lambda item: (item.release, item.slot, item.host)))

    def copies(self, fleet: str) -> Tuple[Copy, ...]:
        return tuple(item for found in each(lambda engine: engine.copies(fleet), self.engines) for item in found)

    def seals(self, instances: Sequence[Instance]) -> Mapping[str, str]:
        return dict(pair for found in each(lambda part: self._seals(*part), self._by_engine(instances)) for pair in found)

    def _seals(self, engine: Engine, instances: Sequence[Instance]) -> List[Tuple[str, str]]:
        """Two calls for each, and one listing for the sizes, which see a file that changed once more.

        Not seen is a file that was changed while it ran, and again afterwards to the very same size: reading every file would
        see it, and take longer than the release.
        """
        fleets = sorted({item.fleet for item in instances})
        sizes = {item["Id"]: item.get("SizeRw", 0) for fleet in fleets for item in engine.stopped(fleet)}

        def seal(item: Instance) -> Optional[Tuple[str, str]]:
            found = engine.maybe(f"looking at {item.name}", "inspect_container", item.id)
            changes = engine.maybe(f"reading the changes of {item.name}", "diff", item.id) if found else None
            if not found or found["State"].get("Running"):
                return None
            paths = sorted((change["Path"], change["Kind"]) for change in changes or [])
            known = json.dumps([item.id, found["State"]["StartedAt"], sizes[item.id], paths])
            return item.name, hashlib.sha256(known.encode()).hexdigest()

        made = each(seal, [item for item in instances if item.id in sizes])
        return [pair for pair in made if pair]

    def last_words(self, instances: Sequence[Instance], log: bool = True) -> Tuple[LastWords, ...]:
        return tuple(each(lambda item: self._last_words(item, log), instances))

    def _last_words(self, instance: Instance, log: bool) -> LastWords:
        engine = self._engine(instance)
        found = engine.maybe(f"looking at {instance.name}", "inspect_container", instance.id) if instance.id else None
        if not found:
            return LastWords(instance.name, "vanished", None, 0)
        try:
            text = engine.call(f"reading the log of {instance.name}", "logs", instance.id, tail=LOG_LINES) if log else b""
        except RefusedError:  # log drivers that keep nothing to read
            text = b""
        # The names of variables are telling, their values may be secret.
        config = dict(found.get("Config") or {}, Env=[str(item).partition("=")[0] for item in (found.get("Config") or {}).get("Env") or []])
        state = found["State"]
        return LastWords(
            instance.name, STATES.get(state["Status"], "stopped"), state.get("ExitCode") if state["Status"] != "running" else None,
            int(found.get("RestartCount") or 0), tuple(text.decode("utf-8", "replace").splitlines()), dict(found, Config=config),
        )

    # --- acting -------------------------------------------------------------------------------------------------------

    def preflight(self, instances: Sequence[Instance], blueprint: Blueprint) -> None:
        options = settled_of(blueprint)
        each(lambda part: self._preflight(*part, blueprint, options), self._by_engine(instances))

    def _preflight(self, engine: Engine, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> None:
        self._lacks_network(engine, instances)
        digest = blueprint.image.digest
        if not self._image(engine, blueprint):
            if is_id(digest) or options.get("pull") == "never":
                reason = "it is in no registry" if is_id(digest) else "fleet_docker.pull is never"
                cause = f"engine {engine.name} does not have {digest}, and {reason}"
                remedy = "Load the very image there (docker save, docker load), since another build has another id; or use a registry"
                raise RefusedError(f"image {blueprint.image.reference}", cause, remedy)
            engine.ask_registry(digest, local=False)
        if not options.get("memory"):
            return
        names = {item.name for item in instances}
        limits = [
            int((item.get("Labels") or {}).get(MEMORY) or 0) for item in engine.containers()
            if item.get("State") in ("running", "paused", "restarting") and first_name(item) not in names
        ]
        total = int(engine.call("asking for its memory", "info").get("MemTotal") or 0)
        need = options["memory"] * len(instances)
        if total and need + sum(limits) > total:
            raise RefusedError(
                f"engine {engine.name}", f"{len(instances)} instances of {in_words(options['memory'])} need {in_words(need)}, but of "
                f"{in_words(total)} the running fleets may use {in_words(sum(limits))}",
                "Lower fleet_docker.memory or fleet_size, or add an engine to fleet_docker.hosts",
            )

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        options = settled_of(blueprint)
        self.preflight(instances, blueprint)
        parts = self._by_engine(instances)
        each(lambda part: self._make_ready(*part, blueprint, options), parts)
        created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        # No secrets before there is an instance beside them: who takes that away, whenever it is, takes the secrets too.
        first = list({(item.host, item.release): item for item in instances}.values()) if options.get("secrets") else []
        try:
            made = dict(zip(first, each(lambda item: self._create(item, blueprint, options, created), first)))
        except FleetError:
            each(lambda part: self._sweep(part[0], instances[0].fleet, {blueprint.ledger}), parts)
            raise
        each(lambda part: self._write_secrets(*part, blueprint, options), parts)

        def begin(item: Instance) -> None:
            self._start(item, made.get(item) or self._create(item, blueprint, options, created))

        each(begin, instances, LIMIT * len(self.engines))
        return self._as_seen(instances)

    def _make_ready(self, engine: Engine, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> None:
        """Image, network and a volume for the secrets on one engine."""
        if self._lacks_network(engine, instances):
            self._create_network(engine)
        if not is_id(blueprint.image.digest) and (options.get("pull") == "always" or not self._image(engine, blueprint)):
            engine.pull(blueprint.image.digest)
        if options.get("secrets"):
            for release in sorted({item.release for item in instances}):
                self._make_volume(engine, instances[0].fleet, release, blueprint)

    def _create(self, instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], created: str) -> str:
        """The container's id."""
        engine = self._engine(instance)
        own = self._on_network(engine, instance)
        if not own and not blueprint.port:
            raise InvalidError([f"port: missing; say which port the service inside {instance.name} listens on, to publish it"])
        config = container_config(instance, blueprint, options, engine.network or (NETWORK if own else None), created, published=not own)
        try:
            return str(engine.call(f"creating {instance.name}", "create_container_from_config", config, name=instance.name)["Id"])
        except Refusal as error:
            if error.status != 409:
                raise
            return self._taken_as_it_is(engine, instance, blueprint)

    def _start(self, instance: Instance, container: str) -> None:
        self._engine(instance).call(f"starting {instance.name}", "start", container)

    def _taken_as_it_is(self, engine: Engine, instance: Instance, blueprint: Blueprint) -> str:
        """The id of the container that has the instance's name already, if it is the same instance."""
        found = next((item for item in engine.instances(instance.fleet) if item.name == instance.name), None)
        labels = found.marker if found else {}
        wanted = marker_of(instance, blueprint, "")
        differs = [key for key in (NAME, RELEASE, SLOT, LEDGER, LABEL + "hash", LABEL + "image") if labels.get(key) != wanted[key]]
        if differs or not found:
            raise RefusedError(
                f"container {instance.name} on engine {engine.name}",
                f"its {differs[0]} is {labels.get(differs[0]) or '(none)'}, not {wanted[differs[0]] or '(none)'}",
                "Release under another number, or remove that container yourself if nobody needs it",
            )
        return found.id

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        options = settled_of(blueprint)
        present = self._own(instances)
        lost = {item.id for item in instances} - {item.id for engine, item in present}
        if lost:
            names = ", ".join(item.name for item in instances if item.id in lost)
            raise RefusedError(names, "vanished from the engine", "Release anew, or heal")
        idle = [item for engine, item in present if item.state not in ("running", "restarting")]
        if options.get("secrets"):
            parts = self._by_engine(idle)
            each(lambda part: self._make_ready(*part, blueprint, dict(options, pull="missing")), parts)
            each(lambda part: self._write_secrets(*part, blueprint, options), parts)
        each(lambda item: self._start(item, item.id), idle, LIMIT * len(self.engines))
        return self._as_seen(instances)

    def stop(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        def end(pair: Tuple[Engine, Instance]) -> None:
            engine, item = pair
            permit(item)
            engine.maybe(f"stopping {item.name}", "stop", item.id, timeout=timeout)

        awake = [pair for pair in self._own(instances) if pair[1].state in ("running", "restarting")]
        each(end, awake, LIMIT * len(self.engines))

    def destroy(self, instances: Sequence[Instance], timeout: int, permit: Permit = unconditional) -> None:
        planned = {item.id: item for item in instances}

        def end(pair: Tuple[Engine, Instance]) -> None:
            engine, item = pair
            leave_started(planned[item.id], item)
            permit(item)
            if item.state in ("running", "restarting"):
                engine.maybe(f"stopping {item.name}", "stop", item.id, timeout=timeout)
                permit(item)
            try:
                # Without force the engine itself refuses what somebody has started meanwhile.
                engine.maybe(f"removing {item.name}", "remove_container", item.id, v=True)
            except Refusal as error:
                if error.status == 409 and "running container" in error.cause:
                    leave_started(replace(item, state="stopped"), replace(item, state="running"))
                if error.status != 409 or "in progress" not in error.cause:
                    raise

        each(end, self._own(instances), LIMIT * len(self.engines))
        parts = [(engine, gone[0].fleet, {item.marker.get(LEDGER, "") for item in gone}) for engine, gone in self._by_engine(instances)]
        each(lambda part: self._sweep(*part), parts)

    def remove_images(self, images: Sequence[Image]) -> Tuple[str, ...]:
        return tuple(line for lines in each(lambda engine: self._remove_images(engine, images), self.engines) for line in lines)

    @staticmethod
    def _remove_images(engine: Engine, images: Sequence[Image]) -> List[str]:
        """The engine, too, refuses to remove what is in use or has names in several repositories, as long as nothing is forced."""
        used = {item["ImageID"] for item in engine.containers()}
        own = {tagged(image.reference) for image in images}
        lines = []
        for digest in dict.fromkeys(image.digest for image in images):
            found = engine.maybe(f"asking for image {digest}", "inspect_image", digest)
            if not found or found["Id"] in used or set(found.get("RepoTags") or ()) - own:
                continue
            try:
                engine.maybe(f"removing image {digest}", "remove_image", found["Id"])
                lines.append(f"image {digest} removed from engine {engine.name}")
            except Refusal as error:
                lines.append(f"image {digest} stays on engine {engine.name}: {error.cause}")
        return lines

    def _sweep(self, engine: Engine, fleet: str, ledgers: Container[str]) -> None:
        """Remove the secrets of releases that have no instance on this engine any more."""
        answer = engine.call("listing volumes", "volumes", filters={"label": [f"{NAME}={fleet}"]})
        volumes = [volume for volume in answer.get("Volumes") or [] if (volume.get("Labels") or {}).get(LEDGER) in ledgers]
        kept = {secrets_of(fleet, item.release) for item in engine.instances(fleet)} if volumes else set()
        for volume in volumes:
            if volume["Name"] not in kept:
                self._remove_helper(engine, volume["Name"])
                engine.maybe(f"removing the secrets {volume['Name']}", "remove_volume", volume["Name"])

    # --- parts --------------------------------------------------------------------------------------------------------

    def _engine(self, instance: Instance) -> Engine:
        try:
            return self._by_name[instance.host]
        except KeyError:
            raise RefusedError(
                instance.name, f"it lives on engine {instance.host}, which is not in fleet_docker.hosts",
                "Put the engine back until its instances are gone",
            ) from None

    def _by_engine(self, instances: Sequence[Instance]) -> List[Tuple[Engine, List[Instance]]]:
        parts: Dict[str, List[Instance]] = {}
        for item in instances:
            parts.setdefault(self._engine(item).name, []).append(item)
        return [(self._by_name[name], items) for name, items in parts.items()]

    @staticmethod
    def _on_network(engine: Engine, instance: Instance) -> bool:
        """True where the instance has an address of its own: planned addresses say it themselves."""
        try:
            return ipaddress.ip_address(instance.address) in engine.subnet
        except ValueError:
            raise InvalidError([f"instances: {instance.name} has no address ({instance.address!r}); plan it from the pools"]) from None

    def _own(self, instances: Sequence[Instance]) -> List[Tuple[Engine, Instance]]:
        """Those of `instances` that exist, as they are now. Raises RefusedError where the marker is not the one expected."""
        found = []
        for engine, items in self._by_engine(instances):
            seen = {item.id: item for fleet in sorted({item.fleet for item in items}) for item in engine.instances(fleet)}
            for item in items:
                now = seen.get(item.id)
                refuse_other(item, now, f"container {(now or item).name} on engine {engine.name}")
                if now:
                    found.append((engine, now))
        return found

    def _as_seen(self, instances: Sequence[Instance]) -> Tuple[Instance, ...]:
        seen = {(item.host, item.name): item for fleet in sorted({item.fleet for item in instances}) for item in self.observe(fleet)}
        lost = [item.name for item in instances if (item.host, item.name) not in seen]
        if lost:
            raise RefusedError(", ".join(lost), "vanished right after the start", "See who removes containers there, then run again")
        return tuple(seen[(item.host, item.name)] for item in instances)

    def _image(self, engine: Engine, blueprint: Blueprint) -> Optional[Dict[str, Any]]:
        found = engine.maybe(f"asking for image {blueprint.image.digest}", "inspect_image", blueprint.image.digest)
        return dict(found) if found else None

    def _network(self, engine: Engine) -> Optional[Dict[str, Any]]:
        """The fleets' network on this engine, None where there is none yet.

        Raises RefusedError where it cannot hold static addresses, or where its subnet is somebody else's.
        """
        name = engine.network or NETWORK
        found = self._network_named(engine, name)
        if not found:
            return None
        configs = [item for item in (found.get("IPAM") or {}).get("Config") or [] if ":" not in item.get("Subnet", "")]
        subnet, ip_range = (configs[0].get("Subnet", ""), configs[0].get("IPRange", "")) if configs else ("", "")
        if (subnet, ip_range) != (str(engine.subnet), str(engine.ip_range)):
            raise RefusedError(
                f"network {name} on engine {engine.name}",
                f"it has subnet {subnet or 'none'} and ip_range {ip_range or 'none'}, not {engine.subnet} and {engine.ip_range}",
                "Set fleet_docker.network to another name, or fleet_docker.subnet and ip_range to what it has" if ip_range else
                "Without an ip_range other containers get the fleets' addresses: set fleet_docker.network to another name",
            )
        return found

    def _lacks_network(self, engine: Engine, instances: Sequence[Instance]) -> bool:
        """Whether the network is yet to be made that these instances are on, or join where ports are published. Raises as `_network`."""
        if any(self._on_network(engine, item) for item in instances):
            return self._network(engine) is None
        # What is only joined may have any subnet.
        return engine.network is not None and self._network_named(engine, engine.network) is None

    @classmethod
    def _network_named(cls, engine: Engine, name: str) -> Optional[Dict[str, Any]]:
        """None where there is none yet, but its subnet is free. Raises RefusedError where that overlaps another one."""
        found = engine.maybe(f"looking at network {name}", "inspect_network", name)
        for subnet, owner in [] if found else cls._claims(engine, name):
            if engine.subnet.overlaps(subnet):
                # An interface with the very subnet may be of this network, which another run is making.
                found = cls._network_soon(engine, name) if subnet == engine.subnet else None
                if found:
                    break
                raise RefusedError(
                    f"network {name} on engine {engine.name}", f"its subnet {engine.subnet} overlaps {subnet} of {owner}",
                    "Set fleet_docker.subnet (and ip_range, where it is set) to a network that is free there, such as a /24 of 10.0.0.0/8",
                )
        return dict(found) if found else None

    @staticmethod
    def _network_soon(engine: Engine, name: str) -> Optional[Dict[str, Any]]:
        """Of a network that somebody else is making just now the engine takes the subnet before it can name it (measured on 20.10)."""
        deadline = time.monotonic() + NETWORK_PATIENCE
        while True:
            found = engine.maybe(f"looking at network {name}", "inspect_network", name)
            if found or time.monotonic() > deadline:
                return dict(found) if found else None
            time.sleep(0.05)

    @staticmethod
    def _claims(engine: Engine, name: str) -> Iterable[Tuple[ipaddress.IPv4Network, str]]:
        """Other networks than `name` that its traffic could be taken from, and whose they are.

        The engine refuses its own networks only when it makes one, and those of its host never: it takes their traffic (measured on 20.10).
        A part of what is reached through a gateway may be taken, as from 10.0.0.0/8 behind a router. Of another host no routes are known.
        """
        for other in engine.call("listing networks", "networks"):
            for item in (other.get("IPAM") or {}).get("Config") or [] if other["Name"] != name else ():
                if ":" not in item.get("Subnet", ":"):  # engines before 25 keep it as it was written, an address within it too
                    yield ipaddress.IPv4Network(item["Subnet"], strict=False), f"network {other['Name']}"
        for interface, network, far in routes() if engine.home == "local" else ():
            if not far or network.subnet_of(engine.subnet):
                yield network, f"interface {interface} of its host"

    @classmethod
    def _create_network(cls, engine: Engine) -> None:
        name = engine.network or NETWORK
        pool = {"Subnet": str(engine.subnet), "IPRange": str(engine.ip_range), "Gateway": str(next(engine.subnet.hosts()))}
        ipam = {"Driver": "default", "Config": [pool]}
        try:
            labels = {LABEL + "network": name}
            engine.call(f"creating network {name}", "create_network", name, driver="bridge", ipam=ipam, check_duplicate=True, labels=labels)
        except Refusal as error:
            # Somebody else was quicker, or is about to be.
            if error.status != 409 and not cls._network_soon(engine, name):
                raise

    @staticmethod
    def _make_volume(engine: Engine, fleet: str, release: int, blueprint: Blueprint) -> None:
        name = secrets_of(fleet, release)
        labels = {NAME: fleet, RELEASE: str(release), LEDGER: blueprint.ledger, LABEL + "volume": name}
        made = engine.call(f"creating volume {name}", "create_volume", name, labels=labels)
        if any((made.get("Labels") or {}).get(key) != value for key, value in labels.items()):
            remedy = "Remove it yourself if nobody needs it, or release under another number"
            raise RefusedError(f"volume {name} on engine {engine.name}", "it exists and is not of this release", remedy)

    def _write_secrets(self, engine: Engine, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> None:
        """The current secrets to their releases' volumes. Of a release that runs here nothing is changed, its secrets neither."""
        if not options.get("secrets"):
            return
        fleet = instances[0].fleet
        running = {item.release for item in engine.instances(fleet) if item.state in ("running", "restarting")}
        for release in sorted({item.release for item in instances} - running):
            self._fill(engine, secrets_of(fleet, release), blueprint, options)

    def _fill(self, engine: Engine, name: str, blueprint: Blueprint, options: Mapping[str, Any]) -> None:
        """Write the secrets to a volume, through a container that never runs: no command line, no environment."""
        self._remove_helper(engine, name)
        config = {
            "Image": blueprint.image.digest, "Cmd": ["-"], "Labels": {LABEL + "volume": name},
            "HostConfig": {"NetworkMode": "none", "Mounts": [dict(mount_of(name, SECRETS, False), VolumeOptions={"NoCopy": True})]},
        }
        helper = engine.call(f"writing secrets of {name}", "create_container_from_config", config, name=f"{name}-secrets")["Id"]
        try:
            image = self._image(engine, blueprint) or {}
            user = str(options.get("user") or (image.get("Config") or {}).get("User") or "0")
            uid, gid = self._owner(engine, helper, user)
            engine.call(f"writing secrets of {name}", "put_archive", helper, SECRETS, secrets_archive(options["secrets"], uid, gid))
        finally:
            engine.maybe(f"writing secrets of {name}", "remove_container", helper, force=True)

    @staticmethod
    def _remove_helper(engine: Engine, volume: str) -> None:
        """Take away what a killed run may have left."""
        found = engine.maybe("looking for leftovers", "inspect_container", f"{volume}-secrets")
        if found and (found["Config"].get("Labels") or {}).get(LABEL + "volume") == volume:
            engine.maybe("removing leftovers", "remove_container", found["Id"], force=True)

    @staticmethod
    def _owner(engine: Engine, container: str, user: str) -> Tuple[int, int]:
        """The numbers behind `user` (name or number, with or without group), from the image's own tables."""

        def table(path: str) -> str:
            found = engine.maybe(f"reading {path}", "get_archive", container, path)
            if found and found[1].get("linkTarget"):  # where all links end, says the engine
                found = engine.maybe(f"reading {path}", "get_archive", container, found[1]["linkTarget"])
            if not found:
                return ""
            with tarfile.open(fileobj=io.BytesIO(b"".join(found[0]))) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                return file.read().decode("utf-8", "replace") if file else ""

        who, _colon, group = user.partition(":")
        if who.isdigit() and group.isdigit():
            return int(who), int(group)
        account = account_in(table("/etc/passwd"), who)
        if not account and not who.isdigit():
            remedy = "Name a user that the image has, or a number, in fleet_docker.user"
            raise RefusedError(f"user {who}", "the image has no such user in /etc/passwd", remedy)
        uid, gid = (int(account[2]), int(account[3])) if account else (int(who), 0)
        if group:
            row = account_in(table("/etc/group"), group)
            gid = int(row[2]) if row else int(group) if group.isdigit() else gid
        return uid, gid


def settled_of(blueprint: Blueprint) -> Dict[str, Any]:
    found = mistakes(blueprint.options)
    if found:
        raise InvalidError(found)
    return settle(blueprint.options)


def in_words(size: int) -> str:
    """Bytes as people write them: 268435456 is 256m."""
    for unit, letter in ((1024 ** 3, "g"), (1024 ** 2, "m"), (1024, "k")):
        if size >= unit:
            return f"{size / unit:.1f}".rstrip("0").rstrip(".") + letter
    return f"{size}b"
