"""The whole way to Kaggle with the real client: what was shipped is what the server has, runs, and is submitted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kernels.kaggle import client
from kernels.lumbar import predict
from kernels.lumbar.networks.weights import manifest_digest
from kernels.simulate import __main__ as simulate
from tests.support.kaggle.kaggle_state import Body, Files
from tests.support.kaggle.shipping_steps import DATASET, KERNEL, ship


def run_as_kaggle(data: Path, scratch: Path):
    """What Kaggle does with a push: the notebook that was sent, on the files that came back from the upload."""

    def run(text: str, metadata: Body, datasets: dict[str, Files]) -> tuple[str, Files, str, str]:
        (files,) = datasets.values()
        mounted, notebook, out = scratch / "mounted", scratch / "pushed.ipynb", scratch / "ran"
        mounted.mkdir()
        for name, content in files.items():
            (mounted / name).write_bytes(content)
        notebook.write_text(text)
        given = ["--data", str(data), "--weights", str(mounted), "--notebook", str(notebook), "--no-public"]
        code = simulate.main([*given, "--out", str(out)])
        outputs = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        return ("COMPLETE" if code == 0 else "ERROR"), outputs, outputs["log.txt"].decode(), ""

    return run


def test_ship_leaves_the_submission_that_the_repository_computes(
    kaggle, package, two_studies, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(client, "subprocess", subprocess)  # `python -m kaggle` itself, as a user's shell starts it
    kaggle.run_kernel = run_as_kaggle(two_studies, tmp_path)
    shipped = tmp_path / "shipped"
    assert ship("ship", package, shipped, "--no-gpu", "--dry-run") == 0
    assert ship("ship", package, shipped, "--no-gpu", "--wait") == 0, capsys.readouterr().err
    for path in (shipped / "kernel").iterdir():  # as the dry run showed it
        assert path.read_bytes() == (shipped / "kernel-dry-run" / path.name).read_bytes()
    given = ["--competition", str(two_studies), "--weights", str(package), "--out", str(tmp_path / "ours")]
    assert predict.main(given) == 0
    ours = (tmp_path / "ours" / "submission.csv").read_bytes()
    assert kaggle.submissions[0].content == ours == (shipped / "run" / "submission.csv").read_bytes()
    assert (kaggle.submissions[0].kernel, kaggle.submissions[0].version) == (KERNEL, 1)
    assert set(kaggle.files(DATASET)) == {"manifest.json", "weights-0.bin"}
    asked = kaggle.asked("SaveKernel")[0]
    assert manifest_digest(package / "manifest.json") in asked["text"]
    assert asked["enableInternet"] is False and asked["datasetDataSources"] == [DATASET]
    said = capsys.readouterr().out
    assert "public score 0.45" in said and "graded 2 of 2 studies" in said

    # Everything is done: a second call sends nothing.
    before = len(kaggle.asked("SaveKernel")), len(kaggle.asked("PUT")), len(kaggle.submissions)
    assert ship("ship", package, shipped) == 0
    assert (len(kaggle.asked("SaveKernel")), len(kaggle.asked("PUT")), len(kaggle.submissions)) == before


def test_a_dry_run_asks_nobody(kaggle, package, tmp_path, capsys):
    assert ship("ship", package, tmp_path / "shipped", "--no-gpu", "--dry-run") == 0
    said = capsys.readouterr().out
    assert kaggle.requests == []
    assert said.count("would run: kaggle ") == 3
    assert f"manifest {manifest_digest(package / 'manifest.json')[:12]}" in said
    assert not (tmp_path / "shipped" / "state.json").exists()
