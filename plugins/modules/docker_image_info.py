#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_image_info
short_description: Tell what the name of an image means now
version_added: 1.0.0
description:
  - Asks the registry, through the first engine of O(hosts), which digest a tag stands for now. Nothing is pulled.
  - An image that was built on the engine and never pushed is named by its id, and needs no registry.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.docker
  - phoenix.fleet.docker.registry
options:
  image:
    description: The image, C(repo:tag), C(repo@sha256:DIGEST) or C(sha256:ID).
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
  - module: phoenix.fleet.docker_instances
"""

EXAMPLES = r"""
---
- name: What is the shop's 1.9 today
  phoenix.fleet.docker_image_info:
    image: registry.example.org/shop:1.9
  register: shop

- name: Tell it
  ansible.builtin.debug:
    msg: "{{ shop.image.digest }}"
"""

RETURN = r"""
image:
  description: What the name means.
  returned: success
  type: dict
  contains:
    reference: {description: The name as it was given., type: str, returned: always}
    digest:
      description: The name that cannot change, C(repo@sha256:DIGEST), or C(sha256:ID) of a local image.
      type: str
      returned: always
  sample: {reference: "registry.example.org/shop:1.9", digest: "registry.example.org/shop@sha256:9f3c1e6b7d20"}
present:
  description: The names of the engines that have this image already.
  returned: success
  type: list
  elements: str
  sample: [local]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._docker_instances import FACE
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.image_arguments, supports_check_mode=True)
    try:
        result = FACE.image_info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
