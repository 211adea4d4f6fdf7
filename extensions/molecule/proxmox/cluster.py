# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fake Proxmox VE cluster until it is told to end; `cluster.json` in the folder says where it is, and `cluster.pid` who."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import Guests, Served

folder = Path(sys.argv[1])
with Served() as served:
    for number, digit in ((1, "1"), (2, "2")):
        for node in (1, 2):
            served.pve.add_template(9000 + 10 * number + node, f"shop-{number}", f"pve{node}", digest="sha256:" + digit * 64)
    guests = Guests(served)
    options = served.options(addresses=["127.77.1.10-127.77.1.60"])
    (folder / "cluster.pid").write_text(str(os.getpid()))
    (folder / "cluster.part").write_text(json.dumps({"port": guests.port, "options": options}))
    (folder / "cluster.part").rename(folder / "cluster.json")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    guests.close()
