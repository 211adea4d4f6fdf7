# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load generator of all tests: an open loop that never retries and forgives nothing.

    python tests/load.py http://127.0.0.1:8080/ --rate 200 --seconds 10 --mix --slow /slow

Requests leave at their appointed times whether or not earlier ones have been answered, and latencies count from the
appointed time. It prints one JSON object when the time is over, on SIGTERM or SIGINT (but not before --least requests
have been sent), or when a file appears:
{url, seconds, sent, ok, failed, failures: {kind: count}, examples: [...], kinds: {GET, POST, new, reused, slow: count},
p50_ms, p99_ms, max_ms, answers: {first line of the body: count}}, where sent = ok + failed; it exits 1 if any failed.

A request fails unless it gets a whole answer with a status of 2xx. Nothing is sent twice. A kept connection is chosen
as every HTTP client chooses it: not one that the server has closed already, nor one that was idle for longer than
IDLE seconds, because a client that reuses a connection which the server is entitled to close loses that race by its
own fault. A server that closes a connection in use, or one idle for a shorter time, is caught.

From a test:

    with Load(url, rate=200) as load:
        ...
    assert load.result["failed"] == 0, load.result
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

IDLE = 2.0  # seconds a connection may have been idle when it is used again
CLIENTS = 32  # kept connections, used in turn, so that each has a time to think: CLIENTS / rate
IN_FLIGHT = 4000  # requests under way at once; what would exceed it counts as failed
SLOW_SHARE = 0.02
LEAST = 50  # requests that a test sends, so that no failures are never no requests
STEP = math.log(1.02)  # latencies are kept in buckets 2 % apart, so memory does not grow with the number of requests
ANSWERS, EXAMPLES = 100, 5


class StatusError(Exception):
    """An answer whose status is not 2xx."""


class Generator:
    """Sends requests to one URL and counts what became of them."""

    def __init__(self, url: str, rate: float, mix: bool, slow: str, timeout: float, least: int = 0):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"{url} is not an http URL")
        self.url, self.rate, self.mix, self.slow, self.timeout = url, rate, mix, slow, timeout
        self.host, self.port, self.path = parts.hostname, parts.port or 80, parts.path or "/"
        self.kept: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = deque()
        self.least = least
        self.sent = self.ok = 0
        self.failures: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.latencies: Counter[int] = Counter()
        self.examples: list[dict[str, str]] = []
        self.stopped = self.started = self.longest = 0.0
        self.dice = random.Random(1)

    async def run(self, seconds: float, until_file: str) -> None:
        """Sends until the time is over, or told to stop when the least is sent, then waits for the answers that are due."""
        tasks: set[asyncio.Task[None]] = set()
        self.started = begin = time.monotonic()
        while (now := time.monotonic()) < begin + seconds and not (until_file and os.path.exists(until_file)):
            if self.stopped and self.sent >= self.least:
                break
            while self.sent < (now - begin) * self.rate:
                appointed = begin + self.sent / self.rate
                self.sent += 1
                task = asyncio.create_task(self.request(appointed, len(tasks)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(min(0.05, max(0.001, begin + self.sent / self.rate - time.monotonic())))
        self.stopped = time.monotonic()
        if tasks:
            await asyncio.wait(tasks)  # each is bounded by its own timeout
        while self.kept:
            self.kept.popleft()[1].close()

    async def request(self, appointed: float, in_flight: int) -> None:
        slow = bool(self.slow) and self.dice.random() < SLOW_SHARE
        method = "POST" if self.mix and self.dice.random() < 0.5 else "GET"
        keep = not self.mix or self.dice.random() < 0.5
        path = self.slow if slow else self.path
        kept = self.take() if keep else None
        connection = "reused" if kept else "new"
        self.kinds.update([method, connection] + ["slow"] * slow)
        writer = kept[1] if kept else None
        try:
            if in_flight >= IN_FLIGHT:
                raise OverflowError(f"{in_flight} requests under way")
            async with asyncio.timeout(self.timeout):
                if kept:
                    reader, writer = kept
                else:
                    reader, writer = await asyncio.open_connection(self.host, self.port)
                body, reusable = await self.exchange(reader, writer, method, path, keep)
            self.ok += 1
            line = body[:60].split(b"\n")[0].decode("utf-8", "replace").strip()
            self.answers[line if line in self.answers or len(self.answers) < ANSWERS else "(others)"] += 1
            if keep and reusable:
                self.kept.append((reader, writer, time.monotonic()))
                writer = None
        except Exception as error:  # whatever it is, the request has failed
            self.fail(error, f"{method} {path}", connection, appointed)
        finally:
            if writer:
                writer.close()
        latency = time.monotonic() - appointed
        self.longest = max(self.longest, latency)
        self.latencies[math.ceil(math.log(max(latency, 1e-5) * 1000) / STEP)] += 1
        if self.ok + self.failures.total() == 1:
            print("started", file=sys.stderr, flush=True)  # Load waits for this line

    def take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self.kept and (len(self.kept) >= CLIENTS or self.unfit(self.kept[0])):
            reader, writer, since = entry = self.kept.popleft()
            if not self.unfit(entry):
                return reader, writer
            writer.close()
        return None

    @staticmethod
    def unfit(entry: tuple[asyncio.StreamReader, asyncio.StreamWriter, float]) -> bool:
        reader, writer, since = entry
        return reader.at_eof() or writer.is_closing() or time.monotonic() - since > IDLE

    async def exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, keep: bool
    ) -> tuple[bytes, bool]:
        """One request and its whole answer: its body, and whether the connection may be used again."""
        content = b"amount=1" if method == "POST" else b""
        length = f"Content-Length: {len(content)}\r\n" if content else ""
        close = "" if keep else "Connection: close\r\n"
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n{length}{close}\r\n".encode() + content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.strip().lower(): value.strip().lower() for name, colon, value in (line.partition(":") for line in lines) if colon}
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif "chunked" in headers.get("transfer-encoding", ""):
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body = (body + (await reader.readexactly(size + 2))[:-2])[:60]
            await reader.readuntil(b"\r\n")
        else:
            body, headers["connection"] = await reader.read(), "close"
        status = first.split(" ")[1]
        if not status.startswith("2"):
            raise StatusError(status)
        return body, headers.get("connection") != "close"

    def fail(self, error: Exception, request: str, connection: str, appointed: float) -> None:
        kind = f"status {error}" if isinstance(error, StatusError) else type(error).__name__
        self.failures[kind] += 1
        if self.failures[kind] <= EXAMPLES:
            after = time.monotonic() - appointed
            at = datetime.fromtimestamp(time.time() - after).isoformat(timespec="milliseconds")
            where = f"{request} ({connection} connection)"
            self.examples.append({"at": at, "after_s": f"{after:.3f}", "kind": kind, "request": where, "said": str(error)})

    def report(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "seconds": round(self.stopped - self.started, 3),
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failures.total(),
            "failures": dict(self.failures),
            "examples": self.examples,
            "kinds": dict(self.kinds),
            "p50_ms": self.quantile(0.5),
            "p99_ms": self.quantile(0.99),
            "max_ms": round(self.longest * 1000, 1),
            "answers": dict(self.answers),
        }

    def quantile(self, q: float) -> float | None:
        rest = q * self.latencies.total()
        for bucket, count in sorted(self.latencies.items()):
            rest -= count
            if rest <= 0:
                return round(min(math.exp(bucket * STEP), self.longest * 1000), 1)
        return None


class Load:
    """The generator as a process beside a test; `result` is its report once the block is left.

    seconds bounds its life should nobody stop it. Entering returns when the first request has been answered or has failed.
    However short the block, at least LEAST requests are sent.
    """

    def __init__(self, url: str, rate: float = 200, *, seconds: float = 900, mix: bool = True, slow: str = "", timeout: float = 30):
        options = ["--rate", str(rate), "--seconds", str(seconds), "--timeout", str(timeout), "--slow", slow, "--least", str(LEAST)]
        options += ["--mix"] * mix
        self.command = [sys.executable, os.path.abspath(__file__), url, *options]
        self.patience = timeout + 30
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Load:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        said = self.process.stderr.readline()
        if said.strip() != "started":
            self.process.kill()
            raise RuntimeError(f"the load generator did not start: {said}{self.process.communicate()[1]}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> dict[str, Any]:
        """Ends the sending, waits for the answers that are due, and returns the report. Further calls return it again."""
        if not self.result:
            self.process.send_signal(signal.SIGTERM)
            try:
                said, complaint = self.process.communicate(timeout=self.patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise RuntimeError(f"the load generator did not end within {self.patience:.0f} s") from None
            try:
                self.result = json.loads(said)
            except ValueError:
                raise RuntimeError(f"the load generator failed: {complaint}") from None
            assert self.result["sent"] >= LEAST, self.result
        return self.result


def main() -> int:
    parser = argparse.ArgumentParser(description="Open-loop HTTP load without retries; prints one JSON object at the end.")
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=200, help="requests a second (default 200)")
    parser.add_argument("--seconds", type=float, default=900, help="for how long, at most (default 900)")
    parser.add_argument("--least", type=int, default=0, help="requests to send before a signal is heeded (default 0)")
    parser.add_argument("--until-file", default="", help="ends when this file appears")
    parser.add_argument("--mix", action="store_true", help="half of the requests POST, half on new connections")
    parser.add_argument("--slow", default="", metavar="PATH", help=f"a path that takes its time; {SLOW_SHARE:.0%} of the requests go there")
    parser.add_argument("--timeout", type=float, default=30, help="seconds until an answer counts as failed (default 30)")
    options = parser.parse_args()
    generator = Generator(options.url, options.rate, options.mix, options.slow, options.timeout, options.least)

    def stop() -> None:
        generator.stopped = generator.stopped or time.monotonic()

    async def run() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await generator.run(options.seconds, options.until_file)

    asyncio.run(run())
    print(json.dumps(generator.report()))
    return 1 if generator.failures else 0


if __name__ == "__main__":
    sys.exit(main())
