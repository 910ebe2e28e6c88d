"""The small image-text model that open_clip loads, trained on the simulated world: pictures against sentences.

Each batch meets sentences about its own pictures and one sentence per value of each factor. The loss asks two things:
does the sentence hold for the picture (a sigmoid per pair), and which of a factor's sentences holds (a softmax): the
second is what a prompt sheet asks later. Written as open_clip reads a local folder:
`open_clip_config.json` and weights of half precision.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import durable
from infra.demo.footage import pictures
from infra.demo.sentences import VALUES, Facts, facts, holds, one_fact, several_facts
from infra.video import resize

SIZE_PX = 96
MEAN, STD = (0.42, 0.42, 0.42), (0.25, 0.25, 0.25)
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE_PX, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        # the vocabulary is that of open_clip's own tokenizer, which comes with the package
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 40, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "resize_mode": "squash"},
}
WEIGHTS = "open_clip_model.safetensors"
LICENCE = (
    "Apache-2.0, as the project: trained by it, from random weights, on pictures that it draws itself. "
    "Architecture by open_clip (MIT)."
)
# What the scores are taken with; a sheet's own prompts may differ.
PROMPTS: dict[str, dict[str, str]] = {
    "lighting": {
        "day": "a photo by day", "dusk": "a photo at dusk", "night": "a photo at night", "infrared": "a photo in infrared",
    },
    "weather": {"clear": "a photo in clear weather", "rain": "a photo in the rain", "fog": "a photo in fog"},
    "jacket": {colour: f"a person in a {colour} jacket" for colour in VALUES["jacket"]},
    "person": {"yes": "a photo of a person", "no": "an empty scene"},
    "inside": {"indoor": "a photo indoors", "outdoor": "a photo outdoors"},
    "car": {"yes": "a photo of a car", "no": "no car"},
    "animal": {"yes": "a photo of an animal", "no": "no animal"},
}


def _gather(seed: int, use: Any, n_recordings: int, frames_each: int) -> tuple[NDArray[np.uint8], list[Facts]]:
    """Return uint8 (N, S, S, 3) pictures as curation hands them over, and what they show."""
    rgb, known = [], []
    for picture in pictures(seed, use, n_recordings, frames_each):
        rgb.append(resize(picture.rgb, (SIZE_PX, SIZE_PX)))
        known.append(facts(picture))
    return np.stack(rgb), known


def _sentences(known: Sequence[Facts], rng: np.random.Generator) -> tuple[list[str], list[Facts], dict[str, tuple[int, int]]]:
    """Return the sentences of one batch, the facts they need, and where each factor's sentences lie."""
    texts: list[str] = []
    needs: list[Facts] = []
    ranges: dict[str, tuple[int, int]] = {}
    for factor, values in VALUES.items():
        ranges[factor] = (len(texts), len(texts) + len(values))
        texts += [one_fact(factor, value, rng) for value in values]
        needs += [{factor: value} for value in values]
    for one in known:
        text, said = several_facts(one, rng)
        texts.append(text)
        needs.append(said)
    return texts, needs, ranges


def _loss(model: Any, tokenizer: Any, bias: Any, pixels: Any, known: Sequence[Facts], rng: np.random.Generator) -> Any:
    import torch
    from torch.nn import functional

    texts, needs, ranges = _sentences(known, rng)
    seen, said = model.encode_image(pixels, normalize=True), model.encode_text(tokenizer(texts), normalize=True)
    logits = model.logit_scale.exp().clamp(max=60) * seen @ said.T
    true = torch.tensor([[holds(need, one) for need in needs] for one in known], dtype=torch.float32)
    pairs = functional.binary_cross_entropy_with_logits(logits + bias, true, pos_weight=torch.tensor(3.0))
    total = pairs
    for factor, (start, stop) in ranges.items():
        rows = [i for i, one in enumerate(known) if factor in one]
        if rows:
            target = torch.tensor([VALUES[factor].index(known[i][factor]) for i in rows])
            total = total + 0.25 * functional.cross_entropy(logits[rows, start:stop], target)
    return total


def _pixels(rgb: NDArray[np.uint8]) -> Any:
    import torch

    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 - MEAN[0]) / STD[0]


def _augmented(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flip half of the pictures and move all of them by a few pixels; light and colour stay: they are what is learnt."""
    flipped = np.where(rng.random(len(rgb))[:, None, None, None] < 0.5, rgb[:, :, ::-1], rgb)
    shift_y, shift_x = (int(value) for value in rng.integers(0, 9, 2))
    padded = np.pad(flipped, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[:, shift_y : shift_y + SIZE_PX, shift_x : shift_x + SIZE_PX])


def zero_shot(model: Any, tokenizer: Any, rgb: NDArray[np.uint8], known: Sequence[Facts]) -> dict[str, float]:
    """Return the accuracy of choosing each factor's prompt in `PROMPTS`, over the pictures that show the factor."""
    import torch

    with torch.inference_mode():
        seen = torch.cat([model.encode_image(_pixels(rgb[i : i + 64]), normalize=True) for i in range(0, len(rgb), 64)])
        scores = {}
        for factor, prompts in PROMPTS.items():
            best = (seen @ model.encode_text(tokenizer(list(prompts.values())), normalize=True).T).argmax(1).tolist()
            right = [list(prompts)[k] == one[factor] for k, one in zip(best, known, strict=True) if factor in one]
            scores[factor] = round(float(np.mean(right)), 4)
    return scores


def build_image_text(
    target: Path, *, seed: int, n_recordings: int, frames_each: int, epochs: int, threads: int
) -> dict[str, float]:
    """Train the image-text model into the folder `target`; return its scores on sites it never saw."""
    from infra.demo.build_models import COMMAND, write_sidecar
    from infra.torchvision_cpu import ensure_nms

    ensure_nms()
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    started = time.monotonic()
    rgb, known = _gather(seed, "learn", n_recordings, frames_each)
    filmed_s = time.monotonic() - started
    durable.make_dirs(target)
    durable.write(target / "open_clip_config.json", (json.dumps(CONFIG, indent=1) + "\n").encode())
    name = f"local-dir:{target}"
    model: Any = open_clip.create_model(name, load_weights=False)
    tokenizer: Any = open_clip.get_tokenizer(name)
    bias = torch.nn.Parameter(torch.tensor(-4.0))
    optimizer = torch.optim.AdamW([*model.parameters(), bias], lr=2e-3, weight_decay=0.01)
    batch, rng = 64, np.random.default_rng(seed)
    steps = epochs * (len(rgb) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        order = rng.permutation(len(rgb))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            loss = _loss(model, tokenizer, bias, _pixels(_augmented(rgb[rows], rng)), [known[i] for i in rows], rng)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    model.logit_scale.data.clamp_(max=float(np.log(60)))
    state = model.state_dict().items()
    weights = {key: value.half().contiguous() if value.is_floating_point() else value for key, value in state}
    save_file(weights, target / WEIGHTS)
    trained_s = time.monotonic() - started - filmed_s
    judged: Any = open_clip.create_model(name).eval()  # the very file, as curation loads it
    scores = zero_shot(judged, tokenizer, *_gather(seed, "score", max(n_recordings // 4, 4), 4))
    write_sidecar(target / WEIGHTS, {
        "note": "camloop demo image-text model: a small ResNet and text transformer, learnt on the simulated world",
        "licence": LICENCE, "size_px": SIZE_PX, "seed": seed, "zero_shot_accuracy": scores, "prompts": PROMPTS,
        "epochs": epochs, "learned_from": f"{len(rgb)} frames",
        "scored_on": f"{max(n_recordings // 4, 4) * 4} frames of other sites",
        "filmed_s": round(filmed_s), "trained_s": round(trained_s), "threads": threads,
        "made_by": f"{COMMAND} --only openclip --seed {seed} --recordings {n_recordings} --epochs {epochs}",
    })  # fmt: skip
    return scores
