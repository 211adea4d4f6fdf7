#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instances
short_description: Do one thing with a set of instances, whatever provider they live at
version_added: 1.0.0
description:
  - The verbs that every provider has, on a whole set at once. The roles of the collection know no provider, only this module.
  - In a playbook of your own M(phoenix.fleet.docker_instances) is usually what you want, since it says what should be.
  - Nothing is touched that does not carry the marker of the fleet.
  - Under a O(lease) an instance is stopped only when every balancer that was ever told of it has confirmed that it is out. Without one,
    instances that belong to a ledger are not stopped at all.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  verb:
    description:
      - V(observe) lists the fleet's instances, tells where further ones may be placed, and what O(image) means now.
      - V(provision) sees that O(instances) run. What is planned is created, what was stopped is started.
      - V(decommission) stops O(instances) politely and removes them. O(standby) it stops, and keeps.
      - V(last_words) tells state, exit code and last log lines of O(instances), and keeps them in O(folder).
    type: str
    required: true
    choices: [observe, provision, decommission, last_words]
  fleet:
    description: The fleet's name.
    type: str
    required: true
  provider:
    description: Where the instances live.
    type: str
    default: docker
    choices: [docker, proxmox, libvirt]
  options:
    description: The provider's own options, as in C(fleet_docker).
    type: dict
    default: {}
  image:
    description: The golden image that O(verb=observe) asks about.
    type: str
  port:
    description: The port that the service listens on inside an instance.
    type: int
    default: 0
  balancers:
    description: The addresses of the balancers' hosts, V(local) for this one. An address that they could not reach is refused.
    type: list
    elements: str
    default: [local]
  instances:
    description: The instances to work on, as O(verb=observe) returned them or a plan names them.
    type: list
    elements: dict
    default: []
  standby:
    description: The instances that O(verb=decommission) keeps as standby.
    type: list
    elements: dict
    default: []
  release:
    description:
      - The release that O(verb=provision) makes instances of, with C(image), C(digest), C(hash) and C(revision).
      - Under O(lease), with its C(number), they are made as the ledger recorded it, and not from O(options) and O(port).
    type: dict
    default: {}
  ledger:
    description: The id of the ledger that the marker names. Taken from O(lease) where that is given.
    type: str
    default: ""
  stop_timeout:
    description: Seconds between the polite signal and the kill.
    type: int
    default: 10
  keep_images:
    description:
      - With O(verb=decommission), how many images that no release in retention uses any more are kept on each engine, as in
        C(fleet_keep_images). Needs O(lease), since the ledger knows them. By default none is removed.
    type: int
  folder:
    description:
      - The folder on the controller that O(verb=last_words) writes a log and a description of each instance to.
      - With O(lease), of the folders beside it that are named like this one but for their number, the newest 20 stay.
    type: path
  wave:
    description:
      - A wave of M(phoenix.fleet.release_plan), to be completed with addresses that only started instances tell.
      - The ledger keeps those addresses before anybody is told of them. One that another instance of the ledger holds is refused.
    type: dict
    default: {}
  record:
    description: The record that is written to the ledger before anything is done, such as V(retire). Needs O(lease).
    type: str
    default: ""
  lease:
    description: The lease of the run, from M(phoenix.fleet.release_ledger). With it the act is refused where the fleet was taken over.
    type: dict
    default: {}
  receipts:
    description:
      - The results of this run's M(phoenix.fleet.haproxy_backend) tasks. Their C(registrations) count where a full disk kept the
        ledger from storing them.
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
    description: Nothing is made, started, stopped or removed, and the result says what would be.
  diff_mode:
    support: full
    description: The instances that come and go.
"""

EXAMPLES = r"""
---
- name: See the fleet web
  phoenix.fleet.instances:
    verb: observe
    fleet: web
    port: 8080
  register: seen

# Without a lease only instances that belong to no ledger are stopped, such as those of phoenix.fleet.docker_instances.
- name: Stop the instances of release 41 politely, and keep them
  phoenix.fleet.instances:
    verb: decommission
    fleet: web
    standby: "{{ seen.instances | selectattr('release', 'equalto', 41) }}"
"""

RETURN = r"""
said:
  description: Lines of progress. Run on the controller, the action plugin prints them at once instead.
  returned: when run on another host
  type: list
  elements: str
instances:
  description: The instances that were seen or worked on.
  returned: for every verb but V(last_words)
  type: list
  elements: dict
  sample:
    - name: web-r42-1
      id: 9f3c1e
      host: local
      fleet: web
      release: 42
      slot: 1
      image: sha256:9f3c1e
      revision: 4be1c2d
      address: 172.30.0.11
      port: 8080
      state: running
      health: none
      created: "2026-11-20T03:00:00Z"
      marker: {phoenix.fleet.name: web, phoenix.fleet.release: "42"}
seals:
  description: By name, what tells whether a stopped instance is still as it was. Anything that starts or changes it changes its seal.
  returned: for O(verb=decommission), but not in check mode
  type: dict
  sample: {web-r41-1: 4c1f0e}
pools:
  description: Where further instances may be placed.
  returned: for O(verb=observe)
  type: list
  elements: dict
copies:
  description:
    - What bears the marker of one of the fleet's instances and is another one, such as a clone made by hand, each with C(name), C(host),
      C(original) and C(why). Never touched.
  returned: for O(verb=observe)
  type: list
  elements: dict
  sample:
    - {name: VM 205 (Copy-of-VM-web-r42-1) on node pve1, host: pve1, original: web-r42-1, why: its marker is that of 100041}
image:
  description: The image's C(reference), and its C(digest), which cannot change.
  returned: for O(verb=observe) with O(image)
  type: dict
wave:
  description: The wave with the addresses in its instances and servers.
  returned: for O(verb=provision), where addresses were missing
  type: dict
last_words:
  description: State, exit code and restarts of each instance, and its last log lines where they are kept in no O(folder).
  returned: for O(verb=last_words)
  type: list
  elements: dict
folder:
  description: Where they were kept.
  returned: for O(verb=last_words)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._instances import ARGUMENTS, OPTIONS, carry_out
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import shielded


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    said: list[str] = []
    params, veil = shielded(module, {"options": {"options": OPTIONS[module.params["provider"]]}})
    try:
        result = carry_out(params, module.check_mode, said.append)
    except FleetError as error:
        module.fail_json(msg=veil(str(error)))
    if not module._diff:
        result.pop("diff", None)
    module.exit_json(said=said, **result)


if __name__ == "__main__":
    main()
