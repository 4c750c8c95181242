"""heat_pointer and roi_maps: what they find, where they must not look, and their losses against hand-made values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support.networks.tiny_members import PROVENANCE
from training import networks
from training.data.samples.batch import Batch
from training.fitting.export import export
from training.fitting.losses.map_losses import heat_and_pointer_bce, heatmap_correlation, slice_weights
from training.fitting.losses.target_heatmaps import gaussian_heatmaps
from training.networks import NetworkError
from training.networks.heat_pointer import HeatAndPointer
from training.networks.parts.slices import never_empty, pick, real_slices, spread, with_neighbours
from training.networks.roi_maps import RoiMaps, middle_slices
from training.recipe_schema.fitting import Fitting, Network, Optimisation
from training.recipe_schema.schema import MemberRecipe

NAN = float("nan")
SIZE, SLICES = 32, 6
SIDED = (
    "left_subarticular_stenosis_l1_l2",
    "left_subarticular_stenosis_l2_l3",
    "right_subarticular_stenosis_l1_l2",
)
TINY: dict[str, Any] = {"encoder": "tu-test_resnet", "pretrained": False, "decoder_channels": [8, 8], "depth": 3}


def heat_pointer(targets: tuple[str, ...] = SIDED, **options: Any) -> MemberRecipe:
    return localiser("heat_pointer", targets, {"hidden": 32, **options})


def roi_maps(slices: int = SLICES, **options: Any) -> MemberRecipe:
    return localiser("roi_maps", SIDED, options, slices)


def localiser(network: str, targets: tuple[str, ...], options: dict[str, Any], slices: int = SLICES) -> MemberRecipe:
    choice = SliceChoice(by="all", count=slices, fit="pad", stacks="together")
    view = ViewRequest(series="axial_t2", slices=choice, size_px=SIZE, normalisation="unit")
    member = Member(name=f"tiny_{network}", role="localiser", unit="study", inputs=(view,), targets=targets)
    loss = {"heat_pointer": "heat_and_pointer_bce", "roi_maps": "heatmap_correlation"}[network]
    optimisation = Optimisation(epochs=1, batch_size=2, learning_rate=1e-3)
    fitting = Fitting(
        network=Network(name=network, options={**TINY, **options}), loss=loss, optimisation=optimisation, sigma_px=3
    )
    return MemberRecipe(member=member, fitting=fitting)


EVERY = {
    "lstm": heat_pointer(),
    "transformer": heat_pointer(along="transformer", place="fixed", coordinates=True),
    "shared_sides": heat_pointer(share_encoder=True, sides=True, layers=2),
    "fourfold": heat_pointer(encoder="tu-test_convnext", share_encoder=True, sides=True, place="fixed"),
    "roi": roi_maps(),
    "roi_all": roi_maps(middle_share=1.0, coordinates=True),
}
every_network = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY.keys())


def padded(recipe: MemberRecipe, real: int, batch: int = 2) -> list[torch.Tensor]:
    """Noise in the first `real` slices, blank ones after them."""
    view, present = golden_inputs(recipe.member, 3, batch)[0], torch.ones(batch, 1)
    view[:, real:] = 0
    return [view, present]


@every_network
def test_archive_equals_the_network_in_all_batch_sizes_and_works_in_half(recipe, tmp_path):
    net = networks.for_member(recipe)
    artefact = export(net, recipe, tmp_path, PROVENANCE, seed=2)  # proves parity at batch 1, 3 and 17
    view, present = padded(recipe, 3)
    with torch.no_grad():
        expected = net.eval()(view, present)
    whole, half = (load_member(tmp_path, artefact, torch.device("cpu"), half=half) for half in (False, True))
    torch.testing.assert_close(whole([view], present), expected, rtol=1e-5, atol=1e-5)
    answer = half([view], present)
    assert answer.dtype == torch.float32 and answer.isfinite().all()
    torch.testing.assert_close(answer[..., 3], expected[..., 3], rtol=0, atol=0.02)


@every_network
def test_blank_slices_and_missing_views(recipe):
    net = networks.for_member(recipe).eval()
    with torch.no_grad():
        for real in (1, 2, 5):
            view, present = padded(recipe, real)
            answer = net(view, present)
            assert (answer[..., 0] <= real - 1).all() and (answer[..., 3] > 0).all()
        present[1] = 0
        missing = net(view, present)
        torch.testing.assert_close(missing[0], answer[0])
        assert missing.isfinite().all() and (missing[1, :, 3] == 0).all()
        view[1] = 7.0
        assert torch.equal(missing, net(view, present)), "what a missing view holds must not matter"


@every_network
def test_every_parameter_learns(recipe):
    net = networks.for_member(recipe).train()
    view, present = padded(recipe, 4)
    points = torch.rand(2, 3, 3) * 20 + 5
    distance_mm = (torch.arange(SLICES) * 4.0)[None, :, None].repeat(2, 1, 3)
    distance_mm[:, 4:] = NAN
    net.eval()
    with torch.no_grad():
        before = net(view, present)
    net.train()
    outputs = net.outputs(view, present)
    loss = _loss(recipe, outputs, Batch((view,), present, points, distance_mm))
    loss.mean.backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None]
    assert loss.weight == 6 and before.isfinite().all()


def _loss(recipe: MemberRecipe, outputs: Any, batch: Batch) -> Any:
    function = {"heat_and_pointer_bce": heat_and_pointer_bce, "heatmap_correlation": heatmap_correlation}
    return function[recipe.fitting.loss](outputs, batch, sigma_px=recipe.fitting.sigma_px)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (heat_pointer(place="middle"), "place is 'per_slice' or 'fixed'"),
        (heat_pointer(along="gru"), "along is 'lstm' or 'transformer'"),
        (heat_pointer(along="transformer", hidden=40), "multiples of 32"),
        (heat_pointer(("spinal_canal_stenosis_l1_l2",), sides=True), "targets of both sides"),
        (heat_pointer(SIDED[:2], sides=True), "targets of both sides"),
        (roi_maps(middle_share=0.0), "middle_share is a share"),
    ],
)
def test_what_cannot_be_built_is_said(recipe, message):
    with pytest.raises(NetworkError, match=message):
        networks.for_member(recipe)


def test_slices_that_are_picked_come_back_to_their_places():
    view = torch.zeros(3, 4, 2, 2)
    view[0, :3], view[1, :1] = torch.arange(1.0, 4)[:, None, None], -5.0
    real = real_slices(view)
    assert real.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    shown = never_empty(real)
    assert shown.sum(1).tolist() == [3, 1, 1], "a sample of blank slices shows one of them"
    back = spread(pick(view, shown), shown)
    assert torch.equal(back[shown], view[shown])


def test_edge_slices_are_their_own_neighbours():
    view = torch.zeros(1, 5, 1, 1)
    view[0, :3, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    images = with_neighbours(view, real_slices(view))[0, :3, :, 0, 0]
    assert images.tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3]]


def said(heat: torch.Tensor, pointer: torch.Tensor, real: torch.Tensor, heat_of: list[int]) -> HeatAndPointer:
    """What a network that is sure of it says: logits of probabilities."""
    return HeatAndPointer(torch.logit(heat, 1e-4), torch.logit(pointer, 1e-4), real, torch.tensor(heat_of))


def spots(places: list[tuple[float, float]], size: int = SIZE) -> torch.Tensor:
    """(len(places), SIZE, SIZE) gaussians of height 1 at (row, column)."""
    points = torch.tensor([[[0.0, *place] for place in places]])
    return gaussian_heatmaps(points, size_px=size, map_px=size, sigma_px=2.0)[0]


def test_the_point_is_where_heat_times_pointer_is_highest():
    net = networks.for_member(heat_pointer(window_px=6))
    heat = 0.9 * spots([(5.0, 6.0), (10.4, 20.7), (25.0, 3.0), (1.0, 1.0)])[None, :, None].repeat(1, 1, 3, 1, 1)
    pointer = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.2, 0.1], [0.7, 0.3, 0.6], [1.0, 1.0, 1.0]])[None]
    real = torch.tensor([[True, True, True, False]])
    answer = net.points(said(heat, pointer, real, [0, 1, 2]), torch.ones(1, 1))[0]
    assert answer[:, 0].tolist() == [1, 0, 2], "and not the blank slice, however sure the pointer is"
    wanted = torch.tensor([[10.4, 20.7], [5.0, 6.0], [25.0, 3.0]])
    torch.testing.assert_close(answer[:, 1:3], wanted, atol=0.3, rtol=0)
    torch.testing.assert_close(answer[:, 3], 0.9 * torch.tensor([0.8, 0.9, 0.6]), atol=0.05, rtol=0)


def test_a_faint_heat_makes_another_slice_win():
    net = networks.for_member(heat_pointer(SIDED[:1]))
    strength = torch.tensor([0.2, 0.8])[:, None, None]
    heat = (strength * spots([(8.0, 8.0), (20.0, 20.0)]))[None, :, None]
    pointer = torch.tensor([0.9, 0.6])[None, :, None]
    answer = net.points(said(heat, pointer, torch.ones(1, 2, dtype=torch.bool), [0]), torch.ones(1, 1))
    assert answer[0, 0, 0] == 1 and (answer[0, 0, 1:3] - 20).abs().max() < 0.1


def test_a_fixed_place_is_the_mean_over_slices_that_the_pointer_trusts():
    net = networks.for_member(heat_pointer(SIDED[:1], place="fixed"))
    heat = spots([(10.0, 10.0), (12.0, 14.0), (30.0, 30.0)])[None, :, None]
    pointer = torch.tensor([0.5, 0.6, 1e-4])[None, :, None]
    answer = net.points(said(heat, pointer, torch.ones(1, 3, dtype=torch.bool), [0]), torch.ones(1, 1))[0, 0]
    assert answer[0] == 1 and 10.5 < answer[1] < 12 and 11 < answer[2] < 14


def test_levels_of_a_side_share_its_heat_and_differ_by_the_pointer():
    net = networks.for_member(heat_pointer(sides=True))
    assert net.heat_of.tolist() == [0, 0, 1]
    left, right = spots([(10.0, 25.0), (12.0, 6.0)])
    heat = torch.stack([left, right])[None, None].repeat(1, 2, 1, 1, 1)
    pointer = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.9, 0.1]])[None]
    answer = net.points(said(heat, pointer, torch.ones(1, 2, dtype=torch.bool), [0, 0, 1]), torch.ones(1, 1))[0]
    assert answer[:, 0].tolist() == [0, 1, 0]
    wanted = torch.tensor([[10.0, 25.0], [10.0, 25.0], [12.0, 6.0]])
    torch.testing.assert_close(answer[:, 1:3], wanted, atol=0.1, rtol=0)


def weights_at(distances: list[float]) -> list[float]:
    weight = slice_weights(torch.tensor(distances)[None, :, None], halving_mm=4.0, farthest_mm=10.0)
    return weight[0, :, 0].tolist()


@pytest.mark.parametrize("true_slice", range(7))
def test_the_true_slice_weighs_one_at_the_edges_too(true_slice):
    # A published implementation clamped the neighbours' indices, and so overwrote the first and the last slice.
    weights = weights_at([4.0 * (slice_ - true_slice) for slice_ in range(7)])
    assert weights == pytest.approx([{0: 1, 1: 0.5, 2: 0.25}.get(abs(slice_ - true_slice), 0) for slice_ in range(7)])


def test_slices_weigh_by_distance_and_not_by_count():
    assert weights_at([-4.0, 0.0, 4.0, -2.0, 2.0]) == pytest.approx([0.5, 1, 0.5, 0.5**0.5, 0.5**0.5]), "two stacks"
    assert weights_at([-8.0, 0.0, 0.0, 8.0]) == pytest.approx([0.25, 1, 1, 0.25]), "the same place twice"
    assert weights_at([-3.0, 1.0, 20.0]) == pytest.approx([0.5**0.5, 1, 0]), "between slices the nearest weighs one"
    assert weights_at([0.0, 4.0, NAN]) == pytest.approx([1, 0.5, 0]), "blank slices"
    assert weights_at([NAN, NAN]) == [0, 0] and weights_at([11.0, 15.0]) == [0, 0]


def volume(known: tuple[bool, bool] = (True, True)) -> Batch:
    """Two landmarks in slices 0 and 2 of four, of which the last is blank."""
    points = torch.tensor([[[0.0, 10.0, 8.0], [2.0, 20.0, 24.0]]])
    distance_mm = torch.tensor([[[0.0, -18.0], [9.0, -9.0], [18.0, 0.0], [NAN, NAN]]])
    for landmark, one in enumerate(known):
        if not one:
            points[:, landmark], distance_mm[:, :, landmark] = NAN, NAN
    return Batch((torch.zeros(1, 4, SIZE, SIZE),), torch.ones(1, 1), points, distance_mm)


def answer_to_volume() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of heat (1, 4, 2, SIZE, SIZE) and of the pointer (1, 4, 2), and which slices are real."""
    generator = torch.Generator().manual_seed(1)
    heat, pointer = torch.randn(1, 4, 2, SIZE, SIZE, generator=generator), torch.randn(1, 4, 2, generator=generator)
    return heat.requires_grad_(), pointer.requires_grad_(), torch.tensor([[True, True, True, False]])


def cross_entropy(logit: torch.Tensor, target: torch.Tensor | float) -> torch.Tensor:
    chance = logit.sigmoid()
    return -(target * chance.log() + (1 - target) * (1 - chance).log())


def test_heat_and_pointer_loss_by_hand():
    heat, pointer, real = answer_to_volume()
    loss = heat_and_pointer_bce((heat, pointer, real, torch.tensor([0, 1])), volume((True, False)), sigma_px=2.0)
    target = spots([(10.0, 8.0)])[0]
    in_heat = (cross_entropy(heat[0, 0, 0], target).mean() + cross_entropy(heat[0, 1, 0], 0.25 * target).mean()) / 2
    in_pointer = sum(cross_entropy(pointer[0, slice_, 0], wanted) for slice_, wanted in ((0, 1), (1, 0.25), (2, 0))) / 3
    assert loss.weight == 1 and loss.total.item() == pytest.approx((in_heat + in_pointer).item(), rel=1e-5)
    loss.mean.backward()
    assert (heat.grad[0, :, 1] == 0).all() and (pointer.grad[0, :, 1] == 0).all(), "an unlabelled class"
    assert (heat.grad[0, 2:] == 0).all() and (pointer.grad[0, 3] == 0).all(), "no target there, and a blank slice"


def test_nothing_known_weighs_nothing_and_has_a_gradient():
    heat, pointer, real = answer_to_volume()
    outputs = heat, pointer, real, torch.tensor([0, 1])
    loss = heat_and_pointer_bce(outputs, volume((False, False)), sigma_px=2.0)
    loss.mean.backward()
    assert loss.weight == 0 and loss.mean == 0 and (heat.grad == 0).all()
    missing = volume()
    missing.present[:] = 0
    assert heat_and_pointer_bce(outputs, missing, sigma_px=2.0).weight == 0


def test_targets_of_a_side_share_the_sum_of_their_heat():
    heat, pointer, real = answer_to_volume()
    outputs = heat[:, :, :1], pointer, real, torch.tensor([0, 0])
    at_half_way = slice_weights(volume().distance_mm, halving_mm=9.0, farthest_mm=10.0)
    assert at_half_way[0, 1].tolist() == [0.5, 0.5]
    loss = heat_and_pointer_bce(outputs, volume(), sigma_px=2.0, halving_mm=9.0)
    first, second = spots([(10.0, 8.0), (20.0, 24.0)])
    wanted = [first + 0.25 * second, 0.5 * first + 0.5 * second, second + 0.25 * first]
    errors = [cross_entropy(heat[0, slice_, 0], target).mean() for slice_, target in enumerate(wanted)]
    pointed = sum(cross_entropy(pointer[0, :3, k], at_half_way[0, :3, k]).mean() for k in range(2))
    assert loss.weight == 2 and loss.total.item() == pytest.approx((2 * sum(errors) / 3 + pointed).item(), rel=1e-5)


def test_foreground_raises_the_weight_of_the_spot_only():
    heat, pointer, real = answer_to_volume()
    outputs = heat, pointer, real, torch.tensor([0, 1])
    plain, heavy = (heat_and_pointer_bce(outputs, volume(), sigma_px=2.0, foreground=f).total for f in (0.0, 10.0))
    (heavy - plain).backward()
    assert heat.grad[0, 0, 0, 10, 8].abs() > 0 and heat.grad[0, 0, 0, 30, 30].abs() < 1e-6


def rois(maps: torch.Tensor, used: list[bool] | None = None) -> RoiMaps:
    """(S, SIZE, SIZE) maps of one landmark in one sample."""
    return RoiMaps(maps[None, :, None], torch.tensor([used or [True] * len(maps)]))


def correlation(maps: torch.Tensor, used: list[bool] | None = None) -> float:
    batch = Batch((torch.zeros(1, len(maps), SIZE, SIZE),), torch.ones(1, 1), torch.tensor([[[0.0, 10.0, 8.0]]]))
    return heatmap_correlation(rois(maps, used), batch, sigma_px=2.0).mean.item()


def test_correlation_judges_the_shape_alone():
    right, wrong = spots([(10.0, 8.0), (28.0, 28.0)])
    assert correlation(right[None]) == pytest.approx(0, abs=1e-6)
    assert correlation(0.01 * right[None]) == pytest.approx(0, abs=1e-6)
    assert correlation(wrong[None]) == pytest.approx(1, abs=1e-4)
    assert correlation((right + wrong)[None]) == pytest.approx(0.5, abs=0.01)
    assert correlation(torch.stack([right, wrong])) == pytest.approx(0.5, abs=1e-3)
    assert correlation(torch.stack([right, wrong]), [True, False]) == pytest.approx(0, abs=1e-6)


def test_correlation_counts_known_points_only():
    batch = Batch((torch.zeros(1, 1, SIZE, SIZE),), torch.ones(1, 1), torch.full((1, 1, 3), NAN))
    maps = torch.rand(1, SIZE, SIZE, requires_grad=True)
    loss = heatmap_correlation(rois(maps), batch, sigma_px=2.0)
    loss.mean.backward()
    assert loss.weight == 0 and loss.mean == 0 and (maps.grad == 0).all()


@pytest.mark.parametrize(
    ("real", "share", "used"),
    [(15, 0.6, 9), (17, 0.6, 11), (4, 0.6, 2), (3, 0.6, 1), (1, 0.6, 1), (3, 1.0, 3), (0, 1, 0)],
)
def test_the_middle_share_of_the_real_slices(real, share, used):
    chosen = middle_slices(torch.arange(18)[None] < real, share)[0]
    assert chosen.sum() == used
    assert torch.equal(chosen[:real], chosen[:real].flip(0)) and not chosen[real:].any()


def test_the_point_of_summed_maps_lies_in_the_middle_of_the_stack():
    net = networks.for_member(roi_maps(window_px=6))
    maps = spots([(10.0, 8.0), (10.4, 8.4), (10.8, 8.8), (30.0, 30.0)])
    slice_, row, column, confidence = net.points(rois(maps, [True, True, True, False]), torch.ones(1, 1))[0, 0].tolist()
    assert slice_ == 1 and math.hypot(row - 10.4, column - 8.4) < 0.1 and confidence > 0.9


def test_doubt_lowers_the_confidence_of_summed_maps():
    net = networks.for_member(roi_maps(window_px=6))
    near, far = spots([(8.0, 8.0), (24.0, 24.0)])

    def confidence(*maps: torch.Tensor) -> float:
        return net.points(rois(torch.stack(maps)), torch.ones(1, 1))[0, 0, 3].item()

    assert confidence(near, near) > 0.95
    assert confidence(near + 0.9 * far, near + 0.9 * far) < 0.6, "two places look alike"
    assert confidence(near, far) < 0.6, "slices disagree"
