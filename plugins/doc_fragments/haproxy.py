# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Where HAProxy is: the options that all modules for it share."""

    DOCUMENTATION = r"""
options:
  name:
    description: The HAProxy backend.
    type: str
    required: true
  socket:
    description:
      - HAProxy's admin socket, of level C(admin).
      - Without it the variable C(haproxy_socket) of the host counts, and without that C(/run/haproxy/admin.sock).
    type: str
  master_socket:
    description:
      - The master's socket (C(-S)), which tells of processes that a reload left behind with their connections, and reloads.
      - Without it the host's variable C(haproxy_master_socket) counts, and without that the socket that HAProxy was started with, or
        C(/run/haproxy-master.sock) where it belongs to the same HAProxy.
    type: str
  reload_command:
    description:
      - A command that reloads HAProxy. Where there is a master socket too, that one only tells of HAProxy's processes.
      - Without it the host's variable C(haproxy_reload_command) counts.
    type: str
  config:
    description:
      - HAProxy's main configuration file, named in messages only. Which files HAProxy loads is read from the running process.
      - Without it the host's variable C(haproxy_config) counts, and without that C(/etc/haproxy/haproxy.cfg).
    type: str
  config_dir:
    description:
      - The folder of the fragments, one for each backend, which HAProxy must be started with (C(-f)).
      - Without it the host's variable C(haproxy_config_dir) counts, and without that C(/etc/haproxy/conf.d).
    type: str
notes:
  - Needs HAProxy 2.6 or later, and a user who may use its socket and write the folder, usually by C(become).
"""
