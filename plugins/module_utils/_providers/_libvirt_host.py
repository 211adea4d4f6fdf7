# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""One host that runs libvirt: how to connect to it, its volumes and networks, and its errors in our words.

Volumes are made, filled and read through libvirt's own storage API, never through a path, so that a host behind ssh is like this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, NoReturn, Optional, Set, Tuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

from .._concurrency import each
from .._errors import RefusedError, UnreachableError
from .._model import Instance
from ._hosts import is_here
from ._libvirt_domain import Network, Volume, network_in, reservation_xml, seen_in, volume_in, volume_xml, whose_marker

try:
    import libvirt as sdk
except ImportError:
    sdk = None

PATIENCE = 30  # seconds for a connection
BEAT = (5, 6)  # seconds between two signs of life of a far host, and how many may be missing
CHUNK = 256 * 1024  # bytes that one message of libvirt's stream carries
REFRESH = 10  # seconds for a pool that another job keeps busy
NOTE, NOTE_SIZE = ".phoenix-checksum", 4096  # the volume that keeps another one's checksum, and what it is smaller than, in bytes
DIRECTORIES = ("dir", "fs", "netfs")


def required_sdk() -> None:
    if sdk is None:
        raise RefusedError("the libvirt provider", f"{sys.executable} has no libvirt-python", f"Run: {how_to_install(sys.executable)}")


def how_to_install(python: str) -> str:
    """The command that gives this interpreter libvirt-python: Debian's own for Debian's own Python, else PyPI's, which is compiled."""
    if python.startswith("/usr/bin/"):
        return "apt-get install -y python3-libvirt python3-pycdlib"
    return f"apt-get install -y gcc pkg-config libvirt-dev python3-dev && {python} -m pip install libvirt-python pycdlib"


def home_of(uri: str) -> str:
    """The host that a connection leads to, `local` for this machine."""
    host = urlsplit(uri).hostname
    return "local" if not host or is_here(host) else host


def transport_of(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[2]


class Missing(RefusedError):
    """The host does not have what was asked for."""


class Host:
    """One connection; its calls may come from several threads. Raises UnreachableError where there is no answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.name = home_of(uri)
        sdk.registerErrorHandler(lambda *_: None, None)  # libvirt would write every error to stderr as well
        transport = transport_of(uri)
        if transport in ("ssh", "tls", "tcp", "libssh", "libssh2"):
            _beat()
        # Nobody can be asked for a password or a host's key.
        target = uri + ("&" if "?" in uri else "?") + "no_tty=1" if transport == "ssh" and "no_tty=" not in uri else uri
        self.connection: Any = self._opened(target)
        if transport in ("ssh", "tls", "tcp", "libssh", "libssh2"):
            self.call("watching the connection", self.connection.setKeepAlive, *BEAT)

    def _opened(self, target: str) -> Any:
        """libvirt has no deadline of its own for a host that takes the connection and says nothing."""
        outcome: List[Any] = []

        def attempt() -> None:
            try:
                outcome.append(sdk.open(target))
            except sdk.libvirtError as error:
                outcome.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if not outcome:
            self._silent("connecting", f"no answer within {PATIENCE} s")
        if isinstance(outcome[0], sdk.libvirtError):
            self._silent("connecting", said_by_libvirt(outcome[0]))
        return outcome[0]

    # --- errors -------------------------------------------------------------------------------------------------------

    def call(self, doing: str, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), with our errors for what it raises. `doing` says it in words."""
        try:
            return function(*args)
        except sdk.libvirtError as error:
            self._fail(doing, error)

    def maybe(self, doing: str, function: Callable[..., Any], *args: Any) -> Any:
        """Like `call`, but None where the host does not have the object."""
        try:
            return self.call(doing, function, *args)
        except Missing:
            return None

    def _fail(self, doing: str, error: Any) -> NoReturn:
        said = said_by_libvirt(error)
        code, domain = error.get_error_code(), error.get_error_domain()
        lost = (sdk.VIR_ERR_NO_CONNECT, sdk.VIR_ERR_INVALID_CONN, sdk.VIR_ERR_RPC, sdk.VIR_ERR_AUTH_FAILED)
        if code in lost or domain == sdk.VIR_FROM_RPC or not self._lives():
            self._silent(doing, said)
        missing = (sdk.VIR_ERR_NO_DOMAIN, sdk.VIR_ERR_NO_STORAGE_VOL, sdk.VIR_ERR_NO_STORAGE_POOL, sdk.VIR_ERR_NO_NETWORK)
        kind = Missing if code in missing else RefusedError
        raise kind(f"host {self.name}, {doing}", said, remedy_for(said)) from error

    def _lives(self) -> bool:
        try:
            return bool(self.connection.isAlive())
        except sdk.libvirtError:
            return False

    def _silent(self, doing: str, said: str) -> NoReturn:
        raise UnreachableError(f"host {self.name}, {doing} ({self.uri})", said, how_to_reach(self.uri, said))

    # --- domains ------------------------------------------------------------------------------------------------------

    def instances(self, fleet: str = "") -> Tuple[Instance, ...]:
        """The domains that bear our marker, running or not; with `fleet` only those of its name."""
        return tuple(seen for seen, whose in self._bearers() if not whose and (not fleet or seen.fleet == fleet))

    def copies(self) -> Tuple[Tuple[Instance, str], ...]:
        """The domains that bear another one's marker of ours, each with whose it is, in words."""
        return tuple(pair for pair in self._bearers() if pair[1])

    def _bearers(self) -> List[Tuple[Instance, str]]:
        domains = self.call("listing domains", self.connection.listAllDomains)
        found = [pair for pair in each(self._look, domains) if pair]
        return sorted(found, key=lambda pair: (pair[0].fleet, pair[0].release, pair[0].slot))

    def look(self, domain: Any) -> Optional[Instance]:
        """The instance that a domain is, None where it bears no marker of ours that is its own, or has gone."""
        pair = self._look(domain) if domain is not None else None
        return pair[0] if pair and not pair[1] else None

    def _look(self, domain: Any) -> Optional[Tuple[Instance, str]]:
        xml = self.maybe("looking at a domain", domain.XMLDesc, sdk.VIR_DOMAIN_XML_INACTIVE)
        state = self.maybe("looking at a domain", domain.state) if xml else None
        seen = seen_in(xml, state[0], self.name) if xml and state else None
        return (seen, whose_marker(xml, seen)) if seen else None

    def definitions(self, but: str) -> str:
        """How all domains are defined but the one of that UUID, as XML."""
        domains = self.call("listing domains", self.connection.listAllDomains)
        flags = sdk.VIR_DOMAIN_XML_INACTIVE
        return "".join(self.maybe("looking at a domain", item.XMLDesc, flags) or "" for item in domains if item.UUIDString() != but)

    def domain(self, uuid: str) -> Any:
        return self.maybe("looking for a domain", self.connection.lookupByUUIDString, uuid) if uuid else None

    def named(self, name: str) -> Any:
        return self.maybe(f"looking for {name}", self.connection.lookupByName, name)

    def running(self) -> Set[str]:
        """The UUIDs of all domains that run."""
        active = self.call("listing domains", self.connection.listAllDomains, sdk.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return {domain.UUIDString() for domain in active}

    # --- volumes ------------------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Any:
        """The storage pool of that name. Raises RefusedError where it does not run."""
        pool = self.call(f"looking for storage pool {name}", self.connection.storagePoolLookupByName, name)
        if not self.call(f"looking at storage pool {name}", pool.isActive):
            remedy = f"Run there: virsh pool-start {name}; virsh pool-autostart {name}"
            raise RefusedError(f"storage pool {name} on host {self.name}", "it is not active", remedy)
        return pool

    def folder(self, pool: Any) -> str:
        """The directory of a pool. Raises RefusedError where it is of another kind, in which no volume can have a base."""
        root = ElementTree.fromstring(self.call("looking at a storage pool", pool.XMLDesc))
        if root.get("type") not in DIRECTORIES:
            raise RefusedError(
                f"storage pool {root.findtext('name')} on host {self.name}", f"it is of type {root.get('type')}, which has no overlays",
                f"Name a pool of type {', '.join(DIRECTORIES[:-1])} or {DIRECTORIES[-1]} in fleet_libvirt.pool",
            )
        return str(root.findtext("target/path")).rstrip("/")

    def volume(self, pool: Any, name: str) -> Tuple[Any, Optional[Volume]]:
        """The volume of that name and how it is now, (None, None) where there is none. A pool that has not seen it looks again."""
        for look in ("as it is known", "anew"):
            found = self.maybe(f"looking for volume {name}", pool.storageVolLookupByName, name)
            xml = self.maybe(f"looking at volume {name}", found.XMLDesc) if found else None
            if xml:
                return found, volume_in(xml)
            if look == "as it is known":
                self.refresh(pool)
        return None, None

    def refresh(self, pool: Any) -> None:
        """Let a pool see files that others made. While a volume is being filled it cannot, which passes."""
        deadline = time.monotonic() + REFRESH
        while True:
            try:
                return self.call(f"refreshing storage pool {pool.name()}", pool.refresh)  # type: ignore[no-any-return]
            except RefusedError as error:
                if "asynchronous jobs" not in error.cause or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def volumes(self, pool: Any, prefix: str) -> List[Any]:
        """The volumes whose names begin so."""
        found = self.call("listing volumes", pool.listAllVolumes)
        return [item for item in found if item.name().startswith(prefix)]

    def make_volume(self, pool: Any, name: str, form: str, data: bytes = b"", base: Optional[Volume] = None) -> None:
        """Make a volume and fill it; one that a killed run has left is made again, unless it is an overlay, which is whole at once."""
        old = self.maybe(f"looking for volume {name}", pool.storageVolLookupByName, name)
        if old and base:
            return
        if old:
            self.maybe(f"removing volume {name}", old.delete)
        made = self.call(f"creating volume {name}", pool.createXML, volume_xml(name, form, len(data), base), 0)
        if data:
            self._upload(made, name, data)

    def _upload(self, volume: Any, name: str, data: bytes) -> None:
        stream = self.connection.newStream(0)
        try:
            volume.upload(stream, 0, len(data), 0)
            rest = memoryview(data)
            while rest:
                rest = rest[stream.send(bytes(rest[:CHUNK])):]
            stream.finish()
        except sdk.libvirtError as error:
            self._fail(f"filling volume {name}", error)

    def read(self, volume: Any, take: Callable[[bytes], None], offset: int = 0) -> None:
        """Hand the content of a volume, from offset on, to `take`, piece by piece."""
        stream = self.connection.newStream(0)
        try:
            volume.download(stream, offset, 0, 0)
            while True:
                piece = stream.recv(CHUNK)
                if not piece:
                    break
                take(piece)
            stream.finish()
        except sdk.libvirtError as error:
            self._fail(f"reading volume {volume.name()}", error)

    def checksum(self, pool: Any, handle: Any, volume: Volume) -> str:
        """The SHA-256 of a volume's content, in hex, read once for as long as the volume is not written.

        That is told by its path, size and time of modification, as by rsync or make, in nanoseconds. The checksum is kept in a small volume
        beside it, where it serves whoever comes next: an execution environment has no home that lasts. Raises RefusedError where somebody
        writes the volume while it is read.
        """
        known = self._noted(pool, volume)
        if known:
            return known
        digest = hashlib.sha256()
        self.read(handle, digest.update)
        after = volume_in(self.call(f"looking at volume {volume.name}", handle.XMLDesc))
        if after.stamp != volume.stamp:
            raise RefusedError(f"volume {volume.name} on host {self.name}", "it is being written", "Run again when it is whole")
        note = json.dumps({"sha256": digest.hexdigest(), "of": volume.stamp}).encode()
        try:
            self.make_volume(pool, volume.name + NOTE, "raw", note)
        except RefusedError:  # a pool that is only read, or another run that is doing it
            pass
        return digest.hexdigest()

    def _noted(self, pool: Any, volume: Volume) -> str:
        """The checksum that stands beside a volume, empty where there is none of just this content."""
        found = self.maybe("looking for a checksum", pool.storageVolLookupByName, volume.name + NOTE)
        text = bytearray()
        try:
            if found and volume_in(self.call("looking at a checksum", found.XMLDesc)).size < NOTE_SIZE:
                self.read(found, text.extend)
            note = json.loads(text)
            return str(note["sha256"]) if note["of"] == volume.stamp and re.match(r"^[0-9a-f]{64}$", note["sha256"]) else ""
        except (RefusedError, ValueError, KeyError, TypeError):  # none, or one that is just being written, or somebody else's file
            return ""

    # --- networks -----------------------------------------------------------------------------------------------------

    def network(self, name: str) -> Tuple[Any, Network]:
        """The network of that name. Raises RefusedError where it does not run."""
        found = self.call(f"looking for network {name}", self.connection.networkLookupByName, name)
        if not self.call(f"looking at network {name}", found.isActive):
            remedy = f"Run there: virsh net-start {name}; virsh net-autostart {name}"
            raise RefusedError(f"network {name} on host {self.name}", "it is not active", remedy)
        return found, network_in(self.call(f"looking at network {name}", found.XMLDesc))

    def leases(self, network: Any) -> List[Tuple[str, str]]:
        """Who has which address of the network now, as (MAC, address)."""
        found = self.call(f"asking network {network.name()} for its leases", network.DHCPLeases)
        return [(str(item.get("mac") or "").lower(), str(item["ipaddr"])) for item in found if item.get("type") == 0]

    def reserve(self, network: Any, name: str, address: str, gone: bool = False) -> None:
        """Reserve an address of the network for an instance, or give it back."""
        command = sdk.VIR_NETWORK_UPDATE_COMMAND_DELETE if gone else sdk.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST
        flags = sdk.VIR_NETWORK_UPDATE_AFFECT_LIVE
        if self.call("looking at a network", network.isPersistent):
            flags |= sdk.VIR_NETWORK_UPDATE_AFFECT_CONFIG
        doing = f"{'giving back' if gone else 'reserving'} {address} in network {network.name()} for {name}"
        self.call(doing, network.update, command, sdk.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, reservation_xml(name, address), flags)

    def fleeting(self, pools: Iterable[str], network: str) -> List[Tuple[str, str]]:
        """What of these is not there again after the host's next start: what is wrong, and the commands that put it right."""
        things = [("pool", f"storage pool {name}", name, self.pool(name)) for name in pools]
        found = []
        for kind, what, name, item in [*things, ("net", f"network {network}", network, self.network(network)[0])]:
            start = f"virsh {kind}-autostart {name}"
            if not self.call(f"looking at {what}", item.isPersistent):
                define = f"virsh {kind}-dumpxml {name} > {name}.xml && virsh {kind}-define {name}.xml"
                found.append((f"{what} is gone when the host restarts", f"{define} && {start}"))
            elif not self.call(f"looking at {what}", item.autostart):
                found.append((f"{what} does not start with the host", start))
        return found

    # --- the host itself ----------------------------------------------------------------------------------------------

    def arch(self) -> str:
        return str(self._capabilities().findtext("host/cpu/arch"))

    def kinds(self) -> Set[str]:
        """The kinds of domain that the host can run: kvm, qemu."""
        arch = self.arch()
        return {str(item.get("type")) for item in self._capabilities().findall(f"guest/arch[@name='{arch}']/domain")}

    def has_uefi(self, kind: str) -> bool:
        arch = self.arch()
        machine = "q35" if arch == "x86_64" else None
        xml = self.call("asking for its firmware", self.connection.getDomainCapabilities, None, arch, machine, kind, 0)
        return "efi" in {item.text for item in ElementTree.fromstring(xml).findall("os/enum[@name='firmware']/value")}

    def _capabilities(self) -> ElementTree.Element:
        if not hasattr(self, "_known"):
            self._known = ElementTree.fromstring(self.call("asking for its capabilities", self.connection.getCapabilities))
        return self._known

    def memory(self) -> int:
        """The host's memory in bytes."""
        return int(self.call("asking for its memory", self.connection.getInfo)[1]) * 1024 ** 2

    def promised(self) -> Dict[str, int]:
        """By name of every domain that runs, ours or not: the memory that it may take, in bytes."""
        found = self.call(
            "asking for the memory of domains", self.connection.getAllDomainStats, sdk.VIR_DOMAIN_STATS_BALLOON,
            sdk.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE,
        )
        return {domain.name(): int(stats.get("balloon.maximum") or 0) * 1024 for domain, stats in found}


# --- signs of life ----------------------------------------------------------------------------------------------------

_BEATING: Set[int] = set()


def _beat() -> None:
    """Let libvirt notice that a far host has gone: it asks for signs of life only while somebody runs its event loop."""
    if os.getpid() in _BEATING:
        return
    _BEATING.add(os.getpid())
    sdk.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            sdk.virEventRunDefaultImpl()

    threading.Thread(target=run, daemon=True).start()


# --- words ------------------------------------------------------------------------------------------------------------

def said_by_libvirt(error: Any) -> str:
    return " ".join(str(error.get_error_message() or error).split()).rstrip(".")


_REMEDIES = (
    (r"storage pool not found", "Name a pool that it has in fleet_libvirt.pool (virsh pool-list --all), or define one there"),
    (r"network not found", "Name a network that it has in fleet_libvirt.network (virsh net-list --all), or define one there"),
    (r"no space left|not enough free space", "Free space in the storage pool, or name another one in fleet_libvirt.pool"),
    (r"cannot allocate memory|cannot set up guest memory", "Lower fleet_libvirt.memory or fleet_size, or free memory on the host"),
    (r"permission denied", "Let the user that QEMU runs as read the storage pool's folder, and this user manage libvirt (group libvirt)"),
    (r"/dev/kvm|kvm.*(not|invalid|unsupported)|not.*kvm", "Set fleet_libvirt.domain_type to qemu, or enable virtualisation on the host"),
    (r"firmware|ovmf|uefi", "Install the host's UEFI firmware (apt-get install ovmf), or set fleet_libvirt.firmware to bios"),
    (r"existing dhcp host entry", "Another machine has this address or name: see virsh net-dumpxml, or set fleet_libvirt.addresses"),
    (r"already exists with uuid|already exists", "Release under another number, or remove what has this name if nobody needs it"),
    (r"network.*not active|network is not active", "Start the network there: virsh net-start"),
    (r"apparmor|selinux|security label", "See the host's log of its security driver; the storage pool has to be one that libvirt may use"),
)


def remedy_for(said: str) -> str:
    """What to do about libvirt's words, empty where they say it themselves."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, said, re.IGNORECASE)), "")


def how_to_reach(uri: str, said: str) -> str:
    """What to do where there is no connection."""
    if transport_of(uri) == "ssh":
        host = urlsplit(uri).netloc
        return f"Try: ssh {host} virsh -c qemu:///system list (keys and known_hosts must be in place, since nobody can be asked)"
    if re.search(r"permission denied|polkit|authentication", said, re.IGNORECASE):
        return "Add this user to the group libvirt and log in again, or name another connection in fleet_libvirt.uri"
    if home_of(uri) == "local":
        return "Start libvirt (systemctl start libvirtd), or name another connection in fleet_libvirt.uri"
    return f"Check that libvirt listens there, and fleet_libvirt.uri: virsh -c '{uri}' list"
