# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What is missing for instances to be made on a Proxmox VE cluster, found before anything is made. Pure: from what the cluster has said."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from .._errors import RefusedError
from .._model import Instance
from ._options import AGENT
from ._proxmox_guest import (
    CLONED_AS_FILES,
    LINKABLE,
    Template,
    Volume,
    drives_of,
    fixed_addresses,
    has_cloudinit,
    is_cdrom,
    network_paths,
    nics_of,
    options_in,
    root_of,
    tags_for,
)

Missing = Tuple[str, str, str]
"""What, why it will not do, and the remedy."""

Storages = Mapping[Tuple[str, str], Mapping[str, Any]]

KEPT_FREE = 1024 ** 3
"""Bytes that are left on a storage in any case: one that runs full stops every guest on it."""


def free_memory(node: Mapping[str, Any]) -> float:
    """Bytes of memory that a node has left; unlimited where it does not say."""
    return float(node["maxmem"]) - float(node.get("mem") or 0) if node.get("maxmem") else float("inf")


def source_of(
    instance: Instance, templates: Sequence[Template], resources: Iterable[Mapping[str, Any]], storages: Storages,
    options: Mapping[str, Any],
) -> Template:
    """The replica that an instance is cloned from: the one on its node, else one on shared storage. Raises RefusedError where none will do.

    A clone to another node needs all drives of the template, CD-ROMs as well, and those of the clone on shared storage (qemu-server
    `PVE/API2/Qemu.pm` check_storage_access_clone).
    """
    for template in templates:
        if template.guest.node == instance.host:
            return template
    online = {item["node"] for item in resources if item.get("type") == "node" and item.get("status") == "online"}
    for template in templates:
        node = template.guest.node
        disks = {volume.storage for volume in template.volumes} | ({options["storage"]} if options.get("storage") else set())
        local = {name for name in disks if not _is_shared(storages, node, name) or (instance.host, name) not in storages}
        drives = [drive for drive in drives_of(template.config) if drive.storage in local or not _is_shared(storages, node, drive.storage)]
        if node in online and not local and not drives:
            return template
        if node in online and drives and all(is_cdrom(template.config, drive) for drive in drives):
            raise _kept_by_cdroms(instance, template, drives)
    have = ", ".join(sorted(item.guest.node for item in templates))
    name = templates[0].guest.name
    raise RefusedError(
        f"{instance.name}: node {instance.host}", f"it has no replica of template {name}, which is on local storage of {have}",
        f"Put one there with the same phoenix.fleet.image in its description, use shared storage, or set fleet_proxmox.nodes to {have}",
    )


def _is_shared(storages: Storages, node: str, name: str) -> bool:
    return bool(int(storages.get((node, name), {}).get("shared") or 0))


def _kept_by_cdroms(instance: Instance, template: Template, drives: Sequence[Volume]) -> RefusedError:
    """A template whose disks are on shared storage, and something in a CD-ROM drive is not."""
    guest = template.guest
    what = ", ".join(f"its {drive.key} ({drive.storage}:{drive.name})" for drive in drives)
    commands = []
    for drive in drives:
        commands.append(f"qm set {guest.vmid} --delete {drive.key}")
        if "cloudinit" in drive.name:
            commands.append(f"qm set {guest.vmid} --{drive.key} STORAGE:cloudinit, with a storage that the nodes share")
    return RefusedError(
        f"{instance.name}: node {instance.host}",
        f"template {guest.vmid} on node {guest.node} cannot be cloned to there: {what} is on storage that is not shared, or not seen",
        f"Run on node {guest.node}: {'; '.join(commands)}",
    )


def of_templates(templates: Iterable[Template], options: Mapping[str, Any]) -> List[Missing]:
    """What a template would pass on that no instance may have, or lacks that the definition needs."""
    missing: List[Missing] = []
    for template in templates:
        guest, config = template.guest, template.config
        what = f"template {guest.vmid} ({guest.name}) on node {guest.node}"
        command = "qm" if guest.kind == "qemu" else "pct"
        if config.get("hookscript"):
            words = "it has a hookscript, which every instance would inherit, and only root can take away"
            missing.append((what, words, f"Run on that node: {command} set {guest.vmid} --delete hookscript"))
        for key, value in sorted(config.items()):
            if str(value).partition(",")[0] == "cdrom" and options_in(value).get("media") == "cdrom":
                words = f"its {key} is that node's own CD-ROM drive, and nobody without Sys.Console on / may clone that"
                missing.append((what, words, f"Run on that node: {command} set {guest.vmid} --delete {key}"))
        for key, address in fixed_addresses(config, options):
            remedy = f"{command} set {guest.vmid} --delete {key}" if key.startswith("ip") else "ip=dhcp or manual in the template"
            words = f"its {key} gives every instance the address {address}"
            missing.append((what, words, f"Take it away there ({remedy}), or set fleet_proxmox.networks"))
        if config.get("lock"):
            words = f"it is locked ({config['lock']})"
            remedy = f"Wait for the task that holds it; if none does, run on that node: {command} unlock {guest.vmid}"
            # A container's template is locked for each copy that is made of it.
            missing += [(what, words, remedy)] if (guest.kind, config["lock"]) != ("lxc", "disk") else []
        needs = [key for key in ("ci_user", "ssh_keys", "nameserver") if options.get(key)]
        needs += ["addresses"] if options["addresses"] != AGENT else []
        if guest.kind == "qemu" and needs and not has_cloudinit(config):
            words = f"it has no cloud-init drive, so that {', '.join(needs)} would never reach an instance"
            missing.append((what, words, f"Run on that node before it becomes a template: qm set {guest.vmid} --ide2 STORAGE:cloudinit"))
        agent = str(config.get("agent", "0")).partition(",")[0] in ("1", "enabled=1")
        if guest.kind == "qemu" and options["addresses"] == AGENT and not agent:
            words = "its agent option is not set, so that no instance could tell its address"
            missing.append((what, words, f"Run on that node: qm set {guest.vmid} --agent 1; or give fixed fleet_proxmox.addresses"))
        root = root_of(config)
        if options.get("disk") and root and options["disk"] < root.size:
            words = f"its disk has {root.size // 1024 ** 2} MiB, and none can be made smaller"
            missing.append((what, words, "Raise fleet_proxmox.disk, or leave it out"))
        if options.get("disk") and not root:
            missing.append((what, "it has no disk that fleet_proxmox.disk could be the size of", "Leave fleet_proxmox.disk out"))
    return missing


def of_nodes(instances: Sequence[Instance], resources: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> List[Missing]:
    nodes = {item["node"]: item for item in resources if item.get("type") == "node"}
    missing: List[Missing] = []
    for name, number in sorted(Counter(item.host for item in instances).items()):
        node = nodes.get(name)
        if node is None or node.get("status") != "online":
            state = "is offline" if node else "is not in this cluster"
            missing.append((f"node {name}", f"it {state}, and {number} instances are to be made there", "Bring it back, and plan again"))
        elif options.get("memory") and options["memory"] * number > free_memory(node):
            need, have = options["memory"] * number // 1024 ** 2, int(free_memory(node)) // 1024 ** 2
            words = f"{number} instances need {need} MiB of memory there, and it has {have} MiB left"
            missing.append((f"node {name}", words, "Lower fleet_proxmox.memory or fleet_size, or add a node"))
    return missing


def of_storages(pairs: Sequence[Tuple[Instance, Template]], storages: Storages, options: Mapping[str, Any]) -> List[Missing]:
    missing: List[Missing] = []
    needs: Dict[Tuple[str, str], int] = {}
    for instance, template in pairs:
        for volume in template.volumes:
            name = options.get("storage") or volume.storage
            shared = int(storages.get((instance.host, name), {}).get("shared") or 0)
            place = ("" if shared else instance.host, name)
            needs[place] = needs.get(place, 0) + (volume.size if options["clone"] == "full" else 0)
            kind = storages.get((instance.host, name), {}).get("plugintype")
            container = template.guest.kind == "lxc"
            useless = kind not in LINKABLE or (container and kind in CLONED_AS_FILES)
            if options["clone"] == "linked" and kind and useless and "cloudinit" not in volume.name:
                words = f"linked clones{' of containers' if container else ''} cannot be made on one of type {kind}"
                missing.append((f"storage {name}", words, "Set fleet_proxmox.clone to full"))
    for (node, name), need in sorted(needs.items()):
        entries = [item for (there, storage), item in storages.items() if storage == name and (not node or there == node)]
        what = f"storage {name}" + (f" on node {node}" if node else "")
        if not entries:
            missing.append((what, "it does not exist there, or may not be seen", "Give the token Datastore.Audit on it, or name another"))
            continue
        if all(item.get("status") != "available" for item in entries):
            remedy = "Bring it back (pvesm status)"
            if entries[0].get("status") == "unknown":
                remedy = "pvestatd tells nothing of it: run there systemctl restart pvestatd; where that hangs, a storage gives no answer"
            missing.append((what, f"it is {entries[0].get('status')}", remedy))
            continue
        if entries[0].get("maxdisk"):
            free = int(entries[0]["maxdisk"]) - int(entries[0].get("disk") or 0)
            if need + KEPT_FREE > free:
                words = f"it is full: {free // 1024 ** 2} MiB are free, and {(need + KEPT_FREE) // 1024 ** 2} MiB are needed"
                missing.append((what, words, "Free space there, or name another storage"))
    return list(dict.fromkeys(missing))


def of_tags(
    known: Mapping[str, Any], instances: Iterable[Instance], templates: Iterable[Template], options: Mapping[str, Any],
) -> List[Missing]:
    """The tags that may not be set on a clone, or not be taken from it (`PVE/GuestHelpers.pm` of pve-guest-common, assert_tag_permissions).

    known is what /cluster/options answers. Who may set which tags it tells only with Sys.Audit on `/`; otherwise the clone will tell.
    """
    access, registered = known.get("user-tag-access") or {}, set(known.get("registered-tags") or ())
    free, allowed = access.get("user-allow", "free") == "free", set(known.get("allowed-tags") or ())
    inherited = {tag for template in templates for tag in re.split(r"[;, ]+", str(template.config.get("tags") or "")) if tag}
    ours = {tag for item in instances for tag in tags_for(item, options)}
    missing: List[Missing] = []
    changed = sorted(ours ^ inherited)
    reserved = [tag for tag in changed if tag in registered and tag not in allowed]
    if reserved:
        words = f"only an administrator may set or remove {', '.join(reserved)}"
        remedy = "Take them off the template and out of fleet_proxmox.tags, or out of the datacenter's registered-tags"
        missing.append(("tags", words, remedy))
    if not free and not set(changed) - set(reserved) <= allowed:
        words = f"users may not set or remove {', '.join(sorted(set(changed) - set(reserved) - allowed))}"
        wanted = sorted({*access.get("user-allow-list", ()), *changed} - registered)
        allow = access["user-allow"] if access["user-allow"] != "none" else "list"
        remedy = f"Run on a node: pvesh set /cluster/options --user-tag-access 'user-allow={allow},user-allow-list={';'.join(wanted)}'"
        missing.append(("tags", words, remedy))
    return missing


def privileges(templates: Sequence[Template], options: Mapping[str, Any]) -> Dict[str, List[str]]:
    """By path of the access control, all that the token needs. Where several would do, they are joined by a bar."""
    guests = f"/pool/{options['pool']}" if options.get("pool") else "/vms"
    own = ["VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.Config.Options"]
    kind = options["kind"]
    for key, name in (("cores", "CPU"), ("memory", "Memory"), ("disk", "Disk"), ("networks", "Network")):
        own += [f"VM.Config.{name}"] if options.get(key) else []
    if kind == "qemu" and any(has_cloudinit(item.config) for item in templates):
        own.append("VM.Config.Cloudinit|VM.Config.Network")
    if kind == "qemu" and options["facts"]:
        own.append("VM.Config.HWType")
    if kind == "lxc" and (options["addresses"] != AGENT or options.get("nameserver")):
        own.append("VM.Config.Network")
    if kind == "qemu" and options["addresses"] == AGENT:
        own.append("VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted|VM.Monitor")
    needed = {guests: sorted(set(own))}
    for template in templates:
        needed[f"/vms/{template.guest.vmid}"] = ["VM.Clone", "VM.Audit"]
        for volume in template.volumes:
            needed[f"/storage/{options.get('storage') or volume.storage}"] = ["Datastore.AllocateSpace"]
        # A clone asks for the template's bridges, also where `networks` replaces them (qemu-server `PVE/API2/Qemu.pm` clone_vm).
        wanted = [{"bridge": item["bridge"], "tag": str(item.get("vlan") or "")} for item in options.get("networks") or []]
        for path in network_paths([*nics_of(template.config), *wanted]):
            needed[path] = ["SDN.Use"]
    return needed


def of_permissions(
    held: Mapping[str, Mapping[str, Any]], who: str, templates: Sequence[Template], options: Mapping[str, Any],
) -> List[Missing]:
    """The privileges that are missing. held is what /access/permissions answers: what holds at each path that has an entry."""
    missing: List[Missing] = []
    for path, names in privileges(templates, options).items():
        have: Set[str] = set().union(*(held_at(held, place) for place in _places(held, path)))
        lacks = [name for name in names if not set(name.split("|")) & have]
        if lacks:
            command = f"pveum acl modify {path} --{'tokens' if '!' in who else 'users'} '{who}' --roles ROLE"
            words = f"{who} lacks {', '.join(name.replace('|', ' or ') for name in lacks)} on {path}"
            missing.append(("permissions", words, f"Give it a role with that, on the token and on its user: {command}"))
    return missing


def _places(held: Mapping[str, Any], path: str) -> Set[str]:
    """The paths that one may stand for: of a network it is not known here in which zone it is, a bridge of the nodes or an SDN's."""
    if not path.startswith("/sdn/zones/"):
        return {path}
    zones = {"localnetwork", *(place.split("/")[3] for place in held if place.startswith("/sdn/zones/"))}
    return {f"/sdn/zones/{zone}/{path.split('/', 4)[4]}" for zone in zones}


def held_at(held: Mapping[str, Mapping[str, Any]], path: str) -> Set[str]:
    """The privileges at a path: those of its nearest ancestor that has an entry, if they are passed down."""
    at = path
    while True:
        if at in held:
            return {name for name, down in held[at].items() if at == path or int(down)}
        if at == "/":
            return set()
        at = at.rpartition("/")[0] or "/"
