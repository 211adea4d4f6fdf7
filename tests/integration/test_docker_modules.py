# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docker_instances and its info modules, in a playbook in the controller's process, and as modules by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.tests.integration.docker_engine import DockerEngine, build

IMAGE = "phoenix-modules:1"
PLAY = """
- hosts: all
  gather_facts: false
  module_defaults:
    phoenix.fleet.docker_instances: &engine
      fleet: shop
      hosts: [{url: "{{ engine }}", name: one, subnet: 172.29.204.0/24}]
      stop_timeout: 5
    phoenix.fleet.docker_instances_info: {fleet: shop, hosts: ["{{ engine }}"]}
    phoenix.fleet.docker_image_info: {hosts: ["{{ engine }}"]}
  tasks:
    - phoenix.fleet.docker_image_info: {image: "IMAGE"}
      register: image
    - assert:
        that: "image.image.digest is match('sha256:.+') and image.present == ['local']"

    - phoenix.fleet.docker_instances: &two {release: 1, image: "IMAGE", size: 2, port: 8080, sealed: true, secrets: {key: hunter2}}
      check_mode: true
      register: tried
    - phoenix.fleet.docker_instances_info:
      register: nothing
    - phoenix.fleet.docker_instances: *two
      register: made
    - phoenix.fleet.docker_instances: *two
      check_mode: true
      register: tried_again
    - phoenix.fleet.docker_instances: *two
      register: again
    - assert:
        that:
          - tried is changed and made is changed and tried_again is not changed and again is not changed
          - nothing.instances == []
          - tried.instances | map(attribute='address') == made.instances | map(attribute='address')
          - made.instances | map(attribute='name') == ['shop-r1-1', 'shop-r1-2']
          - made.instances == again.instances
          - made.instances | map(attribute='state') | unique == ['running']

    - phoenix.fleet.docker_instances: {release: 1, image: "IMAGE", size: 2, port: 8080}
      register: other
      failed_when: other is not failed or 'Nothing that exists is changed' not in other.msg
    - phoenix.fleet.docker_instances: {release: 1, state: absent, ledger: theirs}
      register: foreign
      failed_when: foreign is not failed or 'belongs to ledger' not in foreign.msg
    - phoenix.fleet.docker_instances: {release: 1, size: 1001, memory: 12x}
      register: wrong
      failed_when: wrong.mistakes | default(wrong.msg | split('\\n') | select) | length != 4

    - phoenix.fleet.docker_instances: {release: 1, state: stopped}
      register: stopped
    - phoenix.fleet.docker_instances: {release: 1, image: "IMAGE", size: 1, port: 8080, sealed: true, secrets: {key: hunter2}}
      register: smaller
    - phoenix.fleet.docker_instances: {release: 1, state: absent}
      register: gone
    - phoenix.fleet.docker_instances: {release: 1, state: absent}
      register: gone_again
    - assert:
        that:
          - stopped is changed and stopped.instances | map(attribute='state') | unique == ['stopped']
          - smaller is changed and smaller.instances | map(attribute='id') == [made.instances[0].id]
          - smaller.instances[0].state == 'running'
          - gone is changed and gone_again is not changed and gone.instances == []
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine("mod", 204) as made, made.client() as client:
        build(client, IMAGE)
        yield made


def test_every_change_is_made_once(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY.replace("IMAGE", IMAGE))
    command = ["ansible-playbook", "-i", "controller,", "-c", "local", "play.yml", "--diff", "-v", "-e", f"engine={engine.url}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "hunter2" not in done.stdout and "+shop-r1-1 running" in done.stdout


def as_a_module(name: str, **params: Any) -> dict[str, Any]:
    """What the module says where it runs as one, on some host."""
    module = f"ansible_collections.phoenix.fleet.plugins.modules.{name}"
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": params})
    done = subprocess.run([sys.executable, "-m", module], input=arguments, capture_output=True, text=True, check=False)
    assert "hunter2" not in done.stdout.split('"invocation"')[0]
    return dict(json.loads(done.stdout))


def test_the_modules_do_the_same_by_themselves(engine: DockerEngine) -> None:
    there = {"fleet": "far", "hosts": [{"url": engine.url, "subnet": engine.subnet}]}
    assert as_a_module("docker_image_info", image=IMAGE, hosts=[engine.url])["image"]["digest"].startswith("sha256:")
    wanted = {**there, "release": 3, "image": IMAGE, "port": 8080, "secrets": {"key": "hunter2"}}
    made = as_a_module("docker_instances", **wanted)
    assert made["changed"] and "diff" not in made and made["instances"] == as_a_module("docker_instances", **wanted)["instances"]
    assert as_a_module("docker_instances_info", fleet="far", hosts=[engine.url], release=3)["instances"] == made["instances"]
    assert as_a_module("docker_instances", **{**there, "release": 3, "memory": "12x"})["msg"].split("\n  ")[1:] == [
        "image: missing, although state is present", "port: missing, although state is present",
        "memory: '12x' is not a size; write e.g. 256m",
    ]
    assert as_a_module("docker_instances", **there, release=3, state="absent", stop_timeout=5)["instances"] == []
