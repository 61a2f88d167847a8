"""Weights of feature networks, from a folder of the user's: found by name, checked by SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cddnet.errors import ModelError
from cddnet.files import read_text
from cddnet.metrics.perceptual import Lpips
from cddnet.models._features import FeatureNetwork, parsed

LPIPS_NETWORKS = ("alexnet", "vgg16")
SUMS = "SHA256SUMS"
_SUFFIXES = (".pth", ".safetensors")


class _File(NamedTuple):
    """stem: what names of such files begin with, or are.  sha256: of the published file."""

    stem: str
    published: str
    sha256: str
    origin: str


# Published with torchvision, whose file names carry the first eight digits.
_BACKBONES = {
    "alexnet": _File(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "torchvision",
    ),
    "vgg16": _File(
        "vgg16",
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "torchvision",
    ),
    "vgg19": _File(
        "vgg19",
        "vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        "torchvision",
    ),
}
# Published with the paper's code and in the wheel of lpips, folder weights/v0.1.
_HEADS = {
    "alexnet": _File(
        "alex",
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "lpips 0.1",
    ),
    "vgg16": _File(
        "vgg",
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "lpips 0.1",
    ),
}


class Unavailable(NamedTuple):
    """Why something cannot be computed, and what to do."""

    reason: str


class _Weights(NamedTuple):
    """state: by key.  described: file name and SHA-256."""

    state: dict[str, Tensor]
    described: str


def load_lpips(folder: Path | None, network: str = "alexnet") -> Lpips | Unavailable:
    """LPIPS with the features of `network`, one of LPIPS_NETWORKS.

    folder: holds the backbone (alexnet-owt-7be5be79.pth, vgg16-397923af.pth) and the linear heads
    (alex.pth, vgg.pth), or the same as .safetensors with the same keys. Nothing is downloaded.
    Raises: ModelError for no such folder, several candidates, a SHA-256 that is neither the
    published one nor stated in a file SHA256SUMS of the folder, or weights that do not fit.
    """
    wanted = _BACKBONES[network], _HEADS[network]
    paths = [_find(folder, file) for file in wanted]
    if None in paths:
        missing = [file for file, path in zip(wanted, paths, strict=True) if path is None]
        return Unavailable(_missing(folder, missing, "--lpips-weights"))
    backbone, heads = (
        _read(path, file) for path, file in zip(paths, wanted, strict=True) if path is not None
    )
    features = FeatureNetwork(network, backbone.state)
    return Lpips(
        network=network,
        features=features,
        heads=_heads(heads, features),
        weights=f"{backbone.described}; {heads.described}",
    )


def load_features(folder: Path | None, network: str, option: str) -> FeatureNetwork | Unavailable:
    """The feature network alone; `option` names the folder in the reason.  Raises as above."""
    file = _BACKBONES[network]
    path = _find(folder, file)
    if path is None:
        return Unavailable(_missing(folder, [file], option))
    return FeatureNetwork(network, _read(path, file).state)


def _missing(folder: Path | None, files: list[_File], option: str) -> str:
    needs = " and ".join(f"{file.published} ({file.origin})" for file in files)
    where = f"give {option} FOLDER" if folder is None else f"put it into {folder}"
    return f"unavailable: needs {needs}; {where}. Weights are never downloaded."


def _find(folder: Path | None, file: _File) -> Path | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder of weights; check the name.")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _SUFFIXES and path.stem in (file.stem, Path(file.published).stem)
    ]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{folder}: {names} are one network; keep one of them.")
    return found[0] if found else None


def _read(path: Path, file: _File) -> _Weights:
    """Checked before it is parsed, and parsed from the bytes that were checked."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: weights cannot be read ({error.strerror}); change the permissions, or copy "
            "them to a folder of yours."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    stated = _stated(path)
    if digest != (stated or file.sha256):
        source = f"{SUMS} beside it states" if stated else f"{file.published} as published has"
        raise ModelError(
            f"{path}: SHA-256 is {digest}, {source} {stated or file.sha256}; fetch the file again. "
            f"If it is yours and meant, state its digest with 'sha256sum {path.name} >> {SUMS}' in "
            "its folder."
        )
    whose = f"stated in {SUMS}" if stated else f"as published by {file.origin}"
    return _Weights(parsed(content, path), f"{path.name}, SHA-256 {digest} {whose}")


def _stated(path: Path) -> str | None:
    """Digest of a file in SHA256SUMS beside it, the last one where there are several."""
    sums = path.with_name(SUMS)
    if not sums.is_file():
        return None
    rows = [line.split(maxsplit=1) for line in read_text(sums).splitlines()]
    digests = [row[0] for row in rows if len(row) == 2 and row[1].lstrip("*") == path.name]
    return digests[-1].lower() if digests else None


def _heads(weights: _Weights, features: FeatureNetwork) -> tuple[Tensor, ...]:
    heads = []
    for number, tap in enumerate(features.taps):
        layer = features.features[tap - 1]
        channels = int(getattr(layer, "out_channels", 0))
        key = f"lin{number}.model.1.weight"
        head = weights.state.get(key)
        if head is None or tuple(head.shape) != (1, channels, 1, 1):
            found = "nothing" if head is None else f"{tuple(head.shape)}"
            raise ModelError(
                f"{weights.described}: {key} is {found}, expected (1, {channels}, 1, 1); give the "
                "heads that belong to the network."
            )
        if float(head.min()) < 0:
            raise ModelError(f"{weights.described}: {key} is negative; this would be no distance.")
        heads.append(head.reshape(-1))
    return tuple(heads)
