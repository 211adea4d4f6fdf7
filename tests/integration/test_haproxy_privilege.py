# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A balancer that has other users: none of them has root run its program, and none of them can hold a release up."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import _files as files
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy.backend import Backend
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

STRANGER = "daemon"
SAID = {
    "show info": "Version: 2.6.12\nPid: {pid}\nStopping: 0\n", "show servers": "Can't find backend.\n", "show stat": "# pxname,svname,\n",
}


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory(prefix="haproxy-privilege-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def as_stranger(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """A process of another user that does this work, from when it says so by its last argument until it is ended here."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def begin() -> None:
        user = pwd.getpwnam(STRANGER)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        work(*arguments, ready)

    process = context.Process(target=begin)
    process.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        process.kill()
        process.join(20)


def pretend(path: str, pid: int, ready: Any) -> None:
    """Answer as a HAProxy whose worker is that process."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        ready.set()
        while True:
            line = door.accept()[0]
            with line, line.makefile("rw") as talk:
                for command in talk:
                    talk.write(next((text.format(pid=pid) for begin, text in SAID.items() if command.startswith(begin)), "") + "\n> ")
                    talk.flush()


def test_a_strangers_process_that_calls_itself_haproxy_has_nothing_run(public: Path, tmp_path: Path) -> None:
    """A shell under HAProxy's name takes what follows -c for options, and then the file that HAProxy was to check for a command."""
    theirs, conf = public / "theirs", public / "conf.d"
    theirs.mkdir()
    conf.mkdir()
    shell, script = theirs / "haproxy", theirs / "script"
    shutil.copy("/bin/sh", shell)
    script.write_text(f"#!/bin/sh\nid -u > {tmp_path}/ran\n")
    script.chmod(0o755)
    for path in (theirs, shell, script):
        shutil.chown(path, STRANGER)
    command = [shell, "-c", "read line", "-f", script, "-f", conf]
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=STRANGER) as fake, as_stranger(pretend, str(theirs / "cli"), fake.pid):
        place = {"config": str(script), "config_dir": str(conf), "reload_command": "true", "host": "lb1"}
        with pytest.raises(RefusedError, match=f"{STRANGER} runs it and opened its socket.*ansible_become_user: {STRANGER}"):
            Backend("web", str(theirs / "cli"), check_mode=True, **place).apply((), {"mode": "http"})  # type: ignore[arg-type]
        fake.kill()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[HAProxyProcess]:
    """A HAProxy without a master that was started by root and is root no more."""
    defaults = ['timeout queue "${SHOP_WAIT}"']
    haproxy = HAProxyProcess(tmp_path / "haproxy", user=STRANGER, environment={"SHOP_WAIT": "7s"}, defaults=defaults)
    yield haproxy.start()
    haproxy.stop()


def planned(haproxy: HAProxyProcess, **options: Any) -> list[str]:
    """What would be done; to say so the new configuration is validated."""
    place = {"config": str(haproxy.config), "config_dir": str(haproxy.config_dir), "reload_command": "true", "host": "lb1"}
    return Backend("web", str(haproxy.socket), check_mode=True, **place).apply((), options).actions  # type: ignore[arg-type]


def test_haproxy_that_dropped_root_without_a_master_is_believed_by_its_socket(dropped: HAProxyProcess) -> None:
    assert dropped.process is not None and files._owners(dropped.process.pid) == {pwd.getpwnam(STRANGER).pw_uid}
    assert "reloaded HAProxy" in planned(dropped, mode="http")
    with pytest.raises(RefusedError, match="unknown keyword 'bogus'"):
        planned(dropped, mode="http", options=["bogus"])


@pytest.mark.parametrize("writable", ["owner", "mode"])
def test_but_not_with_a_file_that_it_could_have_written_itself(dropped: HAProxyProcess, writable: str) -> None:
    if writable == "owner":
        shutil.chown(dropped.config, STRANGER)
    else:
        dropped.config.chmod(0o666)
    with pytest.raises(RefusedError, match=r"haproxy\.cfg.*chown root"):
        planned(dropped, mode="http")


def test_a_program_that_others_can_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "haproxy"
    shutil.copy(shutil.which("haproxy", path=files.PATH) or "", program)
    program.chmod(0o757)
    monkeypatch.setattr("ansible_collections.phoenix.fleet.tests.integration.haproxy_process.PROGRAM", str(program))
    haproxy = HAProxyProcess(tmp_path / "process").start()
    try:
        with pytest.raises(RefusedError, match=r"others than its owner can write it.*chmod go-w"):
            planned(haproxy, mode="http")
    finally:
        haproxy.stop()


# The lock


def hold_everything(folder: str, ready: Any) -> None:
    """Lock the folder and whatever in it can be opened."""
    handles = []
    for path in (folder, *(os.path.join(folder, name) for name in os.listdir(folder))):
        with contextlib.suppress(PermissionError):
            handles.append(os.open(path, os.O_RDONLY))
            fcntl.flock(handles[-1], fcntl.LOCK_EX)
    ready.set()
    multiprocessing.get_context("fork").Event().wait()


def test_a_stranger_who_locks_all_that_can_be_opened_holds_nothing_up(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.2)
    monkeypatch.setattr(files, "FORMER_PATIENCE", 0.1, raising=False)
    (public / "web.cfg").write_text("backend web\n")
    with files.locked(str(public)):
        pass
    with (
        as_stranger(hold_everything, str(public)), files.locked(str(public)),
        pytest.raises(DeadlineError, match="another run"), files.locked(str(public)),
    ):
        pytest.fail("two at once")
    with files.locked(str(public)):
        assert [path.name for path in public.iterdir() if path.suffix == ".cfg"] == ["web.cfg"]


@pytest.mark.parametrize("planted", ["a file of another user", "a link"])
def test_a_lock_that_somebody_else_made_is_not_taken(public: Path, planted: str) -> None:
    path = public / files.LOCK
    if planted == "a link":
        path.symlink_to(public / "target")
    else:
        path.touch()
        shutil.chown(path, STRANGER)
    with pytest.raises(RefusedError, match="Remove"), files.locked(str(public)):
        pass
    assert not (public / "target").exists()
