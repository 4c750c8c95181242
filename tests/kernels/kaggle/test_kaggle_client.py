"""What the client's words mean: each failure is one sentence with its remedy, whatever the exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernels.kaggle import client
from kernels.kaggle.client import ClientAnswer, KaggleError


def answer(text: str, code: int = 1, out: str = "") -> ClientAnswer:
    return ClientAnswer("kaggle x", code, out, text)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("Authentication required to call the Kaggle API.\n\nFirst, ...", "create a token"),
        ("401 Client Error: Unauthorized for url: http://x", "create a token"),
        ("ModuleNotFoundError: No module named 'six'", "make install"),
        ("HTTPSConnectionPool(host='x'): Max retries exceeded with url: /v1", "is there a network"),
        ("403 Client Error: Forbidden: You must accept this competition's rules", "accept the competition's rules"),
        ("404 Client Error: Not Found for url: http://x", "404 Client Error: Not Found"),
        ("", "exit code 1"),
    ],
)
def test_each_failure_is_a_sentence(words, sentence):
    assert sentence in str(answer(words).error())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broken_line_is_asked_again_until_it_holds(monkeypatch, status):
    answers = [answer(f"{status} Server Error: x"), answer("Connection aborted"), answer("", 0, "fine")]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answers.pop(0))
    pauses: list[float] = []
    assert client.ask("x", sleep=pauses.append).out == "fine"
    assert pauses == list(client.RETRY_S[:2])


def test_a_refusal_is_not_asked_again(monkeypatch):
    answers = [answer("404 Client Error: Not Found")]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answers.pop(0))
    with pytest.raises(KaggleError) as caught:
        client.ask("x")
    assert caught.value.status == 404


def test_a_line_that_stays_broken_ends_the_asking(monkeypatch):
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("Max retries exceeded"))
    with pytest.raises(KaggleError, match="cannot be reached"):
        client.ask("x", sleep=lambda _: None)


def test_json_is_found_behind_other_lines(monkeypatch):
    printed = 'Next Page Token = 7\n[{"name": "a"}]'
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("", 0, printed))
    assert client.ask_json("x") == [{"name": "a"}]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("", 0, "[{broken"))
    with pytest.raises(KaggleError, match="no JSON"):
        client.ask_json("x")


def test_progress_bars_are_no_words():
    assert answer("", 0, "  0%|          | 0.00/5\r100%|####| 5.00/5\nUpload successful: a\n").text == (
        "Upload successful: a"
    )


def test_a_client_that_hangs_is_stopped(monkeypatch):
    def hang(program, **options):
        raise subprocess.TimeoutExpired(program, options["timeout"])

    monkeypatch.setattr(client.subprocess, "run", hang)
    with pytest.raises(KaggleError, match="run it again"):
        client.call("kernels", "status", timeout_s=1)


def test_the_installed_client_starts():
    """A fresh kaggle misses a package that it does not require (platform.md: six)."""
    done = subprocess.run([sys.executable, "-m", "kaggle", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Kaggle CLI" in done.stdout and "No module named" not in done.stderr
