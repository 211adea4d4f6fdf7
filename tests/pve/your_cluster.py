# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A reader's own cluster: how to reach it, the documented token, fleets on it, and all that is to be taken away again."""

from __future__ import annotations

import json
import os
import platform
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_api import Api
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_cluster import Cluster
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_guest import Template, network_paths, nics_of
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_options import band_of, settle
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import ProxmoxProvider, connect
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._sets import placed
from ansible_collections.phoenix.fleet.tests.cutting import Cutting
from fakepve.certs import make_cert

PRIVILEGES = (
    "VM.Allocate VM.Audit VM.PowerMgmt VM.Config.Options VM.Config.Cloudinit VM.Config.CPU VM.Config.Memory VM.Config.Disk "
    "VM.Config.HWType VM.Config.Network Pool.Audit"
)
HOW = """Neither a token was given (PVE_USER, PVE_TOKEN, PVE_SECRET) nor an administrator's login (PVE_ADMIN, PVE_ADMIN_PASSWORD), with
which one is made for this run and removed after it. Make one on a node:

    pveum pool add phoenix-test
    pveum user add phoenix-test@pve && pveum user token add phoenix-test@pve ci --privsep 1
    pveum role add PhoenixTest --privs "{privileges} VM.GuestAgent.Audit"     # before Proxmox VE 9: VM.Monitor
    for who in '--users phoenix-test@pve' '--tokens phoenix-test@pve!ci'; do
        pveum acl modify /pool/phoenix-test $who --roles PhoenixTest
        pveum acl modify /vms/{template} $who --roles PVETemplateUser         # its VMID, and that of each replica
        pveum acl modify /storage/STORAGE $who --roles PVEDatastoreUser       # each that the template's disks are on
        pveum acl modify /sdn/zones/localnetwork/BRIDGE $who --roles PVESDNUser
    done
    make test-pve PVE_HOST=... PVE_TEMPLATE={template} PVE_USER=phoenix-test@pve PVE_TOKEN=ci PVE_SECRET=... PVE_POOL=phoenix-test"""

FACTS: list[str] = []
"""Lines of the report on what was tried: versions, nodes, storages."""

SECRETS: list[str] = []
"""What was made here and is in no report, beside what the environment has."""

BAND = 40
"""VMIDs for each fleet: none is used twice within a run."""


def masked(text: str) -> str:
    """Without secrets, and without names of hosts."""
    given = [os.environ.get(name, "") for name in ("PVE_SECRET", "PVE_ADMIN_PASSWORD", "PVE_HOST", "PVE_SSH", "PVE_CA")]
    for secret in sorted((item for item in [*SECRETS, *given] if item), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class Yours:
    """What the environment says of a cluster (docs/proxmox.md). `close` takes away what was made, the last first; `left` is what stayed."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = {key: value for key, value in given.items() if key.startswith("PVE_") and value}
        self.name = f"phoenix-test-{secrets.token_hex(2)}"
        self.left: list[str] = []
        self.secret = ""
        self._undo = ExitStack()
        self._fleets = 0
        missing = [name for name in ("PVE_HOST", "PVE_TEMPLATE") if name not in self.given]
        assert not missing, f"set {', '.join(missing)} (docs/proxmox.md)"
        self._reach = {"api_host": self.given["PVE_HOST"]}
        for name, option in (("PVE_PORT", "api_port"), ("PVE_CA", "ca_path"), ("PVE_POOL", "pool")):
            self._reach.update({option: self.given[name]} if name in self.given else {})
        self._reach.update(json.loads(self.given.get("PVE_OPTIONS", "{}")))
        self.admin = self._as_administrator()
        self.options = self._with_token()
        FACTS.extend(self._facts())

    def _as_administrator(self) -> Api | None:
        if not {"PVE_ADMIN", "PVE_ADMIN_PASSWORD"} <= set(self.given):
            return None
        return Api(settle({**self._reach, "api_user": self.given["PVE_ADMIN"], "api_password": self.given["PVE_ADMIN_PASSWORD"]}))

    def _with_token(self) -> dict[str, Any]:
        if {"PVE_USER", "PVE_TOKEN", "PVE_SECRET"} <= set(self.given):
            names = {"api_user": "PVE_USER", "api_token_id": "PVE_TOKEN", "api_token_secret": "PVE_SECRET"}
            return {**self._reach, **{option: self.given[name] for option, name in names.items()}}
        assert self.admin is not None, HOW.format(privileges=PRIVILEGES, template=self.given["PVE_TEMPLATE"])
        try:
            return self._made_token(self.admin)
        except BaseException:
            self.close()
            raise

    def _made_token(self, admin: Api) -> dict[str, Any]:
        """The documented roles, on a pool, a user and a token of this run."""
        user, pool, role = f"{self.name}@pve", self._reach.get("pool", self.name), self.name.replace("-", "")
        newer = int(str(self.ask("version")["version"]).partition(".")[0]) >= 9
        if pool == self.name:
            self.do("post", "pools", poolid=pool)
            self.later(f"pool {pool}", lambda: self.do("delete", f"pools/{pool}"))
        privileges = f"{PRIVILEGES} {'VM.GuestAgent.Audit' if newer else 'VM.Monitor'}".split()
        self.do("post", "access/roles", roleid=role, privs=",".join(privileges))
        self.later(f"role {role}", lambda: self.do("delete", f"access/roles/{role}"))
        self.do("post", "access/users", userid=user)
        self.later(f"user {user}", lambda: self.do("delete", f"access/users/{user}"))
        self.secret = str(self.do("post", f"access/users/{user}/token/ci", privsep=1)["value"])
        SECRETS.append(self.secret)
        self.trust = (user, f"{user}!ci")
        self.grant(f"/pool/{pool}", role)
        for template in self.templates(self.given["PVE_TEMPLATE"]) + self.templates(self.given.get("PVE_SHARED", "")):
            self.grant_template(template)
        return {**self._reach, "pool": pool, "api_user": user, "api_token_id": "ci", "api_token_secret": self.secret}

    def grant_template(self, template: Template) -> None:
        self.grant(f"/vms/{template.guest.vmid}", "PVETemplateUser")
        for storage in {volume.storage for volume in template.volumes} | ({self._reach["storage"]} if "storage" in self._reach else set()):
            self.grant(f"/storage/{storage}", "PVEDatastoreUser")
        for path in network_paths(nics_of(template.config)):
            self.grant(path, "PVESDNUser")

    def grant(self, path: str, role: str) -> None:
        for kind, who in zip(("users", "tokens"), self.trust, strict=True):
            self.do("put", "access/acl", path=path, roles=role, **{kind: who})

    def templates(self, reference: str) -> list[Template]:
        assert self.admin is not None
        settled = settle({**self._reach, "api_user": self.given["PVE_ADMIN"], "api_password": "-"})
        return Cluster(self.admin, settled).templates(reference) if reference else []

    def ask(self, path: str, **params: Any) -> Any:
        """As the administrator."""
        assert self.admin is not None
        return self.admin.ask(f"asking for {path}", path, **params)

    def do(self, method: str, at: str, **params: Any) -> Any:
        """As the administrator; waits for the task, where it is one."""
        assert self.admin is not None
        answer = self.admin._call(f"{method} {at}", method, at, params)  # one of the parameters of an ACL is a path
        if isinstance(answer, str) and answer.startswith("UPID:"):
            ended = self.admin.tasks.wait(answer, f"{method} {at}", 1800)
            assert ended == "OK" or ended.startswith("WARNINGS"), f"{method} {at}: {ended}"
        return answer

    def remove_guest(self, path: str) -> None:
        """As the administrator, where it is there; a copy has its template's protection."""
        assert self.admin is not None
        if self.admin.maybe(f"looking at {path}", f"{path}/config") is not None:
            self.do("put", f"{path}/config", protection=0)
            self.do("delete", path, purge=1)

    def on_node(self, node: str, command: str) -> bool:
        """Run it there as root, where PVE_SSH says how (`root@{node}.example.org`); otherwise ask the reader to, and go on."""
        if "PVE_SSH" not in self.given:
            print(f"\n    Run on node {node} as root: {command}\n", flush=True)
            return False
        place = self.given["PVE_SSH"].format(node=node)
        subprocess.run(["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", place, command], check=True, timeout=60)
        return True

    def until(self, holds: Callable[[], Any], seconds: float, every: float = 2.0) -> Any:
        """What holds, once it does; nothing when the seconds have passed."""
        deadline = time.monotonic() + seconds
        while True:
            found = holds()
            if found or time.monotonic() > deadline:
                return found
            time.sleep(every)

    def _facts(self) -> list[str]:
        api = Api(settle(self.options))
        resources = api.ask("looking at the cluster", "cluster/resources") or []
        nodes = [item for item in resources if item.get("type") == "node"]
        storages = sorted({f"{item.get('plugintype')}{' (shared)' if int(item.get('shared') or 0) else ''}"
                           for item in resources if item.get("type") == "storage"})
        libraries = ", ".join(f"{name} {version(name)}" for name in ("ansible-core", "proxmoxer", "requests", "urllib3"))
        return [
            f"Proxmox VE {api.ask('asking for the version', 'version')['version']}, {len(nodes)} nodes, storages: {', '.join(storages)}",
            f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {libraries}",
            f"token {'made for this run, with privilege separation' if self.secret else 'given'}; kind {self.options.get('kind', 'qemu')}, "
            f"clones {self.options.get('clone', 'linked')}, addresses {'fixed' if self.options.get('addresses') else 'told by the guests'}",
        ]

    def fleet(self, image: str = "", **options: Any) -> Fleet:
        """Another fleet, with VMIDs of its own. It is taken away at the end, whatever is left of it then."""
        first = band_of(settle(self.options))[0] + BAND * self._fleets
        self._fleets += 1
        band = {"vmid_range": f"{first}-{first + BAND - 1}"}
        made = Fleet(f"{self.name}-{self._fleets}", image or self.given["PVE_TEMPLATE"], {**self.options, **band, **options})
        own = Fleet(made.name, image or self.given["PVE_TEMPLATE"], {**self.options, **band}) if options else made
        self.later(f"fleet {made.name}", own.remove)
        return made

    def cutting(self) -> Cutting:
        """A proxy in front of the cluster, at this machine's own address, whose certificate is its `ca_path`."""
        folder = TemporaryDirectory()
        self._undo.enter_context(folder)
        certificate, key = make_cert(folder.name)[:2]
        settled = settle(self.options)
        trusted = ssl.create_default_context(cafile=settled.get("ca_path"))
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not settled["validate_certs"]:
            trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
        made = Cutting((settled["api_host"][0], settled["api_port"]), trusted, str(certificate), str(key))
        self._undo.enter_context(made)
        made.options = {"api_host": "127.0.0.1", "api_port": made.port, "ca_path": str(Path(certificate)), "validate_certs": True}
        return made

    def later(self, what: str, act: Callable[[], Any]) -> None:
        """Do this in the end, whatever happens, and say it where that fails."""
        def attempt() -> None:
            try:
                act()
            except (FleetError, AssertionError, OSError, subprocess.SubprocessError) as error:
                self.left.append(f"{what}: {' '.join(str(error).split())}")

        self._undo.callback(attempt)

    def close(self) -> None:
        self._undo.close()


class Fleet:
    """Instances of one template."""

    def __init__(self, name: str, image: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        self.provider: ProxmoxProvider = connect(options)
        self.form = Blueprint(self.provider.image(image), "test", "phoenix-test", "", options, 22)

    def plan(self, count: int, hosts: tuple[str, ...] = ()) -> tuple[Instance, ...]:
        pools = [pool for pool in self.provider.pools(self.name, 22, ["local"]) if not hosts or pool.host in hosts]
        return placed(FACE, list(range(1, count + 1)), (), pools, {"fleet": self.name, "release": 1}, self.form)

    def create(self, count: int) -> tuple[Instance, ...]:
        return self.provider.create(self.plan(count), self.form)

    def observe(self) -> tuple[Instance, ...]:
        return self.provider.observe(self.name)

    def remove(self) -> None:
        self.provider.destroy(self.observe(), 30)
        assert self.observe() == (), f"instances of {self.name} are left"
