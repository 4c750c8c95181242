"""The stages of the demo: headings, times, exit codes, and what a signal does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support import ROOT


def code(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def begin(*stage: str) -> subprocess.Popen[str]:
    """The command itself, in a process group of its own."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "training.stages", *stage]
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_stages_are_named_and_timed_in_order():
    process = begin("--stage", "one", *code("print('a')"), "--then", *code("print('b')"), "--stage", "two", *code(""))
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""
    timeless = re.sub(r"took \d+ s", "took", printed)
    assert timeless == "\n1/2 one\na\nb\n1/2 took\n\n2/2 two\n2/2 took\nall 2 stages took\n"


def test_the_first_command_that_fails_ends_it_with_its_exit_code():
    later = ["--then", *code("print('later')"), "--stage", "two", *code("print('later')")]
    process = begin("--stage", "one", *code("raise SystemExit(3)"), *later)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 3 and printed == "\n1/2 one\n"
    assert re.fullmatch(r"1/2 ended after \d+ s with exit code 3\n", errors)


def test_a_killed_command_ends_it_as_in_a_shell():
    process = begin("--stage", "one", *code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


SAVES = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit({code})
signal.signal(signal.{name}, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("own_code", "expected"), [(0, 128 + signal.SIGINT), (3, 3)])
def test_ctrl_c_lets_the_command_save_and_begins_no_other(own_code, expected):
    process = begin("--stage", "one", *code(SAVES.format(name="SIGINT", code=own_code)), "--stage", "two", *code(""))
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[-1] == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == expected and printed == "saved\n"


def test_sigterm_is_passed_on():
    process = begin("--stage", "one", *code(SAVES.format(name="SIGTERM", code=3)))
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        continue
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and printed == "saved\n"
