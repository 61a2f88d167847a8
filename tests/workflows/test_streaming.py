"""Reading, network and writing at the same time: same result, bounded memory, honest failures."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cddnet.errors import CddnetError, FormatError
from cddnet.formats import dicom, read_volume, write_volume
from cddnet.runtime.engines import Described
from cddnet.runtime.streaming import InOrder, ahead, batches
from cddnet.volume import CTVolume
from cddnet.workflows import denoise
from cddnet.workflows.demo import demo_series
from cddnet.workflows.denoise import DenoiseOptions, denoise_file, denoise_hu

SPACING_MM = (3.0, 0.7, 0.7)


def ignore(*_):
    """No progress shown."""


class Halver:
    """A network that halves; keeps what it was given."""

    name, threads = "halver", 1

    def __init__(self, batch=1, fail_at=None):
        self.batch, self.fail_at, self.sizes = batch, fail_at, []

    described = Described("halver 1", "cpu", "float32")

    def run(self, image):
        if self.fail_at is not None and sum(self.sizes) >= self.fail_at:
            raise CddnetError("the network broke")
        self.sizes.append(len(image))
        return image / 2


@pytest.fixture
def halver(monkeypatch):
    def use(**options):
        engine = Halver(**options)
        monkeypatch.setattr(denoise, "open_engine", lambda *_, **__: engine)
        return engine

    return use


@pytest.fixture
def series(tmp_path, rng):
    hu = np.rint(rng.normal(40, 30, (11, 33, 47))).astype(np.float32)
    path = tmp_path / "source.mha"
    write_volume(CTVolume.from_hu(hu, SPACING_MM), path)
    return path, hu


# The stream itself


def test_results_come_in_order_and_the_taker_is_never_far_behind():
    begun, taken, lead = [], [], []

    def job(number):
        begun.append(number)
        lead.append(len(begun) - len(taken))
        return number * number

    for value in ahead((lambda n=n: job(n) for n in range(20)), 3):
        time.sleep(0.002)
        taken.append(value)
    assert taken == [n * n for n in range(20)]
    # Three waiting, one just handed over, one counted while it starts.
    assert 2 <= max(lead) <= 5


def test_taker_and_thread_work_at_the_same_time():
    """Each waits until the other is there too; one after the other they would wait for ever."""
    met = threading.Barrier(2, timeout=10)

    def job(number):
        if number:
            met.wait()
        return number

    taken = []
    for value in ahead((lambda n=n: job(n) for n in range(4)), 1):
        taken.append(value)
        if value < 3:
            met.wait()
    assert taken == [0, 1, 2, 3]


def test_an_error_comes_at_its_place_and_stops_the_rest():
    done = []

    def job(number):
        if number == 4:
            raise FormatError("slice 5 is damaged")
        done.append(number)
        return number

    taken = []
    with pytest.raises(FormatError, match="slice 5"):  # noqa: PT012 - the place counts
        for value in ahead((lambda n=n: job(n) for n in range(100)), 2):
            taken.append(value)
    assert taken == [0, 1, 2, 3]
    assert max(done) <= 8


def test_closing_ends_the_work():
    done = []
    stream = ahead((lambda n=n: done.append(n) for n in range(1000)), 2)
    next(stream)
    stream.close()
    count = len(done)
    assert count <= 4
    time.sleep(0.02)
    assert len(done) == count


def test_batches_and_access_out_of_order():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    read = InOrder(iter("abc"), lambda index: f"fresh {index}")
    assert [read(0), read(2), read(1), read(0), read(2)] == ["a", "fresh 2", "b", "fresh 0", "c"]


# Denoising by it


def test_a_file_is_what_its_slices_are_one_by_one(series, tiny_weights, tmp_path):
    source, hu = series
    denoise_file(source, tmp_path / "out.mha", DenoiseOptions(model=tiny_weights), ignore)
    written = read_volume(tmp_path / "out.mha").hu
    one_by_one = np.stack([denoise_hu(one, SPACING_MM, tiny_weights) for one in hu])
    assert np.array_equal(written, one_by_one)
    assert np.abs(written - hu).max() > 1


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_batches_change_nothing(series, halver, tmp_path, batch):
    source, hu = series
    engine = halver(batch=batch)
    seen = []
    options = DenoiseOptions(strength=1.0)
    denoise_file(source, tmp_path / "out.mha", options, lambda *done: seen.append(done))
    assert np.array_equal(read_volume(tmp_path / "out.mha").hu, hu / 2)
    assert sum(engine.sizes) == 11
    assert max(engine.sizes) == min(batch, 11)
    assert seen == [(count, 11) for count in range(1, 12)]


def test_a_dicom_slice_is_decoded_once_and_for_the_check_of_fitness(halver, monkeypatch, tmp_path):
    halver()
    source = read_volume(demo_series())
    decoded = []
    own = dicom.DicomHeaders.read_stored

    def read_stored(self, index):
        decoded.append(index)
        return own(self, index)

    monkeypatch.setattr(dicom.DicomHeaders, "read_stored", read_stored)
    denoise_file(demo_series(), tmp_path / "out", DenoiseOptions(strength=1.0), ignore)
    looked_at = [1, 3, 6, 8, 10]
    assert sorted(decoded) == sorted([*range(source.shape[0]), *looked_at])
    back = read_volume(tmp_path / "out")
    for index in (0, 11):
        measured = ~source.padding(index)
        expected = np.rint(source.read_slice(index)[measured] / 2)
        assert np.abs(back.read_slice(index)[measured] - expected).max() <= 1
        assert np.array_equal(back.padding(index), source.padding(index))


def nothing_left(folder):
    return sorted(path.name for path in folder.iterdir()) == ["source.mha"]


def test_a_network_that_breaks_leaves_nothing(series, halver, tmp_path):
    halver(fail_at=6)
    with pytest.raises(CddnetError, match="the network broke"):
        denoise_file(series[0], tmp_path / "out.mha", DenoiseOptions(strength=1.0), ignore)
    assert nothing_left(tmp_path)


def test_a_reader_that_breaks_leaves_nothing(series, halver, tmp_path):
    halver()
    content = series[0].read_bytes()
    volume = read_volume(series[0])

    def read_slice(index):
        if index == 7:
            raise FormatError("slice 8 is damaged")
        return volume.read_slice(index)

    broken = CTVolume(shape=volume.shape, spacing_mm=SPACING_MM, read_slice=read_slice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise, "read_volume", lambda *_, **__: broken)
        with pytest.raises(FormatError, match="slice 8"):
            denoise_file(series[0], tmp_path / "out.mha", DenoiseOptions(strength=1.0), ignore)
    assert nothing_left(tmp_path)
    assert series[0].read_bytes() == content


def test_a_writer_that_breaks_leaves_nothing_and_no_thread(series, halver, tmp_path):
    halver()
    before = threading.active_count()

    def stop(done, total):
        if done == 3:
            raise OSError(28, "No space left on device")

    with pytest.raises(FormatError, match="the disk is full"):
        denoise_file(series[0], tmp_path / "out.mha", DenoiseOptions(strength=1.0), stop)
    assert nothing_left(tmp_path)
    assert threading.active_count() == before


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from cddnet.volume import CTVolume
from cddnet.runtime.engines import Described
from cddnet.workflows import denoise

class Halver:
    name, batch, threads = "halver", 1, 1
    described = Described("halver 1", "cpu", "float32")
    def run(self, image):
        return image / 2

kept = []
def read_slice(index):
    hu = np.full((512, 512), float(index), np.float32)
    if sys.argv[3] == "keep":
        kept.append(hu)
    return hu

volume = CTVolume(shape=(int(sys.argv[1]), 512, 512), spacing_mm=(1, 1, 1), read_slice=read_slice)
denoise.read_volume = lambda *_, **__: volume
denoise.open_engine = lambda *_, **__: Halver()
source, target = Path(sys.argv[2]), Path(sys.argv[2]) / "out.mha"
options = denoise.DenoiseOptions(strength=1.0, force=True)
denoise.denoise_file(source, target, options, lambda *_: None)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")).split()[1])
"""


def peak_mb(folder, slices, keep=""):
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(slices), str(folder), keep],
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "out.mha").unlink()
    return int(run.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_series(tmp_path):
    """A slice is 1 MB; 100 more of them must not show."""
    short, long = peak_mb(tmp_path / "short", 30), peak_mb(tmp_path / "long", 130)
    assert long <= 1.1 * short
    assert peak_mb(tmp_path / "kept", 130, "keep") > 1.1 * short + 50
