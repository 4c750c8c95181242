"""The report: complete, in one file, true to the metric, and plain about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import GROUPS, LEVELS, ROWS, SEVERITIES
from tests.support.dicom.dicom_factory import ForeignTruth, write_foreign_dataset
from tests.support.networks.tiny_runs import write_runs
from tests.training.ensemble.test_ensemble_sources import all_labels
from tests.training.ensemble.test_foreign_ensemble import write_foreign, write_labels
from training.data.out_of_fold import Answers, rows_of, write
from training.data.tables import ROW_GROUPS
from training.ensemble import find
from training.ensemble.search import CurvePoint, Ensemble, simple_mean
from training.ensemble.strategies import CrossFit
from training.evaluation.intervals import intervals
from training.evaluation.metric import pooled, row_losses
from training.evaluation.show import open_study
from training.recipe_schema.load import RECIPES, load_named
from training.report.__main__ import main, row_text
from training.report.cases import FoldLocalisers, picture_of
from training.report.figures import apart, gain_figure
from training.report.numbers import confusion, losses_by_condition_and_level, reliability, worst
from training.report.predictions import predict
from training.report.sources import read_sources
from training.runs import RunFolder

SECTIONS = (
    "Score",
    "Conditions and levels",
    "Systems",
    "Folds",
    "Reliability and confusion",
    "Gain by seconds",
    "Localisation",
    "Worst rows",
    "Provenance",
)
VOID = {"meta", "img"}


class Read(HTMLParser):
    """A page's tags, in balance, and its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def write_run(
    runs: Path, recipe: str, labels: pd.DataFrame, folds: int = 2, weights: tuple[float, float, float] = (1, 1, 1)
) -> None:
    random, profile = np.random.default_rng(sum(recipe.encode())), runs / recipe / "smoke"
    for fold in range(folds):
        parts = []
        for member, skill in (("good", 2.0), ("poor", 0.5)):
            said = {
                study: {
                    row: skill * np.eye(3)[max(int(labels.loc[study, row]), 0)] + random.normal(size=3) for row in ROWS
                }
                for study in labels.index[fold::folds]
            }
            parts.append(rows_of(recipe, f"{recipe}_{member}", recipe, fold, said, labels))
            write_network(profile / f"{recipe}_{member}" / f"fold{fold}", recipe, fold, weights)
        write(profile / f"out_of_fold{fold}.parquet", pd.concat(parts))
        error = {"count": 10, "median_mm": 2.0 + fold, "p95_mm": 8.25, "sigma_mm": 1.0}
        content = {"made_by": {}, "errors": {"sagittal_t2": error}}
        (profile / f"localiser_errors_fold{fold}.json").write_text(json.dumps(content))
    seconds = {"members": {f"{recipe}_good": 1.25, f"{recipe}_poor": 0.5}, "located": {recipe: 0.25}}
    (profile / "seconds.json").write_text(json.dumps(seconds))
    (runs / recipe / "priors.json").write_text(json.dumps(public_priors()))


def write_network(folder: Path, recipe: str, fold: int, weights: tuple[float, float, float]) -> None:
    folder.mkdir(parents=True)
    provenance = {
        "recipe": recipe,
        "network": "tiny",
        "backbone": "none",
        "fold": fold,
        "seed": 1,
        "profile": "smoke",
        "torch_version": "2.13.0",
        "git_commit": "0123456789abcdef+",
        "data_fingerprint": "fedcba9876543210ff",
        "resolved_recipe": {"model": "", "weight": dict(zip(GROUPS, weights, strict=True))},
    }
    member = {"role": "grader", "name": f"{folder.parent.name}_fold{fold}"}
    (folder / "artefact.json").write_text(json.dumps({"member": member, "provenance": provenance}))
    (folder / "recipe.resolved.yaml").write_text("text: a < b & c\n")
    (folder / "done.json").write_text("{}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForeignTruth]:
    root = tmp_path_factory.mktemp("data")
    return root, write_foreign_dataset(root, studies=1, seed=4, test_studies=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, ForeignTruth]) -> Path:
    """Two recipes of two members and two folds; only the first study has images."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(1)
    names = [*data[1].train, *(f"study{number}" for number in range(28))]
    labels = random.choice(3, (len(names), len(ROWS)), p=(0.7, 0.2, 0.1))
    labels[3, 4] = -100
    table = pd.DataFrame(labels, index=names, columns=list(ROWS))
    write_run(folder, "one", table)
    write_run(folder, "two", table, weights=(2, 1, 0))
    return folder


@pytest.fixture(scope="module")
def searched(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensemble") / "ensemble.json"
    assert find.main(["--runs", str(runs), "--profile", "smoke", "--out", str(path)]) == 0
    return path


def made(runs: Path, out: Path, *more: str) -> str:
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(out), *more]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_is_complete_and_needs_no_other_file(
    runs: Path, searched: Path, data: tuple[Path, ForeignTruth], tmp_path: Path
) -> None:
    text = made(runs, tmp_path / "new" / "page.html", "--ensemble", str(searched), "--data", str(data[0]))
    found = Read(text).found
    assert [name for name in SECTIONS if f". {name}</h2>" in text] == list(SECTIONS)
    anchors = {its["id"] for _, its in found if "id" in its}
    assert {str(its["href"])[1:] for tag, its in found if tag == "a"} == anchors and len(anchors) == len(SECTIONS)
    images = [its for tag, its in found if tag == "img"]
    assert len(images) >= 3 and all(str(its["src"]).startswith("data:image/") and its["alt"] for its in images)
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object"}
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert "text: a &lt; b &amp; c" in text and "0123456789ab+" in text and "fedcba9876543210" in text
    assert "2.5 [2.0, 3.0]" in text and "are taken to be real ones" in text


def test_on_a_narrow_screen_only_tables_and_charts_scroll_each_in_its_own_frame(
    runs: Path, searched: Path, data: tuple[Path, ForeignTruth], tmp_path: Path
) -> None:
    text = made(runs, tmp_path / "page.html", "--ensemble", str(searched), "--data", str(data[0]))
    scrolled = re.findall(r'<div class="scroll" tabindex="0"><(table|img)', text)
    assert len(scrolled) == text.count("<table") + text.count("<img") and {"table", "img"} == set(scrolled)
    narrow = text.partition("@media (max-width: 40rem)")[2].partition("@media")[0]
    assert "white-space: normal" in narrow and "figure.wide img { max-width: none; width: 40rem; }" in narrow
    assert "overflow-x: auto" in text and "figure img { max-width: 100%; height: auto" in text
    charts, crops = text.count('<figure class="wide">'), text.count("<figure>")
    assert crops == text.count("data:image/png") >= 1 and charts == text.count("data:image/svg") >= 2


def test_its_numbers_are_those_of_the_metric(runs: Path, searched: Path, tmp_path: Path) -> None:
    text = made(runs, tmp_path / "page.html", "--ensemble", str(searched))
    result = json.loads(searched.read_text())
    sources = read_sources(runs, "smoke", [], searched)
    own = predict(sources)
    honest = result["scores"]["cross_fitted"]["final"]
    assert pooled(own.labels, own.ensemble).final == pytest.approx(honest["value"], abs=1e-6)
    for interval in (intervals(own.labels, rows)["final"] for rows in (own.ensemble, own.priors)):
        assert f"{interval.value:.4f}" in text and f"[{interval.low:.4f}, {interval.high:.4f}]" in text
    assert f"<b>{honest['value']:.4f}</b>" in text
    for score in (pooled(own.labels, rows) for rows in own.systems.values()):
        assert all(f"<td>{value:.4f}</td>" in text for value in (score.spinal, score.any_severe, score.final))
    chosen = sources.answers.folds == 1
    assert f"<td>{pooled(own.labels[chosen], own.ensemble[chosen]).final:.4f}</td>" in text
    assert [step.member for step in own.steps] == result["order"]
    assert all(f"<td>{step.seconds:.2f}</td><td>{step.score:.4f}</td>" in text for step in own.steps)


def test_the_score_on_the_rows_of_the_fit_is_told_once_and_named(runs: Path, searched: Path, tmp_path: Path) -> None:
    text = made(runs, tmp_path / "page.html", "--ensemble", str(searched))
    fitted = json.loads(searched.read_text())["fitted_score"]
    words = re.sub(r"\s+", " ", text)
    assert text.count(f"{fitted:.4f}") == 1 and f"score on these very studies, {fitted:.4f}, is too good" in words


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


def test_rows_and_cells_add_up_to_the_metric(runs: Path) -> None:
    own = predict(read_sources(runs, "smoke", [], None))
    sums = row_losses(own.labels, own.ensemble)
    score = pooled(own.labels, own.ensemble)
    for at, group in enumerate(GROUPS):
        part = sums.loss[:, ROW_GROUPS == at].sum() / sums.weight[:, ROW_GROUPS == at].sum()
        assert part == pytest.approx(getattr(score, group))
    cells = losses_by_condition_and_level(own.labels, own.ensemble, own.priors)
    assert cells["spinal_canal_stenosis", "all"].loss == pytest.approx(score.spinal)
    assert sum(cells["left_subarticular_stenosis", level].rows for level in LEVELS) == (own.labels[:, 5:10] >= 0).sum()
    first = worst(own.labels, own.ensemble, 3)
    assert [one.loss for one in first] == sorted(sums.loss.ravel(), reverse=True)[:3]
    assert worst(own.labels[:1, :], own.ensemble[:1], 100)[-1].loss >= 0 and not worst(own.labels, own.ensemble, 0)


def test_the_metrics_best_answer_lies_on_the_reliability_line() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet((2, 1, 1), (4000, len(ROWS)))
    labels = (random.random((4000, len(ROWS), 1)) > shares.cumsum(-1)).sum(-1).clip(0, 2)
    best = shares * (1, 2, 4)
    best /= best.sum(-1, keepdims=True)
    for severity in SEVERITIES:
        bins = reliability(labels, best, "foraminal", severity)
        assert sum(one.rows for one in bins) == 4000 * 10
        assert all(abs(one.observed - one.predicted) < 0.04 for one in bins if one.rows > 500)
    counts = confusion(labels, np.eye(3)[labels], "spinal")
    assert counts.sum() == 4000 * 5 and (counts == np.diag(np.diag(counts))).all()


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


class LowLocalisers(FoldLocalisers):
    """Locate 20 mm below the true landmarks."""

    def __init__(self, points: Mapping[str, np.ndarray]) -> None:
        self.points = points

    def locate(self, study: Study, fold: int) -> dict[str, Located]:
        moved = {row: point - (0, 0, 20.0) for row, point in self.points.items()}
        return {"low": Located(moved), "none": Located()}


def test_a_row_has_its_picture_or_the_reason(data: tuple[Path, ForeignTruth], tmp_path: Path) -> None:
    root, truth = data
    study, row = truth.train[0], "left_neural_foraminal_narrowing_l4_l5"
    alone = picture_of(root, study, row, 0, FoldLocalisers(tmp_path, "smoke", ["split_and_global", "no_recipe"]))
    assert (
        alone.image is not None
        and alone.image.startswith("data:image/png;base64,iVBORw0KGgo")
        and "Sagittal T1" in alone.words
    )
    assert "Only this point is drawn" in alone.words and not alone.errors
    assert row_text(row) == "left neural foraminal narrowing L4/L5"
    low = picture_of(root, study, row, 0, LowLocalisers(truth.landmarks[study]))
    assert low.image is not None and low.image != alone.image and "Crosses: where" in low.words
    in_plane, _, across = low.errors["low"].partition(" / ")
    assert float(in_plane) ** 2 + float(across) ** 2 == pytest.approx(20**2, rel=0.2)
    assert low.errors["none"] == "not located"
    missing = picture_of(root, "study1", row, 0, LowLocalisers({}))
    assert missing.image is None and "has no study 'study1'" in missing.words


def test_landmarks_are_those_of_the_folds_own_localisers(data: tuple[Path, ForeignTruth], tmp_path: Path) -> None:
    write_runs(tmp_path, load_named("split_and_global", "smoke"))
    _, study = open_study(data[0], data[1].train[0])
    localisers = FoldLocalisers(tmp_path, "smoke", ["split_and_global", "view_fusion"])
    found = localisers.locate(study, 0)
    assert list(found) == ["split_and_global"] and set(found["split_and_global"].points) == set(ROWS)
    assert FoldLocalisers(tmp_path, "smoke", ["split_and_global"]).locate(study, 1) == {}


def test_numbers_in_the_gain_figure_do_not_lie_on_each_other() -> None:
    places = np.array([[0, 0], [1, 0], [10, 0], [11, 1], [30, 0], [31, 0]])
    assert apart(places, 5) == [0, 2, 5] and apart(places[:1], 5) == [0] and apart(places[:0], 5) == []
    assert gain_figure([CurvePoint("a", 1.0, 0.3), CurvePoint("b", 1.01, 0.29)]).startswith(
        "data:image/svg+xml;base64,"
    )


def test_phantoms_are_named_as_such(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    text = made(runs, tmp_path / "page.html", "--data", str(tmp_path), "--worst", "1")
    assert "are taken to be real ones" in text and "phantoms, not" not in text, "an import has a truth, too"
    (tmp_path / "truth" / "options.json").touch()
    text = made(runs, tmp_path / "page.html", "--data", str(tmp_path), "--worst", "1")
    assert "phantoms, not patients: these scores promise nothing" in text
    assert re.search(r"No picture: [^<]* has no train_images", text)


def test_text_is_escaped(tmp_path: Path) -> None:
    labels = pd.DataFrame(1, index=[f'<s "{number}">' for number in range(12)], columns=list(ROWS))
    write_run(tmp_path, "<script>&", labels)
    text = made(tmp_path, tmp_path / "page.html", "--worst", "1")
    assert "<script" not in text and "&lt;script&gt;&amp;" in text and "<s " not in text and "&lt;s &#34;" in text
    Read(text)


def test_what_is_missing_is_said_in_one_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(words: str, *more: str, folder: Path = runs) -> None:
        assert main(["--runs", str(folder), "--profile", "smoke", "--out", str(tmp_path / "page.html"), *more]) == 1
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and not said.out
        assert not (tmp_path / "page.html").exists()

    says("make train-all first", folder=tmp_path)
    says("view_fusion has no out-of-fold answers of profile smoke", "--recipes", "view_fusion")
    says("there is no recipe 'three'", "--recipes", "three")
    says("nowhere is no folder", "--data", str(tmp_path / "nowhere"))
    says("0 or more, not -1", "--worst", "-1")
    (tmp_path / "broken.json").write_text("[]")
    says("broken.json holds no ensemble: make ensemble writes it anew", "--ensemble", str(tmp_path / "broken.json"))
    artefact = runs / "one" / "smoke" / "one_good" / "fold0" / "artefact.json"
    kept = artefact.read_text()
    artefact.write_text("{}")
    try:
        says("artefact.json is no artefact of a finished network")
    finally:
        artefact.write_text(kept)


def test_a_recipe_that_is_named_by_its_file_locates_its_worst_rows(
    data: tuple[Path, ForeignTruth], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    text = (RECIPES / "split_and_global.yaml").read_text()
    path.write_text(text.replace("name: split_and_global", "name: mine"))
    recipe = load_named(str(path), "smoke")
    write_runs(tmp_path / "runs", recipe)
    random, study = np.random.default_rng(2), data[1].train[0]
    names = [study, *(f"study{number}" for number in range(3))]
    labels = pd.DataFrame(random.integers(0, 3, (4, 25)), index=names, columns=list(ROWS))
    tables = [
        rows_of(
            "mine",
            one.pooled_as,
            "mine",
            0,
            {name: {row: random.normal(size=3) for row in ROWS} for name in names},
            labels,
        )
        for one in recipe.members()
        if one.member.role == "grader"
    ]
    write(RunFolder(tmp_path / "runs", recipe).out_of_fold(0), pd.concat(tables, ignore_index=True))
    sources = read_sources(tmp_path / "runs", "smoke", [str(path)], None)
    assert [run.named for run in sources.runs] == [str(path)]
    text = made(
        tmp_path / "runs", tmp_path / "page.html", "--recipes", str(path), "--data", str(data[0]), "--worst", "100"
    )
    assert "Only this point is drawn" not in text and "Crosses: where" in text
