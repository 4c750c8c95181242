"""What a fit does where memory is short: parts, activation checkpointing, and the same when it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.networks.tiny_members import TinySamples, grader, localiser
from training.data.samples.batch import Batch
from training.fitting import FitError
from training.fitting.device import device_of
from training.fitting.fit_state import FitState
from training.fitting.loop import fit
from training.fitting.losses import LossSum
from training.fitting.step_memory import StepMemory
from training.recipe_schema.schema import MemberRecipe
from training.rehearsal.memory import saved_bytes

CPU = torch.device("cpu")
LACK = "CUDA out of memory. Tried to allocate 2.00 GiB"
# Without batch normalisation, so that parts of a batch teach what the batch does.
STEADY = grader(backbone="test_convnext", batch_size=6, learning_rate=1e-4)
# Its pooled map of one pixel needs two samples.
POOLED = localiser(options={"encoder": "tu-test_resnet", "decoder_channels": 8}, epochs=2, batch_size=2)


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, fits: int, error: str = LACK, *, or_checkpointed: bool = False
) -> None:
    """A device that holds so many samples, or any number with activation checkpointing."""
    whole = FitState._loss

    def loss(self: FitState, part: Batch) -> LossSum:
        if len(part.target) > fits and not (or_checkpointed and self.memory.checkpointed):
            raise torch.cuda.OutOfMemoryError(error)
        return whole(self, part)

    monkeypatch.setattr(FitState, "_loss", loss)


def fitted(recipe: MemberRecipe, folder: Path) -> dict[str, torch.Tensor]:
    return fit(recipe, TinySamples(recipe), folder, CPU, seed=5).net.state_dict()


def killed_and_resumed(recipe: MemberRecipe, folder: Path) -> dict[str, torch.Tensor]:
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, TinySamples(recipe, dies_at=(2, 1)), folder, CPU, seed=5)
    return fitted(recipe, folder)


def test_a_batch_that_does_not_fit_is_split_from_there_on(tmp_path, monkeypatch, caplog):
    split = fitted(STEADY.with_optimisation(accumulate=4), tmp_path / "split")
    short_of_memory(monkeypatch, fits=2)
    short = fitted(STEADY, tmp_path / "short")
    assert all(torch.equal(value, split[name]) for name, value in short.items())
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    name = STEADY.member.name
    assert said == [f"{name}: a batch does not fit the memory: in {count} parts from here on" for count in (2, 4)]


def test_a_resumed_fit_is_split_as_before(tmp_path, monkeypatch, caplog):
    short_of_memory(monkeypatch, fits=3)
    whole = fitted(STEADY, tmp_path / "whole")
    caplog.clear()
    resumed = killed_and_resumed(STEADY, tmp_path / "killed")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert caplog.text.count("does not fit") == 1


def test_where_a_sample_does_not_fit_activations_are_checkpointed(tmp_path, monkeypatch, caplog):
    whole = fitted(STEADY, tmp_path / "whole")
    short_of_memory(monkeypatch, fits=0, or_checkpointed=True)
    resumed = killed_and_resumed(STEADY, tmp_path / "killed")
    said = f"{STEADY.member.name}: a sample does not fit the memory: activations are checkpointed from here on"
    assert caplog.text.count(said) == 1
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("error", [LACK, "unable to find an engine to execute this computation"])
def test_a_sample_that_does_not_fit_at_all_ends_with_a_sentence(tmp_path, monkeypatch, error):
    short_of_memory(monkeypatch, fits=0, error=error)
    with pytest.raises(
        FitError, match="does not fit the memory even in 6 parts .*: use a GPU with more of it"
    ) as caught:
        fitted(STEADY, tmp_path)
    assert f"({error})" in str(caught.value)


def test_checkpointed_activations_give_the_same_weights_and_are_off_at_the_end(tmp_path):
    nets = []
    for checkpointing in (False, True):
        recipe = STEADY.with_optimisation(activation_checkpointing=checkpointing)
        net = fit(recipe, TinySamples(recipe), tmp_path / str(checkpointing), CPU, seed=5).net
        assert not any(getattr(part, "grad_checkpointing", False) for part in net.modules()), "export traces it"
        nets.append(net.state_dict())
    for name, value in nets[0].items():
        torch.testing.assert_close(nets[1][name], value, atol=2e-6, rtol=1e-5, msg=name)


def kept_bytes(recipe: MemberRecipe) -> int:
    """What autograd keeps of a step."""
    samples = TinySamples(recipe)
    run = FitState(recipe, samples, device_of(CPU), pretrained=False)
    with saved_bytes(run.net) as saved:
        run.step(next(iter(samples.training(1))), 0)
    return saved.bytes


def test_a_checkpointed_encoder_keeps_less():
    assert kept_bytes(STEADY.with_optimisation(activation_checkpointing=True)) < 0.7 * kept_bytes(STEADY)


def forwards(recipe: MemberRecipe, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each forward pass that training makes in two steps."""
    seen: list[int] = []
    samples = TinySamples(recipe)
    run = FitState(recipe, samples, device_of(CPU), pretrained=False)
    run.net.train()
    name = "outputs" if hasattr(run.net, "outputs") else "forward"
    outputs = getattr(run.net, name)

    def counted(*inputs: torch.Tensor) -> object:
        seen.append(len(inputs[-1]))
        return outputs(*inputs)

    monkeypatch.setattr(run.net, name, counted)
    for step, batch in zip(range(2), samples.training(1), strict=False):
        run.step(batch, step)
    return seen


def test_a_part_of_one_sample_is_one_sample_but_where_normalisation_needs_two(monkeypatch):
    parts = STEADY.with_optimisation(batch_size=2, accumulate=2)
    assert forwards(parts, monkeypatch) == [1, 1, 1, 1]
    pooled = forwards(POOLED.with_optimisation(accumulate=2), monkeypatch)
    assert pooled == [1, 2, 2, 2, 2], "tried once"


def test_a_resumed_fit_goes_on_in_pairs(tmp_path):
    recipe = POOLED.with_optimisation(accumulate=2)
    whole = fitted(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(("ranks", "rounds"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_parts_are_those_of_all_processes(ranks, rounds):
    one = StepMemory("x", nn.Identity(), STEADY.fitting.optimisation, 1)
    one.rounds = 6
    several = StepMemory("x", nn.Identity(), STEADY.fitting.optimisation, ranks)
    several.restore(one.state())
    assert several.rounds == rounds and several.in_pairs == (ranks > 1)


def test_a_fit_in_parts_is_validated_in_parts(tmp_path):
    for recipe in (STEADY.with_optimisation(epochs=1), localiser(epochs=1, batch_size=4)):
        found = []
        for rounds in (1, 3):
            run = FitState(recipe, TinySamples(recipe, held_out=7), device_of(CPU), pretrained=False)
            run.net.load_state_dict(found[0][1] if found else run.net.state_dict())
            run.memory.rounds = rounds
            found.append((run._validate(), run.net.state_dict()))
        (first, _), (second, _) = found
        known = [value for value in first if value is not None]
        assert [value for value in second if value is not None] == pytest.approx(known, rel=1e-4)
        assert len(known) == (2 if recipe.member.role == "localiser" else 1)
