"""Labels that an ensemble contradicts, as a table of changed labels to train again with.

    python -m training.ensemble.relabel --runs RUNS --out DIR [--recipes A B] [--profile full] [--threshold 0.8]
                                        [--mix] [--guess 0.9] [--oof DIR [--data DIR]]

Source: the 2nd place's teams dropped labels with |label - prediction| of 0.8 or more ("noise reduction") and trained on
half label, half prediction.  The answers are nested (nested.py); what a later training makes of them is not: see
training/data/label_correction.py.  DIR/relabelled.csv is the table, DIR/relabelled.md what is printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import CONDITIONS, ROW_PLACES, ROWS, SEVERITIES
from kernels.lumbar.run.submission import replace_text
from kernels.text import aligned
from training.data.folds import FoldsError
from training.data.label_table import ANSWER, BOTH, NOTHING, TEXTS, write_label_table
from training.data.out_of_fold import Answers, OutOfFoldError
from training.data.tables import TablesError
from training.ensemble.nested import nested_answers
from training.ensemble.search import SearchError
from training.ensemble.sources import add_sources, sources_from
from training.evaluation.intervals import FIGURES
from training.evaluation.metric import pooled
from training.recipe_schema.load import names_of
from training.recipe_schema.schema import RecipeError
from training.runs import UnusableRun

TABLE, REPORT = "relabelled.csv", "relabelled.md"
# So many of the most doubtful labels are printed.
SHOWN = 20
# Column of the guessed labels among those of given ones.
GUESSED = "missing"


@dataclass(frozen=True)
class Relabelling:
    """Which labels are changed, and how."""

    threshold: float = 0.8
    """Of 1 - the probability of the label."""
    mix: bool = False
    """Half label, half answer; else dropped."""
    guess: float | None = None
    """Missing labels are answered where one severity has more than this probability; None = never."""


@dataclass(frozen=True)
class Change:
    """A label in doubt or missing."""

    study: str
    row: str
    label: int
    use: str
    answer: np.ndarray
    """(3,) probabilities, by the metric's weights as the networks answer."""

    @property
    def doubt(self) -> float:
        """1 - the probability of the label; of a missing one the probability of the answer less 1, so that it comes
        after all others."""
        return 1 - float(self.answer[self.label]) if self.label >= 0 else float(self.answer.max()) - 1

    @property
    def condition(self) -> str:
        """Of the row, without its level."""
        return ROW_PLACES[self.row][0]


def changes_of(answers: Answers, nested: np.ndarray, asked: Relabelling) -> list[Change]:
    """What changes, the most doubtful first.  `nested`: (N, 25, 3), NaN = no answer."""
    labels, known = answers.labels, ~np.isnan(nested[..., 0])
    of_label = np.take_along_axis(nested, labels.clip(0)[..., None], 2)[..., 0]
    doubted = known & (labels >= 0) & (1 - of_label >= asked.threshold)
    guessed = np.zeros_like(doubted)
    if asked.guess is not None:
        guessed = known & (labels < 0) & (np.nan_to_num(nested).max(2) > asked.guess)
    found = []
    for study, row in np.argwhere(doubted | guessed):
        use = ANSWER if guessed[study, row] else BOTH if asked.mix else NOTHING
        label = int(labels[study, row])
        found.append(Change(answers.studies[study], ROWS[row], label, use, nested[study, row]))
    return sorted(found, key=lambda one: (-one.doubt, one.study, one.row))


def report_of(answers: Answers, nested: np.ndarray, changes: Sequence[Change], asked: Relabelling) -> str:
    """Counts by condition and direction, and the most doubtful labels."""
    labelled = answers.labels >= 0
    score = pooled(answers.labels, np.where(np.isnan(nested), 1 / 3, nested))
    doubted = [one for one in changes if one.label >= 0]
    what = "half label, half answer from now on" if asked.mix else "dropped"
    share = len(doubted) / max(int(labelled.sum()), 1)
    lines = [
        f"nested answers of {len(answers.studies)} studies score "
        + ", ".join(f"{name} {getattr(score, name):.4f}" for name in FIGURES),
        f"{len(doubted)} of {labelled.sum()} labels ({share:.1%}) have an answer of {1 - asked.threshold:.2g} or less: "
        + what,
    ]
    if asked.guess is not None:
        lines.append(f"{len(changes) - len(doubted)} of {(~labelled).sum()} missing labels are answered instead")
    return "\n".join([*lines, "", *_by_direction(answers, changes), "", *_most_doubtful(doubted)])


def _by_direction(answers: Answers, changes: Sequence[Change]) -> list[str]:
    """How many labels of each condition are changed, from which severity to which."""
    directions = [(label, said) for label in (0, 1, 2, -1) for said in range(3) if label != said]
    counts = Counter((one.condition, max(one.label, -1), int(one.answer.argmax())) for one in changes)
    names = [f"{TEXTS.get(label, GUESSED) or GUESSED} → {TEXTS[said]}" for label, said in directions]
    shown = [at for at, one in enumerate(directions) if any(counts[condition, *one] for condition in CONDITIONS)]
    rows = [["changed labels", "labels", *(names[at] for at in shown)]]
    for condition in CONDITIONS:
        own = [row.startswith(condition) for row in ROWS]
        total = int((answers.labels[:, own] >= 0).sum())
        rows.append([condition, str(total), *(str(counts[condition, *directions[at]]) for at in shown)])
    return aligned(rows)


def _most_doubtful(doubted: Sequence[Change]) -> list[str]:
    rows = [["most doubtful", "condition and level", "label", *SEVERITIES]]
    for one in doubted[:SHOWN]:
        rows.append([one.study, one.row, TEXTS[one.label], *(f"{value:.2f}" for value in one.answer)])
    return aligned(rows)


def probability_of(name: str, text: str) -> float:
    """A probability of a command line.  Raises SearchError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise SearchError(f"{name} is a probability between 0 and 1, such as 0.8, not '{text}'")
    return value


@ends_with_a_sentence(
    "no relabelling", SearchError, OutOfFoldError, FoldsError, TablesError, RecipeError, UnusableRun, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.ensemble.relabel", description=__doc__)
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the report")
    parser.add_argument(
        "--threshold", default="0.8", help="of 1 - the probability of the label, from which it is changed"
    )
    parser.add_argument("--mix", action="store_true", help="half label, half answer, in place of dropping the label")
    parser.add_argument("--guess", help="probability from which missing labels are answered; default: they stay so")
    options = parser.parse_args(argv)
    guess = None if options.guess is None else probability_of("GUESS", options.guess)
    asked = Relabelling(probability_of("THRESHOLD", options.threshold), options.mix, guess)
    sources = sources_from(options)
    nested = nested_answers(sources.answers)
    changes = changes_of(sources.answers, nested, asked)
    text = "\n".join([*sources.remarks, report_of(sources.answers, nested, changes, asked)])
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [
        {"study_id": one.study, "row": one.row, "label": one.label, "use": one.use, "answer": one.answer}
        for one in changes
    ]
    write_label_table(options.out / TABLE, lines)
    replace_text(options.out / REPORT, f"```\n{text}\n```\n")
    again = free(options.runs)
    named = names_of(options.recipes) if options.recipes else [folder.parent.name for folder in sources.folders]
    recipes = " ".join(named)
    given = [f"RUNS={shlex.quote(str(again))}", f"PROFILE={options.profile}", f"RECIPES={shlex.quote(recipes)}"]
    sys.stdout.write(
        f"{text}\n\n{options.out / TABLE}: {len(changes)} changed labels\n"
        f"next: {copying(options.runs, again)} && make train-all DATA=… {' '.join(given)} "
        f"LABELS={shlex.quote(str(options.out / TABLE))}\n"
    )
    return 0


def free(runs: Path) -> Path:
    """A folder beside `runs` that is not there yet, for a copy."""
    name = f"{runs}-relabelled"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(one for one in map(Path, names) if not one.exists())


def copying(runs: Path, copy: Path) -> str:
    """Commands that copy a folder, and stop at one that is there: `cp -a` alone would copy into it."""
    source, target = (shlex.quote(str(one)) for one in (runs, copy))
    return f"mkdir {target} && cp -a {source}/. {target}"


if __name__ == "__main__":
    sys.exit(main())
