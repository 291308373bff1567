"""Our own files with one byte changed, or cut: it is found, or changes nothing."""

import random

import pytest
from hostile import inputs, targets

from ncsn_fast.checkpoints.load_save import BUNDLED

BY_NAME = {target.name: target for target in targets.TARGETS}
KINDS = {
    "network": inputs.network,
    "the bundled network": BUNDLED["digits"].read_bytes,
    "training checkpoint": lambda: inputs.run_folder()["checkpoint.safetensors"],
    "training checkpoint as a network": lambda: inputs.run_folder()["checkpoint.safetensors"],
    "model of a run": lambda: inputs.run_folder()["model.safetensors"],
    "samples": inputs.samples,
    "a part of samples": inputs.samples,
    "chains under way": inputs.partial,
    "settings of a run": lambda: inputs.run_folder()["run.json"],
    "log of a run": inputs.log,
    "bundled digits": lambda: BY_NAME["bundled digits"].valid()[0],
}
SEEDS = 100  # damages of each kind: 1,100 in all


def target_of(kind):
    return BY_NAME.get(kind, BY_NAME["network"])


def whole(kind):
    data = KINDS[kind]()
    found = targets.value(target_of(kind), data)
    assert found != "refused"
    return data, found


def check(kind, data, expected, what):
    """True where the change was found."""
    found = targets.value(target_of(kind), data)
    assert found in ("refused", expected), f"{kind}, {what}: read as {str(found)[:300]}"
    return found == "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_found_or_harmless(kind):
    data, expected = whole(kind)
    found = 0
    for seed in range(SEEDS):
        rng = random.Random(f"{kind} {seed}")
        # Every other one near the beginning or the end, where formats say what they hold.
        edge = min(len(data), 2000)
        place = rng.randrange(len(data)) if seed % 2 else rng.randrange(-edge // 4, edge)
        damaged = bytearray(data)
        damaged[place] ^= rng.randrange(1, 256)
        what = f"byte {place} from {data[place]} to {damaged[place]}"
        found += check(kind, bytes(damaged), expected, what)
    assert found > SEEDS // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_found(kind):
    data, expected = whole(kind)
    for percent in range(100):
        cut = data[: len(data) * percent // 100]
        check(kind, cut, expected, f"cut at {percent} %")


def test_what_is_for_people_is_read_by_nothing(tmp_path):
    """The .json beside a network, and levels.json: whatever lies there changes no result."""
    files = inputs.run_folder()
    for name in ("model.safetensors", "checkpoint.safetensors", "log.jsonl", "run.json"):
        (tmp_path / name).write_bytes(files[name])
    names = {"network": "model.safetensors", "training checkpoint": "checkpoint.safetensors"}
    before = {kind: BY_NAME[kind].read(tmp_path / name) for kind, name in names.items()}
    for name in ("model.json", "levels.json"):
        (tmp_path / name).write_bytes(files[name][::-1])
    after = {kind: BY_NAME[kind].read(tmp_path / name) for kind, name in names.items()}
    assert before == after
