"""Stackers fitted to out-of-fold answers beside a mixture: a small MLP on the metric, boosted trees by level.

Both see what the kernel sees (kernels/lumbar/answers/stack.py) and become plain numbers of a manifest.  Source: the 4th
place (trees by level) and the 6th place (an MLP on the metric).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

from kernels.lumbar.answers.stack import LEAST, OWN_ROWS, SIDES, StackedRows, features
from kernels.lumbar.labels import GROUPS, LEVELS, SEVERITIES, SEVERITY_WEIGHTS
from kernels.lumbar.manifest import Layer, StackedGroup, Stacker, Trees
from kernels.lumbar.specs import Group
from training.data.out_of_fold import Answers, Rule
from training.data.tables import ROW_GROUPS
from training.ensemble.search import Ensemble
from training.fitting.losses.grade_losses import competition

Kind = Literal["mlp", "trees"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# A member is an input of a group where it answers so much of what the mixture answers; rows without it stay mixed.
LEAST_ANSWERED = 0.9
HIDDEN, STEPS, LEARNING_RATE = 16, 120, 0.02
# Ridge penalty on the weights, over the number of studies.  On 50 studies of two made-up members, less the mixture: at
# 0.02, 0.2, 1: +0.101, -0.116, -0.073 where there is something to gain, +0.807, +0.189, +0.029 where there is nothing.
PENALTY = 0.5
ROUNDS, LEAVES, TREE_RATE, LEAST_ROWS, RIDGE, BINS = 40, 6, 0.08, 20, 20.0, 63
# Of the mixture in what the trees answer: by themselves they are as coarse as their leaves.
KEPT = 0.5
# Digits of numbers in a manifest.
DIGITS = 6


@dataclass(frozen=True)
class Stacked:
    """A mixture, and the stacker on top of it; its models are "located/member"."""

    mixture: Ensemble
    stacker: Stacker | None
    """None: nothing could be fitted."""

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        """(N, 25, 3) probabilities for the studies of `answers`."""
        mixed = self.mixture.predict(answers, rule)
        rows = mixed.copy()
        for group, spec in self.stacker.groups.items() if self.stacker else ():
            own = ROW_GROUPS == GROUPS.index(group)
            rows[:, own] = StackedRows(group, spec)(_inputs(answers, spec), mixed)[:, own]
        return rows


def fit_stacker(kind: Kind, mixture: Ensemble, answers: Answers, rule: Rule) -> Stacked:
    """Fit on all studies of `answers`, on top of a mixture that was fitted on them."""
    mixed = mixture.predict(answers, rule)
    models = {group: _models_of(mixture, answers, number) for number, group in enumerate(get_args(Group))}
    models = {group: names for group, names in models.items() if names}
    fit = _fit_mlp if kind == "mlp" else _fit_trees
    groups = fit(models, answers, mixed) if models else {}
    return Stacked(mixture, Stacker(kind=kind, groups=groups) if groups else None)


def _models_of(mixture: Ensemble, answers: Answers, group: int) -> tuple[str, ...]:
    """Members of the mixture that answer nearly all rows of a group that any of them answers."""
    logits = answers.only(members=mixture.members).logits[:, :, ROW_GROUPS == group, 0]  # (M, N, K)
    there = ~np.isnan(logits)
    answered = there.sum((1, 2)) / max(int(there.any(0).sum()), 1)
    return tuple(name for name, share in zip(mixture.members, answered, strict=True) if share >= LEAST_ANSWERED)


def _inputs(answers: Answers, spec: StackedGroup) -> np.ndarray:
    """(N, M, 25, 3) logits of a group's models."""
    return _logits(answers, tuple(name for model in spec.models for name in model))


def _logits(answers: Answers, names: tuple[str, ...]) -> np.ndarray:
    return answers.only(members=names).logits.transpose(1, 0, 2, 3)


def _fit_mlp(models: Mapping[Group, tuple[str, ...]], answers: Answers, mixed: np.ndarray) -> dict[Group, StackedGroup]:
    """One small network for each group, whose answers are added to the logarithms of the mixture; all are fitted at
    once to the metric, since its any-severe part is of a whole study."""
    labels = torch.from_numpy(np.where(answers.labels >= 0, answers.labels, -100))
    groups, studies = torch.from_numpy(ROW_GROUPS), torch.arange(len(labels))
    base = torch.from_numpy(np.log(np.maximum(mixed, LEAST))).float()  # (N, 25, 3)
    inputs, answered, scales = {}, {}, {}
    for group, names in models.items():
        found = features(group, _logits(answers, names), mixed)  # (N, 2, 5, D)
        there = np.isfinite(found).all(3)
        known = found[there]
        mean, spread = known.mean(0), np.maximum(known.std(0), 0.1)
        scaled = np.where(there[..., None], (np.nan_to_num(found) - mean) / spread, 0.0)
        inputs[group], answered[group] = torch.from_numpy(scaled).float(), torch.from_numpy(there)
        scales[group] = (mean, spread)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = {group: _small_net(its.shape[-1]) for group, its in inputs.items()}
    weights = [one for net in nets.values() for one in net.parameters() if one.dim() == 2]
    optimiser = torch.optim.Adam([one for net in nets.values() for one in net.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        logits = base.clone()
        for group, net in nets.items():
            change = net(inputs[group]) * answered[group][..., None]  # (N, 2, 5, 3)
            own, change = OWN_ROWS[group], change if group != "spinal" else change.mean(1, keepdim=True)
            for side, rows in enumerate(SIDES[: change.shape[1]]):
                logits[:, rows[own]] = base[:, rows[own]] + change[:, side]
        penalty = sum((one**2).sum() for one in weights) * (PENALTY / max(len(labels), 1))
        loss = competition(logits, labels, groups, studies).mean + penalty
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return {
        group: StackedGroup(
            models=tuple((name,) for name in models[group]), keep=1, layers=_layers(net, *scales[group])
        )
        for group, net in nets.items()
    }


def _small_net(size: int) -> nn.Sequential:
    last = nn.Linear(HIDDEN, len(SEVERITIES))
    nn.init.zeros_(last.weight)  # it begins as the mixture
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, HIDDEN), nn.ReLU(), last)


def _layers(net: nn.Sequential, mean: np.ndarray, spread: np.ndarray) -> tuple[Layer, ...]:
    """The layers, with the scaling of their inputs in the first one's weights."""
    linear = [one for one in net if isinstance(one, nn.Linear)]
    (first, bias), last = ((one.weight.detach().double().numpy(), one.bias.detach().double().numpy()) for one in linear)
    parts = [(first / spread, bias - first @ (mean / spread)), last]
    return tuple(Layer(weights=tuple(map(_rounded, rows)), bias=_rounded(its)) for rows, its in parts)


def _fit_trees(
    models: Mapping[Group, tuple[str, ...]], answers: Answers, mixed: np.ndarray
) -> dict[Group, StackedGroup]:
    """Boosted trees of each group and level, rows of both sides together, weighted as by the metric; half of what they
    answer is the mixture.  A group is left out where a level has not all severities."""
    found = {}
    for group, names in models.items():
        inputs = features(group, _logits(answers, names), mixed)  # (N, 2, 5, D)
        # The canal's rows are seen from both sides.
        labels = np.stack([answers.labels[:, rows[OWN_ROWS[group]]] for rows in SIDES], 1)  # (N, 2, 5)
        usable = np.isfinite(inputs).all(3) & (labels >= 0)
        levels = range(len(LEVELS))
        if all(len(np.unique(labels[:, :, level][usable[:, :, level]])) == len(SEVERITIES) for level in levels):
            trees = tuple(
                _boosted(inputs[:, :, one][usable[:, :, one]], labels[:, :, one][usable[:, :, one]]) for one in levels
            )
            found[group] = StackedGroup(models=tuple((name,) for name in names), keep=KEPT, trees=trees)
    return found


def _boosted(inputs: np.ndarray, labels: np.ndarray) -> Trees:
    """Trees fitted to (R, D) rows with severities (R,)."""
    model = HistGradientBoostingClassifier(
        learning_rate=TREE_RATE,
        max_iter=ROUNDS,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=LEAST_ROWS,
        l2_regularization=RIDGE,
        max_bins=BINS,
        early_stopping=False,
        random_state=0,
    )
    # Rows repeated 1, 2 and 4 times are rows of these weights, which scikit-learn takes twenty times as long to bin.
    times = np.array(SEVERITY_WEIGHTS, int)[labels]
    model.fit(np.repeat(inputs, times, 0), np.repeat(labels, times))
    return trees_of(model, 1 - KEPT)


def trees_of(model: HistGradientBoostingClassifier, share: float) -> Trees:
    """A fitted classifier's trees, whose values are multiplied by `share`.

    scikit-learn has them by private names alone (`_predictors`, `_baseline_prediction`): a test holds answers equal.
    """
    roots: list[int] = []
    parts: list[np.ndarray] = []
    for one in [tree for by_severity in model._predictors for tree in by_severity]:
        offset = sum(len(part) for part in parts)
        nodes = one.nodes
        leaf = nodes["is_leaf"].astype(bool)
        number = np.where(leaf, nodes["value"] * share, nodes["num_threshold"])
        children = [np.where(leaf, 0, nodes[side].astype(int) + offset) for side in ("left", "right")]
        parts.append(np.column_stack([np.where(leaf, -1, nodes["feature_idx"].astype(int)), number, *children]))
        roots.append(offset)
    table = np.concatenate(parts)
    feature, left, right = (tuple(table[:, column].astype(int).tolist()) for column in (0, 2, 3))
    normal, moderate, severe = _rounded(np.ravel(model._baseline_prediction) * share)
    numbers = _rounded(table[:, 1])
    return Trees(
        start=(normal, moderate, severe), roots=tuple(roots), feature=feature, number=numbers, left=left, right=right
    )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
