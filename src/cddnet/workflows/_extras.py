"""What `pip install cddnet[...]` adds; a test compares it with pyproject.toml."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Name of the extra -> (distributions it brings, what they are for).
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "openvino": (("openvino",), "the fastest engine on a processor"),
    "onnx": (("onnxruntime",), "an engine that starts without torch"),
    "nifti": (("nibabel",), "NIfTI files"),
    "tiff": (("tifffile", "imagecodecs"), "TIFF files"),
    "classical": (("scikit-image",), "non-local means and total variation"),
    "tensorboard": (("tensorboard",), "curves of a training"),
    "node": (
        (
            "pynetdicom",
            "fastapi",
            "uvicorn",
            "prometheus-client",
            "python-multipart",
            "httpx",
            "google-re2",
        ),
        "the node, its page and cddnet view",
    ),
    "archive": (("dask", "distributed", "dicomweb-client"), "cddnet archive"),
}


def installed(distribution: str) -> str:
    """Its version, "" where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def missing(extra: str) -> tuple[str, ...]:
    """Distributions of an extra that are not installed."""
    return tuple(name for name in EXTRAS[extra][0] if not installed(name))
