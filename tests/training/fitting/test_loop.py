"""The fitting loop: it learns, it continues exactly where it was killed, it stops with a reason."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from kernels.lumbar.run.submission import whole_file
from tests.support.networks.tiny_members import TinySamples, grader, localiser, optimisation
from training import networks
from training.data.samples.batch import Batch
from training.fitting import FitError, checkpoint
from training.fitting.checkpoint import CheckpointError
from training.fitting.device import device_of
from training.fitting.fit_state import FitState, channels_last
from training.fitting.history import EpochRecord, draw_curves
from training.fitting.loop import fit
from training.fitting.optimise import make_ema, make_optimiser, rate_at
from training.fitting.time_limit import OutOfTime, StoppedBySignal

CPU = torch.device("cpu")


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_a_localiser_learns(tmp_path):
    recipe = localiser(epochs=8, batch_size=8, keep="best")
    result = fit(recipe, TinySamples(recipe, steps=16, held_out=16), tmp_path, CPU, seed=1)
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss
    assert result.median_error_px is not None and result.median_error_px < 3  # of 32
    assert not result.net.training
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert {"train_loss", "validation_loss", "seconds", "learning_rate"} <= set(rows[0])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert min(float(row["validation_loss"]) for row in rows) == pytest.approx(result.validation_loss)


def test_a_grader_learns_the_severity(tmp_path):
    recipe = grader(epochs=3, batch_size=8)
    result = fit(recipe, TinySamples(recipe, steps=10, held_out=16), tmp_path, CPU, seed=1)
    assert result.validation_loss < 0.6 < math.log(3) and result.median_error_px is None


RESUMED = [
    pytest.param(localiser(epochs=3, keep="best"), id="localiser"),
    pytest.param(grader(epochs=3, keep="best", ema_decay=0.9, options={"view_dropout": 0.4}), id="ema-and-dropout"),
    pytest.param(grader(epochs=3, keep="last", schedule="step", warmup=0.3), id="last-and-warm-up"),
]


@pytest.mark.parametrize("dies_at", [(1, 2), (3, 1)])
@pytest.mark.parametrize("recipe", RESUMED)
def test_a_killed_run_continues_to_the_same_bits(tmp_path, recipe, dies_at):
    whole = fit(recipe, TinySamples(recipe), tmp_path / "whole", CPU, seed=7)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, TinySamples(recipe, dies_at=dies_at), tmp_path / "killed", CPU, seed=7)
    torch.rand(100)  # what other code drew in between must not matter
    continued = fit(recipe, TinySamples(recipe), tmp_path / "killed", CPU, seed=7)
    assert same(whole.net, continued.net)
    assert [r.train_loss for r in whole.history] == [r.train_loss for r in continued.history]
    assert [r.validation_loss for r in whole.history] == [r.validation_loss for r in continued.history]
    again = fit(recipe, TinySamples(recipe, dies_at=(1, 0)), tmp_path / "whole", CPU, seed=7)
    assert same(whole.net, again.net) and again.history == whole.history


class Terminated(TinySamples):
    """SIGTERM comes at `dies_at` = (epoch, batch), after which nothing more is asked for."""

    def training(self, epoch: int) -> Iterator[Batch]:
        for number in range(self.steps_per_epoch):
            if (epoch, number) == self.dies_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield self._batch(self.recipe.fitting.optimisation.batch_size, 1000 * epoch + number)

    def validation(self) -> Iterator[Batch]:
        if self.dies_at == (0, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().validation()


@pytest.mark.parametrize(("dies_at", "steps"), [((1, 0), 1), ((3, 1), 8)])
@pytest.mark.parametrize("recipe", RESUMED[1:2])
def test_a_run_stopped_by_sigterm_continues_within_the_epoch_to_the_same_bits(tmp_path, recipe, dies_at, steps):
    before = signal.getsignal(signal.SIGTERM)
    whole = fit(recipe, TinySamples(recipe), tmp_path / "whole", CPU, seed=7)
    with pytest.raises(StoppedBySignal, match=f"stopped after step {steps} of 9; the same command resumes there"):
        fit(recipe, Terminated(recipe, dies_at=dies_at), tmp_path / "stopped", CPU, seed=7)
    assert signal.getsignal(signal.SIGTERM) == before
    torch.rand(100)
    samples = TinySamples(recipe)
    continued = fit(recipe, samples, tmp_path / "stopped", CPU, seed=7)
    assert same(whole.net, continued.net)
    assert [r.train_loss for r in whole.history] == [r.train_loss for r in continued.history]


def test_sigterm_in_the_last_validation_stops_before_what_follows(tmp_path):
    recipe = grader(epochs=1)
    with pytest.raises(OutOfTime):
        fit(recipe, Terminated(recipe, dies_at=(0, 0)), tmp_path, CPU, seed=7)
    assert fit(recipe, TinySamples(recipe, dies_at=(1, 0)), tmp_path, CPU, seed=7).best_epoch == 1


def told_by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_numbers_of_the_table_each_once(tmp_path):
    recipe = localiser(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, TinySamples(recipe, dies_at=(3, 1)), tmp_path, CPU, seed=7)
    assert [step for step, _ in told_by_tensorboard(tmp_path)["train_loss"]] == [1, 2]
    fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=7)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = told_by_tensorboard(tmp_path)
    assert set(told) == {name for name, value in rows[0].items() if value} - {"epoch"}
    for name, points in told.items():
        assert [step for step, _ in points] == [1, 2, 3], name
        assert [value for _, value in points] == pytest.approx([float(row[name]) for row in rows]), name


def test_another_seed_gives_other_weights(tmp_path):
    recipe = grader(epochs=1)
    one = fit(recipe, TinySamples(recipe), tmp_path / "1", CPU, seed=1)
    two = fit(recipe, TinySamples(recipe), tmp_path / "2", CPU, seed=2)
    assert not same(one.net, two.net)


def test_a_checkpoint_of_another_recipe_or_seed_is_refused(tmp_path):
    recipe = grader(epochs=1)
    fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=1)
    with pytest.raises(CheckpointError, match="another seed"):
        fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=2)
    with pytest.raises(FitError, match="another recipe"):
        fit(grader(epochs=2), TinySamples(recipe), tmp_path, CPU, seed=1)


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path, {}) is None
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(CheckpointError, match="remove the folder"):
        checkpoint.load(path, {})
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path, {})


def test_a_history_that_a_kill_left_behind_is_whole_again(tmp_path):
    recipe = localiser()
    fit(recipe, TinySamples(recipe), tmp_path, torch.device("cpu"), 0)
    history = tmp_path / "history.csv"
    whole = history.read_text()
    history.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    fit(recipe, TinySamples(recipe), tmp_path, torch.device("cpu"), 0)
    assert history.read_text() == whole


def test_files_are_whole_or_as_before(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = grader(epochs=1, learning_rate=1e-3)

    class Broken(TinySamples):
        def training(self, epoch):
            for batch in super().training(epoch):
                batch.views[0][:] = torch.inf
                yield batch

    with pytest.raises(FitError, match="tiny_split_gru: the loss is nan in epoch 1"):
        fit(recipe, Broken(recipe), tmp_path, CPU, seed=1)


def test_announced_and_given_batches_must_agree(tmp_path):
    recipe = grader(epochs=1)
    samples = TinySamples(recipe)
    samples.training = lambda epoch: iter(())
    with pytest.raises(FitError, match="0 batches, not the 3 announced"):
        fit(recipe, samples, tmp_path, CPU, seed=1)


def test_a_batch_of_one_can_be_trained_on(tmp_path):
    recipe = localiser(options={"encoder": "tu-test_resnet", "decoder_channels": 8}, epochs=1, batch_size=1)
    assert math.isfinite(fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=1).validation_loss)


def test_without_held_out_labels_the_last_epoch_is_kept(tmp_path):
    recipe = grader(epochs=2, keep="best")
    result = fit(recipe, TinySamples(recipe, held_out=0), tmp_path, CPU, seed=1)
    assert result.best_epoch == 2 and math.isnan(result.validation_loss)


def test_the_best_epoch_is_kept_or_the_last(tmp_path):
    # A rate that ruins what the first epoch learned.
    for keep, epoch in (("best", 1), ("last", 3)):
        recipe = grader(epochs=3, keep=keep, schedule="step", step_epochs=1, step_factor=1.0, learning_rate=0.02)
        result = fit(recipe, TinySamples(recipe), tmp_path / keep, CPU, seed=3)
        best = min(result.history, key=lambda record: record.validation_loss).epoch
        assert result.best_epoch == (best if keep == "best" else epoch)


@pytest.mark.parametrize("longest", [0.01, None])
def test_gradients_are_as_long_as_the_recipe_lets_them_be(longest):
    recipe = grader(epochs=1, gradient_norm=longest)
    samples = TinySamples(recipe)
    run = FitState(recipe, samples, device_of(CPU, "float32"), pretrained=False)
    run.step(next(iter(samples.training(1))), 0)
    gradients = [one.grad for one in run.net.parameters() if one.grad is not None]
    length = torch.stack([one.norm() for one in gradients]).norm().item()
    assert length == pytest.approx(0.01, rel=1e-3) if longest else length > 0.1


def test_learning_rates_by_hand():
    cosine = optimisation(epochs=10, learning_rate=1.0, schedule="cosine")
    assert rate_at(cosine, 0, 10) == 1 and rate_at(cosine, 50, 10) == pytest.approx(0.5)
    assert 0 < rate_at(cosine, 99, 10) < 1e-3
    warm = optimisation(epochs=10, learning_rate=1.0, schedule="cosine", warmup=0.1)
    assert [rate_at(warm, step, 10) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate_at(warm, 55, 10) == pytest.approx(0.5)
    steps = optimisation(epochs=5, learning_rate=1.0, schedule="step", step_epochs=2, step_factor=0.1)
    rates = [rate_at(steps, 3 * epoch + 2, 3) for epoch in range(5)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    constant = optimisation(epochs=5, learning_rate=0.3, schedule="constant")
    assert {rate_at(constant, step, 3) for step in range(15)} == {0.3}


def test_only_matrices_decay():
    net = networks.for_member(grader())
    groups = make_optimiser(net, optimisation(weight_decay=0.1)).param_groups
    for group in groups:
        assert all((value.ndim > 1) == (group["weight_decay"] == 0.1) for value in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_running_mean_by_hand():
    net = nn.Linear(1, 1, bias=False)
    assert make_ema(net, optimisation()) is None
    ema = make_ema(net, optimisation(ema_decay=0.5))
    expected = 0.0
    for step, value in enumerate([3.0, 5.0, 9.0, 1.0], 1):
        nn.init.constant_(net.weight, value)
        ema.update(net, step)
        decay = min(0.5, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * value
        assert ema.module.weight.item() == pytest.approx(expected)


def test_the_running_mean_is_what_is_kept(tmp_path):
    recipe = grader(epochs=2, ema_decay=0.9, keep="last")
    result = fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=1)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    weight = result.net.state_dict()["head.weight"]
    assert torch.equal(weight, saved["ema"]["head.weight"]) and not torch.equal(weight, saved["net"]["head.weight"])


def test_the_error_is_in_mm_too_where_the_spacing_is_known(tmp_path, monkeypatch):
    class Spaced(TinySamples):
        def validation(self):
            for batch in super().validation():
                yield replace(batch, pixel_mm=torch.full((len(batch.target),), 2.5))

    recipe, drawn = localiser(epochs=2, batch_size=8), []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text: drawn.append(text))
    for samples, unit in ((Spaced, "mm"), (TinySamples, "pixels of the input")):
        history = fit(recipe, samples(recipe, held_out=16), tmp_path / unit, CPU, seed=1).history
        known = [None if unit != "mm" else pytest.approx(2.5 * record.median_error_px) for record in history]
        assert [record.median_error_mm for record in history] == known
        assert drawn[-1] == f"median error, {unit}"


def test_curves_of_a_run_without_validation(tmp_path):
    history = [EpochRecord(1, 0.5, math.nan, None, 1.0, 0.1), EpochRecord(2, 0.4, math.nan, 3.0, 1.0, 0.1)]
    draw_curves(tmp_path / "curves.png", history, "a run", 2)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_fit_starts_from_the_weights_it_is_given(tmp_path):
    recipe = localiser(epochs=1, learning_rate=1e-9)
    first = fit(localiser(epochs=1), TinySamples(recipe), tmp_path / "first", CPU, seed=1).net.state_dict()
    second = fit(recipe, TinySamples(recipe), tmp_path / "second", CPU, seed=2, initial=first).net
    assert all(torch.allclose(value, first[name], atol=1e-6) for name, value in second.named_parameters())


def test_a_second_step_begins_some_parts_anew_and_leaves_the_others_as_they_are(tmp_path):
    recipe = grader(epochs=2)
    first = fit(recipe, TinySamples(recipe), tmp_path / "first", CPU, seed=1).net
    before = {name: value.clone() for name, value in first.state_dict().items()}
    again = fit(recipe, TinySamples(recipe), tmp_path / "second", CPU, seed=2, initial=before, only=("head",)).net
    for name, value in again.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("head."), name
    with pytest.raises(FitError, match="nothing is left to fit of heads"):
        fit(recipe, TinySamples(recipe), tmp_path / "third", CPU, seed=2, initial=before, only=("heads",))


@pytest.mark.parametrize("channels", [2, 10, 15])
def test_convolutions_that_a_library_cannot_do_channels_last_keep_their_layout(channels):
    """The first one of fastvit: its backward pass ended the process."""
    strided, plain = nn.Conv2d(channels, 76, 1, stride=2), nn.Conv2d(channels, 76, 3)
    channels_last(nn.Sequential(strided, plain))
    assert strided.weight.stride() == (channels, 1, 1, 1), "the next lines would end this process, too"
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        strided(torch.rand(2, channels, 128, 128, requires_grad=True)).sum().backward()
    assert strided.weight.grad.isfinite().all()
    assert channels_last(nn.Conv2d(16, 76, 1, stride=2)).weight.stride() == (16, 1, 16, 16)
