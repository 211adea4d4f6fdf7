# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The API of a Proxmox VE cluster: one call, its errors in our words, and tasks that are waited for.

What is asked may be asked again. What is told may not: where no answer comes, the outcome is unknown, and the caller looks.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Set, Tuple

from .._errors import DeadlineError, FleetError, InvalidError, RefusedError, UnreachableError
from ._proxmox_hosts import REACH, TLS, Hosts, cause_of, never_sent

try:
    import proxmoxer as sdk
    from proxmoxer.core import AuthenticationError, ResourceException
    from requests import exceptions as http
except ImportError:
    sdk = None  # type: ignore[assignment]

ASKED = 3
"""How often a question is asked whose answer does not come, beside once at every further host."""

LATE = 10.0
"""Seconds after which a node's silence, told by another one, is no mishap: it is not asked again, which would take as long each time."""

PATIENCE = 90.0
"""Seconds in which a lock of PVE's own, held by something else, has to become free."""

POLL = 0.3, 1.0
"""Seconds between two looks at a node's tasks, at first and later. The very first comes at once."""

RUNNING = "See that pveproxy and pvedaemon run there"
UNSENT = (595,)
UNKNOWN = (596, 597, 598, 599, 502, 504)
BUSY = re.compile(r"can't lock file|can't acquire lock|cfs-lock '.*' error|got lock (request )?timeout|is locked \(disk\)", re.I)
HIDDEN = re.compile(r"Permission check failed \(/vms/\d+, ")
ABSENT = re.compile(r"Configuration file '.*' does not exist|no such (VM|CT)|^(VM|CT) \d+ does not exist", re.I)
TAKEN = re.compile(r"already exists|File exists", re.I)


class Refusal(RefusedError):
    """PVE's no, with its status and its own words."""

    def __init__(self, what: str, said: str, remedy: str = "", status: int = 500) -> None:
        super().__init__(what, f"PVE says: {said}", remedy)
        self.said = said
        self.status = status

    @property
    def absent(self) -> bool:
        """The guest is not there, or not on that node."""
        return bool(ABSENT.search(self.said))

    @property
    def hidden(self) -> bool:
        """The guest is not the token's to see. So it is said of every VMID outside of the token's pool, whether there is a guest or not:
        permissions are checked before anything else (`PVE/HTTPServer.pm`, rest_handler)."""
        return self.status == 403 and bool(HIDDEN.search(self.said))

    @property
    def busy(self) -> bool:
        """Something else holds a lock of PVE's for a moment; nothing was done."""
        return bool(BUSY.search(self.said))

    @property
    def taken(self) -> bool:
        return bool(TAKEN.search(self.said))


class UnknownOutcomeError(UnreachableError):
    """It was told, and no answer came: whether it was done shows only by looking. told: PVE itself says that its node gives none."""

    told = False


def required_sdk() -> None:
    if sdk is None:
        remedy = f"Run: {sys.executable} -m pip install 'proxmoxer>=2.2' requests"
        raise RefusedError("the proxmox provider", f"{sys.executable} has no proxmoxer, or no requests", remedy)


class Api:
    """One cluster through one of its hosts, with a token or a user's password."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["validate_certs"] and options.get("ca_path"):
            self._readable(options["ca_path"])
        self.who = options["api_user"] if options.get("api_password") else f"{options['api_user']}!{options['api_token_id']}"
        self.hosts = Hosts(options)
        self.tasks = Tasks(self)
        if options.get("api_password"):
            self._reached("logging in")

    @property
    def where(self) -> str:
        return self.hosts.where

    @staticmethod
    def _readable(path: str) -> None:
        try:
            with open(path, encoding="utf-8"):
                pass
        except OSError as error:
            words = f"{path} cannot be read ({error.strerror}); name the PEM file of the authority that signed the nodes' certificates"
            raise InvalidError([f"fleet_proxmox.ca_path: {words}"]) from None

    def ask(self, doing: str, path: str, **params: Any) -> Any:
        """A question, asked again where the answer gets lost. Raises Refusal, and UnreachableError after that."""
        asked = ASKED + len(self.hosts.names) - 1
        for attempt in range(1, asked + 1):
            began = time.monotonic()
            try:
                return self._call(doing, "get", path, params)
            except UnknownOutcomeError as error:
                if attempt == asked or (error.told and time.monotonic() - began > LATE):
                    raise UnreachableError(error.what, error.cause, error.remedy) from None
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    def maybe(self, doing: str, path: str, **params: Any) -> Any:
        """Like `ask`, but None where the guest is not there."""
        try:
            return self.ask(doing, path, **params)
        except Refusal as error:
            if error.absent:
                return None
            raise

    def tell(self, doing: str, method: str, path: str, **params: Any) -> Any:
        """An act, told once; again only where PVE has said that it did nothing because of a lock. Returns a UPID, or what else it answers.

        Raises Refusal; UnreachableError where it certainly was not told; UnknownOutcomeError where nobody knows.
        """
        deadline = time.monotonic() + PATIENCE
        pause = 0.5
        while True:
            try:
                return self._call(doing, method, path, params)
            except Refusal as error:
                if not error.busy or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _call(self, doing: str, method: str, path: str, params: Mapping[str, Any]) -> Any:
        """At the host that answers. Where it does not, the next call goes to another one; this one too, if it certainly got nothing."""
        for last in [*([False] * (len(self.hosts.names) - 1)), True]:
            host, client = self._reached(doing)
            try:
                answer = getattr(client(path), method)(**params)
            except Exception as error:  # proxmoxer and requests have no common root
                if isinstance(error, http.RequestException):
                    self.hosts.leave(host)
                if isinstance(error, http.RequestException) and never_sent(error) and not last:
                    continue
                self._fail(doing, error, sent=True)
            if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):
                raise UnknownOutcomeError(f"Proxmox VE at {self.where}, {doing}", "the answer was cut off", "Run again")
            return answer
        raise AssertionError("unreachable")

    def _reached(self, doing: str) -> Tuple[str, Any]:
        try:
            return self.hosts.reached(doing)
        except FleetError:
            raise
        except Exception as error:  # as above
            self._fail(doing, error, sent=False)

    def _fail(self, doing: str, error: BaseException, sent: bool) -> NoReturn:
        what = f"{doing} (Proxmox VE at {self.where})"
        if isinstance(error, ResourceException):
            status, said = int(error.status_code), str(error.content or error.status_message or "").strip()
            fields = error.errors if isinstance(error.errors, Mapping) else {}
            said = "; ".join([said, *(f"{key}: {str(text).strip()}" for key, text in fields.items() if not isinstance(text, bytes))])
            if status in UNSENT:
                remedy = "Bring the node back, or take it out of fleet_proxmox.nodes"
                raise UnreachableError(what, f"the node gives no answer ({status} {said})", remedy)
            if status in UNKNOWN:
                unknown = UnknownOutcomeError(what, f"no answer came from the node ({status} {said})", RUNNING)
                unknown.told = True
                raise unknown
            raise Refusal(what, said, remedy_for(status, said, self.who), status) from error
        if isinstance(error, AuthenticationError):
            remedy = "Check fleet_proxmox.api_user and api_password"
            raise RefusedError(what, f"the login of {self.who} was refused", remedy) from error
        if isinstance(error, http.RequestException):
            if never_sent(error):
                raise UnreachableError(what, cause_of(error), TLS if isinstance(error, http.SSLError) else REACH) from error
            raise (UnknownOutcomeError if sent else UnreachableError)(what, cause_of(error), RUNNING) from error
        raise error


_REMEDIES = (
    (r"modifying tag '", "Let users set the fleet's tags, and remove the template's, beside those in the list already: pvesh set "
     "/cluster/options --user-tag-access 'user-allow=list,user-allow-list=phoenix.fleet;phoenix.fleet.FLEET;TAG'"),
    (r"Permission check failed", "Give {who} that privilege there; the collection's documentation lists the roles that it needs"),
    (r"no quorum", "Bring the cluster's other nodes back: without a majority nothing can be changed"),
    (r"No space left|not enough space|out of space", "Free space on that storage, or set fleet_proxmox.storage to another"),
    (r"is locked \((\w+)\)", "Wait until that is done; if nothing is at work there, unlock it on that node"),
    (r"protection mode|protected", "Somebody has protected it: take the protection away (--protection 0) if it is to go"),
    (r"Linked clone feature", "Set fleet_proxmox.clone to full"),
    (r"local storage|non-shared storage", "Put the template on a shared storage or on every node, or name fleet_proxmox.nodes"),
    (r"hostname lookup", "Check fleet_proxmox.nodes"),
    (r"still in use by linked clone", "Remove the clones first"),
)


def remedy_for(status: int, said: str, who: str) -> str:
    """What to do about PVE's words, empty where they say it themselves."""
    if status == 401:
        return f"Check the secret of {who} in fleet_proxmox, and that neither it nor its user has expired"
    return next((remedy.format(who=who) for pattern, remedy in _REMEDIES if re.search(pattern, said, re.IGNORECASE)), "")


class Tasks:
    """Tasks that are waited for: one listing per node tells of all of them, however many there are. A status call each keeps a worker."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._nodes: Dict[str, _Watch] = {}
        self._lock = threading.Lock()

    def wait(self, upid: str, doing: str, seconds: float) -> str:
        """What the task ended with: `OK`, `WARNINGS: 2`, or an error in PVE's words. Raises DeadlineError when `seconds` have passed."""
        node = upid.split(":")[1]
        with self._lock:
            watch = self._nodes.setdefault(node, _Watch(self._api, node))
        deadline = time.monotonic() + seconds
        watch.add(upid)
        try:
            while True:
                status = watch.look(upid)
                if status is not None:
                    return status
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        doing, f"task {upid} on node {node} still runs after {seconds:.0f} s",
                        f"See its log on that node: pvesh get /nodes/{node}/tasks/{upid}/log",
                    )
                watch.pause()
        finally:
            watch.forget(upid)

    def last_lines(self, upid: str, lines: int = 20) -> List[str]:
        """The end of a task's log; empty where it cannot be read."""
        node = upid.split(":")[1]
        try:
            log = self._api.ask("reading a task's log", f"nodes/{node}/tasks/{upid}/log", limit=500)
        except (RefusedError, UnreachableError):
            return []
        return [str(line.get("t", "")) for line in log or []][-lines:]


class _Watch:
    """The tasks of one node."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._lock = threading.Lock()
        self._waiting: Dict[str, int] = {}
        self._ended: Dict[str, str] = {}
        self._missed: Dict[str, int] = {}
        self._looked = 0.0
        self._gap = POLL[0]

    def add(self, upid: str) -> None:
        with self._lock:
            if not self._waiting:
                self._gap = POLL[0]
            self._waiting[upid] = int(upid.split(":")[4], 16)

    def forget(self, upid: str) -> None:
        with self._lock:
            self._waiting.pop(upid, None)
            self._ended.pop(upid, None)
            self._missed.pop(upid, None)

    def pause(self) -> None:
        time.sleep(min(self._gap, 0.05))

    def look(self, upid: str) -> Optional[str]:
        with self._lock:
            if upid not in self._ended and time.monotonic() >= self._looked + self._gap:
                self._list()
            return self._ended.get(upid)

    def _list(self) -> None:
        since = min(self._waiting.values()) - 1
        listing = self._api.ask("listing tasks", f"nodes/{self._node}/tasks", source="all", since=since, limit=1000)
        seen: Set[str] = set()
        for task in listing or []:
            upid = task.get("upid", "")
            if upid in self._waiting:
                seen.add(upid)
                if task.get("endtime"):
                    self._ended[upid] = str(task.get("status") or "unexpected status")
        for upid in set(self._waiting) - seen - set(self._ended):
            # Out of the listing: too many others, or a token that may see this one alone.
            self._missed[upid] = self._missed.get(upid, 0) + 1
            if self._missed[upid] % 5 == 0:
                state = self._api.ask("asking for a task", f"nodes/{self._node}/tasks/{upid}/status")
                if state.get("status") == "stopped":
                    self._ended[upid] = str(state.get("exitstatus") or "unexpected status")
        self._looked = time.monotonic()
        self._gap = min(self._gap * 1.3, POLL[1])


def is_fine(status: str) -> bool:
    """Warnings are no failure."""
    return status == "OK" or status.startswith("WARNINGS")
