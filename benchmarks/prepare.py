"""`cddnet prepare` killed at random, and its memory and time on 10,000 slices.

    python benchmarks/prepare.py kill SOURCE [--kills 10] [--options "--seed 1"]
    python benchmarks/prepare.py memory [--slices 10000] [--flat] [--folder FOLDER]

kill: prepares SOURCE once without interruption, then again with kill -9 at random moments, resuming
after each; prints whether the results agree byte by byte. memory: writes a synthetic tree of 512 x
512 slices (half a megabyte each; --flat: all in one folder), prepares it, reads every slice back
and prints the peak resident memory and time of each step.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

SIZE = 512
SLICES_PER_SERIES = 400
MOST_MB = 2000
READ = """
import sys
from pathlib import Path
from cddnet.training.splits import prepared_slices
from cddnet.training.store import PreparedSet
prepared = PreparedSet.open(Path(sys.argv[1]))
sides = [prepared_slices(prepared, side) for side in ("train", "validation", "test")]
print(sum(item.hu.shape[0] > 0 for side in sides for group in side.values() for item in group))
"""


def tree_hash(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return total.hexdigest()


def command(source: Path, out: Path, options: list[str]) -> list[str]:
    code = "import sys; sys.argv[0] = 'cddnet'; from cddnet.cli import main; main()"
    return [sys.executable, "-c", code, "prepare", str(source), str(out), *options]


def measured(arguments: list[str]) -> tuple[float, float, str]:
    """Seconds, peak resident memory in MB and last line of a command."""
    started = time.perf_counter()
    code = (
        "import resource, subprocess, sys\n"
        "run = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "sys.stderr.write(run.stderr)\n"
        "print((run.stdout.splitlines() or [''])[-1])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(run.returncode)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    *_, last, peak = run.stdout.splitlines()
    return time.perf_counter() - started, int(peak) / 1024, last


def kill(source: Path, kills: int, options: list[str], folder: Path) -> None:
    rng = random.Random(0)
    whole = folder / "whole"
    started = time.perf_counter()
    subprocess.run(command(source, whole, options), check=True)
    duration, expected = time.perf_counter() - started, tree_hash(whole)
    print(f"uninterrupted: {duration:.1f} s, {expected[:16]}")
    done, number, same = 0, 0, True
    while done < kills or (folder / f"out{number}").exists():
        out = folder / f"out{number}"
        process = subprocess.Popen(command(source, out, options), stdout=subprocess.DEVNULL)
        started = time.perf_counter()
        try:
            wait = rng.uniform(0.5, 0.8 * duration) if done < kills else None
            if process.wait(timeout=wait) != 0:
                raise SystemExit("a resumed run failed")
            found = tree_hash(out)
            same = same and found == expected
            print(f"finished: {found[:16]} {'identical' if found == expected else 'DIFFERENT'}")
            # The first run is slower than the others, whose files the system remembers.
            duration = min(duration, time.perf_counter() - started)
            number += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            stored = len(list((out / "slices").glob("*.npy"))) if out.exists() else 0
            print(f"kill {done} after {wait:.2f} s, {stored} files stored")
    print(f"{done} kills, {number} finished sets, {'all identical' if same else 'DIFFERENT'}")
    if not same:
        raise SystemExit(1)


def write_tree(folder: Path, slices: int, flat: bool) -> None:
    """Noise in a disc, other in each slice."""
    rows, columns = np.indices((SIZE, SIZE)) - SIZE / 2
    inside = np.hypot(rows, columns) < 200
    noise = np.random.default_rng(0).normal(40, 20, (SIZE, SIZE))
    for number in range(slices):
        series, place = divmod(number, SLICES_PER_SERIES)
        hu = np.where(inside, np.roll(noise, (series, place), (0, 1)), -1000)
        parent = folder if flat else folder / f"P{series:03}"
        parent.mkdir(parents=True, exist_ok=True)
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}.3"
        for keyword, value in {
            "SOPClassUID": uid.CTImageStorage,
            "SOPInstanceUID": f"2.25.{number + 1}.3",
            "StudyInstanceUID": f"2.25.{series + 1}.1",
            "SeriesInstanceUID": f"2.25.{series + 1}.2",
            "FrameOfReferenceUID": f"2.25.{series + 1}.4",
            "PatientID": f"P{series:03}",
            "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "SliceThickness": "1",
            "ConvolutionKernel": "B30f",
            "ImagePositionPatient": [-180, -180, place],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": ["0.7", "0.7"],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": SIZE,
            "Columns": SIZE,
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleIntercept": "-1024",
            "RescaleSlope": "1",
        }.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = np.rint(hu + 1024).astype("<i2").tobytes()
        dataset.save_as(parent / f"{(number * 7919) % slices:06}.dcm", enforce_file_format=True)


def memory(slices: int, flat: bool, folder: Path) -> None:
    write_tree(folder / "source", slices, flat)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{slices} slices written (this process {own:.0f} MB)", flush=True)
    steps = {
        "prepare": command(folder / "source", folder / "out", []),
        "--check": command(folder / "out", Path("--check"), []),
        "read all": [sys.executable, "-c", READ, str(folder / "out")],
    }
    worst = 0.0
    for name, arguments in steps.items():
        seconds, peak_mb, last = measured(arguments)
        worst = max(worst, peak_mb)
        print(f"{name:9} {seconds:7.1f} s  peak {peak_mb:6.0f} MB  {last}", flush=True)
    print(f"worst {worst:.0f} MB, allowed {MOST_MB} MB")
    if worst > MOST_MB:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    killing = tasks.add_parser("kill")
    killing.add_argument("source", type=Path)
    killing.add_argument("--kills", type=int, default=10)
    killing.add_argument("--options", default="", help="of cddnet prepare, in one text")
    remembering = tasks.add_parser("memory")
    remembering.add_argument("--slices", type=int, default=10_000)
    remembering.add_argument("--flat", action="store_true")
    for task in (killing, remembering):
        task.add_argument("--folder", type=Path, help="with room; default the system's")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        if chosen.task == "kill":
            kill(chosen.source, chosen.kills, shlex.split(chosen.options), Path(name))
        else:
            memory(chosen.slices, chosen.flat, Path(name))


if __name__ == "__main__":
    main()
