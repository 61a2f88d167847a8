"""The laws of the simulation, measured: tables on the screen, figures in docs/images.

    python benchmarks/physics.py [--realisations 40] [--data FOLDER]

About ten minutes. Insertion and depth use parallel rays; the full chain is a fan. `--data` adds the
middle slice of each series in that folder to the two of the demo.

Above 300 lines: each law has a table and a figure of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.formats import read_all_series
from cddnet.metrics._body import body_mask
from cddnet.metrics.noise import (
    RadialPower,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.physics import fan_beam, phantom, projector
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.depth import (
    euclidean_depth,
    predicted_noise_hu,
    radiological_depth,
    shuffled_depth,
)
from cddnet.physics.dose import add_noise, insert_noise, inserted_noise, measured_noise
from cddnet.physics.fan_beam import FanBeam
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel
from cddnet.physics.projector import ParallelBeam
from cddnet.physics.scan import expose, measure, reconstruct
from cddnet.training.slices import filled
from cddnet.workflows.demo import demo_series

Map = NDArray[np.floating]

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PHANTOMS = ("abdomen", "thorax", "shoulder")
FEWEST_PIXELS = 300
DOSES = (0.1, 0.25, 0.5)
SIZE = 512
PIXEL_MM = 0.729  # of the calibration


class Subject(NamedTuple):
    name: str
    hu: NDArray[np.float32]
    geometry: SliceGeometry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--realisations", type=int, default=40)
    parser.add_argument("--data", type=Path, help="folder with CT series")
    chosen = parser.parse_args()
    projection()
    photons()
    levels()
    subjects = [*drawn(), *real(chosen.data)]
    depth(subjects, chosen.realisations)


def drawn() -> Iterable[Subject]:
    for name in PHANTOMS:
        made = phantom.build(name)
        pixel_mm = PIXEL_MM if name == "abdomen" else made.field_mm / SIZE
        yield Subject(name, phantom.render(made, SIZE, pixel_mm), SliceGeometry(pixel_mm))


def real(data: Path | None) -> Iterable[Subject]:
    """Two slices of the demo series, and the middle slice of each series in a folder."""
    for source in (demo_series(), *([data] if data else [])):
        for number, volume in enumerate(read_all_series(source)):
            chosen = (
                (1, volume.shape[0] - 2) if source == demo_series() else (volume.shape[0] // 2,)
            )
            for index in chosen:
                name = "demo" if source == demo_series() else f"series {number + 1}"
                hu = filled(volume, index)
                geometry = SliceGeometry(volume.spacing_mm[1])
                yield Subject(f"{name}, slice {index + 1}", hu, geometry)


def projection() -> None:
    print("Projection: <Ax, y> against <x, A'y> in float64, and FBP of an analytic disc of water")
    rng = np.random.default_rng(0)
    for name, module, beam in (
        ("parallel", projector, ParallelBeam.covering(97, 61)),
        ("fan", fan_beam, FanBeam(size=97, pixel_mm=4.0, views=61, channels=151, channel_mm=6.0)),
    ):
        image = rng.normal(size=(beam.size, beam.size))
        sinogram = rng.normal(size=(beam.views, beam.channels))
        projected, back = module.forward(image, beam), module.adjoint(sinogram, beam)
        gap = abs(np.vdot(projected, sinogram) - np.vdot(image, back))
        gap /= np.linalg.norm(projected) * np.linalg.norm(sinogram)
        print(f"  {name:10}adjoint gap {gap:.1e}")
    radius_mm, pixel_mm, size = 120.0, 0.7, 511
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    inside = np.hypot(centred[:, None], centred) < radius_mm - 6
    parallel = ParallelBeam.covering(size, 720)
    chord = 2 * np.sqrt(np.maximum(radius_mm**2 - (parallel.positions * pixel_mm) ** 2, 0))
    response = SOFT_KERNEL.response(projector.frequencies(parallel) / pixel_mm)
    sinogram = np.tile(chord / pixel_mm, (parallel.views, 1))
    water = projector.filtered_back_projection(sinogram, parallel, response)
    print(f"  parallel  mean error inside {1000 * (water[inside].mean() - 1):+.3f} HU")
    fan = FanBeam.calibrated(size, pixel_mm)
    chord = 2 * np.sqrt(np.maximum(radius_mm**2 - fan.distances_mm**2, 0))
    response = SOFT_KERNEL.response(fan_beam.frequencies(fan))
    water = fan_beam.filtered_back_projection(np.tile(chord, (fan.views, 1)), fan, response)
    print(f"  fan       mean error inside {1000 * (water[inside].mean() - 1):+.3f} HU")


def photons() -> None:
    """Existing plus inserted variance over that of a direct measurement, by low-dose photons."""
    print(
        "Noise of a ray: (existing + inserted) / direct variance, 10^6 draws, electronic noise 10"
    )
    rng, draws = np.random.default_rng(1), 1_000_000
    counts = np.array([30, 100, 300, 1000, 3000, 10000])
    print("  low-dose photons" + "".join(f"{count:9d}" for count in counts))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for dose in DOSES:
        ratios = []
        for low in counts:
            full = np.full(draws, low / dose)
            measured = measured_noise(full, 10.0, rng)
            both = measured + inserted_noise(full * np.exp(-measured), 10.0, dose, rng)
            ratios.append(both.var() / measured_noise(full * dose, 10.0, rng).var())
        print(f"  dose {dose:<12}" + "".join(f"{ratio:9.4f}" for ratio in ratios))
        left.semilogx(counts, ratios, "o-", label=f"dose {dose}")
    bound = 4 * np.sqrt(4 / draws) + 2 / counts
    left.fill_between(counts, 1 - bound, 1 + bound, alpha=0.2, label="4 standard errors + 2 / N")
    left.set(xlabel="low-dose photons N of the ray", ylabel="variance / direct variance")
    left.legend()
    body = next(iter(drawn()))
    for name, kernel in (("soft", SOFT_KERNEL), ("sharp", SHARP_KERNEL)):
        regions = np.concatenate([_patches(body, kernel, seed) for seed in range(6)])
        pixel_mm = body.geometry.pixel_mm
        frequency, power = radial_power(
            noise_power_spectrum(regions, pixel_mm).mean(axis=0), pixel_mm
        )
        mean = float(mean_frequency_per_mm(RadialPower(frequency, power)))
        print(f"Noise power of the abdomen, {name} kernel: mean frequency {mean:.3f} / mm")
        right.plot(frequency, power / power.max(), label=f"{name}: mean {mean:.3f} / mm")
        expected = frequency * kernel.response(frequency) ** 2
        right.plot(frequency, expected / expected.max(), "k:", lw=1)
    right.set(xlabel="frequency, cycles / mm", ylabel="noise power (peak 1); dotted: f MTF²")
    right.legend()
    figure.savefig(IMAGES / "physics_noise.png", dpi=80)


def _patches(body: Subject, kernel: Kernel, seed: int) -> NDArray[np.float64]:
    """Inserted noise in the middle of the body, 64 x 64 pixels each."""
    rng = np.random.default_rng(seed)
    noise = insert_noise(body.hu, body.geometry, rng, kernel=kernel).hu - body.hu
    corners = np.array([(row, column) for row in (192, 256) for column in (192, 256)])
    return flat_regions(noise, corners, 64)


def levels() -> None:
    """Noise of the calibrated abdomen through the full chain, and means of its tissues."""
    made = phantom.build("abdomen")
    body = next(iter(drawn()))
    regions = {
        region.ellipse.name: region.mask
        for region in phantom.truth(made, SIZE, PIXEL_MM)
        if region.mask.sum() > FEWEST_PIXELS
    }
    liver = regions["liver"]

    def fan_variance(body: Subject, dose: float, kernel: Kernel, seed: int) -> float:
        seen = measure(exposure, dose, np.random.default_rng(seed)) - exposure.integrals
        empty = reconstruct(0 * seen, exposure.beam)
        return float((reconstruct(seen, exposure.beam, kernel) - empty)[liver].var())

    def parallel_variance(body: Subject, dose: float, kernel: Kernel, seed: int) -> float:
        rng = np.random.default_rng(seed)
        noisy = add_noise(body.hu, body.geometry, rng, dose_fraction=dose, kernel=kernel).hu
        return float((noisy - body.hu)[liver].var())

    exposure = expose(body.hu, body.geometry)
    clean = reconstruct(exposure.integrals, exposure.beam)
    for name, kernel in (("soft", SOFT_KERNEL), ("sharp", SHARP_KERNEL)):
        fan, parallel = (
            [
                float(np.sqrt(np.mean([route(body, dose, kernel, seed) for seed in range(8)])))
                for dose in (1.0, 0.25)
            ]
            for route in (fan_variance, parallel_variance)
        )
        print(
            f"Liver, {name} kernel: full dose {fan[0]:.1f} HU, quarter dose {fan[1]:.1f}, ratio "
            f"{fan[1] / fan[0]:.2f}; parallel route {parallel[0]:.1f}, {parallel[1]:.1f}, ratio "
            f"{parallel[1] / parallel[0]:.2f}"
        )
    print("Tissue means, quarter dose minus source, 40 realisations, HU (standard error)")
    print(f"  {'':18}{'inserted':>16}{'full chain':>18}")
    shifts = np.zeros((40, len(regions), 2))
    for seed in range(len(shifts)):
        low = reconstruct(measure(exposure, 0.25, np.random.default_rng(seed)), exposure.beam)
        fast = insert_noise(body.hu, body.geometry, np.random.default_rng(seed)).hu
        shifts[seed] = [
            ((fast - body.hu)[mask].mean(), (low - clean)[mask].mean()) for mask in regions.values()
        ]
    errors = shifts.std(axis=0, ddof=1) / np.sqrt(len(shifts))
    for name, shift, error in zip(regions, shifts.mean(axis=0), errors, strict=True):
        print(
            f"  {name:18}"
            + "".join(f"{s:+9.3f} ({e:.3f})" for s, e in zip(shift, error, strict=True))
        )


def depth(subjects: list[Subject], count: int) -> None:
    """What predicts the noise: correlation with the map of its standard deviation."""
    print(
        f"Correlation with the noise map (quarter dose, {count} realisations, smoothed 3 pixels) "
        "in the body less 8 pixels; level: median of simulated over predicted noise"
    )
    heads = ("D", "Euclid", "HU", "shuffled", "level", "D in fan", "level", "D noisy~D")
    print(f"  {'':18}" + "".join(f"{head:>10}" for head in heads))
    figure = Figure(figsize=(11, 2.6 * len(PHANTOMS)), layout="constrained")
    axes = figure.subplots(len(PHANTOMS), 4)
    for number, subject in enumerate(subjects):
        body = body_mask(subject.hu)
        # What lies outside the patient, such as a table, may leave the field of view.
        inner = ndimage.binary_dilation(body, iterations=4)
        subject = subject._replace(hu=np.where(inner, subject.hu, np.float32(-1000)))
        body = ndimage.binary_erosion(body, iterations=8)
        measured, in_fan = (
            _noise_map(draws, count) for draws in (_matched(subject), _fan(subject))
        )
        geometry = subject.geometry
        found = radiological_depth(subject.hu, geometry, dose_fraction=0.25)
        predicted = predicted_noise_hu(found, geometry, dose_fraction=0.25)
        distance = euclidean_depth(subject.hu, geometry.pixel_mm)
        shuffled = np.exp(shuffled_depth(found, np.random.default_rng(0)) / 2)
        low = insert_noise(subject.hu, geometry, np.random.default_rng(0)).hu
        noisy = radiological_depth(low, geometry, dose_fraction=0.25)
        figures = [
            _correlation(v, measured, body) for v in (predicted, distance, subject.hu, shuffled)
        ]
        figures.append(float(np.median((measured / predicted)[body])))
        figures.append(_correlation(predicted, in_fan, body))
        figures.append(float(np.median((in_fan / predicted)[body])))
        figures.append(_correlation(noisy, found, body))
        print(
            f"  {subject.name:18}" + "".join(f"{figure:10.3f}" for figure in figures[:-1]), end=""
        )
        print(f"{figures[-1]:10.5f}")
        if number < len(PHANTOMS):
            _draw(axes[number], subject, (found, predicted, measured))
    figure.savefig(IMAGES / "physics_depth.png", dpi=70)


def _correlation(one: Map, other: Map, where: NDArray[np.bool_]) -> float:
    return float(np.corrcoef(one[where], other[where])[0, 1])


def _matched(subject: Subject) -> Callable[[int], Map]:
    """Noise by the parallel route, whose physics are those of the depth."""

    def draw(seed: int) -> Map:
        rng = np.random.default_rng(seed)
        return add_noise(subject.hu, subject.geometry, rng, dose_fraction=0.25).hu - subject.hu

    return draw


def _fan(subject: Subject) -> Callable[[int], Map]:
    """Noise by the full chain, in fan geometry."""
    exposure = expose(subject.hu, subject.geometry)
    base = reconstruct(np.zeros_like(exposure.integrals), exposure.beam)

    def draw(seed: int) -> Map:
        measured = measure(exposure, 0.25, np.random.default_rng(seed))
        return reconstruct(measured - exposure.integrals, exposure.beam) - base

    return draw


def _noise_map(draw: Callable[[int], Map], count: int) -> Map:
    """Standard deviation over realisations, smoothed."""
    noise = np.stack([draw(seed) for seed in range(count)])
    return ndimage.gaussian_filter(noise.std(axis=0, ddof=1, dtype=np.float64), 3)


def _draw(
    axes: NDArray[np.object_], subject: Subject, maps: tuple[NDArray[np.float64], ...]
) -> None:
    found, predicted, measured = maps
    top = np.percentile(measured[body_mask(subject.hu)], 99)
    shown = (
        (subject.hu, "gray", (-160, 240), f"{subject.name}, HU [-160, 240]"),
        (found, "viridis", (0, found.max()), "radiological depth D"),
        (predicted, "magma", (0, top), "predicted noise, HU"),
        (measured, "magma", (0, top), "simulated noise, HU"),
    )
    for axis, (values, colours, limits, title) in zip(axes, shown, strict=True):
        drawn_image = axis.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        axis.figure.colorbar(drawn_image, ax=axis, shrink=0.8)


if __name__ == "__main__":
    main()
