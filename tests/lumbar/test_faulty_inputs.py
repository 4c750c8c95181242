"""The rest of the fault table: tables, paths and permissions, in process, where the notebook adds nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar import predict
from kernels.lumbar.dicom import read_study
from kernels.lumbar.labels import ROWS
from tests.support.anatomy.clean_study import SERIES, T1, T2
from tests.support.faults.fault_runs import SAMPLE, SERIES_TABLE, Answered, answered, assert_same, run_here, with_tables

VICTIM, OTHER = STUDIES = ("1", "2")


# --- tables


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[str], bytes]:
    """Change the lines after the first."""

    def apply(text: str) -> bytes:
        first, *rest = text.splitlines()
        return ("\n".join([first, *change(rest)]) + "\n").encode()

    return apply


MAKES: dict[str, Callable[[str], bytes]] = {
    "more columns": lambda text: "\n".join(f"{line},é,," for line in text.splitlines()).encode(),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac line ends": lambda text: text.replace("\n", "\r").encode(),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "no last line end, blank lines": lambda text: ("\n\n".join(text.split("\n")[:-1])).encode(),
    "unsorted": lines(lambda rest: [rest[index] for index in np.random.default_rng(3).permutation(len(rest))]),
    "quoted": lambda text: "\n".join(f'"{line}"'.replace(",", '","') for line in text.splitlines()).encode(),
    "spaces round ids": lambda text: text.replace("\n1", "\n 1 ").replace(" _", "_").encode(),
}


@pytest.mark.parametrize("table", [SERIES_TABLE, SAMPLE])
@pytest.mark.parametrize("make", MAKES)
def test_tables_of_another_make_mean_the_same(
    make: str, table: str, clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    made = with_tables(clean_pair, tmp_path / "data", {table: MAKES[make]((clean_pair / table).read_text())})
    found = run_here(made, seeing, tmp_path / "out")
    assert_same(found, clean_answers, *STUDIES)
    assert found.report["problems"] == []


LOSSES: dict[str, tuple[Callable[[str], bytes], str, str]] = {
    "a study without rows": (lines(lambda rest: [line for line in rest if line[0] != VICTIM]), VICTIM, "no-series"),
    "a series without a folder": (lines(lambda rest: [f"{VICTIM},77,Sagittal T1", *rest]), VICTIM, "no-folder"),
    "half a line": (lines(lambda rest: [*rest, f"{VICTIM}"]), "", ""),
    "lines twice": (lines(lambda rest: rest + rest), "", ""),
    "a study that is not asked for": (lines(lambda rest: ["9,77,Sagittal T1", *rest]), "", ""),
    "an unknown kind": (lines(lambda rest: [f"{VICTIM},77,STIR – é", *rest]), VICTIM, "unknown-series-description"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_line_of_the_series_table_is_named_and_costs_its_study_alone(
    loss: str, clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    change, study, kind = LOSSES[loss]
    made = with_tables(clean_pair, tmp_path / "data", {SERIES_TABLE: change((clean_pair / SERIES_TABLE).read_text())})
    found = run_here(made, seeing, tmp_path / "out")
    assert_same(found, clean_answers, OTHER)
    if kind != "no-series":
        assert_same(found, clean_answers, VICTIM)
    assert kind in found.problems(study) if kind else found.report["problems"] == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "unreadable-table"),
        (b"\xff\xfe\x00\xd8" * 50, "unreadable-table"),
        (b"study_id;series_id;series_description\n1;11;Sagittal T1\n", "wrong-table"),
        (b"study_id,series_id,series_description\n", "no-series"),
        (b'study_id,series_id,series_description\n1,11,"Sagittal', "unreadable-table"),
    ],
)
def test_a_series_table_that_is_none_leaves_the_priors(
    content: bytes, kind: str, clean_pair: Path, seeing: Path, tmp_path: Path
) -> None:
    found = run_here(with_tables(clean_pair, tmp_path / "data", {SERIES_TABLE: content}), seeing, tmp_path / "out")
    assert kind in found.problems() | found.problems(VICTIM)
    assert found.report["fallbacks"]["rows"] == len(STUDIES) * len(ROWS)


# --- paths and permissions


def test_spaces_unicode_and_links_in_every_path(
    clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    root = tmp_path / "mounts – été" / "a b"
    root.mkdir(parents=True)
    (root / "the competition").symlink_to(clean_pair)
    (root / "weights of Ω").symlink_to(seeing)
    out = tmp_path / "out put é"
    code = predict.main(["--input-root", str(root), "--out", str(out)])
    assert_same(answered(code, clean_pair, out), clean_answers, *STUDIES)


@pytest.mark.parametrize("target", ["nowhere", "0.dcm", "."])
def test_a_link_to_nothing_to_itself_or_to_its_folder(
    target: str, clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    """In process, as the simulation cannot mount them."""
    copy = Path(shutil.copytree(clean_pair, tmp_path / "data"))
    (copy / "test_images" / VICTIM / SERIES[T1] / "0.dcm").symlink_to(target)
    found = run_here(copy, seeing, tmp_path / "out")
    assert_same(found, clean_answers, *STUDIES)
    assert found.problems(VICTIM) == (set() if target == "." else {"unreadable-file"})


@pytest.mark.parametrize(("name", "kind"), [(f"{SERIES[T1]}/4.dcm", "unreadable-file"), (SERIES[T2], "no-folder")])
def test_what_may_not_be_read_is_named(
    name: str, kind: str, clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(clean_pair, tmp_path / "data"))
    locked = copy / "test_images" / VICTIM / name
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        pytest.skip("permissions do not bind this user")
    found = run_here(copy, seeing, tmp_path / "out")
    locked.chmod(0o755)
    assert_same(found, clean_answers, OTHER)
    assert kind in found.problems(VICTIM)


def test_a_mount_that_may_not_be_read_hides_no_other(
    clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, target in (("a", tmp_path), ("b", clean_pair), ("c", seeing)):
        (tmp_path / "input" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "input" / name).symlink_to(target)
    iterdir = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "a":
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    code = predict.main(["--input-root", str(tmp_path / "input"), "--out", str(tmp_path / "out")])
    assert_same(answered(code, clean_pair, tmp_path / "out"), clean_answers, *STUDIES)


def test_a_file_that_the_system_does_not_give_is_named(
    clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for every user, root too, whom permissions do not bind; and for a mount that fails."""
    refused, read_file = clean_pair / "test_images" / VICTIM / SERIES[T1] / "4.dcm", read_study.read_file

    def read(path: Path) -> tuple[np.ndarray, int]:
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return read_file(path)

    monkeypatch.setattr(read_study, "read_file", read)
    found = run_here(clean_pair, seeing, tmp_path / "out")
    assert_same(found, clean_answers, OTHER)
    (problem,) = (one for one in found.report["problems"] if one["kind"] == "unreadable-file")
    assert (problem["study"], problem["where"]) == (VICTIM, f"{SERIES[T1]}/4.dcm")
    assert "PermissionError" in problem["detail"]
