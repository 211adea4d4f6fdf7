# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The seed that tells a virtual machine who it is: a disk in the NoCloud form of cloud-init.

Beside what cloud-init reads it holds `phoenix-fleet.env`, for images without cloud-init: mounting the disk and reading one file is all.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any, Dict, Mapping, Sequence

from .._errors import RefusedError

try:
    import pycdlib
except ImportError:
    pycdlib = None

FACTS = "/etc/phoenix-fleet.env"
LABEL = "cidata"  # by which cloud-init finds the disk


def required_library() -> None:
    if pycdlib is None:
        remedy = f"Run: {sys.executable} -m pip install pycdlib (on Debian, for its own Python: apt-get install python3-pycdlib)"
        raise RefusedError("the libvirt provider", f"{sys.executable} has no pycdlib, which makes the seeds of instances", remedy)


def environment(facts: Mapping[str, str]) -> str:
    """Facts as lines that systemd's EnvironmentFile and a shell both read."""
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in sorted(facts.items()))


def user_data(facts: Mapping[str, str], ssh_keys: Sequence[str], more: str = "") -> str:
    """What cloud-init carries out: the facts as a file, the keys, and the user's own part.

    Ours is the last part and adds to lists (merge_how), so that a write_files of the user's stays.
    """
    config: Dict[str, Any] = {"write_files": [{"path": FACTS, "content": environment(facts), "permissions": "0644"}]}
    if ssh_keys:
        config["ssh_authorized_keys"] = list(ssh_keys)
    config["merge_how"] = [{"name": "list", "settings": ["append"]}, {"name": "dict", "settings": ["no_replace", "recurse_list"]}]
    ours = "#cloud-config\n" + json.dumps(config, indent=2, sort_keys=True) + "\n"
    if not more:
        return ours
    whole = MIMEMultipart(boundary="phoenix-fleet-part")
    for part in (more, ours):
        whole.attach(MIMEText(part, "plain", "utf-8"))  # what it is, cloud-init sees by its first line
    return whole.as_string()


def meta_data(identity: str, name: str) -> str:
    return json.dumps({"instance-id": identity, "local-hostname": name}, indent=2) + "\n"


def files(identity: str, name: str, facts: Mapping[str, str], ssh_keys: Sequence[str], more: str = "") -> Dict[str, str]:
    """The seed of one instance by file. identity changes with every new instance, so that cloud-init takes each for a first boot."""
    return {
        "meta-data": meta_data(identity, name), "user-data": user_data(facts, ssh_keys, more), "phoenix-fleet.env": environment(facts),
    }


def image(contents: Mapping[str, str]) -> bytes:
    """An ISO 9660 file system with these files at its root, their names by Rock Ridge and Joliet."""
    required_library()
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(sorted(contents.items())):
        data = text.encode("utf-8")
        disc.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    buffer = io.BytesIO()
    disc.write_fp(buffer)
    disc.close()
    return buffer.getvalue()
