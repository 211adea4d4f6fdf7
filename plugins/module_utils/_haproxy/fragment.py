# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The fragment: one file per backend, which holds the whole of it and is the truth. Pure: text in, text out.

```
# phoenix.fleet {"fence": 7, "fleet": "web", "ledger": "...", "live": 42, "next": 43}
# phoenix.fleet.options {...}
backend web
    mode http
    ...
    server web-r42-1 10.9.0.11:8080 id 10001 weight 100 check ...
```
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from .._errors import InvalidError, RefusedError
from .._model import Head, Server, from_dict, to_dict

NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
TIME = re.compile(r"([1-9][0-9]*)(us|ms|s|m|h|d)")
WORD = re.compile(r"[^\s\x00-\x1f\x7f'\"\\#$;]+")
DYNAMIC = ("roundrobin", "leastconn", "random", "first")
HASHED = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash")
_BALANCE = re.compile(r"([a-z_-]+)(\([^\s\x00-\x1f\x7f()'\"\\#]*\))?( +[^\s\x00-\x1f\x7f'\"\\#$;]+)*")
REFERENCE = re.compile(r"\buse-server\b|\btrack\s|\bsrv_\w+\(")
"""What names a server beside its own line: without that server HAProxy does not start."""

SECTIONS = (
    "global", "defaults", "frontend", "backend", "listen", "userlist", "peers", "resolvers", "mailers", "program", "http-errors", "ring",
    "cache", "fcgi-app", "log-forward", "log-profile", "crt-store", "traces", "acme",
)
TIMEOUTS = ("connect", "server", "queue", "check", "tunnel", "server_fin", "http_keep_alive", "http_request")

OPTIONS: Dict[str, Any] = {
    "mode": {"type": "str", "choices": ["http", "tcp"]},
    "balance": {"type": "str"},
    "check": {"type": "dict", "options": {"path": {"type": "str"}, "status": {"type": "raw"}, "host": {"type": "str"}}},
    "inter": {"type": "str"},
    "rise": {"type": "int"},
    "fall": {"type": "int"},
    "server": {"type": "dict", "options": {
        "ssl": {"type": "bool"}, "ca_file": {"type": "str"}, "sni": {"type": "str"}, "alpn": {"type": "str"},
        "send_proxy_v2": {"type": "bool"}, "maxconn": {"type": "int"},
    }},
    "cookie": {"type": "str"},
    "timeouts": {"type": "dict", "options": {name: {"type": "str"} for name in TIMEOUTS}},
    "options": {"type": "list", "elements": "str"},
}
"""The argument spec of the backend's options, which are `fleet_haproxy`."""

_CHECKS = (
    "httpchk", "tcp-check", "mysql-check", "pgsql-check", "redis-check", "smtpchk", "ldap-check", "ssl-hello-chk", "spop-check",
    "external-check",
)
_STATELESS = "load-server-state-from-file none"
"""A state file is older than the fragment, which is the truth."""

_NEUTRAL = (
    "default-server enabled no-backup no-check no-check-send-proxy no-ssl no-check-ssl ssl-reuse tls-tickets no-tfo "
    "no-send-proxy no-send-proxy-v2 no-send-proxy-v2-ssl no-send-proxy-v2-ssl-cn maxconn 0 minconn 0 maxqueue 0 slowstart 0 tcp-ut 0 "
    "observe none on-error fail-check error-limit 10 max-reuse -1 pool-low-conn 0 stick ws auto"
)
"""Takes back what an earlier `defaults` gives to every server, as one that is added at run time gets nothing of it (facts 1.2)."""

_LASTING = ("addr", "agent-check", "check-proto", "check-via-socks4", "namespace", "port", "proto", "redir", "socks4", "source", "track")
"""What cannot be taken back, and would have another server asked, or in another way, after the next reload. no-agent-check exists, and
frees what the sections share: 3.0.0 crashed on it."""

_HEAD = "# phoenix.fleet "
_OPTIONS = "# phoenix.fleet.options "
_NOTE = "# Written by phoenix.fleet; what is changed here is lost. Settings belong into fleet_haproxy."
BROKEN = "Restore the file from a backup, or take its first line away, whereupon its servers are somebody else's (fleet_adopt)."
_KEPT = "    # kept from the configuration that was here before:"
_ADOPTED = "# adopted"


@dataclass(frozen=True)
class Fragment:
    """A backend. kept are lines found when it was adopted; adopted maps the names of somebody else's servers to their own words.

    stale names the worker (see `Info.identity`) that runs without the settings written here, so that a crash between writing and
    reloading is noticed: as long as that very process answers, a reload is due.
    elders are the servers that were there before the options changed: they keep the `former` ones, and where the check is
    another one, which may well take them down, no check judges them until they leave (see `turned`).
    """

    name: str
    head: Head = Head()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    servers: Tuple[Server, ...] = ()
    kept: Tuple[str, ...] = ()
    adopted: Mapping[str, str] = field(default_factory=dict, hash=False)
    stale: str = ""
    elders: Tuple[str, ...] = ()
    former: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Section:
    """A section of a configuration file: its keyword and name, the number of its first line, and the lines that follow."""

    keyword: str
    name: str
    number: int
    lines: Tuple[str, ...]


# Writing


def render(fragment: Fragment) -> str:
    """The file's text. `parse(render(x)) == x` for what `mistakes` has nothing against."""
    options = {"options": dict(fragment.options), "stale": fragment.stale}
    if fragment.elders:
        options.update(elders=list(fragment.elders), former=dict(fragment.former))
    text = [
        _HEAD + json.dumps(to_dict(fragment.head), sort_keys=True),
        _OPTIONS + json.dumps(options, sort_keys=True),
        _NOTE,
        f"backend {fragment.name}",
        *(f"    {line}" for line in settings(fragment)),
    ]
    if fragment.kept:
        text += [_KEPT, *(f"    {line}" for line in fragment.kept)]
    text += [f"    {line}" for line in _server_lines(fragment)]
    return "\n".join(text) + "\n"


def _server_lines(fragment: Fragment) -> List[str]:
    """Somebody else's first, since a default-server reaches the servers after it and theirs may live on what a `defaults` gives them."""
    lines = (*fragment.kept, *(fragment.options.get("options") or ()))
    made = {True: [_STATELESS], False: [_NEUTRAL, *(line for line in lines if line.split()[0] == "default-server")]}
    for server in fragment.servers:
        # Weight 0 is what keeps a server out of traffic when the file is loaded: HAProxy begins by calling every server up.
        weight = server.weight if server.state == "ready" else 0
        mark = f" # {server.state}" if server.state != "ready" else ""
        own = fragment.adopted.get(server.name)
        if own is None:
            words = tail(server, fragment.former if server.name in fragment.elders else fragment.options)
            if server.name in fragment.elders and _checked(fragment.former) != _checked(fragment.options):
                words = words.replace(" check ", " ", 1)
            line = f"server {server.name} {address(server)} {words} weight {weight}"
        else:
            line = f"server {server.name} {own} id {server.id} weight {weight}"
            mark = f" {_ADOPTED} {server.address} {server.port}{mark}"
        made[own is not None].append(line + (" disabled" if server.state == "maint" else "") + mark)
    return made[True] + made[False]


def turned(fragment: Fragment, options: Optional[Mapping[str, Any]], whose: str) -> Fragment:
    """The fragment with these options (None: those it has) for `all` its servers, or only for `new` ones, or with the `former` ones back.

    A release may bring another health check, which its predecessor does not pass: judged by it, what serves would be taken down.
    """
    if whose == "former":
        return replace(fragment, options=fragment.former, elders=(), former={}) if fragment.elders else fragment
    if options is None or options == fragment.options:
        return fragment
    if whose == "all" or not fragment.servers:
        return replace(fragment, options=options, elders=(), former={})
    if fragment.elders:
        return replace(fragment, options=options)
    return replace(fragment, options=options, elders=tuple(server.name for server in fragment.servers), former=fragment.options)


def _checked(options: Mapping[str, Any]) -> Tuple[Any, ...]:
    """What decides on a check's verdict."""
    return options.get("mode") or "http", tuple(_check_lines(options.get("check") or {}, set()))


def settings(fragment: Fragment) -> List[str]:
    """The lines of the backend other than its servers. Everything that an earlier `defaults` could change is stated.

    A kept line stands for one of our defaults; what the options say outranks it (see `adopt`).
    """
    options = fragment.options
    kept = {_key(line) for line in fragment.kept} | {_key(line) for line in options.get("options") or ()}
    mode = options.get("mode") or "http"
    timeouts = options.get("timeouts") or {}
    made = [f"mode {mode}"]
    made += [f"balance {options['balance']}"] if options.get("balance") else _unless(kept, ["balance roundrobin"])
    if algorithm(options.get("balance") or "") in HASHED:
        made += _unless(kept, ["hash-type consistent"])
    for name, standard in (("connect", "5s"), ("server", "60s"), ("queue", "30s"), ("check", "2s")):
        made += [f"timeout {name} {timeouts[name]}"] if timeouts.get(name) else _unless(kept, [f"timeout {name} {standard}"])
    made += [f"timeout {name.replace('_', '-')} {timeouts[name]}" for name in TIMEOUTS[4:] if timeouts.get(name)]
    made += _unless(kept, ["retries 3", "option redispatch"])
    made += _check_lines(options.get("check") or {}, kept)
    if options.get("cookie"):
        made.append(f"cookie {options['cookie']} insert indirect nocache")
    server = options.get("server") or {}
    if server.get("ssl") and server.get("ca_file"):
        # Loads the file with the configuration: what is not loaded then cannot be read from within a chroot.
        made.append(f"default-server ca-file {server['ca_file']}")
    return made + list(options.get("options") or ())


def _check_lines(check: Mapping[str, Any], kept: Set[str]) -> List[str]:
    if not check.get("path"):
        return [] if kept & {f"option {kind}" for kind in _CHECKS} else ["option tcp-check"]
    host = f" ver HTTP/1.1 hdr Host {check['host']}" if check.get("host") else ""
    made = ["option httpchk", f"http-check send meth GET uri {check['path']}{host}"]
    status = check.get("status")
    if status not in (None, "", []):
        listed = status if isinstance(status, (list, tuple)) else [status]
        made.append("http-check expect status " + ",".join(str(item) for item in listed))
    return made


def _unless(kept: Set[str], lines: Sequence[str]) -> List[str]:
    return [line for line in lines if _key(line) not in kept]


def _key(line: str) -> str:
    """What a line is about, so that two lines of one key would contradict each other."""
    words = line.split()
    if words[:1] == ["no"]:
        words = words[1:]
    return " ".join(words[: 2 if words[:1] and words[0] in ("timeout", "option") else 1])


def address(server: Server) -> str:
    return f"[{server.address}]:{server.port}" if ":" in server.address else f"{server.address}:{server.port}"


def tail(server: Server, options: Mapping[str, Any]) -> str:
    """What follows a server's address, the same words in the file and in `add server`, weight aside.

    downinter is also the time until a server's first check at all, since that begins with health 0 (measured on 2.6.12: 0.1 s
    instead of inter, 1 s). pool-*: 2.6 and 2.8 keep no connection to an added server without them. id: `random` and
    `hash-type consistent` place an added server wrongly without it. (facts 1.1, 1.2)
    """
    inter = options.get("inter") or "1s"
    fast, down = (min(inter, time, key=seconds) for time in ("200ms", "100ms"))
    own = options.get("server") or {}
    words = [
        f"id {server.id} check inter {inter} fastinter {fast} downinter {down}",
        f"rise {options.get('rise') or 2} fall {options.get('fall') or 2}",
        "pool-purge-delay 5s pool-max-conn -1",
    ]
    if own.get("maxconn"):
        words.append(f"maxconn {own['maxconn']}")
    if own.get("ssl"):
        words.append(f"ssl verify required ca-file {own['ca_file']}" if own.get("ca_file") else "ssl verify none")
        words.append("check-ssl")
        if own.get("sni"):
            words.append(f"sni {own['sni']}" if "(" in own["sni"] else f"sni str({own['sni']}) check-sni {own['sni']}")
        if own.get("alpn"):
            words.append(f"alpn {own['alpn']}")
    if own.get("send_proxy_v2"):
        words.append("send-proxy-v2 check-send-proxy")
    if options.get("cookie"):
        words.append(f"cookie {server.name}")
    return " ".join(words)


def seconds(time: str) -> float:
    """A time as HAProxy writes it, in seconds."""
    found = TIME.fullmatch(time)
    if not found:
        raise InvalidError([f"{time!r} is no time of HAProxy; write it with its unit, such as 500ms or 2s"])
    return int(found.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}[found.group(2)]


def shape(fragment: Fragment) -> Tuple[Any, ...]:
    """What the run-time API cannot change: two fragments that differ in it need a reload in between."""
    any_server = Server("any", "192.0.2.1", 1, 1)
    return (*settings(fragment), *fragment.kept, tail(any_server, fragment.options))


# Reading


def parse(text: str) -> Optional[Fragment]:
    """The fragment, or None where the text has no head of ours. Raises RefusedError where it cannot be read."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith(_HEAD):
        return None
    try:
        return _parse(text, lines)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise RefusedError("the fragment", f"it cannot be read: {error}", BROKEN) from None


def _parse(text: str, lines: Sequence[str]) -> Fragment:
    told = json.loads(lines[0][len(_HEAD):])
    if any(type(value) is not type(getattr(Head(), key, value)) for key, value in told.items()):
        raise ValueError(f"its head is {told}")
    stored = json.loads(lines[1][len(_OPTIONS):]) if len(lines) > 1 and lines[1].startswith(_OPTIONS) else {}
    found = [section for section in sections(text) if section.keyword == "backend"]
    if len(found) != 1:
        raise RefusedError("the fragment", f"it holds {len(found)} backends instead of one", BROKEN)
    body = found[0].lines
    kept: List[str] = []
    servers: List[Server] = []
    adopted: Dict[str, str] = {}
    keeping = False
    for line in body:
        if line.startswith("server "):
            keeping = False
            server, own = _read_server(line)
            servers.append(server)
            if own is not None:
                adopted[server.name] = own
        elif line in (_KEPT.strip(), _STATELESS):
            keeping = line != _STATELESS
        elif keeping:
            kept.append(line)
    return Fragment(
        name=found[0].name, head=from_dict(Head, told), options=stored.get("options") or {}, servers=tuple(servers), kept=tuple(kept),
        adopted=adopted, stale=stored.get("stale", ""), elders=tuple(stored.get("elders") or ()), former=stored.get("former") or {},
    )


def _read_server(line: str) -> Tuple[Server, Optional[str]]:
    line, _mark, comment = line.partition(" # ")
    marks = [part.split() for part in comment.split(" # ")] if comment else []
    words = line.split()
    state = next((mark[0] for mark in marks if mark[0] in ("drain", "maint")), "ready")
    origin = next((mark for mark in marks if mark[0] == _ADOPTED[2:]), None)
    number = int(words[words.index("id") + 1])
    weight = int(words[words.index("weight") + 1])
    if origin:
        own = " ".join(words[2:]).rpartition(" id ")[0]
        return Server(words[1], origin[1], int(origin[2]), number, weight, state), own
    host, _colon, port = words[2].rpartition(":")
    return Server(words[1], host.strip("[]"), int(port), number, weight, state), None


def estranged(fragment: Fragment) -> Fragment:
    """The fragment with its servers as somebody else's, each in the words that it has now."""
    lines = [line.split() for line in _server_lines(fragment)]
    own = {line[1]: _own_words(line[2:]).partition(" ") for line in lines if line[0] == "server"}
    settled = _NEUTRAL.partition(" ")[2]
    adopted = {name: f"{place} {settled} {words}" for name, (place, _space, words) in own.items()}
    return replace(fragment, adopted={**adopted, **fragment.adopted}, elders=(), former={})


def sections(text: str) -> List[Section]:
    """The sections of a configuration file, comments and blank lines left out of their lines."""
    found: List[Tuple[str, str, int, List[str]]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        words = line.split()
        if words and words[0] in SECTIONS and (len(words) < 3 or words[0] != "option"):
            found.append((words[0], words[1] if len(words) > 1 else "", number, []))
        elif found and words and (not line.startswith("#") or line == _KEPT.strip()):
            found[-1][3].append(line)
    return [Section(keyword, name, number, tuple(lines)) for keyword, name, number, lines in found]


def lasting(texts: Mapping[str, str], before: str) -> str:
    """Where and what an earlier `defaults` gives to every server of the file `before`, and cannot be taken back; empty where nothing is.

    texts are HAProxy's files by path, in its order.
    """
    found = ""
    for path, text in texts.items():
        if path == before:
            break
        for section in sections(text):
            if section.keyword == "defaults":
                words = {word for line in section.lines if line.startswith("default-server") for word in line.split()}
                kinds = sorted(words.intersection(_LASTING))
                found = f"{', '.join(kinds)} in the default-server of {path}, after line {section.number}" if kinds else ""
    return found


def adopt(name: str, text: str, observed: Sequence[Server], options: Mapping[str, Any]) -> Fragment:
    """A file of the right name that has no head of ours, as a fragment: its servers in their own words, its other lines kept.

    Lines that `options` decide are left out. Raises RefusedError for what cannot be kept.
    """
    found = sections(text)
    if [(section.keyword, section.name) for section in found] != [("backend", name)]:
        names = [f"{section.keyword} {section.name}".strip() for section in found]
        others = ", ".join(item for item in names if item != f"backend {name}")
        raise RefusedError(
            f"the file {name}.cfg", f"beside the backend it holds {others}" if others else "it holds no backend of its name",
            "Move everything but the backend into another file.",
        )
    seen = {server.name: server for server in observed}
    decided = _decided(options)
    kept: List[str] = []
    adopted: Dict[str, str] = {}
    servers: List[Server] = []
    unloaded: List[str] = []
    for line in found[0].lines:
        words = line.split()
        if words[0] == "server-template":
            raise RefusedError(f"backend {name}", f"its line {line!r} cannot be adopted", "Write each of its servers as a line of its own.")
        if words[0] == "server":
            if words[1] in seen:
                servers.append(seen[words[1]])
                adopted[words[1]] = _own_words(words[2:])
            else:
                unloaded.append(words[1])
        elif _key(line) not in decided:
            kept.append(line)
    known = {server.name for server in servers}
    extra = [server.name for server in observed if server.name not in known] + unloaded
    if extra:
        raise RefusedError(f"backend {name}", f"HAProxy and {name}.cfg disagree about: {', '.join(extra)}", "Reload HAProxy first.")
    return Fragment(name, options=options, servers=tuple(servers), kept=tuple(kept), adopted=adopted)


def _decided(options: Mapping[str, Any]) -> Set[str]:
    """The keys of the lines that the options state, and not only our defaults."""
    check = {"option httpchk", "http-check", "option tcp-check", "tcp-check"} if (options.get("check") or {}).get("path") else set()
    timeouts = {f"timeout {key.replace('_', '-')}" for key, value in (options.get("timeouts") or {}).items() if value}
    balance = {"balance"} if options.get("balance") else set()
    return {"mode", _key(_STATELESS), *balance, *timeouts, *check, *(_key(line) for line in options.get("options") or ())}


def _own_words(words: Sequence[str]) -> str:
    """An adopted server's words without those that we write ourselves."""
    made: List[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("id", "weight"):
            skip = True
        elif word.startswith("#"):
            break
        elif word not in ("disabled", "enabled"):
            made.append(word)
    return " ".join(made)


# Judging


def algorithm(balance: str) -> str:
    """The algorithm in what is written after `balance`, without its arguments; empty where that is none."""
    found = _BALANCE.fullmatch(balance)
    return found.group(1) if found else ""


def balance_mistake(balance: str, lines: Sequence[str] = ()) -> str:
    """What is wrong with an algorithm and what to write instead; empty where nothing is. lines are the backend's further ones.

    It must take servers at run time (facts 1.1), as an algorithm that hashes does with `hash-type consistent`. That line is ours to add,
    so that nobody has to know of it; a line of the user's own, with another function for example, takes its place.
    """
    name = algorithm(balance)
    if not balance or name in DYNAMIC:
        return ""
    if name not in HASHED:
        cause = "takes no new servers while HAProxy runs" if name == "static-rr" else "is no algorithm of HAProxy"
        return f"{cause}; write {', '.join(DYNAMIC)}, or one that hashes: {', '.join(HASHED[:-1])} or {HASHED[-1]}"
    types = [line.split()[1:2] for line in lines if line.split()[:1] == ["hash-type"]]
    if types and types[-1] != ["consistent"]:
        return "takes no new servers while HAProxy runs with another hash-type than consistent; leave that line out"
    return ""


def mistakes(name: str, servers: Sequence[Server], options: Mapping[str, Any], version: Tuple[int, int] = (2, 6)) -> List[str]:
    """One line for everything that HAProxy would not take, or would take for something else."""
    found = [] if NAME.fullmatch(name) else [f"name: {name!r} is no name of a backend; use letters, digits, _ . : and -"]
    found += _server_mistakes(servers)
    for key in options:
        if key not in OPTIONS:
            found.append(f"options: unknown {key!r}; known are {', '.join(OPTIONS)}")
    found += _setting_mistakes(options)
    if options.get("cookie") and version < (3, 0):
        found.append(
            f"cookie: HAProxy {version[0]}.{version[1]} can give no cookie to a server that is added at run time, 3.0 can; "
            "leave it out, or upgrade"
        )
    return found


def _server_mistakes(servers: Sequence[Server]) -> List[str]:
    found: List[str] = []
    for server in servers:
        where = f"servers: {server.name!r}"
        if not NAME.fullmatch(server.name):
            found.append(f"{where} is no name of a server; use letters, digits, _ . : and -")
        if not _is_address(server.address):
            found.append(f"{where} has the address {server.address!r}; write an IP address, since HAProxy resolves no added server's name")
        if not 1 <= server.port <= 65535:
            found.append(f"{where} has the port {server.port}; write 1 to 65535")
        if not 0 <= server.weight <= 256:
            found.append(f"{where} has the weight {server.weight}; write 0 to 256")
        if not 1 <= server.id < 2**31:
            found.append(f"{where} has the id {server.id}; write a number from 1")
        if server.state not in ("ready", "drain", "maint"):
            found.append(f"{where} has the state {server.state!r}; write ready, drain or maint")
    for what in ("name", "id"):
        values = [getattr(server, what) for server in servers]
        found += [f"servers: two have the {what} {value!r}" for value in sorted({item for item in values if values.count(item) > 1})]
    return found


def _is_address(text: str) -> bool:
    """Whether it is an IP address and nothing else: Python takes anything for the scope of an IPv6 one, a newline too."""
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _setting_mistakes(options: Mapping[str, Any]) -> List[str]:
    found: List[str] = []
    if options.get("mode") not in (None, "http", "tcp"):
        found.append(f"mode: {options['mode']!r}; write http or tcp")
    wrong = balance_mistake(options.get("balance") or "", options.get("options") or ())
    if wrong:
        found.append(f"balance: {options['balance']!r} {wrong}")
    times = {"inter": options.get("inter"), **{f"timeouts.{key}": value for key, value in (options.get("timeouts") or {}).items()}}
    found += [f"{key}: {value!r} is no time; write it with its unit, such as 500ms or 2s" for key, value in times.items()
              if value is not None and not TIME.fullmatch(str(value))]
    found += [f"{key}: {options[key]!r}; write a number from 1" for key in ("rise", "fall")
              if options.get(key) is not None and not (isinstance(options[key], int) and options[key] >= 1)]
    server = options.get("server") or {}
    check = options.get("check") or {}
    words = {"check.path": check.get("path"), "check.host": check.get("host"), "cookie": options.get("cookie"),
             **{f"server.{key}": server.get(key) for key in ("ca_file", "sni", "alpn")}}
    found += [f"{key}: {value!r} is not one word without quotes, backslash, #, $ and ;" for key, value in words.items()
              if value and not WORD.fullmatch(str(value))]
    if check.get("path") and not str(check["path"]).startswith("/"):
        found.append(f"check.path: {check['path']!r} does not begin with /")
    status = check.get("status")
    for item in status if isinstance(status, (list, tuple)) else [status]:
        if item not in (None, "") and not re.fullmatch(r"[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?)*", str(item)):
            found.append(f"check.status: {item!r}; write 200, [200, 204] or 200-399")
    for line in options.get("options") or ():
        first = (line.split() or [""])[0]
        if not first or "\n" in line or "\r" in line or first in (*SECTIONS, "server", "server-template") or first.startswith((".", "#")):
            found.append(f"options: {line!r} is no line of a backend that could be added")
    return found


def with_servers(fragment: Fragment, servers: Sequence[Server]) -> Fragment:
    """The fragment with these servers and no others; of what is observed of them nothing is written."""
    bare = tuple(
        replace(server, up=False, steady=True, check="", sessions=0, loaded=True, weight=server.weight if server.state == "ready" else 0)
        for server in servers
    )
    names = {server.name for server in bare}
    elders = tuple(name for name in fragment.elders if name in names)
    return replace(
        fragment, servers=bare, adopted={key: value for key, value in fragment.adopted.items() if key in names},
        elders=elders, former=fragment.former if elders else {},
    )
