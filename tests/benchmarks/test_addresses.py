"""Sectors, wavefronts and turns of loops, against kernels that are counted by hand."""

import pytest

from ncsn_fast.benchmarks.static import addresses

HEAD = """
.visible .entry _kernel(
	.param .u64 .ptr .global .align 1 _kernel_param_0,
	.param .u64 .ptr .global .align 1 _kernel_param_1,
	.param .u32 _kernel_param_2
)
{
	ld.param.b64 	%rd1, [_kernel_param_0];
	ld.param.b64 	%rd2, [_kernel_param_1];
	ld.param.b32 	%r1, [_kernel_param_2];
	mov.u32 	%r2, %tid.x;
	mov.u32 	%r3, %ctaid.x;
"""
LOAD = """
	mul.wide.s32 	%rd3, {index}, {size};
	add.s64 	%rd4, %rd1, %rd3;
	// begin inline asm
	{predicate}ld.global.b32 {{ %r90 }}, [ %rd4 + 0 ];
	// end inline asm
"""


def run(body, number=7, threads=32, programs=(0,)):
    code = addresses.Code(HEAD + body + "\tret;\n}\n")
    return addresses.traffic(code, {0: None, 1: None, 2: number}, threads, programs)


def load(index="%r2", size=4, predicate=""):
    return LOAD.format(index=index, size=size, predicate=predicate)


@pytest.mark.parametrize(
    ("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (128, 32), (0, 1)], ids=str
)
def test_sectors_of_a_warp_are_those_that_its_threads_touch(stride, sectors):
    found = run(load(size=stride))
    assert found.sectors == sectors
    assert found.least_sectors == (4 if stride else 1)
    assert found.loaded == {0: 128}


def test_two_warps_make_two_requests():
    found = run(load(size=0), threads=64)
    assert (found.sectors, found.least_sectors) == (2, 2)


def test_threads_that_are_masked_ask_for_nothing():
    mask = "\tsetp.lt.s32 \t%p1, %r2, %r1;\n"
    found = run(mask + load(predicate="@%p1 "))
    assert (found.loaded, found.sectors) == ({0: 28}, 1)
    assert run(mask + load(predicate="@!%p1 ")).loaded == {0: 100}


def test_a_mask_that_is_in_memory_is_taken_to_be_true():
    body = load() + "\tsetp.lt.s32 \t%p1, %r90, %r1;\n" + load(predicate="@%p1 ")
    assert run(body).loaded == {0: 256}


def test_each_tensor_has_its_bytes():
    store = (
        "\tadd.s64 \t%rd5, %rd2, %rd3;\n\tst.global.v4.b32 [ %rd5 + 0 ], { %r1, %r1, %r1, %r1 };\n"
    )
    found = run(load(size=16) + store)
    assert (found.loaded, found.stored) == ({0: 128}, {1: 512})
    assert (found.sectors, found.least_sectors) == (16 + 16, 4 + 16)


@pytest.mark.parametrize(
    ("stride", "access", "waves", "least"),
    [
        (4, "b32", 1, 1), (8, "b32", 2, 1), (128, "b32", 32, 1), (132, "b32", 1, 1),
        (0, "b32", 1, 1), (16, "v4.b32", 4, 4), (128, "v4.b32", 32, 4), (8, "v2.b32", 2, 2),
    ],
)  # fmt: skip
def test_a_bank_gives_one_word_a_wavefront(stride, access, waves, least):
    """As in CUDA's programming guide: a stride of two words, two wavefronts; of 32 words, 32."""
    lanes = {"b32": "%r9", "v2.b32": "{ %r9, %r9 }", "v4.b32": "{ %r9, %r9, %r9, %r9 }"}
    body = f"""
	mov.b32 	%r5, global_smem;
	mul.lo.s32 	%r6, %r2, {stride};
	add.s32 	%r7, %r5, %r6;
	st.shared.{access} 	[%r7+16], {lanes[access]};
"""
    found = run(body)
    assert (found.shared, found.least_shared) == (waves, least)
    assert found.wavefronts == waves


LOOP = """
	mov.b32 	%r10, 0;
$L__BB0_1:
	{body}
	add.s32 	%r10, %r10, 2;
	setp.lt.s32 	%p2, %r10, %r1;
	@%p2 bra 	$L__BB0_1;
"""


@pytest.mark.parametrize(("number", "turns"), [(1, 1), (7, 4), (8, 4)])
def test_loops_are_run_as_often_as_their_numbers_say(number, turns):
    found = run(LOOP.format(body=load()), number)
    assert found.turns == (turns,)
    assert found.loaded == {0: 128 * turns}


def test_loops_in_loops_count_all_their_turns():
    inner = LOOP.replace("0_1", "0_2").replace("%r10", "%r11").replace("%p2", "%p3").format(body="")
    assert run(LOOP.format(body=inner), 8).turns == (16, 4)


def test_a_loop_that_memory_ends_is_refused():
    with pytest.raises(ValueError, match="ends by what is in memory"):
        run(LOOP.format(body=load()).replace("%r10, %r1;", "%r90, %r1;"))


def test_a_loop_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(addresses, "_MOST_STATEMENTS", 1000)
    with pytest.raises(ValueError, match="more than 1000 statements"):
        run(LOOP.format(body="").replace("%r10, %r10, 2", "%r10, %r10, 0"))


def test_programs_are_averaged():
    body = "\tsetp.eq.s32 \t%p1, %r3, 0;\n" + load(predicate="@%p1 ")
    assert run(body, programs=(0, 1, 2, 3)).loaded == {0: 32}


@pytest.mark.parametrize(
    ("arithmetic", "expected"),
    [
        ("add.s32 \t%r8, %r2, -3;", lambda i: i - 3),
        ("sub.s32 \t%r8, 5, %r2;", lambda i: 5 - i),
        ("mad.lo.s32 \t%r8, %r2, 6, %r1;", lambda i: 6 * i + 7),
        ("shl.b32 \t%r8, %r2, 3;", lambda i: 8 * i),
        ("shr.s32 \t%r8, -100, 3;", lambda i: -13),
        ("shr.u32 \t%r8, -1, 30;", lambda i: 3),
        ("shr.u32 \t%r8, %r2, 32;", lambda i: 0),
        ("xor.b32 \t%r8, %r2, 5;", lambda i: i ^ 5),
        ("div.s32 \t%r8, -7, 2;", lambda i: -3),
        ("rem.s32 \t%r8, %r2, 5;", lambda i: i % 5),
        ("mul.hi.u32 \t%r8, %r2, -1;", lambda i: max(0, i - 1)),
        ("bfe.u32 \t%r8, %r2, 1, 2;", lambda i: i >> 1 & 3),
        ("min.s32 \t%r8, %r2, 9;", lambda i: min(i, 9)),
        ("not.b32 \t%r8, %r2;", lambda i: ~i),
        ("neg.s32 \t%r8, %r2;", lambda i: -i),
        ("cvt.rn.f32.s32 \t%r7, %r2;\n\tmul.f32 \t%r6, %r7, 0f3F000000;\n"
         "\tcvt.rzi.s32.f32 \t%r8, %r6;", lambda i: i // 2),
        ("setp.gt.s32 \t%p4, %r2, 4;\n\tselp.b32 \t%r8, 100, %r2, %p4;",
         lambda i: 100 if i > 4 else i),
        ("mov.b32 \t%r8, 1;\n\tsetp.gt.s32 \t%p4, %r2, 4;\n\t@%p4 mov.b32 \t%r8, 2;",
         lambda i: 2 if i > 4 else 1),
    ],
)  # fmt: skip
def test_arithmetic_is_that_of_ptx(arithmetic, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(addresses, "_sectors", lambda rows, size: seen.append(rows) or (0, 0))
    run("\t" + arithmetic + "\n" + load(index="%r8", size=1))
    assert (seen[0][0] - addresses._FAR).tolist() == [expected(i) for i in range(32)]
