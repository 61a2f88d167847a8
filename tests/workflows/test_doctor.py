"""The doctor finds what is broken, says what would help, and asks nobody outside."""

import re
import shutil
import socket
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cddnet.formats import read_volume
from cddnet.runtime import processor, store
from cddnet.runtime.engines import Described
from cddnet.workflows import doctor
from cddnet.workflows._extras import EXTRAS, missing
from cddnet.workflows.doctor import State

CODECS = Path(str(files("cddnet") / "data" / "codecs"))
if sys.version_info >= (3, 11):
    import tomllib


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything, with sockets to other machines forbidden."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_):
            raise AssertionError("the doctor called somebody")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return doctor.examine(tmp_path_factory.mktemp("here"))


def of(findings, what):
    return [finding for finding in findings if finding.what == what]


def test_a_sound_machine_is_healthy_and_every_engine_ran(found):
    assert doctor.healthy(found), doctor.table(found)
    shown = {finding.what: finding.found for finding in found}
    for name in ("torch_eager", "onnx", "openvino"):
        assert float(re.search(r"([\d.]+) ms per slice", shown[f"engine {name}"])[1]) > 0
    assert {finding.what for finding in found} >= set(store.shipped())
    assert shown["codecs"].startswith("15 of 15")
    lines = doctor.table(found).splitlines()
    assert len(lines) >= len(found)
    assert lines[0].startswith("ok     cddnet")


def test_every_advice_belongs_to_something_that_is_not_well(found):
    assert all(finding.advice == "" for finding in found if finding.state is State.ok)
    assert all(finding.advice for finding in found if finding.state is not State.ok)


def test_an_exchanged_weights_file_is_broken(monkeypatch, tmp_path):
    weights = store.find("default")
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    damaged = tmp_path / weights.name
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(store, "shipped", lambda: {weights.stem: damaged})
    (finding,) = doctor._weights()
    assert finding.state is State.broken
    assert "SHA-256" in finding.found
    assert not doctor.healthy((finding,))


def test_an_engine_that_fails_or_lies_is_broken(monkeypatch):
    class Honest:
        described = Described("engine 1", "cpu", "float32")

        def run(self, image):
            return image

    class Liar(Honest):
        def run(self, image):
            return image + 2 / 1024

    def opened(weights, card, *, name, device, threads):
        if name == "openvino":
            raise RuntimeError("no such instruction")
        return Honest() if name == "onnx" else Liar()

    monkeypatch.setattr(doctor, "open_engine", opened)
    every = dict.fromkeys(("openvino", "onnx", "torch_eager"), "")
    monkeypatch.setattr(doctor, "refusals", lambda job: every)
    findings = list(doctor._engines())
    states = {finding.what: finding.state for finding in findings}
    assert states["engine openvino"] is State.broken
    assert states["engine onnx"] is State.ok
    assert states["engine torch_eager"] is State.broken
    assert "2.00 HU" in of(findings, "engine torch_eager")[0].found


def test_an_engine_that_is_not_there_names_what_installs_it(monkeypatch):
    monkeypatch.setattr(
        doctor, "refusals", lambda job: {"openvino": "pip install cddnet[openvino]"}
    )
    absent, choice = doctor._engines()
    assert (absent.state, absent.advice) == (State.note, "pip install cddnet[openvino]")
    assert choice.state is State.broken


def test_a_slow_choice_is_named():
    image = np.zeros((1, 1, 4, 4), np.float32)
    slow = doctor.Timed("openvino", "", 0.02, image)
    fast = doctor.Timed("torch_eager", "", 0.01, image)
    told = [item for item in doctor._choice([slow, fast]) if item.what == "--engine auto"]
    assert [item.state for item in told] == [State.note]
    assert "2.0 times slower here than torch_eager" in told[0].found
    told = [item for item in doctor._choice([fast, slow]) if item.what == "--engine auto"]
    assert [item.state for item in told] == [State.ok]


def test_threads_held_down_by_the_environment_are_noted(monkeypatch):
    monkeypatch.setattr(processor, "physical_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (held,) = of(doctor._processor(), "threads")
    assert (held.state, "OMP_NUM_THREADS=1" in held.found) == (State.note, True)
    monkeypatch.delenv("OMP_NUM_THREADS")
    (free,) = of(doctor._processor(), "threads")
    assert (free.state, free.found[0]) == (State.ok, "4")


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: place != tmp_path)
    here, temporary = doctor._disks(tmp_path)
    assert (here.state, temporary.state) == (State.broken, State.ok)
    little = SimpleNamespace(free=2e8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: little)
    _, temporary = doctor._disks(tmp_path)
    assert (temporary.state, temporary.found) == (State.note, "0.2 GB free")


def test_damaged_and_missing_decoders_are_found(tmp_path):
    folder = shutil.copytree(CODECS, tmp_path / "codecs")
    (sound,) = doctor.codecs(folder)
    assert sound.state is State.ok
    cut = folder / "jpeg_ls.dcm"
    cut.write_bytes(cut.read_bytes()[:-300])
    # A decoder that gives another image: RLE replaced by a slice of other values.
    other = bytearray((folder / "implicit_little_endian.dcm").read_bytes())
    other[-2:] = b"\x00\x00"
    (folder / "implicit_little_endian.dcm").write_bytes(other)
    (sick,) = doctor.codecs(folder)
    assert sick.state is State.broken
    assert sick.found.startswith("13 of 15")
    assert "jpeg_ls not at all" in sick.found
    assert re.search(r"implicit_little_endian \d+ HU off", sick.found)


def test_a_reader_that_cannot_be_imported_is_an_illness_and_no_crash(monkeypatch):
    def read(path):
        raise ImportError("libgdcm")

    monkeypatch.setattr(doctor, "read_volume", read)
    (finding,) = doctor.codecs(CODECS)
    assert finding.state is State.broken
    assert finding.found.startswith("0 of 15")


def test_the_samples_are_in_the_syntaxes_they_are_named_for():
    named = {
        "rle": "1.2.840.10008.1.2.5",
        "jpeg_ls": "1.2.840.10008.1.2.4.80",
        "jpeg_2000": "1.2.840.10008.1.2.4.90",
        "jpeg_lossless_first_order": "1.2.840.10008.1.2.4.70",
        "lossy_jpeg_8_bits": "1.2.840.10008.1.2.4.50",
        "lossy_jpeg_12_bits": "1.2.840.10008.1.2.4.51",
        "lossy_jpeg_progressive": "1.2.840.10008.1.2.4.55",
        "deflated": "1.2.840.10008.1.2.1.99",
    }
    for name, syntax in named.items():
        head = (CODECS / f"{name}.dcm").read_bytes()[:400]
        assert re.search(re.escape(syntax).encode() + rb"(\x00|[^\d.])", head), name
    assert 200 < read_volume(CODECS / "rle.dcm").hu.std() < 300


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the library since 3.11")
def test_extras_are_those_of_the_project_file():
    project = Path(__file__).parents[2] / "pyproject.toml"
    stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, (names, _) in EXTRAS.items():
        bare = [re.match(r"[\w.-]+(\[\w+\])?", line)[0] for line in stated[extra]]
        known = set(names) | {"dask[distributed]", "cddnet[node]"}
        assert set(bare) <= known
        assert set(names) - set(bare) <= {"dask", "distributed"}
    assert set(stated) - set(EXTRAS) <= {"all", "dev", "docs", "fuzz"}


def test_missing_distributions_are_named(monkeypatch):
    monkeypatch.setitem(EXTRAS, "tiff", (("no-such-distribution", "numpy"), "TIFF files"))
    assert missing("tiff") == ("no-such-distribution",)
    (finding,) = of(doctor._extras(), "extra tiff")
    assert "pip install cddnet[tiff]" in finding.advice
