"""Expected errors of a command end it with one sentence; others are not hidden."""

from __future__ import annotations

import pytest

from kernels.commands import ends_with_a_sentence


def test_expected_errors_are_one_sentence_and_exit_code_1(capsys):
    @ends_with_a_sentence("no report", ValueError, OSError)
    def main(argv=None):
        raise {"value": ValueError("what is wrong"), "key": KeyError("unexpected")}.get(argv[0], SystemExit(2))

    assert main(["value"]) == 1 and capsys.readouterr() == ("", "no report: what is wrong\n")
    with pytest.raises(KeyError):
        main(["key"])
    with pytest.raises(SystemExit):
        main(["other"])


def test_ctrl_c_is_no_traceback(capsys):
    @ends_with_a_sentence("training", ValueError)
    def main(argv=None):
        raise KeyboardInterrupt

    assert main([]) == 130 and capsys.readouterr().err == "training: interrupted\n"


def test_a_command_that_ends_well_keeps_its_exit_code():
    assert ends_with_a_sentence("never", ValueError)(lambda argv: len(argv))(["a", "b", "c"]) == 3
