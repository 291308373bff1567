"""Targets are judged by the rows; the page shows them."""

from dataclasses import replace

from helpers.pages import Page

from ncsn_fast.benchmarks.contest.plans import CIFAR, COMPILED, FROZEN, ONNXRUNTIME, OPENVINO
from ncsn_fast.benchmarks.contest.rows import Results, Row
from ncsn_fast.benchmarks.report import page, tables
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


def shown(rows):
    return Page(page.page(Results(rows)))


def of_batches(*sizes):
    return [
        Row("chain", "tiny", name, size, "fp32", median_s=time, rounds=5,
            figures={"images_per_s": size / time}, environment={"torch": "<b>2</b>"})
        for name, time in (("official", 0.5), ("ours", 0.25))
        for size in sizes
    ]  # fmt: skip


def test_the_page_compares_times_at_one_batch_the_fastest_first():
    words = shown(of_batches(16)).words
    assert "Time of a step, tiny, batch 16 who ms ours (fp32) 250 official (fp32) 500" in words
    assert "torch <b>2</b>" in words


def test_the_page_draws_images_per_second_over_several_batches():
    read = shown(of_batches(1, 16))
    drawn = [tag["aria-label"] for name, tag in read.tags if tag.get("role") == "img"]
    assert drawn == [
        "Images per second over the batch. official fp32: from 2 at 1 to 32 at 16; "
        "ours fp32: from 4 at 1 to 64 at 16"
    ]


def test_the_page_has_a_roofline_and_errors_where_they_were_measured():
    rows = [
        Row("hardware", "copy", "ours", 1 << 20, "bytes", median_s=1.0, rounds=5,
            figures={"bandwidth": 20.0}),
        Row("hardware", "matrix product", "ours", 1 << 20, "fp32", median_s=1.0, rounds=5,
            figures={"flops": 2e11}),
        Row("operations", "perturb", "ours", 1 << 20, "fp32", median_s=1e-3, rounds=5,
            figures={"flops_per_element": 2, "bytes_per_element": 8, "bandwidth": 8.0}),
        Row("precision", "digits", "bf16", 0, "", figures={"0.01": 1e-2, "1.0": 1e-3, "2.0": 0}),
    ]  # fmt: skip
    drawn = [tag["aria-label"] for _, tag in shown(rows).tags if tag.get("role") == "img"]
    assert len(drawn) == 2
    assert "operations: ours: from 2.097e+09 at 0.25" in drawn[0]
    assert drawn[1].endswith("bf16: from 0.01 at 0.01 to 0.001 at 1")


def test_errors_that_are_all_zero_are_not_drawn():
    exact = Row("precision", "digits", "fp32", 0, "", figures={"0.01": 0.0, "1.0": 0.0})
    assert "Error of the score" not in shown([exact]).words


def test_targets_without_a_figure_are_shown_on_demand():
    words = shown(chain_rows("AVX512", {FROZEN: 8.0, OPENVINO: 6.0, "ours": 3.6})).words
    measured, rest = words.split("that this run has no figure for", 1)
    assert "2.22× met" in measured
    assert "not yet measured" not in measured
    assert "not yet measured" in rest
