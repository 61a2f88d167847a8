"""ONNX graphs without weights: a network's shape once, its weights only in their own file.

A graph beside the weights, `NAME.graph`, is an ONNX model whose learned initializers are left out;
they are put in from the safetensors file, in float32 whatever they are stored in. It fits every
weights file of the same network and options. Its last field is a SHA-256 over what is before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from cddnet.errors import ModelError
from cddnet.models._cards import FETCH_AGAIN, Card, read_checked
from cddnet.runtime import store
from cddnet.runtime._protobuf import field, fields

SUFFIX = ".graph"
OPSET = 18
INPUT, OUTPUT = "image", "denoised"

# Fields of ModelProto, GraphProto, TensorProto, StringStringEntryProto and ValueInfoProto.
_GRAPH, _METADATA = 7, 14
_INITIALIZER = 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_KEY, _VALUE = 1, 2
_FLOAT = 1
_NETWORK, _WANTED, _DIGEST = "cddnet.network", "cddnet.weights", "cddnet.sha256"

Tensors = Mapping[str, NDArray[Any]]


def find(weights: Path, card: Card) -> bytes | None:
    """The graph of a weights file: its own, else a shipped one of the same network and options.

    Raises: ModelError where a graph is damaged.
    """
    beside = weights.with_suffix(SUFFIX)
    shipped = (path.with_suffix(SUFFIX) for path in store.shipped().values())
    for path in (beside, *shipped):
        if path.is_file() and _network(graph := _intact(path)) == network_key(card):
            return graph
    return None


def network_key(card: Card) -> str:
    """What a graph depends on: the network and its options."""
    return json.dumps([card.model, card.options], sort_keys=True)


def read_tensors(weights: Path, card: Card) -> Tensors:
    """The learned tensors by name, checked against the card.

    Raises: ModelError where the file is missing, damaged, no safetensors or of another range.
    """
    try:
        tensors: Tensors = load_tensors(read_checked(weights, card))
    except SafetensorError as error:
        raise ModelError(
            f"{weights.name}: weights do not fit {card.model}: {error}. {FETCH_AGAIN}"
        ) from error
    return tensors


def complete(graph: bytes, tensors: Tensors) -> bytes:
    """A whole ONNX model: the graph with its weights in it, as float32.

    Raises: ModelError where a tensor is missing or has another shape.
    """
    wanted = json.loads(_metadata(graph)[_WANTED])
    wrong = [
        name
        for name, shape in wanted.items()
        if name not in tensors or list(tensors[name].shape) != shape
    ]
    if wrong:
        raise ModelError(
            f"the weights do not fit the graph: '{wrong[0]}' is missing or differs; run them by "
            "torch."
        )
    initializers = b"".join(field(_INITIALIZER, _tensor(name, tensors[name])) for name in wanted)
    return b"".join(
        field(_GRAPH, value + initializers)
        if number == _GRAPH and isinstance(value, bytes)
        else raw
        for number, value, raw in fields(graph)
        if not _is_digest(number, value)
    )


def sealed(graph: bytes, key: str, wanted: Mapping[str, tuple[int, ...]]) -> bytes:
    """The graph with what it is of, the names and shapes it lacks, and the digest of it all."""
    graph += _entry(_NETWORK, key) + _entry(_WANTED, json.dumps(wanted))
    return graph + _entry(_DIGEST, hashlib.sha256(graph).hexdigest())


@cache
def _intact(path: Path) -> bytes:
    graph = path.read_bytes()
    try:
        *before, (_, _, last) = fields(graph)
        body = b"".join(raw for _, _, raw in before)
        if last == _entry(_DIGEST, hashlib.sha256(body).hexdigest()):
            return graph
    except ValueError:
        pass
    raise ModelError(
        f"{path.name}: this graph is damaged or was changed; fetch it again, or remove it to run "
        "the network by torch."
    )


def _network(graph: bytes) -> str:
    return _metadata(graph).get(_NETWORK, "")


def _metadata(graph: bytes) -> dict[str, str]:
    entries = (value for number, value, _ in fields(graph) if number == _METADATA)
    return dict(_pair(entry) for entry in entries if isinstance(entry, bytes))


def _pair(entry: bytes) -> tuple[str, str]:
    parts = {number: value for number, value, _ in fields(entry)}
    key, value = parts.get(_KEY, b""), parts.get(_VALUE, b"")
    return bytes(key).decode(), bytes(value).decode()


def _entry(key: str, value: str) -> bytes:
    return field(_METADATA, field(_KEY, key.encode()) + field(_VALUE, value.encode()))


def _is_digest(number: int, value: bytes | int) -> bool:
    return number == _METADATA and isinstance(value, bytes) and _pair(value)[0] == _DIGEST


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    return (
        b"".join(field(_DIMS, length) for length in values.shape)
        + field(_DATA_TYPE, _FLOAT)
        + field(_TENSOR_NAME, name.encode())
        + field(_RAW_DATA, np.ascontiguousarray(values, dtype="<f4").tobytes())
    )
