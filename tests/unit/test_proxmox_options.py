# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`fleet_proxmox`: what is understood, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import _proxmox_api
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_guest import told_by_agent, told_by_container
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_options import OPTIONS, band_of, mistakes, settle, shape

LOGIN = {"api_host": "pve1", "api_user": "ci@pve", "api_token_id": "ci@pve!fleet", "api_token_secret": "s3cret"}


def test_nothing_but_the_login_is_needed() -> None:
    assert mistakes(LOGIN) == []
    made = settle(LOGIN)
    assert (made["api_token_id"], made["api_port"], made["validate_certs"]) == ("fleet", 8006, True)
    assert (made["kind"], made["clone"]) == ("qemu", "linked")
    assert band_of(made) == (100000, 999999) and made["addresses"] == "agent"


def test_every_option_is_read_and_reads_again_what_it_has_made() -> None:
    given = {
        **LOGIN, "api_port": "8443", "validate_certs": "no", "ca_path": "/ca.pem", "nodes": "pve1, pve2", "pool": "fleet/web",
        "clone": "full", "storage": "ceph", "vmid_range": "5000-5999", "cores": "2", "memory": "2g", "disk": "20g", "prefix": "23",
        "networks": ["vmbr0", {"bridge": "vmbr1", "vlan": "7", "firewall": "yes", "model": "e1000", "mtu": 9000}],
        "addresses": "192.0.2.10-192.0.2.20,192.0.2.30", "gateway": "192.0.2.1", "agent_network": "192.0.2.0/24",
        "nameserver": "192.0.2.2 192.0.2.3", "ci_user": "ops", "ssh_keys": "ssh-ed25519 AAAA me\nssh-rsa BBBB you", "tags": ["blue", "eu"],
        "facts": "no",
    }
    assert set(given) | {"api_password", "kind"} == set(OPTIONS) and mistakes(given) == []
    made = settle(given)
    assert settle(made) == made
    assert made["networks"] == [{"bridge": "vmbr0"}, {"bridge": "vmbr1", "vlan": 7, "firewall": True, "model": "e1000", "mtu": 9000}]
    assert (made["nodes"], made["memory"], made["disk"]) == (["pve1", "pve2"], 2 * 1024**3, 20 * 1024**3)
    assert made["addresses"] == ["192.0.2.10-192.0.2.20", "192.0.2.30"] and len(made["ssh_keys"]) == 2
    assert not {key for key in shape(given) if key.startswith("api_") or key in ("addresses", "nodes", "vmid_range", "ca_path")}


@pytest.mark.parametrize(("more", "line"), [
    ({"api_host": ""}, "fleet_proxmox.api_host: missing; write e.g. pve1.example.org"),
    ({"api_user": "ci"}, "fleet_proxmox.api_user: 'ci' is not a user with its realm; write e.g. fleet@pve"),
    ({"api_password": "x"}, "fleet_proxmox.api_token_secret: give either a token's secret or api_password"),
    ({"api_token_id": None}, "fleet_proxmox.api_token_id: it belongs to api_token_secret; give both"),
    ({"api_token_id": "ci@pve!fleet=s3cret"}, "fleet_proxmox.api_token_id: what stands behind = is the token's secret; write that into"),
    ({"vmid_range": "99-200"}, "fleet_proxmox.vmid_range: '99-200' is not a range from a lower to a higher VMID, from 100 to 999999999"),
    ({"storage": "ceph"}, "fleet_proxmox.storage: a linked clone is where its template is; set clone to full, or leave storage out"),
    ({"gateway": "192.0.2.1"}, "fleet_proxmox.gateway: it belongs to addresses; without them the network tells an instance its gateway"),
    ({"addresses": ["192.0.2.9-192.0.2.1"]}, "fleet_proxmox.addresses[0]: '192.0.2.9-192.0.2.1' is not a range from a lower to a"),
    ({"addresses": ["192.0.2.1-192.0.2.9", "192.0.2.5"]}, "fleet_proxmox.addresses: 192.0.2.5 is in it twice; write every address once"),
    ({"kind": "lxc", "ci_user": "ops"}, "fleet_proxmox.ci_user: a container has no cloud-init; put it into the template"),
    ({"networks": [{"vlan": 7}]}, "fleet_proxmox.networks[0]: bridge is missing"),
    ({"node": "pve1"}, "fleet_proxmox.node: there is no such option; did you mean nodes?"),
])
def test_mistakes_name_the_option_and_the_remedy(more: dict[str, Any], line: str) -> None:
    found = mistakes({**LOGIN, **more})
    assert any(item.startswith(line) for item in found), found
    assert "s3cret" not in str(found)


def test_a_missing_sdk_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proxmox_api, "sdk", None)
    with pytest.raises(RefusedError, match="-m pip install 'proxmoxer>=2.2' requests"):
        _proxmox_api.required_sdk()


@pytest.mark.parametrize(("within", "address"), [(None, "192.0.2.5"), ("198.51.100.0/24", "198.51.100.7"), ("203.0.113.0/24", "")])
def test_an_agents_address_is_that_of_our_own_device(within: str | None, address: str) -> None:
    answer = {"result": [
        {"name": "lo"},
        {"name": "docker0", "hardware-address": "02:42:00:00:00:01", "ip-addresses": [{"ip-address": "172.17.0.1"}]},
        {"name": "eth0", "hardware-address": "BC:24:11:00:00:02", "ip-addresses": [
            {"ip-address": "fe80::1"}, {"ip-address": "169.254.0.9"}, {"ip-address": "192.0.2.5"}, {"ip-address": "198.51.100.7"}]},
    ]}
    assert told_by_agent(answer, ["bc:24:11:00:00:02"], within) == address


def test_a_containers_address_may_be_told_in_the_older_way_alone() -> None:
    answer = [
        {"name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8"},
        {"name": "eth0", "hwaddr": "bc:24:11:00:00:02", "inet": "192.0.2.5/24"},
    ]
    assert told_by_container(answer, ["bc:24:11:00:00:02"], None) == "192.0.2.5"
