"""One forward for a study as it is and as test-time augmentation shows it: all passes of a member in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .feed import Feed, Scene, mirrored_points, mirrored_targets, mirrored_tensors, turned_tensors
from .loaded import LoadedMember


def in_turn(scene: Scene, members: Sequence[LoadedMember]) -> Iterator[LoadedMember]:
    """One member after the other; while one looks, the scene's helper cuts what the next will see."""
    for place, one in enumerate(members):
        if place == 0:
            scene.prepare(one.member)
        if place + 1 < len(members):
            scene.prepare(members[place + 1].member)
        yield one
        scene.let_go({request for later in members[place + 1 :] for request in later.member.inputs})


def passes(loaded: LoadedMember, feed: Feed, tta: bool) -> list[torch.Tensor]:
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


def _back(feed: Feed, answer: torch.Tensor) -> torch.Tensor:
    """What was said of the mirrored study, as said of the study."""
    if feed.member.role == "localiser":
        return mirrored_points(feed.member, answer, feed.tensors[0].shape[1:])
    return answer[:, mirrored_targets(feed.member)]
