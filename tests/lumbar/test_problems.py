"""Problems: each kind has a consequence, and a summary says how often, in how many studies, and gives an example."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import asdict

from kernels.lumbar.problems import CONSEQUENCES, MEANINGS, Problem, outcome, summary
from tests.support import ROOT

# Slugs in the same sources that are no kinds.
OTHERS = {"input-root", "time-limit", "lumbar-kit-manifest", "lumbar-kit-run-report"}


def slugs() -> set[str]:
    """Every text of words with dashes in what adds problems."""
    paths = [path for folder in ("kernels/lumbar", "training/data") for path in (ROOT / folder).rglob("*.py")]
    texts = {
        node.value
        for path in paths
        if path.name != "problems.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {
        text for text in texts if "-" in text and all(part.isalpha() and part.islower() for part in text.split("-"))
    }


def test_every_kind_has_one_consequence():
    kinds = Counter(kind for kinds in CONSEQUENCES.values() for kind in kinds.split())
    assert set(kinds.values()) == {1}
    assert set(kinds) == slugs() - OTHERS | {"localiser-failed", "grader-failed"}
    assert set(MEANINGS) == set(kinds)


def test_the_summary_counts_kinds_and_studies_the_most_frequent_first():
    problems = [
        Problem("", "a network", "member-unusable", "sha256 differs"),
        Problem("7", "8/1.dcm", "empty-file", "0 bytes"),
        Problem("7", "8/2.dcm", "empty-file", "0 bytes"),
        Problem("9", "8/2.dcm", "empty-file", "0 bytes"),
        Problem("9", "", "new-kind", "odd"),
    ]
    assert summary(map(asdict, problems)).splitlines() == [
        "5 problems by kind (each one in run_report.json):",
        "  empty-file: 3 in 2 studies; this file or slice is left out, the rest of its series is read",
        "    such as study 7 8/1.dcm: 0 bytes",
        "  member-unusable: 1; this network is left out",
        "    such as a network: sha256 differs",
        "  new-kind: 1 in 1 study; see the example",
        "    such as study 9: odd",
    ]
    assert summary([]) == "no problems"


def test_the_outcome_of_a_run_names_studies_rows_and_problems():
    report = {"studies": {"asked": 3, "graded": 2}, "fallbacks": {"rows": 5}, "problems": []}
    kept = "graded 2 of 3 studies; 5 of their rows kept the prior; 1 not graded, with the prior in every row"
    assert outcome(report) == f"{kept}\nno problems"
    report["fallbacks"]["guessed"] = {"rows": 7, "studies": {}}
    assert "kept the prior; 7 were answered from other series at guessed landmarks; 1 not" in outcome(report)


def test_a_file_name_that_is_not_utf8_can_be_printed_anywhere():
    problems = [asdict(Problem("7", "8/\udcff.dcm", "empty-file", "0 bytes"))]
    report = {"studies": {"asked": 1, "graded": 1}, "fallbacks": {"rows": 0}, "problems": problems}
    assert "8/\\udcff.dcm: 0 bytes" in outcome(report).encode("utf-8").decode()
