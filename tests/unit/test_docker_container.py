# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An instance as a container: what an engine is asked for, what is read from its listing, and how its errors are told."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3
from ansible_collections.phoenix.fleet.plugins.module_utils._concurrency import each
from ansible_collections.phoenix.fleet.plugins.module_utils._docker_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, InvalidError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance, Pool
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _docker_container as container
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _docker_engine as engine
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _hosts
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._docker_options import OPTIONS, shape
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._hosts import same_place
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker import DockerProvider
from ansible_collections.phoenix.fleet.plugins.module_utils._sets import hash_of, placed, places
from hypothesis import given
from hypothesis import strategies as st

PLANNED = Instance("web-r7-1", "local", "web", 7, 1, "shop@sha256:1", "172.30.0.2", 8080, "4be1c2d")
BLUEPRINT = Blueprint(Image("shop:1", "shop@sha256:1"), "abc", "ours", "4be1c2d", port=8080)


def listed(**changes: Any) -> dict[str, Any]:
    """The listing's entry of the container that PLANNED becomes."""
    config = container.container_config(PLANNED, BLUEPRINT, {}, "phoenix", "2026-11-20T03:00:00Z", published=False)
    return {"Id": "9f3c", "Names": ["/web-r7-1"], "Labels": config["Labels"], "State": "running", "Status": "Up 2 minutes", **changes}


def test_what_is_asked_for_is_what_is_seen() -> None:
    seen = container.seen_in(listed(), "local")
    assert seen is not None and seen.marker["phoenix.fleet.ledger"] == "ours" and seen.marker["phoenix.fleet.hash"] == "abc"
    assert (seen.name, seen.fleet, seen.release, seen.slot, seen.image, seen.address, seen.port, seen.revision) == (
        PLANNED.name, PLANNED.fleet, 7, 1, PLANNED.image, PLANNED.address, PLANNED.port, PLANNED.revision)
    assert (seen.id, seen.state, seen.health, seen.created) == ("9f3c", "running", "none", "2026-11-20T03:00:00Z")


@pytest.mark.parametrize("label", ["name", "release", "slot", "image", "address"])
def test_half_a_marker_is_a_strangers(label: str) -> None:
    labels = {key: value for key, value in listed()["Labels"].items() if key != f"phoenix.fleet.{label}"}
    assert container.seen_in(listed(Labels=labels), "local") is None


@pytest.mark.parametrize(("state", "status", "expected"), [
    ("running", "Up 5 seconds (healthy)", ("running", "healthy")), ("running", "Up 1 second (health: starting)", ("running", "starting")),
    ("running", "Up 2 hours (unhealthy)", ("running", "unhealthy")), ("paused", "Up 2 hours (Paused)", ("running", "unhealthy")),
    ("restarting", "Restarting (3) 1 second ago", ("restarting", "none")), ("exited", "Exited (0) 5 days ago", ("stopped", "none")),
    ("dead", "Dead", ("stopped", "none")), ("created", "Created", ("created", "none")), ("removing", "", ("stopped", "none")),
])
def test_state_and_health_are_read_from_the_listing(state: str, status: str, expected: tuple[str, str]) -> None:
    seen = container.seen_in(listed(State=state, Status=status), "local")
    assert seen is not None and (seen.state, seen.health) == expected


def test_published_instances_bind_their_own_port_to_the_services() -> None:
    config = container.container_config(PLANNED, BLUEPRINT, {}, None, "now", published=True)
    assert config["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": "172.30.0.2", "HostPort": "8080"}]}
    assert "NetworkMode" not in config["HostConfig"] and "NetworkingConfig" not in config
    joined = container.container_config(PLANNED, BLUEPRINT, {}, "apps", "now", published=True)
    assert joined["HostConfig"] == {**config["HostConfig"], "NetworkMode": "apps"} and "NetworkingConfig" not in joined


def test_the_fleets_variables_win() -> None:
    options = {"environment": {"A": "$b", "PHOENIX_RELEASE": "9"}}
    config = container.container_config(PLANNED, BLUEPRINT, options, None, "now", published=True)
    assert [line for line in config["Env"] if line.startswith(("A", "PHOENIX_RELEASE"))] == ["A=$b", "PHOENIX_RELEASE=7"]


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True), st.text(), max_size=4))
def test_secrets_are_archived_as_they_are_for_their_owner_alone(secrets: dict[str, str]) -> None:
    with tarfile.open(fileobj=io.BytesIO(container.secrets_archive(secrets, 1234, 5))) as archive:
        files = {item.name: item for item in archive.getmembers()}
        assert set(files) == set(secrets)
        for name, item in files.items():
            content = archive.extractfile(item)
            assert content is not None and content.read().decode() == secrets[name]
            assert (item.mode, item.uid, item.gid) == (0o400, 1234, 5)


@pytest.mark.parametrize(("reference", "registry", "repository"), [
    ("shop", "docker.io", "shop"), ("shop:1", "docker.io", "shop"), ("library/shop:1", "docker.io", "library/shop"),
    ("registry:5000/shop", "registry:5000", "registry:5000/shop"), ("localhost/shop:1", "localhost", "localhost/shop"),
    ("r.example.org/a/shop:1@sha256:9", "r.example.org", "r.example.org/a/shop"),
])
def test_an_images_name_has_parts(reference: str, registry: str, repository: str) -> None:
    assert (container.registry_of(reference), container.repository_of(reference)) == (registry, repository)


@pytest.mark.parametrize(("url", "home"), [
    ("unix:///var/run/docker.sock", "local"), ("tcp://127.0.0.1:2376", "local"), ("ssh://ops@localhost", "local"),
    ("tcp://[::1]:2376", "local"),
    ("tcp://192.0.2.200:2376", "192.0.2.200"), ("ssh://ops@192.0.2.200:22", "192.0.2.200"), ("ssh://192.0.2.200", "192.0.2.200"),
])
def test_an_engine_is_on_a_host(url: str, home: str) -> None:
    assert engine.home_of(url) == home


@pytest.mark.parametrize(("home", "balancer", "same"), [
    ("local", "local", True), ("local", "127.0.0.1", True), ("local", "192.0.2.200", False), ("192.0.2.200", "local", False),
    ("192.0.2.200", "192.0.2.200", True), ("192.0.2.200", "192.0.2.201", False),
])
def test_a_balancer_is_on_the_engines_host_or_not(home: str, balancer: str, same: bool) -> None:
    assert same_place(home, balancer) is same


def test_the_engine_is_the_one_that_the_docker_client_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://node1:2376")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certs")
    assert engine.sites({}) == [{"url": "tcp://node1:2376", "name": "node1", "tls": {
        "ca_path": "/certs/ca.pem", "client_cert": "/certs/cert.pem", "client_key": "/certs/key.pem", "validate_certs": True}}]
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name)
    assert engine.sites({}) == [{"url": "unix:///var/run/docker.sock", "name": "local"}]


def test_the_engine_of_the_docker_clients_context_is_taken_or_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"currentContext": "staging"}')
    for name, host in (("staging", "tcp://192.0.2.6:2375"), ("prod", "tcp://192.0.2.5:2375")):
        folder = tmp_path / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    assert engine.found_by_client()["url"] == "tcp://192.0.2.6:2375"
    monkeypatch.setenv("DOCKER_CONTEXT", "prod")
    assert engine.found_by_client()["url"] == "tcp://192.0.2.5:2375"
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(RefusedError, match="context gone: there is none of that name"):
        engine.found_by_client()


class Containerd:
    """An engine with containerd's store: it says of every image that it was in a registry. Debian's engine has no such store."""

    name = "one"

    def __init__(self, status: int) -> None:
        self.status = status

    def maybe(self, doing: str, method: str, reference: str) -> dict[str, Any]:
        return {"Id": "sha256:" + "c" * 64, "RepoDigests": [f"{reference.split(':')[0]}@sha256:{'c' * 64}"]}

    def ask_registry(self, reference: str, local: bool) -> str:
        raise engine.Refusal(f"image {reference}", "no", "", self.status)


@pytest.mark.parametrize(("reference", "status", "known"), [
    ("shop:1", 401, True), ("shop:1", 404, True), ("shop:1", 500, False), ("acme/shop:1", 401, False), ("localhost/shop:1", 404, False),
])
def test_an_image_that_was_in_no_registry_is_known_where_the_engine_says_it_was(reference: str, status: int, known: bool) -> None:
    provider = DockerProvider([Containerd(status)], {})  # type: ignore[list-item]
    if known:
        assert provider.image(reference) == Image(reference, "sha256:" + "c" * 64)
    else:
        with pytest.raises(RefusedError):
            provider.image(reference)


def test_an_engine_that_goes_in_the_middle_of_a_pull_is_told_as_one() -> None:
    def pull(*_args: Any, **_options: Any) -> Any:
        raise urllib3.exceptions.ProtocolError("Connection broken", OSError())

    gone = object.__new__(engine.Engine)
    gone.name, gone.url, gone.registry, gone.client = "one", "tcp://192.0.2.1:2376", None, SimpleNamespace(pull=pull)
    with pytest.raises(UnreachableError, match="engine one, pulling shop:1 .*Connection broken"):
        gone.pull("shop:1")


@pytest.mark.parametrize("listed_by_kernel", [True, False])
def test_a_host_that_binds_to_all_addresses_knows_its_own(monkeypatch: pytest.MonkeyPatch, listed_by_kernel: bool) -> None:
    """As with ip_nonlocal_bind, which is the whole machine's."""
    address = "192.0.2.77"
    table = f"  |-- {address}\n     /32 host LOCAL\n" if listed_by_kernel else ""
    files = {"/proc/sys/net/ipv4/ip_nonlocal_bind": "1\n", "/proc/net/fib_trie": table}
    monkeypatch.setattr(_hosts, "_told", lambda path: files[path])
    monkeypatch.setattr(socket.socket, "bind", lambda self, where: None)
    assert _hosts.is_here(address) is listed_by_kernel and _hosts.is_here("127.0.0.2")


def test_the_missing_sdk_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sdk", None)
    with pytest.raises(RefusedError, match="-m pip install 'docker>=7.1'"):
        engine.required_sdk()


# Without a ledger

def test_instances_are_spread_evenly_at_the_lowest_free_place() -> None:
    pools = [
        Pool("a", "network", "10.0.0.2", "10.0.0.9", (80, 80), ("10.0.0.2",)),
        Pool("b", "published", "10.1.0.1", "10.1.0.1", (20, 29), ("10.1.0.1:20",)),
    ]
    seen = [Instance("web-r7-1", "a", "web", 7, 1, "", "10.0.0.2", 80)]
    made = placed(FACE, [2, 3, 4], seen, pools, {"fleet": "web", "release": 7}, BLUEPRINT)
    assert [(item.name, item.host, item.address, item.port) for item in made] == [
        ("web-r7-2", "b", "10.1.0.1", 21), ("web-r7-3", "a", "10.0.0.3", 80), ("web-r7-4", "b", "10.1.0.1", 22)]


def test_a_full_pool_is_refused() -> None:
    pool = Pool("a", "network", "10.0.0.2", "10.0.0.3", (80, 80))
    assert len(list(places(pool))) == 2
    with pytest.raises(RefusedError, match="no address is free"):
        placed(FACE, [1, 2, 3], [], [pool], {"fleet": "web", "release": 7}, BLUEPRINT)


def test_numbers_end_where_their_range_does() -> None:
    pool = Pool("pve1", "network", "10.0.0.1", "10.0.0.9", (80, 80), ("#109",), ids=(100, 110))
    assert [item.number for item in placed(FACE, [1], [], [pool], {"fleet": "web", "release": 7}, BLUEPRINT)] == [110]
    with pytest.raises(RefusedError, match="no number is left from 100 to 110"):
        placed(FACE, [1, 2], [], [pool], {"fleet": "web", "release": 7}, BLUEPRINT)


def test_a_hash_gives_no_secret_away_and_tells_everything_else_apart() -> None:
    image = Image("shop:1", "sha256:1")
    first = hash_of(shape({"secrets": {"a": "x"}}), image, 80, OPTIONS)
    assert first == hash_of(shape({"secrets": {"a": "y"}, "hosts": ["unix:///x"]}), image, 80, OPTIONS)
    shapes = [shape(options) for options in (
        {"secrets": {"b": "x"}}, {"memory": "1g"}, {}, {"environment": {"A": "b"}}, {"environment": {"A": "c"}}, {"command": ["b"]},
    )]
    others = [hash_of(item, image, 80, OPTIONS) for item in shapes] + [hash_of({}, image, 81, OPTIONS)]
    assert len({first, *others}) == 8 and {len(item) for item in (first, *others)} == {16}


# Many at once

@given(st.lists(st.sampled_from(["fine", "refused", "silent", "invalid"]), max_size=20))
def test_everything_is_tried_and_every_failure_told(kinds: list[str]) -> None:
    tried: list[int] = []

    def work(index: int) -> int:
        tried.append(index)
        errors = {"refused": RefusedError, "silent": UnreachableError}
        if kinds[index] == "invalid":
            raise InvalidError([f"item {index}: wrong"])
        if kinds[index] in errors:
            raise errors[kinds[index]](f"item {index}", "why", "do this")
        return index

    bad = [index for index, kind in enumerate(kinds) if kind != "fine"]
    if not bad:
        assert each(work, range(len(kinds))) == list(range(len(kinds)))
        return
    with pytest.raises(FleetError) as failed:
        each(work, range(len(kinds)))
    assert sorted(tried) == list(range(len(kinds)))
    assert all(f"item {index}:" in str(failed.value) for index in bad)
    if len({kinds[index] for index in bad}) == 1:
        assert isinstance(failed.value, {"refused": RefusedError, "silent": UnreachableError, "invalid": InvalidError}[kinds[bad[0]]])
    assert "invalid" in kinds or failed.value.remedy == "do this"


def test_a_defect_is_no_failure_of_the_fleet() -> None:
    with pytest.raises(ZeroDivisionError):
        each(lambda number: 1 // number, [1, 0, 2])


def test_paramiko_is_never_loaded() -> None:
    """It would cost every run 0.1 s, and the ssh client makes our connections."""
    program = "import sys, ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker; sys.exit('paramiko' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ssh_needs_no_paramiko_even_where_somebody_imported_the_sdk_before() -> None:
    program = """if True:
        import sys
        sys.modules["paramiko"] = None
        from docker.api import client
        assert not hasattr(client, "SSHHTTPAdapter")
        del sys.modules["paramiko"]
        import ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker
        assert client.SSHHTTPAdapter("ssh://example.org", shell_out=True).ssh_client is None
    """
    subprocess.run([sys.executable, "-c", program], check=True)
