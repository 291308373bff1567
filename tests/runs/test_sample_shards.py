"""Shards: written once, the same bytes whoever writes them, read by us and by others."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.samples import contents, filled, finish, images_of, store_in
from PIL import Image

from ncsn_fast.distributed.ranks import Ranks
from ncsn_fast.runs.samples import shards
from ncsn_fast.runs.samples.manifest import OtherSamplesError, read_manifest

FORMATS = [("npz", "float32"), ("npz", "uint8"), ("png", "uint8"), ("tar", "uint8")]
every_form = pytest.mark.parametrize(("kind", "dtype"), FORMATS)


@every_form
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 2, 3)])
def test_images_come_back_as_they_were(tmp_path: Path, kind: str, dtype: str, shape) -> None:
    store = store_in(tmp_path, (1, 10), shape=shape, format=kind, dtype=dtype)
    assert filled(store) == [(1, 4), (4, 8), (8, 10)]
    assert finish(store)
    assert finish(store_in(tmp_path, (1, 10), shape=shape))
    found = store.stored.images([9, 1, 5]).numpy()
    wanted = images_of([1, 5, 9], shape).numpy()
    assert found.dtype == dtype
    assert np.array_equal(found, wanted if dtype == "float32" else np.rint(wanted * 255))


@every_form
def test_files_are_the_same_whoever_makes_them(tmp_path: Path, kind: str, dtype: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    store = store_in(one, format=kind, dtype=dtype)
    filled(store)
    assert finish(store)
    for rank in (2, 0, 1):
        store = store_in(two, format=kind, dtype=dtype)
        filled(store, Ranks(rank, 3), part_only=True)
        assert finish(store) == (rank == 1)
    assert contents(one) == contents(two)
    assert not list(two.rglob(".*"))


def test_pictures_are_as_webdataset_reads_them(tmp_path: Path) -> None:
    store = store_in(tmp_path, (0, 8), format="tar")
    filled(store)
    with tarfile.open(tmp_path / "shards" / "000000004-000000007.tar") as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert list(found) == [f"00000000{i}.{end}" for i in range(4, 8) for end in ("png", "cls")]
    assert [int(found[f"00000000{i}.cls"]) for i in range(4, 8)] == [1, 2, 0, 1]
    for i in range(4, 8):
        image = Image.open(io.BytesIO(found[f"00000000{i}.png"]))
        assert (image.mode, np.unique(image).tolist()) == ("L", [i])


@every_form
def test_checksums_beside_shards_are_those_of_sha256sum(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    store = store_in(tmp_path, (0, 8), format=kind, dtype=dtype)
    filled(store)
    for path in (tmp_path / "shards").glob("*.sha256"):
        told = subprocess.run(["sha256sum", "-c", path.name], cwd=path.parent, capture_output=True)
        assert told.returncode == 0
    beside = {path.name: shards.stored_sum(path) for path in store.stored.shards().values()}
    assert finish(store)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    if kind == "npz":
        assert [*manifest.files] == [f"shards/{name}" for name in beside]
    assert [*manifest.files.values()] == [*beside.values()]
    assert not list((tmp_path / "shards").glob("*.sha256"))


@every_form
def test_a_shard_of_other_settings_is_told_from_a_damaged_one(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    manifests = []
    for seed, folder in enumerate(("ours", "theirs")):
        store = store_in(tmp_path / folder, (0, 4), {"seed": seed}, format=kind, dtype=dtype)
        filled(store)
        manifests.append(store.manifest)
    path = shards.path_of(tmp_path / "theirs", (0, 4), kind)
    with pytest.raises(OtherSamplesError):
        shards.read(path, (0, 4), manifests[0])


def test_what_are_no_pictures_or_no_floats_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format=png is of pictures with 1 or 3 channels"):
        store_in(tmp_path, shape=(2, 4, 4), format="png")
    with pytest.raises(ValueError, match=r"format=tar is of pictures .* shape \(5,\): say"):
        store_in(tmp_path, shape=(5,), format="tar")
    with pytest.raises(ValueError, match="dtype=float32 with format=png: pictures are uint8"):
        store_in(tmp_path, format="png", dtype="float32")
    assert not (tmp_path / "manifest.json").exists()


def test_a_set_of_one_shard_is_one_file_that_numpy_reads(tmp_path: Path) -> None:
    store = store_in(tmp_path, (0, 3))
    filled(store)
    assert finish(store)
    assert sorted(contents(tmp_path)) == ["manifest.json", "samples.npz"]
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored["sample_ids"].tolist() == [0, 1, 2]
        assert stored["images"].dtype == np.float32
        assert json.loads(str(stored["settings"])) == {"seed": 0}
