# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""TLS in front of a Proxmox VE cluster, a fake or a real one, that cuts connections off after the cluster has acted."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietServer(ThreadingHTTPServer):
    """One whose clients may go away without a word."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Cutting:
    """TLS in front of a cluster. `cut` names the next calls whose answer is lost although the cluster has acted; `drop` those that are lost
    on their way there; `hook` is called with each call before it is passed on,
    `acted` when the cluster has answered.
    """

    def __init__(
        self, upstream: tuple[str, int], trusted: ssl.SSLContext, certificate: str, key: str, host: str = "127.0.0.1", port: int = 0,
    ) -> None:
        """certificate and key are its own, for `host`; trusted verifies the cluster's."""
        self.cut: list[tuple[str, str]] = []
        self.drop: list[tuple[str, str]] = []
        self.lost: list[str] = []
        self.options: dict[str, Any] = {}
        self.hook: Callable[[str, str], None] = lambda method, path: None
        self.acted: Callable[[str, str], None] = lambda method, path: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def answer(self) -> None:
                method, path = str(self.command), self.path.partition("?")[0].removeprefix("/api2/json")
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:  # who was sending it has been killed meanwhile
                    return self.die()
                proxy.hook(method, path)
                if proxy._taken(proxy.drop, method, path):
                    return self.die()
                there = http.client.HTTPSConnection(*upstream, context=trusted, timeout=60)
                headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
                there.request(method, self.path, body or None, headers)
                response = there.getresponse()
                data = response.read()
                there.close()
                proxy.acted(method, path)
                if proxy._taken(proxy.cut, method, path):
                    return self.die()
                self.send_response(response.status, response.reason)
                for key, value in response.getheaders():
                    if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return None

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def die(self) -> None:
                self.close_connection = True
                self.connection.close()

        self.server = QuietServer((host, port), Handler)
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(certificate, key)
        self.server.socket = own.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.lock = threading.Lock()

    def _taken(self, rules: list[tuple[str, str]], method: str, path: str) -> bool:
        with self.lock:
            for rule in rules:
                if rule[0] == method and re.search(rule[1], path):
                    rules.remove(rule)
                    self.lost.append(f"{method} {path}")
                    return True
        return False

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def __enter__(self) -> Cutting:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
