"""The end of the demo: the table, and the files to open next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS, SEVERITIES
from training.evaluation import summary
from training.evaluation.metric import score


def rows_of(study: str, answers: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(answers, columns=list(SEVERITIES))
    return frame.assign(row_id=[f"{study}_{row}" for row in ROWS])


def test_the_best_the_median_and_the_worst_study_are_drawn_by_their_own_score() -> None:
    random, names = np.random.default_rng(3), ["a_1", "b", "c", "d", "e"]
    truth = {name: np.eye(3)[random.integers(0, 3, len(ROWS))] for name in names}
    skill = dict(zip(names, (0.5, 0.9, 0.1, 0.7, 0.3), strict=True))
    solution = pd.concat([rows_of(name, truth[name]) for name in names], ignore_index=True)
    said = [rows_of(name, skill[name] * truth[name] + (1 - skill[name]) / 3) for name in reversed(names)]
    submission = pd.concat(said, ignore_index=True)
    scores = summary.study_scores(solution, submission)
    assert list(scores) == ["b", "d", "a_1", "e", "c"]
    assert scores["d"] == score(solution[solution["row_id"].str.startswith("d_")], submission).final
    chosen = summary._spread(scores, 3)
    assert [(study, name, caption) for (study, _), (name, caption) in chosen] == [
        ("b", "best", "rank 1 of 5"),
        ("a_1", "median", "rank 3 of 5"),
        ("c", "worst", "rank 5 of 5"),
    ]
    assert len(summary._spread(scores, 9)) == 5 and not summary._spread(scores, 0)
    assert [study for (study, _), _ in summary._spread(dict(list(scores.items())[:1]), 3)] == ["b"]
    answers = summary._answers(submission, "a_1")
    assert answers[ROWS[4]] == pytest.approx(0.5 * truth["a_1"][4] + 0.5 / 3)


def test_landmarks_of_the_kernel_keep_route_confidence_and_what_is_imputed(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    path.write_text(
        "study_id,route,row,x_mm,y_mm,z_mm,confidence,guessed\n"
        f"NA,one,{ROWS[0]},1,2,3,0.5,False\nNA,one,{ROWS[1]},4,5,6,0.0,True\nNA,two,{ROWS[0]},7,8,9,0.25,False\n"
    )
    (study,) = (found := summary.read_routes(path)).values()
    assert list(found) == ["NA"] and list(study) == ["one", "two"]
    assert study["one"].guessed == {ROWS[1]} and study["two"].confidence == {ROWS[0]: 0.25}
    assert study["one"].points[ROWS[1]].tolist() == [4, 5, 6]


def test_the_report_and_the_pictures_are_named_after_the_table(capsys, monkeypatch):
    monkeypatch.setattr(summary, "summarise", lambda *_: "the table")
    given = ["--data", "demo/data", "--weights", "demo/weights", "--out", "demo/out"]
    assert summary.main(given) == 0
    assert capsys.readouterr().out == "the table\n"
    assert summary.main([*given, "--report", "demo/report.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the table" and lines[2] == "what to look at"
    named = [line.split("  ")[0] for line in lines[3:5]]
    assert named == ["demo/report.html", str(Path("demo/out/overlay_*.png"))]
