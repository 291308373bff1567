"""What is compiled to check the norms and the passes between convolutions: variants and budgets.

The launches are those of steps of the published networks (``networks.py``). What is compiled to the
same code is one variant, named by where it was met first: by what it is compiled for and the images
that it takes, (N, C, H, W).
"""

from collections.abc import Iterator

import torch

from ncsn_fast.benchmarks.static.networks import Step
from ncsn_fast.benchmarks.static.recording import Launch
from ncsn_fast.benchmarks.static.variants import Budget, Variant
from ncsn_fast.device.memory_format import is_channels_last

_OF_QUADS = ("begin_step", "sampler_update", "perturb", "dsm_loss")  # in variants.py
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_LOOPS = ("instance_norm_statistics", "instance_norm_sums", "resize_gradient")
_OF_PARTS = ("instance_norm_combine", "instance_norm_coefficients")
# NCSNv2, Deeper, Deepest and NCSN of 2019.
_NETWORKS = (("cifar10", 128), ("bedroom", 128), ("ffhq", 32), ("cifar10-v1", 128))
_IN_GENERAL = (
    *(Step(name, batch) for name, most in _NETWORKS for batch in (1, most)),
    *(Step("cifar10", batch, last=False) for batch in (1, 128)),
    *(Step(name, batch, training=True) for name, batch in _NETWORKS),
    Step("cifar10", 128, training=True, last=False),
    *(Step(name, 128) for name in ("digits", "mnist")),
)
# Of these only what takes the first stage's images; the last one has images of odd sizes.
_IN_PARTICULAR = (
    *(Step("cifar10", 128, activation=name) for name in ("relu", "lrelu", "swish")),
    *(Step("cifar10", 128, training=True, precision=name) for name in ("bf16", "fp32")),
    Step("cifar10", 1, training=True, ngf=63, size=(30, 34)),
)


def variants() -> Iterator[Variant]:
    """One per kernel and code, in the order of the steps above; NHWC in float16 if not said."""
    seen: set[object] = set()
    kernels: set[str] = set()
    for step in (*_IN_GENERAL, *_IN_PARTICULAR):
        for launch in step.launches():
            code = launch.code
            if code in seen or launch.name in _OF_QUADS:
                continue
            if step in _IN_PARTICULAR and not _particular(step, launch):
                continue
            seen.add(code)
            first = launch.name not in kernels
            kernels.add(launch.name)
            how = None if launch.name in _OF_PARTS else "loop" if launch.name in _LOOPS else "all"
            yield Variant(
                launch.name, _named(launch), lambda found=launch: found, _budget(launch), how, first
            )


def _particular(step: Step, launch: Launch) -> bool:
    """Whether a launch is of what a step is there for, in the images of the first stage."""
    images, (channels, *size) = _images(launch), step.first_stage
    if launch.name in _OF_PARTS or images.shape[1] != channels:
        return False
    if step.activation != "elu" and launch.settings.get("ACTIVATION") != step.activation:
        return False
    return launch.name == "resize_gradient" or [*images.shape[2:]] == size


def _images(launch: Launch) -> torch.Tensor:
    """Its first tensor, those of a state."""
    return next(iter(launch.tensors.values()))


def _named(launch: Launch) -> str:
    images, settings, words = _images(launch), launch.settings, []
    if "ACTIVATION" in settings:
        words.append(settings["ACTIVATION"] or "none")
    if launch.arguments.get("residual_ptr") is not None and launch.name.endswith("statistics"):
        words.append("of a sum")
    if launch.arguments.get("bias_ptr") is not None:
        words.append("a bias")
    if settings.get("ROWS"):
        words.append("a row a sample")
    if launch.name not in _OF_PARTS and images.dtype != torch.float16:
        words.append(_TYPES[images.dtype])
    words.append(" × ".join(map(str, images.shape)))
    if launch.name not in _OF_PARTS and not is_channels_last(images):
        words.append("NCHW")
    return ", ".join(words)


def _budget(launch: Launch) -> Budget:
    """About what an H200 issues while it moves the bytes, 7 instructions a byte, or where a kernel
    is now, so that none grows unseen."""
    images, name = _images(launch), launch.name
    odd = images.shape[1] % 8 != 0
    if name in _OF_PARTS or (odd and name.startswith("instance_norm")):
        return Budget(None, None, None, 1, False)
    if name.startswith("instance_norm"):
        return _of_norm(launch)
    if name.startswith("residual_add"):
        if images.numel() % 8:  # the first program's eight elements one by one, all others' as ever
            return Budget(25, lanes=1, once=False)
        return Budget(18 if name == "residual_add" else 22, lanes=8)
    last = is_channels_last(images)
    most = None if odd else _most(name, launch.settings.get("ACTIVATION"), images.dtype, last)
    if most is not None and name == "max_pool5":
        most += 6 * (images.shape[2] < 32)  # three rows a thread, of sixteen
    fours = images.dtype == torch.float32 or name == "max_pool5_gradient"
    lanes = 1 if odd or not last else 4 if fours else 8
    # A maximum reads each pixel ten times and its gradient what there is of each six times, from
    # the cache.
    return Budget(most, lanes=lanes, once=name == "resize_add")


def _of_norm(launch: Launch) -> Budget:
    images, even = _images(launch), launch.settings["EVEN"]
    last, pixels = is_channels_last(images), images[0, 0].numel()
    if launch.name in _LOOPS:
        most = 14 if launch.name.endswith("sums") else 7
        if launch.arguments.get("residual_ptr") is not None:
            most = 12 if launch.arguments["bias_ptr"] is not None else 9
        if not even or pixels < 64:  # and what a turn of few elements costs
            return Budget(most + 5, None, 12, 4, conflicts=1.8)
        return Budget(most, None, 7 if last else 3, 8, conflicts=1.8)
    biased = launch.arguments.get("bias_ptr") is not None
    most = (14 if biased else 13) if launch.name.endswith("apply") else 16
    if launch.settings["ACTIVATION"] == "swish":
        most = 17
    if not last:
        most = 15 if pixels >= 1024 else 24
    return Budget(most if even else 20, lanes=8, once=even)


def _most(name: str, activation: str | None, dtype: torch.dtype, last: bool) -> float | None:
    """Instructions of a pass over neighbours; None where they are in loops or branches."""
    half, wide = dtype == torch.float16, dtype == torch.float32
    if name == "max_pool5":
        in_rows = (50 if wide else 44) if activation else (56 if wide else 28)
        return in_rows if last else 115
    most = {
        "max_pool5_places": (60 if half else 105 if wide else 65, None),
        "max_pool5_gradient": (82 if half else 78 if wide else 90, 125),
        "resize_add": (48 if wide else 34, None),
        "resize_gradient": (None, None),
    }
    return most[name][0 if last else 1]


__all__ = ["variants"]
