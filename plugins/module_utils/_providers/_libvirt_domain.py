# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""An instance as a domain of libvirt: what libvirt is asked to define, and how to read what it shows. Pure; XML in, XML out."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple
from xml.etree import ElementTree

from .._model import Instance
from ._marker import ADDRESS, LABEL, NAME, RELEASE, SLOT, UUID, name_in
from ._options import Ends, gaps

NAMESPACE = "urn:phoenix.fleet:instance:1"
# Beside the marker: where to find what was made for the instance, whatever the definition says by then.
POOL, NETWORK = LABEL + "pool", LABEL + "network"
# virDomainState; one that is paused, or suspended by its guest, runs and does not serve.
RUNNING, PAUSED = (0, 1, 2, 4), (3, 7)
CHANNEL = "org.qemu.guest_agent.0"
SMALLEST_RUN = 16  # addresses outside a network's DHCP range that are worth keeping to

ElementTree.register_namespace("phoenix", NAMESPACE)


@dataclass(frozen=True)
class Machine:
    """What all domains of one release have in common. memory in bytes; kind is kvm or qemu; folder is the storage pool's."""

    kind: str
    arch: str
    memory: int
    vcpus: int
    firmware: str
    network: str
    folder: str


@dataclass(frozen=True)
class Network:
    """A network of libvirt. subnet is None where it has no IPv4 address of its own (a bridge to somebody else's network).

    hosts are its reservations as (MAC, address, name); dhcp are the ranges for anybody.
    """

    name: str
    mode: str
    subnet: Optional[ipaddress.IPv4Network]
    gateway: Optional[ipaddress.IPv4Address]
    serves: bool
    dhcp: Tuple[Ends, ...]
    hosts: Tuple[Tuple[str, str, str], ...]


@dataclass(frozen=True)
class Volume:
    """A volume as its pool shows it. stamp changes when its content does; touched when anybody opens it for writing, too."""

    name: str
    path: str
    format: str
    size: int
    backed: bool
    stamp: str
    touched: str


# --- names ------------------------------------------------------------------------------------------------------------

def mac_of(address: str) -> str:
    """The MAC address of the instance at an address: 52:54 and the address itself.

    With one that follows from the address, an instance takes up its predecessor's lease: a DHCP server refuses a reserved address for
    as long as another MAC has a lease of it.
    """
    return "52:54:" + ":".join(f"{number:02x}" for number in ipaddress.IPv4Address(address).packed)


def random_mac(uuid: str) -> str:
    """The MAC address of an instance without a planned address, from its UUID, within the range that is QEMU's."""
    return "52:54:00:" + ":".join(re.findall("..", uuid.replace("-", "")[:6]))


def prefix_of(name: str, uuid: str) -> str:
    """What the names of all volumes of one domain begin with, and of no other: whoever bears the name again has another UUID."""
    return f"{name}.{uuid[:8]}."


def volumes_of(name: str, uuid: str) -> Tuple[str, str, str]:
    """The names of overlay, seed and console log."""
    prefix = prefix_of(name, uuid)
    return f"{prefix}qcow2", f"{prefix}iso", f"{prefix}log"


# --- domains ----------------------------------------------------------------------------------------------------------

def domain_xml(name: str, uuid: str, mac: str, machine: Machine, marker: Mapping[str, str]) -> str:
    """The domain of one instance."""
    overlay, seed, log = (f"{machine.folder}/{item}" for item in volumes_of(name, uuid))
    domain = ElementTree.Element("domain", type=machine.kind)
    _add(domain, "name", name)
    _add(domain, "uuid", uuid)
    _add(_add(domain, "metadata"), f"{{{NAMESPACE}}}instance", json.dumps(marker, sort_keys=True))
    _add(domain, "memory", str(machine.memory // 1024), unit="KiB")
    _add(domain, "vcpu", str(machine.vcpus))
    system = _add(domain, "os", **({"firmware": "efi"} if machine.firmware == "uefi" else {}))
    _add(system, "type", "hvm", arch=machine.arch, **({"machine": "q35"} if machine.arch == "x86_64" else {}))
    if machine.firmware == "uefi":
        _add(_add(system, "firmware"), "feature", enabled="no", name="secure-boot")
    _add(system, "boot", dev="hd")
    features = _add(domain, "features")
    _add(features, "acpi")
    if machine.arch == "x86_64":
        _add(features, "apic")
    _add(domain, "cpu", mode="host-passthrough" if machine.kind == "kvm" else "maximum")
    for event, act in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "restart")):
        _add(domain, event, act)
    devices = _add(domain, "devices")
    if machine.arch == "x86_64":
        _add(devices, "controller", type="usb", model="none")
    _disk(devices, overlay, "qcow2", "vda", discard="unmap")
    # A disk and no CD-ROM: cloud-init knows the seed by its label, and every guest has the driver of its own disk.
    _add(_disk(devices, seed, "raw", "vdb"), "readonly")
    interface = _add(devices, "interface", type="network")
    _add(interface, "mac", address=mac)
    _add(interface, "source", network=machine.network)
    _add(interface, "model", type="virtio")
    _add(_add(devices, "serial", type="file"), "source", path=log)
    _add(_add(devices, "channel", type="unix"), "target", type="virtio", name=CHANNEL)
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    return ElementTree.tostring(domain, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, text: Optional[str] = None, **attributes: str) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = text
    return made


def _disk(devices: ElementTree.Element, path: str, form: str, device: str, **driver: str) -> ElementTree.Element:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=form, **driver)
    _add(disk, "source", file=path)
    _add(disk, "target", dev=device, bus="virtio")
    return disk


def marker_in(xml: str) -> Dict[str, str]:
    """The marker that a domain bears; empty where it bears none that is whole."""
    if NAMESPACE not in xml:
        return {}
    found = ElementTree.fromstring(xml).findtext(f"metadata/{{{NAMESPACE}}}instance")
    try:
        marker = json.loads(found or "")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in marker.items()} if isinstance(marker, dict) else {}


def seen_in(xml: str, state: int, host: str) -> Optional[Instance]:
    """The instance that a domain is, None where it bears no marker of ours. state is a virDomainState."""
    marker = marker_in(xml)
    root = ElementTree.fromstring(xml) if marker else None
    if root is None:
        return None
    try:
        address, port = marker[ADDRESS].rsplit(":", 1)
        return Instance(
            name=root.findtext("name") or "", host=host, fleet=marker[NAME], release=int(marker[RELEASE]), slot=int(marker[SLOT]),
            image=marker[LABEL + "image"], address=address, port=int(port), revision=marker.get(LABEL + "revision", ""),
            id=root.findtext("uuid") or "", state="running" if state in RUNNING + PAUSED else "stopped",
            health="unhealthy" if state in PAUSED else "none", created=marker.get(LABEL + "created", ""), marker=marker,
        )
    except (KeyError, ValueError):
        return None


def whose_marker(xml: str, seen: Instance) -> str:
    """In words, whose marker a domain bears that is not its own; empty where it is.

    virt-clone, and a definition that somebody edited, keep the metadata under another name or UUID. Markers of earlier versions name no
    UUID: there the names of the disks have it.
    """
    if seen.name != name_in(seen.marker):
        return f"that of domain {name_in(seen.marker)}"
    own = seen.marker.get(UUID) == seen.id if UUID in seen.marker else prefix_of(seen.name, seen.id) in xml
    return "" if own else f"that of UUID {seen.marker.get(UUID, '(another)')}"


def mac_in(xml: str) -> str:
    """The MAC address of a domain's first interface."""
    found = ElementTree.fromstring(xml).find("devices/interface/mac")
    return "" if found is None else found.get("address", "").lower()


def told_by_agent(interfaces: Mapping[str, Any], mac: str) -> str:
    """The IPv4 address that a guest's agent tells for the interface with that MAC, empty where it has none yet.

    interfaces as libvirt's interfaceAddresses: {NAME: {hwaddr, addrs: [{addr, type}]}}, type 0 being IPv4.
    """
    for item in interfaces.values():
        if str(item.get("hwaddr") or "").lower() == mac:
            found = [str(one["addr"]) for one in item.get("addrs") or [] if one.get("type") == 0]
            usable = [address for address in found if not ipaddress.IPv4Address(address).is_link_local]
            if usable:
                return usable[0]
    return ""


# --- volumes ----------------------------------------------------------------------------------------------------------

def volume_in(xml: str) -> Volume:
    root = ElementTree.fromstring(xml)
    form = root.find("target/format")
    times = {key: root.findtext(f"target/timestamps/{key}") or "" for key in ("mtime", "ctime", "btime")}
    size = int(root.findtext("physical") or root.findtext("allocation") or 0)
    path = root.findtext("target/path") or root.findtext("key") or ""
    # Not the time of the last change of the inode: libvirt gives a base another owner when a domain starts (measured).
    stamp = json.dumps([path, size, times["mtime"], times["btime"]])
    return Volume(
        root.findtext("name") or "", path, "" if form is None else form.get("type", ""), size,
        root.find("backingStore/path") is not None, stamp, json.dumps([size, times["mtime"], times["ctime"]]),
    )


def volume_xml(name: str, form: str, size: int, base: Optional[Volume] = None) -> str:
    """A new volume. With a base it is an overlay of that, and as large as it (size 0)."""
    volume = ElementTree.Element("volume")
    _add(volume, "name", name)
    _add(volume, "capacity", str(size), unit="bytes")
    target = _add(volume, "target")
    _add(target, "format", type=form)
    _add(_add(target, "permissions"), "mode", "0600")
    if base:
        backing = _add(volume, "backingStore")
        _add(backing, "path", base.path)
        _add(backing, "format", type=base.format)
    return ElementTree.tostring(volume, encoding="unicode")


# --- networks ---------------------------------------------------------------------------------------------------------

def network_in(xml: str) -> Network:
    root = ElementTree.fromstring(xml)
    forward = root.find("forward")
    mode = "" if forward is None else forward.get("mode", "nat")
    name = root.findtext("name") or ""
    for ip in root.findall("ip"):
        if ip.get("family", "ipv4") != "ipv4" or ":" in ip.get("address", ":"):
            continue
        place = ipaddress.IPv4Interface(f"{ip.get('address')}/{ip.get('netmask') or ip.get('prefix') or 24}")
        dhcp = ip.find("dhcp")
        ranges = [] if dhcp is None else dhcp.findall("range")
        hosts = [] if dhcp is None else dhcp.findall("host")
        return Network(
            name, mode, place.network, place.ip, dhcp is not None,
            tuple((ipaddress.IPv4Address(item.get("start", "")), ipaddress.IPv4Address(item.get("end", ""))) for item in ranges),
            tuple((item.get("mac", "").lower(), item.get("ip", ""), item.get("name", "")) for item in hosts),
        )
    return Network(name, mode, None, None, False, (), ())


def reservation_xml(name: str, address: str) -> str:
    return ElementTree.tostring(ElementTree.Element("host", mac=mac_of(address), name=name, ip=address), encoding="unicode")


def is_reserved(network: Network, name: str, address: str) -> bool:
    """Whether the network has the very reservation of this instance."""
    return (mac_of(address), address, name) in network.hosts


def room(network: Network, ranges: Sequence[Ends]) -> Tuple[ipaddress.IPv4Address, ipaddress.IPv4Address, List[str]]:
    """First and last address for instances, and those between them that are not for them.

    Without ranges it is the longest run of addresses outside the network's own DHCP ranges, which nobody else gets; where that is
    too short, as in libvirt's default network, it is the whole network. Raises ValueError for a network without addresses of its own.
    """
    if network.subnet is None:
        raise ValueError(f"network {network.name} has no addresses of its own")
    low, high = int(network.subnet.network_address) + 1, int(network.subnet.broadcast_address) - 1
    if ranges:
        ends = sorted(ranges)
        return ends[0][0], ends[-1][1], gaps(ends)
    gateway = int(network.gateway or 0)
    runs, start = [], low
    for first, last in sorted([*((int(first), int(last)) for first, last in network.dhcp), (gateway, gateway)]):
        runs.append((start, first - 1))
        start = max(start, last + 1)
    runs.append((start, high))
    first, last = max(runs, key=lambda run: run[1] - run[0])
    if last - first + 1 < SMALLEST_RUN:
        first, last = low, high
    return _address(first), _address(last), []


def _address(number: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(number)


def outside(network: Network, addresses: Sequence[str]) -> List[str]:
    """Those of `addresses` that the network does not have."""
    return [item for item in addresses if network.subnet is None or ipaddress.IPv4Address(item) not in network.subnet]
