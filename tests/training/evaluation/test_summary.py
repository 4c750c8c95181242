"""The end of the demo: the table, and the files to open next."""

from __future__ import annotations

from pathlib import Path

from training.evaluation import summary


def test_the_report_and_the_pictures_are_named_after_the_table(capsys, monkeypatch):
    monkeypatch.setattr(summary, "summarise", lambda *_: "the table")
    given = ["--data", "demo/data", "--weights", "demo/weights", "--out", "demo/out"]
    assert summary.main(given) == 0
    assert capsys.readouterr().out == "the table\n"
    assert summary.main([*given, "--report", "demo/report.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the table" and lines[2] == "what to look at"
    named = [line.split("  ")[0] for line in lines[3:5]]
    assert named == ["demo/report.html", str(Path("demo/out/overlay_*.png"))]
