# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""How the options of any provider are read: one reader per option, all mistakes at once. Pure.

A reader takes the value as it was written, which may be a string where a number or boolean is meant, as `-e` gives it, and returns it
converted, or raises Mistake.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

Reader = Callable[[Any], Any]


class Mistake(ValueError):
    """One thing that is wrong with one value: the words after its path, and the rest of the path where it lies deeper."""

    def __init__(self, words: str, deeper: str = "") -> None:
        super().__init__(words)
        self.deeper = deeper


class Several(Mistake):
    def __init__(self, mistakes_: List[Mistake]) -> None:
        super().__init__("several")
        self.mistakes = mistakes_


def read(
    options: Any, path: str, readers: Mapping[str, Reader], together: Callable[[Mapping[str, Any]], Iterable[Tuple[str, str]]],
) -> Tuple[Dict[str, Any], List[str]]:
    """Options settled (converted, unset ones left out), and a line for each mistake, beginning with the path of the value.

    together yields key and words for what is wrong between values that are right by themselves.
    """
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        return {}, [f"{path}: {options!r} is not a mapping of options"]
    settled: Dict[str, Any] = {}
    found: List[str] = []

    def at(*parts: str) -> str:
        return ".".join(part for part in (path, *parts) if part).replace(".[", "[")

    for key, value in options.items():
        if key not in readers:
            found.append(f"{at(str(key))}: {unknown(str(key), readers)}")
        elif value is not None and value != "":
            try:
                settled[str(key)] = readers[key](value)
            except Several as several:
                found += [f"{at(str(key), one.deeper)}: {one}" for one in several.mistakes]
            except Mistake as mistake:
                found.append(f"{at(str(key), mistake.deeper)}: {mistake}")
    found += [f"{at(key)}: {words}" for key, words in together(settled)]
    return settled, [" ".join(line.splitlines()) for line in found]


def unknown(key: str, known: Iterable[str]) -> str:
    """The words for a key that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1, 0.6)
    return f"there is no such option; did you mean {near[0]}?" if near else f"there is no such option; there are {', '.join(names)}"


# --- readers ------------------------------------------------------------------------------------------------------------

def collected(attempts: Iterable[Tuple[str, Callable[[], Any]]]) -> List[Any]:
    """The results of all readers, or all of their mistakes with the deeper path."""
    results, found = [], []
    for deeper, attempt in attempts:
        try:
            results.append(attempt())
        except Several as several:
            found += [Mistake(str(one), f"{deeper}.{one.deeper}") for one in several.mistakes]
        except Mistake as mistake:
            found.append(Mistake(str(mistake), f"{deeper}.{mistake.deeper}".rstrip(".")))
    if found:
        raise Several(found)
    return results


def pairs(value: Any, what: str, one: Callable[[Any, Any], Tuple[str, Any]]) -> Dict[str, Any]:
    """A mapping of `what`, each pair converted by `one`."""
    if not isinstance(value, Mapping):
        raise Mistake(f"this is not a mapping of {what}")
    return dict(collected((str(name), partial(one, name, item)) for name, item in value.items()))


def text(pattern: str, what: str, example: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not re.match(rf"^(?:{pattern})$", str(value)):
            # Somebody may have written the password of a URL.
            shown = re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", value) if isinstance(value, str) else value
            raise Mistake(f"{shown!r} is not {what}; write e.g. {example}")
        return str(value)

    return read


def choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise Mistake(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise Mistake(f"{value!r} is neither true nor false")
    return words[str(value).lower()]


_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bkmg]?)(?:i?b)?$")


def in_bytes(value: Any) -> int:
    """A size as people write it: `256m`, `1.5g`, or bytes."""
    match = _SIZE.match(str(value).lower())
    if isinstance(value, bool) or not match:
        raise Mistake(f"{value!r} is not a size; write e.g. 256m")
    return int(float(match.group(1)) * 1024 ** " kmg".index(match.group(2) if match.group(2) in tuple("kmg") else " "))


def size(least: str, whom: str) -> Reader:
    """A reader of sizes, in bytes, that are not below `least`, which `whom` needs."""

    def read(value: Any) -> int:
        number = in_bytes(value)
        if number < in_bytes(least):
            raise Mistake(f"{value!r} is less than the {least} that {whom} needs; write e.g. 256m")
        return number

    return read


def count(value: Any) -> int:
    if isinstance(value, bool) or not re.match(r"^[1-9]\d{0,5}$", str(value)):
        raise Mistake(f"{value!r} is not a number from 1 up")
    return int(value)


def fields(value: Any, readers: Mapping[str, Callable[[Any], Any]], what: str, needed: Iterable[str] = ()) -> Dict[str, Any]:
    def one(key: Any, item: Any) -> Tuple[str, Any]:
        if key not in readers:
            raise Mistake(unknown(str(key), readers))
        return str(key), readers[key](item)

    given = {key: item for key, item in value.items() if item is not None and item != ""} if isinstance(value, Mapping) else value
    settled = pairs(given, what, one)
    for key in needed:
        if key not in settled:
            raise Mistake(f"{key} is missing")
    return settled


def items(value: Any, read: Callable[[Any], Any]) -> List[Any]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return collected((f"[{index}]", partial(read, item)) for index, item in enumerate(items))


# --- addresses and keys of machines ---------------------------------------------------------------------------------------

AGENT = "agent"
WIDEST = 65536  # addresses between the first and the last of a list: each that is not in it counts as taken
Ends = Tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]


def addresses(value: Any) -> Any:
    """Addresses and ranges of them, as one text or a list, each `FIRST` or `FIRST-LAST`; or the word `agent`."""
    if value in (AGENT, [AGENT], (AGENT,)):
        return AGENT

    def one(item: Any) -> str:
        first, last = ends_of(item)
        return str(first) if first == last else f"{first}-{last}"

    return items([part.strip() for part in value.split(",")] if isinstance(value, str) else value, one)


def ends_of(item: Any) -> Ends:
    first, dash, last = str(item).partition("-")
    try:
        ends = ipaddress.IPv4Address(first.strip()), ipaddress.IPv4Address((last if dash else first).strip())
    except ValueError:
        raise Mistake(f"{item!r} is neither an IPv4 address nor a range; write e.g. 192.0.2.10-192.0.2.40, or agent") from None
    if ends[0] > ends[1]:
        raise Mistake(f"{item!r} is not a range from a lower to a higher address; write e.g. 192.0.2.10-192.0.2.40")
    return ends


def overlaps(ranges: Iterable[Ends]) -> Iterable[str]:
    """The words for ranges that cannot be taken together."""
    ends = sorted(ranges)
    for (first, last), (following, _last) in zip(ends, ends[1:]):
        if following <= last:
            yield f"{following} is in it twice; write every address once"
    if ends and int(ends[-1][1]) - int(ends[0][0]) >= WIDEST:
        yield f"from {ends[0][0]} to {ends[-1][1]} is too wide; take addresses of one network"


def gaps(ranges: Iterable[Ends]) -> List[str]:
    """The addresses between the first and the last of these ranges that are in none of them."""
    ends = sorted(ranges)
    between = zip(ends, ends[1:])
    return [str(ipaddress.IPv4Address(number)) for one, other in between for number in range(int(one[1]) + 1, int(other[0]))]


def ssh_keys(value: Any) -> List[str]:
    """Public keys, as a list or as the lines of a text."""
    key = text(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?", "a public key of ssh", "ssh-ed25519 AAAA... ops@example.org")
    return items([line.strip() for line in value.splitlines() if line.strip()] if isinstance(value, str) else value, key)
