"""What 16 bits cost: python -m ncsn_fast.benchmarks.studies.precision [MODEL] [--out DIR].

The first table is the relative error of the normalised score, ‖n - n₆₄‖ / ‖n₆₄‖ against the same
network in float64, of images x + σz at a dozen noise levels; with it the largest activation, which
float16 must hold (at most 65,504). The 16-bit precisions are shown with other ways of seeing the
image and of leaving the network too. The second table is what becomes of the samples of whole
chains of the same seed: their distance from those in float32, and their pixel Fréchet distance to
held-out images (``--data``; of a model without such, to the samples in float32, of which the levels
are then made too).
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.benchmarks.contestants.networks import convolutions
from ncsn_fast.benchmarks.studies.common import (
    add_model,
    add_output,
    deliver,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.device.environment import environment
from ncsn_fast.device.precision import PRECISIONS, check_precision, float32_mode, network_dtype
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.inference.prepare import PreparedNetwork, prepare_for_inference
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.space import Space

_LEVELS = 12
Normalized = Callable[[Tensor, Tensor], Tensor]


class _NarrowConv(nn.Module):
    """A first convolution that sees the image in 16 bits."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.dtype = conv.weight, conv.bias, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x.to(self.dtype), self.weight)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        assert self.bias is not None
        h = F.conv2d(x, weight.to(self.dtype), self.bias.to(self.dtype), padding=1)
        return h.contiguous(memory_format=torch.channels_last)


class _PairConv(_NarrowConv):
    """A first convolution that sees the image as the sum of two 16-bit images."""

    def forward(self, x: Tensor) -> Tensor:
        high = x.to(self.dtype)
        low = (x - high.float()).to(self.dtype)
        return self._convolve(torch.cat([high, low], 1), torch.cat([self.weight] * 2, 1))


class _WideConv(nn.Module):
    """A last convolution in float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float())


def contestants(net: ScoreNetwork) -> Iterator[tuple[str, str, PreparedNetwork]]:
    """(title, precision, network): what the engine does in each precision, and did not choose."""
    for name in available(net.sigmas.device):
        yield name, name, prepare_for_inference(net, name)
        if name == "fp32" and net.sigmas.device.type == "cpu":
            for form in ("direct", "F2", "F4"):
                yield f"{name}, convolutions {form}", name, in_form(net, form)
        dtype = network_dtype(name)
        if dtype == torch.float32:
            continue
        for title, first in (("image in 16 bits", _NarrowConv), ("image as a pair", _PairConv)):
            prepared = prepare_for_inference(net, name)
            body: Any = prepared.network
            body.begin_conv = first(body.begin_conv, dtype)
            yield f"{name}, {title}", name, prepared
        prepared = prepare_for_inference(net, name)
        body = prepared.network
        body.end_conv = _WideConv(body.end_conv)
        yield f"{name}, output in fp32", name, prepared


def in_form(net: ScoreNetwork, form: str) -> PreparedNetwork:
    """The float32 network with all its 3×3 convolutions in one form, for images of its size."""
    with convolutions(form):
        prepared = prepare_for_inference(net, "fp32")
        labels = torch.zeros(1, dtype=torch.int64)
        prepared.normalized(torch.zeros(1, *net.shape), labels)
    return prepared


def available(device: torch.device) -> list[str]:
    """The precisions that a device has."""
    names = []
    for name in PRECISIONS:
        try:
            check_precision(name, device)
        except ValueError:
            continue
        names.append(name)
    return names


def some_levels(net: ScoreNetwork) -> list[int]:
    """A dozen of a network's noise levels, the first and the last among them."""
    last = len(net.sigmas) - 1
    return sorted({round(last * i / (_LEVELS - 1)) for i in range(_LEVELS)})


@torch.no_grad()
def score_errors(net: ScoreNetwork, clean: Tensor, levels: list[int]) -> dict[str, list[float]]:
    """Relative error of the normalised score per contestant and noise level."""
    seen = [_perturbed(net, clean, level) for level in levels]
    exact = copy.deepcopy(net).double()
    references = [exact.normalized(x.double(), labels) for x, labels in seen]
    found: dict[str, list[float]] = {}
    for title, name, prepared in contestants(net):
        with float32_mode(name, clean.device):
            outputs = [prepared.normalized(x, labels) for x, labels in seen]
        pairs = zip(outputs, references, strict=True)
        found[title] = [float((n.double() - r).norm() / r.norm()) for n, r in pairs]
    return found


@torch.no_grad()
def largest_activations(net: ScoreNetwork, clean: Tensor, levels: list[int]) -> list[float]:
    """The largest absolute value between two modules of the network, per noise level."""
    watched, largest = copy.deepcopy(net), [0.0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if tensor is not None and tensor.shape[:1] == clean.shape[:1]:
                largest[-1] = max(largest[-1], float(tensor.abs().max()))

    for module in watched.modules():
        module.register_forward_hook(look)
    for level in levels:
        largest.append(0.0)
        watched.normalized(*_perturbed(net, clean, level))
    return largest[1:]


def _perturbed(net: ScoreNetwork, clean: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Images at a noise level, and its labels."""
    z = nf.noise.normal(
        clean.shape[1:],
        seed=0,
        stream=nf.noise.PERTURB,
        sample_ids=range(len(clean)),
        step=level,
        device=clean.device,
    )
    labels = torch.full((len(clean),), level, device=clean.device)
    return clean + net.sigmas[level] * z, labels


def sample_quality(
    net: ScoreNetwork, number: int, real: Tensor | None
) -> dict[str, dict[str, float]]:
    """RMS difference from the samples in float32, and Fréchet distance, per precision."""

    def draw(precision: str, seed: int = 0) -> Tensor:
        return nf.sample(net, number, seed=seed, precision=precision, progress=True).cpu()

    wide = draw("fp32")
    sets = {"fp32": wide, "fp32, another seed": draw("fp32", seed=1)}
    sets |= {name: draw(name) for name in available(net.sigmas.device) if name != "fp32"}
    compared = wide if real is None else real
    return {
        name: {
            "rms": float((images - wide).square().mean().sqrt()),
            "frechet": pixel_frechet_distance(images, compared),
        }
        for name, images in sets.items()
    }


def measure(model: str, data: str | None, device: str, images: int, number: int) -> dict[str, Any]:
    """Both tables of a model."""
    net = nf.load_checkpoint(model).to(device).eval()
    if len(net.shape) != 3:
        raise SystemExit("precisions are compared on networks of images")
    real = held_out(model, data) if model == "digits" or data is not None else None
    if real is None:
        clean = nf.Sampler(net, precision="fp32")(images, seed=2)
    else:
        clean = Space.of(net).enter(real[:images]).to(device)
    levels = some_levels(net)
    return {
        "model": model,
        "date": datetime.date.today().isoformat(),
        "environment": environment(torch.device(device)),
        "images": len(clean),
        "samples": number,
        "sigmas": [float(net.sigmas[level]) for level in levels],
        "largest_activation": largest_activations(net, clean, levels),
        "errors": score_errors(net, clean, levels),
        "quality": sample_quality(net, number, real),
        "real": real is not None,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The two tables."""
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    lines = [f"Model {report['model']}, {report['date']}, {facts}.", ""]
    lines += [f"Relative error of the score in %, {report['images']} images per noise level:", ""]
    rows = [
        [title, *(f"{100 * error:.2g}" for error in errors)]
        for title, errors in report["errors"].items()
    ]
    rows.append(["largest activation", *(f"{peak:.3g}" for peak in report["largest_activation"])])
    lines += markdown(["σ", *(f"{sigma:.3g}" for sigma in report["sigmas"])], rows)
    lines += ["", f"{report['samples']} samples, drawn as the checkpoint says:", ""]
    against = "held-out images" if report["real"] else "samples in fp32"
    head = ["", "RMS difference from fp32, same seed", f"Fréchet distance to {against}"]
    quality = report["quality"].items()
    rows = [[name, f"{one['rms']:.4f}", f"{one['frechet']:.4f}"] for name, one in quality]
    return "\n".join([*lines, *markdown(head, rows)])


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--images", type=int, help="per noise level (default 256)")
    command.add_argument(
        "-n", "--samples", type=int, help="as the checkpoint draws them (default 1000)"
    )
    command.add_argument("--quick", action="store_true", help="16 images and 64 samples")
    add_output(command, "precision.json and precision.md")
    options = command.parse_args()
    images, number = (16, 64) if options.quick else (256, 1000)
    sizes = options.images or images, options.samples or number
    report = measure(options.model, options.data, options.device, *sizes)
    deliver(options, "precision", report, as_markdown(report))


if __name__ == "__main__":
    main()
