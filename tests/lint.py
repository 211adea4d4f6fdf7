# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that judges the collection without running it: one line and a time for each judge, its own words where it says no.

The judges see a copy of the files that Git knows or would add, because ansible-test wants a real path that ends in
ansible_collections/phoenix/fleet, and because nothing they write may end up in the checkout. `lint.py NAME...` runs those named only.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "lint"
COPY = BUILD / "ansible_collections" / "phoenix" / "fleet"
BIN = Path(sys.executable).parent
HOME = ROOT / "build" / "home"

# ansible-test makes an environment for each test and fetches a script for that from a host of its own. In its cache the
# script is not fetched, and this one does the same with the wheel from PyPI beside it.
GET_PIP = """\
import os, sys
here = os.path.dirname(os.environ["GET_PIP"])
sys.path.insert(0, os.path.join(here, "pip-VERSION-py3-none-any.whl"))
from pip._internal.cli.main import main
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(main(["install", "--force-reinstall", "--no-index", "--find-links", here] + wanted))
"""

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MYPY", "PYTHON", "GALAXY_"))},
    "HOME": str(HOME),
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
    # The shims of pyenv fail where no version is chosen, which ends ansible-test: the real interpreters instead of them.
    "PATH": os.pathsep.join([
        str(BIN),
        *(folder for folder in os.environ["PATH"].split(os.pathsep) if not folder.endswith("/shims")),
        *sorted(glob.glob(os.path.join(os.environ.get("PYENV_ROOT", "/none"), "versions", "*", "bin"))),
    ]),
    "ANSIBLE_COLLECTIONS_PATH": str(BUILD),
    "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false",
    "MYPYPATH": str(BUILD),
    # For galaxy-importer: the rules for certified content.
    "GALAXY_IMPORTER_CHECK_REQUIRED_TAGS": "true",
    "GALAXY_IMPORTER_REQUIRE_V1_OR_GREATER": "true",
    "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "false",  # its findings would only be warnings; ansible-lint is a judge of its own
}

PLUGINS = "ansible_collections/phoenix/fleet/plugins"
# name, folder to run in, commands. The longest first.
JUDGES: list[tuple[str, Path, list[str]]] = [
    ("ansible-test sanity", COPY, ["ansible-test sanity --local --requirements --color no"]),
    ("galaxy", COPY, [
        "ansible-galaxy collection build --force --output-path ../../../galaxy",
        "ansible-galaxy collection install --offline --force -p ../../../galaxy ../../../galaxy/phoenix-fleet-1.0.0.tar.gz",
        "python -m galaxy_importer.main ../../../galaxy/phoenix-fleet-1.0.0.tar.gz",
    ]),
    ("mypy", BUILD, [
        f"mypy --config-file {COPY}/pyproject.toml --cache-dir {ROOT}/build/mypy {PLUGINS}/module_utils {PLUGINS}/plugin_utils",
    ]),
    ("ansible-lint", COPY, ["ansible-lint --nocolor -q"]),
    ("antsibull-docs", COPY, [
        "antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all --disallow-unknown-collection-refs .",
    ]),
    ("antsibull-changelog", COPY, ["antsibull-changelog lint"]),
    ("ansible-builder", COPY, ["ansible-builder introspect ../../.."]),
    ("yamllint", COPY, ["yamllint --strict ."]),
    ("ruff", COPY, [f"ruff check --quiet --output-format concise --cache-dir {ROOT}/build/ruff ."]),
]


def copy_files() -> None:
    """The files of the collection, and nothing else, into COPY."""
    shutil.rmtree(BUILD, ignore_errors=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name, follow_symlinks=False)
    # Git would otherwise answer for the checkout around the copy, which ignores it, and ansible-test would skip everything.
    subprocess.run(["git", "init", "--quiet"], cwd=COPY, check=True)


def prepare_ansible_test() -> None:
    source = Path(sysconfig.get_path("purelib"), "ansible_test", "_internal", "python_requirements.py").read_text()
    version = re.findall(r"\bpip='([\d.]+)'", source)[0]
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / f"pip-{version}-py3-none-any.whl").exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", cache, f"pip=={version}"], check=True)
    (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(GET_PIP.replace("VERSION", version))


def judge(name: str, folder: Path, commands: list[str]) -> bool:
    started = time.monotonic()
    for command in commands:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command.split(), cwd=folder, env=ENVIRONMENT, **streams) as running:
            said = running.communicate()[0]
        if running.returncode or refused(command, said):
            print(f"FAILED {name}: {command}\n{findings(said)}\n", flush=True)
            return False
    print(f"  {name:<20} {time.monotonic() - started:5.1f} s", flush=True)
    return True


def refused(command: str, said: str) -> bool:
    """The importer ends with 0 when it finds errors, and only logs them."""
    return "galaxy_importer" in command and ("ERROR" in said or "Importer processing completed successfully" not in said)


def findings(said: str) -> str:
    """What to show of a judge that said no: of ansible-test, which tells what it installs, only the errors and what follows the last."""
    lines = said.rstrip().splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith(("ERROR: ", "FATAL: "))]
    return "\n".join([*(lines[number] for number in errors[:-1]), *lines[errors[-1]:]] if errors else lines)


def main() -> int:
    chosen = [item for item in JUDGES if not sys.argv[1:] or item[0] in sys.argv[1:]]
    copy_files()
    prepare_ansible_test()
    with ThreadPoolExecutor(max_workers=2) as pool:
        verdicts = list(pool.map(lambda item: judge(*item), chosen))
    if not all(verdicts):
        print(f"{verdicts.count(False)} of {len(verdicts)} judges say no")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
