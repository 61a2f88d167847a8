"""Every engine is the network itself: float32 PyTorch within 0.5 HU mean and 3 HU over tissue.

Above 300 lines: each engine is held to the same network.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cddnet.errors import ModelError
from cddnet.formats import read_volume
from cddnet.models._cards import file_hash, read_card
from cddnet.runtime import engines, graphs, processor, store
from cddnet.runtime._protobuf import field, fields, varint
from cddnet.runtime.engines import _agreement
from cddnet.workflows.demo import demo_series

WEIGHTS = store.find("cddnet@1")
CARD = read_card(WEIGHTS)
WITH_GRAPHS = [p for p in store.shipped().values() if p.with_suffix(graphs.SUFFIX).is_file()]
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino", "torch_eager": "torch"}


def needs(engine):
    if find_spec(LIBRARIES[engine]) is None:
        pytest.skip(f"{LIBRARIES[engine]} is not installed")


@pytest.fixture(scope="module")
def images():
    """Real slices with the noise of a low dose: a whole one, and two of odd sides."""
    rng = np.random.default_rng(3)
    hu = read_volume(demo_series()).read_slice(5)
    noisy = (hu + rng.normal(0, 30, hu.shape)).astype(np.float32) / 1024
    odd = np.stack([noisy[151:282, 90:287], noisy[200:331, 221:418]])
    return [noisy[None, None], odd[:, None]]


@pytest.fixture(scope="module")
def exact(images):
    return restored(WEIGHTS, images)


def restored(weights, images):
    import torch

    network, _ = store.load(weights)
    with torch.inference_mode():
        return [network(torch.from_numpy(image)).image.numpy() for image in images]


@pytest.mark.parametrize("name", engines.names())
@pytest.mark.parametrize("weights", WITH_GRAPHS, ids=lambda path: path.stem)
def test_an_engine_agrees_with_float32_torch(weights, name, images):
    needs(name)
    exact = restored(weights, images)
    engine = engines.open_engine(weights, read_card(weights), name=name, device="cpu", threads=1)
    assert engine.name == name
    for image, expected in zip(images, exact, strict=True):
        before = image.copy()
        found = engine.run(image)
        assert found.dtype == np.float32
        assert np.array_equal(image, before)
        tissue = image * 1024 > _agreement.TISSUE_HU
        difference_hu = np.abs(found - expected)[tissue] * 1024
        assert difference_hu.mean() <= 0.5
        assert difference_hu.max() <= 3.0
        # Doing nothing is no engine.
        assert np.abs(image - expected)[tissue].mean() * 1024 > 5
        assert np.array_equal(engine.run(image), found)


@pytest.mark.parametrize("name", engines.names())
def test_results_are_not_overwritten_by_the_next_slice(name, images):
    needs(name)
    engine = engines.open_engine(WEIGHTS, CARD, name=name, device="cpu", threads=1)
    one, two = images[1][:1], images[1][1:]
    first = engine.run(one)
    kept = first.copy()
    engine.run(two)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_says_what_decides_its_bits(name):
    needs(name)
    engine = engines.open_engine(WEIGHTS, CARD, name=name, device="cpu", threads=1)
    described = engine.described
    assert described.device == "cpu"
    assert described.precision in ("float32", "bfloat16")
    assert described.precision == "float32" or processor.has_bfloat16()
    assert any(character.isdigit() for character in described.engine)
    assert described.engine.isascii()


def test_auto_takes_the_first_that_can(monkeypatch):
    job = engines.Job(WEIGHTS, CARD, "cpu", 1)
    can = [name for name, reason in engines.refusals(job).items() if not reason]
    assert engines.names() == engines.ORDER
    assert engines.open_engine(WEIGHTS, CARD, device="cpu", threads=1).name == can[0]


def test_auto_imports_no_engine_behind_the_one_it_takes():
    """PyTorch takes seconds to import and 160 MB."""
    needs("onnx")
    code = (
        "import sys; from pathlib import Path; from cddnet.models._cards import read_card\n"
        "from cddnet.runtime import engines\n"
        f"weights = Path({str(WEIGHTS)!r})\n"
        "engines.open_engine(weights, read_card(weights), device='cpu', threads=1)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_weights_without_a_graph_run_by_torch(tiny_weights):
    card = read_card(tiny_weights)
    assert engines.open_engine(tiny_weights, card, device="cpu").name == "torch_eager"
    needs("onnx")
    with pytest.raises(ModelError, match="no graph of network cddnet"):
        engines.open_engine(tiny_weights, card, name="onnx")


def test_what_there_is_not_is_refused():
    with pytest.raises(ModelError, match="openvino, onnx, torch_eager"):
        engines.open_engine(WEIGHTS, CARD, name="abacus")
    with pytest.raises(ModelError, match="no device 'tpu'"):
        engines.open_engine(WEIGHTS, CARD, device="tpu")
    with pytest.raises(ModelError, match="give 1 or more"):
        engines.open_engine(WEIGHTS, CARD, threads=0)


def test_threads_are_bounded(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processor, "physical_cores", lambda: 64)
    assert processor.default_threads() == processor.MOST_THREADS
    assert processor.chosen_threads(20) == 20
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processor.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert processor.default_threads() == processor.MOST_THREADS


def test_torch_gives_the_threads_back(images):
    import torch

    before = torch.get_num_threads()
    engine = engines.open_engine(WEIGHTS, CARD, name="torch_eager", device="cpu", threads=2)
    engine.run(images[1])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells of threads")
@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_no_thread_is_held_to_a_core(name):
    """Else the networks of several processes share the first cores."""
    needs(name)
    path = store.find("fast@1")
    engine = engines.open_engine(path, read_card(path), name=name, device="cpu", threads=1)
    usable, seen = os.sched_getaffinity(0), []
    work = threading.Thread(
        target=lambda: [engine.run(np.zeros((1, 1, 512, 512), np.float32)) for _ in range(5)]
    )
    work.start()
    while work.is_alive():
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                seen.append(os.sched_getaffinity(int(task.name)))
        time.sleep(0.005)
    assert len(seen) > 20
    assert all(cores == usable for cores in seen)


with_bfloat16 = pytest.mark.skipif(
    not processor.has_bfloat16(), reason="this processor does not multiply bfloat16"
)


def convolutions(weights, image):
    """Precisions of the convolutions that OpenVINO runs, in their order."""
    card = read_card(weights)
    engine = engines.open_engine(weights, card, name="openvino", device="cpu", threads=1)
    engine.run(image)
    assert engine.described.precision == "bfloat16"
    compiled = engine._compiled[image.shape].get_compiled_model()
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [
        str(node["runtimePrecision"].astype(str))
        for node in nodes
        if node["layerType"].astype(str) == "Convolution"
    ]


@with_bfloat16
def test_what_sees_the_image_stays_in_float32_in_openvino(images):
    needs("openvino")
    precisions = convolutions(WEIGHTS, images[1])
    behind = precisions.index("bf16")
    assert 0 < behind < len(precisions) / 2
    assert set(precisions[behind:]) == {"bf16"}


@with_bfloat16
def test_every_view_of_a_network_runs_as_one_view_does_in_openvino(images):
    needs("openvino")
    one, four = (convolutions(store.find(name), images[1]) for name in ("fast@1", "quality@1"))
    for precision in ("f32", "bf16"):
        assert four.count(precision) == 4 * one.count(precision)


@with_bfloat16
def test_openvino_computes_in_float32_where_nothing_can_be_written(images, exact, monkeypatch):
    needs("openvino")
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    engine = engines.open_engine(WEIGHTS, CARD, name="openvino", device="cpu", threads=1)
    assert engine.described.precision == "float32"
    assert np.abs(engine.run(images[1]) - exact[1]).max() * 1024 < 0.05


def test_the_precision_check_notices_what_rounds_too_much():
    def exact(image):
        return image

    def rounded(image):
        # bfloat16 keeps 8 bits: near water (1 in attenuation) steps of 8 HU.
        bits = (image + 1).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32) - 1

    assert _agreement.agrees(exact, exact)
    assert not _agreement.agrees(rounded, exact)


# Graphs


@pytest.fixture
def copied(tmp_path):
    for suffix in (".safetensors", ".json", graphs.SUFFIX):
        shutil.copy(WEIGHTS.with_suffix(suffix), tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def test_a_graph_holds_no_weights():
    graph = WEIGHTS.with_suffix(graphs.SUFFIX)
    assert graph.stat().st_size < 0.01 * WEIGHTS.stat().st_size


def test_one_graph_serves_every_weights_file_of_its_network(copied):
    copied.with_suffix(graphs.SUFFIX).unlink()
    assert graphs.find(copied, CARD) == graphs.find(WEIGHTS, CARD)


@pytest.mark.parametrize("at", [10, 9000, -70, -3])
def test_a_changed_graph_is_refused(copied, at):
    path = copied.with_suffix(graphs.SUFFIX)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or was changed"):
        graphs.find(copied, CARD)


def test_a_cut_graph_is_refused(copied):
    path = copied.with_suffix(graphs.SUFFIX)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="damaged or was changed"):
        graphs.find(copied, CARD)


def test_changed_weights_are_refused_without_torch_too(copied):
    needs("onnx")
    content = bytearray(copied.read_bytes())
    content[-3] ^= 1
    copied.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or was exchanged"):
        engines.open_engine(copied, CARD, name="onnx")


def test_weights_stored_in_half_precision_run_in_single(copied, images, exact):
    needs("onnx")
    from safetensors.numpy import load_file, save_file

    halves = {name: values.astype(np.float16) for name, values in load_file(copied).items()}
    save_file(halves, copied)
    path = copied.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": file_hash(copied)}))
    engine = engines.open_engine(copied, read_card(copied), name="onnx", threads=1)
    found = engine.run(images[1])
    difference_hu = np.abs(found - exact[1]) * 1024
    assert 0 < difference_hu[images[1] * 1024 > -500].mean() < 0.5


def test_the_exported_file_is_one_whole_model(tmp_path, images, exact):
    onnx = pytest.importorskip("onnx")
    needs("onnx")
    import onnxruntime

    from cddnet.workflows.export_network import export_network

    told = export_network("cddnet@1", tmp_path / "out.onnx")
    assert f"opset {graphs.OPSET}" in told
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == graphs.OPSET
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {graphs.INPUT: images[1]})
    assert np.abs(found - exact[1]).max() * 1024 < 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_shipped_graphs_are_what_the_networks_export():
    pytest.importorskip("onnxscript")
    from cddnet.runtime.export import export_graph

    for path in store.shipped().values():
        beside = path.with_suffix(graphs.SUFFIX)
        if not beside.is_file():
            continue
        card = read_card(path)
        tensors = graphs.read_tensors(path, card)
        assert graphs.complete(export_graph(path), tensors) == graphs.complete(
            beside.read_bytes(), tensors
        )


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63])
def test_numbers_and_fields_come_back(value):
    message = field(7, value) + field(3, b"\x00" * (value % 500)) + b"\x0d\x01\x02\x03\x04"
    (first, number, _), (second, content, _), (third, fixed, raw) = fields(message)
    assert (first, number, second, third) == (7, value, 3, 1)
    assert content == b"\x00" * (value % 500)
    assert (fixed, raw) == (b"\x01\x02\x03\x04", b"\x0d\x01\x02\x03\x04")
    with pytest.raises(ValueError, match="cut short"):
        list(fields(message[:-1]))
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


# What must not happen, each in a process of its own

DENOISE_ONE = """
import sys
sent = []
def watch(event, arguments):
    # A library may bind a socket of its own to see whether there is IPv6; nobody is asked then.
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
        sent.append(event)
    if event in ("subprocess.Popen", "os.posix_spawn", "os.system"):
        # The program that decodes is watched by a test of its own.
        if arguments[1][-2:] != ["-m", "cddnet.formats._decoder_process"]:
            sent.append(event)
sys.addaudithook(watch)
if sys.argv[3] == "planted":
    import socket
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))
import numpy as np
from pathlib import Path
from cddnet.formats import read_volume
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
source, engine, _, target = sys.argv[1:]
options = DenoiseOptions(engine=engine, device="cpu", threads=1)
denoise_file(Path(source), Path(target), options, lambda done, total: None)
names = ("torch", "onnx", "onnxscript", "openvino_telemetry")
print("found", *sent, *[name for name in names if sys.modules.get(name) is not None])
"""


def seen(tmp_path, engine, planted=""):
    source = demo_series() / "0001.dcm"
    run = subprocess.run(
        [sys.executable, "-c", DENOISE_ONE, source, engine, planted, tmp_path / "out.dcm"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "out.dcm").is_file()
    return run.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_light_engines_need_no_torch_and_phone_nobody(tmp_path, name):
    needs(name)
    assert seen(tmp_path, name) == []


def test_what_is_watched_for_would_be_seen(tmp_path):
    assert {"socket.connect", "torch"} <= set(seen(tmp_path, "torch_eager", "planted"))
