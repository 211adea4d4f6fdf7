# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The work of each provider's own modules (PROVIDER_instances, _instances_info, _image_info): one release of a fleet as it should be,
without a ledger.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from ._errors import FleetError, InvalidError, RefusedError, UnreachableError
from ._model import Image, Instance, Pool, to_dict
from ._providers._marker import refuse_leased
from ._providers.base import Blueprint
from ._secrets import MASK, for_ansible, leaves, replaced

Say = Callable[[str], None]

_FLEET = {"type": "str", "required": True}


@dataclass(frozen=True)
class Acts:
    """What it takes; each instance in at most one of them."""

    create: Tuple[Instance, ...] = ()
    start: Tuple[Instance, ...] = ()
    stop: Tuple[Instance, ...] = ()
    destroy: Tuple[Instance, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.start or self.stop or self.destroy)


@dataclass(frozen=True)
class Face:
    """What the modules of one provider have of their own.

    module is the provider's (OPTIONS, mistakes, shape, connect). connection are the options that lead to it, image those that matter for
    an image beside them. one and place are words for an instance and where it is; room is what to do where there is none left.
    """

    name: str
    module: Any
    connection: Tuple[str, ...]
    image: Tuple[str, ...]
    one: str
    place: str
    room: str

    @property
    def arguments(self) -> Dict[str, Any]:
        return {
            "fleet": _FLEET,
            "release": {"type": "int", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "stopped", "absent"]},
            "image": {"type": "str"},
            "size": {"type": "int", "default": 1},
            "port": {"type": "int"},
            "balancers": {"type": "list", "elements": "str", "default": ["local"]},
            "revision": {"type": "str", "default": ""},
            "ledger": {"type": "str", "default": ""},
            "stop_timeout": {"type": "int", "default": 10},
            **for_ansible(self.module.OPTIONS),
        }

    @property
    def info_arguments(self) -> Dict[str, Any]:
        return {"fleet": _FLEET, "release": {"type": "int"}, **self._options(self.connection)}

    @property
    def image_arguments(self) -> Dict[str, Any]:
        return {"image": {"type": "str", "required": True}, **self._options((*self.connection, *self.image))}

    def _options(self, keys: Iterable[str]) -> Dict[str, Any]:
        return for_ansible({key: self.module.OPTIONS[key] for key in keys})

    def words(self, item: Instance) -> str:
        return f"{self.one} {item.name} on {self.place} {item.host}"

    def options(self, params: Mapping[str, Any], keys: Iterable[str] = ()) -> Dict[str, Any]:
        return {key: params[key] for key in keys or self.module.OPTIONS if params.get(key) is not None}

    def carry_out(self, params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
        """PROVIDER_instances. params as in `arguments`; raises FleetError, nothing touched where the input has mistakes."""
        with self.plainly():
            _check(self, params)
            options = self.options(params)
            provider = self.module.connect(options)
            observed = provider.observe(params["fleet"])
            _refuse_unknown(observed, params)
            seen = tuple(item for item in observed if item.release == params["release"])
            _ours(self, seen, params)
            if params["state"] != "present":
                acts = Acts(destroy=seen) if params["state"] == "absent" else Acts(stop=tuple(item for item in seen if is_awake(item)))
            else:
                image = provider.image(params["image"])
                hashed = hash_of(self.module.shape(options), image, params["port"], self.module.OPTIONS)
                form = Blueprint(image, hashed, params["ledger"], params["revision"], options, params["port"])
                _same_form(self, seen, form, params)
                missing = [slot for slot in range(1, params["size"] + 1) if slot not in {item.slot for item in seen}]
                pools = provider.pools(params["fleet"], params["port"], params["balancers"]) if missing else ()
                acts = Acts(
                    create=placed(self, missing, seen, pools, params, form),
                    start=tuple(item for item in seen if item.slot <= params["size"] and not is_awake(item)),
                    destroy=tuple(item for item in seen if item.slot > params["size"]),
                )
                _refuse_leased(acts)
                if acts.create:
                    provider.preflight(acts.create, form)
                if not check_mode and acts.create:
                    provider.create(acts.create, form)
                if not check_mode and acts.start:
                    provider.start(acts.start, form)
            _refuse_leased(acts)
            if not check_mode:
                provider.stop(acts.stop, params["stop_timeout"], refuse_leased)
                provider.destroy(acts.destroy, params["stop_timeout"], refuse_leased)
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

    def info(self, params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
        """PROVIDER_instances_info: the fleet's instances as they are; an empty list where there are none."""
        with self.plainly():
            seen = self.module.connect(self.options(params, self.connection)).observe(params["fleet"])
        wanted = params["release"]
        return {"changed": False, "instances": [to_dict(item) for item in seen if wanted is None or item.release == wanted]}

    def image_info(self, params: Mapping[str, Any], check_mode: bool, say: Say) -> Dict[str, Any]:
        """PROVIDER_image_info: what a reference means now, and where that image is."""
        with self.plainly():
            provider = self.module.connect(self.options(params, (*self.connection, *self.image)))
            image = provider.image(params["image"])
            return {"changed": False, "image": to_dict(image), "present": list(provider.present(image))}

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Errors in the words of these modules, whose options stand for themselves and not within fleet_PROVIDER."""
        prefix = f"fleet_{self.name}."
        try:
            yield
        except InvalidError as error:
            raise InvalidError([line.replace(prefix, "") for line in error.mistakes]) from error
        except FleetError as error:
            raise type(error)(*(text.replace(prefix, "") for text in (error.what, error.cause, error.remedy))) from error


def _refuse_leased(acts: Acts) -> None:
    for item in (*acts.stop, *acts.destroy):
        refuse_leased(item)


def _refuse_unknown(observed: Iterable[Instance], params: Mapping[str, Any]) -> None:
    """Without a ledger nobody knows the name and the address of what its host does not show: another would get them."""
    for item in observed:
        if item.state == "unknown" and (params["state"] == "present" or item.release in (params["release"], 0)):
            raise UnreachableError(f"instance {item.name or item.number} on {item.host}", item.note, "Then run again")


def is_awake(instance: Instance) -> bool:
    return instance.state in ("running", "restarting")


def hash_of(shape: Mapping[str, Any], image: Image, port: int, options: Mapping[str, Any]) -> str:
    """A hash of what shapes an instance: 16 hex digits. options are the provider's specs.

    A hash of a weak secret would give it away, and without a ledger there is no key. So of secrets only the names count, and where
    something else may be one, the hash takes long (0.1 s), for whoever tries all that it could be.
    """
    form = replaced(shape, {"options": options}, lambda item: "given", ("no_log",))
    text = json.dumps([form, image.digest, port], sort_keys=True).encode("utf-8")
    if leaves(shape, {"options": options}, ("private",)):
        return hashlib.pbkdf2_hmac("sha256", text, b"phoenix.fleet", 200_000, 8).hex()
    return hashlib.sha256(text).hexdigest()[:16]


def placed(
    face: Face, slots: Sequence[int], seen: Sequence[Instance], pools: Sequence[Pool], params: Mapping[str, Any], form: Blueprint,
) -> Tuple[Instance, ...]:
    """New instances for `slots`, each in the pool with the fewest, at its lowest free address. Raises RefusedError where a pool is full."""
    load = {pool.host: sum(item.host == pool.host for item in seen) for pool in pools}
    shared: Dict[str, Iterator[Tuple[str, int]]] = {}
    free = {pool.host: shared.setdefault(pool.realm or pool.host, places(pool)) for pool in pools}
    numbers = fresh(pools)
    planned: List[Instance] = []
    if slots and not pools:
        raise RefusedError(f"fleet {params['fleet']}", f"no {face.place} has room for an instance", face.room)
    for slot in slots:
        host = min(load, key=lambda name: load[name])  # the first of several: a dictionary keeps its order
        address, port = next(free[host], ("", 0))
        if not port:
            raise RefusedError(f"{face.place} {host}", "no address is free there", face.room)
        number = next(numbers, -1)
        if number < 0:
            first, last = pools[0].ids
            raise RefusedError(f"{face.place} {host}", f"no number is left from {first} to {last}", "Widen the provider's range of ids")
        load[host] += 1
        fleet, release = params["fleet"], params["release"]
        name = f"{fleet}-r{release}-{slot}"
        planned.append(Instance(name, host, fleet, release, slot, form.image.digest, address, port, form.revision, number=number))
    return tuple(planned)


def fresh(pools: Sequence[Pool]) -> Iterator[int]:
    """Numbers above all that are in use, zeros where instances need none. Without a ledger nobody knows which were in use before."""
    first, last = pools[0].ids if pools else (0, 0)
    used = [int(key[1:]) for pool in pools for key in pool.taken if key.startswith("#")]
    return iter(range(max([first, *(number + 1 for number in used)]), last + 1)) if first else repeat(0)


def places(pool: Pool) -> Iterator[Tuple[str, int]]:
    """The free places of a pool as address and port, the lowest first."""
    taken = set(pool.taken)
    if pool.kind == "dynamic":
        return repeat(("", pool.ports[0]))
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


def _check(face: Face, params: Mapping[str, Any]) -> None:
    found = []
    if not re.match(r"^[a-z][a-z0-9-]{0,39}$", params["fleet"]):
        found.append(f"fleet: {params['fleet']!r} is not a name; write up to 40 lower-case letters, digits and dashes, a letter first")
    if params["state"] == "present":
        found += [f"{key}: missing, although state is present" for key in ("image", "port") if not params[key]]
    for key, low, high in (("release", 1, 10 ** 9), ("size", 0, 1000), ("port", 1, 65535), ("stop_timeout", 0, 3600)):
        if params[key] is not None and not low <= params[key] <= high:
            found.append(f"{key}: {params[key]} is not a number from {low} to {high}")
    found += [f"{key}: a placeholder of a masked definition; give the value" for key, item in params.items() if MASK in str(item)]
    found += face.module.mistakes(face.options(params), "")
    if found:
        raise InvalidError(found)


def _ours(face: Face, seen: Sequence[Instance], params: Mapping[str, Any]) -> None:
    names = [item.name for item in seen]
    for item in seen:
        if names.count(item.name) > 1:
            raise RefusedError(
                face.words(item), f"{names.count(item.name)} bear its marker, of an earlier version, and nobody knows which is the copy",
                "Remove the marker from the copy, in its description, or the copy",
            )
        ledger = item.marker.get("phoenix.fleet.ledger", "")
        if ledger != params["ledger"]:
            raise RefusedError(
                face.words(item),
                f"it belongs to ledger {ledger or '(none)'}, not {params['ledger'] or '(none)'}",
                "Give that ledger's id if it is yours, or take another release",
            )


def _same_form(face: Face, seen: Sequence[Instance], form: Blueprint, params: Mapping[str, Any]) -> None:
    """A running instance is never changed: with another image or setting it has to be another release."""
    for item in seen:
        if item.slot <= params["size"] and item.marker.get("phoenix.fleet.hash") != form.hash:
            raise RefusedError(
                face.words(item), f"it was made from another image or with other options ({item.image})",
                f"Nothing that exists is changed: make release {params['release'] + 1}, then remove release {params['release']}",
            )
