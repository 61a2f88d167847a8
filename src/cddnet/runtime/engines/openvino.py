"""OpenVINO on a processor; bfloat16 where it has it and the network stays within the agreement.

OpenVINO in bfloat16 rounds the image itself, to steps of 8 HU near water. So the graph is cut
behind the last convolution of few channels: up to there it runs in float32, what follows in
bfloat16, and behind the last convolution OpenVINO returns to float32 of its own accord.
"""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from cddnet.runtime import processor
from cddnet.runtime.engines import Described, Engine, Images, Job
from cddnet.runtime.engines._agreement import agrees, probe
from cddnet.runtime.engines._optional import optional
from cddnet.runtime.engines.onnx import graph_refusal, model_of

_FEW_CHANNELS = 16
_KEPT_SIZES = 2
_TELEMETRY = "openvino_telemetry"
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
        self._model, self.threads = model_of(job), job.threads
        self._compiled: OrderedDict[Shape, list[Any]] = OrderedDict()
        self._precision = "float32"
        if processor.has_bfloat16():
            shape = probe().shape
            exact, fast = self._whole(shape), self._in_two(shape)
            if fast and agrees(lambda image: _run(fast, image), lambda image: _run(exact, image)):
                self._precision = "bfloat16"
        version = self._openvino.__version__.split("-")[0]
        engine = f"openvino {version} {processor.units()}"
        self.described = Described(engine, "cpu", self._precision)

    def run(self, image: Images) -> Images:
        shape = image.shape
        if shape not in self._compiled:
            make = self._in_two if self._precision == "bfloat16" else self._whole
            self._compiled[shape] = make(shape)
            if len(self._compiled) > _KEPT_SIZES:
                self._compiled.popitem(last=False)
        return _run(self._compiled[shape], image)

    def _read(self, shape: Shape) -> Any:  # noqa: ANN401 - OpenVINO has no usable types
        model = self._core.read_model(io.BytesIO(self._model))
        model.reshape(list(shape))
        folding = self._passes.Manager()
        folding.register_pass(self._passes.ConstantFolding())
        folding.run_passes(model)
        return model

    def _whole(self, shape: Shape) -> list[Any]:
        return [self._ready(self._read(shape), "f32")]

    def _in_two(self, shape: Shape) -> list[Any]:
        """Compiled: up to the cut in float32, then in bfloat16; empty where there is no cut."""
        parts = _cut(self._openvino, self._read(shape))
        return [self._ready(part, kind) for part, kind in zip(parts, ("f32", "bf16"), strict=False)]

    def _ready(self, model: Any, precision: str) -> Any:  # noqa: ANN401
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the networks of several processes share the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(model, "CPU", settings).create_infer_request()


def _run(parts: list[Any], image: Images) -> Images:
    values: list[Any] = [image]
    for request in parts:
        found = request.infer(values, share_inputs=True, share_outputs=True)
        values = [found[output] for output in request.model_outputs]
    # The request overwrites its own memory with the next slice.
    result: Images = values[0].copy()
    return result


def _cut(openvino: ModuleType, model: Any) -> list[Any]:  # noqa: ANN401
    """The model up to its last convolution of few channels and the model behind, or nothing."""
    nodes = list(model.get_ordered_ops())
    thin = [node for node in nodes if _is_thin(node)]
    if not thin:
        return []
    behind = _fed_by(thin[-1], nodes)
    crossing = _outputs_into(behind, nodes)
    inputs = [
        openvino.opset13.parameter(list(source.get_shape()), source.get_element_type())
        for source, _ in crossing
    ]
    front = openvino.Model([source for source, _ in crossing], model.get_parameters(), "front")
    front = front.clone()
    for (source, targets), replacement in zip(crossing, inputs, strict=True):
        for target in targets:
            target.replace_source_output(replacement.output(0))
        del source
    back = openvino.Model(model.get_results(), inputs, "back")
    return [front, back]


def _is_thin(node: Any) -> bool:  # noqa: ANN401
    is_convolution = node.get_type_name() == "Convolution"
    return bool(is_convolution and node.input(0).get_shape()[1] < _FEW_CHANNELS)


def _fed_by(first: Any, nodes: list[Any]) -> set[str]:  # noqa: ANN401
    """Names of the nodes that depend on one, itself not among them."""
    found = {first.get_name()}
    for node in nodes:
        if any(port.get_node().get_name() in found for port in node.input_values()):
            found.add(node.get_name())
    return found - {first.get_name()}


def _outputs_into(behind: set[str], nodes: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Values computed in front of the cut, and the inputs behind it that take them."""
    crossing = []
    for node in nodes:
        if node.get_name() in behind or node.get_type_name() == "Constant":
            continue
        for source in node.outputs():
            targets = [
                target
                for target in source.get_target_inputs()
                if target.get_node().get_name() in behind
            ]
            if targets:
                crossing.append((source, targets))
    return crossing


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
