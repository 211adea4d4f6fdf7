# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""One Docker engine: where it is, how to connect to it, and its errors in our words."""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
from typing import Any, Dict, Iterator, List, Mapping, NoReturn, Optional, Tuple

from .._concurrency import LIMIT
from .._errors import InvalidError, RefusedError, UnreachableError
from .._model import Copy, Instance
from ._docker_container import is_inherited, is_renamed, registry_of, seen_in
from ._docker_options import subnet_of
from ._docker_ssh import Adapter
from ._hosts import is_here
from ._marker import NAME, name_in

try:
    import docker as sdk
    from docker.context import ContextAPI
    from docker.context.config import get_current_context_name
    from docker.errors import APIError, DockerException, TLSParameterError
    from docker.tls import TLSConfig
    from requests.exceptions import ReadTimeout, RequestException
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    class Client(sdk.APIClient):
        """The SDK's client, for which the authority that it was given counts: by itself REQUESTS_CA_BUNDLE outranks that (measured).

        Over ssh it has a deadline (see _docker_ssh.py).
        """

        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            return super().merge_environment_settings(url, proxies, stream, self.verify if verify is None else verify, cert)

        def _retrieve_server_version(self) -> str:
            """By the header of /_ping: for /version, as the SDK asks, the engine starts two programs (measured: 7 ms)."""
            answer = self.get(f"{self.base_url}/_ping", timeout=self.timeout)
            return str(answer.headers.get("Api-Version") or super()._retrieve_server_version())  # type: ignore[misc]

        def _set_request_timeout(self, kwargs: Any) -> Any:
            """The SDK waits for ever for the next word of a pull."""
            return {**kwargs, "timeout": kwargs.get("timeout", self.timeout) or SILENCE}

        def mount(self, prefix: Any, adapter: Any) -> None:
            super().mount(prefix, Adapter(adapter) if prefix == "http+docker://ssh" else adapter)
except ImportError:
    sdk = None  # type: ignore[assignment]

TIMEOUT = 60
SILENCE = 300
"""Seconds in which an engine has to tell something of a pull. It tells its progress all the while, but not while a registry is silent."""


def required_sdk() -> None:
    if sdk is None:
        remedy = f"Run: {sys.executable} -m pip install 'docker>=7.1'"
        raise RefusedError("the docker provider", f"{sys.executable} has no docker SDK", remedy)


def sites(options: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The engines of settled options, each with the settings that hold for it. Raises InvalidError where two have one name."""
    shared = {key: options[key] for key in ("tls", "network", "subnet", "ip_range", "publish_address") if key in options}
    found = [dict(shared, **host) for host in options.get("hosts") or [dict(found_by_client())]]
    for site in found:
        site.setdefault("name", home_of(site["url"]))
    names = [site["name"] for site in found]
    for name in names:
        if names.count(name) > 1:
            words = f"{names.count(name)} engines are named '{name}'; give each a name of its own: {{url, name}}"
            raise InvalidError([f"fleet_docker.hosts: {words}"])
    return found


def found_by_client() -> Dict[str, Any]:
    """The engine that the docker client finds: DOCKER_HOST with its TLS settings, else DOCKER_CONTEXT or the current context."""
    url = os.environ.get("DOCKER_HOST")
    if url:
        folder = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
        if not (os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_CERT_PATH")):
            return {"url": url}
        files = {"ca_path": "ca.pem", "client_cert": "cert.pem", "client_key": "key.pem"}
        tls: Dict[str, Any] = {key: os.path.join(folder, file) for key, file in files.items()}
        return {"url": url, "tls": dict(tls, validate_certs=bool(os.environ.get("DOCKER_TLS_VERIFY")))}
    remedy = "Set fleet_docker.hosts, or see: docker context ls"
    name = os.environ.get("DOCKER_CONTEXT")
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:  # whatever a broken context file makes the SDK raise
        raise RefusedError("the docker client's context", str(error), remedy) from error
    if context is None:
        raise RefusedError(f"the docker client's context {name or get_current_context_name()}", "there is none of that name", remedy)
    if not context.Host or context.Host.startswith("npipe"):
        return {"url": "unix:///var/run/docker.sock"}
    material = getattr(context, "TLSConfig", None)
    if not material:
        return {"url": context.Host.replace("http+unix://", "unix://")}
    cert, key = material.cert or ("", "")
    tls = {"ca_path": material.ca_cert, "client_cert": cert, "client_key": key, "validate_certs": bool(material.verify)}
    return {"url": context.Host, "tls": tls}


def home_of(url: str) -> str:
    """The host that an engine's URL leads to, `local` for this machine."""
    if url.startswith("unix://"):
        return "local"
    host = re.sub(r"^[a-z+]+://(?:[^@/]*@)?", "", url).split("/")[0]
    host = host[1:host.index("]")] if host.startswith("[") else host.rsplit(":", 1)[0] if host.count(":") == 1 else host
    return "local" if is_here(host) else host


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
        self._labels: Dict[str, Optional[Mapping[str, str]]] = {}
        tls = self._tls(site["tls"]) if site.get("tls") and self.url.startswith("tcp://") else False
        try:
            self.client: Any = Client(
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

    def stopped(self, fleet: str) -> List[Dict[str, Any]]:
        """The fleet's containers that do not run, with the size of what each has written."""
        filters = {"label": [f"{NAME}={fleet}"], "status": ["created", "exited", "dead"]}
        return list(self.call("listing containers", "containers", all=True, size=True, filters=filters))

    def instances(self, fleet: str) -> Tuple[Instance, ...]:
        return tuple(seen for seen, whose in self._bearers(fleet) if not whose)

    def copies(self, fleet: str) -> Tuple[Copy, ...]:
        return tuple(
            Copy(f"container {seen.name} on engine {self.name}", self.name, name_in(seen.marker), whose)
            for seen, whose in self._bearers(fleet) if whose
        )

    def _bearers(self, fleet: str) -> List[Tuple[Instance, str]]:
        """The containers with a whole marker of the fleet, and by what it is known that a marker is another's, empty where it is not."""
        found = []
        for item in self.containers(fleet):
            seen = seen_in(item, self.name)
            if seen:
                whose = "it has another name" if is_renamed(item, seen) else ""
                # One of ours is made from the very image that its marker names, and so not from a container's.
                if not whose and item.get("Image") != seen.image and is_inherited(seen, self._labels_of(str(item.get("ImageID")))):
                    whose = f"it is made from image {item.get('Image')}, which holds that marker"
                found.append((seen, whose))
        return found

    def _labels_of(self, image: str) -> Optional[Mapping[str, str]]:
        """The labels of an image, by its id, which never become others."""
        if image not in self._labels:
            found = self.maybe(f"asking for image {image}", "inspect_image", image) or {}
            self._labels[image] = (found.get("Config") or {}).get("Labels")
        return self._labels[image]

    def credentials(self, reference: str) -> Optional[Dict[str, str]]:
        """What `registry` says for this image's registry; None leaves it to the docker client's own configuration."""
        if not self.registry or not self.registry.get("username"):
            return None
        server = str(self.registry.get("server") or "docker.io")
        if registry_of(reference) != server:
            return None
        return {"username": self.registry["username"], "password": self.registry["password"], "serveraddress": server}

    def ask_registry(self, reference: str, local: bool) -> str:
        """The digest that the registry has for a name now. local: this engine has an image of that name, be it an old one."""
        doing = f"asking the registry for {reference}"
        try:
            answer = self.call(doing, "inspect_distribution", reference, auth_config=self.credentials(reference))
        except Refusal as error:
            raise self._without(reference, local, error) from None
        return str(answer["Descriptor"]["digest"])

    def pull(self, reference: str) -> None:
        doing = f"pulling {reference}"
        try:
            for line in self.client.pull(reference, stream=True, decode=True, auth_config=self.credentials(reference)):
                if "error" in line:
                    raise Refusal(f"engine {self.name}, {doing}", str(line["error"]), remedy_for(str(line["error"])))
        except (ReadTimeout, ReadTimeoutError) as error:
            remedy = f"See there whether registry {registry_of(reference)} answers: docker pull {reference}"
            raise UnreachableError(f"engine {self.name}, {doing}", f"it told nothing more for {SILENCE} s", remedy) from error
        except (DockerException, RequestException, HTTPError, OSError) as error:
            try:
                self._fail(doing, error)
            except Refusal as refusal:
                raise self._without(reference, False, refusal) from error

    def _without(self, reference: str, local: bool, error: Refusal) -> Refusal:
        """Why there is no answer from an image's registry, and what to do; its own words stay."""
        server, account = registry_of(reference), self.credentials(reference)
        own = ["set fleet_docker.pull to never if it was built or loaded there"] if local else []
        remedies = ["check the name" if local else "check the name, build or load the image on the engine"]
        if error.status in (401, 403) or re.search(r"unauthorized|denied|no basic auth|authentication required", error.cause, re.I):
            cause = f"registry {server} wants credentials for it"
            remedies += [f"set fleet_docker.registry to {{server: {server}, username: ..., password: ...}}", "log in with docker login"]
            remedies += own
            if account:
                cause = f"registry {server} refuses user {account['username']} with the password given"
                remedies = ["check username and password in fleet_docker.registry"]
        elif error.status == 404:
            cause = f"registry {server} does not have it"
            remedies += ["push it there", *own]
        else:
            cause = f"registry {server} could not be asked"
            remedies += ["bring the registry back", "set fleet_docker.pull to never"] if local else ["bring the registry back"]
        absent = "" if local else f"engine {self.name} does not have it, and "
        remedy = ", or ".join([", ".join(remedies[:-1]), remedies[-1]] if remedies[:-1] else remedies)
        return Refusal(f"image {reference}", f"{absent}{cause} ({error.cause.rstrip('.')})", remedy[0].upper() + remedy[1:], error.status)


class Refusal(RefusedError):
    """An engine's no, with the status it answered."""

    def __init__(self, what: str, cause: str = "", remedy: str = "", status: int = 0) -> None:
        super().__init__(what, cause, remedy)
        self.status = status


_REMEDIES = (
    (r"port is already allocated|bind.*address already in use", "Something else has this port: change fleet_docker.publish_ports"),
    (r"address already in use", "Another container took this address: run again, a free one is chosen then"),
    (r"pool overlaps", "Set fleet_docker.subnet to a network that is free on this engine"),
    (
        r"no such image|pull access denied|manifest.*unknown|not found: manifest",
        "Check the image's name, build or pull it on this engine, or set fleet_docker.registry",
    ),
    (r"unauthorized|authentication required|denied", "Check fleet_docker.registry, or log in with docker login"),
    (
        r"no space left",
        "Free space there with docker image prune or docker builder prune, which keep every container; its other prunes delete what is "
        "stopped, so every standby. Let fleet_keep_images remove the images of former releases",
    ),
    (r"unable to find user|unknown user", "Name a user that the image has, or a number, in fleet_docker.user"),
    (r"executable file not found|no such file or directory.*exec|exec.*no such file", "Check the image's command, or fleet_docker.command"),
    (r"logging driver|logging plugin|log driver|log opt", "Check fleet_docker.log_driver and fleet_docker.log_options"),
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
            remedy = "Check fleet_docker.tls: the CA of the engine's certificate, and a client certificate that the engine accepts"
            said = re.search(r"\[SSL[^\]]*\][^()']*", str(item))
            return f"TLS failed: {said.group().strip() if said else item}", remedy
    for item in inside:
        if isinstance(item, PermissionError):
            remedy = "Add this user to the group that owns the socket and log in again, or name another engine in fleet_docker.hosts"
            return f"permission denied on {path}", remedy
        if isinstance(item, FileNotFoundError):
            remedy = "Start the Docker engine (systemctl start docker), or name the engine in fleet_docker.hosts"
            return (f"there is no socket {path}" if path else str(item)), remedy
        if isinstance(item, ConnectionRefusedError):
            remedy = "Start the Docker engine there (systemctl start docker), and check the address in fleet_docker.hosts"
            return "connection refused", remedy
        if isinstance(item, socket.gaierror):
            return "its host name is not known here", "Check the address in fleet_docker.hosts"
    text = str(error)
    late = f"no answer within {TIMEOUT} s" if "imed out" in text else ""
    if url.startswith("ssh://"):
        cause = late or ("ssh ended without an answer" if "RemoteDisconnected" in text else text)
        return cause, f"Try: ssh {url} docker version (keys and known_hosts must be in place, since nobody can be asked)"
    if late:
        return late, "Check that the engine's host is up and not overloaded (docker info there)"
    if "HTTP request to an HTTPS server" in text or "malformed HTTP" in text:
        return "the engine wants TLS", "Set fleet_docker.tls"
    return text, "Check that the engine runs there: docker info"


def _within(error: object, depth: int = 0) -> Iterator[BaseException]:
    if isinstance(error, BaseException) and depth < 8:
        yield error
        for inner in (*error.args, error.__cause__, error.__context__, getattr(error, "reason", None)):
            if inner is not error:
                yield from _within(inner, depth + 1)
