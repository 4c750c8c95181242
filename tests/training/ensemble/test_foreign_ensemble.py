"""`make ensemble OOF=DIR`: other people's models beside ours or alone, cross-fitted, compared and described."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.labels import GROUPS, ROWS, SEVERITIES
from tests.training.ensemble.test_ensemble_sources import FIRST, SECOND, STUDIES, all_labels, write_recipe
from training.data.tables import SEVERITY_TEXTS
from training.ensemble.find import main

DESCRIPTION = """
unit: level
targets: [spinal_canal_stenosis]
inputs: [{series: sagittal_t2, slices: {by: middle, count: 3}, size_px: 32}]
seconds: 0.125
"""


def write_foreign(folder: Path, members: dict[str, float], studies: int = STUDIES) -> Path:
    """Members that know so much of the labels, in two folds as those of write_recipe but for their numbers."""
    labels = all_labels(studies)
    folder.mkdir(parents=True, exist_ok=True)
    folds = pd.DataFrame({"study_id": labels.index, "fold": [1 + at % 2 for at in range(studies)]})
    folds.to_csv(folder / "folds.csv", index=False)
    for number, (name, skill) in enumerate(members.items()):
        noise = np.random.default_rng(number).normal(size=(*labels.shape, 3))
        rows = softmax(skill * np.eye(3)[labels.to_numpy().clip(0)] + noise).reshape(-1, 3)
        table = pd.DataFrame(rows, columns=list(SEVERITIES))
        table.insert(0, "row_id", [f"{study}_{row}" for study in labels.index for row in ROWS])
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def write_labels(data: Path, studies: int = STUDIES) -> Path:
    data.mkdir(exist_ok=True)
    texts = {number: text for text, number in SEVERITY_TEXTS.items()}
    all_labels(studies).replace(texts | {-100: ""}).rename_axis("study_id").to_csv(data / "train.csv")
    return data


def found(out: Path, *given: object) -> dict:
    assert main([*map(str, given), "--profile", "smoke", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_they_are_searched_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (FIRST, SECOND):
        write_recipe(tmp_path / "runs", name)
    theirs = write_foreign(tmp_path / "theirs", {"strong": 6.0, "weak": 0.0})
    (theirs / "weak.yaml").write_text(DESCRIPTION)
    out = tmp_path / "found.json"
    with_them = found(out, "--runs", tmp_path / "runs", "--oof", theirs)
    printed = capsys.readouterr().out
    assert with_them["studies"] == STUDIES and with_them["unit"] == "networks"
    assert with_them["weights"]["elsewhere/strong"]["spinal"] > 0.5 and "elsewhere/strong" in with_them["order"]
    strong = with_them["members"]["elsewhere/strong"]
    assert set(strong["against_best"]) == set(GROUPS) and strong["scores"]["final"]["low"] > 0
    assert set(with_them["against"]) >= {"simple_mean", f"recipe {FIRST}"}
    alone = found(tmp_path / "alone.json", "--runs", tmp_path / "runs")
    before, after = (one["scores"]["cross_fitted"]["final"]["value"] for one in (alone, with_them))
    assert after < before - 0.05 and alone["unshippable"] == {}
    assert set(with_them["unshippable"]) == {"elsewhere/strong", "elsewhere/weak"}
    assert "elsewhere/strong cannot be shipped: " in printed and "strong.yaml is not there: describe" in printed
    assert "next: make package" not in printed


def test_with_networks_the_next_command_packages_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path / "runs", FIRST)
    theirs = write_foreign(tmp_path / "theirs", {"strong": 6.0})
    (theirs / "strong.yaml").write_text(DESCRIPTION)
    (theirs / "strong.pt").write_bytes(b"spoken of")
    given = ("--runs", tmp_path / "runs", "--oof", theirs)
    assert found(tmp_path / "found.json", *given)["unshippable"] == {}
    assert f"next: make package RUNS={tmp_path / 'runs'} PROFILE=smoke RECIPES={FIRST} FOLDS='0 1' OOF={theirs} " in (
        capsys.readouterr().out
    )
    # With the localisers whose landmarks it uses.
    priced = found(tmp_path / "found.json", *given, "--seconds", "0.7")
    assert priced["unit"] == "seconds" and priced["order"] == ["elsewhere/strong"] and priced["seconds"] == 0.625
    assert main([*map(str, given), "--profile", "smoke", "--out", str(tmp_path / "x.json"), "--seconds", "0.3"]) == 1
    assert "no member fits in 0.3 seconds a study: the cheapest needs 0.625" in capsys.readouterr().err
    (theirs / "strong.yaml").write_text(DESCRIPTION.replace("seconds: 0.125", ""))
    assert main([*map(str, given), "--profile", "smoke", "--out", str(tmp_path / "x.json"), "--seconds", "0.3"]) == 1
    assert "no measured seconds of elsewhere/strong, so no budget can be kept: `seconds` in its .yaml file" in (
        capsys.readouterr().err
    )


def test_alone_they_are_scored_on_the_labels_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, data = write_foreign(tmp_path / "theirs", {"a": 3.0, "b": 3.0}), write_labels(tmp_path / "data")
    given = ("--runs", tmp_path / "nowhere", "--oof", theirs)
    result = found(tmp_path / "found.json", *given, "--data", data)
    assert set(result["members"]) == {"elsewhere/a", "elsewhere/b"} and result["studies"] == STUDIES
    mixed, single = (result["scores"][name]["final"]["value"] for name in ("cross_fitted", "best_single"))
    assert mixed < single and "side_by_side" in result["scores"]
    capsys.readouterr()
    assert main([*map(str, given), "--out", str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().err
    assert "have no labels: name the competition's folder with DATA=" in said and said.count("\n") == 1


def test_exchanged_labels_are_not_found_to_be_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, data = write_foreign(tmp_path / "theirs", {"a": 3.0, "b": 1.0}), write_labels(tmp_path / "data")
    lines = (data / "train.csv").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines) - 1)
    studies = [line.partition(",")[0] for line in lines[1:]]
    moved = [f"{study},{lines[1 + at].partition(',')[2]}" for study, at in zip(studies, order, strict=True)]
    (data / "train.csv").write_text("\n".join([lines[0], *moved]))
    given = ["--runs", str(tmp_path / "no"), "--oof", str(theirs), "--data", str(data)]
    assert main([*given, "--out", str(tmp_path / "x.json")]) == 1
    assert "no member answers better than the priors" in capsys.readouterr().err


def test_a_study_that_is_not_of_the_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path / "runs", FIRST)
    theirs = write_foreign(tmp_path / "theirs", {"a": 3.0}, STUDIES + 2)
    assert main(["--runs", str(tmp_path / "runs"), "--profile", "smoke", "--oof", str(theirs), "--out", "x.json"]) == 1
    assert "2 studies that our data do not have (the first: 024)" in capsys.readouterr().err


def test_exchanged_sides_are_named_and_not_put_right_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, data = write_foreign(tmp_path / "theirs", {"right": 3.0, "wrong": 2.0}), write_labels(tmp_path / "data")
    given = ["--runs", str(tmp_path / "no"), "--oof", str(theirs), "--data", str(data)]
    text = (theirs / "wrong.csv").read_text()
    (theirs / "wrong.csv").write_text(
        text.replace("_left_", "_x_").replace("_right_", "_left_").replace("_x_", "_right_")
    )
    assert main([*given, "--out", str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().err
    assert "wrong.csv has left and right exchanged" in said and "exchange left_ and right_ in its row_id" in said
    assert said.count("\n") == 1 and not (tmp_path / "x.json").exists()
    (theirs / "wrong.csv").write_text(text)
    assert main([*given, "--out", str(tmp_path / "x.json")]) == 0
