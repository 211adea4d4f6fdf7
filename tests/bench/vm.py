# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the command to serving, for two emulated machines: a bare script of virsh, and a release of this collection. See `vm` beside it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from ansible_collections.phoenix.fleet.tests.integration.fleet_site import Site
from ansible_collections.phoenix.fleet.tests.integration.haproxy_process import HAProxyProcess
from ansible_collections.phoenix.fleet.tests.integration.libvirt_host import LibvirtHost

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "phoenix-sample-v1.qcow2"
DEADLINE = 180

# POOL NETWORK FOLDER BASE: what somebody types who makes two machines by hand.
SCRIPT = """
set -euo pipefail
export LIBVIRT_DEFAULT_URI=qemu:///system
for slot in 1 2; do
    name=bare-$slot mac=52:54:00:00:00:0$slot
    cat >"$3/$name.env" <<ENV
PHOENIX_INSTANCE=$name
ENV
    printf '{"instance-id": "%s", "local-hostname": "%s"}\\n' $name $name >"$3/meta-data"
    printf '#cloud-config\\n' >"$3/user-data"
    cp "$3/$name.env" "$3/phoenix-fleet.env"
    genisoimage -quiet -output "$3/$name.iso" -volid cidata -joliet -rock "$3/meta-data" "$3/user-data" "$3/phoenix-fleet.env"
    virsh -q vol-create-as "$1" $name.qcow2 128M --format qcow2 --backing-vol phoenix-sample-v1.qcow2 --backing-vol-format qcow2
    virsh -q vol-create-as "$1" $name.iso 1M --format raw
    virsh -q vol-upload $name.iso "$3/$name.iso" --pool "$1"
    virsh -q net-update "$2" add ip-dhcp-host "<host mac='$mac' name='$name' ip='$4.19$slot'/>" --live --config
    cat >"$3/$name.xml" <<XML
<domain type='qemu'><name>$name</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><features><acpi/><apic/></features><cpu mode='maximum'/>
<devices><controller type='usb' model='none'/>
<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>
<source pool='$1' volume='$name.qcow2'/><target dev='vda' bus='virtio'/></disk>
<disk type='volume' device='disk'><driver name='qemu' type='raw'/>
<source pool='$1' volume='$name.iso'/><target dev='vdb' bus='virtio'/><readonly/></disk>
<interface type='network'><mac address='$mac'/><source network='$2'/><model type='virtio'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>
XML
    virsh -q define "$3/$name.xml"
    virsh -q start $name
done
"""


def until_served(urls: list[str], started: float) -> float:
    """Seconds since `started` until each of them has answered."""
    waiting = set(urls)
    while waiting:
        for url in sorted(waiting):
            try:
                with urllib.request.urlopen(url, timeout=1):
                    waiting.discard(url)
            except OSError:
                pass
        assert time.monotonic() < started + DEADLINE, f"no answer from {sorted(waiting)} within {DEADLINE} s"
        time.sleep(0.05)
    return time.monotonic() - started


def bare(host: LibvirtHost, folder: Path) -> float:
    started = time.monotonic()
    subprocess.run(["bash", "-c", SCRIPT, "bare", host.name, host.name, str(folder), host.base], check=True)
    return until_served([f"http://{host.base}.19{slot}:8080/" for slot in (1, 2)], started)


def fleet(host: LibvirtHost, folder: Path) -> tuple[float, float]:
    """Seconds until both machines of a first release answer at their own addresses, and until the release has ended."""
    haproxy = HAProxyProcess(folder / "haproxy", backends=("web",))
    haproxy.start()
    site = Site(folder, haproxy, 8000)
    try:
        options = {"pool": host.name, "network": host.name, "memory": "256m", "domain_type": "qemu"}
        site.fleet("web", fleet_provider="libvirt", fleet_image=IMAGE, fleet_check_timeout=DEADLINE, fleet_libvirt=options)
        started = time.monotonic()
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "phoenix.fleet.release", "-i", str(site.inventory)]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            served = until_served([f"http://{host.base}.{last}:8080/" for last in (2, 3)], started)
            said = running.communicate()[0]
        assert running.returncode == 0, said
        return served, time.monotonic() - started
    finally:
        haproxy.stop()
        site.close()


def main(runs: int = 3) -> None:
    if not (ROOT / "build/vm" / IMAGE).exists():
        sys.exit("There is no golden image: make vm-image")
    found: dict[str, list[float]] = {"virsh script": [], "phoenix.fleet, serving": [], "phoenix.fleet, released": []}
    for _run in range(runs):
        for way in ("virsh script", "phoenix.fleet"):
            with tempfile.TemporaryDirectory() as folder, LibvirtHost(9) as host:
                host.put(IMAGE, ROOT / "build/vm" / IMAGE)
                if way == "virsh script":
                    found[way].append(bare(host, Path(folder)))
                else:
                    served, released = fleet(host, Path(folder))
                    found["phoenix.fleet, serving"].append(served)
                    found["phoenix.fleet, released"].append(released)
    base = statistics.median(found["virsh script"])
    for way, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{way:<24} {middle:6.1f} s  {middle / base:5.2f}x   ({', '.join(f'{item:.1f}' for item in seconds)})")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
