"""A deflated data set may not become far more than its file; that is found in little memory."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from dicom_series import read, save, set_stored
from pydicom import dcmread, uid
from test_dicom_syntaxes import source

from cddnet.errors import DicomError
from cddnet.formats._dicom_deflated import ALWAYS_ALLOWED_BYTES, LARGEST_RATIO, require_bounded
from cddnet.formats._dicom_pixels import read_stored
from cddnet.formats._dicom_scan import read_header


@pytest.fixture
def deflated(tmp_path):
    """A slice in a deflated file, and its stored values."""
    dataset, stored = source(12, False)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    set_stored(dataset, stored)
    return save(dataset, tmp_path / "a.dcm"), stored


def parts(file):
    """What stands before the deflated data set, and the data set itself."""
    content = file.read_bytes()
    # Preamble, prefix, the group length's element, and what it counts.
    behind = 144 + dcmread(file, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return content[:behind], zlib.decompress(content[behind:], -zlib.MAX_WBITS)


def with_appended(file, count):
    """The file with a private element of so many zeros behind its pixels."""
    head, plain = parts(file)
    more = b"\xfd\x7f\x01\x10OB\0\0" + count.to_bytes(4, "little")
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [head, stream.compress(plain + more)]
    zeros = bytes(1 << 20)
    pieces += [
        stream.compress(zeros[: min(len(zeros), count - n)]) for n in range(0, count, 1 << 20)
    ]
    file.write_bytes(b"".join([*pieces, stream.flush()]))
    return len(plain) + len(more) + count


@pytest.mark.parametrize("read_it", [read, read_header, read_stored])
def test_a_bomb_is_refused_in_little_memory(read_it, deflated):
    file, _ = deflated
    size = with_appended(file, 4 * ALWAYS_ALLOWED_BYTES)
    assert size > 100 * file.stat().st_size
    tracemalloc.start()
    with pytest.raises(DicomError, match=r"a\.dcm: its deflated data set.*export it"):
        read_it(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ALWAYS_ALLOWED_BYTES


def test_a_bomb_without_a_preamble_is_refused_too(deflated):
    file, _ = deflated
    with_appended(file, ALWAYS_ALLOWED_BYTES)
    file.write_bytes(file.read_bytes()[132:])
    with pytest.raises(DicomError, match="deflated"):
        read_stored(file)


def test_what_stays_below_the_limit_is_read(deflated):
    """Many times its file, but not much: as of a slice of air."""
    file, stored = deflated
    size = with_appended(file, ALWAYS_ALLOWED_BYTES // 2)
    assert size > LARGEST_RATIO * file.stat().st_size
    np.testing.assert_array_equal(read_stored(file), stored)
    np.testing.assert_array_equal(read(file).read_slice(0), stored - 1024.0)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_is_exact(extra, deflated, monkeypatch):
    file, stored = deflated
    _, plain = parts(file)
    monkeypatch.setattr("cddnet.formats._dicom_deflated.ALWAYS_ALLOWED_BYTES", len(plain) - extra)
    monkeypatch.setattr("cddnet.formats._dicom_deflated.LARGEST_RATIO", 0)
    if extra:
        with pytest.raises(DicomError, match="deflated"):
            read_stored(file)
    else:
        np.testing.assert_array_equal(read_stored(file), stored)


def test_a_large_file_may_become_twenty_times_as_much(deflated, monkeypatch):
    file, stored = deflated
    _, plain = parts(file)
    assert len(plain) < LARGEST_RATIO * file.stat().st_size
    monkeypatch.setattr("cddnet.formats._dicom_deflated.ALWAYS_ALLOWED_BYTES", 0)
    np.testing.assert_array_equal(read_stored(file), stored)


def test_other_files_are_not_inflated_and_stay_at_their_start(tmp_path):
    dataset, stored = source(12, False)
    set_stored(dataset, stored)
    with save(dataset, tmp_path / "a.dcm").open("rb") as file:
        require_bounded(file, "a.dcm")
        assert file.tell() == 0
    empty = io.BytesIO()
    require_bounded(empty, "empty")
    assert empty.tell() == 0
