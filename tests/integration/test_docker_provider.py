# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Docker provider on real engines: the contract of all providers, and what is Docker's own."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import secrets
import socket
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError, InvalidError, RefusedError, UnreachableError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _docker_engine
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import docker as docker_provider
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint, Provider
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker import DockerProvider, connect
from ansible_collections.phoenix.fleet.tests.contract.provider_contract import Case, ProviderContract
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, build, copy, until

IMAGE = "phoenix-provider:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine("one", 201, tls=True) as made, made.client() as client:
        build(client, IMAGE)
        yield made


@pytest.fixture(scope="module")
def second(engine: DockerEngine) -> Iterator[DockerEngine]:
    with DockerEngine("two", 202) as made, engine.client() as source, made.client() as target:
        copy(IMAGE, source, target)
        yield made


class DockerCase(Case):
    """A fleet on one engine or several. Options are those of `fleet_docker`, without its hosts."""

    port = 8080

    def __init__(self, *engines: DockerEngine, **options: Any) -> None:
        self.engines = {engine.name: engine for engine in engines}
        hosts = [
            {"url": engine.url, "name": engine.name, "subnet": engine.subnet, "publish_address": engine.address}
            for engine in engines
        ]
        self.options = {"hosts": hosts, **options}
        self.provider: Provider = connect(self.options)
        self.fleet = f"t{secrets.token_hex(3)}"
        self.blueprint = Blueprint(self.provider.image(IMAGE), "0123456789abcdef", "ours", "4be1c2d", self.options, self.port)

    def client(self, host: str = "") -> docker.APIClient:
        return (self.engines[host] if host else next(iter(self.engines.values()))).client()

    def inspect(self, instance: Instance) -> dict[str, Any]:
        with self.client(instance.host) as client:
            return dict(client.inspect_container(instance.id))

    def run(self, instance: Instance, *command: str) -> str:
        """What a command within the instance says, its errors included."""
        with self.client(instance.host) as client:
            return str(client.exec_start(client.exec_create(instance.id, list(command))).decode())

    def crash(self, instance: Instance) -> None:
        self.run(instance, "sh", "-c", "touch /tmp/die; kill $(pidof httpd)")
        until(f"{instance.name} crashed", lambda: self.inspect(instance)["RestartCount"] > 0)

    def alter(self, instance: Instance) -> None:
        self.write(instance, "/etc/altered", b"")

    def write(self, instance: Instance, path: str, data: bytes) -> None:
        """As `docker cp` does, whether it runs or not."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(path[1:])
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        with self.client(instance.host) as client:
            client.put_archive(instance.id, "/", buffer.getvalue())

    def vanish(self, instance: Instance) -> None:
        with self.client(instance.host) as client:
            client.remove_container(instance.id, force=True)

    @contextmanager
    def stranger(self) -> Iterator[str]:
        with self.client() as client:
            made = client.create_container_from_config({"Image": IMAGE}, name=f"{self.fleet}-r1-x")["Id"]
            client.start(made)
        yield made

    def lives(self, stranger: str) -> bool:
        with self.client() as client:
            state = client.inspect_container(stranger)["State"]
            return bool(state["Running"])

    @contextmanager
    def silent(self) -> Iterator[Provider]:
        provider = connect(self.options)
        for engine in self.engines.values():
            engine.stop()
        try:
            yield provider
        finally:
            for engine in self.engines.values():
                engine.start()

    def clear(self) -> None:
        for host in self.engines:
            with self.client(host) as client:
                for item in client.containers(all=True):
                    client.remove_container(item["Id"], force=True, v=True)
                for volume in client.volumes()["Volumes"] or []:
                    client.remove_volume(volume["Name"])
                for network in client.networks(filters={"type": "custom"}):
                    client.remove_network(network["Id"])


MakeCase = Callable[..., DockerCase]


@pytest.fixture
def make(engine: DockerEngine) -> Iterator[MakeCase]:
    """A fleet with these options, on the first engine or those given."""
    made: list[DockerCase] = []

    def case(*engines: DockerEngine, **options: Any) -> DockerCase:
        made.append(DockerCase(*(engines or (engine,)), **options))
        return made[-1]

    yield case
    for each in made:
        each.clear()


class TestOnNetwork(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase) -> DockerCase:
        return make(network="phoenix-test")


class TestPublished(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase) -> DockerCase:
        return make(address="published")


class TestOnTwoEngines(ProviderContract):
    @pytest.fixture
    def case(self, make: MakeCase, engine: DockerEngine, second: DockerEngine) -> DockerCase:
        return make(engine, second)


def page(instance: Instance) -> str:
    """What the instance serves, fetched from this host at its address, once it answers."""
    answer: list[str] = []

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{instance.address}:{instance.port}/", timeout=2) as response:
                answer.append(response.read().decode().strip())
        except OSError:
            return False
        return True

    until(f"{instance.name} answers at {instance.address}:{instance.port}", answers)
    return answer[0]


# Images

def derived(case: DockerCase, *tags: str, of: str = IMAGE) -> Image:
    """Another golden image, by these names or by none."""
    text = f"FROM {of}\nLABEL one={secrets.token_hex(8)}"
    with case.client() as client:
        lines = list(client.build(fileobj=io.BytesIO(text.encode()), tag=tags[0] if tags else None, rm=True, decode=True))
        digest = str(next(line["aux"]["ID"] for line in lines if "aux" in line))
        for tag in tags[1:]:
            client.tag(digest, *tag.rsplit(":", 1))
    return Image(tags[0] if tags else digest, digest)


def test_images_are_removed_unless_somebody_uses_or_has_named_them(make: MakeCase, second: DockerEngine, engine: DockerEngine) -> None:
    case = make(engine, second, pull="never")
    known = f"shop-{case.fleet}"
    spent, named = derived(case, f"{known}:1"), derived(case, f"{known}:2", f"{known}-mine:2")
    unnamed, run, stopped = derived(case), derived(case), derived(case)
    with case.client() as client:
        running = client.create_container_from_config({"Image": run.digest}, name=f"{case.fleet}-runs")["Id"]
        client.start(running)
        client.create_container_from_config({"Image": stopped.digest}, name=f"{case.fleet}-never-ran")
        made = (spent, named, unnamed, run, stopped, Image(f"{known}:9", "sha256:" + "0" * 64))
        lines = case.provider.remove_images(made)
        assert lines == tuple(f"image {image.digest} removed from engine one" for image in (spent, unnamed))
        assert case.provider.remove_images(made) == ()
        assert client.inspect_container(running)["State"]["Running"]
        left = {item["Id"] for item in client.images(all=True)}
    with case.silent() as silent, pytest.raises(UnreachableError):
        silent.remove_images(made)
    assert not {spent.digest, unnamed.digest} & left and {named.digest, run.digest, stopped.digest} <= left


def test_an_image_that_the_engine_will_not_remove_is_told_and_the_others_go(make: MakeCase) -> None:
    case = make()
    parent, other = derived(case), derived(case)
    derived(case, f"child-{case.fleet}:1", of=parent.digest)
    stays, goes = case.provider.remove_images((parent, other))
    assert stays.startswith(f"image {parent.digest} stays on engine one: conflict")
    assert goes == f"image {other.digest} removed from engine one"


# Addresses

@pytest.mark.parametrize("options", [{}, {"address": "published"}], ids=["network", "published"])
def test_addresses_outlive_crash_stop_and_both_kinds_of_engine_restart(make: MakeCase, second: DockerEngine, options: Any) -> None:
    case = make(second, **options)
    first = case.created(3)
    assert [page(item) for item in first] == [item.name for item in first]
    case.crash(first[0])
    case.provider.stop(first[2:], case.timeout)
    second.restart()
    second.stop(force=True)  # as a power cut
    second.start()
    until("the instances are back", lambda: [item.state for item in case.provider.observe(case.fleet)] == ["running", "running", "stopped"])
    case.provider.start(case.provider.observe(case.fleet)[2:], case.blueprint)
    assert [page(item) for item in first] == [item.name for item in first]
    assert [item.id for item in case.provider.observe(case.fleet)] == [item.id for item in first]


def test_spreads_over_engines_and_serves_from_both(make: MakeCase, engine: DockerEngine, second: DockerEngine) -> None:
    case = make(engine, second)
    made = case.created(4)
    assert [item.host for item in made] == ["one", "two", "one", "two"]
    assert [page(item) for item in made] == [item.name for item in made]


def test_other_containers_get_addresses_that_no_plan_uses(make: MakeCase) -> None:
    case = make()
    case.created(1)
    with case.client() as client:
        pool = case.provider.pools(case.fleet, 8080, ["local"])[0]
        config = {"Image": IMAGE, "HostConfig": {"NetworkMode": "phoenix"}}
        other = client.create_container_from_config(config, name=f"{case.fleet}-other")["Id"]
        client.start(other)
        address = client.inspect_container(other)["NetworkSettings"]["Networks"]["phoenix"]["IPAddress"]
        assert (pool.first, pool.last) == ("172.29.201.2", "172.29.201.191") and int(address.split(".")[3]) >= 192


def test_a_stopped_strangers_address_and_port_are_taken(make: MakeCase) -> None:
    case, published = make(), make(address="published", publish_ports="21000-21002")
    case.provider.destroy(case.created(1), 1)
    host = published.provider.pools("any", 8080, ["local"])[0].first
    with case.client() as client:
        client.create_container_from_config({
            "Image": IMAGE, "HostConfig": {"NetworkMode": "phoenix", "PortBindings": {"8080/tcp": [{"HostIp": host, "HostPort": "21001"}]}},
            "NetworkingConfig": {"EndpointsConfig": {"phoenix": {"IPAMConfig": {"IPv4Address": "172.29.201.77"}}}},
        }, name=f"{case.fleet}-stranger")
    assert "172.29.201.77" in case.provider.pools("any", 8080, ["local"])[0].taken
    assert published.provider.pools("any", 8080, ["local"])[0].taken == (f"{host}:21001",)


def test_a_port_that_something_else_holds_is_told_with_the_remedy(make: MakeCase) -> None:
    case = make(address="published")
    planned = case.planned(2)
    with case.client() as client:
        bindings = {"8080/tcp": [{"HostIp": planned[0].address, "HostPort": str(planned[0].port)}]}
        config = {"Image": IMAGE, "ExposedPorts": {"8080/tcp": {}}, "HostConfig": {"PortBindings": bindings}}
        client.start(client.create_container_from_config(config, name=f"{case.fleet}-stranger")["Id"])
    with pytest.raises(RefusedError, match=f"{planned[0].name}.*publish_ports") as refused:
        case.provider.create(planned, case.blueprint)
    assert planned[1].name not in str(refused.value)
    assert page(planned[1]) == planned[1].name


@pytest.mark.parametrize(("options", "balancers", "remedy"), [
    ({"address": "network"}, ["192.0.2.200"], "Set fleet_docker.address to published"),
    ({"publish_address": "127.0.0.1"}, ["192.0.2.200"], "Set fleet_docker.publish_address"),
    ({"publish_address": "172.29.201.7"}, ["192.0.2.200"], "Set fleet_docker.subnet"),
])
def test_addresses_that_a_balancer_cannot_reach_are_refused(engine: DockerEngine, options: Any, balancers: Any, remedy: str) -> None:
    with pytest.raises(RefusedError, match=remedy):
        connect({"hosts": [engine.url], "subnet": engine.subnet, **options}).pools("web", 8080, balancers)


def test_where_balancers_are_decides_how_instances_are_reached(engine: DockerEngine) -> None:
    provider = connect({"hosts": [engine.url], "subnet": engine.subnet, "publish_address": "192.0.2.77"})
    assert [provider.pools("web", 8080, where)[0].kind for where in (["local"], ["127.0.0.1"], ["local", "192.0.2.200"])] == [
        "network", "network", "published"]


def test_two_engines_on_one_host_may_not_share_a_network_or_an_address(engine: DockerEngine, second: DockerEngine) -> None:
    hosts = [{"url": engine.url, "name": "one", "subnet": engine.subnet}, {"url": second.url, "name": "two", "subnet": engine.subnet}]
    with pytest.raises(InvalidError, match="give each a subnet of its own"):
        connect({"hosts": hosts}).pools("web", 8080, ["local"])
    with pytest.raises(InvalidError, match="give each a publish_address of its own"):
        connect({"hosts": hosts, "address": "published"}).pools("web", 8080, ["local"])


@pytest.mark.parametrize("ipam", [
    {"Config": [{"Subnet": "172.29.209.0/24"}]},
    {"Config": [{"Subnet": "172.29.201.0/24"}]},
], ids=["another subnet", "no ip_range"])
def test_a_network_that_cannot_hold_static_addresses_is_refused(make: MakeCase, ipam: Any) -> None:
    case = make(network="phoenix-wrong")
    with case.client() as client:
        client.create_network("phoenix-wrong", ipam={"Driver": "default", **ipam})
    with pytest.raises(RefusedError, match="[Ss]et fleet_docker.network"):
        case.provider.pools(case.fleet, 8080, ["local"])


@pytest.mark.parametrize("owner", ["network", "interface", "gateway"])
def test_a_subnet_that_is_somebody_elses_is_refused_before_anything_is_made(
    make: MakeCase, monkeypatch: pytest.MonkeyPatch, owner: str,
) -> None:
    case = make()
    overlap = "172.29.201.128/25"
    if owner == "network":  # which an engine before 25 keeps as it was written
        with case.client() as client:
            client.create_network("somebodys", ipam={"Driver": "default", "Config": [{"Subnet": "172.29.201.130/25"}]})
    else:
        monkeypatch.setattr(docker_provider, "routes", lambda: [("eth9", ipaddress.IPv4Network(overlap), owner == "gateway")])
    named = "network somebodys" if owner == "network" else "interface eth9"
    with pytest.raises(RefusedError, match=f"subnet 172.29.201.0/24 overlaps {overlap} of {named}.*Set fleet_docker.subnet"):
        case.provider.pools(case.fleet, 8080, ["local"])
    monkeypatch.setattr(docker_provider, "routes", lambda: [("eth9", ipaddress.IPv4Network("172.16.0.0/12"), True)])
    if owner != "network":
        assert case.provider.pools(case.fleet, 8080, ["local"])[0].kind == "network", "a part of what is behind a router may be taken"


def test_a_network_that_another_run_makes_meanwhile_is_no_stranger(make: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case, other = make(), make()

    def routes() -> list[tuple[str, ipaddress.IPv4Network, bool]]:
        monkeypatch.setattr(docker_provider, "routes", lambda: [])
        other.created(1)
        return [("br-of-it", ipaddress.IPv4Network("172.29.201.0/24"), False)]

    monkeypatch.setattr(docker_provider, "routes", routes)
    assert case.provider.pools(case.fleet, 8080, ["local"])[0].kind == "network"


def test_a_network_that_instances_with_published_ports_join_is_made_where_it_is_missing(make: MakeCase) -> None:
    case = make(address="published", network="phoenix-joined")
    item = case.created(1)[0]
    assert list(case.inspect(item)["NetworkSettings"]["Networks"]) == ["phoenix-joined"]


def test_an_engine_may_have_a_network_of_its_own_that_they_join(make: MakeCase) -> None:
    case = make(address="published")
    case.options["hosts"][0]["network"] = "phoenix-own"
    case.provider = connect(case.options)
    assert list(case.inspect(case.created(1)[0])["NetworkSettings"]["Networks"]) == ["phoenix-own"]


# What an instance is made of

def test_every_option_reaches_the_container(make: MakeCase, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from outside")
    tmp_path.chmod(0o755)
    case = make(
        environment={"PRICE": "$5 `id` ${HOME} \"'", "NUMBER": 7}, mounts=[f"{tmp_path}:/data:ro"], memory="64m", cpus=0.5, user="app",
        ulimits={"nofile": "100:200"}, log_driver="json-file", log_options={"max-size": "1m"}, stop_signal="SIGINT",
        health={"test": "test -e /tmp/www", "interval": "500ms", "retries": 2}, command=["/bin/serve", "--flag"],
    )
    item = case.created(1)[0]
    inspect = case.inspect(item)
    config, host = inspect["Config"], inspect["HostConfig"]
    variables = dict(line.split("=", 1) for line in config["Env"])
    assert (variables["PRICE"], variables["NUMBER"]) == ("$5 `id` ${HOME} \"'", "7")
    assert {key: value for key, value in variables.items() if key.startswith("PHOENIX")} == {
        "PHOENIX_FLEET": case.fleet, "PHOENIX_RELEASE": "1", "PHOENIX_INSTANCE": item.name, "PHOENIX_REVISION": "4be1c2d"}
    assert (host["Memory"], host["NanoCpus"], config["User"], config["StopSignal"]) == (64 * 1024 ** 2, 500_000_000, "app", "SIGINT")
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "test -e /tmp/www"], "Interval": 500_000_000, "Retries": 2}
    assert config["Cmd"] == ["/bin/serve", "--flag"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped" and host["SecurityOpt"] == ["no-new-privileges"]
    assert case.run(item, "sh", "-c", "cat /data/file; echo; id -u; ulimit -n").split() == ["from", "outside", "1234", "100"]
    assert "Read-only" in case.run(item, "touch", "/data/x")
    assert "NoNewPrivs:\t1" in case.run(item, "cat", "/proc/1/status")
    until("the engine calls it healthy", lambda: case.provider.observe(case.fleet)[0].health == "healthy")


def test_sealed_leaves_only_tmp_to_write_and_no_capability(make: MakeCase) -> None:
    case = make(sealed=True, secrets={"key": "x"})
    item = case.created(1)[0]
    assert page(item) == item.name
    assert "Read-only" in case.run(item, "touch", "/etc/x") and case.run(item, "touch", "/tmp/x") == ""
    assert "CapEff:\t0000000000000000" in case.run(item, "cat", "/proc/1/status")


def test_secrets_are_files_for_the_user_alone_and_nowhere_else(make: MakeCase) -> None:
    case = make(secrets={"password": "correct-horse-7", "key.pem": "line\nline\n"}, user="app")
    item = case.created(1)[0]
    assert case.run(item, "cat", "/run/secrets/password", "/run/secrets/key.pem") == "correct-horse-7line\nline\n"
    found = [line.split() for line in case.run(item, "ls", "-ln", "/run/secrets").splitlines()[1:]]
    assert sorted((line[0], line[2], line[8]) for line in found) == [("-r--------", "1234", name) for name in ("key.pem", "password")]
    assert "Read-only" in case.run(item, "touch", "/run/secrets/x")
    assert "correct-horse" not in json.dumps(case.inspect(item))
    with case.client() as client:
        elsewhere = [client.inspect_image(IMAGE), client.volumes(), client.top(item.id), client.containers(all=True)]
        assert "correct-horse" not in json.dumps(elsewhere)
        assert [item["Names"] for item in client.containers(all=True)] == [[f"/{item.name}"]]


def test_secrets_go_with_the_last_instance_of_their_release(make: MakeCase) -> None:
    case = make(secrets={"password": "x"})
    first, second = case.created(2, 1), case.created(1, 2)

    def volumes() -> list[str]:
        with case.client() as client:
            return sorted(volume["Name"] for volume in client.volumes()["Volumes"] or [])

    assert volumes() == [f"{case.fleet}-r1", f"{case.fleet}-r2"]
    case.provider.destroy(first[:1], 1)
    assert volumes() == [f"{case.fleet}-r1", f"{case.fleet}-r2"]
    case.provider.destroy(first[1:], 1)
    assert volumes() == [f"{case.fleet}-r2"]
    case.provider.destroy(second, 1)
    assert volumes() == []


def test_no_secret_is_left_where_no_instance_is(make: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(secrets={"password": "x"})
    with case.client() as client:
        with pytest.raises(RefusedError, match="Check fleet_docker.mounts"):
            refused = replace(case.blueprint, options={**case.options, "mounts": ["/nonexistent:/data"]})
            case.provider.create(case.planned(1), refused)
        assert not client.volumes()["Volumes"]

        def killed(*_args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(DockerProvider, "_fill", killed)
        with pytest.raises(KeyboardInterrupt):
            case.created(2)
        begun = case.provider.observe(case.fleet)
        assert [item.state for item in begun] == ["created"], "who finds it finds the secrets"
        case.provider.destroy(begun, 1)
        assert not client.volumes()["Volumes"]


def test_an_account_is_found_behind_a_link(make: MakeCase) -> None:
    """As in images that Nix makes: /etc/passwd leads into the store."""
    case = make(secrets={"password": "x"}, user="linked")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link, table = tarfile.TarInfo("etc/passwd"), tarfile.TarInfo("store/passwd")
        link.type, link.linkname, table.size = tarfile.SYMTYPE, "../store/passwd", 33
        archive.addfile(link)
        archive.addfile(table, io.BytesIO(b"linked:x:4321:4321:::/bin/sh\n".ljust(33, b"\n")))
    with case.client() as client:
        made = client.create_container_from_config({"Image": IMAGE}, name=f"{case.fleet}-link")["Id"]
        client.put_archive(made, "/", buffer.getvalue())
        client.commit(made, repository="linked", tag="1")
    case.blueprint = replace(case.blueprint, image=case.provider.image("linked:1"))
    item = case.created(1)[0]
    assert case.run(item, "id", "-u") == "4321\n" and case.run(item, "cat", "/run/secrets/password") == "x"


def test_a_start_uses_the_current_secrets_and_leaves_running_ones_alone(make: MakeCase) -> None:
    case = make(secrets={"password": "old"})
    made = case.created(2)
    newer = replace(case.blueprint, options={**case.options, "secrets": {"password": "new"}})
    case.provider.stop(made[:1], 1)
    case.provider.start(made, newer)
    assert [case.run(item, "cat", "/run/secrets/password") for item in made] == ["old", "old"]
    case.provider.stop(made, 1)
    case.provider.start(made, newer)
    assert [case.run(item, "cat", "/run/secrets/password") for item in made] == ["new", "new"]


@pytest.mark.parametrize("change", ["more in a file that had changed", "a file of the image", "a file away"])
def test_a_seal_shows_every_change_of_a_stopped_one(make: MakeCase, second: DockerEngine, change: str) -> None:
    case = make(second)
    item = case.created(1)[0]
    page(item)
    case.provider.stop([item], 1)
    sealed = case.provider.seals([item])
    second.restart()
    assert case.provider.seals([item]) == sealed, "the engine's restart changes nothing"
    if change == "a file away":  # nobody can remove a file from a stopped one but by running something in it
        with case.client() as client:
            client.start(item.id)
        case.run(item, "rm", "/etc/group")
        case.provider.stop([item], 1)
    else:
        case.write(item, "/tmp/www/index.html" if change.startswith("more") else "/etc/passwd", b"x" * 99)
    assert case.provider.seals([item]) != sealed


def test_a_strangers_volume_of_that_name_is_refused(make: MakeCase) -> None:
    case = make(secrets={"password": "x"})
    with case.client() as client:
        client.create_volume(f"{case.fleet}-r1")
    with pytest.raises(RefusedError, match="not of this release"):
        case.created(1)
    assert case.provider.observe(case.fleet) == ()


def test_a_user_that_the_image_lacks_is_refused(make: MakeCase) -> None:
    with pytest.raises(RefusedError, match=r"fleet_docker\.user"):
        make(user="nobody-such", secrets={"a": "b"}).created(1)


# Images and memory

def test_both_generations_have_to_fit_into_the_engines_memory(make: MakeCase) -> None:
    with make().client() as client:
        half = client.info()["MemTotal"] * 45 // 100 // 1024 ** 2
    case = make(memory=f"{half}m")
    old = case.created(2)
    with pytest.raises(RefusedError, match="Lower fleet_docker.memory"):
        case.created(1, 2)
    assert len(case.provider.observe(case.fleet)) == 2
    case.provider.stop(old[:1], 1)
    assert case.created(1, 2)[0].state == "running"


def test_an_image_that_only_one_engine_has_is_refused_before_anything_is_made(
    make: MakeCase, engine: DockerEngine, second: DockerEngine,
) -> None:
    case = make(engine, second)
    with second.client() as client:
        client.remove_image(IMAGE, force=True)
    try:
        with pytest.raises(RefusedError, match="engine two does not have it|engine two does not have sha256"):
            case.created(2)
        assert case.provider.observe(case.fleet) == ()
    finally:
        with engine.client() as source, second.client() as target:
            copy(IMAGE, source, target)


@pytest.mark.parametrize("pull", ["missing", "never"])
def test_a_local_image_needs_no_registry(make: MakeCase, pull: str) -> None:
    case = make(pull=pull)
    with case.client() as client:
        known = client.inspect_image(IMAGE)["Id"]
    assert case.provider.image(IMAGE) == Image(IMAGE, known) and case.provider.image(known) == Image(known, known)


def test_a_name_with_a_digest_is_taken_at_its_word(make: MakeCase) -> None:
    digest = f"sha256:{'a' * 64}"
    assert make().provider.image(f"registry.example.org:5000/shop:1@{digest}").digest == f"registry.example.org:5000/shop@{digest}"


# Connections

def test_tls_with_a_client_certificate(engine: DockerEngine) -> None:
    provider = connect({"hosts": [f"tcp://127.0.0.1:{engine.tls_port}"], "tls": engine.tls})
    assert provider.image(IMAGE).digest.startswith("sha256:") and provider.observe("nobody") == ()


def test_ssh_reaches_an_engine_through_the_users_own_ssh(engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"  # the far side of a connection, without its network
    ssh.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\nDOCKER_HOST={engine.url} exec docker system dial-stdio\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    provider = connect({"hosts": ["ssh://ops@192.0.2.200:2222"]})
    assert provider.image(IMAGE).digest.startswith("sha256:") and provider.observe("nobody") == ()
    assert (tmp_path / "asked").read_text() == "-l ops -p 2222 -- 192.0.2.200 docker system dial-stdio\n"
    ssh.write_text("#!/bin/sh\nexit 255\n")
    with pytest.raises(UnreachableError, match="Try: ssh ssh://ops@192.0.2.200 docker version"):
        connect({"hosts": ["ssh://ops@192.0.2.200"]})


@pytest.mark.parametrize("answers", [0, 1], ids=["from the start", "after an answer"])
def test_an_ssh_that_hangs_has_a_deadline(engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho $$ >> {tmp_path}/asked\n[ $(wc -l < {tmp_path}/asked) -gt {answers} ] && exec sleep 600\n'
        f"DOCKER_HOST={engine.url} exec docker system dial-stdio\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(_docker_engine, "TIMEOUT", 1)
    with pytest.raises(UnreachableError, match="no answer within 1 s.*Try: ssh ssh://ops@192.0.2.200 docker version"):
        connect({"hosts": ["ssh://ops@192.0.2.200"]}).observe("nobody")
    hung = Path("/proc", (tmp_path / "asked").read_text().split()[-1], "stat")
    until("the ssh to have ended", lambda: not hung.exists() or hung.read_text().split()[2] == "Z")


def test_a_registry_that_hangs_has_a_deadline(make: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_docker_engine, "SILENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}/shop@sha256:{'0' * 64}"
        (engine,) = make().provider.engines  # type: ignore[attr-defined]
        with pytest.raises(UnreachableError, match=rf"pulling {name}: it told nothing more for 1 s. See there .* docker pull {name}"):
            engine.pull(name)


@pytest.mark.parametrize("change", ["no client certificate", "another authority", "no TLS"])
def test_bad_tls_is_told_with_the_remedy(engine: DockerEngine, second: DockerEngine, change: str) -> None:
    tls: Any = {"no client certificate": {"ca_path": engine.tls["ca_path"]}, "another authority": {
        **engine.tls, "ca_path": "/etc/ssl/certs/ca-certificates.crt"}, "no TLS": None}[change]
    with pytest.raises(UnreachableError, match="fleet_docker.tls"):
        connect({"hosts": [f"tcp://127.0.0.1:{engine.tls_port}"], "tls": tls})


def test_a_missing_tls_file_is_a_mistake(engine: DockerEngine) -> None:
    with pytest.raises(InvalidError, match=r"fleet_docker\.tls\.ca_path: /nowhere/ca\.pem does not exist"):
        connect({"hosts": ["tcp://127.0.0.1:1"], "tls": {"ca_path": "/nowhere/ca.pem"}})


def test_no_engine_and_no_permission_are_told_with_the_remedy(engine: DockerEngine, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=f"there is no socket {tmp_path}/none.*Start the Docker engine"):
        connect({"hosts": [f"unix://{tmp_path}/none"]})
    with pytest.raises(UnreachableError, match="connection refused.*Start the Docker engine"):
        connect({"hosts": ["tcp://127.0.0.1:1"]})
    os.chmod(engine.folder, 0o755)
    os.chmod(engine.url[len("unix://"):], 0o600)
    child = os.fork()
    if not child:  # as nobody, with the code that is loaded already
        told = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            connect({"hosts": [engine.url]})
        except UnreachableError as error:
            told = 0 if "permission denied on" in str(error) and "group that owns the socket" in str(error) else 2
        finally:
            os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_several_that_fail_are_all_named(make: MakeCase) -> None:
    case = make()
    planned = case.planned(4)
    theirs = case.provider.create(planned[::2], case.blueprint_of("theirs"))
    with pytest.raises(FleetError) as failed:
        case.provider.create(planned, case.blueprint)
    assert str(failed.value).startswith("2 of 4 failed") and all(item.name in str(failed.value) for item in theirs)
    assert len(case.provider.observe(case.fleet)) == 4
