"""The report: complete, in one file, true to the metric, and plain about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from tests.support.dicom.dicom_factory import ForeignTruth
from tests.support.networks.reported_runs import made, write_run
from training.evaluation.intervals import intervals
from training.evaluation.metric import pooled
from training.report.__main__ import main
from training.report.predictions import predict
from training.report.sources import read_sources

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
