# The commands of the project. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python

.PHONY: help setup demo lab-down test lint bench faults vm-image test-pve test-libvirt clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1#/p' Makefile | column -t -s '#'

setup: .venv/.collection ## an environment in .venv, with this checkout as its collection phoenix.fleet
	@:

demo: setup ## a lab on this machine, and the main job under load
	@demo/run

lab-down: ## remove the lab
	@demo/down

# Images are made while the judges read: a run of CI has 25 minutes.
test: .venv/.libvirt ## every test; installs and starts what they need
	@trap 'tests/setup/machine stop' EXIT; tests/setup/machine start vm; mkdir -p build; \
	{ tests/vm/build && tests/vm/build cloud; } >build/images.log 2>&1 & images=$$!; \
	$(MAKE) lint; wait $$images || { cat build/images.log; exit 1; }; \
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.tests ## the judges: style, types, documentation, the built collection
	@mkdir -p build; flock build/.lint $(PY) tests/lint.py

bench: .venv/.tests ## the same work by other means, in one run
	@tests/bench/run

faults: .venv/.tests ## every fault on real parts, under load, and what it cost
	@trap 'tests/setup/machine stop' EXIT; tests/setup/machine start; tests/setup/packages faketime; tests/faults/run

vm-image: ## golden images of virtual machines, from Debian packages
	@tests/vm/build; tests/vm/build cloud

test-pve: .venv/.tests ## the Proxmox provider on your own cluster: PVE_HOST=... (docs/proxmox.md)
	@$(PY) -m pytest -q -s -o timeout=7200 tests/pve

test-libvirt: .venv/.libvirt ## the libvirt provider on a host of your own: URI=... VOLUME=... (docs/libvirt.md)
	@$(PY) -m pytest -q -s -o timeout=7200 tests/libvirt_host

clean: ## remove what was built, the environment too
	@rm -rf .venv build tests/output

.venv/.collection: requirements.txt meta/ee-requirements.txt tests/setup/venv
	@tests/setup/venv collection -r requirements.txt

.venv/.tests: .venv/.collection tests/requirements.txt tests/requirements-schema.txt
	@tests/setup/venv tests -r tests/requirements.txt -r requirements.txt
	@tests/setup/venv schema --no-deps -r tests/requirements-schema.txt

# Compiled against the machine's libvirt, so that only those pay for it who want virtual machines.
.venv/.libvirt: .venv/.tests requirements-libvirt.txt
	@tests/setup/packages gcc pkg-config libvirt-dev python3-dev
	@tests/setup/venv libvirt -r requirements-libvirt.txt
