# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fragment: what is written is what is read, and what HAProxy would not take is refused."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import fragment as fragments
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.fragment import Fragment, parse, render, settings
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Head, Server
from hypothesis import given
from hypothesis import strategies as st

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True)
addresses = st.ip_addresses().map(str)


@st.composite
def servers(draw: st.DrawFn) -> tuple[Server, ...]:
    chosen = draw(st.lists(names, unique=True, max_size=5))
    made = []
    for number, name in enumerate(chosen):
        state = draw(st.sampled_from(["ready", "drain", "maint"]))
        weight = draw(st.integers(0, 256)) if state == "ready" else 0
        made.append(Server(name, draw(addresses), draw(st.integers(1, 65535)), 10001 + number, weight, state))
    return tuple(made)


options = st.fixed_dictionaries({}, optional={
    "mode": st.sampled_from(["http", "tcp"]),
    "balance": st.sampled_from(["roundrobin", "leastconn", "source", "hash src", "rdp-cookie(x)", "random(2)"]),
    "check": st.fixed_dictionaries({"path": st.just("/health")}, optional={"status": st.sampled_from([200, [200, 204], "200-399"])}),
    "inter": st.sampled_from(["100ms", "1s", "2m"]),
    "rise": st.integers(1, 5),
    "server": st.sampled_from([
        {}, {"ssl": True, "verify": "none"}, {"ssl": True, "ca_file": "/etc/ca.pem", "sni": "a.example"}, {"send_proxy_v2": True},
    ]),
    "timeouts": st.sampled_from([{}, {"server": "5m"}, {"tunnel": "1h", "server_fin": "1s"}]),
    "options": st.lists(st.sampled_from(["http-reuse always", "option http-keep-alive"]), unique=True),
})
fragment = st.builds(
    Fragment, name=names, head=st.builds(Head, ledger=names, fence=st.integers(0, 2**40), fleet=names, live=st.integers(0, 99)),
    options=options, servers=servers(), kept=st.lists(st.sampled_from(["http-reuse never", "timeout server 9s"]), unique=True).map(tuple),
    stale=st.sampled_from(["", "12:34"]),
)


@given(fragment)
def test_what_is_written_is_what_is_read(made: Fragment) -> None:
    assert parse(render(made)) == made
    assert render(parse(render(made)) or made) == render(made)


@given(fragment)
def test_nothing_that_is_good_is_called_a_mistake(made: Fragment) -> None:
    assert not fragments.mistakes(made.name, made.servers, made.options)


def test_a_server_out_of_traffic_is_written_at_weight_0_because_haproxy_begins_by_calling_it_up() -> None:
    aside = (Server("a", "192.0.2.1", 80, 10001, 100, "drain"), Server("b", "192.0.2.2", 80, 10002, 100, "maint"))
    text = render(Fragment("web", servers=aside))
    assert " weight 0 # drain" in text
    assert " weight 0 disabled # maint" in text


def test_everything_is_stated_that_an_earlier_defaults_could_change() -> None:
    lines = settings(Fragment("web"))
    stated = {" ".join(line.split()[:2]) for line in lines}
    assert {"mode http", "balance roundrobin", "timeout connect", "timeout server", "timeout check", "option tcp-check"} <= stated


@pytest.mark.parametrize(("files", "found"), [
    ({"a": "defaults\n default-server inter 1s ssl", "b": ""}, ""),
    ({"a": "global\ndefaults\n mode http\n default-server inter 1s track x/y", "b": ""}, "track in the default-server of a, after line 2"),
    ({"a": "defaults\n default-server track x/y", "aa": "defaults next\n mode tcp", "b": ""}, ""),
    ({"a": "defaults\n mode http", "b": "", "c": "defaults\n default-server source ::1"}, ""),
])
def test_what_an_earlier_defaults_gives_for_good_is_found(files: dict[str, str], found: str) -> None:
    assert fragments.lasting(files, "b") == found


def test_the_check_asks_as_it_was_told() -> None:
    lines = settings(Fragment("web", options={"check": {"path": "/health", "status": [200, 204], "host": "shop.example"}}))
    assert "option httpchk" in lines
    assert "http-check send meth GET uri /health ver HTTP/1.1 hdr Host shop.example" in lines
    assert "http-check expect status 200,204" in lines


def test_a_hash_takes_servers_at_run_time_when_it_is_consistent() -> None:
    assert "hash-type consistent" in settings(Fragment("web", options={"balance": "source"}))
    assert "hash-type consistent" not in settings(Fragment("web", options={"balance": "source", "options": ["hash-type consistent djb2"]}))


FOREIGN = """\
# somebody's
backend web
    mode http
    timeout server 9s
    balance leastconn
    http-reuse always
    server one app.example:80 check cookie x weight 7   # old
    server two 192.0.2.2:80 id 4 disabled
"""
SEEN = (Server("one", "192.0.2.1", 80, 1, 7), Server("two", "192.0.2.2", 80, 4, 1, "maint"))


def test_an_adopted_backend_keeps_its_lines_unless_the_options_decide_them() -> None:
    made = fragments.adopt("web", FOREIGN, SEEN, {"mode": "http", "balance": "roundrobin"})
    assert made.kept == ("timeout server 9s", "http-reuse always")
    text = render(made)
    assert "balance roundrobin" in text
    assert "leastconn" not in text
    assert "timeout server 60s" not in text


def test_an_adopted_server_keeps_its_own_words_but_weight_and_state() -> None:
    made = fragments.adopt("web", FOREIGN, SEEN, {})
    assert made.adopted == {"one": "app.example:80 check cookie x", "two": "192.0.2.2:80"}
    drained = fragments.with_servers(made, (Server("one", "192.0.2.1", 80, 1, 7, "drain"),))
    assert "server one app.example:80 check cookie x id 1 weight 0 # adopted 192.0.2.1 80 # drain" in render(drained)
    assert parse(render(drained)) == drained


@pytest.mark.parametrize("text", [
    FOREIGN + "frontend web\n    bind :80\n",
    "frontend web\n    bind :80\n",
    FOREIGN.replace("server one", "server-template one 1-3"),
    FOREIGN.replace("    server two", "    server three"),
])
def test_what_cannot_be_kept_is_not_adopted(text: str) -> None:
    with pytest.raises(RefusedError):
        fragments.adopt("web", text, SEEN, {})


@pytest.mark.parametrize("text", [
    '# phoenix.fleet {"fence": 3', '# phoenix.fleet {"fence": 3}\n', "# phoenix.fleet {}\nbackend a\nbackend b\n",
    "# phoenix.fleet []\nbackend a\n", "# phoenix.fleet 3\nbackend a\n", '# phoenix.fleet {"fence": null}\nbackend a\n',
    '# phoenix.fleet {"fence": "x"}\nbackend a\n', "# phoenix.fleet {}\n# phoenix.fleet.options []\nbackend a\n",
    *(f"# phoenix.fleet {{}}\nbackend a\n    server {line}\n" for line in (
        "a", "a 192.0.2.1:80 weight 1", "a 192.0.2.1:x id 1 weight 1", "a 192.0.2.1:80 id 1 weight", "a x id 1 weight 1 # adopted",
    )),
])
def test_a_damaged_fragment_is_not_taken_for_somebody_elses(text: str) -> None:
    with pytest.raises(RefusedError, match="Restore the file"):
        parse(text)


@given(fragment)
def test_estranged_servers_keep_their_words(made: Fragment) -> None:
    text = render(fragments.estranged(made))
    assert parse(text) == fragments.estranged(made)
    for line in (line for line in render(made).splitlines() if line.startswith("    server ")):
        words = line.split()
        (same,) = (other for other in text.splitlines() if other.startswith(f"    server {words[1]} "))
        assert set(words) <= {*same.split(), "drain", "maint", "#"}


GOOD = Server("a", "192.0.2.1", 80, 10001)


@pytest.mark.parametrize(("server", "word"), [
    (Server("a;b", "192.0.2.1", 80, 1), "a;b"), (Server("a\nb", "192.0.2.1", 80, 1), "a\\nb"),
    (Server("a", "shop.example", 80, 1), "shop.example"), (Server("a", "fe80::1%eth0", 80, 1), "fe80::1%eth0"),
    (Server("a", "fe80::1%]:80\nlisten evil\n    #", 80, 1), "listen evil"), (Server("a", "192.0.2.1\n", 80, 1), "192.0.2.1\\n"),
    (Server("a", "192.0.2.1", 0, 1), "port 0"), (Server("a", "192.0.2.1", 80, 1, 300), "300"), (Server("a", "192.0.2.1", 80, 0), "id 0"),
    (Server("a", "192.0.2.1", 80, 1, 1, "up"), "'up'"), (Server("a", "192.0.2.2", 80, 10002), "name 'a'"),
    (Server("b", "192.0.2.2", 80, 10001), "10001"),
])
def test_a_bad_server_is_named(server: Server, word: str) -> None:
    found = fragments.mistakes("web", (GOOD, server) if server.port and server.id > 10000 else (server,), {})
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize("bad", [
    {"balance": "static-rr"}, {"balance": "roundrobin\nserver x"}, {"balance": "source", "options": ["hash-type map-based"]},
    {"inter": "1"}, {"inter": "soon"}, {"rise": 0}, {"mode": "udp"},
    {"bogus": 1}, {"timeouts": {"server": "5"}}, {"check": {"path": "health"}}, {"check": {"path": "/a b"}}, {"check": {"status": "ok"}},
    {"options": ["server x 192.0.2.1"]}, {"options": ["backend y"]}, {"options": ["a\nb"]},
    {"server": {"ca_file": "/a b"}}, {"server": {"sni": "a;b"}}, {"cookie": "S V"}, {"server": {"ssl": True}}, {"server": {"maxconn": 0}},
    {"inter": "25d"}, {"timeouts": {"tunnel": "2147483648ms"}}, {"server": {"sni": "é"}}, {"balance": "url_param"}, {"options": ['a "b']},
    {"mode": "tcp", "balance": "uri"}, {"options": ["a" + " b" * 64]}, {"options": ["a\\"]},
])
def test_a_bad_option_is_named(bad: dict[str, Any]) -> None:
    assert len(fragments.mistakes("web", (GOOD,), bad)) == 1


def test_a_cookie_is_one_that_every_haproxy_gives_to_an_added_server() -> None:
    assert not fragments.mistakes("web", (GOOD,), {"cookie": "SRV"})
    assert "cookie" not in fragments.tail(Server("web-1", "192.0.2.1", 80, 1), {"cookie": "SRV"})
    made = fragments.adopt("web", "backend web\n    cookie X prefix\n    dynamic-cookie-key k\n", (), {"cookie": "SRV"})
    lines = [*fragments.settings(made), *made.kept]
    assert [line for line in lines if "cookie" in line] == ["cookie SRV insert indirect nocache dynamic", "dynamic-cookie-key k"]


def test_only_what_the_run_time_api_cannot_change_needs_a_reload() -> None:
    one = Fragment("web", head=Head("l", 1), servers=(GOOD,))
    assert fragments.shape(one) == fragments.shape(Fragment("web", head=Head("l", 2), options={"mode": "http"}))
    assert fragments.shape(one) != fragments.shape(Fragment("web", options={"check": {"path": "/"}}))
    assert fragments.shape(one) != fragments.shape(Fragment("web", options={"rise": 3}))
