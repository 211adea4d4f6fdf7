# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What the modules and action plugins `haproxy_backend` and `haproxy_backend_info` both do."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from .._errors import FleetError, InvalidError, UnreachableError
from .._model import Head, Server, from_dict, to_dict
from .backend import VERDICT_PATIENCE, Backend, Outcome, place, standing
from .fragment import OPTIONS

PLACES: Dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "socket": {"type": "str"},
    "master_socket": {"type": "str"},
    "reload_command": {"type": "str"},
    "config": {"type": "str"},
    "config_dir": {"type": "str"},
}
"""Where HAProxy is; what is not given comes from the host's variables haproxy_*, else from DEFAULTS."""

DEFAULTS = {
    "socket": "/run/haproxy/admin.sock", "reload_command": "", "config": "/etc/haproxy/haproxy.cfg", "config_dir": "/etc/haproxy/conf.d",
}

LEASED = ("ledger", "fence", "fleet", "records", "lineage")
"""What a fragment's head has of a lease, and all that leaves the controller."""

ARGUMENTS: Dict[str, Any] = {
    **PLACES,
    "state": {"type": "str", "default": "present", "choices": ["present", "observed", "absent"]},
    "options": {"type": "dict", "options": OPTIONS},
    "options_for": {"type": "str", "default": "all", "choices": ["all", "new", "former"]},
    "servers": {"type": "list", "elements": "dict", "options": {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "id": {"type": "int"},
        "weight": {"type": "int", "default": 100},
        "state": {"type": "str", "default": "ready", "choices": ["ready", "drain", "maint"]},
        "up": {"type": "bool"},
        "steady": {"type": "bool"},
        "check": {"type": "str"},
        "sessions": {"type": "int"},
        "loaded": {"type": "bool"},
    }},
    "wait_for": {"type": "str", "default": "none", "choices": ["none", "up", "idle"]},
    "wait_servers": {"type": "list", "elements": "str"},
    "wait_timeout": {"type": "int", "default": 60},
    "drain_timeout": {"type": "int", "default": 30},
    "confirm": {"type": "list", "elements": "dict", "default": [], "options": {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "confirmed": {"type": "bool", "default": False},
    }},
    "lease": {"type": "dict", "default": {}},
    "live": {"type": "int"},
    "next": {"type": "int"},
    "adopt": {"type": "bool", "default": False},
}


def connect(params: Mapping[str, Any], check_mode: bool = False) -> Backend:
    """The backend that the parameters name. host, where there is one, is the balancer's name in messages."""
    place = {key: params.get(key) or default for key, default in DEFAULTS.items()}
    return Backend(
        params["name"], socket=place["socket"], master_socket=params.get("master_socket") or None, reload_command=place["reload_command"],
        config=place["config"], config_dir=place["config_dir"], host=params.get("host") or "", check_mode=check_mode,
    )


def observe(params: Mapping[str, Any], check_mode: bool, say: Callable[[str], None]) -> Dict[str, Any]:
    """haproxy_backend_info. params as in PLACES."""
    return {"changed": False, "balancer": to_dict(connect(params).observe())}


def carry_out(params: Mapping[str, Any], check_mode: bool, say: Callable[[str], None]) -> Dict[str, Any]:
    """haproxy_backend. params as in ARGUMENTS; raises FleetError."""
    mistakes = [f"{key}: {params[key]} is no number of seconds" for key in ("wait_timeout", "drain_timeout") if params[key] < 0]
    if params["state"] != "present" and (params["servers"] or params["wait_for"] != "none"):
        mistakes.append(f"state: {params['state']} takes neither servers nor wait_for; use state: present")
    if mistakes:
        raise InvalidError(mistakes)
    backend = connect(params, check_mode)
    lease = _lease(params["lease"])
    tell = _teller(params, backend, say)
    outcome = _act(params, backend, lease, check_mode, tell)
    if params["wait_for"] != "none":
        names = params["wait_servers"] if params["wait_servers"] is not None else [item["name"] for item in params["servers"] or ()]
        if params["wait_for"] == "idle":
            outcome.actions += [] if check_mode else backend.wait_idle(names, params["wait_timeout"], tell)
        elif not check_mode:
            backend.wait_up(names, params["wait_timeout"])
            say(f"{_fleet(params)}  {backend.host} {len(names)}/{len(names)} up")
    given = {place(receipt) for receipt in outcome.receipts}
    asked = [server for server in _asked(params, ()) if place(server) not in given]
    outcome.receipts += backend.confirm(asked) if asked and not check_mode else []
    return {
        "changed": outcome.changed and params["state"] != "observed",
        "actions": outcome.actions,
        "receipts": [to_dict(receipt) for receipt in outcome.receipts],
        "balancer": to_dict(backend.observe(VERDICT_PATIENCE if params["state"] == "observed" else 0.0, lease)),
        "diff": {"before": outcome.before or "", "after": outcome.after, "before_header": backend.path, "after_header": backend.path},
    }


def _act(params: Mapping[str, Any], backend: Backend, lease: Optional[Head], check_mode: bool, tell: Callable[[str], None]) -> Outcome:
    if params["state"] == "observed":
        # Check mode takes no lease, and leaves no mark.
        return backend.stamp(lease, params["adopt"]) if lease is not None and lease.fence and not check_mode else Outcome([])
    if params["state"] == "absent":
        return backend.remove(lease, params["adopt"], params["drain_timeout"], tell)
    if params["servers"] is None and params["wait_for"] != "none":
        return Outcome([])
    servers: Optional[Sequence[Server]] = None
    if params["servers"] is not None:
        known = backend.observe()
        servers = standing(params["servers"], (*known.servers, *known.strangers))
    return backend.apply(
        servers, None if params["options"] is None else compact(params["options"]), lease, live=params["live"], next_release=params["next"],
        adopt=params["adopt"], drain_timeout=params["drain_timeout"], wait_timeout=params["wait_timeout"], on_progress=tell,
        options_for=params["options_for"], asked=_asked(params, (True,)),
    )


def _asked(params: Mapping[str, Any], without: Sequence[bool]) -> List[Server]:
    """The servers of `confirm`, those left out whose `confirmed` is one of `without`."""
    return [Server(item["name"], item["address"], item["port"], 0) for item in params["confirm"] if item["confirmed"] not in without]


def _lease(data: Optional[Mapping[str, Any]]) -> Optional[Head]:
    """The lease as a head: which ledger and fleet, the fence, and how many records the ledger has."""
    if not data:
        return None
    return from_dict(Head, {key: data[key] for key in LEASED if data.get(key) is not None})


def compact(options: Mapping[str, Any]) -> Dict[str, Any]:
    """The options without what was not given, so that the fragment says only what somebody wrote."""
    made: Dict[str, Any] = {}
    for key, value in options.items():
        kept = compact(value) if isinstance(value, Mapping) else value
        if kept not in (None, "", [], {}):
            made[key] = kept
    return made


def _fleet(params: Mapping[str, Any]) -> str:
    return str((params["lease"] or {}).get("fleet") or params["name"])


def _teller(params: Mapping[str, Any], backend: Backend, say: Callable[[str], None]) -> Callable[[str], None]:
    """Progress lines begin with the fleet's name and say which balancer."""
    return lambda text: say(f"{_fleet(params)}  {backend.host} {text}")


def failure(error: FleetError) -> Dict[str, Any]:
    """What the module forms return beside `msg`: an error's parts, and `reachable` false where HAProxy gave no answer."""
    made: Dict[str, Any] = {"failure": {"what": error.what, "cause": error.cause, "remedy": error.remedy}}
    return {**made, "reachable": False} if isinstance(error, UnreachableError) else made
