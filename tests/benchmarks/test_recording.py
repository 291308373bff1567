"""Steps that are recorded on "meta": what the static tables count is what the engine launches."""

import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

import ncsn_fast as nf
from ncsn_fast.benchmarks.static import recording
from ncsn_fast.benchmarks.static.networks import Step
from ncsn_fast.benchmarks.static.recording import Convolution, Launch, Pass
from ncsn_fast.benchmarks.static.steps import as_on_a_gpu
from ncsn_fast.device.memory_format import is_channels_last
from ncsn_fast.models import packed_conv, trained_conv
from ncsn_fast.training.log import LossSums
from ncsn_fast.training.presets import PRESETS
from ncsn_fast.training.step import TrainingStep

SIGMAS = (1.0, 0.5)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture
def no_packed_convolutions(monkeypatch):
    """No GPU has them."""
    for module in (packed_conv, trained_conv):
        monkeypatch.setattr(module, "can_pack", lambda weight: False)


def digits(layout):
    preset = PRESETS["digits"]
    net = nf.NCSNv2(channels=1, image_size=preset.image_size, ngf=preset.ngf, sigmas=SIGMAS)
    return net.to(memory_format=layout)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("last", [True, False])
def test_a_step_launches_what_a_sampler_does(last, precision, no_packed_convolutions):
    """Values, memory and a device it has none of, and yet each launch is the same."""
    net = digits(torch.channels_last if last else torch.contiguous_format)
    sampler = nf.Sampler(
        net, step_size=1e-3, steps_per_level=1, denoise=False, graph=False, precision=precision,
        prepare=last,
    )  # fmt: skip
    with as_on_a_gpu():
        rows = recording.launches(lambda: sampler(2, seed=0))
    ends = [i for i, one in enumerate(rows) if one.name == "sampler_update"]
    assert len(ends) == len(SIGMAS)
    recorded = Step("digits", 2, precision=precision, last=last).launches()
    assert recorded[0].name == "begin_step"  # of the captured step, which knows no row
    of_the_engine = rows[ends[0] + 1 : ends[1] + 1]
    assert [one.code for one in recorded[1:]] == [one.code for one in of_the_engine]
    assert [one.programs for one in recorded[1:]] == [one.programs for one in of_the_engine]


def test_a_training_step_launches_what_a_trainer_does(no_packed_convolutions):
    net = digits(torch.channels_last)
    config = nf.TrainConfig(batch_size=2, precision="fp32")
    step = TrainingStep(net, net, LossSums(len(SIGMAS), torch.device("cpu")), config)
    with as_on_a_gpu():
        of_the_engine = recording.launches(step)
    recorded = Step("digits", 2, training=True, precision="fp32").launches()
    assert [one.code for one in recorded] == [one.code for one in of_the_engine]


def test_a_step_of_a_large_batch_is_recorded_without_its_memory():
    found = Step("ffhq", 1024).launches()  # 17 GB an activation
    assert found[-1].states["x_ptr"].shape == (1024, 3, 256, 256)
    assert all(tensor.is_meta for one in found for tensor in one.tensors.values())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last", [True, False])
def test_images_are_laid_out_as_asked(training, last):
    for one in Step("cifar10", 2, training=training, last=last).launches():
        for tensor in one.tensors.values():
            if tensor.ndim == 4 and tensor.dtype == torch.float16 and tensor.shape[1] > 3:
                assert is_channels_last(tensor) is last, one.name


def test_a_convolution_counts_its_products_and_sums():
    x, weight = meta(4, 2, 8, 6), meta(3, 2, 3, 3).requires_grad_()
    found = recording.work(lambda: F.conv2d(x, weight, padding=1))
    products = 4 * 3 * 8 * 6 * 2 * 3 * 3
    assert found == [Convolution(2 * products, torch.float32)]

    def with_gradient():
        F.conv2d(x, weight, padding=1).backward(meta(4, 3, 8, 6))

    found = recording.work(with_gradient)  # of the weight alone: nobody asks for that of x
    convolutions = [one for one in found if isinstance(one, Convolution)]
    assert convolutions == [Convolution(2 * products, torch.float32)] * 2


def test_what_pytorch_does_beside_a_convolution_is_counted():
    """cuDNN is given neither a bias nor images that are laid out otherwise."""
    x, weight, bias = meta(4, 2, 8, 6), meta(3, 2, 3, 3), meta(3)
    weight = weight.to(memory_format=torch.channels_last)
    layout, convolution, addition = recording.work(lambda: F.conv2d(x, weight, bias, padding=1))
    assert layout == Pass("aten.contiguous", 2 * 4 * x.numel())
    assert convolution.operations == 2 * 4 * 3 * 8 * 6 * 2 * 3 * 3
    assert addition == Pass("aten.add_", 4 * (2 * 4 * 3 * 8 * 6 + 3))
    x = x.contiguous(memory_format=torch.channels_last)
    assert recording.work(lambda: F.conv2d(x, weight, padding=1)) == [convolution]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_step_of_a_chain_has_few_passes_beside_its_convolutions(precision):
    """docs/kernels.md tells of them."""
    found = Step("cifar10", 128, precision=precision).work()
    assert sum(isinstance(one, Convolution) for one in found) == 75
    assert Counter(one.name for one in found if isinstance(one, Pass)) == {
        "aten.rsub": 1, "aten.contiguous": 1, "aten.elu": 24, "aten.add": 22, "aten.avg_pool2d": 1,
        "aten.add_": 1,
    }  # fmt: skip


def test_what_the_host_computes_is_not_counted():
    assert recording.work(lambda: torch.ones(3) * 2) == []


def test_a_pass_counts_what_it_is_given_and_returns():
    x, row = meta(8, 4, dtype=torch.float16), meta(4, dtype=torch.float16)
    assert recording.work(lambda: x + row) == [Pass("aten.add", 64 + 8 + 64)]
    assert recording.work(lambda: x + x) == [Pass("aten.add", 64 + 64)]
    assert recording.work(lambda: x.mul_(row)) == [Pass("aten.mul_", 64 + 8 + 64)]
    assert recording.work(lambda: x + row.expand(8, 4)) == [Pass("aten.add", 64 + 8 + 64)]
    assert recording.work(lambda: x.view(4, 8).t()) == []


def test_a_launch_passes_to_another_process():
    launch = Step("digits", 1).launches()[1]
    again = pickle.loads(pickle.dumps(launch))
    assert isinstance(again, Launch)
    assert (again.code, again.programs) == (launch.code, launch.programs)
    assert again.kernel is launch.kernel


def test_numbers_that_triton_compiles_in_are_part_of_the_code():
    """A kernel whose last number is 1, or divides by 16, may be another kernel."""
    one = Step("digits", 1).launches()[1]
    name = next(k for k, value in one.arguments.items() if type(value) is int and k == "pixels")
    codes = {
        one._replace(arguments={**one.arguments, name: value}).code for value in (1, 15, 16, 17, 32)
    }
    assert len(codes) == 3  # 1; 15 and 17; 16 and 32


def test_the_gradient_of_a_bias_is_a_pass_of_its_own():
    weight, bias = meta(3, 2, 3, 3).requires_grad_(), meta(3).requires_grad_()

    def with_gradient():
        F.conv2d(meta(4, 2, 8, 6), weight, bias, padding=1).backward(meta(4, 3, 8, 6))

    found = recording.work(with_gradient)
    assert Pass("aten.sum", 4 * (4 * 3 * 8 * 6 + 3)) in found
