"""The training loop, to be read from top to bottom: epochs, batches, validation, the best weights kept.

`fit` goes on from a checkpoint exactly: all random numbers of an epoch are drawn from (seed, epoch), algorithms are
deterministic and the number of threads is the recipe's, so a run that was killed ends in the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from infra import keys
from infra.clock import Clock, SystemClock
from infra.errors import JobError
from train.augment import augment, to_float, without_colour
from train.checkpoint import Checkpoint
from train.dataset import UNLABELLED, WindowSet, epoch_order
from train.models import State, build, initial_state
from train.recipes import Recipe

_LEAST_LR = 0.01  # share of the recipe's rate at which the cosine ends


def fit(
    recipe: Recipe,
    train: WindowSet,
    val: WindowSet,
    n_labels: int,
    *,
    start: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None],
    on_step: Callable[[int], None] = lambda n: None,
    clock: Clock | None = None,
) -> Checkpoint:
    """Train until the recipe's epochs are done or validation no longer gets better.

    Args:
        recipe: the complete configuration.
        train: windows to learn from, at least one.
        val: windows to choose the best epoch by; empty = the last epoch is the best.
        n_labels: number of classes.
        start: where an earlier call stopped.
        on_epoch: called with a checkpoint after every epoch; save it there.
        on_step: called with 1 after every step.
        clock: for the seconds in the history.

    Raises:
        JobError: the loss is not a number; the message names epoch and step.
    """
    clock = clock or SystemClock()
    with _deterministic(recipe.threads):
        run = _begin(recipe, n_labels, start)
        checkpoint = start
        for epoch in range(len(run.history), recipe.epochs):
            if checkpoint is not None and checkpoint.finished:
                break
            began_ns = clock.mono_ns()
            train_loss, lr = _train_epoch(run, train, epoch, on_step)
            val_loss, val_accuracy = _validate(run, val)
            seconds = (clock.mono_ns() - began_ns) / 1e9
            row = {"epoch": epoch + 1, "train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
            run.history.append({**row, "lr": lr, "seconds": round(seconds, 2)})
            checkpoint = _checkpoint(run, checkpoint)
            on_epoch(checkpoint)
    if checkpoint is None:
        raise JobError(f"recipe {recipe.name}: no epoch was run")
    return checkpoint


@dataclass(slots=True)
class _Run:
    recipe: Recipe
    model: Any
    optimizer: torch.optim.AdamW
    history: list[dict[str, float | None]]


def _begin(recipe: Recipe, n_labels: int, start: Checkpoint | None) -> _Run:
    torch.manual_seed(_seed(recipe.seed, "weights"))
    model = build(recipe.model, n_labels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, foreach=False)
    if start is not None:
        model.load_state_dict(start.model)
        optimizer.load_state_dict(start.optimizer)
    return _Run(recipe, model, optimizer, list(start.history) if start else [])


def _train_epoch(run: _Run, windows: WindowSet, epoch: int, on_step: Callable[[int], None]) -> tuple[float, float]:
    """Run one epoch; return its mean loss and its last learning rate."""
    recipe, model = run.recipe, run.model
    seed = _seed(recipe.seed, epoch)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    order = epoch_order(windows, recipe.max_windows, generator)
    n_steps = math.ceil(len(order) / recipe.batch_windows)
    model.train()
    carried: State = {}
    total = 0.0
    for step in range(n_steps):
        chosen = order[step * recipe.batch_windows : (step + 1) * recipe.batch_windows]
        pictures, labels = windows.batch(chosen)
        frames = augment(_shown(pictures, recipe), recipe.augment, generator)
        state = _carry(initial_state(model, len(chosen)), carried, recipe.carry_share, generator)
        logits, last = model(frames, state)
        loss = _loss(logits, labels, recipe)
        if not math.isfinite(loss.item()):
            raise JobError(f"epoch {epoch + 1}, step {step + 1} of {n_steps}: the loss is {loss.item()}; lower the recipe's lr")
        lr = learning_rate(recipe, epoch * n_steps + step, n_steps)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm, foreach=False)
        run.optimizer.step()
        carried = {name: last[name].detach() for name in model.carried}
        total += loss.item() * len(chosen)
        on_step(1)
    return total / len(order), lr


def _shown(pictures: Tensor, recipe: Recipe) -> Tensor:
    """Return the pictures as far as the model looks at them."""
    return pictures if recipe.model.sees_colour else without_colour(pictures)


def _carry(state: State, carried: State, share: float, generator: torch.Generator) -> State:
    """Let some windows begin with the hidden state in which a window of the batch before ended, of whatever class."""
    for name, value in carried.items():
        n = min(len(value), len(state[name]))
        keep = torch.rand((n, 1), generator=generator) < share
        state[name][:n] = torch.where(keep, value[:n], state[name][:n])
    return state


def _loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the mean cross-entropy over the labelled frames after the warm-up; 0 if there is none."""
    judged, every = logits[:, recipe.warm_up :].flatten(0, 1), labels[:, recipe.warm_up :].flatten()
    total = functional.cross_entropy(
        judged, every, label_smoothing=recipe.label_smoothing, ignore_index=UNLABELLED, reduction="sum"
    )
    return total / (every != UNLABELLED).sum().clamp(min=1)


def _validate(run: _Run, windows: WindowSet) -> tuple[float | None, float | None]:
    """Return mean loss and accuracy of the labelled frames after the warm-up; None without windows."""
    if not len(windows):
        return None, None
    recipe = run.recipe
    run.model.eval()
    total, right, n_judged = 0.0, 0, 0
    with torch.no_grad():
        for first in range(0, len(windows), recipe.batch_windows):
            pictures, labels = windows.batch(range(first, min(first + recipe.batch_windows, len(windows))))
            logits, _ = run.model(to_float(_shown(pictures, recipe)), initial_state(run.model, len(labels)))
            total += _loss(logits, labels, recipe).item() * len(labels)
            judged = labels[:, recipe.warm_up :]
            right += int((logits[:, recipe.warm_up :].argmax(-1) == judged).sum())
            n_judged += int((judged != UNLABELLED).sum())
    return total / len(windows), right / max(n_judged, 1)


def _checkpoint(run: _Run, before: Checkpoint | None) -> Checkpoint:
    """Return the state after the epoch that just ended; a tie keeps the earlier best."""
    model = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
    losses = [row["val_loss"] for row in run.history]
    known = [loss for loss in losses if loss is not None]
    best_epoch = losses.index(min(known)) + 1 if known else len(losses)
    best = model if before is None or best_epoch == len(losses) else before.best
    finished = len(losses) >= run.recipe.epochs or len(losses) - best_epoch >= run.recipe.patience
    return Checkpoint(
        model=model,
        best=best,
        best_epoch=best_epoch,
        optimizer=run.optimizer.state_dict(),
        history=tuple(run.history),
        finished=finished,
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the rate at a step: a straight line up over the first epoch, then a cosine down to 1 %."""
    if step < steps_per_epoch:
        return recipe.lr * (step + 1) / steps_per_epoch
    rest = max((recipe.epochs - 1) * steps_per_epoch, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - steps_per_epoch) / rest))
    return recipe.lr * (_LEAST_LR + (1 - _LEAST_LR) * cosine)


def _seed(seed: int, part: int | str) -> int:
    """Return a seed of 63 bits that depends on both."""
    return int(keys.derived_id("train", seed, part)[:15], 16)


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """Fix torch's algorithms and threads, and give the random state back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])
