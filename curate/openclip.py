"""Step `embed`: one vector per frame from an open_clip model, and sentences compared with it.

The picture is squeezed to the model's square by `infra.video.resize`, border to border: a fixed camera's edges matter as
much as its centre, so nothing is cropped. Vectors have unit length and are stored as little-endian float16 (2 dim bytes).
Sentences (the prompts of `factors.toml`, a search text) are embedded by the same model, where tags are made.

Weights come from disk, never from the network: a folder with `open_clip_config.json` and a weights file, or one
weights file plus the name of its architecture. Without them `curate` needs `--without embed`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.detect import Batch, Weights, read_weights, refusing
from curate.resources import AUTO, torch_device
from infra.errors import UsageError

VERSION = 1
READS = ("embed_rgb",)
ADDS = ("embedding",)
CONFIG = "open_clip_config.json"
_ENDINGS = ("*.safetensors", "*.pt", "*.bin")
REMEDY = "give --openclip-weights FOLDER (with open_clip_config.json) or FILE with --openclip-model NAME, or --without embed"


def find_weights(path: Path) -> Weights:
    """Return the weights of an open_clip folder or file; the hash is that of the weights file.

    Raises:
        UsageError: nothing there that open_clip could load.
    """
    with refusing(path):
        return _find_weights(path)


def _find_weights(path: Path) -> Weights:
    if path.is_dir():
        files = [found for ending in _ENDINGS for found in sorted(path.glob(ending))]
        if len(files) != 1 or not (path / CONFIG).is_file():
            raise UsageError(f"{path}: needs {CONFIG} and exactly one weights file, found {len(files)}; {REMEDY}")
        return read_weights(files[0])
    if not path.is_file():
        raise UsageError(f"no open_clip weights at {path}: {REMEDY}")
    return read_weights(path)


def describe(path: Path, model_name: str | None) -> tuple[str, int]:
    """Return (`name@version`, side of the square in pixels) of a model without opening it.

    Raises:
        UsageError: nothing there that open_clip could load, or no such architecture.
    """
    weights = find_weights(path)
    with refusing(path):
        size_px = _size_px(path, model_name)
    stem = path.name if path.is_dir() else str(model_name)
    return f"{stem}@{weights.sha256[:8]}", size_px


def _size_px(path: Path, model_name: str | None) -> int:
    if path.is_dir():
        config = json.loads((path / CONFIG).read_bytes()).get("model_cfg", {})
    else:
        from infra.settings import quiet_libraries
        from infra.torchvision_cpu import ensure_nms

        quiet_libraries()
        ensure_nms()
        import open_clip

        config = open_clip.get_model_config(model_name) if model_name else None
        if config is None:
            raise UsageError(f"--openclip-model {model_name!r} for {path.name}: {REMEDY}; legal names: open_clip.list_models()")
    size = config["vision_cfg"]["image_size"]
    return int(size if isinstance(size, int) else size[0])


def pack(vectors: NDArray[np.float32]) -> list[bytes]:
    """Return float32 (N, dim) as one little-endian float16 bytes value per row."""
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f2")]


def unpack(vectors: Sequence[bytes], dim: int) -> NDArray[np.float32]:
    """Return stored vectors as float32 (N, dim), unit length again; those that a camera recorded may be float32 already."""
    dtype = "<f4" if vectors and len(vectors[0]) == 4 * dim else "<f2"
    rows: NDArray[np.float32] = np.frombuffer(b"".join(vectors), dtype=dtype).reshape(-1, dim).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


class OpenClipEmbedder:
    """An image-text model. Call it with a batch to embed frames; `texts` embeds sentences.

    Args:
        path: a folder as `open_clip` saves it, or a weights file.
        model_name: architecture of a bare weights file, such as "ViT-B-32"; None for a folder.
        threads: of torch; 0 leaves it the choice.
        device: of torch.
    """

    def __init__(self, path: Path, *, model_name: str | None = None, threads: int = 1, device: str = AUTO) -> None:
        from infra.settings import quiet_libraries
        from infra.torchvision_cpu import ensure_nms

        quiet_libraries()
        ensure_nms()
        self.name, self.size_px = describe(path, model_name)
        import open_clip
        import torch

        if threads:
            torch.set_num_threads(threads)
        name = f"local-dir:{path}" if path.is_dir() else str(model_name)
        self._torch = torch
        self._device = torch_device(device)
        pretrained = None if path.is_dir() else str(path)
        with refusing(path):
            self._refuse_downloads(path)
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                device=self._device,
                pretrained_text=False,
                weights_only=True,
                require_pretrained=True,  # a folder may name its file otherwise: open_clip would go on with random weights
            )
        self._model: Any = model.eval()
        self._tokenizer: Any = open_clip.get_tokenizer(name)
        mean, std = (getattr(self._model.visual, f"image_{what}", None) for what in ("mean", "std"))
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(mean or open_clip.OPENAI_DATASET_MEAN, device=self._device).view(shape)
        self._std = torch.tensor(std or open_clip.OPENAI_DATASET_STD, device=self._device).view(shape)
        self.scale = float(self._model.logit_scale.detach().exp())

    @staticmethod
    def _refuse_downloads(path: Path) -> None:
        if path.is_dir():
            text = json.loads((path / CONFIG).read_bytes()).get("model_cfg", {}).get("text_cfg", {})
            if text.get("hf_model_name"):
                raise UsageError(
                    f"{path / CONFIG}: its text model {text['hf_model_name']!r} would be fetched; use one that is complete"
                )

    def __call__(self, batch: Batch) -> Batch:
        """Take `embed_rgb` uint8 (N, S, S, 3) RGB; replace the pixels by `embedding` (bytes per frame)."""
        torch = self._torch
        vectors = []
        # one frame at a time: its vector then never depends on how many share the batch
        for rgb in batch["embed_rgb"]:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(self._device).permute(2, 0, 1)[None].float() / 255
                vector = self._model.encode_image((pixels - self._mean) / self._std, normalize=True)
            vectors.append(vector.float().cpu().numpy()[0])
        packed = np.empty(len(vectors), dtype=object)
        packed[:] = pack(np.stack(vectors)) if vectors else []
        return {**{name: column for name, column in batch.items() if name != "embed_rgb"}, "embedding": packed}

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 (n sentences, dim), unit length."""
        with self._torch.inference_mode():
            tokens = self._tokenizer(list(sentences)).to(self._device)
            vectors = self._model.encode_text(tokens, normalize=True)
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)
