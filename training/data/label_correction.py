"""Correction of graders' labels by the out-of-fold predictions of an earlier run, or by a table of changed labels.

Source: the 2nd place's teams dropped labels that their models contradicted ("noise reduction" in the write-up), and
imputed missing ones from the models.

Not nested, as theirs was: what the earlier run predicts for a training study of fold f comes from networks that were
trained on the labels of f.  These reach the new network by way of the corrected labels, and its out-of-fold score is
better than that on other studies.  Validation says so (training/evaluation/validate.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROWS
from training.data.label_table import SHARE, LabelTable, is_label_table, read_label_table
from training.data.out_of_fold import Mixture, OutOfFoldError, Rule, answers_of, read
from training.data.soft_labels import read_soft_labels
from training.data.tables import MISSING, Tables
from training.recipe_schema.fitting import Labels
from training.recipe_schema.schema import MemberRecipe

log = logging.getLogger("labels")
TABLE = "out_of_fold"


@dataclass(frozen=True)
class EarlierPredictions:
    """Out-of-fold probabilities of an earlier run."""

    studies: tuple[str, ...]
    probabilities: np.ndarray
    """(N, 25, 3); NaN = not predicted."""
    fingerprint: str


EarlierLabels = EarlierPredictions | LabelTable


def read_labels(path: Path) -> EarlierLabels:
    """What LABELS= names: a table of changed labels, or what `read_predictions` reads.  Raises OutOfFoldError."""
    return read_label_table(path) if is_label_table(path) else read_predictions(path)


def is_changed(earlier: EarlierLabels | None, member: MemberRecipe) -> bool:
    """Whether a network is trained on other labels: those of a table are for all graders, else its recipe asks."""
    if isinstance(earlier, LabelTable):
        return member.member.role == "grader"
    return earlier is not None and member.fitting.labels.any


def read_predictions(path: Path) -> EarlierPredictions:
    """The mean of all members of an out-of-fold table, or of all tables of a run's folder; or a CSV of soft labels.

    Raises OutOfFoldError.
    """
    if path.suffix == ".csv" and path.is_file():
        return EarlierPredictions(*read_soft_labels(path), hashlib.sha256(path.read_bytes()).hexdigest())
    tables = _tables_of(path)
    answers = answers_of(read(tables))
    even: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    mixture = Mixture(answers, Rule("probabilities", dict.fromkeys(ROWS, even)))
    probabilities = mixture.mix(np.ones((len(answers.members), 3)))
    probabilities[np.isnan(answers.logits[..., 0]).all(0)] = np.nan
    fingerprint = hashlib.sha256(b"".join(table.read_bytes() for table in tables)).hexdigest()
    return EarlierPredictions(answers.studies, probabilities, fingerprint)


def _tables_of(path: Path) -> list[Path]:
    """The given table, or all tables of the given folder, which must be of one run."""
    remedy = "name the folder of a finished run, RUNS/<recipe>/<profile>"
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise OutOfFoldError(f"LABELS={path} does not exist: {remedy}")
    if tables := sorted(path.glob(f"{TABLE}*.parquet")):
        return tables
    below = sorted({str(table.parent) for table in path.rglob(f"{TABLE}*.parquet")})
    if not below:
        raise OutOfFoldError(f"LABELS={path} holds no out-of-fold answers: {remedy}")
    raise OutOfFoldError(f"LABELS={path} holds no answers itself, folders below it do: name one of {', '.join(below)}")


def check_coverage(earlier: EarlierLabels, labels: pd.DataFrame) -> None:
    """Warn if not all studies of `labels` (study × row) have predictions.

    Raises OutOfFoldError if none has, or if a table is of other studies or of other labels.
    """
    studies = list(labels.index)
    answered = len(set(studies) & set(earlier.studies))
    if isinstance(earlier, LabelTable):
        if answered < len(earlier.studies):
            raise OutOfFoldError("LABELS= changes studies that DATA= does not have: it is a table of other data")
        earlier.check(labels)
        log.info("LABELS= changes %d labels of %d studies", len(earlier.changes), len(earlier.studies))
        return
    if not answered:
        raise OutOfFoldError("LABELS= answers none of the studies of DATA=: it is a run on other data")
    if answered < len(studies):
        log.warning(
            "LABELS= answers %d of the %d training studies: the labels of the other %d stay as they are "
            "(train all folds of that run to have answers for all)",
            *(answered, len(studies), len(studies) - answered),
        )


def with_corrected_labels(
    tables: Tables, earlier: EarlierPredictions | None, correction: Labels, studies: Sequence[str]
) -> Tables:
    """The tables with the labels of `studies` corrected; held-out studies keep theirs."""
    if earlier is None or not correction.any:
        return tables
    labels = tables.labels.copy()
    place = {study: number for number, study in enumerate(earlier.studies)}
    known = [study for study in studies if study in place]
    predicted = earlier.probabilities[[place[study] for study in known]]  # (N, 25, 3)
    given = labels.loc[known, list(ROWS)].to_numpy(int)
    corrected = given.copy()
    if correction.doubt is not None:
        of_label = np.take_along_axis(predicted, given.clip(0)[..., None], 2)[..., 0]
        corrected[(given != MISSING) & (of_label < 1 - correction.doubt)] = MISSING
    if correction.guess is not None:
        confident = (given == MISSING) & (np.nan_to_num(predicted).max(2) > correction.guess)
        corrected[confident] = np.nan_to_num(predicted).argmax(2)[confident]
    labels.loc[known, list(ROWS)] = corrected
    missing, still = given == MISSING, corrected == MISSING
    dropped, filled = int((still & ~missing).sum()), int((missing & ~still).sum())
    log.info("%d labels of %d studies are left out, %d missing ones filled in", dropped, len(known), filled)
    return replace(tables, labels=labels)


def corrected(
    tables: Tables, earlier: EarlierLabels | None, member: MemberRecipe, studies: Sequence[str]
) -> tuple[Tables, dict[str, np.ndarray], MemberRecipe]:
    """What a network is trained on: the tables with the labels of `studies` corrected, study → (25, 3) answers that
    take a share of its targets, and the network with that share (`labels.soft`)."""
    asked = member.fitting.labels
    if not isinstance(earlier, LabelTable):
        return with_corrected_labels(tables, earlier, asked, studies), soft_labels_of(earlier, asked, studies), member
    if member.member.role != "grader":
        return tables, {}, member
    changed, answers = earlier.apply(tables, studies)
    return changed, answers, member.with_fitting(labels=Labels(soft=SHARE if answers else None))


def soft_labels_of(
    earlier: EarlierPredictions | None, correction: Labels, studies: Sequence[str]
) -> dict[str, np.ndarray]:
    """Study → (25, 3) probabilities that are mixed into its labels, of these studies alone; none where none are."""
    if earlier is None or correction.soft is None:
        return {}
    asked = set(studies)
    pairs = zip(earlier.studies, earlier.probabilities, strict=True)
    return {study: rows for study, rows in pairs if study in asked}
