"""Write the graph (.graph) beside every shipped weights file that the light engines can run.

    python benchmarks/graphs.py

Needs onnx, onnxscript and onnxruntime. A graph holds no weights and is tested against torch before
it is written; the slow tests compare the shipped ones with a fresh export.
"""

from __future__ import annotations

from cddnet.errors import ModelError
from cddnet.runtime import store
from cddnet.runtime.export import export_graph
from cddnet.runtime.graphs import SUFFIX


def main() -> None:
    for name, weights in store.shipped().items():
        try:
            graph = export_graph(weights)
        except ModelError as error:
            print(f"{name}: none, {error}")
            continue
        path = weights.with_suffix(SUFFIX)
        path.write_bytes(graph)
        print(f"{path.name}: {len(graph)} bytes")


if __name__ == "__main__":
    main()
