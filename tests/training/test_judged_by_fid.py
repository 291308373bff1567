"""Samples of a run that are judged by FID: what is logged, what is kept, what is refused."""

import json

import numpy as np
import pytest
import torch
from helpers.command import invoke, succeed
from helpers.training import images, trained, trainer_of

import ncsn_fast as nf
from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.distributed.group import Group
from ncsn_fast.evaluation.inception.figures import Fid, look
from ncsn_fast.evaluation.inception.network import Seen, load_inception
from ncsn_fast.evaluation.inception.statistics import write_statistics


class Pixels:
    """A network whose features are the pixels."""

    device = torch.device("cpu")

    def __call__(self, x):
        flat = x.flatten(1).float()
        return Seen(flat, flat[:, :5])


def fid():
    return Fid(Pixels(), look(Pixels(), images(40).numpy(), Group()))


SETTINGS = {"sample_every": 2, "samples": 9, "checkpoint_every": 2, "steps": 6}


def entries(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_distance_is_fid_and_the_best_network_is_kept_by_it(tmp_path):
    trainer = trained(out=tmp_path, held_out=fid(), **SETTINGS)
    logged = {e["step"]: e["fid"] for e in entries(tmp_path) if "loss" not in e}
    assert logged == dict(trainer.log.distances)
    assert list(logged) == [2, 4, 6]
    assert trainer.log.measure == "fid"
    best = nf.load_checkpoint(tmp_path / "best.safetensors")
    again = fid()(nf.sample(best, 9, seed=trainer.config.seed))
    assert again == pytest.approx(min(logged.values()), rel=1e-3)


def test_a_run_that_goes_on_is_judged_as_it_was_begun(tmp_path):
    first = trained(out=tmp_path, held_out=fid(), **{**SETTINGS, "steps": 4})
    with pytest.raises(ValueError, match=r"judged by fid .*, which pixel_frechet_distance cannot"):
        trainer_of(out=tmp_path, held_out=images(4), **SETTINGS, resume=True)
    resumed = trained(out=tmp_path, held_out=fid(), **SETTINGS, resume=True)
    assert resumed.log.distances[:2] == first.log.distances
    whole = trained(out=tmp_path / "whole", held_out=fid(), **SETTINGS)
    assert resumed.log.distances == whole.log.distances


def test_too_few_samples_for_it_are_refused(tmp_path):
    with pytest.raises(ValueError, match="samples = 3"):
        trainer_of(out=tmp_path, held_out=fid(), **{**SETTINGS, "samples": 3})


TINY = ("--preset", "digits", "--ngf", 4, "--steps", 2, "--batch-size", 4, "--schedule", "auto")


@pytest.mark.slow
def test_the_command_takes_weights_and_images_or_statistics(
    tmp_path, torch_fidelity, random_weights
):
    given = ("--inception", random_weights.path, "--inception-sha256", random_weights.sha256)
    often = ("--sample-every", 2, "--checkpoint-every", 2, "--samples", 4)
    of_images, of_statistics = tmp_path / "images", tmp_path / "statistics"
    real = images(9)
    np.save(tmp_path / "real.npy", real.numpy())
    held_out = ("--held-out", tmp_path / "real.npy")
    words = succeed("train", *TINY, *given, *often, *held_out, "--out", of_images)
    assert "Looking at the 9 images of" in words
    assert "judged by the FID of 4: compare it within this run alone" in words
    (found,) = [e["fid"] for e in entries(of_images) if "fid" in e]
    net = load_inception(random_weights.path, "cpu", random_weights.sha256)
    seen = look(net, real.numpy(), Group())
    samples = nf.sample(load_checkpoint(of_images / "best.safetensors"), 4, seed=0)
    assert found == pytest.approx(Fid(net, seen)(samples), rel=1e-3)

    stats = tmp_path / "stats.npz"
    write_statistics(stats, seen.moments, random_weights.sha256)
    judged = ("--held-out", stats)
    succeed("train", *TINY, *given, *often, *judged, "--out", of_statistics)
    (again,) = [e["fid"] for e in entries(of_statistics) if "fid" in e]
    assert again == pytest.approx(found, rel=1e-4)

    # Statistics of other weights, statistics without any, and weights for nothing are refused.
    write_statistics(stats, seen.moments, "ab" * 32)
    for arguments, told in (
        ((*given, *often, *judged), "is of Inception weights with the SHA-256 abab"),
        ((*often, *judged), "give the file of its weights too"),
        (given, "judges the samples that are drawn while the network is trained, and none are"),
    ):
        result = invoke("train", *TINY, *arguments, "--out", tmp_path / "refused")
        assert result.exit_code == 1
        assert told in " ".join(result.output.split())


def test_fid_without_anything_to_compare_with_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros((8, 1, 8, 8), dtype=np.uint8))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    result = invoke(
        "train", "--data", tmp_path / "data.npy", "--sigma-max", 5, "--sample-every", 1,
        "--inception", weights, "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "FID is a distance to images" in " ".join(result.output.split())
