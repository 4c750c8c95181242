"""Whose answers the report shows: the ensemble's, cross-fitted, and never those of another search."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.labels import GROUPS
from tests.support.networks.reported_runs import made, write_run
from tests.training.ensemble.test_ensemble_sources import all_labels
from tests.training.ensemble.test_foreign_ensemble import write_foreign, write_labels
from training.data.out_of_fold import Answers
from training.ensemble import find
from training.ensemble.search import Ensemble, simple_mean
from training.ensemble.strategies import CrossFit
from training.report.__main__ import main
from training.report.predictions import predict
from training.report.sources import read_sources


def test_an_ensemble_of_another_search_is_named(runs: Path, searched: Path, tmp_path: Path) -> None:
    other = json.loads(searched.read_text())
    other["scores"]["cross_fitted"]["final"]["value"] += 0.01
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert "make ensemble again" in made(runs, tmp_path / "page.html", "--ensemble", str(path))
    assert "make ensemble again" not in made(runs, tmp_path / "page.html", "--ensemble", str(searched))


def test_members_from_elsewhere_are_shown_as_make_ensemble_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, theirs, data = tmp_path / "runs", write_foreign(tmp_path / "theirs", {"strong": 6.0}), tmp_path / "data"
    write_run(runs, "one", all_labels())
    write_labels(data)
    path, page = tmp_path / "ensemble.json", tmp_path / "page.html"
    with_them = ["--oof", str(theirs)]
    assert find.main(["--runs", str(runs), "--profile", "smoke", "--out", str(path), *with_them]) == 0
    text = re.sub(r"\s+", " ", made(runs, page, "--ensemble", str(path), *with_them))
    assert "of 3 in 1 recipe and 1 from elsewhere" in text and "one, members from elsewhere (strong)" in text
    assert text.count("elsewhere / strong") >= 2 and "only the predictions are known here: strong" in text
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(page), "--ensemble", str(path)]) == 1
    assert "these have no member elsewhere/strong, whose predictions OOF= names" in capsys.readouterr().err
    alone = ["--runs", str(tmp_path / "none"), "--profile", "smoke", *with_them, "--data", str(data)]
    assert find.main([*alone, "--out", str(path)]) == 0
    assert main([*alone, "--out", str(page), "--ensemble", str(path)]) == 0
    assert "No recipe takes part" in page.read_text()


def test_a_score_that_could_not_be_computed_is_null_and_no_error(runs: Path, searched: Path, tmp_path: Path) -> None:
    found, path = json.loads(searched.read_text()), tmp_path / "ensemble.json"
    found["scores"]["cross_fitted"]["spinal"] = dict.fromkeys(found["scores"]["cross_fitted"]["spinal"])
    path.write_text(json.dumps(found))
    assert "–" in made(runs, tmp_path / "page.html", "--ensemble", str(path))
    found["scores"]["cross_fitted"]["spinal"] = 0.5
    path.write_text(json.dumps(found))
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(tmp_path / "p"), "--ensemble", str(path)]) == 1


def test_cross_fitted_predictions_are_of_fits_that_never_saw_the_study(runs: Path) -> None:
    sources = read_sources(runs, "smoke", [], None)
    answers, seen = sources.answers, list[tuple[str, ...]]()

    def fit(part: Answers) -> Ensemble:
        seen.append(part.studies)
        weights = np.ones((len(part.members), len(GROUPS)))
        weights[0] = len(seen)
        return Ensemble(part.members, weights, np.ones((len(GROUPS), 3)))

    honest = CrossFit(answers, sources.rule, fit)
    parts = [{study for study, its in zip(answers.studies, answers.folds, strict=True) if its != at} for at in (0, 1)]
    assert [set(its) for its in seen] == parts
    first = answers.folds == 0
    weights = np.ones((len(answers.members), len(GROUPS)))
    alone = Ensemble(answers.members, weights, np.ones((len(GROUPS), 3))).predict(answers, sources.rule)
    assert np.allclose(honest.predicted[first], alone[first]) and not np.allclose(
        honest.predicted[~first], alone[~first]
    )
    assert np.allclose(honest.of(answers.members), honest.predicted) and len(seen) == 2
    assert np.allclose(honest.of([]), predict(sources).priors)
    one = answers.members[1]
    assert np.allclose(
        honest.of([one]), simple_mean(answers.only(members=[one]), sources.rule).predict(answers, sources.rule)
    )


def test_recipes_keep_their_own_weights(runs: Path) -> None:
    sources = read_sources(runs, "smoke", [], None)
    weighed = sources.system(sources.runs[1])
    assert weighed.members == ("two/two_good", "two/two_poor") and (weighed.weights == [[2, 1, 0]] * 2).all()


def test_without_an_ensemble_the_mean_replaces_it_and_the_page_says_so(
    runs: Path, searched: Path, tmp_path: Path
) -> None:
    text = made(runs, tmp_path / "page.html", "--worst", "1")
    assert "the simple mean of all members replaces the ensemble" in text and "make ensemble" in text
    mean = json.loads(searched.read_text())["scores"]["simple_mean"]["final"]["value"]
    assert f"<b>{mean:.4f}</b>" in text
    assert "No picture: the report was made without DATA." in text and "No DATA was named" in text


def test_an_ensemble_of_other_answers_is_not_used(
    runs: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "one", tmp_path / "runs" / "one")
    given = ["--runs", str(tmp_path / "runs"), "--profile", "smoke", "--out", str(tmp_path / "page.html")]
    assert main([*given, "--ensemble", str(searched)]) == 1
    assert "was made from other answers: these have no member two/" in capsys.readouterr().err
    other = json.loads(searched.read_text()) | {"fitted_score": 0.1}
    kept = runs / "ensemble.json"
    kept.write_text(json.dumps(other))
    try:
        assert "was made from other answers (with those it scored 0.1000" in made(runs, tmp_path / "page.html")
    finally:
        kept.unlink()
