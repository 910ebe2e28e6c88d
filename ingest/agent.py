"""The agent of a camera host: a recorder process per camera and an uploader, watched, counted and told about.

    agent_config, camera_configs  ->  children  ->  Supervisor.run()
                                        each turn: systemd hears WATCHDOG=1, counts are taken, the host is looked at
                                        every 10 s: the live state for `camloop agent status`, in memory
                                        every 5 min: a health document in <spool>/health/<boot_id>/, for the uploader
                                        once an hour, at the start and at the end: <spool>/agent.json

This process imports neither numpy nor av. A disk that refuses, a sensor that is not there or a socket that nobody reads
stop nothing here: they are told, and the recorders go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from infra import durable
from infra.clock import Clock
from infra.log import Log
from infra.settings import ServiceSettings, Settings, child_environment
from ingest import host
from ingest.agent_state import FILE_NAME, glance, live_path, only_agent, publish
from ingest.config import AgentConfig, CameraConfig
from ingest.notify import Notify
from ingest.supervisor import HEARTBEAT, Child, Supervisor
from ingest.tally import DayTally
from ingest.uplink import read_uplink
from ingest.watchdog import Watch, shape_of

KEPT_HEALTH_DOCUMENTS = 2016  # a week of one in five minutes: what an outage may make wait; about 2 MB
KEPT_ERRORS = 5
KEEP_EVERY_S = 3600.0
UPLOADER = "uploader"
UPLOADER_STALL_S = 1200.0  # no turn, no byte and no answer; the longest wait for a turn takes 900 s of it
_FRAMES_UNTIL_STALL = 4  # a time-lapse camera is not stalled between two frames
_log = Log("ingest.agent")


class Agent:
    """Runs the cameras of one host.

    Args:
        config: the `[agent]` table.
        cameras: the `[[camera]]` tables.
        settings: store and host, handed on to the children.
        service: what systemd said.
        clock: wall clock for people, monotonic clock for everything else.
        version: of camloop, for the health documents.
        command: how camloop is started.
        out: where the children's lines go.
    """

    def __init__(
        self, config: AgentConfig, cameras: Sequence[CameraConfig], settings: Settings, service: ServiceSettings, clock: Clock,
        *, version: str, command: Sequence[str] = (sys.executable, "-m", "infra.cli"), out: IO[str] | None = None,
    ) -> None:  # fmt: skip
        self._config, self._cameras, self._settings, self._clock = config, tuple(cameras), settings, clock
        self._version, self._boot_id = version, host.boot_id()
        self._notify = Notify(service.notify_socket, service.watchdog_s, clock)
        self._live = live_path(config.spool, service.runtime_folder)
        self._started_ns, self._started_mono_ns = clock.now_ns(), clock.mono_ns()
        self._recorders = [self._recorder(camera, command) for camera in self._cameras]
        uploader = [self._uploader(command)] if config.upload else []
        self._supervisor = Supervisor([*self._recorders, *uploader], clock, out=out, on_tick=self._tick)
        self._tally = DayTally.read(config.spool, [camera.id for camera in self._cameras], self._today())
        self._errors: dict[tuple[str, str], dict[str, Any]] = {}
        self._told: dict[str, tuple[str, int] | None] = {}
        self._due = dict.fromkeys(("publish", "keep", "health"), clock.mono_ns())
        self._state = "running"
        self._document: dict[str, Any] = {}

    def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            DeviceError: another agent runs on the spool, or its disk refuses.
        """
        with only_agent(self._config.spool):
            self._notify.send("READY=1")
            _log.info("agent_started", cameras=[camera.id for camera in self._cameras], spool=self._config.spool)
            try:
                self._supervisor.run(self._config.stop_s)
            finally:
                self._state = "stopped"
                self._notify.send("STOPPING=1")
                self._publish(kept=True)
                _log.info("agent_stopped")

    def _recorder(self, camera: CameraConfig, command: Sequence[str]) -> Child:
        slow = 0.0 if camera.asked_fps is None else _FRAMES_UNTIL_STALL / camera.asked_fps
        watch = Watch(
            clock=self._clock, stall_s=max(self._config.stall_s, slow), start_s=max(self._config.start_s, slow),
            longest_pause_s=self._config.longest_pause_s,
        )  # fmt: skip
        argv = [*command, "record", "--camera-table", camera.id, "--spool", str(self._config.spool)]
        argv += ["--heartbeat-fd", HEARTBEAT, "--quiet"]
        return Child(
            name=camera.id, argv=argv, watch=watch, ends=camera.ends, lines_per_minute=self._config.log_lines_per_minute,
            environment=child_environment(self._settings, secrets=False),
        )  # fmt: skip

    def _uploader(self, command: Sequence[str]) -> Child:
        watch = Watch(clock=self._clock, stall_s=UPLOADER_STALL_S, films=False, longest_pause_s=60.0)
        argv = [*command, "upload", str(self._config.spool), "--watch", "--heartbeat-fd", HEARTBEAT, "--quiet"]
        for folder in self._config.outbox:
            argv += ["--outbox", str(folder)]
        return Child(
            name=UPLOADER, argv=argv, watch=watch, lines_per_minute=self._config.log_lines_per_minute,
            environment=child_environment(self._settings), niceness=10,
        )  # fmt: skip

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock.now_ns() / 1e9).astimezone().date().isoformat()

    def _is_due(self, what: str, every_s: float) -> bool:
        now_ns = self._clock.mono_ns()
        if now_ns < self._due[what]:
            return False
        self._due[what] = now_ns + round(every_s * 1e9)
        return True

    def _tick(self) -> None:
        self._tally.turn_to(self._today())
        for child in self._recorders:
            self._tally.take(child.name, child.watch.last)
        for child in self._supervisor.children:
            watch = child.watch
            self._tell(child.name, None if watch.state == "running" else watch.last_error, watch.n_restarts)
        self._notify.alive(self._status_line())
        if self._is_due("publish", self._config.publish_s):
            self._publish(kept=self._is_due("keep", KEEP_EVERY_S))
        if self._is_due("health", self._config.health_s):
            self._write_health()

    def _tell(self, name: str, trouble: str | None, occurrence: int = 0) -> None:
        """Keep the last errors; the same one again, but for its numbers, is counted. Told is what changed since last time."""
        now = None if trouble is None else (trouble, occurrence)
        if now == self._told.get(name):
            return
        self._told[name] = now
        if trouble is None:
            return
        key = (name, shape_of(trouble))
        before = self._errors.pop(key, None)
        n_times = 1 if before is None else before["n_times"] + 1
        self._errors[key] = {"at_ns": self._clock.now_ns(), "name": name, "text": trouble[:300], "n_times": n_times}
        while len(self._errors) > KEPT_ERRORS:
            del self._errors[next(iter(self._errors))]

    def _status_line(self) -> str:
        states = [child.watch.state for child in self._recorders]
        return f"{states.count('running')} of {len(states)} cameras recording" + (
            f", {states.count('ended')} at their end" if "ended" in states else ""
        )

    def _safely(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if self._told.get(what) is None:
                _log.warning("not_written", what=what, error=error.strerror, file=error.filename)
            self._tell(what, error.strerror or str(error))
        else:
            self._tell(what, None)

    def _camera_facts(self, camera: CameraConfig, child: Child) -> dict[str, Any]:
        watch, today, total = child.watch, self._tally.today[camera.id], self._tally.total[camera.id]
        fps = watch.fps()
        return {
            "id": camera.id, "url": camera.shown_url, "site": camera.site, "state": watch.state,
            "trigger": str(camera.trigger.get("kind", "always")),
            "since_s": round((self._clock.mono_ns() - watch.since_ns) / 1e9, 1),
            "is_late": watch.is_stalled(), "fps": None if fps is None else round(fps, 2),
            "down_s": round((self._clock.mono_ns() - (watch.last_frame_ns or self._started_mono_ns)) / 1e9, 1),
            "last_frame_age_s": None if watch.last_frame_ns is None else round(watch.age_s(), 1),
            "today": dataclasses.asdict(today), "n_frames": total.n_frames, "n_dropped": total.n_dropped,
            "n_skipped": total.n_skipped, "n_clips": total.n_clips, "n_restarts": watch.n_restarts,
            "n_stalls": watch.n_stalls, "last_error": watch.last_error, "n_lines_hidden": child.n_lines_hidden,
        }  # fmt: skip

    def _host_facts(self) -> dict[str, Any]:
        disk = host.disk_state(self._config.spool)
        celsius, clock, power = host.temperature_c(), host.clock_state(), host.power_trouble()
        held = glance(self._config.spool)
        if disk is not None and disk.is_read_only:
            self._tell("disk", "the spool's disk is read-only: nothing is recorded")
        if celsius is not None and celsius >= self._config.hot_c:
            self._tell("temperature", f"{celsius:.0f} degrees, {self._config.hot_c:g} is hot")
        self._tell("power", power)
        lost = {} if held is None else {name: getattr(held, name) for name in ("n_evicted", "n_quarantined", "n_lost")}
        return {
            "spool_today": self._tally.spool_today(lost), "spool_before": self._tally.spool_before,
            "disk": None if disk is None else dataclasses.asdict(disk), "temperature_c": celsius, "power": power,
            "clock": dataclasses.asdict(clock), "uptime_s": round(self._clock.mono_ns() / 1e9, 1),
            "spool_holds": None if held is None else dataclasses.asdict(held),
        }  # fmt: skip

    def _publish(self, *, kept: bool) -> None:
        uplink = read_uplink(self._config.spool)
        uploader = next((child for child in self._supervisor.children if child.name == UPLOADER), None)
        self._document = {
            "state": self._state, "host_id": self._settings.host_id, "version": self._version, "boot_id": self._boot_id,
            "spool": str(self._config.spool.resolve()), "store": self._settings.store_url, "live": str(self._live),
            "started_ns": self._started_ns, "started_mono_ns": self._started_mono_ns,
            "at_ns": self._clock.now_ns(), "at_mono_ns": self._clock.mono_ns(), "day": self._tally.day,
            "hot_c": self._config.hot_c,
            "cameras": [self._camera_facts(*both) for both in zip(self._cameras, self._recorders, strict=True)],
            "uploader": None if uploader is None else {"state": uploader.watch.state, "last_error": uploader.watch.last_error},
            "uplink": None if uplink is None else dataclasses.asdict(uplink),
            **self._host_facts(), "errors": list(self._errors.values()),
        }  # fmt: skip
        self._safely("live state", lambda: publish(self._live, self._document))
        if kept:
            self._safely(FILE_NAME, lambda: publish(self._config.spool / FILE_NAME, self._document))

    def _write_health(self) -> None:
        """Leave a health document for the uploader; its number is the boot's second, so that none is given out twice."""
        folder = self._config.spool / "health" / self._boot_id
        number = self._clock.mono_ns() // 1_000_000_000

        def write() -> None:
            durable.write(folder / f"{number:08d}.json", json.dumps(health_document(self._document, number)).encode())
            _forget_oldest(folder.parent, KEPT_HEALTH_DOCUMENTS)

        self._safely("health", write)


def health_document(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what `fleet status` reads, out of a published state: numbers and names, no addresses and no messages."""
    held, disk = state["spool_holds"] or {}, state["disk"] or {}
    oldest_ns = held.get("oldest_ns")
    of_camera = ("state", "n_frames", "n_dropped", "n_skipped", "n_clips", "n_restarts", "last_frame_age_s", "fps")
    return {
        "host_id": state["host_id"], "boot_id": state["boot_id"], "n": number, "at_ns": state["at_ns"],
        "mono_ns": state["at_mono_ns"], "version": state["version"],
        "cameras": {camera["id"]: {name: camera[name] for name in of_camera} for camera in state["cameras"]},
        "spool": {
            "pending": held.get("n_pending"), "bytes": held.get("n_bytes"), "evicted": held.get("n_evicted"),
            "oldest_s": None if oldest_ns is None else max(0.0, (state["at_ns"] - oldest_ns) / 1e9),
        },
        "disk_free_bytes": disk.get("free_bytes"), "disk_total_bytes": disk.get("total_bytes"),
        "temperature_c": state["temperature_c"], "power": state["power"], "clock": state["clock"],
        "uptime_s": state["uptime_s"],
    }  # fmt: skip


def _forget_oldest(folder: Path, n_kept: int) -> None:
    """Remove the oldest health documents beyond `n_kept`; those of earlier boots go first, by when they were written."""
    found = []
    for path in folder.glob("*/*.json"):
        with contextlib.suppress(FileNotFoundError):  # delivered meanwhile
            found.append((path.stat().st_mtime_ns, path.name, path))
    for _, _, path in sorted(found)[: max(0, len(found) - n_kept)]:
        durable.remove(path)
