#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxmox_image_info
short_description: Tell which template of a Proxmox VE cluster a name means
version_added: 1.0.0
description:
  - Finds the templates of a name, and the digest that names the image for good.
  - >-
    A line C(phoenix.fleet.image: sha256:DIGEST), of 64 hex digits, in a template's description states it.
    Replicas on several nodes need one and the same.
  - Without it the digest is made of what Proxmox VE never gives twice, the UUID, the disks and the time of making.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.proxmox
  - phoenix.fleet.proxmox.image
options:
  image:
    description: The template, by its name or VMID.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: There is nothing to compare.
seealso:
  - module: phoenix.fleet.proxmox_instances
"""

EXAMPLES = r"""
---
- name: Which template is the shop's 1.9
  phoenix.fleet.proxmox_image_info:
    api_host: pve1.example.org
    api_user: fleet@pve
    api_token_id: ci
    api_token_secret: "{{ vault_pve_token }}"
    image: shop-1.9
  register: shop
"""

RETURN = r"""
image:
  description: What the name means.
  returned: success
  type: dict
  contains:
    reference: {description: The name as it was given., type: str, returned: always}
    digest: {description: "The name that cannot change, C(TEMPLATE@sha256:DIGEST).", type: str, returned: always}
  sample: {reference: shop-1.9, digest: "shop-1.9@sha256:9f3c1e6b7d20"}
present:
  description: The names of the nodes that have this image.
  returned: success
  type: list
  elements: str
  sample: [pve1, pve2]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._proxmox_instances import FACE


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.image_arguments, supports_check_mode=True)
    try:
        result = FACE.image_info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
