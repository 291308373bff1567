"""Networks prepared for inference: a private copy in a named precision that follows its source.

The copy computes what the network computes, exactly rewritten: a 3×3 convolution and the 2×2 mean
behind it are one operation. Its convolutions are laid out as channels_last, are packed on a CPU
(:mod:`ncsn_fast.models.packed_conv`) and, in "fp16" and "bf16", hold 16 bits; normalisation keeps
its parameters and statistics in float32.
The first convolution sees the image in float32: the noise to be seen, σ = 0.01, is no more than a
few spacings of 16-bit numbers near 1, and an image in 16 bits triples the error of the score there
(``python -m ncsn_fast.benchmarks.studies.precision``).
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from ncsn_fast import noise
from ncsn_fast.device import malloc
from ncsn_fast.device import precision as precisions
from ncsn_fast.device.backends import NETWORK_TYPES
from ncsn_fast.inference.adopted import adopted, follow, inputs_of, original
from ncsn_fast.inference.automatic import automatic
from ncsn_fast.inference.fingerprints import fingerprints
from ncsn_fast.inference.foreign import PreparedModule
from ncsn_fast.inference.forms import summary
from ncsn_fast.inference.rewritten import rewritten
from ncsn_fast.models.base import ScoreNetwork, whole_weights
from ncsn_fast.models.conv_forms import pooled_kernel
from ncsn_fast.models.packed_conv import PackedConv
from ncsn_fast.models.refinenet import RefineNet

_log = logging.getLogger("ncsn_fast")
T = TypeVar("T")
_INPUTS = ("x", "labels")  # of a network of ours, by the names that they have here


class CannotPrepare(ValueError):
    """Something stands in the way of a copy of a network."""


class PreparedNetwork:
    """A network's copy for inference; see :func:`prepare_for_inference`.

    The copy has weights of its own. They follow the source's at every :meth:`refresh`, which a
    ``Sampler`` calls before each chain, and at no other time. Threads may share it: a refresh waits
    until no other computes with it. Copied or pickled, it keeps the weights that it has.

    What the network has beyond an ``nn.Module``, its ``sigmas`` say, it has too. Of one that was
    taken over this is the original, whose names the inputs may be given by.

    Attributes:
        source: the network it was made of, which is left as it is; the one of ours around the
            original's parameters, where that was taken over.
        network: the copy. Its tensors stay where they are as long as ``generation`` does.
        precision: "fp32", "tf32", "fp16" or "bf16".
        generation: grows when the copy had to be made anew, at other addresses.
    """

    source: ScoreNetwork
    network: ScoreNetwork
    precision: str
    generation: int

    def __init__(self, source: ScoreNetwork, precision: str) -> None:
        self.source = source
        self.precision = precision
        self.generation = 0
        self._turn = threading.Condition()
        self._computing = 0  # how many are
        self._told = source.sigmas.device.type != "cpu"  # in which forms it runs
        module = original(source)
        self._called = {} if module is None else dict(zip(inputs_of(module), _INPUTS, strict=True))
        whole_weights(source, self._make)
        self._pack()

    def normalized(
        self, x: Tensor, labels: Tensor | None = None, **classes: Tensor | int
    ) -> Tensor:
        """The normalised score σ·s.

        Args:
            x: (N, *shape) float32, in model space.
            labels: (N,) integers, where the network sees the noise level.
            classes: (N,) integers or one for all, by that name, where the network knows classes.

        Returns:
            (N, *shape) in 16 bits or float32, in any memory format.
        """
        # A region of autocast around the caller does not change what a precision means.
        with self._use(), torch.autocast(x.device.type, enabled=False):
            return self.network.normalized(x, labels, **classes)

    def __call__(self, *given: Tensor, **named: Tensor | int) -> Tensor:
        """What the source returns, the score s(x, σ) as a rule; arguments as for normalized."""
        named = {self._called.get(name, name): value for name, value in named.items()}
        with self._use(), torch.autocast(self.network.sigmas.device.type, enabled=False):
            return self.network(*given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in PreparedNetwork.__annotations__:  # not yet there
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if hasattr(nn.Module, name):
            raise AttributeError(f"a prepared network has no {name!r}: use .source.{name}")
        module = original(self.source)
        return getattr(self.source if module is None else module, name)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights that the source has now, into the same tensors.

        On a CPU those are copied, and packed, whose values have changed. On a GPU all are, each
        time, without waiting for it: nothing marks a weight that was changed through ``.data``, as
        averages of weights are swapped in, or by the replay of a captured training step. Where the
        source has moved to another device or has been rebuilt, the copy is made anew and
        ``generation`` grows.

        Raises:
            CannotPrepare: where the source has become a network that cannot be prepared.
            RuntimeError: where another thread changes the source's weights all the time.
            ValueError: where the source is a network that was taken over, whose original computes
                something else now.
        """
        follow(self.source)
        with self._turn:
            self._turn.wait_for(lambda: not self._computing)
            whole_weights(self.source, self._follow)
            self._pack()

    @torch.no_grad()
    def agrees(self) -> bool:
        """Whether the weights are those that the source has now; waits for the device."""
        follow(self.source)

        def same() -> bool:
            given = self._given()
            if self._layout != _layout(self.source, given):
                return False
            return not self._changed(given, fingerprints(given))

        return whole_weights(self.source, same)

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        # Of this process, and of these tensors.
        for name in ("_turn", "_computing", "_own", "_taken", "_unpacked"):
            del kept[name]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=threading.Condition(), _computing=0)
        self._know(self.network)

    def __copy__(self) -> PreparedNetwork:
        other = PreparedNetwork.__new__(PreparedNetwork)
        other.__setstate__({**self.__getstate__(), "network": copy.deepcopy(self.network)})
        return other

    def _use(self) -> AbstractContextManager[None]:
        """No refresh begins inside; torch.compile sees nothing of that."""
        return nullcontext() if torch.compiler.is_compiling() else self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._turn:
            self._computing += 1
        try:
            yield
        finally:
            with self._turn:
                self._computing -= 1
                self._turn.notify_all()
        if not self._told:
            self._told = True
            name, found = type(self.source).__name__, summary(self.network.modules())
            _log.info("%s in %s: %s", name, self.precision, found)

    def _follow(self) -> None:
        given = self._given()
        if self._layout == _layout(self.source, given):
            self._fill(given)
        else:
            self._make()
            self.generation += 1

    def _make(self) -> None:
        given = self._given()
        if self.source.sigmas.device.type == "cpu":
            malloc.keep_freed_memory()
        # Tensors made in inference mode could not be refilled outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.network = rewritten(self.source, precisions.network_dtype(self.precision))
            self._know(self.network)
            self._unpacked.update(name for name, _ in self.network.named_modules())
            self._layout = _layout(self.source, given)
            self._fill(given)

    def _given(self) -> dict[str, Tensor]:
        """The tensors of the source, if it can be prepared."""
        _refuse(obstacle(self.source, self.precision))
        return _tensors(self.source)

    def _know(self, network: ScoreNetwork) -> None:
        self._own = _tensors(network)
        self._taken: dict[str, int] = {}  # fingerprints of what these have been filled from
        self._unpacked: set[str] = set()  # modules that have been filled since they were packed

    def _fill(self, given: dict[str, Tensor]) -> None:
        prints = fingerprints(given)
        on_cpu = self.network.sigmas.device.type == "cpu"
        for name in self._changed(given, prints) if on_cpu else self._own:
            self._taken.pop(name, None)  # an end in between leaves it to the next time
            self._unpacked.add(name.rpartition(".")[0])
            self._own[name].copy_(self._value(given, name))
            if name in prints:
                self._taken[name] = prints[name]

    def _changed(self, given: dict[str, Tensor], prints: dict[str, int]) -> list[str]:
        """The tensors that are not what the source has now, whose fingerprints may be known."""
        if prints:
            return [name for name in self._own if self._taken.get(name) != prints[name]]
        return [
            name
            for name, own in self._own.items()
            if not torch.equal(own, self._value(given, name).to(own.dtype))
        ]

    def _value(self, given: dict[str, Tensor], name: str) -> Tensor:
        """What the source has for a tensor of the copy."""
        new = given[name]
        return new if self._own[name].shape == new.shape else pooled_kernel(new)

    def _pack(self) -> None:
        for name in list(self._unpacked):
            module = self.network.get_submodule(name)
            if isinstance(module, PackedConv):
                module.pack()
            self._unpacked.remove(name)


@overload
def prepare_for_inference(
    net: ScoreNetwork, precision: str = "auto", *, adopt: bool = True
) -> PreparedNetwork: ...


@overload
def prepare_for_inference(
    net: nn.Module, precision: str = "auto", *, adopt: bool = True
) -> PreparedModule | PreparedNetwork: ...


def prepare_for_inference(
    net: nn.Module, precision: str = "auto", *, adopt: bool = True
) -> PreparedNetwork | PreparedModule:
    """A network for fast inference: of ours a copy; the network itself stays as it is.

    The official NCSN, NCSNv2, NCSNv2Deeper and NCSNv2Deepest, of any code base, are taken over as
    ours: a copy is made of a network that shares their parameters. It is compared with the original
    first, as its layers are set and on small images; where the two disagree, a line of the log says
    why.

    Any other module on a CPU is called as it is, in float32, but for its convolutions, which run on
    packed weights where they are ungrouped and have parameters for weights. At its first call it is
    called twice, as it is and packed; where the two disagree it runs as it is, and a line of the
    log says why.

    Args:
        net: a network of this package, with weights of at most 32 bits on one device. Hooks,
            parametrisations and compiled submodules are not copied, and so refused. Or an official
            one, with float32 weights and its own ``sigmas``, or another module, on a CPU, that is
            not compiled, scripted or sharded.
        precision: "fp32", "tf32", "fp16" or "bf16"; "auto" takes what is fast there
            (``inference/automatic.py``), and "bf16" for "fp16" where the network, tried at twice
            its largest noise level, leaves the range of float16. Networks without convolutions
            compute in "fp32", their "auto", or "tf32"; other modules in "fp32". On a GPU the mode
            of float32 products is that of ``float32_mode`` in ``device/precision.py``.
        adopt: False: an official network is any module. A Sampler of what is taken over has other
            defaults than one of the original, which a line of its log names.

    Returns:
        What a Sampler takes, and is called as ``net`` is, in evaluation mode.

    Raises:
        ValueError: for anything else, with what stands in the way.
    """
    if not isinstance(net, ScoreNetwork):
        own = adopted(net, adopt=adopt)
        if own is None:
            return PreparedModule(net, precision)
        net = own
    precisions.check_precision(precision, net.sigmas.device, auto=True)
    if precision != "auto":
        return PreparedNetwork(net, precision)
    _refuse(obstacle(net))
    name, reason = automatic(net)
    prepared = PreparedNetwork(net, name)
    if name != "fp16" or not isinstance(net, RefineNet) or _stays_finite(prepared, net):
        _log.info("%s samples in %s: %s", type(net).__name__, name, reason)
        return prepared
    name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    _log.info("the activations of this network leave the range of float16: it runs in %s", name)
    return PreparedNetwork(net, name)


def unprepared(score: T, precision: str) -> tuple[T | ScoreNetwork, str]:
    """What a prepared network was made of, with its precision for "auto"; anything else as it is,
    with the precision."""
    if not isinstance(score, PreparedNetwork):
        return score, precision
    return score.source, score.precision if precision == "auto" else precision


def obstacle(net: ScoreNetwork, precision: str = "fp32") -> str | None:
    """Why a network cannot be prepared in a precision, or None where it can."""
    if precisions.network_dtype(precision) != torch.float32 and not isinstance(net, RefineNet):
        return f"{type(net).__name__} has no convolutions, which {precision!r} is for: use 'fp32'"
    tensors = _tensors(net)
    places = {tensor.device for tensor in tensors.values()}
    if len(places) > 1 or any(place.type == "meta" for place in places):
        return f"its weights are on {sorted(map(str, places))}: move it to one device, net.to(...)"
    for name, tensor in tensors.items():
        if tensor.dtype not in NETWORK_TYPES:
            return f"{name!r} holds {tensor.dtype}, which float32 does not: call net.float()"
    for name, module in net.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the network'!r} has hooks, which a copy does not run: remove them"
        if "parametrizations" in module._modules:
            return f"{name!r} is parametrised: torch.nn.utils.parametrize can undo it"
        if "_orig_mod" in module._modules:
            return f"{name!r} is compiled: prepare the original, and compile what was prepared"
    return None


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise CannotPrepare(f"this network cannot be prepared for inference: {reason}")


@torch.no_grad()
def _stays_finite(prepared: PreparedNetwork, net: RefineNet) -> bool:
    """Whether activations stay in the range of their type, with a factor of two to spare.

    No norm lies on the residual path from the image to the head: there they grow as σ does.
    """
    sigma, side = net.sigmas[0], 2 * net.reduction()
    z = noise.normal(
        (net.channels, side, side),
        seed=0,
        stream=noise.INITIAL,
        sample_ids=range(4),
        device=sigma.device,
    )
    labels = torch.zeros(len(z), dtype=torch.int64, device=sigma.device)
    return bool(torch.isfinite(prepared.normalized(2 * sigma * z, labels)).all())


def _tensors(net: ScoreNetwork) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {
        f"{prefix}.{name}".lstrip("."): tensor
        for prefix, module in net.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _layout(net: ScoreNetwork, tensors: dict[str, Tensor]) -> object:
    """All of a network but the values of its weights."""
    return net.config, {name: (tensor.shape, tensor.device) for name, tensor in tensors.items()}


__all__ = [
    "CannotPrepare",
    "PreparedNetwork",
    "obstacle",
    "prepare_for_inference",
    "unprepared",
]
