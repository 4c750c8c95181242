"""The competition's tables: what is tolerated, and what is refused with which sentence."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from training.data.tables import MISSING, TablesError, read_tables

STUDIES = ("007", "1234567890123")
CANAL, FORAMEN = "spinal_canal_stenosis_l1_l2", "left_neural_foraminal_narrowing_l5_s1"


@pytest.fixture
def root(tmp_path):
    """Two studies: one all normal but one row, one with nothing known but one row."""
    labels = pd.DataFrame("Normal/Mild", index=list(STUDIES), columns=list(ROWS))
    labels.loc[STUDIES[0], CANAL] = "Severe"
    labels.loc[STUDIES[1]] = ""
    labels.loc[STUDIES[1], FORAMEN] = "Moderate"
    labels.to_csv(tmp_path / "train.csv", index_label="study_id")
    (tmp_path / "train_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n"
        "007,11,Sagittal T1\n"
        "007,12,Axial T2\n"
        "1234567890123,011,Sagittal T2/STIR\n"
    )
    (tmp_path / "train_label_coordinates.csv").write_text(
        "study_id,series_id,instance_number,condition,level,x,y\n"
        "007,12,5046,Left Subarticular Stenosis,L4/L5,10.5,20.25\n"
        "1234567890123,011,3,Spinal Canal Stenosis,L5/S1,1,2\n"
    )
    for study in STUDIES:
        (tmp_path / "train_images" / study).mkdir(parents=True)
    return tmp_path


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_tables_are_read_with_ids_as_text_and_unlabelled_as_such(root):
    tables = read_tables(root)
    assert list(tables.labels.index) == list(STUDIES) and list(tables.labels.columns) == list(ROWS)
    assert tables.labels.loc[STUDIES[0]].sum() == tables.labels.loc[STUDIES[0], CANAL] == 2
    assert (tables.labels.loc[STUDIES[1]] == MISSING).sum() == 24 and tables.labels.loc[STUDIES[1], FORAMEN] == 1
    assert tables.series == {"007": [("11", "sagittal_t1"), ("12", "axial_t2")], STUDIES[1]: [("011", "sagittal_t2")]}
    assert tables.coordinates.to_dict("records") == [
        dict(study_id="007", series_id="12", instance=5046, row="left_subarticular_stenosis_l4_l5", x=10.5, y=20.25),
        dict(study_id=STUDIES[1], series_id="011", instance=3, row="spinal_canal_stenosis_l5_s1", x=1.0, y=2.0),
    ]


def test_trailing_commas_do_not_move_the_columns(root):
    before = read_tables(root)
    header, *lines = (root / "train_series_descriptions.csv").read_text().splitlines()
    (root / "train_series_descriptions.csv").write_text("\n".join([header, *(f"{line}," for line in lines)]))
    with pytest.warns(pd.errors.ParserWarning):
        assert read_tables(root).series == before.series


def test_the_fingerprint_changes_with_any_of_the_tables(root):
    seen = {read_tables(root).fingerprint}
    assert read_tables(root).fingerprint in seen
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        (root / name).write_text((root / name).read_text() + "\n")
        seen.add(read_tables(root).fingerprint)
    assert len(seen) == 4


def test_how_a_spreadsheet_writes_makes_no_difference(root, caplog):
    before = read_tables(root)
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        header, *lines = (root / name).read_text().splitlines()
        columns = header.count(",") + 1
        # Byte order mark, carriage returns, an extra column, spaces, an empty line, an empty row, a repeated row.
        text = [f"\ufeff{header} ,note", "", "," * columns, *(f" {line},x" for line in lines), f"{lines[0]},x", ""]
        (root / name).write_bytes("\r\n".join(text).encode())
    with caplog.at_level(logging.WARNING):
        after = read_tables(root)
    assert sum("1 repeated rows are left out" in message for message in caplog.messages) == 3
    pd.testing.assert_frame_equal(after.labels, before.labels)
    pd.testing.assert_frame_equal(after.coordinates, before.coordinates)
    assert after.series == before.series


def test_a_study_without_series_is_said(root, caplog):
    change(root / "train_series_descriptions.csv", "1234567890123,011,Sagittal T2/STIR\n", "")
    assert STUDIES[1] not in read_tables(root).series
    assert "1 studies have no usable series" in caplog.text


def test_ids_with_the_decimals_of_a_spreadsheet_are_read_without_them_and_counted(root, caplog):
    before = read_tables(root)
    assert caplog.text == ""
    (root / "train_images" / "007" / "11").mkdir()
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        header, *lines = (root / name).read_text().splitlines()
        cells = [line.split(",") for line in lines]
        for its in cells:
            for place in range(1 if name == "train.csv" else 2):
                its[place] += "" if its[place] == "011" else ".0"
        (root / name).write_text("\n".join([header, *map(",".join, cells)]))
    (root / "train_images" / "007" / "12").mkdir()
    after = read_tables(root)
    pd.testing.assert_frame_equal(after.labels, before.labels)
    pd.testing.assert_frame_equal(after.coordinates, before.coordinates)
    assert after.series == before.series
    assert "train.csv: 2 ids have decimals, such as 007.0: they are read as 007" in caplog.text
    assert "train_label_coordinates.csv: 2 ids have decimals" in caplog.text


def test_rows_that_belong_to_nothing_are_counted_and_the_first_is_named(root, caplog):
    points = root / "train_label_coordinates.csv"
    line = points.read_text().splitlines()[1]
    points.write_text(points.read_text() + line.replace("007,", "9,") + "\n" + line.replace(",12,", ",77,") + "\n")
    series = root / "train_series_descriptions.csv"
    series.write_text(series.read_text() + "8,1,Axial T2\n")
    read_tables(root)
    assert "1 of 4 rows are left out, as they are of no study of train.csv (the first: line 4, study 9" in caplog.text
    assert "1 of 4 rows are left out, as they are of no series of its study" in caplog.text
    assert "1 of 4 rows are left out, as they are of no study of train.csv (the first: line 5, study 8" in caplog.text


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        (
            "train.csv",
            "Severe",
            "Sever",
            r"train.csv, line 2: .*l1_l2 is 'Sever', which is none of 'Normal/Mild'.*empty",
        ),
        ("train.csv", "Moderate", "nan", r"train.csv, line 3: left_neural.* is 'nan', which is none of"),
        (
            "train.csv",
            "spinal_canal_stenosis_l3_l4",
            "canal",
            r"train.csv lacks the columns spinal_canal_stenosis_l3_l4",
        ),
        ("train.csv", "\n1234567890123,", "\n007,", "study 007 occurs twice with different labels"),
        ("train.csv", "\n007,", "\n\n42,", r"lacks 1 of 2 studies of train.csv \(the first: 42\): unpack the whole"),
        ("train_series_descriptions.csv", "Axial T2", "Axial T3", "line 3: series_description is 'Axial T3'"),
        ("train_series_descriptions.csv", "\n007,12", "\n007,", "line 3: series_id is empty: fill it in"),
        ("train.csv", "\n007,", "\n,", "line 2: study_id is empty"),
        ("train.csv", "\n007,", "\n../x,", "'../x' cannot be the name of a study's folder"),
        ("train_label_coordinates.csv", "Left Sub", "Sub", "line 2: condition is 'Subarticular Stenosis'"),
        ("train_label_coordinates.csv", "L5/S1", "L6/S1", "line 3: level is 'L6/S1', which is none of 'L1/L2'"),
        ("train_label_coordinates.csv", "20.25", "", "line 2: instance_number is no whole number, or x or y no number"),
        ("train_label_coordinates.csv", "5046", "5.5", "line 2: instance_number is no whole number"),
        ("train_label_coordinates.csv", "x,y", "x,z", "lacks the columns y"),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_line_and_remedy(root, name, old, new, sentence):
    change(root / name, old, new)
    with pytest.raises(TablesError, match=sentence):
        read_tables(root)


def test_lines_are_counted_as_an_editor_does(root):
    change(root / "train_label_coordinates.csv", "\n007,", "\n\n,,,,,,\n007,")
    change(root / "train_label_coordinates.csv", "L5/S1", "L6/S1")
    with pytest.raises(TablesError, match="line 5: level is 'L6/S1'"):
        read_tables(root)


@pytest.mark.parametrize("name", ["train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"])
def test_missing_and_empty_files_are_named(root, name):
    text = (root / name).read_text()
    (root / name).write_text("")
    with pytest.raises(TablesError, match=f"{name} cannot be read as a CSV"):
        read_tables(root)
    (root / name).write_bytes("study_id,größe\n".encode("latin-1"))
    with pytest.raises(TablesError, match=f"{name} cannot be read as a CSV"):
        read_tables(root)
    (root / name).unlink()
    with pytest.raises(TablesError, match=f"{name} does not exist: DATA= names a folder"):
        read_tables(root)
    (root / name).write_text(text.splitlines()[0] + "\n")
    if name == "train.csv":
        with pytest.raises(TablesError, match="names no study"):
            read_tables(root)
    else:
        read_tables(root)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(TablesError, match="is no folder: name one in the competition's layout with DATA="):
        read_tables(tmp_path / "nowhere")
