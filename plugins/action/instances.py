# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin of the module `instances`: the same work in the controller's process, under the fleet's lease."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, ContextManager, Dict, Mapping, Sequence

from ..module_utils import _instances
from ..module_utils._errors import FleetError, InvalidError
from ..module_utils._model import Instance, Registration, Step, from_dict, to_dict
from ..plugin_utils._action import FleetAction, Result
from ..plugin_utils._definition import read_again, revived
from ..plugin_utils._diagnostics import make_room
from ..plugin_utils._executor import Guard, guarded
from ..plugin_utils._ledger import Lease, Ledger
from ..plugin_utils._placement import addressed, reservations


class ActionModule(FleetAction):
    ARGUMENTS = _instances.ARGUMENTS
    QUOTES = True

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        leased = bool(params["lease"].get("fence")) and not self._task.check_mode
        if params["record"] and not params["lease"]:
            raise InvalidError([f"record: {params['record']} is written under a lease only; give the lease"])
        with guarded(params["lease"]) as guard:
            if leased and params["release"].get("number"):
                self._take_what_was_recorded(from_dict(Lease, params["lease"]), params, task_vars)
            permit = _permit(guard, from_dict(Lease, params["lease"]), params["receipts"]) if leased else None
            seal = None
            if permit and params["verb"] == "decommission":
                seal = _seal(params)
                # Before the record, after which there is no way back; and again for each, right before it is stopped.
                permit(*(from_dict(Instance, item) for item in (*params["standby"], *params["instances"])))
            if leased and params["record"]:
                lease = from_dict(Lease, params["lease"])
                Ledger(lease.url, lease.state_dir).record(lease, params["record"])
            if leased and params["folder"]:
                make_room(params["folder"])
            journal = _Journal(from_dict(Lease, params["lease"]), self.say) if leased else None
            work = partial(_instances.carry_out, journal=journal, permit=permit, seal=seal)
            result = self.on_host(work, params, task_vars)
            if leased:
                self._keep(from_dict(Lease, params["lease"]), params, result)
            if leased and params["verb"] == "decommission" and params["keep_images"] is not None:
                self._remove_images(from_dict(Lease, params["lease"]), params)
        if not self._task.diff:
            result.pop("diff", None)
        return result

    def _take_what_was_recorded(self, lease: Lease, params: Dict[str, Any], task_vars: Dict[str, Any]) -> None:
        """The instances of a release are made from what the ledger recorded of it, with the secrets of today."""
        history = Ledger(lease.url, lease.state_dir).history(lease.fleet)
        record = next((row.definition for row in history.releases if row.number == params["release"]["number"]), None)
        if record:
            former = revived(read_again(task_vars, self._templar), record)
            params.update(options=dict(former.options), port=former.port)

    def _keep(self, lease: Lease, params: Mapping[str, Any], result: Result) -> None:
        """What the ledger has to know of instances that have told their addresses."""
        wave = params["wave"]
        if wave and not all(item["address"] for item in params["instances"]):
            ledger = Ledger(lease.url, lease.state_dir)
            made = [from_dict(Instance, item) for item in result["instances"]]
            provider = _instances.connect(params["provider"], params["options"])
            pools = {pool.host: pool for pool in provider.pools(params["fleet"], params["port"], params["balancers"])}
            ledger.reserve(lease, {key: item.name for item in made for key in reservations(item, pools)})
            steps = addressed([from_dict(Step, step) for step in wave.values()], made, ledger.history(lease.fleet).reserved)
            result["wave"] = {kind: {**step, **to_dict(now)} for (kind, step), now in zip(wave.items(), steps, strict=True)}

    def _remove_images(self, lease: Lease, params: Mapping[str, Any]) -> None:
        """What only releases out of retention used. By now their successor is live: what cannot be removed is told, and fails nothing."""
        spent = Ledger(lease.url, lease.state_dir).spent_images(lease, params["keep_images"])
        try:
            lines = _instances.connect(params["provider"], params["options"]).remove_images(spent) if spent else ()
        except FleetError as error:
            lines = (f"images of former releases stay: {' '.join(str(error).split())}",)
        for line in lines:
            self.say(f"{lease.fleet}  {line}")


def _permit(guard: Guard, lease: Lease, results: Sequence[Mapping[str, Any]]) -> Callable[..., None]:
    """What the ledger says of instances, asked right before they are stopped: that the fleet is still ours, and no balancer serves them.

    results are those of the balancers' tasks of this very run: their receipts count where a full disk could not keep them.
    """
    ledger = Ledger(lease.url, lease.state_dir)
    fresh = [from_dict(Registration, item) for result in results for item in result.get("registrations") or ()]
    own = [item for item in fresh if item.receipt is not None and item.receipt.fence == lease.fence]

    def permit(*instances: Instance) -> None:
        guard.check()
        ledger.permit(lease, instances, own)

    return permit


def _seal(params: Mapping[str, Any]) -> Callable[[Mapping[str, str]], None]:
    """Keeps the seals of a fleet's standby in its ledger."""
    lease = from_dict(Lease, params["lease"])
    return partial(Ledger(lease.url, lease.state_dir).seal, lease, [from_dict(Instance, item) for item in params["standby"]])


class _Journal:
    """What a cluster was told to do, in the fleet's ledger."""

    def __init__(self, lease: Lease, say: Callable[[str], None]) -> None:
        self._ledger = Ledger(lease.url, lease.state_dir)
        self._lease = lease
        self._say = say

    def began(self, task: str, doing: str) -> None:
        self._ledger.began(self._lease, task, doing)

    def under_way(self) -> Mapping[str, str]:
        return self._ledger.under_way(self._lease.fleet)

    def turn(self, name: str, width: int, seconds: float) -> ContextManager[None]:
        return self._ledger.turn(self._lease, name, width, seconds, self.say)

    def say(self, text: str) -> None:
        self._say(f"{self._lease.fleet}  {text}")
