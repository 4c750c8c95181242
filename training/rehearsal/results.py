"""Results of a rehearsal: one JSON line a network, what they depend on, and their table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ValidationError

from kernels.lumbar.labels import UNITS
from training.benchmarks.cache_growth import REAL_STUDIES
from training.benchmarks.tables import Cell, Table
from training.digests import code_digest, digest
from training.fitting.losses import LOSSES
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.workflow.costs import epochs_of

FILE, TABLE = "rehearsal.jsonl", "rehearsal.md"
# Counts up when earlier results no longer compare.
VERSION = 1
FOLLOWED = ("training.networks.", "training.fitting.")
COLUMNS = (
    "network",
    "M param.",
    "batch",
    "accumulate",
    "steps",
    "rate",
    "before",
    "constant",
    "floor",
    "after",
    "GiB",
    "s a step",
    "hours",
)


class Rehearsed(BaseModel, frozen=True):
    """How one network did."""

    name: str
    digest: str
    device: str
    """cpu, whether in mixed precision or not, or the name of the GPU."""
    failure: str = ""
    """Why it failed; empty where it learned and its export agrees."""
    seconds: float = 0.0
    """Of the whole rehearsal of it."""
    work: float = 0.0
    """GFLOP of one sample's forward pass, by which the time left is estimated."""
    parameters: int | None = None
    samples: int | None = None
    """In the batch that was fitted."""
    published_samples: int | None = None
    """In a batch of the recipe."""
    accumulate: int | None = None
    published_accumulate: int | None = None
    activation_checkpointing: bool = False
    memory_gib: float | None = None
    """Of a step with a batch of the recipe in `accumulate` parts."""
    memory_is: Literal["measured", "estimated"] | None = None
    steps: int | None = None
    rates: tuple[float, ...] = ()
    """Learning rates, one after the other: that of the recipe, and a higher one if it was too low."""
    before: float | None = None
    after: float | None = None
    constant: float | None = None
    """Loss of the best answers that are the same for all samples."""
    floor: float | None = None
    """Loss of the best of all answers."""
    seconds_a_step: float | None = None
    """With a batch of the recipe; on a CPU scaled from the smaller one."""
    hours: float | None = None
    """Of the full training: all steps, epochs and folds."""

    @property
    def row(self) -> list[Cell]:
        """In the table."""
        few = self.samples != self.published_samples
        batch = f"{self.samples} of {self.published_samples}" if few else str(self.samples)
        changed = self.accumulate != self.published_accumulate
        accumulate = f"{self.accumulate}, not {self.published_accumulate}" if changed else str(self.accumulate)
        accumulate += ", checkpointed" if self.activation_checkpointing else ""
        return [
            f"{self.name}{' FAILED' if self.failure else ''}",
            None if self.parameters is None else self.parameters / 1e6,
            None if self.samples is None else batch,
            None if self.accumulate is None else accumulate,
            self.steps,
            " then ".join(f"{rate:g}" for rate in self.rates) or None,
            self.before,
            self.constant,
            self.floor,
            self.after,
            self.memory_gib,
            self.seconds_a_step,
            self.hours,
        ]


def read_results(file: Path) -> dict[str, Rehearsed]:
    """Digest → its last result; damaged lines, as a killed run may leave, count as missing."""
    found: dict[str, Rehearsed] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            one = Rehearsed.model_validate_json(line)
        except ValidationError:
            continue
        found[one.digest] = one
    return found


def add_result(file: Path, one: Rehearsed) -> None:
    """Append a line, after completing one that a killed run left."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(
            ("\n" if text and not text.endswith("\n") else "") + json.dumps(one.model_dump(mode="json")) + "\n"
        )


def result_digest(member: MemberRecipe, setting: Sequence[object]) -> str:
    """Digest of what a network's result depends on: its recipe, its code, and the rehearsal's setting."""
    start = (
        f"training.networks.{member.fitting.network.name}",
        LOSSES[member.fitting.loss].compute.__module__,
        "training.networks",
        "training.fitting.fit_state",
        "training.fitting.export",
    )
    return digest(VERSION, member.model_dump(mode="json"), code_digest(start, FOLLOWED), torch.__version__, *setting)


def training_steps(recipe: Recipe, member: MemberRecipe) -> int:
    """Optimiser steps of the full training: all epochs in all folds, on the competition's studies."""
    units = 1 if member.fitting.optimisation.whole_studies else len(UNITS[member.member.unit])
    samples = REAL_STUDIES * (recipe.folds - 1) // recipe.folds * units
    folds = [fold for fold in recipe.train_folds or range(recipe.folds) if member.is_trained_in(fold)]
    return max(samples // member.fitting.optimisation.batch_size, 1) * epochs_of(member) * len(folds)


def table_of(results: Iterable[Rehearsed], memory_gb: float) -> Table:
    """The table of all networks, with its remarks."""
    results = list(results)
    failed = [one for one in results if one.failure]
    devices = " and ".join(sorted({one.device for one in results}))
    hours = sum(one.hours or 0.0 for one in results)
    remarks = [
        f"{len(results) - len(failed)} of {len(results)} networks learned one fixed batch and were exported alike, on "
        f"{devices}, from scratch, without published weights",
        "learned: half of the loss above its floor is gone, and a tenth of what the best constant answer has above it "
        "(where that has less than a fiftieth of the loss, half is enough)",
        "rate: of the recipe, without warm-up, then a higher one where it was too low for so few steps",
        f"accumulate: what {memory_gb:g} GB need, on a CPU by an estimate from what autograd keeps of one sample; with "
        "activation checkpointing a GPU alone measures the memory",
        f"hours: the full training on {REAL_STUDIES:,} studies here, all folds; {hours:,.0f} in all",
    ]
    remarks += [f"FAILED {one.name}: {one.failure}" for one in failed]
    return Table("rehearsal", "rehearsal", COLUMNS, [one.row for one in results], remarks)
