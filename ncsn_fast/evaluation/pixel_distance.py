"""How far two sets of images are apart, by their pixels, without a network.

It suits small images such as digits; for photos the field reports the same Fréchet distance of the
features of an Inception network (FID), as ``inception/`` does.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ncsn_fast.evaluation.moments import fit, frechet_distance

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
    _check_pair(a, b)
    theirs = b.to(a.device) if a.is_cuda else b.cpu()
    return frechet_distance(fit(a), fit(theirs))


def _check_pair(a: Tensor, b: Tensor) -> None:
    for name, images in (("a", a), ("b", b)):
        if images.ndim < 2 or len(images) < 2 or not images.numel():
            raise ValueError(
                f"{name} has shape {tuple(images.shape)}: needed are at least 2 images, "
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
            f"a holds images of shape {tuple(a.shape[1:])} and b of {tuple(b.shape[1:])}: bring "
            "them to one size first"
        )


__all__ = ["pixel_frechet_distance"]
