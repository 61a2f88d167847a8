"""Character sets that a header states: the terms of the standard, and no other codec of Python."""

import pytest
from dicom_series import ct_dataset, read, save
from pydicom import Dataset, dcmread
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from cddnet.errors import DicomError
from cddnet.formats._dicom_scan import read_header
from cddnet.formats._dicom_values import LONGEST_VALUE_BYTES, joined_text, texts_of
from cddnet.formats._facts import read_facts


def with_charset(dataset, term, keyword, value, path):
    """A file that states a character set that pydicom would not write, and bytes of a text."""
    dataset.SpecificCharacterSet = "ISO_IR 6"
    placeholder = "#" * len(value)
    setattr(dataset, keyword, placeholder)
    content = save(dataset, path).read_bytes()
    assert len(term) % 2 == 0
    old = b"\x08\x00\x05\x00CS\x08\x00ISO_IR 6"
    assert old in content
    content = content.replace(old, b"\x08\x00\x05\x00CS" + bytes([len(term), 0]) + term.encode())
    path.write_bytes(content.replace(placeholder.encode(), value))
    return path


@pytest.mark.parametrize("term", ["punycode", "utf-7 ", "idna", "UTF-16", "rot_13", "zip_codec "])
def test_a_codec_of_python_is_no_character_set(tmp_path, term):
    path = with_charset(
        ct_dataset(), term, "SeriesDescription", b"A\xe4-+2AA-z", tmp_path / "a.dcm"
    )
    assert read_facts(path).series_description == "A\xe4-+2AA-z"
    assert convert_encodings([term.strip()]) == convert_encodings([""])


def test_neither_is_it_one_in_an_item_of_a_sequence(tmp_path):
    item = Dataset()
    item.CodeMeaning = "Chest"
    anatomy = Dataset()
    anatomy.AnatomicRegionSequence = [item]
    dataset = ct_dataset()
    shared = Dataset()
    shared.FrameAnatomySequence = [anatomy]
    dataset.SharedFunctionalGroupsSequence = [shared]
    item.SpecificCharacterSet = "ISO_IR 6"
    content = save(dataset, tmp_path / "a.dcm").read_bytes()
    assert content.count(b"ISO_IR 6") == 1
    del dataset.BodyPartExamined
    content = save(dataset, tmp_path / "a.dcm").read_bytes().replace(b"ISO_IR 6", b"punycode")
    (tmp_path / "a.dcm").write_bytes(content)
    assert read_facts(tmp_path / "a.dcm").body_part == "Chest"


@pytest.mark.parametrize(
    ("term", "coded", "text"),
    [
        ("ISO_IR 100", "Schädel".encode("latin-1"), "Schädel"),
        ("ISO-IR 100", "Schädel".encode("latin-1"), "Schädel"),
        ("iso ir 144", "Грудь".encode("iso8859-5"), "Грудь"),
        ("ISO_IR 192", "Schädel Грудь".encode(), "Schädel Грудь"),
        ("GB18030 ", "胸部".encode("gb18030"), "胸部"),
    ],
)
def test_terms_of_the_standard_are_read_however_their_blanks_are_written(
    tmp_path, term, coded, text
):
    path = with_charset(ct_dataset(), term, "SeriesDescription", coded, tmp_path / "a.dcm")
    assert read_facts(path).series_description == text


def test_a_long_text_is_cut_before_it_is_decoded_and_kept_as_it_is():
    header = Dataset()
    header.SpecificCharacterSet = "GB18030"
    value = "胸".encode("gb18030") * 500_000
    tag = Tag("SeriesDescription")
    header[tag] = RawDataElement(tag, "UT", len(value), value, 0, False, True)
    header.set_original_encoding(False, True, ["GB18030"])
    assert joined_text(header, "SeriesDescription") == "胸" * (LONGEST_VALUE_BYTES // 2)
    assert header.get_item(tag).value is value


def test_a_text_that_cannot_be_encoded_loses_what_cannot():
    header = Dataset()
    header.SeriesDescription = "Tho\ud800rax\udfff"
    assert texts_of(header, "SeriesDescription") == ("Thorax",)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "SOPClassUID", "FrameOfReferenceUID"])
def test_a_value_of_an_absurd_length_is_damage(tmp_path, keyword):
    path = save(ct_dataset(), tmp_path / "a.dcm")
    dataset = dcmread(path)
    value = b"1" * (LONGEST_VALUE_BYTES + 2)
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, "UT", len(value), value, 0, False, True)
    dataset.save_as(path)
    with pytest.raises(DicomError, match=rf"a\.dcm: .*{keyword} holds 4098 bytes; send or export"):
        read_header(path)
    with pytest.raises(DicomError, match=keyword):
        read(path)
