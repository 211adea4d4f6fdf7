# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""An instance as a container: what an engine is asked to create, and how to read what it shows. Pure."""

from __future__ import annotations

import io
import re
import tarfile
from typing import Any, Dict, Iterable, List, Mapping, Optional

from .._model import Instance
from ._marker import ADDRESS, LABEL, NAME, RELEASE, SLOT, facts_of, marker_of, name_in
from .base import Blueprint

MEMORY = LABEL + "memory"  # beside the marker: the listing of a container does not tell it
SECRETS = "/run/secrets"
STATES = {"created": "created", "running": "running", "restarting": "restarting", "paused": "running"}


def seen_in(item: Mapping[str, Any], host: str) -> Optional[Instance]:
    """The instance that an entry of the engine's listing shows, None where its labels are not a whole marker."""
    labels = item.get("Labels") or {}
    try:
        address, port = labels[ADDRESS].rsplit(":", 1)
        return Instance(
            name=first_name(item), host=host, fleet=labels[NAME], release=int(labels[RELEASE]), slot=int(labels[SLOT]),
            image=labels[LABEL + "image"], address=address, port=int(port), revision=labels.get(LABEL + "revision", ""), id=item["Id"],
            state=STATES.get(item.get("State", ""), "stopped"), health=health_in(item.get("Status", "")),
            created=labels.get(LABEL + "created", ""), marker={key: value for key, value in labels.items() if key.startswith(LABEL)},
        )
    except (KeyError, ValueError):
        return None


def is_renamed(item: Mapping[str, Any], instance: Instance) -> bool:
    """Whether none of a container's names is the one that its marker is for."""
    return name_in(instance.marker) not in [name.lstrip("/") for name in item.get("Names") or []]


def is_inherited(instance: Instance, labels: Optional[Mapping[str, str]]) -> bool:
    """Whether a container has its whole marker from its image, whose labels these are: `docker commit` writes a container's into them."""
    return all((labels or {}).get(key) == value for key, value in instance.marker.items())


def first_name(item: Mapping[str, Any]) -> str:
    return str((item.get("Names") or ["/?"])[0].lstrip("/"))


def health_in(status: str) -> str:
    """An instance's health from the listing's words: `Up 5 seconds (healthy)`, `(unhealthy)`, `(health: starting)`, `(Paused)`."""
    words = {"(unhealthy)": "unhealthy", "(Paused)": "unhealthy", "(healthy)": "healthy", "(health: starting)": "starting"}
    return next((health for word, health in words.items() if word in status), "none")


def held_addresses(containers: Iterable[Mapping[str, Any]], network: str) -> List[str]:
    """The addresses on a network that containers hold, stopped ones included, strangers' too."""
    held = []
    for item in containers:
        endpoint = ((item.get("NetworkSettings") or {}).get("Networks") or {}).get(network) or {}
        held += [endpoint.get("IPAddress"), (endpoint.get("IPAMConfig") or {}).get("IPv4Address")]
        held += [(item.get("Labels") or {}).get(ADDRESS, "").rsplit(":", 1)[0]]
    return [address for address in held if address]


def held_ports(item: Mapping[str, Any], bindings: Mapping[str, Any], address: str) -> List[int]:
    """The ports of `address` that one container holds: by its listing, by `bindings` of its description, by our label."""
    everywhere = ("", "0.0.0.0", "::", address)
    held = [int(port["PublicPort"]) for port in item.get("Ports") or [] if port.get("PublicPort") and port.get("IP", "") in everywhere]
    for pair in (pair for pairs in bindings.values() for pair in pairs or []):
        if pair.get("HostIp", "") in everywhere and str(pair.get("HostPort", "")).isdigit():
            held.append(int(pair["HostPort"]))
    host, _colon, port = (item.get("Labels") or {}).get(ADDRESS, ":").rpartition(":")
    return held + ([int(port)] if host == address and port.isdigit() else [])


def registry_of(reference: str) -> str:
    """The registry's host name in an image's name, docker.io where it has none."""
    first, slash, _rest = reference.partition("/")
    return first if slash and (re.search(r"[.:]", first) or first == "localhost") else "docker.io"


def repository_of(reference: str) -> str:
    """An image's name without tag and digest."""
    name = reference.split("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name


def names_registry(reference: str) -> bool:
    return registry_of(reference) != "docker.io" or reference.startswith("docker.io/")


def digests_of(reference: str, image: Mapping[str, Any]) -> List[str]:
    """By which names with a digest (`repo@sha256:...`) an engine's image was in the registry that `reference` leads to."""
    return [name for name in image.get("RepoDigests") or [] if name.startswith(f"{_familiar(reference)}@")]


def tagged(reference: str) -> str:
    """The name with its tag by which an engine tells the image of `reference`."""
    _repository, _colon, tag = reference.split("@")[0][len(repository_of(reference)):].partition(":")
    return f"{_familiar(reference)}:{tag or 'latest'}"


def _familiar(reference: str) -> str:
    """An image's name without tag and digest as engines tell it: they leave out what is understood."""
    repository = repository_of(reference)
    return re.sub(r"^(docker\.io/)?(library/)?", "", repository) if registry_of(reference) == "docker.io" else repository


def is_id(reference: str) -> bool:
    return bool(re.match(r"^sha256:[0-9a-f]{64}$", reference))


# --- what an instance is made of --------------------------------------------------------------------------------------

def secrets_of(fleet: str, release: int) -> str:
    """The name of the volume with a release's secrets."""
    return f"{fleet}-r{release}"


def container_config(
    instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], network: Optional[str], created: str, published: bool,
) -> Dict[str, Any]:
    """What the engine is asked to create. network: the one to be on, None for the engine's default one.

    published: its address is a port of the engine's host, and not one of its own on the network. Pure; options are settled ones.
    """
    labels = marker_of(instance, blueprint, created)
    labels[ADDRESS] = f"{instance.address}:{instance.port}"
    host: Dict[str, Any] = {
        "RestartPolicy": {"Name": "unless-stopped"},
        "SecurityOpt": ["no-new-privileges"],
        "Mounts": [mount_of(mount["source"], mount["target"], mount["read_only"]) for mount in options.get("mounts", [])],
    }
    config: Dict[str, Any] = {
        "Image": blueprint.image.digest, "Labels": labels, "HostConfig": host,
        "Env": [f"{key}={value}" for key, value in {**options.get("environment", {}), **facts_of(instance, blueprint)}.items()],
    }
    if network:
        host["NetworkMode"] = network
    if published:
        config["ExposedPorts"] = {f"{blueprint.port}/tcp": {}}
        host["PortBindings"] = {f"{blueprint.port}/tcp": [{"HostIp": instance.address, "HostPort": str(instance.port)}]}
    else:
        config["NetworkingConfig"] = {"EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": instance.address}}}}
    if options.get("secrets"):
        host["Mounts"].append(dict(mount_of(secrets_of(instance.fleet, instance.release), SECRETS, True), VolumeOptions={"NoCopy": True}))
    if options.get("memory"):
        host["Memory"] = options["memory"]
        labels[MEMORY] = str(options["memory"])
    if options.get("cpus"):
        host["NanoCpus"] = int(options["cpus"] * 1_000_000_000)
    if options.get("sealed"):
        host.update(ReadonlyRootfs=True, CapDrop=["ALL"], Tmpfs={"/tmp": "rw,nosuid,nodev"})
    if options.get("ulimits"):
        pairs = {name: str(value).split(":") for name, value in options["ulimits"].items()}
        host["Ulimits"] = [{"Name": name, "Soft": int(pair[0]), "Hard": int(pair[-1])} for name, pair in pairs.items()]
    if options.get("log_driver") or options.get("log_options"):
        host["LogConfig"] = {"Type": options.get("log_driver", ""), "Config": options.get("log_options", {})}
    if options.get("health"):
        config["Healthcheck"] = _healthcheck(options["health"])
    for key, there in (("user", "User"), ("stop_signal", "StopSignal"), ("command", "Cmd")):
        if options.get(key):
            config[there] = options[key]
    return config


def mount_of(source: str, target: str, read_only: bool) -> Dict[str, Any]:
    return {"Type": "bind" if source.startswith("/") else "volume", "Source": source, "Target": target, "ReadOnly": read_only}


def _healthcheck(health: Mapping[str, Any]) -> Dict[str, Any]:
    words = {"test": "Test", "retries": "Retries"}
    spans = {"interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod"}
    check = {there: health[key] for key, there in words.items() if key in health}
    return dict(check, **{there: int(health[key] * 1_000_000_000) for key, there in spans.items() if key in health})


def secrets_archive(secrets: Mapping[str, str], uid: int, gid: int) -> bytes:
    """A tar archive with a file for each secret, mode 0400, of that owner."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, value in sorted(secrets.items()):
            data = value.encode("utf-8")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(data), 0o400, uid, gid
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def account_in(table: str, name: str) -> Optional[List[str]]:
    """The line of an /etc/passwd or /etc/group for a name or number, split at its colons."""
    rows = [line.split(":") for line in table.splitlines() if line.count(":") >= 3]
    return next((row for row in rows if name in (row[0], row[2])), None)
