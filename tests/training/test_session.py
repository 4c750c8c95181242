"""A training session's inputs: found under either layout of mounts, taken up from read-only folders, missed by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import session, train_all

MOUNTS = {
    "new": ("competitions/rsna-2024", "notebooks/ada/lumbar-training", "datasets/ada/coordinates"),
    "old": ("rsna-2024", "lumbar-training", "coordinates"),
}


@pytest.fixture(params=MOUNTS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, ...]:
    """Competition, earlier output and coordinates below tmp_path/input, with nothing in their tables."""
    competition, earlier, coordinates = (tmp_path / "input" / place for place in MOUNTS[request.param])
    job = earlier / "runs" / "slice_transformer" / "smoke" / "slice_transformer_points" / "fold0"
    for folder in (competition / "train_images" / "1", job, coordinates):
        folder.mkdir(parents=True)
    for name in ("train.csv", "train_series_descriptions.csv"):
        (competition / name).write_text("")
    (competition / "train_images" / "1" / "train.csv").write_text("of no interest")
    (earlier / "runs" / "session.json").write_text("{}")
    (job / "done.json").write_text("{}")
    (coordinates / "coords_pretrain.csv").write_text("")
    for path in earlier.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return competition, earlier, coordinates


def run(tmp_path: Path, *options: str) -> int:
    where = ["--input-root", str(tmp_path / "input"), "--out", str(tmp_path / "working")]
    given = ["--recipes", "slice_transformer", "--profile", "smoke", "--folds", "0", "--time-limit", "60"]
    return session.main([*given, *where, *options])


def test_everything_is_found_and_given_to_training(mounted, tmp_path, monkeypatch):
    seen: list[str] = []

    def train(given: list[str]) -> int:
        seen.extend(given)
        assert json.loads((tmp_path / "working" / "runs" / "session.json").read_text())["code"] is None
        return 3

    monkeypatch.setattr(train_all, "main", train)
    assert run(tmp_path, "--resume") == 3
    competition, earlier, coordinates = mounted
    options = dict(zip(seen, seen[1:], strict=False))
    assert options["--data"] == str(competition) and options["--coordinates"] == str(coordinates)
    assert not Path(options["--cache"]).is_relative_to(tmp_path / "working") and not Path(options["--cache"]).exists()
    runs = tmp_path / "working" / "runs"
    state = json.loads((runs / "session.json").read_text())
    copied = next(runs.rglob("done.json"))
    assert state["code"] == 3 and copied.parent.relative_to(runs).as_posix() not in state["left"]
    assert copied.stat().st_mode & 0o200 and copied.parent.stat().st_mode & 0o200, "what was copied cannot be changed"


def test_a_session_that_breaks_off_says_so(mounted, tmp_path, monkeypatch):
    monkeypatch.setattr(train_all, "main", lambda given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert json.loads((tmp_path / "working" / "runs" / "session.json").read_text())["code"] == 1


@pytest.mark.parametrize(
    ("made", "options", "sentence"),
    [
        ((), (), "no folder holds train.csv and train_series_descriptions.csv"),
        (("a/b", "c/d"), (), "more than one folder holds train.csv"),
        (("a/b",), ("--resume",), "no folder holds runs/session.json"),
        (("a/b",), ("--recipes", "ghost"), "there is no recipe 'ghost'"),
        (("a/b",), ("--folds", "9"), "has folds 0 to 4"),
    ],
)
def test_what_is_missing_ends_it_in_one_sentence(tmp_path, capsys, made, options, sentence):
    for folder in made:
        (tmp_path / "input" / folder).mkdir(parents=True)
        for name in session.DATA_MARKERS:
            (tmp_path / "input" / folder / name).write_text("")
    assert run(tmp_path, *options) == 1
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
