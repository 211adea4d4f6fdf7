# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way from what HAProxy says to what is wanted, tried against a simulation of its servers' life."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import (
    DeadlineError,
    FleetError,
    LeaseError,
    RefusedError,
    UnreachableError,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import _files as files
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import backend as backends
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import client
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.fragment import Fragment, parse, render, with_servers
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Head, Server
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass
class Line:
    """A server of the simulated HAProxy. judged: its check has spoken since it last left maintenance."""

    server: Server
    healthy: bool = True
    checked: bool = False
    judged: bool = False
    idle: int = 0


class Simulation:
    """HAProxy's servers as facts 1.3 and 1.4 have them (2.6): a server out of maintenance is up until a check has spoken."""

    def __init__(self, sick: frozenset[str] = frozenset()) -> None:
        self.lines: dict[str, Line] = {}
        self.behind: dict[str, int] = {}
        self.sick = sick
        self.fragment = ""

    def observed(self) -> tuple[Server, ...]:
        return tuple(self._shown(line) for line in self.lines.values())

    def _shown(self, line: Line) -> Server:
        up = line.judged and line.healthy and line.server.state != "maint"
        check = "off" if not line.checked else "INI" if not line.judged else "L7OK" if line.healthy else "L4CON"
        return replace(line.server, up=up, check=check, sessions=line.server.sessions + self.behind.get(line.server.name, 0))

    def traffic(self) -> set[str]:
        """Who gets new clients now."""
        taking = (line for line in self.lines.values() if line.server.state == "ready" and line.server.weight > 0)
        return {line.server.name for line in taking if line.healthy or not line.judged}

    def run(self, command: str) -> str:
        words = command.split()
        name = re.search(r"web/(\S+)", command).group(1)  # type: ignore[union-attr]
        if words[:2] == ["add", "server"]:
            assert name not in self.lines, "added twice"
            host, _colon, port = words[3].rpartition(":")
            number = int(words[words.index("id") + 1])
            assert number not in [line.server.id for line in self.lines.values()]
            server = Server(name, host, int(port), number, int(words[words.index("weight") + 1]), "maint")
            self.lines[name] = Line(server, healthy=name not in self.sick)
            return "New server registered."
        line = self.lines[name]
        if words[0] == "enable":
            line.checked = True
        elif words[0] == "del":
            assert line.server.state == "maint", "Only servers in maintenance mode can be deleted."
            assert line.server.sessions + self.behind.get(name, 0) == 0, "deleted under a client"
            if line.idle:
                return "Server still has connections attached to it, cannot remove it."
            del self.lines[name]
            return "Server deleted."
        elif words[3] == "weight":
            line.server = replace(line.server, weight=int(words[4]))
        elif words[4] == "maint":
            line.idle = 0 if line.server.state != "maint" else line.idle
            line.server = replace(line.server, state="maint")
        else:
            line.judged = line.judged and line.server.state != "maint"
            line.server = replace(line.server, state=words[4])
        return ""

    def check(self) -> None:
        for line in self.lines.values():
            line.judged = line.judged or line.checked

    def load(self) -> None:
        """A reload: what the fragment says, each server up until it is checked; sessions stay with the old process, seen or not."""
        loaded = parse(self.fragment)
        assert loaded is not None
        for name, line in self.lines.items():
            self.behind[name] = self.behind.get(name, 0) + line.server.sessions
        self.lines = {}
        for server in loaded.servers:
            state = "maint" if server.state == "maint" else "ready"
            now = replace(server, state=state)
            self.lines[server.name] = Line(now, healthy=server.name not in self.sick, checked=True)


POOL = [Server(f"web-{number}", f"192.0.2.{number}", 80, 10000 + number) for number in range(1, 7)]
chosen = st.lists(st.sampled_from(POOL), unique=True, max_size=5)
states = st.tuples(st.sampled_from([0, 1, 100]), st.sampled_from(["ready", "ready", "drain", "maint"]))


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Server, ...]:
    made = []
    for server in draw(chosen):
        weight, state = draw(states)
        made.append(replace(server, weight=weight if state == "ready" else 0, state=state))
    return tuple(made)


def bring(world: Simulation, wanted: tuple[Server, ...], draw: st.DataObject, reloads: int = 0) -> None:
    """What `Backend.apply` does, with a reload after any command that the data asks for, and with clients that stay or do not."""
    stuck: set[str] = set()
    at_once = draw.draw(st.booleans())
    for _round in range(60):
        seen = world.observed()
        cold = backends.unproven(seen, wanted)
        aim = backends.staged(seen, wanted, cold) if cold else wanted
        written = (parse(world.fragment) or Fragment("web")).servers
        lines = backends.together(aim, backends.parting(seen, aim, written, at_once), written)
        world.fragment = render(with_servers(Fragment("web"), lines))
        todo = backends.commands("web", seen, lines, {}, stuck=stuck, at_once=at_once)
        for command in todo:
            if reloads and draw.draw(st.booleans()):
                reloads -= 1
                world.load()
                break
            reply = world.run(command)
            if command.startswith("del") and client.STUCK in reply:
                stuck.add(command.rpartition("/")[2])
            unjudged = {name for name in world.traffic() if not world.lines[name].judged and world.lines[name].healthy is False}
            assert not unjudged, f"{unjudged} take traffic and no check has spoken"
        else:
            if not todo:
                if not cold and not [server for server in seen if not any(backends.same(server, item) for item in aim)]:
                    hidden = {name for name, count in world.behind.items() if count and name not in world.lines}
                    assert not hidden, f"{hidden} are gone with clients in a process that was left behind"
                    return
                down = {name for name in cold if name in world.lines and world.lines[name].judged and not world.lines[name].healthy}
                if down:
                    raise DeadlineError("web", f"{down} are not up")
                world.check()
                world.behind = {}
                for line in world.lines.values():
                    line.server = replace(line.server, sessions=0)
    raise AssertionError(f"still {backends.commands('web', world.observed(), wanted, {}, stuck=stuck)}")


@settings(max_examples=100, deadline=None)
@given(wishes(), wishes(), st.integers(0, 2), st.data())
def test_it_ends_as_it_was_wished_whatever_was_before(
    first: tuple[Server, ...], second: tuple[Server, ...], reloads: int, data: st.DataObject
) -> None:
    # What a check has called down may get a weight, and is up for a moment after a reload, as every server that is loaded.
    world = Simulation(sick=frozenset() if reloads else frozenset({"web-3"}))
    bring(world, first, data)
    for line in world.lines.values():
        line.server = replace(line.server, sessions=data.draw(st.integers(0, 2)))
        line.idle = data.draw(st.integers(0, 1)) if line.server.state == "maint" else 0
    serving = world.traffic()
    try:
        bring(world, second, data, reloads)
    except DeadlineError:
        # Nor when it is tried again does what is down take the place of what serves.
        with pytest.raises(DeadlineError):
            bring(world, second, data)
        assert serving <= world.traffic()
        return
    ended = {(line.server.name, line.server.weight, line.server.state) for line in world.lines.values()}
    assert ended == {(server.name, server.weight, server.state) for server in second}
    assert not backends.commands("web", world.observed(), second, {})


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.data())
def test_a_whole_release_never_leaves_the_backend_empty(size: int, data: st.DataObject) -> None:
    old = tuple(replace(server, weight=100) for server in POOL[:size])
    new = tuple(replace(server, weight=100) for server in POOL[3:3 + size])
    world = Simulation()
    bring(world, old, data)
    seen: list[set[str]] = []
    run = world.run
    world.run = lambda command: (run(command), seen.append(world.traffic()))[0]  # type: ignore[method-assign]
    bring(world, new, data, reloads=data.draw(st.integers(0, 2)))
    assert all(seen)
    assert world.traffic() == {server.name for server in new}


def test_weights_rise_before_others_fall() -> None:
    seen = (Server("a", "192.0.2.1", 80, 1, 100, up=True, check="L7OK"), Server("b", "192.0.2.2", 80, 2, 0, up=True, check="L7OK"))
    wanted = (replace(seen[0], weight=0, state="drain"), replace(seen[1], weight=100))
    assert backends.commands("web", seen, wanted, {}) == [
        "set server web/b weight 100", "set server web/a weight 0", "set server web/a state drain",
    ]


def test_a_server_is_deleted_as_its_version_wants_it() -> None:
    gone = (Server("a", "192.0.2.1", 80, 1, 0, "maint"),)
    assert backends.commands("web", gone, (), {}) == ["del server web/a"]
    assert backends.commands("web", gone, (), {}, stuck={"a"}) == [
        "set server web/a state drain", "set server web/a state maint", "del server web/a",
    ]
    assert backends.commands("web", gone, (), {}, (3, 0)) == ["wait 2s srv-removable web/a", "del server web/a"]


def test_clients_that_stay_are_moved_by_maint_while_others_are_waited_for() -> None:
    serving = Server("a", "192.0.2.1", 80, 1, 100, up=True, check="L7OK", sessions=3)
    draining = replace(serving, weight=0, state="drain")
    assert backends.commands("web", (serving,), (), {}) == ["set server web/a weight 0", "set server web/a state drain"]
    assert backends.commands("web", (draining,), (), {}) == []
    assert backends.commands("web", (serving,), (), {}, at_once=True) == ["set server web/a weight 0", "set server web/a state maint"]
    assert backends.commands("web", (draining,), (), {}, at_once=True) == ["set server web/a state maint"]
    assert backends.commands("web", (replace(draining, state="maint"),), (), {}, at_once=True) == [], "what is under way ends first"


def test_an_added_server_gets_the_dynamic_cookie_before_it_gets_clients() -> None:
    new = Server("a", "192.0.2.1", 80, 1, 100)
    lines = ["cookie SRV insert dynamic "]
    told = backends.commands("web", (), (new,), {}, lines=lines)
    assert told[-1] == "enable dynamic-cookie backend web"
    staged = replace(new, weight=0, up=True, check="L7OK")
    assert backends.commands("web", (staged,), (new,), {}, lines=lines) == [told[-1], "set server web/a weight 100"]
    assert told[-1] not in backends.commands("web", (), (new,), {}, lines=["cookie SRV insert "])


@pytest.mark.parametrize(("line", "sticky", "forced"), [
    ("cookie SRV insert", True, False), ("stick on src", True, False), ("stick match src", True, False),
    ("stick-table type ip size 1", True, False),
    ("persist rdp-cookie", True, False), ("option persist", True, True), ("force-persist if { src 10.0.0.1 }", True, True),
    ("no option persist", False, False), ("option redispatch", False, False), ("http-request set-header cookie x", False, False),
    ("default-server inter 1s on-marked-down shutdown-sessions", False, True),
])
def test_which_lines_keep_clients(line: str, sticky: bool, forced: bool) -> None:
    assert (bool(backends.STICKY.match(f"{line} ")), bool(backends.FORCED.match(f"{line} "))) == (sticky, forced)


def test_what_passed_in_one_worker_counts_in_the_next_until_a_check_says_no() -> None:
    up = Server("a", "192.0.2.1", 80, 1, up=True, check="L7OK")
    passed = backends.passing((), (up,))
    assert passed == {("a", "192.0.2.1", 80)}
    for unasked in ("INI", "", "off"):
        assert backends.passing(passed, (replace(up, up=False, check=unasked),)) == passed
        assert backends.passing((), (replace(up, up=False, check=unasked),)) == set(), "no answer is none"
    assert backends.passing(passed, (replace(up, up=False, check="L7OK"),)) == passed, "on its way to be fully up in this worker"
    for no in ("L4CON", "L7STS", "L4TOUT", "L7TOUT"):
        assert backends.passing(passed, (replace(up, up=False, check=no),)) == set()
        assert backends.passing((), (up, replace(up, up=False, check=no))) == set(), "whoever else is content"
    assert backends.passing(passed, (replace(up, up=False, check="L4CON", address="192.0.2.2"),)) == passed, "another server"
    assert backends.passing((), (replace(up, check="none"),)) == passed, "nobody checks it"
    idle = replace(up, up=False, check="INI", weight=0)
    assert backends.unproven((idle,), (replace(idle, weight=100),)) == ("a",)
    assert backends.unproven((idle,), (replace(idle, weight=100),), passed) == ()


def test_receipts() -> None:
    here = Server("a", "2001:DB8::1", 80, 1)
    info = client.Info(9, "2.6.12", 100)
    key = ("a", "2001:db8::1", 80)
    busy = {"7:1": {key: 2}, "8:1": {key: 0}, "6:1": {}}
    made = [(backends.Seen(info, True, (), elsewhere=elsewhere), cut) for elsewhere, cut in (
        (busy, {}), ({"8:1": {key: 0}}, {}), ({}, {"a": 3}), ({}, {}), ({"": {key: 0}}, {}),
    )]
    assert [backends.receipts(seen, (here,), cut, "deadline") for seen, cut in made] == [
        [backends.Receipt("a", "2001:DB8::1", 80, "deadline", 0, 2, ("7:1", "8:1"))],
        [backends.Receipt("a", "2001:DB8::1", 80, "idle")],
        [backends.Receipt("a", "2001:DB8::1", 80, "deadline", 3)],
        [backends.Receipt("a", "2001:DB8::1", 80, "idle")],
        [],
    ], "none where nobody can tell of other processes"


def test_a_check_that_failed_is_a_word_too_so_that_going_back_does_not_wait_for_it() -> None:
    down = Server("a", "192.0.2.1", 80, 1, 0, "drain", check="L4CON")
    assert backends.unproven((down,), (replace(down, weight=100, state="ready"),)) == ()


def test_what_is_down_takes_nobodys_place() -> None:
    up = [Server(name, "192.0.2.1", 80, number, 100, up=True, check="L7OK") for number, name in enumerate("abc", 1)]
    down = Server("d", "192.0.2.4", 80, 4, 0, check="L7STS")
    raised = replace(down, weight=100)
    assert backends.unproven((*up, down), (raised,)) == ("d",)
    assert backends.unproven((*up, down), (*up[1:], raised)) == ("d",)
    assert backends.unproven((*up, down), (*up, raised)) == ()
    spare = replace(up[2], weight=0, state="drain")
    assert backends.unproven((*up[:2], spare, down), (up[0], up[2], raised)) == (), "as many serve as before"


def test_another_address_under_the_same_name_is_another_server() -> None:
    seen = (Server("a", "192.0.2.1", 80, 1, 100, up=True, check="L7OK"),)
    wanted = (Server("a", "192.0.2.9", 80, 1, 100),)
    assert backends.unproven(seen, wanted) == ("a",)
    assert backends.staged(seen, wanted, ("a",)) == ()


HEAD = Head("ledger-a", 7, "web", 41, 42, 5)


@pytest.mark.parametrize(("lease", "error"), [
    (Head("ledger-a", 7, "web", records=5), None), (Head("ledger-a", 8, "web", records=6), None), (Head("ledger-a", 0, "web"), None),
    (Head("ledger-a", 6, "web"), LeaseError), (Head("ledger-b", 9, "web"), RefusedError), (Head("ledger-a", 9, "api"), RefusedError),
    (Head("ledger-a", 9, "web", records=4), RefusedError), (Head("ledger-a", 9, "web"), RefusedError), (None, RefusedError),
])
def test_who_may_write(lease: Head | None, error: type[FleetError] | None) -> None:
    if error is None:
        backends.admitted("web", "lb1", HEAD, lease, False)
        return
    with pytest.raises(error, match="lb1"):
        backends.admitted("web", "lb1", HEAD, lease, False)
    if lease is not None and lease.fleet == HEAD.fleet:
        backends.admitted("web", "lb1", HEAD, replace(lease, fence=8, records=5), True)
    else:
        with pytest.raises(RefusedError, match="lb1"):
            backends.admitted("web", "lb1", HEAD, lease, True)


@pytest.mark.parametrize("lease", [
    Head("ledger-b", 6, "web", records=9), Head("ledger-b", 9, "web", records=4), Head("ledger-a", 6, "web", records=9),
])
def test_fence_and_records_never_fall(lease: Head) -> None:
    with pytest.raises(FleetError, match="lb1: .*go on above that"):
        backends.admitted("web", "lb1", HEAD, lease, True)


def test_a_copy_of_the_ledger_that_was_left_behind_is_refused_whatever_its_fence() -> None:
    head, later = replace(HEAD, lineage="0001"), Head("ledger-a", 99, "web", records=99)
    for left in (later, replace(later, lineage="0002")):
        with pytest.raises(RefusedError, match="another copy of this ledger has taken the fleet web over .*Use that copy"):
            backends.admitted("web", "lb1", head, left, False)
    heirs = (replace(later, lineage="0001"), replace(later, lineage="0001/0003"), replace(later, ledger="b", lineage="ledger-a/0001"))
    for good in heirs:
        backends.admitted("web", "lb1", head, good, False)
        backends.admitted("web", "lb1", HEAD, good, False)  # a balancer that was out of reach then, or one from before


def test_a_run_leaves_its_records_and_check_mode_leaves_nothing() -> None:
    assert backends._headed(HEAD, Head("ledger-a", 8, "web", records=6)) == replace(HEAD, fence=8, records=6)
    assert backends._headed(HEAD, Head("ledger-a", 0, "web")) == HEAD
    assert backends._headed(HEAD, Head("ledger-b", 1, "web")) == replace(HEAD, ledger="ledger-b", fence=1, records=0)
    one, other = (render(Fragment("web", head=replace(HEAD, records=number))) for number in (5, 6))
    assert one != other and backends._unfenced(one) == backends._unfenced(other)


STATES = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status \
srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 web 10001 a 192.0.2.1 2 0 100 1 0 15 {result} {health} {check} 0 0 1 - 80 - 0 0 - - 0
"""
STATS = "# pxname,svname,qcur,scur,status,check_status,check_rise,check_fall,\nweb,a,1,2,UP,{status},2,2,\napi,a,50,50,UP,L7OK,2,2,\n"


@pytest.mark.parametrize(("result", "health", "check", "status", "up"), [
    (3, 3, 6, "L7OK", True), (3, 3, 7, "* L7OK", True), (3, 3, 6, "L4OK", True),
    (3, 2, 6, "L7OK", False), (2, 3, 6, "L7STS", False), (0, 2, 6, "INI", False), (3, 3, 14, "L7OK", False), (3, 3, 2, "L7OK", False),
    (4, 3, 6, "L7OKC", False),
])
def test_up_is_what_the_check_has_fully_passed(result: int, health: int, check: int, status: str, up: bool) -> None:
    states = STATES.format(result=result, health=health, check=check)
    (server,) = backends.read("web", states, STATS.format(status=status))
    assert server.up is up
    assert server.sessions == 3


def test_statistics_that_cannot_be_read_are_not_zero_sessions() -> None:
    with pytest.raises(RefusedError):
        backends.read("web", STATES.format(result=3, health=3, check=6), "")


@pytest.mark.parametrize("command", ["set server a;b", "add server a\nshutdown", "x << y", "a\\b", "show \x00", "é", "x" * 9000])
def test_no_command_holds_another(command: str) -> None:
    with pytest.raises(RefusedError):
        client.safe(command)


@pytest.mark.parametrize(("command", "reply"), [
    ("add server web/a 192.0.2.1:80", "No such backend."), ("set server web/a weight 1", "No such server."),
    ("show stat", "Unknown command: 'x'"), ("enable health web/a", "Permission denied"), ("del server web/a", "No such server."),
    ("set server web/a state ready", "Proxy is disabled."),
])
def test_every_no_is_noticed(command: str, reply: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(command)):
        client.accepted(command, reply)


def test_yes_is_no_error() -> None:
    client.accepted("add server web/a", "New server registered.\n")
    client.accepted("del server web/a", "Server deleted.\n")
    client.accepted("set server web/a", "\n")


def test_haproxys_own_list_of_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("conf")
    for name in ("b.cfg", "a.cfg", ".hidden.cfg", "notes.txt"):
        (folder / name).write_text("")
    words = ["haproxy", "-Ws", "-f", "/etc/haproxy/haproxy.cfg", "-S", "/run/m.sock", "-f", str(folder), "-sf", "12", "--", "/x.cfg"]
    paths = files.given(words)
    assert paths == ["/etc/haproxy/haproxy.cfg", str(folder), "/x.cfg"]
    assert files.expanded(paths, str(folder), "aa.cfg") == [
        "/etc/haproxy/haproxy.cfg", f"{folder}/a.cfg", f"{folder}/aa.cfg", f"{folder}/b.cfg", "/x.cfg",
    ]


def test_servers_without_an_id_keep_theirs_or_get_the_next() -> None:
    listed = [{"name": "b", "address": "192.0.2.2", "port": 80}, {"name": "a", "address": "192.0.2.1", "port": 80}]
    made = backends.standing(listed, (Server("a", "192.0.2.1", 80, 10007),))
    assert [(server.name, server.id, server.weight) for server in made] == [("b", 10008, 100), ("a", 10007, 100)]


STAT = """\
# pxname,svname,qcur,scur,
f,FRONTEND,,{clients},
web,a,0,{at_a},
web,b,0,0,
web,BACKEND,0,{at_a},
api,x,0,4,
api,BACKEND,0,4,
"""
OWN = "0x1: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 scf=[8,0h,fd=9] scb=[8,1h,fd=-1] exp=29s\n"


def stream(back: str, server: str, connection: int) -> str:
    return (
        f"0x2: proto=tcpv4 src=127.0.0.1:4 fe=f be={back} srv={server} ts=00 epoch=0 rq[f=8c4h,i=0] rp[f=88h,i=0] "
        f"scf=[8,0h,fd={connection},rex=1s] scb=[8,11h,fd={connection + 50}] exp=4s\n"
    )


@pytest.mark.parametrize(("clients", "at_a", "streams", "count"), [
    (0, 0, [], {"a": 0, "b": 0}),
    (2, 0, [], {"a": 2, "b": 2}),
    (2, 1, [("web", "a", 7)], {"a": 2, "b": 1}),
    (2, 0, [("api", "x", 7)] * 4, {"a": 1, "b": 1}),  # of HTTP/2, beside a client that asks for nothing
    (2, 0, [("web", "b", 7), ("api", "x", 8)], {"a": 0, "b": 1}),  # begun between the two answers
    (1, 0, [("web", "<none>", 7)], {"a": 1, "b": 1}),  # in the queue of the backend
    (1, 0, [("<NONE>", "<none>", 7)], {"a": 1, "b": 1}),
    (1, 0, [("api", "<none>", 7)], {"a": 0, "b": 0}),
    (0, 1, [], {"a": 1, "b": 0}),  # its client has gone, and no stream tells of it any more
])
def test_an_idle_client_of_a_process_left_behind_counts_for_every_server(
    clients: int, at_a: int, streams: list[tuple[str, str, int]], count: dict[str, int]
) -> None:
    shown = OWN + "".join(stream(*item) for item in streams)
    found = backends.lingering("web", STAT.format(clients=clients, at_a=at_a), shown)
    assert {name: found[name] for name in "ab"} == count


ENDING, ENDED, SILENT = "Can't connect to the target CLI!\n", "Can't find the target PID matching the prefix '@!12'!\n", "nothing"


def worker_that_says(replies: list[str], timeout: float = 10.0) -> client.Client:
    """A client whose master passes these replies on; the last one again and again."""
    def master(command: str, timeout: float = 0) -> str:
        reply = replies.pop(0) if replies[1:] else replies[0]
        if reply is SILENT:
            raise UnreachableError("HAProxy's master", "timed out")
        return reply

    line = client.Client("/none", "/none", timeout)
    line.master = master  # type: ignore[method-assign]
    return line


@pytest.mark.parametrize(("replies", "reply"), [
    (["a\n"], "a\n"), ([ENDED], ""),
    ([ENDING, ENDING, ENDED], ""), ([ENDING, "a\n"], "a\n"), ([SILENT, ENDED], ""), ([SILENT, "a\n"], "a\n"),
])
def test_a_worker_that_is_ending_is_asked_until_it_has_ended(replies: list[str], reply: str) -> None:
    assert worker_that_says(replies).worker(12, "show stat") == reply
    assert len(replies) == 1


@pytest.mark.parametrize("reply", [ENDING, SILENT])
def test_a_worker_that_takes_no_commands_and_does_not_end_is_no_idle_one(reply: str) -> None:
    with pytest.raises(UnreachableError):
        worker_that_says([reply], timeout=0.0).worker(12, "show stat")
