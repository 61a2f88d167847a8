"""Total variation: the image nearest to the noisy one among those with little variation.

Source: Rudin, Osher, Fatemi, Physica D 60, 1992; solved as in Chambolle, J. Math. Imaging Vis. 20,
2004, as scikit-image computes it. Nothing is learned; needs the extra `classical`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from cddnet.models._classical import Classical, Slice, require_positive, restoration

# A tenth of scikit-image's default, with which the number of steps, and so the result, jumps from
# one weight to the next.
_TOLERANCE = 2e-5


@dataclass(frozen=True, kw_only=True)
class Config:
    """weight_per_noise: of the variation, against half the squared change, over the noise of the
    slice.

    Default: the best of `python benchmarks/tune_classical.py`, validation patients.
    """

    weight_per_noise: float = 0.7


def build(config: Config) -> Classical:
    """Raises: ModelError without scikit-image or for an option that is not above 0."""
    require_positive(**asdict(config))
    restoration()  # Refuses now, before a series is read.
    return Classical("total variation", partial(_restore, config))


def _restore(config: Config, hu: Slice, noise_hu: float) -> Slice:
    restored: Slice = restoration().denoise_tv_chambolle(
        hu, weight=config.weight_per_noise * noise_hu, eps=_TOLERANCE
    )
    return restored
