"""All results of finished runs as one HTML page.

    python -m training.report --runs RUNS [--data DATA] [--profile full] [--recipes A B]
                                         [--ensemble FILE] [--oof DIR] [--out FILE.html] [--worst 6]

Reads what training and `make ensemble` left in RUNS, and for pictures of the worst rows DATA/train_images.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import CONDITIONS, GROUPS, KIND_OF_GROUP, LEVELS, ROWS, SERIES_TEXTS, SEVERITIES
from kernels.lumbar.run.submission import replace_text
from kernels.profiles import PROFILES
from training.data.folds import FoldsError
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import TablesError
from training.ensemble.result import SINGLE
from training.ensemble.search import SearchError
from training.ensemble.strategies import TITLES
from training.evaluation.intervals import FIGURES, RESAMPLES, Interval
from training.evaluation.localiser_findings import level_of
from training.evaluation.overlays import level_text
from training.evaluation.truth import is_phantom
from training.recipe_schema.schema import RecipeError
from training.report import figures, numbers
from training.report.cases import worst_cases
from training.report.predictions import member_text, predict
from training.report.sources import ReportError, ReportSources, read_sources, short_commit
from training.runs import UnusableRun, git_commit

TEMPLATE = "page.html.j2"
NOT_KNOWN = "–"


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return NOT_KNOWN if math.isnan(value) else f"{value:.{digits}f}"


def span(interval: Interval, sign: str = "") -> str:
    """[low, high]; `sign` "+": with the signs of both."""
    return f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]".replace("nan", NOT_KNOWN)


def row_text(row: str) -> str:
    """left neural foraminal narrowing L4/L5 of its row name."""
    level = level_of(row)
    return f"{row.removesuffix(f'_{level}').replace('_', ' ')} {level_text(level)}"


def render(sources: ReportSources, data: Path | None, worst_rows: int) -> str:
    """The page.  `data`: the folder of the runs' studies, for pictures and to distinguish phantoms from patients."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {one.__name__: one for one in (number, span, member_text, row_text, level_text)}
    environment.filters["fold_text"] = "fold {}".format
    environment.filters["mean_and_range"] = numbers.mean_and_range
    environment.filters["deviation"] = lambda scores: float(np.std(scores, ddof=1))
    own = predict(sources)
    return environment.get_template(TEMPLATE).render(
        own=own,
        sources=sources,
        answers=sources.answers,
        searched=sources.searched,
        data=data,
        phantom=data is not None and is_phantom(data),
        cases=worst_cases(own, data, worst_rows),
        numbers=numbers,
        figures=figures,
        conditions=CONDITIONS,
        levels=LEVELS,
        groups=GROUPS,
        rows=ROWS,
        score_parts=FIGURES,
        severities=[severity.replace("_", "/") for severity in SEVERITIES],
        views=KIND_OF_GROUP.values(),
        view_titles=SERIES_TEXTS,
        strategy_titles=TITLES | {"cross_fitted": "the ensemble", "best_single": SINGLE},
        resamples=RESAMPLES,
        today=datetime.date.today().isoformat(),
        commit=short_commit(git_commit()),
    )


@ends_with_a_sentence(
    "no report",
    ReportError,
    RecipeError,
    UnusableRun,
    SearchError,
    OutOfFoldError,
    FoldsError,
    TablesError,
    OSError,
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="training.report", description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--data", type=Path, help="the folder they were trained on; default: no pictures")
    parser.add_argument("--oof", type=Path, help="folder of other people's out-of-fold predictions and their folds")
    parser.add_argument("--profile", choices=PROFILES, default="full", help="of the runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="default: all that have out-of-fold answers")
    parser.add_argument("--ensemble", type=Path, help="the result of make ensemble; default: RUNS/ensemble.json")
    parser.add_argument("--out", type=Path, help="the page; default: RUNS/report.html")
    parser.add_argument("--worst", type=int, default=6, help="how many of the worst rows are shown")
    given = parser.parse_args(argv)
    out: Path = given.out or given.runs / "report.html"
    if given.data is not None and not given.data.is_dir():
        raise ReportError(f"{given.data} is no folder: name one in the competition's layout with DATA=")
    if given.worst < 0:
        raise ReportError(f"--worst is a number of rows, 0 or more, not {given.worst}")
    sources = read_sources(given.runs, given.profile, given.recipes, given.ensemble, given.oof, given.data)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, render(sources, given.data, given.worst))
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
