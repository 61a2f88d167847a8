"""Processes that decode compressed frames may crash or hang, and nothing else comes to harm."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels.utils import pixel_array

from cddnet.errors import CddnetError
from cddnet.formats import _decoder_pool, _decoder_process
from cddnet.formats._codecs import CodedFrame, decode_frame
from cddnet.formats._decoder_pool import DecoderPool, DecodingError
from poisoned import SAMPLES, TWELVE_BITS, crashing, deep, endless, stream_of

CODED = [
    file.stem
    for file in sorted(SAMPLES.glob("*.dcm"))
    if dcmread(file).file_meta.TransferSyntaxUID.is_encapsulated
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def coded(name, change=lambda stream: stream):
    """The frame of a sample, its stream changed; nothing looks at it before its decoder."""
    dataset = dcmread(SAMPLES / f"{name}.dcm")
    return CodedFrame(
        str(dataset.file_meta.TransferSyntaxUID),
        dataset.Rows,
        dataset.Columns,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.PixelRepresentation,
        change(stream_of(name)),
    )


@pytest.fixture
def pool():
    opened = DecoderPool()
    yield opened
    opened.close()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(_decoder_pool, "LIMIT_S", 0.5)


def only(pool):
    """The one process of a pool that has decoded a sound frame."""
    (decoder,) = pool._idle
    return decoder._process.pid


def gone(pid):
    """Whether a process has ended, also where nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("name", CODED)
def test_a_process_decodes_as_pydicom_does(name, pool):
    dataset = dcmread(SAMPLES / f"{name}.dcm")
    frame = coded(name)
    stored = pool.decode(frame)
    np.testing.assert_array_equal(stored, decode_frame(frame))
    assert stored.dtype == np.uint16 if dataset.BitsAllocated == 16 else np.uint8
    if name not in TWELVE_BITS:
        # These pydicom does not pass on to a decoder.
        np.testing.assert_array_equal(stored, pixel_array(dataset, raw=True))


def test_one_process_decodes_frame_after_frame(pool):
    frame = coded("jpeg_ls")
    first = pool.decode(frame)
    pid = only(pool)
    for _ in range(3):
        np.testing.assert_array_equal(pool.decode(frame), first)
    assert only(pool) == pid


def test_a_crash_costs_its_frame_alone(pool):
    sound = coded("jpeg_2000")
    expected = pool.decode(sound)
    for _ in range(2):
        with pytest.raises(DecodingError) as crash:
            pool.decode(coded(TWELVE_BITS[0], crashing))
        assert crash.value.reason == "ended"
        np.testing.assert_array_equal(pool.decode(sound), expected)


@pytest.mark.parametrize("name", TWELVE_BITS)
def test_a_decoder_without_an_end_is_ended(pool, hasty, name):
    with pytest.raises(DecodingError) as hang:
        pool.decode(coded(name, endless))
    assert hang.value.reason == "late"
    assert not pool._idle
    assert pool.decode(coded(name)).std() > 0


@linux
def test_a_process_that_does_not_end_itself_is_ended(pool, hasty, monkeypatch):
    monkeypatch.setattr(_decoder_pool, "_GRACE_S", 0.2)
    pool.decode(coded("jpeg_ls"))
    pid = only(pool)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DecodingError) as stopped:
        pool.decode(coded("jpeg_ls"))
    assert stopped.value.reason == "late"
    assert gone(pid)


def test_a_depth_of_128_bits_is_damage(pool):
    with pytest.raises(DecodingError) as damage:
        pool.decode(coded("jpeg_2000", deep))
    assert damage.value.reason == "damaged"


def test_damage_is_refused_and_its_process_not_used_again(pool):
    pool.decode(coded("jpeg_ls"))
    with pytest.raises(DecodingError) as damage:
        pool.decode(coded("jpeg_ls", lambda stream: stream[:20]))
    assert damage.value.reason == "damaged"
    assert not pool._all


def test_a_process_that_others_ended_is_replaced(pool):
    frame = coded("rle")
    expected = pool.decode(frame)
    killed = only(pool)
    os.kill(killed, signal.SIGKILL)
    np.testing.assert_array_equal(pool.decode(frame), expected)
    assert only(pool) != killed


@linux
def test_a_process_lives_through_the_signals_that_stop_a_service(pool):
    frame = coded("rle")
    pool.decode(frame)
    pid = only(pool)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    pool.decode(frame)
    assert only(pool) == pid
    assert os.getsid(pid) != os.getsid(0)


@linux
def test_memory_is_limited_and_no_image_is_dumped(pool):
    frame = coded("jpeg_ls")
    pool.decode(frame)
    limits = Path(f"/proc/{only(pool)}/limits").read_text()
    told = {line[:26].strip(): line.split()[-3] for line in limits.splitlines()[1:]}
    assert told["Max core file size"] == "0"
    used = int(Path(f"/proc/{only(pool)}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    assert int(told["Max address space"]) - used <= 2 * _decoder_process.MEMORY_BYTES


def test_many_threads_share_few_processes(pool):
    frames = [coded(name) for name in CODED] * 3
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(pool.decode, frames))
    assert len(pool._all) <= _decoder_pool._processors()
    for frame, result in zip(frames, results, strict=True):
        np.testing.assert_array_equal(result, decode_frame(frame))


def test_a_hang_holds_up_no_other_thread(pool, hasty, monkeypatch):
    monkeypatch.setattr(pool, "_places", threading.BoundedSemaphore(2))
    with ThreadPoolExecutor(1) as thread:
        hang = thread.submit(pool.decode, coded(TWELVE_BITS[0], endless))
        decoded = 0
        while not hang.done():
            pool.decode(coded("rle"))
            decoded += 1
    assert hang.exception().reason == "late"
    assert decoded > 1


def output_of(code, request):
    """What a Python program answers."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, input=request, capture_output=True, check=True).stdout


def test_a_missing_decoder_is_told_apart_from_damage():
    code = """
        import sys
        sys.modules["jpeg_ls"] = None
        from cddnet.formats._decoder_process import main
        main()
    """
    frame = coded("jpeg_ls")
    request = _decoder_process.request_of(frame, 10.0)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=request,
        capture_output=True,
        check=True,
    )
    assert done.stdout == _decoder_process.READY + _decoder_process.MISSING


def test_decoders_phone_nobody():
    code = """
        import sys
        def watch(event, arguments):
            if event.startswith(("socket.", "subprocess.", "os.posix_spawn", "os.system")):
                raise SystemExit(event)
        sys.addaudithook(watch)
        from cddnet.formats._decoder_process import main
        main()
    """
    frames = [coded(name) for name in CODED]
    requests = [_decoder_process.request_of(frame, 10.0) for frame in frames]
    pixels = [_decoder_process.PIXELS + decode_frame(frame).tobytes() for frame in frames]
    assert output_of(code, b"".join(requests)) == _decoder_process.READY + b"".join(pixels)


def test_what_decoders_print_is_no_reply():
    code = """
        import os
        from cddnet.formats import _decoder_process
        decode = _decoder_process.decode_frame
        def noisy(frame):
            os.write(1, b"noise")
            return decode(frame)
        _decoder_process.decode_frame = noisy
        _decoder_process.main()
    """
    frame = coded("rle")
    request = _decoder_process.request_of(frame, 10.0)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=request,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"rp" + decode_frame(frame).tobytes()


@linux
def test_a_process_without_work_ends():
    code = "from cddnet.formats import _decoder_process as p; p.IDLE_S = 0.1; p.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.wait(30) == -signal.SIGALRM


def test_a_decoder_program_that_fails_is_no_fault_of_the_image(pool, monkeypatch, tmp_path):
    monkeypatch.setattr(_decoder_pool, "PROGRAM", "cddnet.no_such_program")
    with pytest.raises(CddnetError, match="cannot be started"):
        pool.decode(coded("rle"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CddnetError, match="cannot be started"):
        pool.decode(coded("rle"))
    closed = tmp_path / "python"
    closed.touch(0o644)
    monkeypatch.setattr(sys, "executable", str(closed))
    with pytest.raises(CddnetError, match=f"this user may not run {closed}"):
        pool.decode(coded("rle"))
    monkeypatch.undo()
    assert pool.decode(coded("rle")).std() > 0


def test_the_program_imports_neither_torch_nor_pydicom():
    code = "import sys, cddnet.formats._decoder_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydicom", "scipy"} & set(done.stdout.split())
    assert "numpy" in done.stdout.split()


READ = f"""
from cddnet.formats import read_volume
for name in ("jpeg_ls", "jpeg_2000"):
    hu = read_volume({str(SAMPLES)!r} + f"/{{name}}.dcm").read_slice(0)
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script, images = tmp_path / "script.py", tmp_path / "images"
    script.write_text(f"print('once', flush=True)\n{READ}\nprint(hu.shape)\n")
    # The working folder may hold files with the names of modules.
    images.mkdir()
    for name in ("json", "jpeg_ls", "openjpeg"):
        (images / f"{name}.py").write_text("raise SystemExit")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=images, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("once\n(32, 32)\n", "")


def test_the_cells_of_a_notebook_decode(tmp_path):
    """A kernel runs cells inside an event loop, in a main module without a file."""
    kernel = f"""
        import asyncio
        cells = [{READ!r}, "print(hu.shape)"]
        async def run():
            for cell in cells:
                exec(compile(cell, "<cell>", "exec"), globals())
                await asyncio.sleep(0)
        asyncio.run(run())
    """
    done = subprocess.run(
        [sys.executable, "-"],
        input=textwrap.dedent(kernel),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("(32, 32)\n", "")


PARENT = f"""
import os, sys, time
from cddnet.formats import _decoder_pool, read_volume
read_volume({str(SAMPLES / "rle.dcm")!r}).read_slice(0)
(decoder,) = _decoder_pool._pool._all
print(decoder._process.pid, flush=True)
"""


@linux
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_processes_end_with_their_parent(how):
    ending = "" if how == "exit" else "time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + ending], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        if how == "kill":
            assert not gone(pid)
            parent.kill()
    until(lambda: gone(pid))


@linux
def test_an_endless_decoder_ends_although_its_parent_is_gone():
    code = """
        import sys
        from cddnet.formats import _decoder_process
        _decoder_process.main()
    """
    request = _decoder_process.request_of(coded(TWELVE_BITS[0], endless), 0.5)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(request)
        process.stdin.close()
        assert process.wait(30) == -signal.SIGALRM


@linux
def test_a_forked_process_decodes_for_itself():
    code = f"""{PARENT}
child = os.fork()
if child == 0:
    assert not _decoder_pool._pool._all
    hu = read_volume({str(SAMPLES / "jpeg_ls.dcm")!r}).read_slice(0)
    (own,) = _decoder_pool._pool._all
    own.end()
    os._exit(0 if own._process.pid != decoder._process.pid and hu.std() > 0 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
read_volume({str(SAMPLES / "jpeg_2000.dcm")!r}).read_slice(0)
assert _decoder_pool._pool._all == {{decoder}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
