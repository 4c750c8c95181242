"""Archives that several workers share: read and hashed once, and freed when all have them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks import archives as archives_module
from kernels.lumbar.networks.archives import Archives, archives_of
from kernels.lumbar.networks.weights import WeightsError, checked_bytes
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.device_worker import DeviceWorker


@pytest.fixture
def read(monkeypatch):
    """Names of the members whose files were read, in order; each read takes a moment."""
    found = []

    def slow(folder, artefact):
        found.append(artefact.member.name)
        time.sleep(0.05)
        return checked_bytes(folder, artefact)

    monkeypatch.setattr(archives_module, "checked_bytes", slow)
    return found


def copies(artefact, folder, count):
    """Artefacts of the same network in files of their own."""
    data = (folder / "weights.ts").read_bytes()
    found = []
    for number in range(count):
        (folder / f"{number}.ts").write_bytes(data)
        weights = artefact.weights.model_copy(update={"file": f"{number}.ts"})
        member = artefact.member.model_copy(update={"name": f"m{number}"})
        found.append(artefact.model_copy(update={"weights": weights, "member": member}))
    return found


@pytest.fixture
def three(tiny_export, artefact, tmp_path):
    (tmp_path / "weights.ts").write_bytes((tiny_export / "weights.ts").read_bytes())
    return copies(artefact, tmp_path, 3)


def test_workers_that_load_at_once_read_each_archive_once(tmp_path, three, read):
    archives, together = Archives(tmp_path), threading.Barrier(4)

    def worker(_):
        with archives.shared(three) as take:
            together.wait()
            return [take(artefact) for artefact in three]

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(worker, range(4)))
    assert sorted(read) == ["m0", "m1", "m2"]
    assert all(
        data == checked_bytes(tmp_path, artefact) for its in taken for data, artefact in zip(its, three, strict=True)
    )
    assert archives.held_bytes == 0, "an archive is kept though all have taken it"


def test_an_archive_is_kept_until_the_last_one_has_it_or_gave_up(tmp_path, three, read):
    size = three[0].weights.bytes
    archives = Archives(tmp_path)
    with archives.shared(three[:2]) as first, archives.shared(three) as second:
        first(three[0])
        first(three[1])
        assert archives.held_bytes == 2 * size
        second(three[0])
        assert archives.held_bytes == size
    assert archives.held_bytes == 0 and read == ["m0", "m1"]


def test_no_more_is_kept_than_allowed(tmp_path, three, read):
    size = three[0].weights.bytes
    archives = Archives(tmp_path, most_held=2 * size)
    with archives.shared(three) as fast, archives.shared(three) as slow:
        for artefact in three:
            fast(artefact)
            assert archives.held_bytes <= 2 * size
        assert [len(slow(artefact)) for artefact in three] == [size] * 3
    assert read == ["m0", "m1", "m2", "m0"]
    assert archives.held_bytes == 0


def test_a_wrong_archive_is_refused_to_every_worker(tmp_path, three):
    (tmp_path / "1.ts").write_bytes(b"x" * three[1].weights.bytes)
    archives = Archives(tmp_path)
    with archives.shared(three) as first, archives.shared(three) as second:
        for take in (first, second):
            take(three[0])
            with pytest.raises(WeightsError, match="m1: .*another sha256"):
                take(three[1])
            take(three[2])
    assert archives.held_bytes == 0


def test_the_workers_of_a_process_share_what_they_load(tmp_path, three, read):
    manifest = Manifest(name="m", priors=public_priors(), artefacts=tuple(three), routes=())
    workers = [DeviceWorker(manifest, tmp_path, torch.device("cpu"), Clock(1e9)) for _ in range(2)]
    names = {artefact.member.name for artefact in three}
    threads = [threading.Thread(target=worker.load, args=(names,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(names) and all(worker.members.keys() == names for worker in workers)
    assert archives_of(tmp_path).held_bytes == 0
