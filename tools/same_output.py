"""Two checkouts write the same: every byte of every file, every number of every result.

    python tools/same_output.py OLD NEW [--data FOLDER ...] [--only NAME] [--keep FOLDER]

OLD and NEW are checkouts of this repository. Each command below runs with the code of both, in
folders of the same names, on the packaged series, on the packaged codec samples and on volumes made
from the series; `--data` adds DICOM folders or files. Exit codes, files and the results of `--json`
are compared. Ends with status 1 where something differs. Text on the terminal is not compared.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAIN = "from cddnet.cli import main; main()"
# How long something took, and where: never the same twice.
UNLIKE = frozenset({"seconds", "seconds_per_slice", "cddnet"})


class Case(NamedTuple):
    """A command of cddnet. `{in}` are the inputs, `{out}` is the folder of what it writes."""

    name: str
    arguments: list[str]


def cases(given: list[str]) -> Iterator[Case]:
    """Every case: for the packaged series, other formats of it, and `given` further inputs."""
    light = ["--engine", "onnx", "--force", "--threads", "1"]
    for source in ("series", "nifti.nii.gz", "array.npy", "meta.mha", *given):
        suffix = "".join(Path(source).suffixes) if source not in given else ""
        places = [f"{{in}}/{source}", f"{{out}}/result{suffix}", "--force"]
        for engine in ("torch_eager", "onnx") if source == "series" else ("onnx",):
            for strength in ("0", "0.5", "1") if source == "series" else ("1",):
                chosen = ["--engine", engine, "--strength", strength, "--threads", "1"]
                yield Case(f"denoise {source} {engine} {strength}", ["denoise", *places, *chosen])
        noise = ["--dose", "0.3", "--seed", "3"]
        yield Case(f"simulate {source}", ["simulate", *places, *noise])
        yield Case(f"depth {source}", ["depth", places[0], "{out}/result", "--force"])
        window = ["--window", "-160", "240"]
        yield Case(f"export {source}", ["export", places[0], "{out}/pictures", *window])
        yield Case(f"info {source}", ["info", places[0]])
    for codec in sorted(item.name for item in _samples(Path(__file__).parents[1]).iterdir()):
        places = [f"{{in}}/codecs/{codec}", "{out}/result"]
        yield Case(f"denoise {codec}", ["denoise", *places, *light])
    places = ["{in}/series", "{out}/result", "--uncertainty", "{out}/map"]
    moment = ["--created", "2020-01-01T00:00:00+00:00"]
    yield Case("denoise uncertainty", ["denoise", *places, *moment, *light])
    for kind in ("water", "thorax", "rods"):
        small = ["--slices", "2", "--size", "256", "--dose", "0.5", "--seed", "1"]
        yield Case(f"phantom {kind}", ["phantom", "{out}/result", "--kind", kind, *small])
    split = ["--split", "0.4/0.3/0.3", "--seed", "2"]
    yield Case("prepare", ["prepare", "{in}/tree", "{out}/store", *split])
    rows = ["{in}/series", "{in}/denoised", "--low-dose", "{in}/low_dose"]
    files = [f"--{kind}={{out}}/figures.{kind}" for kind in ("json", "csv", "markdown")]
    for protocol, *extra in (("redcnn",), ("ldctbench-abdomen", "--fidelity-only", "--mask=body")):
        words = ["evaluate", *rows, "--protocol", protocol, *extra, *files]
        yield Case(f"evaluate {protocol}", words)
    yield Case("refused name", ["denoise", "{in}/nothing", "{out}/result"])
    yield Case("refused values", ["denoise", "{in}/zeros.npy", "{out}/result.npy"])


def make_inputs(old: Path, folder: Path, data: list[Path]) -> list[str]:
    """Write the inputs that both checkouts read. Returns the names of those from `data`."""
    shutil.copytree(old / "src" / "cddnet" / "data" / "demo" / "series", folder / "series")
    shutil.copytree(_samples(old), folder / "codecs")
    made = {
        "nifti.nii.gz": ["denoise", "--strength", "0"],
        "array.npy": ["denoise", "--strength", "0"],
        "meta.mha": ["denoise", "--strength", "0"],
        "low_dose": ["simulate", "--dose", "0.25"],
    }
    for name, (command, *options) in made.items():
        _must(_run(old, [command, str(folder / "series"), str(folder / name), *options]))
    _must(_run(old, ["denoise", str(folder / "low_dose"), str(folder / "denoised"), "--force"]))
    for patient in range(5):
        target = folder / "tree" / f"patient{patient}"
        seed = ["--seed", str(patient), "--slices", "1", "--size", "128", "--dose", "0.5"]
        _must(_run(old, ["phantom", str(target), "--kind", "thorax", *seed]))
    write_zeros = "import sys, numpy; numpy.save(sys.argv[1], numpy.zeros((1, 64, 64), 'float32'))"
    subprocess.run([sys.executable, "-c", write_zeros, folder / "zeros.npy"], check=True)
    names = []
    for number, path in enumerate(data):
        names.append(f"given{number}_{path.name}")
        (folder / names[-1]).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    return names


def run_case(checkout: Path, case: Case, inputs: Path, folder: Path) -> None:
    """Run a case with one checkout; its files, exit code and result end up in `folder`.

    The paths that the command sees are the same for every checkout, as results may hold them.
    """
    out = inputs.parent / "out"
    out.mkdir()
    arguments = [part.format(**{"in": "in", "out": "out"}) for part in case.arguments]
    if arguments[0] != "evaluate":
        arguments.append("--json")
    done = _run(checkout, arguments, inputs.parent)
    (out / "exit_code").write_text(str(done.returncode))
    if arguments[0] != "evaluate":
        (out / "stdout.json").write_text(done.stdout)
    out.rename(folder)


def differences(old: Path, new: Path) -> Iterator[str]:
    """What differs between two folders."""
    files = sorted({path.relative_to(root) for root in (old, new) for path in root.rglob("*")})
    for name in files:
        one, other = old / name, new / name
        if not (one.exists() and other.exists()):
            yield f"{name}: only with {'OLD' if one.exists() else 'NEW'}"
        elif one.is_dir() or filecmp.cmp(one, other, shallow=False):
            continue
        elif name.suffix == ".json" and (pair := _both_json(one, other)):
            yield from (f"{name}{where}" for where in _unequal(*pair, ""))
        else:
            yield f"{name}: {_first_unequal_byte(one, other)}"


def _both_json(one: Path, other: Path) -> tuple[object, object] | None:
    try:
        return json.loads(one.read_text()), json.loads(other.read_text())
    except ValueError:
        return None


def _unequal(one: object, other: object, where: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - UNLIKE):
            yield from _unequal(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _unequal(*pair, f"{where}[{index}]")
    elif type(one) is not type(other) or repr(one) != repr(other):
        yield f"{where}: {one!r} with OLD, {other!r} with NEW"


def _first_unequal_byte(one: Path, other: Path) -> str:
    first, second = one.read_bytes(), other.read_bytes()
    at = next(
        (index for index, pair in enumerate(zip(first, second, strict=False)) if len({*pair}) > 1),
        min(len(first), len(second)),
    )
    return f"{len(first)} and {len(second)} bytes, unequal from byte {at}"


def _samples(checkout: Path) -> Path:
    return checkout / "src" / "cddnet" / "data" / "codecs"


def _run(
    checkout: Path, arguments: list[str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise SystemExit(f"an input cannot be made: {done.args[3:]}\n{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="DICOM folders or files")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--keep", type=Path, help="a new folder for everything that was written")
    chosen = parser.parse_args()
    old, new = chosen.old.resolve(), chosen.new.resolve()
    differing = count = 0
    with tempfile.TemporaryDirectory() as name:
        work = chosen.keep or Path(name)
        inputs = work.resolve() / "in"
        inputs.mkdir(parents=True)
        given = make_inputs(old, inputs, chosen.data)
        for case in cases(given):
            if chosen.only not in case.name:
                continue
            count += 1
            folders = [work / side / case.name.replace(" ", "_") for side in ("old", "new")]
            for checkout, folder in zip((old, new), folders, strict=True):
                folder.parent.mkdir(exist_ok=True)
                run_case(checkout, case, inputs, folder)
            found = list(differences(*folders))
            code = (folders[0] / "exit_code").read_text()
            print(f"{case.name}: exit {code}, {len(found) or 'no'} differences", flush=True)
            for line in found:
                print(f"  {line}", flush=True)
            differing += bool(found)
    print(f"{differing} of {count} cases differ")
    return 1 if differing or not count else 0


if __name__ == "__main__":
    sys.exit(main())
