# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What the module and the action plugin `instances` both do: the verbs of any provider, on a whole set at once."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from ._errors import InvalidError, RefusedError
from ._model import Image, Instance, LastWords, from_dict, to_dict
from ._providers.base import Blueprint, Provider

PROVIDERS = ("docker", "proxmox", "libvirt")
VERBS = ("image", "observe", "create", "start", "stop", "destroy", "last_words")
DOINGS = {"create": "started", "start": "started again", "stop": "stopped, kept as standby", "destroy": "destroyed"}

ARGUMENTS: Dict[str, Any] = {
    "verb": {"type": "str", "required": True, "choices": list(VERBS)},
    "fleet": {"type": "str", "required": True},
    "provider": {"type": "str", "default": "docker", "choices": list(PROVIDERS)},
    "options": {"type": "dict", "default": {}, "no_log": True},
    "image": {"type": "str"},
    "port": {"type": "int", "default": 0},
    "balancers": {"type": "list", "elements": "str", "default": ["local"]},
    "instances": {"type": "list", "elements": "dict", "default": []},
    "release": {"type": "dict", "default": {}},
    "ledger": {"type": "str", "default": ""},
    "stop_timeout": {"type": "int", "default": 10},
    "folder": {"type": "path"},
    "lease": {"type": "dict", "default": {}},
}


def connect(provider: str, options: Mapping[str, Any]) -> Provider:
    """The provider of that name. Raises InvalidError where this version has none, or the options have mistakes."""
    # Named here and not looked up, so that Ansible finds the files when it packs the module for a host.
    if provider == "docker":
        from ._providers import docker

        return docker.connect(options)
    raise InvalidError([f"fleet_provider: {provider} is not available in this version"])


def carry_out(params: Mapping[str, Any], check_mode: bool, say: Callable[[str], None]) -> Dict[str, Any]:
    """One verb on a set of instances. params as in ARGUMENTS; raises FleetError and what the provider raises."""
    verb, fleet = params["verb"], params["fleet"]
    provider = connect(params["provider"], params["options"])
    if verb == "image":
        return {"changed": False, "image": to_dict(provider.image(params["image"]))}
    if verb == "observe":
        seen = provider.observe(fleet)
        pools = provider.pools(fleet, params["port"], params["balancers"])
        return {"changed": False, "instances": [to_dict(item) for item in seen], "pools": [to_dict(item) for item in pools]}

    instances = [from_dict(Instance, item) for item in params["instances"]]
    if verb == "last_words":
        # Planned instances have no id: who bears their names now is who speaks.
        found = {item.name: item for item in provider.observe(fleet)}
        words = provider.last_words([found.get(item.name, item) for item in instances])
        return {"changed": False, "last_words": [_spoken(item) for item in words], "folder": _keep(params["folder"], words, check_mode)}
    result = {"changed": bool(instances), "instances": [to_dict(item) for item in instances], "diff": _diff(verb, instances)}
    if check_mode or not instances:
        return result
    if verb in ("create", "start"):
        made = (provider.create if verb == "create" else provider.start)(instances, blueprint(params))
        result["instances"] = [to_dict(item) for item in made]
    elif verb == "stop":
        provider.stop(instances, params["stop_timeout"])
        result["seals"] = dict(provider.seals(instances))
    else:
        provider.destroy(instances, params["stop_timeout"])
    for line in told(instances):
        say(f"{fleet}  {line} {DOINGS[verb]}")
    return result


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


def _spoken(words: LastWords) -> Dict[str, Any]:
    data = to_dict(words)
    data.pop("inspect")
    return data


def _keep(folder: Any, words: Tuple[LastWords, ...], check_mode: bool) -> str:
    """Write log and description of each instance below the folder, readable by its owner alone; returns the folder."""
    if not folder or check_mode or not words:
        return ""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for item in words:
        _write(os.path.join(folder, f"{item.name}.log"), "\n".join(item.log) + "\n")
        _write(os.path.join(folder, f"{item.name}.json"), json.dumps(to_dict(item), indent=2, sort_keys=True, default=str))
    return str(folder)


def _write(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _diff(verb: str, instances: Sequence[Instance]) -> Dict[str, str]:
    names = "".join(f"{item.name} {item.image} {item.address}:{item.port}\n" for item in instances)
    return {"before": "", "after": names} if verb in ("create", "start") else {"before": names, "after": ""}
