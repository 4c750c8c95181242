"""Planes in patient millimetres: exact, whatever the orientation, the storage order and the gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom.geometry import (
    CANONICAL_AXES,
    Grids,
    Plane,
    between,
    canonical,
    group_parallel,
    lift_points,
    project_points,
    tilts_deg,
)
from kernels.lumbar.dicom.header import checked_orientation, checked_position, checked_spacing
from tests.support.dicom.dicom_writer import rotation

angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(st.floats(0.1, 3), st.floats(0.1, 3))
places = st.tuples(*[st.floats(-400, 400)] * 3)
pixels = st.tuples(st.floats(-50, 800), st.floats(-50, 800))


def plane_of(turn, spacing, origin=(0, 0, 0)):
    column, row, _ = rotation(turn).T
    return Plane(np.array(origin, float), column * spacing[1], row * spacing[0])


def test_columns_go_with_the_second_spacing_and_the_first_direction():
    plane = Plane(np.array([10.0, 20, 30]), np.array([0.0, 0.45, 0]), np.array([0.0, 0, -0.6]))
    assert plane.to_patient(row=2, column=100).tolist() == pytest.approx([10, 20 + 45, 30 - 1.2])
    assert plane.spacing_mm == pytest.approx((0.6, 0.45))
    assert plane.normal.tolist() == [-1, 0, 0]


@given(angles, spacings, places, st.lists(pixels, min_size=1, max_size=5))
def test_pixel_to_mm_and_back(turn, spacing, origin, at):
    plane = plane_of(turn, spacing, origin)
    row, column = np.array(at).T
    back_row, back_column, distance = plane.to_pixel(plane.to_patient(row, column))
    in_mm = np.abs([(back_row - row) * spacing[0], (back_column - column) * spacing[1], distance])
    assert in_mm.max() < 1e-6


@given(angles, spacings, places, places)
def test_the_foot_of_a_point_lies_under_it(turn, spacing, origin, point):
    plane = plane_of(turn, spacing, origin)
    row, column, distance = plane.to_pixel(np.array(point))
    assert np.abs(plane.to_patient(row, column) + distance * plane.normal - point).max() < 1e-6


@given(angles, spacings, places, angles, spacings, places, pixels)
def test_projection_from_series_to_series_is_reversible(turn_a, spacing_a, at_a, turn_b, spacing_b, at_b, at):
    a, b = plane_of(turn_a, spacing_a, at_a), plane_of(turn_b, spacing_b, at_b)
    point = a.to_patient(*at)
    row, column, distance = b.to_pixel(point)
    row, column, distance = a.to_pixel(b.to_patient(row, column) + distance * b.normal)
    assert abs(row - at[0]) * spacing_a[0] < 1e-6
    assert abs(column - at[1]) * spacing_a[1] < 1e-6
    assert abs(distance) < 1e-6


@pytest.mark.parametrize("kind", ["sagittal_t1", "axial_t2"])
@given(
    tilt=st.tuples(*[st.floats(-30, 30)] * 3),
    order=st.permutations([0, 1]),
    signs=st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])),
    spacing=spacings,
)
@settings(max_examples=60)
def test_canonical_slices_look_alike_and_keep_each_pixel_in_its_place(kind, tilt, order, signs, spacing):
    axes = CANONICAL_AXES[kind.split("_")[0]]
    turn = rotation(tilt)
    column, row = (turn @ axes[which] * sign for which, sign in zip(order, signs, strict=True))
    stored = Plane(np.array([5.0, -7, 11]), column * spacing[1], row * spacing[0])
    image = np.arange(5 * 4).reshape(5, 4)
    grids, (upright,) = canonical(Grids.of([stored]), [image], kind)
    (plane,) = grids.planes()
    assert plane.column_mm @ axes[0] > 0 and plane.row_mm @ axes[1] > 0
    assert plane.normal @ axes[2] < 0
    for value, at in ((0, (0, 0)), (7, (1, 3)), (18, (4, 2))):
        (i,), (j,) = np.nonzero(upright == value)
        assert plane.to_patient(i, j) == pytest.approx(stored.to_patient(*at), abs=1e-9)


def oblique_series(jitter):
    """Five blocks of slices, one a disc, all stored together with a localiser and a slice of another size."""
    random = np.random.default_rng(3)
    planes, shapes, names = [], [], []

    def add(name, turn, origin, shape=(320, 320)):
        column, row, normal = rotation(turn).T
        column, row = (direction + random.uniform(-jitter, jitter, 3) for direction in (column, row))
        planes.append(Plane(np.array(origin) + normal * 4 * names.count(name), 0.6 * column, 0.6 * row))
        shapes.append(shape)
        names.append(name)

    for _ in range(5):
        for disc, tilt in enumerate((10, 6, -1, -11, -30)):
            add(f"disc {disc}", (tilt, 0, 0), (-90, -90, 60 - 30 * disc))
    add("localiser", (0, 90, 0), (0, -90, 100))
    add("other shape", (10, 0, 0), (-90, -90, 60), (320, 300))
    return planes, shapes, names


@pytest.mark.parametrize("jitter", [0, 2e-4])
def test_a_series_of_oblique_blocks_is_grouped_by_orientation_shape_and_spacing(jitter):
    planes, shapes, names = oblique_series(jitter)
    groups = group_parallel(Grids.of(planes), shapes)
    assert sorted(sorted({names[index] for index in group}) for group in groups) == sorted([[n] for n in set(names)])
    assert sorted(len(group) for group in groups) == [1, 1, 5, 5, 5, 5, 5]


def test_other_spacing_is_another_stack_and_rounding_is_not():
    planes = [plane_of((0, 0, 0), spacing) for spacing in ((0.6, 0.6), (0.6003, 0.6), (0.7, 0.6))]
    assert group_parallel(Grids.of(planes), [(9, 9)] * 3) == [[0, 1], [2]]


def test_tilt_is_the_angle_to_the_plane_of_the_kind():
    sagittal = Plane(np.zeros(3), *np.array([[0.0, 1, 0], [0, 0, -1]]))
    grids = Grids.of([sagittal, plane_of((30, 0, 0), (1, 1))])
    assert tilts_deg(grids, "sagittal_t1")[0] == pytest.approx(0)
    assert tilts_deg(grids, "axial_t2") == pytest.approx([90, 30])


@given(angles, spacings, st.lists(places, min_size=1, max_size=4), places)
def test_planes_side_by_side_are_the_planes_one_by_one(turn, spacing, origins, point):
    planes = [plane_of(turn, spacing, origin) for origin in origins]
    grids = Grids.of(planes)
    matrices, offsets = grids.projection
    assert np.allclose(grids.normals, [plane.normal for plane in planes])
    assert np.allclose(grids.spacings_mm, [plane.spacing_mm for plane in planes])
    assert np.allclose(grids.to_patient(3, 7), [plane.to_patient(3, 7) for plane in planes])
    assert np.allclose(matrices @ point - offsets, [plane.to_pixel(np.array(point)) for plane in planes], atol=1e-6)


def stack_of(turn, spacing, origin, gaps):
    first = plane_of(turn, spacing, origin)
    places = np.cumsum([0.0, *gaps])
    return [Plane(first.origin_mm - first.normal * place, first.column_mm, first.row_mm) for place in places]


@given(
    angles,
    spacings,
    places,
    st.lists(st.floats(0.5, 12), min_size=1, max_size=7),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 300), st.floats(0, 300)), min_size=1, max_size=4),
)
def test_lift_and_project_are_inverse_between_planes_with_uneven_gaps(turn, spacing, origin, gaps, at):
    planes = stack_of(turn, spacing, origin, gaps)
    points = np.array(at) * [len(gaps), 1, 1]
    lifted = lift_points(planes, points)
    back = project_points(planes, lifted)
    assert np.abs(lift_points(planes, back) - lifted).max() < 1e-6
    assert np.abs(back - points).max() < 1e-6


def test_fractional_slices_lie_between_their_neighbours():
    planes = stack_of((0, 0, 0), (1, 1), (0, 0, 0), (4, 8))
    assert lift_points(planes, np.array([[0.25, 0, 0], [1.5, 2, 3]])).tolist() == [[0, 0, -1], [3, 2, -8]]
    assert between(planes, 2) is planes[2]


def test_points_beyond_the_ends_belong_to_the_outermost_plane():
    planes = stack_of((0, 0, 0), (1, 1), (0, 0, 0), (4, 4))
    assert project_points(planes, np.array([[5, 6, 30], [5, 6, -30]])).tolist() == [[0, 6, 5], [2, 6, 5]]
    assert lift_points(planes, np.array([[-3, 6, 5], [9, 6, 5]]))[:, 2].tolist() == [0, -8]
    assert project_points(planes[:1], np.array([[5, 6, 30]])).tolist() == [[0, 6, 5]]


def test_of_repeated_planes_the_one_nearest_to_the_middle_answers():
    planes = stack_of((0, 0, 0), (1, 1), (0, 0, 0), (4, 4))
    clamped = [planes[0], planes[0], planes[0], planes[1], planes[2]]
    assert project_points(clamped, np.array([[0, 0, 0.0], [0, 0, -1], [0, 0, 9]]))[:, 0].tolist() == [2, 2.25, 2]


def test_what_is_not_finite_stays_so():
    planes = stack_of((0, 0, 0), (1, 1), (0, 0, 0), (4,))
    assert np.isnan(lift_points(planes, np.array([[np.nan, 1, 1], [0, np.nan, 1]]))).any(axis=1).all()
    assert np.isnan(project_points(planes, np.array([[np.nan, 1, 1]]))).all()


@given(angles, st.floats(-1e-3, 1e-3))
def test_orientations_are_made_exactly_orthonormal(turn, error):
    column, row, _ = rotation(turn).T
    repaired = checked_orientation((*(column + error), *(row * (1 + error))))
    x, y = np.array(repaired[:3]), np.array(repaired[3:])
    assert abs(x @ x - 1) < 1e-12 and abs(y @ y - 1) < 1e-12 and abs(x @ y) < 1e-12
    assert max(np.abs(x - column).max(), np.abs(y - row).max()) < 5e-3


nan = float("nan")


@pytest.mark.parametrize(
    "orientation",
    [None, (), (1, 0, 0), (0,) * 6, (1, 0, 0, 1, 0, 0), (nan, 0, 0, 0, 1, 0), (2, 0, 0, 0, 2, 0), (1, 0, 0, 0.2, 1, 0)],
)
def test_impossible_orientations_are_refused(orientation):
    assert checked_orientation(orientation) is None


def test_impossible_positions_and_spacings_are_refused():
    assert checked_position((1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)
    assert [checked_position(p) for p in (None, (1.0, 2.0), (nan, 0.0, 0.0), (0.0, 0.0, 1e9))] == [None] * 4
    assert checked_spacing((0.5, 0.6), 512) == (0.5, 0.6)
    refused = (None, (0.5,), (0.0, 0.5), (-0.5, 0.5), (nan, 0.5), (0.5, 1e5), (float("inf"), 0.5))
    assert [checked_spacing(s, 512) for s in refused] == [None] * len(refused)
    assert checked_spacing((9.0, 9.0), 2000) is None
