"""The GPU bench: every part can be found, and one that hangs or dies costs only itself."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from training.benchmarks.gpu import __main__ as command
from training.benchmarks.gpu.parts import PARTS, Part, PartResult, Setting, run_parts
from training.benchmarks.packages import NearTypicalPoints
from training.benchmarks.tables import Record
from training.recipe_schema.load import load_named


def say(setting: Setting, record: Record) -> None:
    """A part that records its setting."""
    record.table("said", ["device", "seconds"]).rows.append([setting.device, setting.seconds])


def say_and_hang(setting: Setting, record: Record) -> None:
    """A part that never ends."""
    say(setting, record)
    record.save()
    time.sleep(600)


def crash(setting: Setting, record: Record) -> None:
    """A part that native code kills."""
    os.abort()


def fail(setting: Setting, record: Record) -> None:
    """A part that raises."""
    record.check(False, "the logits differ")
    record.save()
    raise ValueError("no such thing")


def part(function: str, seconds: float = 60, stage: str = "together") -> Part:
    return Part(function, f"tests.training.benchmarks.test_gpu_bench:{function}", seconds, stage)  # type: ignore[arg-type]


def test_every_part_is_there():
    assert len({one.name for one in PARTS}) == len(PARTS)
    for one in PARTS:
        module, _, function = one.call.partition(":")
        path = Path(command.__file__).parent / f"{module.rpartition('.')[2]}.py"
        assert f"def {function}(setting: Setting, record: Record) -> None:" in path.read_text()


def test_a_part_that_hangs_or_dies_costs_only_itself(tmp_path):
    parts = [part("say_and_hang", 6, "first"), part("crash"), part("fail"), part("say"), part("say", stage="alone")]
    reported: list[PartResult] = []
    end = time.monotonic() + 300
    ended = run_parts(parts, Setting(work=tmp_path, device="cpu", small=True), end, reported.append, at_once=2)
    assert ended == reported
    hung, crashed, failed, *good = ended
    assert hung.failure.startswith("timed out after 24") and hung.found["tables"][0]["rows"] == [["cpu", 24.0]]
    assert "code -6" in crashed.failure
    assert "code 1" in failed.failure and failed.faults == ["the logits differ"]
    assert "ValueError: no such thing" in failed.text() and "FAULT the logits differ" in failed.text()
    assert [one.is_good for one in good] == [True, True]


def test_what_there_is_no_time_for_is_said(tmp_path):
    (ended,) = run_parts(
        [part("say")], Setting(work=tmp_path, device="cpu", small=True), time.monotonic() + 1, lambda _: None
    )
    assert ended.failure == "no time was left"


def test_one_part_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "PARTS", [one for one in PARTS if one.name == "machine"])
    given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--device", "cpu", "--small"]
    assert command.main(given) == 0
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["machine"]["failure"] == "" and ["torch", torch.__version__] in found["machine"]["tables"][0]["rows"]
    assert "good: machine" in capsys.readouterr().out


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_an_untrained_localiser_stays_near_its_places(far):
    member = load_named("split_and_global", "smoke").members()[0].member
    usual = torch.zeros(len(member.targets), 4)

    class Says(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return usual[None] + far

    localiser = NearTypicalPoints(Says(), member, usual)
    apart = (localiser() - localiser.points).abs()
    assert (apart <= localiser.reach + 1e-4).all() and bool(apart.any()) == bool(far)
