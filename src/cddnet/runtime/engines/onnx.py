"""ONNX Runtime, float32: the light engine; torch is never imported."""

from __future__ import annotations

from importlib.util import find_spec

from cddnet.runtime import graphs, processor
from cddnet.runtime.engines import Described, Engine, Images, Job
from cddnet.runtime.engines._optional import optional

_ERRORS_ONLY = 3


def refusal(job: Job) -> str:
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install cddnet[onnx]"
    return graph_refusal(job)


def graph_refusal(job: Job) -> str:
    """Why an engine that needs a graph and a processor cannot run a job."""
    if job.device != "cpu":
        return f"it runs on the processor alone, not on {job.device}"
    if graphs.find(job.weights, job.card) is None:
        return f"there is no graph of network {job.card.model} with these options"
    return ""


def open_engine(job: Job) -> Engine:
    return _OnnxRuntime(job)


class _OnnxRuntime:
    name, batch = "onnx", 1

    def __init__(self, job: Job) -> None:
        runtime = optional("onnxruntime", "onnx")
        runtime.disable_telemetry_events()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads = job.threads
        options.log_severity_level = _ERRORS_ONLY
        # Between two slices its threads would else burn the time of reading and writing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(
            model_of(job), options, providers=["CPUExecutionProvider"]
        )
        engine = f"onnxruntime {runtime.__version__} {processor.units()}"
        self.described = Described(engine, "cpu", "float32")

    def run(self, image: Images) -> Images:
        (denoised,) = self._session.run([graphs.OUTPUT], {graphs.INPUT: image})
        result: Images = denoised
        return result


def model_of(job: Job) -> bytes:
    """The whole model of a job whose graph there is."""
    graph = graphs.find(job.weights, job.card) or b""
    return graphs.complete(graph, graphs.read_tensors(job.weights, job.card))
