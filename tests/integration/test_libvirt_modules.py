# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt_instances and its info modules, in a playbook in the controller's process, and as modules by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.tests.integration.libvirt_host import SLEEPER, LibvirtHost

IMAGE = "sleeper.img"
PLAY = """
- hosts: all
  gather_facts: false
  module_defaults:
    phoenix.fleet.libvirt_instances: {fleet: shop, pool: HOST, network: HOST, memory: 32m, domain_type: qemu, stop_timeout: 0}
    phoenix.fleet.libvirt_instances_info: {fleet: shop}
    phoenix.fleet.libvirt_image_info: {pool: HOST}
  tasks:
    - phoenix.fleet.libvirt_image_info: {image: IMAGE}
      register: image
    - assert:
        that: "image.image.digest is match('HOST/IMAGE@sha256:.+') and image.present == ['local']"

    - phoenix.fleet.libvirt_instances: &two {release: 1, image: IMAGE, size: 2, port: 8080, user_data: "#!/bin/sh hunter2"}
      check_mode: true
      register: tried
    - phoenix.fleet.libvirt_instances_info:
      register: nothing
    - phoenix.fleet.libvirt_instances: *two
      register: made
    - phoenix.fleet.libvirt_instances: *two
      register: again
    - assert:
        that:
          - tried is changed and made is changed and again is not changed
          - nothing.instances == []
          - tried.instances | map(attribute='address') == made.instances | map(attribute='address')
          - made.instances | map(attribute='name') == ['shop-r1-1', 'shop-r1-2']
          - made.instances == again.instances
          - made.instances | map(attribute='state') | unique == ['running']

    - phoenix.fleet.libvirt_instances: {release: 1, image: IMAGE, size: 2, port: 8080, vcpus: 2}
      register: other
      failed_when: other is not failed or 'Nothing that exists is changed' not in other.msg
    - phoenix.fleet.libvirt_instances: {release: 1, state: absent, ledger: theirs}
      register: foreign
      failed_when: foreign is not failed or 'belongs to ledger' not in foreign.msg
    - phoenix.fleet.libvirt_instances: {release: 1, size: 1001, memory: 12x}
      register: wrong
      failed_when: wrong.mistakes | default(wrong.msg | split('\\n') | select) | length != 4

    - phoenix.fleet.libvirt_instances: {release: 1, state: stopped}
      register: stopped
    - phoenix.fleet.libvirt_instances: {release: 1, image: IMAGE, size: 1, port: 8080, user_data: "#!/bin/sh hunter2"}
      register: smaller
    - phoenix.fleet.libvirt_instances: {release: 1, state: absent}
      register: gone
    - phoenix.fleet.libvirt_instances: {release: 1, state: absent}
      register: gone_again
    - assert:
        that:
          - stopped is changed and stopped.instances | map(attribute='state') | unique == ['stopped']
          - smaller is changed and smaller.instances | map(attribute='id') == [made.instances[0].id]
          - smaller.instances[0].state == 'running'
          - gone is changed and gone_again is not changed and gone.instances == []
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    with LibvirtHost(2) as made:
        made.put(IMAGE, SLEEPER.ljust(1024 ** 2, b"\0"))
        yield made


def test_every_change_is_made_once(host: LibvirtHost, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY.replace("IMAGE", IMAGE).replace("HOST", host.name))
    command = ["ansible-playbook", "-i", "controller,", "-c", "local", "play.yml", "--diff", "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "hunter2" not in done.stdout and "+shop-r1-1 running" in done.stdout
    assert host.volumes() == [IMAGE] and host.reservations() == []


def as_a_module(name: str, **params: Any) -> dict[str, Any]:
    """What the module says where it runs as one, on some host."""
    module = f"ansible_collections.phoenix.fleet.plugins.modules.{name}"
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": params})
    done = subprocess.run([sys.executable, "-m", module], input=arguments, capture_output=True, text=True, check=False)
    assert "hunter2" not in done.stdout.split('"invocation"')[0]
    return dict(json.loads(done.stdout))


def test_the_modules_do_the_same_by_themselves(host: LibvirtHost) -> None:
    there = {"fleet": "remote", "pool": host.name, "network": host.name, "memory": "32m", "domain_type": "qemu", "stop_timeout": 0}
    assert "@sha256:" in as_a_module("libvirt_image_info", image=IMAGE, pool=host.name)["image"]["digest"]
    made = as_a_module("libvirt_instances", release=3, image=IMAGE, port=80, **there)
    assert made["changed"] and [item["name"] for item in made["instances"]] == ["remote-r3-1"]
    assert as_a_module("libvirt_instances_info", fleet="remote")["instances"] == made["instances"]
    assert as_a_module("libvirt_instances", release=3, state="absent", **there)["instances"] == []
    wrong = as_a_module("libvirt_instances", release=3, image="absent.img", port=80, **there)
    assert wrong["failed"] and "has no volume absent.img" in wrong["msg"]
