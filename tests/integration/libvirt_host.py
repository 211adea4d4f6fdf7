# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a test needs of this machine's libvirt, for itself alone: a storage pool and a network. And a way to it that can be cut."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import libvirt

URI = "qemu:///system"
POOLS = Path("/var/lib/libvirt")  # where QEMU's own user may read

# cli; hlt; and again, should anything wake it: a machine that starts at once and then costs nothing.
SLEEPER = bytes((0xFA, 0xF4, 0xEB, 0xFD)).ljust(510, b"\0") + b"\x55\xaa"

libvirt.registerErrorHandler(lambda *_: None, None)


class LibvirtHost:
    """A pool and a network, both named phoenix-test-NUMBER; as a context manager they live as long as it does.

    number is from 0 to 255. The network is 10.213.NUMBER.0/24; its own DHCP range begins at .200.
    """

    def __init__(self, number: int) -> None:
        self.name = f"phoenix-test-{number}"
        self.folder = POOLS / self.name
        self.bridge, self.base = f"phx-vm{number}", f"10.213.{number}"
        self.connection = libvirt.open(URI)

    def __enter__(self) -> LibvirtHost:
        self.clear()
        os.makedirs(self.folder, mode=0o755)
        self.pool = self.connection.storagePoolDefineXML(
            f"<pool type='dir'><name>{self.name}</name><target><path>{self.folder}</path></target></pool>"
        )
        self.network = self.connection.networkDefineXML(self.network_xml())
        for item in (self.pool, self.network):
            item.create()
            item.setAutostart(1)
        return self

    def network_xml(self) -> str:
        return (
            f"<network><name>{self.name}</name><bridge name='{self.bridge}'/>"
            f"<ip address='{self.base}.1' netmask='255.255.255.0'>"
            f"<dhcp><range start='{self.base}.200' end='{self.base}.254'/></dhcp></ip></network>"
        )

    def __exit__(self, *_exception: object) -> None:
        self.clear()
        self.connection.close()

    def clear(self) -> None:
        """Take away whatever there is in this pool or network."""
        for domain in self.domains():
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        with suppress(libvirt.libvirtError):
            network = self.connection.networkLookupByName(self.name)
            if network.isActive():
                network.destroy()
            network.undefine()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)  # of a libvirt that was killed
        with suppress(libvirt.libvirtError):
            pool = self.connection.storagePoolLookupByName(self.name)
            if pool.isActive():
                pool.destroy()
            pool.undefine()
        shutil.rmtree(self.folder, ignore_errors=True)

    def domains(self) -> list[libvirt.virDomain]:
        """Those on this network."""
        return [item for item in self.connection.listAllDomains() if f"network='{self.name}'" in item.XMLDesc()]

    def put(self, name: str, source: Path | bytes) -> str:
        """A file into the pool, as whoever ships images does it; returns its path."""
        path = self.folder / name
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        self.pool.refresh()
        return str(path)

    def forget(self, prefix: str) -> None:
        """Remove all volumes and reservations whose names begin like that."""
        for name in self.volumes():
            if name.startswith(prefix):
                self.pool.storageVolLookupByName(name).delete()
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE | libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
        for name, address in sorted(set(self.reservations())):
            if name.startswith(prefix):
                self.network.update(
                    libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1,
                    f"<host name='{name}' ip='{address}'/>", flags,
                )

    def volumes(self) -> list[str]:
        """What is in the pool, without the checksums that stand beside golden volumes."""
        self.pool.refresh()
        return sorted(name for name in self.pool.listVolumes() if not name.endswith(".phoenix-checksum"))

    def reservations(self) -> list[tuple[str, str]]:
        """Names and addresses that the network has reserved, in what it runs with and in what it will start with."""
        found = []
        for flags in (0, libvirt.VIR_NETWORK_XML_INACTIVE):
            root = ElementTree.fromstring(self.network.XMLDesc(flags))
            found += [(item.get("name", ""), item.get("ip", "")) for item in root.iter("host") if item.get("mac")]
        return sorted(found)

    def xml(self, uuid: str) -> ElementTree.Element:
        return ElementTree.fromstring(self.connection.lookupByUUIDString(uuid).XMLDesc())

    def kill(self, name: str) -> None:
        """End a machine's process, as a crash of QEMU does."""
        os.kill(int(Path(f"/run/libvirt/qemu/{name}.pid").read_text()), 9)


class Cut:
    """A way to libvirt that can be cut: passes bytes between a socket of its own and libvirt's, and counts them."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="phoenix-cut-")
        self.path = f"{self.folder}/libvirt"
        self.passed = 0
        self.uri = f"qemu+unix:///system?socket={self.path}"
        self.ends: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                far = socket.socket(socket.AF_UNIX)
                far.connect("/run/libvirt/libvirt-sock")
                self.ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.passed += len(data)
                target.sendall(data)

    def close(self) -> None:
        for end in [self.listener, *self.ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        shutil.rmtree(self.folder, ignore_errors=True)
