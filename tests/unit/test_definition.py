# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definition: what is taken, what is refused and in which words, what makes a new release, and that secrets stay where they are."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.phoenix.fleet.plugins.module_utils._arguments import VERBS
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import InvalidError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import fragment as fragments
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Definition, to_dict
from ansible_collections.phoenix.fleet.plugins.plugin_utils import _definition as definition
from ansible_collections.phoenix.fleet.plugins.plugin_utils._definition import (
    MASK,
    OWN,
    SPEC,
    default_state_dir,
    define,
    define_goal,
    definition_hash,
    definition_of,
    git_revision,
    namesakes,
    out_of_scope,
    published,
    recorded,
    revived,
    shown,
)
from hypothesis import example, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"fleet_image": "shop:1.9", "fleet_port": 8080}
KEY = b"the ledger's secret"
SECRET = "correct horse battery staple"
PVE = {
    "fleet_provider": "proxmox",
    "fleet_proxmox": {"api_host": "pve1", "api_user": "ci@pve", "api_token_id": "ci", "api_token_secret": SECRET},
}


def defined(**raw: Any) -> Definition:
    return define({**LEAST, **raw}, balancers=["lb1", "lb2"], hosts=["web", "lb1", "lb2", "edge"], name="web", state_dir="/state")


def mistakes(**raw: Any) -> list[str]:
    with pytest.raises(InvalidError) as caught:
        defined(**raw)
    return list(caught.value.mistakes)


# What is taken

def test_the_least_definition_is_complete() -> None:
    fleet = defined()
    assert (fleet.name, fleet.backend, fleet.image, fleet.port, fleet.size) == ("web", "web", "shop:1.9", 8080, 2)
    assert fleet.checks == ({"tcp": {}},) and fleet.balancers == ("lb1", "lb2") and fleet.state_dir == "/state"
    assert fleet.haproxy == {"mode": "http", "balance": "roundrobin", "check": {}, "server": {}, "timeouts": {}, "options": []}


def test_strings_from_the_command_line_become_what_is_meant() -> None:
    written = {
        "fleet_port": "8080", "fleet_size": " 3 ", "fleet_takeover": "true", "fleet_adopt": "no", "fleet_balancers": "lb2, edge",
        "fleet_checks": '[{"http": {"path": "/health", "status": "200"}}]', "fleet_docker": '{"memory": "256m"}', "fleet_keep": "0",
        "fleet_haproxy": '{"rise": "3", "server": {"ssl": "yes", "verify": "none", "sni": "str(shop.example.org)"}}',
    }
    fleet = defined(**written)
    assert (fleet.port, fleet.size, fleet.takeover, fleet.adopt, fleet.balancers, fleet.keep) == (8080, 3, True, False, ("lb2", "edge"), 0)
    assert fleet.checks[0]["http"]["status"] == "200" and fleet.options == {"memory": "256m"}
    assert fleet.haproxy["rise"] == 3 and fleet.haproxy["server"] == {"ssl": True, "verify": "none", "sni": "str(shop.example.org)"}


def test_images_are_kept_unless_a_number_says_how_many_and_where_they_are_the_collections_to_remove() -> None:
    assert defined().keep_images is None and defined(fleet_keep_images="0").keep_images == 0
    with pytest.raises(InvalidError, match="fleet_keep_images: has no effect with fleet_provider libvirt, whose golden images"):
        defined(fleet_keep_images=3, fleet_provider="libvirt", fleet_image="shop.qcow2")


@pytest.mark.parametrize("unset", ["", "  ", None])
def test_an_empty_string_is_an_unset_variable(unset: Any) -> None:
    assert defined(**{name: unset for name in SPEC if name not in LEAST}) == defined()


def test_haproxy_asks_what_the_first_http_check_asks() -> None:
    checks = [{"tcp": {}}, {"http": {"path": "/health", "status": [200, 204], "host": "shop.example.org", "headers": {"X": "y"}}}]
    assert defined(fleet_checks=checks).haproxy["check"] == {"path": "/health", "status": "200,204", "host": "shop.example.org"}
    assert defined(fleet_checks=checks, fleet_haproxy={"check": {}}).haproxy["check"] == {}
    assert defined(fleet_checks=checks, fleet_haproxy={"check": {"path": "/up"}}).haproxy["check"] == {"path": "/up", "status": "200-399"}


def test_haproxy_does_not_ask_in_plain_http_what_speaks_tls() -> None:
    checks = [{"http": {"path": "/health", "scheme": "https"}}]
    assert defined(fleet_checks=checks).haproxy["check"] == {}
    assert defined(fleet_checks=checks, fleet_haproxy={"server": {"ssl": True, "verify": "none"}}).haproxy["check"]["path"] == "/health"


@pytest.mark.parametrize("balance", [
    "roundrobin", "leastconn", "random(2)", "first", "source", "uri depth 3", "url_param id check_post", "hdr(Cookie) use_domain_only",
    "rdp-cookie(mstshash)", "hash path,word(1,/)",
])
def test_what_the_definition_says_of_the_algorithm_the_backend_takes(balance: str) -> None:
    haproxy = defined(fleet_haproxy={"balance": balance}).haproxy
    assert fragments.mistakes("web", (), haproxy) == []
    hashed = balance.split()[0].split("(")[0] in ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash")
    stated = fragments.settings(fragments.Fragment("web", options=haproxy))
    about = [line for line in stated if line.startswith(("balance", "hash-type"))]
    assert about == [f"balance {balance}", *(["hash-type consistent"] if hashed else [])]


def test_a_hash_type_of_the_users_own_takes_the_place_of_ours() -> None:
    lines = "hash-type consistent sdbm\nhttp-reuse safe\n"
    haproxy = defined(fleet_haproxy={"balance": "url_param id", "options": lines}).haproxy
    assert haproxy["options"] == lines.split("\n")[:-1]
    stated = fragments.settings(fragments.Fragment("web", options=haproxy))
    assert [line for line in stated if line.startswith("hash-type")] == ["hash-type consistent sdbm"]


def test_an_image_for_one_run_takes_the_place_of_the_defined_one() -> None:
    assert define({"fleet_port": 80, "release_image": "shop:2"}, balancers=["lb1"], name="web", state_dir="/s").image == "shop:2"


# What is refused

@pytest.mark.parametrize(("raw", "line"), [
    ({"fleet_port": 99999}, "fleet_port: 99999 is not a port; write a number from 1 to 65535"),
    ({"fleet_port": True}, "fleet_port: true is not a port; write a number from 1 to 65535"),
    ({"fleet_port": None}, "fleet_port: missing; write a number from 1 to 65535"),
    ({"fleet_image": ""}, "fleet_image: missing; write repository:tag or repository@sha256:..."),
    ({"fleet_image": "shop 1.9"}, "fleet_image: shop 1.9 is not an image; write repository:tag or repository@sha256:..."),
    ({"fleet_name": "Web"}, "fleet_name: Web is not a name of a fleet; begin with a letter and write at most 40 of a-z, 0-9 and -"),
    ({"fleet_name": "w" * 41}, None),
    ({"fleet_backend": "../x"}, "fleet_backend: ../x is not a name of a backend; write letters, digits, _, -, . and :"),
    ({"fleet_size": 0}, "fleet_size: 0 is not a whole number; write a number from 1 to 10000"),
    ({"fleet_prot": 80}, "fleet_prot: unknown; did you mean fleet_port?"),
    ({"fleet_balancer": "lb1"}, "fleet_balancer: unknown; did you mean fleet_balancers?"),
    ({"release_iamge": "shop:2"}, "release_iamge: unknown; did you mean release_image?"),
    ({"fleet_balancers": ["lb1", "lb7"]}, "fleet_balancers: lb7 is not a host of the inventory; known are lb1, lb2"),
    ({"fleet_balancers": ["nginx"]}, "fleet_balancers: nginx is not a host of the inventory; known are lb1, lb2"),
    ({"fleet_balancers": []}, "fleet_balancers: no balancer; add hosts that run HAProxy to the group balancers, or name them here"),
    ({**PVE, "fleet_image": ""}, "fleet_image: missing; write the name of a template, or its VMID"),
    ({**PVE, "fleet_proxmox": {**PVE["fleet_proxmox"], "node": "a"}}, "fleet_proxmox.node: there is no such option; did you mean nodes?"),
    ({"fleet_provider": "podman"}, "fleet_provider: podman is not known; write docker, proxmox or libvirt"),
    ({"fleet_strategy": "canary"}, "fleet_strategy: canary is not available in this version; write blue_green"),
    ({"fleet_docker": "x"}, "fleet_docker: a text is not a dictionary; write {key: value}"),
    ({"fleet_state_dir": "state"}, "fleet_state_dir: state is not an absolute path; write for example /var/lib/phoenix.fleet"),
    ({"fleet_ledger": "mysql://u:hush@db/x"}, (
        "fleet_ledger: it begins with mysql; write postgresql://USER@HOST/DATABASE or sqlite:////ABSOLUTE/PATH"
    )),
    ({"fleet_hold": "one\ntwo"}, None),
    ({"fleet_checks": [{"htpp": {}}]}, "fleet_checks[0]: htpp is not a kind of check; write http, tcp or command"),
    ({"fleet_haproxy": {"balence": "x"}}, "fleet_haproxy.balence: unknown; did you mean balance?"),
    ({"fleet_haproxy": {"server": {"tls": True}}}, None),
    ({"fleet_haproxy": {"inter": 2}}, "fleet_haproxy.inter: 2 is not a time of HAProxy; write it with its unit, such as 500ms or 2s"),
    ({"fleet_haproxy": {"balance": "static-rr"}}, (
        "fleet_haproxy.balance: static-rr takes no new servers while HAProxy runs; write roundrobin, leastconn, random, first, "
        "or one that hashes: source, uri, url_param, hdr, rdp-cookie or hash"
    )),
    ({"fleet_haproxy": {"balance": "source", "options": ["hash-type map-based"]}}, (
        "fleet_haproxy.balance: source takes no new servers while HAProxy runs with another hash-type than consistent; leave that line out"
    )),
    ({"fleet_haproxy": {"balance": "url-param id"}}, None),
    ({"fleet_haproxy": {"balance": "roundrobin\nserver evil 1.2.3.4"}}, None),
    ({"fleet_haproxy": {"check": {"path": "/x y"}}}, None),
    ({"fleet_haproxy": {"check": {"host": "a\r\nb"}}}, None),
    ({"fleet_haproxy": {"check": {"status": 99}}}, "fleet_haproxy.check.status: 99 is no status; write 200, [200, 204] or 200-399"),
    ({"fleet_haproxy": {"options": ["x\ry"]}}, None),
    ({"fleet_haproxy": {"options": ["http-reuse safe", "server a 192.0.2.1"]}}, (
        "fleet_haproxy.options[1]: server a 192.0.2.1 cannot stand here; the servers are the release's own"
    )),
    ({"fleet_haproxy": {"options": ["# phoenix.fleet"]}}, None),
    ({"fleet_haproxy": {"options": ["listen x"]}}, "fleet_haproxy.options[0]: listen x cannot stand here; it would begin another section"),
    ({"fleet_haproxy": {"server": {"ssl": True}}}, (
        "fleet_haproxy.server.ssl: without ca_file no certificate would be verified; name the authorities' file, or write verify: none"
    )),
    ({"fleet_haproxy": {"inter": "100d"}}, "fleet_haproxy.inter: '100d' is longer than HAProxy takes; write at most 24d"),
    ({"fleet_haproxy": {"balance": "url_param"}}, (
        "fleet_haproxy.balance: url_param has other arguments than it takes; write url_param and the parameter's name"
    )),
    ({"fleet_haproxy": {"server": {"sni": "str(x)"}}}, "fleet_haproxy.server.sni: str(x) has no effect without TLS; add ssl: true"),
])
def test_a_mistake_names_variable_value_and_remedy(raw: dict[str, Any], line: str | None) -> None:
    found = mistakes(**raw)
    assert len(found) == 1 and (line is None or found == [line]), found


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes(fleet_port=99999, fleet_size="many", fleet_prot=1, fleet_docker={"memry": 1}, fleet_haproxy={"rise": 0, "mode": "udp"})
    assert [line.split(":")[0] for line in found] == [
        "fleet_prot", "fleet_size", "fleet_port", "fleet_haproxy.mode", "fleet_haproxy.rise", "fleet_docker.memry",
    ]


@pytest.mark.parametrize("name", [
    "fleet_region", "fleet_report", "fleet_owner", "fleet_image_tag", "fleet_provider_name", "release_notes", "release_result", "my_port",
])
def test_names_far_from_ours_are_the_users_own(name: str) -> None:
    assert defined(**{name: 1}) == defined()


def test_no_own_name_is_taken_for_a_slip_of_another() -> None:
    for name in OWN:
        assert definition.unknown({name: 1}, OWN) == []


def test_in_awx_the_default_ledger_is_refused() -> None:
    with pytest.raises(InvalidError, match="vanish with the job"):
        define(LEAST, balancers=["lb1"], name="web", state_dir="/s", awx=True)
    url = "postgresql://phoenix@db/phoenix"
    assert define({**LEAST, "fleet_ledger": url}, balancers=["lb1"], name="web", state_dir="/s", awx=True).ledger == url


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3), max_leaves=8,
)
HAPROXY = st.dictionaries(st.sampled_from([*definition.HAPROXY, "junk"]), JUNK, max_size=4)


@example(raw={"fleet_haproxy": {"options": [None]}, "fleet_balancers": [None]}, awx=False)
@given(raw=st.dictionaries(st.sampled_from([*OWN, "fleet_prot", "fleet_x"]), JUNK | HAPROXY, max_size=6), awx=st.booleans())
def test_whatever_is_written_is_taken_or_refused_line_by_line(raw: dict[str, Any], awx: bool) -> None:
    try:
        fleet = define({**LEAST, **raw}, balancers=["lb1"], name="web", state_dir="/s", awx=awx)
    except InvalidError as error:
        assert len(set(error.mistakes)) == len(error.mistakes) > 0 and all(line.isprintable() for line in error.mistakes), error.mistakes
        assert all(line.startswith(("fleet_", "release_", "rollback_", "scale_", "retire_")) for line in error.mistakes)
    else:
        assert json.loads(json.dumps(shown(fleet), default=str))["port"] in range(1, 65536)


@given(raw=st.dictionaries(st.sampled_from(OWN), JUNK, max_size=4), verb=st.sampled_from(VERBS), fleets=st.integers(1, 3))
def test_whatever_a_verb_is_given_is_taken_or_refused_line_by_line(raw: dict[str, Any], verb: str, fleets: int) -> None:
    goal, found = define_goal(raw, verb, "web", ["web", "api", "shop"][:fleets])
    assert goal.verb == verb and all(line.isprintable() for line in found)


# Goals and scope

@pytest.mark.parametrize(("verb", "raw", "fleets", "line"), [
    ("scale", {}, ["web"], "scale_size: missing; say how many instances, such as -e scale_size=4"),
    ("scale", {"scale_size": "x"}, ["web"], "scale_size: x is not a whole number; write a number from 1 to 10000"),
    ("scale", {"scale_size": 3}, ["web", "api"], (
        "scale_size: 3 needs exactly one fleet, and this run has web, api; add -l and one of them"
    )),
    ("release", {"release_image": "shop:2"}, ["web", "api"], (
        "release_image: shop:2 needs exactly one fleet, and this run has web, api; add -l and one of them"
    )),
    ("rollback", {"rollback_to": -1}, ["web"], "rollback_to: -1 is not a number of a release; write a number from 1 to 1000000000"),
    ("heal", {"heal_share": 0}, ["web"], "heal_share: 0 is not a share in percent; write a number from 1 to 100"),
    ("retire", {}, ["web"], "retire_confirm: missing; to take the fleet away for good, add -e retire_confirm=web"),
    ("retire", {"retire_confirm": "api"}, ["web"], (
        "retire_confirm: api is not this fleet; to take the fleet away for good, add -e retire_confirm=web"
    )),
])
def test_a_verbs_own_variable_is_validated(verb: str, raw: dict[str, Any], fleets: list[str], line: str) -> None:
    assert define_goal(raw, verb, "web", fleets)[1] == [line]


def test_two_hosts_may_not_be_one_fleet() -> None:
    fleets = {"web": {}, "shop": {"fleet_name": "web"}, "api": {}}
    assert namesakes("web", "web", fleets) == ["fleet_name: web is the name of shop as well; give each fleet a name of its own"]
    assert namesakes("api", "api", fleets) == []


def test_a_goal_holds_what_its_verb_was_given() -> None:
    assert define_goal({"scale_size": "4"}, "scale", "web", ["web"])[0].size == 4
    assert [define_goal(raw, "heal", "web", ["web"])[0].share for raw in ({}, {"heal_share": ""}, {"heal_share": "5"})] == [20, 20, 5]
    assert define_goal({"rollback_to": "41"}, "rollback", "web", ["web"])[0].to == 41
    assert define_goal({}, "rollback", "web", ["web", "api"]) == (define_goal({}, "rollback")[0], [])
    assert define_goal({"release_force": "true"}, "release", "web", ["web"])[0].force is True
    assert define_goal({"retire_confirm": "web"}, "retire", "web", ["web"])[1] == []
    assert define_goal({"release_image": "", "release_force": False}, "release", "web", ["web", "api"])[1] == []


def test_a_host_that_is_no_fleet_is_refused() -> None:
    assert out_of_scope("web", {"fleets": ["web"]}) == []
    assert out_of_scope("lb1", {"fleets": ["web"]}) == ["lb1 is not a fleet; limit the run to hosts of the group fleets: web"]
    assert len(out_of_scope("web", {})) == len(out_of_scope("web", {"fleets": []})) == 1


# Hash, record and secrets

OPTIONS = {
    "environment": {"A": "1", "B": "2"}, "secrets": {"db": SECRET}, "memory": "256m", "hosts": ["tcp://node1:2376"],
    "registry": {"username": "deploy", "password": SECRET + "!"},
}


def full(**raw: Any) -> Definition:
    return defined(fleet_docker={**OPTIONS, **raw.pop("docker", {})}, **raw)


@given(order=st.permutations(list(OPTIONS)))
def test_the_hash_does_not_depend_on_the_order_of_keys(order: list[str]) -> None:
    backwards = {"environment": {"B": "2", "A": "1"}}
    options = {**{key: OPTIONS[key] for key in order}, **backwards}
    assert definition_hash(replace(full(), options={key: options[key] for key in order}), KEY) == definition_hash(full(), KEY)


@pytest.mark.parametrize("raw", [
    {"fleet_port": 8081}, {"docker": {"environment": {"A": "1"}}}, {"docker": {"memory": "512m"}}, {"docker": {"secrets": {"db": "other"}}},
    {"docker": {"secrets": {"db": SECRET, "more": "x"}}}, {"docker": {"command": ["serve"]}}, {"docker": {"sealed": True}},
])
def test_a_change_of_what_shapes_an_instance_changes_the_hash(raw: dict[str, Any]) -> None:
    assert definition_hash(full(**raw), KEY) != definition_hash(full(), KEY)


@pytest.mark.parametrize("raw", [
    {"fleet_size": 5}, {"fleet_image": "shop:2"}, {"fleet_checks": [{"http": {}}]}, {"fleet_haproxy": {"rise": 5}},
    {"fleet_balancers": "lb1"}, {"fleet_keep": 3}, {"docker": {"pull": "always"}}, {"docker": {"hosts": ["tcp://node2:2376"]}},
    {"docker": {"registry": None}}, {"docker": {"memory": 256 * 1024**2}}, {"docker": {"user": None}},
])
def test_what_can_change_without_a_new_instance_does_not_change_the_hash(raw: dict[str, Any]) -> None:
    assert definition_hash(full(**raw), KEY) == definition_hash(full(), KEY)


def test_the_hash_of_a_secret_needs_the_ledgers_key() -> None:
    assert definition_hash(full(), KEY) != definition_hash(full(), b"another") and len(definition_hash(full(), KEY)) == 16
    assert definition_hash(defined(), KEY) == definition_hash(defined(), b"another")


@given(secret=st.text(min_size=9, max_size=40))
def test_neither_record_nor_result_holds_a_secret(secret: str) -> None:
    fleet = replace(
        full(docker={"secrets": {"db": secret}, "registry": {"username": "u", "password": secret}}),
        ledger=f"postgresql://u:{secret}@db/x", checks=({"http": {"headers": {"Authorization": secret}}},),
    )
    for text in (recorded(fleet, KEY), shown(fleet), published(recorded(fleet, KEY), KEY)):
        assert secret not in MASK and secret not in json.dumps(text, ensure_ascii=False), text
    assert recorded(fleet, KEY)["options"]["secrets"]["db"].startswith("hmac:")


@given(secret=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=9, max_size=40))
def test_of_what_may_be_secret_the_ledger_keeps_all_and_others_see_a_keyed_hash(secret: str) -> None:
    value = {"environment": {"URL": secret}, "log_options": {"tag": secret}, "command": [secret, "x"], "health": {"test": secret}}
    fleet = replace(full(docker=value), checks=({"command": ["probe", secret]},))
    record = recorded(fleet, KEY)
    assert record["options"]["environment"] == {"URL": secret} and record["options"]["command"] == [secret, "x"]
    seen = published(record, KEY)
    for text in (shown(fleet), seen):
        assert secret not in MASK and secret not in json.dumps(text, ensure_ascii=False), text
    assert seen["options"]["environment"]["URL"] == published(record, KEY)["options"]["log_options"]["tag"]
    assert seen["options"]["environment"]["URL"] != published(record, b"other")["options"]["environment"]["URL"]
    assert seen["options"]["secrets"] == record["options"]["secrets"] and published({}, KEY) == {}
    assert definition_hash(fleet, KEY) != definition_hash(fleet, b"another"), "no hash without the key"


def test_a_ledgers_url_keeps_all_but_its_password() -> None:
    urls = {
        "postgresql+psycopg://u:p@ss:w/rd@db:5432/x": f"postgresql+psycopg://u:{MASK}@db:5432/x",
        "postgresql://u@db/x?password=hush&a=b": f"postgresql://u@db/x?password={MASK}&a=b",
        "postgresql://u@db/x": "postgresql://u@db/x", "sqlite:////var/x": "sqlite:////var/x",
    }
    assert {url: shown(replace(defined(), ledger=url))["ledger"] for url in urls} == urls


class NoTemplates:
    def template(self, value: Any) -> Any:
        return value


def test_a_shown_definition_finds_its_secrets_again() -> None:
    raw = {
        **LEAST, "fleet_docker": OPTIONS, "fleet_ledger": "postgresql://u:hush@db/x", "fleet_state_dir": "/state",
        "fleet_checks": [{"http": {"headers": {"Authorization": SECRET}}}],
    }
    task_vars = {**raw, "inventory_hostname": "web", "groups": {"all": ["web", "lb1"], "fleets": ["web"], "balancers": ["lb1"]}}
    whole = definition.read(task_vars, NoTemplates())[0]
    first = replace(whole, revision="the one that the run began with")
    assert definition_of(shown(first), task_vars, NoTemplates()) == first
    again = definition.read_again(task_vars, NoTemplates())
    assert again == whole and again.options == OPTIONS and definition.ledger_url(task_vars, NoTemplates()) == raw["fleet_ledger"]
    assert definition_of(to_dict(defined()), {}, None) == defined(), "what is not masked needs no variables"


def test_a_masked_definition_cannot_be_hashed_or_recorded() -> None:
    masked = replace(full(), options=shown(full())["options"])
    with pytest.raises(RefusedError, match="masked"):
        definition_hash(masked, KEY)
    with pytest.raises(RefusedError, match="masked"):
        recorded(masked, KEY)


def test_an_earlier_release_is_revived_with_the_secrets_of_today() -> None:
    record = recorded(full(), KEY)
    now = full(fleet_port=9000, docker={"secrets": {"db": "rotated", "new": "x"}, "environment": {"C": "3"}, "hosts": ["tcp://node2:2376"]})
    then = revived(now, record)
    assert then.port == 8080 and then.options["environment"] == {"A": "1", "B": "2"} and then.options["secrets"] == {"db": "rotated"}
    assert then.options["hosts"] == ["tcp://node2:2376"] and definition_hash(revived(full(), record), KEY) == definition_hash(full(), KEY)
    with pytest.raises(RefusedError, match="secrets.db"):
        revived(defined(), record)


# Where defaults come from

def test_the_revision_is_that_of_the_folder(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "inventory").mkdir()
    assert git_revision(str(tmp_path / "inventory")) == "", "no repository"
    git("init", "--quiet")
    assert git_revision(str(tmp_path)) == "", "no commit"
    (tmp_path / "inventory" / "hosts").write_text("web")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    git("tag", "v1")
    assert git_revision(str(tmp_path / "inventory")) == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "inventory" / "hosts").write_text("api")
    assert git_revision(str(tmp_path / "inventory")) == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    assert git_revision(str(tmp_path / "missing")) == git_revision("a\0b") == ""


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(str(ROOT)) == ""


def test_the_state_folder_follows_xdg() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == "/x/phoenix.fleet"
    assert default_state_dir({"XDG_STATE_HOME": "relative"}) == default_state_dir({}) and default_state_dir({}).startswith("/")


# The role says the same

def test_the_role_documents_what_is_validated() -> None:
    path = ROOT / "roles" / "fleet"
    documented = yaml.safe_load((path / "meta" / "argument_specs.yml").read_text())["argument_specs"]["definition"]["options"]
    defaults = yaml.safe_load((path / "defaults" / "main.yml").read_text())
    assert list(defaults) == list(documented) == list(SPEC)
    assert [name for name, option in documented.items() if option.get("required")] == list(LEAST)
    for name, spec in SPEC.items():
        assert documented[name].get("choices") == spec.get("choices"), name
        assert (spec.get("default") if "{{" not in str(defaults[name]) else defaults[name]) in (defaults[name], None), name
    assert _tree(documented["fleet_haproxy"]) == _tree(SPEC["fleet_haproxy"])


def test_the_roles_defaults_are_the_defaults() -> None:
    defaults = yaml.safe_load((ROOT / "roles" / "fleet" / "defaults" / "main.yml").read_text())
    plain = {name: value for name, value in defaults.items() if "{{" not in str(value) and name not in LEAST}
    assert defined(**plain) == defined()


def _tree(option: Any) -> Any:
    return option["type"], {name: _tree(part) for name, part in option.get("options", {}).items()}
