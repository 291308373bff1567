"""Targets are judged by the rows."""

from dataclasses import replace

from ncsn_fast.benchmarks.contest.plans import CIFAR, COMPILED, FROZEN, ONNXRUNTIME, OPENVINO
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.report import tables
from ncsn_fast.benchmarks.report.targets import TARGETS


def in_place(rows, kind):
    return Results(replace(row, environment={"kind": kind}) for row in rows)


def test_a_target_is_over_the_faster_precision_of_torch_compile():
    rows = [
        Row("chain-compiled", CIFAR.name, name, 16, precision, median_s=time,
            environment={"kind": "cpu"})
        for name, precision, time in (
            ("compile frozen", "fp32", 8.0), ("compile frozen", "bf16", 3.0), ("ours", "bf16", 2.0)
        )
    ]  # fmt: skip
    assert "1.5×" in [line[3] for line in tables.targets(Results(rows)).lines]


def test_targets_are_judged_by_the_rows():
    where = {"kind": "cuda"}
    rows = [
        Row("operations", "sampler_update", name, 1 << 26, "fp16", median_s=time, rounds=5,
            figures={"share_of_copy": 0.95}, environment=where)
        for name, time in (("ours", 1.0), ("eager", 3.9), ("compile", 1.6))
    ]  # fmt: skip
    verdicts = [line[3:] for line in tables.targets(Results(rows)).lines]
    assert verdicts[:3] == [("95 %", "met"), ("3.9×", "not met"), ("1.6×", "met")]
    assert set(verdicts[3:]) == {("–", "not yet measured")}
    assert len(verdicts) == len(TARGETS)


def test_a_cpu_says_nothing_about_the_targets_of_a_gpu():
    row = Row("operations", "sampler_update", "ours", 1, "fp16", median_s=1.0,
              figures={"share_of_copy": 0.95}, environment={"kind": "cpu"})  # fmt: skip
    assert all(line[4] == "not yet measured" for line in tables.targets(Results([row])).lines)


def test_precisions_are_compared_with_their_own():
    def row(contestant, precision, seconds):
        return Row("chain-compiled", CIFAR.name, contestant, 16, precision, median_s=seconds)

    rows = [row("compile frozen", "bf16", 3.0), row("ours", "bf16", 2.0)]
    rows += [row("compile frozen", "fp32", 9.0), row("ours", "fp32", 10.0)]
    lines = {line[0]: line[3:] for line in tables.targets(in_place(rows, "cpu")).lines}
    name = "NCSNv2 CIFAR-10 sampling, batch 16: over torch.compile, frozen weights, "
    assert lines[name + "bf16"] == ("1.5×", "met")
    assert lines[name + "fp32"] == ("0.9×", "not met")


def chain_rows(capability, times, size=16, precision="fp32"):
    where = {"kind": "cpu", "capability": capability}
    return [
        Row("chain-compiled", CIFAR.name, name, size, precision, median_s=time, environment=where)
        for name, time in times.items()
    ]


def cpu_targets(rows):
    """What is measured, and the verdict, of every target of a CPU that has a value."""
    lines = tables.targets(Results(rows)).lines
    return {line[0]: line[3:] for line in lines if line[1] == "CPU" and line[3] != "–"}


def test_the_time_of_a_step_is_judged_by_the_fastest_of_all_who_compile():
    times = {FROZEN: 8.0, OPENVINO: 6.0, ONNXRUNTIME: 7.0, "ours": 3.6}
    name = (
        "NCSNv2 CIFAR-10 sampling, batch {}: time of a step in fp32, of the fastest of "
        "torch.compile, OpenVINO and ONNX Runtime (AVX-512)"
    )
    assert cpu_targets(chain_rows("AVX512", times))[name.format(16)] == ("0.6×", "not met")
    assert cpu_targets(chain_rows("AVX512", times, size=1))[name.format(1)] == ("0.6×", "met")
    # Who is missing might have been the fastest.
    del times[OPENVINO]
    assert name.format(16) not in cpu_targets(chain_rows("AVX512", times))


def test_what_is_held_to_avx2_has_a_target_of_its_own():
    times = {FROZEN: 8.0, OPENVINO: 6.0, "ours": 3.6}
    (found,) = [
        (line, verdict)
        for line, verdict in cpu_targets(chain_rows("AVX2", times)).items()
        if "time of a step" in line
    ]
    assert found[0].endswith("of the faster of torch.compile and OpenVINO (AVX2)")
    assert found[1] == ("0.6×", "met")


def test_bf16_is_compared_with_bf16():
    def of_amx(capability):
        times = {FROZEN: 2.0, OPENVINO: 4.0, "ours": 1.5}
        rows = chain_rows(capability, times, precision="bf16")
        rows += chain_rows(capability, {FROZEN: 1.0, OPENVINO: 1.0, "ours": 9.0})
        return [value for name, value in cpu_targets(rows).items() if "(AMX)" in name]

    assert of_amx("AVX512 with AMX") == [("0.75×", "met")]
    assert of_amx("AVX512") == []


def test_training_is_judged_by_the_faster_of_plain_and_compiled():
    times = {"eager channels_last": 4.0, COMPILED: 5.0, "ours": 3.0}
    rows = [replace(row, suite="training-compiled") for row in chain_rows("AVX512", times)]
    (found,) = [value for name, value in cpu_targets(rows).items() if "plain PyTorch" in name]
    assert found == ("0.75×", "met")
