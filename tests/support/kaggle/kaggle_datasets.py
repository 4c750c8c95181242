"""How the local Kaggle of the tests answers what the client asks about datasets and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.support.kaggle.kaggle_state import (
    WHEN,
    Body,
    Dataset,
    KaggleState,
    Redirect,
    Refused,
    Upload,
    download,
    listed,
    next_of,
    page,
)


def start_blob_upload(kaggle: KaggleState, body: Body) -> Body:
    token = f"upload-{next(kaggle.numbers)}"
    kaggle.uploads[token] = Upload(body["name"], body.get("contentLength", 0))
    return {"token": token, "createUrl": f"{kaggle.url}/uploads/{token}"}


def create_dataset(kaggle: KaggleState, body: Body) -> Body:
    ref, title = f"{body['ownerSlug']}/{body['slug']}", body["title"]
    if body["ownerSlug"] != kaggle.user:
        raise Refused(403, "Permission 'datasets.create' was denied")
    titles = {dataset.title for dataset in kaggle.datasets.values()}
    if kaggle.faults.title_in_use or ref in kaggle.datasets or title in titles:
        error = f'The requested title "{title}" is already in use by a dataset. Please choose another title.'
        return {"status": "error", "error": error}
    kaggle.datasets[ref] = Dataset(next(kaggle.numbers), title, body["licenseName"])
    return _add_version(kaggle, ref, body.get("files", []))


def create_dataset_version(kaggle: KaggleState, body: Body) -> Body:
    ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
    if ref not in kaggle.datasets:
        raise _missing(kaggle, ref)
    if kaggle.faults.refuse_version_while_processing and kaggle.datasets[ref].status != "READY":
        raise Refused(403, "Permission 'datasets.update' was denied")
    return _add_version(kaggle, ref, body["body"].get("files", []))


def create_dataset_version_by_id(kaggle: KaggleState, body: Body) -> Body:
    refs = {dataset.number: ref for ref, dataset in kaggle.datasets.items()}
    owner, _, slug = refs.get(body["id"], f"{kaggle.user}/none").partition("/")
    return create_dataset_version(kaggle, {**body, "ownerSlug": owner, "datasetSlug": slug})


def _add_version(kaggle: KaggleState, ref: str, files: Iterable[Body]) -> Body:
    uploads = [kaggle.uploads[file["token"]] for file in files]
    if any(len(upload.received) != upload.size_bytes for upload in uploads):
        raise Refused(400, "A file of this dataset has not been uploaded.")
    dataset, faults = kaggle.datasets[ref], kaggle.faults
    dataset.versions.append({upload.name: bytes(upload.received) for upload in uploads})
    dataset.plan = list(faults.status_plan) or ["BLOBS_RECEIVED"] * faults.ready_after + ["READY"]
    dataset.hidden_questions = faults.not_found_after_create
    return {"status": "ok", "ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}"}


def _missing(kaggle: KaggleState, ref: str) -> Refused:
    if kaggle.faults.missing_is_forbidden:
        return Refused(403, "Permission 'datasets.get' was denied")
    return Refused(404, f"Dataset {ref} was not found")


def _dataset(kaggle: KaggleState, body: Body) -> str:
    """The name of the dataset that is asked about.  Raises Refused where it cannot be seen (yet)."""
    ref = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
    if ref not in kaggle.datasets:
        raise _missing(kaggle, ref)
    if kaggle.datasets[ref].hidden_questions:
        kaggle.datasets[ref].hidden_questions -= 1
        raise _missing(kaggle, ref)
    return ref


def get_dataset_status(kaggle: KaggleState, body: Body) -> Body:
    return {"status": next_of(kaggle.datasets[_dataset(kaggle, body)].plan)}


def get_dataset(kaggle: KaggleState, body: Body) -> Body:
    return _described(kaggle, _dataset(kaggle, body))


def get_dataset_metadata(kaggle: KaggleState, body: Body) -> Body:
    return {"info": {"licenses": [{"name": kaggle.datasets[_dataset(kaggle, body)].licence}]}}


def list_datasets(kaggle: KaggleState, body: Body) -> Body:
    shown = [ref for ref in kaggle.datasets if body.get("search", "") in ref]
    return page("datasets", [_described(kaggle, ref) for ref in shown], body)


def _described(kaggle: KaggleState, ref: str) -> Body:
    dataset, size_bytes = kaggle.datasets[ref], sum(map(len, kaggle.files(ref).values()))
    described = {"id": dataset.number, "ref": ref, "title": dataset.title, "totalBytes": size_bytes}
    return {**described, "lastUpdated": WHEN, "currentVersionNumber": kaggle.current_version(ref)}


def list_dataset_files(kaggle: KaggleState, body: Body) -> Body:
    files = kaggle.files(_dataset(kaggle, body), body.get("datasetVersionNumber"))
    return page("datasetFiles", listed(files), body)


def download_dataset(kaggle: KaggleState, body: Body) -> Redirect:
    ref = _dataset(kaggle, body)
    return download(kaggle, ref.split("/")[1], kaggle.files(ref, body.get("datasetVersionNumber")), body)


Route = Callable[[KaggleState, Body], Body | Redirect]
ROUTES: dict[str, Route] = {
    "blobs.BlobApiService/StartBlobUpload": start_blob_upload,
    "datasets.DatasetApiService/CreateDataset": create_dataset,
    "datasets.DatasetApiService/CreateDatasetVersion": create_dataset_version,
    "datasets.DatasetApiService/CreateDatasetVersionById": create_dataset_version_by_id,
    "datasets.DatasetApiService/GetDatasetStatus": get_dataset_status,
    "datasets.DatasetApiService/GetDataset": get_dataset,
    "datasets.DatasetApiService/GetDatasetMetadata": get_dataset_metadata,
    "datasets.DatasetApiService/ListDatasets": list_datasets,
    "datasets.DatasetApiService/ListDatasetFiles": list_dataset_files,
    "datasets.DatasetApiService/DownloadDataset": download_dataset,
}
