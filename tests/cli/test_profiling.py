"""Ranges for profilers, and ncsn-fast profile."""

import gzip
import importlib.util
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import command
from helpers.networks import network
from helpers.pages import Page
from torch.autograd import DeviceType

import ncsn_fast as nf
from ncsn_fast.device import profiling
from ncsn_fast.runs import profile as profile_run
from ncsn_fast.runs import profile_table
from ncsn_fast.runs.profile import Workload

invoke, succeed = partial(command.invoke, "profile"), partial(command.succeed, "profile")


class Domain:
    """Stands in for the domain of the nvtx package: with a profiler, or without one."""

    def __init__(self, attached):
        self.attached, self.calls = attached, []

    def get_event_attributes(self, message):
        return f"<{message}>" if self.attached else None

    def push_range(self, attributes):
        self.calls.append(attributes)

    def pop_range(self):
        self.calls.append("pop")


@pytest.fixture
def load(monkeypatch):
    """Loads the module anew, as it is imported beside another nvtx package."""

    def load(domain):
        package = None if domain is None else SimpleNamespace(get_domain=lambda name: domain)
        monkeypatch.setitem(sys.modules, "nvtx", package)
        spec = importlib.util.spec_from_file_location("profiling_anew", profiling.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    net = network(channels=1, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6))
    return str(nf.save_checkpoint(net, tmp_path_factory.mktemp("net") / "model.safetensors"))


def test_ranges_reach_the_domain_as_they_nest(load):
    domain = Domain(attached=True)
    module = load(domain)
    with module.mark("sample"), module.mark("step"):
        domain.calls.append("work")
    assert domain.calls == ["<sample>", "<step>", "work", "pop", "pop"]


def test_a_range_ends_where_the_work_fails(load):
    domain = Domain(attached=True)
    with pytest.raises(KeyError), load(domain).mark("step"):
        raise KeyError
    assert domain.calls == ["<step>", "pop"]


def test_a_range_decorates_a_function(load):
    domain = Domain(attached=True)

    @load(domain).mark("network")
    def double(x):
        return 2 * x

    assert double(3) == 6
    assert double(4) == 8
    assert domain.calls == ["<network>", "pop"] * 2


@pytest.mark.parametrize("domain", [None, Domain(attached=False)], ids=["package", "profiler"])
def test_without_the_package_or_a_profiler_a_range_does_nothing(load, domain):
    with load(domain).mark("step"):
        pass
    assert domain is None or not domain.calls


def test_an_unknown_range_is_refused():
    with pytest.raises(ValueError, match=r"no range 'setp': choose one of sample, chunk, step"):
        profiling.mark("setp")


def test_torchs_profiler_gets_the_ranges_while_it_asks_for_them(load):
    domain = Domain(attached=True)
    module = load(domain)
    with torch.profiler.profile() as profiler, module.ranges_for_torch(), module.mark("step"):
        torch.ones(2)
    assert not domain.calls
    with module.mark("step"):
        pass
    assert domain.calls == ["<step>", "pop"]
    (step,) = (event for event in profiler.events() if event.name == "ncsn_fast@step")
    assert "aten::ones" in {child.name for child in step.cpu_children}


def test_the_capture_range_holds_all_the_work_of_a_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    with profiling.capture_range(torch.device("cpu")):
        pass
    assert not calls
    with profiling.capture_range(torch.device("cuda")):
        calls.append("work")
    assert calls == ["synchronize", "start", "work", "synchronize", "stop"]
    with pytest.raises(KeyError), profiling.capture_range(torch.device("cuda")):
        raise KeyError
    assert calls[-2:] == ["start", "stop"]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (
            "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_nhwckrsc_nhwc_tilesize128x128",
            "convolutions",
        ),
        ("void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1>()", "convolutions"),
        ("triton_tem_fused_convolution_elu_4", "convolutions"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::addmm", "convolutions"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolutions"),
        ("_instance_norm_statistics_kernel", "norms"),
        ("triton_red_fused_elu_var_mean_2", "norms"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, 512, true>()", "norms"),
        ("aten::var_mean", "norms"),
        ("_max_pool5_kernel", "activation, pool, add"),
        ("_residual_add_kernel", "activation, pool, add"),
        ("_resize_add_kernel", "activation, pool, add"),
        ("triton_poi_fused_convolution_elu_0", "activation, pool, add"),
        (
            "void at::native::vectorized_elementwise_kernel<4, elu_kernel()>",
            "activation, pool, add",
        ),
        ("at::native::CUDAFunctor_add<c10::Half>", "activation, pool, add"),
        ("aten::add_", "activation, pool, add"),
        ("_sampler_update_kernel", "update and loss"),
        ("_begin_step_kernel", "update and loss"),
        ("_dsm_loss_kernel", "update and loss"),
        ("void multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>()", "optimizer"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::_foreach_lerp_", "optimizer"),
        ("void cudnn::ops::nchwToNhwcKernel<__half, __half, float>()", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("aten::mkldnn_reorder_conv2d_weight", "copies"),
        ("mkldnn::_convolution_pointwise", "convolutions"),
        ("at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)", "copies"),
        ("aten::unsqueeze", "other"),
        ("some_kernel_of_a_stranger", "other"),
    ],
)
def test_kernels_are_grouped_by_their_names(name, group):
    assert profile_table.group_of(name) == group
    assert group in profile_table.GROUPS


def event(name, start, end, on_gpu=False, parent=None, is_range=False):
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        cpu_parent=parent,
        is_user_annotation=is_range,
    )


def test_a_profile_of_a_gpu_counts_kernels_launches_and_idle_time():
    events = [
        event("ncsn_fast@step", 0, 30, is_range=True),
        event("cudaGraphLaunch", 0, 5),
        event("aten::conv2d", 0, 25),
        event("ncsn_fast@step", 10, 90, on_gpu=True, is_range=True),
        event("conv_kernel", 10, 40, on_gpu=True),
        event("_instance_norm_apply_kernel", 30, 50, on_gpu=True),  # beside the other
        event("Memset (Device)", 20, 21, on_gpu=True),  # within it
        event("conv_kernel", 70, 90, on_gpu=True),
    ]
    found = profile_table.read_profile(events, steps=2)
    groups = {"convolutions": (1.0, 25.0), "norms": (0.5, 10.0), "copies": (0.5, 0.5)}
    assert found.by_group() == groups
    assert found.launches == 0.5
    assert found.busy == 60 / 80
    assert found.ranges == {"step": (0.5, 15.0)}
    assert "computes in 75% of the time" in profile_table.summary(found)


def test_a_profile_of_a_cpu_counts_the_operators_that_python_calls():
    update = event("ncsn_fast@update", 50, 90, is_range=True)
    convolution = event("aten::conv2d", 0, 40)
    events = [
        convolution,
        event("aten::mkldnn_convolution", 5, 35, parent=convolution),
        update,
        event("aten::mul", 50, 60, parent=update),
    ]
    found = profile_table.read_profile(events, steps=1)
    assert found.by_group() == {"convolutions": (1.0, 40.0), "update and loss": (1.0, 10.0)}
    assert found.busy is None


def test_the_commands_record_the_same_work_with_nvidias_tools(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    found = profile_run.commands(Workload(steps=7), Path("out"))
    nsys = shlex.join(found["nsys"])
    assert nsys.startswith("nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi ")
    for option in ("--capture-range-end=stop", "--cuda-graph-trace=node", "--output out/sample"):
        assert f" {option} " in nsys
    assert nsys.endswith("-m ncsn_fast profile --tool mark sample digits --steps 7")
    ncu = shlex.join(found["ncu"])
    for option in ("--graph-profiling node", "--clock-control none", "--profile-from-start off"):
        assert f" {option} " in ncu
    assert " --nvtx --nvtx-include ncsn_fast@sample/ " in ncu
    assert ncu.endswith("-m ncsn_fast profile --tool mark sample digits --steps 1")
    training = profile_run.commands(Workload("train"), Path("out"))["ncu"]
    assert "--nvtx-include" not in training  # the backward pass runs in another thread
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    without = profile_run.commands(Workload(), Path("out"))["ncu"]
    assert "--nvtx-include" not in without  # there are no ranges, nothing would be found


@pytest.mark.parametrize(
    "work",
    [
        Workload("sample", "a model.pth", config="c.yml", batch=3, steps=4, precision="fp16"),
        Workload("train", preset="cifar10", graph=False, device="cuda:0"),
        Workload("sample", graph=True),
    ],
)
def test_the_commands_ask_for_the_work_they_were_made_from(work, monkeypatch):
    asked = []
    monkeypatch.setattr(
        profile_run, "profile", lambda work, out, tool, say: asked.append((work, tool)) or {}
    )
    module = importlib.import_module("ncsn_fast.cli.profile")  # not the command of that name
    monkeypatch.setattr(module, "device_of", lambda device: device or "cpu")
    words = profile_run.commands(work, Path("out"))["nsys"]
    succeed(*words[words.index("ncsn_fast") + 2 :])
    assert asked == [(work, "mark")]


def table_of(path):
    rows = [line.strip("| ").split(" | ") for line in path.read_text("utf-8").splitlines()]
    return {row[0].strip(" `"): row[1:] for row in rows if len(row) >= 3}


def test_profiling_samples_writes_a_trace_and_a_table(tmp_path, checkpoint):
    out = tmp_path / "new" / "profiles"
    output = succeed("sample", checkpoint, "--batch", 2, "--steps", 4, "--out", out)
    assert "nsys profile" in output
    assert "| convolutions" in output
    assert str(out / "sample_trace.json.gz") in output
    with gzip.open(out / "sample_trace.json.gz", "rt", encoding="utf-8") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    net = nf.load_checkpoint(checkpoint)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in net.modules())
    # Packed ones, some of which write over what they are added to, and filtered ones; or plain.
    packed = {name for name in names if str(name).startswith("mkldnn::_convolution_pointwise")}
    packed |= {"ncsn_fast_cpp::conv3x3"}.intersection(names)
    kinds = packed or {"aten::conv2d"}
    assert sum(map(names.count, kinds)) == 4 * convolutions  # the warm-up is not in it
    table = table_of(out / "sample_profile.md")
    assert sum(float(table[kind][1]) for kind in kinds) == convolutions
    assert all(table[kind][0] == "convolutions" for kind in kinds)
    assert "- batch: 2" in (out / "sample_profile.md").read_text("utf-8")
    names = {"sample_trace.json.gz", "sample_profile.md", "sample_profile.html"}
    assert {path.name for path in out.iterdir()} == names
    words = Page((out / "sample_profile.html").read_text("utf-8")).words
    for told in ("Time by group", "convolutions", "Ranges", "update", "operators", "batch 2"):
        assert told in words


def test_profiling_training_records_whole_steps_after_the_warm_up(tmp_path, checkpoint):
    succeed("train", checkpoint, "--batch", 2, "--steps", 3, "--tool", "torch", "--out", tmp_path)
    table = table_of(tmp_path / "train_profile.md")
    for name in ("step", "data", "forward", "backward"):
        assert float(table[name][0]) == 1
    assert float(table["optimizer"][0]) >= 1
    with gzip.open(tmp_path / "train_trace.json.gz", "rt", encoding="utf-8") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert sum(str(name).startswith("Optimizer.step#Adam") for name in names) == 3


def test_a_network_that_knows_classes_is_told_some(tmp_path):
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=[1, 0.1], classes=5)
    path = nf.save_checkpoint(net, tmp_path / "net")
    options = ("--batch", 2, "--steps", 1, "--tool", "torch", "--out", tmp_path / "out")
    succeed("train", path, *options)
    assert (tmp_path / "out" / "train_profile.md").exists()


def test_a_preset_gives_a_network_with_random_weights(tmp_path):
    succeed("sample", "--preset", "digits", "--batch", 1, "--steps", 1, "--out", tmp_path)
    page = (tmp_path / "sample_profile.md").read_text("utf-8")
    assert "NCSNv2 of preset digits, random weights" in page
    result = invoke("sample", "model.pth", "--preset", "digits")
    assert "give a MODEL or a --preset, not both" in result.output


def test_marking_runs_the_work_once_inside_the_capture_range(monkeypatch, checkpoint):
    entered = []

    class Marked:
        def __enter__(self):
            entered.append("begin")

        def __exit__(self, *_):
            entered.append("end")

    monkeypatch.setattr(profiling, "capture_range", lambda device: Marked())
    monkeypatch.setattr(
        nf.Sampler, "__call__", lambda *arguments, **keywords: entered.append("chain")
    )
    output = succeed("sample", checkpoint, "--tool", "mark")
    assert entered == ["chain", "begin", "chain", "end"]
    assert output == ""


def test_a_missing_tool_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match="'nsys' is not on the PATH: install NVIDIA Nsight Systems"
    ):
        profile_run.profile(Workload(device="cuda"), tmp_path / "out", "nsys", print)
    assert not (tmp_path / "out").exists()
    result = invoke("sample", "--tool", "ncu", "--device", "cpu", "--out", tmp_path / "out")
    assert "--tool ncu profiles NVIDIA GPUs, and this runs on cpu" in result.output


def program(folder, script):
    path = folder / "nsys"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_auto_runs_nsys_where_it_is_found_for_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, f'echo "$@" > {tmp_path}/words; touch {tmp_path}/out/sample.nsys-rep')
    work = Workload(device="cuda")
    files = profile_run.profile(work, tmp_path / "out", "auto", print)
    assert files == {"report": tmp_path / "out" / "sample.nsys-rep"}
    words = (tmp_path / "words").read_text().split()
    assert words == profile_run.commands(work, tmp_path / "out")["nsys"][1:]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "code 3 and no"),
        ("true", "code 0 and no"),
        ("touch out/sample.nsys-rep; exit 1", "code 1 and a"),
    ],
)
def test_a_tool_that_fails_is_reported(monkeypatch, tmp_path, script, said):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    program(tmp_path, script)
    with pytest.raises(OSError, match=f"nsys ended with .*{said} report"):
        profile_run.profile(Workload(device="cuda"), tmp_path / "out", "nsys", print)


def test_what_cannot_be_written_is_refused_before_any_work(monkeypatch, tmp_path, checkpoint):
    monkeypatch.setattr(profile_run, "_prepare", lambda work: pytest.fail("work was begun"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot make the folder"):
        profile_run.profile(Workload(), tmp_path / "file", "torch", print)
    (tmp_path / "out" / "sample_profile.md").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cannot write .*sample_profile.md: it is a folder"):
        profile_run.profile(Workload(), tmp_path / "out", "torch", print)


def test_more_steps_than_the_chain_has_are_refused(tmp_path, checkpoint):
    result = invoke("sample", checkpoint, "--steps", 32, "--out", tmp_path)
    assert result.exit_code == 1
    assert "has 31 rows, give fewer" in result.output


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["--graph", "--no-graph"])
def test_on_a_gpu_the_table_is_of_kernels(tmp_path, checkpoint, graph):
    settings = ("--batch", 4, "--steps", 3, "--tool", "torch", "--device", "cuda")
    output = succeed("sample", checkpoint, *settings, graph, "--out", tmp_path)
    assert "of kernels per step" in output
    table = table_of(tmp_path / "sample_profile.md")
    assert float(table["update and loss"][0]) >= 1
    assert "convolutions" in table
