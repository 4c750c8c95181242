"""run_report.json: a line a study and a problem, nothing lost and nothing counted twice."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from kernels.lumbar.problems import Problem, summary
from kernels.lumbar.run.report import counts, merged, replace_report, report_text, study_lines

TAIL = "rejected by the shape model, as an outlier of the other landmarks"
PROBLEMS = [
    Problem("7", "", "implausible-landmark", f"left_l1: {TAIL}"),
    Problem("7", "", "implausible-landmark", f"right_l2: {TAIL}"),
    Problem("7", "", "guessed-landmarks", "2 landmarks that no localiser found are imputed by the shape model"),
    Problem("7", "30/1.dcm", "empty-file", "0 bytes"),
    Problem("7", "30/2.dcm", "empty-file", "0 bytes"),
    Problem("7", "31/2.dcm", "empty-file", "0 bytes"),
    Problem("7", "31/1.dcm", "unreadable-file", "KeyError: a"),
    Problem("7", "31/2.dcm", "unreadable-file", "KeyError: b"),
    Problem("9", "", "implausible-landmark", f"left_l1: {TAIL}"),
    Problem("", "one_fold0", "member-unusable", "sha256 differs"),
    Problem("", "one_fold1", "member-unusable", "sha256 differs"),
]


def test_problems_of_one_kind_and_place_are_one_line_and_nothing_is_lost() -> None:
    lines = merged(PROBLEMS)
    assert [(one["study"], one["where"], one["kind"], one["count"], one["detail"]) for one in lines] == [
        ("7", "", "implausible-landmark", 2, f"left_l1, right_l2: {TAIL}"),
        ("7", "", "guessed-landmarks", 1, PROBLEMS[2].detail),
        ("7", "30", "empty-file", 2, "1.dcm, 2.dcm: 0 bytes"),
        ("7", "31/2.dcm", "empty-file", 1, "0 bytes"),
        ("7", "31", "unreadable-file", 2, "1.dcm: KeyError: a; 2.dcm: KeyError: b"),
        ("9", "", "implausible-landmark", 1, PROBLEMS[8].detail),
        ("", "one_fold0", "member-unusable", 1, "sha256 differs"),
        ("", "one_fold1", "member-unusable", 1, "sha256 differs"),
    ]
    assert (
        counts(lines)
        == counts(map(asdict, PROBLEMS))
        == {
            "implausible-landmark": 3,
            "guessed-landmarks": 1,
            "empty-file": 3,
            "unreadable-file": 2,
            "member-unusable": 2,
        }
    )
    assert "  implausible-landmark: 3 in 2 studies; " in summary(lines) and summary([]) == "no problems"


def test_each_study_has_its_state_its_fallbacks_its_seconds_and_its_problems() -> None:
    lines = study_lines(["7", "8", "9"], {"7": 0, "9": 3}, {"7": 2}, {"7": 1.23456, "9": 2.0}, merged(PROBLEMS))
    assert lines == {
        "7": {
            "state": "graded",
            "prior_rows": 0,
            "imputed_landmarks": 2,
            "seconds": 1.235,
            "problems": {"implausible-landmark": 2, "guessed-landmarks": 1, "empty-file": 3, "unreadable-file": 2},
        },
        "8": {"state": "not graded", "prior_rows": 25, "imputed_landmarks": 0, "seconds": 0.0, "problems": {}},
        "9": {
            "state": "partly graded",
            "prior_rows": 3,
            "imputed_landmarks": 0,
            "seconds": 2.0,
            "problems": {"implausible-landmark": 1},
        },
    }


def test_the_file_has_a_line_a_study_and_a_problem(tmp_path: Path) -> None:
    studies = {str(study): 0 for study in range(40)}
    report = {
        "format": "lumbar-kit-run-report",
        "by_study": study_lines(studies, studies, {}, {}, merged(PROBLEMS)),
        "fallbacks": {"rows": 0, "studies": {}},
        "long": {"rows": {str(study): ["row"] * 25 for study in range(20)}},
        "problems": merged(PROBLEMS),
        "nothing": [],
        "odd": "\udcff",
    }
    replace_report(tmp_path / "run_report.json", report)
    text = (tmp_path / "run_report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    lines = text.splitlines()
    assert sum(line.lstrip().startswith(tuple(f'"{study}": {{"state"' for study in studies)) for line in lines) == 40
    assert sum('"kind"' in line for line in lines) == len(merged(PROBLEMS)) and max(map(len, lines)) < 2100
    assert len(lines) < 40 + len(merged(PROBLEMS)) + 45 and ' "fallbacks": {"rows": 0, "studies": {}},' in lines
    assert report_text([]) == "[]" and report_text("a") == '"a"'
