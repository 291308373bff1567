"""What is measured: the sizes of the quick form and of the full one, on a GPU and on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

REDUCED, AUTOTUNED = "compile reduce-overhead", "compile max-autotune"
COMPILED, FROZEN = "compile", "compile frozen"
OPENVINO, ONNXRUNTIME = "OpenVINO", "ONNX Runtime"


@dataclass(frozen=True)
class Subject:
    """A network to measure, at these batch sizes.

    Attributes:
        name: in the tables.
        preset: of ``training/presets.py``: the network and its sampler. "digits" has the bundled
            weights, all others have random ones.
        batches: images at once.
        compiled: the ways of torch.compile, and other engines, that take part.
        direct: whether our own convolutions take part in their direct form too.
        ngf, image_size: in place of the preset's.
        precisions: in place of those that the plan has for such a contest.
    """

    name: str
    preset: str
    batches: tuple[int, ...]
    compiled: tuple[str, ...] = ()
    direct: bool = False
    ngf: int | None = None
    image_size: int | None = None
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The measurements of a run.

    What compilers take part in is slow to start, and has suites of its own.

    Attributes:
        device: "cuda" or "cpu".
        half: the 16-bit precision of this device.
        ours: precisions in which our sampler takes part.
        elements: sizes of the operations.
        operations: which of them, by name; none: all.
        compile_operations: whether torch.compile takes part there.
        sampled, compiled, autotuned: networks for the chains.
        passed: networks for forward passes.
        trained, trained_compiled: networks for training steps.
        rivals_in: precisions in which plain PyTorch and compilers take part in chains and forward
            passes.
        trained_in: precisions of training.
        foreign: batch sizes of somebody else's network.
        seconds: of measuring, per contestant.
        rows: most rows of a chain; large batches run fewer.
        rows_of_ours: the same for our sampler, whose calls check and refresh the weights once.
        budget: seconds for all.
        facts: what the first suite found out: copy bandwidth in GB/s, peaks in FLOP/s.
        peer: a checkout of the official repository.
        roofs: whether the fastest product of matrices is looked for.
        parts: of contests with networks: "times", "profiles" or both.
        tests: arguments of pytest, for the tests that are run as a suite.
        workers: how many run them at once.
    """

    device: str
    half: str
    ours: tuple[str, ...]
    elements: tuple[int, ...]
    sampled: tuple[Subject, ...]
    passed: tuple[Subject, ...]
    trained: tuple[Subject, ...]
    trained_in: tuple[str, ...]
    seconds: float
    budget: float
    compiled: tuple[Subject, ...] = ()
    rivals_in: tuple[str, ...] = ()
    autotuned: tuple[Subject, ...] = ()
    trained_compiled: tuple[Subject, ...] = ()
    foreign: tuple[int, ...] = ()
    compile_operations: bool = True
    operations: tuple[str, ...] = ()
    rows: int = 40
    rows_of_ours: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    peer: str | None = None
    roofs: bool = True
    parts: tuple[str, ...] = ("times", "profiles")
    tests: tuple[str, ...] = ()
    workers: int = 0

    def rows_for(self, batch: int) -> int:
        """Rows of a chain that a call runs: enough that what a call costs once hardly counts."""
        return min(self.rows, max(4, 2560 // batch))

    def rows_for_ours(self, batch: int) -> int:
        """The same for our sampler: a whole chain has more than a thousand."""
        return max(self.rows_for(batch), min(self.rows_of_ours, max(40, 16384 // batch)))


# Batches by the value of what they tell, should the time be over before the last.
CIFAR = Subject("NCSNv2 CIFAR-10", "cifar10", (512, 1, 128))
_DEEPER = Subject("NCSNv2Deeper 128", "bedroom", (64, 1, 16))
_V1 = Subject("NCSN CIFAR-10", "cifar10-v1", (512, 1, 128))
_GPU_QUICK = Plan(
    device="cuda",
    half="fp16",
    ours=("fp16",),
    elements=(1 << 26,),
    sampled=(CIFAR,),
    autotuned=(replace(CIFAR, batches=(512,), compiled=(AUTOTUNED,)),),
    passed=(replace(CIFAR, batches=(1, 128)),),
    trained=(replace(CIFAR, batches=(128,)),),
    trained_compiled=(replace(CIFAR, batches=(128,), compiled=(REDUCED,)),),
    rivals_in=("fp16",),
    trained_in=("bf16",),
    seconds=1.0,
    budget=540.0,
    rows_of_ours=256,
)
_ALL = (512, 1, 128, 1024, 16)
_GPU_FULL = replace(
    _GPU_QUICK,
    elements=(1 << 20, 1 << 23, 1 << 26),
    ours=("fp16", "bf16", "tf32", "fp32"),
    sampled=(replace(CIFAR, batches=_ALL), _DEEPER, _V1),
    compiled=(
        replace(CIFAR, batches=_ALL, compiled=(REDUCED,)),
        replace(_DEEPER, batches=(16,), compiled=(REDUCED,)),
        replace(_V1, batches=(128,), compiled=(REDUCED,)),
    ),
    autotuned=(replace(CIFAR, batches=(512, 1, 128, 1024), compiled=(AUTOTUNED,)),),
    passed=(replace(CIFAR, batches=_ALL, compiled=(REDUCED,)), _DEEPER, _V1),
    trained_in=("bf16", "fp32", "fp16"),
    seconds=3.0,
    budget=7200.0,
)
_ON_CPU = (FROZEN, OPENVINO, ONNXRUNTIME)
_SMALL = Subject("NCSNv2 32×32, ngf 32", "cifar10", (8,), ngf=32)
_DIGITS = Subject("digits", "digits", (1, 16))
# Without instructions for bfloat16, or where PyTorch is kept from them, it is float32 and
# conversions: there it is left out of what takes long.
_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
_HALF_HERE = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and any(
    getattr(torch.cpu, name, bool)() for name in _INSTRUCTIONS
)
_HERE = ("fp32", "bf16") if _HALF_HERE else ("fp32",)
_CPU_QUICK = Plan(
    device="cpu",
    half="bf16",
    ours=("fp32", "bf16"),
    elements=(1 << 18,),
    sampled=(_DIGITS,),
    passed=(_DIGITS,),
    trained=(replace(_DIGITS, batches=(16,)),),
    rivals_in=("bf16",),
    trained_in=("fp32", "bf16"),
    compile_operations=False,
    seconds=0.3,
    budget=170.0,
    rows=5,
)
_CPU_FULL = replace(
    _CPU_QUICK,
    elements=(1 << 20, 1 << 22),
    sampled=(_DIGITS, _SMALL, replace(CIFAR, batches=(1, 16))),
    compiled=(replace(CIFAR, batches=(16, 1), compiled=_ON_CPU),),
    rivals_in=_HERE,
    passed=(replace(_DIGITS, compiled=_ON_CPU), replace(_SMALL, compiled=_ON_CPU)),
    trained=(replace(_DIGITS, batches=(64,)), _SMALL),
    compile_operations=True,
    seconds=2.0,
    budget=3600.0,
)
# The rows of the targets that are for CPUs, and what they are compared with.
_AT_16 = replace(CIFAR, batches=(16,))
_CPU_TARGETS = replace(
    _CPU_QUICK,
    elements=(1 << 22,),
    operations=("sampler_update", "normal numbers"),
    sampled=(_AT_16, replace(_DIGITS, direct=True)),
    compiled=(
        replace(_AT_16, compiled=_ON_CPU),
        replace(CIFAR, batches=(1,), compiled=_ON_CPU, precisions=("fp32",)),
    ),
    ours=_HERE,
    rivals_in=_HERE,
    passed=(),
    trained=(_AT_16,),
    trained_compiled=(replace(_AT_16, compiled=(COMPILED,), precisions=("fp32",)),),
    trained_in=_HERE[-1:],
    foreign=(4,),
    budget=2700.0,
    rows=4,
)
# All that ``--minutes`` does, at sizes that take no time: it finds what would fail.
_TINY = Subject("NCSNv2 8×8, ngf 4", "cifar10", (2, 1), ngf=4, image_size=8)
_CPU_DRY = replace(
    _CPU_QUICK,
    elements=(1 << 13,),
    ours=("fp32",),
    sampled=(_TINY,),
    passed=(replace(_TINY, batches=(1,)),),
    trained=(replace(_TINY, batches=(2,)),),
    rivals_in=("fp32",),
    trained_in=("fp32",),
    seconds=0.001,
    rows=2,
    roofs=False,
)
# What ``ncsn-fast bench`` does in a minute.
_GPU_SHORT = replace(
    _GPU_QUICK,
    elements=(1 << 24,),
    sampled=(replace(CIFAR, batches=(128,)),),
    compile_operations=False,
    seconds=0.5,
    budget=90.0,
)
_CPU_SHORT = replace(
    _CPU_QUICK,
    sampled=(replace(_DIGITS, batches=(16,)),),
    seconds=0.2,
    budget=90.0,
)
PLANS = {
    ("cuda", "quick"): _GPU_QUICK,
    ("cuda", "full"): _GPU_FULL,
    ("cuda", "short"): _GPU_SHORT,
    ("cpu", "quick"): _CPU_QUICK,
    ("cpu", "full"): _CPU_FULL,
    ("cpu", "short"): _CPU_SHORT,
    ("cpu", "targets"): _CPU_TARGETS,
    ("cpu", "dry"): _CPU_DRY,
}


def tf32_is_there(device: str) -> bool:
    """Whether the GPU has the TF32 mode."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


__all__ = [
    "AUTOTUNED",
    "CIFAR",
    "COMPILED",
    "FROZEN",
    "ONNXRUNTIME",
    "OPENVINO",
    "PLANS",
    "REDUCED",
    "Plan",
    "Subject",
    "tf32_is_there",
]
