"""The network that finds the slice of each level in an axial volume, its losses, and the 2nd place's recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.lumbar.labels import LEVELS
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support import ROOT
from tests.support.networks.tiny_members import PROVENANCE, optimisation
from training import networks
from training.data.samples.batch import Batch
from training.fitting.export import export, parity_inputs
from training.fitting.losses import LOSSES, answer
from training.fitting.losses.slice_losses import level_classes, level_distance
from training.fitting.optimise import make_optimiser
from training.networks import NetworkError
from training.networks.slice_levels import BLANK_LOGIT, BLANK_MM
from training.recipe_schema.fitting import Fitting, Network
from training.recipe_schema.load import load_recipe
from training.recipe_schema.schema import MemberRecipe

SLICES, SIZE_PX = 8, 32
CANALS = tuple(f"spinal_canal_stenosis_{level}" for level in LEVELS)
BOTH_SIDES = tuple(f"{side}_subarticular_stenosis_{level}" for side in ("left", "right") for level in LEVELS)
RECIPE = ROOT / "training" / "recipes" / "slice_experts.yaml"


def finder(marks: int = 2, targets: tuple[str, ...] = BOTH_SIDES, **options: Any) -> MemberRecipe:
    """slice_levels on one axial volume and so many views of marks, one landmark each."""
    volume = ViewRequest(
        series="axial_t2",
        slices=SliceChoice(by="all", count=SLICES, fit="pad", stacks="together"),
        size_px=SIZE_PX,
        normalisation="unit",
    )
    views = [volume, *(volume.model_copy(update={"marks": (name,)}) for name in CANALS[:marks])]
    member = Member(
        name="tiny_levels", role="localiser", unit="study", inputs=tuple(views), targets=targets, answers="slices"
    )
    small = {"encoder": "test_byobnet", "pretrained": False, "width": 32, "layers": 1, "heads": 2, "dropout": 0.0}
    loss = f"level_{options.get('answers', 'distance')}"
    network = Network(name="slice_levels", options=small | options)
    return MemberRecipe(member=member, fitting=Fitting(network=network, loss=loss, optimisation=optimisation()))


RECIPES = [
    pytest.param(finder(), id="distance"),
    pytest.param(finder(marks=0, answers="classes", along="lstm", neighbours=0), id="classes-lstm"),
    pytest.param(finder(marks=1, targets=BOTH_SIDES[:5], by_side=True, along="lstm"), id="distance-by-side"),
]


def volumes(recipe: MemberRecipe, real: list[int], seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Noise with so many real slices in each sample, all of them present."""
    *views, present = parity_inputs(recipe.member, seed, len(real))
    for view in views:
        for sample, count in zip(view, real, strict=True):
            sample[count:] = 0
    return views, torch.ones_like(present)


@pytest.mark.parametrize("recipe", RECIPES)
def test_archive_equals_the_network_at_every_batch_size(recipe, tmp_path):
    torch.manual_seed(0)
    artefact = export(networks.for_member(recipe), recipe, tmp_path, PROVENANCE, seed=3)
    assert len(artefact.weights.golden_output) == 2 * len(recipe.member.targets) * 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_points_lie_on_real_slices_and_nowhere_without_a_volume(recipe):
    torch.manual_seed(0)
    net = networks.for_member(recipe).eval()
    views, present = volumes(recipe, [1, 3, SLICES, 0])
    present[2, 0] = 0
    with torch.no_grad():
        points = net(*views, present)
        assert points.shape == (4, len(recipe.member.targets), 4) and points.isfinite().all()
        assert (points[0, :, 0] == 0).all() and (points[1, :, 0] < 3).all()
        assert (points[..., 1:3] == (SIZE_PX - 1) / 2).all()
        assert (points[:2, :, 3] > 0).all() and (points[2:, :, 3] == 0).all()
        views[0][2] = 7.0
        assert torch.equal(net(*views, present), points), "what a missing view holds must not matter"


@pytest.mark.parametrize("recipe", RECIPES)
def test_marks_may_be_missing_and_matter_where_they_are_not(recipe):
    torch.manual_seed(0)
    net = networks.for_member(recipe).eval()
    views, present = volumes(recipe, [SLICES, 5])
    present[:, 1:] = 0
    with torch.no_grad():
        without = net.outputs(*views, present)
        hidden = [views[0], *(torch.rand_like(view) for view in views[1:])]
        torch.testing.assert_close(net.outputs(*hidden, present), without)
        assert len(views) == 1 or not torch.allclose(net.outputs(*views, torch.ones_like(present)), without)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_works_in_half(recipe, dtype):
    net = networks.for_member(recipe).eval().to(dtype)
    views, present = volumes(recipe, [SLICES, 4])
    with torch.no_grad():
        points = net(*[view.to(dtype) for view in views], present.to(dtype))
    assert points.dtype == torch.float32 and points.isfinite().all() and (points[1, :, 0] < 4).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_looks_only_at_real_slices_and_teaches_every_parameter(recipe):
    net = networks.for_member(recipe).train()
    views, present = volumes(recipe, [5, 3, 0])
    seen = []
    net.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    said = net.outputs(*views, present)
    assert seen == [5 + 3 + 1], "one image stands in for a volume that is blank"
    blank = {"distance": torch.tensor([BLANK_MM, BLANK_LOGIT]), "classes": torch.tensor([BLANK_LOGIT])}
    assert (said[0, 5:] == blank[recipe.fitting.loss.removeprefix("level_")]).all()
    (said * torch.randn_like(said)).sum().backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []


def test_sides_share_an_answer_unless_asked_apart():
    torch.manual_seed(0)
    for recipe, alike in ((finder(), True), (finder(by_side=True), False)):
        net = networks.for_member(recipe).eval()
        views, present = volumes(recipe, [SLICES, SLICES])
        with torch.no_grad():
            left, right = net.outputs(*views, present).split(5, dim=2)
        assert torch.equal(left, right) == alike


def test_the_slice_nearest_to_each_level_is_taken_and_far_ones_are_distrusted():
    net = networks.for_member(finder(targets=BOTH_SIDES[:2]))
    distance_mm = torch.tensor([[9.0, 60.0], [4.5, 55.5], [0.5, 51.0], [-4.0, 46.5], [BLANK_MM, BLANK_MM]])
    logit = torch.tensor([[-3.0, -3.0], [0.0, -3.0], [3.0, -3.0], [0.0, -3.0], [BLANK_LOGIT, BLANK_LOGIT]])
    points = net.points(torch.stack([distance_mm, logit], 2)[None], torch.ones(1, 3))[0]
    assert points[:, 0].tolist() == [2, 3]
    assert points[0, 3] > 0.9 and points[1, 3] < 0.05


def test_the_slice_likeliest_to_show_a_level_is_taken():
    net = networks.for_member(finder(marks=0, targets=BOTH_SIDES[:2], answers="classes"))
    logit = torch.tensor([[-3.0, 1.0], [2.0, 0.0], [BLANK_LOGIT, BLANK_LOGIT]])[None, :, :, None]
    points = net.points(logit, torch.ones(1, 1))[0]
    assert points[:, 0].tolist() == [1, 0]
    torch.testing.assert_close(points[:, 3], torch.tensor([2.0, 1.0]).sigmoid())


def test_marks_can_be_hidden_in_training():
    torch.manual_seed(0)
    net = networks.for_member(finder(mark_dropout=1.0))
    views, present = volumes(finder(), [SLICES, SLICES])
    said = [net.train().outputs(*views, shown) for shown in (present, torch.tensor([[1.0, 0, 0]] * 2))]
    torch.testing.assert_close(*said)
    with torch.no_grad():
        assert not torch.allclose(net.eval().outputs(*views, present), said[0])


@pytest.mark.parametrize("known", ["image", "marks"])
def test_learns_levels_from_images_or_from_marks(known):
    """Slices 4 mm apart whose grey, or whose marks, tell how far two levels are; the volume starts anywhere."""
    recipe = finder(targets=BOTH_SIDES[:2], neighbours=0)
    generator = torch.Generator().manual_seed(1)
    place_mm = torch.arange(SLICES) * 4.0

    def batch(count: int) -> Batch:
        shift = torch.rand(count, 1, generator=generator) * 12 - 2
        distance_mm = torch.stack([8 + shift - place_mm, 20 + shift - place_mm], 2)
        noise = 0.1 * torch.rand(count, SLICES, SIZE_PX, SIZE_PX, generator=generator)
        grey = (distance_mm[..., :1, None] + 40) / 80
        image = noise + (grey if known == "image" else 0.5)
        ball = torch.exp(-0.5 * (distance_mm / 8) ** 2)
        marks = [ball[..., number, None, None].expand_as(noise) for number in range(2)]
        present = torch.tensor([[1.0, *[float(known == "marks")] * 2]]).repeat(count, 1)
        return Batch((image, *marks), present, torch.full((count, 2, 3), torch.nan), distance_mm)

    torch.manual_seed(1)
    net = networks.for_member(recipe).train()
    optimiser = make_optimiser(net, optimisation())
    for step in range(240):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / 240)
        loss, _ = answer(net, batch(4), recipe.fitting)
        optimiser.zero_grad()
        loss.mean.backward()
        optimiser.step()
    held_out = batch(32)
    with torch.no_grad():
        points = net.eval()(*held_out.views, held_out.present)
    assert held_out.distance_mm is not None
    off_mm = held_out.distance_mm.gather(1, points[:, None, :, 0].long()).abs().flatten()
    assert (off_mm <= 4).float().mean() > 0.85, "chance is 0.3; four seeds reached 0.97 to 1.0"


def test_distance_loss_counts_what_is_known_and_most_near_the_level():
    distance_mm = torch.tensor([[80.0, -30.0], [1.0, torch.nan]])[:, :, None, None].transpose(0, 1)  # (B 2, S 2, 1, 1)
    truth = distance_mm[..., 0]
    exact = torch.cat([truth.nan_to_num(BLANK_MM).clamp_max(60)[..., None], torch.zeros(2, 2, 1, 1)], 3)
    assert level_distance(exact, truth, shows=0).total == 0, "80 mm are as good as 60"
    near, far = exact.clone(), exact.clone()
    near[0, 1, 0, 0] += 10
    far[1, 0, 0, 0] += 10
    assert level_distance(near, truth, shows=0).total > 4 * level_distance(far, truth, shows=0).total > 0
    blank = exact.clone()
    blank[1, 1] = BLANK_MM
    assert level_distance(blank, truth, shows=0).total == 0
    surer = exact.clone()
    surer[..., 1] = torch.where(truth.abs() <= 5, 1.0, -3.0)
    assert level_distance(surer, truth).mean < level_distance(exact, truth).mean


def test_classes_loss_wants_the_nearest_slices():
    distance_mm = torch.tensor([9.0, 4.5, 0.0, -4.5, -9.0])[None, :, None]
    target = torch.tensor([0.3536, 0.7071, 1.0, 0.7071, 0.3536])[None, :, None]
    right = level_classes(target.logit(eps=1e-4)[..., None], distance_mm).mean
    for other in (1 - target, torch.full_like(target, 0.5), target.roll(1, 1)):
        assert level_classes(other.logit(eps=1e-4)[..., None], distance_mm).mean > right


@pytest.mark.parametrize("loss", ["level_distance", "level_classes"])
def test_losses_of_batches_without_labels_or_volumes(loss):
    recipe = finder(answers=loss.removeprefix("level_"))
    said = torch.zeros(2, SLICES, 10, 2 if loss == "level_distance" else 1, requires_grad=True)
    views, target = (torch.zeros(2, SLICES, 8, 8),), torch.full((2, 10, 3), torch.nan)
    near = torch.zeros(2, SLICES, 10)
    for present, distance_mm in ((torch.ones(2, 3), near * torch.nan), (torch.zeros(2, 3), near)):
        total, weight = LOSSES[loss](said, Batch(views, present, target, distance_mm), recipe.fitting)
        total.backward()
        assert total == weight == 0 and said.grad is not None and (said.grad == 0).all()
    with pytest.raises(ValueError, match="distance_mm"):
        LOSSES[loss](said, Batch(views, torch.ones(2, 3), target), recipe.fitting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (8, 5)}, "same slices"),
        ({"target_names": ("left_subarticular_stenosis",)}, "names none"),
        ({"along": "gru"}, "'transformer' or 'lstm'"),
        ({"answers": "points"}, "'distance' or 'classes'"),
        ({"encoder": "test_resne"}, "similar names: .*test_resnet"),
    ],
)
def test_what_cannot_be_built_is_said(changes, message):
    arguments = {"inputs": (8,), "size_px": 32, "targets": 1, "target_names": CANALS[:1], "encoder": "test_byobnet"}
    with pytest.raises(NetworkError, match=message):
        networks.build("slice_levels", **{**arguments, **changes}, pretrained=False)


@pytest.mark.parametrize("profile", ["full", "bench", "smoke"])
def test_the_experts_find_slices_with_the_canal_known_and_then_points(profile):
    members = {
        entry.member.name.removeprefix("slice_experts_"): entry for entry in load_recipe(RECIPE, profile).members()
    }
    canal, levels, recess = (members[name].member for name in ("sagittal_t2", "axial_levels", "axial_t2"))
    assert levels.answers == "slices" and levels.needed == set(canal.answered) == set(CANALS)
    assert set(levels.answered) == set(recess.answered) == recess.needed == set(BOTH_SIDES)
    assert {"left_neural_foraminal_narrowing_l1_l2", "right_neural_foraminal_narrowing_l5_s1"} <= set(
        members["sagittal_t1"].member.answered
    )
    if profile != "full":
        for entry in members.values():
            assert networks.for_member(entry, pretrained=False) is not None
