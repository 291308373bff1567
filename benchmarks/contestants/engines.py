"""OpenVINO and ONNX Runtime: other engines that make a function of tensors fast on a CPU.

Both get plain PyTorch's function in float32, contiguous, on example tensors of the shapes that it
will see, and use as many threads as PyTorch. They choose layouts themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ncsn_fast.benchmarks.contest.contest import Absent
from ncsn_fast.benchmarks.contest.plans import ONNXRUNTIME, OPENVINO

Function = Callable[..., Tensor]
PACKAGES = ("openvino", "onnxruntime")
NOT_INSTALLED = "not installed: pip install ncsn_fast[peers]"


def openvino(function: Function, example: Sequence[Tensor], precision: str) -> Function:
    """The function as OpenVINO compiles it for the shortest time of one call.

    Raises:
        Absent: where it is not installed.
        RuntimeError: where it would compute in another precision than it is asked to.
    """
    try:
        import openvino
    except ImportError as error:
        raise Absent(NOT_INSTALLED) from error
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    model = openvino.convert_model(
        _Module(function), example_input=tuple(example), input=[tuple(x.shape) for x in example]
    )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_HYPER_THREADING": True,  # all of these threads, whatever cores they are of
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != hint:
        raise RuntimeError(f"OpenVINO computes in {taken} here, not in {hint}")
    request = compiled.create_infer_request()

    def call(*tensors: Tensor) -> Tensor:
        found = request.infer([x.numpy() for x in tensors], share_inputs=True)
        return torch.from_numpy(found[0])

    return call


def onnxruntime(function: Function, example: Sequence[Tensor], precision: str) -> Function:
    """The function as ONNX Runtime runs it on a CPU, where it has float32 alone.

    Raises:
        Absent: where it is not installed, or cannot do what the others are held to.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Absent(NOT_INSTALLED) from error
    if precision != "fp32":
        raise Absent("ONNX Runtime has no convolutions in 16 bits for CPUs")
    if torch.cpu._is_avx512_supported() and torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise Absent("ONNX Runtime has no switch that keeps it from AVX-512, as PyTorch is kept")
    names = [f"x{i}" for i in range(len(example))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        model = torch.onnx.export(
            _Module(function), tuple(example), input_names=names, dynamo=True, verbose=False
        )
    assert model is not None  # as there is no file to write
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Its threads wait for work in a loop: not while somebody else has his turn.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.model_proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    seen = {one.name for one in session.get_inputs()}

    def call(*tensors: Tensor) -> Tensor:
        given = {name: x.numpy() for name, x in zip(names, tensors, strict=True) if name in seen}
        return torch.from_numpy(session.run(None, given)[0])

    return call


ENGINES = {OPENVINO: openvino, ONNXRUNTIME: onnxruntime}


class _Module(nn.Module):
    """A function as the module that exporters want."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


__all__ = ["ENGINES", "PACKAGES", "onnxruntime", "openvino"]
