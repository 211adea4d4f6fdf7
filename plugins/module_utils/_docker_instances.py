# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The work of docker_instances, docker_instances_info and docker_image_info: one release of a fleet as it should be, without a ledger."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from ._errors import FleetError, InvalidError, RefusedError
from ._model import Image, Instance, Pool, to_dict
from ._providers import docker
from ._providers.base import Blueprint

Say = Callable[[str], None]

CONNECTION = {key: docker.OPTIONS[key] for key in ("hosts", "tls")}
IMAGE = {key: docker.OPTIONS[key] for key in ("pull", "registry")}
ARGUMENTS: Dict[str, Any] = {
    "fleet": {"type": "str", "required": True},
    "release": {"type": "int", "required": True},
    "state": {"type": "str", "default": "present", "choices": ["present", "stopped", "absent"]},
    "image": {"type": "str"},
    "size": {"type": "int", "default": 1},
    "port": {"type": "int"},
    "balancers": {"type": "list", "elements": "str", "default": ["local"]},
    "revision": {"type": "str", "default": ""},
    "ledger": {"type": "str", "default": ""},
    "stop_timeout": {"type": "int", "default": 10},
    **docker.OPTIONS,
}
INFO_ARGUMENTS: Dict[str, Any] = {"fleet": {"type": "str", "required": True}, "release": {"type": "int"}, **CONNECTION}
IMAGE_ARGUMENTS: Dict[str, Any] = {"image": {"type": "str", "required": True}, **CONNECTION, **IMAGE}


@dataclass(frozen=True)
class Acts:
    """What it takes; each instance in at most one of them."""

    create: Tuple[Instance, ...] = ()
    start: Tuple[Instance, ...] = ()
    stop: Tuple[Instance, ...] = ()
    destroy: Tuple[Instance, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.start or self.stop or self.destroy)


def carry_out(params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
    """docker_instances. params as in ARGUMENTS; raises FleetError, nothing touched where the input has mistakes."""
    with plainly():
        _check(params)
        options = {key: value for key, value in params.items() if key in docker.OPTIONS and value is not None}
        provider = docker.connect(options)
        seen = tuple(item for item in provider.observe(params["fleet"]) if item.release == params["release"])
        _ours(seen, params)
        if params["state"] != "present":
            acts = Acts(destroy=seen) if params["state"] == "absent" else Acts(stop=tuple(item for item in seen if is_awake(item)))
        else:
            image = provider.image(params["image"])
            form = Blueprint(image, hash_of(options, image, params["port"]), params["ledger"], params["revision"], options, params["port"])
            _same_form(seen, form, params)
            missing = [slot for slot in range(1, params["size"] + 1) if slot not in {item.slot for item in seen}]
            pools = provider.pools(params["fleet"], params["port"], params["balancers"]) if missing else ()
            acts = Acts(
                create=placed(missing, seen, pools, params, form),
                start=tuple(item for item in seen if item.slot <= params["size"] and not is_awake(item)),
                destroy=tuple(item for item in seen if item.slot > params["size"]),
            )
            if acts.create:
                provider.preflight(acts.create, form)
            if not check_mode and acts.create:
                provider.create(acts.create, form)
            if not check_mode and acts.start:
                provider.start(acts.start, form)
        if not check_mode:
            provider.stop(acts.stop, params["stop_timeout"])
            provider.destroy(acts.destroy, params["stop_timeout"])
        after = expected(seen, acts)
        if acts and not check_mode:
            after = tuple(item for item in provider.observe(params["fleet"]) if item.release == params["release"])
            for doing, items in (("started", acts.create + acts.start), ("stopped", acts.stop), ("destroyed", acts.destroy)):
                if items:
                    say(f"{params['fleet']}  r{params['release']} {doing} {', '.join(item.name for item in items)}")
    return {
        "changed": bool(acts), "instances": [to_dict(item) for item in after],
        "diff": {"before": told(seen), "after": told(expected(seen, acts))},
    }


def info(params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
    """docker_instances_info: the fleet's instances as they are; an empty list where there are none."""
    with plainly():
        seen = docker.connect({key: params[key] for key in CONNECTION}).observe(params["fleet"])
    wanted = params["release"]
    return {"changed": False, "instances": [to_dict(item) for item in seen if wanted is None or item.release == wanted]}


def image_info(params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
    """docker_image_info: what a reference means now, and which engines have that image."""
    with plainly():
        provider = docker.connect({key: params[key] for key in (*CONNECTION, *IMAGE)})
        image = provider.image(params["image"])
        return {"changed": False, "image": to_dict(image), "present": list(provider.present(image))}


def is_awake(instance: Instance) -> bool:
    return instance.state in ("running", "restarting")


def hash_of(options: Mapping[str, Any], image: Image, port: int) -> str:
    """A hash of what shapes an instance: 16 hex digits. Of secrets only the names count: a hash of a weak one would give it away."""
    form = docker.shape(options)
    form["secrets"] = sorted(form.get("secrets", {}))
    text = json.dumps([form, image.digest, port], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def placed(
    slots: Sequence[int], seen: Sequence[Instance], pools: Sequence[Pool], params: Mapping[str, Any], form: Blueprint,
) -> Tuple[Instance, ...]:
    """New instances for `slots`, each in the pool with the fewest, at its lowest free address. Raises RefusedError where a pool is full."""
    load = {pool.host: sum(item.host == pool.host for item in seen) for pool in pools}
    free = {pool.host: places(pool) for pool in pools}
    planned: List[Instance] = []
    for slot in slots:
        host = min(load, key=lambda name: load[name])  # the first of several: a dictionary keeps its order
        address, port = next(free[host], ("", 0))
        if not address:
            remedy = "Take a larger fleet_docker.subnet or fleet_docker.publish_ports"
            raise RefusedError(f"engine {host}", "no address is free there", remedy)
        load[host] += 1
        fleet, release = params["fleet"], params["release"]
        name = f"{fleet}-r{release}-{slot}"
        planned.append(Instance(name, host, fleet, release, slot, form.image.digest, address, port, form.revision))
    return tuple(planned)


def places(pool: Pool) -> Iterator[Tuple[str, int]]:
    """The free places of a pool as address and port, the lowest first."""
    taken = set(pool.taken)
    if pool.kind == "published":
        every = ((pool.first, port) for port in range(pool.ports[0], pool.ports[1] + 1))
    else:
        every = ((str(ipaddress.ip_address(number)), pool.ports[0]) for number in range(
            int(ipaddress.ip_address(pool.first)), int(ipaddress.ip_address(pool.last)) + 1))
    return (place for place in every if pool.key(*place) not in taken)


def expected(seen: Sequence[Instance], acts: Acts) -> Tuple[Instance, ...]:
    """The instances once `acts` are done."""
    gone, woken, stopped = ({item.id for item in items} for items in (acts.destroy, acts.start, acts.stop))
    kept = [
        replace(item, state="running" if item.id in woken else "stopped" if item.id in stopped else item.state)
        for item in seen if item.id not in gone
    ]
    return tuple(sorted([*kept, *(replace(item, state="running") for item in acts.create)], key=lambda item: item.slot))


def told(instances: Sequence[Instance]) -> str:
    return "".join(f"{item.name} {item.state} {item.image} on {item.host} at {item.address}:{item.port}\n" for item in instances)


def _check(params: Mapping[str, Any]) -> None:
    found = []
    if not re.match(r"^[a-z][a-z0-9-]{0,39}$", params["fleet"]):
        found.append(f"fleet: {params['fleet']!r} is not a name; write up to 40 lower-case letters, digits and dashes, a letter first")
    if params["state"] == "present":
        found += [f"{key}: missing, although state is present" for key in ("image", "port") if not params[key]]
    for key, low, high in (("release", 1, 10 ** 9), ("size", 0, 1000), ("port", 1, 65535), ("stop_timeout", 0, 3600)):
        if params[key] is not None and not low <= params[key] <= high:
            found.append(f"{key}: {params[key]} is not a number from {low} to {high}")
    options = {key: params[key] for key in docker.OPTIONS}
    found += docker.mistakes(options, "")
    if found:
        raise InvalidError(found)


def _ours(seen: Sequence[Instance], params: Mapping[str, Any]) -> None:
    for item in seen:
        ledger = item.marker.get("phoenix.fleet.ledger", "")
        if ledger != params["ledger"]:
            raise RefusedError(
                f"container {item.name} on engine {item.host}",
                f"it belongs to ledger {ledger or '(none)'}, not {params['ledger'] or '(none)'}",
                "Give that ledger's id if it is yours, or take another release",
            )


def _same_form(seen: Sequence[Instance], form: Blueprint, params: Mapping[str, Any]) -> None:
    """A running instance is never changed: with another image or setting it has to be another release."""
    for item in seen:
        if item.slot <= params["size"] and item.marker.get("phoenix.fleet.hash") != form.hash:
            raise RefusedError(
                f"container {item.name} on engine {item.host}", f"it was made from another image or with other options ({item.image})",
                f"Nothing that exists is changed: make release {params['release'] + 1}, then remove release {params['release']}",
            )


@contextmanager
def plainly() -> Iterator[None]:
    """Errors in the words of these modules, whose options stand for themselves and not within fleet_docker."""
    try:
        yield
    except InvalidError as error:
        raise InvalidError([line.replace("fleet_docker.", "") for line in error.mistakes]) from error
    except FleetError as error:
        raise type(error)(*(text.replace("fleet_docker.", "") for text in (error.what, error.cause, error.remedy))) from error
