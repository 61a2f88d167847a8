"""How long storescu needs to bring the same files to Orthanc and to the node, each in its turn.

Both are processes of their own on the same disk, and say "stored" only after a flush: the node
always, Orthanc by its default. The node has no rule, so that nothing is denoised meanwhile.
"""

import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from node_process import running_node
from orthanc_peer import Orthanc
from pydicom import dcmread
from small_node import node_config

import cddnet
from peers import require

DEMO = Path(cddnet.__file__).parent / "data" / "demo" / "series"


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of every round."""

    orthanc_s: tuple[float, ...]
    node_s: tuple[float, ...]

    @property
    def ratio(self):
        """Median time of Orthanc over that of the node: above one the node is the faster."""
        return statistics.median(self.orthanc_s) / statistics.median(self.node_s)


def slices(folder, count, series):
    """The demonstration series over and over, 512 x 512, not compressed, as one new series."""
    folder.mkdir()
    originals = [dcmread(file) for file in sorted(DEMO.iterdir())]
    for image in originals:
        image.decompress(generate_instance_uid=False)
        image.StudyInstanceUID = f"2.25.7720.{series}"
        image.SeriesInstanceUID = f"2.25.7720.{series}.1"
    for number in range(count):
        image = originals[number % len(originals)]
        image.SOPInstanceUID = f"2.25.7720.{series}.1.{number + 1}"
        image.InstanceNumber = number + 1
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{number:04}.dcm")
    return folder


def took_s(folder, called, port):
    """Seconds of one storescu."""
    titles = ("-aet", "SCANNER", "-aec", called)
    begun = time.monotonic()
    subprocess.run(
        [require("storescu"), "+sd", *titles, "127.0.0.1", str(port), str(folder)],
        check=True,
        capture_output=True,
    )
    return time.monotonic() - begun


def measured(folder, *, count, rounds):
    """Times of rounds of new images; who comes first changes from round to round."""
    orthanc = Orthanc(folder)
    config = node_config(folder / "node", {}, rules=[], quiet_s=3600, timeout_s=60)
    found = {"ARCHIVE": [], "CDDNET": []}
    with orthanc.running(), running_node(config, folder) as node:
        ports = {"ARCHIVE": orthanc.port, "CDDNET": node.port}
        for number in range(1, rounds + 1):
            files = slices(folder / f"round{number}", count, number)
            for called in sorted(ports, reverse=number % 2 == 0):
                found[called].append(took_s(files, called, ports[called]))
        assert orthanc.get("/statistics")["CountInstances"] == count * rounds
        inbox = [path for path in (folder / "node" / "inbox").rglob("*.dcm") if path.is_file()]
        assert len(inbox) == count * rounds
    return Times(orthanc_s=tuple(found["ARCHIVE"]), node_s=tuple(found["CDDNET"]))
