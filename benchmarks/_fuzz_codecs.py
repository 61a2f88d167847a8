"""Whole files of every codec, damaged, and decoded by the processes that decode for a reader.

The law: stored values of the size that the header states, or a DicomError that names the file; the
reading process neither ends nor waits without an end; sound frames are decoded as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.encaps import get_frame

import _fuzz_mutate
from _fuzz_seeds import CODECS
from cddnet.errors import DicomError
from cddnet.formats import _decoder_pool
from cddnet.formats._codecs import CodedFrame
from cddnet.formats._dicom_pixels import quiet, read_stored

# A sample of 32 x 32 takes a thousandth of it.
LIMIT_S = 1.0
# Without a word for so long, the reading process hangs.
SILENCE_S = 120.0
AT_ONCE = 50
# Of these, some damage the whole file; the others the stream, whose length then is told rightly.
WHOLE_FILE_SHARE = 0.4
MARKERS = bytes((*range(0xC0, 0x100), 0x01, 0x4F, 0x51, 0x52, 0x53, 0x5C, 0x90, 0x93))
OUTCOMES = ("refused before", "decoded", "damaged", "ended", "late")
PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


class Sample(NamedTuple):
    """A file of one frame: what comes before its stream, and the stream."""

    name: str
    head: bytes
    stream: bytes

    def file(self, stream: bytes) -> bytes:
        """The file with another stream."""
        even = stream + b"\0" * (len(stream) % 2)
        items = [ITEM + bytes(4), ITEM + len(even).to_bytes(4, "little"), even]
        return b"".join([self.head, *items, DELIMITER + bytes(4)])


def samples() -> Iterator[Sample]:
    """The samples of the package that are compressed, and High-Throughput JPEG 2000.

    There is no encoder for the latter: it is JPEG 2000 whose blocks say that they are of that kind.
    """
    for file in sorted(CODECS.glob("*.dcm")):
        dataset, whole = dcmread(file), file.read_bytes()
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            continue
        stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
        sample = Sample(file.stem, whole[: whole.index(PIXELS) + len(PIXELS)], stream)
        yield sample
        if file.stem == "jpeg_2000":
            old, new = str(uid.JPEG2000Lossless), str(uid.HTJ2KLossless)
            head = sample.head.replace(old.encode() + b"\0" * (len(old) % 2), _padded(new))
            style = stream.index(b"\xff\x52") + 12
            coded = stream[:style] + bytes([stream[style] | 0x40]) + stream[style + 1 :]
            yield Sample("high_throughput_jpeg_2000", _with_length(head, old, new), coded)


def damaged(sample: Sample, others: list[Sample], random: Random) -> bytes:
    """The file of a sample, with one to three changes."""
    if random.random() < WHOLE_FILE_SHARE:
        whole = sample.file(sample.stream)
        return _fuzz_mutate.dicom(whole, random) if random.random() < 0.5 else _bytes(whole, random)
    stream = sample.stream
    for _ in range(random.randint(1, 3)):
        stream = _stream(stream, random.choice(others).stream, random)
    return sample.file(stream)


def _bytes(data: bytes, random: Random) -> bytes:
    """Some bytes of other values, or a bit."""
    whole = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        place = random.randrange(len(whole))
        bit = random.random() < 0.5
        whole[place] = whole[place] ^ 1 << random.randrange(8) if bit else random.randrange(256)
    return bytes(whole)


def _stream(stream: bytes, other: bytes, random: Random) -> bytes:
    """Bytes changed, a marker put in, a piece gone, doubled, or of another codec."""
    if len(stream) < 8:
        return stream
    # Half of the damage is done to the headers.
    place = random.randrange(min(len(stream), 120) if random.random() < 0.5 else len(stream))
    kinds = ("bytes", "number", "marker", "cut", "double", "splice")
    (kind,) = random.choices(kinds, (6, 3, 3, 1, 1, 1))
    width = random.randrange(1, 40)
    if kind == "bytes":
        return stream[:place] + _bytes(stream[place:], random)
    if kind == "number":
        number = random.choice((0, 1, 7, 0x7F, 0x80, 0xFE, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        size = max(random.choice((1, 2, 4)), (number.bit_length() + 7) // 8)
        return stream[:place] + number.to_bytes(size, "big") + stream[place + size :]
    if kind == "marker":
        marker = bytes((0xFF, random.choice(MARKERS)))
        place = random.choice((place, len(stream.rstrip(b"\0")) - 2))
        return stream[:place] + marker + stream[place + random.choice((0, 2)) :]
    if kind == "cut":
        return stream[:place] + stream[place + width :]
    if kind == "double":
        piece = stream[place : place + width] * random.choice((1, 2, 200))
        return stream[:place] + piece + stream[place:]
    start = random.randrange(len(other))
    return stream[:place] + other[start : start + width] + stream[place + width :]


class _ReusingPool(_decoder_pool.DecoderPool):
    """Goes on after damage with the same process, which is ten times as fast."""

    def _ask(self, decoder: _decoder_pool._Decoder, frame: CodedFrame) -> NDArray[np.integer[Any]]:
        try:
            stored: NDArray[np.integer[Any]] = decoder.decode(frame)
        except _decoder_pool.DecodingError as error:
            if error.reason == "damaged":
                self._idle.append(decoder)
            else:
                self._end(decoder)
            raise
        except BaseException:
            self._end(decoder)
            raise
        self._idle.append(decoder)
        return stored


class _Fuzzer:
    """Decodes damaged files, and keeps those over which the law is broken."""

    def __init__(self, out: Path, scratch: Path, seed: int) -> None:
        self._out, self._scratch, self._seed = out, scratch, seed
        self._samples = list(samples())
        self.names = [sample.name for sample in self._samples]
        self._sound = {}
        self._told = threading.local()
        decode = _decoder_pool.decode

        def counted(frame: CodedFrame) -> NDArray[np.integer[Any]]:
            self._told.outcome = "decoded"
            try:
                return decode(frame)
            except _decoder_pool.DecodingError as error:
                self._told.outcome = error.reason
                raise

        _decoder_pool.decode = counted
        for sample in self._samples:
            file = self._written(sample, sample.file(sample.stream), "sound")
            try:
                self._sound[sample.name] = file, read_stored(file)
            except DicomError:
                assert sample.name == "high_throughput_jpeg_2000"

    def run(self, number: int) -> tuple[str, str, float]:
        """(sample, outcome, seconds) of one damaged file."""
        random = Random(f"{self._seed} {number}")
        sample = self._samples[number % len(self._samples)]
        data = damaged(sample, self._samples, random)
        file = self._written(sample, data, threading.current_thread().name)
        started, self._told.outcome = time.monotonic(), "refused before"
        try:
            stored = read_stored(file)
            with quiet():
                header = dcmread(file, stop_before_pixels=True, force=True)
            if stored.shape != (header.Rows, header.Columns):
                raise ValueError(f"{stored.shape} decoded")
        except DicomError as error:
            if not str(error).startswith(file.name):
                self._keep(sample, data, error)
        except Exception as error:
            self._keep(sample, data, error)
        outcome, took = self._told.outcome, time.monotonic() - started
        if number % AT_ONCE == 0:
            self._require_sound(random, data)
        return sample.name, outcome, took

    def _require_sound(self, random: Random, data: bytes) -> None:
        name, (file, expected) = random.choice(list(self._sound.items()))
        try:
            if not np.array_equal(read_stored(file), expected):
                raise ValueError(f"another image of {name}")
        except Exception as error:
            self._keep(Sample(f"behind_{name}", b"", b""), data, error)

    def _written(self, sample: Sample, data: bytes, name: str) -> Path:
        file = self._scratch / f"{sample.name} {name}.dcm"
        file.write_bytes(data)
        return file

    def _keep(self, sample: Sample, data: bytes, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        place = hashlib.sha256(re.sub(r"\d+", "", text).encode()).hexdigest()[:8]
        kept = self._out / "findings" / f"{sample.name}-{type(error).__name__}-{place}.dcm"
        kept.write_bytes(data)
        kept.with_suffix(".txt").write_text(f"{kept.name}: {error}\n{text}")


def fuzz_within(out: Path, *, seed: int, decodes: int, minutes: float) -> None:
    """Decode in this process, and print a line of counts now and then."""
    _decoder_pool.LIMIT_S = LIMIT_S
    _decoder_pool._pool = _ReusingPool()
    ended, counts, slowest = time.monotonic() + 60 * minutes, Counter[str](), Counter[str]()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="fuzzed-", dir=shared) as scratch,
        ThreadPoolExecutor(_decoder_pool._processors()) as threads,
    ):
        fuzzer = _Fuzzer(out, Path(scratch), seed)
        for first in count(0, AT_ONCE):
            if time.monotonic() > ended or _enough(counts, fuzzer.names, decodes):
                break
            for name, outcome, took in threads.map(fuzzer.run, range(first, first + AT_ONCE)):
                counts[f"{name} {outcome}"] += 1
                slowest[name] = max(slowest[name], took)
            print(json.dumps([counts, slowest]), flush=True)


def _enough(counts: Counter[str], names: Sequence[str], decodes: int) -> bool:
    """Whether decoders saw that many files, and each of them a twentieth."""
    each = [sum(counts[f"{name} {outcome}"] for outcome in OUTCOMES[1:]) for name in names]
    return sum(each) >= decodes and min(each) >= decodes / 20


def fuzz_codecs(out: Path, *, seed: int, decodes: int, minutes: float) -> int:
    """Fuzz in a process of its own, print a table, and return the number of findings."""
    (out / "findings").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), "codecs"]
    command += ["--out", str(out), "--seed", str(seed), "--decodes", str(decodes)]
    started, last = time.monotonic(), "[{}, {}]"
    with subprocess.Popen(
        [*command, "--within", str(60 * minutes)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while True:
            hang = threading.Timer(SILENCE_S, process.kill)
            hang.start()
            line = process.stdout.readline()
            hang.cancel()
            if not line:
                break
            last = line
    if process.returncode:
        (out / "findings" / "stopped.txt").write_text(
            f"the reading process ended with status {process.returncode} after {last}"
        )
    counts, slowest = json.loads(last)
    print(f"{sum(counts.values())} files in {time.monotonic() - started:.0f} s, seed {seed}")
    print("| codec | files | refused before | decoded | damaged | crashed | hung | slowest |")
    print("|---|---|---|---|---|---|---|---|")
    for name in slowest:
        row = [counts.get(f"{name} {outcome}", 0) for outcome in OUTCOMES]
        cells = " | ".join(f"{count:,}" for count in (sum(row), *row))
        print(f"| {name} | {cells} | {slowest[name]:.1f} s |")
    findings = sorted((out / "findings").glob("*.txt"))
    for file in findings:
        print(f"  {file.read_text().splitlines()[0]}")
    return len(findings)


def _padded(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def _with_length(head: bytes, old: str, new: str) -> bytes:
    """A meta header in which a longer transfer syntax has its own length."""
    place, grown = head.index(_padded(new)), len(_padded(new)) - len(_padded(old))
    length = int.from_bytes(head[place - 2 : place], "little") + grown
    group = int.from_bytes(head[140:144], "little") + grown
    numbered = head[:140] + group.to_bytes(4, "little") + head[144 : place - 2]
    return numbered + length.to_bytes(2, "little") + head[place:]
