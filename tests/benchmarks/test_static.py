"""What the GPU kernels are compiled to, without a GPU, and how that is counted."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import ncsn_fast as nf
from ncsn_fast.benchmarks.static import command as static
from ncsn_fast.benchmarks.static import recording, sass, steps
from ncsn_fast.benchmarks.static import rows as tables
from ncsn_fast.benchmarks.static import variants as static_variants
from ncsn_fast.benchmarks.static.sass import Access
from ncsn_fast.benchmarks.suites import operations
from ncsn_fast.training.log import LossSums
from ncsn_fast.training.step import TrainingStep

KERNELS = Path(__file__).parents[2] / "kernels" / "triton"
QUADS = ("sampler_update", "perturb", "dsm_loss")
FIELDS = [
    "kernel", "variant", "target", "registers", "stack", "local", "spills", "shared", "barriers",
    "sass_per_element", "budget", "ld_width", "st_width", "bytes_per_element",
    "min_bytes_per_element", "sectors", "wavefronts",
]  # fmt: skip


@pytest.fixture(scope="session")
def command():
    """The finished command; in a process of its own, since the interpreter rules out compiling."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "ncsn_fast.benchmarks.static", "--json", "--quick"],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="session")
def rows(command):
    assert command.stdout, command.stderr
    return [tables.Row(**row) for row in json.loads(command.stdout)]


@pytest.fixture(scope="session")
def variants():
    return static.all_variants()


@pytest.fixture(scope="session")
def wide_rows(rows):
    """Of sampling and training, on NVIDIA, where whole quads are addressed."""
    return [r for r in rows if r.kernel in QUADS and r.ld_width and r.variant != "strided"]


@pytest.mark.slow
def test_each_kernel_is_within_its_budget(command, rows, variants):
    assert tables.check(rows, variants) == []
    assert (command.returncode, command.stderr) == (0, "")


@pytest.mark.slow
def test_the_instructions_of_every_budget_are_counted_on_sm_90(rows, variants):
    counted = {(r.kernel, r.variant) for r in rows if r.target == "sm_90" and r.sass_per_element}
    assert counted == {key for key, v in variants.items() if v.budget.instructions}


@pytest.mark.slow
def test_nothing_is_kept_on_a_stack(rows):
    for row in rows:
        assert (row.stack, row.spills, row.local or 0) == (0, 0, 0), row


@pytest.mark.slow
def test_update_and_perturbation_share_no_memory_and_do_not_wait(wide_rows):
    for row in wide_rows:
        if row.kernel != "dsm_loss":
            assert (row.shared, row.barriers) == (0, 0), row


@pytest.mark.slow
def test_accesses_take_128_bits_of_fp32_and_64_of_fp16(wide_rows):
    assert {row.kernel for row in wide_rows} == set(QUADS)
    for row in wide_rows:
        for kind, bits in [*row.ld_width.items(), *row.st_width.items()]:
            # Of an even number of channels side by side two quads of 16 bits go together.
            together = 2 if re.fullmatch("channels_last [248]", row.variant) else 1
            wanted = {"fp32": 128, "fp16": 64 * together, "bf16": 64 * together, "i1": 32}
            assert bits == wanted[kind], row


@pytest.mark.slow
def test_each_tensor_is_moved_once(rows, variants):
    measured = [row for row in rows if row.bytes_per_element is not None]
    assert {row.kernel for row in measured} >= set(QUADS)
    for row in measured:
        if row.min_bytes_per_element is None or not variants[row.kernel, row.variant].budget.once:
            continue
        assert row.bytes_per_element == row.min_bytes_per_element, row
    update = {r.variant: r.bytes_per_element for r in measured if r.kernel == "sampler_update"}
    assert (update["plain"], update["history"], update["everything"]) == (10, 18, 33)


@pytest.mark.slow
def test_words_of_32_bits_make_all_the_noise(rows):
    """A shift beyond a word's bits is undefined: a compiler once left Philox out because of it."""
    code = {r.variant: r.sass_per_element for r in rows if r.target == "sm_90"}
    assert code["32-bit words"] > 4 * code["no noise"]


@pytest.mark.slow
def test_every_kernel_is_compiled_for_all_five_targets(rows):
    source = "".join(path.read_text(encoding="utf-8") for path in KERNELS.glob("*.py"))
    kernels = set(re.findall(r"^def _(\w+)_kernel\(", source, re.MULTILINE))
    targets = {"sm_80", "sm_90", "sm_100", "sm_120", "gfx942"}
    assert kernels >= {*QUADS, "begin_step"}
    compiled = {(row.kernel, row.target) for row in rows}
    assert compiled == {(kernel, target) for kernel in kernels for target in targets}


@pytest.mark.slow
def test_amd_gets_no_scratch_and_the_fields_it_has_no_answer_to_are_null(rows):
    amd = [row for row in rows if row.target == "gfx942"]
    assert amd
    for row in amd:
        assert row.registers > 0
        assert (row.stack, row.spills) == (0, 0), row
        assert row.local is row.sass_per_element is row.ld_width is row.bytes_per_element is None


@pytest.mark.slow
def test_the_fields_are_those_that_are_documented(command):
    for row in json.loads(command.stdout):
        assert list(row) == FIELDS
    assert all(re.search(rf"\b{name}\b", tables.__doc__) for name in FIELDS)


@pytest.mark.slow
def test_the_tables_have_a_line_for_each_row(rows, variants):
    lines = tables.table(rows).splitlines()
    assert lines[0].split() == FIELDS
    assert len(lines) == 1 + len(rows)
    lines = tables.markdown(rows).splitlines()
    assert len(lines) == 2 + len(variants)
    assert any(line.startswith("| `sampler_update` | plain | ") for line in lines)
    assert len({line.count("|") for line in lines}) == 1


SIGMAS = (1.0, 0.5, 0.2)
LANGEVIN = {"method": "annealed_langevin", "step_size": 1e-3, "steps_per_level": 1}


def half(layout, kind="normalized", condition="label", **more):
    """A network that answers in float16, as they do on a GPU."""

    def answer(x, told=None):
        return x.half().contiguous(memory_format=layout)

    return nf.Score(answer, kind, condition, sigmas=SIGMAS, **more)


def sample(score, shape=(3, 32, 32), call=None, **settings):
    sampler = nf.Sampler(score, shape, **{"graph": False, **LANGEVIN, **settings})
    sampler(2, seed=0, **(call or {}))


def train(layout, **settings):
    config, net = nf.TrainConfig(batch_size=2, **settings), network(layout)
    TrainingStep(net, net, LossSums(len(SIGMAS), torch.device("cpu")), config)()


def network(layout):
    net = nf.NCSNv2(channels=3, image_size=32, ngf=4, sigmas=SIGMAS)
    return net.to(memory_format=layout)


INPAINTING = {"mask": torch.ones(32, 32), "known": torch.zeros(3, 32, 32)}
OTHER = {"step_size": None, "steps_per_level": None}  # methods than annealed Langevin
LAYOUTS = (torch.contiguous_format, torch.channels_last)
STEPS = {
    "a chain": lambda to: sample(half(to)),
    "fp32": lambda to: sample(network(to), precision="fp32"),
    "bf16": lambda to: sample(network(to), precision="bf16"),
    "fp16": lambda to: sample(network(to), precision="fp16"),
    "Euler": lambda to: sample(half(to), method="euler", **OTHER),
    "Heun": lambda to: sample(half(to), method="heun", **OTHER),
    "2M": lambda to: sample(half(to), method="dpmpp_2m", **OTHER),
    "Euler, held": lambda to: sample(half(to, condition="none"), method="euler", **OTHER),
    "2M, held": lambda to: sample(half(to, condition="none"), method="dpmpp_2m", **OTHER),
    "scaled": lambda to: sample(half(to, "denoiser", "c_noise", sigma_data=0.5)),
    "guidance": lambda to: sample(half(to), call={"guidance": lambda x, n, sigma, row: x}),
    "clip": lambda to: sample(half(to), call={"clip": 1.0}),
    "inpainting": lambda to: sample(half(to), call=INPAINTING),
    "given noise": lambda to: sample(
        half(to), call={"noise": lambda row: torch.zeros(2, 3, 32, 32)}
    ),
    "training": lambda to: train(to),
    "training, fp16, weighted": lambda to: train(to, precision="fp16", anneal_power=1.0),
    "training, bf16": lambda to: train(to, precision="bf16"),
}


def of_the_engine(call):
    """The launches of sampling and training that a call makes."""
    with steps.as_on_a_gpu():
        return [one for one in recording.launches(call) if one.name in QUADS]


@pytest.fixture(scope="module")
def compiled_for():
    """What the kernels of sampling and training are compiled for."""
    return {variant.launch().signature for variant in static_variants.variants()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", STEPS)
def test_what_the_engine_launches_is_compiled(name, layout, compiled_for):
    found = of_the_engine(lambda: STEPS[name](layout))
    assert found
    for launch in found:
        assert launch.signature in compiled_for


@pytest.mark.parametrize("case", operations.CASES[:4], ids=lambda case: case.name)
def test_what_is_benchmarked_is_what_the_engine_launches(case, compiled_for):
    tensors = case.make(2 * 3 * 32 * 32, torch.float16, torch.device("cpu"))
    with torch.no_grad():
        found = of_the_engine(lambda: case.ours(tensors, "triton"))
    assert {launch.signature for launch in found} <= compiled_for
    assert sum(launch.bytes_per_element for launch in found) == case.bytes_per_element


QUAD_VARIANTS = {(one.kernel, one.name): one for one in static_variants.variants()}


def plain(**changes):
    """A row that keeps within its budget, but for the changes."""
    wide = {"fp32": 128, "fp16": 64}
    row = tables.Row(
        "sampler_update", "plain", "sm_90", 40, 0, 0, 0, 0, 0, 45, 45, wide, wide, 12, 12, 1, None
    )
    return dataclasses.replace(row, **changes)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stack": 8}, "stack is 8, at most 0 allowed"),
        ({"stack": 8, "target": "gfx942"}, "stack is 8, at most 0 allowed"),
        ({"local": 4}, "local is 4, at most 0 allowed"),
        ({"spills": 2}, "spills is 2, at most 0 allowed"),
        ({"shared": 16}, "shared is 16, at most 0 allowed"),
        ({"barriers": 1}, "barriers is 1, at most 0 allowed"),
        ({"sass_per_element": 45.1}, "sass_per_element is 45.1, at most 45 allowed"),
        ({"sass_per_element": None}, "sass_per_element is None, at most 45 allowed"),
        ({"ld_width": {"fp32": 64}}, "ld_width of fp32 is 64, 128 wanted"),
        ({"st_width": {"fp16": 16}}, "st_width of fp16 is 16, 64 wanted"),
        ({"bytes_per_element": 16}, "bytes_per_element is 16, not 12"),
    ],
)
def test_what_exceeds_a_budget_is_named(changes, fault):
    assert tables.check([plain()], QUAD_VARIANTS) == []
    row = plain(**changes)
    assert tables.check([row], QUAD_VARIANTS) == [f"sampler_update, plain, {row.target}: {fault}"]


def test_the_command_says_that_it_cannot_compile_under_the_interpreter(monkeypatch, capsys):
    monkeypatch.setattr(static.launch, "INTERPRETED", True)
    with pytest.raises(SystemExit):
        static.main(["--json"])
    assert "TRITON_INTERPRET: unset it" in capsys.readouterr().err


SASS = """
		Function : _kernel
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000e220000000800 */
        /*0010*/                   NOP ;                              /* 0x0000000000007918 */
        /*0020*/              @!P0 LDG.E.128 R8, desc[UR6][R2.64] ;   /* 0x0000000602088981 */
        /*0030*/               @P1 BRA 0x50 ;                         /* 0x0000000000001947 */
        /*0040*/                   LDG.E.U16 R4, desc[UR6][R4.64] ;   /* 0x0000000604047981 */
        /*0050*/               @P0 EXIT ;                             /* 0x000000000000094d */
        /*0060*/                   STG.E desc[UR6][R2.64+0x4], R8 ;   /* 0x0000000802007986 */
        /*0070*/                   EXIT ;                             /* 0x000000000000794d */
        /*0080*/                   BRA 0x80;                          /* 0xfffffffc00fc7947 */
        /*0090*/                   NOP;                               /* 0x0000000000007918 */
"""


def test_instructions_are_counted_to_the_first_exit_that_all_threads_take():
    run = sass.straight_line(sass.instructions(SASS))
    assert [line.opcode for line in run] == ["LDC", "LDG", "BRA", "LDG", "EXIT", "STG", "EXIT"]
    assert [line.predicate for line in run][:3] == [None, "!P0", "P1"]


@pytest.mark.parametrize(
    ("branch", "reason"),
    [
        ("BRA 0x20", "BRA at 0x0030 is a branch backward"),
        ("BRA 0x30", "BRA at 0x0030 is a branch backward"),
        ("BRX R4 -0x20", "BRX at 0x0030 is a branch backward, or to who knows where"),
        ("BRA 0x80", "BRA at 0x0030 leaves the instructions that are counted"),
        ("CALL.REL.NOINC 0x80", "CALL.REL.NOINC at 0x0030 is a call"),
    ],
)
def test_loops_and_calls_are_not_counted(branch, reason):
    code = sass.instructions(SASS.replace("BRA 0x50", branch))
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        sass.straight_line(code)


def test_code_without_an_end_is_not_counted():
    code = sass.instructions(SASS.replace("        EXIT", "     @P2 EXIT"))
    with pytest.raises(ValueError, match="no unpredicated EXIT"):
        sass.straight_line(code)


LOOP = SASS.replace("BRA 0x50", "BRA 0x10")


def test_a_loop_is_counted_from_where_it_begins_to_its_branch():
    assert [line.opcode for line in sass.loop_body(sass.instructions(LOOP))] == ["LDG", "BRA"]


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        (SASS, "there is no loop"),
        (LOOP.replace("LDG.E.U16 R4, desc[UR6][R4.64]", "BRA 0x10"), "has a loop in it"),
        (LOOP.replace("LDG.E.128 R8, desc[UR6][R2.64]", "CALL.REL.NOINC 0x80"), "is a call"),
    ],
)
def test_what_does_not_loop_once_is_not_counted(listing, reason):
    with pytest.raises(ValueError, match=reason):
        sass.loop_body(sass.instructions(listing))


def test_notes_on_scheduling_are_no_operands():
    noted = "        /*1290*/     @P0 BRA 0x12c0     &req={0} &rd=0x1    ?trans6;  /* 0x000 */"
    assert sass.instructions(noted) == [(0x1290, "P0", "BRA", "0x12c0")]


def test_the_width_of_an_access_is_read_off_its_name():
    accesses = sass.sass_accesses(sass.instructions(SASS))
    assert accesses == Counter([Access("ld", 128), Access("ld", 16), Access("st", 32)])


def test_resources_are_read():
    usage = " Function _kernel:\n  REG:76 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:688 TEXTURE:0"
    assert sass.resources(usage)["REG"] == 76
    assert sass.resources(usage)["STACK"] == 8


PTX = """
.visible .entry _kernel(
	.param .u64 .ptr .global .align 1 _kernel_param_0,
	.param .u64 .ptr .global .align 1 _kernel_param_1,
	.param .u32 _kernel_param_2
)
	ld.param.b64 	%rd1, [_kernel_param_0];
	ld.param.b64 	%rd2, [_kernel_param_1];
	ld.param.b32 	%r1, [_kernel_param_2];
	setp.lt.u32 	%p1, %r9, %r1;
	mul.wide.u32 	%rd3, %r1, 16;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	// begin inline asm
	@%p1 ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd4 + 0 ];
	// end inline asm
	@%p1 st.global.b16 [ %rd5 + 0 ], { %rs1 };
	ret;
"""


def test_an_access_is_followed_back_to_its_pointer():
    accesses = sass.ptx_accesses(PTX)
    assert accesses == {0: {Access("ld", 128): 1}, 1: {Access("st", 16): 1}}


def test_an_address_of_two_pointers_is_refused():
    with pytest.raises(ValueError, match=r"parameters \[0, 1\]: one pointer was expected"):
        sass.ptx_accesses(PTX.replace("%rd2, %rd3;", "%rd2, %rd4;"))


def test_widths_are_those_of_the_tensors_asked_for():
    code = sass.instructions(SASS.replace("STG.E ", "STG.E.U16 "))
    assert sass.widths(PTX, code, {0: "fp32", 1: "fp16"}) == ({"fp32": 128}, {"fp16": 16})
    assert sass.widths(PTX, code, {0: "fp32"}) == ({"fp32": 128}, {})


def test_an_access_that_the_machine_code_splits_is_refused():
    code = sass.instructions(SASS.replace("LDG.E.128", "LDG.E.64"))
    with pytest.raises(ValueError, match="accesses in PTX but not in SASS"):
        sass.widths(PTX, code, {0: "fp32"})


def test_the_metadata_of_amds_assembly_is_read():
    text = (
        "\ts_barrier\n  - .agpr_count:     0\n    .private_segment_fixed_size: 16\n    .name: k\n"
    )
    found = sass.amd_resources(text)
    assert found == {"agpr_count": 0, "private_segment_fixed_size": 16, "barriers": 1}
