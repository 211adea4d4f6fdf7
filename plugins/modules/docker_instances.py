#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_instances
short_description: Keep one release of a fleet as containers on Docker engines
version_added: 1.0.0
description:
  - Makes O(size) instances of a release from a golden image, spread evenly over O(hosts), or stops or removes them.
  - An instance that exists is never changed. Another image or option is another release, and is refused under the same O(release).
  - Every container carries a marker with the fleet, the release and the ledger. Nothing without it, and no other release, is touched.
  - The roles of the collection do the same with a ledger, checks and HAProxy. This module is for playbooks that use none of them.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.release_set
  - phoenix.fleet.docker
  - phoenix.fleet.docker.registry
  - phoenix.fleet.docker.instance
options:
  image:
    description: The golden image, C(repo:tag), C(repo@sha256:DIGEST) or C(sha256:ID). Required for O(state=present).
    type: str
  balancers:
    description: The addresses of the hosts that must reach the instances, V(local) for this one.
    type: list
    elements: str
    default: [local]
  stop_timeout:
    description: Seconds between the polite signal and the kill.
    type: int
    default: 10
notes:
  - Of O(secrets) only the names count when it is decided whether an instance is still the one asked for.
    A new value needs a new O(release).
seealso:
  - module: phoenix.fleet.docker_instances_info
  - module: phoenix.fleet.instances
"""

EXAMPLES = r"""
---
- name: Two instances of the shop, sealed and with a secret
  phoenix.fleet.docker_instances:
    fleet: shop
    release: 7
    image: registry.example.org/shop:1.9
    size: 2
    port: 8080
    sealed: true
    memory: 256m
    secrets:
      database_password: "{{ vault_database_password }}"
  register: shop

- name: The same on two engines, reached from a balancer elsewhere
  phoenix.fleet.docker_instances:
    fleet: shop
    release: 7
    image: registry.example.org/shop:1.9
    size: 4
    port: 8080
    balancers: [192.0.2.10]
    hosts:
      - ssh://ops@192.0.2.21
      - {url: "tcp://192.0.2.22:2376", name: node2}
    tls:
      ca_path: /etc/docker/tls/ca.pem
      client_cert: /etc/docker/tls/cert.pem
      client_key: /etc/docker/tls/key.pem

- name: The predecessor is gone
  phoenix.fleet.docker_instances:
    fleet: shop
    release: 6
    state: absent
"""

RETURN = r"""
instances:
  description: The instances of the release afterwards.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: "The name, C(FLEET-rRELEASE-SLOT).", type: str, returned: always}
    id: {description: The engine's own id. Empty for one that check mode would make., type: str, returned: always}
    host: {description: The name of the engine., type: str, returned: always}
    fleet: {description: The fleet's name., type: str, returned: always}
    release: {description: The release's number., type: int, returned: always}
    slot: {description: The number within the release., type: int, returned: always}
    image: {description: "The image by its digest, or by its id.", type: str, returned: always}
    revision: {description: The revision that it was made from., type: str, returned: always}
    address: {description: The address that it is reached at., type: str, returned: always}
    port: {description: The port that it is reached at., type: int, returned: always}
    state: {description: "V(created), V(running), V(restarting) or V(stopped).", type: str, returned: always}
    health: {description: "The engine's health check, V(healthy), V(unhealthy), V(starting) or V(none).", type: str, returned: always}
    created: {description: "When it was made, in UTC.", type: str, returned: always}
    marker: {description: The labels that say whose it is., type: dict, returned: always}
    number: {description: "Its number where the ledger issues one, here always 0.", type: int, returned: always}
    note: {description: "What somebody has to do before anything can be done to it, here always empty.", type: str, returned: always}
  sample:
    - name: web-r42-1
      id: 9f3c1e6b7d20
      host: local
      fleet: web
      release: 42
      slot: 1
      image: shop@sha256:9f3c1e6b7d20
      revision: 4be1c2d
      address: 172.30.0.2
      port: 8080
      state: running
      health: healthy
      created: "2026-11-20T03:00:00Z"
      marker: {phoenix.fleet.name: web, phoenix.fleet.release: "42"}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._docker_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import shielded


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.arguments, supports_check_mode=True)
    params, veil = shielded(module, FACE.module.OPTIONS)
    try:
        result = FACE.carry_out(params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=veil(str(error)))
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
