# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection promises of itself as a whole, and no judge looks at."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

COLLECTION = "ansible_collections.phoenix.fleet.plugins"
ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
LICENCE = "# SPDX-License-Identifier: GPL-3.0-or-later"


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_module_defaults_reach_every_module() -> None:
    assert loaded("meta/runtime.yml")["action_groups"]["fleet"] == MODULES


def test_every_action_plugin_is_documented_by_a_module_of_its_name() -> None:
    assert {path.stem for path in (ROOT / "plugins" / "action").glob("*.py")} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_an_action_plugin_takes_the_arguments_of_its_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """validate-modules compares the module with its documentation, so that this closes the ring."""
    module = importlib.import_module(f"{COLLECTION}.modules.{name}")
    taken: dict[str, Any] = {}

    def capture(argument_spec: dict[str, Any], **_options: Any) -> None:
        taken.update(argument_spec)
        raise SystemExit

    monkeypatch.setattr(module, "AnsibleModule", capture)
    with pytest.raises(SystemExit):
        module.main()
    assert taken and taken == importlib.import_module(f"{COLLECTION}.action.{name}").ActionModule.ARGUMENTS


def test_utilities_are_private() -> None:
    names = [path.relative_to(ROOT / "plugins") for path in ROOT.glob("plugins/*_utils/**/*.py")]
    assert not [str(name) for name in names if not name.parts[1].startswith("_")]


def test_every_python_file_names_its_licence() -> None:
    folders = ("plugins", "tests", "roles", "demo")
    silent = [
        str(path.relative_to(ROOT)) for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")
        if path.read_text().strip() and LICENCE not in path.read_text()[:600]
    ]
    assert not silent


def test_sanity_ignores_nothing() -> None:
    assert not list(ROOT.glob("tests/sanity/ignore*"))


@pytest.mark.parametrize("role", ROLES)
def test_defaults_of_a_role_are_those_that_it_documents(role: str) -> None:
    """Ansible does not apply the defaults of an argument specification, so that they are written twice."""
    specs = loaded(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    documented = {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    assert not set(defaults) - set(documented), "not documented"
    templated = {name for name, value in defaults.items() if "{{" in str(value)}
    stated = {name: option["default"] for name, option in documented.items() if "default" in option}
    assert {name: value for name, value in defaults.items() if name in stated and name not in templated} == {
        name: value for name, value in stated.items() if name not in templated
    }
