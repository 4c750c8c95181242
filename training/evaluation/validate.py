"""Out-of-fold validation with the kernel's own code, so that the score is that of the code which runs on Kaggle."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.answers.localiser_answers import merge
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Member
from training.data import out_of_fold
from training.data.label_correction import EarlierLabels, is_changed
from training.data.tables import Tables
from training.digests import digest
from training.evaluation import validation_stamp
from training.evaluation.calibrate import calibrate
from training.evaluation.domain import SeenStudies
from training.evaluation.landmark_errors import LandmarkError, landmark_errors
from training.evaluation.metric import Score, score
from training.evaluation.predictor import Prediction, Predictor
from training.recipe_schema.schema import MemberRecipe
from training.runs import RunFolder, RunsError, read_object, routes_of

log = logging.getLogger("validate")


def fold_manifest(folder: RunFolder, members: Sequence[MemberRecipe], fold: int) -> Manifest:
    """Manifest of the finished networks of one fold; files are relative to the folder's `root`."""
    members = [member for member in members if member.is_trained_in(fold)]
    artefacts = [folder.artefact(member.member.name, fold) for member in members]
    return Manifest(
        name=f"{folder.recipe.name} fold {fold}",
        average=folder.recipe.average,
        priors=json.loads(folder.priors.read_text()),
        shape=json.loads(folder.shape.read_text()),
        artefacts=tuple(artefacts),
        routes=routes_of(folder.recipe, artefacts, members),
    )


def predict_studies(
    predictor: Predictor,
    images: Path,
    series: Mapping[str, Sequence[tuple[str, str]]],
    studies: Sequence[str],
    landmarks: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    clock: Clock | None = None,
    seen: SeenStudies | None = None,
) -> dict[str, Prediction]:
    """Study → prediction.  `landmarks` (study → row → mm) replace the localisers; `clock` records the seconds; `seen`
    collects the studies."""
    clock = clock or Clock(float("inf"))
    known = (lambda study: landmarks.get(study, {})) if landmarks is not None else (lambda study: None)
    read = tqdm(read_ahead(images, series, studies, clock), total=len(studies), unit="study", desc="validating")
    found = {}
    for study in read:
        found[study.study_id] = predictor.predict(study, clock, landmarks=known(study.study_id))
        if seen is not None:
            seen.add(study, found[study.study_id])
    return found


def localiser_errors(
    folder: RunFolder,
    localisers: Sequence[MemberRecipe],
    data: Path,
    tables: Tables,
    studies: Sequence[str],
    truth: Mapping[str, Mapping[str, np.ndarray]],
    fold: int,
) -> dict[str, LandmarkError]:
    """Out-of-fold localisation error (mm) per series kind, cached as JSON; also calibrates the localisers."""
    manifest = fold_manifest(folder, localisers, fold)
    known = {study: truth[study] for study in studies if study in truth}

    def measured() -> dict[str, LandmarkError]:
        located = located_plainly(manifest, folder, data, tables, studies)
        errors = landmark_errors({study: found.points for study, found in located.items()}, known)
        calibrate(folder, localisers, fold, located, known)
        return errors

    return kept_or(measured, folder.localiser_errors(fold), manifest, known)


def source_errors(
    folder: RunFolder,
    localiser: Member,
    sources: Sequence[MemberRecipe],
    data: Path,
    tables: Tables,
    studies: Sequence[str],
    truth: Mapping[str, Mapping[str, np.ndarray]],
    fold: int,
) -> dict[str, LandmarkError]:
    """Out-of-fold error (mm) per series kind of the landmarks that `localiser` needs, by the `sources` of the fold.

    Measured before it is trained: it is trained on slices that are off as those that it will be shown.

    `studies`: those that the fold holds out.  `truth`: study → row → mm.  Kept as JSON, as long as the sources and the
    needed landmarks are the same.
    """
    manifest = fold_manifest(folder, sources, fold)
    known = {
        study: {row: point for row, point in truth[study].items() if row in localiser.needed}
        for study in studies
        if study in truth
    }

    def measured() -> dict[str, LandmarkError]:
        located = located_plainly(manifest, folder, data, tables, studies)
        slices = [one.name_in(fold) for one in sources if one.member.answers == "slices"]
        found = {study: in_plane(one, known.get(study, {}), slices) for study, one in located.items()}
        return landmark_errors(found, known)

    return kept_or(measured, folder.source_errors(localiser.name, fold), manifest, known)


def in_plane(located: Located, truth: Mapping[str, np.ndarray], slices: Sequence[str]) -> dict[str, np.ndarray]:
    """Row → located point; of a landmark of which only the slice was found, by networks `slices`, the foot of the
    annotated point on that slice: where within the slice it lies was not asked for."""
    found = dict(located.points)
    for row, point in found.items():
        answers = [(name, its[row]) for name, its in located.by_member.items() if row in its]
        if answers and row in truth and all(name in slices for name, _ in answers):
            normal = merge([answer for _, answer in answers]).normal
            assert normal is not None  # every answer of a network has one
            found[row] = truth[row] + normal * float((point - truth[row]) @ normal)
    return found


def located_plainly(
    manifest: Manifest, folder: RunFolder, data: Path, tables: Tables, studies: Sequence[str]
) -> dict[str, Located]:
    """Study → landmarks of the localisers of one fold, by their own confidence.

    Without the calibration of an attempt that was killed: it is fitted to that confidence.
    """
    plain = tuple(artefact.model_copy(update={"calibration": None}) for artefact in manifest.artefacts)
    predictor = all_of(manifest.model_copy(update={"artefacts": plain}), folder)
    predictions = predict_studies(predictor, data / "train_images", tables.series, studies)
    return {study: one.located[folder.recipe.name] for study, one in predictions.items()}


def kept_or(
    measured: Callable[[], dict[str, LandmarkError]],
    path: Path,
    manifest: Manifest,
    truth: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, LandmarkError]:
    """The errors that a file keeps, if they are of these very networks and landmarks, and whole; else they are measured
    and kept."""
    made_by = {artefact.member.name: artefact.weights.sha256 for artefact in manifest.artefacts}
    # Of another machine the last digits may differ.
    rounded = {
        study: {row: (point.round(3) + 0.0).tolist() for row, point in its.items()} for study, its in truth.items()
    }
    made_of = {"made_by": made_by, "landmarks": digest(rounded)}
    kept = read_object(path)
    errors = kept.get("errors", {})
    if kept == made_of | {"errors": errors} and all("offsets_mm" in error for error in errors.values()):
        return {view: LandmarkError(**error) for view, error in errors.items()}
    found = measured()
    path.parent.mkdir(parents=True, exist_ok=True)  # not there yet where all localisers are another recipe's
    replace_json(path, made_of | {"errors": {view: asdict(error) for view, error in found.items()}})
    return found


def validate(
    folder: RunFolder,
    members: Sequence[MemberRecipe],
    data: Path,
    tables: Tables,
    folds: Mapping[str, int],
    trained: Sequence[int],
    earlier: EarlierLabels | None = None,
) -> Score:
    """Out-of-fold score, pooled over the studies of the trained folds; saved as JSON, predictions as Parquet.

    `earlier`: what labels were corrected by.  Does nothing where all results of the same networks, studies and code
    exist (validation_stamp.py).
    """
    studies = {fold: [study for study, its_fold in folds.items() if its_fold == fold] for fold in trained}
    manifests = {fold: fold_manifest(folder, members, fold) for fold in trained}
    made = validation_stamp.made_of(manifests, studies, tables.fingerprint)
    if (kept := validation_stamp.kept_score(folder, made, manifests)) is not None:
        log.info("%s/%s is validated already", folder.recipe.name, folder.recipe.profile)
        return kept
    frames = []
    clock, seen = Clock(float("inf")), SeenStudies(tables.coordinates)
    for fold, manifest in manifests.items():
        predictor = all_of(manifest, folder)
        given = (predictor, data / "train_images", tables.series, studies[fold])
        predictions = predict_studies(*given, clock=clock, seen=seen)
        frames.append(as_frame({study: one.rows for study, one in predictions.items()}))
        answers = answer_table(folder.recipe.name, members, fold, predictions, tables.labels)
        out_of_fold.write(folder.out_of_fold(fold), answers)
        solution = solution_of(tables.labels.loc[studies[fold]])
        _keep_member_scores(folder, members, fold, predictions, manifest, solution)
    pooled = pd.concat(frames, ignore_index=True)
    scored = [study for study, fold in folds.items() if fold in trained]
    result = score(solution_of(tables.labels.loc[scored]), pooled)
    known = {"folds": list(trained), "studies": len(scored), **asdict(result)}
    replace_json(folder.score, {**known, "cautions": cautions(members, earlier)})
    replace_json(folder.domain, seen.as_json())
    replace_json(folder.seconds, seconds_of(folder.recipe.name, members, manifests, clock))
    validation_stamp.keep(folder, made, trained)
    return result


def cautions(members: Sequence[MemberRecipe], earlier: EarlierLabels | None) -> list[str]:
    """What makes an out-of-fold score look better than it would on other studies, a sentence each."""
    found = []
    chosen = [one.member.name for one in members if "best" in kept_epochs(one)]
    if chosen:
        found.append(f"the epoch of {', '.join(chosen)} was chosen on the studies of this score (keep: best)")
    changed = [one.member.name for one in members if is_changed(earlier, one)]
    if changed:
        found.append(
            f"the labels of {', '.join(changed)} were corrected by networks that were trained on the labels of the "
            "studies of this score (LABELS= is not nested): confirm a gain on other studies"
        )
    return found


def kept_epochs(member: MemberRecipe) -> set[str]:
    """`keep` of all fits of a network."""
    second = member.fitting.second_step
    return {member.fitting.optimisation.keep, *([second.optimisation.keep] if second else [])}


def all_of(manifest: Manifest, folder: RunFolder) -> Predictor:
    """Predictor with all networks of a fold.  Raises RunsError for one that the kernel would drop."""
    predictor = Predictor(manifest, folder.root, default_device())
    if predictor.problems:
        first = predictor.problems[0]
        raise RunsError(
            f"{folder.profile}: {first.detail}: the same command trains a damaged network again; if this message "
            "is repeated, remove the folder of that network"
        )
    return predictor


def answer_table(
    name: str,
    members: Sequence[MemberRecipe],
    fold: int,
    predictions: Mapping[str, Prediction],
    labels: pd.DataFrame,
) -> pd.DataFrame:
    """Logits of a fold's graders for its held-out studies, as a table of training.data.out_of_fold."""
    tables = []
    for member in members:
        if member.member.role == "grader" and member.is_trained_in(fold):
            name_in_fold = member.name_in(fold)
            answers = {study: prediction.answers.get(name_in_fold, {}) for study, prediction in predictions.items()}
            tables.append(out_of_fold.rows_of(name, member.pooled_as, name, fold, answers, labels))
    return pd.concat(tables, ignore_index=True)


def seconds_of(
    located: str, members: Sequence[MemberRecipe], manifests: Mapping[int, Manifest], clock: Clock
) -> dict[str, dict[str, float]]:
    """Measured seconds a study, with TTA, in all routes: of each grader, and of reading and all localisers together.

    `manifests`: fold → its manifest.
    """
    routes = [route for manifest in manifests.values() for route in manifest.routes]
    times = Counter(name for route in routes for name in (*route.localisers, *(one.name for one in route.graders)))
    costs: dict[str, dict[str, float]] = {"members": {}, "located": {located: clock.mean_s("read")}}
    for member in members:
        names = [member.name_in(fold) for fold in manifests if member.is_trained_in(fold)]
        measured = [clock.mean_s(name) * times[name] for name in names]
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
    """Write each grader's out-of-fold score, by condition group, into its artefact.json."""
    priors = np.array([manifest.priors[row] for row in ROWS])
    for member in members:
        if member.member.role != "grader" or not member.is_trained_in(fold):
            continue
        name = member.name_in(fold)
        rows = {}
        for study, prediction in predictions.items():
            answers = prediction.answers.get(name, {})
            pairs = zip(ROWS, priors, strict=True)
            rows[study] = np.stack([softmax(answers[row]) if row in answers else prior for row, prior in pairs])
        result = asdict(score(solution, as_frame(rows)))
        graded = [group for group, weight in member.weight.items() if weight > 0 and np.isfinite(result[group])]
        own = {str(group): round(result[group], 5) for group in graded}
        made = next(one.provenance for one in manifest.artefacts if one.member.name == name)
        folder.update_artefact(member.member.name, fold, provenance=made.model_copy(update={"oof_score": own}))


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
