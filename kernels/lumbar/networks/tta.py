"""Test-time augmentation: all passes of a member over a batch of studies in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..inputs.member_inputs import InputCache, MemberInputs
from ..inputs.mirroring import mirrored_points, mirrored_targets, mirrored_tensors, turned_tensors
from ..problems import Problem
from .devices import check_alive
from .loading import LoadedMember, first_line


@dataclass(frozen=True)
class MemberOutput:
    """A member's inputs and outputs for some studies of a batch."""

    numbers: tuple[int, ...]
    """Index of each study in the batch; `inputs` counts them from 0."""
    inputs: MemberInputs
    passes: list[torch.Tensor]
    """One (rows, K, 3 or 4) output per pass."""


def run_member(cache: InputCache, loaded: LoadedMember, tta: bool) -> list[MemberOutput]:
    """Run a member on all studies of a batch together, or one by one where that fails.

    A study without any view, or one on which the member fails, gets a Problem.  Raises DeviceLost.
    """
    member, studies = loaded.member, cache.studies
    try:
        inputs = cache.inputs_of(member)
        passes = forward_passes(loaded, inputs, tta) if any(inputs.seen) else []
    except RuntimeError as error:  # what torch raises while views are prepared and passed, out-of-memory included
        if len(studies) > 1:  # the fault of one study must not cost the others
            alone = [(number, run_member(cache.single(number), loaded, tta)) for number in range(len(studies))]
            return [replace(one, numbers=(number,)) for number, outputs in alone for one in outputs]
        check_alive(cache.device)
        problem = Problem(studies[0].study_id, member.name, f"{member.role}-failed", first_line(error))
        studies[0].problems.append(problem)
        return []
    with_views = {number for (number, _), seen in zip(inputs.places, inputs.seen, strict=True) if seen}
    for number, study in enumerate(studies):
        if number not in with_views:
            detail = "none of its views exists"
            study.problems.append(Problem(study.study_id, member.name, "nothing-to-look-at", detail))
    return [MemberOutput(tuple(range(len(studies))), inputs, passes)] if with_views else []


def with_prefetch(cache: InputCache, members: Sequence[LoadedMember]) -> Iterator[LoadedMember]:
    """The members in order; while one runs, the cache's executor cuts the inputs of the next."""
    for place, one in enumerate(members):
        if place == 0:
            cache.prefetch(one.member)
        if place + 1 < len(members):
            cache.prefetch(members[place + 1].member)
        yield one
        cache.free_except({request for later in members[place + 1 :] for request in later.member.inputs})


def forward_passes(loaded: LoadedMember, inputs: MemberInputs, tta: bool) -> list[torch.Tensor]:
    """Outputs of each pass with left and right exchanged back: (rows, K, 3) logits or (rows, K, 4) points each.

    The first pass is that of the study as it is.  Raises RuntimeError, as torch does.
    """
    member, shown = inputs.member, [(list(inputs.tensors), inputs.present)]
    augmentations = member.tta if tta else ()
    for name in augmentations:
        if name == "mirror":
            shown.append(mirrored_tensors(member, inputs.tensors, inputs.present))
        else:
            shown.append((turned_tensors(member, inputs.tensors), inputs.present))
    # One (passes × rows, S, H, W) tensor per view.
    views = [torch.cat(parts) for parts in zip(*(tensors for tensors, _ in shown), strict=True)]
    answers = loaded(views, torch.cat([present for _, present in shown])).split(len(inputs.places))
    mirrors = [False, *(name == "mirror" for name in augmentations)]
    return [_unmirrored(inputs, answer) if mirror else answer for answer, mirror in zip(answers, mirrors, strict=True)]


def _unmirrored(inputs: MemberInputs, answer: torch.Tensor) -> torch.Tensor:
    """The study's outputs, from those for the mirrored study."""
    if inputs.member.role == "localiser":
        return mirrored_points(inputs.member, answer, inputs.tensors[0].shape[1:])
    return answer[:, mirrored_targets(inputs.member)]
