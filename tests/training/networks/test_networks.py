"""Every architecture: shapes, missing views, batch sizes, gradients; and the parts that they share."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kernels.lumbar.networks.weights import golden_inputs
from tests.support.networks.tiny_members import grader, localiser
from training import networks
from training.networks import NetworkError
from training.networks.parts import encoders, torchvision_shim
from training.networks.parts.heatmaps import points_from_maps
from training.recipe_schema.load import RECIPES, load_named
from training.recipe_schema.schema import MemberRecipe

SMALLEST: dict[str, list[MemberRecipe]] = {
    "deeplab_heatmap": [
        localiser(options={"encoder": "tu-test_resnet", "decoder_channels": 16}),
        localiser(options={"encoder": "tu-test_convnext", "decoder_channels": 16, "upsample": False}),
        localiser(),
        localiser(options={"encoder": "tu-test_convnext", "decoder": "unet", "decoder_channels": [8, 8], "depth": 4}),
        localiser(
            options={
                "encoder": "tu-mobilenetv3_small_050",
                "decoder": "unet",
                "decoder_channels": [8],
                "upsample": False,
            }
        ),
        localiser(64, {"encoder": "tu-test_resnet", "decoder": "fpn", "decoder_channels": 64}),
    ],
    "split_gru": [grader(), grader(options={"share": [0, 0]}), grader(backbone="test_convnext")],
    "global_gru": [grader("global_gru"), grader("global_gru", "test_vit2", 32)],
}
MEMBERS = [
    pytest.param(recipe, id=f"{name}-{number}") for name, all_ in SMALLEST.items() for number, recipe in enumerate(all_)
]


def inputs_of(recipe: MemberRecipe, batch: int) -> list[torch.Tensor]:
    return golden_inputs(recipe.member, 5, batch)


def test_every_architecture_is_tested_here_or_in_a_recipe():
    recipes = [load_named(path.stem, "smoke") for path in RECIPES.glob("*.yaml")]
    used = {one.fitting.network.name for recipe in recipes for one in recipe.members()}
    assert set(networks.names()) == set(SMALLEST) | used


@pytest.mark.parametrize("recipe", MEMBERS)
def test_shapes_and_missing_views(recipe):
    net = networks.for_member(recipe).eval()
    width = 4 if recipe.member.role == "localiser" else 3
    with torch.no_grad():
        for batch in (1, 3):
            answer = net(*inputs_of(recipe, batch))
            assert answer.shape == (batch, len(recipe.member.targets), width)
            assert answer.isfinite().all()
        *views, present = inputs_of(recipe, 2)
        present[1, -1] = 0
        answer = net(*views, present)
        views[-1][1] = 7.0
        assert torch.equal(answer, net(*views, present)), "what a missing view holds must not matter"
    if recipe.member.role == "localiser":
        assert (answer[1, :, 3] == 0).all()
        assert ((answer[..., 3] >= 0) & (answer[..., 3] <= 1)).all()
        assert (answer[..., 0] == 1).all(), "the middle of three slices"


@pytest.mark.parametrize("recipe", MEMBERS)
def test_every_parameter_learns(recipe):
    net = networks.for_member(recipe).train()
    *views, present = inputs_of(recipe, 3)
    present[0, 0] = 0
    present[1, -1] = 0
    output = net.outputs(*views, present) if recipe.member.role == "localiser" else net(*views, present)
    (output * torch.randn_like(output)).sum().backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert not [name for name in without if "missing" not in name]


def test_answers_do_not_depend_on_the_other_samples():
    recipe = grader()
    net = networks.for_member(recipe).eval()
    views = inputs_of(recipe, 4)
    with torch.no_grad():
        torch.testing.assert_close(net(*views)[2:3], net(*[tensor[2:3] for tensor in views]))


def test_global_net_shares_encoders_between_sides():
    net = networks.for_member(grader("global_gru"))
    assert len(net.sequences) == 3
    *views, present = inputs_of(grader("global_gru"), 2)
    first = net.sequences[net.share[1]]
    assert first is net.sequences[net.share[2]]
    assert net.eval()(*views, present).shape == (2, 5, 3)


def test_view_dropout_hides_views_in_training_only_and_never_all():
    net = networks.for_member(grader(options={"view_dropout": 0.5}))
    hidden = net._hide_some(torch.ones(1000, 2))
    assert (hidden.sum(1) >= 1).all() and 0.2 < 1 - hidden[:, 0].mean() < 0.3
    only_first = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    assert torch.equal(net._hide_some(only_first), only_first)
    inputs = inputs_of(grader(), 2)
    assert torch.equal(net.eval()(*inputs), net(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("map_px", [64, 16])
def test_points_are_sub_pixel(dtype, map_px):
    places = torch.tensor([[[30.0, 21.3], [11.6, 44.5], [1.2, 60.9]]])
    axis = torch.arange(map_px)
    scale = map_px / 64
    centres = (places + 0.5) * scale - 0.5
    profiles = torch.exp(-0.5 * ((axis - centres[..., None]) / (6 * scale)) ** 2)
    maps = (profiles[:, :, 0, :, None] * profiles[:, :, 1, None, :]).to(dtype)
    points = points_from_maps(maps, torch.ones(1, 1, dtype=dtype), size_px=64, slice_index=2, window_px=8)
    assert points.dtype == torch.float32
    error = (points[0, :, 1:3] - places[0]).abs()
    assert error[:2].max() < (0.1 if map_px == 64 else 0.4)
    assert error[2].max() < 4, "near the border the spot is cut off"
    assert points[0, 0, 3] > 0.95


def test_points_of_flat_or_negative_maps_are_finite_and_distrusted():
    maps = torch.stack([torch.zeros(8, 8), torch.full((8, 8), -1.0)])[None]
    maps[0, 1, 3, 5] = -0.5
    points = points_from_maps(maps, torch.ones(1, 1), size_px=8, slice_index=0, window_px=2)
    assert points.isfinite().all() and (points[..., 3] == 0).all()
    torch.testing.assert_close(points[0, 1, 1:3], torch.tensor([3.0, 5.0]), atol=1e-3, rtol=0)


def test_a_second_peak_far_away_does_not_pull_the_point():
    maps = torch.zeros(1, 1, 64, 64)
    maps[0, 0, 10, 10], maps[0, 0, 50, 50] = 1.0, 0.9
    points = points_from_maps(maps, torch.ones(1, 1), size_px=64, slice_index=0, window_px=4)
    torch.testing.assert_close(points[0, 0, 1:3], torch.tensor([10.0, 10.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (grader(options={"hiden": 3}), "no option hiden; it has: .*hidden"),
        (grader(backbone="resnet18x"), "similar names: .*resnet18"),
        (grader(options={"share": [0, 2]}), "share must number"),
        (localiser(options={"encoder": "tu-test_resnet", "decoder": "pan"}), "'deeplab', 'unet' or 'fpn'"),
        (localiser(options={"encoder": "tu-test_resnet", "decoder": "unet", "decoder_channels": 5}), "1 to 5 numbers"),
        (localiser(options={"encoder": "tu-test_resnet", "decoder_channels": [5]}), "one number"),
        (localiser(options={"encoder": "tu-test_resnet", "decoder": "fpn", "decoder_channels": 96}), "multiple of 64"),
        (
            localiser(options={"encoder": "tu-test_resnet", "decoder": "fpn", "decoder_channels": 64}),
            "at least 64 px",
        ),
    ],
)
def test_what_cannot_be_built_is_said(recipe, message):
    with pytest.raises(NetworkError, match=message):
        networks.for_member(recipe)


def test_unknown_and_double_names(tmp_path):
    with pytest.raises(NetworkError, match="no architecture 'gru'; there are: condition_sequence, coordinates, "):
        networks.build("gru")
    (tmp_path / "more").mkdir()
    for path in (tmp_path / "one.py", tmp_path / "more" / "one.py"):
        path.write_text("class Net:\n    pass\n")
    (tmp_path / "shared.py").write_text("x = 1\n")
    with pytest.raises(NetworkError, match="two architectures are named 'one': more.one and one"):
        networks._modules(tmp_path)
    (tmp_path / "more" / "one.py").unlink()
    assert networks._modules(tmp_path) == {"one": "one"}


def test_fixed_size_backbones_are_built_for_the_size():
    assert encoders.slice_encoder("test_vit", size_px=64, pretrained=False)(torch.zeros(1, 1, 64, 64)).shape == (1, 64)


def test_shim_is_needed_only_beside_a_foreign_build(monkeypatch, tmp_path):
    assert torchvision_shim.apply() == torchvision_shim.apply()
    build = torchvision_shim.torchvision_build()
    assert build is not None and build[0].isdigit()
    code = "from training.networks.parts import torchvision_shim as shim\n"
    code += "shim.apply(); import torchvision, timm; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size_px", [64, 224])
@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "convnext_nano"])
def test_published_backbones(backbone, size_px):
    recipe = grader(backbone=backbone, size_px=size_px)
    net = networks.for_member(recipe).eval()
    with torch.no_grad():
        assert net(*inputs_of(recipe, 2)).shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (localiser(options={"encoder": "tu-resnet10x"}), "timm has no model 'resnet10x'; similar names: resnet10t"),
        (localiser(options={"encoder": "resnet43"}), "segmentation_models_pytorch has no encoder 'resnet43'"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_is_decoded(recipe, sentence):
    with pytest.raises(NetworkError, match=sentence):
        networks.check(recipe)


def test_losses_that_do_not_go_with_a_network_are_refused():
    recipe = localiser()
    networks.check(recipe)
    changed = recipe.model_copy(update={"fitting": recipe.fitting.model_copy(update={"loss": "coordinate_smooth_l1"})})
    with pytest.raises(NetworkError, match="deeplab_heatmap is fitted with heatmap_mse, not 'coordinate_smooth_l1'"):
        networks.check(changed)
    networks.check(grader())


def test_blank_slices_of_a_crop_do_not_matter():
    """A variable number of slices a crop: the answer is that of a network of as many slices, at their places."""
    (recipe,) = [one for one in load_named("slice_transformer", "smoke").members() if "_spinal_tiny" in one.member.name]
    torch.manual_seed(2)
    net = networks.for_member(recipe, pretrained=False).eval()
    few = recipe.member.model_copy(
        update={
            "inputs": tuple(
                view.model_copy(update={"slices": view.slices.model_copy(update={"count": 3})})
                for view in recipe.member.inputs
            )
        }
    )
    shorter = networks.for_member(recipe.model_copy(update={"member": few}), pretrained=False).eval()
    shorter.load_state_dict(net.state_dict())
    shorter.slice_place = net.slice_place[1:4]
    *views, present = inputs_of(recipe, 2)
    for view in views:
        view[:, [0, 4]] = 0
    images = []
    net.encoder.register_forward_pre_hook(lambda module, given: images.append(len(given[0])))
    traced = torch.jit.trace(net, tuple(inputs_of(recipe, 3)))
    with torch.no_grad():
        expected = shorter(*[view[:, 1:4] for view in views], present)
        torch.testing.assert_close(net(*views, present), expected)
        assert images[-1] == 2 * 5 * 3, "blank slices are not encoded"
        torch.testing.assert_close(traced(*views, present), expected)
        views[0][0] = 0
        present[0, 0] = 0
        assert traced(*views, present).isfinite().all()
        torch.testing.assert_close(traced(*views, present), net(*views, present))
