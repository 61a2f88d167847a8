"""Images over which decoders crash or hang: `info` and `denoise` refuse them by name."""

import re

import pytest

from cddnet.errors import DicomError
from cddnet.formats import _decoder_pool, _dicom_pixels
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
from cddnet.workflows.info import describe
from poisoned import POISONS, TWELVE_BITS, crashing, endless, image


def saved(folder, name, poison):
    folder.mkdir(exist_ok=True)
    path = folder / "poisoned.dcm"
    image(name, poison).save_as(path)
    return path


@pytest.fixture
def blind(monkeypatch):
    """Streams reach the decoder whatever they hold."""
    monkeypatch.setattr(_dicom_pixels, "_require_sound_stream", lambda *_: None)
    monkeypatch.setattr(_decoder_pool, "LIMIT_S", 0.3)


def refused(path, weights, reason):
    (info,) = describe(path)
    assert "poisoned.dcm: " in info.refusal
    assert re.search(reason, info.refusal)
    target = path.parent / "out"
    with pytest.raises(DicomError, match=r"poisoned\.dcm: .*; send or export this image again"):
        denoise_file(path, target, DenoiseOptions(model=weights, force=True), lambda *_: None)
    assert not target.exists()


@pytest.mark.parametrize(("name", "poison"), POISONS.values(), ids=POISONS)
def test_a_poisoned_image_is_refused(tmp_path, tiny_weights, name, poison):
    refused(
        saved(tmp_path / "in", name, poison), tiny_weights, "is damaged or cut short|of 128 bits"
    )


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (crashing, "the decoder crashed or wanted too much memory over its pixel data"),
        (endless, "the decoder did not come to an end over its pixel data"),
    ],
)
@pytest.mark.usefixtures("blind")
def test_a_poison_that_nobody_recognises_is_refused(tmp_path, tiny_weights, poison, reason):
    path = saved(tmp_path / "in", TWELVE_BITS[0], poison)
    refused(path, tiny_weights, reason)
