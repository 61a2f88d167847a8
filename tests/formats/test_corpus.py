"""Files that once made a reader fail, each with what is to happen now.

They were found by `benchmarks/fuzz.py`; a file's name begins with the target that it failed. `None`
stands for a volume, anything else is part of the refusal. To run a new one: put it into `corpus/`.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_series import ct_dataset, save

from cddnet.config import TrainConfig, load_config
from cddnet.errors import CddnetError, SeriesChoiceError
from cddnet.formats import read_volume

CORPUS = Path(__file__).parent / "corpus"
LARGEST_BYTES, LARGEST_CORPUS_BYTES = 20_000, 1 << 20
WINDOW_HU = (-1000.0, 1000.0)
OUTCOMES: dict[str, str | None] = {
    "config_5000_digits.yaml": "holds a number of 5000 characters",
    "config_a_billion_values.yaml": "is nested more than",
    "config_deep.yaml": "is nested more than",
    "config_float_of_text.yaml": "cannot be read as YAML",
    "config_holds_itself.yaml": "is nested more than",
    "config_no_such_date.yaml": "cannot be read as YAML",
    "config_no_such_time.yaml": "cannot be read as YAML",
    "config_timestamp_of_nothing.yaml": "cannot be read as YAML",
    "config_whole_number_of_nothing.yaml": "cannot be read as YAML",
    "dicom_image_type_is_a_number.dcm": "is no CT image",
    "dicom_image_type_is_a_sequence.dcm": "modality not stated",
    "dicom_jpeg_of_no_version.dcm": "is damaged or cut short",
    "dicom_jpeg_that_ends_the_decoder.dcm": "is damaged or cut short",
    "dicom_kernel_is_a_number.dcm": "is no CT image",
    "dicom_modality_is_a_sequence.dcm": "modality not stated",
    "dicom_no_rows.dcm": "a slice of 0 x 7 pixels",
    "dicom_slope_beyond_numbers.dcm": "which are no HU",
    "image_npz_header_without_end.npz": "not an array of numbers",
    "image_npz_shape_of_text.npz": "not an array of numbers",
    "image_png_chunk_of_no_length.png": "the picture cannot be read",
    "image_tiff_15_bits.tif": None,
    "image_tiff_33_million_pixels.tif": "a slice of 32768 x 1024 pixels",
    "image_tiff_bits_of_text.tif": "the picture cannot be read",
    "image_tiff_deflate_damaged.tif": "the picture cannot be read",
    "image_tiff_keyframe.tif": "the picture cannot be read",
    "image_tiff_no_rows.tif": "a slice of 0 x 11 pixels",
    "image_tiff_no_rows_per_strip.tif": "a slice of 0 x 11 pixels",
    "image_tiff_no_strip.tif": "decodes to (0,)",
    "image_tiff_page_count.tif": "the picture cannot be read",
    "image_tiff_rows_beyond_memory.tif": "a slice of 4294967295 x 11 pixels",
    "image_tiff_several_bits.tif": "the picture cannot be read",
    "image_tiff_several_lengths.tif": "the picture cannot be read",
    "image_tiff_several_samples.tif": "the picture cannot be read",
    "image_tiff_several_widths.tif": "the picture cannot be read",
    "image_tiff_strip_rows.tif": "the picture cannot be read",
    "image_tiff_type_of_width.tif": "the picture cannot be read",
    "image_tiff_without_pages.tif": "holds no picture",
    "nifti_header_cut_short.nii.gz": "header is damaged",
    "nifti_length_below_nothing.nii.gz": "-258 x -258 x 3",
    "nifti_step_beyond_numbers.nii.gz": "the spacing or position is zero or no number",
    "dicom_length_of_another_coding.dcm": "modality not stated",
    "dicom_manufacturer_is_a_number.dcm": "its header is damaged",
    "dicom_patient_of_unknown_kind.dcm": "its header is damaged",
    "dicom_study_of_unknown_kind.dcm": "its header is damaged",
    "image_npz_array_of_48_gigabytes.npz": "would unpack",
    "image_npz_hu_is_no_array.npz": "expected real numbers",
    "image_tiff_pages_in_a_circle.tif": "go round in a circle",
    "image_tiff_strip_beyond_the_file.tif": "bytes of data in a file of 275",
}
FILES = sorted(path.name for path in CORPUS.iterdir())


def read(name):
    if name.endswith(".yaml"):
        load_config(CORPUS / name, TrainConfig)
        return
    with warnings.catch_warnings():
        # Libraries may say what they think of a damaged file.
        warnings.simplefilter("ignore")
        volume = read_volume(CORPUS / name, window_hu=WINDOW_HU)
        for index in {0, volume.shape[0] - 1}:
            hu = volume.read_slice(index)
            assert hu.shape == volume.shape[1:]
            assert min(hu.shape) >= 1
            assert np.isfinite(hu).all()
    assert np.isfinite([*volume.spacing_mm, *volume.origin_mm]).all()


@pytest.mark.parametrize("name", FILES)
def test_what_once_failed_is_read_or_refused(name):
    expected = OUTCOMES[name]
    if expected is None:
        read(name)
        return
    with pytest.raises(CddnetError) as caught:
        read(name)
    assert expected in str(caught.value)


def test_the_corpus_is_small_and_each_file_has_an_outcome():
    assert set(FILES) == OUTCOMES.keys()
    sizes = [(CORPUS / name).stat().st_size for name in FILES]
    assert max(sizes) <= LARGEST_BYTES
    assert sum(sizes) <= LARGEST_CORPUS_BYTES


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("dicom")])
def test_a_sound_slice_beside_it_is_read(name, tmp_path):
    """What is no CT is left out of a folder, however damaged it is."""
    save(ct_dataset(), tmp_path / "sound.dcm")
    (tmp_path / "other.dcm").write_bytes((CORPUS / name).read_bytes())
    try:
        found: object = read_volume(tmp_path).shape
    except SeriesChoiceError:
        # A series of its own, which must not keep the sound one from being read.
        found = read_volume(tmp_path, series=str(ct_dataset().SeriesInstanceUID)).shape
    except CddnetError as error:
        # Of the same series: then the series as a whole is refused, by the file's name.
        found = "other.dcm" in str(error)
    assert found in (True, (1, 31, 45))
