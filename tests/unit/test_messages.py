# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every message that the collection can fail with says what, why and what to do, and no text of it does harm to who follows it.

The messages are read out of the source: each construction of an error, with every text that its parts may come to be. What is known only
at run time stands as … in them.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPEN = "…"

PARTS = ("what", "cause", "remedy")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Message:
    """One construction of an error; each part with all that it may be, none where it is left out."""

    place: str
    kind: str
    parts: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        return self.place


class Source:
    """One module, and what its names may stand for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.around = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def function_of(self, node: ast.AST) -> ast.AST:
        while node in self.around and not isinstance(node, Function):
            node = self.around[node]
        return node

    def functions(self, name: str) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function) and node.name == name]

    def assigned(self, name: str, scope: ast.AST) -> list[ast.expr]:
        """What is assigned to a name in a function, or else in the module."""
        for body in (scope, self.tree):
            found = [value for node in ast.walk(body) for target, value in _assignments(node) if target == name]
            if found or any(argument.arg == name for node in ast.walk(body) if isinstance(node, ast.arguments) for argument in node.args):
                return found
        return []

    def texts(self, node: ast.expr, depth: int = 0) -> tuple[str, ...]:
        """Every text that an expression may come to be."""
        if isinstance(node, ast.Constant):
            return (str(node.value),)
        if isinstance(node, ast.JoinedStr):
            pieces = [self._inserted(part) if isinstance(part, ast.FormattedValue) else self.texts(part) for part in node.values]
            return tuple("".join(choice) for choice in itertools.islice(itertools.product(*pieces), 50))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return tuple(left + right for left in self.texts(node.left, depth) for right in self.texts(node.right, depth))
        if isinstance(node, ast.IfExp):
            return self.texts(node.body, depth) + self.texts(node.orelse, depth)
        if isinstance(node, ast.Name) and depth < 3:
            values = self.assigned(node.id, self.function_of(node))
            return tuple(text for value in values for text in self.texts(value, depth + 1)) or (OPEN,)
        return (OPEN,)

    def _inserted(self, part: ast.FormattedValue) -> tuple[str, ...]:
        """What stands in braces is known where it is one of two texts."""
        return self.texts(part.value) if isinstance(part.value, ast.IfExp) else (OPEN,)

    def returned(self, call: ast.expr) -> list[list[ast.expr]]:
        """The tuples that a function of this module returns."""
        name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        answers = [node.value for function in self.functions(name) for node in ast.walk(function) if isinstance(node, ast.Return)]
        return [answer.elts for answer in answers if isinstance(answer, ast.Tuple)]


UNKNOWN = ast.Call(ast.Name("?"), [], [])


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [UNKNOWN] * len(target.elts)
                yield from ((name.id, value) for name, value in zip(target.elts, values, strict=True) if isinstance(name, ast.Name))
    elif isinstance(node, ast.AugAssign | ast.For) and isinstance(node.target, ast.Name):
        yield node.target.id, UNKNOWN


def _called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


@cache
def sources() -> tuple[Source, ...]:
    return tuple(Source(path) for path in sorted((ROOT / "plugins").rglob("*.py")))


@cache
def kinds() -> dict[str, str]:
    """Every class of errors that is a FleetError, by what it derives from."""
    classes = {node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
               for source in sources() for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}
    found = {"FleetError": ""}
    while more := {name: bases[0] for name, bases in classes.items() if name not in found and bases and bases[0] in found}:
        found.update(more)
    return found


@cache
def messages() -> tuple[Message, ...]:
    calls = [(source, node) for source in sources() for node in ast.walk(source.tree) if _called(node) in kinds()]
    return tuple(message for source, node in calls for message in _read(source, node))


def _read(source: Source, call: ast.AST) -> Iterator[Message]:
    assert isinstance(call, ast.Call)
    kind = _called(call)
    place = f"{source.path.relative_to(ROOT)}:{call.lineno}"
    if kind == "InvalidError":
        listed = call.args[0]
        lines = listed.elts if isinstance(listed, ast.List) else []
        yield from (Message(place, kind, {"line": source.texts(line)}) for line in lines)
        return
    last = call.args[-1]
    endings = source.returned(last.value) if isinstance(last, ast.Starred) else [[]]
    for ending in endings or [[]]:
        given = [*(argument for argument in call.args if not isinstance(argument, ast.Starred)), *ending]
        parts = {part: source.texts(value) for part, value in zip(PARTS, given, strict=False)}
        parts.update({keyword.arg: source.texts(keyword.value) for keyword in call.keywords if keyword.arg})
        yield Message(place, kind, parts)


def test_the_messages_are_found() -> None:
    """Or else the others prove nothing: as many as there are words of it in the source, and their texts, too."""
    written = sum(len(re.findall(rf"\braise (?:{'|'.join(kinds())})\(", source.path.read_text())) for source in sources())
    assert len(messages()) > 0.9 * written > 150
    known = [message for message in messages() if any(text.strip(OPEN) for text in message.parts.get("cause", ()))]
    assert len(known) > 0.6 * len(messages())


def test_no_message_says_nothing() -> None:
    silent = [
        f"{message}: {part}" for message in messages() if message.kind != "InvalidError"
        for part in PARTS if not all(text.strip() for text in message.parts.get(part, ("",)))
    ]
    assert not silent, "\n".join(silent)


def test_a_line_about_the_input_names_what_it_is_about_and_what_to_do() -> None:
    """`what: why; remedy`, as all lines of a definition's errors are."""
    lines = [f"{message}: {text}" for message in messages() for text in message.parts.get("line", ())]
    whole = rf"[^:]+:[0-9]+: ({OPEN}|({OPEN}|\S+( \S+){{0,3}}:) ({OPEN}|.+; .+))"
    wrong = [line for line in lines if not re.fullmatch(whole, line)]
    assert lines and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("rule", "pattern"), [
    ("no space at an end, and no two in a row", r"^ | $|(?<! ) {2,3}(?! )"),
    ("no exclamation, no apology, no plea", r"!(?!r)|\b(please|sorry|oops|unfortunately)\b"),
    ("American spelling", r"\b(behaviour|colour|licence|honour|initialis|organis|recognis|normalis|authoris|cancelled|centre)\w*"),
    ("one sentence mark at an end", r"[.;:,]{2,}$"),
])
def test_style(rule: str, pattern: str) -> None:
    found = [f"{message}: {text!r}" for message in messages() for texts in message.parts.values() for text in texts
             if re.search(pattern, text, re.IGNORECASE)]
    assert not found, f"{rule}:\n" + "\n".join(found)


def test_a_cause_is_a_clause_and_a_remedy_a_sentence() -> None:
    """`what: cause. Remedy`: a cause that ends with a full stop would have two."""
    texts = [(message, part, text) for message in messages() for part in ("cause", "remedy") for text in message.parts.get(part, ())]
    wrong = [f"{message}: {text!r}" for message, part, text in texts if part == "cause" and text.endswith(".")]
    wrong += [f"{message}: {text!r}" for message, part, text in texts if part == "remedy" and re.match(r"[a-z]", text)]
    assert not wrong, "\n".join(wrong)


HARMFUL = re.compile(
    r"docker (system|container|volume|network) prune|docker rm -\w*f|rm -\w*r\w*f|pkill|killall|virsh destroy|qm destroy"
    r"|chmod (-R )?777|setenforce 0|drop (table|database)|StrictHostKeyChecking[ =]no|git (reset --hard|clean)", re.IGNORECASE,
)
SHOWN = ("*.md", "docs/*.md", "roles/**/*.md", "roles/**/argument_specs.yml", "playbooks/**/*.*", "plugins/**/*.py")


def test_nobody_is_told_to_do_what_does_harm() -> None:
    """In messages, documentation and whatever else a user is shown. The lab's own container is removed by force to see it healed."""
    shown = [line for pattern in SHOWN for path in sorted(ROOT.glob(pattern)) for line in _lines(path)]
    wrong = [line for line in shown if HARMFUL.search(line) and "docker rm -f web-r1-1; " not in line]
    assert len(shown) > 10_000 and not wrong, "\n".join(wrong)


def _lines(path: Path) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in enumerate(path.read_text().splitlines(), 1)]
