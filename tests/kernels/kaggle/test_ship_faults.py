"""Each way in which shipping fails: exit code 1 and a sentence that says why, then a rerun that ends well.

Some ways of each kind run always, the others behind `make test-all`.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels.kaggle import __main__ as shipping
from kernels.kaggle import client, dataset, submission
from tests.support.kaggle.kaggle_server import KaggleServer
from tests.support.kaggle.kaggle_state import Faults
from tests.support.kaggle.shipping_steps import DATASET, KERNEL, ran, ship, store
from tests.support.sweeps import every_nth


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(dataset, "SHOWN_WITHIN_S", 0.0)
    monkeypatch.setattr(submission, "LISTED_WITHIN_S", 0.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ends the waiting of tests that expect this sentence at the first answer, where it is about waiting."""

    def shorten(sentence: str) -> None:
        for name in ("READY_WITHIN_S", "RUN_WITHIN_S"):
            monkeypatch.setattr(shipping, name, 0.0 if sentence in STILL else 60.0)

    return shorten


STILL = ("`make upload` continues waiting", "is still '", "the outputs of another version")


def mended(kaggle: KaggleServer) -> None:
    kaggle.faults = Faults()
    kaggle.run_kernel = ran()
    for one in kaggle.datasets.values():
        one.plan, one.hidden_questions = ["READY"], 0


UPLOAD_STOPS: dict[str, tuple[dict[str, Any], str]] = {
    "a file is refused for ever": ({"upload_status": {"weights-0.bin": 400}}, "did not take weights-0.bin"),
    "title in use": ({"title_in_use": True}, "another dataset of yours has the title"),
    "a file vanishes": ({"drop_file": "weights-0.bin"}, "weights-0.bin is missing"),
    "a file arrives short": ({"shrink_file": "weights-0.bin"}, "bytes instead of"),
    "another manifest arrives": ({"corrupt_file": "manifest.json"}, "its manifest is"),
    "processing fails": ({"status_plan": ["FAILED"]}, "failed: `make upload` sends it again"),
    "processing never ends": ({"status_plan": ["NOT_YET_PERSISTED"]}, "`make upload` continues waiting"),
    "never to be seen": ({"not_found_after_create": 99}, "does not list ann/lumbar-weights"),
    "credentials refused": ({"unauthorised": True}, "create a token"),
    "server down for long": ({"server_errors": 99}, "unavailable"),
}
UPLOAD_GOES_ON: dict[str, dict[str, Any]] = {
    "line cut in an upload": {"cut_upload_after": 1000},
    "slow to be ready": {"ready_after": 3},
    "not seen at once": {"not_found_after_create": 3},
    "a missing dataset is forbidden": {"missing_is_forbidden": True},
    "errors without words": {"errors_without_code": True},
    "too many requests": {"rate_limited": 2},
    "server down for a moment": {"server_errors": 2},
}


@pytest.mark.parametrize("name", every_nth(UPLOAD_STOPS))
def test_an_upload_that_fails_says_why_and_the_next_one_ends_well(kaggle, package, tmp_path, capsys, name, impatient):
    faults, sentence = UPLOAD_STOPS[name]
    impatient(sentence)
    kaggle.faults = Faults(**faults)
    assert ship("upload", package, tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("upload stopped: ") and sentence in said
    mended(kaggle)
    impatient("")
    assert ship("upload", package, tmp_path) == 0
    assert kaggle.files(DATASET)["weights-0.bin"] == (package / "weights-0.bin").read_bytes()


@pytest.mark.parametrize("name", every_nth(UPLOAD_GOES_ON))
def test_what_passes_by_itself_stops_no_upload(kaggle, package, tmp_path, name):
    kaggle.faults = Faults(**UPLOAD_GOES_ON[name])
    assert ship("upload", package, tmp_path) == 0
    assert kaggle.files(DATASET)["weights-0.bin"] == (package / "weights-0.bin").read_bytes()


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"stale_version": True}, "`make upload` continues waiting"),
        ({"stale_files": True}, "is not what was sent"),
        ({"refuse_version_while_processing": True, "status_plan": ["READY"]}, None),
    ],
)
def test_a_version_that_kaggle_does_not_serve_is_noticed(
    kaggle, package, tmp_path, capsys, impatient, faults, sentence
):
    impatient(sentence)
    store(kaggle, package)
    changed = Path(shutil.copytree(package, tmp_path / "changed"))
    (changed / "manifest.json").write_text((changed / "manifest.json").read_text() + "\n")
    kaggle.faults = Faults(**faults)
    assert ship("upload", changed, tmp_path) == (1 if sentence else 0)
    assert (sentence or "") in capsys.readouterr().err
    mended(kaggle)
    impatient("")
    assert ship("upload", changed, tmp_path) == 0
    assert kaggle.files(DATASET)["manifest.json"] == (changed / "manifest.json").read_bytes()


PUSH_STOPS: dict[str, tuple[dict[str, Any], Callable[..., Any], str]] = {
    "title in use": ({"title_in_use": True}, ran(), "another notebook with the title"),
    "unknown dataset": ({"invalid_dataset_sources": (DATASET,)}, ran(), "not valid dataset sources"),
    "unknown competition": (
        {"invalid_competition_sources": ("rsna-2024-lumbar-spine-degenerative-classification",)},
        ran(),
        "not valid competition sources",
    ),
    "the run fails": ({"kernel_result": ("ERROR", "CUDA out of memory")}, ran(), "CUDA out of memory"),
    "the run never ends": ({"kernel_never_ends": True}, ran(), "is still '"),
    "no submission": ({}, ran(without=("submission.csv",)), "left no submission.csv"),
    "no report": ({}, ran(without=("run_report.json",)), "left no run_report.json"),
    "stale outputs": ({}, ran(notebook="of before"), "the outputs of another version"),
    "other weights attached": ({}, ran(manifest_sha256="f" * 64), "the run had the weights ffff"),
}


@pytest.mark.parametrize("name", every_nth(PUSH_STOPS, 3))
def test_a_push_that_fails_says_why_and_the_next_one_ends_well(kaggle, package, tmp_path, capsys, name, impatient):
    faults, run, sentence = PUSH_STOPS[name]
    impatient(sentence)
    store(kaggle, package)
    kaggle.faults, kaggle.run_kernel, kaggle.kernel_plan = Faults(**faults), run, ["QUEUED"] if faults else []
    assert ship("push", package, tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("push stopped: ") and sentence in said
    mended(kaggle)
    impatient("")
    if name == "stale outputs":  # Kaggle comes to answer for the version that was pushed
        kaggle.kernels[KERNEL][-1].status = "RUNNING"
    assert ship("push", package, tmp_path) == 0, capsys.readouterr().err
    assert ship("submit", package, tmp_path) == 0
    assert kaggle.submissions[-1].version == len(kaggle.kernels[KERNEL])


LITTLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing graded": ({"studies": {"asked": 1, "graded": 0}}, "graded 0 of 1 studies"),
    "rows fell back": ({"fallbacks": {"rows": 25}}, "left 25 rows to the prior"),
    "a network would not load": ({"members_used": ["one"]}, "did without 7 of 7 networks"),
    "rows are missing": ({"studies": {"asked": 2, "graded": 2}}, "wrote 25 rows for 2 studies"),
}


@pytest.mark.parametrize("name", every_nth(LITTLE, 3))
def test_a_run_that_did_too_little_is_submitted_on_purpose_only(kaggle, package, tmp_path, capsys, name):
    changes, sentence = LITTLE[name]
    store(kaggle, package)
    kaggle.run_kernel, kaggle.kernel_plan = ran(**changes), []
    assert ship("push", package, tmp_path) == 1
    assert sentence in capsys.readouterr().err
    assert ship("submit", package, tmp_path) == 1
    assert ship("push", package, tmp_path, "--no-gpu", "--anyway") == 0
    assert ship("submit", package, tmp_path) == 0
    assert len(kaggle.kernels[KERNEL]) == 1


def test_weights_that_were_not_pushed_are_not_submitted(kaggle, package, tmp_path, capsys):
    store(kaggle, package)
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    changed = Path(shutil.copytree(package, tmp_path / "changed"))
    (changed / "manifest.json").write_text((changed / "manifest.json").read_text() + "\n")
    assert ship("submit", changed, tmp_path) == 1
    assert "`make upload && make push` first" in capsys.readouterr().err
    assert kaggle.submissions == []


def test_another_call_waits_for_the_submission_that_was_made(kaggle, package, tmp_path, capsys):
    store(kaggle, package)
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    assert ship("submit", package, tmp_path, "--message", 'it\'s "fine"') == 0
    asked = len(kaggle.requests)
    assert ship("submit", package, tmp_path, "--dry-run") == 0 and len(kaggle.requests) == asked
    assert ship("submit", package, tmp_path, "--wait") == 0
    assert re.search(r"public score 0\.45( \(\d+ s\))?\n", capsys.readouterr().out)
    assert ship("submit", package, tmp_path, "--again", "--message", 'it\'s "fine"') == 0
    digests = dataset.manifest_digest(package / "manifest.json")[:12], sent_notebook(tmp_path)[:12]
    described = 'it\'s "fine" (weights {}, notebook {}, version 1)'.format(*digests)
    assert [one.description for one in kaggle.submissions] == [described] * 2


def sent_notebook(folder: Path) -> str:
    """The digest of the notebook that was pushed."""
    return json.loads((folder / "state.json").read_text())["kernel"]["sha256"]


def test_a_package_of_another_user_is_not_sent(kaggle, package, tmp_path, capsys):
    other = Path(shutil.copytree(package, tmp_path / "other"))
    path = other / "dataset-metadata.json"
    path.write_text(path.read_text().replace("ann/", "bob/"))
    assert ship("upload", other, tmp_path) == 1
    assert "bob's and the client's user is ann: `make package OWNER=ann`" in capsys.readouterr().err
    assert kaggle.asked("PUT") == []


def test_the_same_package_is_sent_again_on_purpose_only(kaggle, package, tmp_path):
    store(kaggle, package)
    assert ship("upload", package, tmp_path) == 0 and kaggle.current_version(DATASET) == 1
    assert ship("upload", package, tmp_path, "--again") == 0 and kaggle.current_version(DATASET) == 2


def test_a_run_without_the_gpu_that_was_asked_for_is_not_submitted(kaggle, package, tmp_path, capsys):
    store(kaggle, package)
    unusable = [{"kind": "gpu-unusable", "detail": "no kernel image; ask for machine_shape NvidiaTeslaT4"}]
    kaggle.run_kernel = ran(problems=unusable)
    assert ship("push", package, tmp_path, "--poll", "0.02") == 1
    assert "had no GPU (no kernel image" in capsys.readouterr().err
    assert ship("submit", package, tmp_path) == 1
    kaggle.run_kernel = ran(device="cuda")
    assert ship("push", package, tmp_path, "--poll", "0.02") == 0
    assert len(kaggle.kernels[KERNEL]) == 2
    assert kaggle.kernels[KERNEL][-1].metadata["machineShape"] == "NvidiaTeslaT4"


def test_an_interrupted_wait_goes_on_without_another_push(kaggle, package, tmp_path, impatient):
    impatient("is still '")
    store(kaggle, package)
    kaggle.faults = Faults(kernel_never_ends=True)
    assert ship("push", package, tmp_path) == 1
    mended(kaggle)
    impatient("")
    assert ship("push", package, tmp_path) == 0
    assert len(kaggle.kernels[KERNEL]) == 1


@pytest.mark.parametrize("there", [None, "other"])
def test_no_push_before_the_weights_are_there(kaggle, package, tmp_path, capsys, there):
    if there:
        store(kaggle, package)
        kaggle.datasets[DATASET].versions[0]["manifest.json"] += b"\n"
    assert ship("push", package, tmp_path) == 1
    said = capsys.readouterr().err
    assert "`make upload` first" in said
    assert (dataset.manifest_digest(package / "manifest.json") in said) == bool(there)
    assert kaggle.asked("SaveKernel") == []


SUBMIT_STOPS: dict[str, tuple[dict[str, Any], str]] = {
    "rules not accepted": ({"rules_not_accepted": True}, "accept the competition's rules"),
    "scoring fails": ({"submission_error": "Submission Scoring Error"}, "Kaggle ended the submission with 'error'"),
}


@pytest.mark.parametrize("name", SUBMIT_STOPS)
def test_a_submission_that_fails_says_why_and_the_next_one_ends_well(kaggle, package, tmp_path, capsys, name):
    faults, sentence = SUBMIT_STOPS[name]
    store(kaggle, package)
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    kaggle.faults = Faults(**faults)
    assert ship("submit", package, tmp_path, "--wait") == 1
    assert sentence in capsys.readouterr().err
    mended(kaggle)
    assert ship("submit", package, tmp_path, "--wait", "--again") == 0
    assert "public score 0.45" in capsys.readouterr().out


def test_a_version_that_kaggle_lost_is_named(kaggle, package, tmp_path, capsys):
    store(kaggle, package)
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    kaggle.kernels.clear()
    assert ship("submit", package, tmp_path) == 1
    assert "does not find ann/lumbar-inference version 1: `make push AGAIN=1`" in capsys.readouterr().err


def test_nothing_is_submitted_before_a_run_was_seen(kaggle, package, tmp_path, capsys):
    assert ship("submit", package, tmp_path) == 1
    assert "`make push` first" in capsys.readouterr().err
    damaged_files = [
        "{",
        "[]",
        '{"kernel": {}}',
        '{"run": {"usable": 1}}',
        '{"run": 1}',
        '{"submission": {"ref": "x"}}',
    ]
    damaged_files.append('{"kernel": {"ref": "no-owner", "version": 1, "sha256": "a", "manifest_sha256": "b"}}')
    for damaged in damaged_files:
        (tmp_path / "state.json").write_text(damaged)
        assert ship("submit", package, tmp_path) == 1
        assert "remove it and push again" in capsys.readouterr().err
    (tmp_path / "state.json").write_text('{"run": {"usable": true, "seen": true}}')  # and no notebook that it was of
    assert ship("submit", package, tmp_path) == 1
    assert "`make push` first" in capsys.readouterr().err
    assert kaggle.requests == []


def spoil_pack(folder: Path) -> None:
    pack = folder / "weights-0.bin"
    pack.write_bytes(pack.read_bytes()[:2000])


def named(value: Any) -> Callable[[Path], object]:
    """A package whose dataset has another id."""

    def spoil(folder: Path) -> None:
        path = folder / "dataset-metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": value}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_pack, "is no whole package"),
        (named("your-kaggle-name/lumbar-weights"), "OWNER=<your Kaggle name>"),
        (named("lumbar-weights"), "has no id OWNER/SLUG"),
        (named(7), "has no id OWNER/SLUG"),
        (named("ann/lumbar/weights"), "has no id OWNER/SLUG"),
        (lambda folder: (folder / "dataset-metadata.json").write_text("[]"), "has no id OWNER/SLUG"),
        (lambda folder: (folder / "extra.zip").write_bytes(b"PK"), "extra.zip, which Kaggle would skip or change"),
        (lambda folder: (folder / "deeper").mkdir(), "deeper, which Kaggle would skip or change"),
        (lambda folder: [(folder / f"{n}.txt").touch() for n in range(49)], "has 51 files; Kaggle takes 50"),
        (lambda folder: (folder / "manifest.json").unlink(), "make package"),
    ],
)
def test_a_package_that_kaggle_would_change_never_leaves(kaggle, package, tmp_path, capsys, spoil, sentence):
    spoilt = Path(shutil.copytree(package, tmp_path / "spoilt"))
    spoil(spoilt)
    assert ship("upload", spoilt, tmp_path) == 1
    assert sentence in capsys.readouterr().err
    assert kaggle.requests == []


DAMAGED = {
    "kind": "member-unusable",
    "where": "x",
    "study": "",
    "detail": "x: another sha256: upload the weights again",
}


@pytest.mark.parametrize(
    ("problems", "advice"),
    [([DAMAGED], "`make upload AGAIN=1 && make push AGAIN=1`"), ([], "`make push AGAIN=1` runs it once more")],
)
def test_damaged_weights_are_sent_again_not_run_again(kaggle, package, tmp_path, capsys, problems, advice):
    store(kaggle, package)
    kaggle.run_kernel = ran(members_used=[], problems=problems)
    assert ship("push", package, tmp_path) == 1
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("report", [{"studies": 1}, {"fallbacks": {}}, {"seconds": {"total": "long"}}])
def test_a_report_of_another_shape_is_no_traceback(kaggle, package, tmp_path, capsys, report):
    store(kaggle, package)
    kaggle.run_kernel = ran(**report)
    assert ship("push", package, tmp_path) == 1
    assert "left no run_report.json that can be read" in capsys.readouterr().err


def test_a_newer_version_does_not_answer_for_the_one_that_was_pushed(kaggle, package, tmp_path, impatient):
    store(kaggle, package)
    impatient("is still '")
    assert ship("push", package, tmp_path) == 1
    impatient("")
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    newer = kaggle.kernels[KERNEL][0]
    kaggle.kernels[KERNEL].append(type(newer)(newer.text + " ", newer.metadata, newer.datasets, [], "ERROR"))
    assert ship("push", package, tmp_path) == 0
    for route in ("GetKernelSessionStatus", "ListKernelSessionOutput"):
        assert {asked["versionLabel"] for asked in kaggle.asked(route)[-2:]} == {"v1"}


def test_a_line_is_shown_at_once_in_a_pipe(package, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping.sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    assert ship("upload", tmp_path / "none", tmp_path) == 1
    assert shipping.sys.stdout.line_buffering


def test_a_refused_push_leaves_what_was_pushed_before(kaggle, package, tmp_path, capsys):
    store(kaggle, package)
    kaggle.run_kernel = ran()
    assert ship("push", package, tmp_path) == 0
    kaggle.faults = Faults(unauthorised=True)
    assert ship("push", package, tmp_path, "--no-gpu", "--again") == 1
    kaggle.faults = Faults()
    assert ship("submit", package, tmp_path) == 0
    assert [one.version for one in kaggle.submissions] == [1]
