"""The table at the end of a demo: scores, landmark errors, seconds.

    python -m training.evaluation.summary --data DIR --weights DIR --out DIR [--report FILE]

--out holds what a run of the notebook on the test studies left: submission.csv, landmarks.csv, run_report.json.
--report is the page of training.report on the runs that the weights come from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.labels import ROWS, SEVERITIES, split_row_ids
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.weights import read_manifest
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.submission import replace_json
from training.evaluation.landmark_errors import landmark_errors
from training.evaluation.metric import score
from training.evaluation.overlays import Grades, draw_located
from training.evaluation.predictor import Predictor
from training.evaluation.show import known_grades
from training.evaluation.truth import TruthError, read_landmarks, read_solution, score_name
from training.evaluation.validate import as_frame, predict_studies

VIEW_NAMES = {
    "sagittal_t2": "Sagittal T2 (canal)",
    "sagittal_t1": "Sagittal T1 (foramina)",
    "axial_t2": "Axial T2 (recesses)",
}


WHAT_TO_LOOK_AT = """\
what to look at
{report}  the training: scores by condition, level and fold, the worst rows
{overlays}  landmarks and grades of the best, the median and the worst test study
The submission should be far below the level priors.  What separates it from the true landmarks is the part of the
localisers: an error of about 30 mm is a neighbouring level."""


def summarise(data: Path, weights: Path, out: Path, overlays: int) -> str:
    """The table as text; scores.json and overlay PNGs are left in `out`."""
    submission = pd.read_csv(out / "submission.csv", dtype={"row_id": str})
    report = json.loads((out / "run_report.json").read_text())
    solution, truth = read_solution(data), read_landmarks(data, "test")
    manifest = read_manifest(weights / "manifest.json")
    studies = sorted(truth)
    priors = np.array([manifest.priors[row] for row in ROWS])
    series = read_series_table(data / "test_series_descriptions.csv").series
    predictor = Predictor(manifest, weights, default_device())
    at_truth = predict_studies(predictor, data / "test_images", series, studies, landmarks=truth)
    uniform = np.full((len(ROWS), len(SEVERITIES)), 1 / 3)
    tables = {
        "located landmarks (the submission)": submission,
        "true landmarks": as_frame({study: one.rows for study, one in at_truth.items()}),
        "level priors": as_frame(dict.fromkeys(studies, priors)),
        "uniform 1/3": as_frame(dict.fromkeys(studies, uniform)),
    }
    scores = {name: score(solution, table) for name, table in tables.items()}
    located = read_located(out / "landmarks.csv")
    errors = landmark_errors(located, truth)
    routes = read_routes(out / "landmarks.csv")
    for old in out.glob("overlay_*.png"):
        old.unlink()
    for (study, of_study), (name, caption) in _spread(study_scores(solution, submission), overlays):
        read = read_study(data / "test_images" / study, study, series.get(study, []))
        grades = Grades(_answers(submission, study), known_grades(data, "test", study))
        caption = f"{caption}: score {of_study:.3f}"
        path = out / f"overlay_{name}_{study}.png"
        draw_located(read, routes.get(study, {}), path, truth[study], caption, grades)

    lines = [f"{score_name(data) + f', {len(studies)} test studies':40} spinal  foram.  subart. any sev. mean"]
    for name, one in scores.items():
        parts = (one.spinal, one.foraminal, one.subarticular, one.any_severe, one.final)
        lines.append(f"{name:40} " + " ".join(f"{part:7.4f}" for part in parts))
    gain = 1 - scores["located landmarks (the submission)"].final / scores["level priors"].final
    lines += [
        f"the submission is {abs(gain):.1%} {'above' if gain < 0 else 'below'} the level priors",
        "",
        f"{'landmark error, mm':40} median  95 %",
    ]
    lines += [f"{VIEW_NAMES[view]:40} {error.median_mm:6.1f} {error.p95_mm:6.1f}" for view, error in errors.items()]
    stages = stage_seconds(report["seconds"], {a.member.name: a.member.role for a in manifest.artefacts})
    lines += ["", f"{'seconds, ' + str(report['studies']['graded']) + ' studies on ' + report['device']:40} "]
    lines += [f"{stage:40} {seconds:6.1f}" for stage, seconds in stages.items()]
    replace_json(
        out / "scores.json",
        {
            "gain_over_priors": gain,
            "scores": {name: one.final for name, one in scores.items()},
            "median_error_mm": {view: error.median_mm for view, error in errors.items()},
        },
    )
    return "\n".join(lines)


def study_scores(solution: pd.DataFrame, submission: pd.DataFrame) -> dict[str, float]:
    """Study → its own score, the best first."""
    studies = pd.Series([study for study, _ in split_row_ids(solution["row_id"])], solution.index)
    scores = {str(study): score(its, submission).final for study, its in solution.groupby(studies)}
    return dict(sorted(scores.items(), key=lambda item: (item[1], item[0])))


def _spread(scores: Mapping[str, float], count: int) -> list[tuple[tuple[str, float], tuple[str, str]]]:
    """Some studies from the best to the worst, with their score, a name for a file, and a caption."""
    ranked = list(scores.items())
    places = dict.fromkeys(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int).tolist())
    found = []
    for place in places:
        name = {0: "best", len(ranked) - 1: "worst", (len(ranked) - 1) // 2: "median", len(ranked) // 2: "median"}
        caption = f"rank {place + 1} of {len(ranked)}"
        found.append((ranked[place], (name.get(place, f"rank{place + 1}"), caption)))
    return found


def _answers(submission: pd.DataFrame, study: str) -> dict[str, np.ndarray]:
    """Row → (3,) probabilities of a study."""
    own = submission.set_index("row_id").reindex([f"{study}_{row}" for row in ROWS])[list(SEVERITIES)]
    return dict(zip(ROWS, own.to_numpy(float), strict=True))


def read_routes(path: Path) -> dict[str, dict[str, Located]]:
    """Study → route → its landmarks with their confidence, from the kernel's landmarks.csv."""
    frame = pd.read_csv(path, dtype={"study_id": str, "guessed": str}, keep_default_na=False)
    found: dict[str, dict[str, Located]] = {}
    for one in frame.itertuples(index=False):
        located = found.setdefault(str(one.study_id), {}).setdefault(str(one.route), Located())
        located.points[str(one.row)] = np.array([one.x_mm, one.y_mm, one.z_mm])
        located.confidence[str(one.row)] = float(one.confidence)  # type: ignore[arg-type]
        if one.guessed == "True":
            located.guessed.add(str(one.row))
    return found


def read_located(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Study → row → patient mm, from the kernel's landmarks.csv (the mean over routes)."""
    frame = pd.read_csv(path, dtype={"study_id": str}, keep_default_na=False)  # a study may be called NA
    means = frame.groupby(["study_id", "row"])[["x_mm", "y_mm", "z_mm"]].mean()
    located: dict[str, dict[str, np.ndarray]] = {}
    for (study, row), point in zip(means.index, means.to_numpy(float), strict=True):
        located.setdefault(study, {})[row] = point
    return located


def stage_seconds(seconds: dict[str, float], roles: dict[str, str]) -> dict[str, float]:
    """Seconds by stage: members are summed by their role, flips counted once (they are kept without)."""
    stages = {"reading (beside the models)": seconds.get("read", 0.0), "loading the members": seconds.get("load", 0.0)}
    for role in ("localiser", "grader"):
        stages[f"{role}s, one pass"] = sum(seconds.get(name, 0.0) for name, its in roles.items() if its == role)
    stages["the whole run"] = seconds["total"]
    return stages


@ends_with_a_sentence("no summary", TruthError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.evaluation.summary", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overlays", type=int, default=3, help="how many studies are drawn")
    parser.add_argument("--report", type=Path, help="a page on the runs, to be named at the end")
    options = parser.parse_args(argv)
    print(summarise(options.data, options.weights, options.out, options.overlays))
    if options.report is not None:
        files = {"report": str(options.report), "overlays": str(options.out / "overlay_*.png")}
        width = max(map(len, files.values()))
        print("\n" + WHAT_TO_LOOK_AT.format(**{name: path.ljust(width) for name, path in files.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
