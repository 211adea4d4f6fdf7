# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The hosts at which a Proxmox VE cluster answers, each with its certificate verified, and the one of them that does answer."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import threading
import time
from typing import Any, Dict, Mapping, Optional, Tuple

from .. import _run
from .._errors import RefusedError, UnreachableError

try:
    import proxmoxer as sdk
    from proxmoxer.core import AuthenticationError
    from requests import Session
    from requests import exceptions as http
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase
    from urllib3.util import create_urllib3_context
except ImportError:
    sdk = None  # type: ignore[assignment]
    HTTPAdapter = AuthBase = object  # type: ignore[assignment,misc]

CONNECTING = 5.0
"""Seconds to connect to a host, TLS included."""

FIRST = 10.0
"""Seconds for a host's first answer, a login for example; then the next host is tried. One that refuses a login takes 3 s by itself."""

ASKING, TELLING = 35.0, 60.0
"""Seconds for an answer, longer than PVE itself waits for one (30). An act may wait for a lock before that."""

RENEWAL = 3600.0
"""Seconds after which a login is renewed: a ticket is good for 7200."""

TLS = "Set fleet_proxmox.ca_path to the cluster's CA (/etc/pve/pve-root-ca.pem there), and api_host to a name in its certificate"
REACH = "Check fleet_proxmox.api_host and api_port, and that pveproxy runs there"


class Adapter(HTTPAdapter):
    """Connections of many threads, with our own deadlines, and a certificate that an authority of PVE's own may have signed.

    PVE's authorities from before pve-cluster 9.1.2 have no keyUsage (`PVE/Cluster/Setup.pm`), which Python 3.13 and later refuse unless
    VERIFY_X509_STRICT is taken away. Everything else is verified as ever: the chain, the dates and the name.
    """

    def __init__(self, verified: bool, answer: Optional[float] = None) -> None:
        self._answer = answer
        self._context = None
        if verified:
            self._context = create_urllib3_context()
            self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        super().__init__(pool_connections=4, pool_maxsize=64)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **self._trusting(options))

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **self._trusting(options))

    def _trusting(self, options: Dict[str, Any]) -> Dict[str, Any]:
        return {**options, "ssl_context": self._context} if self._context else options

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        answer = self._answer or (ASKING if request.method == "GET" else TELLING)
        return super().send(request, *args, **{**options, "timeout": (CONNECTING, answer)})


class Ticket(AuthBase):
    """A user's login. proxmoxer's own logs in by connections that know nothing of our adapter, and so of how they are to be verified."""

    def __init__(self, url: str, user: str, password: str, verify: Any) -> None:
        self.verify_ssl, self.timeout = verify, None
        self._url, self._user = url, user
        self._session = Session()
        self._session.mount("https://", Adapter(bool(verify), FIRST))
        self._lock = threading.Lock()
        self._log_in(password)

    def _log_in(self, password: str) -> None:
        login = {"username": self._user, "password": password}
        answer = self._session.post(f"{self._url}/access/ticket", data=login, verify=self.verify_ssl)
        if answer.status_code in (400, 401, 403):
            raise AuthenticationError(f"{answer.status_code} {answer.reason}")
        answer.raise_for_status()
        data = answer.json()["data"]
        if data.get("NeedTFA"):
            raise RefusedError(f"the login of {self._user}", "it takes a second factor", "Give fleet_proxmox an api_token_id of that user")
        self._ticket, self._csrf, self._since = str(data["ticket"]), str(data["CSRFPreventionToken"]), time.monotonic()

    def get_cookies(self) -> Any:
        return {"PVEAuthCookie": self._ticket}

    def __call__(self, request: Any) -> Any:
        with self._lock:
            if time.monotonic() - self._since > RENEWAL:
                self._log_in(self._ticket)
        if request.method != "GET":
            request.headers["CSRFPreventionToken"] = self._csrf
        return request


class Hosts:
    """The hosts of one cluster. The first that answers is kept for the run; another one is looked for when it fails.

    A run is many processes, one after the other. Which host answered is kept in its folder, so that not each of them waits for a dead one.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.names = list(options["api_host"])
        self._options = options
        self._verify = options["validate_certs"] and (options.get("ca_path") or True)
        known = hashlib.sha256(repr((self.names, options["api_port"])).encode()).hexdigest()[:16]
        self._note = os.path.join(_run.folder, f"phoenix-{known}") if _run.folder and len(self.names) > 1 else ""
        self._turn = self._noted()
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return f"{self.names[self._turn]}:{self._options['api_port']}"

    def reached(self, doing: str) -> Tuple[str, Any]:
        """A host that answers, and the client for it.

        Raises UnreachableError, which names each host with its cause, and what the client raises where there is one host alone.
        """
        with self._lock:
            causes: Dict[str, BaseException] = {}
            while self._client is None:
                name = self.names[self._turn]
                try:
                    self._client = self._opened(name)
                except http.RequestException as error:
                    if len(self.names) == 1:
                        raise
                    causes[name] = error
                    self._turn = (self._turn + 1) % len(self.names)
                    if len(causes) == len(set(self.names)):
                        raise self._silent(doing, causes) from error
                else:
                    self._keep()
            return self.names[self._turn], self._client

    def leave(self, name: str) -> None:
        """Look for another host, since this one has given no answer; unless somebody has done so already."""
        with self._lock:
            if len(self.names) > 1 and self._client is not None and self.names[self._turn] == name:
                self._client, self._turn = None, (self._turn + 1) % len(self.names)

    def _noted(self) -> int:
        try:
            with open(self._note, encoding="utf-8") as note:
                return self.names.index(note.read())
        except (OSError, ValueError):
            return 0

    def _keep(self) -> None:
        if self._note and self._turn != self._noted():
            try:
                with open(self._note, "w", encoding="utf-8") as note:
                    note.write(self.names[self._turn])
            except OSError:
                pass  # the next task looks for itself

    def _opened(self, name: str) -> Any:
        """A client, once the host has answered; where there is one host alone, the first call will tell."""
        options, password = self._options, self._options.get("api_password")
        token = {"token_name": options.get("api_token_id") or "", "token_value": options.get("api_token_secret") or ""}
        client = sdk.ProxmoxAPI(name, port=options["api_port"], user=options["api_user"], verify_ssl=self._verify, **token)
        session = client._store["session"]
        if password:
            session.auth = Ticket(client._store["base_url"], options["api_user"], password, self._verify)
        elif len(self.names) > 1:
            session.mount("https://", Adapter(bool(self._verify), FIRST))
            client.version.get()
        session.mount("https://", Adapter(bool(self._verify)))
        return client

    def _silent(self, doing: str, causes: Mapping[str, BaseException]) -> UnreachableError:
        tls = all(isinstance(error, http.SSLError) for error in causes.values())
        words = "; ".join(f"{name}: {cause_of(error)}" for name, error in causes.items())
        return UnreachableError(f"{doing} (Proxmox VE)", f"no host of fleet_proxmox.api_host answers: {words}", TLS if tls else REACH)


def cause_of(error: BaseException) -> str:
    """Why a host gave no answer, in a few words."""
    text = str(error)
    tls = re.search(r"\[SSL[^\]]*\][^()']*|certificate verify failed[^()']*", text)
    if isinstance(error, http.SSLError):
        return f"TLS failed: {tls.group().strip() if tls else text}"
    late = re.search(r"timeout=(\d+)", text)
    if isinstance(error, http.Timeout) and late:
        return f"no answer within {late.group(1)} s"
    known = re.search(r"Connection refused|Name or service not known|[Nn]o route to host|timed out|not known", text)
    if never_sent(error):
        return known.group() if known else text
    return f"the connection ended without an answer ({text})"


def never_sent(error: BaseException) -> bool:
    """True where no connection came about, so that nothing can have been received. TLS may also fail in the middle of an answer."""
    return isinstance(error, http.ConnectTimeout) or bool(re.search(
        "NewConnectionError|NameResolutionError|CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|HANDSHAKE_FAILURE", repr(error)))
