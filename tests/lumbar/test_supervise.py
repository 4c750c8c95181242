"""The process that watches the kernel: whatever becomes of that, a valid file stands, or the exit code says no."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar import supervise
from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.submission import Submission, check
from tests.support import ROOT

# What the stand-ins for the kernel begin with: {out}, {log} and {source} are filled in.
PREAMBLE = """
import os, shutil, signal, sys, time
from pathlib import Path
out, log = Path({out!r}), Path({log!r})
restart = os.environ["LUMBAR_RESTART"]
def finish():
    shutil.copy({source!r}, out / "submission.csv")
with log.open("a") as stream:
    stream.write(restart + " " + " ".join(sys.argv[1:]) + "\\n")
"""
Run = Callable[..., int]


class Workplace:
    """A competition, a folder for the results, and stand-ins for the kernel."""

    def __init__(self, folder: Path) -> None:
        self.competition, self.out, self.log = folder / "competition", folder / "out", folder / "log.txt"
        for made in (self.competition, self.out):
            made.mkdir()
        self.ids = [f"{study}_{row}" for study in (4, 5) for row in ROWS]
        sample = self.competition / "sample_submission.csv"
        pd.DataFrame({"row_id": self.ids, **dict.fromkeys(SEVERITIES, 1 / 3)}).to_csv(sample, index=False)
        (self.competition / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
        submission = Submission(sample, public_priors())
        submission.set("5", pd.DataFrame([[0.2, 0.3, 0.5]] * 25).to_numpy())
        self.good = folder / "good.csv"
        submission.write(self.good)

    @property
    def given(self) -> list[str]:
        return ["--competition", str(self.competition), "--out", str(self.out)]

    def script(self, body: str) -> str:
        """A stand-in for the kernel."""
        first = PREAMBLE.format(out=str(self.out), log=str(self.log), source=str(self.good))
        return first + textwrap.dedent(body)

    def command(self, body: str) -> Callable[[list[str]], list[str]]:
        return lambda arguments: [sys.executable, "-S", "-c", self.script(body), *arguments]

    @property
    def starts(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run_report.json").read_text())
        return found

    def frame(self) -> pd.DataFrame:
        """The submission, complete and valid."""
        frame = pd.read_csv(self.out / "submission.csv", dtype={"row_id": str})
        check(frame, self.ids)
        return frame

    @property
    def is_the_kernels(self) -> bool:
        return (self.out / "submission.csv").read_bytes() == self.good.read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
def run(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a stand-in under watch."""
    monkeypatch.setattr(supervise, "LEAST_RESTART_S", 1.0)
    monkeypatch.setenv("LUMBAR_RESTART", "7")  # of a watcher that watches this one

    def supervised(body: str, *more: str) -> int:
        monkeypatch.setattr(supervise, "command", place.command(body))
        return supervise.main([*place.given, "--time-limit", "100", *more])

    return supervised


def test_a_run_without_incident_is_left_as_it_is(place, run, capfd):
    (place.out / "run_report.json").write_text('{"of": "an earlier run"}')
    (place.out / ".progress").mkdir()
    (place.out / ".progress" / "in_progress.json").write_text("of an earlier run")
    assert (
        run('assert os.listdir(out) == []; finish(); print("graded é"); print("42 %", end="\\r", file=sys.stderr)') == 0
    )
    assert place.is_the_kernels and not (place.out / "run_report.json").exists()
    said = capfd.readouterr()
    assert said.out == "graded é\n" and said.err == "42 %\r"
    assert place.starts == [f"0 --competition {place.competition} --out {place.out} --time-limit 100"]


def test_a_kernel_that_is_killed_once_is_started_again_with_the_time_that_is_left(place, run, capfd):
    body = """
        if restart == "0":
            time.sleep(0.3)
            (out / ".progress").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        assert (out / ".progress").is_dir()
        (out / "run_report.json").write_text('{"manifest": "m", "problems": [{"kind": "no-series"}]}')
        finish()
    """
    assert run(body) == 0 and place.is_the_kernels
    first, second = place.starts
    assert first.startswith("0 ") and second.startswith("1 ")
    assert 95 < float(second.split()[-1]) < 99.8
    report = place.report
    assert report["manifest"] == "m" and report["problem_counts"] == {"no-series": 1, "kernel-ended": 1}
    assert not (place.out / ".progress").exists()
    (ending,) = report["supervision"]
    assert ending["signal"] == "SIGKILL" and 0.3 <= ending["after_s"] < 5
    assert "the kernel was ended by SIGKILL after 0 s; it is started again" in capfd.readouterr().err


def test_a_kernel_that_always_dies_leaves_the_public_priors(place, run, capfd):
    assert run("os.kill(os.getpid(), signal.SIGSEGV)") == 0
    assert [line.split()[0] for line in place.starts] == ["0", "1", "2"]
    expected = np.array([public_priors()[row] for row in ROWS] * 2)
    assert place.frame()[list(SEVERITIES)].to_numpy() == pytest.approx(expected)
    report = place.report
    assert [one["signal"] for one in report["supervision"]] == ["SIGSEGV"] * 3
    assert report["problem_counts"] == {"kernel-ended": 3, "priors-by-supervisor": 1}
    assert report["studies"] == {"asked": 2, "graded": 0}
    assert "it is not started again" in capfd.readouterr().err


def test_a_kernel_that_dies_after_its_file_keeps_it(place, run):
    assert run("finish(); sys.exit(1)") == 0 and place.is_the_kernels
    assert [one["code"] for one in place.report["supervision"]] == [1, 1, 1]


@pytest.mark.parametrize("spoil", ["row_id\n", "", "\0\0", "row_id,normal_mild,moderate,severe\n4_x,a,b,c\n"])
def test_a_file_that_is_not_valid_does_not_pass_whatever_the_code(spoil, place, run):
    assert run(f'(out / "submission.csv").write_text({spoil!r})') == 0
    place.frame()
    assert place.report["problem_counts"] == {"priors-by-supervisor": 1} and place.report["supervision"] == []


def test_without_time_nothing_is_started_again(place, run):
    assert run("sys.exit(1)", "--time-limit", "0.5") == 0
    assert len(place.starts) == 1
    place.frame()


@pytest.mark.parametrize("code", [2, 3])
def test_what_the_kernel_means_to_say_is_passed_on(code, place, run):
    assert run(f"finish(); sys.exit({code})") == code
    assert len(place.starts) == 1 and not (place.out / "run_report.json").exists()


# A time limit, in seconds, before which a stand-in has done what comes before its sleep on a busy machine too.
BEGUN_WITHIN_S = "4"


def test_a_kernel_that_hangs_is_ended_and_its_children_too(place, run, monkeypatch):
    monkeypatch.setattr(supervise, "OVERRUN_S", 0.3)
    monkeypatch.setattr(supervise, "STOP_S", 0.5)
    body = """
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        (out / "child").write_text(str(child.pid))
        finish()
        time.sleep(60)
    """
    started = time.monotonic()
    assert run(body, "--time-limit", BEGUN_WITHIN_S) == 0 and place.is_the_kernels
    assert time.monotonic() - started < 40 and len(place.starts) == 1
    (ending,) = place.report["supervision"]
    assert ending["signal"] == "SIGKILL" and ending["reason"] == "over its time limit"
    state = Path(f"/proc/{(place.out / 'child').read_text()}/status")
    assert not state.exists() or "zombie" in state.read_text()


def test_a_kernel_over_its_time_that_obeys_keeps_its_file(place, run, monkeypatch):
    monkeypatch.setattr(supervise, "OVERRUN_S", 0.3)
    body = "signal.signal(signal.SIGTERM, lambda *_: (finish(), os._exit(0)))\ntime.sleep(60)"
    assert run(body, "--time-limit", BEGUN_WITHIN_S) == 0 and place.is_the_kernels
    (ending,) = place.report["supervision"]
    assert ending["code"] == 0 and ending["reason"] == "over its time limit"


def test_a_kernel_that_cannot_be_started_leaves_priors(place, monkeypatch):
    monkeypatch.setattr(supervise, "command", lambda arguments: [str(place.out / "no such python")])
    assert supervise.main(place.given) == 0
    place.frame()
    assert "could not be started" in place.report["supervision"][0]["reason"]


def test_where_no_file_can_be_written_the_code_is_2(place, run, capfd):
    """As on a full disk: whatever is written first goes to the file of this name."""
    (place.out / ".submission.csv.part").mkdir()
    (place.out / ".run_report.json.part").mkdir()
    assert run("sys.exit(1)") == 2
    said = capfd.readouterr().err
    assert "no valid submission.csv stands" in said and "run_report.json could not be written" in said


def test_where_only_the_report_cannot_be_written_the_file_counts(place, run):
    (place.out / ".run_report.json.part").mkdir()
    assert run("finish(); sys.exit(1)") == 0 and place.is_the_kernels


def test_a_file_that_is_there_counts_although_the_mount_has_gone(place, run):
    assert run(f"finish(); shutil.rmtree({str(place.competition)!r})") == 0 and place.is_the_kernels


def test_without_competition_and_without_file_the_code_is_2(place, run, tmp_path, capfd):
    (place.competition / "sample_submission.csv").unlink()
    assert run("sys.exit(1)") == 2
    assert "no valid submission.csv stands" in capfd.readouterr().err


STOPPED = {
    "in order": ("finish_on_signal(0)", {"code": 0}),
    "by the signal": ("finish()", {"signal": "SIGTERM"}),
    "with the code of shells": ("finish_on_signal(143)", {"code": 143}),
}


@pytest.mark.parametrize("how", STOPPED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_watcher_is_passed_on_and_a_valid_file_is_code_0(how, number, place):
    body, expected = STOPPED[how]
    script = place.script(f"""
def finish_on_signal(code):
    signal.signal(signal.{number.name}, lambda *_: (finish(), os._exit(code)))
signal.signal(signal.SIGINT, signal.SIG_DFL)
{body}
print("ready", flush=True)
time.sleep(60)
""")
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, script, *place.given], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert watcher.stdout is not None and watcher.stdout.readline() == "ready\n"
    watcher.send_signal(number)
    assert watcher.wait(40) == 0
    watcher.stdout.close()
    (ending,) = place.report["supervision"]
    expected = {"signal": number.name} if "signal" in expected else expected
    assert ending["reason"] == f"{number.name} was passed on" and expected.items() <= ending.items()
    assert place.is_the_kernels and len(place.starts) == 1


WATCHER = """
import sys
from pathlib import Path
from kernels.lumbar import supervise
script = sys.argv.pop(1)
supervise.command = lambda arguments: [sys.executable, "-S", "-c", script, *arguments]
ended = supervise._end_group
def then(child):  # all that is loaded while the kernel runs
    ended(child)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    heavy = {"torch", "pandas", "numpy", "cv2"} & set(sys.modules)
    print(f"{peak} {heavy or 'light'}", flush=True)
supervise._end_group = then
code = supervise.main(sys.argv[1:])
assert not {"torch", "pandas"} & set(sys.modules)
sys.exit(code)
"""
LARGEST_KB = 60_000


def test_the_watcher_stays_small(place):
    script = place.script("finish(); sys.exit(1)")
    given = [*place.given, "--time-limit", "5"]
    done = subprocess.run([sys.executable, "-c", WATCHER, script, *given], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    peak, what = done.stdout.decode().splitlines()[-1].split(" ", 1)
    assert what == "light" and int(peak) < LARGEST_KB
    place.frame()


def test_the_kernel_is_started_by_the_packages_own_name_wherever_it_lies(tmp_path):
    (tmp_path / "lumbar").symlink_to(Path(supervise.__file__).parent)
    (tmp_path / "elsewhere").mkdir()
    ask = "from lumbar import supervise as s; print(s.command(['x']), s.environment(2))"
    given = {"cwd": tmp_path / "elsewhere", "env": {"PYTHONPATH": ".."}}
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, **given)
    assert "'-m', 'lumbar.predict', 'x'" in done.stdout and "'LUMBAR_RESTART': '2'" in done.stdout
    assert supervise.command(["x"])[1:] == ["-m", "kernels.lumbar.predict", "x"]
    assert supervise.environment(0)["PYTHONPATH"].split(":")[0] == str(ROOT)


def test_the_kernels_own_word_comes_through(tmp_path):
    """No stand-in: predict itself, without data."""
    given = ["--input-root", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "kernels.lumbar.supervise", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no folder holds test_series_descriptions.csv" in done.stderr


def test_a_reader_that_has_gone_does_not_stop_the_kernel(place, run, monkeypatch):
    class Closed:
        def write(self, _: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(supervise.sys, "stdout", Closed())
    assert run('print("x" * 1_000_000); finish()') == 0 and place.is_the_kernels
