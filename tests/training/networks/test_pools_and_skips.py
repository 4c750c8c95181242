"""What options of graders do to their answers: pools over slices, one network for all conditions, a skip connection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.networks import condition_sequence, slice_pool

SIZE_PX, SLICES = 32, 3


def pooled(pooling: slice_pool.Pooling, by_slice: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The answer (B, 1, 3) of a network whose slices answer `by_slice` (B, S, 1, 3 or 4)."""
    net = slice_pool.Net(
        inputs=(SLICES,), size_px=SIZE_PX, targets=1, backbone="test_byobnet", pretrained=False, pooling=pooling
    ).eval()
    monkeypatch.setattr(net, "outputs", lambda *_: by_slice)
    return net(torch.zeros(1, SLICES, SIZE_PX, SIZE_PX), torch.ones(1, 1))


# Of three slices, one far from the others.
BY_SLICE = torch.tensor([[[[0.0, 1.0, 2.0]], [[0.3, 1.3, 2.3]], [[9.0, -8.0, 5.0]]]])


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [3.1, -1.9, 3.1]), ("median", [0.3, 1.0, 2.3])], ids=["mean", "median"]
)
def test_slices_are_pooled_by_their_mean_or_their_median(pooling, expected, monkeypatch):
    torch.testing.assert_close(pooled(pooling, BY_SLICE, monkeypatch)[0, 0], torch.tensor(expected))


def test_slices_that_do_not_show_the_target_hardly_count(monkeypatch):
    shows = torch.tensor([8.0, 8.0, -12.0]).reshape(1, 3, 1, 1)
    answer = pooled("valid", torch.cat([BY_SLICE, shows], -1), monkeypatch)
    torch.testing.assert_close(answer[0, 0], BY_SLICE[0, :2, 0].mean(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_one_network_grades_the_crops_of_all_conditions(pooling):
    net = slice_pool.Net(
        inputs=(SLICES,) * 5,
        size_px=SIZE_PX,
        targets=5,
        backbone="test_byobnet",
        pretrained=False,
        pooling=pooling,
        agnostic=True,
    ).eval()
    views = list(torch.rand(5, 2, SLICES, SIZE_PX, SIZE_PX))
    exchanged = [views[1], views[0], *views[2:]]
    with torch.no_grad():
        answer, other = net(*views, torch.ones(2, 5)), net(*exchanged, torch.ones(2, 5))
    torch.testing.assert_close(other[:, [1, 0, 2, 3, 4]], answer)
    assert (answer[:, 0] - answer[:, 1]).abs().max() > 1e-6


def test_a_skip_connection_adds_what_comes_into_the_sequence_model(monkeypatch):
    """Where the sequence model answers nothing, the grades are those of the conditions by themselves."""
    names = ("spinal_canal_stenosis", "left_neural_foraminal_narrowing")
    views = list(torch.rand(2, 1, SLICES, SIZE_PX, SIZE_PX))
    answers = {}
    for along in ("conditions", "conditions_skip"):
        torch.manual_seed(0)
        net = condition_sequence.Net(
            inputs=(SLICES,) * 2,
            size_px=SIZE_PX,
            targets=2,
            target_names=names,
            backbone="test_byobnet",
            pretrained=False,
            along=along,
            width=32,
        ).eval()
        monkeypatch.setattr(net.by_condition, "forward", torch.zeros_like)
        with torch.no_grad():
            biases = torch.stack([net.heads[head][1].bias for head in net.head_of])
            answers[along] = net(*views, torch.ones(1, 2))[0] - biases
    assert answers["conditions"].abs().max() == 0
    assert answers["conditions_skip"].abs().min() > 1e-6
