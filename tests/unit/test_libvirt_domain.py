# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An instance as a domain of libvirt: options, the XML that is asked for and what is read from libvirt's, and the seed."""

from __future__ import annotations

import email
import io
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import InvalidError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Image, Instance
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _libvirt_domain as domain
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _libvirt_host as host
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _libvirt_options as options
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _libvirt_seed as seed
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import libvirt as provider
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._marker import ADDRESS, facts_of, marker_of
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from hypothesis import given
from hypothesis import strategies as st

UUID = "1a2b3c4d-0000-4000-8000-0123456789ab"
PLANNED = Instance("web-r7-1", "local", "web", 7, 1, "default/web.qcow2@sha256:1", "192.0.2.10", 8080, "4be1c2d")
BLUEPRINT = Blueprint(Image("web.qcow2", "default/web.qcow2@sha256:1"), "abc", "ours", "4be1c2d", port=8080)
MACHINE = domain.Machine("kvm", "x86_64", 256 * 1024 ** 2, 2, "bios", "fleet", "/srv/pool")
MARKER = {**marker_of(PLANNED, BLUEPRINT, "2026-11-20T03:00:00Z"), ADDRESS: "192.0.2.10:8080"}


def asked(**changes: Any) -> str:
    return domain.domain_xml(PLANNED.name, UUID, domain.mac_of(PLANNED.address), replace(MACHINE, **changes), MARKER)


# Options

@pytest.mark.parametrize(("given_", "words"), [
    ({"uri": "http://node1"}, "fleet_libvirt.uri: 'http://node1' is not a connection of libvirt"),
    ({"uri": "qemu+ssh://ops:hunter2@node1/system"}, "fleet_libvirt.uri: 'qemu+ssh://ops:***@node1/system' is not a connection of libvirt"),
    ({"memory": "8m"}, "fleet_libvirt.memory: '8m' is less than the 32m"),
    ({"memory": 256}, "fleet_libvirt.memory: 256 is less"),
    ({"vcpus": 0}, "fleet_libvirt.vcpus: 0 is not a number from 1 up"),
    ({"domain_type": "xen"}, "fleet_libvirt.domain_type: 'xen' is not one of kvm, qemu"),
    ({"firmware": "efi"}, "fleet_libvirt.firmware: 'efi' is not one of bios, uefi"),
    ({"network": "a b"}, "fleet_libvirt.network: 'a b' is not a name"),
    ({"memroy": "1g"}, "fleet_libvirt.memroy: there is no such option; did you mean memory?"),
    ({"ssh_keys": ["secret"]}, "fleet_libvirt.ssh_keys[0]: 'secret' is not a public key"),
    ({"addresses": ["192.0.2.9-192.0.2.1"]}, "fleet_libvirt.addresses[0]: '192.0.2.9-192.0.2.1' is not a range"),
    ({"addresses": ["192.0.2.1-192.0.2.9", "192.0.2.9"]}, "fleet_libvirt.addresses: 192.0.2.9 is in it twice"),
    ({"user_data": "hush: hush"}, "fleet_libvirt.user_data: this is no user data"),
])
def test_a_mistake_is_told_with_its_path(given_: dict[str, Any], words: str) -> None:
    found = options.mistakes(given_)
    assert len(found) == 1 and found[0].startswith(words) and "hush" not in found[0]


def test_options_of_minus_e_are_what_they_mean() -> None:
    settled = options.settle({"memory": "1.5g", "vcpus": "2", "addresses": "192.0.2.10-192.0.2.12, 192.0.2.20", "uri": ""})
    assert (settled["memory"], settled["vcpus"], settled["uri"]) == (1536 * 1024 ** 2, 2, "qemu:///system")
    assert [(str(first), str(last)) for first, last in options.ranges_of(settled)] == [
        ("192.0.2.10", "192.0.2.12"), ("192.0.2.20", "192.0.2.20")]
    assert options.ranges_of(options.settle({"addresses": "agent"})) == () == options.ranges_of(options.settle({}))


def test_the_way_to_a_host_and_the_choice_of_addresses_shape_no_instance() -> None:
    assert options.shape({"uri": "qemu+ssh://ops@node1/system", "addresses": "agent"}) == options.shape({})
    assert options.shape({"memory": "2g"}) != options.shape({}) != options.shape({"user_data": {"packages": ["jq"]}})


@pytest.mark.parametrize(("uri", "home"), [
    ("qemu:///system", "local"), ("qemu+unix:///system?socket=/x", "local"), ("qemu+ssh://ops@192.0.2.200/system", "192.0.2.200"),
    ("qemu+ssh://127.0.0.1:2222/system", "local"), ("qemu+tls://192.0.2.200:16514/system", "192.0.2.200"),
])
def test_a_connection_leads_to_a_host(uri: str, home: str) -> None:
    assert not options.mistakes({"uri": uri}) and host.home_of(uri) == home


@pytest.mark.parametrize(("reference", "parts"), [
    ("web.qcow2", ("default", "web.qcow2", "")), ("golden/web.qcow2", ("golden", "web.qcow2", "")),
    (f"golden/web.qcow2@sha256:{'a' * 64}", ("golden", "web.qcow2", "a" * 64)),
])
def test_an_images_name_has_parts(reference: str, parts: tuple[str, str, str]) -> None:
    assert provider.parts_of(reference, "default") == parts


def test_what_is_no_image_is_told() -> None:
    with pytest.raises(InvalidError, match="fleet_image: a/b/c is not an image; write"):
        provider.parts_of("a/b/c", "default")


# Domains

def test_what_is_asked_for_is_what_is_seen() -> None:
    seen = domain.seen_in(asked(), 1, "local")
    assert seen == replace(PLANNED, id=UUID, state="running", created="2026-11-20T03:00:00Z", marker=MARKER)
    assert domain.mac_in(asked()) == domain.mac_of("192.0.2.10") == "52:54:c0:00:02:0a"


@pytest.mark.parametrize(("state", "words"), [
    (1, ("running", "none")), (2, ("running", "none")), (3, ("running", "unhealthy")), (4, ("running", "none")), (5, ("stopped", "none")),
    (6, ("stopped", "none")), (7, ("running", "unhealthy")),
])
def test_states_of_libvirt_are_ours(state: int, words: tuple[str, str]) -> None:
    seen = domain.seen_in(asked(), state, "local")
    assert seen and (seen.state, seen.health) == words


@pytest.mark.parametrize("xml", [
    "<domain><name>web-r7-1</name><uuid>1</uuid></domain>",
    asked().replace('"phoenix.fleet.name"', '"phoenix.fleet.nam"').replace("&quot;phoenix.fleet.name&quot;", "x"),
    asked().replace(": &quot;web&quot;", "").replace('"phoenix.fleet.name": "web"', "whatever"),
])
def test_a_domain_without_a_whole_marker_is_a_strangers(xml: str) -> None:
    assert domain.seen_in(xml, 1, "local") is None


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30))
def test_a_marker_says_the_same_whatever_is_in_it(revision: str) -> None:
    marker = {**MARKER, "phoenix.fleet.revision": revision}
    assert domain.marker_in(domain.domain_xml("web-r7-1", UUID, "52:54:00:00:00:01", MACHINE, marker)) == marker


def test_every_option_reaches_the_domain() -> None:
    root = ElementTree.fromstring(asked(kind="qemu", firmware="uefi"))
    system = root.find("os")
    assert root.get("type") == "qemu" and system is not None and system.get("firmware") == "efi"
    assert (root.findtext("memory"), root.findtext("vcpu")) == (str(256 * 1024), "2")
    assert root.find("devices/interface/source").get("network") == "fleet"  # type: ignore[union-attr]
    assert [item.get("file") for item in root.findall("devices/disk/source")] == [
        f"/srv/pool/web-r7-1.1a2b3c4d.{end}" for end in ("qcow2", "iso")]
    assert ElementTree.fromstring(asked()).find("os").get("firmware") is None  # type: ignore[union-attr]


def test_an_agent_is_believed_for_its_own_interface_alone() -> None:
    told = {
        "lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1", "type": 0}]},
        "eth0": {"hwaddr": "52:54:00:1A:2B:3C", "addrs": [
            {"addr": "fe80::1", "type": 1}, {"addr": "169.254.1.1", "type": 0}, {"addr": "192.0.2.77", "type": 0}]},
        "docker0": {"hwaddr": "02:00:00:00:00:01", "addrs": [{"addr": "172.17.0.1", "type": 0}]},
    }
    assert domain.told_by_agent(told, domain.random_mac(UUID)) == "192.0.2.77"
    assert domain.told_by_agent(told, "52:54:00:00:00:00") == "" == domain.told_by_agent({"eth0": {"hwaddr": None, "addrs": None}}, "x")


# Volumes and networks

def test_a_stamp_changes_with_the_content_and_not_with_the_owner() -> None:
    def volume(mtime: str, ctime: str, size: int = 5) -> domain.Volume:
        return domain.volume_in(
            f"<volume><name>a</name><physical>{size}</physical><target><path>/p/a</path><format type='qcow2'/><timestamps>"
            f"<mtime>{mtime}</mtime><ctime>{ctime}</ctime></timestamps></target></volume>"
        )

    assert volume("1.5", "1.5").stamp == volume("1.5", "2.5").stamp and volume("1.5", "1.5").touched != volume("1.5", "2.5").touched
    assert len({volume("1.5", "2").stamp, volume("1.6", "2").stamp, volume("1.5", "2", 6).stamp}) == 3


def network(dhcp: str, address: str = "192.168.122.1", mode: str = "<forward mode='nat'/>") -> domain.Network:
    return domain.network_in(
        f"<network><name>default</name>{mode}<ip family='ipv6' address='fd00::1' prefix='64'/>"
        f"<ip address='{address}' netmask='255.255.255.0'>{dhcp}</ip></network>"
    )


@pytest.mark.parametrize(("dhcp", "first", "last"), [
    ("<dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>", "192.168.122.1", "192.168.122.254"),
    ("<dhcp><range start='192.168.122.200' end='192.168.122.254'/></dhcp>", "192.168.122.2", "192.168.122.199"),
    ("<dhcp><range start='192.168.122.2' end='192.168.122.99'/></dhcp>", "192.168.122.100", "192.168.122.254"),
    ("<dhcp><host mac='52:54:00:00:00:01' ip='192.168.122.9' name='a'/></dhcp>", "192.168.122.2", "192.168.122.254"),
])
def test_instances_stay_out_of_the_networks_own_range_where_there_is_room(dhcp: str, first: str, last: str) -> None:
    found = domain.room(network(dhcp), ())
    assert (str(found[0]), str(found[1]), found[2]) == (first, last, [])


def test_what_lies_between_the_ranges_is_taken() -> None:
    ranges = options.ranges_of(options.settle({"addresses": ["192.168.122.20", "192.168.122.10-192.168.122.18"]}))
    first, last, others = domain.room(network("<dhcp/>"), ranges)
    assert (str(first), str(last), others) == ("192.168.122.10", "192.168.122.20", ["192.168.122.19"])


def test_a_network_is_read_whole() -> None:
    found = network("<dhcp><host mac='52:54:C0:A8:7A:09' ip='192.168.122.9' name='web-r1-1'/></dhcp>")
    assert domain.is_reserved(found, "web-r1-1", "192.168.122.9") and not domain.is_reserved(found, "web-r1-2", "192.168.122.9")
    assert (found.mode, found.serves, str(found.gateway)) == ("nat", True, "192.168.122.1")
    bridge = domain.network_in("<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>")
    assert (bridge.mode, bridge.subnet, bridge.serves) == ("bridge", None, False)
    assert domain.outside(found, ["192.168.122.9", "192.168.123.9"]) == ["192.168.123.9"]


# The seed

def test_facts_survive_the_shell_that_reads_them() -> None:
    facts = {**facts_of(PLANNED, BLUEPRINT), "PHOENIX_REVISION": "it's $HOME `id`"}
    assert dict(line.split("=", 1) for line in shlex.split(seed.environment(facts))) == facts


def test_user_data_is_cloud_config_and_the_users_part_stays() -> None:
    facts = facts_of(PLANNED, BLUEPRINT)
    alone = seed.user_data(facts, ["ssh-ed25519 AAAA ops"])
    assert alone.startswith("#cloud-config\n")
    config = yaml.safe_load(alone)
    assert config["ssh_authorized_keys"] == ["ssh-ed25519 AAAA ops"]
    file = config["write_files"][0]
    assert file["path"] == "/etc/phoenix-fleet.env" and "PHOENIX_INSTANCE=web-r7-1" in file["content"]

    theirs = options.settle({"user_data": {"write_files": [{"path": "/etc/motd", "content": "grüße\n"}]}})["user_data"]
    parts = email.message_from_string(seed.user_data(facts, (), theirs)).get_payload()
    texts = [part.get_payload(decode=True).decode() for part in parts]  # type: ignore[union-attr]
    assert [yaml.safe_load(text)["write_files"][0]["path"] for text in texts] == ["/etc/motd", "/etc/phoenix-fleet.env"]
    assert "append" in str(yaml.safe_load(texts[1])["merge_how"]), "or cloud-init would put one list in the place of the other"


def test_the_seed_is_a_disk_that_cloud_init_knows() -> None:
    import pycdlib

    files = seed.files(UUID, "web-r7-1", facts_of(PLANNED, BLUEPRINT), ())
    data = seed.image(files)
    assert data[0x8028:0x8028 + 6] == b"cidata" and len(data) < 1024 ** 2
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(data))
    for kind in ("rr_path", "joliet_path"):
        for name, text in files.items():
            buffer = io.BytesIO()
            disc.get_file_from_iso_fp(buffer, **{kind: f"/{name}"})
            assert buffer.getvalue().decode() == text
    assert json.loads(files["meta-data"]) == {"instance-id": UUID, "local-hostname": "web-r7-1"}


# What is missing

@pytest.mark.parametrize(("module", "name", "call"), [(host, "sdk", host.required_sdk), (seed, "pycdlib", seed.required_library)])
def test_a_missing_library_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: Callable[[], None],
) -> None:
    monkeypatch.setattr(module, name, None)
    with pytest.raises(RefusedError, match=r"python\S* has no .*Run: .*pip install"):
        call()


@pytest.mark.parametrize(("python", "command"), [
    ("/usr/bin/python3", "apt-get install -y python3-libvirt python3-pycdlib"),
    ("/srv/.venv/bin/python", "apt-get install -y gcc pkg-config libvirt-dev python3-dev && "
     "/srv/.venv/bin/python -m pip install libvirt-python pycdlib"),
])
def test_each_interpreter_has_its_own_way(python: str, command: str) -> None:
    assert host.how_to_install(python) == command


@pytest.mark.parametrize(("uri", "said", "words"), [
    ("qemu:///system", "Failed to connect socket to '/run/libvirt/libvirt-sock': No such file", "systemctl start libvirtd"),
    ("qemu:///system", "authentication unavailable: no polkit agent", "group libvirt"),
    ("qemu+ssh://ops@node1/system", "Cannot recv data: Host key verification failed", "ssh ops@node1 virsh"),
    ("qemu+tls://192.0.2.9/system", "connection refused", "virsh -c 'qemu+tls://192.0.2.9/system' list"),
])
def test_silence_is_told_with_what_to_do(uri: str, said: str, words: str) -> None:
    assert words in host.how_to_reach(uri, said)
