# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How Proxmox VE really answers: a token of least privilege, its certificates, its hosts, and changes that are made in part."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils import _run
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _proxmox_hosts, proxmox
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_api import Refusal
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import ProviderContract
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import until
from ansible_collections.phoenix.fleet.tests.integration.pve_case import ADDRESSES, MakeCase, ProxmoxCase, grant, granted
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import HOST, TOKEN, USER, CuttingProxy, Served
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fakepve.model import TaskError


def paused(served: Served) -> asyncio.Event:
    """Tasks take as long as the event is not set."""
    done = asyncio.Event()

    async def pause(seconds: float) -> None:
        if seconds:
            await done.wait()

    served.pve.pause = pause  # type: ignore[method-assign]
    served.pve.time_scale = 1
    return done


def go_on(served: Served, done: asyncio.Event) -> None:
    served.loop.call_soon_threadsafe(done.set)


ACTS = [("POST", "/clone$"), ("PUT", "/config$"), ("POST", "/status/start$"), ("DELETE", "/100000$")]


class Diary:
    """A journal that outlives the runs of a test."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}
        self.said: list[str] = []

    def began(self, task: str, doing: str) -> None:
        assert task not in self.tasks
        self.tasks[task] = doing

    def under_way(self) -> Mapping[str, str]:
        return dict(self.tasks)

    def say(self, text: str) -> None:
        self.said.append(text)

    def turn(self, name: str, width: int, seconds: float) -> AbstractContextManager[None]:
        return nullcontext()


# A token that may see its pool alone

class TestLeastPrivilege(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase, served: Served) -> ProxmoxCase:
        granted(served)
        return make(**ADDRESSES)


@pytest.mark.parametrize("way", ["cut", "drop"])
@pytest.mark.parametrize("call", ACTS, ids=" ".join)
def test_containers_of_a_token_of_least_privilege_survive_lost_answers(make: MakeCase, served: Served, call: Any, way: str) -> None:
    for number in (1, 2):
        served.pve.add_container(9010 + number, "shop-ct", f"pve{number}")
    granted(served)
    with CuttingProxy(served) as proxy:
        case = make("shop-ct", kind="lxc", **ADDRESSES, api_port=proxy.port)
        getattr(proxy, way).append(call)
        made = case.created(2)
        case.provider.stop(made, 1)
        case.provider.destroy(made, 1)
        assert len(proxy.lost) == 1 and case.provider.observe(case.fleet) == () and not [ct for ct in served.pve.cts if not ct.template]


def test_a_clone_under_way_and_a_removal_under_way_are_out_of_sight(make: MakeCase, served: Served) -> None:
    """The fake itself: what the tests below stand on."""
    granted(served)
    case = make(**ADDRESSES)
    item = case.created(1)[0]
    case.provider.stop([item], 1)
    cluster = case.provider.cluster  # type: ignore[attr-defined]
    found = cluster.survey()[0]
    with pytest.raises(Refusal, match=r"Permission check failed \(/vms/100077, VM.Audit\)"):
        case.provider.api.ask("asking", f"nodes/{item.host}/qemu/100077/config")  # type: ignore[attr-defined]
    done, served.pve.ending = paused(served), 1.0
    upid = case.provider.api.tell("removing", "delete", found.guest.path)  # type: ignore[attr-defined]
    cluster.forget()
    until("the removal begins", lambda: case.guest(item).lock == "destroyed")
    assert cluster.survey() == [] and cluster.look(found.guest) is None
    go_on(served, done)
    assert case.provider.api.tasks.wait(upid, "removing", 30) == "OK" and served.pve.guest(item.number) is None  # type: ignore[attr-defined]


def test_a_privilege_that_is_missing_is_never_taken_for_an_absence(make: MakeCase, served: Served) -> None:
    granted(served)
    case = make(**ADDRESSES)
    made = case.created(1)
    found = case.provider.cluster.survey()[0]  # type: ignore[attr-defined]
    served.pve.acl[USER] = [(path, set() if path == "/pool/fleet" else privs) for path, privs in served.pve.acl[USER]]
    case.provider.cluster.forget()  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=rf"/vms/{made[0].number}, VM.Audit.*Give {USER}!{TOKEN} that privilege"):
        case.provider.cluster.look(found.guest)  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=rf"{USER}!{TOKEN} lacks VM.Audit on /pool/fleet, .*pveum acl modify /pool/fleet"):
        case.provider.observe(case.fleet)  # or heal would replace them all


def test_what_the_users_own_role_lacks_the_token_lacks_too(make: MakeCase, served: Served) -> None:
    granted(served)
    case = make(**ADDRESSES)
    del served.pve.acl[USER]
    with pytest.raises(RefusedError, match="no guest of that name"):
        make(**ADDRESSES)
    with pytest.raises(RefusedError):
        case.created(1)


def test_a_clone_whose_answer_is_lost_is_waited_for_although_nobody_sees_it(make: MakeCase, served: Served) -> None:
    served.pve.add_template(9100, "slow", "pve1", "ceph")
    granted(served)
    with CuttingProxy(served) as proxy:
        case = make("slow", **ADDRESSES, api_port=proxy.port)
        done = paused(served)
        served.pve.ceph_slow(1.0)
        proxy.cut.append(("POST", "/clone$"))
        looks = count()
        proxy.hook = lambda method, path: path.endswith("/100000/config") and next(looks) == 8 and go_on(served, done)
        made = case.created(1)
        assert [item.state for item in made] == ["running"] and proxy.lost == ["POST /nodes/pve1/qemu/9100/clone"]
        assert served.pve.calls["POST /nodes/{node}/qemu/{vmid}/clone"] == 1


def test_a_clone_that_was_told_and_not_answered_is_waited_for_by_the_next_run(make: MakeCase, served: Served) -> None:
    """The controller dies when the cluster has acted, and before it says so: nobody has the UPID, and nobody sees the guest."""
    served.pve.add_template(9100, "slow", "pve1", "ceph")
    granted(served)
    diary = Diary()
    with CuttingProxy(served) as proxy:
        case = make("slow", **ADDRESSES, api_port=proxy.port)
        planned = case.planned(1)
        done = paused(served)
        served.pve.ceph_slow(1.0)

        class Killed(BaseException):
            pass

        def die(upid: Any, doing: str, seconds: float, warnings: bool = False) -> str:
            raise Killed

        first = connect(case.options, diary)
        first._ended = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            first.create(planned, case.blueprint)
        assert served.pve.guest(100000).lock == "clone" and len(diary.tasks) == 1
        lists = count()
        proxy.hook = lambda method, path: path.endswith("/pve1/tasks") and next(lists) == 3 and go_on(served, done)
        seen = connect(case.options, diary).observe(case.fleet)
        assert [(item.name, item.state) for item in seen] == [(planned[0].name, "created")]
        assert "waits for what a former run began" in diary.said[0] and ":qmclone:9100:" in diary.said[0]


@pytest.mark.parametrize("way", ["as documented", "as an administrator"])
def test_what_a_killed_worker_left_is_named_with_the_command(
    make: MakeCase, served: Served, monkeypatch: pytest.MonkeyPatch, way: str,
) -> None:
    monkeypatch.setattr(proxmox, "LOOKING", 0.3)
    if way == "as documented":
        granted(served)
    case = make(**ADDRESSES)
    planned = case.planned(1)
    served.pve.dying = 1
    words = "unexpected status.*qm unlock 100000; qm destroy 100000" if way == "as documented" else "is locked.*qm unlock 100000"
    with pytest.raises((RefusedError, DeadlineError), match=words):
        case.provider.create(planned, case.blueprint)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_removal_whose_answer_is_lost_is_judged_by_its_task(make: MakeCase, served: Served, ends: str) -> None:
    """It takes the guest out of sight before it is gone, and may fail after that."""
    granted(served)
    with CuttingProxy(served) as proxy:
        case = make(**ADDRESSES, api_port=proxy.port)
        made = case.created(1)
        case.provider.stop(made, 1)
        done, served.pve.ending = paused(served), 1.0
        if ends == "badly":
            def busy(volid: str) -> None:
                raise TaskError("cfs-lock")

            served.pve._qm_free = busy  # type: ignore[method-assign]
        proxy.cut.append(("DELETE", "/100000$"))
        lists = count()
        proxy.hook = lambda method, path: path.endswith("/tasks") and next(lists) == 3 and go_on(served, done)
        if ends == "well":
            case.provider.destroy(made, 1)
            assert served.pve.guest(100000) is None
        else:
            with pytest.raises(RefusedError, match="cfs-lock.*qm unlock 100000; qm destroy 100000 --purge"):
                case.provider.destroy(made, 1)


# Certificates

LOGINS = {
    "token": {},
    "password": {"api_user": "root@pam", "api_password": "secret", "api_token_id": None, "api_token_secret": None},
}


def signed(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """A node's certificate as PVE makes it, and its authority as pve-cluster made it before 9.1.2 (`PVE/Cluster/Setup.pm`): no keyUsage."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "node")}
    subjects = {who: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{who} of {folder.name}")]) for who in keys}
    files = {}
    for who, key in keys.items():
        made = (
            x509.CertificateBuilder().subject_name(subjects[who]).issuer_name(subjects["ca"]).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(9))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key()), False)
            .add_extension(x509.BasicConstraints(who == "ca", None), True))
        if who == "node":
            kinds = [x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names]
            made = made.add_extension(x509.SubjectAlternativeName(kinds), False)
        files[who] = str(folder / f"{who}.pem")
        Path(files[who]).write_bytes(made.sign(keys["ca"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files["key"] = str(folder / "node.key")
    Path(files["key"]).write_bytes(keys["node"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts as Python 3.13 and later make them by default."""
    monkeypatch.setattr("urllib3.util.ssl_.sys", SimpleNamespace(version_info=(3, 13, 0)))
    plain = ssl.create_default_context

    def strictly(*args: Any, **options: Any) -> ssl.SSLContext:
        context = plain(*args, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strictly)


def certified(served: Served, files: Mapping[str, str]) -> None:
    served.shut()
    served.do(lambda: served.pve.start(files["node"], files["key"]))


@pytest.mark.parametrize("login", LOGINS)
def test_an_older_authority_of_pve_is_trusted_by_a_strict_python(served: Served, strict: None, tmp_path: Path, login: str) -> None:
    files = signed(tmp_path, [HOST])
    certified(served, files)
    options = {**served.options(**LOGINS[login]), "ca_path": files["ca"]}
    assert connect(options).observe("web") == ()


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize("fault", ["another authority", "another name"])
def test_a_certificate_of_another_authority_or_name_stays_refused(
    served: Served, strict: None, tmp_path: Path, login: str, fault: str,
) -> None:
    names = ["192.0.2.9", "pve1.example.org"] if fault == "another name" else [HOST]
    files = signed(tmp_path, names)
    certified(served, files)
    other = signed(Path(tempfile.mkdtemp(dir=tmp_path)), [HOST])
    options = {**served.options(**LOGINS[login]), "ca_path": files["ca"] if fault == "another name" else other["ca"]}
    with pytest.raises(UnreachableError, match="TLS failed.*ca_path"):
        connect(options).observe("web")
    assert connect({**options, "validate_certs": False}).observe("web") == ()


# Hosts

OTHER, THIRD = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECTING", "FIRST", "ASKING"):
        monkeypatch.setattr(_proxmox_hosts, name, 0.5)


@contextmanager
def black_hole(served: Served, host: str = OTHER) -> Iterator[None]:
    """It listens, and neither accepts nor answers."""
    with socket.socket() as listener:
        listener.bind((host, served.port))
        listener.listen(64)
        yield


@pytest.mark.parametrize("first", ["is off", "is a black hole", "accepts and never answers"])
@pytest.mark.parametrize("login", LOGINS)
def test_another_host_is_asked_where_the_first(make: MakeCase, served: Served, hasty: None, first: str, login: str) -> None:
    with ExitStack() as stack:
        if first == "is a black hole":
            stack.enter_context(black_hole(served))
        if first == "accepts and never answers":
            proxy = stack.enter_context(CuttingProxy(served, OTHER, served.port))
            never = threading.Event()
            stack.callback(never.set)
            proxy.hook = lambda method, path: never.wait(60) and None
        case = make(**ADDRESSES, **LOGINS[login], api_host=[OTHER, HOST])
        assert [item.state for item in case.created(2)] == ["running", "running"]
        assert case.provider.api.where == f"{HOST}:{served.port}"  # type: ignore[attr-defined]


def test_a_question_goes_to_another_host_where_one_falls_silent_in_the_middle(make: MakeCase, served: Served, hasty: None) -> None:
    with CuttingProxy(served, OTHER, served.port) as proxy:
        case = make(**ADDRESSES, api_host=f"{OTHER}, {HOST}")
        case.created(1)
        never, passed = threading.Event(), len(served.pve.requests)
        proxy.hook = lambda method, path: never.wait(60) and None
        case.provider.cluster.forget()  # type: ignore[attr-defined]
        assert len(case.provider.observe(case.fleet)) == 1 and len(served.pve.requests) > passed
        never.set()


@pytest.mark.parametrize("call", ACTS, ids=" ".join)
def test_an_act_without_an_answer_is_looked_up_through_another_host(make: MakeCase, served: Served, hasty: None, call: Any) -> None:
    """The host that it was told dies of it; nothing is told twice that was done."""
    granted(served)
    with CuttingProxy(served, OTHER, served.port) as proxy:
        case = make(**ADDRESSES, api_host=[OTHER, HOST])
        proxy.cut.append(call)
        dead = threading.Event()

        def hook(method: str, path: str) -> None:
            if proxy.lost:
                dead.set()
                proxy.drop.append((method, "."))

        proxy.hook = hook
        made = case.created(1)
        case.provider.stop(made, 1)
        case.provider.destroy(made, 1)
        assert len(proxy.lost) == 1 and not dead.is_set() and case.provider.observe(case.fleet) == ()
        assert served.pve.calls["POST /nodes/{node}/qemu/{vmid}/clone"] == 1


def test_where_no_host_answers_each_is_named_with_its_cause(served: Served, hasty: None) -> None:
    with black_hole(served, THIRD):
        options = {**served.options(), "api_host": [OTHER, THIRD, "nowhere.invalid"]}
        causes = rf"{OTHER}: Connection refused; {THIRD}: no answer within \d+ s; nowhere.invalid: .*api_host"
        with pytest.raises(UnreachableError, match=causes):
            connect(options).observe("web")


def test_a_refusal_is_an_answer_and_no_other_host_is_asked(served: Served, hasty: None) -> None:
    with CuttingProxy(served, OTHER, served.port) as proxy:
        asked: list[str] = []
        proxy.hook = lambda method, path: asked.append(path)
        with pytest.raises(RefusedError, match=f"Check the secret of {USER}!{TOKEN}"):
            connect({**served.options(), "api_host": [HOST, OTHER], "api_token_secret": "wrong"}).observe("web")
        assert asked == []


def test_the_host_that_answered_is_kept_from_task_to_task(
    served: Served, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_run, "folder", str(tmp_path))
    options = {**served.options(), "api_host": [OTHER, HOST]}
    connect(options).observe("web")
    with CuttingProxy(served, OTHER, served.port) as proxy:
        asked: list[str] = []
        proxy.hook = lambda method, path: asked.append(path)
        assert connect(options).observe("web") == () and asked == []


# Changes that are made in part

def tags_of(case: Any) -> list[str]:
    return ["golden", "phoenix.fleet", f"phoenix.fleet.{case.fleet}"]


@pytest.mark.parametrize("allow", ["none", "list", "existing", "registered"])
def test_a_clone_whose_tags_are_refused_is_never_called_complete(make: MakeCase, served: Served, allow: str) -> None:
    """The description was written before the tags were refused, and the address after that never."""
    granted(served)
    case = make(**ADDRESSES)
    served.pve.tag_access = {} if allow == "registered" else {"user-allow": allow, "user-allow-list": ["phoenix.fleet"]}
    served.pve.registered_tags = ["golden"] if allow == "registered" else []
    planned = case.planned(1)
    with pytest.raises(RefusedError, match="Sys.Modify for modifying tag.*user-allow-list") as refused:
        case.provider.create(planned, case.blueprint)
    remedy = str(refused.value).rpartition("(/, Sys.Modify for modifying tag")[2]
    assert "pvesh set /cluster/options --user-tag-access" in remedy and "Sys.Modify" not in remedy
    assert [(item.state, item.health) for item in case.provider.observe(case.fleet)] == [("created", "unhealthy")]
    served.pve.registered_tags, served.pve.tag_access = [], {"user-allow": "list", "user-allow-list": tags_of(case)}
    made = case.provider.create(planned, case.blueprint)
    assert [(item.state, item.health, item.address) for item in made] == [("running", "none", planned[0].address)]
    assert case.guest(made[0]).config["ipconfig0"].startswith(f"ip={planned[0].address}/")


@pytest.mark.parametrize("allow", ["none", "list", "registered"])
def test_refused_tags_are_told_before_anything_is_made_by_who_may_see_the_options(make: MakeCase, served: Served, allow: str) -> None:
    granted(served)
    grant(served, "/", "Sys.Audit")
    case = make(**ADDRESSES)
    served.pve.tag_access = {} if allow == "registered" else {"user-allow": allow, "user-allow-list": ["blue"]}
    served.pve.registered_tags = ["golden"] if allow == "registered" else []
    with pytest.raises(RefusedError) as refused:
        case.provider.preflight(case.planned(1), case.blueprint)
    told = str(refused.value)
    if allow == "registered":
        assert "golden" in told and "registered-tags" in told and "phoenix.fleet" not in told.partition("golden")[2].partition(".")[0]
    else:
        known = ";".join(["blue", *tags_of(case)])
        assert f"--user-tag-access 'user-allow=list,user-allow-list={known}'" in told
    served.pve.registered_tags, served.pve.tag_access = [], {"user-allow": "list", "user-allow-list": tags_of(case)}
    case.provider.preflight(case.planned(1), case.blueprint)


def test_what_a_change_of_the_configuration_did_not_reach_is_told(make: MakeCase, served: Served) -> None:
    """PVE says yes, and somebody else's hook has put it back."""
    case = make(**ADDRESSES)
    original = served.pve._apply_config

    async def without_address(vm: Any, user: str, p: Any) -> None:
        await original(vm, user, {key: value for key, value in p.items() if key != "ipconfig0"})

    served.pve._apply_config = without_address  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="ipconfig0 is .none., not ip=10.77.0.10"):
        case.created(1)
    assert [item.health for item in case.provider.observe(case.fleet)] == ["unhealthy"]


# A reader's own cluster

@contextmanager
def ssh_to_nodes(served: Served, folder: Path) -> Iterator[Path]:
    """A folder with an `ssh` that does on the fake cluster what the script tells a node to do."""
    pve, told, over = served.pve, folder / "told", threading.Event()
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {told}\n')
    program.chmod(0o755)
    told.touch()

    def obey(line: str) -> None:
        node = line.rpartition("root@")[2].partition(" ")[0]
        if "pvestatd" in line:
            pve.stop_pvestatd(node, "stop" in line)
        elif "kill -9" in line:
            pve.kill_clones()
        elif "qm destroy" in line:
            pve.vms[:] = [vm for vm in pve.vms if f"qm destroy {vm.vmid} " not in line]

    def watch() -> None:
        done, last = 0, False
        while not last:
            last = over.wait(0.05)
            lines = told.read_text().splitlines()
            for line in lines[done:]:
                served.loop.call_soon_threadsafe(obey, line)
            done = len(lines)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield program.parent
    finally:
        over.set()
        thread.join(10)
        served.do(lambda: asyncio.sleep(0))  # what was told last is done


def test_the_script_for_a_readers_own_cluster_runs_to_its_end(served: Served, tmp_path: Path) -> None:
    """On the fake, where no step is left out: so the script itself is known to run, and to leave nothing behind."""
    pve = served.pve
    for node in (1, 2):
        pve.add_template(9100 + node, "shop-slow", f"pve{node}", "ceph")
    pve.add_template(9200, "shop-shared", "pve1", "ceph", ide2="ceph:vm-9200-cloudinit,media=cdrom")
    pve.store_file("local", "debian.iso", 4096)
    pve.time_scale = 1
    pve.ceph_slow(0.5)
    guests, pools = len(pve.vms), set(pve.pools)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PVE_", "PYTEST_"))},
        "PVE_HOST": HOST, "PVE_PORT": str(served.port), "PVE_CA": str(served.ca), "PVE_TEMPLATE": "shop-slow", "PVE_SHARED": "shop-shared",
        "PVE_ADMIN": "root@pam", "PVE_ADMIN_PASSWORD": "secret", "PVE_BACKUP": "local", "PVE_ISO": "local:iso/debian.iso", "PVE_TAGS": "1",
        "PVE_SSH": "root@{node}", "PVE_PVESTATD": "1", "PVE_OPTIONS": json.dumps(ADDRESSES),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={tmp_path}", str(Path(__file__).parents[1] / "pve")]
    with ssh_to_nodes(served, tmp_path) as programs:
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    report = done.stdout.partition("---- phoenix.fleet on Proxmox VE")[2].partition("---- end ----")[0]
    print(report)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [[part.strip() for part in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("| ")][1:]
    assert [step for step in steps if step[1] != "ok"] == [] and len(steps) == 12, report
    assert len(pve.vms) == guests and set(pve.pools) == pools and list(pve.apitokens) == [f"{USER}!{TOKEN}"], "all is taken away"
    assert "secret" not in report and HOST not in report


def test_without_any_login_the_script_says_how_to_make_one(served: Served, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PVE_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={tmp_path}", "-k", "two", str(Path(__file__).parents[1] / "pve")]
    done = subprocess.run(
        command, env={**environment, "PVE_HOST": HOST, "PVE_TEMPLATE": "9001"}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "pveum acl modify /vms/9001 $who --roles PVETemplateUser" in done.stdout, done.stdout + done.stderr
