# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The definition's checks: whether they are well written, what an answer is worth, and polling a whole set until all pass.

A check is a dictionary with one key: `http`, `tcp` or `command` (see the module `instance_checks`). Standard library only,
because this also runs on balancers. No answer, or one that cannot be read, is never a pass.
"""

from __future__ import annotations

import difflib
import heapq
import http.client
import json
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ._errors import DeadlineError, FleetError, InvalidError
from ._model import Instance, LastWords, from_dict
from ._providers.base import Provider
from ._secrets import for_ansible

STATUS = "200-399"
"""The statuses that pass where a check names none: those that HAProxy's own check takes."""

ATTEMPT = 5.0
"""Seconds that one answer may take. A service slower than that to say that it is well is not well."""

SHORTEST, LONGEST = 0.01, 0.25
"""Seconds between two attempts at one instance, doubling from the first to the second."""

WATCH = 1.0
"""Seconds between two looks at the provider: an instance that has exited fails at once instead of at the deadline."""

AGAIN = 5.0
"""Seconds after which the same is told once more to whoever watches."""

WORKERS = 32
SHOWN = 5
"""Instances whose failure is told in full; the others are named."""

BODY = 1 << 20
"""Bytes of an answer that are read. What stands behind them is not looked at."""

PATH = re.compile(r"/[A-Za-z0-9._~!&()*+,=:@/?%-]*")
"""A path and a query, without what a configuration of HAProxy reads as something else, since it becomes HAProxy's own check."""
HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KEYS = {"http": ("path", "status", "body", "headers", "host", "scheme"), "tcp": (), "command": ()}

CHECKS: Dict[str, Any] = {
    "checks": {
        "type": "list", "elements": "dict", "default": [{"tcp": {}}], "options": {
            "http": {"type": "dict", "options": {
                "path": {"type": "str", "default": "/"}, "status": {"type": "raw", "default": STATUS}, "body": {"type": "str"},
                "headers": {"type": "dict", "no_log": True}, "host": {"type": "str"},
                "scheme": {"type": "str", "default": "http", "choices": ["http", "https"]},
            }},
            "tcp": {"type": "dict"},
            "command": {"type": "list", "elements": "str", "private": True},
        },
    },
}
ARGUMENTS: Dict[str, Any] = {
    "instances": {"type": "list", "elements": "dict", "required": True},
    **for_ansible(CHECKS),
    "timeout": {"type": "int", "default": 60},
    "fleet": {"type": "str"},
    "provider": {"type": "str", "choices": ["docker", "proxmox", "libvirt"]},
    "options": {"type": "dict", "default": {}, "no_log": True},
    "lease": {"type": "dict", "default": {}},
}
"""The options of the module `instance_checks`."""


def carry_out(
    params: Mapping[str, Any], check_mode: bool, say: Callable[[str], None], provider: Optional[Provider] = None,
) -> Dict[str, Any]:
    """What the module and the action plugin both do. params as in ARGUMENTS; raises InvalidError, and as `run` does."""
    checks, instances = checks_of(params), instances_of(params)
    if check_mode:
        return {"changed": False}
    started = time.monotonic()
    outcomes = run(instances, checks, params["timeout"], provider, say)
    seconds = round(time.monotonic() - started, 3)
    for fleet in sorted({item.fleet for item in instances} if checks else ()):
        say(f"{fleet}  {sum(item.fleet == fleet for item in instances)} pass their checks  {seconds:.1f} s")
    return {
        "changed": False, "seconds": seconds,
        "instances": [{"name": item.instance.name, "attempts": item.attempts} for item in outcomes],
    }


def checks_of(params: Mapping[str, Any]) -> Tuple[Mapping[str, Any], ...]:
    """The parameter `checks` in normal form. Raises InvalidError with all its mistakes."""
    # An argument spec fills in None for every key that was not written.
    checks = [{key: value for key, value in check.items() if value is not None} for check in params["checks"]]
    # None at all: only what the provider knows of the instances is judged.
    found = mistakes(checks, "checks") if checks or not params.get("provider") else []
    if found:
        raise InvalidError(found)
    return normal(checks)


def instances_of(params: Mapping[str, Any]) -> Tuple[Instance, ...]:
    """The parameter `instances`. Raises InvalidError for each that cannot be asked."""
    blank = {"host": "", "fleet": params.get("fleet") or "", "release": 0, "slot": 0, "image": ""}
    found, made = [], []
    for number, item in enumerate(params["instances"]):
        try:
            made.append(from_dict(Instance, {**blank, **item, "address": str(item["address"]), "port": int(item["port"])}))
        except (KeyError, TypeError, ValueError):
            found.append(f"instances[{number}]: {shown(item)} cannot be asked; give name, address and port")
    if found:
        raise InvalidError(found)
    return tuple(made)


# What a well written check is

def mistakes(checks: Any, name: str = "fleet_checks") -> List[str]:
    """One line for each mistake in a list of checks, naming where it stands, the value and the remedy. Never raises."""
    if not isinstance(checks, (list, tuple)):
        return [f"{name}: {_form(checks)} is not a list; write for example [{{http: {{path: /health}}}}]"]
    if not checks:
        return [f"{name}: no check at all; leave it out for one TCP check"]
    return [line for number, check in enumerate(checks) for line in _mistakes(check, f"{name}[{number}]")]


def _form(value: Any) -> str:
    """A value as `shown`, but of what holds others, or was meant to, only its keys: a header's value may be a token."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(shown(key) for key in value) + "}"
    if isinstance(value, (list, tuple)) or isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return f"a {'text' if isinstance(value, str) else 'list'}"
    return shown(value)


def _mistakes(check: Any, where: str) -> List[str]:
    if not isinstance(check, Mapping) or len(check) != 1:
        return [f"{where}: {_form(check)} is not one check; write one of http: {{...}}, tcp: {{}} or command: [...]"]
    (kind, body), = check.items()
    if kind not in _KEYS:
        return [f"{where}: {shown(kind)} is not a kind of check; write http, tcp or command"]
    if kind == "command":
        if isinstance(body, (list, tuple)) and body and all(isinstance(item, (str, int)) and "\0" not in str(item) for item in body):
            return []
        return [f"{where}.command: this is not a command; write a list of words, such as [/usr/local/bin/probe, --quick]"]
    if body is not None and not isinstance(body, Mapping):
        return [f"{where}.{kind}: {_form(body)} is not a dictionary; write {kind}: {{}}"]
    found = []
    for key in sorted(str(key) for key in body or {}):
        if key not in _KEYS[kind]:
            near = difflib.get_close_matches(key, _KEYS[kind], 1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS[kind])}" if _KEYS[kind] else "write tcp: {}"
            found.append(f"{where}.{kind}.{shown(key)}: unknown; {remedy}")
    return found + (_http_mistakes(body or {}, f"{where}.http") if kind == "http" else [])


def _http_mistakes(body: Mapping[str, Any], where: str) -> List[str]:
    found = []
    body = {key: value for key, value in body.items() if value not in ("", None)}
    path, host = body.get("path", "/"), body.get("host", "localhost")
    if not isinstance(path, str) or not PATH.fullmatch(path):
        found.append(f"{where}.path: {_form(path)} is not a path; begin with / and percent-encode spaces, quotes and # within")
    if not isinstance(host, str) or not HOST.fullmatch(host):
        found.append(f"{where}.host: {_form(host)} is not a host name; write for example shop.example.org")
    if body.get("scheme", "http") not in ("http", "https"):
        found.append(f"{where}.scheme: {shown(body['scheme'])} is unknown; write http or https")
    if ranges(body.get("status", STATUS)) is None:
        found.append(f"{where}.status: {shown(body['status'])} is no status; write 200, [200, 204] or 200-399")
    text = body.get("body", "")
    if not isinstance(text, (str, int)) or isinstance(text, bool):
        found.append(f"{where}.body: {_form(text)} is not a text; write what the answer contains, or a regular expression between slashes")
    elif _expression(str(text)):
        try:
            re.compile(str(text)[1:-1])
        except (re.error, OverflowError, RecursionError) as error:
            found.append(f"{where}.body: {shown(text)} is not a regular expression ({error}); correct it, or leave the slashes out")
    return found + _header_mistakes(body.get("headers", {}), f"{where}.headers")


def _header_mistakes(headers: Any, where: str) -> List[str]:
    """A header's value may be a token, so it is never shown."""
    if not isinstance(headers, Mapping):
        return [f"{where}: not a dictionary; write for example {{X-Probe: phoenix}}"]
    found = []
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            found.append(f"{where}: {shown(name)} is not the name of a header; write letters, digits and -")
        elif not isinstance(value, (str, int)) or re.search(r"[^\t\x20-\x7e\xa0-\xff]", str(value)):
            found.append(f"{where}.{name}: its value is not a header's; write one line of text")
    return found


def normal(checks: Sequence[Mapping[str, Any]]) -> Tuple[Mapping[str, Any], ...]:
    """Well written checks in one form: every key of `http` present but empty ones, status as a text such as `200,300-302`."""
    made: List[Mapping[str, Any]] = []
    for check in checks:
        (kind, body), = check.items()
        if kind == "command":
            made.append({kind: [str(item) for item in body]})
        elif kind == "tcp":
            made.append({kind: {}})
        else:
            spans = ranges(body.get("status", STATUS) if body else STATUS) or ()
            full: Dict[str, Any] = {"path": "/", "scheme": "http"}
            full.update((key, value) for key, value in (body or {}).items() if value not in ("", None))
            full["status"] = ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)
            if "body" in full:
                full["body"] = str(full["body"])
            if "headers" in full:
                full["headers"] = {str(name): str(value) for name, value in full["headers"].items()}
            made.append({kind: full})
    return tuple(made)


def ranges(status: Any) -> Optional[Tuple[Tuple[int, int], ...]]:
    """The statuses of `200`, `[200, 204]`, `200-399` or `200,300-302` as pairs from the lowest to the highest; None for anything else."""
    parts = status if isinstance(status, (list, tuple)) else str(status).split(",")
    spans = []
    for part in parts:
        match = re.fullmatch(r"\s*([1-5][0-9]{2})\s*(?:-\s*([1-5][0-9]{2})\s*)?", str(part), re.ASCII)
        if isinstance(part, bool) or not match or int(match.group(2) or 599) < int(match.group(1)):
            return None
        spans.append((int(match.group(1)), int(match.group(2) or match.group(1))))
    return tuple(spans) or None


# What an answer is worth

def judge_http(check: Mapping[str, Any], status: int, body: str) -> str:
    """Why this answer does not pass; empty where it does."""
    if not any(low <= status <= high for low, high in ranges(check.get("status", STATUS)) or ()):
        return f"answered {status}, not {check.get('status', STATUS)}: {one_line(body)}".rstrip(": ")
    wanted = str(check.get("body", ""))
    held = re.search(wanted[1:-1], body) is not None if _expression(wanted) else wanted in body
    return "" if held else f"answered {status}, without {wanted!r} in: {one_line(body)}"


def judge_command(code: int, output: str) -> str:
    """Why a command that ended like this does not pass; empty where it does. A negative code is the signal that ended it."""
    if code == 0:
        return ""
    ended = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
    return f"{ended}: {one_line(output)}".rstrip(": ")


def judge_state(seen: Optional[Instance], restarts: int = 0) -> str:
    """Why an instance cannot pass any more, from what its provider says: gone, stopped, or restarted; empty where it still can."""
    if seen is None:
        return "it is gone"
    if seen.state not in ("created", "running"):
        return f"it is {seen.state}"
    return f"it was restarted {times(restarts)}" if restarts > 0 else ""


def title(check: Mapping[str, Any]) -> str:
    """A check in a few words: `http /health`, `tcp`, `command /usr/local/bin/probe`."""
    (kind, body), = check.items()
    return f"{kind} {body.get('path', '/')}" if kind == "http" else f"{kind} {body[0]}" if kind == "command" else str(kind)


# Asking

def attempt(check: Mapping[str, Any], instance: Instance, until: float) -> str:
    """Ask once, until the monotonic time `until` at most. Returns why it did not pass, or an empty text."""
    (kind, body), = check.items()
    try:
        if kind == "command":
            return _command(body, instance, until)
        if kind == "tcp":
            socket.create_connection((instance.address, instance.port), timeout=_left(until)).close()
            return ""
        return _http(body or {}, instance, until)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _words(error)


def _http(check: Mapping[str, Any], instance: Instance, until: float) -> str:
    connection = http.client.HTTPConnection(instance.address, instance.port, timeout=_left(until))
    try:
        connection.connect()
        if check.get("scheme") == "https":
            # An instance is asked by its address, which no certificate names: that it answers is judged, not who it is.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=_name(check.get("host") or instance.address))
        headers = {"User-Agent": "phoenix.fleet", "Connection": "close", "Accept-Encoding": "identity", **(check.get("headers") or {})}
        if check.get("host"):
            headers["Host"] = check["host"]
        connection.request("GET", check.get("path", "/"), headers=headers)
        answer = connection.getresponse()
        return judge_http(check, answer.status, _read(answer, connection.sock, until))
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse, sock: Optional[socket.socket], until: float) -> str:
    """The body, or the first part of it; a sender that drips is cut off at the deadline of the attempt."""
    data = b""
    while len(data) < BODY:
        if sock is not None and sock.fileno() >= 0:
            sock.settimeout(_left(until))
        elif time.monotonic() > until:
            raise socket.timeout("the answer did not end in time")
        part = answer.read1(65536)
        if not part:
            if answer.length:
                raise http.client.IncompleteRead(data, answer.length)
            break
        data += part
    return data.decode("utf-8", "replace")


def _command(words: Sequence[str], instance: Instance, until: float) -> str:
    environment = {
        **os.environ, "PHOENIX_ADDRESS": instance.address, "PHOENIX_PORT": str(instance.port), "PHOENIX_INSTANCE": instance.name,
    }
    # Output goes to a file and not a pipe: a grandchild that keeps a pipe open would hold us past the deadline.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            list(words), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )
        try:
            code = process.wait(_left(until))
            output.seek(0)
            return judge_command(code, output.read(BODY).decode("utf-8", "replace"))
        except subprocess.TimeoutExpired:
            return "did not end in time"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            process.wait()


# Polling a set

@dataclass
class Outcome:
    """What became of one instance: passed, or why not (which check, and the answer last seen).

    restarts is how often one that ran before had been restarted by then, None where that is not known.
    """

    instance: Instance
    restarts: Optional[int] = None
    passed: bool = False
    attempts: int = 0
    check: str = ""
    seen: str = "not asked yet"

    def told(self) -> str:
        return f"{self.check}: {self.seen}" if self.check else self.seen

    def restarted(self, words: LastWords) -> int:
        """How often since it was asked to run: what ran before may have had its accidents weeks ago, which condemn nobody now."""
        before = self.restarts if self.instance.state == "running" else 0
        return words.restarts - before if before is not None else 0


def run(
    instances: Sequence[Instance], checks: Sequence[Mapping[str, Any]], timeout: float,
    provider: Optional[Provider] = None, say: Callable[[str], None] = lambda line: None,
) -> Tuple[Outcome, ...]:
    """Ask all instances at once until each has passed all checks in a row.

    timeout is in seconds, for all together. A provider lets an instance that exited or was restarted fail at once, and adds its last
    words to the error. `say` gets a line when what is missing has changed, and now and then. Raises DeadlineError naming each
    instance that did not pass, the check, the answer last seen, and what the provider knows of it; and what the provider raises
    where it cannot say at the end that the instances which passed still run.
    """
    started = time.monotonic()
    before = _restarts(instances, provider) if provider is not None else {}
    outcomes = tuple(Outcome(item, restarts=before.get(item.name)) for item in instances)
    failed = _poll(outcomes, tuple(checks), started + timeout, provider, say) if outcomes else []
    if failed:
        raise _failure(outcomes, failed, provider, time.monotonic() - started)
    if provider is not None:
        _verify(outcomes, provider)
    return outcomes


def verify(instances: Sequence[Instance], provider: Provider) -> None:
    """Raises DeadlineError where the provider says that one does not run, or was restarted; and what the provider raises."""
    _verify([Outcome(item) for item in instances], provider)


def _verify(outcomes: Sequence[Outcome], provider: Provider) -> None:
    fallen = _fallen(outcomes, provider)
    if fallen:
        raise _failure(outcomes, fallen, provider, 0.0)


def _restarts(instances: Sequence[Instance], provider: Provider) -> Dict[str, int]:
    """How often those that ran before they were asked have been restarted in all their life, none where nobody knows."""
    ran = [item for item in instances if item.state == "running"]
    try:
        return {item.name: item.restarts for item in provider.last_words(list(_seen(ran, provider).values()), log=False)} if ran else {}
    except FleetError:
        return {}


def _poll(
    outcomes: Sequence[Outcome], checks: Sequence[Mapping[str, Any]], deadline: float,
    provider: Optional[Provider], say: Callable[[str], None],
) -> List[Outcome]:
    """Ask until all have passed, the deadline, or some cannot pass any more; returns those that did not pass, or cannot."""
    asked: queue.SimpleQueue[Optional[int]] = queue.SimpleQueue()
    answered: queue.SimpleQueue[Optional[int]] = queue.SimpleQueue()
    fallen: List[Outcome] = []
    over = threading.Event()

    def work() -> None:
        for number in iter(asked.get, None):
            _ask(outcomes[number], checks, deadline)
            answered.put(number)

    def watch(source: Provider) -> None:
        while not fallen and not over.wait(WATCH):
            try:
                fallen.extend(_fallen([item for item in outcomes if not item.passed], source))
            except FleetError:
                continue  # no answer condemns nobody; at the end it is asked again, and then an answer is needed
        answered.put(None)

    # Daemons, so that an answer that never ends cannot hold the process past the deadline.
    workers = min(WORKERS, len(outcomes))
    threads = [threading.Thread(target=work, daemon=True) for unused in range(workers)]
    if provider is not None:
        threads.append(threading.Thread(target=watch, args=(provider,), daemon=True))
    for thread in threads:
        thread.start()

    due = [(0.0, number) for number in range(len(outcomes))]
    pauses = [SHORTEST] * len(outcomes)
    missing = set(range(len(outcomes)))
    tell, told, again = time.monotonic() + WATCH, "", 0.0
    while missing and not fallen and time.monotonic() < deadline:
        now = time.monotonic()
        while due and due[0][0] <= now:
            asked.put(heapq.heappop(due)[1])
        if now >= tell:
            tell = now + WATCH
            line = _progress(outcomes, missing)
            if line != told or now >= again:
                told, again = line, now + AGAIN
                say(f"{line}  {deadline - now:.0f} s left")
        try:
            number = answered.get(timeout=max(0.001, min([deadline, tell] + [when for when, unused in due[:1]]) - now))
        except queue.Empty:
            continue
        if number is None:
            continue
        if outcomes[number].passed:
            missing.discard(number)
        else:
            heapq.heappush(due, (time.monotonic() + pauses[number], number))
            pauses[number] = min(LONGEST, pauses[number] * 2)
    over.set()
    for unused in range(workers):
        asked.put(None)
    return list(fallen) or [outcomes[number] for number in sorted(missing)]


def _ask(outcome: Outcome, checks: Sequence[Mapping[str, Any]], deadline: float) -> None:
    """All checks in a row; the first that does not pass ends the attempt."""
    outcome.attempts += 1
    for check in checks:
        if outcome.check != title(check):
            outcome.check, outcome.seen = title(check), "no answer in time"
        seen = attempt(check, outcome.instance, min(deadline, time.monotonic() + ATTEMPT))
        if seen:
            outcome.seen = seen
            return
    outcome.check = outcome.seen = ""
    outcome.passed = True


def _fallen(outcomes: Sequence[Outcome], provider: Provider) -> List[Outcome]:
    """Those that cannot pass any more, by what the provider says now. Raises what the provider raises."""
    seen = _seen([item.instance for item in outcomes], provider)
    words = {item.name: item for item in provider.last_words(list(seen.values()), log=False)}
    found = []
    for outcome in outcomes:
        told = words.get(outcome.instance.name)
        reason = judge_state(seen.get(outcome.instance.name), outcome.restarted(told) if told else 0)
        if reason:
            outcome.seen = f"{outcome.told()}; {reason}" if outcome.check else reason
            outcome.check = ""
            found.append(outcome)
    return found


def _seen(instances: Sequence[Instance], provider: Provider) -> Dict[str, Instance]:
    """The instances as the provider sees them now, by name. Planned ones have no id yet, and are known by name and release."""
    wanted = {item.name: item for item in instances}
    observed = [item for fleet in sorted({item.fleet for item in instances}) for item in provider.observe(fleet)]
    return {item.name: item for item in observed if item.name in wanted and _same(wanted[item.name], item)}


def _same(wanted: Instance, seen: Instance) -> bool:
    return wanted.id in ("", seen.id) and wanted.release in (0, seen.release)


def told_by(provider: Optional[Provider], instances: Sequence[Instance]) -> Dict[str, List[str]]:
    """The last words of instances as lines, by name; none where the provider has no answer, since another failure is being told."""
    if provider is None:
        return {}
    try:
        return {item.name: spoken(item) for item in provider.last_words(list(_seen(instances, provider).values()))}
    except FleetError:
        return {}


def _progress(outcomes: Sequence[Outcome], missing: Set[int]) -> str:
    first = outcomes[min(missing)]
    return f"{first.instance.fleet}  {len(outcomes) - len(missing)}/{len(outcomes)} pass; {first.instance.name} {first.told()}"


def _failure(outcomes: Sequence[Outcome], failed: Sequence[Outcome], provider: Optional[Provider], seconds: float) -> DeadlineError:
    told, rest = failed[:SHOWN], failed[SHOWN:]
    words = told_by(provider, [item.instance for item in told])
    lines = []
    for item in told:
        lines.append(f"  {item.instance.name} at {item.instance.address}:{item.instance.port}: {item.told()}")
        lines.extend(f"    {line}" for line in words.get(item.instance.name, ()))
    if rest:
        lines.append(f"  and {len(rest)} more: {', '.join(item.instance.name for item in rest)}")
    return DeadlineError(
        f"{len(failed)} of {len(outcomes)} instances did not pass their checks" + (f" in {seconds:.1f} s" if seconds else ""),
        "\n" + "\n".join(lines),
        "Correct the image or fleet_checks, or raise fleet_check_timeout where they only need longer.",
    )


def spoken(words: LastWords) -> List[str]:
    """The last words of an instance as lines: its state, exit code and restarts, then the end of its log."""
    state = words.state + (f" with exit code {words.exit_code}" if words.exit_code is not None and words.state != "running" else "")
    restarts = f", restarted {times(words.restarts)}" if words.restarts else ""
    end = "its log ends:" if words.log else "its log is empty"
    return [f"{state}{restarts}; {end}", *(f"| {one_line(line)}" for line in words.log[-10:])]


# Words

def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise socket.timeout("no time left")
    return left


def _expression(text: str) -> bool:
    return len(text) > 2 and text.startswith("/") and text.endswith("/")


def _name(host: str) -> str:
    return host if host.startswith("[") else host.split(":")[0] if host.count(":") == 1 else host


def _words(error: Exception) -> str:
    if isinstance(error, socket.timeout):
        return "no answer in time"
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """The beginning of a text on one line, without what would confuse a terminal."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[:1000]).split())
    return line if len(line) <= 200 else line[:199] + "…"


def shown(value: Any) -> str:
    """A value as it would be written in YAML, on one line and not too long."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value else json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return one_line(text) if len(text) <= 60 else one_line(text[:59]) + "…"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
