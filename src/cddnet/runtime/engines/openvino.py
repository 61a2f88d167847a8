"""OpenVINO on a processor; bfloat16 where it has it and the network stays within the agreement.

OpenVINO in bfloat16 rounds the image itself, to steps of 8 HU near water. So convolutions of few
channels and all in front of them are marked to stay in float32, and behind the last convolution
OpenVINO returns to float32 of its own accord.
"""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cddnet.runtime import processor
from cddnet.runtime.engines import Described, Engine, Images, Job
from cddnet.runtime.engines._agreement import agrees, probe
from cddnet.runtime.engines._optional import optional
from cddnet.runtime.engines.onnx import graph_refusal, model_of

_FEW_CHANNELS = 16
_KEPT_SIZES = 2
_TELEMETRY = "openvino_telemetry"
_STAYS_FLOAT32 = "precise_0"
Shape = tuple[int, ...]


def refusal(job: Job) -> str:
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install cddnet[openvino]"
    return graph_refusal(job)


def open_engine(job: Job) -> Engine:
    return _OpenVino(job)


class _OpenVino:
    name, batch = "openvino", 1

    def __init__(self, job: Job) -> None:
        with _without_telemetry():
            self._openvino = optional("openvino", "openvino")
            self._passes = optional("openvino.passes", "openvino")
        self._core = self._openvino.Core()
        self._model: tuple[bytes, ...] = (model_of(job),)
        self.threads = job.threads
        self._compiled: OrderedDict[Shape, Any] = OrderedDict()
        self._precision = "float32"
        if processor.has_bfloat16():
            self._look_for_bfloat16()
        version = self._openvino.__version__.split("-")[0]
        engine = f"openvino {version} {processor.units()}"
        self.described = Described(engine, "cpu", self._precision)

    def run(self, image: Images) -> Images:
        shape = image.shape
        if shape not in self._compiled:
            self._compiled[shape] = self._ready(self._model, shape, self._precision)
            if len(self._compiled) > _KEPT_SIZES:
                self._compiled.popitem(last=False)
        return _run(self._compiled[shape], image)

    def _look_for_bfloat16(self) -> None:
        shape, marked = probe().shape, self._marked()
        if not marked:
            return
        exact = self._ready(self._model, shape, "float32")
        fast = self._ready(marked, shape, "bfloat16")
        if agrees(lambda image: _run(fast, image), lambda image: _run(exact, image)):
            self._model, self._precision = marked, "bfloat16"

    def _marked(self) -> tuple[bytes, ...]:
        """The model with marks on all that stays in float32; nothing where that is not to be had.

        The compiler for processors knows a mark only from a model file, of which there is none
        without a place to write it.
        """
        model = self._core.read_model(*self._model)
        first = _up_to_thin(list(model.get_ordered_ops()))
        if not first:
            return ()
        for node in first:
            node.get_rt_info()[_STAYS_FLOAT32] = ""
        try:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "model.xml"
                self._openvino.serialize(model, file)
                return file.read_bytes(), file.with_suffix(".bin").read_bytes()
        except (OSError, RuntimeError):
            return ()

    def _ready(self, source: tuple[bytes, ...], shape: Shape, precision: str) -> Any:  # noqa: ANN401 - OpenVINO has no types
        model = self._core.read_model(*source)
        model.reshape(list(shape))
        folding = self._passes.Manager()
        folding.register_pass(self._passes.ConstantFolding())
        folding.run_passes(model)
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the networks of several processes share the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(model, "CPU", settings).create_infer_request()


def _run(request: Any, image: Images) -> Images:  # noqa: ANN401
    (found,) = request.infer([image], share_inputs=True, share_outputs=True).values()
    # The request overwrites its own memory with the next slice.
    result: Images = found.copy()
    return result


def _up_to_thin(nodes: list[Any]) -> list[Any]:
    """Convolutions of few channels, what they depend on, and what depends on none; or nothing."""
    thin = {node.get_name() for node in nodes if _is_thin(node)}
    if not thin:
        return []
    behind, needed = set(thin), set(thin)
    for node in nodes:
        if not behind.isdisjoint(_sources(node)):
            behind.add(node.get_name())
    for node in reversed(nodes):
        if node.get_name() in needed:
            needed.update(_sources(node))
    return [node for node in nodes if node.get_name() in needed or node.get_name() not in behind]


def _sources(node: Any) -> list[str]:  # noqa: ANN401
    return [port.get_node().get_name() for port in node.input_values()]


def _is_thin(node: Any) -> bool:  # noqa: ANN401
    is_convolution = node.get_type_name() == "Convolution"
    return bool(is_convolution and node.input(1).get_shape()[1] < _FEW_CHANNELS)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import as if the package that reports usage were absent; OpenVINO brings a stub for that."""
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before
