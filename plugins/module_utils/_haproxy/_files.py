# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""Files and processes around a running HAProxy: its own list of files, the fragment on the disk, the lock, connections in the kernel."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .._errors import DeadlineError, RefusedError
from .client import Info

LOCK = ".phoenix.fleet.lock"
"""Beside the fragments, where only those who may write them can put it; HAProxy loads no dot-files, and nobody cleans up there."""

LOCK_PATIENCE = 90.0
FORMER_PATIENCE = 2.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEERING = re.compile(r"(LD_|GLIBC_|GCONV_|MALLOC_|LOCPATH|NLSPATH|LUA_|OPENSSL_|PYTHON|HAPROXY_).*|PATH|NOTIFY_SOCKET|LISTEN_\w+")
"""Variables that say which code a program runs, and what systemd and HAProxy's master tell their own children."""


def read(path: str) -> Optional[str]:
    """The file's text, or None where there is none (or, in /proc, no such process any more)."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: str, error: OSError) -> RefusedError:
    remedies = {
        errno.ENOSPC: "Make room on that file system. The former file is intact.",
        errno.EDQUOT: "Make room on that file system. The former file is intact.",
        errno.EACCES: "Set ansible_become: true for this balancer, or run as root.",
        errno.EROFS: "Mount the file system so that it can be written.",
        errno.ELOOP: "Remove that symbolic link.",
        errno.ENOENT: "Make the folder, and let HAProxy load it with -f; the playbook phoenix.fleet.hosts does both.",
    }
    return RefusedError(path, error.strerror or str(error), remedies.get(error.errno or 0, ""))


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the lock beside the fragments, so that nobody of ours compares, writes or commands meanwhile.

    It is a file that only its owner can open: whoever can open what everybody may read can hold its lock for ever.
    """
    path = os.path.join(folder, LOCK)
    handles: List[int] = []
    try:
        try:
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            status = os.fstat(handles[0])
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in _trusted():
                raise RefusedError(path, f"it is no file of {_user(os.geteuid())}, so others could hold the lock", "Remove it.")
            os.fchmod(handles[0], 0o600)
            handles.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise _refused(folder if error.errno == errno.ENOENT else path, error) from None
        if not _hold(handles[0], LOCK_PATIENCE):
            cause = f"another run has held it for {LOCK_PATIENCE:.0f} s"
            raise DeadlineError(f"the lock {path}", cause, f"See who does, on this balancer: fuser -v {path}")
        # What the first versions of the collection hold while they act, and any user of this machine may: worth a moment, and no more.
        _hold(handles[1], FORMER_PATIENCE)
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _hold(handle: int, patience: float) -> bool:
    """Lock it, in at most so many seconds; whether that was possible."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


@contextmanager
def candidate(path: str, text: str, elsewhere: bool = False) -> Iterator[str]:
    """The text beside the file it may replace, on the disk for sure (fsync), as a dot-file: HAProxy's `-f FOLDER` does not load those.

    Beside it, it always has the same name, so that what a killed run has left there is overwritten by the next one: hold the folder's lock.
    """
    handle, name = -1, ""
    try:
        try:
            if elsewhere:
                handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.")
            else:
                beside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
                handle, name = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), beside
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
        except OSError as error:
            raise _refused(path, error) from None
        yield name
    finally:
        if name and os.path.exists(name):
            os.unlink(name)


def replace(new: str, path: str) -> None:
    """Rename over the file, and make that survive a power cut."""
    try:
        if os.path.exists(path):
            shutil.copystat(path, new)
            status = os.stat(path)
            os.chown(new, status.st_uid, status.st_gid)
            os.utime(new)
        os.rename(new, path)
        _sync(os.path.dirname(path))
    except OSError as error:
        raise _refused(path, error) from None


def remove(path: str) -> None:
    os.unlink(path)
    _sync(os.path.dirname(path))


def restore(path: str, text: Optional[str]) -> None:
    """The file as it was before: this text, or none at all."""
    if text is not None:
        with candidate(path, text) as new:
            replace(new, path)
    elif os.path.exists(path):
        remove(path)


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The running HAProxy's own list of files


def _command(info: Info) -> Tuple[int, List[str]]:
    """The process id and words of the worker's master, or its own where there is no master.

    Raises RefusedError where /proc does not tell, or tells of a process whose words are not to be believed: a stranger's, on a
    socket that a stranger opened.
    """
    for process in (_parent(info.pid), info.pid):
        words = _words(process)
        if words and "haproxy" in os.path.basename(_link(f"/proc/{process}/exe") or words[0]):
            owners = _owners(process)
            if not owners:
                break
            if not owners <= _trusted() and info.opener not in _trusted():
                raise RefusedError(
                    f"HAProxy's process {process}", f"{_user(max(owners))} runs it and opened its socket, and {_user(os.geteuid())} "
                    "would run its program with its files", f"Run as that user (ansible_become_user: {_user(max(owners))}), "
                    "or let root start HAProxy and let it drop privileges itself (user and group in its global section).",
                )
            return process, words
    raise RefusedError(
        f"HAProxy's process {info.pid}", "its command line cannot be read",
        "Run on the host and in the process namespace in which HAProxy runs, as root (ansible_become: true).",
    )


def _parent(pid: int) -> int:
    found = re.search(r"^PPid:\s*(\d+)", read(f"/proc/{pid}/status") or "", re.M)
    return int(found.group(1)) if found else 0


def _words(pid: int) -> List[str]:
    return [word for word in (read(f"/proc/{pid}/cmdline") or "").split("\0") if word]


def _owners(pid: int) -> Set[int]:
    """Its real, effective, saved and file system's user ids: a program that is setuid root, with a stranger's words, is not root's."""
    found = re.search(r"^Uid:(.*)$", read(f"/proc/{pid}/status") or "", re.M)
    return {int(word) for word in found.group(1).split()} if found else set()


def _trusted() -> Set[int]:
    return {0, os.geteuid()}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user {number}"


def _guarded(path: str) -> None:
    """Raises RefusedError unless only root, or the user who acts, can change this file or what it is found by."""
    part = os.path.realpath(path)
    while True:
        try:
            status = os.stat(part)
        except OSError as error:
            raise _refused(part, error) from None
        folder = stat.S_ISDIR(status.st_mode)
        sticky = folder and status.st_mode & stat.S_ISVTX
        others = 0 if sticky else status.st_mode & (stat.S_IWOTH if folder else stat.S_IWOTH | stat.S_IWGRP)
        if status.st_uid not in _trusted() or others:
            cause = "others than its owner can write it" if others else f"it belongs to {_user(status.st_uid)}"
            remedy = f"Let root alone write it: chown root {part}; chmod go-w {part}"
            raise RefusedError(part, f"{cause}, and {_user(os.geteuid())} would have HAProxy's check run it or read it", remedy)
        if part == os.path.dirname(part):
            return
        part = os.path.dirname(part)


def given(words: Sequence[str]) -> List[str]:
    """The arguments of -f in a command line, in their order; what follows `--` are files too."""
    found: List[str] = []
    for index, word in enumerate(words):
        if word == "--":
            return found + list(words[index + 1:])
        if word == "-f" and index + 1 < len(words):
            found.append(words[index + 1])
    return found


def expanded(paths: Sequence[str], folder: str = "", extra: str = "") -> List[str]:
    """Every file that HAProxy loads for these -f, in its order: a folder's *.cfg by name, no dot-files; `folder` also holds `extra`."""
    found: List[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        names = {name for name in os.listdir(path) if name.endswith(".cfg") and not name.startswith(".") and len(name) > 4}
        names = {name for name in names if os.path.isfile(os.path.join(path, name))}
        if folder and os.path.realpath(path) == os.path.realpath(folder):
            names.add(extra)
        found += [os.path.join(path, name) for name in sorted(names, key=os.fsencode)]
    return found


def _given(info: Info) -> Tuple[int, List[str], List[str]]:
    """Whose command line it is, the command line, and the arguments of its -f. Raises RefusedError as `_command`."""
    process, words = _command(info)
    base = os.path.realpath(f"/proc/{process}/cwd")
    if "-C" in words[:-1]:
        base = os.path.join(base, words[words.index("-C") + 1])
    paths = [os.path.join(base, path) for path in given(words)]
    if not _owners(process) <= _trusted():
        # Without a master it has dropped root, and its command line is in memory that it can write.
        for path in (base, *paths, *expanded(paths)):
            _guarded(path)
    return process, words, paths


def listing(info: Info, extra: str = "") -> List[str]:
    """All files that the HAProxy of this worker loads, with `extra` where it would be among them."""
    return expanded(_given(info)[2], os.path.dirname(extra), os.path.basename(extra))


def listed(info: Info, path: str, config: str, config_dir: str) -> None:
    """Raises RefusedError unless HAProxy loads this file, or would if it existed."""
    paths = _given(info)[2]
    real = {os.path.realpath(item) for item in paths}
    if os.path.realpath(path) not in real and os.path.realpath(config_dir) not in real:
        raise RefusedError(
            f"the folder {config_dir}", f"the running HAProxy does not load it, only {', '.join(paths) or 'nothing'}",
            f"Start it with -f {config} -f {config_dir} (on Debian by EXTRAOPTS in /etc/default/haproxy), as phoenix.fleet.hosts does.",
        )


def validate(info: Info, path: str, new: Optional[str]) -> Optional[str]:
    """HAProxy's own check of all its files in its own order, with `new` in the place of `path` (None: with no such file).

    Returns None where HAProxy is content, else its words. Each file is named by itself, because `haproxy -c -f FOLDER` ignores the
    dot-file that is to be checked (facts 0). A check runs code, Lua's for example: program, files and variables are those of a process
    of root's or our own, or of one that dropped root and cannot change them; else RefusedError is raised.
    """
    process, words, paths = _given(info)
    everything = expanded(paths, os.path.dirname(path), os.path.basename(path))
    real = os.path.realpath(path)
    chosen = [item for item in (new if os.path.realpath(item) == real else item for item in everything) if item]
    command = [_program(process, words), "-c"]
    for item in chosen:
        command += ["-f", item]
    done = subprocess.run(
        command, cwd=f"/proc/{process}/cwd", env=_environment(process, chosen), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120, check=False,
    )
    if done.returncode == 0:
        return None
    alarms = [line for line in done.stdout.splitlines() if "[ALERT]" in line] or done.stdout.splitlines() or ["no reason was given"]
    told = "; ".join(re.sub(r"^\[ALERT\]\s*\(\d+\)\s*:\s*", "", line).strip() for line in alarms[:3])
    return told.replace(new, path) if new else told


def _program(pid: int, words: Sequence[str]) -> str:
    """The program that runs, or, where it was replaced or is in a container, the one of that name here."""
    program = os.path.realpath(f"/proc/{pid}/exe")
    if not os.access(program, os.X_OK):
        name = os.path.basename(words[0])
        program = shutil.which(name, path=PATH) or ""
        if not program:
            raise RefusedError(f"HAProxy's process {pid}", f"its program {name} is not to be found here", "Reload or restart HAProxy.")
    _guarded(program)
    return program


def _environment(pid: int, paths: Sequence[str]) -> Dict[str, str]:
    """Of the process's environment what these files name, since configurations refer to it; nothing that would have other code run."""
    named = {word for path in paths for word in re.findall(r"[A-Za-z_]\w*", read(path) or "", re.ASCII)}
    pairs = (item.partition("=") for item in (read(f"/proc/{pid}/environ") or "").split("\0") if "=" in item)
    return {"PATH": PATH, "LANG": "C.UTF-8", **{key: value for key, _sign, value in pairs if key in named and not STEERING.fullmatch(key)}}


# HAProxy's other processes and their connections, by the kernel, where no master socket tells of them


def others(current: int) -> Optional[Dict[int, str]]:
    """The processes that a reload left behind, by process id, each named as `Info.identity` names a worker; None where /proc does not
    show the current worker, so that nobody knows.

    They are known by what they were started with, in the same mount namespace, and not by their program's name, which may be
    `haproxy-2.8`, and another one after an upgrade. A process without any socket, such as a `tail -f` of that file, is none.
    """
    kind = _kind(current)
    if not kind[0]:
        return None
    aside = (current, _parent(current))
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in aside]
    return {pid: f"{pid}:{_started(pid)}" for pid in pids if _kind(pid) == kind and _sockets(pid)}


def master_socket(pid: int) -> str:
    """The path of the master's socket (-S) that this worker was started with; empty where there is none, or none to be seen."""
    words = _words(pid)
    wanted = words[words.index("-S") + 1].partition(",")[0] if "-S" in words[:-1] else ""
    path = wanted[len("unix@"):] if wanted.startswith("unix@") else wanted
    return path if os.path.isabs(path) and os.path.exists(path) else ""


def _kind(pid: int) -> Tuple[List[str], str, str]:
    """The configuration files in its command line, where those are, and none for what only checks them."""
    words = _words(pid)
    paths = [] if "-c" in words else given(words)
    relative = any(not path.startswith("/") for path in paths)
    return paths, _link(f"/proc/{pid}/ns/mnt") if paths else "", _link(f"/proc/{pid}/cwd") if relative else ""


def _started(pid: int) -> int:
    """When the process was started, in seconds since 1970."""
    ticks = (read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()[19:20]
    booted = re.search(r"^btime (\d+)", read("/proc/stat") or "", re.M)
    return int(booted.group(1)) + int(ticks[0]) // os.sysconf("SC_CLK_TCK") if booted and ticks else 0


def connections(pids: Optional[Sequence[int]], addresses: Sequence[Tuple[str, int]]) -> Mapping[Tuple[str, int], int]:
    """Established connections to these addresses, of these processes; None: of all in this network namespace."""
    count: Counter[Tuple[str, int]] = Counter()
    wanted: Dict[Tuple[object, int], Tuple[str, int]] = {}
    for address, port in addresses:
        if _is_ip(address):
            wanted[(ipaddress.ip_address(address), port)] = (address, port)
    owned = None if pids is None else {inode for pid in pids for inode in _sockets(pid)}
    spaces: Dict[str, List[str]] = {}
    for process in map(str, pids) if pids is not None else ["self"]:
        spaces.setdefault(_link(f"/proc/{process}/ns/net"), []).append(process)
    for processes in spaces.values():
        for name in ("tcp", "tcp6"):
            for line in _table(processes, name).splitlines()[1:]:
                words = line.split()
                key = wanted.get(_remote(words[2]))
                if key is not None and words[3] == "01" and (owned is None or words[9] in owned):
                    count[key] += 1
    return count


def _table(processes: Sequence[str], name: str) -> str:
    """The kernel's table of the network namespace that these processes share; empty only where all of them have ended meanwhile."""
    found = (read(f"/proc/{process}/net/{name}") for process in processes)
    return next((text for text in found if text is not None), "")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _sockets(pid: int) -> List[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return []
    except PermissionError as error:
        # To see none of a process that may not be seen would call a connected server idle.
        raise _refused(f"/proc/{pid}/fd", error) from None
    links = [_link(f"/proc/{pid}/fd/{name}") for name in names]
    return [link[len("socket:["):-1] for link in links if link.startswith("socket:[")]


def _remote(text: str) -> Tuple[object, int]:
    """The kernel's notation of an address and port: words of 32 bits in the machine's order."""
    host, _colon, port = text.partition(":")
    raw = b"".join(bytes.fromhex(host[index:index + 8])[::-1] for index in range(0, len(host), 8))
    address = ipaddress.ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address, int(port, 16)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
