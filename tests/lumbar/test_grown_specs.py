"""Keys that came later are written only where they say something: digests of finished trainings stay as they are."""

from __future__ import annotations

import pytest

from kernels.lumbar.manifest import Provenance
from kernels.lumbar.specs import CropOffset, GrownSpec, SliceChoice, ViewRequest
from training.recipe_schema.fitting import Auxiliary, Fitting, Labels, Optimisation
from training.recipe_schema.load import load_named

ENTRY = next(one for one in load_named("split_and_global", "full").members() if "axial" in one.member.name)
VIEW = ENTRY.member.inputs[0]
PLAIN = [VIEW, VIEW.slices, ENTRY.fitting, ENTRY.fitting.labels, ENTRY.fitting.optimisation]
VALUES = {
    SliceChoice: {"within_mm": 12.0},
    ViewRequest: {"crop_offset": CropOffset(up_mm=5)},
    Labels: {"soft": 0.5},
    Optimisation: {"activation_checkpointing": True},
    Fitting: {"start": "canal", "auxiliary": Auxiliary(depth=0.3)},
}


@pytest.mark.parametrize("plain", PLAIN, ids=lambda one: type(one).__name__)
def test_a_key_is_written_where_it_says_something(plain: GrownSpec) -> None:
    values, before = VALUES[type(plain)], plain.model_dump(mode="json").keys()
    assert set(values) == set(plain.LATER) and not before & set(plain.LATER)
    for key, value in values.items():
        assert plain.model_copy(update={key: value}).model_dump(mode="json").keys() - before == {key}


def test_every_kind_is_tried_but_that_of_errors() -> None:
    assert set(GrownSpec.__subclasses__()) == {*VALUES, Provenance}
