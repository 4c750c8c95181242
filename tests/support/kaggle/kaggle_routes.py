"""How the local Kaggle of the tests answers what the client asks about kernels and competitions."""

from __future__ import annotations

import json
import re

from tests.support.kaggle import kaggle_datasets
from tests.support.kaggle.kaggle_datasets import Route
from tests.support.kaggle.kaggle_state import (
    WHEN,
    Body,
    KaggleState,
    KernelVersion,
    Redirect,
    Refused,
    Submission,
    download,
    listed,
    next_of,
    page,
)


def introspect_token(kaggle: KaggleState, body: Body) -> Body:
    return {"active": True, "username": kaggle.user}


# Kernels


def save_kernel(kaggle: KaggleState, body: Body) -> Body:
    owner, _, slug = body["slug"].partition("/")
    by_title = re.sub(r"[^a-z0-9]+", "-", body.get("newTitle", slug).lower()).strip("-")
    if owner != kaggle.user:
        return {"error": "Notebook not found"}
    if body["slug"] not in kaggle.kernels:
        # A new notebook is named by its title, whatever name was asked for.
        if kaggle.faults.title_in_use or f"{owner}/{by_title}" in kaggle.kernels:
            raise Refused(409, f'The requested title "{body.get("newTitle", slug)}" is already in use by a notebook')
        slug = by_title
    faults, ref = kaggle.faults, f"{owner}/{slug}"
    sources, known = body.get("datasetDataSources", []), kaggle.datasets.keys() - set(faults.invalid_dataset_sources)
    attached = {source: kaggle.files(source) for source in sources if source in known}
    competitions = kaggle.competitions.keys() - set(faults.invalid_competition_sources)
    metadata = {key: value for key, value in body.items() if key != "text"}
    versions = kaggle.kernels.setdefault(ref, [])
    versions.append(KernelVersion(body["text"], metadata, attached, list(kaggle.kernel_plan)))
    return {
        "ref": ref,
        "url": f"https://www.kaggle.com/code/{ref}",
        "versionNumber": len(versions),
        "invalidDatasetSources": [source for source in sources if source not in attached],
        "invalidCompetitionSources": [c for c in body.get("competitionDataSources", []) if c not in competitions],
    }


def _run(kaggle: KaggleState, body: Body) -> KernelVersion:
    versions = kaggle.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}", [])
    number = int(body.get("versionLabel", f"v{len(versions)}").removeprefix("v"))
    if not 1 <= number <= len(versions):
        raise Refused(403, "Permission 'kernels.get' was denied")
    return versions[number - 1]


def get_kernel(kaggle: KaggleState, body: Body) -> Body:
    """A version as it is pulled: Kaggle adds metadata and outputs of its own to a notebook."""
    run, ref = _run(kaggle, body), f"{body['userName']}/{body['kernelSlug']}"
    source, sent = run.text, run.metadata
    if sent["kernelType"] == "notebook":
        document = json.loads(run.text)
        document["metadata"]["kaggle"] = {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": bool(sent.get("enableGpu"))}
        for cell in document["cells"]:
            cell["metadata"]["trusted"] = True
        source = json.dumps(document)
    blob = {"source": source, "language": "python", "kernelType": sent["kernelType"], "slug": body["kernelSlug"]}
    names = ("enableGpu", "enableInternet", "datasetDataSources", "competitionDataSources", "language", "kernelType")
    metadata = {"id": 1, "ref": ref, "title": sent.get("newTitle", ""), **{n: sent[n] for n in names if n in sent}}
    return {"metadata": metadata, "blob": blob}


def get_kernel_session_status(kaggle: KaggleState, body: Body) -> Body:
    run, faults = _run(kaggle, body), kaggle.faults
    if run.plan:
        run.status = run.plan[0]
        if len(run.plan) > 1 or not faults.kernel_never_ends:
            run.plan.pop(0)
    elif not run.has_ended and faults.kernel_result:
        run.status, run.failure = faults.kernel_result
        run.log = run.failure
    elif not run.has_ended:
        run.status, run.outputs, run.log, run.failure = kaggle.run_kernel(run.text, run.metadata, run.datasets)
    return {"status": run.status, "failureMessage": run.failure}


def list_kernel_session_output(kaggle: KaggleState, body: Body) -> Body:
    run = _run(kaggle, body)
    files = [{"fileName": name, "url": kaggle.publish(name, content)} for name, content in run.outputs.items()]
    return {**page("files", files, body), "log": run.log}


# Competitions


def _competition(kaggle: KaggleState, body: Body, needs_rules: bool = True) -> str:
    name = body["competitionName"]
    if name not in kaggle.competitions:
        raise Refused(404, f"Competition {name} was not found")
    if needs_rules and kaggle.faults.rules_not_accepted:
        raise Refused(403, "You must accept this competition's rules before you'll be able to continue.")
    return name


def list_competitions(kaggle: KaggleState, body: Body) -> Body:
    entered = not kaggle.faults.rules_not_accepted
    names = [name for name in kaggle.competitions if body.get("search", "") in name]
    if body.get("group") == "COMPETITION_LIST_TAB_ENTERED" and not entered:
        names = []
    urls = {name: f"https://www.kaggle.com/competitions/{name}" for name in names}
    listed = [{"ref": url, "title": name, "deadline": WHEN, "userHasEntered": entered} for name, url in urls.items()]
    return page("competitions", listed, body)


def list_data_files(kaggle: KaggleState, body: Body) -> Body:
    return page("files", listed(kaggle.competitions[_competition(kaggle, body, needs_rules=False)]), body)


def download_data_files(kaggle: KaggleState, body: Body) -> Redirect:
    name = _competition(kaggle, body)
    return download(kaggle, name, kaggle.competitions[name], body)


def create_code_submission(kaggle: KaggleState, body: Body) -> Body:
    competition, kernel = _competition(kaggle, body), f"{body.get('kernelOwner')}/{body.get('kernelSlug')}"
    number, versions = body.get("kernelVersion", 0), kaggle.kernels.get(kernel, [])
    if kaggle.faults.submission_refused:
        raise Refused(*kaggle.faults.submission_refused)
    if not 1 <= number <= len(versions):
        raise Refused(404, "Could not find provided notebook")
    run, name = versions[number - 1], body.get("fileName", "")
    if run.status != "COMPLETE" or name not in run.outputs:
        raise Refused(400, f"The notebook's version {number} has no output file {name}")
    if run.metadata.get("enableInternet"):
        raise Refused(400, "Your Notebook cannot use internet access in this competition")
    made = next(kaggle.numbers)
    described = body.get("submissionDescription", "")
    plan = [*kaggle.submission_plan, "ERROR" if kaggle.faults.submission_error else "COMPLETE"]
    handed_in = Submission(made, competition, kernel, number, name, run.outputs[name], described, plan)
    kaggle.submissions.append(handed_in)
    return {"message": f"Successfully submitted to {competition}", "ref": made}


def get_submission_limits(kaggle: KaggleState, body: Body) -> Body:
    made = len(kaggle.submissions)
    return {"numToday": made, "numTotal": made, "numAllowedNow": max(5 - made, 0)}


def list_submissions(kaggle: KaggleState, body: Body) -> Body:
    name = _competition(kaggle, body, needs_rules=False)
    newest_first = [one for one in reversed(kaggle.submissions) if one.competition == name]
    if newest_first and kaggle.faults.unlisted_questions:
        kaggle.faults.unlisted_questions -= 1
        newest_first = newest_first[1:]
    return page("submissions", [_scored(kaggle, one) for one in newest_first], body)


def get_submission(kaggle: KaggleState, body: Body) -> Body:
    for one in kaggle.submissions:
        if one.number == body.get("ref"):
            return _scored(kaggle, one)
    raise Refused(404, "Submission was not found")


def _scored(kaggle: KaggleState, one: Submission) -> Body:
    status = next_of(one.plan)
    score = kaggle.public_score if status == "COMPLETE" else ""
    error = kaggle.faults.submission_error if status == "ERROR" else ""
    told = {"ref": one.number, "fileName": one.file_name, "date": WHEN, "description": one.description}
    return {**told, "status": status, "publicScore": score, "errorDescription": error}


ROUTES: dict[str, Route] = {
    **kaggle_datasets.ROUTES,
    "security.OAuthService/IntrospectToken": introspect_token,
    "kernels.KernelsApiService/SaveKernel": save_kernel,
    "kernels.KernelsApiService/GetKernel": get_kernel,
    "kernels.KernelsApiService/GetKernelSessionStatus": get_kernel_session_status,
    "kernels.KernelsApiService/ListKernelSessionOutput": list_kernel_session_output,
    "competitions.CompetitionApiService/ListCompetitions": list_competitions,
    "competitions.CompetitionApiService/ListDataFiles": list_data_files,
    "competitions.CompetitionApiService/DownloadDataFile": download_data_files,
    "competitions.CompetitionApiService/DownloadDataFiles": download_data_files,
    "competitions.CompetitionApiService/CreateCodeSubmission": create_code_submission,
    "competitions.CompetitionApiService/GetSubmissionLimits": get_submission_limits,
    "competitions.CompetitionApiService/ListSubmissions": list_submissions,
    "competitions.CompetitionApiService/GetSubmission": get_submission,
}
