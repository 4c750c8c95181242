"""Validation through the kernel: the score that training reports is that of the code which runs on Kaggle."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.manifest import Artefact, Manifest
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from training.data import out_of_fold
from training.data.tables import Tables
from training.evaluation import validation_stamp
from training.evaluation.calibrate import calibrate
from training.evaluation.landmark_errors import LandmarkError, landmark_errors
from training.evaluation.metric import Score, score
from training.evaluation.predictor import Prediction, Predictor
from training.recipe.schema import MemberRecipe
from training.runs import RunFolder, RunsError, read_object, route_of

log = logging.getLogger("validate")


def fold_manifest(folder: RunFolder, members: Sequence[MemberRecipe], fold: int) -> Manifest:
    """The finished members of one fold as a manifest whose files lie in the profile's folder."""
    members = [member for member in members if member.is_trained_in(fold)]
    artefacts = [folder.artefact(member.member.name, fold) for member in members]
    return Manifest(
        name=f"{folder.recipe.name} fold {fold}",
        average=folder.recipe.average,
        priors=json.loads(folder.priors.read_text()),
        shape=json.loads(folder.shape.read_text()),
        artefacts=tuple(artefacts),
        routes=(route_of(folder.recipe.name, artefacts, members),),
    )


def predict_studies(
    predictor: Predictor,
    images: Path,
    series: Mapping[str, Sequence[tuple[str, str]]],
    studies: Sequence[str],
    landmarks: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    clock: Clock | None = None,
) -> dict[str, Prediction]:
    """Study → prediction, by the kernel's own code; `landmarks` stand in for the localisers where given.

    `clock`: records the seconds of every stage; without a limit.
    """
    clock = clock or Clock(float("inf"))
    known = (lambda study: landmarks.get(study, {})) if landmarks is not None else (lambda study: None)
    read = tqdm(read_ahead(images, series, studies, clock), total=len(studies), unit="study", desc="validating")
    return {study.study_id: predictor.predict(study, clock, landmarks=known(study.study_id)) for study in read}


def localiser_errors(
    folder: RunFolder,
    localisers: Sequence[MemberRecipe],
    data: Path,
    tables: Tables,
    studies: Sequence[str],
    truth: Mapping[str, Mapping[str, np.ndarray]],
    fold: int,
) -> dict[str, LandmarkError]:
    """What a fold's localisers miss by on the studies they never saw; kept beside them, with their calibration."""
    manifest = fold_manifest(folder, localisers, fold)
    made_by = {artefact.member.name: artefact.weights.sha256 for artefact in manifest.artefacts}
    path = folder.localiser_errors(fold)
    kept = read_object(path)
    if kept.get("made_by") == made_by and "errors" in kept:
        return {view: LandmarkError(**error) for view, error in kept["errors"].items()}
    # Without the calibration of an attempt that was killed: it is fitted to the networks' own confidence.
    plain = tuple(artefact.model_copy(update={"calibration": None}) for artefact in manifest.artefacts)
    predictor = all_of(manifest.model_copy(update={"artefacts": plain}), folder)
    predictions = predict_studies(predictor, data / "train_images", tables.series, studies)
    located = {study: one.located[folder.recipe.name] for study, one in predictions.items()}
    known = {study: truth[study] for study in studies if study in truth}
    errors = landmark_errors({study: found.points for study, found in located.items()}, known)
    calibrate(folder, localisers, fold, located, known)
    replace_json(path, {"made_by": made_by, "errors": {view: asdict(error) for view, error in errors.items()}})
    return errors


def validate(
    folder: RunFolder,
    members: Sequence[MemberRecipe],
    data: Path,
    tables: Tables,
    folds: Mapping[str, int],
    trained: Sequence[int],
) -> Score:
    """Out-of-fold score of the folds that were trained, pooled over their studies; kept as JSON, answers as Parquet.

    Nothing is graded again, and no seconds are measured again, where all this is kept of the very same networks.
    """
    studies = {fold: [study for study, its_fold in folds.items() if its_fold == fold] for fold in trained}
    manifests = {fold: fold_manifest(folder, members, fold) for fold in trained}
    made = validation_stamp.made_of(manifests, studies, tables.fingerprint)
    if (kept := validation_stamp.kept_score(folder, made, manifests)) is not None:
        log.info("%s/%s is validated already", folder.recipe.name, folder.recipe.profile)
        return kept
    frames = []
    clock = Clock(float("inf"))
    for fold, manifest in manifests.items():
        predictor = all_of(manifest, folder)
        predictions = predict_studies(predictor, data / "train_images", tables.series, studies[fold], clock=clock)
        frames.append(as_frame({study: one.rows for study, one in predictions.items()}))
        keep_answers(folder, members, fold, predictions, tables.labels)
        solution = solution_of(tables.labels.loc[studies[fold]])
        _keep_member_scores(folder, members, fold, predictions, manifest, solution)
    pooled = pd.concat(frames, ignore_index=True)
    scored = [study for study, fold in folds.items() if fold in trained]
    result = score(solution_of(tables.labels.loc[scored]), pooled)
    replace_json(folder.score, {"folds": list(trained), "studies": len(scored), **asdict(result)})
    replace_json(folder.seconds, seconds_of(folder.recipe.name, members, trained, clock))
    validation_stamp.keep(folder, made, trained)
    return result


def all_of(manifest: Manifest, folder: RunFolder) -> Predictor:
    """All networks of a fold.  Raises RunsError for one that the kernel would leave out."""
    predictor = Predictor(manifest, folder.profile, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if predictor.problems:
        first = predictor.problems[0]
        raise RunsError(
            f"{folder.profile}: {first.detail}: the same command trains a damaged network again; if it says this "
            "once more, remove the folder of that network"
        )
    return predictor


def keep_answers(
    folder: RunFolder,
    members: Sequence[MemberRecipe],
    fold: int,
    predictions: Mapping[str, Prediction],
    labels: pd.DataFrame,
) -> None:
    """Write the table of what each grader of a fold answered for the studies that it never saw."""
    out_of_fold.write(folder.out_of_fold(fold), answer_table(folder.recipe.name, members, fold, predictions, labels))


def answer_table(
    name: str,
    members: Sequence[MemberRecipe],
    fold: int,
    predictions: Mapping[str, Prediction],
    labels: pd.DataFrame,
) -> pd.DataFrame:
    """What the graders of a recipe's fold answered, in the form of training.data.out_of_fold."""
    tables = []
    for member in members:
        if member.member.role == "grader" and member.is_trained_in(fold):
            own = f"{member.member.name}_fold{fold}"
            answers = {study: prediction.answers.get(own, {}) for study, prediction in predictions.items()}
            tables.append(out_of_fold.rows_of(name, member.pooled_as, name, fold, answers, labels))
    return pd.concat(tables, ignore_index=True)


def seconds_of(
    located: str, members: Sequence[MemberRecipe], folds: Sequence[int], clock: Clock
) -> dict[str, dict[str, float]]:
    """Measured seconds a study, with TTA: of each grader, and of reading and of all localisers together."""
    costs: dict[str, dict[str, float]] = {"members": {}, "located": {located: clock.mean_s("read")}}
    for member in members:
        measured = [clock.mean_s(f"{member.member.name}_fold{fold}") for fold in folds if member.is_trained_in(fold)]
        if not measured:
            continue
        seconds = float(np.mean(measured)) * member.member.passes
        if member.member.role == "grader":
            costs["members"][member.pooled_as] = max(seconds, costs["members"].get(member.pooled_as, 0.0))
        else:
            costs["located"][located] += seconds
    return costs


def _keep_member_scores(
    folder: RunFolder,
    members: Sequence[MemberRecipe],
    fold: int,
    predictions: Mapping[str, Prediction],
    manifest: Manifest,
    solution: pd.DataFrame,
) -> None:
    """Write each grader's own out-of-fold score, by condition group, into its artefact.json."""
    priors = np.array([manifest.priors[row] for row in ROWS])
    for member in members:
        if member.member.role != "grader" or not member.is_trained_in(fold):
            continue
        path = folder.job(member.member.name, fold) / "artefact.json"
        artefact = Artefact.model_validate_json(path.read_text())
        rows = {}
        for study, prediction in predictions.items():
            answers = prediction.answers.get(artefact.member.name, {})
            pairs = zip(ROWS, priors, strict=True)
            rows[study] = np.stack([softmax(answers[row]) if row in answers else prior for row, prior in pairs])
        result = asdict(score(solution, as_frame(rows)))
        graded = [group for group, weight in member.weight.items() if weight > 0 and np.isfinite(result[group])]
        own = {str(group): round(result[group], 5) for group in graded}
        provenance = artefact.provenance.model_copy(update={"oof_score": own})
        replace_json(path, artefact.model_copy(update={"provenance": provenance}).model_dump(mode="json"))


def as_frame(rows: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Study → (25, 3) probabilities, as a table of row_id and the three severities."""
    ids = [f"{study}_{row}" for study in rows for row in ROWS]
    frame = pd.DataFrame(np.concatenate(list(rows.values())), columns=list(SEVERITIES))
    frame.insert(0, "row_id", ids)
    return frame


def solution_of(labels: pd.DataFrame) -> pd.DataFrame:
    """One-hot solution rows of a table study × 25 severities; missing labels (-100) are not rows of it."""
    severities = labels[list(ROWS)].to_numpy(int)
    studies, rows = np.nonzero(severities >= 0)
    names = list(labels.index)
    onehot = pd.DataFrame(np.eye(len(SEVERITIES))[severities[studies, rows]], columns=list(SEVERITIES))
    onehot.insert(0, "row_id", [f"{names[study]}_{ROWS[row]}" for study, row in zip(studies, rows, strict=True)])
    return onehot
