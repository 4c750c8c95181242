"""A step that a warm process does for it: whenever that one is lost or a signal comes, it says what happened."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.workflow import step

GIVEN = ["grid.json", "name"]
Moment = Callable[[socket.socket], object]


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where a warm process would listen, in a run that is this process; leaves the handlers of signals as before."""
    monkeypatch.setenv(step.WARM, str(tmp_path / "warm"))
    monkeypatch.setenv(step.RUN, str(os.getpid()))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "warm"))
        listener.listen()
        yield listener
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that began this is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(step.RUN, str(gone.pid))


def around_the_job(monkeypatch: pytest.MonkeyPatch, before: Moment, after: Moment, listener: socket.socket) -> None:
    """What happens on the other side just before and just after the job is sent."""
    send = socket.send_fds

    def sending(connection: socket.socket, *given: object) -> int:
        before(listener)
        sent = send(connection, *given)  # type: ignore[arg-type]
        after(listener)
        return sent

    monkeypatch.setattr(socket, "send_fds", sending)


def nothing(listener: socket.socket) -> None:
    pass


def accept_and_close(listener: socket.socket) -> None:
    listener.accept()[0].close()


def read_job(connection: socket.socket) -> None:
    job, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    for output in outputs:
        os.close(output)
    assert json.loads(job) == GIVEN and len(outputs) == 2


def read_and_close(listener: socket.socket) -> None:
    with listener.accept()[0] as connection:
        read_job(connection)


LOST: dict[str, tuple[Moment, Moment]] = {
    "before it took the call": (socket.socket.close, nothing),
    "before the job was sent": (accept_and_close, nothing),
    "with the job waiting": (nothing, socket.socket.close),
    "before it read the job": (nothing, accept_and_close),
    "at work": (nothing, read_and_close),
}


@pytest.mark.parametrize("moment", LOST)
def test_who_is_lost_at_any_moment_was_killed(listener, monkeypatch, capfd, moment) -> None:
    around_the_job(monkeypatch, *LOST[moment], listener)
    assert step.main(GIVEN) == step.KILLED
    assert "for lack of memory" in capfd.readouterr().err


@pytest.mark.parametrize("moment", LOST)
def test_who_is_lost_with_its_run_is_no_failure(listener, no_run, monkeypatch, capfd, moment) -> None:
    around_the_job(monkeypatch, *LOST[moment], listener)
    assert step.main(GIVEN) == step.STOPPED
    assert "the run that began this is gone" in capfd.readouterr().err


def test_a_step_whose_call_nobody_takes_is_done_here(listener, monkeypatch) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(step, "do", lambda given: done.append(given) or 7)
    listener.close()
    assert step.main(GIVEN) == 7
    os.unlink(os.environ[step.WARM])
    assert step.main(GIVEN) == 7 and done == [GIVEN, GIVEN]


def test_a_step_of_a_run_that_is_gone_ends_at_once(listener, no_run, capsys) -> None:
    listener.close()
    assert step.main(GIVEN) == step.STOPPED
    assert "the run that began this is gone" in capsys.readouterr().err


# --- a signal to stop


def stop(_: object = None) -> None:
    signal.raise_signal(signal.SIGTERM)


def answer_a_stop(listener: socket.socket, heard: list[bytes], when_at_work: Callable[[], None]) -> None:
    """As a worker does that is told to stop: the job comes first, then the signal."""
    with listener.accept()[0] as connection:
        read_job(connection)
        when_at_work()
        heard.append(connection.recv(1))
        connection.send(bytes([step.STOPPED]))


@pytest.mark.parametrize("moment", ["before the job is sent", "after", "at work"])
def test_a_stop_reaches_who_works_behind_the_job(listener, monkeypatch, moment) -> None:
    before, after = {"before the job is sent": (stop, nothing), "after": (nothing, stop)}.get(moment, (nothing,) * 2)
    around_the_job(monkeypatch, before, after, listener)
    heard: list[bytes] = []
    at_work = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if moment == "at work" else lambda: None
    worker = threading.Thread(target=answer_a_stop, args=(listener, heard, at_work))
    worker.start()
    assert step.main(GIVEN) == step.STOPPED
    worker.join()
    assert heard == [step.STOP]


def test_a_stop_that_comes_too_late_loses_no_answer(listener, monkeypatch) -> None:
    def finish(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            read_job(connection)
            connection.send(bytes([0]))
        stop()

    around_the_job(monkeypatch, nothing, finish, listener)
    assert step.main(GIVEN) == 0


@pytest.mark.parametrize("moment", LOST)
def test_who_is_lost_after_a_stop_was_stopped(listener, monkeypatch, capfd, moment) -> None:
    before, after = LOST[moment]
    around_the_job(monkeypatch, lambda listener: (stop(), before(listener)), after, listener)
    assert step.main(GIVEN) == step.STOPPED
    assert "stopped before it could confirm it" in capfd.readouterr().err
