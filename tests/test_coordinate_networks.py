"""Networks that answer landmarks as numbers: their export, blank slices, inflated weights, and their loss by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_members import PROVENANCE, optimisation

from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from training import networks
from training.data.batch import Batch
from training.fitting.coordinate_losses import LOSSES
from training.fitting.export import export
from training.recipe import Fitting, MemberRecipe, Network

NAN = float("nan")
TARGETS = ("left_subarticular_stenosis_l1_l2", "right_subarticular_stenosis_l1_l2", "spinal_canal_stenosis_l1_l2")
SLICES = SliceChoice(by="all", count=8, fit="pad", stacks="together")
VIEW = ViewRequest(series="axial_t2", slices=SLICES, size_px=32, normalisation="unit")


def coordinate_localiser(network: str, views: int = 1, **options: Any) -> MemberRecipe:
    """A member on whole padded stacks with the smallest encoder of an architecture."""
    encoder = {"coordinates": "test_resnet", "volume_coordinates": "resnet10_narrow"}[network]
    options = {"encoder": encoder, "pretrained": False, "width": 8, **options}
    member = Member(name="tiny", role="localiser", unit="study", inputs=(VIEW,) * views, targets=TARGETS)
    fitting = Fitting(network=Network(name=network, options=options), loss="coordinate_smooth_l1", optimisation=optimisation())
    return MemberRecipe(member=member, fitting=fitting)


SOFT = {"pooling": "soft_argmax"}
RECIPES = {
    "image": coordinate_localiser("coordinates"),
    "image-slices": coordinate_localiser("coordinates", slices=True, coordinates=True),
    "image-soft": coordinate_localiser("coordinates", 2, slices=True, **SOFT),
    "image-last": coordinate_localiser("coordinates", encoder="test_vit", pooling="average"),
    "volume": coordinate_localiser("volume_coordinates", slice_halvings=3),
    "volume-soft": coordinate_localiser("volume_coordinates", 2, slice_halvings=1, coordinates=True, **SOFT),
}


def batch(views: int = 1, count: int = 3, real: int = 8) -> Batch:
    """Noise on the first `real` of eight slices; a view that is missing, and a point that is unknown."""
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(count, 8, 32, 32, generator=generator)
    shown[:, real:] = 0
    target = torch.rand(count, 3, 3, generator=generator) * torch.tensor([real - 1.0, 31, 31])
    target[0, 0] = NAN
    present = torch.ones(count, views)
    present[-1, -1] = 0
    return Batch((shown,) * views, present, target)


@pytest.mark.parametrize("name", RECIPES)
def test_points_of_any_batch_in_any_precision(name, tmp_path):
    recipe = RECIPES[name]
    net = networks.for_member(recipe)
    export(net, recipe, tmp_path, PROVENANCE, seed=3)  # equal to the trace at several batch sizes
    given = batch(len(recipe.member.inputs))
    points = net.eval()(*given.views, given.present)
    assert points.shape == (3, 3, 4) and ((points[..., 3] >= 0) & (points[..., 3] <= 1)).all()
    if len(given.views) == 1:
        assert (points[-1, :, 3] == 0).all(), "nothing is sure where nothing was seen"
    half = net.half()(*[view.half() for view in given.views], given.present.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, points, atol=0.1, rtol=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_learns(name):
    recipe = RECIPES[name]
    net = networks.for_member(recipe).train()
    options = recipe.fitting.model_copy(update={"loss_options": {"attention": 1.0}})
    given = batch(len(recipe.member.inputs))
    loss = LOSSES["coordinate_smooth_l1"](net.outputs(*given.views, given.present), given, options)
    loss.mean.backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None or not value.grad.isfinite().all()]


@pytest.mark.parametrize("name", ["image-slices", "image-soft", "volume", "volume-soft"])
def test_no_point_lies_on_a_blank_slice(name):
    recipe = RECIPES[name]
    net = networks.for_member(recipe).eval()
    with torch.no_grad():
        net.head.bias[:, 0] = 0.5  # as far beyond the middle as there is
    for real in (1, 3, 8):
        given = batch(len(recipe.member.inputs), real=real)
        said = net.outputs(*given.views, given.present)
        assert net.points(said, given.present)[0, :, 0].max() <= real - 1
        assert torch.autograd.grad(said.place[0, 0, 0], net.head.bias)[0][0, 0] == 1, "and it still learns"


def test_points_without_slices_lie_in_the_middle():
    given = batch()
    points = networks.for_member(RECIPES["image"]).eval()(*given.views, given.present)
    assert (points[..., 0] == 3.5).all()


@pytest.mark.parametrize("network", ["coordinates", "volume_coordinates"])
def test_attention_finds_a_bright_spot_within_a_few_steps(network):
    torch.manual_seed(1)
    recipe = coordinate_localiser(network, stride=4, coordinates=True, **SOFT)
    if network == "coordinates":
        recipe = coordinate_localiser(network, stride=4, slices=True, **SOFT)
    else:
        recipe = coordinate_localiser(network, stride=4, slice_halvings=0, **SOFT)
    net = networks.for_member(recipe).train()
    fitting = recipe.fitting.model_copy(update={"loss_options": {"attention": 0.3}})
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    places = torch.rand(16, 1, 3) * torch.tensor([7.0, 31, 31])
    axes = [torch.exp(-0.5 * ((torch.arange(n) - places[..., axis]) / width) ** 2) for axis, (n, width) in enumerate([(8, 0.7), (32, 2), (32, 2)])]
    view = axes[0][:, :, None, None] * axes[1][:, None, :, None] * axes[2][:, None, None, :]
    given = Batch((view,), torch.ones(16, 1), places.expand(-1, 3, -1).clone())
    for _ in range(40):
        optimiser.zero_grad()
        LOSSES["coordinate_smooth_l1"](net.outputs(view, given.present), given, fitting).mean.backward()
        optimiser.step()
    miss = (net(view, given.present)[..., :3] - given.target).abs().mean((0, 1))
    assert miss[1:].max() < 3 and miss[0] < 1, f"slices, rows, columns: {miss.tolist()}"
