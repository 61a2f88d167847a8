"""Non-local means: each pixel becomes the mean of pixels whose surroundings look alike.

Source: Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005, in the fast
form of Darbon et al., ISBI 2008, as scikit-image computes it. Nothing is learned; needs the extra
`classical`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from cddnet.models._classical import Classical, Slice, require_positive, restoration


@dataclass(frozen=True, kw_only=True)
class Config:
    """patch_pixels: side of what is compared.  search_pixels: how far alike patches are sought.
    cutoff_per_noise: difference of patches that is still alike, over the noise of the slice.

    Defaults: the best of `python benchmarks/tune_classical.py`, validation patients.
    """

    patch_pixels: int = 5
    search_pixels: int = 5
    cutoff_per_noise: float = 1.1


def build(config: Config) -> Classical:
    """Raises: ModelError without scikit-image or for an option that is not above 0."""
    require_positive(**asdict(config))
    restoration()  # Refuses now, before a series is read.
    return Classical("non-local means", partial(_restore, config))


def _restore(config: Config, hu: Slice, noise_hu: float) -> Slice:
    # Without its `sigma`, the variance to expect between patches: noise of CT is coloured, and the
    # smaller that was, the higher was the PSNR.
    restored: Slice = restoration().denoise_nl_means(
        hu,
        patch_size=config.patch_pixels,
        patch_distance=config.search_pixels,
        h=config.cutoff_per_noise * noise_hu,
        fast_mode=True,
        preserve_range=True,
    )
    # A slice of one row comes back without it.
    return restored.reshape(hu.shape)
