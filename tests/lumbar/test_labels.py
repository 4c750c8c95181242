"""Order, names and the left/right permutation."""

from hypothesis import given
from hypothesis import strategies as st

from kernels.lumbar import labels


def test_rows_follow_the_sample_submission() -> None:
    assert len(labels.ROWS) == 25
    assert labels.ROWS[0] == "left_neural_foraminal_narrowing_l1_l2"
    assert labels.ROWS[-1] == "spinal_canal_stenosis_l5_s1"
    assert list(labels.CONDITIONS) == sorted(labels.CONDITIONS)


def test_the_permutation_is_an_involution_that_fixes_the_midline() -> None:
    assert [labels.MIRROR[labels.MIRROR[index]] for index in range(25)] == list(range(25))
    for row, other in zip(labels.ROWS, (labels.ROWS[index] for index in labels.MIRROR), strict=True):
        assert (row == other) == row.startswith("spinal")
        assert row[-5:] == other[-5:]
        assert labels.group_of(row) == labels.group_of(other)


@given(st.sampled_from(labels.ROWS))
def test_relative_names_complete_to_rows(row: str) -> None:
    level = row[-5:]
    condition = row.removesuffix("_" + level)
    side = condition.split("_")[0] if condition.startswith(("left", "right")) else None
    bare = condition.removeprefix(f"{side}_")
    assert labels.row_of(row, labels.Unit()) == row
    assert labels.row_of(condition, labels.Unit(level=level)) == row
    assert labels.row_of(bare, labels.Unit(level, side)) == row
    assert labels.row_of(f"{bare}_{level}", labels.Unit(side=side)) == row


def test_units_cover_both_sides_and_all_levels() -> None:
    assert [len(labels.UNITS[kind]) for kind in ("study", "side", "level", "level_side")] == [1, 2, 5, 10]
    for units in labels.UNITS.values():
        assert {unit.mirrored() for unit in units} == set(units)


@given(st.lists(st.tuples(st.text("a_1L.", max_size=12), st.sampled_from(labels.ROWS)), max_size=6))
def test_a_row_id_is_split_in_front_of_its_row_whatever_the_study_is_called(parts: list[tuple[str, str]]) -> None:
    assert labels.split_row_ids(f"{study}_{row}" for study, row in parts) == parts


def test_an_unknown_row_is_split_behind_a_study_of_another_id() -> None:
    known, unknown = "PAT_001_spinal_canal_stenosis_l1_l2", "PAT_001_elbow_pain_l1_l2"
    assert labels.split_row_ids([unknown, known])[0] == ("PAT_001", "elbow_pain_l1_l2")
    assert labels.split_row_ids([unknown, "7", ""]) == [("PAT", "001_elbow_pain_l1_l2"), ("7", ""), ("", "")]
