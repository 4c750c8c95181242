"""Networks that answer landmarks as numbers: their export, blank slices, inflated weights, and their loss by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support.networks.tiny_members import PROVENANCE, optimisation
from training import networks
from training.data.samples.batch import Batch
from training.fitting.export import export
from training.fitting.losses import LOSSES
from training.fitting.losses.coordinate_losses import coordinate_smooth_l1
from training.networks import NetworkError
from training.networks.coordinates import Places, PointHead
from training.networks.parts import encoders
from training.networks.volume_coordinates import HalvingMean, VolumeEncoder
from training.recipe_schema.fitting import Fitting, Network
from training.recipe_schema.schema import MemberRecipe

NAN = float("nan")
TARGETS = ("left_subarticular_stenosis_l1_l2", "right_subarticular_stenosis_l1_l2", "spinal_canal_stenosis_l1_l2")
SLICES = SliceChoice(by="all", count=8, fit="pad", stacks="together")
VIEW = ViewRequest(series="axial_t2", slices=SLICES, size_px=32, normalisation="unit")


def coordinate_localiser(network: str, views: int = 1, size_px: int = 32, **options: Any) -> MemberRecipe:
    """A member on whole padded stacks with the smallest encoder of an architecture."""
    encoder = {"coordinates": "test_resnet", "volume_coordinates": "resnet10_narrow"}[network]
    view = VIEW.model_copy(update={"size_px": size_px})
    options = {"encoder": encoder, "pretrained": False, "width": 8, **options}
    member = Member(name="tiny", role="localiser", unit="study", inputs=(view,) * views, targets=TARGETS)
    fitting = Fitting(
        network=Network(name=network, options=options), loss="coordinate_smooth_l1", optimisation=optimisation()
    )
    return MemberRecipe(member=member, fitting=fitting)


IMAGE_ENCODERS = ("densenet161", "fastvit_ma36", "convformer_s36", "xception65", "tf_efficientnetv2_s")
SOFT = {"pooling": "soft_argmax", "stride": 2}
RECIPES = {
    "image": coordinate_localiser("coordinates"),
    "image-slices": coordinate_localiser("coordinates", slices=True, coordinates=True),
    "image-soft": coordinate_localiser("coordinates", 2, slices=True, **SOFT),
    "image-norm": coordinate_localiser("coordinates", encoder="test_convnext", stride=8, pooling="soft_argmax"),
    "volume": coordinate_localiser("volume_coordinates", slice_halvings=3),
    "volume-soft": coordinate_localiser("volume_coordinates", 2, slice_halvings=1, coordinates=True, window=2, **SOFT),
}


def batch(views: int = 1, count: int = 3, real: int = 8, size_px: int = 32) -> Batch:
    """Noise on the first `real` of eight slices; a view that is missing, and a point that is unknown."""
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(count, 8, size_px, size_px, generator=generator)
    shown[:, real:] = 0
    target = torch.rand(count, 3, 3, generator=generator) * torch.tensor([real - 1.0, size_px - 1, size_px - 1])
    target[0, 0] = NAN
    present = torch.ones(count, views)
    present[-1, -1] = 0
    return Batch((shown,) * views, present, target)


@pytest.mark.parametrize("name", RECIPES)
def test_points_of_any_batch_in_any_precision(name, tmp_path):
    recipe = RECIPES[name]
    net = networks.for_member(recipe)
    artefact = export(net, recipe, tmp_path, PROVENANCE, seed=3)  # equal to the trace at several batch sizes
    given = batch(len(recipe.member.inputs))
    with torch.no_grad():
        points = net.eval()(*given.views, given.present)
    assert points.shape == (3, 3, 4) and ((points[..., 3] >= 0) & (points[..., 3] <= 1)).all()
    if name == "image":
        assert (points[..., 0] == 3.5).all(), "without a slice, the middle one"
    if len(given.views) == 1:
        assert (points[-1, :, 3] == 0).all(), "nothing is sure where nothing was seen"
    half = load_member(tmp_path, artefact, torch.device("cpu"), half=True)(given.views, given.present)
    assert half.dtype == torch.float32 and half.isfinite().all()
    if recipe.fitting.network.options.get("pooling") is None:  # of an untrained attention the highest cell is chance
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


@pytest.mark.parametrize("network", ["coordinates", "volume_coordinates"])
def test_attention_finds_a_bright_spot_within_a_few_steps(network):
    torch.manual_seed(1)
    slices = {"slices": True} if network == "coordinates" else {"slice_halvings": 0}
    recipe = coordinate_localiser(network, **slices, **SOFT)
    net = networks.for_member(recipe).train()
    fitting = recipe.fitting.model_copy(update={"loss_options": {"attention": 0.3}})
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    places = torch.rand(16, 1, 3) * torch.tensor([7.0, 31, 31])
    along = [
        torch.exp(-0.5 * ((torch.arange(size) - places[..., axis]) / width) ** 2)
        for axis, (size, width) in enumerate([(8, 0.7), (32, 2), (32, 2)])
    ]
    view = along[0][:, :, None, None] * along[1][:, None, :, None] * along[2][:, None, None, :]
    given = Batch((view,), torch.ones(16, 1), places.expand(-1, 3, -1).clone())
    for _ in range(40):
        optimiser.zero_grad()
        LOSSES["coordinate_smooth_l1"](net.outputs(view, given.present), given, fitting).mean.backward()
        optimiser.step()
    miss = (net(view, given.present)[..., :3] - given.target).abs().mean((0, 1))
    assert miss[1:].max() < 3 and miss[0] < 1, f"slices, rows, columns: {miss.tolist()}"


def test_of_two_likely_places_a_window_chooses_one():
    """Attention of 60 and 40 % on two cells: their mean is nowhere, the window's is the first."""
    features = torch.zeros(1, 2, 1, 16, 16)
    features[0, 0, 0, 4, 8], features[0, 1, 0, 12, 8] = 1, 1
    for window, row in ((None, 0.6 * 4.5 / 16 + 0.4 * 12.5 / 16), (2.0, 4.5 / 16)):
        head = PointHead(2, 1, 3, "soft_argmax", 0.0, window)
        nn.init.zeros_(head.weight)
        head.attention.weight.data = torch.tensor([[[50 + math.log(0.6)], [50 + math.log(0.4)]]])
        said = head(features)
        assert said.place[0, 0].tolist() == pytest.approx([0.5, row, 8.5 / 16], abs=1e-4)
        if window is not None:
            assert said.logit.sigmoid().item() == pytest.approx(0.6, abs=1e-3)


def test_volumes_keep_slices_where_asked():
    for slice_halvings, depth in ((0, 8), (1, 4), (3, 1)):
        encoder = VolumeEncoder("resnet10_narrow", 1, False, slice_halvings).eval()
        maps = encoder(torch.zeros(1, 1, 8, 64, 64))
        assert maps[-1].shape[2:] == (depth, 2, 2)
        assert [one.shape[1] for one in maps] == encoder.channels


def test_halving_mean_is_average_pooling():
    maps = torch.rand(2, 3, 5, 6, 7)
    torch.testing.assert_close(HalvingMean()(maps), functional.avg_pool3d(maps, 2))


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_inflated_weights_see_in_equal_slices_what_the_image_network_sees(name, tmp_path, monkeypatch):
    torch.manual_seed(1)
    flat = timm.create_model(name, in_chans=1)
    for module in flat.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that forgotten statistics are noticed
            module.running_mean.uniform_(-0.1, 0.1)
    weights = flat.state_dict()
    first = next(key for key, value in weights.items() if value.dim() == 4)
    save_file({**weights, first: weights[first].repeat(1, 3, 1, 1) / 3}, tmp_path / f"{name}.safetensors")
    monkeypatch.setenv(encoders.PRETRAINED_VARIABLE, str(tmp_path))
    encoder = VolumeEncoder(name, 2, True, slice_halvings=0).eval()
    for module in (*encoder.modules(), *flat.modules()):
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "circular"  # else the ends of the stack differ from its middle
    image = torch.rand(1, 1, 64, 64)
    volume = torch.stack([image.expand(1, 8, 64, 64), torch.rand(1, 8, 64, 64)], 1)
    with torch.no_grad():
        seen, expected = encoder(volume)[-1], flat.eval().forward_features(image)
    torch.testing.assert_close(seen, expected[:, :, None].expand_as(seen), rtol=1e-3, atol=1e-4)


def test_smooth_l1_by_hand():
    """A miss of 8 of 32 rows is 2 after scaling, and costs 1.5; one of 2 columns 0.5, and costs 0.125."""
    place = torch.tensor([[[0.25, 12.5 / 32, 10.5 / 32]]], requires_grad=True)
    said = Places(place, torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1, 1, 1))
    truth = torch.tensor([[[1.5, 4.0, 8.0]]])
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    options: dict[str, Any] = {"shape": (8, 32), "known": yes, "covered": yes}
    loss = coordinate_smooth_l1(said, truth, confidence=0, **options)
    assert loss.total.item() == pytest.approx(1.5 + 0.125) and loss.weight == 3
    loss = coordinate_smooth_l1(said, truth, confidence=0.1, **options)
    assert loss.mean.item() == pytest.approx((1.5 + 0.125) / 3 + 0.1 * math.log(2))
    beyond = coordinate_smooth_l1(said, truth, confidence=0.1, **{**options, "covered": no})
    assert beyond.mean.item() == pytest.approx(0.1 * math.log(2)), "a point that no slice shows has no place"
    nothing = coordinate_smooth_l1(said, truth * NAN, **{**options, "known": no})
    assert nothing.total == 0 and nothing.weight == 0
    nothing.total.backward()
    assert (place.grad == 0).all()


@pytest.mark.parametrize(("hit_px", "hit_slices", "hit"), [(3.0, 1.0, True), (1.0, 1.0, False), (3.0, 0.1, False)])
def test_confidence_learns_whether_the_place_is_right(hit_px, hit_slices, hit):
    place = torch.tensor([[[2.0 / 8, 12.5 / 32, 10.5 / 32]]], requires_grad=True)
    logit = torch.zeros(1, 1, requires_grad=True)
    truth = torch.tensor([[[1.0, 12.0, 8.0]]])  # half a slice and two columns away
    yes = torch.tensor([[True]])
    options: dict[str, Any] = {"shape": (8, 32), "known": yes, "hit_px": hit_px, "hit_slices": hit_slices}
    said = Places(place, logit, torch.zeros(1, 1, 1, 1))
    coordinate_smooth_l1(said, truth, covered=yes, **options).total.backward()
    assert (logit.grad.item() < 0) == hit, "surer where it hit"
    logit.grad = None
    coordinate_smooth_l1(said, truth, covered=~yes, **options).total.backward()
    assert logit.grad.item() > 0, "and never of what no slice shows"


def test_landmarks_between_stacks_are_not_covered():
    given = batch()
    net = networks.for_member(RECIPES["volume"])
    fitting = RECIPES["volume"].fitting.model_copy(update={"loss_options": {"confidence": 0.0}})
    said = net.outputs(*given.views, given.present)
    near, far = torch.zeros(3, 8, 3), torch.full((3, 8, 3), 30.0)
    totals = [
        LOSSES["coordinate_smooth_l1"](said, replace(given, distance_mm=distance), fitting).total.item()
        for distance in (near, far, near * NAN)
    ]
    assert totals[0] > 0 and totals[1] == 0 and totals[2] == 0


def test_attention_is_drawn_to_the_point():
    truth = torch.tensor([[[3.5, 7.5, 15.5]]])  # the middle of slices, a quarter and a half of 32 pixels
    yes = torch.tensor([[True]])
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    said = Places(torch.rand(1, 1, 3), torch.zeros(1, 1), logits.flatten(2).log_softmax(2).view_as(logits))
    coordinate_smooth_l1(said, truth, shape=(8, 32), known=yes, covered=yes, attention=1).total.backward()
    pulled = -logits.grad[0, 0]
    assert {tuple(cell) for cell in (pulled > 0.9 * pulled.max()).nonzero().tolist()} == {
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    }


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (coordinate_localiser("coordinates", pooling="max"), "'average' or 'soft_argmax', not 'max'"),
        (coordinate_localiser("coordinates", encoder="tu-resnet10t"), "timm has no model 'tu-resnet10t'"),
        (coordinate_localiser("volume_coordinates"), "8 slices cannot be halved 5 times"),
        (coordinate_localiser("volume_coordinates", encoder="resnet50", slice_halvings=1), "there are: densenet121, "),
        (coordinate_localiser("volume_coordinates", slice_halvings=1, pretrained=True), "no model 'resnet10_narrow'"),
    ],
)
def test_what_cannot_be_built_is_said(recipe, message):
    with pytest.raises(NetworkError, match=message):
        networks.for_member(recipe)


PUBLISHED = [
    *[("coordinates", {"encoder": name, "size_px": 64}) for name in IMAGE_ENCODERS],
    *[("coordinates", {"encoder": name, "size_px": 64, **SOFT, "stride": 8}) for name in IMAGE_ENCODERS],
    *[("volume_coordinates", {"encoder": name, "slice_halvings": 3}) for name in ("densenet161", "resnet152")],
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "options"), PUBLISHED)
def test_published_encoders_export(network, options, tmp_path):
    recipe = coordinate_localiser(network, **options)
    artefact = export(networks.for_member(recipe), recipe, tmp_path, PROVENANCE, seed=1)
    half = load_member(tmp_path, artefact, torch.device("cpu"), half=True)
    given = batch(size_px=recipe.member.inputs[0].size_px)
    assert half(given.views, given.present).isfinite().all()
