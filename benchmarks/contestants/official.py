"""What the published code does, operation by operation, in plain eager PyTorch.

The comparisons of the benchmarks start from here: the networks of NCSN (2019) and NCSNv2 (2020)
with the operations of the published implementations, in float32 and NCHW: a convolution at full
size before each mean of four strided slices, max pools that keep indices, resizes to the same
size, a tensor of zeros to which scales are added, a norm of twelve operations. A forward pass of
NCSNv2 is 413 operations, and a step of the published sampler 17 more; the tests count both. The
weights are those of our own network, and the results are the same to rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ncsn_fast.models.blocks import CRP, RCU, ResidualBlock
from ncsn_fast.models.refinenet import RefineNet
from ncsn_fast.reference import ACTIVATIONS

_EPS = 1e-5
Noise = Callable[[int], Tensor]


class OfficialNetwork(nn.Module):
    """The published network on the weights of one of ours.

    ``forward(x, labels)`` is the published network's: the score. ``body`` is it without the
    division by σ, of which NCSN v1 has none.

    Args:
        net: a network of the NCSN family; the weights are shared, not copied.
    """

    def __init__(self, net: RefineNet) -> None:
        super().__init__()
        self.net = net
        self.act = ACTIVATIONS[net.activation]
        self.divided = not net.sees_sigma

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.body(x, labels)
        if not self.divided:
            return h
        return h / self.net.sigmas[labels].view(len(x), *(1,) * (x.ndim - 1))

    def body(self, x: Tensor, labels: Tensor) -> Tensor:
        net = self.net
        h = x if net.rescaled or net.logit_transform else 2 * x - 1
        h = net.begin_conv(h)
        skips = []
        for stage in net.STAGES:
            for block in getattr(net, stage.residual):
                h = self._residual(block, h, labels)
            skips.append(h)
        inputs = [skips.pop()]
        for stage in reversed(net.STAGES):
            h = self._refine(getattr(net, stage.refine), inputs, labels)
            if skips:
                inputs = [skips.pop(), h]
        return net.end_conv(self.act(self._norm(net.normalizer, h, labels)))

    def _norm(self, norm: Any, x: Tensor, labels: Tensor) -> Tensor:
        """InstanceNorm++, twelve operations; v1 looks up its parameters with a thirteenth."""
        if hasattr(norm, "embed"):
            gamma, alpha, beta = norm.embed(labels).chunk(3, dim=-1)
        else:
            gamma, alpha, beta = (value[None] for value in (norm.gamma, norm.alpha, norm.beta))
        return instance_norm_plus(x, gamma, alpha, beta)

    def _residual(self, block: ResidualBlock, x: Tensor, labels: Tensor) -> Tensor:
        h = block.conv1(self.act(self._norm(block.normalize1, x, labels)))
        h = _conv(block.conv2, self.act(self._norm(block.normalize2, h, labels)))
        return (x if block.shortcut is None else _conv(block.shortcut, x)) + h

    def _units(self, rcu: RCU, x: Tensor, labels: Tensor) -> Tensor:
        for block in range(1, rcu.blocks + 1):
            h = x
            for stage in range(1, rcu.STAGES + 1):
                if rcu.normed:
                    h = self._norm(getattr(rcu, f"{block}_{stage}_norm"), h, labels)
                h = getattr(rcu, f"{block}_{stage}_conv")(self.act(h))
            h += x
            x = h
        return x

    def _fusion(self, msf: Any, xs: Sequence[Tensor], labels: Tensor) -> Tensor:
        channels, size = msf.convs[0].out_channels, xs[0].shape[2:]
        total = xs[0].new_zeros(len(xs[0]), channels, *size)
        for i, x in enumerate(xs):
            h = msf.convs[i](x if msf.norms is None else self._norm(msf.norms[i], x, labels))
            total += F.interpolate(h, size=size, mode="bilinear", align_corners=True)
        return total

    def _pooling(self, crp: CRP, x: Tensor, labels: Tensor) -> Tensor:
        x = self.act(x)
        path = x
        for i, conv in enumerate(crp.convs):
            if crp.norms is None:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            else:
                path = F.avg_pool2d(self._norm(crp.norms[i], path, labels), 5, stride=1, padding=2)
            path = conv(path)
            x = path + x
        return x

    def _refine(self, refine: Any, xs: Sequence[Tensor], labels: Tensor) -> Tensor:
        hs = [self._units(rcu, x, labels) for rcu, x in zip(refine.adapt_convs, xs, strict=True)]
        h = hs[0] if refine.msf is None else self._fusion(refine.msf, hs, labels)
        return self._units(refine.output_convs, self._pooling(refine.crp, h, labels), labels)


def instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """InstanceNorm++ in the published twelve operations.

    Args:
        x: (N, C, H, W).
        gamma, alpha, beta: (1, C) or (N, C).
    """
    means = x.mean(dim=(2, 3))
    center = means.mean(dim=-1, keepdim=True)
    spread = means.var(dim=-1, keepdim=True)
    means = (means - center) / torch.sqrt(spread + _EPS)
    h = F.instance_norm(x, eps=_EPS)
    h = h + means[..., None, None] * alpha[..., None, None]
    return gamma[..., None, None] * h + beta[..., None, None]


def _conv(conv: Any, x: Tensor) -> Tensor:
    """A convolution; a pooled one at full size, and then the mean of four strided slices."""
    if not hasattr(conv, "conv"):
        return conv(x)
    h = conv.conv(x)
    quarters = [h[:, :, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return sum(quarters) / 4.0


def chain(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Sequence[float],
    step_size: float,
    steps_per_level: int,
    rows: int,
    noise: Noise | None = None,
) -> Tensor:
    """The first rows of the published sampler, with the norms that it logs at each.

    Each row is the network and 17 operations, and waits four times for the device, to log.

    Args:
        network: (x, labels) → score.
        x: (N, C, H, W), the first state.
        sigmas: (L,) noise levels, descending.
        step_size: ε; α_i = ε(σ_i/σ_L)².
        steps_per_level: T.
        rows: how many to run.
        noise: row → noise in place of torch.randn_like.
    """
    logged: list[float] = []
    for row in range(rows):
        level = row // steps_per_level
        sigma = float(sigmas[level])
        alpha = step_size * (sigma / float(sigmas[-1])) ** 2
        if row % steps_per_level == 0:
            labels = (torch.ones(len(x), device=x.device) * level).long()
        grad = network(x, labels)
        z = torch.randn_like(x) if noise is None else noise(row)
        grad_norm = grad.view(len(x), -1).norm(dim=-1).mean()
        noise_norm = z.view(len(x), -1).norm(dim=-1).mean()
        x = x + alpha * grad + z * math.sqrt(2 * alpha)
        image_norm = x.view(len(x), -1).norm(dim=-1).mean()
        ratio = math.sqrt(alpha / 2) * grad_norm / noise_norm
        grad_mean_norm = grad.mean(dim=0).view(-1).norm() ** 2 * sigma**2
        logged = [value.item() for value in (grad_norm, image_norm, ratio, grad_mean_norm)]
    assert rows == 0 or len(logged) == 4
    return x


def dsm_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    sigmas: Tensor,
    noise: Tensor | None = None,
) -> Tensor:
    """The published loss: the mean over the batch of ½ Σ (s + z/σ)² σ².

    Args:
        x: (N, C, H, W) data.
        labels: (N,) indices of noise levels.
        sigmas: (L,) on x's device.
        noise: z in place of torch.randn_like.
    """
    sigma = sigmas[labels].view(len(x), *(1,) * (x.ndim - 1))
    scaled = (torch.randn_like(x) if noise is None else noise) * sigma
    perturbed = x + scaled
    target = -1 / sigma**2 * scaled
    scores = network(perturbed, labels)
    difference = scores.view(len(x), -1) - target.view(len(x), -1)
    return (0.5 * (difference**2).sum(dim=-1) * sigma.squeeze() ** 2).mean(dim=0)


def train_step(
    network: OfficialNetwork,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    x: Tensor,
    labels: Tensor | None = None,
    noise: Tensor | None = None,
    rate: float = 0.999,
) -> float:
    """The published training step: loss, a look at it, Adam, and the average of the weights.

    Args:
        average: the averaged weights by name; updated.
        x: (N, C, H, W) data.
        labels, noise: in place of random ones.
        rate: of the average.
    """
    sigmas = network.net.sigmas
    if labels is None:
        labels = torch.randint(0, len(sigmas), (len(x),), device=x.device)
    loss = dsm_loss(network, x, labels, sigmas, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for name, parameter in network.named_parameters():
        average[name] = (1.0 - rate) * parameter.data + rate * average[name]
    return loss.item()


class OperationCount(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches in the block, views and ``.item()`` aside.

    Attributes:
        operations: name → how often.
        bytes: read and written, where each operation reads its inputs and writes its results
            once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes = 0

    @property
    def total(self) -> int:
        return sum(self.operations.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name
        if func.is_view or name in _NO_WORK:
            return result
        self.operations[name.removeprefix("aten::")] += 1
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return result


_NO_WORK = ("aten::_local_scalar_dense", "aten::empty", "aten::empty_like", "aten::empty_strided")

__all__ = [
    "OfficialNetwork",
    "OperationCount",
    "chain",
    "dsm_loss",
    "instance_norm_plus",
    "train_step",
]
