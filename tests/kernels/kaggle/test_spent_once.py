"""Whatever is lost or killed on the way, no submission and no version is spent twice: the table of its README.

Each case breaks a step once, then runs the same command again on a Kaggle that is well.  Half of them run always, the
others behind `make test-all`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kernels.kaggle import __main__ as shipping
from kernels.kaggle import client, dataset, notebook, pushes, submission
from kernels.kaggle.client import TimedOut
from kernels.locks import LOCK, hold
from tests.support import ROOT
from tests.support.kaggle.kaggle_server import KaggleServer
from tests.support.kaggle.kaggle_state import Body, Faults, Files
from tests.support.kaggle.shipping_steps import DATASET, KERNEL, ran, ship, store
from tests.support.sweeps import every_nth

TRAINING = "ann/lumbar-training"
SENDERS = {"upload": dataset, "push": notebook, "submit": submission, "train": notebook}


@dataclass
class World:
    """What a case breaks."""

    kaggle: KaggleServer
    folder: Path
    step: str
    patch: pytest.MonkeyPatch


Trouble = Callable[[World], AbstractContextManager[None]]


def faults(**given: Any) -> Trouble:
    """Something of Kaggle's own."""

    @contextmanager
    def broken(world: World) -> Iterator[None]:
        world.kaggle.faults = Faults(**given)
        yield

    return broken


def killed(after: bool) -> Trouble:
    """Ctrl-C as soon as the call that matters has ended, or just before it."""

    @contextmanager
    def broken(world: World) -> Iterator[None]:
        sender: ModuleType = SENDERS[world.step]
        real = sender.act

        def act(*arguments: str, **options: Any) -> None:
            if after:
                real(*arguments, **options)
            raise KeyboardInterrupt

        world.patch.setattr(sender, "act", act)
        yield

    return broken


@contextmanager
def hanging(world: World) -> Iterator[None]:
    """The client never comes back with Kaggle's answer."""
    real = client.call

    def call(*arguments: str, **options: Any) -> client.ClientAnswer:
        answer = real(*arguments, **options)
        if arguments[1] == "submit":
            raise TimedOut("`kaggle` did not end within 120 s")
        return answer

    world.patch.setattr(client, "call", call)
    yield


@contextmanager
def two_at_once(world: World) -> Iterator[None]:
    with hold(world.folder / LOCK, wait=False):
        yield


@contextmanager
def unconnected(world: World) -> Iterator[None]:
    for name in ("http_proxy", "HTTP_PROXY"):
        world.patch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    yield


@contextmanager
def nothing(world: World) -> Iterator[None]:
    yield


def forget_all(folder: Path) -> None:
    (folder / "state.json").unlink()


def forget_half(folder: Path) -> None:
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({"run": facts["run"]}))


@dataclass(frozen=True)
class Case:
    """A trouble, what is said of it, and what the same command says afterwards."""

    step: str
    trouble: Trouble
    said: str
    then: str
    code: int = 0
    then_code: int = 0
    again: bool = False
    """Only AGAIN=1 ends it well."""
    forget: Callable[[Path], None] | None = None
    """What happens to the folder before the second run."""
    elsewhere: bool = False
    """The second run is on another machine."""
    patience_s: float = 0.0


THERE, LISTED, UNLISTED = "is this very notebook", "Kaggle lists a submission of this notebook", "does not list the sub"
SENT, PUSHED, INTERRUPTED = "Successfully submitted", "pushed; Kaggle runs it now", "interrupted: the same command"
LOST, IN_USE = "answer was lost", "is in use by process"
CASES = {
    "submit: the answer is lost": Case("submit", faults(lose_answer="CreateCodeSubmission"), LOST, "submitted already"),
    "submit: the line breaks before Kaggle acts": Case(
        "submit", faults(lose_request="CreateCodeSubmission"), UNLISTED, UNLISTED, 1, 1, again=True
    ),
    "submit: the client hangs": Case("submit", hanging, LOST, "submitted already"),
    "submit: killed after Kaggle acted": Case("submit", killed(after=True), INTERRUPTED, LISTED, 130),
    "submit: killed before Kaggle acts": Case("submit", killed(after=False), INTERRUPTED, UNLISTED, 130, 1, again=True),
    "submit: no connection": Case("submit", unconnected, "Kaggle cannot be reached", SENT, 1),
    "submit: refused with 400": Case(
        "submit",
        faults(submission_refused=(400, "Late submissions are closed")),
        "Late submissions are closed.  It may take late submissions on its site only: open https://www.kaggle.com/code/"
        f'{KERNEL}, choose version 1, and press "Submit to competition"',
        SENT,
        4,
    ),
    "submit: refused with 403": Case(
        "submit", faults(submission_refused=(403, "Permission was denied")), '"Submit to competition"', SENT, 4
    ),
    "submit: listed late": Case(
        "submit", faults(unlisted_questions=2), "not listed yet", "submitted already", patience_s=60.0
    ),
    "submit: not listed in time": Case("submit", faults(unlisted_questions=9), UNLISTED, LISTED, 1),
    "submit: two at once": Case("submit", two_at_once, IN_USE, SENT, 1),
    "submit: state.json is lost": Case("submit", nothing, SENT, LISTED, forget=forget_all),
    "submit: half of state.json is lost": Case("submit", nothing, SENT, LISTED, forget=forget_half),
    "submit: again from another machine": Case("submit", nothing, SENT, LISTED, elsewhere=True),
    "push: the answer is lost": Case("push", faults(lose_answer="SaveKernel"), LOST, THERE),
    "push: the line breaks before Kaggle acts": Case("push", faults(lose_request="SaveKernel"), "busy (", PUSHED, 1),
    "push: killed after Kaggle acted": Case("push", killed(after=True), INTERRUPTED, THERE, 130),
    "push: killed before Kaggle acts": Case("push", killed(after=False), INTERRUPTED, PUSHED, 130),
    "push: two at once": Case("push", two_at_once, IN_USE, PUSHED, 1),
    "push: state.json is lost": Case("push", nothing, PUSHED, THERE, forget=forget_all),
    "push: again from another machine": Case("push", nothing, PUSHED, THERE, elsewhere=True),
    "upload: the answer to a first version is lost": Case(
        "upload", faults(lose_answer="CreateDataset"), "though the client failed", "is this very package"
    ),
    "upload: the answer to a further version is lost": Case(
        "upload",
        faults(lose_answer="CreateDatasetVersion", refuse_version_while_processing=True, ready_after=2),
        "though the client failed",
        "is this very package",
    ),
    "upload: killed after Kaggle acted": Case("upload", killed(after=True), INTERRUPTED, "is this very package", 130),
    "upload: killed before Kaggle acts": Case("upload", killed(after=False), INTERRUPTED, "holds exactly these", 130),
    "upload: two at once": Case("upload", two_at_once, IN_USE, "holds exactly these", 1),
    "train: the answer is lost": Case("train", faults(lose_answer="SaveKernel"), LOST, "is trained already"),
    "train: killed after Kaggle acted": Case("train", killed(after=True), INTERRUPTED, "is this very session", 130),
    "train: again from another machine": Case("train", nothing, "are trained", "is this very session", elsewhere=True),
}


def trained(text: str, metadata: Body, datasets: dict[str, Files]) -> tuple[str, Files, str, str]:
    """A session in which all was trained."""
    state = {"code": 0, "seconds": 9, "finished": ["network"], "left": []}
    return "COMPLETE", {"runs/session.json": json.dumps(state).encode()}, "printed", ""


def run(step: str, package: Path, folder: Path, *more: str) -> int:
    if step != "train":
        return ship(step, package, folder, "--no-gpu", *more)
    given = ["train", "--recipes", "split_and_global", "--owner", "ann", "--ship", str(folder), "--poll", "0.01"]
    return shipping.main([*given, *more])


def spent(kaggle: KaggleServer, step: str) -> int:
    """Submissions, or versions of what a step makes."""
    if step == "submit":
        assert len(kaggle.kernels[KERNEL]) == 1
        return len(kaggle.submissions)
    if step == "upload":
        return len(kaggle.datasets[DATASET].versions) - ("before" in kaggle.datasets[DATASET].versions[0])
    return len(kaggle.kernels[TRAINING if step == "train" else KERNEL])


@pytest.mark.parametrize("name", every_nth(CASES))
def test_nothing_is_spent_twice(kaggle, package, tmp_path, capsys, monkeypatch, name):
    case, folder = CASES[name], tmp_path / "shipped"
    monkeypatch.setattr(client, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(dataset, "SHOWN_WITHIN_S", 0.0)
    monkeypatch.setattr(submission, "LISTED_WITHIN_S", case.patience_s)
    kaggle.run_kernel, kaggle.kernel_plan = trained if case.step == "train" else ran(), []
    if case.step != "upload":
        store(kaggle, package)
    elif "further" in name:
        store(kaggle, package)
        kaggle.datasets[DATASET].versions[0] = {"before": b""}
    if case.step == "submit":
        assert run("push", package, folder) == 0

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, case.trouble(World(kaggle, folder, case.step, patch)):
        assert run(case.step, package, folder) == case.code
    said = "".join(capsys.readouterr())
    assert case.said in said and "Traceback" not in said

    kaggle.faults = Faults()
    if case.forget:
        case.forget(folder)
    folder = tmp_path / "other" if case.elsewhere else folder
    if case.step == "submit" and (case.forget or case.elsewhere):
        assert run("push", package, folder) == 0
    assert run(case.step, package, folder) == case.then_code
    said = "".join(capsys.readouterr())
    assert case.then in said and "Traceback" not in said
    if case.again:
        assert spent(kaggle, case.step) == 0
        assert run(case.step, package, folder, "--again") == 0
    assert spent(kaggle, case.step) == 1


def test_the_readme_has_a_row_for_each_case():
    text = (ROOT / "kernels" / "kaggle" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ((?:upload|push|submit|train): .*?) \|", text, re.MULTILINE) == list(CASES)


def test_other_notebooks_and_weights_are_submissions_of_their_own():
    kernel = submission.SentKernel(ref=KERNEL, version=3, sha256="a" * 64, manifest_sha256="b" * 64)
    row = {"description": submission.description(kernel, "mine")}
    assert submission.is_submission_of(row, kernel)
    for changed in ({"sha256": "c" * 64}, {"manifest_sha256": "c" * 64}):
        assert not submission.is_submission_of(row, kernel.model_copy(update=changed))
    # The same notebook in another version is the same submission; descriptions of earlier kits name only the version.
    assert submission.is_submission_of(row, kernel.model_copy(update={"version": 4}))
    earlier = {"description": f"weights {'b' * 12}, notebook version 3"}
    assert submission.is_submission_of(earlier, kernel)
    assert not submission.is_submission_of(earlier, kernel.model_copy(update={"version": 4}))
    assert not submission.is_submission_of({"description": None}, kernel)


@pytest.mark.parametrize("newest", [1, 2, 3, 6, 7, 8, 21])
def test_the_newest_version_is_found_in_few_questions(monkeypatch, newest):
    asked: list[int] = []

    def has_version(ref: str, version: int) -> bool:
        asked.append(version)
        return version <= newest

    monkeypatch.setattr(pushes, "has_version", has_version)
    assert pushes.newest_version(KERNEL, 1) == newest and len(asked) <= 10
    monkeypatch.setattr(pushes, "has_version", lambda ref, version: True)
    with pytest.raises(client.KaggleError, match="AGAIN=1"):
        pushes.newest_version(KERNEL, 1)


def test_shipping_and_training_keep_each_others_state(tmp_path):
    first, second = submission.ShipState(tmp_path), submission.ShipState(tmp_path)
    first.put(run=notebook.KernelRun(usable=True))
    second.put(dataset=dataset.SentDataset(ref=DATASET, digest="a", version=1))
    sent = submission.ShipState(tmp_path).sent
    assert sent.run is not None and sent.dataset is not None and sent.kernel is None


def test_a_state_of_an_earlier_kit_is_read(tmp_path):
    facts = {
        "kernel": {"ref": KERNEL, "version": 2, "sha256": "a", "manifest_sha256": "b"},
        "run": {"usable": True, "seen": True},
        "submission": {"ref": KERNEL, "version": 2, "message": "m"},
        "training": {"ref": TRAINING, "version": 1, "going": False, "chosen": [["a"], "full", [0]]},
    }
    (tmp_path / "state.json").write_text(json.dumps(facts))
    sent = submission.ShipState(tmp_path).sent
    assert sent.submission is not None and sent.submission.listed and sent.training is not None
