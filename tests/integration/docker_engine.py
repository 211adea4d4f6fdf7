# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Docker engine of a test's own, beside the machine's, and golden images to start on it. Needs root."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import docker

SERVE = """#!/bin/busybox sh
trap 'kill $!; exit 0' TERM
echo "$PHOENIX_INSTANCE serves"
rm -f /tmp/die; mkdir -p /tmp/www && echo "$PHOENIX_INSTANCE" > /tmp/www/index.html
while ! [ -e /tmp/die ]; do httpd -f -p 8080 -h /tmp/www & wait; done
exit 3
"""
DOCKERFILE = """FROM scratch
COPY busybox /bin/busybox
COPY serve /bin/serve
COPY passwd group /etc/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN ["/bin/mkdir", "-m", "1777", "/tmp"]
CMD ["/bin/serve"]
"""
FILES = {
    "Dockerfile": DOCKERFILE, "serve": SERVE, "passwd": "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n",
    "group": "root:x:0:\napp:x:1235:\n",
}
DEADLINE = 60


def build(client: docker.APIClient, tag: str) -> str:
    """Build the golden image from scratch and busybox; returns its id. It ends politely, and dies of the file /tmp/die."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in {**{name: text.encode() for name, text in FILES.items()}, "busybox": Path("/bin/busybox").read_bytes()}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    lines = list(client.build(fileobj=io.BytesIO(buffer.getvalue()), custom_context=True, tag=tag, rm=True, forcerm=True, decode=True))
    errors = [line["error"] for line in lines if "error" in line]
    assert not errors, errors
    return str(client.inspect_image(tag)["Id"])


def copy(tag: str, source: docker.APIClient, target: docker.APIClient) -> None:
    """The very image on another engine: a second build would have another id."""
    target.load_image(b"".join(source.get_image(tag)))


def until(what: str, holds: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Poll until `holds()`, or fail saying what was waited for."""
    end = time.monotonic() + deadline
    while not holds():
        assert time.monotonic() < end, f"waited {deadline} s in vain: {what}"
        time.sleep(0.05)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DockerEngine:
    """A second dockerd with folders, a bridge and sockets of its own.

    name is what fleets call it. number is from 1 to 254 and its own: the default bridge is 10.211.NUMBER.0/24, the tests' networks are
    in 172.29.NUMBER.0/24. tls: it listens on loopback too, at `tls_port`, with TLS that demands a client certificate; the attribute `tls`
    has the options to connect. arguments are further ones of dockerd. It leaves the firewall to the machine's engine (two of them would
    flush each other's rules), so that published ports go through the userland proxy.

    Its names are always the same, so that the next one finds and takes away whatever one left whose tests were killed.
    """

    def __init__(self, name: str, number: int, tls: bool = False, arguments: Sequence[str] = ()) -> None:
        self.name, self.tls_port, self.arguments = name, free_port() if tls else 0, arguments
        self.link, self.address, self.subnet = f"phx-engine{number}", f"10.211.{number}.1", f"172.29.{number}.0/24"
        # Not the test's folder: the path of a Unix socket must be short.
        self.folder = Path(tempfile.gettempdir()) / f"phoenix-engine{number}"
        self.url = f"unix://{self.folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.tls: dict[str, str] = {}

    def __enter__(self) -> DockerEngine:
        self._clear()
        try:
            self.folder.mkdir(mode=0o700)
            if self.tls_port:
                self._certificates()
            self._run("ip", "link", "add", self.link, "type", "bridge")
            self._run("ip", "address", "add", f"{self.address}/24", "dev", self.link)
            self._run("ip", "link", "set", self.link, "up")
            self.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def client(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.url, version="auto", timeout=DEADLINE)

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        command = [
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/pid",
            "--host", self.url, "--bridge", self.link, "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--log-level", "warn",
            *self.arguments,
        ]
        if self.tls_port:
            command += ["--host", f"tcp://127.0.0.1:{self.tls_port}", "--tlsverify", "--tlscacert", f"{self.folder}/ca.pem"]
            command += ["--tlscert", f"{self.folder}/server.pem", "--tlskey", f"{self.folder}/server.key"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        until(f"dockerd of {self.folder} answers", self._answers)

    def stop(self, force: bool = False) -> None:
        """End dockerd politely, its containers with it; with `force` everything at once, as a power cut does."""
        if force:
            self._kill()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(DEADLINE)
        self.process = None
        if force:  # it would be on a file system in memory
            self._remove(self.folder / "exec")

    def _kill(self) -> None:
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _remove(self, folder: Path) -> None:
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", line.split()[1]], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _processes(self) -> list[int]:
        """dockerd, its containerd, the shims, what these run: who names this engine's folder in the command line, and the children."""
        own: set[int] = set()
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if f"{self.folder}/".encode() in (entry / "cmdline").read_bytes():
                        own.add(int(entry.name))
                except OSError:  # it has ended
                    continue
        return [process for process, parent in parents.items() if process in own or parent in own]

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Take everything away: containers, networks, dockerd and what was made for it."""
        try:
            if self.process is not None and self.process.poll() is None:
                with self.client() as client:
                    for item in client.containers(all=True):
                        client.remove_container(item["Id"], force=True, v=True)
                    for network in client.networks(filters={"type": "custom"}):
                        client.remove_network(network["Id"])
                self.stop()
        finally:
            self._clear()

    def _clear(self) -> None:
        """Take away its processes, bridges and folder without asking it: it may have been killed, and by others than this object."""
        self._kill()
        for network in (f"{self.address}/24", self.subnet):
            for line in self._run("ip", "-o", "-4", "address", "show", "to", network).splitlines():
                self._run("ip", "link", "delete", line.split()[1])
        self._remove(self.folder)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            with self.client() as client:
                return bool(client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _certificates(self) -> None:
        """An authority, a certificate for 127.0.0.1 and one for a client."""
        made = self.folder
        self._run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority",
                  "-addext", "keyUsage=critical,keyCertSign", "-keyout", f"{made}/ca.key", "-out", f"{made}/ca.pem")
        for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
            (made / f"{name}.ext").write_text(extension)
            self._run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{made}/{name}.key",
                      "-out", f"{made}/{name}.csr")
            self._run("openssl", "x509", "-req", "-days", "2", "-in", f"{made}/{name}.csr", "-CA", f"{made}/ca.pem",
                      "-CAkey", f"{made}/ca.key", "-CAcreateserial", "-extfile", f"{made}/{name}.ext", "-out", f"{made}/{name}.pem")
        self.tls = {"ca_path": f"{made}/ca.pem", "client_cert": f"{made}/client.pem", "client_key": f"{made}/client.key"}

    @staticmethod
    def _run(*command: str) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout
