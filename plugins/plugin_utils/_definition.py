# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""From the `fleet_*` variables of a host to a validated, converted and complete Definition, or to all their mistakes at once.

What may be secret (see _secrets.py; and the ledger's password) never travels from task to task: `shown` puts MASK in its place, in what
`fleet_definition` returns, and a plugin that needs it reads the host's variables again (`definition_of`), or what the ledger recorded of an
earlier release (`revived`). So no result, registered variable, fact cache or `-v` output ever holds one, and no task needs a `no_log`,
which would hide its errors too. A masked definition cannot be used by mistake: hashing or recording one raises.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import hmac
import importlib
import json
import math
import os
import re
import subprocess
from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ansible.errors import AnsibleError

from ..module_utils import _checks
from ..module_utils._errors import InvalidError, RefusedError
from ..module_utils._haproxy import fragment as _fragment
from ..module_utils._instances import OPTIONS, PROVIDERS
from ..module_utils._model import Definition, Goal, from_dict, to_dict
from ..module_utils._secrets import MASK, masked, replaced

CHANGING = ("release", "rollback", "scale", "heal", "retire")

Spec = Mapping[str, Any]
"""An argument spec as Ansible's (type, required, default, choices, elements, options, no_log), and of our own: `range` (lowest, highest),
`pattern`, `noun` (what a value has to be) and `remedy` (what to write instead)."""

_TIME = {
    "type": "str", "pattern": r"[1-9][0-9]{0,9}(us|ms|s|m|h|d)", "noun": "a time of HAProxy",
    "remedy": "write it with its unit, such as 500ms or 2s",
}
_WORD = {
    "type": "str", "pattern": _fragment.WORD.pattern, "noun": "one word of ASCII",
    "remedy": "write it without spaces, quotes, <, #, $ and ;",
}
_FILE = {**_WORD, "pattern": "/" + _WORD["pattern"], "noun": "an absolute path", "remedy": "write where the file is on the balancer"}
_COOKIE = {"type": "str", "pattern": r"[A-Za-z0-9_-]{1,64}", "noun": "the name of a cookie", "remedy": "write letters, digits, _ and -"}
_SECONDS = {"type": "int", "range": (0, 86400), "noun": "a number of seconds"}

HAPROXY: Dict[str, Dict[str, Any]] = {
    "mode": {"type": "str", "choices": ["http", "tcp"], "default": "http"},
    "balance": {"type": "str", "default": "roundrobin"},
    "check": {"type": "dict", "options": {
        "path": {
            "type": "str", "pattern": _checks.PATH.pattern, "noun": "a path",
            "remedy": "begin with / and percent-encode spaces, quotes and # within",
        },
        "status": {"type": "raw"},
        "host": {"type": "str", "pattern": _checks.HOST.pattern, "noun": "a host name", "remedy": "write for example shop.example.org"},
    }},
    "inter": _TIME,
    "rise": {"type": "int", "range": (1, 100)},
    "fall": {"type": "int", "range": (1, 100)},
    "server": {"type": "dict", "default": {}, "options": {
        "ssl": {"type": "bool"},
        "verify": {"type": "str", "choices": ["required", "none"]},
        "ca_file": _FILE,
        "sni": _WORD,
        "alpn": _WORD,
        "send_proxy_v2": {"type": "bool"},
        "maxconn": {"type": "int", "range": (1, 10**9)},
    }},
    "cookie": _COOKIE,
    "timeouts": {"type": "dict", "default": {}, "options": {
        name: _TIME for name in _fragment.TIMEOUTS
    }},
    "options": {"type": "list", "elements": "str", "default": [], "separator": "\n"},
}
"""`fleet_haproxy`."""

SPEC: Dict[str, Dict[str, Any]] = {
    "fleet_name": {
        "type": "str", "pattern": r"[a-z][a-z0-9-]{0,39}", "noun": "a name of a fleet",
        "remedy": "begin with a letter and write at most 40 of a-z, 0-9 and -",
    },
    "fleet_provider": {"type": "str", "choices": list(PROVIDERS), "default": "docker"},
    "fleet_image": {
        "type": "str", "required": True, "pattern": r"[^\s\x00-\x1f\x7f]{1,1000}", "noun": "an image",
        "remedy": "write repository:tag or repository@sha256:...",
    },
    "fleet_size": {"type": "int", "range": (1, 10000), "default": 2},
    "fleet_port": {"type": "int", "required": True, "range": (1, 65535), "noun": "a port"},
    "fleet_checks": {"type": "raw", "default": [{"tcp": {}}]},
    "fleet_check_timeout": {**_SECONDS, "range": (1, 86400), "default": 60},
    "fleet_check_from": {"type": "str", "choices": ["controller", "balancer"], "default": "controller"},
    "fleet_balancers": {"type": "list", "elements": "str"},
    "fleet_backend": {
        "type": "str", "pattern": r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,79}", "noun": "a name of a backend",
        "remedy": "write letters, digits, _, -, . and :",
    },
    "fleet_haproxy": {"type": "dict", "default": {}, "options": HAPROXY},
    "fleet_strategy": {
        "type": "str", "choices": ["blue_green", "rolling", "canary"], "default": "blue_green", "remedy": "write blue_green",
    },
    "fleet_drain_timeout": {**_SECONDS, "default": 30},
    "fleet_stop_timeout": {**_SECONDS, "default": 10},
    "fleet_keep": {"type": "int", "range": (0, 100), "default": 1},
    "fleet_keep_images": {"type": "int", "range": (0, 10000)},
    "fleet_standby": {"type": "str", "choices": ["stopped", "running"], "default": "stopped"},
    "fleet_hold": {
        "type": "str", "default": "", "pattern": r"[^\x00-\x1f\x7f]{1,500}", "noun": "a reason",
        "remedy": "write why on one line, or nothing",
    },
    "fleet_state_dir": {"type": "str"},
    "fleet_ledger": {"type": "str", "default": "", "no_log": True},
    "fleet_takeover": {"type": "bool", "default": False},
    "fleet_adopt": {"type": "bool", "default": False},
    "fleet_lost_balancers": {"type": "list", "elements": "str", "default": []},
    "fleet_revision": {
        "type": "str", "pattern": r"[^\x00-\x1f\x7f]{1,200}", "noun": "a revision", "remedy": "write at most 200 characters on one line",
    },
    **{f"fleet_{name}": {"type": "dict", "default": {}} for name in PROVIDERS},
}
"""The definition: `argument_specs.yml` of the role `fleet` says the same in words, and a test compares the two."""

GOALS: Dict[str, Dict[str, Dict[str, Any]]] = {
    "release": {"release_image": SPEC["fleet_image"] | {"required": False}, "release_force": {"type": "bool", "default": False}},
    "rollback": {"rollback_to": {"type": "int", "range": (1, 10**9), "noun": "a number of a release", "default": 0}},
    "heal": {"heal_share": {"type": "int", "range": (1, 100), "noun": "a share in percent", "default": 20}},
    "scale": {"scale_size": SPEC["fleet_size"] | {"required": True}},
    "retire": {"retire_confirm": {"type": "str", "required": True}},
}
"""The verbs' own variables."""

OWN = tuple(SPEC) + tuple(name for spec in GOALS.values() for name in spec)
"""All variables that are read from a host."""

_PREFIXES = r"(fleet|release|rollback|scale|heal|retire)_"

_OURS = {
    "server": "the servers are the release's own",
    "server-template": "the servers are the release's own",
    "default-server": "HAProxy does not apply it to the servers of a release; write fleet_haproxy.server",
    "use-server": "a server that it names can never be removed",
    "mode": "write fleet_haproxy.mode",
    "balance": "write fleet_haproxy.balance",
    "timeout": "write fleet_haproxy.timeouts",
    "cookie": "write fleet_haproxy.cookie",
    "disabled": "HAProxy would not use the backend",
    "dispatch": "it would send clients past the servers",
    **dict.fromkeys(("bind", "default_backend", "use_backend", "declare", "monitor"), "it belongs into a front end"),
    **dict.fromkeys(_fragment.SECTIONS, "it would begin another section"),
}
"""Lines of a backend that are not the user's, and why."""


# The definition

def define(
    raw: Mapping[str, Any], balancers: Sequence[str] = (), hosts: Optional[Sequence[str]] = None, name: str = "",
    state_dir: str = "", revision: str = "", awx: bool = False, also: Sequence[str] = (),
) -> Definition:
    """The Definition that is written in `raw`. Raises InvalidError with every mistake, and nothing else, whatever is in `raw`.

    raw holds the `fleet_*` variables, and `release_image` where it takes the place of `fleet_image`; an Unreadable as a value is a mistake.
    balancers is the group `balancers`, hosts all hosts of the inventory (None: the same), and name, state_dir and revision
    are what an unset variable means. awx: this is a job of AWX. also are mistakes found elsewhere, which are reported with these.
    """
    found = list(also)
    raw = {str(key): value for key, value in raw.items()}
    if raw.get("fleet_hold") is False:
        del raw["fleet_hold"]
    if _is_set(raw.get("release_image")):
        raw["fleet_image"] = raw["release_image"]
    found += unknown(raw, OWN)
    values = {key: _value(key, raw.get(key), _spec_for(raw, key, spec), found) for key, spec in SPEC.items()}
    if not _is_set(raw.get("fleet_name")):
        values["fleet_name"] = _value("fleet_name", name, SPEC["fleet_name"] | {"required": True}, found)
    provider = values["fleet_provider"]
    checks = _check_list(values["fleet_checks"], found)
    options = _provider_mistakes(provider, values, found)
    named = [host for host in (balancers if values["fleet_balancers"] is None else values["fleet_balancers"]) if host is not None]
    _balancer_mistakes(named, balancers, hosts, found)
    lost = values["fleet_lost_balancers"] or []
    found += [f"fleet_lost_balancers: {host} is in fleet_balancers as well; take it out there" for host in lost if host in named]
    _haproxy_mistakes(values["fleet_haproxy"] or {}, found)
    _ledger_mistakes(values["fleet_ledger"] or "", awx, found)
    if values["fleet_strategy"] in ("rolling", "canary"):
        found.append(f"fleet_strategy: {values['fleet_strategy']} is not available in this version; write blue_green")
    folder = os.path.expanduser(values["fleet_state_dir"] or state_dir)
    if not os.path.isabs(folder) or "\0" in folder:
        found.append(f"fleet_state_dir: {_shown(folder)} is not an absolute path; write for example /var/lib/phoenix.fleet")
    if found:
        raise InvalidError(found, "the definition")
    return Definition(
        name=values["fleet_name"], image=values["fleet_image"], port=values["fleet_port"], provider=provider, size=values["fleet_size"],
        checks=checks, check_timeout=values["fleet_check_timeout"], check_from=values["fleet_check_from"],
        balancers=tuple(dict.fromkeys(named)), backend=values["fleet_backend"] or values["fleet_name"],
        haproxy=_haproxy(values["fleet_haproxy"] or {}, checks), strategy=values["fleet_strategy"],
        drain_timeout=values["fleet_drain_timeout"], stop_timeout=values["fleet_stop_timeout"], keep=values["fleet_keep"],
        keep_images=values["fleet_keep_images"], standby=values["fleet_standby"], hold=values["fleet_hold"],
        state_dir=os.path.normpath(folder), ledger=values["fleet_ledger"], takeover=values["fleet_takeover"], adopt=values["fleet_adopt"],
        lost_balancers=tuple(lost),
        revision=revision if values["fleet_revision"] is None else values["fleet_revision"], options=options,
    )


def define_goal(
    raw: Mapping[str, Any], verb: str, name: str = "", fleets: Sequence[str] = (),
) -> Tuple[Goal, List[str]]:
    """The Goal of a verb and the mistakes in the verb's own variables. name is the fleet's, fleets are the hosts of this run.

    The goal's image is left open, as it is resolved later. A variable of one verb needs a run with exactly one fleet, so that a
    forgotten limit cannot release one image everywhere.
    """
    found: List[str] = []
    spec = GOALS.get(verb, {})
    missing: List[str] = []
    values = {key: _value(key, raw.get(key), rule, missing) for key, rule in spec.items()}
    for key, rule in spec.items():
        # A default that is written down, as those of the roles are, says nothing.
        if _is_set(raw.get(key)) and values[key] != rule.get("default") and len(fleets) > 1:
            found.append(f"{key}: {_shown(raw[key])} needs exactly one fleet, and this run has {_listed(fleets)}; add -l and one of them")
    if verb == "retire" and values["retire_confirm"] != name:
        shown = f"{_shown(raw['retire_confirm'])} is not this fleet" if _is_set(raw.get("retire_confirm")) else "missing"
        missing = [f"retire_confirm: {shown}; to take the fleet away for good, add -e retire_confirm={name}"]
    elif verb == "scale" and not _is_set(raw.get("scale_size")):
        missing = ["scale_size: missing; say how many instances, such as -e scale_size=4"]
    return Goal(
        verb=verb, force=bool(values.get("release_force")), size=values.get("scale_size") or 0, to=values.get("rollback_to") or 0,
        share=values.get("heal_share") or Goal(verb).share,
    ), found + missing


def out_of_scope(host: str, groups: Mapping[str, Sequence[str]]) -> List[str]:
    """Why a verb cannot run for this host, with the remedy: it is in no group `fleets`, or the inventory has no fleets at all."""
    fleets = list(groups.get("fleets") or ())
    if not fleets:
        return ["the inventory has no group fleets, or nothing in it; add the fleets as its hosts, or name another inventory with -i"]
    if host not in fleets:
        return [f"{_shown(host)} is not a fleet; limit the run to hosts of the group fleets: {_listed(fleets)}"]
    return []


def namesakes(name: str, host: str, fleets: Mapping[str, Mapping[str, Any]]) -> List[str]:
    """Why a fleet may not have this name: another host of the inventory has it, and two of one name would undo each other's work."""
    others = [other for other, variables in fleets.items() if other != host and _name_of(other, variables) == name]
    return [f"fleet_name: {_shown(name)} is the name of {others[0]} as well; give each fleet a name of its own"] if others else []


def _name_of(host: str, variables: Mapping[str, Any]) -> str:
    """The name of a fleet; none where it cannot be evaluated, of which that fleet's own run tells."""
    try:
        return str(variables.get("fleet_name") or host)
    except AnsibleError:
        return ""


def unknown(raw: Mapping[str, Any], known: Iterable[str]) -> List[str]:
    """A line for each name that looks like a slip of the pen: it begins like a variable of ours and differs by two letters or so.

    Names that are far from ours are the user's own.
    """
    known = tuple(known)
    found = []
    for key in sorted(str(key) for key in raw):
        prefix, _separator, rest = key.partition("_")
        near = {other.partition("_")[2]: other for other in known if other.startswith(f"{prefix}_")}
        close = [] if key in known else difflib.get_close_matches(rest, near, 1, 0.75)
        if close and close[0][0] == rest[0] and abs(len(close[0]) - len(rest)) <= 2:
            found.append(f"{_shown(key)}: unknown; did you mean {near[close[0]]}?")
    return found


def _check_list(value: Any, found: List[str]) -> Tuple[Mapping[str, Any], ...]:
    checks = _parsed(value)
    wrong = _checks.mistakes(checks)
    found += wrong
    return () if wrong else _checks.normal(checks)


def _balancer_mistakes(named: Sequence[str], balancers: Sequence[str], hosts: Optional[Sequence[str]], found: List[str]) -> None:
    known = list(balancers if hosts is None else hosts)
    for host in named:
        if host not in known:
            others = _listed(balancers or known) or "none"
            found.append(f"fleet_balancers: {_shown(host)} is not a host of the inventory; known are {others}")
    if not named:
        found.append("fleet_balancers: no balancer; add hosts that run HAProxy to the group balancers, or name them here")


def _ledger_mistakes(url: str, awx: bool, found: List[str]) -> None:
    """The URL may hold a password, so only its scheme is shown."""
    scheme = re.match(r"[A-Za-z0-9+]{0,40}(?=:)", url)
    if url and not re.match(r"(sqlite|postgresql)(\+[a-z0-9]+)?://", url):
        begins = f"begins with {scheme.group()}" if scheme else "is no URL"
        found.append(f"fleet_ledger: it {begins}; write postgresql://USER@HOST/DATABASE or sqlite:////ABSOLUTE/PATH")
    if awx and not url:
        found.append(
            "fleet_ledger: unset, and in AWX the default file would vanish with the job; "
            "write the URL of a PostgreSQL database, such as postgresql://USER@HOST/DATABASE"
        )


def _provider_mistakes(name: str, values: Mapping[str, Any], found: List[str]) -> Dict[str, Any]:
    if name not in PROVIDERS:
        return {}
    module = provider_module(name)
    if module is None:
        found.append(f"fleet_provider: {name} is not available in this version; write {_either(available())}")
        return {}
    if values["fleet_keep_images"] is not None and hasattr(module, "IMAGE"):
        found.append(f"fleet_keep_images: has no effect with fleet_provider {name}, whose golden images are your own; unset it")
    options = values[f"fleet_{name}"]
    if options is None:
        return {}
    # A provider names an unknown key as it is, and it may be anything.
    found += ["".join(char if char.isprintable() else "?" for char in line) for line in module.mistakes(options, f"fleet_{name}")]
    return dict(options)


def _spec_for(raw: Mapping[str, Any], key: str, spec: Spec) -> Spec:
    """What an image is depends on the provider: its module says it as `IMAGE`, a noun and a remedy. Without one it is a container's."""
    name = raw.get("fleet_provider")
    if key != "fleet_image" or not isinstance(name, str) or name.strip() not in PROVIDERS:
        return spec
    return {**spec, **getattr(provider_module(name.strip()), "IMAGE", {})}


def available() -> List[str]:
    """The providers that this version has."""
    return [name for name in PROVIDERS if provider_module(name) is not None]


def provider_module(name: str) -> Any:
    """The module of a provider (`OPTIONS`, `mistakes`, `shape`, `connect`; `IMAGE` where its images are not a container's), loaded when it
    is needed; None where this version has none.
    """
    try:
        return importlib.import_module(f"..module_utils._providers.{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.endswith(f"_providers.{name}"):
            return None
        raise


# HAProxy's part

def _haproxy_mistakes(haproxy: Mapping[str, Any], found: List[str]) -> None:
    lines = haproxy.get("options") or []
    for number, line in enumerate(lines):
        if line is None:
            continue
        where = f"fleet_haproxy.options[{number}]"
        word = line.split()[0] if line.split() else ""
        if not word or not line.replace("\t", " ").isprintable():
            found.append(f"{where}: {_shown(line)} is not one line; write one line of the backend for each item")
        elif word in _OURS:
            found.append(f"{where}: {_shown(line)} cannot stand here; {_OURS[word]}")
        elif line.split()[:2] in (["tcp-request", "connection"], ["tcp-request", "session"]):
            found.append(f"{where}: {_shown(line)} cannot stand here; it belongs into a front end")
        elif word.startswith(("#", ".")):
            found.append(f"{where}: {_shown(line)} cannot stand here; write no comments and no directives")
    balance = haproxy.get("balance") or ""
    wrong = _fragment.balance_mistake(balance, [line for line in lines if line is not None], haproxy.get("mode") or "http")
    if wrong:
        found.append(f"fleet_haproxy.balance: {_shown(balance)} {wrong}")
    check = haproxy.get("check")
    if check and check.get("status") is not None and _checks.ranges(check["status"]) is None:
        found.append(f"fleet_haproxy.check.status: {_shown(check['status'])} is no status; write 200, [200, 204] or 200-399")
    server = haproxy.get("server") or {}
    for key in ("verify", "ca_file", "sni", "alpn"):
        if server.get(key) is not None and not server.get("ssl"):
            found.append(f"fleet_haproxy.server.{key}: {_shown(server[key])} has no effect without TLS; add ssl: true")
    # What is wrong with a value is said once.
    named = [line.partition(":")[0].partition("[")[0] for line in found]
    if {"fleet_haproxy.server.ca_file", "fleet_haproxy.server.verify"} & set(named):
        named.append("fleet_haproxy.server.ssl")
    unjudged = {**haproxy, "check": {**(check or {}), "status": None}}
    more = (f"fleet_haproxy.{line}" for line in _fragment.setting_mistakes(unjudged))
    found += [line for line in more if line.partition(":")[0] not in named]


def _haproxy(haproxy: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """The part for HAProxy, complete: its own check is by default the first http check. Keys that were not written are left out."""
    made = {key: value for key, value in haproxy.items() if value is not None}
    made["server"] = {key: value for key, value in (made.get("server") or {}).items() if value is not None}
    made["timeouts"] = {key: value for key, value in (made.get("timeouts") or {}).items() if value is not None}
    made["options"] = [line.strip() for line in made.get("options") or []]
    check: Optional[Mapping[str, Any]] = made.get("check")
    if check is None:
        # A service that talks TLS itself, behind a balancer that passes it on, cannot be asked in plain HTTP.
        asked = [item["http"] for item in checks if "http" in item]
        check = next((item for item in asked if item["scheme"] == "http" or made["server"].get("ssl")), {})
    check = {key: check[key] for key in ("path", "status", "host") if check.get(key) is not None}
    if check:
        wanted = _checks.normal([{"http": {"path": "/", **check}}])[0]["http"]
        check = {key: wanted[key] for key in ("path", "status", "host") if key in wanted}
    made["check"] = check
    return made


# Values

class Unreadable:
    """Stands in `raw` for a variable whose template cannot be evaluated; reason is one line."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _value(where: str, value: Any, spec: Spec, found: List[str]) -> Any:
    """`value` as `spec` wants it, or None after its mistakes were added to `found`. An empty string is an unset value."""
    kind = spec.get("type", "str")
    if isinstance(value, Unreadable):
        found.append(f"{where}: cannot be evaluated: {value.reason}; correct the expression")
        return None
    if not _is_set(value):
        if spec.get("required"):
            found.append(f"{where}: missing; {_remedy(spec)}")
            return None
        value = copy.deepcopy(spec.get("default"))
        if kind != "dict" or value is None:
            return value
    if kind == "raw":
        return value
    if kind == "dict":
        return _dictionary(where, _parsed(value), spec, found)
    if kind == "list":
        return _list(where, _parsed(value), spec, found)
    made = _SCALARS[kind](value)
    low, high = spec.get("range", (made, made))
    if (
        made is not None and low <= made <= high and made in spec.get("choices", (made,))
        and ("pattern" not in spec or re.fullmatch(spec["pattern"], made))
    ):
        return made
    noun = spec.get("noun") or ("known" if "choices" in spec else _NOUNS[kind])
    found.append(f"{where}: {'its value' if spec.get('no_log') else _shown(value)} is not {noun}; {_remedy(spec)}")
    return None


def _dictionary(where: str, value: Any, spec: Spec, found: List[str]) -> Any:
    if not isinstance(value, Mapping):
        found.append(f"{where}: {_kind(value)} is not a dictionary; write {{key: value}}")
        return None
    value = {str(key): item for key, item in value.items()}
    options = spec.get("options")
    if options is None:
        return value
    for key in sorted(set(value) - set(options)):
        near = difflib.get_close_matches(key, options, 1)
        found.append(f"{where}.{_shown(key)}: unknown; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(options)}"))
    return {key: _value(f"{where}.{key}", value.get(key), rule, found) for key, rule in options.items()}


def _list(where: str, value: Any, spec: Spec, found: List[str]) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(spec.get("separator", ",")) if part.strip()]
    if not isinstance(value, (list, tuple)):
        found.append(f"{where}: {_kind(value)} is not a list; write [one, two]")
        return None
    rule = {"type": spec["elements"], "required": True}
    return [_value(f"{where}[{number}]", item, rule, found) for number, item in enumerate(value)]


def _integer(value: Any) -> Optional[int]:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
        return int(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> Optional[float]:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.[0-9]{1,18})?\s*", value, re.ASCII):
        return float(value)
    return value if isinstance(value, float) and math.isfinite(value) else _integer(value)


def _flag(value: Any) -> Optional[bool]:
    if isinstance(value, bool):
        return value
    return _FLAGS.get(str(value).strip().lower()) if isinstance(value, (str, int)) else None


def _text(value: Any) -> Optional[str]:
    """A number with a point is refused, because YAML has read 1.10 as 1.1 already."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18 else None


_FLAGS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
_SCALARS: Dict[str, Callable[[Any], Any]] = {"int": _integer, "float": _number, "bool": _flag, "str": _text, "path": _text}
_NOUNS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "path": "a path"}


def _remedy(spec: Spec) -> str:
    if "remedy" in spec:
        return str(spec["remedy"])
    if "choices" in spec:
        return "write " + _either(spec["choices"])
    if "range" in spec:
        return "write a number from {} to {}".format(*spec["range"])
    return {
        "int": "write a whole number", "float": "write a number", "bool": "write true or false", "list": "write [one, two]",
        "dict": "write {key: value}",
    }.get(spec.get("type", "str"), "write it in quotes")


def _parsed(value: Any) -> Any:
    """`-e` without JSON makes a text of everything, so a text that is a JSON list or dictionary is meant as one."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _shown(value: Any) -> str:
    return _checks.shown(value)


def _kind(value: Any) -> str:
    """What a value is, in a word; for containers, whose content may be secret."""
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, (list, tuple)) else _shown(value)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(_shown(name) for name in names[:10]) + more


def _either(names: Sequence[Any]) -> str:
    return ", ".join(str(name) for name in names[:-1]) + f" or {names[-1]}" if len(names) > 1 else str(names[0])


# What the ledger and the marker keep

def definition_hash(definition: Definition, key: bytes) -> str:
    """16 hex digits over what shapes an instance besides the image: provider, port, the shape of the options.

    What may be secret counts by its HMAC; key is the ledger's secret. Size, balancers, checks and whatever else can change without a new
    instance do not count. Raises RefusedError for a masked definition.
    """
    return hashlib.sha256(_canonical(published(recorded(definition, key), key))).hexdigest()[:16]


def recorded(definition: Definition, key: bytes) -> Dict[str, Any]:
    """What the ledger keeps of a release to start its instances again: {provider, port, options}, of secrets their HMACs.

    Checks and HAProxy's part are not in it: those are always the current ones, as the backend's own check can only be one.
    Raises as `definition_hash`.
    """
    if MASK in _canonical(to_dict(definition)).decode():
        raise RefusedError(f"fleet {definition.name}", "its definition is masked", "Where secrets are needed, take it from definition_of")
    module = provider_module(definition.provider)
    shape = module.shape(definition.options) if module else definition.options
    options = replaced(shape, _spec_of(definition.provider), lambda item: _hmac(item, key), ("no_log",))
    return {"provider": definition.provider, "port": definition.port, "options": options}


def published(record: Mapping[str, Any], key: bytes) -> Dict[str, Any]:
    """What anybody may see of what `recorded` returned: of all that may be secret the name, and an HMAC."""
    if "options" not in record:
        return dict(record)
    options = replaced(record["options"], _spec_of(record["provider"]), lambda item: _hmac(item, key), ("private",))
    return {**record, "options": options}


def revived(definition: Definition, record: Mapping[str, Any]) -> Definition:
    """The definition that starts instances of an earlier release: its record, with the secrets and the way to the provider of today.

    Raises RefusedError naming the secret of that release which is no longer defined.
    """
    module = provider_module(definition.provider)
    if module is None or record["provider"] != definition.provider:
        raise RefusedError(f"fleet {definition.name}", f"that release lived at {record['provider']}", "Release its image anew")
    now = module.shape(definition.options)
    kept = {name: item for name, item in definition.options.items() if name not in now}
    opened = _opened(definition.name, record["options"], definition.options, _spec_of(definition.provider))
    return replace(definition, port=record["port"], options={**kept, **opened})


def shown(definition: Definition) -> Dict[str, Any]:
    """The definition as plain data that may be seen by anybody: MASK in the place of each secret. `definition_of` is the way back."""
    data = to_dict(definition)
    return {**data, **masked({key: data[key] for key in ("options", "checks")}, {"options": secret_parts(definition.provider)}),
            "ledger": shown_ledger(definition.ledger)}


def shown_ledger(url: str) -> str:
    """The ledger's URL with MASK in the place of its passwords."""
    return re.sub(r"(password=)[^&]*", rf"\1{MASK}", re.sub(r"(://[^:/@]*:).*@", rf"\1{MASK}@", url))


def secret_parts(provider: str) -> Dict[str, Spec]:
    """The specs of what may be secret in a definition: the provider's options, and the checks."""
    return {"options": _spec_of(provider), **_checks.CHECKS}


def _spec_of(provider: str) -> Spec:
    return {"type": "dict", "options": OPTIONS.get(provider, {})}


def _opened(fleet: str, record: Any, now: Any, spec: Spec, where: str = "") -> Any:
    """A copy of `record` with each secret taken from `now`."""
    if isinstance(record, Mapping):
        options = spec.get("options") or {}
        current = now if isinstance(now, Mapping) else {}
        inner = {"no_log": True} if spec.get("no_log") else {}
        return {
            key: _opened(fleet, item, current.get(key), {**options.get(key, {}), **inner}, f"{where}.{key}") for key, item in record.items()
        }
    if not spec.get("no_log"):
        return copy.deepcopy(record)
    if now is None:
        raise RefusedError(
            f"fleet {fleet}", f"that release needs the secret {where[1:]}, which is defined no more",
            "Define it again, or release the image anew",
        )
    return now


def _hmac(value: Any, key: bytes) -> str:
    return "hmac:" + hmac.new(key, _canonical(value), hashlib.sha256).hexdigest()[:32]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


# From a task's variables

def read(
    task_vars: Mapping[str, Any], templar: Any, verb: str = "status", revision: Callable[[], str] = lambda: "",
) -> Tuple[Definition, Goal]:
    """The definition, with its secrets, and the verb's goal from the variables of a task's host. revision tells fleet_revision's default.

    Raises InvalidError with all mistakes, those of the verb's variables and of the inventory included.
    """
    host, groups = str(task_vars["inventory_hostname"]), plain(task_vars.get("groups") or {})
    raw = _raw(task_vars, templar)
    fleets = [name for name in plain(task_vars.get("ansible_play_hosts_all") or [host]) if name in groups.get("fleets", ())]
    wrong = out_of_scope(host, groups)
    if wrong:
        raise InvalidError(wrong)
    name = raw["fleet_name"] if _is_set(raw.get("fleet_name")) else host
    goal, mistakes = define_goal(raw, verb, str(name), fleets)
    mistakes += namesakes(str(name), host, {other: (task_vars.get("hostvars") or {}).get(other) or {} for other in groups["fleets"]})
    if verb != "release":
        raw.pop("release_image", None)
    definition = define(
        raw, balancers=groups.get("balancers", ()), hosts=groups.get("all", ()), name=host, state_dir=default_state_dir(os.environ),
        revision="" if _is_set(raw.get("fleet_revision")) else revision(), awx=_is_set(task_vars.get("awx_job_id")), also=mistakes,
    )
    return definition, goal


def definition_of(data: Mapping[str, Any], task_vars: Mapping[str, Any], templar: Any) -> Definition:
    """The definition that `fleet_definition` returned, with its secrets put back from the host's variables. Raises as `read`."""
    definition = from_dict(Definition, data)
    if MASK not in _canonical(to_dict(definition)).decode():
        return definition
    whole = read_again(task_vars, templar)
    return replace(definition, options=whole.options, ledger=whole.ledger, checks=whole.checks)


def read_again(task_vars: Mapping[str, Any], templar: Any) -> Definition:
    """The definition, with its secrets, of a host whose variables were read in this run already: neither the goal nor the other fleets
    are looked at. Raises InvalidError as `define` does.
    """
    host, groups = str(task_vars["inventory_hostname"]), plain(task_vars.get("groups") or {})
    raw = _raw(task_vars, templar)
    raw.pop("release_image", None)
    return define(
        raw, balancers=groups.get("balancers", ()), hosts=groups.get("all", ()), name=host, state_dir=default_state_dir(os.environ),
        awx=_is_set(task_vars.get("awx_job_id")),
    )


def ledger_url(task_vars: Mapping[str, Any], templar: Any) -> str:
    """The ledger's URL of the task's host, with its password. Raises InvalidError where it cannot be evaluated any more."""
    found: List[str] = []
    raw = _raw({"fleet_ledger": task_vars.get("fleet_ledger")}, templar)
    url = _value("fleet_ledger", raw["fleet_ledger"], SPEC["fleet_ledger"], found)
    if found:
        raise InvalidError(found)
    return str(url)


def wanted(task_vars: Mapping[str, Any], templar: Any, verb: str) -> Tuple[Definition, Goal]:
    """What `read` finds, with the revision of the fleet's inventory. Raises RefusedError for a verb that changes what is on hold."""
    definition, goal = read(task_vars, templar, verb, lambda: default_revision(task_vars))
    if definition.hold and verb in CHANGING:
        raise RefusedError(f"fleet {definition.name} is on hold", definition.hold, "Unset fleet_hold to go on.")
    return definition, goal


def told(definition: Definition, goal: Goal, task_vars: Mapping[str, Any]) -> Dict[str, Any]:
    """For the tasks that follow: `definition` without its secrets, `goal` with the image that is wanted, and where the `balancers` are."""
    return {
        "definition": shown(definition),
        "goal": {**to_dict(goal), "image": definition.image if goal.verb == "release" else ""},
        "balancers": [{"host": host, "address": _place(host, task_vars["hostvars"][host])} for host in definition.balancers],
    }


def _place(host: str, variables: Mapping[str, Any]) -> str:
    """`local` for a balancer on this machine, else where Ansible finds it."""
    return "local" if variables.get("ansible_connection") == "local" else str(variables.get("ansible_host") or host)


def default_revision(task_vars: Mapping[str, Any]) -> str:
    """The Git revision of the host's inventory: AWX's word for it, or what `git_revision` finds."""
    if _is_set(task_vars.get("awx_project_revision")):
        return str(task_vars["awx_project_revision"])
    folder = task_vars.get("inventory_dir")
    return git_revision(str(folder)) if folder else ""


def git_revision(folder: str) -> str:
    """12 digits of the commit that the folder is at, with `-dirty` where tracked files differ; empty without git, repository or commit."""
    # A hook of Git sets GIT_DIR and others for its own repository, which need not be the inventory's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def default_state_dir(environ: Mapping[str, str]) -> str:
    """`$XDG_STATE_HOME/phoenix.fleet`, by default in ~/.local/state; a relative XDG_STATE_HOME is to be ignored (XDG base directories)."""
    home = environ.get("XDG_STATE_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.local/state"), "phoenix.fleet")


def _raw(task_vars: Mapping[str, Any], templar: Any) -> Dict[str, Any]:
    """Our variables out of all, each evaluated by itself, so that one broken template is one mistake."""
    raw: Dict[str, Any] = {}
    for key in task_vars:
        if key in OWN or re.match(_PREFIXES, key):
            try:
                raw[key] = plain(templar.template(task_vars[key]))
            except AnsibleError as error:
                raw[key] = Unreadable(_checks.one_line(str(error)))
    return raw


def plain(value: Any) -> Any:
    """A copy in dict, list and str proper. What Ansible's templating returns evaluates its parts only when they are read."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str.__str__(value)[:] if isinstance(value, str) else value
