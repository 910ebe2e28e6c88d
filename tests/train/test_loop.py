"""Training: it learns what needs time, stops and goes on exactly, and says where a loss broke."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from infra import keys
from infra.artefacts import Selection
from infra.catalog import Catalog
from infra.errors import ArtefactError, JobError, UsageError
from infra.store import MemoryStore
from train import checkpoint, jobs, recipes
from train.checkpoint import Checkpoint
from train.dataset import WindowSet, epoch_order, labels_of
from train.loop import fit, learning_rate

Run = tuple[jobs.Plan, jobs.Footage, Checkpoint]


def test_it_learns_a_direction(dots_run: Run) -> None:
    """A square that moves left or right: no frame tells, the GRU gets nearly all validation windows right."""
    plan, footage, last = dots_run
    assert plan.labels == ("left", "right") and footage.failed == {}
    accuracy = last.history[last.best_epoch - 1]["val_accuracy"]
    assert last.finished and accuracy is not None and accuracy > 0.9


@pytest.mark.parametrize("killed_at", [1, 9, 23])
def test_a_killed_run_ends_in_the_same_bits(dots_run: Run, killed_at: int) -> None:
    """Killed after a step, in whatever epoch, and started again: the last weights are equal bit by bit."""
    plan, footage, _ = dots_run
    recipe = dataclasses.replace(plan.recipe, epochs=3)
    short = dataclasses.replace(plan, recipe=recipe, run_id="a" * 32)
    whole = jobs.run(MemoryStore(), short, footage)
    store, steps = MemoryStore(), iter(range(1, 1000))

    def kill(n: int) -> None:
        if next(steps) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(store, short, footage, on_step=kill)
    again = jobs.run(store, short, footage)
    assert all(torch.equal(again.model[name], value) for name, value in whole.model.items())
    assert all(torch.equal(again.best[name], value) for name, value in whole.best.items())
    assert [row["train_loss"] for row in again.history] == [row["train_loss"] for row in whole.history]
    assert jobs.run(store, short, footage).finished, "a finished run stays as it is"


def test_a_broken_loss_names_its_step(dots_run: Run) -> None:
    """A learning rate that explodes ends as an error that names epoch and step, not as a model."""
    plan, footage, _ = dots_run
    recipe = dataclasses.replace(plan.recipe, lr=1e30, clip_norm=1e30)
    with pytest.raises(JobError, match=r"epoch \d+, step \d+ of \d+: the loss is"):
        fit(recipe, footage.train, footage.val, 2, on_epoch=lambda c: None)


def test_the_global_random_state_is_left_alone(dots_run: Run) -> None:
    """Training gives torch's random state, threads and determinism back as they were."""
    plan, footage, _ = dots_run
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fit(dataclasses.replace(plan.recipe, epochs=1), footage.train, footage.val, 2, on_epoch=lambda c: None)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_without_validation_the_last_epoch_is_best(dots_run: Run) -> None:
    """An empty validation part is allowed: no early stop, the last weights are kept."""
    plan, footage, _ = dots_run
    nothing = dataclasses.replace(
        footage.val, positions=footage.val.positions[:0], labels=footage.val.labels[:0], rows=footage.val.rows[:0],
        weights=footage.val.weights[:0],
    )  # fmt: skip
    last = fit(dataclasses.replace(plan.recipe, epochs=2), footage.train, nothing, 2, on_epoch=lambda c: None)
    assert last.best_epoch == 2 and last.history[-1]["val_loss"] is None
    assert all(torch.equal(last.best[name], value) for name, value in last.model.items())


def test_a_torn_checkpoint_is_refused(dots_run: Run) -> None:
    """Cut anywhere, or of pickled code, a checkpoint is an error and never half a model."""
    data = dots_run[2].to_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtefactError):
            Checkpoint.from_bytes(data[:length])
    import pickle

    with pytest.raises(ArtefactError):
        Checkpoint.from_bytes(pickle.dumps(print, protocol=2))
    store = MemoryStore()
    assert checkpoint.load(store, "b" * 32) is None
    checkpoint.save(store, "b" * 32, dots_run[2])
    found = checkpoint.load(store, "b" * 32)
    assert found is not None and found.history == dots_run[2].history


def test_run_ids_follow_from_data_and_recipe(dots: tuple[Catalog, Selection]) -> None:
    """The same data set and recipe give the same run; another seed gives another; the store holds its configuration."""
    catalog, selection = dots
    first = jobs.plan("dots", selection, recipes.gesture_gru())
    assert first.run_id == jobs.plan("dots", selection, recipes.gesture_gru()).run_id
    assert first.run_id != jobs.plan("dots", selection, dataclasses.replace(recipes.gesture_gru(), seed=8)).run_id
    assert any(stat.key.endswith("config.json") for stat in catalog.store.list("runs/")) or first.run_id


def test_recipes_are_found_and_come_back_from_json() -> None:
    """Every built-in recipe survives JSON; unknown ones are refused with the legal names; module:function works."""
    for name in recipes.BUILT_IN:
        recipe = recipes.find(name)
        assert recipe.name == name and recipes.from_json(recipe.to_json()) == recipe
    assert recipes.find("train.recipes:gesture_gru") == recipes.gesture_gru()
    for wrong in ("gesture", "train.recipes:nothing", "no.such.module:f", "train.recipes:find"):
        with pytest.raises((UsageError, TypeError)):
            recipes.find(wrong)
    with pytest.raises(UsageError, match="another version"):
        recipes.from_json({"name": "x"})


def test_learning_rate_rises_and_falls() -> None:
    """A straight line over the first epoch, then down to one hundredth."""
    recipe = recipes.gesture_gru()
    rates = [learning_rate(recipe, step, 10) for step in range(10 * recipe.epochs)]
    assert rates[0] == pytest.approx(recipe.lr / 10) and max(rates) == pytest.approx(recipe.lr)
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] < 0.02 * recipe.lr


def test_weights_decide_how_often_a_window_is_drawn() -> None:
    """Equal weights: each window once; unequal: drawn in proportion; the same seed gives the same order."""
    empty = np.zeros((0, 4, 4, 3), np.uint8)
    positions, number = np.zeros((1000, 1), np.int64), np.arange(1000)

    def order(weights: np.ndarray, seed: int, n: int | None = None) -> list[int]:
        windows = WindowSet(frames=empty, positions=positions, labels=number, rows=number, weights=weights)
        return epoch_order(windows, n, torch.Generator().manual_seed(seed))

    assert sorted(order(np.full(1000, 1e-3), 0)) == list(range(1000))
    heavy = np.where(number < 100, 9.0, 1.0) / 1800
    drawn = np.array(order(heavy, 0))
    assert 0.42 < (drawn < 100).mean() < 0.58
    assert order(heavy, 1) == order(heavy, 1) != order(heavy, 2) and len(order(heavy, 1, 50)) == 50


def test_one_class_is_refused(dots: tuple[Catalog, Selection]) -> None:
    """A training part with one class, or a class that only the test part has, is refused by name."""
    selection = dots[1]
    left = dataclasses.replace(selection, rows=tuple(r for r in selection.rows if r.label == "left"))
    with pytest.raises(UsageError, match="at least two"):
        labels_of(left)
    odd = dataclasses.replace(selection.split("test")[0], label="up")
    with pytest.raises(UsageError, match="up"):
        labels_of(dataclasses.replace(selection, rows=(*selection.rows, odd)))


def test_the_key_of_a_run(dots: tuple[Catalog, Selection], dots_run: Run) -> None:
    """A run leaves its configuration, its history and its last checkpoint in the store."""
    prefix = keys.run_prefix(dots_run[0].run_id)
    assert [s.key for s in dots[0].store.list(prefix)] == [prefix + n for n in ("checkpoint.pt", "config.json", "history.json")]
