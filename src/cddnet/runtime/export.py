"""ONNX graphs from torch networks; needs torch, onnx, onnxscript and onnxruntime."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.runtime import graphs, store
from cddnet.runtime.engines._optional import optional

# The largest stride of our networks; whatever pads to a divisor of it loses nothing.
_STRIDE = 64
_ODD_SIZES = ((1, 131, 77), (2, 64, 190))
_AGREEMENT = 1e-4
_LARGEST_KEPT_BYTES = 1 << 16


def export_graph(weights: Path) -> bytes:
    """The graph of a network without its weights, tested against torch at odd sizes.

    Raises: ModelError where the network cannot be written for any size, or comes out different.
    """
    optional("onnxscript", "onnx")
    network, card = store.load(weights)
    tensors = graphs.read_tensors(weights, card)
    if not tensors:
        raise ModelError(f"{card.name} is a filter without weights; there is no graph of it.")
    for wrapped in (_Padded(network), _Plain(network)):
        try:
            graph = _without_weights(_exported(wrapped), tensors, graphs.network_key(card))
        except Exception as error:
            problem = type(error).__name__
            continue
        problem = _difference(graphs.complete(graph, tensors), network)
        if not problem:
            return graph
    raise ModelError(
        f"{card.name}: this network cannot be written as ONNX for images of any size ({problem}); "
        "run it by torch."
    )


class _Plain(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        restored: Tensor = self.network(image).image
        return restored


class _Padded(_Plain):
    """Always pads, where a network asks first whether it must: a graph cannot ask."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # Division of positive numbers: ONNX rounds towards zero.
        below, right = (
            (side + _STRIDE - 1) // _STRIDE * _STRIDE - side for side in (height, width)
        )
        padded = functional.pad(image, (0, right, 0, below), mode="replicate")
        restored: Tensor = self.network(padded).image
        return restored[..., :height, :width]


def _exported(network: nn.Module) -> Any:  # noqa: ANN401 - onnx.ModelProto has no types
    size = torch.export.Dim
    dynamic = {0: size("B"), 2: size("H", min=2), 3: size("W", min=2)}
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 1, 130, 200),),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=[graphs.INPUT],
            output_names=[graphs.OUTPUT],
            opset_version=graphs.OPSET,
            verbose=False,
        )
        return program.model_proto  # type: ignore[union-attr]


def _without_weights(model: Any, tensors: graphs.Tensors, key: str) -> bytes:  # noqa: ANN401
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    graph.name = "cddnet"
    model.producer_version = ""
    for side, name in zip(graph.output[0].type.tensor_type.shape.dim, ("B", "", "H", "W")):  # noqa: B905
        if name:
            side.dim_param = name
    known = {item.name: _own_name(item.name, tensors) for item in graph.initializer}
    learned = {old: new for old, new in known.items() if new}
    for node in graph.node:
        node.input[:] = [learned.get(name, name) for name in node.input]
    kept = [item for item in graph.initializer if item.name not in learned]
    if any(item.ByteSize() > _LARGEST_KEPT_BYTES for item in kept):
        raise ModelError("the exporter changed weights of this network; run it by torch.")
    del graph.initializer[:]
    graph.initializer.extend(kept)
    wanted = {name: tensors[name].shape for name in learned.values()}
    return graphs.sealed(model.SerializeToString(deterministic=True), key, wanted)


def _own_name(name: str, tensors: graphs.Tensors) -> str:
    """Name in the weights file: wrappers put theirs before it."""
    while name.startswith("network."):
        name = name.removeprefix("network.")
        if name in tensors:
            return name
    return ""


def _difference(model: bytes, network: nn.Module) -> str:
    """What differs between a graph and its network, "" if nothing does."""
    session = optional("onnxruntime", "onnx").InferenceSession(
        model, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    for count, height, width in _ODD_SIZES:
        image = rng.normal(0, 0.1, (count, 1, height, width)).astype(np.float32)
        (found,) = session.run(None, {graphs.INPUT: image})
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).image.numpy()
        if found.shape != expected.shape:
            return f"shape {found.shape} instead of {expected.shape}"
        worst = float(np.abs(found - expected).max())
        if not worst <= _AGREEMENT:
            return f"differs by {worst:.1e} of network range"
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Its own library makes the exporter warn; what matters is tested afterwards."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
