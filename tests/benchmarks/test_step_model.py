"""The model of a step: against counts by hand, and the table that is published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ncsn_fast.benchmarks.static import addresses, command, model, sass
from ncsn_fast.benchmarks.static.model import GPUS, Cost

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
STEP = "python -m ncsn_fast.benchmarks.static --step cifar10 --batch 128 --markdown"


def of_command(*arguments):
    """The lines of the command's table by their names; in a process that may compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "ncsn_fast.benchmarks.static", *arguments, "--markdown"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return in_table(done.stdout)


def in_table(text):
    """The lines of a table in Markdown by their names, without the head."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {name.strip("`"): cells for name, *cells in lines[2:]}


@pytest.mark.slow
def test_a_small_network_has_the_launches_and_bytes_that_are_counted_by_hand():
    """NCSNv2 of width 32 for 1024 images 1×8×8, in 16 bits."""
    found = of_command("--step", "digits", "--batch", "1024")
    samples = 1024
    # x is read and written in float32, the network's output read in 16 bits.
    launches, moved, *_ = found["sampler_update"]
    assert (launches, float(moved)) == ("1", round(samples * 64 * (4 + 4 + 2) / 1e6, 2))
    # A pool with its activation and one without in each of four refine blocks: of 64 channels 4×4
    # twice, of 32 channels 4×4 and 8×8. The first ones read one tensor and write two.
    launches, moved, *_ = found["max_pool5"]
    elements = samples * (2 * 64 * 16 + 32 * 16 + 32 * 64)
    assert (launches, float(moved)) == ("8", round(elements * 2 * (3 + 2) / 1e6, 1))
    # Two ends, 16 in residual blocks, 3 shortcuts; in refine blocks 28 before the fusion, 6 in
    # it, 8 in chains of pools, 12 behind.
    convolutions = found["convolutions at 60 % of peak"]
    assert convolutions[0] == str(2 + 16 + 3 + 28 + 6 + 8 + 12)
    total = found.pop("all of these")
    assert int(total[0]) == sum(int(cells[0]) for cells in found.values()) - int(convolutions[0])


@pytest.mark.slow
def test_the_published_step_is_what_the_command_prints():
    page = PAGE.read_text(encoding="utf-8")
    page = page[page.index(STEP) : page.index("A training step, `--train`")]
    published, found = in_table(page), of_command(*STEP.split()[3:-1])
    assert published.keys() == found.keys()
    for name, cells in found.items():
        assert published[name][:2] == cells[:2], name  # launches and bytes
        for ours, theirs in zip(published[name], cells, strict=True):
            if theirs != "–":  # other versions of Triton make somewhat other code
                assert float(ours) == pytest.approx(float(theirs), rel=0.1, abs=0.1), name


def test_a_launch_lasts_as_long_as_what_takes_it_longest():
    gpu = GPUS["H100"]
    every = gpu.multiprocessors
    assert Cost(gpu.bandwidth).seconds(gpu) == 1
    # Four warps' instructions a clock, one wavefront; programs on all multiprocessors.
    assert Cost(0, every, 4, 4 * gpu.clock, 0).seconds(gpu) == 1
    assert Cost(0, every, 4, 0, gpu.clock).seconds(gpu) == 1
    assert Cost(gpu.bandwidth, every, 4, 8 * gpu.clock, 3 * gpu.clock).seconds(gpu) == 3
    # One more program waits for its turn; a program of one warp issues one instruction a clock.
    assert Cost(0, every + 1, 4, 4 * gpu.clock, 0).seconds(gpu) == 2
    assert Cost(0, 1, 1, gpu.clock, 0).seconds(gpu) == 1
    assert Cost(0, 2 * every, 1, gpu.clock, 0).seconds(gpu) == 1


def test_peaks_are_those_of_the_multiprocessors_at_their_clock():
    """Published twice: 4,096 operations a clock and multiprocessor of the H100, 2,048 of A100."""
    for name, each in (("H100", 4096), ("H200", 4096), ("A100", 2048)):
        gpu = GPUS[name]
        assert gpu.peaks["fp16"] == pytest.approx(gpu.multiprocessors * gpu.clock * each, rel=0.01)


def lines(*names):
    """Instructions 16 bytes apart, of a name and what it has to do with."""
    pairs = (name.partition(" ") for name in names)
    return [sass.Instruction(16 * i, None, pair[0], pair[2]) for i, pair in enumerate(pairs)]


PTX = """
.entry k() {
$L__BB0_1:
	ld.global.b32 	%r1, [ %rd1 + 0 ];
	@%p1 bra 	$L__BB0_1;
	ret;
}
"""


@pytest.mark.parametrize(("together", "expected"), [(1, 2 + 8 * 3), (2, 2 + 4 * 4), (4, 2 + 2 * 6)])
def test_a_loop_counts_as_often_as_it_turns(together, expected):
    """Also where the compiler makes several turns at once."""
    code = lines("MOV", *["LDG"] * together, "ADD", "BRA 0x10", "EXIT")
    assert model.executed(code, addresses.Code(PTX), [8.0]) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--step", "cifar100"], "invalid choice: 'cifar100'"),
        (["--step", "cifar10", "--batch", "0"], "'0' is no number of samples: give 1 to 100000"),
        (["--step", "cifar10", "--batch", "-1"], "expected one argument|no number of samples"),
        (["--step", "cifar10", "--batch", "1e3"], "'1e3' is no number of samples"),
        (["--step", "cifar10", "--batch", "9" * 99], "is no number of samples"),
        (["--step", "cifar10", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--batch", "8"], "are of a step: say which, by --step"),
        (["--train"], "are of a step: say which, by --step"),
        (["--step", "cifar10", "--json"], "are of the table of kernels, not of --step"),
    ],
)
def test_wrong_steps_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(arguments)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert any(one in error for one in reason.split("|")), error
