# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Docker engine of a test's own, beside the machine's, and golden images to start on it. Needs root."""

from __future__ import annotations

import io
import ipaddress
import os
import shutil
import signal
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


class DockerEngine:
    """A second dockerd with folders, a bridge and sockets of its own.

    name: up to 9 characters, for the bridge. bridge: address of its default bridge, with prefix. tls_port: listens on loopback
    there, with TLS that demands a client certificate; `tls` are the options to connect. arguments are further ones of dockerd. It
    leaves the firewall to the machine's engine (two of them would flush each other's rules), so that published ports go through the
    userland proxy.
    """

    def __init__(self, name: str, bridge: str, tls_port: int = 0, arguments: Sequence[str] = ()) -> None:
        self.name, self.bridge, self.tls_port, self.arguments = name, bridge, tls_port, arguments
        # Not the test's folder: the path of a Unix socket must be short.
        self.folder = Path(tempfile.mkdtemp(prefix=f"phoenix-{name}-"))
        self.url = f"unix://{self.folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.tls: dict[str, str] = {}
        if tls_port:
            self._certificates()

    def __enter__(self) -> DockerEngine:
        try:
            self._run("ip", "link", "add", self.link, "type", "bridge")
            self._run("ip", "address", "add", self.bridge, "dev", self.link)
            self._run("ip", "link", "set", self.link, "up")
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def link(self) -> str:
        return f"phx-{self.name}"

    @property
    def address(self) -> str:
        return str(ipaddress.ip_interface(self.bridge).ip)

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
        if self.process is not None and self.process.poll() is None:
            for process in self._processes() if force else [self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL if force else signal.SIGTERM)
            self.process.wait(DEADLINE)
        self.process = None
        if force:  # it would be on a file system in memory
            self._remove(self.folder / "exec")

    def _remove(self, folder: Path) -> None:
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{folder}/"):
                subprocess.run(["umount", line.split()[1]], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _processes(self) -> list[int]:
        """dockerd, its containerd, the shims, what these run: who names this engine's folder in the command line, and the children."""
        own: set[int] = set()
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                        own.add(int(entry.name))
                except OSError:  # it has ended
                    continue
        return [process for process, parent in parents.items() if process in own or parent in own]

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Take everything away: containers, dockerd, its bridges and its folder."""
        try:
            if self.process is None or self.process.poll() is not None:
                self.stop(force=True)
                self.start()
            with self.client() as client:
                for item in client.containers(all=True):
                    client.remove_container(item["Id"], force=True, v=True)
                for network in client.networks(filters={"type": "custom"}):
                    client.remove_network(network["Id"])
        finally:
            self.stop()
            subprocess.run(["ip", "link", "delete", self.link], check=False, capture_output=True)
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
    def _run(*command: str) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
