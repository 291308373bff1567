"""The report of ``ncsn-fast evaluate`` in words: tables, and what has to be known beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ncsn_fast.evaluation.inception.network import FEATURES
from ncsn_fast.evaluation.quality import MOST_VALUES
from ncsn_fast.runs.report import in_words
from ncsn_fast.support.parsers import shortened

PUBLISHED = 10_000  # images of each set; figures of fewer are not those that are published
_FEW = 0.005  # data sets hold some images twice
_SURE = 0.5  # of real images of other classes fewer get one
_TITLE, _COLUMN = 44, 20  # characters
Report = Mapping[str, Any]


class Table(NamedTuple):
    """``heads`` of the columns, and ``rows`` of a title and as many values."""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def in_text(report: Report) -> str:
    """The report for a terminal."""
    lines = []
    for table in tables(report):
        lines += ["", *(_line(*cells) for cells in (("", *table.heads), *table.rows))]
    lines += ["", *(f"{title:{_TITLE}}  {value}" for title, value in about(report))]
    return "\n".join([*lines, "", *report["remarks"], ""])


def tables(report: Report) -> list[Table]:
    """The figures, those of real images beside them."""
    found = [Table(_heads(report), [*_inception(report), *_quality(report)])]
    if report["nearness"] is not None:
        found.append(Table(("samples", "reference"), _nearness(report["nearness"])))
    return found


def about(report: Report) -> list[tuple[str, str]]:
    """What was compared with what, and how: without it no figure can be compared with another."""
    reference, drawn, seen = report["reference"], report["sampling"], report["inception"]
    images = reference["images"]
    of = "an unknown number of images" if images is None else f"{images:,} images"
    rows = [
        ("samples", f"{report['samples']}: {number(report):,} images, rounded to 8 bits"),
        ("reference", f"{reference['data']}: {'statistics of ' * reference['statistics']}{of}"),
    ]
    if report["train"] is not None:
        rows.append(("training images", "{data}: {images:,} images".format(**report["train"])))
    if drawn is not None:
        rows += _of_sampling(drawn)
    elif report["identity"] is not None:
        rows.append(("the samples are of", shortened(in_words(report["identity"]))))
    if labels := asked(report):
        rows.append(("of the classes, in turn", shortened(", ".join(labels))))
        if (scale := _drawn_with(report).get("guidance")) is not None:
            rows.append(("guided towards them by", shortened(scale)))
    if seen is not None:
        weights = seen["weights"]
        other = "" if weights["published"] else " (not those of the published figures)"
        rows += [
            ("Inception weights, SHA-256", weights["sha256"] + other),
            ("Inception by", f"{seen['package']}, {seen['dtype']}"),
            ("resized to", seen["resize"]),
        ]
    return rows


def number(report: Report) -> int:
    """Of how many samples the report is."""
    found: int = (report["quality"] or report["inception"])["samples"]["images"]
    return found


def asked(report: Report) -> list[str]:
    """The classes that samples were asked to be of: that of id i is entry i modulo their number.
    None, where they were of no class, or where that is not known."""
    labels = _drawn_with(report).get("labels")
    found = [str(one) for one in labels] if isinstance(labels, list) else []
    return [] if set(found) == {"none"} else found  # as older versions have it


def _drawn_with(report: Report) -> Mapping[str, Any]:
    """What ncsn-fast sample says of samples, those of a network and those of a folder."""
    return report["sampling"]["settings"] if report["sampling"] else report["identity"] or {}


def remarks(report: Report) -> list[str]:
    """What a reader has to know beside the figures."""
    found = []
    if number(report) < PUBLISHED:
        found.append(
            f"The figures depend on the number of images: compare them with others of "
            f"{number(report):,} only. Published ones are of {PUBLISHED:,} or more."
        )
    if report["inception"] is not None:
        found += _of_inception(report)
    if report["quality"] is not None and report["classifier"] is not None:
        found += _of_classes(report)
    near = report["nearness"]
    if near is not None and near["held_out_copies"] > _FEW:
        found.append(
            f"{near['held_out_copies']:.1%} of the reference are training images themselves: give "
            "images that were not trained on, or the figures say nothing of copies."
        )
    if labels := asked(report):
        found.append("Classes were asked for: their proportions are not the network's own.")
    if report["sampling"] and (left := set(labels) - set(labels[: number(report)])):
        found.append(f"There are no samples of {len(left):,} of the classes.")
    if report["train"] is None and not report["reference"]["statistics"]:
        found.append("What real images reach is not known: give training images by --train.")
    if report["quality"] is not None and report["quality"]["samples"]["frechet"] is None:
        found.append(f"No Fréchet distance: the images have more than {MOST_VALUES:,} values.")
    return found


def _line(title: str, *values: str) -> str:
    return f"{title:{_TITLE}}" + "".join(f"{value:>{_COLUMN}}" for value in values)


def _heads(report: Report) -> tuple[str, ...]:
    return ("samples",) if report["train"] is None else ("samples", "training images")


def _of_sampling(drawn: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = drawn["settings"]
    all_of_them = {**settings["default"], **settings["checkpoint"], **settings["given"]}
    denoise = {True: "yes", False: "no", None: f"no setting of {settings['method']}"}
    denoised = all_of_them.get("denoise")
    used = in_words({**settings["checkpoint"], **settings["given"]})
    return [
        ("method", ", ".join(filter(None, [settings["method"], used]))),
        ("network evaluations an image", f"{settings['network_evaluations']:,}"),
        ("denoised in the end", denoise.get(denoised, str(denoised))),
        ("seed", str(drawn["seed"])),
        ("network weights, SHA-256", drawn["checkpoint"]["sha256"]),
        ("network computes in", drawn["precision"]),
    ]


def _inception(report: Report) -> list[tuple[str, ...]]:
    if report["inception"] is None:
        return []
    both = (report["inception"]["samples"], report["inception"]["real"])
    columns = [one for one in both if one is not None]

    def row(title: str, told: Callable[[Any], str]) -> tuple[str, ...]:
        return (title, *(told(one) for one in columns))

    rows = [
        row("images", lambda one: f"{one['images']:,}"),
        row("FID", lambda one: f"{one['fid']:.4f}"),
        row(
            "Inception score (± over parts)",
            lambda one: f"{one['inception_score']:.3f} ± {one['inception_score_deviation']:.3f}",
        ),
    ]
    if columns[0]["kid"] is not None:
        of = f"of {columns[0]['compared']:,} each"
        rows += [
            row(
                f"KID ({of}, ± over subsets)",
                lambda one: f"{one['kid']:.5f} ± {one['kid_deviation']:.5f}",
            ),
            row(f"precision (Inception, {of})", lambda one: f"{one['precision']:.3f}"),
            row(f"recall (Inception, {of})", lambda one: f"{one['recall']:.3f}"),
        ]
    return rows


def _quality(report: Report) -> list[tuple[str, ...]]:
    if report["quality"] is None:
        return []
    samples, real = report["quality"]["samples"], report["quality"]["real"]
    columns = [samples] if real is None else [samples, real]
    of = "pixels" if report["classifier"] is None else "the classifier's features"
    rows: list[tuple[str, ...]] = []
    if report["inception"] is None:
        rows += [("images", *(f"{one['images']:,}" for one in columns))]
    if samples["frechet"] is not None:
        shown = (f"{one['frechet']:.3f}" for one in columns)
        rows += [("pixel Fréchet distance to the reference", *shown)]
    for name in ("precision", "recall"):
        rows += [(f"{name} (k = 3, {of})", *(f"{one[name]:.3f}" for one in columns))]
    if samples["confident"] is not None:
        shown = (f"{one['confident']:.1%}" for one in columns)
        rows += [("given a class with probability above 0.9", *shown)]
        if report["as_asked"] is not None:
            rows += [("given the class that was asked for", f"{report['as_asked']:.1%}")]
        tests = [one["proportions"] for one in columns]
        shown = (f"{one['chi_square']:.1f} (p {one['p_value']:.2g})" for one in tests)
        rows += [(f"classes: χ², {tests[0]['degrees']} degrees of freedom", *shown)]
    return rows


def _nearness(near: Mapping[str, Any]) -> list[tuple[str, ...]]:
    pairs = [(near[name], near[f"{name}_error"]) for name in ("samples", "held_out")]
    means = (f"{mean:.3f} ± {error:.3f}" for mean, error in pairs)
    smallest = (f"{near[name]:.3f}" for name in ("smallest", "held_out_smallest"))
    copies = (f"{near[name]:.1%}" for name in ("copies", "held_out_copies"))
    return [
        ("distance to the nearest training image", *means),
        ("the smallest of these distances", *smallest),
        ("equal to it", *copies),
        ("nearer than 99 % of the reference", f"{near['near']:.1%}", "1.0%"),
    ]


def _of_inception(report: Report) -> list[str]:
    found, images = [], report["reference"]["images"]
    if images is None:
        found.append(
            "The statistics say neither of how many images they are nor of which weights: that is "
            "up to whoever gives them."
        )
    elif images < PUBLISHED:
        found.append(
            f"The reference has {images:,} images: FID is larger the fewer there are; published "
            f"ones are of {PUBLISHED:,} or more."
        )
    if min(number(report), images or PUBLISHED) <= FEATURES:
        found.append(
            f"So few images do not fill the {FEATURES:,} features: such an FID is mostly noise."
        )
    if not report["inception"]["weights"]["published"]:
        found.append(
            "The Inception weights are others than those of published figures: compare with "
            "figures of the same weights only."
        )
    return found


def _of_classes(report: Report) -> list[str]:
    samples, seen = report["quality"]["samples"], report["reference"]["confident"]
    classes, off = report["classifier"]["classes"], samples["proportions"]["deviations"]
    worst = max(range(len(off)), key=lambda i: abs(off[i]))
    share = samples["counts"][worst] / samples["images"]
    named, known = asked(report), shortened(", ".join(classes))
    other = []
    if seen < _SURE:
        other.append("That is less than half of them: the classifier is hardly of such images.")
    if named and not {*named} & {*classes}:
        other.append(
            "None of the classes that were asked for is one of the classifier, which knows "
            f"{known}: is it of such images?"
        )
    there = report["reference"]["counts"][worst] / report["reference"]["compared"]
    return [
        f"Of the reference {seen:.1%} get a class with probability above 0.9.",
        *other,
        f"Farthest from its share is {classes[worst]}: {share:.1%} of the samples, {there:.1%} "
        f"of the reference, {abs(off[worst]):.1f} standard errors.",
    ]


__all__ = ["PUBLISHED", "Table", "about", "in_text", "number", "remarks", "tables"]
