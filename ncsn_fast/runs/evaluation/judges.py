"""By what ``ncsn-fast evaluate`` judges, read and checked before any image is seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ncsn_fast.evaluation.classifier import Classifier, load_classifier
from ncsn_fast.evaluation.inception.network import PUBLISHED, Inception, load_inception
from ncsn_fast.evaluation.inception.statistics import (
    Statistics,
    are_statistics,
    read_statistics,
)
from ncsn_fast.support.files import check_suffix, check_writable

NO_CLASSIFIER = "none"


@dataclass(frozen=True)
class Judges:
    """By what images are judged, and what is known of the reference before any is seen.

    Attributes:
        classifier, inception: None: not by one.
        statistics: of the reference, where they were given in its place.
    """

    classifier: Classifier | None
    inception: Inception | None
    statistics: Statistics | None

    @property
    def by_pixels(self) -> bool:
        """Whether images are compared without Inception too."""
        return self.inception is None or self.classifier is not None


def read_judges(
    reference: str,
    train: str | None,
    classifier: str,
    inception: Path | None,
    sha256: str | None,
    device: str,
) -> Judges:
    """What judges, read from its files.

    Raises:
        ValueError, OSError: for what cannot be read or does not go together.
    """
    if inception is None and sha256 is not None:
        raise ValueError(f"inception_sha256={sha256} is of a file: give it by --inception")
    named = are_statistics(reference)
    if named and inception is None:
        raise ValueError(f"{reference} holds statistics of Inception's features: give --inception")
    if named and (train is not None or classifier != NO_CLASSIFIER):
        raise ValueError(
            f"{reference} holds statistics and no images, which --train and --classifier take: "
            "leave them out, or give the images as --reference"
        )
    judge = None if classifier == NO_CLASSIFIER else load_classifier(classifier)
    statistics = read_statistics(reference) if named else None
    net = None if inception is None else load_inception(inception, device, sha256 or PUBLISHED)
    if statistics is not None and net is not None:
        said = statistics.weights
        if said is not None and said != net.weights.sha256:
            raise ValueError(
                f"{reference} is of Inception weights with the SHA-256 {said}, {inception} has "
                f"{net.weights.sha256}: take the same for both"
            )
    return Judges(judge, net, statistics)


def check_stats_file(path: Path | None, judges: Judges) -> None:
    """Refuse a file of statistics that could not be written, or would replace another's."""
    if path is None:
        return
    if judges.inception is None or judges.statistics is not None:
        why = "there is no --inception" if judges.inception is None else "they are given"
        raise ValueError(f"save_stats={path}: statistics of the reference, but {why}")
    check_suffix(path, (".npz",))
    check_writable(path)
    if path.exists() and not are_statistics(path):
        raise ValueError(f"{path} is there already and holds no statistics: choose another name")


__all__ = ["NO_CLASSIFIER", "Judges", "check_stats_file", "read_judges"]
