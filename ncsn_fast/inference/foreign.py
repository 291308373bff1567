"""Networks of others on a CPU: they run as they are, but their convolutions run on packed weights.

What a network of somebody else's is made of is not known: a module, a function that calls one, a
wrapper around it. So nothing of it is copied or replaced. While it is called, PyTorch shows each of
its functions that this thread calls to a mode, which takes the convolutions over.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ncsn_fast.device import backends, malloc
from ncsn_fast.device import precision as precisions
from ncsn_fast.inference.fingerprints import fingerprints
from ncsn_fast.inference.forms import summary
from ncsn_fast.models import conv_forms
from ncsn_fast.models.base import evaluating
from ncsn_fast.models.packed_conv import PackedConv, bound_memory, has_adjoint
from ncsn_fast.support.callables import layers

_log = logging.getLogger("ncsn_fast")

# Of the largest value that a network returns. A U-Net of 65 convolutions differs by 3e-6 with
# direct ones and by 9e-6 with filtered ones.
_LARGEST_ERROR = 3e-5
_WATCHED = "watched by autograd"
# A function that PyTorch shows to a mode takes as long as is saved, on one thread, of so many
# multiplications in packed convolutions.
_WORTH = 1_000_000
# What is made of a module that no longer calls PyTorch's functions one by one, or whose weights
# come and go without PyTorch's counters noticing.
_HIDDEN = ("OptimizedModule", "ScriptModule", "FullyShardedDataParallel", "FSDPModule")


class _Packed(NamedTuple):
    """A convolution, and what its weight was when it was packed."""

    conv: PackedConv
    state: tuple[int, int]
    fingerprint: int | None


class _Call(NamedTuple):
    """What torch.nn.functional.conv2d is given, by its names."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class _Convolutions(TorchFunctionMode):
    """Has a function in the place of torch.nn.functional.conv2d, in this thread."""

    def __init__(self, convolution: Callable[[_Call], Tensor]) -> None:
        super().__init__()
        self._convolution = convolution

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, named = args, kwargs or {}
        if func is F.conv2d:
            return self._convolution(_Call(*given, **named))
        return func(*given, **named)


class _Counted(_Convolutions):
    """Counts the functions that it is shown."""

    shown = 0

    def __torch_function__(self, *told: Any) -> Any:
        self.shown += 1
        return super().__torch_function__(*told)


class PackedCalls:
    """A network of others, called so that its convolutions run on packed weights.

    Those do that are ungrouped and in float32 on a CPU, whose weights are parameters, and that
    autocast does not watch; where autograd does, those without strides, and their gradients of
    images. They return channels_last. All else runs as it is.

    When the network is first called with samples of a shape, it is called twice, as it is and
    packed, with the same of torch's random numbers, and with weights that have been looked at anew.
    Where the two disagree it runs as it is. So do batches whose convolutions are too small for how
    many functions of PyTorch the network calls: a U-Net of 32 and 64 channels wants 4 images of
    more than 16×16.

    A weight that was changed in place, or replaced, is packed again when it is next used; one that
    was changed through ``.data``, which nothing counts, at the next :meth:`refresh`.

    Attributes:
        source: the network, which is left as it is: a module, or a function.
    """

    source: Callable[..., Any]

    def __init__(self, source: Callable[..., Any]) -> None:
        self.source = self.__wrapped__ = source  # who looks for what computes goes on to it
        self._kept: Any = WeakIdKeyDictionary()  # weight -> {geometry: _Packed}
        self._lock = threading.Lock()  # of the weights there are, not of what is packed of one
        self._agreed: dict[object, bool] = {}  # by the shape of a sample
        self._fewest: dict[object, float] = {}  # samples that packing is worth it for, likewise
        self._hidden: str | None = None
        self.refresh()

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the network returns for such inputs."""
        if self._hidden is not None:
            return self.source(*given, **named)
        batch = given[0] if given and isinstance(given[0], Tensor) and given[0].ndim else None
        sample = None if batch is None else batch.shape[1:]
        agreed = self._agreed.get(sample)
        many = batch is None or len(batch) >= self._fewest.get(sample, 0)
        if agreed is None and many:
            return self._compared(sample, given, named)
        if not (agreed and many):
            return self.source(*given, **named)
        with _Convolutions(self._convolution):
            return self.source(*given, **named)

    @torch.no_grad()
    def refresh(self) -> None:
        """Let go of what was packed of weights that are others now, however they were changed.

        So do prepared modules that the network is made of, as far as they can be seen.

        Raises:
            ValueError: where NCSN_FAST_CONV asks for a form that there is not.
        """
        conv_forms.asked()
        for one in _parts(self.source):
            if isinstance(one, PreparedModule):
                one.refresh()
        before, self._hidden = self._hidden, hidden(self.source)
        if self._hidden not in (None, before):
            _log.info("the network runs as it is: %s", self._hidden)
        with self._lock:
            weights = {str(number): weight for number, weight in enumerate(self._kept)}
        now = fingerprints(weights)
        for number, weight in weights.items():
            packed = list(self._kept.get(weight, {}).values())
            if not now or any(one.fingerprint != now[number] for one in packed):
                with self._lock:
                    self._kept.pop(weight, None)

    def convolutions(self) -> list[PackedConv]:
        """Those that have been packed, in the order in which they were."""
        with self._lock:
            return [one.conv for packed in self._kept.values() for one in packed.values()]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source,)  # a copy packs for itself

    def _compared(self, sample: object, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the network returns; whether it may run packed is decided on the way."""
        seen: Counter[str | None] = Counter()
        products = 0

        def noticed(call: _Call) -> Tensor:
            nonlocal products
            seen[why := _obstacle(call)] += 1
            result = F.conv2d(*call)
            products += result.numel() * call.weight[0].numel() if why is None else 0
            return result

        watched = [*_tensors((given, named)), *_own_tensors(self.source)]
        versions, drawn = _versions(watched), torch.get_rng_state()
        with _Counted(noticed) as mode:
            expected = self.source(*given, **named)
        if sample is not None and products:
            worth = _WORTH * mode.shown * torch.get_num_threads() / products
            self._fewest[sample] = worth * len(given[0])
            if worth > 1:
                _log.info("the network runs as it is: its convolutions are small")
                return expected
        if seen[None] == 0:
            if seen[_WATCHED] == 0:
                self._decide(sample, "no convolution was seen that can be packed", seen)
            return expected
        if _versions(watched) != versions:
            self._decide(sample, "a call changes its inputs, or the network itself", seen)
            return expected
        values = [value.clone() for value in _tensors(expected)]
        if not all(bool(value.isfinite().all()) for value in values):
            return expected  # which can be compared with nothing
        drew = not torch.equal(drawn, torch.get_rng_state())
        if drew:
            torch.set_rng_state(drawn)
        self.refresh()  # else weights of before would be compared with those of now
        try:
            with _Convolutions(self._convolution):
                found = self.source(*given, **named)
            difference = _difference(list(_tensors(found)), values)
        except Exception as error:
            difference = f"with packed weights it fails ({error})"
        self._decide(sample, difference, seen)
        if difference is None:
            return found
        if drew:
            torch.set_rng_state(drawn)
        return self.source(*given, **named)  # what it returned before may lie where this does

    def _decide(self, sample: object, reason: str | None, seen: Counter[str | None]) -> None:
        self._agreed[sample] = reason is None
        others = ", ".join(f"{n} {why}" for why, n in seen.items() if why is not None)
        others = f" (as they are: {others})" if others else ""
        if reason is None:
            found = summary(self.convolutions())
            _log.info("packed convolutions of the network: %d%s; %s", seen[None], others, found)
        else:
            level = logging.WARNING if seen[None] else logging.INFO
            _log.log(level, "the network runs as it is: %s%s", reason, others)

    def _convolution(self, call: _Call) -> Tensor:
        """On packed weights where that can be, else as PyTorch does it."""
        if _obstacle(call) is not None:
            return F.conv2d(*call)
        weight, bias = call.weight, call.bias
        geometry = _pair(call.stride), _pair(call.padding), _pair(call.dilation)
        by_geometry = self._kept.get(weight)
        packed = None if by_geometry is None else by_geometry.get(geometry)
        if packed is None or packed.conv.bias is not bias or packed.state != _state(weight):
            before = None if packed is None else packed.conv
            packed = _pack(weight, bias, *geometry)
            others = [conv for conv in self.convolutions() if conv is not before]
            bound_memory([*others, packed.conv])
            with self._lock:
                self._kept.setdefault(weight, {})[geometry] = packed
        if backends.unwatched(*call[:2], *([] if bias is None else [bias])):
            return packed.conv(call.input)
        return packed.conv.watched(call.input, weight, bias)


class PreparedModule(PackedCalls):
    """A module of others for inference, see :func:`nf.prepare_for_inference`.

    Called as the module is, it returns what that returns: in evaluation mode, and in float32
    whatever region of autocast is around. Gradients flow to inputs that want them, on PyTorch's own
    convolutions; parameters get none. What the module has beyond an ``nn.Module``, its ``config``
    say, it has too.

    Attributes:
        source: the module, which is left as it is.
        precision: "fp32".
    """

    source: nn.Module
    precision = "fp32"

    def __init__(self, source: nn.Module, precision: str = "auto") -> None:
        if not isinstance(source, nn.Module):
            raise ValueError(
                f"prepare_for_inference takes a network, got {type(source).__name__}: give a module"
            )
        places = {str(tensor.device) for tensor in _own_tensors(source)} - {"cpu"}
        if places:
            raise ValueError(
                f"this {type(source).__name__} is on {', '.join(sorted(places))}: of the networks "
                "of others, those on a CPU are prepared; elsewhere let it run as it is"
            )
        precisions.check_precision(precision, torch.device("cpu"), auto=True)
        if precision not in ("auto", "fp32"):
            raise ValueError(
                f"precision = {precision!r}: a network of others is prepared in 'fp32'; for 16 "
                "bits call it inside of torch.autocast, as nf.Sampler does if asked for them"
            )
        if (reason := hidden(source)) is not None:
            raise ValueError(
                f"prepare_for_inference takes a network of ncsn_fast, got {type(source).__name__}, "
                f"or one that calls PyTorch's functions: {reason}; give the original"
            )
        super().__init__(source)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the module returns for such inputs."""
        grad = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in _tensors((given, named))
        )
        with (
            evaluating(self.source),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", enabled=False),
        ):
            return super().__call__(*given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "source":  # or it would be looked for without end
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if hasattr(nn.Module, name):  # eval() would return the module as it is, to() move it
            raise AttributeError(f"a prepared module has no {name!r}: use .source.{name}")
        return getattr(self.source, name)


def hidden(source: Callable[..., Any]) -> str | None:
    """Why the convolutions of a network cannot be taken over, as far as that can be seen."""
    for one in _parts(source):
        if getattr(one, "_torchdynamo_orig_callable", None) is not None:
            return "it is compiled"
        for module in one.modules() if isinstance(one, nn.Module) else ():
            kinds = {kind.__name__ for kind in type(module).__mro__}
            if kinds.intersection(_HIDDEN) or module._compiled_call_impl is not None:
                return f"{type(module).__name__} is compiled, scripted or sharded"
    return None


def _parts(source: Callable[..., Any]) -> list[Any]:
    """What a network hands its call on to, and what the functions among that name."""
    found = list(layers(source))
    for one in [one for one in found if inspect.isfunction(one)]:
        found += _named_in(one)
    return found


def _named_in(function: Any) -> Iterator[Any]:
    """The objects outside of a function that it names."""
    yield from (function.__globals__.get(name) for name in function.__code__.co_names)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing in it yet
            yield cell.cell_contents


def _obstacle(call: _Call) -> str | None:
    """Why a convolution cannot run on packed weights, or None where it can."""
    x, weight, bias = call[:3]
    held = (weight,) if bias is None else (weight, bias)
    if any(type(tensor) is not nn.Parameter for tensor in held) or weight.is_inference():
        return "with weights made in the call"
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x, *held)):
        return "not in float32 on a CPU"
    if x.ndim != 4 or call.groups != 1 or isinstance(call.padding, str):
        return "grouped" if call.groups != 1 else "padded by name, or of one image without a batch"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return _WATCHED
    if backends.unwatched(x, *held):
        return None
    geometry = _pair(call.stride), _pair(call.padding), _pair(call.dilation)
    pulls = backends.plain_call(x) and has_adjoint(weight.shape[2:], *geometry)
    return None if pulls else _WATCHED


def _pack(weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> _Packed:
    """A convolution with a weight (O, I, height, width) as it is now."""
    malloc.keep_freed_memory()
    state = _state(weight)
    # Tensors made in inference mode could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        outputs, inputs, height, width = weight.shape
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "bias": False}
        conv = PackedConv(inputs, outputs, (height, width), device="meta", **settings)
        # Its memory, but not the object, with which what is packed has to go.
        conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        conv.bias = bias
        conv.pack()
        return _Packed(conv, state, fingerprints({"": weight.detach()}).get(""))


def _pair(value: Any) -> tuple[int, ...]:
    """A setting of a convolution for rows and columns."""
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _state(weight: Tensor) -> tuple[int, int]:
    """What tells a weight from a changed one, unless it was changed through ``.data``."""
    return weight._version, weight.data_ptr()


def _versions(tensors: Iterable[Tensor]) -> list[object]:
    """What tells tensors, and the gradients that they have gathered, from changed ones."""
    grads = ((one, one.grad if one.is_leaf else None) for one in tensors if not one.is_inference())
    return [(one._version, grad is None or (id(grad), grad._version)) for one, grad in grads]


def _own_tensors(source: Callable[..., Any]) -> Iterator[Tensor]:
    for one in _parts(source):
        if isinstance(one, nn.Module):
            yield from (*one.parameters(), *one.buffers())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a network is given or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors(vars(value))


def _difference(found: list[Tensor], expected: list[Tensor]) -> str | None:
    """What is different in what two calls returned, or None."""
    if not expected or [t.shape for t in found] != [t.shape for t in expected]:
        return "what it returns cannot be compared"
    for one, other in zip(found, expected, strict=True):
        if not other.numel():
            continue
        wide = torch.promote_types(other.dtype, torch.float64)
        error = float((one.to(wide) - other.to(wide)).abs().max())
        largest = float(other.to(wide).abs().max())
        if not error <= _LARGEST_ERROR * largest:
            return f"with packed weights it differs by {error:.1e}, where {largest:.1e} is the most"
    return None


__all__ = ["PackedCalls", "PreparedModule", "hidden"]
