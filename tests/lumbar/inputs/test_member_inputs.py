"""Input tensors of a member: blank rows, and the order of a GPU's copies, as far as that shows without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack
from kernels.lumbar.inputs import member_inputs
from kernels.lumbar.inputs.crops import Crops
from kernels.lumbar.inputs.member_inputs import CPU, InputCache, stacked
from kernels.lumbar.inputs.views import View
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support.networks.recipe_members import members

REQUEST = ViewRequest(series="axial_t2", slices=SliceChoice(by="middle", count=2), size_px=16)


def test_rows_without_a_view_are_blank():
    pixels = np.arange(512).astype(np.uint8).reshape(2, 16, 16)
    planes = tuple(Plane(np.array([0.0, 0, -number]), *np.eye(3)[:2]) for number in range(2))
    crops = Crops(Stack("1", "axial_t2", pixels, planes, (1, 2)), (0, 1), None, 16.0, 16)
    found = stacked([None, View(REQUEST, (crops,)), None], REQUEST, pinned=False)
    assert found.dtype == torch.uint8 and found.shape == (3, 2, 16, 16)
    assert np.array_equal(found[1].numpy(), pixels) and not found[0].any() and not found[2].any()


class Stream:
    """A side stream that notes what happens."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def record_event(self) -> str:
        self.events.append("complete")
        return "event"

    def wait_event(self, event: object) -> None:
        self.events.append(("waits for", event))


def test_a_gpus_forward_waits_for_the_copies_and_their_memory_for_the_forward(foreign_study, monkeypatch):
    study, landmarks = foreign_study
    member = members("smoke", "grader")[0].member
    plain = InputCache([study], [landmarks]).inputs_of(member)
    events: list[Any] = []
    side, usual = Stream(events), Stream(events)

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        assert stream is side
        events.append("side stream")
        yield
        events.append("usual stream")

    normalise = member_inputs.normalise

    def noted(*given: Any) -> torch.Tensor:
        events.append("normalised")
        return normalise(*given)

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: usual)
    monkeypatch.setattr(member_inputs, "normalise", noted)
    used: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: used.append(id(tensor)))
    cache = InputCache([study], [landmarks], CPU, _stream=side)  # type: ignore[arg-type]
    inputs = cache.inputs_of(member)
    copies = ["normalised"] * len(set(member.inputs))
    assert events == ["side stream", *copies, "complete", "usual stream", ("waits for", "event")]
    assert used == [id(tensor) for tensor in (*inputs.tensors, inputs.present)]
    assert all(torch.equal(one, other) for one, other in zip(inputs.tensors, plain.tensors, strict=True))
    assert plain.ready is None and cache.with_landmarks([landmarks])._stream is side, "one stream keeps the order"
