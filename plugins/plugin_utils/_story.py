# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Every word that a run prints about itself. Pure: from plans, worlds and failures to lines; each begins with the fleet's name."""

from __future__ import annotations

from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..module_utils._model import Balancer, Definition, History, Instance, Plan, Release, Step

Lines = List[str]


def short(digest: str) -> str:
    """The first seven characters that tell one digest from another: `sha256:9f3c1e2…` is 9f3c1e2."""
    return digest.rpartition(":")[2][:7]


def plan_lines(definition: Definition, history: History, plan: Plan) -> Lines:
    """What a plan will do and why, in two or three lines."""
    releases = {item.number: item for item in history.releases}
    if plan.release is not None:
        releases[plan.release.number] = plan.release
    if not plan.waves:
        live = releases.get(plan.target or history.live)
        first = f"{_title(live)} is live as asked for: nothing to do" if live else "there is nothing to do"
        return [first, *(f"why: {item}" for item in plan.reasons)]
    source, target = releases.get(plan.source), releases.get(plan.target)
    if plan.outcome == "retired":
        head = f"{_title(source)} is taken away for good, with all that is left of the fleet"
    elif plan.outcome == "live":
        arrow = f"{_title(source)} -> {_title(target)}" if source and source != target else _title(target)
        head = f"{arrow} ({short(target.digest)})" if target else arrow
    elif any(step.kind == "destroy" for wave in plan.waves for step in wave):
        head = f"{_title(target)} is taken away" + (f", {_title(source)} stays" if source else "")
    else:
        head = f"{_title(target)} gets no traffic" + ("" if source else ", its instances stay to be looked at")
    return [head] + ([f"why: {'; '.join(plan.reasons)}"] if plan.reasons else [])


def wave_lines(waves: Iterable[Sequence[Step]]) -> Lines:
    """A plan's waves, a line for each step: what --check and --diff show."""
    lines = []
    for number, wave in enumerate(waves, 1):
        lines.append(f"wave {number}")
        lines += [f"  {step.kind:<10} {_objects(step)}" for step in wave]
    return lines


def _objects(step: Step) -> str:
    if step.instances:
        return ", ".join(_named(item) for item in step.instances)
    if step.servers:
        return ", ".join(f"{item.name}={item.weight}" + ("" if item.state == "ready" else f" {item.state}") for item in step.servers)
    return f"r{step.release}" if step.release else "no server"


def _named(instance: Instance) -> str:
    return f"{instance.name} at {instance.address}:{instance.port}" if instance.address else instance.name


def _title(release: Optional[Release]) -> str:
    if release is None:
        return "nothing"
    return f"r{release.number} {release.image} x{release.size}"


def reason(failure: Mapping[str, Any]) -> str:
    """Ansible's failed result as one sentence: the message, or those of the items that failed, each with its host."""
    result = failure.get("result") or {}
    failed = [item for item in result.get("results") or [] if item.get("failed")]
    if failed:
        # Checks from the controller are a loop over one empty name.
        named = [(item["item"] if isinstance(item.get("item"), str) else "", _message(item)) for item in failed]
        texts = [f"{host}: {text}" if host else text for host, text in named]
        return "; ".join(dict.fromkeys(texts))
    return _message(result)


def cause(failure: Mapping[str, Any]) -> str:
    """The same in one line: what the ledger keeps of it, without logs."""
    told = [line.strip() for line in reason(failure).splitlines() if line.strip() and "| " not in line[:12]]
    return " ".join(told[:2]).rstrip(" .:")[:300]


def _message(result: Mapping[str, Any]) -> str:
    return str(result.get("msg") or "").strip() or "it gave no reason"


def ending(
    definition: Definition, plan: Plan, before: Sequence[Balancer], after: Sequence[Balancer], seconds: float,
    failure: str, undoing: str, folder: str, check: bool,
) -> Tuple[Lines, str]:
    """The last lines of a run, and the one message that it fails with (empty: it succeeded).

    before and after are the balancers as seen at the start and at the end; seconds is the run's time.
    """
    live = serving(after)
    if failure:
        return _failed(definition, plan, after, live, failure, undoing, folder)
    if check:
        return ["nothing was touched: this was --check"], ""
    lost = [item for item in after if not item.reachable]
    if lost or not plan.closes or (plan.outcome == "live" and plan.target and live != plan.target):
        wrong = ", ".join(f"{item.host}: {item.error}" for item in lost) or f"the balancers say that {_number(live)} is live"
        serves = f". {_number(live)} serves where a balancer answers" if lost else ""
        return [], f"fleet {definition.name} is degraded: {wrong}{serves}. Bring it right and run the same again: that finishes it"
    if plan.again:
        return [], f"fleet {definition.name}: a former run was put right, and the world changed meanwhile. Run the same again"
    if plan.outcome == "retired":
        return [f"the fleet is gone, its history stays, {seconds:.1f} s"], ""
    lines = [f"{_number(live)} is live{_requests(before, after)}, {seconds:.1f} s"]
    if plan.waves and plan.source and plan.source != plan.target and definition.keep and plan.outcome == "live":
        lines.append(f"back: {way_back(definition.name, live, [plan.source])}")
    return lines, ""


def way_back(fleet: str, live: int, former: Sequence[int]) -> str:
    """The command that makes the latest of `former` live again. Where that is later than what is live, it was rolled back, and a plain
    rollback goes nowhere (see _rollback in _planner.py).
    """
    latest = max(former)
    return f"ansible-playbook phoenix.fleet.rollback -l {fleet}" + (f" -e rollback_to={latest}" if latest > live else "")


def _failed(
    definition: Definition, plan: Plan, after: Sequence[Balancer], live: int, failure: str, undoing: str, folder: str,
) -> Tuple[Lines, str]:
    lines = failure.splitlines()
    # A headline over a list tells nothing without the first of what it lists.
    cause = " ".join(line.strip() for line in lines[:2 if lines[0].endswith(":") else 1]).rstrip(" .:")
    if plan.target and plan.target != live:
        message = [f"r{plan.target} of fleet {definition.name} did not go live: {cause}"]
    elif plan.waves:
        message = [f"fleet {definition.name}, {plan.verb}: {cause}"]
    else:
        message = [cause, "nothing was changed" if plan.closes else "the next run goes on from here"]
    if live:
        up = {item.host: sum(server.up and server.weight > 0 for server in item.servers) for item in after if item.reachable}
        message.append(f"r{live} serves ({', '.join(f'{count} up on {host}' for host, count in up.items())})")
    elif after:
        message.append("nothing is live")
    if undoing:
        message.append(f"undoing failed as well ({undoing.splitlines()[0].rstrip('.')}): the next run finishes it")
    if folder:
        message.append(f"last words of its instances: {folder}")
    # The logs were shown where they were read, and stand in the folder: here only who failed, and how.
    return [line.strip() for line in lines[1:] if "| " not in line[:12] and not line.endswith("its log ends:")], ". ".join(message)


def serving(balancers: Sequence[Balancer]) -> int:
    """The release whose head every reachable balancer shows, 0 where none is live or they disagree."""
    numbers = {item.head.live if item.head else 0 for item in balancers if item.reachable}
    return numbers.pop() if len(numbers) == 1 else 0


def _number(live: int) -> str:
    return f"r{live}" if live else "nothing"


def _requests(before: Sequence[Balancer], after: Sequence[Balancer]) -> str:
    """How many requests passed meanwhile and how many failed, empty where a counter began anew (another process)."""
    former = {item.host: item for item in before}
    pairs = [(former.get(item.host), item) for item in after]
    if not pairs or any(old is None or old.pid != new.pid or not new.pid for old, new in pairs):
        return ""
    total = sum(new.requests - old.requests for old, new in pairs if old)
    failed = sum(new.failures - old.failures for old, new in pairs if old)
    return f", {failed:,} of {total:,} requests failed" if total else ""
