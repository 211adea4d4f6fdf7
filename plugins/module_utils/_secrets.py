# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What may hold a secret, and how nobody gets to see it. Pure.

Whether an option may is a property of the option, and stands in its spec, with all that is within it:

- `no_log`: it is a secret. The ledger keeps a keyed hash of it, and what is made anew gets the one of today.
- `private`: it may hold one, as an environment may. The ledger keeps it as it was, because a rollback needs it so.

Neither is in a result, a message or any output of Ansible.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, Mapping, Sequence, Set, Tuple

MASK = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
MARKS = ("no_log", "private")

LEAST = 6
"""Characters from which on a secret is looked for in messages. A shorter one would be found in every other word."""

_WITHIN = re.compile(r"(?:://[^:/@\s]*:|(?:password|passwd|secret|token|key)=)([^@&;\s]+)", re.IGNORECASE)
"""The password within a URL, and what a word such as `--token=...` gives."""

Spec = Mapping[str, Any]


def for_ansible(options: Mapping[str, Spec]) -> Dict[str, Dict[str, Any]]:
    """The options as Ansible knows them: what is private here is `no_log` there."""
    made: Dict[str, Dict[str, Any]] = {}
    for name, rule in options.items():
        made[name] = {key: for_ansible(item) if key == "options" else item for key, item in rule.items() if key != "private"}
        if rule.get("private"):
            made[name]["no_log"] = True
    return made


def replaced(value: Any, spec: Spec, by: Callable[[Any], Any], marks: Sequence[str] = MARKS) -> Any:
    """A copy of `value` with `by` applied to each leaf that has one of these marks by `spec`, and without what is unset."""
    if isinstance(value, Mapping):
        return {str(key): replaced(item, _part(spec, key), by, marks) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [replaced(item, spec, by, marks) for item in value]
    return by(value) if value is not None and _is_marked(spec, marks) else value


def _part(spec: Spec, key: str) -> Spec:
    """The spec of a part: what is within a secret is a secret."""
    return {**(spec.get("options") or {}).get(key, {}), **{mark: True for mark in MARKS if spec.get(mark)}}


def masked(value: Any, spec: Spec) -> Any:
    """A copy that may be seen by anybody: MASK in the place of each value that may be secret."""
    return replaced(value, spec, lambda item: MASK)


def hidden(value: Any, spec: Spec) -> Tuple[str, ...]:
    """What no message may hold of `value`, the longest first: each line that may be secret, and a password within it.

    What stands elsewhere in `value` as well, for anybody to see, is no secret.
    """
    found: Set[str] = set()
    for text in leaves(value, spec):
        found.update(part.strip() for part in (*text.splitlines(), *_WITHIN.findall(text)))
    seen = json.dumps(masked(value, spec), default=str) if found else ""
    parts = (part for part in found if len(part) >= LEAST and json.dumps(part)[1:-1] not in seen)
    return tuple(sorted(parts, key=lambda part: (-len(part), part)))


def leaves(value: Any, spec: Spec, marks: Sequence[str] = MARKS) -> List[str]:
    """The texts in `value` that have one of these marks."""
    if isinstance(value, Mapping):
        parts = ((item, _part(spec, key)) for key, item in value.items())
        # The rest may be ten thousand instances.
        return [text for item, part in parts if part.get("options") or _is_marked(part, MARKS) for text in leaves(item, part, marks)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in leaves(item, spec, marks)]
    return [str(value)] if value is not None and _is_marked(spec, marks) else []


def _is_marked(spec: Spec, marks: Sequence[str]) -> bool:
    return any(spec.get(mark) for mark in marks)


def veiled(text: str, parts: Sequence[str]) -> str:
    """A message without any of these parts (see `hidden`), nor the beginning of one that was cut short."""
    for part in parts:
        text = text.replace(part, "***")
        for length in range(len(part) - 1, LEAST - 1, -1) if "…" in text else ():
            text = text.replace(f"{part[:length]}…", "***…")
    return text


def shielded(module: Any, options: Mapping[str, Spec]) -> Tuple[Dict[str, Any], Callable[[str], str]]:
    """The parameters of an AnsibleModule as they are, and a veil for its messages; of the module itself Ansible sees masks.

    Ansible blots out every value of a `no_log` option wherever a result has it, the `1` of an environment in every number. That is
    for secrets proper; of what may be one, and need not, its place is masked.
    """
    params, spec = module.params, {"options": options}
    parts = hidden(params, spec)
    module.params = masked(params, spec)
    module.no_log_values = module.no_log_values & set(leaves(params, spec, ("no_log",)))
    return params, lambda text: veiled(text, parts)
