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
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from .._errors import DeadlineError, RefusedError

LOCK_PATIENCE = 90.0


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
        errno.ENOENT: "Make the folder, and let HAProxy load it with -f; the playbook phoenix.fleet.hosts does both.",
    }
    return RefusedError(path, error.strerror or str(error), remedies.get(error.errno or 0, ""))


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the folder of the fragments, itself and no file in it, so that nobody of ours compares, writes or commands meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    cause = f"another run has held its lock for {LOCK_PATIENCE:.0f} s"
                    raise DeadlineError(folder, cause, f"See who does, on this balancer: fuser -v {folder}") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


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


def _command(pid: int) -> Tuple[int, List[str]]:
    """The master's process id and words, or the worker's own where there is no master. Raises RefusedError where /proc does not tell."""
    for process in (_parent(pid), pid):
        words = _words(process)
        if words and "haproxy" in os.path.basename(words[0]):
            return process, words
    raise RefusedError(
        f"HAProxy's process {pid}", "its command line cannot be read",
        "Run on the host and in the process namespace in which HAProxy runs, as root (ansible_become: true).",
    )


def _parent(pid: int) -> int:
    found = re.search(r"^PPid:\s*(\d+)", read(f"/proc/{pid}/status") or "", re.M)
    return int(found.group(1)) if found else 0


def _words(pid: int) -> List[str]:
    return [word for word in (read(f"/proc/{pid}/cmdline") or "").split("\0") if word]


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


def _given(pid: int) -> Tuple[int, List[str], List[str]]:
    process, words = _command(pid)
    base = os.path.realpath(f"/proc/{process}/cwd")
    if "-C" in words[:-1]:
        base = os.path.join(base, words[words.index("-C") + 1])
    return process, words, [os.path.join(base, path) for path in given(words)]


def listing(pid: int, extra: str = "") -> List[str]:
    """All files that the HAProxy of this worker loads, with `extra` where it would be among them."""
    return expanded(_given(pid)[2], os.path.dirname(extra), os.path.basename(extra))


def listed(pid: int, path: str, config: str, config_dir: str) -> None:
    """Raises RefusedError unless HAProxy loads this file, or would if it existed."""
    paths = _given(pid)[2]
    real = {os.path.realpath(item) for item in paths}
    if os.path.realpath(path) not in real and os.path.realpath(config_dir) not in real:
        raise RefusedError(
            f"the folder {config_dir}", f"the running HAProxy does not load it, only {', '.join(paths) or 'nothing'}",
            f"Start it with -f {config} -f {config_dir} (on Debian by EXTRAOPTS in /etc/default/haproxy), as phoenix.fleet.hosts does.",
        )


def validate(pid: int, path: str, new: Optional[str]) -> Optional[str]:
    """HAProxy's own check of all its files in its own order, with `new` in the place of `path` (None: with no such file).

    Returns None where HAProxy is content, else its words. Each file is named by itself, because `haproxy -c -f FOLDER` ignores the
    dot-file that is to be checked (facts 0).
    """
    process, words, paths = _given(pid)
    everything = expanded(paths, os.path.dirname(path), os.path.basename(path))
    real = os.path.realpath(path)
    chosen = [new if os.path.realpath(item) == real else item for item in everything]
    command = [_program(process, words), "-c"]
    for item in chosen:
        command += ["-f", item] if item else []
    done = subprocess.run(
        command, cwd=f"/proc/{process}/cwd", env=_environment(process), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120, check=False,
    )
    if done.returncode == 0:
        return None
    alarms = [line for line in done.stdout.splitlines() if "[ALERT]" in line] or done.stdout.splitlines() or ["no reason was given"]
    told = "; ".join(re.sub(r"^\[ALERT\]\s*\(\d+\)\s*:\s*", "", line).strip() for line in alarms[:3])
    return told.replace(new, path) if new else told


def _program(pid: int, words: Sequence[str]) -> str:
    program = os.path.realpath(f"/proc/{pid}/exe")
    if os.access(program, os.X_OK):
        return program
    return shutil.which(os.path.basename(words[0]), path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or words[0]


def _environment(pid: int) -> Dict[str, str]:
    """The master's environment, since configurations refer to it; what systemd and HAProxy themselves put there is left out."""
    pairs = (item.partition("=") for item in (read(f"/proc/{pid}/environ") or "").split("\0") if "=" in item)
    return {key: value for key, _sign, value in pairs if key != "NOTIFY_SOCKET" and not key.startswith("HAPROXY_")}


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
