"""Everything that finished runs say of themselves, as one HTML page.

    python -m training.report --runs RUNS [--data DATA] [--profile full] [--recipes A B]
                                         [--ensemble FILE] [--out FILE.html] [--worst 6]

Reads what training and `make ensemble` left in RUNS, and for pictures of the worst rows DATA/train_images.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.lumbar.run.submission import replace_text
from training.data.out_of_fold import OutOfFoldError
from training.ensemble.search import SearchError
from training.recipe.schema import PROFILES
from training.report.details import calibration, cases, gain, localisation
from training.report.ensemble_file import ReportError
from training.report.finished_runs import RecipeRun, ReportSources, TrainedNetwork, read_sources
from training.report.page import Html, Section, details, joined, note, page, paragraph, table, tag
from training.report.predictions import predicted_from
from training.report.sections import NOT_TOLD, conditions, folds, headline, systems
from training.runs import git_commit

COMMIT_LETTERS, FINGERPRINT_LETTERS = 12, 16


def report(sources: ReportSources, data: Path | None, worst_rows: int) -> str:
    """The page.  `data`: the folder that the runs were trained on, for pictures and to tell phantoms from patients."""
    own = predicted_from(sources, data)
    recipes = ", ".join(run.name for run in sources.runs)
    made = f"Made on {datetime.date.today().isoformat()} by commit {_commit(git_commit())}."
    introduction = f"Lumbar spine grading, profile {sources.profile}: {recipes}. Scores are the competition's. {made}"
    parts = [headline(own), conditions(own), systems(own), folds(own), calibration(own), gain(own)]
    parts += [localisation(sources), cases(own, worst_rows), provenance(sources)]
    return page("Report of finished runs", introduction, parts)


def provenance(sources: ReportSources) -> Section:
    """What made the networks."""
    rows = [[run.name, *_made_of(run.networks), run.average] for run in sources.runs]
    headings = ["recipe", "networks", "folds", "commit", "torch", "data fingerprint", "averages"]
    caption = f"Finished networks of profile {sources.profile}. A commit with + had changed files."
    content = [table(caption, headings, rows)]
    prints = {one.provenance.data_fingerprint for run in sources.runs for one in run.networks}
    if len(prints) > 1:
        content.append(note("The networks were trained on different data.", warning=True))
    content += [_recipe(run) for run in sources.runs]
    return Section("Provenance", joined(content))


def _made_of(networks: Sequence[TrainedNetwork]) -> list[str]:
    made = [one.provenance for one in networks]
    commits = sorted({_commit(one.git_commit) for one in made})
    prints = sorted({one.data_fingerprint[:FINGERPRINT_LETTERS] for one in made})
    listed = [sorted({str(one.fold) for one in made}), commits, sorted({one.torch_version for one in made}), prints]
    return [str(len(networks)), *(", ".join(its) or NOT_TOLD for its in listed)]


def _commit(name: str) -> str:
    return name[:COMMIT_LETTERS] + ("+" if name.endswith("+") else "")


def _recipe(run: RecipeRun) -> Html:
    """The resolved recipe of each network, once for all folds."""
    first: dict[str, TrainedNetwork] = {}
    for network in run.networks:
        first.setdefault(network.member, network)
    if not first:
        return paragraph(f"{run.name} keeps no finished networks here, so its recipe is not known.")
    blocks = [
        details(
            f"{name} ({one.role}, {one.provenance.network}, {one.provenance.backbone}), fold {one.provenance.fold}",
            tag("pre", one.recipe_text or "recipe.resolved.yaml is gone"),
        )
        for name, one in first.items()
    ]
    return details(f"Resolved recipe of {run.name}", joined(blocks))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="training.report", description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--data", type=Path, help="the folder they were trained on; default: no pictures")
    parser.add_argument("--profile", choices=PROFILES, default="full", help="of the runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="default: all that have out-of-fold answers")
    parser.add_argument("--ensemble", type=Path, help="the result of make ensemble; default: RUNS/ensemble.json")
    parser.add_argument("--out", type=Path, help="the page; default: RUNS/report.html")
    parser.add_argument("--worst", type=int, default=6, help="how many of the worst rows are shown")
    given = parser.parse_args(argv)
    out: Path = given.out or given.runs / "report.html"
    try:
        if given.data is not None and not given.data.is_dir():
            raise ReportError(f"{given.data} is no folder: name one in the competition's layout with DATA=")
        if given.worst < 0:
            raise ReportError(f"--worst is a number of rows, 0 or more, not {given.worst}")
        sources = read_sources(given.runs, given.profile, given.recipes, given.ensemble)
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, report(sources, given.data, given.worst))
    except (ReportError, SearchError, OutOfFoldError, OSError) as error:
        sys.stderr.write(f"no report: {error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
