# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a fake Proxmox VE cluster lets whom do and see, as PVE's sources have it. fakepve allows more, and tells more."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from fakepve import FakePve, server, shapes
from fakepve.model import PveError, TaskError


class Access(FakePve):
    """Permissions are those of a token with privilege separation: what it holds and its user holds as well (`PVE/RPCEnvironment.pm`,
    compile_acl_path), asked for before anything else is looked at (`PVE/HTTPServer.pm`, rest_handler).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ending = 0.0
        """Seconds for which a guest that is being removed is still there, and its permissions are not."""
        self.dying = 0
        """So many of the next clones lose their worker: what was made stays, locked, and outside of the pool."""
        self.tag_access: dict[str, Any] = {}
        self.registered_tags: list[str] = []
        self.jobs: list[Any] = []
        self.killing = False
        self.roles = {
            "PVETemplateUser": {"VM.Clone", "VM.Audit"}, "PVEDatastoreUser": {"Datastore.AllocateSpace", "Datastore.Audit"},
            "PVESDNUser": {"SDN.Use", "SDN.Audit"},
        }

    def allowed(self, user: str, path: str, priv: str) -> bool:
        """What both of them hold, the token and its user; a pool's rights hold for its members alone."""
        owner = user.split("!")[0]
        return self.acl is None or owner == "root@pam" or all(self._holds(who, path, priv) for who in (user, owner))

    def _holds(self, who: str, path: str, priv: str) -> bool:
        kind, _slash, name = path[1:].partition("/")
        places = [path]
        if kind == "vms" and name:
            places += [f"/pool/{pool}" for pool, members in self.pools.items() if int(name) in members]
        if kind == "storage" and name:
            places += [f"/pool/{pool}" for pool, known in self.pool_info.items() if name in known["storage"]]
        return any(
            priv in privs and (granted == "/" or any(f"{place}/".startswith(f"{granted}/") for place in places))
            for granted, privs in (self.acl or {}).get(who, []))

    async def _permissions(self, v: Any, user: str) -> Any:
        """As `PVE/RPCEnvironment.pm`, get_effective_permissions: at the paths of all entries, and at every member of a pool."""
        if self.acl is None:
            return await super()._permissions(v, user)
        paths = {"/", "/access", "/nodes", "/pool", "/sdn", "/storage", "/vms", *(entry[0] for held in self.acl.values() for entry in held)}
        paths |= {f"/vms/{vmid}" for members in self.pools.values() for vmid in members}
        held = {path: {priv: 1 for priv in shapes.PRIVILEGES if self.allowed(user, path, priv)} for path in paths}
        return {path: privs for path, privs in sorted(held.items()) if privs}

    async def _answer(self, request: Any, handler: Any, generic: Any, path_node: Any) -> Any:
        """Who may not see a VMID is told nothing else about it, whether it is there or not."""
        match = self.resolve(request, server.API)
        info = match and match.methods.get(request.method)
        if info and self.acl is not None:
            values = {**await server.params(request), **match.params}
            try:
                self.check_permissions(request[server.USER], info.get("permissions"), values, info.get("parameters", {}).get("properties"))
            except PveError as error:
                return server.error(error.status, error.message, error.errors)
        return await super()._answer(request, handler, generic, path_node)

    def check_permissions(self, user: str, perms: Any, values: Any, declared: Any = None) -> None:
        """What all may ask is not checked any further (`PVE/RPCEnvironment.pm`, check_api2_permissions)."""
        if not (user and (perms or {}).get("user") == "all"):
            super().check_permissions(user, perms, values, declared)

    def _routes_options(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/cluster/options", self._options)]

    async def _options(self, v: Any, user: str) -> Any:
        """As `PVE/API2/Cluster.pm`, get_options: everybody sees the tags that they may set, and not who may set any."""
        seen = {"user-tag-access": self.tag_access, "registered-tags": self.registered_tags} if self.allowed(user, "/", "Sys.Audit") else {}
        return {**{key: value for key, value in seen.items() if value}, "allowed-tags": sorted(self._allowed_tags(user))}

    def _routes_administration(self) -> list[tuple[str, str, Any]]:
        token = "/access/users/{userid}/token/{tokenid}"
        return [
            ("POST", "/access/users", self._nothing), ("DELETE", "/access/users/{userid}", self._user_goes), ("POST", token, self._token),
            ("POST", "/access/roles", self._role), ("DELETE", "/access/roles/{roleid}", self._nothing), ("PUT", "/access/acl", self._acl),
            ("PUT", "/cluster/options", self._set_options), ("POST", "/nodes/{node}/vzdump", self._vzdump),
            ("DELETE", "/nodes/{node}/tasks/{upid}", self._stop_task),
        ]

    async def _nothing(self, v: Any, user: str) -> None:
        pass

    async def _user_goes(self, v: Any, user: str) -> None:
        for known in (self.acl or {}, self.apitokens):
            for name in [name for name in known if name.partition("!")[0] == v["userid"]]:
                del known[name]

    async def _token(self, v: Any, user: str) -> Any:
        name, value = f"{v['userid']}!{v['tokenid']}", str(uuid.uuid4())
        self.apitokens[name] = value
        return {"full-tokenid": name, "info": {"privsep": "1"}, "value": value}

    async def _role(self, v: Any, user: str) -> None:
        self.roles[v["roleid"]] = set(v["privs"].split(","))

    async def _acl(self, v: Any, user: str) -> None:
        for who in (v.get("users") or v.get("tokens")).split(","):
            self.grant(who, v["path"], *self.roles[v["roles"]])

    async def _set_options(self, v: Any, user: str) -> None:
        access = dict(part.split("=") for part in v.get("user-tag-access", "").split(",") if part)
        self.tag_access = {key: value.split(";") if key == "user-allow-list" else value for key, value in access.items()}

    async def _vzdump(self, v: Any, user: str) -> Any:
        return await self.backup(int(v["vmid"]), 2, user)

    async def _stop_task(self, v: Any, user: str) -> None:
        """A clone's worker ends in good order (`PVE/API2/Qemu.pm`, clone_vm: interrupted by signal)."""
        for job in self.jobs:
            job.cancel()

    def kill_clones(self) -> None:
        """The workers of clones end without a last word, and leave what they have made: locked, and outside of the pool."""
        self.killing = True
        for job in self.jobs:
            job.cancel()

    def _allowed_tags(self, user: str) -> set[str]:
        """As `PVE/GuestHelpers.pm` of pve-guest-common, get_allowed_tags, for a user without Sys.Modify on /."""
        allow = self.tag_access.get("user-allow", "free")
        allowed = set() if allow == "none" else set(self.tag_access.get("user-allow-list", ()))
        if allow in ("existing", "free"):
            seen = (vm for vm in [*self.vms, *self.cts] if self.allowed(user, f"/vms/{vm.vmid}", "VM.Audit"))
            allowed |= {tag for vm in seen for tag in str(vm.config.get("tags") or "").split(";") if tag}
        return allowed - set(self.registered_tags)

    async def _apply_config(self, vm: Any, user: str, p: Any) -> None:
        """As `PVE/API2/Qemu.pm`, update_vm_api: one key after the other is kept, in an order that nobody knows, until `tags` is refused
        (assert_tag_permissions); what was kept is shown. Here the description comes before the tags, and all else after them."""
        old, new = ({tag for tag in str(tags or "").split(";") if tag} for tags in (vm.config.get("tags"), p.get("tags")))
        free, allowed = self.tag_access.get("user-allow", "free") == "free", self._allowed_tags(user)
        refused = sorted(tag for tag in old ^ new if tag in self.registered_tags or not free and tag not in allowed)
        if "tags" not in p or not refused or self.allowed(user, "/", "Sys.Modify"):
            return await super()._apply_config(vm, user, p)
        await super()._apply_config(vm, user, {key: p[key] for key in ("description", "digest") if key in p})
        raise PveError(403, f"Permission check failed (/, Sys.Modify for modifying tag '{refused[0]}')")

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, *args: Any, **more: Any) -> Any:
        """A removal takes the guest's permissions away before its configuration (`PVE/API2/Qemu.pm` destroy_vm, `PVE/API2/LXC.pm`)."""
        async def ended() -> Any:
            guest = self.guest(int(tid))
            if self.ending and guest is not None and not guest.lock:
                self._pool_leave(guest.vmid)
                self.snapshot_lock(guest.vmid, "destroyed")
                await self.pause(self.ending)
                self.unlock(guest.vmid)
            return await work()

        async def killable() -> Any:
            job = asyncio.ensure_future(work())
            self.jobs.append(job)
            try:
                return await job
            except asyncio.CancelledError:
                if self.killing:
                    self.killing = False
                    raise TaskError("unexpected status") from None
                if more.get("vm") in self.vms:
                    self.vms.remove(more["vm"])
                raise TaskError("clone failed: interrupted by signal") from None

        async def died() -> Any:
            raise TaskError("unexpected status")

        work, told = body, body
        if ttype in ("qmdestroy", "vzdestroy"):
            told = ended
        elif ttype in ("qmclone", "vzclone"):
            self.dying, told = max(0, self.dying - 1), died if self.dying else killable
        return await super().task(node, ttype, tid, user, told, *args, **more)
