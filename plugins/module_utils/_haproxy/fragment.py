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
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from .._errors import InvalidError, RefusedError
from .._model import Head, Server, from_dict, to_dict

NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
TIME = re.compile(r"([1-9][0-9]*)(us|ms|s|m|h|d)")
LONGEST = 2**31 - 1
"""Milliseconds: HAProxy takes no longer time."""

WORD = re.compile(r"[!%&()*+,\-./0-9:=>?@A-Z\[\]^_`a-z{|}~]{1,1000}")
"""ASCII, since HAProxy's CLI gets it too, and nothing that would be more than one word there or in the file."""

WORDS = 64
"""HAProxy refuses a longer line of a file, and 2.6 drops the rest of a longer command without a word."""

_PIECE = (
    r"[^\s\\'\"#]|\\(?:x[0-9A-Fa-f]{2}|[^x])|'[^']*'|"
    r'"(?:[^"\\$]|\\(?:x[0-9A-Fa-f]{2}|[^x])|\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*(?:\[\*\])?(?:-[^}]*)?\}))*"'
)
_QUOTED = re.compile(rf"(?:{_PIECE})+(?=[\s#]|$)", re.ASCII)
_EXPRESSION = r"[a-z][\w.-]*(?:\([^()\s]*\))?(?:,[a-z][\w.-]*(?:\([^()\s]*\))?)*"
_SNI = re.compile(rf"[A-Za-z0-9._-]+|(?=.*\()(?!str\([^)]*,){_EXPRESSION}", re.ASCII)
_ALPN = re.compile(r"[^,]{1,255}(,[^,]{1,255})*")
_NUMBER = "[1-9][0-9]{0,8}"
_ARGUMENTS = {
    "random": (rf"(\({_NUMBER}\))?", "random or random(NUMBER)"),
    "uri": (rf"( (len|depth) {_NUMBER}| whole| path-only)*", "uri, or uri with len NUMBER, depth NUMBER, whole or path-only"),
    "url_param": (rf" \S+( check_post( {_NUMBER})?)?", "url_param and the parameter's name"),
    "hdr": (r"\([^)]+\)( use_domain_only)?", "hdr(NAME) with the header's name"),
    "rdp-cookie": (r"(\([^)]+\))?", "rdp-cookie or rdp-cookie(NAME)"),
    "hash": (rf" {_EXPRESSION}", "hash and an expression, such as hash req.hdr(x-user)"),
}
"""What may follow an algorithm, and how to write it; the others stand alone."""

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
        "ssl": {"type": "bool"}, "verify": {"type": "str", "choices": ["required", "none"]}, "ca_file": {"type": "str"},
        "sni": {"type": "str"}, "alpn": {"type": "str"},
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
    settled are those of them that the collection itself wrote, so that an earlier `defaults` does not reach them, as it does not ours.

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
    settled: FrozenSet[str] = frozenset()
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
    """What somebody else wrote first, since it may live on what a `defaults` gives, and a default-server reaches the servers after it."""
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
        made[own is not None and server.name not in fragment.settled].append(line + (" disabled" if server.state == "maint" else "") + mark)
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
        # Dynamic: before 3.0 a server that is added at run time takes no cookie of its own (facts 1.2). The key is no secret.
        made.append(f"cookie {options['cookie']} insert indirect nocache dynamic")
        made += _unless(kept, [f"dynamic-cookie-key {fragment.name}"])
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


def external(fragment: Fragment) -> bool:
    """Whether a program of the balancer's checks the servers. Such a server must come with the file: one that is added at run time
    crashes HAProxy at its first check, as only loading prepares the program's arguments (seen on 2.6.12, read in later ones).
    """
    lines = (*fragment.kept, *(fragment.options.get("options") or ()))
    return any(line.split()[:2] == ["option", "external-check"] for line in lines)


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
    settled: Set[str] = set()
    keeping = neutral = False
    for line in body:
        neutral = neutral or line == _NEUTRAL
        if line.startswith("server "):
            keeping = False
            server, own = _read_server(line)
            servers.append(server)
            if own is not None:
                adopted[server.name] = own
                settled |= {server.name} if neutral else set()
        elif line in (_KEPT.strip(), _STATELESS):
            keeping = line != _STATELESS
        elif keeping:
            kept.append(line)
    return Fragment(
        name=found[0].name, head=from_dict(Head, told), options=stored.get("options") or {}, servers=tuple(servers), kept=tuple(kept),
        adopted=adopted, settled=frozenset(settled), stale=stored.get("stale", ""),
        elders=tuple(stored.get("elders") or ()), former=stored.get("former") or {},
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
    """The fragment with its servers as somebody else's, each in the words that it has now and where it stands now."""
    lines = [line.split() for line in _server_lines(fragment)]
    own = {line[1]: _own_words(line[2:]) for line in lines if line[0] == "server"}
    settled = fragment.settled.union(own) - (set(fragment.adopted) - fragment.settled)
    return replace(fragment, adopted={**own, **fragment.adopted}, settled=settled, elders=(), former={})


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
    checks = {"http-check", "tcp-check", "external-check", *(f"option {kind}" for kind in _CHECKS)}
    check = checks if (options.get("check") or {}).get("path") else set()
    timeouts = {f"timeout {key.replace('_', '-')}" for key, value in (options.get("timeouts") or {}).items() if value}
    words = {key for key in ("balance", "cookie") if options.get(key)}
    return {"mode", _key(_STATELESS), *words, *timeouts, *check, *(_key(line) for line in options.get("options") or ())}


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


def balance_mistake(balance: str, lines: Sequence[str] = (), mode: str = "http") -> str:
    """What is wrong with an algorithm and what to write instead; empty where nothing is. lines are the backend's further ones.

    It must take servers at run time (facts 1.1), as an algorithm that hashes does with `hash-type consistent`. That line is ours to add,
    so that nobody has to know of it; a line of the user's own, with another function for example, takes its place.
    """
    name = algorithm(balance)
    if not balance:
        return ""
    if name not in (*DYNAMIC, *HASHED):
        cause = "takes no new servers while HAProxy runs" if name == "static-rr" else "is no algorithm of HAProxy"
        return f"{cause}; write {', '.join(DYNAMIC)}, or one that hashes: {', '.join(HASHED[:-1])} or {HASHED[-1]}"
    form, usage = _ARGUMENTS.get(name, ("", f"{name}, and nothing after it"))
    if not re.fullmatch(form, " ".join(balance.split())[len(name):]):
        return f"has other arguments than it takes; write {usage}"
    if name in ("uri", "url_param", "hdr") and mode == "tcp":
        return "needs mode http, and HAProxy would take roundrobin instead; write source"
    types = [line.split()[1:2] for line in lines if line.split()[:1] == ["hash-type"]]
    if name in HASHED and types and types[-1] != ["consistent"]:
        return "takes no new servers while HAProxy runs with another hash-type than consistent; leave that line out"
    return ""


def line_mistake(line: str) -> str:
    """What keeps HAProxy from reading a line of a backend as its words, and what to write instead; empty where nothing does."""
    words, rest = 0, line.strip(" \t")
    if not re.match(r"[A-Za-z][\w-]*(\s|$)", rest, re.ASCII):
        return "does not begin with a keyword of HAProxy; write one line of a backend for each item"
    while rest and not rest.startswith("#"):
        found = _QUOTED.match(rest)
        if not found:
            return f"cannot be read from {rest[:40]!r} on; close quotes and braces, and write \\\\ for a backslash and \\$ for a quoted $"
        words, rest = words + 1, rest[found.end():].strip(" \t")
    return f"has {words} words, and HAProxy reads {WORDS}; write several lines, or name a file with the values" if words > WORDS else ""


def unverified(options: Mapping[str, Any]) -> str:
    """Why it is not said how certificates are verified, with the remedy; empty where it is, or where there is no TLS.

    Options that stand in a fragment already may leave it open, as they could in the first versions, and mean `verify: none`.
    """
    server = options.get("server") or {}
    if not server.get("ssl"):
        return ""
    if server.get("verify") == "none":
        return "server.verify: none, and yet there is a ca_file; take one of them away" if server.get("ca_file") else ""
    if server.get("ca_file"):
        return ""
    return "server.ssl: without ca_file no certificate would be verified; name the authorities' file, or write verify: none"


def too_long(text: str) -> str:
    """Which server's line in a fragment has more words than HAProxy reads, with the `disabled` that it may get; empty where none has."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        count = len(words) + (words[:1] == ["server"] and "disabled" not in words)
        if count > WORDS:
            return f"the line of {' '.join(words[:2])} would have {count} words, and HAProxy reads {WORDS}"
    return ""


def mistakes(name: str, servers: Sequence[Server], options: Mapping[str, Any]) -> List[str]:
    """One line for everything that HAProxy would not take, or would take for something else."""
    found = [] if NAME.fullmatch(name) else [f"name: {name!r} is no name of a backend; use letters, digits, _ . : and -"]
    found += _server_mistakes(servers)
    for key in options:
        if key not in OPTIONS:
            found.append(f"options: unknown {key!r}; known are {', '.join(OPTIONS)}")
    found += setting_mistakes(options)
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


def setting_mistakes(options: Mapping[str, Any]) -> List[str]:
    """What HAProxy would not take of the options or would take for something else, of whatever version; each line begins with the key."""
    found: List[str] = []
    mode = options.get("mode") or "http"
    lines = [line for line in options.get("options") or () if line is not None]
    if mode not in ("http", "tcp"):
        found.append(f"mode: {mode!r}; write http or tcp")
    wrong = balance_mistake(options.get("balance") or "", lines, mode)
    if wrong:
        found.append(f"balance: {options['balance']!r} {wrong}")
    times = {"inter": options.get("inter"), **{f"timeouts.{key}": value for key, value in (options.get("timeouts") or {}).items()}}
    for key, value in times.items():
        if value is not None and not TIME.fullmatch(str(value)):
            found.append(f"{key}: {value!r} is no time; write it with its unit, such as 500ms or 2s")
        elif value is not None and seconds(str(value)) * 1000 > LONGEST:
            found.append(f"{key}: {value!r} is longer than HAProxy takes; write at most 24d")
    server = options.get("server") or {}
    check = options.get("check") or {}
    numbers = {"rise": options.get("rise"), "fall": options.get("fall"), "server.maxconn": server.get("maxconn")}
    found += [f"{key}: {value!r}; write a number from 1" for key, value in numbers.items()
              if value is not None and not (isinstance(value, int) and 1 <= value <= 10**9)]
    words = {"check.path": check.get("path"), "check.host": check.get("host"), "cookie": options.get("cookie"),
             **{f"server.{key}": server.get(key) for key in ("ca_file", "sni", "alpn")}}
    for key, value in words.items():
        if value and not WORD.fullmatch(str(value)):
            found.append(f"{key}: {value!r} is not one word of ASCII, without quotes, backslash, <, #, $ and ;")
        elif value and key == "server.sni" and not _SNI.fullmatch(value):
            found.append(f"{key}: {value!r} is neither a host name nor an expression; write shop.example.org or req.hdr(host)")
        elif value and key == "server.alpn" and not _ALPN.fullmatch(value):
            found.append(f"{key}: {value!r} is no list of protocols; write for example h2,http/1.1")
    if check.get("path") and not str(check["path"]).startswith("/"):
        found.append(f"check.path: {check['path']!r} does not begin with /")
    wrong = unverified(options)
    found += [wrong] if wrong else []
    status = check.get("status")
    for item in status if isinstance(status, (list, tuple)) else [status]:
        if item not in (None, "") and not re.fullmatch(r"[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?)*", str(item)):
            found.append(f"check.status: {item!r}; write 200, [200, 204] or 200-399")
    for line in lines:
        first = (line.split() or [""])[0]
        wrong = line_mistake(line)
        if not first or "\n" in line or "\r" in line or first in (*SECTIONS, "server", "server-template"):
            found.append(f"options: {line!r} is no line of a backend that could be added")
        elif wrong:
            found.append(f"options: {line!r} {wrong}")
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
        settled=fragment.settled & names, elders=elders, former=fragment.former if elders else {},
    )
