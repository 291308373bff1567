"""diffusers' UNet2DModel as a Score: those of DDPM, and NCSN++ as score_sde has published it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ncsn_fast.methods.levels import geometric_sigmas
from ncsn_fast.models.score import Score

# What ScoreSdeVeScheduler has of its levels; its own name is in no configuration but that file's.
_LEVELS = ("sigma_max", "sigma_min", "num_train_timesteps", "correct_steps")
# What a network predicts, by diffusers' names.
_PREDICTIONS = {"epsilon": "epsilon", "sample": "denoiser", "v_prediction": "v"}


class _UNet(nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, told: Tensor, **extra: Any) -> Tensor:
        output: Tensor = self.unet(x, told, **extra).sample
        return output[:, : x.shape[1]]  # of a mean and a variance the mean


def score(unet: Any, scheduler: Any = None) -> Score:
    """A U-Net of diffusers as a Score.

        pipeline = DDPMPipeline.from_pretrained("google/ddpm-cifar10-32")
        network = score(pipeline.unet, pipeline.scheduler)
        x = nf.Sampler(network, (3, 32, 32), method="dpmpp_2m", steps=20)(16, seed=0)

    Args:
        unet: a UNet2DModel, or another that is called as unet(x, t).sample. One with
            ``time_embedding_type="fourier"``, as google/ncsnpp-church-256 and the others of NCSN++
            have, is told σ and returns the score; others are told timesteps.
        scheduler: the pipeline's. For "fourier" it is a ScoreSdeVeScheduler and says which levels
            were trained on; without it they are the sampler's.

    Returns:
        What a Sampler takes.

    Raises:
        ValueError: where a network is told timesteps and no scheduler says their noise, for
            predictions of another kind, and for another scheduler of a network told σ.
    """
    config, told = getattr(unet, "config", None), getattr(scheduler, "config", {})
    if not isinstance(unet, nn.Module) or config is None:
        raise ValueError(f"unet is a {type(unet).__name__}: give a model of diffusers")
    network, embedding = _UNet(unet), config.get("time_embedding_type", "positional")
    if embedding == "fourier":
        if scheduler is None:
            return Score(network, "score", "sigma")
        if not all(name in told for name in _LEVELS):
            raise ValueError(
                f"{type(unet).__name__} has fourier embeddings of σ, and a "
                f"{type(scheduler).__name__} is no ScoreSdeVeScheduler, by which its output were "
                "the score: give that of its pipeline, or none; for other networks "
                "nf.Score(fn, kind, condition)"
            )
        first, last, count, _ = (told[name] for name in _LEVELS)
        sigmas = geometric_sigmas(first, last, count)
        return Score(network, "score", "sigma", sigmas)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    prediction = told.get("prediction_type", "epsilon")
    if alphas is None or prediction not in _PREDICTIONS:
        raise ValueError(
            f"{type(unet).__name__} is told timesteps, {type(scheduler).__name__} has "
            f"prediction_type {prediction!r} and {'no' if alphas is None else 'its'} "
            f"alphas_cumprod: give the pipeline's scheduler, with {list(_PREDICTIONS)}"
        )
    whole = embedding == "learned"
    return Score.ddpm(network, alphas, _PREDICTIONS[prediction], quantize=whole)


__all__ = ["score"]
