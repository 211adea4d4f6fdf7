# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Instances as containers of one or several Docker engines, through the low-level client of the docker SDK.

An instance costs two calls (create, start); everything else is one listing per engine. What the listing of a stopped
container does not tell (its published port, its memory limit) stands in labels of ours.
"""

from __future__ import annotations

import io
import ipaddress
import os
import re
import socket
import ssl
import sys
import tarfile
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple

from .._concurrency import LIMIT, each
from .._errors import InvalidError, RefusedError, UnreachableError
from .._model import Image, Instance, LastWords, Pool
from ._docker_options import OPTIONS, PUBLISH_PORTS, mistakes, port_range, settle, shape, statics, subnet_of
from .base import Blueprint

try:
    import docker as sdk
    from docker.context import ContextAPI
    from docker.errors import APIError, DockerException, TLSParameterError
    from docker.tls import TLSConfig
    from requests.exceptions import RequestException
except ImportError:  # the error with the remedy comes from connect
    sdk = None

__all__ = ["OPTIONS", "DockerProvider", "connect", "mistakes", "settle", "shape"]

LABEL = "phoenix.fleet."
NAME, RELEASE, SLOT, LEDGER = LABEL + "name", LABEL + "release", LABEL + "slot", LABEL + "ledger"
ADDRESS, MEMORY = LABEL + "address", LABEL + "memory"
NETWORK = "phoenix"
SECRETS = "/run/secrets"
TIMEOUT = 60
LOG_LINES = 50
STATES = {"created": "created", "running": "running", "restarting": "restarting", "paused": "running"}
LOOPBACK = ("local", "localhost", "ip6-localhost")


def connect(options: Mapping[str, Any]) -> DockerProvider:
    """A provider on the engines of `fleet_docker`. Raises InvalidError for mistakes in it, UnreachableError where an engine does not answer."""
    found = mistakes(options)
    if found:
        raise InvalidError(found)
    if sdk is None:
        raise RefusedError("the docker provider", f"{sys.executable} has no docker SDK", f"Run: {sys.executable} -m pip install docker")
    settled = settle(options)
    return DockerProvider(each(lambda site: Engine(site, settled.get("registry")), sites(settled)), settled)


def sites(options: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The engines of settled options, each with the settings that hold for it. Raises InvalidError where two have one name."""
    shared = {key: options[key] for key in ("tls", "network", "subnet", "ip_range", "publish_address") if key in options}
    found = [dict(shared, **host) for host in options.get("hosts") or [dict(found_by_client())]]
    for site in found:
        site.setdefault("name", home_of(site["url"]))
    names = [site["name"] for site in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidError([f"fleet_docker.hosts: {names.count(name)} engines are named '{name}'; give each a name of its own: {{url, name}}"])
    return found


def found_by_client() -> Dict[str, Any]:
    """The engine that the docker client finds: DOCKER_HOST with its TLS settings, else the current context, else the usual socket."""
    url = os.environ.get("DOCKER_HOST")
    if url:
        folder = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
        if not (os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_CERT_PATH")):
            return {"url": url}
        files = {"ca_path": "ca.pem", "client_cert": "cert.pem", "client_key": "key.pem"}
        tls = {key: os.path.join(folder, file) for key, file in files.items()}
        return {"url": url, "tls": dict(tls, validate_certs=bool(os.environ.get("DOCKER_TLS_VERIFY")))}
    try:
        context = ContextAPI.get_context()
    except Exception as error:  # whatever a broken context file makes the SDK raise
        raise RefusedError("the docker client's context", str(error), "Set fleet_docker.hosts, or run: docker context use default") from error
    if context is None or not context.Host or context.Host.startswith("npipe"):
        return {"url": "unix:///var/run/docker.sock"}
    material = getattr(context, "TLSConfig", None)
    if not material:
        return {"url": context.Host.replace("http+unix://", "unix://")}
    cert, key = material.cert or ("", "")
    return {"url": context.Host, "tls": {"ca_path": material.ca_cert, "client_cert": cert, "client_key": key, "validate_certs": bool(material.verify)}}


def home_of(url: str) -> str:
    """The host that an engine's URL leads to, `local` for this machine."""
    if url.startswith("unix://"):
        return "local"
    host = re.sub(r"^[a-z+]+://(?:[^@/]*@)?", "", url).split("/")[0]
    host = host[1:host.index("]")] if host.startswith("[") else host.rsplit(":", 1)[0] if host.count(":") == 1 else host
    return "local" if is_here(host) else host


def is_here(host: str) -> bool:
    """True for a name or address of this machine: one that a socket can be bound to."""
    if host in LOOPBACK:
        return True
    for address in resolved(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
            return True
        except OSError:
            continue
    return False


def resolved(host: str) -> List[str]:
    """The addresses of a host, none where the name is not known here."""
    try:
        return sorted({str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)})
    except OSError:
        return []


def same_place(home: str, balancer: str) -> bool:
    """True where the balancer's address is the engine's own host."""
    if home == "local" or is_here(balancer):
        return home == "local" and is_here(balancer)
    return home == balancer or bool(set(resolved(home)) & set(resolved(balancer)))


class Engine:
    """One Docker engine: its client, and its errors in our words."""

    def __init__(self, site: Mapping[str, Any], registry: Optional[Mapping[str, Any]]) -> None:
        self.url: str = site["url"]
        self.name: str = site["name"]
        self.home = home_of(self.url)
        self.network: Optional[str] = site.get("network")
        self.subnet, self.ip_range = subnet_of(site)
        self.publish_address: Optional[str] = site.get("publish_address")
        self.registry = registry
        tls = self._tls(site["tls"]) if site.get("tls") and self.url.startswith("tcp://") else False
        try:
            self.client: Any = sdk.APIClient(
                base_url=self.url, tls=tls, timeout=TIMEOUT, version="auto", num_pools=LIMIT, max_pool_size=LIMIT,
                use_ssh_client=self.url.startswith("ssh://"),
            )
        except (DockerException, RequestException, OSError, ValueError) as error:
            self._fail("connecting", error)

    def _tls(self, tls: Mapping[str, Any]) -> Any:
        for key in ("ca_path", "client_cert", "client_key"):
            path = tls.get(key)
            if path and not os.access(path, os.R_OK):
                state = "cannot be read" if os.path.exists(path) else "does not exist"
                raise InvalidError([f"fleet_docker.tls.{key}: {path} {state}; name the PEM file for engine {self.name}"])
        pair = (tls["client_cert"], tls["client_key"]) if tls.get("client_cert") else None
        try:
            return TLSConfig(client_cert=pair, ca_cert=tls.get("ca_path"), verify=tls.get("validate_certs", True))
        except TLSParameterError as error:
            raise InvalidError([f"fleet_docker.tls: {error.msg}"]) from error

    def call(self, doing: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """client.method(...), with RefusedError and UnreachableError for what it raises. `doing` says it in words."""
        try:
            return getattr(self.client, method)(*args, **kwargs)
        except (DockerException, RequestException, OSError) as error:
            self._fail(doing, error)

    def maybe(self, doing: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Like `call`, but None where the engine does not know the object."""
        try:
            return getattr(self.client, method)(*args, **kwargs)
        except (DockerException, RequestException, OSError) as error:
            if isinstance(error, APIError) and error.status_code == 404:
                return None
            self._fail(doing, error)

    def _fail(self, doing: str, error: BaseException) -> NoReturn:
        what = f"engine {self.name}, {doing}"
        if isinstance(error, APIError) and error.status_code is not None:
            said = str(error.explanation or error).strip()
            raise Refusal(what, said, remedy_for(said), error.status_code) from error
        cause, remedy = why(self.url, error)
        raise UnreachableError(f"{what} ({self.url})", cause, remedy) from error

    def containers(self, fleet: Optional[str] = None) -> List[Dict[str, Any]]:
        """All containers in the engine's short form, stopped ones included; with `fleet` only those that carry its name."""
        filters = {"label": [f"{NAME}={fleet}"]} if fleet else None
        return list(self.call("listing containers", "containers", all=True, filters=filters))

    def instances(self, fleet: str) -> Tuple[Instance, ...]:
        return tuple(seen for seen in (seen_in(item, self.name) for item in self.containers(fleet)) if seen)

    def credentials(self, reference: str) -> Optional[Dict[str, str]]:
        """What `registry` says for this image's registry; None leaves it to the docker client's own configuration."""
        if not self.registry or not self.registry.get("username"):
            return None
        server = str(self.registry.get("server") or "docker.io")
        if registry_of(reference) != server:
            return None
        return {"username": self.registry["username"], "password": self.registry["password"], "serveraddress": server}


class Refusal(RefusedError):
    """An engine's no, with the status it answered."""

    def __init__(self, what: str, cause: str = "", remedy: str = "", status: int = 0) -> None:
        super().__init__(what, cause, remedy)
        self.status = status


_REMEDIES = (
    (r"port is already allocated|bind.*address already in use", "Something else has this port: choose another range in fleet_docker.publish_ports"),
    (r"address already in use", "Another container took this address: run again, a free one is chosen then"),
    (r"pool overlaps", "Set fleet_docker.subnet to a network that is free on this engine"),
    (r"no such image|pull access denied|manifest.*unknown|not found: manifest", "Check the image's name, build or pull it on this engine, or set fleet_docker.registry"),
    (r"unauthorized|authentication required|denied", "Check fleet_docker.registry, or log in with docker login"),
    (r"no space left", "Free space on the engine, e.g. with docker system prune"),
    (r"unable to find user|unknown user", "Name a user that the image has, or a number, in fleet_docker.user"),
    (r"executable file not found|no such file or directory.*exec|exec.*no such file", "Check the image's command, or fleet_docker.command"),
    (r"logging driver|log driver|log opt", "Check fleet_docker.log_driver and fleet_docker.log_options"),
    (r"minimum memory|memory limit", "Raise fleet_docker.memory"),
    (r"cpus available", "Lower fleet_docker.cpus"),
    (r"bind source path does not exist|invalid mount", "Check fleet_docker.mounts; the source must exist on the engine's host"),
    (r"ulimit", "Check fleet_docker.ulimits"),
)


def remedy_for(said: str) -> str:
    """What to do about an engine's words, empty where they say it themselves."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, said, re.IGNORECASE)), "")


def why(url: str, error: BaseException) -> Tuple[str, str]:
    """Cause and remedy of a missing answer, from whatever is wrapped within the error."""
    inside = list(_within(error))
    path = url[len("unix://"):] if url.startswith("unix://") else ""
    for item in inside:
        if isinstance(item, ssl.SSLError) or "SSLError" in type(item).__name__:
            return f"TLS failed: {item}", "Check fleet_docker.tls: the CA that signed the engine's certificate, and a client certificate that it accepts"
    for item in inside:
        if isinstance(item, PermissionError):
            return f"permission denied on {path}", "Add this user to the group that owns the socket (docker), log in again, or use another engine in fleet_docker.hosts"
        if isinstance(item, FileNotFoundError):
            return (f"there is no socket {path}" if path else str(item)), "Start the Docker engine (systemctl start docker), or name the engine in fleet_docker.hosts"
        if isinstance(item, ConnectionRefusedError):
            return "connection refused", "Start the Docker engine there (systemctl start docker), and check the address in fleet_docker.hosts"
        if isinstance(item, socket.gaierror):
            return "its host name is not known here", "Check the address in fleet_docker.hosts"
        if isinstance(item, NameError) or "paramiko" in str(item):
            return f"{sys.executable} lacks what ssh needs", f"Run: {sys.executable} -m pip install 'docker[ssh]'"
    text = str(error)
    if "imed out" in text:
        return f"no answer within {TIMEOUT} s", "Check that the engine's host is up and not overloaded (docker info there)"
    if url.startswith("ssh://"):
        return text, f"Try: ssh {re.sub('^ssh://', '', url)} docker version. Keys and known_hosts must be in place, since nobody can be asked"
    if "client sent an HTTP request to an HTTPS server" in text or "malformed HTTP" in text:
        return "the engine wants TLS", "Set fleet_docker.tls"
    return text, "Check that the engine runs there: docker info"


def _within(error: object, depth: int = 0) -> Iterator[BaseException]:
    if isinstance(error, BaseException) and depth < 8:
        yield error
        for inner in (*error.args, error.__cause__, error.__context__, getattr(error, "reason", None)):
            if inner is not error:
                yield from _within(inner, depth + 1)


# --- what an engine shows ---------------------------------------------------------------------------------------------

def seen_in(item: Mapping[str, Any], host: str) -> Optional[Instance]:
    """The instance that an entry of the engine's listing shows, None where its labels are not a whole marker."""
    labels = item.get("Labels") or {}
    try:
        address, port = labels[ADDRESS].rsplit(":", 1)
        return Instance(
            name=(item.get("Names") or ["/?"])[0].lstrip("/"), host=host, fleet=labels[NAME], release=int(labels[RELEASE]), slot=int(labels[SLOT]),
            image=labels[LABEL + "image"], address=address, port=int(port), revision=labels.get(LABEL + "revision", ""), id=item["Id"],
            state=STATES.get(item.get("State", ""), "stopped"), health=health_in(item.get("Status", "")), created=labels.get(LABEL + "created", ""),
            marker={key: value for key, value in labels.items() if key.startswith(LABEL)},
        )
    except (KeyError, ValueError):
        return None


def health_in(status: str) -> str:
    """An instance's health from the listing's words: `Up 5 seconds (healthy)`, `(unhealthy)`, `(health: starting)`, `(Paused)`."""
    for word, health in (("(unhealthy)", "unhealthy"), ("(Paused)", "unhealthy"), ("(healthy)", "healthy"), ("(health: starting)", "starting")):
        if word in status:
            return health
    return "none"


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


def is_id(reference: str) -> bool:
    return bool(re.match(r"^sha256:[0-9a-f]{64}$", reference))


# --- what an instance is made of --------------------------------------------------------------------------------------

def marker_of(instance: Instance, blueprint: Blueprint, created: str) -> Dict[str, str]:
    return {
        NAME: instance.fleet, RELEASE: str(instance.release), SLOT: str(instance.slot), LEDGER: blueprint.ledger,
        LABEL + "image": blueprint.image.digest, LABEL + "revision": blueprint.revision, LABEL + "created": created, LABEL + "hash": blueprint.hash,
    }


def secrets_of(fleet: str, release: int) -> str:
    """The name of the volume with a release's secrets."""
    return f"{fleet}-r{release}"


def container_config(instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], network: Optional[str], created: str) -> Dict[str, Any]:
    """What the engine is asked to create. network: the one the instance has its address on; None where its port is published.

    Pure; options are settled ones.
    """
    facts = {
        "PHOENIX_FLEET": instance.fleet, "PHOENIX_RELEASE": str(instance.release), "PHOENIX_INSTANCE": instance.name, "PHOENIX_REVISION": blueprint.revision,
    }
    labels = marker_of(instance, blueprint, created)
    labels[ADDRESS] = f"{instance.address}:{instance.port}"
    host: Dict[str, Any] = {
        "RestartPolicy": {"Name": "unless-stopped"},
        "SecurityOpt": ["no-new-privileges"],
        "Mounts": [
            {"Type": "bind" if mount["source"].startswith("/") else "volume", "Source": mount["source"], "Target": mount["target"], "ReadOnly": mount["read_only"]}
            for mount in options.get("mounts", [])
        ],
    }
    config: Dict[str, Any] = {
        "Image": blueprint.image.digest, "Labels": labels, "HostConfig": host,
        "Env": [f"{key}={value}" for key, value in {**options.get("environment", {}), **facts}.items()],
    }
    if network:
        host["NetworkMode"] = network
        config["NetworkingConfig"] = {"EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": instance.address}}}}
    else:
        config["ExposedPorts"] = {f"{blueprint.port}/tcp": {}}
        host["PortBindings"] = {f"{blueprint.port}/tcp": [{"HostIp": instance.address, "HostPort": str(instance.port)}]}
        if options.get("network"):
            host["NetworkMode"] = options["network"]
    if options.get("secrets"):
        volume = {"Type": "volume", "Source": secrets_of(instance.fleet, instance.release), "Target": SECRETS, "ReadOnly": True}
        host["Mounts"].append(dict(volume, VolumeOptions={"NoCopy": True}))
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
        health = options["health"]
        spans = {"interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod"}
        config["Healthcheck"] = {there: int(health[key] * 1_000_000_000) for key, there in spans.items() if key in health}
        config["Healthcheck"].update({"Test": health["test"]} if "test" in health else {}, **({"Retries": health["retries"]} if "retries" in health else {}))
    for key, there in (("user", "User"), ("stop_signal", "StopSignal"), ("command", "Cmd")):
        if options.get(key):
            config[there] = options[key]
    return config


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
        if local and (is_id(reference) or not local.get("RepoDigests")):
            return Image(reference, local["Id"])
        if is_id(reference):
            raise RefusedError(f"image {reference}", f"engine {engine.name} does not have it", "Build or load it on every engine")
        repository = repository_of(reference)
        if self.options.get("pull") == "never":
            if not local:
                raise RefusedError(f"image {reference}", f"engine {engine.name} does not have it, and fleet_docker.pull is never", "Build or load it there")
            known = [name for name in local["RepoDigests"] if name.startswith(repository + "@")]
            return Image(reference, known[0] if known else local["Id"])
        try:
            answer = engine.call(f"asking the registry for {reference}", "inspect_distribution", reference, auth_config=engine.credentials(reference))
        except RefusedError as error:
            # Only the registry knows what a tag means now. But a name without a registry may never have been in one.
            if local and registry_of(reference) == "docker.io" and not reference.startswith("docker.io/"):
                return Image(reference, local["Id"])
            remedy = "Check the name, build or pull the image on the engine, or set fleet_docker.registry"
            if local:
                remedy = "Check fleet_docker.registry, name the image by its digest (repo@sha256:...), or set fleet_docker.pull to never"
            raise RefusedError(f"image {reference}", error.cause, remedy) from error
        return Image(reference, f"{repository}@{answer['Descriptor']['digest']}")

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
                f"fleet {fleet}, engine {engine.name}", f"balancer {far[0]} is on another host and cannot reach an address on the engine's network",
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
                f"fleet {fleet}, engine {engine.name}", f"balancer {(far or ['?'])[0]} cannot reach ports published on {address or 'this host'}",
                "Set fleet_docker.publish_address to an address of the engine's host that the balancers reach",
            )
        return "published", address

    def _distinct(self, kinds: Sequence[Tuple[str, str]]) -> None:
        """Engines on one host must not give the same address twice."""
        known: List[Tuple[Engine, Tuple[str, str]]] = []
        for engine, kind in zip(self.engines, kinds):
            for other, others in known:
                if kind[0] == "network" == others[0] and engine.home == other.home and engine.subnet.overlaps(other.subnet):
                    raise InvalidError([f"fleet_docker.hosts: engines {other.name} and {engine.name} are on one host and both use {engine.subnet}; give each a subnet of its own"])
                if kind == others and kind[0] == "published":
                    raise InvalidError([f"fleet_docker.hosts: engines {other.name} and {engine.name} publish on {kind[1]} both; give each a publish_address of its own"])
            known.append((engine, kind))

    def _pool(self, port: int, engine: Engine, kind: Tuple[str, str]) -> Pool:
        containers = engine.containers()
        if kind[0] == "network":
            self._network(engine)
            first, last = statics(engine.subnet, engine.ip_range)
            held = held_addresses(containers, engine.network or NETWORK)
            return Pool(engine.name, "network", str(first), str(last), (port, port), tuple(sorted(set(held))))
        address = kind[1]
        silent = [item for item in containers if item.get("State") not in ("running", "paused") and ADDRESS not in (item.get("Labels") or {})]
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

    def last_words(self, instances: Sequence[Instance]) -> Tuple[LastWords, ...]:
        return tuple(each(self._last_words, instances))

    def _last_words(self, instance: Instance) -> LastWords:
        engine = self._engine(instance)
        found = engine.maybe(f"looking at {instance.name}", "inspect_container", instance.id) if instance.id else None
        if not found:
            return LastWords(instance.name, "vanished", None, 0)
        try:
            text = engine.call(f"reading the log of {instance.name}", "logs", instance.id, tail=LOG_LINES)
        except RefusedError:  # log drivers that keep nothing to read
            text = b""
        # The names of variables are telling, their values may be secret.
        config = dict(found.get("Config") or {}, Env=[str(item).split("=")[0] for item in (found.get("Config") or {}).get("Env") or []])
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
        if any(self._on_network(engine, item) for item in instances):
            self._network(engine)
        if not self._image(engine, blueprint) and (is_id(blueprint.image.digest) or options.get("pull") == "never"):
            why_not = "and fleet_docker.pull is never" if options.get("pull") == "never" else "and it is in no registry"
            raise RefusedError(f"image {blueprint.image.reference}", f"engine {engine.name} does not have {blueprint.image.digest}, {why_not}", "Build or load it there")
        if not options.get("memory"):
            return
        names = {item.name for item in instances}
        limits = [
            int((item.get("Labels") or {}).get(MEMORY) or 0) for item in engine.containers()
            if item.get("State") in ("running", "paused", "restarting") and (item.get("Names") or ["/"])[0].lstrip("/") not in names
        ]
        total = int(engine.call("asking for its memory", "info").get("MemTotal") or 0)
        need = options["memory"] * len(instances)
        if total and need + sum(limits) > total:
            raise RefusedError(
                f"engine {engine.name}", f"{len(instances)} instances of {in_words(options['memory'])} need {in_words(need)}, but of "
                f"{in_words(total)} the running fleets may use {in_words(sum(limits))}",
                "Lower fleet_docker.memory or fleet_size, take strategy rolling, or add an engine to fleet_docker.hosts",
            )

    def create(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        options = settled_of(blueprint)
        self.preflight(instances, blueprint)
        each(lambda part: self._make_ready(*part, blueprint, options), self._by_engine(instances))
        created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        each(lambda item: self._create(item, blueprint, options, created), instances, LIMIT * len(self.engines))
        return self._as_seen(instances)

    def _make_ready(self, engine: Engine, instances: Sequence[Instance], blueprint: Blueprint, options: Mapping[str, Any]) -> None:
        """Image, network and secrets on one engine."""
        if any(self._on_network(engine, item) for item in instances) and not self._network(engine):
            self._create_network(engine)
        image = self._image(engine, blueprint)
        if not is_id(blueprint.image.digest) and (not image or options.get("pull") == "always"):
            self._pull(engine, blueprint.image.digest)
            image = self._image(engine, blueprint)
        if options.get("secrets"):
            seen = engine.instances(instances[0].fleet)
            for release in sorted({item.release for item in instances}):
                # Of a release that runs here nothing is changed, its secrets neither.
                if not any(item.release == release and item.state in ("running", "restarting") for item in seen):
                    self._write_secrets(engine, instances[0].fleet, release, blueprint, options, image or {})

    def _create(self, instance: Instance, blueprint: Blueprint, options: Mapping[str, Any], created: str) -> None:
        engine = self._engine(instance)
        network = (engine.network or NETWORK) if self._on_network(engine, instance) else None
        if not network and not blueprint.port:
            raise InvalidError([f"port: the port of the service inside {instance.name} is needed to publish it"])
        config = container_config(instance, blueprint, options, network, created)
        try:
            made = engine.call(f"creating {instance.name}", "create_container_from_config", config, name=instance.name)["Id"]
        except Refusal as error:
            if error.status != 409:
                raise
            made = self._taken_as_it_is(engine, instance, blueprint)
        engine.call(f"starting {instance.name}", "start", made)

    def _taken_as_it_is(self, engine: Engine, instance: Instance, blueprint: Blueprint) -> str:
        """The id of the container that has the instance's name already, if it is the same instance."""
        found = engine.call(f"looking at {instance.name}", "inspect_container", instance.name)
        labels = found["Config"].get("Labels") or {}
        wanted = marker_of(instance, blueprint, "")
        differs = [key for key in (NAME, RELEASE, SLOT, LEDGER, LABEL + "hash", LABEL + "image") if labels.get(key) != wanted[key]]
        if differs:
            raise RefusedError(
                f"container {instance.name} on engine {engine.name}", f"the name is taken by one whose {differs[0]} is {labels.get(differs[0], 'missing')}, "
                f"not {wanted[differs[0]]}", "Release under another number, or remove that container yourself if nobody needs it",
            )
        return str(found["Id"])

    def start(self, instances: Sequence[Instance], blueprint: Blueprint) -> Tuple[Instance, ...]:
        options = settled_of(blueprint)
        present = self._own(instances)
        lost = {item.id for item in instances} - {item.id for engine, item in present}
        if lost:
            names = ", ".join(item.name for item in instances if item.id in lost)
            raise RefusedError(names, "vanished from the engine", "Release anew, or heal")
        idle = [item for engine, item in present if item.state not in ("running", "restarting")]
        if options.get("secrets"):
            each(lambda part: self._make_ready(*part, blueprint, dict(options, pull="missing")), self._by_engine(idle))
        each(lambda item: self._engine(item).call(f"starting {item.name}", "start", item.id), idle, LIMIT * len(self.engines))
        return self._as_seen(instances)

    def stop(self, instances: Sequence[Instance], timeout: int) -> None:
        awake = [pair for pair in self._own(instances) if pair[1].state in ("running", "restarting")]
        each(lambda pair: pair[0].maybe(f"stopping {pair[1].name}", "stop", pair[1].id, timeout=timeout), awake, LIMIT * len(self.engines))

    def destroy(self, instances: Sequence[Instance], timeout: int) -> None:
        def end(pair: Tuple[Engine, Instance]) -> None:
            engine, item = pair
            if item.state in ("running", "restarting"):
                engine.maybe(f"stopping {item.name}", "stop", item.id, timeout=timeout)
            try:
                engine.maybe(f"removing {item.name}", "remove_container", item.id, v=True, force=True)
            except Refusal as error:
                if error.status != 409 or "in progress" not in error.cause:
                    raise

        each(end, self._own(instances), LIMIT * len(self.engines))
        each(lambda part: self._sweep(*part), self._by_engine(instances))

    def _sweep(self, engine: Engine, gone: Sequence[Instance]) -> None:
        """Remove the secrets of releases that have no instance on this engine any more."""
        fleet = gone[0].fleet
        answer = engine.call("listing volumes", "volumes", filters={"label": [f"{NAME}={fleet}"]})
        ledgers = {item.marker.get(LEDGER, "") for item in gone}
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
                instance.name, f"it lives on engine {instance.host}, which is not in fleet_docker.hosts", "Put the engine back until its instances are gone",
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
                if not item.id:
                    raise RefusedError(item.name, "it was planned but never observed, so its id is not known", "Observe the fleet first")
                now = seen.get(item.id)
                if now and (now.release, now.marker.get(LEDGER)) != (item.release, item.marker.get(LEDGER)):
                    raise RefusedError(
                        f"container {now.name} on engine {engine.name}", f"its marker says release {now.release} of ledger {now.marker.get(LEDGER) or '(none)'}, "
                        f"not release {item.release} of ledger {item.marker.get(LEDGER) or '(none)'}", "It belongs to somebody else and was not touched",
                    )
                if now:
                    found.append((engine, now))
        return found

    def _as_seen(self, instances: Sequence[Instance]) -> Tuple[Instance, ...]:
        seen = {(item.host, item.name): item for fleet in sorted({item.fleet for item in instances}) for item in self.observe(fleet)}
        lost = [item.name for item in instances if (item.host, item.name) not in seen]
        if lost:
            raise RefusedError(", ".join(lost), "vanished right after the start", "See who removes containers on this engine, then run again")
        return tuple(seen[(item.host, item.name)] for item in instances)

    def _image(self, engine: Engine, blueprint: Blueprint) -> Optional[Dict[str, Any]]:
        found = engine.maybe(f"asking for image {blueprint.image.digest}", "inspect_image", blueprint.image.digest)
        return dict(found) if found else None

    def _pull(self, engine: Engine, reference: str) -> None:
        doing = f"pulling {reference}"
        for line in engine.call(doing, "pull", reference, stream=True, decode=True, auth_config=engine.credentials(reference)):
            if "error" in line:
                raise RefusedError(f"engine {engine.name}, {doing}", str(line["error"]), remedy_for(str(line["error"])))

    def _network(self, engine: Engine) -> Optional[Dict[str, Any]]:
        """The fleets' network on this engine, None where there is none yet. Raises RefusedError where it cannot hold static addresses."""
        name = engine.network or NETWORK
        found = engine.maybe(f"looking at network {name}", "inspect_network", name)
        if not found:
            return None
        configs = [item for item in (found.get("IPAM") or {}).get("Config") or [] if ":" not in item.get("Subnet", "")]
        subnet, ip_range = (configs[0].get("Subnet", ""), configs[0].get("IPRange", "")) if configs else ("", "")
        if (subnet, ip_range) != (str(engine.subnet), str(engine.ip_range)):
            raise RefusedError(
                f"network {name} on engine {engine.name}", f"it has subnet {subnet or 'none'} and ip_range {ip_range or 'none'}, not {engine.subnet} and {engine.ip_range}",
                "Set fleet_docker.network to another name, or fleet_docker.subnet and ip_range to what it has" if ip_range else
                "Without an ip_range other containers get the fleets' addresses: set fleet_docker.network to another name",
            )
        return dict(found)

    @staticmethod
    def _create_network(engine: Engine) -> None:
        name = engine.network or NETWORK
        pool = {"Subnet": str(engine.subnet), "IPRange": str(engine.ip_range), "Gateway": str(next(engine.subnet.hosts()))}
        ipam = {"Driver": "default", "Config": [pool]}
        try:
            engine.call(f"creating network {name}", "create_network", name, driver="bridge", ipam=ipam, check_duplicate=True, labels={LABEL + "network": name})
        except Refusal as error:
            if error.status != 409:  # somebody else was quicker
                raise

    def _write_secrets(
        self, engine: Engine, fleet: str, release: int, blueprint: Blueprint, options: Mapping[str, Any], image: Mapping[str, Any],
    ) -> None:
        """Write the current secrets to the release's volume, through a container that never runs: no command line, no environment."""
        name = secrets_of(fleet, release)
        labels = {NAME: fleet, RELEASE: str(release), LEDGER: blueprint.ledger, LABEL + "volume": name}
        made = engine.call(f"creating volume {name}", "create_volume", name, labels=labels)
        if any((made.get("Labels") or {}).get(key) != value for key, value in labels.items()):
            raise RefusedError(f"volume {name} on engine {engine.name}", "it exists and is not of this release", "Remove it yourself if nobody needs it, or release under another number")
        self._remove_helper(engine, name)
        config = {
            "Image": blueprint.image.digest, "Cmd": ["-"], "Labels": {LABEL + "volume": name},
            "HostConfig": {"NetworkMode": "none", "Mounts": [{"Type": "volume", "Source": name, "Target": SECRETS, "VolumeOptions": {"NoCopy": True}}]},
        }
        helper = engine.call(f"writing secrets of {name}", "create_container_from_config", config, name=f"{name}-secrets")["Id"]
        try:
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
            raise RefusedError(f"user {who}", "the image has no such user in /etc/passwd", "Name a user that the image has, or a number, in fleet_docker.user")
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


