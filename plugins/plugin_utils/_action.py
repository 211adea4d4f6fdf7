# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""What all action plugins of the collection share: arguments, errors as clear results, where the work is done, progress."""

from __future__ import annotations

import atexit
import gc
import os
from functools import cached_property
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader, filter_loader, shell_loader, test_loader
from ansible.utils.display import Display

from ..module_utils import _run
from ..module_utils._errors import FleetError, InvalidError
from ..module_utils._model import Definition, to_dict
from ..module_utils._providers import docker as _docker  # noqa: F401
from ..module_utils._secrets import MASK, hidden, veiled
from ._definition import definition_of, ledger_url, read_again, secret_parts
from ._ledger import Ledger

# Ansible forks for every task. What is loaded by now, here in its own process, every fork has: the docker SDK (0.06 s), the plugins that
# each task would load and read the documentation of anew, and the filters and tests of templates, which the first of each kind loads all
# (2 ms). Kept out of garbage collection it is neither walked nor copied by the forks, nor at the end (measured: 0.4 s of CPU in a release).
for _loader, _name in ((connection_loader, "ssh"), (connection_loader, "local"), (shell_loader, "sh")):
    _loader.get(_name, class_only=True)
for _loader, _name in ((filter_loader, "default"), (test_loader, "defined")):
    _loader.get(_name)
gc.freeze()
gc.set_threshold(20_000, 50, 50)
atexit.register(gc.freeze)
_run.folder = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]  # made when it is read, before the forks

_WORDS = ("msg", "mistakes", "last_words")
"""What in a result is words, in which an engine, a service or a probe may have quoted a secret."""

Result = Dict[str, Any]
Work = Callable[[Mapping[str, Any], bool, Callable[[str], None]], Result]


class FleetAction(ActionBase):
    """Validates the arguments, calls `act`, and turns a FleetError into `failed` with its words as `msg`, without a traceback.

    A subclass sets ARGUMENTS (the argument spec of the module of its name) and implements `act(params, task_vars)`,
    which returns the result. In check mode `self._task.check_mode` is set; `diff` is only returned where `self._task.diff` is.
    """

    ARGUMENTS: Dict[str, Any] = {}
    QUOTES = False  # whether its messages quote instances, whose environment may be an earlier one
    _params: Dict[str, Any] = {}
    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Result:
        super().run(tmp, task_vars)
        checked = ArgumentSpecValidator(self.ARGUMENTS).validate(dict(self._task.args))
        if checked.error_messages:
            return {"failed": True, "msg": "; ".join(checked.error_messages)}
        self._adopt_environment()
        self._params = checked.validated_parameters
        try:
            result = self.act(self._unmasked(self._params, task_vars or {}), task_vars or {})
        except InvalidError as error:
            result = {"failed": True, "msg": str(error), "mistakes": list(error.mistakes)}
        except FleetError as error:
            result = {"failed": True, "msg": str(error)}
        except Exception as error:
            if not self._hidden or self._veiled(str(error)) == str(error):
                raise
            result = {"failed": True, "msg": f"{type(error).__name__}: {error}"}
        return {key: self._veiled(item) if key in _WORDS else item for key, item in result.items()}

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        raise NotImplementedError

    def say(self, text: str) -> None:
        """One line of progress, seen at once in a terminal and in AWX."""
        Display().display(f"  {self._veiled(text)}")

    def on_host(self, work: Work, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        """Do `work(params, check_mode, say)` where the task's connection leads: in this process where that is here, else as a module.

        The module of the plugin's name must do the same work (a local module costs 0.2 s, this 15 ms). Raises
        AnsibleConnectionFailure never: an unreachable host is a result with `failed` and `reachable: false`, because
        Ansible's own "unreachable" takes the fleet out of the play and no rescue sees it.
        """
        if self.is_here():
            return work(params, bool(self._task.check_mode), self.say)
        try:
            result: Result = self._execute_module(module_args=dict(self._task.args), task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            host = self._task.delegate_to or task_vars.get("inventory_hostname", "the host")
            return {"failed": True, "reachable": False, "msg": f"{host} cannot be reached: {error}. Nothing more was done there."}
        for line in result.pop("said", ()):
            self.say(line)
        return result

    def is_here(self) -> bool:
        """True where the task's host is this one and no other user is asked for.

        What is done under a lease and is not delegated is done here, whatever the play's connection: a fleet's host is only a name.
        """
        if self._task.args.get("lease") and not self._task.delegate_to:
            return True
        other_user = self._play_context.become and not (os.geteuid() == 0 and (self._play_context.become_user or "root") == "root")
        return self._connection.transport == "local" and not other_user

    def whole(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Definition:
        """The parameter `definition` with all its secrets."""
        definition = definition_of(params["definition"], task_vars, self._templar)
        params["definition"] = to_dict(definition)
        return definition

    def _unmasked(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Dict[str, Any]:
        """The parameters with what `fleet_definition` does not show, read again from the fleet's variables.

        Of the parameter `definition` only the ledger's URL, which is all that most acts need of it: see `whole`.
        """
        if any(MASK in str(params.get(key)) for key in ("options", "checks")):
            definition = read_again(task_vars, self._templar)
            params.update({
                key: value for key, value in (("options", definition.options), ("checks", list(definition.checks)))
                if MASK in str(params.get(key))
            })
        for key, name in (("definition", "ledger"), ("lease", "url")):
            if MASK in str((params.get(key) or {}).get(name)):
                params[key] = {**params[key], name: ledger_url(task_vars, self._templar)}
        return params

    @cached_property
    def _hidden(self) -> Tuple[str, ...]:
        """What nobody may read in a message: what the parameters hold that may be secret. Messages quote engines, services and probes."""
        provider = self._params.get("provider") or (self._params.get("definition") or {}).get("provider") or ""
        inner = secret_parts(provider)
        outer = {"definition": {"options": inner}, **({"options": inner["options"]} if self._params.get("provider") else {})}
        spec = {**self.ARGUMENTS, **{key: item for key, item in outer.items() if key in self.ARGUMENTS}, "recorded": inner["options"]}
        return hidden({**self._params, "recorded": self._recorded()}, {"options": spec})

    def _recorded(self) -> List[Any]:
        """The options that the releases of the task's instances were made with, whose environments need not be today's."""
        lease = self._params.get("lease") or {}
        if not self.QUOTES or not lease.get("fence"):
            return []
        numbers = {item.get("release") for key in ("instances", "standby") for item in self._params.get(key) or ()}
        if not numbers:
            return []
        try:
            history = Ledger(lease["url"], lease["state_dir"]).history(lease["fleet"])
        except FleetError:
            return []
        return [row.definition.get("options") for row in history.releases if row.number in numbers]

    def _veiled(self, words: Any) -> Any:
        if isinstance(words, str):
            return veiled(words, self._hidden)
        if isinstance(words, dict):
            return {key: self._veiled(item) for key, item in words.items()}
        return [self._veiled(item) for item in words] if isinstance(words, (list, tuple)) else words

    def _adopt_environment(self) -> None:
        # An action plugin gets no environment of its own task (measured: silently dropped). This process is a fork for
        # one task, so setting it here reaches nobody else.
        for values in self._task.environment or []:
            for key, value in (self._templar.template(values) or {}).items():
                os.environ[str(key)] = str(value)


class FaceAction(FleetAction):
    """What the action plugins of the providers' own modules share: the same work as the module's, in the controller's process."""

    WORK: Work

    def act(self, params: Dict[str, Any], task_vars: Dict[str, Any]) -> Result:
        result = self.on_host(self.WORK, params, task_vars)
        if not self._task.diff:
            result.pop("diff", None)
        return result
