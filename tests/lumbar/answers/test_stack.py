"""Stacked answers in the kernel: sides, missing answers, and manifests that cannot be evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.answers.stack import OWN_ROWS, Stack, features
from kernels.lumbar.labels import GROUPS, MIRROR, ROW_INDEX, ROWS
from kernels.lumbar.manifest import STACKER_CONTEXT, Layer, StackedGroup, Stacker, Trees

SIZE = 2 * 2 + STACKER_CONTEXT
RANDOM = np.random.default_rng(0)
MODELS = (("a_fold0", "a_fold1"), ("b_fold0",))
GRADERS = ["a_fold0", "a_fold1", "b_fold0", "unused"]


def layers() -> tuple[Layer, ...]:
    """Two random layers."""
    sizes = ((8, SIZE), (3, 8))
    return tuple(Layer(weights=RANDOM.normal(0, 0.3, one).tolist(), bias=RANDOM.normal(size=one[0])) for one in sizes)


def stump(feature: int) -> Trees:
    """For each severity a tree of one split and two leaves."""
    one = {"feature": [feature, -1, -1], "left": [1, 0, 0], "right": [2, 0, 0]}
    numbers = [value for severity in range(3) for value in (0.1, -0.5 * severity, 0.4 * severity)]
    shift = [0, 0, 0, 3, 3, 3, 6, 6, 6]
    left, right = ([child + by for child, by in zip(one[side] * 3, shift, strict=True)] for side in ("left", "right"))
    return Trees(
        start=(0.1, 0, -0.1), roots=(0, 3, 6), feature=one["feature"] * 3, number=numbers, left=left, right=right
    )


def stackers() -> list[Stacker]:
    made = {
        "mlp": [StackedGroup(models=MODELS, keep=1, layers=layers()) for _ in GROUPS],
        "trees": [StackedGroup(models=MODELS, keep=0.5, trees=[stump(at) for at in range(5)]) for _ in GROUPS],
    }
    return [Stacker(kind=kind, groups=dict(zip(GROUPS, its, strict=True))) for kind, its in made.items()]


def study(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits (4, 25, 3) and a mixture (25, 3)."""
    random = np.random.default_rng(seed)
    return random.normal(0, 2, (len(GRADERS), 25, 3)), softmax(random.normal(0, 2, (25, 3)))


@pytest.mark.parametrize("stacker", stackers(), ids=lambda one: one.kind)
def test_a_mirrored_study_gets_mirrored_answers(stacker: Stacker) -> None:
    logits, mixture = study()
    stack, mirror = Stack(stacker, GRADERS), list(MIRROR)
    rows, kept = stack.apply(logits, mixture)
    mirrored, _ = stack.apply(logits[:, mirror], mixture[mirror])
    np.testing.assert_allclose(mirrored, rows[mirror], rtol=0, atol=1e-12)
    assert not kept.any() and np.abs(rows - mixture).max(1).min() > 1e-4
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-12)
    assert np.abs(rows[mirror] - rows).max() > 0.01  # or the test shows nothing


@pytest.mark.parametrize("stacker", stackers(), ids=lambda one: one.kind)
def test_a_row_without_all_answers_keeps_the_mixture_and_is_named(stacker: Stacker) -> None:
    logits, mixture = study()
    whole, _ = Stack(stacker, GRADERS).apply(logits, mixture)
    row = ROW_INDEX["left_subarticular_stenosis_l4_l5"]
    logits[2, row] = np.nan  # b's only network
    rows, kept = Stack(stacker, GRADERS).apply(logits, mixture)
    assert np.flatnonzero(kept).tolist() == [row] and (rows[row] == mixture[row]).all()
    others = np.arange(25) != row
    np.testing.assert_array_equal(rows[others], whole[others])
    logits[2] = np.nan
    rows, kept = Stack(stacker, GRADERS).apply(logits, mixture)
    assert kept.all() and (rows == mixture).all()


def test_a_models_answer_is_the_mean_of_its_folds_that_answer() -> None:
    stacker = stackers()[0]
    logits, mixture = study()
    rows, _ = Stack(stacker, GRADERS).apply(logits, mixture)
    mean = logits.copy()
    mean[:2] = logits[:2].mean(0)
    np.testing.assert_allclose(Stack(stacker, GRADERS).apply(mean, mixture)[0], rows, atol=1e-12)
    mean[1] = np.nan  # one fold is enough
    np.testing.assert_allclose(Stack(stacker, GRADERS).apply(mean, mixture)[0], rows, atol=1e-12)


def test_groups_that_are_not_named_stay_and_count_for_nothing() -> None:
    stacker = Stacker(kind="mlp", groups={"foraminal": stackers()[0].groups["foraminal"]})
    logits, mixture = study()
    logits[:, [at for at, row in enumerate(ROWS) if "spinal" in row]] = np.nan
    rows, kept = Stack(stacker, GRADERS).apply(logits, mixture)
    changed = np.abs(rows - mixture).max(1) > 0
    assert changed.tolist() == ["foraminal" in row for row in ROWS] and not kept.any()


def test_a_tree_adds_the_leaf_that_a_row_falls_into() -> None:
    stacker = stackers()[1]
    logits, mixture = study()
    models = np.stack([logits[:2].mean(0), logits[2]])[None]
    rows, _ = Stack(stacker, GRADERS).apply(logits, mixture)
    for side, word in enumerate(("left", "right")):
        inputs = features("foraminal", models, mixture[None])[0, side, 3]
        goes_left = inputs[3] <= 0.1
        leaves = np.array([0.1, 0, -0.1]) + np.arange(3) * (-0.5 if goes_left else 0.4)
        row = ROW_INDEX[f"{word}_neural_foraminal_narrowing_l4_l5"]
        np.testing.assert_allclose(rows[row], softmax(0.5 * np.log(mixture[row]) + leaves), atol=1e-12)


def test_features_are_of_the_own_side_its_level_and_its_neighbours() -> None:
    logits, mixture = study()
    models = logits[None, :2]
    found = features("foraminal", models, mixture[None])
    assert found.shape == (1, 2, 5, SIZE)
    left, right = (ROW_INDEX[f"{side}_neural_foraminal_narrowing_l1_l2"] for side in ("left", "right"))
    logs = np.log(mixture)
    for side, (own, other) in enumerate([(left, right), (right, left)]):
        first = found[0, side, 0]
        np.testing.assert_allclose(first[:2], models[0, 0, own, 1:] - models[0, 0, own, 0])
        np.testing.assert_allclose(first[4:6], logs[own, 1:] - logs[own, 0])
        np.testing.assert_allclose(first[8:10], logs[other, 1:] - logs[other, 0])
        np.testing.assert_allclose(first[14:16], first[4:6])  # nothing lies above the first level
        np.testing.assert_allclose(first[16:18], logs[own + 1, 1:] - logs[own + 1, 0])
        assert first[18:].tolist() == [1, 0, 0, 0, 0]
    assert OWN_ROWS["spinal"].tolist() == [at for at, row in enumerate(ROWS) if "spinal" in row]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "layers or trees"),
    "sizes": ({"layers": [{"weights": [[0.0] * 7] * 3, "bias": [0.0] * 3}]}, "has 7 inputs where 23 come in"),
    "outputs": ({"layers": [{"weights": [[0.0] * SIZE] * 2, "bias": [0.0] * 2}]}, "three severities"),
    "rows": ({"layers": [{"weights": [[0.0] * SIZE] * 3, "bias": [0.0] * 2}]}, "as many as there are biases"),
    "levels": ({"trees": [stump(0).model_dump()]}, "trees are of 5 levels"),
    "feature": ({"trees": [stump(SIZE).model_dump()] * 5}, "split by 23 features"),
    "circle": ({"trees": [stump(0).model_dump() | {"left": [0] * 9}] * 5}, "come after it"),
    "root": ({"trees": [stump(0).model_dump() | {"roots": [9]}] * 5}, "roots are nodes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_stacker_that_cannot_be_evaluated_is_refused(name: str) -> None:
    given, reason = WRONG[name]
    with pytest.raises(ValidationError, match=reason):
        StackedGroup.model_validate({"models": MODELS, "keep": 1, **given})
