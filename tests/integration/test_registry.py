# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images from a real registry, which wants credentials: what a tag means now, pulling, and every way in which that fails."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import docker
import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.docker import DockerProvider, connect
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, build
from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.registry import PASSWORD, USERNAME, Registry

ONE, TWO = "phoenix-registry:1", "phoenix-registry:2"
WRONG = "open-sesame-3"


def variant(client: docker.APIClient, image: str, tag: str, label: str) -> str:
    """An image of its own, though of the same layers: nobody else's name for `image` gets a digest by being pushed. Returns its id."""
    list(client.build(fileobj=io.BytesIO(f"FROM {image}\nLABEL test={label}\n".encode()), tag=tag, rm=True, decode=True))
    return str(client.inspect_image(tag)["Id"])


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as made:
        yield made


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine("reg", 203) as made, made.client() as client:
        build(client, ONE)
        variant(client, ONE, TWO, "two")
        yield made


@pytest.fixture
def client(engine: DockerEngine) -> Iterator[docker.APIClient]:
    with engine.client() as made:
        yield made


@pytest.fixture
def name(client: docker.APIClient, registry: Registry) -> Iterator[str]:
    """The name of an image in the registry, which the engine does not have."""
    made = registry.push(client, ONE, f"t{secrets.token_hex(3)}:live")
    yield made
    with suppress(docker.errors.ImageNotFound):
        client.remove_image(made)


@pytest.fixture
def provider(engine: DockerEngine, registry: Registry) -> Callable[..., DockerProvider]:
    """A provider with the right credentials, and these options of fleet_docker."""

    def made(**options: Any) -> DockerProvider:
        hosts = [{"url": engine.url, "name": "one", "subnet": engine.subnet}]
        return connect({"hosts": hosts, "registry": registry.options, **options})

    return made


MakeProvider = Callable[..., DockerProvider]


def test_a_tag_means_what_the_registry_says_now(
    client: docker.APIClient, registry: Registry, provider: MakeProvider, name: str,
) -> None:
    first = provider().image(name)
    repository = name.rpartition(":")[0]
    assert first.reference == name and first.digest.startswith(f"{repository}@sha256:")
    client.pull(repository, "live", auth_config=registry.options)
    assert provider().image(name) == first
    client.tag(name, repository, "old")
    registry.push(client, TWO, name.partition("/")[2])
    client.tag(f"{repository}:old", repository, "live")
    moved = provider().image(name)
    assert client.inspect_image(name)["Id"] == client.inspect_image(ONE)["Id"], "the engine's image of that tag is the old one"
    assert moved.digest != first.digest
    assert provider(pull="always").image(name) == moved
    assert provider(pull="never").image(name) == first
    client.remove_image(f"{repository}:old")


@pytest.mark.parametrize(("account", "words"), [
    ({"username": USERNAME, "password": WRONG}, [f"refuses user {USERNAME}", "Check username and password in fleet_docker.registry"]),
    (None, ["wants credentials", "set fleet_docker.registry to {server: 127.0.0.1:", "docker login"]),
    ({"server": "registry.example.org", "username": USERNAME, "password": PASSWORD}, ["wants credentials", "fleet_docker.registry"]),
], ids=["wrong", "missing", "for another registry"])
def test_credentials_that_do_not_open_are_told_with_the_remedy(
    registry: Registry, provider: MakeProvider, name: str, account: Any, words: list[str],
) -> None:
    asked = provider(registry=account and {"server": registry.server, **account})
    blueprint = blueprint_of(provider().image(name), asked)
    for ask in (lambda: asked.image(name), lambda: asked.preflight([instance("172.29.203.5")], blueprint)):
        with pytest.raises(RefusedError) as refused:
            ask()
        told = str(refused.value)
        assert told.startswith(f"image {name.rpartition(':')[0]}") and all(word in told for word in words), told
        assert "engine one does not have it, and registry" in told and PASSWORD not in told and WRONG not in told


def instance(address: str) -> Instance:
    return Instance("t-r1-1", "one", "t", 1, 1, "", address, 8080)


def blueprint_of(image: Image, provider: DockerProvider) -> Blueprint:
    return Blueprint(image, "h", "ours", "", provider.options, 8080)


@pytest.mark.parametrize("pull", ["missing", "always", "never"])
def test_pull_says_whether_an_image_comes_from_the_registry(client: docker.APIClient, provider: MakeProvider, name: str, pull: str) -> None:
    asked = provider(pull=pull)
    image = provider().image(name)
    if pull == "never":
        with pytest.raises(RefusedError, match="does not have it, and fleet_docker.pull is never"):
            asked.image(name)
        with pytest.raises(RefusedError, match="engine one does not have .*, and fleet_docker.pull is never"):
            asked.create([instance("172.29.203.5")], blueprint_of(image, asked))
        return
    made = asked.create([instance("172.29.203.5")], blueprint_of(image, asked))
    try:
        assert made[0].image == image.digest and client.inspect_image(image.digest)["Id"] == client.inspect_image(ONE)["Id"]
    finally:
        asked.destroy(made, 1)
        client.remove_image(image.digest)


def test_an_image_that_the_registry_does_not_have_is_told(registry: Registry, provider: MakeProvider, name: str) -> None:
    for unknown in (f"{name}x", f"{registry.server}/nowhere:1"):
        with pytest.raises(RefusedError, match="engine one does not have it, and registry 127.* does not have it.*Check the name"):
            provider().image(unknown)
    gone = Image(name, f"{name.rpartition(':')[0]}@sha256:{'a' * 64}")
    with pytest.raises(RefusedError, match="registry 127.* does not have it"):
        provider().preflight([instance("172.29.203.5")], blueprint_of(gone, provider()))


def test_a_registry_out_of_reach_is_told_and_a_local_image_needs_none(
    client: docker.APIClient, registry: Registry, provider: MakeProvider, name: str,
) -> None:
    client.pull(*name.rsplit(":", 1), auth_config=registry.options)
    known = provider().image(name)
    registry.stop()
    try:
        with pytest.raises(RefusedError, match="registry 127.* could not be asked .*refused.*set fleet_docker.pull to never") as refused:
            provider().image(name)
        assert "does not have it" not in str(refused.value)
        with pytest.raises(RefusedError, match="engine one does not have it, and registry 127.* could not be asked .*refused"):
            provider().image(f"{name}er")
        assert provider(pull="never").image(name) == known
        provider().preflight([instance("172.29.203.5")], blueprint_of(known, provider()))
        assert provider().image(TWO) == Image(TWO, client.inspect_image(TWO)["Id"])
    finally:
        registry.start()


def test_a_local_name_stays_local_when_its_image_was_pushed_under_another(
    client: docker.APIClient, registry: Registry, provider: MakeProvider, name: str,
) -> None:
    client.pull(*name.rsplit(":", 1), auth_config=registry.options)
    assert client.inspect_image(ONE)["RepoDigests"], "it is known by a digest, but not under this name"
    assert provider().image(ONE) == Image(ONE, client.inspect_image(ONE)["Id"])


def test_an_unknown_local_image_is_told_so_first(provider: MakeProvider) -> None:
    told = r"^image phoenix-nowhere:v1: engine one does not have it, and registry docker.io .*Check the name, build"
    with pytest.raises(RefusedError, match=told):
        provider().image("phoenix-nowhere:v1")


def test_a_tag_moved_in_the_registry_is_a_release_and_the_same_again_is_none(site: Site, registry: Registry, images: str) -> None:
    client = site.engine.api
    tags = [f"{site.network}:{version}" for version in ("v1", "v2")]
    try:
        for tag, version in zip(tags, ("v1", "v2"), strict=True):
            variant(client, f"{images}:{version}", tag, site.network)
        name = registry.push(client, tags[0], f"{site.network}:live")
        site.fleet("web", fleet_image=name, fleet_docker={**site.fleets["web"]["fleet_docker"], "registry": registry.options})
        assert site.release().result["live"] == 1 and site.versions("web") == {"v1"}
        assert site.release().changed == 0
        registry.push(client, tags[1], f"{site.network}:live")
        moved = site.release()
        assert moved.result["live"] == 2 and site.versions("web") == {"v2"}
        assert site.release().changed == 0
        site.fleet("web", fleet_docker={**site.fleets["web"]["fleet_docker"], "registry": {**registry.options, "password": WRONG}})
        before = site.service()
        refused = site.play("release")
        assert refused.code != 0 and "Check username and password in fleet_docker.registry" in refused.output, refused.output
        assert site.service() == before and WRONG not in refused.output and PASSWORD not in moved.output + refused.output
    finally:
        for item in site.containers("web"):
            item.remove(force=True)
        found = client.images(site.network, quiet=True) + client.images(f"{registry.server}/{site.network}", quiet=True)
        for image in set(found):
            client.remove_image(image, force=True)
