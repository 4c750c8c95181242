"""The slice localiser of the 1st place: a 3D ConvNeXt, which slice, and about where."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from training import networks
from training.fitting.losses.slice_losses import slice_and_place
from training.networks.parts.volume_convnext import CONVNEXTS, VolumeConvNeXt
from training.networks.slice_volume import SlicesAndPlaces


def small(**options):
    given = {"encoder": "convnext_narrow", "pretrained": False, "coordinates": True} | options
    torch.manual_seed(2)
    return networks.build("slice_volume", inputs=(8,), size_px=32, targets=2, **given).eval()


@pytest.mark.parametrize("pooling", ["average", "soft_argmax"])
def test_no_blank_slice_is_chosen_and_the_confidence_is_that_of_its_neighbourhood(pooling):
    net = small(pooling=pooling, width=8)
    view = torch.rand(3, 8, 32, 32)
    view[:, 5:] = 0
    present = torch.tensor([[1.0], [1.0], [0.0]])
    with torch.no_grad():
        outputs = net.outputs(view, present)
        points = net.points(outputs, present)
    assert outputs.slices.shape == (3, 8, 2) and outputs.place.shape == (3, 2, 3) and points.shape == (3, 2, 4)
    share = outputs.slices.softmax(1)
    assert share[:2, 5:].max() == 0 and (points[:2, :, 0] <= 4).all() and (points[2, :, 3] == 0).all()
    index = int(points[0, 0, 0])
    assert points[0, 0, 3] == pytest.approx(float(share[0, max(index - 1, 0) : index + 2, 0].sum()), abs=1e-3)


def test_the_loss_by_hand():
    slices = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])  # (1, 2, 2)
    place = torch.tensor([[[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]])
    points = torch.tensor([[[1.0, 3.5, 1.5], [0.0, 0.0, 0.0]]])
    distance_mm = torch.tensor([[[-4.0, 40.0], [0.5, 44.0]]])  # the second landmark is shown by no slice
    outputs = SlicesAndPlaces(slices, place)
    total, weight = slice_and_place(outputs, points, shape=(2, 8), distance_mm=distance_mm, place=2.0)
    sliced = math.log(1 + math.e) - 1
    assert weight == 1 and total == pytest.approx(sliced + 2 * (0.25 + 0 + 0.25), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in CONVNEXTS if name != "convnext_narrow"])
def test_published_weights_fit_once_they_are_inflated(name):
    with torch.device("meta"):
        ours = VolumeConvNeXt(name, 1).state_dict()
        theirs = timm.create_model(name, pretrained=False, in_chans=1, num_classes=0).state_dict()
    assert set(theirs) - set(ours) == {"head.norm.weight", "head.norm.bias"} and not set(ours) - set(theirs)
    flat = {
        key: tuple(value.shape[:2] + value.shape[3:]) if value.dim() == 5 else tuple(value.shape)
        for key, value in ours.items()
    }
    assert flat == {key: tuple(theirs[key].shape) for key in ours}


def test_a_stack_of_equal_slices_has_the_features_of_the_flat_network():
    """Away from its ends, which 18 blocks of one slice to either side do not reach from the middle of 37."""
    flat = timm.create_model("convnext_tiny", pretrained=False, in_chans=1, num_classes=0).eval()
    for name, value in flat.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(value, 0.2, 0.5)
    deep = VolumeConvNeXt("convnext_tiny", 1).eval()
    own = flat.state_dict()
    deep.load_state_dict(
        {
            key: own[key][:, :, None].expand_as(value) / value.shape[2] if value.dim() == 5 else own[key]
            for key, value in deep.state_dict().items()
        }
    )
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        expected = flat.stages(flat.stem(image))
        maps = deep(image[:, :, None].expand(1, 1, 37, 32, 32))
    assert [map_.shape[2:] for map_ in maps] == [(37, size, size) for size in (8, 4, 2, 1)]
    torch.testing.assert_close(maps[-1][:, :, 18], expected, atol=1e-4, rtol=1e-4)
