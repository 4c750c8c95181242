"""Out-of-fold predictions: one long table, and the arrays from which ensembles are mixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kernels.lumbar.answers.ensemble import rescaled, softmax
from kernels.lumbar.labels import GROUPS, ROW_INDEX, ROWS, SEVERITIES
from kernels.lumbar.run.submission import whole_file
from training.data.tables import MISSING, ROW_GROUPS

KEYS = ["member", "located", "study", "row"]
COLUMNS = ["recipe", "member", "located", "fold", "study", "row", *SEVERITIES, "label"]
TRUTH = "truth"

Average = Literal["logits", "probabilities"]


class OutOfFoldError(Exception):
    """A table on which ensembles cannot be fitted, with the reason."""


def rows_of(
    recipe: str,
    member: str,
    located: str,
    fold: int,
    answers: Mapping[str, Mapping[str, np.ndarray]],
    labels: pd.DataFrame,
) -> pd.DataFrame:
    """One member's part of the table: 25 rows for each study of `answers` (study → row → (3,) logits).

    Rows without a prediction have NaN logits, so that no study is dropped from the score.
    `located`: the recipe whose localisers found the landmarks, or TRUTH.  `labels`: study × 25, -100 = missing.
    Raises OutOfFoldError for studies without labels.
    """
    unknown = [study for study in answers if study not in labels.index]
    if unknown:
        raise OutOfFoldError(f"{member} answers study {unknown[0]}, which the labels do not have")
    none = np.full(len(SEVERITIES), np.nan)
    logits = [np.asarray(rows.get(row, none), np.float32) for rows in answers.values() for row in ROWS]
    table = pd.DataFrame(np.reshape(logits, (-1, len(SEVERITIES))), columns=list(SEVERITIES))
    table["study"] = [study for study in answers for _ in ROWS]
    table["row"] = list(ROWS) * len(answers)
    table["label"] = labels.loc[list(answers), list(ROWS)].to_numpy(np.int64).ravel()
    return table.assign(recipe=recipe, member=member, located=located, fold=fold)[COLUMNS]


def write(path: Path, table: pd.DataFrame) -> None:
    """Check the table and replace the Parquet file atomically.  Raises OutOfFoldError."""
    _check(table, str(path))
    with whole_file(path) as temporary:
        table[COLUMNS].to_parquet(temporary, index=False)


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """Tables of several runs as one.  Raises OutOfFoldError for unreadable or inconsistent tables."""
    tables = []
    for path in paths:
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise OutOfFoldError(f"{path} cannot be read: {error}") from error
        _check(table, str(path))
        tables.append(table[COLUMNS])
    return together(tables)


def together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenated tables of `read`.  Raises OutOfFoldError if they are inconsistent."""
    if not tables:
        raise OutOfFoldError("there is no out-of-fold table to read")
    whole = pd.concat(tables, ignore_index=True)
    _check(whole, "the tables together")
    return whole


def _check(table: pd.DataFrame, name: str) -> None:
    missing = set(COLUMNS) - set(table.columns)
    if missing:
        raise OutOfFoldError(f"{name}: lacks the columns {', '.join(sorted(missing))}")
    if table.empty:
        raise OutOfFoldError(f"{name}: has no rows")
    repeated = table.duplicated(KEYS)
    if repeated.any():
        raise OutOfFoldError(f"{name}: has {' '.join(map(str, table.loc[repeated, KEYS].iloc[0]))} more than once")
    unknown = set(table["row"].unique()) - set(ROWS)
    if unknown:
        raise OutOfFoldError(f"{name}: {sorted(unknown)[0]} is none of the 25 rows")
    if not table["label"].isin([0, 1, 2, MISSING]).all():
        raise OutOfFoldError(f"{name}: labels must be 0, 1, 2 or {MISSING}")
    logits = table[list(SEVERITIES)].to_numpy(np.float64)
    missing_logits = np.isnan(logits)
    if np.isinf(logits).any() or (missing_logits.any(1) != missing_logits.all(1)).any():
        raise OutOfFoldError(f"{name}: logits must be finite, or all three NaN where the member has no prediction")


@dataclass(frozen=True)
class Answers:
    """The table as arrays: predictions of M members for N studies."""

    members: tuple[str, ...]
    """ "located/member", sorted."""
    studies: tuple[str, ...]
    folds: np.ndarray
    """(N,) int."""
    labels: np.ndarray
    """(N, 25) int, negative = missing."""
    logits: np.ndarray
    """(M, N, 25, 3) float64; NaN = no prediction."""
    evaluated: np.ndarray | None = None
    """(M, N) whether a member was run on a study; None = all were."""

    def graded_groups(self) -> np.ndarray:
        """(M, 3 groups) 1 if a member predicts any row of a group, else 0."""
        predicted = (~np.isnan(self.logits[..., 0])).any(1)
        return np.stack([predicted[:, ROW_GROUPS == group].any(1) for group in range(len(GROUPS))], 1).astype(float)

    def only(self, *, studies: np.ndarray | None = None, members: Sequence[str] | None = None) -> Answers:
        """A subset: studies of a mask (N,), members by name in this order."""
        kept = np.arange(len(self.studies)) if studies is None else np.flatnonzero(studies)
        names = self.members if members is None else tuple(members)
        places = [self.members.index(name) for name in names]
        picked = tuple(self.studies[index] for index in kept)
        logits = self.logits[places][:, kept]
        evaluated = None if self.evaluated is None else self.evaluated[places][:, kept]
        return Answers(names, picked, self.folds[kept], self.labels[kept], logits, evaluated)


def answers_of(table: pd.DataFrame) -> Answers:
    """The arrays of a table that `read` returned.  Raises OutOfFoldError where members disagree on folds or labels."""
    for column, keys in (("fold", ["study"]), ("label", ["study", "row"])):
        distinct = table[[*keys, column]].drop_duplicates()
        twice = distinct.duplicated(keys)
        if twice.any():
            place = " ".join(distinct.loc[twice, keys].iloc[0])
            raise OutOfFoldError(f"members disagree on the {column} of {place}: train them on the same folds and data")
    member, members = pd.factorize(table["located"] + "/" + table["member"], sort=True)
    study, studies = pd.factorize(table["study"], sort=True)
    row = table["row"].map(ROW_INDEX).to_numpy()
    folds = np.zeros(len(studies), int)
    folds[study] = table["fold"].to_numpy()
    labels = np.full((len(studies), len(ROWS)), MISSING)
    labels[study, row] = table["label"].to_numpy()
    logits = np.full((len(members), *labels.shape, len(SEVERITIES)), np.nan)
    logits[member, study, row] = table[list(SEVERITIES)].to_numpy(np.float64)
    evaluated = np.zeros(logits.shape[:2], bool)
    evaluated[member, study] = True
    return Answers(tuple(map(str, members)), tuple(map(str, studies)), folds, labels, logits, evaluated)


@dataclass(frozen=True)
class Rule:
    """Averaging rule of kernels.lumbar.answers.ensemble.combine, and the priors of rows without predictions."""

    average: Average
    priors: Mapping[str, tuple[float, float, float]]

    def prior_rows(self) -> np.ndarray:
        """(25, 3) probabilities in the order of ROWS."""
        rows = np.array([self.priors[row] for row in ROWS], np.float64)
        return rows / rows.sum(1, keepdims=True)


@dataclass(frozen=True)
class Scaling:
    """Correction of averaged probabilities by condition group: kernels.lumbar.answers.ensemble.rescaled."""

    multipliers: np.ndarray = field(default_factory=lambda: np.ones((len(GROUPS), len(SEVERITIES))))
    """(3 groups, 3) factor of each severity."""
    temperatures: np.ndarray = field(default_factory=lambda: np.ones(len(GROUPS)))
    """(3 groups,)"""


PLAIN = Scaling()


class Mixture:
    """kernels.lumbar.answers.ensemble.combine for all studies at once, prepared for mixing with many weights."""

    def __init__(self, answers: Answers, rule: Rule) -> None:
        self._average = rule.average
        self._priors = rule.prior_rows()[:, None]
        # Contiguous in this order, or every mix would copy them.
        by_row = np.ascontiguousarray(answers.logits.transpose(2, 0, 1, 3))
        predicted = ~np.isnan(by_row[..., 0])
        self.predicted = predicted.astype(np.float64)
        """(25, M, N) 1 if a member predicts the row, else 0."""
        self.values = np.where(predicted[..., None], by_row if rule.average == "logits" else softmax(by_row), 0)
        """(25, M, N, 3) logits or probabilities to be averaged; 0 = no prediction."""

    def mix(self, weights: np.ndarray, scaling: Scaling = PLAIN) -> np.ndarray:
        """(N, 25, 3) probabilities for the weights (M, 3 groups), in the order of GROUPS."""
        return self.finish(*self.sums(weights), scaling)

    def sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted sums of the predictions (25, N, 3), and sums of the weights of members that predict (25, N)."""
        shares = weights[:, ROW_GROUPS].T[:, None]
        rows, members, studies, classes = self.values.shape
        total = shares @ self.values.reshape(rows, members, studies * classes)
        return total.reshape(rows, studies, classes), (shares @ self.predicted)[:, 0]

    def finish(self, total: np.ndarray, weight: np.ndarray, scaling: Scaling = PLAIN) -> np.ndarray:
        """Probabilities (N, 25, 3) from `sums`, rescaled; else the priors."""
        temperatures, multipliers = scaling.temperatures[ROW_GROUPS], scaling.multipliers[ROW_GROUPS]
        rows = rescaled(self.averaged(total, weight), temperatures[:, None, None], multipliers[:, None])
        rows = np.where((weight > 0)[..., None], rows, self._priors)
        return (rows / rows.sum(-1, keepdims=True)).transpose(1, 0, 2)

    def averaged(self, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Probabilities (25, N, 3) from `sums`, as the weights alone make them."""
        mean = total / np.maximum(weight, 1e-12)[..., None]
        return softmax(mean) if self._average == "logits" else mean

    def slopes(self, weights: np.ndarray, by_probability: np.ndarray, scaling: Scaling = PLAIN) -> np.ndarray:
        """(M, 3 groups) gradient of a loss by the weights, from that by the mixed probabilities (N, 25, 3)."""
        total, weight = self.sums(weights)
        mixed = self.finish(total, weight, scaling).transpose(1, 0, 2)
        by_log = slopes_by_log(mixed, by_probability.transpose(1, 0, 2)) * (weight > 0)[..., None]
        weight = np.maximum(weight, 1e-12)[..., None]
        mean = total / weight
        by_mean = by_log / scaling.temperatures[ROW_GROUPS][:, None, None]
        if self._average == "probabilities":
            by_mean = by_mean / np.maximum(mean, 1e-12)
        by_sum = by_mean / weight
        rows, members, studies, classes = self.values.shape
        by_member = self.values.reshape(rows, members, studies * classes) @ by_sum.reshape(rows, studies * classes, 1)
        rest = self.predicted @ (by_sum * mean).sum(-1)[..., None]
        by_row = (by_member - rest)[..., 0]
        return np.stack([by_row[ROW_GROUPS == group].sum(0) for group in range(len(GROUPS))], -1)


def slopes_by_log(mixed: np.ndarray, by_mixed: np.ndarray) -> np.ndarray:
    """Gradient (..., 3) of a loss by the logarithms that softmax turns into `mixed`, from that by `mixed`."""
    return mixed * (by_mixed - (by_mixed * mixed).sum(-1, keepdims=True))
