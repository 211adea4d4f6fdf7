# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""An instance as a guest of Proxmox VE: what a cluster is told, and how to read what it shows. Pure."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from .._model import Instance
from ._marker import ADDRESS, LABEL, LEDGER, NAME, RELEASE, SLOT, UUID, VMID, marker_of, name_in
from ._options import AGENT
from .base import Blueprint

TAG = "phoenix.fleet"
NONCE, COMPLETE = LABEL + "nonce", LABEL + "complete"
STATED = re.compile(r"phoenix\.fleet\.image\"?\s*[:=]\s*\"?(sha256:[0-9a-f]{64})\b")
DRIVE = re.compile(r"^(ide[0-3]|sata[0-5]|scsi\d+|virtio\d+|efidisk0|tpmstate0|rootfs|mp\d+)$")
UNITS = {"": 1, "K": 1024, "M": 1024 ** 2, "G": 1024 ** 3, "T": 1024 ** 4}
# Storages on which PVE can make linked clones (facts: volume_has_feature in the storage plugins).
LINKABLE = ("dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs", "zfspool", "zfs", "rbd", "lvmthin")
# Those whose linked clones are qcow2 files, which no container can use (pve-storage `PVE/Storage/Plugin.pm` clone_image).
CLONED_AS_FILES = ("dir", "nfs", "cifs", "cephfs", "glusterfs")
MAKING = ("clone", "create")


@dataclass(frozen=True)
class Guest:
    """A VM or container as the cluster lists it. status may be seconds old until a node's own listing has been read."""

    vmid: int
    node: str
    kind: str
    name: str = ""
    status: str = ""
    lock: str = ""
    pool: str = ""
    tags: Tuple[str, ...] = ()
    template: bool = False
    ha: str = ""
    size: int = 0

    @property
    def path(self) -> str:
        return f"nodes/{self.node}/{self.kind}/{self.vmid}"

    @property
    def words(self) -> str:
        return f"{'VM' if self.kind == 'qemu' else 'container'} {self.vmid} ({self.name}) on node {self.node}"

    @property
    def unlock(self) -> str:
        """The command that frees it from a lock that nothing holds any more."""
        return f"{'qm' if self.kind == 'qemu' else 'pct'} unlock {self.vmid}"


@dataclass(frozen=True)
class Volume:
    """A disk in a guest's configuration. size is in bytes, 0 where it is not told."""

    key: str
    storage: str
    name: str
    size: int = 0


@dataclass(frozen=True)
class Template:
    """A golden image on one node. digest is the name that cannot change; stated: its description says it."""

    guest: Guest
    digest: str
    stated: bool
    config: Mapping[str, Any] = field(hash=False)

    @property
    def volumes(self) -> List[Volume]:
        return volumes_of(self.config)


def guest_in(item: Mapping[str, Any]) -> Guest:
    """The guest that an entry of /cluster/resources shows."""
    return Guest(
        vmid=int(item["vmid"]), node=str(item["node"]), kind=str(item["type"]), name=str(item.get("name") or ""),
        status=str(item.get("status") or ""), lock=str(item.get("lock") or ""), pool=str(item.get("pool") or ""),
        tags=tuple(re.split(r"[;, ]+", str(item.get("tags") or ""))), template=bool(int(item.get("template") or 0)),
        ha=str(item.get("hastate") or ""), size=int(item.get("maxdisk") or 0),
    )


def marker_in(config: Mapping[str, Any]) -> Optional[Dict[str, str]]:
    """The marker that a guest's description holds, None where it is not a whole one."""
    try:
        found = json.loads(str(config.get("description") or ""))
        marker = {str(key): str(value) for key, value in found.items() if str(key).startswith(LABEL)}
        int(marker[RELEASE]), int(marker[SLOT]), marker[NAME], marker[LEDGER], marker[NONCE]
    except (ValueError, KeyError, AttributeError):
        return None
    return marker


def whose_marker(guest: Guest, config: Mapping[str, Any], marker: Mapping[str, str]) -> str:
    """In words, whose marker a guest bears that is not its own; empty where it is.

    A clone keeps description and tags under another VMID, of a VM with a new UUID too (qemu-server, src/PVE/API2/Qemu.pm, clone_vm;
    pve-container, src/PVE/API2/LXC.pm), and a backup keeps the description wherever it is restored. Markers of earlier versions name
    neither: of those only the ledger knows.
    """
    if marker.get(VMID, str(guest.vmid)) != str(guest.vmid):
        return f"that of {marker[VMID]}"
    uuid = uuid_in(config)
    return f"that of UUID {marker[UUID]}" if marker.get(UUID, uuid) != uuid else ""


def uuid_in(config: Mapping[str, Any]) -> str:
    """A VM's UUID, empty for a container."""
    return options_in(config.get("smbios1")).get("uuid", "")


def identity(guest: Guest, config: Mapping[str, Any], marker: Mapping[str, str]) -> str:
    """What is never the same again, although VMIDs are: PVE gives each clone of a VM a UUID, and we give each instance a nonce."""
    return "/".join(part for part in (str(guest.vmid), uuid_in(config), marker[NONCE]) if part)


def instance_in(guest: Guest, config: Mapping[str, Any], marker: Mapping[str, str], note: str = "") -> Instance:
    """The instance that a guest is. Its address is empty where only a running one can tell it.

    One whose making was interrupted is unhealthy: it has not got all of its settings, and never shall serve.
    """
    complete = COMPLETE in marker
    running = guest.status == "running"
    return Instance(
        name=name_in(marker), host=guest.node, fleet=marker[NAME], release=int(marker[RELEASE]),
        slot=int(marker[SLOT]), image=marker.get(LABEL + "image", ""), address=marker.get(ADDRESS, ""),
        port=int(marker.get(LABEL + "port") or 0), revision=marker.get(LABEL + "revision", ""), id=identity(guest, config, marker),
        state="running" if running else "stopped" if complete else "created", health="none" if complete else "unhealthy",
        created=marker.get(LABEL + "created", ""), marker=dict(marker), number=guest.vmid, note=note,
    )


def described(instance: Instance, blueprint: Blueprint, created: str, nonce: str, uuid: str = "", complete: bool = False) -> str:
    """The description that a guest gets: its marker, with what a stopped guest does not tell. Its UUID is known once it is cloned."""
    marker = marker_of(instance, blueprint, created)
    marker.update({NONCE: nonce, VMID: str(instance.number), LABEL + "port": str(instance.port)})
    if uuid:
        marker[UUID] = uuid
    if instance.address:
        marker[ADDRESS] = instance.address
    if complete:
        marker[COMPLETE] = "1"
    return json.dumps(marker, sort_keys=True)


# --- configurations -----------------------------------------------------------------------------------------------------

def options_in(value: Any) -> Dict[str, str]:
    """A property string as a mapping: `virtio=BC:24:..,bridge=vmbr0`."""
    return dict(part.partition("=")[::2] for part in str(value or "").split(",") if "=" in part)


def drives_of(config: Mapping[str, Any]) -> List[Volume]:
    """All that a guest has on storages: its disks, its cloud-init drive, and the images in its CD-ROM drives."""
    found = []
    for key, value in config.items():
        first = str(value).partition(",")[0]
        if DRIVE.match(key) and ":" in first and not first.startswith("/"):
            storage, _colon, name = first.partition(":")
            found.append(Volume(key, storage, name, bytes_in(options_in(value).get("size", ""))))
    return sorted(found, key=lambda item: item.key)


def is_cdrom(config: Mapping[str, Any], drive: Volume) -> bool:
    return options_in(config[drive.key]).get("media") == "cdrom"


def volumes_of(config: Mapping[str, Any]) -> List[Volume]:
    """The disks of a guest, without its CD-ROMs, but with its cloud-init drive."""
    return [item for item in drives_of(config)
            if not is_cdrom(config, item) or "cloudinit" in item.name or re.search(r"\bvm-\d+-", item.name)]


def has_cloudinit(config: Mapping[str, Any]) -> bool:
    drives = (str(value) for key, value in config.items() if DRIVE.match(key))
    return any("cloudinit" in value or ("media=cdrom" in value and re.search(r"\bvm-\d+-", value)) for value in drives)


def bytes_in(size: str) -> int:
    match = re.match(r"^(\d+(?:\.\d+)?)([KMGT]?)$", size)
    return int(float(match.group(1)) * UNITS[match.group(2)]) if match else 0


def root_of(config: Mapping[str, Any]) -> Optional[Volume]:
    """The disk that an instance boots from, whose size `disk` sets."""
    disks = {item.key: item for item in volumes_of(config) if "media=cdrom" not in str(config[item.key])}
    if "rootfs" in disks:
        return disks["rootfs"]
    order = re.split(r"[;,]", options_in(config.get("boot")).get("order", ""))
    return next((disks[key] for key in (*order, "scsi0", "virtio0", "sata0", "ide0") if key in disks), None)


def macs_of(config: Mapping[str, Any]) -> List[str]:
    """The MAC addresses of a guest's network devices, in lower case, net0 first."""
    keys = sorted((key for key in config if re.match(r"^net\d+$", key)), key=lambda key: int(key[3:]))
    found = [re.search(r"([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5})", str(config[key])) for key in keys]
    return [match.group(1).lower() for match in found if match]


def nics_of(config: Mapping[str, Any]) -> List[Dict[str, str]]:
    """The fields of a guest's network devices."""
    return [options_in(value) for key, value in sorted(config.items()) if re.match(r"^net\d+$", key)]


def network_paths(nics: Iterable[Mapping[str, str]]) -> List[str]:
    """What a user of these devices needs SDN.Use on: their VLANs, and where one has none its bridge. Of a bridge's zone see `_places`.

    pve-guest-common `PVE/GuestHelpers.pm` check_vnet_access.
    """
    found = set()
    for nic in nics:
        tags = [nic["tag"]] if nic.get("tag") else []
        for trunk in filter(None, nic.get("trunks", "").split(";")):
            first, _dash, last = trunk.partition("-")
            tags += [str(tag) for tag in range(int(first), int(last or first) + 1)]
        if nic.get("bridge"):
            place = f"/sdn/zones/localnetwork/{nic['bridge']}"
            found |= {f"{place}/{tag}" for tag in tags} or {place}
    return sorted(found)


def surplus_nics(config: Mapping[str, Any], options: Mapping[str, Any]) -> List[str]:
    """What `networks` takes away: the template's further network devices, and what cloud-init would make of them."""
    networks = options.get("networks")
    keys = (re.match(r"^(?:net|ipconfig)(\d+)$", key) for key in config)
    return sorted(match.group() for match in keys if match and int(match.group(1)) >= len(networks)) if networks else []


def fixed_addresses(config: Mapping[str, Any], options: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """The addresses that every clone would inherit, by the settings that give them: none where the definition sets them anew."""
    replaced = {"ipconfig0", *surplus_nics(config, options), *(f"net{index}" for index, _nic in enumerate(options.get("networks") or []))}
    if options["addresses"] != AGENT:
        replaced.add("net0")
    settings = [(key, options_in(value)) for key, value in sorted(config.items()) if re.match(r"^(net|ipconfig)\d+$", key)]
    return [(key, fields[name]) for key, fields in settings if key not in replaced
            for name in ("ip", "ip6") if fields.get(name, "dhcp") not in ("dhcp", "auto", "manual")]


def addresses_of(config: Mapping[str, Any]) -> List[str]:
    """The fixed addresses that a configuration gives, whosoever it is."""
    values = [str(value) for key, value in config.items() if re.match(r"^(ipconfig|net)\d+$", key)]
    return [match.group(1) for value in values for match in re.finditer(r"\bip=(\d+\.\d+\.\d+\.\d+)", value)]


def template_in(guest: Guest, config: Mapping[str, Any]) -> Template:
    """A template, named by the digest that its description states, else by what PVE never gives twice: UUID, disks, time of making."""
    stated = STATED.search(str(config.get("description") or ""))
    if stated:
        digest = stated.group(1)
    else:
        known: List[Any] = [guest.vmid, options_in(config.get("smbios1")).get("uuid"), options_in(config.get("meta")).get("ctime")]
        if guest.kind == "lxc":
            # A container has no UUID: then every change to it counts, but for the lock that a clone sets while it copies.
            known.append(sorted((key, str(value)) for key, value in config.items() if key not in ("lock", "digest")))
        disks = [(item.key, item.storage, item.name) for item in volumes_of(config)]
        digest = "sha256:" + hashlib.sha256(json.dumps([known, disks]).encode()).hexdigest()
    return Template(guest, f"{guest.name}@{digest}", bool(stated), config)


# --- what a cluster is told ---------------------------------------------------------------------------------------------

def clone_params(instance: Instance, template: Template, options: Mapping[str, Any], description: str) -> Dict[str, Any]:
    """The one call in which a guest comes into being: it can carry nothing but name, description and pool (facts: clone_vm)."""
    kind = template.guest.kind
    params: Dict[str, Any] = {
        "newid": instance.number, "name" if kind == "qemu" else "hostname": instance.name, "description": description,
        "full": 1 if options["clone"] == "full" else 0,
    }
    if options.get("pool"):
        params["pool"] = options["pool"]
    if options.get("storage"):
        params["storage"] = options["storage"]
    if instance.host != template.guest.node:
        params["target"] = instance.host
    return params


def config_params(
    instance: Instance, config: Mapping[str, Any], options: Mapping[str, Any], description: str, facts: Mapping[str, str],
) -> Dict[str, Any]:
    """All that makes the clone this instance. What it has inherited is set anew, so that no template decides about it.

    The description says that it is complete, and so is told when all the rest is there (`unlike`).
    """
    kind = options["kind"]
    params: Dict[str, Any] = {
        "description": description, "tags": ";".join(tags_for(instance, options)),
        "protection": 0, "onboot": 1, "digest": config["digest"],
    }
    delete = surplus_nics(config, options)
    if options.get("cores"):
        params["cores"] = options["cores"]
        if "sockets" in config:
            params["sockets"] = 1
        delete += ["vcpus"] if "vcpus" in config else []
    if options.get("memory"):
        params["memory"] = options["memory"] // 1024 ** 2
        if int(config.get("balloon") or 0):
            params["balloon"] = params["memory"]  # all of it is the instance's own, as without the template's setting
    if options.get("nameserver"):
        params["nameserver"] = " ".join(options["nameserver"])
    fixed = ""
    if instance.address and options["addresses"] != AGENT:
        fixed = f"{instance.address}/{options['prefix']}" + (f",gw={options['gateway']}" if options.get("gateway") else "")
    for index, network in enumerate(options.get("networks") or []):
        params[f"net{index}"] = _network(kind, index, network)
    if kind == "lxc":
        if fixed:
            kept = options_in(params.get("net0") or config.get("net0"))
            kept = {key: value for key, value in kept.items() if key not in ("ip", "gw", "ip6", "gw6")}
            params["net0"] = ",".join([*(f"{key}={value}" for key, value in kept.items()), f"ip={fixed}"])
        return {**params, "delete": ",".join(delete)} if delete else params
    if has_cloudinit(config):
        # By default cloud-init upgrades all packages at the first boot: two instances of one image would differ.
        params["ciupgrade"] = 0
        params["ipconfig0"] = f"ip={fixed}" if fixed else "ip=dhcp"
        if options.get("ci_user"):
            params["ciuser"] = options["ci_user"]
        if options.get("ssh_keys"):
            params["sshkeys"] = quote("\n".join(options["ssh_keys"]), safe="")
    if options["facts"]:
        params["smbios1"] = _with_facts(config.get("smbios1"), facts)
    delete += ["cicustom"] if "cicustom" in config else []
    return {**params, "delete": ",".join(delete)} if delete else params


def tags_for(instance: Instance, options: Mapping[str, Any]) -> List[str]:
    return sorted({TAG, f"{TAG}.{instance.fleet}", *options.get("tags", [])})


def unlike(params: Mapping[str, Any], before: Mapping[str, Any], config: Mapping[str, Any]) -> List[str]:
    """In words, what a configuration has not taken of what it was told: what is still as `before`, and not as told.

    What has changed was taken, however PVE writes it: it adds to some values (a MAC), and sorts others (tags).
    """
    wrong = [f"{key} is still there" for key in str(params.get("delete") or "").split(",") if key in config]
    for key, value in params.items():
        if key in ("digest", "delete") or config.get(key) != before.get(key):
            continue
        told, have = (re.split("[,;]", str(item).lower()) for item in (value, config.get(key, "")))
        if not all(any(f"{item}=".startswith(f"{part}=") for item in have) for part in told):
            wrong.append(f"{key} is {config.get(key, '(none)')}, not {value}")
    return wrong


def _with_facts(smbios: Any, facts: Mapping[str, str]) -> str:
    """The guest's SMBIOS with `NAME=value NAME=value` as its family, which it shows to anybody in /sys/class/dmi/id/product_family.

    PVE takes 512 characters for all fields: a value's first 80, with what separates values in their percent form.
    """
    fields = options_in(smbios)
    if fields.pop("base64", "0") != "1":
        fields = {key: value if key == "uuid" else _base64(value) for key, value in fields.items()}
    fields["family"] = _base64(" ".join(f"{name}={quote(value, safe='/:+@,')[:80]}" for name, value in facts.items()))
    return ",".join([*(f"{key}={value}" for key, value in fields.items()), "base64=1"])


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _network(kind: str, index: int, network: Mapping[str, Any]) -> str:
    parts = [network.get("model", "virtio")] if kind == "qemu" else [f"name=eth{index}"]
    parts.append(f"bridge={network['bridge']}")
    if kind == "lxc":
        parts += ["type=veth", "ip=dhcp"]
    names = (("vlan", "tag"), ("firewall", "firewall"), ("mtu", "mtu"))
    return ",".join([*parts, *(f"{there}={int(network[key])}" for key, there in names if key in network)])


# --- addresses that a guest tells ---------------------------------------------------------------------------------------

def told_by_agent(answer: Any, macs: Sequence[str], within: Optional[str]) -> str:
    """The IPv4 address of the first of our network devices, by what a guest agent says; empty where it says none yet.

    A guest has others (loopback, bridges of containers), which are not ours.
    """
    result = answer.get("result") if isinstance(answer, Mapping) else answer
    known: Dict[str, List[str]] = {}
    for interface in result or []:
        listed = interface.get("ip-addresses") or []
        known[str(interface.get("hardware-address") or "").lower()] = [str(item.get("ip-address")) for item in listed]
    return _fit((address for mac in macs for address in known.get(mac, [])), within)


def told_by_container(answer: Any, macs: Sequence[str], within: Optional[str]) -> str:
    """The same for a container, of which PVE itself knows the devices."""
    known: Dict[str, List[str]] = {}
    for interface in answer or []:
        listed = [str(item.get("ip-address")) for item in interface.get("ip-addresses") or []]
        known[str(interface.get("hwaddr") or interface.get("hardware-address") or "").lower()] = [
            *listed, str(interface.get("inet") or "").partition("/")[0]]
    return _fit((address for mac in macs for address in known.get(mac, [])), within)


def _fit(addresses: Iterable[str], within: Optional[str]) -> str:
    for text in addresses:
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            continue
        if address in ipaddress.IPv4Network(within) if within else not (address.is_loopback or address.is_link_local):
            return str(address)
    return ""
