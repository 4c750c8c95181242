"""Views: the right slices, square millimetres, exact planes, and the same bytes however they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom.geometry import Plane, lift_points, project_points
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.views import cut, mirror_pixels
from kernels.lumbar.labels import UNITS, Unit, mirrored
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support.dicom.dicom_writer import Grid, rotation, texture, upright_grid, write_series

POINT = "spinal_canal_stenosis_l3_l4"
UNIT = Unit("l3_l4")
MIRROR = np.diag([-1.0, 1, 1])


def request(series="sagittal_t2", by="middle", count=5, centre=True, size_mm=50.0, size_px=64, **rest):
    choice = {name: rest.pop(name) for name in ("near", "offset_mm", "max_distance_mm") if name in rest}
    names = ("spinal_canal_stenosis",) if centre is True else tuple(centre or ())
    slices = SliceChoice(by=by, count=count, **choice)
    return ViewRequest(series=series, centre=names, slices=slices, size_mm=size_mm, size_px=size_px, **rest)


def stack_of(grid: Grid, volume: np.ndarray, kind: str, series_id: str = "7") -> Stack:
    """A stack of an upright or slightly turned grid, straight from memory."""
    column, row = grid.column * grid.spacing[1], grid.row * grid.spacing[0]
    planes = tuple(Plane(grid.origin + index * grid.step, column, row) for index in range(len(volume)))
    return Stack(series_id, kind, volume, planes, tuple(range(1, len(volume) + 1)))


def study_of(*stacks: Stack) -> Study:
    return Study("1", tuple(stacks), [])


def smooth(shape, seed=0, grains=6):
    """uint8 noise that linear sampling can follow."""
    coarse = torch.rand((1, 1, shape[0], grains, grains), generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    return (fine[0, 0].numpy() * 255).astype(np.uint8)


def sagittal(shape=(11, 120, 100), spacing=(0.8, 0.7), step=4.0, turn=(0, 0, 0), seed=0, **rest):
    return stack_of(
        upright_grid("sagittal", shape, spacing, step, turn_deg=turn), smooth(shape, seed), "sagittal_t2", **rest
    )


def axial(shape=(11, 100, 120), spacing=(0.7, 0.8), centre=(0, 0, 0), turn=(0, 0, 0), seed=0, **rest):
    grid = upright_grid("axial", shape, spacing, 4.0, centre, turn)
    return stack_of(grid, smooth(shape, seed), "axial_t2", **rest)


# --- sampling


def reference(image, rows, columns):
    """Linear interpolation in float64, zeros outside of the image."""
    padded = np.pad(image.astype(float), 1)
    rows, columns = np.clip(rows + 1, 0, image.shape[0] + 0.999), np.clip(columns + 1, 0, image.shape[1] + 0.999)
    i, j = rows.astype(int), columns.astype(int)
    u, v = (rows - i)[:, None], (columns - j)[None]
    corner = lambda a, b: padded[np.ix_(i + a, j + b)]  # noqa: E731
    return (corner(0, 0) * (1 - v) + corner(0, 1) * v) * (1 - u) + (corner(1, 0) * (1 - v) + corner(1, 1) * v) * u


@given(st.tuples(*[st.floats(-25, 25)] * 3), st.floats(30, 65), st.tuples(*[st.floats(-20, 20)] * 3))
@settings(max_examples=40, deadline=None)
def test_pixels_are_what_lies_at_the_places_that_the_planes_name(point, size_mm, turn):
    stack = sagittal(turn=turn)
    view = cut(study_of(stack), request(size_mm=size_mm), UNIT, {POINT: np.array(point)})
    middle = stack.planes[5]
    rows, _, distance = middle.to_pixel(view.planes[2].to_patient(np.arange(64), 0.0))
    _, columns, _ = middle.to_pixel(view.planes[2].to_patient(0.0, np.arange(64)))
    assert np.abs(distance).max() < 1e-6
    inside = np.ix_((rows > 0) & (rows < 119), (columns > 0) & (columns < 99))
    # Places are rounded to 1/32 pixel, at which the image changes by less than a grey level.
    assert np.abs(view.pixels[2] - reference(stack.pixels[5], rows, columns))[inside].max(initial=0) <= 1.5
    # Square millimetres whatever the pixels' shape, and the point's foot in the middle.
    assert view.planes[2].spacing_mm == pytest.approx((size_mm / 64,) * 2)
    assert project_points(view.planes, np.array([point]))[0, 1:] == pytest.approx([31.5, 31.5], abs=1e-5)


@given(st.tuples(*[st.floats(-45, 45)] * 3), st.sampled_from([(75, 192, 50, 128), (60, 96, 40, 64), (45, 60, 30, 40)]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("by", ["middle", "landmark"])
@pytest.mark.parametrize("spacing", [(0.8, 0.7), (0.26, 0.31)])
def test_a_wider_view_holds_the_bytes_of_a_narrower_one(by, spacing, point, sizes):
    study = study_of(sagittal(spacing=spacing))
    wide_mm, wide_px, narrow_mm, narrow_px = sizes
    marks = {POINT: np.array(point) * [0.4, 1, 1]}
    near = {"near": ("spinal_canal_stenosis",)} if by == "landmark" else {}
    wide = cut(study, request(by=by, count=7, size_mm=wide_mm, size_px=wide_px, **near), UNIT, marks)
    narrow = cut(study, request(by=by, count=5, size_mm=narrow_mm, size_px=narrow_px, **near), UNIT, marks)
    assert (wide is None) == (narrow is None)
    if wide is not None:
        border = (wide_px - narrow_px) // 2
        assert np.array_equal(wide.pixels[1:-1, border:-border, border:-border], narrow.pixels)


def test_the_same_view_twice_is_the_same_bytes():
    study, marks = study_of(sagittal()), {POINT: np.array([1.0, 2, 3])}
    first, second = (cut(study, request(), UNIT, marks) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)


def test_outside_of_the_image_is_black():
    stack = stack_of(upright_grid("sagittal", (5, 20, 20)), np.full((5, 20, 20), 200, np.uint8), "sagittal_t2")
    marks = {POINT: np.array([0.0, -9.5, 9.5])}  # the centre of the first pixel
    view = cut(study_of(stack), request(size_mm=32, size_px=32, count=1), UNIT, marks)
    assert np.all(view.pixels[0, 16:, 16:] == 200)
    assert not view.pixels[0, :15].any() and not view.pixels[0, :, :15].any()
    far = cut(study_of(stack), request(size_mm=32, size_px=32), UNIT, {POINT: np.array([0.0, 1e7, 0])})
    assert not far.pixels.any()


@pytest.mark.parametrize("size_px", [24, 40])
def test_shrinking_averages_what_linear_sampling_would_miss(size_px):
    """Stripes one pixel wide become grey, not moiré."""
    stripes = np.zeros((3, 160, 160), np.uint8)
    stripes[:, :, ::2] = 200
    stack = stack_of(upright_grid("sagittal", (3, 160, 160)), stripes, "sagittal_t2")
    whole = cut(study_of(stack), request(centre=None, size_mm=None, size_px=size_px), UNIT, {})
    inner = whole.pixels[:, 2:-2, 2:-2].astype(int)
    assert np.abs(inner - 100).max() <= 12
    assert whole.planes[0].spacing_mm == pytest.approx((160 / size_px,) * 2)


def test_a_shrunk_ball_is_where_the_planes_say(tmp_path):
    grid = upright_grid("sagittal", (3, 300, 260), (0.5, 0.6))
    ball = np.array([0.0, 20.3, -31.7])
    volume = (250 * np.exp(-((grid.points() - ball) ** 2).sum(-1) / 50)).astype(np.uint8)
    view = cut(study_of(stack_of(grid, volume, "sagittal_t2")), request(centre=None, size_mm=None), UNIT, {})
    weights = view.pixels[2].astype(float)
    found = [(weights.sum(axis) * np.arange(64)).sum() / weights.sum() for axis in (1, 0)]
    assert np.abs(lift_points(view.planes, np.array([[2, *found]]))[0] - ball)[1:].max() < 0.05


@pytest.mark.parametrize("shape", [(3, 100, 60), (3, 60, 100), (3, 61, 61)])
def test_a_whole_image_is_its_longer_side_wide_and_centred(shape):
    stack = axial(shape, (0.9, 0.9))
    view = cut(study_of(stack), request("axial_t2", centre=None, size_mm=None, size_px=80), UNIT, {})
    assert view.planes[0].spacing_mm == pytest.approx((max(shape) * 0.9 / 80,) * 2)
    assert view.planes[2].to_patient(39.5, 39.5) == pytest.approx(stack.planes[1].to_patient(*stack.centre))


# --- which slices


def indices(view, stack):
    """Which slices of a stack a view holds."""
    return [int(np.argmin([abs(plane.to_pixel(p.origin_mm)[2]) for plane in stack.planes])) for p in view.planes]


@pytest.mark.parametrize(
    ("slices", "count", "expected"),
    [(11, 5, [3, 4, 5, 6, 7]), (11, 1, [5]), (10, 4, [3, 4, 5, 6]), (3, 5, [0, 0, 1, 2, 2]), (1, 3, [0, 0, 0])],
)
def test_the_middle_and_its_neighbours_with_the_edges_repeated(slices, count, expected):
    stack = sagittal((slices, 60, 50))
    view = cut(study_of(stack), request(count=count), UNIT, {POINT: np.zeros(3)})
    assert indices(view, stack) == expected and len(view.pixels) == count
    assert np.array_equal(
        view.pixels[0], cut(study_of(stack), request(count=count), UNIT, {POINT: np.zeros(3)}).pixels[0]
    )


def test_of_two_middle_slices_the_one_nearer_to_the_midline_is_the_middle():
    for shift, expected in ((-1.0, [4, 5, 6]), (1.0, [3, 4, 5])):
        grid = upright_grid("sagittal", (10, 60, 50), centre=(shift, 0, 0))
        stack = stack_of(grid, smooth((10, 60, 50)), "sagittal_t2")
        assert indices(cut(study_of(stack), request(count=3, centre=None), UNIT, {}), stack) == expected


@pytest.mark.parametrize(("level", "offset"), [("l3_l4", 8.0), ("l5_s1", 12.0)])
def test_an_offset_goes_to_the_side_of_the_unit(level, offset):
    stack = sagittal()
    offsets = {"l3_l4": 8.0, "l5_s1": 12.0}
    for side, sign in (("left", 1), ("right", -1)):
        view = cut(
            study_of(stack), request(by="offset", count=3, centre=None, offset_mm=offsets), Unit(level, side), {}
        )
        assert view.planes[1].origin_mm[0] == pytest.approx(sign * offset)


def test_a_sided_centre_gives_the_side_where_the_unit_has_none():
    marks = {f"{side}_neural_foraminal_narrowing_l3_l4": np.zeros(3) for side in ("left", "right")}
    asked = request(by="offset", count=1, centre=["right_neural_foraminal_narrowing"], offset_mm=8.0)
    assert cut(study_of(sagittal()), asked, UNIT, marks).planes[0].origin_mm[0] == pytest.approx(-8)


def test_the_landmark_chooses_the_nearest_plane_and_counts_both_neighbours():
    stack = axial()
    for height, expected in ((0.0, [4, 5, 6]), (1.9, [4, 5, 6]), (-2.1, [5, 6, 7]), (30.0, None), (19.0, [0, 0, 1])):
        asked = request("axial_t2", by="landmark", count=3, max_distance_mm=5)
        view = cut(study_of(stack), asked, UNIT, {POINT: np.array([0, 0, height])})
        assert (view if view is None else indices(view, stack)) == expected


@pytest.mark.parametrize(
    ("height", "expected"), [(2.0, [4, 5, 6]), (-2.0, [4, 5, 6]), (6.0, [3, 4, 5]), (-6.0, [5, 6, 7])]
)
def test_halfway_between_two_planes_rounding_decides_nothing(height, expected):
    """The one nearer to the middle of the stack is taken."""
    stack, asked = axial(turn=(3, 2, 1)), request("axial_t2", by="landmark", count=3)
    for off in (-1e-9, -1e-14, 0.0, 1e-14, 1e-9):
        point = stack.planes[5].to_patient(50, 60) + (height + off) * stack.planes[5].normal
        assert indices(cut(study_of(stack), asked, UNIT, {POINT: point}), stack) == expected


def test_of_two_stacks_that_are_equally_near_the_first_is_taken():
    asked = request("axial_t2", by="landmark", count=3)
    for off in (-1e-12, 0.0, 1e-12):
        study = study_of(axial(series_id="1", centre=(0, 0, 30 + off)), axial(series_id="2", centre=(0, 0, -30)))
        assert cut(study, asked, UNIT, {POINT: np.zeros(3)}).series_id == "1"


def test_an_even_window_has_the_point_in_its_middle():
    asked = request("axial_t2", by="landmark", count=2)
    for height, expected in ((1.0, [4, 5]), (-1.0, [5, 6])):
        stack = axial()
        assert indices(cut(study_of(stack), asked, UNIT, {POINT: np.array([0, 0, height])}), stack) == expected


def test_near_chooses_the_slice_and_centre_the_place():
    marks = {POINT: np.array([0, 0, 8.0]), "left_subarticular_stenosis_l3_l4": np.array([10.0, 5, 0])}
    asked = request(
        "axial_t2", by="landmark", count=1, centre=["left_subarticular_stenosis"], near=["spinal_canal_stenosis"]
    )
    view = cut(study_of(axial()), asked, UNIT, marks)
    assert view.planes[0].to_patient(31.5, 31.5) == pytest.approx([10, 5, 8])


def test_the_stack_with_the_nearest_plane_that_holds_the_point_is_taken():
    low = axial(series_id="1", centre=(0, 0, -60))
    high = axial(series_id="2", centre=(0, 0, 1.0))
    beside = axial(series_id="3", centre=(200, 0, 0))
    study = study_of(low, high, beside)
    asked = request("axial_t2", by="landmark", count=3)
    assert cut(study, asked, UNIT, {POINT: np.zeros(3)}).series_id == "2"
    assert cut(study, asked, UNIT, {POINT: np.array([0, 0, -50.0])}).series_id == "1"
    assert cut(study, asked, UNIT, {POINT: np.array([190.0, 0, 0])}).series_id == "3"
    assert cut(study, asked, UNIT, {POINT: np.array([0, 500.0, 0])}) is None


def test_without_a_landmark_the_longest_stack_is_taken():
    stacks = [sagittal((9, 60, 50), series_id=name) for name in ("5", "3")] + [sagittal((4, 60, 50), series_id="1")]
    assert cut(study_of(*stacks), request(), UNIT, {POINT: np.zeros(3)}).series_id == "3"


def test_missing_views_are_none():
    study = study_of(sagittal())
    marks = {POINT: np.zeros(3)}
    assert cut(study, request("axial_t2"), UNIT, marks) is None
    assert cut(study, request(), UNIT, {}) is None
    assert cut(study, request(), UNIT, {POINT: np.array([0, np.nan, 0])}) is None
    two = request(centre=["left_subarticular_stenosis", "right_subarticular_stenosis"])
    assert cut(study, two, UNIT, {"left_subarticular_stenosis_l3_l4": np.zeros(3)}) is None
    assert cut(study, request(by="offset", offset_mm=90.0, max_distance_mm=10), Unit("l3_l4", "left"), marks) is None
    assert cut(Study("1", (), []), request(), UNIT, marks) is None


# --- mirror


def test_mirroring_reverses_sagittal_slices_and_flips_axial_columns():
    pixels = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert np.array_equal(mirror_pixels(pixels, "sagittal_t1"), pixels[:, ::-1])
    assert np.array_equal(mirror_pixels(pixels, "axial_t2"), pixels[..., ::-1])
    for kind in ("sagittal_t2", "axial_t2"):
        tensor = mirror_pixels(torch.from_numpy(pixels), kind)
        assert np.array_equal(tensor.numpy(), mirror_pixels(pixels, kind))


def write_patient(folder, turn, slices, mirror):
    """A study of three series; mirror = of the mirrored patient, whose every pixel lies at -x."""
    series = (("1", "sagittal_t1"), ("2", "sagittal_t2"), ("3", "axial_t2"))
    for index, (name, kind) in enumerate(series):
        shape = (slices, 70, 63) if kind != "axial_t2" else (slices + 4, 66, 71)
        centre = rotation(turn) @ [1.3, 2.0, -3.0]
        grid = upright_grid(kind.split("_")[0], shape, (0.9, 1.1), 4.2, centre, turn)
        if mirror:
            grid = Grid(*(MIRROR @ v for v in (grid.origin, grid.column, grid.row, grid.step)), grid.spacing, shape)
        write_series(folder / name, smooth(shape, index).astype(np.uint16) * 16, grid, syntax="rle")
    return read_study(folder, "1", series)


MIRRORED_REQUESTS = [
    request("sagittal_t2", count=5),
    request("sagittal_t1", by="offset", offset_mm=16.8, centre=["neural_foraminal_narrowing"]),
    request("sagittal_t1", by="offset", offset_mm=11.0, centre=None, size_mm=None, count=3),
    request("axial_t2", by="landmark", centre=["subarticular_stenosis"], max_distance_mm=10),
    request("axial_t2", by="landmark", centre=None, near=["spinal_canal_stenosis"], size_mm=None, size_px=24),
]


@pytest.mark.parametrize("turn", [(0, 0, 0), (7, -4, 3)])
@pytest.mark.parametrize("slices", [11, 12])
def test_the_view_of_the_mirrored_patient_is_the_mirrored_view(tmp_path, turn, slices):
    study = write_patient(tmp_path / "a", turn, slices, mirror=False)
    other = write_patient(tmp_path / "b", turn, slices, mirror=True)
    assert study.problems == other.problems == []
    random = np.random.default_rng(1)
    names = ("spinal_canal_stenosis", *(f"{s}_{c}" for s in ("left", "right") for c in SIDED))
    marks = {f"{name}_l3_l4": random.normal(0, 6, 3) for name in names}
    mirrored_marks = {mirrored(name): MIRROR @ point for name, point in marks.items()}
    for asked in MIRRORED_REQUESTS:
        for side in ("left", "right"):
            unit = Unit("l3_l4", side)
            view = cut(study, asked, unit, marks)
            partner = cut(other, asked.mirrored(), unit.mirrored(), mirrored_marks)
            same_bytes(mirror_pixels(view.pixels, asked.series), partner.pixels)
            as_left = asked.model_copy(update={"mirror_right": True})
            shown = cut(study, as_left, unit, marks)
            same_bytes(
                shown.pixels,
                cut(other, as_left, unit.mirrored(), mirrored_marks).pixels if side == "right" else view.pixels,
            )


SIDED = ("neural_foraminal_narrowing", "subarticular_stenosis")


def same_bytes(a, b):
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["sagittal_t1", "axial_t2"])
def test_a_mirrored_view_still_lifts_to_where_its_pixels_lie(tmp_path, kind):
    study = write_patient(tmp_path, (5, 3, -2), 11, mirror=False)
    asked = request(kind, by="landmark", centre=["subarticular_stenosis"], mirror_right=True)
    marks = {"right_subarticular_stenosis_l3_l4": np.array([-9.0, 4, 2])}
    unit = Unit("l3_l4", "right")
    view = cut(study, asked, unit, marks)
    plain = cut(study, asked.model_copy(update={"mirror_right": False}), unit, marks)
    points = np.random.default_rng(0).uniform(0, [4, 63, 63], (20, 3))
    flipped = points.copy()
    if kind == "axial_t2":
        flipped[:, 2] = 63 - flipped[:, 2]
    else:
        flipped[:, 0] = 4 - flipped[:, 0]
    assert np.abs(lift_points(view.planes, points) - lift_points(plain.planes, flipped)).max() < 1e-9
    assert np.abs(project_points(view.planes, lift_points(view.planes, points)) - points).max() < 1e-6


def test_all_views_of_a_study_can_be_cut_from_files_of_any_kind(tmp_path):
    """One slice, odd shapes, a stack a level: nothing raises, and what is there has the asked-for shape."""
    for index, shape in enumerate(((1, 33, 47), (2, 47, 33), (5, 16, 90))):
        grid = upright_grid("axial", shape, (1.3, 0.9), centre=(0, 0, 30.0 * index), turn_deg=(10 * index, 0, 0))
        write_series(tmp_path / "3", texture(shape), grid, numbers=range(10 * index + 1, 10 * index + 1 + shape[0]))
    study = read_study(tmp_path, "1", [("3", "axial_t2")])
    assert len(study.stacks) == 3
    marks = {f"spinal_canal_stenosis_{unit.level}": np.array([0, 0, 30.0 * i]) for i, unit in enumerate(UNITS["level"])}
    asked = request("axial_t2", by="landmark", max_distance_mm=10)
    views = [cut(study, asked, unit, marks) for unit in UNITS["level"]]
    assert [view is not None for view in views] == [True, True, True, False, False]
    assert all(view.pixels.shape == (5, 64, 64) and len(view.planes) == 5 for view in views[:3])
