"""What a profile says: time by group of kernels, and by kernel; as Markdown and as a page.

On a GPU these are its kernels, copies and fills; on a CPU the operators that Python calls, each
with those that it calls in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType

from ncsn_fast.device.profiling import DOMAIN
from ncsn_fast.pictures import page

# The first that matches decides. A kernel that inductor fused carries the names of all operations
# in it, so its kind (poi: elementwise, red and per: reductions, tem and mm: products) comes first;
# cuDNN's changes of layout would pass for its convolutions.
_PATTERNS = (
    ("activation, pool, add", r"triton_poi_"),
    ("norms", r"triton_(red|per)_|instance_norm|batch_norm|layer_norm|group_norm|\bbn_|RowwiseMom"),
    ("convolutions", r"triton_(tem|mm)_|xmma|cutlass|fprop|dgrad|wgrad|winograd|splitK"),
    ("update and loss", r"sampler_update|begin_step|perturb|dsm_loss"),
    ("optimizer", r"multi_tensor|[aA]dam|_foreach_|_amp_|lpnorm"),
    (
        "copies",
        r"(?i)copy|memcpy|memset|n[cd]*hw.?to|cat(array|\b)|fill|zero_|clone|transpose"
        r"|to_mkldnn|mkldnn_reorder",
    ),
    ("convolutions", r"(?i)conv|gemm|gemv|\b(add)?mm\b"),
    ("norms", r"(?i)var_?mean|::(var|std|mean)\b|welford|MeanOps"),
    (
        "activation, pool, add",
        r"(?i)elu|silu|sigmoid|activat|pool|upsample|resize|residual_add|\badd_?\b",
    ),
    ("activation, pool, add", r"CUDAFunctor_add|AddFunctor|AddBackward"),
)
GROUPS = (*dict.fromkeys(group for group, _ in _PATTERNS), "other")
# What the operators inside these ranges are for is known, whatever their names.
_GROUP_OF_RANGE = {
    f"{DOMAIN}@update": "update and loss",
    f"{DOMAIN}@optimizer": "optimizer",
    f"{DOMAIN}@data": "other",
}
_LAUNCH = re.compile(r"cu(da)?(Graph)?Launch")
_SHOWN, _LONGEST = 25, 90


@dataclass(frozen=True)
class Row:
    """One kernel or operator.

    Attributes:
        calls: per step.
        microseconds: per step.
    """

    name: str
    group: str
    calls: float
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """A profile of some steps.

    Attributes:
        rows: the slowest first.
        on_gpu: whether the rows are kernels; otherwise operators.
        launches: calls of the host per step that launch something: a kernel, or a whole graph.
        busy: share of the time from the first kernel to the end of the last in which the GPU
            computes; None on a CPU.
        ranges: name → (times entered, µs of the host) per step.
    """

    rows: list[Row]
    on_gpu: bool
    launches: float
    busy: float | None
    ranges: dict[str, tuple[float, float]]

    def by_group(self) -> dict[str, tuple[float, float]]:
        """group → (calls, µs) per step, of the groups that occur, the slowest first."""
        sums = dict.fromkeys(GROUPS, (0.0, 0.0))
        for row in self.rows:
            calls, microseconds = sums[row.group]
            sums[row.group] = (calls + row.calls, microseconds + row.microseconds)
        present = {group: value for group, value in sums.items() if value[0]}
        return dict(sorted(present.items(), key=lambda item: -item[1][1]))


def group_of(name: str) -> str:
    """The group of a kernel or an operator, by its name; "other" where the name says nothing."""
    for group, pattern in _PATTERNS:
        if re.search(pattern, name):
            return group
    return "other"


def read_profile(events: Iterable[Any], steps: int) -> Profile:
    """The events of a torch profiler over so many steps.

    Args:
        events: ``torch.profiler.profile.events()``.
        steps: how many steps they are of.
    """
    events = list(events)
    work = [event for event in events if not _is_range(event)]
    kernels = [event for event in work if event.device_type == DeviceType.CUDA]
    on_host = [event for event in work if event.device_type == DeviceType.CPU]
    timed = kernels or [event for event in on_host if _is_outermost(event)]
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for event in timed:
        key = (event.name, group_of(event.name) if kernels else _group_on_host(event))
        calls, before = sums.get(key, (0, 0.0))
        sums[key] = (calls + 1, before + event.time_range.elapsed_us())
    rows = [Row(*key, calls / steps, time / steps) for key, (calls, time) in sums.items()]
    return Profile(
        sorted(rows, key=lambda row: -row.microseconds),
        on_gpu=bool(kernels),
        launches=sum(bool(_LAUNCH.match(event.name)) for event in on_host) / steps,
        busy=_busy([(e.time_range.start, e.time_range.end) for e in kernels]) if kernels else None,
        ranges=_ranges(events, steps),
    )


def markdown(profile: Profile, title: str, facts: Mapping[str, object]) -> str:
    """The profile as a page: what it is of, groups, ranges, the slowest kernels."""
    parts = [f"# {title}\n", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    parts += ["\n" + summary(profile), "\n" + group_table(profile)]
    if profile.ranges:
        head = "| range | entered per step | host µs per step |\n|---|---|---|"
        lines = [f"| {n} | {calls:g} | {us:.1f} |" for n, (calls, us) in profile.ranges.items()]
        parts.append("\n" + "\n".join([head, *lines]))
    what = "kernel" if profile.on_gpu else "operator"
    head = f"| {what} | group | calls per step | µs per step | share |\n|---|---|---|---|---|"
    total = _total(profile)
    lines = [
        f"| `{_escaped(row.name)}` | {row.group} | {row.calls:.4g} | {row.microseconds:.1f} "
        f"| {row.microseconds / total:.1%} |"
        for row in profile.rows[:_SHOWN]
    ]
    parts.append("\n" + "\n".join([head, *lines]))
    return "\n".join(parts) + "\n"


def html(profile: Profile, title: str, facts: Mapping[str, object]) -> str:
    """The same as a page for a browser, with bars."""
    total, what = _total(profile), "kernel" if profile.on_gpu else "operator"
    groups = profile.by_group()
    parts = [page.paragraph(summary(profile))]
    grouped = [(name, calls, time) for name, (calls, time) in groups.items()]
    parts += [page.heading("Time by group"), _bars("Time by group", "group", grouped, total)]
    if profile.ranges:
        head = ("range", "entered per step", "host µs per step")
        rows = [(name, f"{n:g}", f"{time:,.1f}") for name, (n, time) in profile.ranges.items()]
        parts += [page.heading("Ranges"), page.table("Ranges", rows, head)]
    slowest = profile.rows[:_SHOWN]
    share = sum(row.microseconds for row in slowest) / total
    heading = f"The slowest {what}s" if len(slowest) < len(profile.rows) else f"All {what}s"
    named = [(f"{_short(row.name)} ({row.group})", row.calls, row.microseconds) for row in slowest]
    parts += [page.heading(heading), page.paragraph(f"They take {share:.0%} of the time.")]
    parts += [_bars(heading, what, named, total), page.heading("What was profiled")]
    told = [(name, str(value)) for name, value in facts.items()]
    parts.append(page.table("What was profiled", told, figures=False))
    return page.page(title, parts)


def _bars(
    title: str, what: str, times: Sequence[tuple[str, float, float]], total: float
) -> page.Markup:
    """Names, calls and µs per step, with bars; two of them may be called the same."""
    rows = [
        (name, f"{calls:.4g}", f"{time:,.1f}", f"{time / total:.1%}") for name, calls, time in times
    ]
    head = (what, "calls per step", "µs per step", "share")
    return page.table(title, rows, head, bars=[time for *_, time in times])


def summary(profile: Profile) -> str:
    """The profile in a sentence or two."""
    calls = sum(row.calls for row in profile.rows)
    time = _total(profile) / 1e3
    if profile.busy is None:
        return f"{time:.2f} ms and {calls:.4g} calls of operators per step."
    return (
        f"{time:.3f} ms of kernels per step, {calls:.4g} of them, from {profile.launches:.4g} "
        f"launches by the host. The GPU computes in {profile.busy:.0%} of the time between the "
        "first kernel and the last."
    )


def group_table(profile: Profile) -> str:
    """Time by group as a Markdown table."""
    total = _total(profile)
    lines = [
        f"| {group:21} | {calls:14.4g} | {time:11.1f} | {time / total:5.1%} |"
        for group, (calls, time) in profile.by_group().items()
    ]
    head = f"| {'group':21} | calls per step | µs per step | share |\n|---|---|---|---|"
    return "\n".join([head, *lines])


def _group_on_host(event: Any) -> str:
    for parent in _parents(event):
        if parent.name in _GROUP_OF_RANGE:
            return _GROUP_OF_RANGE[parent.name]
    return group_of(event.name)


def _is_outermost(event: Any) -> bool:
    return all(_is_range(parent) for parent in _parents(event))


def _is_range(event: Any) -> bool:
    return getattr(event, "is_user_annotation", False)


def _parents(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _ranges(events: Iterable[Any], steps: int) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for event in events:
        domain, _, name = event.name.partition("@")
        if domain == DOMAIN and event.device_type == DeviceType.CPU:
            calls, time = found.get(name, (0.0, 0.0))
            found[name] = (calls + 1 / steps, time + event.time_range.elapsed_us() / steps)
    return found


def _busy(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that is inside a span."""
    spans = sorted(spans)
    covered, reached = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - spans[0][0]
    return covered / whole if whole else 1.0


def _total(profile: Profile) -> float:
    return sum(row.microseconds for row in profile.rows) or 1.0


def _escaped(name: str) -> str:
    """A name in a cell of a Markdown table."""
    return _short(name).replace("|", "\\|").replace("`", "'")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


__all__ = [
    "GROUPS",
    "Profile",
    "Row",
    "group_of",
    "group_table",
    "html",
    "markdown",
    "read_profile",
    "summary",
]
