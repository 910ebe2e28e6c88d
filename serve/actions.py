"""What a prediction sets off: a debounced state machine over labels, and the commands and web hooks that it calls.

    [[serve.on]]                     # in camloop.toml
    label = "Door"
    command = ["/usr/bin/gpioset", "gpiochip0", "17=1"]     # a program and its arguments, never a shell
    webhook = "http://house.lan/door"                       # gets one POST with a JSON document
    min_prob = 0.8                   # a frame speaks for the label if it is the first choice and at least this probable
    hold_s = 0.5                     # so long without interruption before the label is on
    release_s = 0.5                  # so long without it before the label is off again
    cooldown_s = 5.0                 # at least so long between two calls

States of a rule: off -> (hold_s of frames that speak for it) on, called once -> (release_s of frames that do not) off.
Time is sensor time, so a file gives the same calls as the camera that filmed it. A call runs beside the loop, is given
`TIMEOUT_S`, and its failure is an event in the log, never an end of the loop. `{label}` and `{prob}` in a command's
arguments are replaced; they cannot become another argument.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from infra.errors import SettingsError
from infra.log import Log
from infra.records import Prediction

TIMEOUT_S = 10.0
_log = Log("serve.actions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One [[serve.on]] table."""

    label: str
    command: tuple[str, ...] = ()
    webhook: str | None = None
    min_prob: float = 0.8
    hold_s: float = 0.5
    release_s: float = 0.5
    cooldown_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.command and self.webhook is None:
            raise SettingsError(f"[[serve.on]] {self.label!r}: give a command or a webhook")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise SettingsError(f"[[serve.on]] {self.label!r}: webhook {self.webhook!r}; legal: http://... or https://...")
        if not 0 < self.min_prob <= 1 or min(self.hold_s, self.release_s, self.cooldown_s) < 0:
            raise SettingsError(f"[[serve.on]] {self.label!r}: min_prob in (0, 1]; hold_s, release_s, cooldown_s >= 0")


def read_rules(tables: object) -> tuple[Rule, ...]:
    """Read the [[serve.on]] tables.

    Raises:
        SettingsError: an unknown key, a wrong type, a command that is a shell line instead of a list.
    """
    if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) for table in tables):
        raise SettingsError("camloop.toml: serve.on must be tables, [[serve.on]]")
    return tuple(_rule(table) for table in tables)


def _rule(table: Mapping[str, Any]) -> Rule:
    kinds: dict[str, tuple[type, ...]] = {"label": (str,), "command": (list,), "webhook": (str,)}
    legal = [field.name for field in dataclasses.fields(Rule)]
    for name, value in table.items():
        if name not in legal:
            raise SettingsError(f"[[serve.on]]: unknown key {name!r}; legal: {', '.join(legal)}")
        if not isinstance(value, kinds.get(name, (int, float))) or isinstance(value, bool):
            wanted = (
                'a list such as ["/usr/bin/say", "hello"]' if name == "command" else "text" if name in kinds else "a number"
            )
            raise SettingsError(f"[[serve.on]]: {name} = {value!r} must be {wanted}")
    if "label" not in table:
        raise SettingsError("[[serve.on]]: label is missing")
    command = table.get("command", [])
    if not all(isinstance(part, str) for part in command):
        raise SettingsError(f"[[serve.on]] {table['label']!r}: every part of command must be text, not {command!r}")
    return Rule(**{**table, "command": tuple(command)})


def known_rules(rules: Sequence[Rule], labels: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules about labels that a model has, when a new model takes over in a running loop; the rest is logged."""
    for rule in rules:
        if rule.label not in labels:
            _log.warning("rule_without_label", label=rule.label, labels=list(labels))
    return tuple(rule for rule in rules if rule.label in labels)


@dataclass(slots=True)
class Debounce:
    """The state machine of one rule."""

    rule: Rule
    is_on: bool = False
    _since_ns: int | None = None
    _last_call_ns: int | None = None

    def reset(self) -> None:
        """Begin a recording: off."""
        self.is_on, self._since_ns, self._last_call_ns = False, None, None

    def step(self, prediction: Prediction, time_ns: int) -> bool:
        """Take one prediction; True when the rule is to be called now."""
        speaks = prediction.label == self.rule.label and prediction.prob >= self.rule.min_prob
        if speaks == self.is_on:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = time_ns
        needed_s = self.rule.release_s if self.is_on else self.rule.hold_s
        if (time_ns - self._since_ns) / 1e9 < needed_s:
            return False
        self.is_on, self._since_ns = not self.is_on, None
        if not self.is_on or self._is_cooling(time_ns):
            return False
        self._last_call_ns = time_ns
        return True

    def _is_cooling(self, time_ns: int) -> bool:
        return self._last_call_ns is not None and (time_ns - self._last_call_ns) / 1e9 < self.rule.cooldown_s


class Actions:
    """All rules of a camera.

    Args:
        rules: what to do when.
        labels: of the bundle that runs; a rule for none of them is refused.
        workers: runs the calls, beside the loop.

    Raises:
        SettingsError: a rule names a label that the model does not have.
    """

    def __init__(self, rules: Sequence[Rule], labels: Sequence[str], workers: Executor) -> None:
        for rule in rules:
            if rule.label not in labels:
                raise SettingsError(f"[[serve.on]] {rule.label!r}: the model's labels are {', '.join(labels)}")
        self._machines = [Debounce(rule) for rule in rules]
        self._workers = workers
        self.n_calls = 0

    def reset(self) -> None:
        """Begin a recording: every rule is off."""
        for machine in self._machines:
            machine.reset()

    def step(self, prediction: Prediction, time_ns: int) -> list[Rule]:
        """Take one prediction and start what it sets off; returns the rules that were called."""
        called = [machine.rule for machine in self._machines if machine.step(prediction, time_ns)]
        for rule in called:
            self._workers.submit(call, rule, prediction)
        self.n_calls += len(called)
        return called


def call(rule: Rule, prediction: Prediction) -> None:
    """Run a rule's command and send its web hook; what fails is logged."""
    if rule.command:
        words = {"{label}": prediction.label, "{prob}": f"{prediction.prob:.4f}"}
        arguments = [_filled(part, words) for part in rule.command]
        try:
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
            if done.returncode != 0:
                _log.warning(
                    "command_failed",
                    label=rule.label,
                    exit_code=done.returncode,
                    said=done.stderr[-200:].decode(errors="replace"),
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("command_failed", label=rule.label, error=str(error))
    if rule.webhook is not None:
        _post(rule, rule.webhook, prediction)


def _filled(part: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        part = part.replace(name, value)
    return part


def _post(rule: Rule, url: str, prediction: Prediction) -> None:
    import urllib3

    body = {"label": prediction.label, "prob": prediction.prob, "sensor_ns": prediction.sensor_ns, "pts": prediction.pts}
    try:
        answer = urllib3.request(
            "POST", url, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_S, retries=False, redirect=False,
        )  # fmt: skip
        if answer.status >= 300:
            _log.warning("webhook_failed", label=rule.label, status=answer.status)
    except urllib3.exceptions.HTTPError as error:
        _log.warning("webhook_failed", label=rule.label, error=str(error))
