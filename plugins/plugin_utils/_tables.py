# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: may change at any time.

"""The ledger's tables, the same in SQLite and PostgreSQL. Where SQLAlchemy is missing, `sa` is None and there are none."""

from __future__ import annotations

import importlib
from typing import Any

VERSION = 5
"""Of the tables. A ledger with a higher one is refused; one with a lower one gets the tables that it lacks when a fleet is next taken.

2 added the bands of numbers, 3 the tasks, 4 the registrations and the fleets' lineage and checkpoint, 5 the turns.
"""

sa: Any
try:
    import sqlalchemy as sa
    importlib.import_module("sqlalchemy.dialects.sqlite")  # once, in the process that Ansible's workers are forked from
except ImportError:
    sa = None
else:
    TABLES = sa.MetaData()

    def _since(version: int, name: str, kind: Any, default: str) -> Any:
        """A column that earlier versions do not have, and nobody of theirs writes."""
        return sa.Column(name, kind, nullable=False, server_default=default, info={"since": version})

    def fleets(version: int) -> Any:
        """The rows of FLEETS in a ledger of this version: what that does not have yet is as in one that has just got it."""
        def default(column: Any) -> Any:
            return sa.literal(column.type.python_type(column.server_default.arg)).label(column.name)
        return sa.select(*(column if column.info.get("since", 1) <= version else default(column) for column in FLEETS.c))

    # One row: whose ledger this is. secret is the key for the hashes of secrets.
    LEDGER = sa.Table(
        "phoenix_ledger",
        TABLES,
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )

    # fence, next_release and next_server only grow. entry is the open one (0: none). holder is a process as JSON, expires is
    # its deadline by the ledger's clock. records and chain are the number and the hash of the newest event, checkpoint and its hash those
    # of the last one that is kept no more: the chain begins behind it. raised is by how much the present lease's fence was raised when it
    # took the fleet over (see `adopt`), lineage what heads say (see Head).
    FLEETS = sa.Table(
        "phoenix_fleets",
        TABLES,
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Integer, nullable=False),
        sa.Column("since", sa.String(32), nullable=False),
        sa.Column("next_release", sa.Integer, nullable=False),
        sa.Column("next_server", sa.Integer, nullable=False),
        sa.Column("entry", sa.Integer, nullable=False),
        sa.Column("records", sa.BigInteger, nullable=False),
        sa.Column("chain", sa.String(64), nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("held_by", sa.Text),
        sa.Column("held_since", sa.String(32)),
        sa.Column("expires", sa.Float(53)),
        _since(4, "lineage", sa.Text, ""),
        _since(4, "raised", sa.BigInteger, "0"),
        _since(4, "checkpoint", sa.BigInteger, "0"),
        _since(4, "checkpoint_hash", sa.String(64), ""),
    )

    # committed is the entry by which the release last became live (0: never), which orders the live ones in time. seals are those of
    # its stopped instances.
    RELEASES = sa.Table(
        "phoenix_releases",
        TABLES,
        sa.Column("fleet", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("finished", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("committed", sa.Integer, nullable=False),
        sa.Column("seals", sa.JSON, nullable=False),
    )

    # size is what the target takes by the commit (0: it keeps its own). retires lists the releases that have no instances left
    # once the entry is done.
    ENTRIES = sa.Table(
        "phoenix_entries",
        TABLES,
        sa.Column("fleet", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("verb", sa.String(16), nullable=False),
        sa.Column("source", sa.Integer, nullable=False),
        sa.Column("target", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("retires", sa.JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("finished", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )

    # The records. hash covers everything else in the row and the hash of the record before.
    EVENTS = sa.Table(
        "phoenix_events",
        TABLES,
        sa.Column("fleet", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.Integer, nullable=False),
        sa.Column("record", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Index("phoenix_events_of_entry", "fleet", "entry"),
    )

    # What instances hold of what must be unique among all fleets of this ledger: `HOST KEY`, an address for example.
    RESERVATIONS = sa.Table(
        "phoenix_reservations",
        TABLES,
        sa.Column("key", sa.String(512), primary_key=True),
        sa.Column("fleet", sa.String(63), nullable=False, index=True),
        sa.Column("instance", sa.String(128), nullable=False),
    )

    # The bands of numbers that instances get theirs from, `HOST FIRST`: following is the lowest number that nobody ever got. It only grows.
    BANDS = sa.Table(
        "phoenix_bands",
        TABLES,
        sa.Column("band", sa.String(300), primary_key=True),
        sa.Column("following", sa.BigInteger, nullable=False),
    )

    # HAProxy's id for each instance of a fleet.
    SERVERS = sa.Table(
        "phoenix_servers",
        TABLES,
        sa.Column("fleet", sa.String(63), primary_key=True),
        sa.Column("instance", sa.String(128), primary_key=True),
        sa.Column("id", sa.Integer, nullable=False),
    )

    # What each balancer was told of each server, and its receipt (see Registration). The row of an instance without a balancer is written
    # before it is made: an instance that has no row at all is from before there were registrations.
    REGISTRATIONS = sa.Table(
        "phoenix_registrations",
        TABLES,
        sa.Column("fleet", sa.String(63), primary_key=True),
        sa.Column("server", sa.String(128), primary_key=True),
        sa.Column("balancer", sa.String(255), primary_key=True),
        sa.Column("backend", sa.String(255), primary_key=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("told", sa.String(32), nullable=False),
        sa.Column("receipt", sa.JSON),
    )

    # The tasks that a provider's cluster was given since the fleet's last undertaking ended, by the cluster's own names for them.
    TASKS = sa.Table(
        "phoenix_tasks",
        TABLES,
        sa.Column("task", sa.String(256), primary_key=True),
        sa.Column("fleet", sa.String(63), nullable=False, index=True),
        sa.Column("doing", sa.Text, nullable=False),
    )

    # Who is at work on what several runs share, or waits for it, in the order in which they came: see `turn`. A row counts while its lease
    # (the fleet's, of that fence) is held.
    TURNS = sa.Table(
        "phoenix_turns",
        TABLES,
        sa.Column("name", sa.String(300), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("fleet", sa.String(63), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
    )
