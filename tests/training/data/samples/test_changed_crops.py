"""Changed crops: one sampling, real pixels at the border, and planes that say where each pixel is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.views import cut, mirror_pixels
from kernels.lumbar.labels import Unit
from kernels.lumbar.specs import SliceChoice, ViewRequest
from training.data.samples.changed_crops import Change, random_affine
from training.recipe_schema.fitting import Augmentation

POINT = "left_subarticular_stenosis"
NO_SHIFT = np.zeros(2)


def turned(degrees: float, scale: float = 1.0) -> np.ndarray:
    angle = np.radians(degrees)
    return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def study_of(pixels: np.ndarray, spacing: tuple[float, float] = (0.5, 0.5), shear_mm: float = 0.0) -> Study:
    """One axial stack around zero, 4 mm apart; `shear_mm`: how far each slice lies to the left of the one above."""
    slices, height, width = pixels.shape
    steps = np.array([spacing[1], 0, 0]), np.array([0, spacing[0], 0])
    corner = -(width - 1) / 2 * steps[0] - (height - 1) / 2 * steps[1]
    places = np.arange(slices) - (slices - 1) / 2
    planes = tuple(Plane(corner + [shear_mm * place, 0, -4.0 * place], *steps) for place in places)
    return Study("1", (Stack("1", "axial_t2", pixels, planes, tuple(range(slices))),), [])


def asked(count: int = 5, size_px: int = 32, size_mm: float = 16.0, mirror_right: bool = False) -> ViewRequest:
    slices = SliceChoice(by="landmark", count=count)
    return ViewRequest(
        series="axial_t2", centre=(POINT,), slices=slices, size_px=size_px, size_mm=size_mm, mirror_right=mirror_right
    )


def seen(study: Study, request: ViewRequest, point_mm: np.ndarray, side: str = "left"):
    row = f"{side}_subarticular_stenosis_l4_l5"
    view = cut(
        study, request.model_copy(update={"centre": ("subarticular_stenosis",)}), Unit("l4_l5", side), {row: point_mm}
    )
    assert view is not None
    return view


def textures(shape: tuple[int, int, int] = (9, 96, 80)) -> np.ndarray:
    """Smooth noise, so that interpolation at slightly other places gives slightly other values."""
    noise = np.random.default_rng(0).normal(size=shape)
    for axis in (1, 2):
        noise = sum(np.roll(noise, step, axis) for step in range(-3, 4))
    return (128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("shear_mm", [0.0, 0.003, 0.7])
def test_a_change_that_changes_nothing_gives_the_kernels_crop(count, shear_mm):
    """But for rounding: the kernel's coordinates are multiples of 1/32 pixel, and slices may share one."""
    view = seen(study_of(textures(), shear_mm=shear_mm), asked(count), np.array([3.1, -2.2, 1.0]))
    same = Change(np.eye(2), NO_SHIFT).of(view)
    assert np.abs(same.pixels.astype(int) - view.pixels).max() <= 4
    for one, other in zip(same.planes, view.planes, strict=True):
        assert np.allclose(one.origin_mm, other.origin_mm) and np.allclose(one.column_mm, other.column_mm)


@given(
    degrees=st.floats(-180, 180),
    scale=st.floats(0.8, 1.2),
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    slices=st.integers(-4, 4),
    side=st.sampled_from(["left", "right"]),
)
def test_each_pixel_is_what_lies_at_the_place_that_its_plane_names(degrees, scale, shift, slices, side):
    """The image's grey is its place: x in one stack, y in another."""
    x = np.broadcast_to((np.arange(200) + 20)[None, None, :], (9, 200, 200)).astype(np.uint8)
    for axis, pixels in ((0, x), (1, x.transpose(0, 2, 1))):
        view = seen(study_of(np.ascontiguousarray(pixels)), asked(3, 24, 12.0, mirror_right=True), np.zeros(3), side)
        changed = Change(turned(degrees, scale), np.array(shift), slices).of(view)
        rows, columns = np.mgrid[0:24, 0:24]
        for image, plane in zip(changed.pixels, changed.planes, strict=True):
            place_mm = plane.to_patient(rows, columns)[..., axis]
            assert np.abs(place_mm / 0.5 + 199 / 2 + 20 - image).max() < 1.1


def test_random_changes_are_of_the_size_asked_for():
    none = random_affine(Augmentation(), 4, torch.Generator().manual_seed(0))
    assert torch.equal(none, torch.eye(2).expand(4, 2, 2))
    settings = Augmentation(rotate_deg=15, scale=0.1)
    matrix = random_affine(settings, 2000, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(matrix).sqrt()
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert scale.min() >= 0.9 and scale.max() <= 1.1 and scale.std() == pytest.approx(0.2 / 12**0.5, rel=0.1)
    assert angle.abs().max() <= 15.001 and angle.std() == pytest.approx(30 / 12**0.5, rel=0.1)
    sheared = random_affine(Augmentation(shear_deg=10), 2000, torch.Generator().manual_seed(0))
    assert torch.linalg.det(sheared).sub(1).abs().max() < 1e-5
    assert torch.rad2deg(torch.atan(sheared[:, 0, 1])).abs().max() == pytest.approx(10, abs=0.1)


def test_windows_move_along_the_stack_and_repeat_its_ends():
    pixels = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None] * 20, (9, 60, 60))
    view = seen(study_of(np.ascontiguousarray(pixels)), asked(3), np.zeros(3))
    for slices, expected in ((-6, [0, 0, 0]), (-4, [0, 0, 1]), (0, [3, 4, 5]), (2, [5, 6, 7]), (5, [8, 8, 8])):
        found = Change(np.eye(2), NO_SHIFT, slices).of(view)
        assert (found.pixels[:, 16, 16] // 20).tolist() == expected
        assert [round(4 - plane.origin_mm[2] / 4) for plane in found.planes] == expected


@given(
    z_mm=st.floats(-15.9, 15.9),
    off_mm=st.floats(-12, 12),
    shear_mm=st.sampled_from([0.0, 1.5]),
    count=st.sampled_from([1, 3, 5]),
)
def test_a_landmark_that_is_off_chooses_the_slices_that_the_kernel_would_choose_there(z_mm, off_mm, shear_mm, count):
    pixels = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None] * 20, (9, 60, 60))
    study, request = study_of(np.ascontiguousarray(pixels), shear_mm=shear_mm), asked(count)
    at = np.array([0, 0, z_mm])
    offset_mm = np.array([0.0, 0, off_mm])
    place = (z_mm + off_mm) / 4
    assume(abs(place - round(place)) < 0.49 and abs(z_mm / 4 - round(z_mm / 4)) < 0.49)  # no ties
    found = Change(np.eye(2), NO_SHIFT, offset_mm=offset_mm).of(seen(study, request, at))
    assert found.pixels[:, 16, 16].tolist() == seen(study, request, at + offset_mm).pixels[:, 16, 16].tolist()


def test_an_error_of_a_right_side_is_the_mirror_image_of_that_of_a_left_one():
    """Sagittal slices run to the left: 8 mm to the left are two slices on, on the right side two back."""
    pixels = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None] * 20, (9, 60, 60))
    steps = np.array([0, 0.5, 0]), np.array([0, 0, -0.5])
    planes = tuple(Plane(np.array([4.0 * place - 16, -14.75, 14.75]), *steps) for place in range(9))
    study = Study("1", (Stack("1", "sagittal_t1", np.ascontiguousarray(pixels), planes, tuple(range(9))),), [])
    request = ViewRequest(
        series="sagittal_t1",
        centre=("neural_foraminal_narrowing",),
        slices=SliceChoice(by="landmark", count=1),
        size_px=32,
        size_mm=16,
    )
    view = cut(study, request, Unit("l4_l5", "left"), {"left_neural_foraminal_narrowing_l4_l5": np.zeros(3)})
    assert view is not None
    change = Change(np.eye(2), NO_SHIFT, offset_mm=np.array([8.0, 0, 0]))
    assert [change.of(view, right).pixels[0, 16, 16] // 20 for right in (False, True)] == [6, 2]


def test_the_largest_published_changes_leave_no_black_corners():
    """The 2nd place's: 30 degrees and a fifth larger, of a crop that is well inside of its image."""
    view = seen(study_of(np.full((3, 96, 96), 200, np.uint8)), asked(3), np.zeros(3))
    matrices = random_affine(Augmentation(rotate_deg=30, scale=0.2), 200, torch.Generator().manual_seed(0)).double()
    assert all((Change(matrix, NO_SHIFT).of(view).pixels == 200).all() for matrix in matrices.numpy())


def test_a_turned_crop_shows_the_real_pixels_beside_it():
    pixels = np.full((3, 96, 96), 200, np.uint8)
    view = seen(study_of(pixels), asked(3), np.zeros(3))
    assert (Change(turned(45, 1.2), np.array([3.0, -3.0])).of(view).pixels == 200).all()


def test_outside_of_the_image_is_black():
    view = seen(study_of(np.full((3, 40, 40), 200, np.uint8)), asked(3), np.array([9.0, 9.0, 0]))
    assert not Change(np.eye(2), np.array([200.0, 0])).of(view).pixels.any()
    half = Change(np.eye(2), NO_SHIFT).of(view).pixels
    assert half[:, :14, :14].all() and not half[:, 22:, 22:].any()


@pytest.mark.parametrize("shrink", [2, 3])
def test_a_shrunk_image_is_averaged(shrink):
    pixels = (np.indices((5, 120, 120)).sum(0) % 2 * 200).astype(np.uint8)
    view = seen(study_of(pixels), asked(5, 16, 8.0 * shrink), np.zeros(3))
    found = Change(turned(5), NO_SHIFT).of(view).pixels
    assert np.abs(found.astype(int) - 100).max() < 45, "plain sampling gives 0 and 200"


def test_a_mirrored_study_gives_the_mirrored_change():
    """A turn to the left of one is a turn to the right of the other."""
    pixels = textures((5, 96, 96))
    study, other = study_of(pixels), study_of(mirror_pixels(pixels, "axial_t2"))
    request = asked(3, mirror_right=True)
    right = seen(study, request, np.array([-4.0, 1.0, 0]), "right")
    left = seen(other, request, np.array([4.0, 1.0, 0]), "left")
    one = Change(turned(20), np.array([1.0, 2.0])).of(right).pixels.astype(int)
    two = Change(turned(-20), np.array([-1.0, 2.0])).of(left).pixels.astype(int)
    assert np.abs(one - two).max() <= 4
