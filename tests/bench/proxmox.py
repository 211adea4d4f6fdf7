# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual machines on a fake cluster of 8 nodes whose delays are set as on a real one: what a clone costs in calls and in seconds.

`proxmox.py [SIZE]`. A linked clone on Ceph takes 1.5 s and as much again when it starts, the start itself 3 s, an answer 20 ms. What a real
cluster would add, booting guests and storage that gets slower under load, is not in it.
"""

from __future__ import annotations

import sys
import time

from ansible_collections.phoenix.fleet.plugins.module_utils._providers.base import Blueprint
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._sets import placed
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import Served

NODES = 8


def main() -> None:
    size = int(sys.argv[1]) if sys.argv[1:] else 200
    with Served(nodes=NODES) as served:
        for number in range(1, NODES + 1):
            name = f"ceph:vm-{9000 + number}-cloudinit,media=cdrom"
            served.pve.add_template(9000 + number, "shop-1.0", f"pve{number}", "ceph", ide2=name)
        options = served.options(addresses=["10.77.0.10-10.77.3.250"])
        provider = connect(options)
        form = Blueprint(provider.image("shop-1.0"), "h", "bench", "", options, 8080)
        plan = placed(FACE, range(1, size + 1), (), provider.pools("bench", 8080, ["local"]), {"fleet": "bench", "release": 1}, form)
        served.pve.time_scale = 1
        served.pve.slow_network(0.02)
        served.pve.ceph_slow(1.5)
        started_by = served.pve._do_start

        async def slowly(vm, user, p):  # type: ignore[no-untyped-def]
            vm.start_secs = 3
            return await started_by(vm, user, p)

        served.pve._do_start = slowly  # type: ignore[method-assign]
        served.pve.calls.clear()
        began = time.monotonic()
        provider.create(plan, form)
        made = time.monotonic() - began
        calls, polls = sum(served.pve.calls.values()), served.pve.calls["GET /nodes/{node}/tasks"]
        print(f"{size} VMs on {NODES} nodes run after {made:.1f} s: {made / size:.2f} s and {calls / size:.1f} calls each,")
        print(f"of which {polls / size:.1f} are listings of tasks, {polls / made / NODES:.2f} a second on each node")


if __name__ == "__main__":
    main()
