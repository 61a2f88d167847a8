"""Deterministic parameter and input values for parity checks (pure NumPy, no random generator)."""

import zlib

import numpy as np


def uniform(name: str, shape) -> np.ndarray:
    """float64 values in [0, 1), a fixed function of a name and an index."""
    n = int(np.prod(shape)) if len(shape) else 1
    i = np.arange(1, n + 1, dtype=np.float64)
    start = (zlib.crc32(name.encode()) % 100003) / 100003.0
    return np.mod(
        start + i * 0.6180339887498949 + 0.5 * np.sin(i * 0.7548776662466927), 1.0
    ).reshape(shape)


def parameter(key: str, shape) -> np.ndarray:
    """float32 value of the state-dict entry `key`."""
    u = uniform(key, shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return (0.5 + u).astype(np.float32)
    if leaf == "running_mean":
        return (0.2 * u - 0.1).astype(np.float32)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return ((2 * u - 1) * 0.7 * np.sqrt(3.0 / fan_in)).astype(np.float32)
    if leaf == "bias":
        return (0.2 * u - 0.1).astype(np.float32)
    return (0.25 + 0.5 * u).astype(np.float32)  # PReLU slopes, BatchNorm scales, learned scalars
