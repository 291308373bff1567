"""Guidance against posteriors that are known: python -m ncsn_fast.benchmarks.studies.posterior.

Gaussian images of 64 values behind a measurement with noise, whose exact score stands for a
network, told σ or, as NCSNv2's, told nothing, and a mixture in the plane behind a measurement that
is not linear. Each guidance draws samples by the same chain; their means and standard deviations
are compared with those of the posterior, of the mixture by importance sampling. The last column is
what a row of the network of the digits costs with it, in rows without guidance.
"""

from __future__ import annotations

import datetime
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import add_number, add_output, deliver, markdown, parser
from ncsn_fast.device.environment import environment
from ncsn_fast.guidance.base import Guidance
from ncsn_fast.guidance.nonlinear import Nonlinear
from ncsn_fast.guidance.operators.base import Operator

_SIZE, _NOISE_STD = 8, 0.3
_SIGMAS = nf.geometric_sigmas(20, 0.01, 100)
_MODES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.5, 0.5]])
_SPREAD = 0.25
_CHAIN: dict[str, Any] = {"method": "ancestral"}


class Problem(NamedTuple):
    """A law of x, what is measured of it, and what is then known of x."""

    score: nf.Score
    operator: Operator | Nonlinear
    y: Tensor
    mean: Tensor
    std: Tensor


def made(operator: Any, y: Tensor) -> dict[str, Guidance]:
    """All guidances, with the settings that are shown."""
    guidance = nf.guidance
    linear = {
        "gaussian_likelihood": lambda: nf.posterior.gaussian_likelihood(operator, y, _NOISE_STD)
    }
    through = {
        "dps, ζ = 0.1": lambda: guidance.dps(operator, y, 0.1),
        "pgdm": lambda: guidance.pgdm(operator, y, _NOISE_STD),
        "tmpd": lambda: guidance.tmpd(operator, y, _NOISE_STD),
        "mmps, 1 iteration": lambda: guidance.mmps(operator, y, _NOISE_STD, 1),
        "mmps, 3 iterations": lambda: guidance.mmps(operator, y, _NOISE_STD, 3),
        "mmps, 10 iterations": lambda: guidance.mmps(operator, y, _NOISE_STD, 10),
        "diffpir": lambda: guidance.diffpir(operator, y, _NOISE_STD),
    }
    chosen = through if isinstance(operator, Nonlinear) else {**linear, **through}
    return {name: make() for name, make in chosen.items()}


def gaussian(variances: Tensor, rotation: Tensor, operator: Operator, told: bool = True) -> Problem:
    """Images with these variances (D,) along the columns of a rotation, and their posterior.

    A score that is not ``told`` σ is the mean over all levels, by how likely each is at x.
    """
    generator = torch.Generator().manual_seed(1)
    x = rotation @ (variances.sqrt() * torch.randn(len(variances), generator=generator).double())
    clean = operator.forward(x.view(1, *operator.shape))
    noise = torch.randn(clean.shape, generator=generator).double()
    y = clean + _NOISE_STD * noise * (clean != 0)  # nothing is measured behind a mask
    units = torch.eye(len(x), dtype=torch.float64).view(-1, *operator.shape)
    matrix = operator.forward(units).flatten(1).T
    precision = rotation @ torch.diag(1 / variances) @ rotation.T
    covariance = torch.linalg.inv(precision + matrix.T @ matrix / _NOISE_STD**2)
    mean = covariance @ matrix.T @ y.flatten() / _NOISE_STD**2

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        turned = x.flatten(1) @ rotation.float() / (variances.float() + sigma[:, None] ** 2)
        return -(turned @ rotation.float().T).view(x.shape)

    def blind(x: Tensor) -> Tensor:
        turned = x.flatten(1) @ rotation.float()
        spread = variances.float() + _SIGMAS[:, None] ** 2
        likely = turned.square() @ (-0.5 / spread).T - 0.5 * spread.log().sum(1)
        n = -turned * (likely.softmax(1) @ (_SIGMAS[:, None] / spread))
        return (n @ rotation.float().T).view(x.shape)

    network = nf.Score(score, "score", "sigma") if told else nf.Score(blind, "normalized", "none")
    std = covariance.diagonal().sqrt()
    return Problem(network, operator, y.float(), mean.float(), std.float())


def mixture() -> Problem:
    """Three Gaussians in the plane, of which u + v²/2 is measured."""

    def curved(x: Tensor) -> Tensor:
        return x[:, :1] + 0.5 * x[:, 1:].square()

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance = _SPREAD**2 + sigma[:, None, None] ** 2
        away = _MODES - x[:, None]
        nearness = -away.square().sum(-1, keepdim=True) / (2 * variance)
        return (nearness.softmax(1) * away / variance).sum(1)

    y, count = 0.6, 1_000_000
    generator = torch.Generator().manual_seed(0)
    x = _MODES[torch.arange(count) % 3] + _SPREAD * torch.randn(count, 2, generator=generator)
    weight = (-(curved(x)[:, 0] - y).square() / (2 * _NOISE_STD**2)).double().softmax(0)
    mean = weight @ x.double()
    std = (weight @ (x.double() - mean).square()).sqrt()
    measured = Nonlinear(curved, (2,), (1,)), torch.tensor([y])
    return Problem(nf.Score(score, "score", "sigma"), *measured, mean.float(), std.float())


def problems() -> dict[str, Problem]:
    """By their titles."""
    shape, values = (1, _SIZE, _SIZE), _SIZE**2
    generator = torch.Generator().manual_seed(2)
    half = (torch.rand(shape, generator=generator) < 0.5).float()
    kernel = torch.tensor([1.0, 2.0, 1.0])
    mask = nf.operators.Mask(half)
    blur = nf.operators.Blur(kernel[:, None] * kernel / 16, shape)
    straight = torch.eye(values, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(values, values, generator=generator).double()).Q
    falling = torch.logspace(0.5, -1.5, values, dtype=torch.float64)
    return {
        "equal variances, mask": gaussian(torch.ones_like(falling), straight, mask),
        "independent, mask": gaussian(falling, straight, mask),
        "correlated, mask": gaussian(falling, turned, mask),
        "correlated, blur": gaussian(falling, turned, blur),
        "correlated, blur, σ not told": gaussian(falling, turned, blur, told=False),
        "mixture, curved": mixture(),
    }


def measure(number: int, seed: int) -> dict[str, Any]:
    """For each problem and guidance the error of the mean, in standard deviations of the posterior
    (root mean square), and the mean ratio of the standard deviations."""
    errors: dict[str, dict[str, tuple[float, float]]] = {}
    for title, problem in problems().items():
        sampler = nf.Sampler(problem.score, problem.operator.shape, _SIGMAS, **_CHAIN)
        for name, guidance in made(problem.operator, problem.y).items():
            x = sampler(number, seed=seed, guidance=guidance).flatten(1)
            off = ((x.mean(0) - problem.mean) / problem.std).square().mean().sqrt()
            wide = (x.std(0) / problem.std).mean()
            errors.setdefault(name, {})[title] = (float(off), float(wide))
    return {
        "date": datetime.date.today().isoformat(),
        "environment": environment(torch.device("cpu")),
        "number": number,
        "rows": len(_SIGMAS),
        "errors": errors,
        "cost": cost(),
    }


def cost(turns: int = 5) -> dict[str, float]:
    """Of a row of the network of the digits, 16 images, in rows without guidance; medians."""
    net = nf.load_checkpoint("digits")
    operator = nf.operators.Downsample(2, net.shape)
    guidances: dict[str, Guidance | None] = {"none": None}
    guidances |= made(operator, torch.full(operator.measured, 0.5))
    sampler = nf.Sampler(net, method="euler", steps=10, precision="fp32")
    seconds: dict[str, list[float]] = {name: [] for name in guidances}
    for _ in range(1 + turns):
        for name, guidance in guidances.items():
            begin = time.perf_counter()
            sampler(16, seed=0, guidance=guidance)
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    return {name: found / median["none"] for name, found in median.items()}


def as_markdown(report: dict[str, Any]) -> str:
    """One row a guidance."""
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    titles = list(next(iter(report["errors"].values())) | report["errors"]["mmps, 1 iteration"])
    rows = []
    for name, found in report["errors"].items():
        cells = [f"{found[t][0]:.2f}, {found[t][1]:.2f}" if t in found else "" for t in titles]
        rows.append([name, *cells, f"{report['cost'][name]:.1f}"])
    told = f"{report['number']} samples of {report['rows']} rows, {report['date']}"
    return "\n".join([f"{told}. {facts}.", "", *markdown(["", *titles, "cost of a row"], rows)])


def main() -> None:
    command = parser(__doc__)
    add_number(command, 4000, 5, "samples of each")
    command.add_argument("--seed", type=int, default=0)
    add_output(command, "posterior.json and .md")
    options = command.parse_args()
    report = measure(options.number, options.seed)
    deliver(options, "posterior", report, as_markdown(report))


if __name__ == "__main__":
    main()
