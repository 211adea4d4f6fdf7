#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_checks
short_description: Wait until a set of instances passes its checks
version_added: 1.0.0
description:
  - Asks all instances at once, again and again, until each of them has passed all checks in a row, or the time is over.
  - An instance that does not pass is named with the check and the answer last seen, and where O(provider) is given with its state and log.
  - The controller asks, in its own process. Delegate the task where only another host has a route to the instances.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
options:
  instances:
    description: The instances to ask, each with at least C(name), C(address) and C(port), as M(phoenix.fleet.instances) returns them.
    type: list
    elements: dict
    required: true
  checks:
    description:
      - What each instance must pass, as in C(fleet_checks). Each check has exactly one of the following keys.
      - One answer may take 5 seconds.
      - An empty list asks the instances nothing. Then only what O(provider) knows is judged, that each runs and was not restarted.
    type: list
    elements: dict
    default:
      - tcp: {}
    suboptions:
      http:
        description: A GET request to the instance's address and port. A redirection is an answer, it is not followed.
        type: dict
        suboptions:
          path:
            description: What to ask for.
            type: str
            default: /
          status:
            description: What passes, a status, a range such as V(200-399), or a list of both.
            type: raw
            default: 200-399
          body:
            description: A text that the answer must contain, or a regular expression between slashes. The first MiB is looked at.
            type: str
          headers:
            description: Headers to send.
            type: dict
          host:
            description: The name to ask for, in the Host header and with TLS. By default the address.
            type: str
          scheme:
            description: With V(https) the certificate is not verified, because an instance is asked by its address.
            type: str
            default: http
            choices: [http, https]
      tcp:
        description: Passes where a connection can be opened. It takes V({}).
        type: dict
      command:
        description:
          - The words of a command, run where the check runs. No result shows them, but whoever lists processes there sees them.
          - Its environment holds C(PHOENIX_ADDRESS), C(PHOENIX_PORT) and C(PHOENIX_INSTANCE).
          - Passes when it ends with 0.
        type: list
        elements: str
  timeout:
    description: Seconds for all instances to pass.
    type: int
    default: 60
  fleet:
    description: The fleet that is named in messages, and whose marker the instances carry. By default that of the instances.
    type: str
  provider:
    description:
      - Where the instances live. An instance that has exited or was restarted then fails at once, and its last words stand in the error.
      - The provider is asked from the controller, unless the module is run where no action plugin is.
    type: str
    choices: [docker, proxmox, libvirt]
  options:
    description: The provider's own options, as in C(fleet_docker).
    type: dict
    default: {}
  lease:
    description: The lease of the run, from M(phoenix.fleet.release_ledger). It is renewed as long as the checks take.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Nothing is asked, because in check mode nothing was started that could answer.
  diff_mode:
    support: none
    description: Nothing changes.
"""

EXAMPLES = r"""
---
- name: Wait until the new instances are well
  phoenix.fleet.instance_checks:
    instances: "{{ made.instances }}"
    checks:
      - http: {path: /health, status: 200, body: ok}
      - command: [/usr/local/bin/probe, --quick]
    timeout: 30
    provider: docker

- name: Ask where only the balancer has a route
  phoenix.fleet.instance_checks:
    instances:
      - {name: web-r42-1, address: 172.30.0.11, port: 8080}
  delegate_to: lb1
"""

RETURN = r"""
said:
  description: Lines of progress. Run on the controller, the action plugin prints them at once instead.
  returned: when run on another host
  type: list
  elements: str
instances:
  description: What became of each instance.
  returned: success, but not in check mode
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    attempts:
      description: How often it was asked.
      type: int
  sample:
    - name: web-r42-1
      attempts: 3
seconds:
  description: How long it took until all had passed.
  returned: success, but not in check mode
  type: float
  sample: 1.2
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._checks import ARGUMENTS, CHECKS, carry_out
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._instances import OPTIONS, connect
from ansible_collections.phoenix.fleet.plugins.module_utils._secrets import shielded


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    said: list[str] = []
    params, veil = shielded(module, {**CHECKS, "options": {"options": OPTIONS.get(module.params["provider"] or "", {})}})
    try:
        provider = connect(params["provider"], params["options"]) if params["provider"] else None
        result = carry_out(params, module.check_mode, said.append, provider)
    except FleetError as error:
        module.fail_json(msg=veil(str(error)))
    module.exit_json(said=[veil(line) for line in said], **result)


if __name__ == "__main__":
    main()
