"""Wrong arguments of every public function are refused by name, in words of this package."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ncsn_fast as nf

PACKAGE = str(Path(nf.__file__).parent)
SIGMAS = nf.geometric_sigmas(5, 0.01, 6)
NUMBERS = ["7", None, math.nan, [], {}, object(), b"1", 1j, True, np.array([1.0, 2.0])]
LARGE_NUMBER = 2**70
WHOLE = [*NUMBERS, math.inf, 1.5, -1, LARGE_NUMBER, np.float64(1.5), torch.tensor(1.5)]
ANY = [*WHOLE, 0, np.int64(3), torch.tensor(2), np.zeros((0,)), torch.zeros(2, 0), "", ()]


def net() -> nf.MLPScore:
    torch.manual_seed(0)
    made = nf.MLPScore(sigmas=SIGMAS, hidden=4, layers=1)
    made.sampling = {"method": "annealed_langevin", "step_size": 1e-5, "steps_per_level": 1}
    return made


NET = net()
IMAGES = torch.rand(20, 1, 4, 4)
X = torch.rand(2, 2)
FREE = nf.Score(lambda x: -x, "score", "none", SIGMAS)


def sampler(**given: Any) -> torch.Tensor:
    return nf.Sampler(**{"score": NET, **given})(1, seed=0)


def call(**given: Any) -> Any:
    return nf.Sampler(NET)(**{"n": 2, "seed": 0, **given})


def likelihood(**given: Any) -> Any:
    return nf.log_likelihood(**{"score": FREE, "x": X, "steps": 1, "seed": 0, **given})


def karras(**given: Any) -> Any:
    good = {"method": "heun", "steps": 3, "spacing": "karras", "rho": 7}
    return nf.Sampler(FREE, (2,), SIGMAS, **{**good, **given})(1, seed=0)


def score(**given: Any) -> Any:
    return nf.Score(**{"fn": NET, "kind": "score", "condition": "label", **given})


def edm(**given: Any) -> Any:
    return nf.Score.edm(**{"fn": NET, **given})


def vp(**given: Any) -> Any:
    return nf.Score.vp(**{"fn": NET, **given})


def dsm(**given: Any) -> Any:
    return nf.dsm_loss(**{"net": NET, "x": X, "sigmas": SIGMAS, "seed": 0, **given})


def sliced(**given: Any) -> Any:
    return nf.sliced_score_matching(**{"net": NET, "x": X, "sigmas": SIGMAS, "seed": 0, **given})


def langevin(**given: Any) -> Any:
    good = {"score": lambda x: -x, "x": X, "step_size": 0.1, "steps": 2, "seed": 0}
    return nf.langevin(**{**good, **given})


def edit(**given: Any) -> Any:
    good: dict[str, Any] = {"sampler": nf.Sampler(NET), "images": X, "seed": 0}
    if "sigma" not in given:
        good["start_level"] = 3
    return nf.edit(**{**good, **given})


def interpolate(**given: Any) -> Any:
    good = {"sampler": nf.Sampler(NET), "pairs": 1, "n_interpolations": 2, "seed": 0}
    return nf.interpolate(**{**good, **given})


def guided(**given: Any) -> Any:
    return nf.guided(**{"score": NET, "scale": 2.0, "unconditional": {"y": 0}, **given})


def normal(**given: Any) -> Any:
    good = {"shape": (2,), "seed": 0, "stream": 1, "sample_ids": [0, 1]}
    return nf.noise.normal(**{**good, **given})


def integers(**given: Any) -> Any:
    good = {"high": 5, "shape": (2,), "seed": 0, "stream": 1, "sample_ids": [0, 1]}
    return nf.noise.integers(**{**good, **given})


def schedule(**given: Any) -> Any:
    return nf.auto_schedule(**{"data": IMAGES, **given})


def ladder(**given: Any) -> Any:
    return nf.geometric_sigmas(**{"sigma_max": 5, "sigma_min": 0.01, "num_levels": 4, **given})


def prepared(**given: Any) -> Any:
    return nf.prepare_for_inference(**{"net": NET, **given})


def network(**given: Any) -> Any:
    good = {"channels": 1, "image_size": 8, "ngf": 4, "sigmas": SIGMAS}
    return nf.NCSNv2(**{**good, **given})


def points(**given: Any) -> Any:
    return nf.MLPScore(**{"sigmas": SIGMAS, "hidden": 4, "layers": 1, **given})


def image(**given: Any) -> Any:
    return nf.sample(**{"net": NET, "n": 2, "seed": 0, **given})


def saved(**given: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return nf.save_checkpoint(**{"net": NET, "path": Path(folder) / "net", **given})


def loaded(**given: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = nf.save_checkpoint(NET, Path(folder) / "net")
        return nf.load_checkpoint(**{"path": path, **given})


def config(**given: Any) -> Any:
    return nf.TrainConfig(**given)


def trainer(**given: Any) -> Any:
    settings = nf.TrainConfig(steps=1, batch_size=4, ema=0.0)
    return nf.Trainer(**{"net": net(), "dataset": torch.rand(8, 2), "config": settings, **given})


def backend(**given: Any) -> Any:
    with nf.use_backend(**{"name": "torch", **given}):
        return None


def first(**given: Any) -> Any:
    good = {"channels": 1, "image_size": 8, "ngf": 4, "sigmas": SIGMAS}
    return nf.NCSN(**{**good, **given})


def deeper(**given: Any) -> Any:
    good = {"channels": 1, "image_size": 16, "ngf": 4, "sigmas": SIGMAS}
    return nf.NCSNv2Deeper(**{**good, **given})


def deepest(**given: Any) -> Any:
    good = {"channels": 1, "image_size": 32, "ngf": 4, "sigmas": SIGMAS}
    return nf.NCSNv2Deepest(**{**good, **given})


def mask(**given: Any) -> Any:
    return nf.operators.Mask(**{"mask": torch.ones(2), **given})


def blur(**given: Any) -> Any:
    return nf.operators.Blur(**{"kernel": torch.ones(3, 3), "shape": (1, 8, 8), **given})


def smaller(**given: Any) -> Any:
    return nf.operators.Downsample(**{"factor": 2, "shape": (1, 8, 8), **given})


def dense(**given: Any) -> Any:
    return nf.operators.Dense(**{"matrix": torch.ones(3, 2), **given})


def fourier(**given: Any) -> Any:
    return nf.operators.Fourier(**{"mask": torch.ones(8, 8), **given})


def mri(**given: Any) -> Any:
    good = {"coils": torch.ones(2, 8, 8, dtype=torch.complex64), "mask": torch.ones(8, 8)}
    return nf.operators.MRI(**{**good, **given})


def mimo(**given: Any) -> Any:
    good = {"pilots": torch.ones(2, 3, dtype=torch.complex64), "receivers": 2}
    return nf.operators.MIMO(**{**good, **given})


MEASURED = {"operator": nf.operators.Mask(torch.ones(2)), "y": torch.zeros(2)}


def gaussian(**given: Any) -> Any:
    return nf.posterior.gaussian_likelihood(**{**MEASURED, "noise_std": 0.1, **given})


def scaled(**given: Any) -> Any:
    return nf.posterior.score_scaled(**{**MEASURED, **given})


# By function: numbers, whole numbers, and what is only looked at for raw errors.
PUBLIC: dict[Callable[..., Any], tuple[str, str, str]] = {
    ladder: ("sigma_max sigma_min", "num_levels", ""),
    sampler: (
        "step_size",
        "steps_per_level",
        "score shape sigmas method denoise steps spacing precision backend graph device",
    ),
    karras: ("rho", "steps", "spacing"),
    call: (
        "clip temperature",
        "n seed every start_level",
        "sample_ids initial noise mask known guidance callback extra shared batch_size progress",
    ),
    likelihood: (
        "prior_std",
        "probes",
        "score x sigmas steps method prior_mean grey_levels seed sample_ids extra batch_size",
    ),
    langevin: ("step_size", "steps first_step", "score x seed"),
    edit: ("", "start_level", "sampler images sigma seed sample_ids"),
    interpolate: ("", "pairs n_interpolations", "sampler seed sample_ids initial start_level"),
    score: ("", "", "fn kind condition sigmas sigma_data quantize"),
    edm: ("sigma_data", "", "fn"),
    vp: ("beta_min beta_max", "", "fn kind"),
    guided: ("scale", "", "score unconditional"),
    dsm: ("", "", "net x sigmas seed labels sample_ids step reduction"),
    sliced: ("", "", "net x sigmas seed labels sample_ids step reduction"),
    normal: ("", "seed stream", "shape sample_ids step device dtype backend"),
    integers: ("", "high seed stream", "shape sample_ids"),
    schedule: ("sigma_min", "steps_per_level max_points", "data"),
    prepared: ("", "", "net precision"),
    network: ("", "channels ngf", "image_size sigmas"),
    points: ("", "hidden layers", "sigmas"),
    first: ("", "channels ngf", "image_size sigmas activation"),
    deeper: ("", "channels ngf", "image_size sigmas activation"),
    deepest: ("", "channels ngf", "image_size sigmas activation"),
    image: (
        "clip temperature step_size",
        "n seed every start_level steps_per_level",
        "net shape sigmas method denoise steps spacing precision backend graph device sample_ids "
        "initial noise mask known guidance callback extra shared batch_size progress",
    ),
    saved: ("", "", "net path extra dtype"),
    loaded: ("", "", "path config ema device"),
    config: (
        "learning_rate beta1 beta2 eps clip_gradient ema anneal_power max_seconds",
        "steps batch_size warmup cooldown accumulate seed log_every checkpoint_every keep_every "
        "sample_every samples",
        "precision ema_warmup continuous dequantize flip out tensorboard graph",
    ),
    trainer: ("", "", "net dataset config resume held_out"),
    backend: ("", "", "name"),
    mask: ("", "", "mask shape"),
    blur: ("", "", "kernel shape"),
    smaller: ("", "factor", "shape"),
    dense: ("", "", "matrix shape"),
    fourier: ("", "", "mask"),
    mri: ("", "", "coils mask"),
    mimo: ("", "receivers", "pilots"),
    gaussian: ("noise_std", "", "operator y annealed"),
    scaled: ("weight", "", "operator y"),
}
NONE_IS_A_CHOICE = {"clip", "every", "seed", "prior_std", "step_size"} | {
    "steps_per_level",
    "steps",
    "rho",
    "clip_gradient",
    "keep_every",
    "max_seconds",
    "sample_every",
}
# 0 and more is what these take; a whole number of any size may be a seed, truth a number of edit.
LARGE = {"every", "max_points", "steps", "warmup", "cooldown", "samples"} | {
    "log_every",
    "checkpoint_every",
    "sample_every",
}
# What else a message may call it.
WORDS = {
    "fn": ("score",),
    "net": ("network", "score"),
    "sampler": ("nf.Sampler",),
    "image_size": ("images of",),
    "name": ("backend",),
    "path": ("checkpoint", ". is a folder"),
    "config": ("configuration", "give a file"),
    "dataset": ("the data",),
}
CASES = [
    (function, name, value, kind)
    for function, names in PUBLIC.items()
    for kind, group in zip(("number", "whole", "any"), names, strict=True)
    for name in group.split()
    for value in {"number": NUMBERS, "whole": WHOLE, "any": ANY}[kind]
]


def title(value: Any) -> str:
    return type(value).__name__ + str(value)[:12].replace("\n", "")


def innermost(error: BaseException) -> str:
    return traceback.extract_tb(error.__traceback__)[-1].filename


@pytest.mark.parametrize(
    ("function", "name"),
    sorted({(f, n) for f, n, _, _ in CASES}, key=lambda c: (c[0].__name__, c[1])),
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_argument_is_refused_by_its_name(function, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "7" is a file's name
    faults = []
    for other, argument, value, kind in CASES:
        if (other, argument) != (function, name):
            continue
        try:
            function(**{name: value})
        except (ValueError, TypeError, FileNotFoundError) as error:
            words = (name, name.removesuffix("s"), *WORDS.get(name, ()))
            named = any(word in str(error) for word in words)
            if not innermost(error).startswith(PACKAGE) or not named or len(str(error)) > 600:
                told = f"{type(error).__name__}: {str(error)[:90]} ({Path(innermost(error)).name})"
                faults.append(f"{title(value)} -> {told}")
        except Exception as error:
            faults.append(f"{title(value)} -> {type(error).__name__}: {str(error)[:90]}")
        else:
            allowed = (value is None and name in NONE_IS_A_CHOICE) or (
                name in LARGE and value is LARGE_NUMBER
            )
            if kind != "any" and not allowed:
                faults.append(f"{title(value)} is taken")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor, float])
def test_numbers_of_numpy_and_of_tensors_are_numbers(number):
    assert torch.equal(ladder(sigma_max=number(5.0)), ladder())
    assert torch.equal(call(clip=number(0.5)), call(clip=0.5))
    assert torch.equal(call(temperature=number(0.5)), call(temperature=0.5))
    assert torch.equal(karras(rho=number(7.0)), karras())
    assert torch.equal(sampler(step_size=number(1e-5)), sampler(step_size=float(number(1e-5))))
    assert torch.equal(langevin(step_size=number(0.5)), langevin(step_size=0.5))


@pytest.mark.parametrize("number", [np.int32, np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_numpy_and_of_tensors_are_whole_numbers(number):
    assert torch.equal(ladder(num_levels=number(4)), ladder())
    assert torch.equal(
        call(n=number(2), seed=number(0), start_level=number(2)), call(start_level=2)
    )
    assert torch.equal(langevin(steps=number(3)), langevin(steps=3))
    assert torch.equal(karras(steps=number(3)), karras())
    assert torch.equal(sampler(steps_per_level=number(2)), sampler(steps_per_level=2))


def test_devices_that_are_not_there_are_refused_in_words():
    for device in ("nowhere", "cuda:99", "meta", 7.5):
        with pytest.raises(ValueError, match="device"):
            sampler(device=device)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device = 'cuda'.*cannot be used here"):
            sampler(device="cuda")


@pytest.mark.parametrize("n", [10**10, 10**15, 2**63, 2**70])
def test_more_samples_than_fit_in_memory_are_refused_before_any_work(n):
    with pytest.raises(ValueError, match=f"n = {n}.*sample_ids"):
        call(n=n)


@pytest.mark.parametrize("many", [10**10, 10**15, 2**70])
def test_more_rows_than_fit_are_refused(many):
    for make in (
        lambda: ladder(num_levels=many),
        lambda: sampler(steps_per_level=many),
        lambda: langevin(steps=many),
    ):
        with pytest.raises(ValueError, match=f"= {many}: give a whole number from"):
            make()


def test_every_public_function_is_walked_or_said_not_to_be():
    elsewhere = {
        "CheckpointError SamplingError SamplingInterrupted TrainingError TrainingInterrupted",
        "Likelihood Schedule Table Guidance",
    }
    walked = {
        "MLPScore NCSN NCSNv2 NCSNv2Deeper NCSNv2Deepest Sampler Score TrainConfig Trainer",
        "auto_schedule dsm_loss edit geometric_sigmas guided interpolate langevin load_checkpoint",
        "log_likelihood noise operators posterior prepare_for_inference sample save_checkpoint",
        "sliced_score_matching use_backend",
    }
    assert set(nf.__all__) == set(" ".join(walked | elsewhere).split())
