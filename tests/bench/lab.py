# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the benchmark happens: an engine, HAProxy and images of its own, in namespaces of its own.

`isolated` runs a program as the first process of new network, mount and PID namespaces, with a folder of its own and nothing
in /run. Nothing in there can reach the machine's engine, ports or firewall, and when the program ends, however it ends, the
kernel ends everything that it started; only the folder and the control groups are left to remove.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache"
INSIDE = "PHOENIX_BENCH_DIR"
VERSIONS = ("even", "odd")
PROGRAMS = {"dockerd": "docker.io", "haproxy": "haproxy", "ip": "iproute2", "iptables": "iptables", "mmdebstrap": "mmdebstrap"}

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr crit;
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
events {{ worker_connections 512; }}
http {{
    access_log off;
    default_type text/plain;
    server {{
        listen 80;
        location / {{ return 200 "{version}\\n"; }}
        location /slow {{ echo_sleep 5; echo "{version}"; }}
    }}
}}
"""

# Packages are unpacked and not configured (3 s instead of 16), so this is all that their scripts would have left.
ACCOUNTS = 'echo root:x:0:0::/:/ > "$1/etc/passwd"; echo root:x:0: > "$1/etc/group"'
ROOTFS = CACHE / f"bench/nginx-{hashlib.sha256((NGINX + ACCOUNTS).encode()).hexdigest()[:8]}.tar"

HAPROXY = """\
global
    stats socket {folder}/admin.sock mode 600 level admin
    hard-stop-after 60s
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option idle-close-on-response
frontend www
    bind 127.0.0.1:8080
    default_backend web
"""


class LabError(Exception):
    """Something of the lab, or a method in it, did not work; says what and what it said itself."""


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; raises LabError with what the command said."""
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False, **options)
    if done.returncode:
        raise LabError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def until(condition: Callable[[], Any], what: Callable[[], str], seconds: float = 60) -> Any:
    """Polls until the condition is truthy, and returns what it was. Raises LabError with what was waited for."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s for {what()}")
        time.sleep(0.05)
    return result


def install() -> None:
    """Installs the packages that the lab needs and builds the nginx images' file system, where they are missing."""
    if os.geteuid():
        raise LabError("An engine of one's own needs root: run it with sudo")
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if packages:
        print(f"Installing {', '.join(packages)}")
        run("apt-get", "update")
        run("apt-get", "install", "-y", "--no-install-recommends", *packages, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if not shutil.which("docker"):  # a package of its own since Debian 13
        run("apt-get", "install", "-y", "--no-install-recommends", "docker-cli")
    if not ROOTFS.exists():
        print("Building the nginx image from Debian packages", flush=True)
        ROOTFS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            hooks = [f"--extract-hook={ACCOUNTS}"]
            for version in VERSIONS:
                path = Path(temporary) / f"{version}.conf"
                path.write_text(NGINX.format(version=version))
                hooks.append(f"--extract-hook=copy-in {path} /etc/nginx")
            suite, partial = platform.freedesktop_os_release()["VERSION_CODENAME"], ROOTFS.with_suffix(".partial")
            include = "--include=nginx-light,libnginx-mod-http-echo"
            run("mmdebstrap", "--variant=extract", "--format=tar", include, *hooks, suite, partial)
            partial.rename(ROOTFS)


def isolated(main: Callable[[Path], int]) -> int:
    """Calls main with a temporary folder, within namespaces that end with it. Returns its result."""
    if INSIDE in os.environ:
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        run("ip", "link", "set", "lo", "up")
        return main(Path(os.environ[INSIDE]))
    try:
        install()
    except LabError as error:
        raise SystemExit(str(error)) from None
    folder = tempfile.mkdtemp(prefix="phoenix-bench-")
    command = ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
    process = subprocess.Popen(command, env=environment(folder), start_new_session=True, preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        process.kill()
        process.wait()
        until(lambda: removed(folder), lambda: f"{folder} to be removed")
        for group in Path("/sys/fs/cgroup").glob(f"**/{os.path.basename(folder)}"):
            for path in os.walk(group, topdown=False):
                os.rmdir(path[0])


def removed(folder: str) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not os.path.exists(folder)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def environment(folder: str) -> dict[str, str]:
    """The environment without what would lead a client of Docker or Ansible elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "DOCKER_"))}
    return {**kept, INSIDE: folder, "HOME": folder, "TMPDIR": "/tmp", "DOCKER_CONFIG": folder}


class Engine:
    """A Docker engine at the default socket (ours: /run is), with the images nginx:even and nginx:odd in it, warm."""

    def __init__(self, folder: Path):
        command = ["dockerd", "--data-root", f"{folder}/engine", "--cgroup-parent", folder.name, "--log-level", "warn"]
        with open(folder / "dockerd.log", "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.api = until(self.connect, lambda: "the engine:\n" + (folder / "dockerd.log").read_text())
        for version in VERSIONS:
            entry = f'CMD ["/usr/sbin/nginx", "-c", "/etc/nginx/{version}.conf"]'
            run("docker", "import", "--change", entry, ROOTFS, f"nginx:{version}")
            container, address = self.start(f"nginx:{version}")
            with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
                assert answer.read().decode().strip() == version
            self.api.remove_container(container, force=True)

    def connect(self) -> docker.APIClient | None:
        if self.process.poll() is not None:
            raise LabError(f"dockerd ended with {self.process.returncode}")
        try:
            api = docker.APIClient(timeout=120)
            api.ping()
            return api
        except (docker.errors.DockerException, OSError):
            return None

    def start(self, image: str) -> tuple[str, str]:
        """Starts a container; its id and its address, once its port accepts connections."""
        container = self.api.create_container(image)["Id"]
        self.api.start(container)

        def listening() -> str:
            found = self.api.inspect_container(container)
            if found["State"]["Status"] != "running":
                raise LabError(f"{image} ended: {self.api.logs(container).decode()}")
            address: str = found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
            with socket.socket() as connection:
                return "" if connection.connect_ex((address, 80)) else address

        return container, until(listening, lambda: f"{image} to listen")

    def serving(self) -> list[str]:
        """The image of each container that runs, and the state of each that does not."""
        tags = {image["Id"]: image["RepoTags"][0] for image in self.api.images()}
        return [tags[c["ImageID"]] if c["State"] == "running" else c["State"] for c in self.api.containers(all=True)]

    def clear(self) -> None:
        if self.api.info()["Swarm"]["LocalNodeState"] != "inactive":
            self.api.leave_swarm(force=True)
        for container in self.api.containers(all=True):
            self.api.remove_container(container["Id"], force=True)


class Balancer:
    """While the block lasts: a HAProxy in master-worker mode, a front end on loopback, an empty backend `web` in its own file."""

    url = "http://127.0.0.1:8080/"

    def __init__(self, folder: Path, backend: str = "backend web\n    balance roundrobin\n    option httpchk GET /\n"):
        self.folder = folder
        (folder / "conf.d").mkdir(parents=True)
        (folder / "haproxy.cfg").write_text(HAPROXY.format(folder=folder))
        (folder / "conf.d/web.cfg").write_text(backend)
        control = ["-S", f"{folder}/master.sock", "-p", f"{folder}/pid"]
        command = ["haproxy", "-W", *control, "-f", f"{folder}/haproxy.cfg", "-f", f"{folder}/conf.d"]
        with open(folder / "haproxy.log", "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: "\nPid:" in self.ask("show info"), lambda: "HAProxy:\n" + (folder / "haproxy.log").read_text())

    def ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.folder / "admin.sock"))
                connection.sendall(command.encode() + b"\n")
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            except OSError:
                return ""

    def serving(self) -> int:
        """How many servers take traffic."""
        return len(self.weighted())

    def weighted(self) -> set[str]:
        """The servers that take traffic."""
        rows = [line.split(",") for line in self.ask("show stat web 4 -1").splitlines()[1:] if line]
        return {row[1] for row in rows if row[17].startswith("UP") and row[18] != "0"}

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def inventory(folder: Path, balancer: Balancer, **fleet: Any) -> Path:
    """An inventory with one fleet, web, behind one balancer, lb1, on this machine."""
    path = folder / "inventory.json"
    haproxy = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "haproxy_socket": f"{balancer.folder}/admin.sock",
        "haproxy_master_socket": f"{balancer.folder}/master.sock",
        "haproxy_config": f"{balancer.folder}/haproxy.cfg",
        "haproxy_config_dir": f"{balancer.folder}/conf.d",
    }
    web = {
        "fleet_port": 80,
        "fleet_checks": [{"http": {"path": "/"}}],
        "fleet_state_dir": f"{folder}/state",
        "fleet_revision": "bench",
        **fleet,
        "fleet_docker": {"subnet": "10.97.0.0/22", "ip_range": "10.97.3.0/24", **fleet.get("fleet_docker", {})},
    }
    groups = {"fleets": {"hosts": {"web": web}}, "balancers": {"hosts": {"lb1": haproxy}}}
    path.write_text(json.dumps({"all": {"children": groups}}, indent=2))
    return path
