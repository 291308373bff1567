"""Whether the samples of a folder are those that were written, and what to run where not."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncsn_fast.runs.samples import shards
from ncsn_fast.runs.samples.manifest import NAME, Manifest, OtherSamplesError, read_manifest
from ncsn_fast.runs.samples.ranges import Range, number, ranges_of, union, without
from ncsn_fast.runs.samples.stored import WHOLE, reading
from ncsn_fast.support.parsers import shortened
from ncsn_fast.support.progress import Progress

GOOD, DAMAGED, FOREIGN = "good", "damaged", "foreign"
_COMMAND = ["ncsn-fast", "sample"]


def verify(folder: Path, *, progress: bool = False) -> dict[str, Any]:
    """Read every sample of a folder and compare the files with their checksums.

    Returns:
        ``wanted`` and ``good``, numbers of samples; ``missing``, ranges [first, last] of ids that
        are in no good file; ``damaged`` and ``foreign``, why by file; ``run``, the commands that
        make it whole.

    Raises:
        ValueError: for a folder without a manifest, or with a damaged one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that ncsn-fast sample has written")
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(
            f"{folder} holds no {NAME}: it is no folder of ncsn-fast sample, or of an earlier "
            "version of it, where the same command writes one"
        )
    found: dict[str, dict[str, str]] = {GOOD: {}, DAMAGED: {}, FOREIGN: {}}
    good: list[Range] = []
    paths = list(_files(folder))
    with Progress(progress, len(paths), unit="file") as bar:
        for path in paths:
            kind, why, ids = _judged(folder, path, manifest)
            found[kind][path.relative_to(folder).as_posix()] = why
            good += ids
            bar.advance()
    missing = without(manifest.ids, good)
    wrong = [folder / name for kind in (DAMAGED, FOREIGN) for name in found[kind]]
    return {
        "folder": folder,
        "wanted": number(manifest.ids),
        "good": number(union(good)),
        "missing": [[first, stop - 1] for first, stop in missing],
        "damaged": found[DAMAGED],
        "foreign": found[FOREIGN],
        "run": _commands(folder, manifest, wrong, missing),
    }


def _files(folder: Path) -> Iterator[Path]:
    """What should be shards, and samples.npz."""
    for path in sorted((folder / shards.FOLDER).glob("[!.]*")):
        if not path.name.endswith((shards.SUM, shards.PARTIAL)):
            yield path
    if (folder / WHOLE).exists():
        yield folder / WHOLE


def _judged(folder: Path, path: Path, manifest: Manifest) -> tuple[str, str, list[Range]]:
    """What a file is, why, and the ids that are good in it."""
    whole = path == folder / WHOLE
    ids = None if whole else shards.ids_of(path, manifest.layout.format)
    if not whole and ids is None:
        return FOREIGN, "its name is none of a shard of this folder", []
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return FOREIGN, "it is neither a file nor a folder", []
    try:
        with reading(path):
            if ids is None:
                held = ranges_of(shards.read_npz(path, manifest)[0])
            else:
                shards.read(path, ids, manifest)
                held = [ids]
            known = manifest.files.get(path.relative_to(folder).as_posix())
            wanted = known or (None if whole else shards.stored_sum(path))
            found = None if wanted is None else shards.sum_of(path)
    except OtherSamplesError:
        return FOREIGN, "it holds samples of other settings", []
    except ValueError as error:
        return DAMAGED, shortened(error.__cause__ or error), []
    if without(held, manifest.ids):
        return FOREIGN, "it holds samples that are not wanted here", []
    if found != wanted:
        return DAMAGED, "its SHA-256 is not that with which it was written", []
    return GOOD, "", held


def _commands(
    folder: Path, manifest: Manifest, wrong: list[Path], missing: list[Range]
) -> list[str]:
    """What removes the files that are wrong and makes the samples that are missing."""
    commands = [shlex.join(["rm", "-r", *map(str, wrong)])] if wrong else []
    if missing:
        told = manifest.about.get("command")
        ours = isinstance(told, list) and told[:2] == _COMMAND
        words = list(map(str, told)) if ours and told else _COMMAND
        for first, stop in manifest.ids:
            if without([(first, stop)], missing) == [(first, stop)]:
                continue
            begin = ["--first-id", str(first)] if first else []
            ids = ["-n", str(stop - first), *begin]
            commands.append(shlex.join([*words, *ids, "--out", str(folder)]))
    return commands


__all__ = ["verify"]
