# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine's limit: one release with nothing but the two APIs, everything in parallel, no safety.

limit.py SIZE IMAGE NUMBER SOCKET [NETWORK]: replaces the containers labelled `bench=limit` behind backend `web` of the HAProxy at
SOCKET by SIZE containers of IMAGE; NUMBER is the release's. With NETWORK, a user-defined one, they have fixed addresses, which outlive a
restart; else the ones that the default network gives them. Prints the seconds from the start to the end of each phase as JSON.
No ledger, no fragment, no identity, no rollback, one try: what it takes is what a release costs on this machine at least.
"""

from __future__ import annotations

import csv
import json
import socket
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import docker

size, image, number, path, network = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], "".join(sys.argv[5:])
engine = docker.APIClient(num_pools=32)
workers = ThreadPoolExecutor(8)
begin = time.monotonic()
phases: dict[str, float] = {}


def haproxy(*commands: str) -> list[str]:
    """The answers to commands, one at a time on one new connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(path)
        answers = []
        for command in ("prompt", *commands):
            connection.sendall(command.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n> "):
                answer += connection.recv(65536)
            answers.append(answer[:-3].decode())
        return answers[1:]


def servers() -> dict[str, dict[str, str]]:
    table = csv.DictReader(haproxy("show stat")[0].lstrip("# ").splitlines())
    return {row["svname"]: row for row in table if row["pxname"] == "web" and row["svname"].startswith("limit-")}


def provision(slot: int) -> tuple[str, str]:
    """Starts a container and waits until it answers: its name and address."""
    name = f"limit-{number}-{slot}"
    labels = {"bench": "limit", "bench.release": str(number)}
    host = engine.create_host_config(network_mode=network or "bridge")
    fixed = engine.create_endpoint_config(ipv4_address=f"10.96.{number % 2}.{slot + 1}")
    place = engine.create_networking_config({network: fixed}) if network else None
    container = engine.create_container(image, name=name, labels=labels, host_config=host, networking_config=place)["Id"]
    engine.start(container)
    address = engine.inspect_container(container)["NetworkSettings"]["Networks"][network or "bridge"]["IPAddress"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{address}:80/", timeout=1):
                return name, address
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{name} at {address} did not answer")


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within 60 s: {what}")
        time.sleep(0.02)


def passed(phase: str) -> None:
    phases[phase] = round(time.monotonic() - begin, 3)


old = [c for c in engine.containers(all=True, filters={"label": "bench=limit"}) if c["Labels"]["bench.release"] != str(number)]
retired = [c["Names"][0][1:] for c in old]
if network and not engine.networks(names=[network]):
    pool = docker.types.IPAMPool(subnet="10.96.0.0/22", iprange="10.96.3.0/24", gateway="10.96.2.1")
    engine.create_network(network, driver="bridge", ipam=docker.types.IPAMConfig(pool_configs=[pool]))
new = dict(workers.map(provision, range(1, size + 1)))
passed("provision")

commands = []
for slot, (name, address) in enumerate(new.items(), 1):
    options = f"check inter 1s fastinter 200ms rise 2 fall 2 weight 0 id {number * 1000 + slot} pool-purge-delay 5s pool-max-conn -1"
    commands.append(f"add server web/{name} {address}:80 {options}")
    commands += [f"enable health web/{name}", f"set server web/{name} state ready"]
haproxy(*commands)
until(lambda: all((s := servers()[name])["check_status"] == "L7OK" and s["status"] == "UP" for name in new), "checks passed")
passed("stage")

haproxy(*[f"set server web/{name} weight 100" for name in new], *[f"set server web/{name} state drain" for name in retired])
passed("cut over")

until(lambda: not any(int((s := servers()[name])["scur"]) + int(s["qcur"]) for name in retired), "drained")
haproxy(*[command for name in retired for command in (f"set server web/{name} state maint", f"del server web/{name}")])
passed("deregister")

list(workers.map(lambda container: engine.remove_container(container["Id"], force=True), old))
passed("remove")
print(json.dumps(phases))
