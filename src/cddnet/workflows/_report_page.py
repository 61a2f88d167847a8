"""A report as one page of HTML that needs no other file."""

# Shapes: H row, W column.

from __future__ import annotations

import base64
import hashlib
import zlib
from importlib.resources import files

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cddnet.volume import SliceHU
from cddnet.workflows import _figures, _tables
from cddnet.workflows._evaluation import Protocol
from cddnet.workflows._report_content import Content
from cddnet.workflows._report_drawings import (
    DIFFERENCE_WINDOW_HU,
    Drawings,
    body_crop,
    place,
    region_of,
    scores_below,
)
from cddnet.workflows._tables import number
from cddnet.workflows.evaluate import REFERENCE

PRESETS_HU = {
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
}
_CHARACTERS_EMBEDDED = 3_700_000
_SLICE_ROWS_SHOWN = 3000


def html(content: Content, drawings: Drawings) -> str:
    """The page as one file: no other file, no network; scripts other than its own may not run."""
    folder = files("cddnet") / "data" / "report"
    environment = Environment(
        loader=FileSystemLoader(str(folder)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = (folder / "viewer.js").read_text(encoding="utf-8")
    evaluation = content.evaluation
    slices = _embedded(content)
    images = [
        (image, row.name, [number(image.values.get(m.name), m.unit) for m in evaluation.metrics])
        for row in _tables.ordered(evaluation)
        for image in row.images
    ]
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        t=_tables,
        complexity=content.complexity,
        data_url=_figures.data_url,
        drawings=drawings,
        embedded={
            "reference": REFERENCE,
            "presets": _presets(evaluation.protocol),
            "difference": DIFFERENCE_WINDOW_HU,
            "slices": slices,
        },
        explained=content.explained,
        images=images[:_SLICE_ROWS_SHOWN],
        images_left_out=max(0, len(images) - _SLICE_ROWS_SHOWN),
        markup=Markup,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
    )


def _presets(protocol: Protocol) -> list[dict[str, object]]:
    """The protocol's window first, under its own name and that of the preset it equals."""
    equal = [name for name, window in PRESETS_HU.items() if window == protocol.window_hu]
    windows = {" = ".join([f"protocol {protocol.name}", *equal]): protocol.window_hu}
    windows |= {name: window for name, window in PRESETS_HU.items() if name not in equal}
    return [{"name": name, "window": window} for name, window in windows.items()]


def _embedded(content: Content) -> list[dict[str, object]]:
    """Slices for the page's own viewer: whole HU, cropped to the body, as many as are not heavy."""
    slices: list[dict[str, object]] = []
    characters = 0
    for item in content.shown:
        crop = body_crop(item.images[REFERENCE])
        images = [
            {
                "name": name,
                "data": encode_slice(crop.of(hu)),
                "scores": ", ".join(scores_below(content.evaluation, name, item)),
            }
            for name, hu in item.images.items()
        ]
        characters += sum(len(image["data"]) for image in images)
        if slices and characters > _CHARACTERS_EMBEDDED:
            break
        slices.append(
            {
                "place": place(item),
                "row": crop.row,
                "column": crop.column,
                "height": crop.height,
                "width": crop.width,
                "pixel_mm": item.pixel_mm,
                "region": region_of(item, crop, content.evaluation.protocol, content.region),
                "images": images,
            }
        )
    return slices


def encode_slice(hu: SliceHU) -> str:
    """Slice (H, W) as whole HU in 16 bits: base64 of deflated differences along the rows.

    The first column differs from the pixel above it; signs are folded into the lowest bit; all low
    bytes come before all high bytes.
    """
    whole = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    left = np.zeros_like(whole)
    left[:, 1:] = whole[:, :-1]
    left[1:, 0] = whole[:-1, 0]
    step = whole - left
    folded = ((step << 1) ^ (step >> 15)).astype("<u2")
    planes = folded.reshape(-1, 1).view(np.uint8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")
