"""What the client's words mean: each failure is one sentence with its remedy, whatever the exit code."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from kernels.kaggle import client
from kernels.kaggle.client import ClientAnswer, KaggleError

RETRIES = "HTTPSConnectionPool(host='x', port=443): Max retries exceeded with url: /v1"


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


# Since 2.2.5 the client puts a hint of its own behind the server's sentence: words for the status, not for the case.
HINTS = {
    403: "You don't have access to this resource.\nIf this is a competition, you may need to accept its rules "
    "first at\n  https://www.kaggle.com/competitions/<competition>/rules",
    404: "The resource was not found. Check the spelling of the reference you passed.\nReferences are usually "
    "'<owner>/<slug>', which you can find in the resource's URL.\nTo search for one, try 'kaggle search <query>'.",
    429: "You have been rate limited. Wait a little while before retrying.",
    503: "This is a problem on Kaggle's side, not with your command. Please try again later.",
}
BUG_HINT = (
    "If this is unexpected, you can re-run with `kaggle --debug [command]` to see the full\ntraceback. "
    "If you think this is a bug, please report it at https://github.com/Kaggle/kaggle-cli/issues"
)


def as_printed(sentence: str, hint: str, version: str) -> ClientAnswer:
    """What that version of the client prints of an error."""
    bar = "  0%|          | 0.00/5\r100%|####| 5.00/5\n"
    return answer(f"{bar}{sentence}\n" + (f"\n{hint}\n" if version >= "2.2.5" else ""))


@pytest.mark.parametrize("version", ["2.2.4", "2.2.5"])
@pytest.mark.parametrize(
    ("status", "sentence", "told"),
    [
        (503, "The service is currently unavailable.", "Kaggle is busy (The service is currently unavailable."),
        (503, "503 Server Error: Oops for url: http://x", "Kaggle is busy (503 Server Error: Oops for url: http://x"),
        (429, "Too many requests", "Kaggle is busy (Too many requests"),
        (404, "Notebook not found", "`kaggle x` failed: Notebook not found"),
        (403, "Permission 'datasets.get' was denied", "`kaggle x` failed: Permission 'datasets.get' was denied"),
        (403, "You must accept this competition's rules", "Kaggle refuses: accept the competition's rules"),
    ],
)
def test_the_servers_sentence_comes_first_and_the_clients_hint_second(version, status, sentence, told):
    printed = as_printed(sentence, HINTS[status], version)
    error = printed.error()
    assert error.status == status and str(error).startswith(told)
    hint = " ".join(HINTS[status].split())
    assert printed.message == (f"{sentence}; the client adds: {hint}" if version == "2.2.5" else sentence)
    assert printed.is_transient == (status in (429, 503))


def test_words_that_say_nothing_get_their_status_from_the_hint():
    assert as_printed("Permission", HINTS[403], "2.2.5").status == 403
    assert as_printed("Oops", HINTS[503], "2.2.5").is_transient


TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 2, in <module>
{}
"""


@pytest.mark.parametrize(
    "printed",
    [
        TRACEBACK.format("urllib3.exceptions.ProtocolError: ('Connection broken: IncompleteRead(1 bytes read)')"),
        f"ProtocolError: ('Connection broken: IncompleteRead(1 bytes read)')\n\n{BUG_HINT}\n",
    ],
    ids=["2.2.4", "2.2.5"],
)
def test_a_line_that_broke_is_known_with_and_without_a_traceback(printed):
    broken = answer(printed)
    assert broken.connection_failed and broken.is_transient and "ProtocolError: (" in broken.words[0]


def test_of_a_traceback_the_last_line_counts():
    assert answer(TRACEBACK.format("OSError: second")).words == ("OSError: second", "")
    assert answer("", out="no such file\n").message == "no such file"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broken_line_is_asked_again_until_it_holds(monkeypatch, status):
    answers = [answer(f"{status} Server Error: x"), answer("Connection aborted"), answer("", 0, "fine")]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answers.pop(0))
    pauses: list[float] = []
    assert client.query("x", sleep=pauses.append).out == "fine"
    assert pauses == list(client.RETRY_S[:2])


def test_a_retry_is_announced(monkeypatch, capsys):
    answers = [answer("Connection aborted"), answer("", 0, "fine")]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answers.pop(0))
    client.query("x", sleep=lambda _: None)
    assert capsys.readouterr().out == "Kaggle is busy or out of reach (Connection aborted): asked again in 1 s\n"


@pytest.mark.parametrize(
    ("text", "code", "may_have_acted"),
    [
        ("('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))", 1, True),
        ("Read timed out. (read timeout=300)", 1, True),
        ("503 Server Error: x", 1, True),
        ("Expecting value: line 1 column 1 (char 0)", 1, True),
        (f"TypeError: x\n\n{BUG_HINT}", 1, True),
        ("", -9, True),
        (
            f"{RETRIES} (Caused by ProxyError('Unable to connect to proxy', RemoteDisconnected('Remote end closed')))",
            1,
            True,
        ),
        (
            f"{RETRIES} (Caused by NewConnectionError('Failed to establish a new connection: Connection refused'))",
            1,
            False,
        ),
        (f"{RETRIES} (Caused by NameResolutionError('Failed to resolve www.kaggle.com'))", 1, False),
        ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'six'", 1, False),
        ("403 Client Error: Forbidden", 1, False),
        ("The notebook has no output file", 1, False),
        ("", 0, False),
    ],
)
def test_whether_kaggle_may_have_acted(text, code, may_have_acted):
    assert answer(text, code).may_have_acted is may_have_acted


def test_an_act_that_times_out_is_an_answer_that_was_lost(monkeypatch):
    def call(*arguments, **options):
        raise client.TimedOut("`kaggle x` did not end within 120 s")

    monkeypatch.setattr(client, "call", call)
    assert client.act("x").may_have_acted


def test_a_live_call_shows_what_the_client_prints_and_keeps_it(monkeypatch, capsys):
    code = "import sys; sys.stderr.write('100%|####| 5/5\\n403 Client Error: no\\n'); sys.exit(1)"
    real = subprocess.run
    stand_in = SimpleNamespace(
        run=lambda program, **options: real([sys.executable, "-c", code], **options),
        PIPE=subprocess.PIPE,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    monkeypatch.setattr(client, "subprocess", stand_in)
    refused = client.call("datasets", "version", live=True)
    assert refused.status == 403 and refused.message == "403 Client Error: no"
    assert "100%|####| 5/5" in capsys.readouterr().err


def test_a_long_wait_is_heard_of(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(client.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    states = iter([("running", None)] * 5 + [("complete", True)])
    assert client.Polling(1.0, 5000.0).wait("the run", lambda: next(states), "make push")
    assert capsys.readouterr().out.splitlines() == [
        "the run: running (1 min 40 s)",
        "the run: still running (6 min 40 s)",
        "the run: complete (10 min)",
    ]


def test_a_refusal_is_not_asked_again(monkeypatch):
    answers = [answer("404 Client Error: Not Found")]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answers.pop(0))
    with pytest.raises(KaggleError) as caught:
        client.query("x")
    assert caught.value.status == 404


def test_a_line_that_stays_broken_ends_the_asking(monkeypatch):
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("Max retries exceeded"))
    with pytest.raises(KaggleError, match="cannot be reached"):
        client.query("x", sleep=lambda _: None)


def test_json_is_found_behind_other_lines(monkeypatch):
    printed = 'Next Page Token = 7\n[{"name": "a"}]'
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("", 0, printed))
    assert client.query_json("x") == [{"name": "a"}]
    monkeypatch.setattr(client, "call", lambda *arguments, **options: answer("", 0, "[{broken"))
    with pytest.raises(KaggleError, match="no JSON"):
        client.query_json("x")


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
