#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_backend
short_description: Bring a HAProxy backend to its desired servers without losing a request
version_added: 1.0.0
description:
  - Writes the backend as a fragment of HAProxy's configuration, validated by HAProxy itself, and then applies it at run time, without a
    reload. A reload, restart or crash at any moment finds the same backend in the fragment.
  - A server takes traffic only after HAProxy's own checks have spoken, so a new one is staged at weight 0 first and waited for.
  - A server that is no longer listed is drained and deregistered when no HAProxy process holds a connection to it.
  - A backend that HAProxy does not have yet, and changed O(options), cost one reload. If that fails, the former fragment returns.
  - A backend or servers that somebody else wrote are refused, or with O(adopt) taken over.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.haproxy
options:
  state:
    description:
      - V(present) brings the backend to O(options) and O(servers). V(absent) drains and removes it; an empty one is kept as long as a front
        end refers to it.
      - V(observed) changes no server. With a O(lease) it marks the fragment with the fence, so that acts under an older one are refused.
    type: str
    default: present
    choices: [present, observed, absent]
  options:
    description:
      - The settings of the backend, as in C(fleet_haproxy). Without it those of the fragment stay, or the defaults below are written.
    type: dict
    suboptions:
      mode:
        description: The mode, V(http) by default.
        type: str
        choices: [http, tcp]
      balance:
        description:
          - The algorithm, V(roundrobin) by default. It must take servers at run time, so V(static-rr) is refused, and one that hashes gets
            C(hash-type consistent). Such a line in O(options.options), with another function for example, takes its place.
        type: str
      check:
        description: HAProxy's own check of every server. Without C(path) it is a TCP connection.
        type: dict
        suboptions:
          path:
            description: The path that is asked for.
            type: str
          status:
            description: The status that is expected, such as V(200), V(200-399) or a list of them. By default 2xx and 3xx.
            type: raw
          host:
            description: The host that is asked for.
            type: str
      inter:
        description: The time between two checks of a healthy server, V(1s) by default. The first one comes after at most 100 ms.
        type: str
      rise:
        description: How many checks bring a failed server back, V(2) by default.
        type: int
      fall:
        description: How many failed checks take a server out, V(2) by default.
        type: int
      server:
        description: Options of every server.
        type: dict
        suboptions:
          ssl:
            description:
              - Whether HAProxy talks TLS to it, checks too. It takes O(options.server.ca_file) or O(options.server.verify=none).
              - A backend that was written with neither goes on unverified as long as no O(options) are given.
            type: bool
          verify:
            description: Whether its certificate is verified. V(required), the default, needs O(options.server.ca_file).
            type: str
            choices: [required, none]
          ca_file:
            description: The file on the balancer with the certificates of the authorities to verify its certificate by.
            type: str
          sni:
            description: The server name to ask for by TLS, a name or an expression of HAProxy.
            type: str
          alpn:
            description: The protocols to offer by TLS, such as V(h2,http/1.1).
            type: str
          send_proxy_v2:
            description: Whether to begin connections with the PROXY protocol.
            type: bool
          maxconn:
            description: How many connections a server gets at most.
            type: int
      cookie:
        description:
          - The name of a cookie that keeps a client on its server until that leaves.
        type: str
      timeouts:
        description: Times with their unit, such as V(5s).
        type: dict
        suboptions:
          connect:
            description: To connect to a server, V(5s) by default.
            type: str
          server:
            description: Silence of a server, V(60s) by default.
            type: str
          queue:
            description: Waiting for a free connection, V(30s) by default.
            type: str
          check:
            description: To read the answer to a check, V(2s) by default.
            type: str
          tunnel:
            description: Silence of a tunnel, a WebSocket for example.
            type: str
          server_fin:
            description: Silence of a server that has half-closed.
            type: str
          http_keep_alive:
            description: Waiting for a further request.
            type: str
          http_request:
            description: Waiting for a complete request.
            type: str
      options:
        description:
          - Further lines of the backend. With V(option external-check) a new server costs a reload, as HAProxy crashes on one that is
            added at run time there.
        type: list
        elements: str
  options_for:
    description:
      - V(all) servers have O(options). With V(new) the servers that are there already keep what they had until they leave, and are not
        judged by a health check that is not theirs. V(former) takes such a change back.
    type: str
    default: all
    choices: [all, new, former]
  servers:
    description:
      - All servers of the backend. One that is not listed is drained and deregistered. Without this option the servers stay as they are.
    type: list
    elements: dict
    suboptions:
      name:
        description: The server's name.
        type: str
        required: true
      address:
        description: Its IP address. HAProxy does not resolve names of servers that are added at run time.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      id:
        description:
          - Its numeric id, which should be the same on every balancer. Without it the server keeps the one it has, or gets the next free
            one from 10001.
        type: int
      weight:
        description: Its weight, 0 to 256. At 0 it is checked and gets no new clients.
        type: int
        default: 100
      state:
        description: V(drain) lets its connections end and takes no new ones, V(maint) takes it out and stops its checks.
        type: str
        default: ready
        choices: [ready, drain, maint]
      steady:
        description: Ignored; it is there so that an observed server can be listed as it is.
        type: bool
      up:
        description: Ignored, so that RV(balancer) can be handed back.
        type: bool
      check:
        description: Ignored, so that RV(balancer) can be handed back.
        type: str
      sessions:
        description: Ignored, so that RV(balancer) can be handed back.
        type: int
      loaded:
        description: Ignored, so that RV(balancer) can be handed back.
        type: bool
  wait_for:
    description:
      - V(up) waits until HAProxy's own checks call O(wait_servers) fully up. V(idle) waits until no HAProxy process has a session with
        them, and cuts what is left after O(wait_timeout).
      - With O(wait_for) and without O(servers) nothing else is done.
    type: str
    default: none
    choices: [none, up, idle]
  wait_servers:
    description: The servers to wait for, by default all of O(servers).
    type: list
    elements: str
  wait_timeout:
    description: Seconds to wait for servers to be up or idle.
    type: int
    default: 60
  drain_timeout:
    description: Seconds until the connections of a server that is deregistered are cut.
    type: int
    default: 30
  confirm:
    description:
      - Servers to get a receipt for, if they are out of this backend, whatever took them out. It may be gone altogether. See RV(receipts).
      - With O(servers), other processes of HAProxy that may still send clients to them have until the end of O(drain_timeout). Otherwise
        nothing is waited for. In check mode there are no receipts.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The server's name.
        type: str
        required: true
      address:
        description: Its IP address. A server of this name at another address or port is another server.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      confirmed:
        description: Whether it has a receipt already, and only the end of the processes in it is asked for.
        type: bool
        default: false
  lease:
    description:
      - The lease of a fleet's run, from M(phoenix.fleet.release_ledger), or C(ledger), C(fence) and C(fleet) of your own. They are written
        to the fragment, and whoever comes with another ledger or a lower fence is refused.
      - With a fleet's own lease goes how many records its ledger has, so that an old copy of the ledger is refused as well.
    type: dict
    default: {}
  live:
    description: The number of the live release, kept in the fragment.
    type: int
  next:
    description: The number of the next release, kept in the fragment.
    type: int
  adopt:
    description:
      - Take over a backend with somebody else's servers, which are then servers like others; and, with O(state=observed), a backend that
        belongs to another ledger.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: The new fragment is validated, nothing is written or changed, and RV(actions) says what would be done.
  diff_mode:
    support: full
    description: The fragment before and after.
"""

EXAMPLES = r"""
---
- name: Serve the shop from two servers
  phoenix.fleet.haproxy_backend:
    name: shop
    options:
      check: {path: /health, status: 200}
    servers:
      - {name: shop-a, address: 192.0.2.11, port: 8080}
      - {name: shop-b, address: 192.0.2.12, port: 8080}
  delegate_to: lb1
  become: true

- name: Replace one of them, without losing a request
  phoenix.fleet.haproxy_backend:
    name: shop
    servers:
      - {name: shop-a, address: 192.0.2.11, port: 8080}
      - {name: shop-c, address: 192.0.2.13, port: 8080}
    drain_timeout: 60
  delegate_to: lb1
  become: true

- name: Drain a server before its host is rebooted, and wait until nobody is connected to it
  phoenix.fleet.haproxy_backend:
    name: shop
    servers:
      - {name: shop-a, address: 192.0.2.11, port: 8080, state: drain}
      - {name: shop-c, address: 192.0.2.13, port: 8080}
    wait_for: idle
    wait_servers: [shop-a]
    wait_timeout: 120
  delegate_to: lb1
  become: true
"""

RETURN = r"""
said:
  description: Lines of progress. Run on the controller, the action plugin prints them at once instead.
  returned: when run on another host
  type: list
  elements: str
actions:
  description: What was done, or in check mode would be, in words and as commands of HAProxy.
  returned: success
  type: list
  elements: str
  sample: ["wrote /etc/haproxy/conf.d/shop.cfg", "set server shop/shop-c weight 100"]
receipts:
  description:
    - One for each server that this call drained and deregistered, and for each of O(confirm) that is neither in the fragment nor in the
      running backend. Seen after the last command, while no other run of the collection can change this balancer.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
    address:
      description: Its IP address.
      type: str
    port:
      description: Its port.
      type: int
    proof:
      description:
        - V(idle) where no HAProxy process has a connection to it, and none that a reload left behind could still send it a client.
        - V(deadline) where O(drain_timeout) was over. V(lingering), of O(confirm) only, where it is out and a process that a reload left
          behind may still answer a client from it.
      type: str
    cut:
      description: How many of its connections this call has cut.
      type: int
    left:
      description: How many connections or clients could not be cut, or were not.
      type: int
    processes:
      description: The processes that a reload left behind, that live and know the server, each as C(PID:START) with its start in seconds.
      type: list
      elements: str
  sample:
    - {name: shop-r41-1, address: 192.0.2.10, port: 8080, proof: idle, cut: 0, left: 0, processes: []}
balancer:
  description: The backend as HAProxy shows it afterwards.
  returned: always, where HAProxy was asked
  type: dict
  contains:
    host:
      description: The balancer.
      type: str
    reachable:
      description: Whether it answered. Where it did not, nothing is known of the rest.
      type: bool
    version:
      description: HAProxy's version.
      type: str
    head:
      description: What the fragment says of its fleet, C(null) where no fragment of this collection exists.
      type: dict
    servers:
      description:
        - The servers, with their state, weight, C(id), what the check says, and the sessions in all HAProxy processes. C(loaded) is false
          for one that stands in the fragment and that HAProxy does not have.
      type: list
      elements: dict
    strangers:
      description: Servers that somebody else wrote.
      type: list
      elements: dict
    pid:
      description: HAProxy's process.
      type: int
    requests:
      description: Requests, or in TCP mode connections, since that process started.
      type: int
    failures:
      description: Answers of 500 and above, or in TCP mode connections that were not made.
      type: int
    error:
      description: Why it cannot be reached.
      type: str
  sample:
    host: lb1
    reachable: true
    version: 2.6.12
    head: {ledger: 5d0f, fence: 7, fleet: shop, live: 42, next: 43, records: 190}
    servers:
      - {name: shop-r42-1, address: 192.0.2.11, port: 8080, id: 10001, weight: 100, state: ready, up: true, check: L7OK, loaded: true}
    strangers: []
    pid: 812
    requests: 3912
    failures: 0
    error: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._haproxy import face


def main() -> None:
    module = AnsibleModule(argument_spec=face.ARGUMENTS, supports_check_mode=True)
    said: list[str] = []
    try:
        result = face.carry_out(module.params, module.check_mode, said.append)
    except FleetError as error:
        module.fail_json(msg=str(error), **face.failure(error))
    if not module._diff:
        result.pop("diff", None)
    module.exit_json(said=said, **result)


if __name__ == "__main__":
    main()
