"""Text of a source stays the bytes it was in everything derived, in every character set."""

import re

import numpy as np
import pytest
from dicom_series import (
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    save_series,
    set_stored,
    write,
)
from pydicom import Dataset, dcmread, uid
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.valuerep import PersonName

from cddnet.formats._dicom_pixels import quiet
from cddnet.formats._dicom_text import shortened
from cddnet.formats._parametric import PREDICTED_NOISE, write_parametric_map
from cddnet.formats._parametric_read import read_parametric_map

KANJI, HANGUL, HANZI = b"\x1b$B6;It\x1b(B", b"\x1b$)C\xb0\xa1\xbd\xbf", b"\x1b$)A\xd0\xd8\xb2\xbf"
# As a scanner writes them: character sets, and text of about ten characters.
TEXTS = {
    "katakana and Latin": ("ISO_IR 13", "ﾑﾈ 5mm".encode("shift_jis")),
    "katakana alone": ("ISO_IR 13", "ﾑﾈ".encode("shift_jis")),
    "yen": ("ISO_IR 13", b"\xd1~5"),
    "western": ("ISO_IR 100", "Sch\xe4del 5mm".encode("latin-1")),
    "central European": ("ISO_IR 101", "Žebra 5mm".encode("iso8859_2")),
    "Greek": ("ISO_IR 126", "Θώρακας".encode("iso8859_7")),
    "Arabic": ("ISO_IR 127", "صدر 5mm".encode("iso8859_6")),
    "Hebrew": ("ISO_IR 138", "חזה 5mm".encode("iso8859_8")),
    "Cyrillic": ("ISO_IR 144", "Грудь 5mm".encode("iso8859_5")),
    "Turkish": ("ISO_IR 148", "Göğüs 5mm".encode("iso8859_9")),
    "Thai": ("ISO_IR 166", "อก 5mm".encode("tis_620")),
    "UTF-8": ("ISO_IR 192", "胸部 Brüche 5mm \U0001fa7b".encode()),
    "GB18030": ("GB18030", "胸部 5mm \U00020000".encode("gb18030")),
    "GBK": ("GBK", "胸部 腜 5mm".encode("gbk")),
    "kanji": ("\\ISO 2022 IR 87", KANJI + b" 5mm"),
    "kanji at the end": ("\\ISO 2022 IR 87", b"5mm " + KANJI),
    "kanji not ended": ("\\ISO 2022 IR 87", b"5mm " + KANJI[:-3]),
    "katakana and kanji": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd1\xc8 " + KANJI.replace(b"\x1b(B", b"\x1b(J") + b" 5mm",
    ),
    "supplementary kanji": ("\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B 5mm"),
    "Korean": ("\\ISO 2022 IR 149", HANGUL + b" 5mm"),
    "Chinese": ("\\ISO 2022 IR 58", HANZI + b" 5mm"),
    "Cyrillic after Latin": ("ISO 2022 IR 6\\ISO 2022 IR 144", b"5mm \x1b-L\xb3\xe0\xe3\xd4\xec"),
    "not stated": ("", "Sch\xe4del".encode("latin-1")),
    "stated wrongly": ("ISO_IR 192", "Sch\xe4del 5mm".encode("latin-1")),
    "unknown": ("ISO_IR 999", "Sch\xe4del".encode("latin-1")),
}
# Not to be changed, of the kinds LO, SH, LT, ST and UT, and of a sequence.
KEPT = ("StudyDescription", "StationName", "PatientComments", "InstitutionAddress", "ProtocolName")
# Those that are looked at on reading.
KEPT += ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
ESCAPE = re.compile("\x1b[ -/]+[0-~]")
SUFFIX = b" cddnet 80% research"


@pytest.fixture(autouse=True)
def _quiet():
    """pydicom warns of texts that are wrong on purpose here."""
    with quiet():
        yield


def put(dataset, keyword, text):
    tag = tag_for_keyword(keyword)
    dataset[tag] = DataElement(tag, dictionary_VR(tag), text)


def labelled(dataset, charset, text):
    dataset.SpecificCharacterSet = charset.split("\\")
    for keyword in (*KEPT, "SeriesDescription"):
        put(dataset, keyword, text)
    dataset.PatientName = PersonName(b"A^" + text)
    asked = Dataset()
    put(asked, "RequestedProcedureDescription", text)
    asked.ScheduledProtocolCodeSequence = [Dataset()]
    put(asked.ScheduledProtocolCodeSequence[0], "CodeMeaning", text)
    dataset.RequestAttributesSequence = [asked]
    return dataset


def raw(dataset, keyword):
    return dataset.get_item(tag_for_keyword(keyword)).value.strip(b" \0")


def decoded(charset, text):
    """What pydicom makes of a text, without the escapes that it leaves in Chinese."""
    return ESCAPE.sub("", decode_bytes(text, convert_encodings(charset.split("\\")), set()))


def shown(text, most):
    """What may be left of a text of which `most` characters are kept."""
    return text[:most].strip()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_copied_byte_for_byte(tmp_path, kind, syntax):
    charset, text = TEXTS[kind]
    dataset = labelled(ct_dataset(), charset, text)
    dataset.file_meta.TransferSyntaxUID = syntax
    set_stored(dataset, np.zeros((9, 9), np.int16))
    write(derive(read(save(dataset, tmp_path / "a.dcm"))), tmp_path / "out.dcm")
    result = dcmread(tmp_path / "out.dcm")
    for keyword in KEPT:
        assert raw(result, keyword) == text
    assert raw(result, "PatientName") == b"A^" + text
    (asked,) = result.RequestAttributesSequence
    assert raw(asked, "RequestedProcedureDescription") == text
    assert raw(asked.ScheduledProtocolCodeSequence[0], "CodeMeaning") == text
    end = b"\x1b(B" if kind == "kanji not ended" else b""
    assert raw(result, "SeriesDescription") == text + end + SUFFIX
    assert ESCAPE.sub("", result.SeriesDescription) == decoded(charset, text) + SUFFIX.decode()


@pytest.mark.parametrize("kind", TEXTS)
def test_our_sentence_follows_the_comments_that_were_there(tmp_path, kind):
    charset, text = TEXTS[kind]
    dataset = labelled(ct_dataset(), charset, text)
    put(dataset, "ImageComments", text)
    put(dataset, "DerivationDescription", text)
    write(derive(read(save(dataset, tmp_path / "a.dcm"))), tmp_path / "once.dcm")
    write(derive(read(tmp_path / "once.dcm")), tmp_path / "twice.dcm")
    for name in ("once", "twice"):
        result = dcmread(tmp_path / f"{name}.dcm")
        for keyword in ("ImageComments", "DerivationDescription"):
            found = raw(result, keyword)
            assert found.startswith(text)
            assert decoded(charset, found).startswith(f"{decoded(charset, text)}; ")
            assert found.count(b"Research use only") == (keyword == "ImageComments")


@pytest.mark.parametrize("repeats", [9, 40])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_long_text_is_cut_between_characters(tmp_path, kind, repeats):
    charset, text = TEXTS[kind]
    text = (text + b"\x1b(B" if kind == "kanji not ended" else text) * repeats
    dataset = labelled(ct_dataset(), charset, text)
    write(derive(read(save(dataset, tmp_path / "a.dcm"))), tmp_path / "out.dcm")
    result = dcmread(tmp_path / "out.dcm")
    described = raw(result, "SeriesDescription")
    kept = shown(decoded(charset, text), 64 - len(SUFFIX))
    assert decoded(charset, described) == kept + SUFFIX.decode()
    assert raw(result, "StudyDescription") == text


@pytest.mark.parametrize("kind", TEXTS)
def test_any_number_of_characters_may_be_kept(kind):
    charset, text = TEXTS[kind]
    header = Dataset()
    header.SpecificCharacterSet = charset.split("\\")
    whole = decoded(charset, text)
    for most in range(len(whole) + 3):
        assert decoded(charset, shortened(text, most, header)) == shown(whole, most)


def test_a_damaged_text_is_cut_too(rng):
    for charset, text in TEXTS.values():
        header = Dataset()
        header.SpecificCharacterSet = charset.split("\\")
        for _ in range(50):
            harmed = bytearray(text * 3)
            for at in rng.integers(0, len(harmed), 4):
                harmed[at] = rng.integers(0, 256)
            for most in (0, 1, 7):
                kept = shortened(bytes(harmed), most, header).removesuffix(b"\x1b(B")
                assert kept in bytes(harmed)
                assert len(kept) <= 4 * most + kept.count(b"\x1b") * 4


@pytest.mark.parametrize("kind", ["katakana and Latin", "kanji", "UTF-8", "stated wrongly"])
def test_enhanced_ct_and_maps_keep_text_too(tmp_path, kind):
    charset, text = TEXTS[kind]
    dataset = labelled(enhanced_dataset(2), charset, text)
    source = read(save(dataset, tmp_path / "a.dcm"))
    write(derive(source), tmp_path / "out.dcm")
    write_parametric_map(derive(source), tmp_path / "map.dcm", PREDICTED_NOISE)
    result, noise = dcmread(tmp_path / "out.dcm"), dcmread(tmp_path / "map.dcm")
    assert raw(result, "StudyDescription") == raw(noise, "StudyDescription") == text
    assert raw(result, "PatientName") == raw(noise, "PatientName") == b"A^" + text
    assert raw(result, "SeriesDescription") == raw(noise, "SeriesDescription") == text + SUFFIX
    assert raw(noise.ContributingEquipmentSequence[0], "Manufacturer") == text
    assert read_parametric_map(tmp_path / "map.dcm").shape == source.shape


def test_slices_may_state_different_character_sets(tmp_path):
    first = labelled(ct_dataset(0), "ISO_IR 100", "Sch\xe4del".encode("latin-1"))
    second = labelled(ct_dataset(1), "ISO_IR 192", "Sch\xe4del".encode())
    write(derive(read(save_series(tmp_path / "ct", [first, second]))), tmp_path / "out")
    results = [dcmread(file) for file in sorted((tmp_path / "out").iterdir())]
    assert {result.SeriesDescription for result in results} == {f"Sch\xe4del{SUFFIX.decode()}"}
    assert [raw(result, "StudyDescription") for result in results] == [
        "Sch\xe4del".encode("latin-1"),
        "Sch\xe4del".encode(),
    ]
