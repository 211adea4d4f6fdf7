# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How Proxmox VE really answers: a token of least privilege, its certificates, its hosts, and changes that are made in part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import pytest
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import DeadlineError, RefusedError
from ansible_collections.phoenix.fleet.plugins.module_utils._providers import proxmox
from ansible_collections.phoenix.fleet.plugins.module_utils._providers._proxmox_api import Refusal
from ansible_collections.phoenix.fleet.plugins.module_utils._providers.proxmox import connect
from ansible_collections.phoenix.fleet.tests.integration.pve_case import ADDRESSES, MakeCase, granted
from ansible_collections.phoenix.fleet.tests.integration.pve_cluster import TOKEN, USER, CuttingProxy, Served
from fakepve.model import TaskError


def paused(served: Served) -> asyncio.Event:
    """Tasks take as long as the event is not set."""
    done = asyncio.Event()

    async def pause(seconds: float) -> None:
        if seconds:
            await done.wait()

    served.pve.pause = pause  # type: ignore[method-assign]
    served.pve.time_scale = 1
    return done


def go_on(served: Served, done: asyncio.Event) -> None:
    served.loop.call_soon_threadsafe(done.set)


class Diary:
    """A journal that outlives the runs of a test."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}
        self.said: list[str] = []

    def began(self, task: str, doing: str) -> None:
        assert task not in self.tasks
        self.tasks[task] = doing

    def under_way(self) -> Mapping[str, str]:
        return dict(self.tasks)

    def say(self, text: str) -> None:
        self.said.append(text)

    def turn(self, name: str, width: int, seconds: float) -> AbstractContextManager[None]:
        return nullcontext()


# A token that may see its pool alone

def test_a_clone_under_way_and_a_removal_under_way_are_out_of_sight(make: MakeCase, served: Served) -> None:
    """The fake itself: what the tests below stand on."""
    granted(served)
    case = make(**ADDRESSES)
    item = case.created(1)[0]
    case.provider.stop([item], 1)
    cluster = case.provider.cluster  # type: ignore[attr-defined]
    found = cluster.survey()[0]
    with pytest.raises(Refusal, match=r"Permission check failed \(/vms/100077, VM.Audit\)"):
        case.provider.api.ask("asking", f"nodes/{item.host}/qemu/100077/config")  # type: ignore[attr-defined]
    done, served.pve.ending = paused(served), 1.0
    upid = case.provider.api.tell("removing", "delete", found.guest.path)  # type: ignore[attr-defined]
    cluster.forget()
    assert case.guest(item).lock == "destroyed" and cluster.survey() == [] and cluster.look(found.guest) is None
    go_on(served, done)
    assert case.provider.api.tasks.wait(upid, "removing", 30) == "OK" and served.pve.guest(item.number) is None  # type: ignore[attr-defined]


def test_a_privilege_that_is_missing_is_never_taken_for_an_absence(make: MakeCase, served: Served) -> None:
    granted(served)
    case = make(**ADDRESSES)
    made = case.created(1)
    found = case.provider.cluster.survey()[0]  # type: ignore[attr-defined]
    served.pve.acl[USER] = [(path, set() if path == "/pool/fleet" else privs) for path, privs in served.pve.acl[USER]]
    case.provider.cluster.forget()  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=rf"/vms/{made[0].number}, VM.Audit.*Give {USER}!{TOKEN} that privilege"):
        case.provider.cluster.look(found.guest)  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="lacks .*VM.Audit.* on /pool/fleet"):
        case.provider.preflight(case.planned(1, 2), case.blueprint)


def test_what_the_users_own_role_lacks_the_token_lacks_too(make: MakeCase, served: Served) -> None:
    granted(served)
    case = make(**ADDRESSES)
    del served.pve.acl[USER]
    with pytest.raises(RefusedError, match="no guest of that name"):
        make(**ADDRESSES)
    with pytest.raises(RefusedError):
        case.created(1)


def test_a_clone_whose_answer_is_lost_is_waited_for_although_nobody_sees_it(make: MakeCase, served: Served) -> None:
    served.pve.add_template(9100, "slow", "pve1", "ceph")
    granted(served)
    with CuttingProxy(served) as proxy:
        case = make("slow", **ADDRESSES, api_port=proxy.port)
        done = paused(served)
        served.pve.ceph_slow(1.0)
        proxy.cut.append(("POST", "/clone$"))
        looks = count()
        proxy.hook = lambda method, path: path.endswith("/100000/config") and next(looks) == 8 and go_on(served, done)
        made = case.created(1)
        assert [item.state for item in made] == ["running"] and proxy.lost == ["POST /nodes/pve1/qemu/9100/clone"]
        assert served.pve.calls["POST /nodes/{node}/qemu/{vmid}/clone"] == 1


def test_a_clone_that_was_told_and_not_answered_is_waited_for_by_the_next_run(make: MakeCase, served: Served) -> None:
    """The controller dies when the cluster has acted, and before it says so: nobody has the UPID, and nobody sees the guest."""
    served.pve.add_template(9100, "slow", "pve1", "ceph")
    granted(served)
    diary = Diary()
    with CuttingProxy(served) as proxy:
        case = make("slow", **ADDRESSES, api_port=proxy.port)
        planned = case.planned(1)
        done = paused(served)
        served.pve.ceph_slow(1.0)

        class Killed(BaseException):
            pass

        def die(upid: Any, doing: str, seconds: float, warnings: bool = False) -> str:
            raise Killed

        first = connect(case.options, diary)
        first._ended = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            first.create(planned, case.blueprint)
        assert served.pve.guest(100000).lock == "clone" and len(diary.tasks) == 1
        lists = count()
        proxy.hook = lambda method, path: path.endswith("/pve1/tasks") and next(lists) == 3 and go_on(served, done)
        seen = connect(case.options, diary).observe(case.fleet)
        assert [(item.name, item.state) for item in seen] == [(planned[0].name, "created")]
        assert "waits for what a former run began" in diary.said[0] and ":qmclone:9100:" in diary.said[0]


@pytest.mark.parametrize("way", ["as documented", "as an administrator"])
def test_what_a_killed_worker_left_is_named_with_the_command(
    make: MakeCase, served: Served, monkeypatch: pytest.MonkeyPatch, way: str,
) -> None:
    monkeypatch.setattr(proxmox, "LOOKING", 0.3)
    if way == "as documented":
        granted(served)
    case = make(**ADDRESSES)
    planned = case.planned(1)
    served.pve.dying = 1
    words = "unexpected status.*qm unlock 100000; qm destroy 100000" if way == "as documented" else "is locked.*qm unlock 100000"
    with pytest.raises((RefusedError, DeadlineError), match=words):
        case.provider.create(planned, case.blueprint)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_removal_whose_answer_is_lost_is_judged_by_its_task(make: MakeCase, served: Served, ends: str) -> None:
    """It takes the guest out of sight before it is gone, and may fail after that."""
    granted(served)
    with CuttingProxy(served) as proxy:
        case = make(**ADDRESSES, api_port=proxy.port)
        made = case.created(1)
        case.provider.stop(made, 1)
        done, served.pve.ending = paused(served), 1.0
        if ends == "badly":
            def busy(volid: str) -> None:
                raise TaskError("cfs-lock")

            served.pve._qm_free = busy  # type: ignore[method-assign]
        proxy.cut.append(("DELETE", "/100000$"))
        lists = count()
        proxy.hook = lambda method, path: path.endswith("/tasks") and next(lists) == 3 and go_on(served, done)
        if ends == "well":
            case.provider.destroy(made, 1)
            assert served.pve.guest(100000) is None
        else:
            with pytest.raises(RefusedError, match="cfs-lock.*qm unlock 100000; qm destroy 100000 --purge"):
                case.provider.destroy(made, 1)

