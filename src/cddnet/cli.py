"""The command line: thin commands; whatever needs torch is imported inside them.

Above 300 lines: every command, its options and one call, in one place.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cddnet import __version__
from cddnet.console import echo, tolerate_any_encoding
from cddnet.errors import CddnetError

if TYPE_CHECKING:
    from cddnet.training.manifest import Manifest

app = typer.Typer(
    name="cddnet",
    help="Low-dose CT denoising. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class ImageType(str, Enum):
    """Value 2 of the DICOM ImageType of what is written."""

    secondary = "SECONDARY"
    primary = "PRIMARY"


class EvaluationMode(str, Enum):
    """What an evaluation has to compare with."""

    paired = "paired"
    unpaired = "unpaired"
    phantom = "phantom"


class Layout(str, Enum):
    """How the folders of a data set are named."""

    auto = "auto"
    mayo2016 = "mayo2016"
    tcia_ldct = "tcia-ldct"
    tree = "tree"
    in_gt = "in-gt"


class EvaluationMask(str, Enum):
    """Which pixels `evaluate` counts."""

    none = "none"
    body = "body"


class Picture(str, Enum):
    """What `export` writes."""

    png = "png"
    jpeg = "jpeg"


Input = Annotated[Path, typer.Argument(help="A CT file or a folder of one.", show_default=False)]


def _folder(text: str | Path) -> Path:
    """The name of a folder to write, checked as `denoise` checks the names of its outputs."""
    from cddnet.formats import is_folder

    is_folder(text, from_folder=True)
    return Path(text)


NewFolder = Annotated[
    Path, typer.Argument(help="A new or empty folder.", show_default=False, parser=_folder)
]
Model = Annotated[str, typer.Option(help="A shipped name or a .safetensors file.")]
Strength = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="0 the source, 1 the network; default: the model card's."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Engine = Annotated[
    str, typer.Option(help="auto (the fastest there is), openvino, onnx or torch_eager.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Of the network; default: the cores there are, at most 8."),
]
Series = Annotated[
    str | None, typer.Option(help="Series UID, or its ending, where a folder holds several.")
]
Acquisition = Annotated[
    str | None,
    typer.Option(help="Acquisition number or label, where a series holds several at its places."),
]
WindowHU = Annotated[
    tuple[float, float] | None,
    typer.Option("--window", metavar="LOW HIGH", help="HU that 8- or 16-bit pictures stand for."),
]
Created = Annotated[
    str | None,
    typer.Option(help="Moment of creation for the headers, with a zone; default: not said."),
]
SliceAxis = Annotated[
    int | None,
    typer.Option(
        min=0, max=2, help="Axis of the slices in an array, where the file states no orientation."
    ),
]
Kernel = Annotated[
    str, typer.Option(help="auto (from the series' own noise), soft, sharp or a tag such as B40f.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Even what the fitness check refuses; the result says so.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def denoise(
    source: Input,
    output: Annotated[
        str,
        typer.Argument(
            help="A new or empty folder (DICOM, or PNG of the source's names), or a new file. A "
            "name that ends with / is a folder."
        ),
    ],
    model: Model = "default",
    strength: Strength = None,
    device: Device = "auto",
    series: Series = None,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    image_type: Annotated[ImageType, typer.Option(help="DICOM ImageType, value 2.")] = (
        ImageType.secondary
    ),
    engine: Engine = "auto",
    threads: Threads = None,
    force: Force = False,
    uncertainty: Annotated[
        Path | None,
        typer.Option(help="A new file for the expected error of each pixel: .dcm of DICOM, .npy."),
    ] = None,
    created: Created = None,
    as_json: AsJson = False,
) -> None:
    """Denoise a CT series: DICOM in, derived DICOM out; or NIfTI, MetaImage, arrays, pictures."""
    from cddnet.runtime.processor import chosen_threads
    from cddnet.workflows.denoise import DenoiseOptions, denoise_file

    options = DenoiseOptions(
        model=model,
        strength=strength,
        device=device,
        series=series,
        acquisition=acquisition,
        window_hu=window,
        slice_axis=slice_axis,
        image_type=image_type.value,
        engine=engine,
        threads=threads,
        force=force,
        uncertainty=uncertainty,
        created=_moment(created),
    )
    with _progress() as show:
        volume = denoise_file(
            source, output, options, lambda done, total: show("denoising", done, total)
        )
    step = volume.derivation[-1]
    if as_json:
        record = {"output": str(output), "slices": volume.shape[0], "notes": volume.notes}
        if uncertainty:
            record["uncertainty"] = str(uncertainty)
        _print_json(record | {"parameters": dict(step.parameters), "weights": step.weights_sha256})
        return
    for note in volume.notes:
        echo(f"note: {note}")
    told = dict(step.parameters)
    count = chosen_threads(threads)
    echo(f"engine: {told['engine']}, {told['precision']}, {told['device']}, {count} threads")
    echo(f"{output}: {volume.shape[0]} slices, {step.label}. Research use only.")
    if uncertainty:
        echo(f"{uncertainty}: expected error (SD, HU) about a noisy full dose")


@app.command()
def simulate(
    source: Input,
    output: Annotated[
        str, typer.Argument(help="A new or empty folder (DICOM), or a new file; as in `denoise`.")
    ],
    dose: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fraction of the source's own dose.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    kernel: Kernel = "auto",
    electronic: Annotated[
        float | None,
        typer.Option(min=0.0, help="Electronic noise, photons per reading; default: calibrated."),
    ] = None,
    series: Series = None,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Take a CT series to a fraction of its dose: noise of its own texture and level is added."""
    from cddnet.workflows.simulate import SimulateOptions, simulate_file

    options = SimulateOptions(
        dose_fraction=dose,
        seed=seed,
        kernel=kernel,
        electronic_std=electronic,
        series=series,
        acquisition=acquisition,
        window_hu=window,
        slice_axis=slice_axis,
        force=force,
    )
    with _progress() as show:
        result = simulate_file(
            source, output, options, lambda done, total: show("simulating", done, total)
        )
    step = result.volume.derivation[-1]
    if as_json:
        photons = {"fewest": result.fewest_photons, "starved_slices": result.starved_slices}
        record = {"output": str(output), "slices": result.volume.shape[0]}
        record |= {"source": result.source.basis, "starved_share": result.starved}
        _print_json(record | {"photons": photons, "parameters": dict(step.parameters)})
        return
    echo(f"source: {result.source.basis}")
    for note in filter(None, (*result.volume.notes, result.starvation)):
        echo(f"note: {note}")
    echo(f"{output}: {result.volume.shape[0]} slices, {step.label}. Research use only.")


@app.command()
def depth(
    source: Input,
    output: NewFolder,
    dose: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fraction of the source's own dose.")
    ] = 1.0,
    kernel: Kernel = "auto",
    series: Series = None,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    created: Created = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Map how deep each pixel lies for the X-rays and how noisy that makes it: maps and PNG."""
    from cddnet.workflows.depth import DepthOptions, depth_file

    options = DepthOptions(
        dose_fraction=dose,
        kernel=kernel,
        series=series,
        acquisition=acquisition,
        window_hu=window,
        slice_axis=slice_axis,
        created=_moment(created),
        force=force,
    )
    with _progress() as show:
        result = depth_file(source, output, options, show)
    if as_json:
        _print_json({"output": str(output), "dose_fraction": dose} | result._asdict())
        return
    for note in result.notes:
        echo(f"note: {note}")
    echo(f"source: {result.basis}")
    (low, high), (quiet, noisy) = result.depth_range, result.noise_range_hu
    echo(
        f"{result.slices} slices, {dose:.0%} of the source's dose: radiological depth {low:.2f} to "
        f"{high:.2f}, predicted noise {quiet:.1f} to {noisy:.1f} HU, in the body "
        f"{result.body_noise_hu:.1f} HU (median of the slices' medians)"
    )
    echo(f"{output}: {', '.join(result.files)} and png/. Research use only.")


@app.command()
def export(
    source: Input,
    output: NewFolder,
    window: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOW HIGH", help="HU of black and white.", show_default=False),
    ],
    picture: Annotated[Picture, typer.Option("--format", help="jpeg is lossy.")] = Picture.png,
    bits: Annotated[int, typer.Option(help="8, or 16 for png.")] = 8,
    series: Series = None,
    acquisition: Acquisition = None,
    slice_axis: SliceAxis = None,
    as_json: AsJson = False,
) -> None:
    """Write every slice as a grey picture of a window, rounded to the nearest level."""
    from cddnet.workflows.export import ExportOptions, export_file

    options = ExportOptions(
        window_hu=window,
        picture=picture.value,
        bits=bits,
        series=series,
        acquisition=acquisition,
        slice_axis=slice_axis,
    )
    with _progress() as show:
        result = export_file(
            source, output, options, lambda done, total: show("exporting", done, total)
        )
    if as_json:
        chosen = {"window_hu": window, "format": picture.value, "bits": bits}
        _print_json({"output": str(output)} | chosen | result._asdict())
        return
    for note in result.notes:
        echo(f"note: {note}")
    echo(f"lost: {result.lost}")
    echo(
        f"{output}: {result.slices} slices, window [{window[0]:g}, {window[1]:g}] HU, {bits} bits "
        f"{picture.value}. Research use only."
    )


@app.command()
def explain(
    source: Input,
    output: NewFolder,
    slice_number: Annotated[
        int, typer.Option("--slice", min=1, help="From 1, along the series.", show_default=False)
    ],
    roi: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="ROW COLUMN SIDE", help="Centre, from 0, and side, in voxels."),
    ] = None,
    roi_mm: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="X Y SIDE", help="Centre in patient coordinates and side, in mm."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="The series in full dose; default: the network's own output."),
    ] = None,
    model: Model = "default",
    strength: Strength = None,
    device: Device = "auto",
    block: Annotated[
        int | None, typer.Option(help="Pixels per side of what is replaced; default: 16.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the replacements.")] = 0,
    series: Series = None,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Map what of a low-dose slice decides a denoised region: by replacing it, and by gradients."""
    from cddnet.workflows.explain import EffectSettings, ExplainOptions, Watch, explain_file

    options = ExplainOptions(
        slice_number=slice_number,
        roi=roi,
        roi_mm=roi_mm,
        reference=reference,
        model=model,
        strength=strength,
        device=device,
        seed=seed,
        series=series,
        acquisition=acquisition,
        window_hu=window,
        slice_axis=slice_axis,
        force=force,
        effects=EffectSettings() if block is None else EffectSettings(block=block),
    )
    with _progress() as show:
        watch = Watch(show, lambda line: echo(line, err=True))
        result = explain_file(source, output, options, watch)
    if as_json:
        _print_json({"output": str(output), "files": result.files} | result.record)
        return
    for line in result.described:
        echo(line)
    echo(f"{output}: {', '.join(result.files)}. Research use only.")


@app.command()
def info(
    source: Input,
    acquisition: Acquisition = None,
    slice_axis: SliceAxis = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file or folder holds, and whether it may be denoised."""
    from cddnet.workflows.info import describe

    series = describe(source, acquisition, slice_axis=slice_axis)
    if as_json:
        _print_json([item._asdict() for item in series])
        return
    for item in series:
        echo(f"{item.uid or source}\n  {item.description}")
        for note in item.notes:
            echo(f"  note: {note}")
        echo("  may be denoised" if item.refusal is None else f"  refused: {item.refusal}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Try what this machine offers: engines, codecs, threads, memory, disk, weights."""
    from cddnet.workflows.doctor import examine, healthy, table

    found = examine(Path.cwd())
    if as_json:
        _print_json([finding._asdict() for finding in found])
    else:
        echo(table(found))
    if not healthy(found):
        raise typer.Exit(1)


@app.command()
def licences(as_json: AsJson = False) -> None:
    """List the licences of what cddnet needs here, and the data behind its weights."""
    from cddnet.workflows.licences import licences as find_licences
    from cddnet.workflows.licences import table

    found = find_licences()
    if as_json:
        packages = [package._asdict() for package in found.packages]
        _print_json({"packages": packages, "data": dict(found.data), "demo": found.demo})
        return
    echo(table(found))


networks = typer.Typer(
    help="List the networks that ship with weights, or import others.", rich_markup_mode=None
)
app.add_typer(networks, name="models")


@networks.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the networks that ship with weights, or import others."""
    from dataclasses import asdict

    from cddnet.runtime.store import cards

    if context.invoked_subcommand is not None:
        return
    if as_json:
        _print_json([asdict(card) for card in cards()])
        return
    for card in cards():
        echo(
            f"{card.name}  network {card.model}, default strength {card.strength:.0%}, "
            f"weights SHA-256 {card.sha256[:16]}"
        )


@networks.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth or .ckpt file.", show_default=False)],
    output: NewFolder,
    name: Annotated[str, typer.Option("--as", help="What to call it.", show_default=False)],
    network: Annotated[
        str | None, typer.Option(help="red_cnn and so on; default: the one whose weights fit.")
    ] = None,
) -> None:
    """Turn a checkpoint of a published network into safetensors with a card; tensors alone."""
    from cddnet.workflows.import_weights import NOT_READ, OTHER_TENSORS, import_weights

    card = import_weights(checkpoint, name, output, network)
    if others := card.training.get(OTHER_TENSORS):
        echo(f"note: left aside: {others} {OTHER_TENSORS}")
    if kinds := card.training.get(NOT_READ):
        echo(f"note: {NOT_READ}: {kinds}")
    echo(
        f"{output}/{name}.safetensors: network {card.model}, weights SHA-256 {card.sha256[:16]}; "
        "use it with --model. Research use only."
    )


@networks.command("export")
def export_network(
    name: Annotated[str, typer.Argument(help="A shipped name or a .safetensors file.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="A new file.", show_default=False)],
) -> None:
    """Write a network as one ONNX file for other pipelines; HU / 1024 in, HU / 1024 out."""
    from cddnet.workflows.export_network import export_network as write_network

    told = write_network(name, onnx)
    echo(f"{onnx}: {told}. Research use only.")


@app.command()
def benchmark(
    model: Annotated[
        list[str] | None, typer.Option(help="A network or shipped name; repeatable; default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds, 256 x 256 pixels.")] = False,
    threads: Threads = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A new file for every figure.")
    ] = None,
) -> None:
    """Time every network by every engine on this machine: same slice, one run, turn about."""
    from cddnet.workflows.benchmark import QUICK, BenchmarkOptions, table, write_json
    from cddnet.workflows.benchmark import benchmark as run_benchmark

    chosen = QUICK if quick else {}
    options = BenchmarkOptions(threads=threads, only=tuple(model or ()), **chosen)
    with _progress() as show:
        result = run_benchmark(options, show)
    echo(table(result))
    if json_file is not None:
        write_json(result, json_file)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="A new or empty folder.", parser=_folder)] = Path(
        "demo_output"
    ),
    model: Model = "default",
    strength: Strength = None,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Take a real abdominal series to a quarter of its dose, denoise it, measure and draw it."""
    from cddnet.workflows.demo import DOSE_FRACTION, METRIC_WINDOW_HU, run_demo
    from cddnet.workflows.denoise import DenoiseOptions

    options = DenoiseOptions(
        model=model, strength=strength, device=device, engine=engine, threads=threads
    )
    with _progress() as show:
        result = run_demo(output, options, show)
    noise, (low, high) = result.noise, METRIC_WINDOW_HU
    gain_db = result.denoised.psnr_db - result.low_dose.psnr_db
    if as_json:
        record = {
            "method": result.method,
            "low_dose": result.low_dose._asdict(),
            "denoised": result.denoised._asdict(),
        }
        measured = {"window_hu": METRIC_WINDOW_HU, "mask": "body", "slices": result.slices}
        bound = {"R": noise.ratio, "noise_free_gain_db": noise.noise_free_gain_db}
        _print_json(
            record | measured | bound | {"gain_db": gain_db, "picture": str(result.picture)}
        )
        return
    echo(
        f"CRLM-CT-1004, {result.slices} slices, simulated {DOSE_FRACTION:.0%} dose; against full "
        f"dose, window [{low:.0f}, {high:.0f}] HU, range {high - low:.0f} HU, body mask; "
        f"denoised by {result.method}"
    )
    echo(f"{'':12}{'PSNR dB':>9}{'SSIM':>8}{'RMSE HU':>9}")
    for name, row in (("low dose", result.low_dose), ("denoised", result.denoised)):
        echo(f"{name:12}{row.psnr_db:9.2f}{row.ssim:8.4f}{row.rmse_hu:9.2f}")
    echo(
        f"R = inserted / reference noise variance = ({noise.inserted_hu:.1f} / "
        f"{noise.reference_hu:.1f} HU)^2 = {noise.ratio:.1f}: a noise-free output gains "
        f"{noise.noise_free_gain_db:.2f} dB, this one {gain_db:.2f} dB "
        f"({gain_db / noise.noise_free_gain_db:.0%})"
    )
    echo(f"{result.picture}  (series: {output}/low_dose, {output}/denoised). Research use only.")


@app.command()
def evaluate(
    reference: Annotated[
        Path,
        typer.Argument(
            help="Full dose: a file or folder of series, or pictures in GT/ and IN/; with --mode "
            "another start.",
            show_default=False,
        ),
    ],
    test: Annotated[Path, typer.Argument(help="The same series, denoised.", show_default=False)],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="redcnn, ldctbench-chest, ldctbench-abdomen, ldctbench-neuro, corediff, full or "
            "published: window, range and grey levels; needed with a reference.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        EvaluationMode,
        typer.Option(
            help="paired: REFERENCE is the full dose; unpaired: the input of the denoising; "
            "phantom: a folder of `cddnet phantom`."
        ),
    ] = EvaluationMode.paired,
    low_dose: Annotated[
        Path | None, typer.Option(help="The input of the denoising: the first row.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A further row; repeatable.")
    ] = None,
    mask: Annotated[EvaluationMask, typer.Option(help="Pixels that count.")] = (
        EvaluationMask.none
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A new file for every figure and note.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="A new file, one line per image and row.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="A new file with the tables.")
    ] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="Folder of LPIPS weights; nothing is downloaded.")
    ] = None,
    detect: Annotated[
        str | None,
        typer.Option(help="Network whose effect on the detectability of lesions is measured too."),
    ] = None,
    fidelity_only: Annotated[
        bool, typer.Option("--fidelity-only", help="Leave noise, texture and bias out: faster.")
    ] = False,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    force: Force = False,
) -> None:
    """Measure how near a denoised series is to its reference, per image, patient and overall.

    Patients appear as "patient 1" with a keyed digest of their ID, never by name.
    """
    from cddnet.workflows.evaluate import EvaluateOptions, evaluate_phantom, evaluate_unpaired
    from cddnet.workflows.evaluate import evaluate as evaluate_paths
    from cddnet.workflows.results import summary, write_results

    paired = mode is EvaluationMode.paired
    if paired and protocol is None:
        raise typer.BadParameter("give --protocol: no figure means anything without its window.")
    if not paired and (protocol or low_dose or detect or lpips_weights or fidelity_only):
        raise typer.BadParameter(f"--mode {mode.value} has no full dose to measure against.")
    methods = _named_paths(method or [], {"test": test})
    with _progress() as show:
        options = EvaluateOptions(
            window_hu=window,
            acquisition=acquisition,
            slice_axis=slice_axis,
            lpips_weights=lpips_weights,
            with_physics=not fidelity_only,
            detect=detect,
            progress=show,
            force=force,
        )
        if mode is EvaluationMode.unpaired:
            result = evaluate_unpaired(reference, methods, options)
        elif mode is EvaluationMode.phantom:
            result = evaluate_phantom(reference, methods, options)
        else:
            result = evaluate_paths(
                reference,
                methods,
                protocol=protocol or "",
                low_dose=low_dose,
                mask=mask.value,
                options=options,
            )
    write_results(result, json=json_file, csv=csv_file, markdown=markdown_file)
    echo(f"{summary(result)}\nResearch use only.")


@app.command()
def report(
    output: NewFolder,
    reference: Annotated[
        Path, typer.Argument(help="Full dose: a file or folder of series.", show_default=False)
    ],
    method: Annotated[
        list[str],
        typer.Option(metavar="NAME=PATH", help="The same series, denoised; repeatable."),
    ],
    protocol: Annotated[
        str, typer.Option(help="As in `evaluate`: window, range, grey levels.", show_default=False)
    ],
    low_dose: Annotated[
        Path | None, typer.Option(help="The input of the denoising: the first row.")
    ] = None,
    mask: Annotated[EvaluationMask, typer.Option(help="Pixels that count.")] = (
        EvaluationMask.none
    ),
    model: Annotated[
        list[str] | None, typer.Option(help="Network whose cost is measured; repeatable.")
    ] = None,
    cem: Annotated[Path | None, typer.Option(help="A folder that `explain` wrote.")] = None,
    region: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="ROW COLUMN SIDE", help="Enlarged at first, pixels from 0."),
    ] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="Folder of LPIPS weights; nothing is downloaded.")
    ] = None,
    detect: Annotated[
        str | None,
        typer.Option(help="Network whose effect on the detectability of lesions is measured too."),
    ] = None,
    fidelity_only: Annotated[
        bool, typer.Option("--fidelity-only", help="Leave noise, texture and bias out: faster.")
    ] = False,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a page that compares methods, with tables, figures for a paper, Markdown and JSON."""
    from cddnet.workflows.evaluate import EvaluateOptions
    from cddnet.workflows.report import ReportOptions, report_file
    from cddnet.workflows.results import summary

    options = ReportOptions(
        protocol=protocol,
        mask=mask.value,
        low_dose=low_dose,
        evaluation=EvaluateOptions(
            window_hu=window,
            acquisition=acquisition,
            slice_axis=slice_axis,
            lpips_weights=lpips_weights,
            with_physics=not fidelity_only,
            detect=detect,
            force=force,
        ),
        models=tuple(model or ()),
        explained=cem,
        region=region,
    )
    with _progress() as show:
        result = report_file(output, reference, _named_paths(method), options, show)
    if as_json:
        shown = {"page_bytes": result.page_bytes, "slices_shown": result.slices_shown}
        _print_json({"output": str(output), "page": str(result.page)} | shown)
        return
    echo(summary(result.evaluation))
    echo(f"{result.page}: open it in a browser. Research use only.")


def _moment(text: str | None) -> datetime | None:
    """What --created says."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"--created {text}: is no moment; give one such as 2026-01-31T12:00:00+01:00."
        ) from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"--created {text}: has no time zone; add one, such as +01:00.")
    return moment


def _named_paths(items: list[str], named: dict[str, Path] | None = None) -> dict[str, Path]:
    methods = dict(named or {})
    for item in items:
        name, separator, path = item.partition("=")
        if not (name and separator and path) or name in methods:
            raise typer.BadParameter(f"--method {item}: expected NAME=PATH, each name once.")
        methods[name] = Path(path)
    return methods


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of a data set.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="A new folder, or one that was begun.", show_default=False, parser=_folder
        ),
    ] = None,
    layout: Annotated[Layout, typer.Option(help="auto tells it by the folders' names.")] = (
        Layout.auto
    ),
    split: Annotated[
        str | None,
        typer.Option(help="Shares of patients: training/validation/test; default 0.8/0.1/0.1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of patients.")] = 0,
    patients: Annotated[
        Path | None,
        typer.Option(help="A YAML file that names patients, folders and sides, see configs/."),
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option(help='"Name, licence, DOI" of the source; repeatable.')
    ] = None,
    window: WindowHU = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="One group in a picture's name, or in the path of a NIfTI or MetaImage file: the "
            "patient."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only verify the set in SOURCE.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build a training set: pairs by position, split by patient, checked for leaks; or --check."""
    if check == (out is not None):
        raise typer.BadParameter("give SOURCE and OUT, or the prepared folder alone and --check.")
    if patients is not None and split is not None:
        raise typer.BadParameter("--patients names the sides itself; leave --split out.")
    if out is None:
        from cddnet.training.store import verify

        _show_prepared(source, verify(source).manifest, as_json, checked=True)
        return
    from cddnet.workflows.prepare import PrepareOptions, prepare, split_shares

    chosen = {} if split is None else {"split": split_shares(split)}
    options = PrepareOptions(
        layout=layout.value,
        seed=seed,
        patients=patients,
        collections=tuple(collection or ()),
        window_hu=window,
        patient_pattern=patient_pattern,
        **chosen,
    )
    with _progress() as show:
        result = prepare(source, out, options, show)
    for doubt in () if as_json else result.doubts:
        echo(f"warning: one patient under two names? {doubt}")
    for kind, count in () if as_json else result.left_out:
        echo(f"left out: {count} slices or files, {kind}; see {out / 'left_out.csv'}")
    if result.was_finished and not as_json:
        echo("This set was finished before; nothing was done.")
    record = {"left_out": dict(result.left_out), "doubts": result.doubts}
    _show_prepared(out, result.manifest, as_json, **record)


def _show_prepared(folder: Path, manifest: Manifest, as_json: bool, **record: object) -> None:
    sides = {}
    for side in ("train", "validation", "test"):
        series = manifest.of_side(side)
        sides[side] = {
            "patients": len({item.patient_digest for item in series}),
            "series": len(series),
            "slices": sum(item.shape[0] for item in series),
            "real_pairs": sum(item.shape[0] for item in series if item.low_file),
        }
    if as_json:
        about = {"layout": manifest.layout, "collections": manifest.collections}
        _print_json({"output": str(folder)} | about | record | {"sides": sides})
        return
    for warning in manifest.warnings:
        echo(f"warning: {warning}")
    if not manifest.collections:
        echo("warning: no collection is stated; give --collection 'name, licence, DOI'")
    for name, counts in sides.items():
        echo(f"{name:12}" + "  ".join(f"{count} {what}" for what, count in counts.items()))
    verified = ", every file as it was written" if record.get("checked") else ""
    echo(f"{folder}: layout {manifest.layout}, no patient on two sides{verified}.")


@app.command()
def phantom(
    output: NewFolder,
    kind: Annotated[
        str,
        typer.Option(
            help="water, water-200, water-400, thorax, abdomen, shoulder, low-contrast, rods or "
            "inserts."
        ),
    ] = "abdomen",
    slices: Annotated[int, typer.Option(min=1, help="They differ in their noise alone.")] = 8,
    dose: Annotated[
        float | None,
        typer.Option(help="Fraction of the calibrated full dose; default: no noise."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    kernel: Annotated[str, typer.Option(help="Of a scan with --dose: soft or sharp.")] = "soft",
    pixel: Annotated[
        float | None, typer.Option(help="Pixel pitch, mm; default: the phantom fits the image.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels on each side.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Make a phantom whose true HU are known: a DICOM series, and its truth in truth.json."""
    from cddnet.workflows.phantom import PhantomOptions, write_phantom

    options = PhantomOptions(
        kind=kind,
        slices=slices,
        dose_fraction=dose,
        seed=seed,
        kernel=kernel,
        pixel_mm=pixel,
        size=size,
    )
    with _progress() as show:
        result = write_phantom(output, options, lambda done, total: show("drawing", done, total))
    if as_json:
        _print_json({"output": str(output)} | result._asdict())
        return
    if result.starved:
        echo(
            f"note: {result.starved:.2g} of the rays are starved (fewer than 25 photons, at least "
            f"{result.fewest_photons:.3g}); their mean is shifted"
        )
    echo(
        f"{result.series}: {result.slices} slices, {result.label}, pixels of "
        f"{result.pixel_mm:.4g} mm; {len(result.regions)} regions in {result.truth}. "
        "Research use only."
    )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, see configs/.")],
    data: Annotated[
        Path, typer.Option(help="A prepared set, or the folder of the series in the split.")
    ],
    out: Annotated[
        Path, typer.Option(help="A new folder, or one of an unfinished run, which goes on.")
    ],
    start: Annotated[
        str | None,
        typer.Option("--from", help="Weights to fine-tune: a shipped name or a .safetensors file."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="In place of the recipe's; repeatable."),
    ] = None,
) -> None:
    """Train a network on full-dose series; low dose is simulated on the way.

    The same command goes on with a run that was stopped. Several processes: torchrun
    --nproc-per-node N --no-python cddnet train ...
    """
    from cddnet.workflows.train import TrainOptions, train_from_config

    with _progress() as show:
        options = TrainOptions(
            overrides=tuple(overrides or ()),
            start=start,
            progress=show,
            tell=lambda sentence: echo(f"note: {sentence}"),
        )
        result = train_from_config(recipe, data, out, options)
    if result is None:
        return
    if result.resumed_from:
        echo(f"note: went on from step {result.resumed_from}")
    if result.skipped:
        echo(f"note: {result.skipped} steps were skipped, their gradient was not finite")
    before, after = result.validation
    echo(
        f"{result.weights}: {result.steps} steps, validation PSNR {before:.2f} dB low dose, "
        f"{after:.2f} dB denoised (best {result.best_db:.2f} dB). Research use only."
    )


@app.command()
def view(
    before: Annotated[Path, typer.Argument(help="A CT file or folder.", show_default=False)],
    after: Annotated[
        Path | None, typer.Argument(help="The same, denoised; without it BEFORE is shown alone.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
    acquisition: Acquisition = None,
    window: WindowHU = None,
    slice_axis: SliceAxis = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Expected error, as denoise wrote it.")
    ] = None,
) -> None:
    """Look at a series, alone or before and after, in the browser of this machine."""
    with _extra("node"):
        from cddnet.node.web.serving import serve_pair
    from cddnet.formats import ReadOptions
    from cddnet.node.web.pairs import LocalPair

    reading = ReadOptions(window_hu=window, acquisition=acquisition, slice_axis=slice_axis)
    pair = LocalPair(before, after, reading, uncertainty)
    serve_pair(pair, port, browser=not no_browser, say=echo)


station = typer.Typer(
    help="Receive CT series by DICOM, denoise those that rules name, send them on.",
    rich_markup_mode=None,
)
app.add_typer(station, name="node")

NodeFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file, see deploy/node.yaml.")
]


@station.callback(invoke_without_command=True)
def node(context: typer.Context, config: NodeFile = None) -> None:
    """Receive CT series by DICOM, denoise those that rules name, send them on."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise typer.BadParameter("give --config and a file such as deploy/node.yaml.")
    with _extra("node"):
        from cddnet.node.service import Node, serve
        from cddnet.node.settings.config import load_node
    checked = load_node(config)
    serve(Node(checked), page=True)


@station.command("rules-test")
def rules_test(
    files: Annotated[
        list[Path], typer.Argument(help="DICOM files or folders.", show_default=False)
    ],
    config: NodeFile = None,
    calling_ae: Annotated[str, typer.Option(help="AE title of the sender.")] = "",
) -> None:
    """Say what the rules decide on files, and why. Quotes their headers; nothing is sent."""
    if config is None:
        raise typer.BadParameter("give --config and a file such as deploy/node.yaml.")
    with _extra("node"):
        from cddnet.node.settings.config import load_node
        from cddnet.node.work.explain import explain

    echo(explain(files, load_node(config).rules, calling_ae))


@station.command("rebuild")
def rebuild(
    config: NodeFile = None,
    sender: Annotated[
        str | None, typer.Option(help="AE title for images that do not say who sent them.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the journal is whole.")
    ] = False,
) -> None:
    """Make a new journal of the images, where the node's is lost or damaged."""
    if config is None:
        raise typer.BadParameter("give --config and the file of the node.")
    with _extra("node"):
        from cddnet.node.receive.rebuild import rebuild as rebuild_journal
        from cddnet.node.settings.config import load_node
    checked = load_node(config)
    made = rebuild_journal(checked, sender=sender, force=force)
    aside = f"; {made.aside} files set aside in {checked.folder / 'aside'}" if made.aside else ""
    echo(
        f"{checked.folder}: new journal with {made.images} images and {made.results} results; the "
        f"old one is in {checked.folder / 'aside'}{aside}. Start the node: it goes on."
    )


@app.command()
def archive(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder tree, a text file that lists folders, https://host/dicom-web?KEY=VALUE, "
            "or dicom(s)://TITLE@host:port?KEY=VALUE.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="A new folder, or one that was begun.", parser=_folder)
    ],
    model: Model = "default",
    strength: Strength = None,
    image_type: Annotated[ImageType, typer.Option(help="DICOM ImageType, value 2.")] = (
        ImageType.secondary
    ),
    force: Force = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes, a thread each; 0: this one, without Dask.")
    ] = 2,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786.")
    ] = None,
    per_hour: Annotated[
        float | None, typer.Option(help="Series begun in an hour; default: no limit.")
    ] = None,
    between: Annotated[
        str | None, typer.Option(help="Begin series in this part of the day only: 20:00-06:00.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="At one series that fails.")] = 3,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed in earlier runs.")
    ] = False,
    date: Annotated[
        str | None,
        typer.Option(
            "--created",
            "--date",
            help="Moment of creation for the headers, with a zone; default: not said.",
        ),
    ] = None,
    ae_title: Annotated[str, typer.Option(help="Ours, towards a DICOM archive.")] = "CDDNET",
    token_file: Annotated[Path | None, typer.Option(help="Holds a bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM of authorities, for https, dicoms.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM that shows who we are.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Denoise every CT series of an archive, on any number of workers; goes on after a stop."""
    from cddnet.node.archive.pace import Pace, Window
    from cddnet.node.archive.run import ArchiveOptions, Progress
    from cddnet.node.archive.run import archive as denoise_archive
    from cddnet.node.settings.parts import ClientTls

    if (certificate is None) != (key is None):
        raise typer.BadParameter("--certificate and --key belong together; give both or neither.")
    tls = ClientTls(ca=ca, certificate=certificate, key=key) if ca or certificate else None
    options = ArchiveOptions(
        source=source,
        out=out,
        model=model,
        strength=strength,
        image_type=image_type.value,
        force=force,
        workers=workers,
        scheduler=scheduler,
        pace=Pace(per_hour=per_hour, window=Window.parse(between) if between else None),
        attempts=attempts,
        retry_failed=retry_failed,
        created=_moment(date),
        calling=ae_title,
        token_file=token_file,
        tls=tls,
    )
    with _progress() as show:

        def told(state: Progress) -> None:
            ended = state.done + state.refused + state.failed
            left = "" if state.left_s is None else f", {state.left_s / 3600:.1f} h left"
            show(f"{state.what}{left}", ended, state.total)

        report = denoise_archive(options, told)
    if as_json:
        _print_json(json.loads((out / "report.json").read_text(encoding="utf-8")))
    else:
        unreadable = f", {report.unreadable} files unreadable" if report.unreadable else ""
        echo(
            f"{out}: {report.done} series done ({report.slices} slices), {len(report.refused)} "
            f"refused, {len(report.failed)} failed, {report.waiting} waiting{unreadable}; see "
            f"{out / 'report.md'}. Research use only."
        )
    if report.failed:
        raise typer.Exit(1)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """An import that needs an extra of the package; says which where it is missing."""
    try:
        yield
    except ImportError as error:
        raise CddnetError(
            f"this needs {error.name}, which is not installed: pip install cddnet[{name}]"
        ) from error


def main() -> None:
    """Entry point: 0 done, 1 refused or failed, 2 wrong usage."""
    tolerate_any_encoding()
    try:
        app()
    except CddnetError as error:
        _fail(str(error))
    except MemoryError:
        _fail("not enough memory; close other programs or give fewer slices.")
    except Exception as error:
        if os.environ.get("CDDNET_TRACEBACK"):
            raise
        # The text of a foreign error may quote a header, and a header may name a patient.
        _fail(
            f"stopped by an error nobody foresaw ({type(error).__name__}). Please report it with "
            "what is printed when CDDNET_TRACEBACK=1 is set in the environment."
        )


def _fail(message: str) -> None:
    echo(f"cddnet: {message}", err=True)
    sys.exit(1)


def _print_json(value: object) -> None:
    echo(json.dumps(value, indent=2, default=str))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        echo(f"cddnet {__version__}")
        raise typer.Exit


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left on a terminal; silence when piped."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(what), completed=done, total=total)

        yield show
