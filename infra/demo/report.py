"""The demo's last page: what was filmed, found, drawn, learned, refused, asked for and released, with pictures.

Everything on it is read back from the demo's store through the floor, as any other reader would: tables by the catalog,
frames by the one decoder. `build(story)` gives one self-contained document.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from infra import page
from infra.catalog import Catalog, open_catalog
from infra.demo.story import Facts, Story
from infra.page import Box, Markup
from infra.records import Sidecar
from infra.store import DirStore
from infra.video import decode
from infra.views import clips_view, frames_view

_LIGHTS = ("day", "dusk", "night", "infrared")


def build(story: Story) -> str:
    """Return the report of a story that has been told."""
    facts = story.facts
    catalog = open_catalog(DirStore(story.store), create=False)
    rounds = [facts["judge"], *([facts["judge-2"]] if "judge-2" in facts else [])]
    body = [
        page.facts(_summary(facts)),
        _filmed(catalog, facts),
        _distribution(facts),
        _learning(facts),
        _judging(rounds),
        _wishes(facts),
        _released(facts, rounds[-1]),
        _way_back(catalog, facts, rounds[-1]),
        _steps(facts),
        _yours(),
    ]
    lead = (
        "Simulated cameras filmed, a model learned, its gate judged it, what was missing was filmed, and the gate judged "
        "again. Nothing here was chosen after its figure was seen."
    )
    return page.page("camloop: one turn of the loop, and another", body, lead=lead)


def _summary(facts: Mapping[str, Facts]) -> dict[str, object]:
    filmed = [facts["film"], *([facts["wish"]["filmed"]] if facts["wish"]["filmed"] else [])]
    looked = sum(facts[name]["curated"]["n_frames"] for name in ("register", "register-2") if name in facts)
    return {
        "recordings": sum(one["n_recordings"] for one in filmed),
        "minutes of footage": f"{sum(one['n_frames'] for one in filmed) / 600:.0f}",
        "frames looked at": f"{looked:,}",
        "labels by the annotator": sum(facts[name]["n_labels"] for name in ("ask", "ask-2") if name in facts),
        "seconds": f"{sum(one['seconds'] for one in facts.values()):.0f}",
    }


def _filmed(catalog: Catalog, facts: Mapping[str, Facts]) -> str:
    frames = frames_view(catalog).filter(pl.col("n_person") > 0).collect()
    chosen: list[dict[str, Any]] = []
    for camera in sorted(frames["camera_id"].unique()):
        for light in _LIGHTS:
            found = frames.filter((pl.col("camera_id") == camera) & (pl.col("lighting") == light))
            if found.height and len([c for c in chosen if c["lighting"] == light]) < 3:
                chosen.append(found.row(found.height // 2, named=True))
    pictures = [_picture(catalog, row) for row in sorted(chosen, key=lambda row: _LIGHTS.index(row["lighting"]))]
    n, cameras = facts["film"]["n_recordings"], len(facts["film"]["cameras"])
    return (
        f"<h2>What the cameras saw</h2><p>{n} recordings by {cameras} cameras came first. The boxes are the detector's, the "
        "words below each picture are tags: a detector and an image-text model, both made by this project on other parts of "
        f"the simulated world.</p>{page.tiles(pictures)}"
    )


def _picture(catalog: Catalog, row: Mapping[str, Any]) -> str:
    boxes = catalog.scan("detections").filter((pl.col("clip_id") == row["clip_id"]) & (pl.col("pts") == row["pts"])).collect()
    drawn = [
        Box(x1=b["x1"], y1=b["y1"], x2=b["x2"], y2=b["y2"], name=f"{b['class_name']} {b['score']:.0%}")
        for b in boxes.iter_rows(named=True)
        if b["score"] >= 0.25
    ]
    words = [row["camera_id"], row["lighting"], *(str(row[name]) for name in ("weather", "jacket") if row.get(name))]
    jpeg, width_px, height_px = _jpeg(catalog, row["clip_id"], row["pts"])
    return page.picture(jpeg, width_px, height_px, ", ".join(words), drawn)


def _jpeg(catalog: Catalog, clip_id: str, pts: int) -> tuple[bytes, int, int]:
    from PIL import Image

    key = catalog.scan("clips", ["clip_id", "key"]).filter(pl.col("clip_id") == clip_id).collect()["key"][0]
    with catalog.store.local(key) as path:
        rgb = next(iter(decode(path, pts=[pts]))).rgb[0]
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=82)
    return buffer.getvalue(), rgb.shape[1], rgb.shape[0]


def _distribution(facts: Mapping[str, Facts]) -> str:
    before, after = facts["look"]["spread"], facts.get("look-2", facts["look"])["spread"]
    chosen = facts.get("select-2", facts["select"])
    drawn, first = chosen["spread"], facts["select"]["spread"]
    footage, rounds = ("first round", "after the wish"), ("first round", "second round")
    charts = [
        page.bars("Light, share of footage", before["lighting"], after["lighting"], names=footage),
        page.bars("Cameras, share of footage", before["camera_id"], after["camera_id"], names=footage),
        page.bars("Light in the training selection", first["lighting"], drawn["lighting"], names=rounds),
        page.bars("Actions in the training selection", first["label"], drawn["label"], names=rounds),
    ]
    rows = [(s["cell"], s["wanted"], s["found"], s["why"]) for s in chosen["shortages"]]
    short = f"<h3>What the selection could not meet</h3>{page.table(('cell', 'wanted', 'found', 'why'), rows)}" if rows else ""
    return (
        "<h2>How the footage is spread</h2><p>A frame stands for more footage the less likely it was to be looked at; shares "
        f'are of footage time. {page.text(facts["look"]["vault"])}.</p><div class="row">{"".join(charts)}</div>{short}'
    )


def _learning(facts: Mapping[str, Facts]) -> str:
    charts = []
    for name, which in (("learn", "first round"), ("learn-2", "second round")):
        if name not in facts:
            continue
        lines = {
            "video model": [row["val_loss"] for row in facts[name]["gru"]["history"]],
            "single frames": [row["val_loss"] for row in facts[name]["frame"]["history"]],
        }
        charts.append(page.curves(f"Validation loss, {which}", lines))
    return (
        "<h2>Learning</h2><p>A video model carries a state from frame to frame; beside it, always, a baseline that sees one "
        f'frame at a time.</p><div class="row">{"".join(charts)}</div>'
    )


def _judging(rounds: Sequence[Facts]) -> str:
    parts = [
        "<h2>The gate</h2><p>The exported file is streamed over whole recordings of other places and other people, by the "
        "code that runs on the camera. Bars are 95 % intervals over recordings, the upright line is the threshold.</p>"
    ]
    for number, one in enumerate(rounds, 1):
        report = one["report"]
        again = report["detail"]["reuse_count"]
        columns = ("slice", "metric", "0 to 1", "value [interval]", "recordings", "verdict")
        parts.append(
            f'<div class="card"><h3>Round {number}: {page.verdict(one["verdict"])}</h3>'
            f"{page.table(columns, [_cell(cell) for cell in report['cells']])}"
            f'<p class="soft">{page.text(_night(number))} These rows had judged {again} models before.</p>'
            f"{_paired(report['detail']['paired'])}</div>"
        )
    return "".join(parts)


def _night(number: int) -> str:
    return "This model had seen no night, on purpose." if number == 1 else "The same evaluation rows, the same gate."


def _cell(cell: Mapping[str, Any]) -> tuple[object, ...]:
    drawn = page.interval(cell["value"], cell["low"], cell["high"], cell["threshold"], cell["verdict"])
    return cell["slice"], cell["metric"], drawn, _value(cell), cell["n_groups"], page.verdict(cell["verdict"])


def _value(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None or cell["low"] is None:
        return "no figure"
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _paired(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for pair in pairs:
        over = " and ".join(pair["labels"]) or "all actions"
        bounds = "no interval" if pair["low"] is None else f"[{pair['low']:+.2f}, {pair['high']:+.2f}]"
        lines.append(f"<li>on {page.text(over)}: {pair['value']:+.2f} {bounds}</li>")
    return f"<h3>Video model minus single frames, accuracy on the same frames</h3><ul>{''.join(lines)}</ul>"


def _wishes(facts: Mapping[str, Facts]) -> str:
    rows = [(one["where"], one["quota"], one["reason"]) for one in facts["wish"]["wanted"]]
    if not rows:
        return "<h2>Wanted</h2><p>No slice failed, so nothing was asked of the cameras.</p>"
    filmed = facts["wish"]["filmed"]
    return (
        f"<h2>Wanted</h2>{page.table(('where', 'recordings', 'why'), rows)}"
        f"<p>The cameras answered with {filmed['n_recordings']} recordings ({filmed['n_frames']:,} frames).</p>"
    )


def _released(facts: Mapping[str, Facts], judged: Facts) -> str:
    release, live = facts["release"], facts["live"]
    forced = " <b>It did not pass its gate: it was released by force, and says so for ever.</b>" if release["forced"] else ""
    lines = "\n".join(f"{line['label']} ({line['prob']:.0%})" for line in live["run"]["lines"][:24])
    latency = live["run"].get("latency_ms", {})
    speed = f" Latency: {', '.join(f'{name} {value:.1f} ms' for name, value in latency.items() if value)}." if latency else ""
    return (
        f"<h2>On the camera</h2><p>Release {release['sequence']} on channel {page.text(release['channel'])} "
        f"({page.text(judged['verdict'])}) was fetched, verified and run on recordings of a place that nobody had seen.{forced}"
        f"{page.text(speed)}</p><pre>{page.text(lines)}</pre>"
        f"<p>{len(live['unsure'])} clips it was unsure about came back and were registered.</p>"
    )


def _way_back(catalog: Catalog, facts: Mapping[str, Facts], judged: Facts) -> str:
    """Follow one live prediction back to its sensor frame and to what its model was made of."""
    clips = clips_view(catalog).filter(pl.col("clip_id").is_in(facts["live"]["unsure"])).collect()
    if clips.is_empty():
        return "<h2>The way back</h2><p>The model was sure of everything; no clip came back.</p>"
    clip = clips.row(0, named=True)
    sidecar = Sidecar.from_json(catalog.store.get(clip["key"].rsplit(".", 1)[0] + ".json"))
    said = dict(sidecar.outbox or {})
    captures = catalog.scan("captures").filter(pl.col("clip_id") == clip["clip_id"]).sort("pts").collect()
    frame = captures.filter(pl.col("sensor_ns") == said["sensor_ns"]).row(0, named=True)
    report, lineage = judged["report"], judged["report"]["detail"]["lineage"]
    n_rows = facts.get("select-2", facts["select"])["n_rows"]
    steps = [
        f"The Pi said {said.get('label')!r} ({float(said.get('prob', 0)):.0%}) and kept the clip: {said.get('reason')}.",
        f"Its model is bundle {said.get('bundle_id')}, exported from run {lineage['run_id']}.",
        f"That bundle was judged by report {judged['report_id']} on data set {report['dataset']!r}.",
        f"It was trained on selection {lineage['selection_id']}: {n_rows} labelled intervals.",
        f"The clip is {clip['clip_id']}, the first half of the SHA-256 of its bytes, from camera {clip['camera_id']}.",
        f"The frame is pts {frame['pts']} of it: sensor time {frame['sensor_ns']:,} ns on the clock of boot {clip['boot_id']}.",
    ]
    items = "".join(f"<li>{page.text(step)}</li>" for step in steps)
    picture = page.tiles([_bare(catalog, clip["clip_id"], frame["pts"])])
    title = "The way of one live prediction back to its sensor frame"
    return f'<h2>{title}</h2><ol class="way">{items}</ol>{picture}'


def _bare(catalog: Catalog, clip_id: str, pts: int) -> str:
    jpeg, width_px, height_px = _jpeg(catalog, clip_id, pts)
    return page.picture(jpeg, width_px, height_px, f"the frame itself, pts {pts}")


def _steps(facts: Mapping[str, Facts]) -> str:
    rows = [
        (Markup(f'<span class="num">{number}</span>{page.text(one["title"])}'), one["seconds"])
        for number, one in enumerate(facts.values(), 1)
    ]
    return f"<h2>Where the time went</h2>{page.table(('step', 'seconds'), rows)}"


def _yours() -> str:
    return (
        "<h2>Now with footage of your own</h2><pre>camloop ingest FOLDER\n"
        "camloop curate --weights yolov8n.onnx --without embed\ncamloop query --by camera_id,lighting</pre>"
    )
