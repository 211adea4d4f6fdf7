#!/usr/bin/python
# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_image_info
short_description: Tell what a golden volume of libvirt is
version_added: 1.0.0
description:
  - Finds the volume of a name, and the checksum of its content, which names the image for good.
  - The content is read once. The checksum is kept in the user's cache folder until path, size or time of modification differ.
  - A volume that is itself an overlay is refused, as is one whose content changed below instances.
author:
  - The phoenix.fleet founders (@phoenix-fleet)
extends_documentation_fragment:
  - phoenix.fleet.libvirt
  - phoenix.fleet.libvirt.image
options:
  image:
    description: The golden volume, as C(VOLUME) in O(pool) or as C(POOL/VOLUME).
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
  - module: phoenix.fleet.libvirt_instances
"""

EXAMPLES = r"""
---
- name: What is the shop's 1.9
  phoenix.fleet.libvirt_image_info:
    image: shop-1.9.qcow2
  register: shop
"""

RETURN = r"""
image:
  description: What the name means.
  returned: success
  type: dict
  contains:
    reference: {description: The name as it was given., type: str, returned: always}
    digest: {description: "The name that cannot change, C(POOL/VOLUME@sha256:CHECKSUM).", type: str, returned: always}
  sample: {reference: shop-1.9.qcow2, digest: "default/shop-1.9.qcow2@sha256:9f3c1e6b7d20"}
present:
  description: The names of the hosts that have this image.
  returned: success
  type: list
  elements: str
  sample: [local]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.phoenix.fleet.plugins.module_utils._libvirt_instances import FACE


def main() -> None:
    module = AnsibleModule(argument_spec=FACE.image_arguments, supports_check_mode=True)
    try:
        result = FACE.image_info(module.params, module.check_mode, lambda line: None)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
