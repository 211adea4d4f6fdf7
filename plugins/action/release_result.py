# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin `release_result`: the last record, the lease given back, and how it ended: in words, for machines, as an exit code."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Mapping, Sequence

from ..module_utils import _arguments
from ..module_utils._errors import FleetError
from ..module_utils._model import Balancer, Definition, Plan, from_dict, to_dict
from ..plugin_utils import _story
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._ledger import Lease, Ledger


class ActionModule(FleetAction):
    ARGUMENTS = _arguments.RELEASE_RESULT

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        if not params["definition"]:
            return _never_begun(params["failure"])
        definition = from_dict(Definition, params["definition"])
        plan = _plan(params["plan"])
        after = _balancers(params["after"])
        began = float(params["lease"].get("monotonic") or time.monotonic())
        lines, message = _story.ending(
            definition, plan, _balancers(params["before"]), after, time.monotonic() - began,
            failure="; ".join(filter(None, (_story.reason(params["failure"]) if params["failure"] else "", self._close(params, plan)))),
            undoing=_story.reason(params["undoing"]) if params["undoing"] else "",
            folder=params["folder"],
            check=bool(self._task.check_mode),
        )
        for line in lines:
            self.say(f"{definition.name}  {line}")
        outcome = {"fleet": definition.name, "verb": plan.verb, "live": _story.serving(after), "planned": bool(plan.waves)}
        if message:
            return {"failed": True, "msg": message, **outcome}
        outcome.update(release=to_dict(plan.release) if plan.release else {}, message="; ".join(lines))
        return {"changed": False, **outcome, "ansible_stats": _stats(outcome)}

    def _close(self, params: Mapping[str, Any], plan: Plan) -> str:
        """Record that the plan is done, and give the lease back. What kept it from that; the next run closes what stays open."""
        if self._task.check_mode or not params["lease"].get("fence"):
            return ""
        lease = from_dict(Lease, params["lease"])
        ledger = Ledger(lease.url, lease.state_dir)
        try:
            # What failed was undone by a plan of its own, which took the place of the one that failed.
            if params["plan"].get("opened") and plan.closes and not params["undoing"]:
                ledger.record(lease, "done")
            ledger.give_back(lease)
        except FleetError as error:
            return str(error)
        return ""


def _never_begun(failure: Mapping[str, Any]) -> Result:
    """No lease was taken, so nothing can have been touched."""
    if failure:
        return {"failed": True, "msg": _story.reason(failure)}
    return {"failed": True, "msg": "The run began in the middle (--start-at-task), and did nothing. Run it from its beginning."}


def _stats(outcome: Mapping[str, Any]) -> Dict[str, Any]:
    """What workflows in AWX get to see: the registered result, under a name of its own.

    The next job has it as an extra variable, which outranks what that job registers: `release_result` would be the former job's there.
    """
    return {"data": {"phoenix_release": dict(outcome)}, "per_host": False, "aggregate": False}


def _plan(data: Mapping[str, Any]) -> Plan:
    if not data or "verb" not in data:
        return Plan("", 0, 0)
    # The waves were written for wave.yml; whether there were any is all that matters here.
    return from_dict(Plan, {**data, "waves": [[] for _wave in data["waves"]]})


def _balancers(results: Sequence[Mapping[str, Any]]) -> List[Balancer]:
    """The balancers out of a loop's results; one that gave no answer is told as unreachable, with what was said of it."""
    return [
        from_dict(Balancer, item["balancer"]) if item.get("balancer")
        else Balancer(str(item.get("item", "")), reachable=False, error=str(item.get("msg", "it gave no answer")))
        for item in results
    ]
