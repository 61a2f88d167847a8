"""The command line: thin commands; whatever needs torch is imported inside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cddnet import __version__
from cddnet.errors import CddnetError

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


Input = Annotated[Path, typer.Argument(help="A CT file or a folder of one.", show_default=False)]
Model = Annotated[str, typer.Option(help="A shipped name or a .safetensors file.")]
Strength = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="0 the source, 1 the network; default: the model card's."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Series = Annotated[
    str | None, typer.Option(help="Series UID, or its ending, where a folder holds several.")
]
WindowHU = Annotated[
    tuple[float, float] | None,
    typer.Option("--window", metavar="LOW HIGH", help="HU that 8- or 16-bit pictures stand for."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def denoise(
    source: Input,
    output: Annotated[Path, typer.Argument(help="A new folder (DICOM) or file.")],
    model: Model = "default",
    strength: Strength = None,
    device: Device = "auto",
    series: Series = None,
    window: WindowHU = None,
    image_type: Annotated[ImageType, typer.Option(help="DICOM ImageType, value 2.")] = (
        ImageType.secondary
    ),
    as_json: AsJson = False,
) -> None:
    """Denoise a CT series: DICOM in, derived DICOM out; or NIfTI, MetaImage, arrays, pictures."""
    from cddnet.workflows.denoise import DenoiseOptions, denoise_file

    options = DenoiseOptions(
        model=model,
        strength=strength,
        device=device,
        series=series,
        window_hu=window,
        image_type=image_type.value,
    )
    with _progress() as show:
        volume = denoise_file(
            source, output, options, lambda done, total: show("denoising", done, total)
        )
    step = volume.derivation[-1]
    if as_json:
        record = {"output": str(output), "slices": volume.shape[0], "notes": volume.notes}
        _print_json(record | {"parameters": dict(step.parameters), "weights": step.weights_sha256})
        return
    for note in volume.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{output}: {volume.shape[0]} slices, {step.label}. Research use only.")


@app.command()
def info(source: Input, as_json: AsJson = False) -> None:
    """Say what a file or folder holds, and whether it may be denoised."""
    from cddnet.workflows.info import describe

    series = describe(source)
    if as_json:
        _print_json([item._asdict() for item in series])
        return
    for item in series:
        typer.echo(f"{item.uid or source}\n  {item.description}")
        for note in item.notes:
            typer.echo(f"  note: {note}")
        typer.echo("  may be denoised" if item.refusal is None else f"  refused: {item.refusal}")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the networks that ship with weights."""
    from dataclasses import asdict

    from cddnet.runtime.store import cards

    if as_json:
        _print_json([asdict(card) for card in cards()])
        return
    for card in cards():
        typer.echo(
            f"{card.name}  network {card.model}, default strength {card.strength:.0%}, "
            f"weights SHA-256 {card.sha256[:16]}"
        )


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="A new folder.")] = Path("demo_output"),
    model: Model = "default",
    strength: Strength = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Take a real abdominal series to a quarter of its dose, denoise it, measure and draw it."""
    from cddnet.workflows.demo import DOSE_FRACTION, METRIC_WINDOW_HU, run_demo
    from cddnet.workflows.denoise import DenoiseOptions

    options = DenoiseOptions(model=model, strength=strength, device=device)
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
    typer.echo(
        f"CRLM-CT-1004, {result.slices} slices, simulated {DOSE_FRACTION:.0%} dose; against full "
        f"dose, window [{low:.0f}, {high:.0f}] HU, range {high - low:.0f} HU, body mask; "
        f"denoised by {result.method}"
    )
    typer.echo(f"{'':12}{'PSNR dB':>9}{'SSIM':>8}{'RMSE HU':>9}")
    for name, row in (("low dose", result.low_dose), ("denoised", result.denoised)):
        typer.echo(f"{name:12}{row.psnr_db:9.2f}{row.ssim:8.4f}{row.rmse_hu:9.2f}")
    typer.echo(
        f"R = inserted / reference noise variance = ({noise.inserted_hu:.1f} / "
        f"{noise.reference_hu:.1f} HU)^2 = {noise.ratio:.1f}: a noise-free output gains "
        f"{noise.noise_free_gain_db:.2f} dB, this one {gain_db:.2f} dB "
        f"({gain_db / noise.noise_free_gain_db:.0%})"
    )
    typer.echo(
        f"{result.picture}  (series: {output}/low_dose, {output}/denoised). Research use only."
    )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, see configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of the series named in the patient split.")],
    out: Annotated[Path, typer.Option(help="A new folder for weights, card and log.")],
) -> None:
    """Train a network on full-dose series; low dose is simulated on the way."""
    from cddnet.workflows.train import train_from_config

    train_from_config(recipe, data, out)


def main() -> None:
    """Entry point: 0 done, 1 refused or failed, 2 wrong usage."""
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
    typer.echo(f"cddnet: {message}", err=True)
    sys.exit(1)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"cddnet {__version__}")
        raise typer.Exit


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left on a terminal; silence when piped."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show
