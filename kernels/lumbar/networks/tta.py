"""One forward for a study as it is and as test-time augmentation shows it: all passes of a member in one batch."""

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
class Look:
    """What a member saw and said of some studies of a scene."""

    numbers: tuple[int, ...]
    """Of the studies, in the scene; `feed` counts them from 0."""
    feed: MemberInputs
    said: list[torch.Tensor]
    """One a pass."""


def look(scene: InputCache, loaded: LoadedMember, tta: bool) -> list[Look]:
    """Show the studies of a scene to a member: all at once, or one by one where that fails.

    One that sees nothing, or at which the member fails, gets a Problem.  Raises DeviceLost.
    """
    member, studies = loaded.member, scene.studies
    try:
        feed = scene.feed(member)
        said = passes(loaded, feed, tta) if any(feed.seen) else []
    except RuntimeError as error:  # what torch raises while views are prepared and passed, out-of-memory included
        if len(studies) > 1:  # the fault of one study shall not cost the others
            alone = [(number, look(scene.of_one(number), loaded, tta)) for number in range(len(studies))]
            return [replace(one, numbers=(number,)) for number, looks in alone for one in looks]
        check_alive(scene.device)
        problem = Problem(studies[0].study_id, member.name, f"{member.role}-failed", first_line(error))
        studies[0].problems.append(problem)
        return []
    looking = {number for (number, _), seen in zip(feed.places, feed.seen, strict=True) if seen}
    for number, study in enumerate(studies):
        if number not in looking:
            detail = "none of its views exists"
            study.problems.append(Problem(study.study_id, member.name, "nothing-to-look-at", detail))
    return [Look(tuple(range(len(studies))), feed, said)] if looking else []


def in_turn(scene: InputCache, members: Sequence[LoadedMember]) -> Iterator[LoadedMember]:
    """One member after the other; while one looks, the scene's helper cuts what the next will see."""
    for place, one in enumerate(members):
        if place == 0:
            scene.prepare(one.member)
        if place + 1 < len(members):
            scene.prepare(members[place + 1].member)
        yield one
        scene.let_go({request for later in members[place + 1 :] for request in later.member.inputs})


def passes(loaded: LoadedMember, feed: MemberInputs, tta: bool) -> list[torch.Tensor]:
    """What a member answers in each pass, turned back so that left is left: (rows, K, 3) or (rows, K, 4) each.

    The first pass is that of the study as it is.  Raises RuntimeError, as torch does.
    """
    member, shown = feed.member, [(list(feed.tensors), feed.present)]
    augmentations = member.tta if tta else ()
    for name in augmentations:
        if name == "mirror":
            shown.append(mirrored_tensors(member, feed.tensors, feed.present))
        else:
            shown.append((turned_tensors(member, feed.tensors), feed.present))
    inputs = [torch.cat(parts) for parts in zip(*(tensors for tensors, _ in shown), strict=True)]
    answers = loaded(inputs, torch.cat([present for _, present in shown])).split(len(feed.places))
    mirrors = [False, *(name == "mirror" for name in augmentations)]
    return [_back(feed, answer) if mirror else answer for answer, mirror in zip(answers, mirrors, strict=True)]


def _back(feed: MemberInputs, answer: torch.Tensor) -> torch.Tensor:
    """What was said of the mirrored study, as said of the study."""
    if feed.member.role == "localiser":
        return mirrored_points(feed.member, answer, feed.tensors[0].shape[1:])
    return answer[:, mirrored_targets(feed.member)]
