"""A trunk in air, large enough for its values to be judged."""

import numpy as np

SHAPE = (2, 96, 112)
SPACING_MM = (5.0, 2.0, 2.0)
# Half axes and centre as shares of the half sides, and HU: fat, muscle, two lungs, spine.
PARTS = (
    ((0.8, 0.9), (0, 0), -100),
    ((0.7, 0.8), (0, 0), 50),
    ((0.35, 0.2), (-0.15, -0.45), -850),
    ((0.35, 0.2), (-0.15, 0.45), -850),
    ((0.1, 0.1), (0.45, 0), 500),
)


def trunk(shape=SHAPE, *, size=1.0, noise_hu=12.0, seed=0):
    """Whole HU (D, H, W) float32.  size: of the trunk, as a share of its usual one."""
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j] / size
    hu = np.full(shape[1:], -1000.0)
    for (half_y, half_x), (centre_y, centre_x), value in PARTS:
        hu[((y - centre_y) / half_y) ** 2 + ((x - centre_x) / half_x) ** 2 <= 1] = value
    noise = np.random.default_rng(seed).normal(0, noise_hu, shape)
    return np.rint(hu + noise).astype(np.float32)
