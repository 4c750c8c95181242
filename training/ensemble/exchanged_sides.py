"""Members from elsewhere whose left and right are exchanged: named, never put right in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.labels import MIRROR
from training.data.foreign_answers import ELSEWHERE
from training.data.out_of_fold import Answers
from training.data.tables import MISSING
from training.ensemble.search import SearchError
from training.evaluation.intervals import Difference, difference

# A gain of so many half intervals of 95 % is no chance, whatever the number of members.
FAR = 2.0


def refuse_exchanged_sides(answers: Answers, folder: Path) -> None:
    """Raises SearchError for a member from elsewhere, of `folder`, that answers far better with its sides exchanged."""
    for name in answers.members:
        located, _, member = name.partition("/")
        if located != ELSEWHERE:
            continue
        gain = gain_by_exchange(answers, name)
        if gain.value + FAR * (gain.high - gain.value) < 0:
            raise SearchError(
                f"{folder / member}.csv has left and right exchanged: with them changed back its loss on rows of both "
                f"sides is {gain.text}: exchange left_ and right_ in its "
                f"row_id, and in targets of {member}.yaml where it is to be packaged"
            )


def gain_by_exchange(answers: Answers, name: str) -> Difference:
    """The score on rows of a side with the member's sides exchanged less that as it is; negative is a gain.

    Only rows count that it answers on both sides.
    """
    own = answers.only(members=[name]).logits[0]  # (N, 25, 3)
    exchanged, mirror = own[:, list(MIRROR)], np.array(MIRROR)
    both = np.isfinite(own).all(2) & np.isfinite(exchanged).all(2) & (mirror != np.arange(len(mirror)))
    labels = np.where(both, answers.labels, MISSING)
    new, old = (softmax(np.where(both[..., None], one, 0.0)) for one in (exchanged, own))
    return difference(labels, new, old)
