"""How good are generated images? Measures that need no pretrained network.

They work on raw pixels, in float64, and suit small images such as the bundled digits; for photos
the field reports the same Fréchet distance on the features of an Inception network (FID), as
``inception/`` does.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ncsn_fast.evaluation.moments import fit, frechet_distance
from ncsn_fast.evaluation.neighbours import nearest

# Samples of a good network are this little outside [0, 1]; states that are 2x - 1 lie farther out.
_BEYOND = 0.5
_log = logging.getLogger("ncsn_fast")


def pixel_frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to the pixels of two sets of images.

    d² = ‖μ_a - μ_b‖² + tr(C_a + C_b - 2(C_a C_b)^½), the formula of FID (Heusel et al. 2017,
    equation 6) with pixels for features: μ and C are the mean and the unbiased covariance of the
    flattened images. Like FID it is the *squared* distance that is returned, and it depends on the
    number of images (few images: larger), so compare sets of the sizes of a published figure.

    Args:
        a, b: (N_a, ...) and (N_b, ...), floating point, in [0, 1]; at least two images each, and
            the same number D of values per image. Memory and time grow as D² and D³, for
            N < D images as N·D and N²·D.

    Returns:
        d², at least 0, in units of squared pixel values.

    Raises:
        ValueError: for too few images, shapes that differ, or values that are not finite.
    """
    _check_pair(a, b, at_least=2)
    theirs = b.to(a.device) if a.is_cuda else b.cpu()
    return frechet_distance(fit(a), fit(theirs))


def nearest_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance from each image of ``a`` to the nearest image of ``b``.

    Small against the distances between the images of ``b`` themselves, it shows copies; large, it
    shows images unlike any of ``b``. A copy is at exactly 0.

    Args:
        a, b: (N_a, ...) and (N_b, ...), floating point, the same number of values per image.

    Returns:
        float64 (N_a,), on a's device (on the CPU where that has no float64).

    Raises:
        ValueError: for no images, shapes that differ, or values that are not finite.
    """
    _check_pair(a, b, at_least=1)
    return nearest(a, b).distances[:, 0]


def digit_proportions(
    images: Tensor, train_images: Tensor, train_labels: Tensor, *, classes: int = 10
) -> Tensor:
    """Share of each class among the images, as a nearest-neighbour classifier sees them.

    Each image takes the label of the nearest training image (any of equally near ones). On
    the held-out digits this classifier is right 98 times in 100.

    Args:
        images: (N, ...), floating point.
        train_images: (M, ...), floating point, the same number of values per image.
        train_labels: int64 (M,), from 0 to ``classes`` - 1.
        classes: number of classes.

    Returns:
        float64 (classes,) on the CPU; sums to 1.

    Raises:
        ValueError: for no images, shapes that differ, values that are not finite, or labels that
            are not integers from 0 to ``classes`` - 1, one per training image.
    """
    _check_pair(images, train_images, at_least=1, names=("images", "train_images"))
    labels = train_labels.detach().cpu()
    if labels.is_floating_point() or labels.shape != train_images.shape[:1]:
        raise ValueError(
            f"train_labels must be integers of shape ({len(train_images)},), one per training "
            f"image; got {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"train_labels go from {int(labels.min())} to {int(labels.max())}: "
            f"allowed is 0 to {classes - 1} (classes={classes})"
        )
    found = labels[nearest(images, train_images).indices[:, 0].cpu()].long()
    return torch.bincount(found, minlength=classes).double() / len(images)


def _check_pair(
    a: Tensor, b: Tensor, *, at_least: int, names: tuple[str, str] = ("a", "b")
) -> None:
    for name, images in zip(names, (a, b), strict=True):
        if images.ndim < 2 or len(images) < at_least or not images.numel():
            raise ValueError(
                f"{name} has shape {tuple(images.shape)}: needed are at least {at_least} images, "
                "(N, C, H, W) or (N, D)"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"{name} has dtype {images.dtype}: give floating-point images in [0, 1], "
                "e.g. x.float() / 255"
            )
        if not bool(torch.isfinite(images).all()):
            raise ValueError(
                f"{name} holds values that are not finite (NaN or infinity): the chain that made "
                "them has diverged, or the file is damaged"
            )
        low, high = (float(value) for value in torch.aminmax(images))
        if images.ndim == 4 and not (low > -_BEYOND and high < 1 + _BEYOND):
            _log.warning(
                "%s holds values from %.4g to %.4g, images are in [0, 1]: the distance is that of "
                "these values (ncsn_fast.models.space.to_images makes images of states)",
                name,
                low,
                high,
            )
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"{names[0]} holds images of shape {tuple(a.shape[1:])} and {names[1]} of "
            f"{tuple(b.shape[1:])}: bring them to one size first"
        )


__all__ = ["digit_proportions", "nearest_distance", "pixel_frechet_distance"]
