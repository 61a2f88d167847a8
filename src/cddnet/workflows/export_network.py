"""Export a network as one ONNX file, for other people's pipelines."""

from __future__ import annotations

from pathlib import Path

from cddnet.errors import FormatError
from cddnet.formats._atomic import new_file
from cddnet.models._cards import read_card
from cddnet.runtime import graphs, store


def export_network(model: str | Path, target: Path) -> str:
    """Write a new file; returns what it is, in words.

    Raises: FormatError where it exists or is no .onnx, ModelError where the network cannot be
    written so.
    """
    if target.suffix != ".onnx":
        raise FormatError(f"{target}: an ONNX file ends in .onnx; rename it.")
    weights = store.find(model)
    card = read_card(weights)
    graph = graphs.find(weights, card)
    if graph is None:
        from cddnet.runtime.export import export_graph

        graph = export_graph(weights)
    whole = graphs.complete(graph, graphs.read_tensors(weights, card))
    with new_file(target) as file:
        file.write_bytes(whole)
    return (
        f"{card.name}, ONNX opset {graphs.OPSET}, float32, '{graphs.INPUT}' (B, 1, H, W) of any "
        f"size in HU / {card.hu_per_unit:g} to '{graphs.OUTPUT}', weights SHA-256 "
        f"{card.sha256[:16]}"
    )
