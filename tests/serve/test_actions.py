"""Debounced actions: when a rule is called, what it runs, what configuration is refused."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.records import Prediction
from serve.actions import Actions, Debounce, Rule, call, known_rules, read_rules

RULE = Rule(label="Door", command=("/bin/true",), min_prob=0.8, hold_s=0.3, release_s=0.2, cooldown_s=2.0)


def said(label: str, prob: float) -> Prediction:
    return Prediction(label=label, prob=prob, probs=(prob,), raw_probs=(prob,))


def calls(rule: Rule, script: str) -> list[int]:
    """Feed one letter per 0.1 s (D = Door 0.9, d = Door 0.7, . = None 0.9); return at which letters the rule is called."""
    machine = Debounce(rule)
    meant = {"D": said("Door", 0.9), "d": said("Door", 0.7), ".": said("None", 0.9)}
    return [number for number, letter in enumerate(script) if machine.step(meant[letter], number * 100_000_000)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("....", []),
        ("DDD.", []),  # not long enough
        ("DDDDDDDDDD", [3]),  # once, however long it stays on
        ("DD.DDDD", [6]),  # an interruption begins anew
        ("ddddddd", []),  # not probable enough
        ("DDDD.DDDD", [3]),  # off needs 0.2 s without it
        ("DDDD...DDDDDDDDDD", [3]),  # on again, but cooling down
        ("DDDD" + "." * 20 + "DDDD", [3, 27]),
    ],
)
def test_a_rule_is_called_once_per_event(script: str, expected: list[int]) -> None:
    """Truth table of the state machine, in sensor time."""
    assert calls(RULE, script) == expected


def test_every_rule_has_its_own_state() -> None:
    """Two rules over two labels; a reset turns both off."""
    with ThreadPoolExecutor(1) as workers:
        other = Rule(label="None", command=("/bin/true",), hold_s=0.0)
        actions = Actions((RULE, other), ("Door", "None"), workers)
        assert actions.step(said("None", 0.9), 0) == [other]
        assert actions.step(said("None", 0.9), 10) == []
        actions.reset()
        assert actions.step(said("None", 0.9), 20) == [other] and actions.n_calls == 2


def test_a_command_gets_its_arguments_and_no_shell(tmp_path: Path) -> None:
    """A label full of shell signs stays one argument."""
    out = tmp_path / "out"
    program = f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text(repr(sys.argv[1:]))"
    label = "x; touch /tmp/pwned $(id)"
    call(Rule(label=label, command=(sys.executable, "-c", program, "{label}", "p={prob}")), said(label, 0.91234))
    assert out.read_text() == repr([label, "p=0.9123"])


def test_a_failing_command_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A program that is missing, or fails, is an event."""
    call(Rule(label="Door", command=("/no/such/program",)), said("Door", 0.9))
    call(Rule(label="Door", command=(sys.executable, "-c", "import sys; sys.exit('broken')")), said("Door", 0.9))
    call(Rule(label="Door", webhook="http://127.0.0.1:9/nobody"), said("Door", 0.9))
    assert [record.getMessage() for record in caplog.records] == ["command_failed", "command_failed", "webhook_failed"]


def test_a_web_hook_gets_one_json_document() -> None:
    """The body says label, probability and sensor time."""
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    prediction = Prediction(label="Door", prob=0.9, probs=(0.9,), raw_probs=(0.9,), sensor_ns=17)
    call(Rule(label="Door", webhook=f"http://127.0.0.1:{server.server_port}/door"), prediction)
    thread.join(5)
    server.server_close()
    assert got == [{"label": "Door", "prob": 0.9, "sensor_ns": 17, "pts": None}]


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"label": "Door"}, "give a command or a webhook"),
        ({"command": ["x"]}, "label is missing"),
        ({"label": "Door", "command": "rm -rf /"}, "must be a list"),
        ({"label": "Door", "command": ["x", 1]}, "must be text"),
        ({"label": "Door", "command": ["x"], "holds": 1}, "unknown key 'holds'"),
        ({"label": "Door", "command": ["x"], "hold_s": "1"}, "must be a number"),
        ({"label": "Door", "command": ["x"], "min_prob": 0}, "min_prob"),
        ({"label": "Door", "webhook": "ftp://x"}, "http"),
    ],
)
def test_wrong_rules_are_refused(table: dict, word: str) -> None:
    """Each wrong table is one SettingsError that says what is legal."""
    with pytest.raises(SettingsError, match=word):
        read_rules([table])


def test_rules_are_checked_against_the_model() -> None:
    """At the start an unknown label is refused; in a running loop a new model makes the rule sleep."""
    assert read_rules([{"label": "Door", "command": ["x"], "hold_s": 1}])[0].hold_s == 1
    with ThreadPoolExecutor(1) as workers, pytest.raises(SettingsError, match="labels are A, B"):
        Actions((RULE,), ("A", "B"), workers)
    assert known_rules((RULE,), ("A", "B")) == () and known_rules((RULE,), ("Door",)) == (RULE,)
