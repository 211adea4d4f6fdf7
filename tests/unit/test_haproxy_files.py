# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing a fragment, and what a run that is killed meanwhile leaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import _files as files


def half(path: str) -> None:
    """Killed when the new text is written and not yet in its place."""
    with files.candidate(path, "half"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg"
    path.write_text("before")
    for _kill in range(2):
        process = multiprocessing.get_context("fork").Process(target=half, args=(str(path),))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    with files.candidate(str(path), "after") as new:
        files.replace(new, str(path))
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("web.cfg", "after")]


def test_a_check_gets_the_variables_that_the_configuration_names_and_none_that_change_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text('defaults\n    timeout queue "${SHOP_WAIT-5s}"\n    # LD_PRELOAD, PATH and HAPROXY_LOCALPEER are named, too\n')
    given = {"SHOP_WAIT": "7s", "TOKEN": "secret", "LD_PRELOAD": "", "HAPROXY_LOCALPEER": "x", "PATH": "/elsewhere", "LANG": "C"}
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, env=given) as process:
        found = files._environment(process.pid, [str(path)])
        process.kill()
    assert found == {"PATH": files.PATH, "LANG": "C.UTF-8", "SHOP_WAIT": "7s"}


def test_a_process_that_ends_meanwhile_hides_no_connection_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and a child are the former workers of a HAProxy; the child has ended when the kernel's table is asked for by its id."""
    read = files.read
    with (
        socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()),
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child,
    ):

        def fake(path: str) -> str | None:
            return None if path.startswith(f"/proc/{child.pid}/") else read(path)

        monkeypatch.setattr(files, "read", fake)
        assert files.connections([child.pid, os.getpid()], [server.getsockname()]) == {server.getsockname(): 1}
        child.kill()
