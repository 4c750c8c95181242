"""All passes of a member in one forward, and the next member's inputs cut meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels.lumbar.answers.grade import grade
from kernels.lumbar.inputs.member_inputs import CPU, InputCache
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.tta import forward_passes, with_prefetch
from tests.support.networks.recipe_members import members

GRADERS = members("smoke", "grader")[:6]


@pytest.fixture(scope="module")
def loaded(exported):
    return [load_member(folder, artefact, CPU) for folder, artefact in map(exported, GRADERS)]


def test_with_a_helper_the_answers_are_the_same(loaded, foreign_study):
    study, landmarks = foreign_study
    plain = [grade(InputCache([study], [landmarks]), one)[0] for one in loaded]
    with ThreadPoolExecutor(1) as executor:
        for _ in range(3):
            cache = InputCache([study], [landmarks], executor=executor)
            for one, expected in zip(with_prefetch(cache, loaded), plain, strict=True):
                found = grade(cache, one)[0]
                assert found.keys() == expected.keys()
                assert all((found[row] == expected[row]).all() for row in found)
    assert cache._columns == {}, "nothing is kept that nobody asks for"


def test_what_the_helper_cannot_do_is_the_members_fault_alone(loaded, foreign_study, monkeypatch):
    study, landmarks = foreign_study
    column, fails = InputCache._column, loaded[1].member.inputs[0]

    def failing(self, request, kind):
        if request == fails:
            raise RuntimeError("out of memory")
        return column(self, request, kind)

    monkeypatch.setattr(InputCache, "_column", failing)
    with ThreadPoolExecutor(1) as executor:
        cache = InputCache([study], [landmarks], executor=executor)
        answers = [grade(cache, one)[0] for one in with_prefetch(cache, loaded)]
    asking = [fails in one.member.inputs for one in loaded]
    assert [not answer for answer in answers] == asking and not all(asking)


def test_one_forward_holds_every_augmentation(loaded, foreign_study):
    study, landmarks = foreign_study
    for one in loaded:
        inputs = InputCache([study], [landmarks]).inputs_of(one.member)
        both = forward_passes(one, inputs, tta=True)
        assert len(both) == one.member.passes and len(forward_passes(one, inputs, tta=False)) == 1
        torch.testing.assert_close(both[0], one(inputs.tensors, inputs.present), atol=1e-5, rtol=1e-5)
