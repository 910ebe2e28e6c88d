"""The state of a run after an epoch, as one object: enough to go on as if nothing had happened.

`save` replaces the object atomically (every Store's put is whole or absent); `load` reads tensors and plain values
only (`weights_only=True`, no pickled code). Random numbers need no state: all are drawn from (seed, epoch), so an epoch
that was cut off is simply run again, with the same numbers. `history.json` beside it is a copy for people.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infra import keys
from infra.errors import ArtefactError
from infra.objects import Store

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run after `len(history)` epochs.

    Attributes:
        model: the weights now.
        best: the weights of the epoch with the lowest validation loss (without validation: the last epoch's).
        best_epoch: that epoch, counted from 1.
        optimizer: AdamW's state.
        history: one row per epoch: epoch, train_loss, val_loss, val_accuracy, lr, seconds.
        finished: no epoch is to follow.
    """

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    best_epoch: int
    optimizer: dict[str, Any]
    history: tuple[dict[str, float | None], ...]
    finished: bool

    def to_bytes(self) -> bytes:
        """Return the checkpoint as a torch file."""
        names = ("model", "best", "best_epoch", "optimizer", "finished")
        buffer = io.BytesIO()
        torch.save({"version": VERSION, "history": list(self.history), **{n: getattr(self, n) for n in names}}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            ArtefactError: it is torn, of another version, or holds anything but tensors and plain values.
        """
        try:
            document = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            version = document.pop("version")
            if version != VERSION:
                raise ArtefactError(f"checkpoint version {version!r}; this camloop reads {VERSION}")
            return cls(**{**document, "history": tuple(document["history"])})
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"not a checkpoint: {type(error).__name__}: {str(error)[:200]}") from error


def save(store: Store, run_id: str, checkpoint: Checkpoint) -> None:
    """Put the checkpoint, then the history for people, into the run's folder."""
    prefix = keys.run_prefix(run_id)
    store.put(prefix + "checkpoint.pt", checkpoint.to_bytes())
    store.put(prefix + "history.json", json.dumps(list(checkpoint.history), indent=1).encode())


def load(store: Store, run_id: str) -> Checkpoint | None:
    """Return the run's last checkpoint, or None before its first epoch has ended."""
    key = keys.run_prefix(run_id) + "checkpoint.pt"
    return Checkpoint.from_bytes(store.get(key)) if store.head(key) else None
