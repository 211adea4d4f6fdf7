# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What the module and the action plugin `instances` both do: the verbs of any provider, on a whole set at once."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ._errors import InvalidError, RefusedError, UnreachableError
from ._model import Image, Instance, LastWords, from_dict, to_dict
from ._providers import _docker_options, _libvirt_options, _proxmox_options
from ._providers._marker import refuse_leased
from ._providers.base import Blueprint, Journal, Permit, Provider

OPTIONS: Dict[str, Dict[str, Any]] = {
    "docker": _docker_options.OPTIONS, "proxmox": _proxmox_options.OPTIONS, "libvirt": _libvirt_options.OPTIONS,
}
"""The specs of each provider's options."""

PROVIDERS = tuple(OPTIONS)
VERBS = ("observe", "provision", "decommission", "last_words")

ARGUMENTS: Dict[str, Any] = {
    "verb": {"type": "str", "required": True, "choices": list(VERBS)},
    "fleet": {"type": "str", "required": True},
    "provider": {"type": "str", "default": "docker", "choices": list(PROVIDERS)},
    "options": {"type": "dict", "default": {}, "no_log": True},
    "image": {"type": "str"},
    "port": {"type": "int", "default": 0},
    "balancers": {"type": "list", "elements": "str", "default": ["local"]},
    "instances": {"type": "list", "elements": "dict", "default": []},
    "standby": {"type": "list", "elements": "dict", "default": []},
    "release": {"type": "dict", "default": {}},
    "ledger": {"type": "str", "default": ""},
    "stop_timeout": {"type": "int", "default": 10},
    "keep_images": {"type": "int"},
    "folder": {"type": "path"},
    "wave": {"type": "dict", "default": {}},
    "record": {"type": "str", "default": ""},
    "lease": {"type": "dict", "default": {}},
    "receipts": {"type": "list", "elements": "dict", "default": []},
}


def connect(provider: str, options: Mapping[str, Any], journal: Optional[Journal] = None) -> Provider:
    """The provider of that name. Raises InvalidError where this version has none, or the options have mistakes."""
    # Named here and not looked up, so that Ansible finds the files when it packs the module for a host.
    if provider == "docker":
        from ._providers import docker

        return docker.connect(options)
    if provider == "proxmox":
        from ._providers import proxmox

        return proxmox.connect(options, journal)
    if provider == "libvirt":
        from ._providers import libvirt

        return libvirt.connect(options)
    raise InvalidError([f"fleet_provider: {provider} is not available in this version; write one of {', '.join(PROVIDERS)}"])


Seal = Callable[[Mapping[str, str]], None]
"""Keeps the seals of stopped instances, by their names."""


def carry_out(
    params: Mapping[str, Any], check_mode: bool, say: Callable[[str], None], journal: Optional[Journal] = None,
    permit: Optional[Permit] = None, seal: Optional[Seal] = None,
) -> Dict[str, Any]:
    """One verb on a set of instances. params as in ARGUMENTS; raises FleetError and what the provider raises.

    permit is what the ledger says of stopping or removing an instance. Without one, those that belong to a ledger are refused.
    seal is given the seals of what was stopped before anything else is removed, which may fail.
    """
    provider = connect(params["provider"], params["options"], journal)
    if params["verb"] == "observe":
        return _observe(provider, params)
    instances, standby = ([from_dict(Instance, item) for item in params[key]] for key in ("instances", "standby"))
    if params["verb"] == "last_words":
        # Planned instances have no id: who bears their names now is who speaks.
        found = {item.name: item for item in provider.observe(params["fleet"])}
        words = provider.last_words([found.get(item.name, item) for item in instances])
        folder = _keep(params["folder"], words, check_mode)
        return {"changed": False, "last_words": [_spoken(item, bool(folder)) for item in words], "folder": folder}
    come = params["verb"] == "provision"
    result = {"changed": bool(instances or standby), "instances": [to_dict(item) for item in instances]}
    result["diff"] = _diff(come, instances, standby)
    if permit is None and not come:
        for item in (*standby, *instances):
            refuse_leased(item)
    if check_mode or not result["changed"]:
        return result
    lines = partial(_tell, params["fleet"], say)
    if come:
        result["instances"] = [to_dict(item) for item in _provision(provider, instances, params, lines)]
    else:
        result["seals"] = _decommission(provider, instances, standby, params["stop_timeout"], lines, permit or refuse_leased, seal)
    return result


def _observe(provider: Provider, params: Mapping[str, Any]) -> Dict[str, Any]:
    """The image is asked for first: one that nobody knows ends a run before anything else is asked."""
    image = {"image": to_dict(provider.image(params["image"]))} if params["image"] else {}
    seen = provider.observe(params["fleet"])
    pools = provider.pools(params["fleet"], params["port"], params["balancers"])
    copies = provider.copies(params["fleet"])
    listed = {"instances": seen, "pools": pools, "copies": copies}
    return {"changed": False, **image, **{key: [to_dict(item) for item in items] for key, items in listed.items()}}


Tell = Callable[[Sequence[Instance], str], None]


def _provision(provider: Provider, instances: Sequence[Instance], params: Mapping[str, Any], tell: Tell) -> List[Instance]:
    """All of them run: what is planned is created, what was stopped is started. As observed afterwards."""
    form = blueprint(params)
    planned = [item for item in instances if item.state == "planned"]
    stopped = [item for item in instances if item.state != "planned"]
    made: List[Instance] = []
    if planned:
        made += provider.create(planned, form)
        tell(planned, "started")
    if stopped:
        made += provider.start(stopped, form)
        tell(stopped, "started again")
    return made


def _decommission(
    provider: Provider, instances: Sequence[Instance], standby: Sequence[Instance], timeout: int, tell: Tell, permit: Permit,
    seal: Optional[Seal],
) -> Dict[str, str]:
    """Some are stopped and kept, the others go. Returns the seals of what was stopped."""
    seals: Dict[str, str] = {}
    if standby:
        provider.stop(standby, timeout, permit)
        seals = dict(provider.seals(standby))
        if seal and seals:
            seal(seals)
        tell(standby, "stopped, kept as standby")
    if instances:
        provider.destroy(instances, timeout, permit)
        tell(instances, "destroyed")
    return seals


def _tell(fleet: str, say: Callable[[str], None], instances: Sequence[Instance], doing: str) -> None:
    for line in told(instances):
        say(f"{fleet}  {line} {doing}")


def blueprint(params: Mapping[str, Any]) -> Blueprint:
    """What the instances of the release in `params` are made from. Raises RefusedError without an image's digest."""
    release = params["release"]
    if not release.get("digest"):
        raise RefusedError(f"fleet {params['fleet']}", "no image is named to start instances from", "Give release.digest")
    return Blueprint(
        image=Image(release.get("image") or release["digest"], release["digest"]),
        hash=release.get("hash", ""), ledger=params["ledger"] or params["lease"].get("ledger", ""),
        revision=release.get("revision", ""), options=params["options"], port=params["port"],
    )


def told(instances: Sequence[Instance]) -> List[str]:
    """Instances in words, a line for each release: `r42 web-r42-1, web-r42-2`, or a count where they are many."""
    lines = []
    for number in sorted({item.release for item in instances}):
        names = [item.name for item in instances if item.release == number]
        lines.append(f"r{number} " + (", ".join(names) if len(names) <= 4 else f"{names[0]} .. {names[-1]} ({len(names)})"))
    return lines


def _spoken(words: LastWords, kept: bool) -> Dict[str, Any]:
    """What a result tells. The description holds the instance's environment, and a log whatever the service said: where both are kept in a
    folder, they are there and nowhere else.
    """
    data = to_dict(words)
    data.pop("inspect")
    if kept:
        data.pop("log")
    return data


def _keep(folder: Any, words: Tuple[LastWords, ...], check_mode: bool) -> str:
    """Write log and description of each instance below the folder, readable by its owner alone; returns the folder."""
    if not folder or check_mode or not words:
        return ""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.utime(folder)  # by which the oldest are told
        for item in words:
            _write(os.path.join(folder, f"{item.name}.log"), "\n".join(item.log) + "\n")
            _write(os.path.join(folder, f"{item.name}.json"), json.dumps(to_dict(item), indent=2, sort_keys=True, default=str))
    except OSError as error:
        cause = f"the last words cannot be kept: {error.strerror}"
        raise UnreachableError(f"folder {folder}", cause, "Free some space there, or let this user write to it") from None
    return str(folder)


def _write(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _diff(come: bool, instances: Sequence[Instance], standby: Sequence[Instance]) -> Dict[str, str]:
    names = "".join(f"{item.name} {item.image} {item.address}:{item.port}\n" for item in (*standby, *instances))
    return {"before": "", "after": names} if come else {"before": names, "after": ""}
