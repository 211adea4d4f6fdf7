# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of C(fleet_docker), shared by the modules of the Docker provider."""

    DOCUMENTATION = r"""
options:
  hosts:
    description:
      - The Docker engines. Each is an address (V(unix:///var/run/docker.sock), V(tcp://node1:2376), V(ssh://ops@node1)), or a mapping with
        C(url) and, where engines differ, C(name), C(publish_address), C(network), C(subnet), C(ip_range) and C(tls).
      - Instances are spread evenly over them.
      - By default the engine that the docker client finds, by E(DOCKER_HOST), its current context or the usual socket.
      - An engine's name is by default the host it is on, V(local) for this one. Instances carry it as RV(ignore:instances[].host).
      - With C(ssh) the docker SDK runs C(docker system dial-stdio) through this user's own C(ssh), with its keys and known hosts.
        Each request is a connection of its own, so that C(ControlMaster) in that user's configuration makes it several times as fast.
    type: list
    elements: raw
  tls:
    description: How to speak TLS with engines at C(tcp) addresses. Without it such a connection is not encrypted.
    type: dict
    suboptions:
      ca_path:
        description: The certificate of the authority that signed the engine's.
        type: path
      client_cert:
        description: The certificate to show to the engine.
        type: path
      client_key:
        description: The key of O(tls.client_cert).
        type: path
      validate_certs:
        description: Whether the engine's certificate has to be valid for its address.
        type: bool
        default: true
requirements:
  - docker (the docker SDK for Python, 7.1 or later)
  - Docker Engine 20.10 or later
"""

    REGISTRY = r"""
options:
  pull:
    description:
      - When an engine pulls the image. V(missing) is the default.
      - With V(never) no registry is asked, and a tag means what the first engine has under it.
    type: str
    choices: [missing, always, never]
  registry:
    description: The account at the image's registry. By default the one that C(docker login) has saved for the user.
    type: dict
    suboptions:
      server:
        description: The registry's host name, with its port if it has one.
        type: str
        default: docker.io
      username:
        description: The account's name.
        type: str
      password:
        description: The account's password or token.
        type: str
"""

    INSTANCE = r"""
options:
  network:
    description:
      - The bridge network that instances have addresses of their own on, V(phoenix) by default. It is created when missing.
      - An existing one must have this O(subnet) and O(ip_range), or is refused.
      - Where ports are published, instances join it only if it is given here; otherwise they are on the engine's default bridge.
    type: str
  subnet:
    description: The IPv4 network of O(network), V(172.30.0.0/16) by default. Several engines on one host need one each.
    type: str
  ip_range:
    description:
      - The part of O(subnet) that the engine gives to other containers. Instances get fixed addresses outside of it.
      - By default the upper quarter of O(subnet).
    type: str
  address:
    description:
      - V(network) gives each instance an address of its own on O(network), which can be reached from the engine's host only.
      - V(published) gives it a port of its own on O(publish_address).
      - By default V(network) where every balancer is on the engine's host, V(published) elsewhere.
    type: str
    choices: [network, published]
  publish_address:
    description:
      - The IPv4 address of the engine's host that published ports are bound to.
      - By default V(127.0.0.1) where engine and balancers are on this host, and the engine's own address for one at another host.
      - Required where the engine is on this host and a balancer is not.
    type: str
  publish_ports:
    description: The ports that may be published, below 32768, V(20000-24999) by default.
    type: str
  environment:
    description:
      - Environment variables of every instance, taken literally. Put secrets into O(secrets) instead, since an engine shows an environment.
      - No result shows it. The ledger of a fleet keeps it, as it keeps O(log_options), O(health) and O(command).
    type: dict
  secrets:
    description:
      - Secrets as names and values. Each is a file C(/run/secrets/NAME) that only the instance's user can read.
      - They are kept in a volume of the release, which is removed with the release's last instance on an engine.
    type: dict
  mounts:
    description:
      - What is mounted from outside. Each is V(SOURCE:TARGET), V(SOURCE:TARGET:ro), or a mapping of C(source), C(target), C(read_only).
      - A source with a leading slash is a path on the engine's host, another one the name of a volume.
    type: list
    elements: raw
  memory:
    description:
      - The memory an instance may use, such as V(256m). With it, an engine that could not hold old and new instances at once is refused.
    type: str
  cpus:
    description: The processors an instance may use, such as V(1.5).
    type: float
  user:
    description: The user that the instance runs as, by name or number, with or without a group. By default the image's.
    type: str
  ulimits:
    description: Limits by name, such as C(nofile), as a number or V(SOFT:HARD).
    type: dict
  sealed:
    description: Whether the root filesystem is read-only, all capabilities are dropped, and only C(/tmp) can be written, in memory.
    type: bool
  log_driver:
    description: The log driver, by default the engine's.
    type: str
  log_options:
    description: Options of the log driver. No result shows them.
    type: dict
  health:
    description:
      - The engine's own health check, by default the image's. C(test) is a line for the instance's shell, or a list of words,
        C(interval), C(timeout) and C(start_period) are seconds or such as V(5s), C(retries) is a number.
    type: dict
  stop_signal:
    description: The polite signal, by default the image's.
    type: str
  command:
    description:
      - The command, as a list of words or one line, by default the image's.
      - No result shows it, but whoever lists processes on the engine's host sees it.
    type: raw
"""
