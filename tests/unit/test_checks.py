# Copyright (c) 2026, The phoenix.fleet founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checks: which are well written, and what an answer is worth. Pure; what is really asked is tried in tests/integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.phoenix.fleet.plugins.module_utils import _checks
from ansible_collections.phoenix.fleet.plugins.module_utils._checks import (
    judge_command,
    judge_http,
    judge_state,
    mistakes,
    normal,
    ranges,
    spoken,
    title,
)
from ansible_collections.phoenix.fleet.plugins.module_utils._errors import InvalidError
from ansible_collections.phoenix.fleet.plugins.module_utils._model import Instance, LastWords
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("checks", [
    [{"tcp": {}}], [{"tcp": None}], [{"http": {}}], [{"http": None}], [{"command": ["probe", 1]}],
    [{"http": {"path": "/a?b=c%20d&e", "status": 204, "body": "ok", "host": "shop.example.org:8443", "scheme": "https"}}],
    [{"http": {"status": [200, "300-302"], "headers": {"X-Probe": "a b"}, "body": "/^ok$/"}}, {"tcp": {}}, {"command": ["x"]}],
])
def test_well_written_checks_have_one_normal_form(checks: Any) -> None:
    assert mistakes(checks) == []
    assert mistakes(list(normal(checks))) == [] and normal(normal(checks)) == normal(checks)


def test_the_normal_form_is_complete() -> None:
    whole = {"path": "/", "scheme": "http", "status": "200,300-302"}
    assert normal([{"http": {"status": [200, "300-302"], "body": ""}}]) == ({"http": whole},)


@pytest.mark.parametrize(("checks", "line"), [
    ("x", "fleet_checks: x is not a list; write for example [{http: {path: /health}}]"),
    ([], "fleet_checks: no check at all; leave it out for one TCP check"),
    (["tcp"], "fleet_checks[0]: tcp is not one check; write one of http: {...}, tcp: {} or command: [...]"),
    ([{"tcp": {}, "http": {}}], None),
    ([{"tcp": {}}, {"https": {}}], "fleet_checks[1]: https is not a kind of check; write http, tcp or command"),
    ([{"tcp": {"port": 1}}], "fleet_checks[0].tcp.port: unknown; write tcp: {}"),
    ([{"http": {"pth": "/"}}], "fleet_checks[0].http.pth: unknown; did you mean path?"),
    ([{"http": "/"}], "fleet_checks[0].http: / is not a dictionary; write http: {}"),
    ([{"http": {"path": "health"}}], None),
    ([{"http": {"path": "/a\r\nHost: b"}}], None),
    ([{"http": {"path": '/"'}}], None),
    ([{"http": {"host": "a b"}}], None),
    ([{"http": {"status": "2xx"}}], "fleet_checks[0].http.status: 2xx is no status; write 200, [200, 204] or 200-399"),
    ([{"http": {"status": "399-200"}}], None),
    ([{"http": {"body": "/(/"}}], None),
    ([{"http": {"scheme": "ftp"}}], "fleet_checks[0].http.scheme: ftp is unknown; write http or https"),
    ([{"http": {"headers": {"A b": "c"}}}], None),
    ([{"command": "probe --quick"}], None),
    ([{"command": []}], None),
])
def test_a_mistake_names_place_value_and_remedy(checks: Any, line: str | None) -> None:
    found = mistakes(checks)
    assert len(found) == 1 and (line is None or found == [line]), found


@pytest.mark.parametrize("checks", [
    [{"http": {"headers": {"Authorization": "hush\nhush"}}}],
    {"http": {"headers": {"X-Token": "hush"}}},
    [{"http": None, "headers": {"X-Token": "hush"}}],
    [{"http": {"headers": {"X-Token": "hush"}}, "tcp": {}}],
    [[{"http": {"headers": {"X-Token": "hush"}}}]],
    [{"http": [{"headers": {"X-Token": "hush"}}]}],
    [{"http": {"path": {"headers": {"X-Token": "hush"}}}}],
    [{"command": {"curl": "hush"}}],
    '[{"http": {"headers": {"X-Token": "hush"}},]',
])
def test_the_value_of_a_header_is_never_shown(checks: Any) -> None:
    found = mistakes(checks)
    assert len(found) == 1 and "hush" not in found[0]


def test_what_is_written_at_the_wrong_place_is_known_by_its_keys() -> None:
    assert mistakes([{"http": {}, "tcp": {}}])[0].startswith("fleet_checks[0]: {http, tcp} is not one check")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["http", "tcp", "command", "path", "status", "body", "headers", "host", "scheme", "x\n"]), inner, max_size=3,
    ), max_leaves=10,
))
def test_whatever_is_written_is_well_written_or_told_line_by_line(checks: Any) -> None:
    found = mistakes(checks)
    assert all(line.startswith("fleet_checks") and line.isprintable() for line in found), found
    if not found:
        assert normal(checks) == normal(normal(checks))


@given(low=st.integers(100, 599), high=st.integers(100, 599), status=st.integers(0, 999))
def test_a_status_passes_within_its_range_alone(low: int, high: int, status: int) -> None:
    if low > high:
        assert ranges(f"{low}-{high}") is None
    else:
        assert (judge_http({"status": f"{low}-{high}"}, status, "") == "") is (low <= status <= high)


@pytest.mark.parametrize(("check", "status", "body", "verdict"), [
    ({}, 200, "", ""),
    ({}, 302, "", ""),
    ({}, 404, "no such page", "answered 404, not 200-399: no such page"),
    ({}, 500, "", "answered 500, not 200-399"),
    ({"status": "nonsense"}, 200, "", "answered 200, not nonsense"),
    ({"body": "1.9"}, 200, "shop 1.9", ""),
    ({"body": "1.9"}, 200, "shop 129", "answered 200, without '1.9' in: shop 129"),
    ({"body": "/^shop 1\\.\\d$/"}, 200, "shop 1.9", ""),
    ({"body": "/^1/"}, 200, "shop 1.9", "answered 200, without '/^1/' in: shop 1.9"),
    ({}, 500, "\x1b[31mred\nalert", "answered 500, not 200-399: [31mred alert"),
])
def test_an_answer_is_judged_by_status_and_body(check: dict[str, Any], status: int, body: str, verdict: str) -> None:
    assert judge_http(check, status, body) == verdict


def test_a_command_passes_with_nothing_but_zero() -> None:
    assert judge_command(0, "noise") == ""
    assert judge_command(1, "no\nroute") == "ended with 1: no route" and judge_command(-9, "") == "was ended by signal 9"


def test_an_instance_that_cannot_pass_any_more_is_recognised() -> None:
    def instance(state: str) -> Instance:
        return Instance("web-r1-1", "local", "web", 1, 1, "x", "192.0.2.1", 80, state=state)

    assert judge_state(None) == "it is gone"
    verdicts = {"running": "", "created": "", "restarting": "it is restarting", "stopped": "it is stopped"}
    assert {state: judge_state(instance(state)) for state in verdicts} == verdicts
    assert judge_state(instance("running"), 0) == "" and judge_state(instance("running"), 2) == "it was restarted 2 times"


def test_last_words_tell_state_exit_code_and_the_end_of_the_log() -> None:
    words = LastWords("web-r1-1", "stopped", 3, 1, tuple(f"line {number}\x07" for number in range(20)))
    assert spoken(words) == ["stopped with exit code 3, restarted once; its log ends:", *(f"| line {number}" for number in range(10, 20))]
    assert spoken(LastWords("web-r1-1", "running", None, 0)) == ["running; its log is empty"]


def test_a_check_has_a_title() -> None:
    checks: list[dict[str, Any]] = [{"http": {"path": "/up"}}, {"tcp": {}}, {"command": ["probe", "-q"]}]
    assert [title(check) for check in checks] == ["http /up", "tcp", "command probe"]


def test_parameters_are_refused_all_at_once() -> None:
    with pytest.raises(InvalidError, match="checks\\[0\\]"):
        _checks.checks_of({"checks": [{"http": None, "tcp": None}]})
    good = {"name": "a", "address": "192.0.2.1", "port": "80"}
    with pytest.raises(InvalidError) as caught:
        _checks.instances_of({"instances": [good, {"name": "b"}, {**good, "port": "y"}]})
    assert len(caught.value.mistakes) == 2


def test_the_module_documents_its_options() -> None:
    text = (ROOT / "plugins" / "modules" / "instance_checks.py").read_text()
    documented = yaml.safe_load(text.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]
    assert _tree(documented) == _tree(_checks.ARGUMENTS)


def _tree(options: Any) -> Any:
    return {
        name: (option["type"], option.get("default"), _tree(option.get("suboptions") or option.get("options") or {}))
        for name, option in options.items()
    }
