# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load generator must see every way in which a request can fail, or the zeros in the other tests say nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.tests.load import Generator

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"
ANSWERS = {
    b"/": WHOLE,
    b"/chunked": b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n3\r\nlo\n\r\n0\r\n\r\n",
    b"/until-close": b"HTTP/1.1 200 OK\r\n\r\nhello\n",
    b"/refused": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    b"/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhello\n",
    b"/chunks-cut": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n",
    b"/garbage": b"hello\r\n\r\n",
    b"/silence": b"",
}
CLOSING = {b"/until-close", b"/cut", b"/chunks-cut", b"/silence"}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers by the path; /second closes instead of answering the second request of a connection, /late never answers."""
    requests = 0
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            requests += 1
            if b"Content-Length: 8" in head:
                assert await reader.readexactly(8) == b"amount=1"
            path = head.split(b" ")[1]
            if path == b"/late":
                await reader.read()
            if path == b"/second" and requests == 2:
                break
            writer.write(ANSWERS.get(path, WHOLE))
            if path in CLOSING or b"Connection: close" in head:
                break
    except (EOFError, OSError):
        pass
    finally:
        writer.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def generate(url: str, **options: Any) -> dict[str, Any]:
    settings = {"rate": 200, "mix": True, "slow": "", "timeout": 5, **options}
    generator = Generator(url, **settings)
    asyncio.run(generator.run(0.5, ""))
    report = generator.report()
    assert report["sent"] == report["ok"] + report["failed"] > 0
    return report


@pytest.mark.parametrize("path", ["/", "/chunked", "/until-close"])
def test_a_whole_answer_is_no_failure(url: str, path: str) -> None:
    report = generate(url + path)
    assert report["failed"] == 0, report
    assert report["answers"] == {"hello": report["sent"]}
    assert set(report["kinds"]) >= {"GET", "POST", "new"}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/refused", "status 503"),
        ("/cut", "IncompleteReadError"),
        ("/chunks-cut", "IncompleteReadError"),
        ("/silence", "IncompleteReadError"),
        ("/late", "TimeoutError"),
    ],
)
def test_anything_else_is(url: str, path: str, kind: str) -> None:
    report = generate(url + path, timeout=0.2)
    assert report["failures"] == {kind: report["sent"]}
    assert len(report["examples"]) == 5


def test_garbage_fails(url: str) -> None:
    report = generate(url + "/garbage", timeout=0.2)
    assert report["ok"] == 0


def test_a_connection_closed_in_use_is_not_forgiven(url: str) -> None:
    report = generate(url + "/second", mix=False)
    assert report["failed"] > 0, report
    assert all("reused" in example["request"] for example in report["examples"])


def test_a_port_where_nobody_listens_fails() -> None:
    report = generate("http://127.0.0.1:1/")
    assert report["failures"] == {"ConnectionRefusedError": report["sent"]}


def test_the_least_is_sent_however_early_it_is_told_to_stop(url: str) -> None:
    generator = Generator(url, rate=200, mix=True, slow="", timeout=5, least=20)
    generator.stopped = 1.0
    asyncio.run(generator.run(5, ""))
    assert generator.report()["sent"] == generator.report()["ok"] >= 20
