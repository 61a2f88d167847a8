"""The phantom command: truth that the images keep, seeds, doses, and refusals."""

import json
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cddnet.cli import app
from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import read_volume
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL
from cddnet.volume import CTVolume
from cddnet.workflows.denoise import denoise_volume
from cddnet.workflows.phantom import PhantomOptions, write_phantom

SIZE = 65


def make(out, **options):
    calls = []
    chosen = PhantomOptions(**{"kind": "inserts", "size": SIZE, "slices": 3} | options)
    result = write_phantom(out, chosen, lambda done, total: calls.append((done, total)))
    assert calls == [(index + 1, chosen.slices) for index in range(chosen.slices)]
    return result, read_volume(result.series), json.loads(result.truth.read_text(encoding="utf-8"))


def tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("size", [64, SIZE])
def test_the_noise_free_series_shows_the_truth(tmp_path, size):
    result, volume, truth = make(tmp_path / "out", size=size)
    labels = np.asarray(Image.open(tmp_path / "out" / "regions.png"))
    assert labels.shape == volume.shape[1:] == (size, size)
    names = [region["name"] for region in truth["regions"]]
    assert names == ["water", *phantom.INSERTS_HU]
    assert result.regions == tuple(names)
    for region in truth["regions"]:
        mask = labels == region["label"]
        assert mask.sum() == region["pixels"] > 0
        assert np.all(volume.hu[:, mask] == region["hu"])
        column, row = (round(place) for place in region["centre_pixel"])
        assert labels[row, column] == region["label"] or region["name"] == "water"
    assert np.array_equal(volume.hu[0], volume.hu[2])
    assert (truth["dose_fraction"], truth["seed"], truth["fewest_photons"]) == (None, None, None)
    assert result.fewest_photons is None
    assert truth["series_uid"] == result.series_uid == volume.series_uid


def test_places_in_the_truth_are_those_of_dicom(tmp_path):
    _, volume, truth = make(tmp_path / "out", kind="rods")
    rod = truth["regions"][2]
    assert (rod["contrast_hu"], rod["background_hu"], rod["diameter_mm"]) == (-100, 0, 25)
    x_mm, y_mm = rod["centre_mm"]
    column, row = rod["centre_pixel"]
    assert volume.origin_mm[0] + column * volume.spacing_mm[2] == pytest.approx(x_mm)
    assert volume.origin_mm[1] + row * volume.spacing_mm[1] == pytest.approx(y_mm)
    weight = np.where(np.abs(volume.hu[0] + 100) < 40, 1.0, 0.0)
    rows, columns = np.indices(weight.shape)
    near = np.hypot(rows - row, columns - column) < 6
    assert np.average(columns[near], weights=weight[near]) == pytest.approx(column, abs=0.3)


class Noise(NamedTuple):
    sd_hu: float
    fewest_photons: float


def _noise_of(clean, pixel_mm, kernel, mask):
    geometry, rng = SliceGeometry(pixel_mm), np.random.default_rng(0)
    low = add_noise(clean, geometry, rng, dose_fraction=0.25, kernel=kernel)
    return Noise(np.std((low.hu - clean)[mask]), low.fewest_photons)


def _this_first(kernel):
    return (kernel, SOFT_KERNEL if kernel == SHARP_KERNEL else SHARP_KERNEL)


@pytest.mark.parametrize(("name", "kernel"), [("soft", SOFT_KERNEL), ("sharp", SHARP_KERNEL)])
def test_noise_is_that_of_the_physics_and_independent_between_slices(tmp_path, name, kernel):
    # Pixels fine enough for the two kernels to differ in what they let through.
    slices, size = 12, 151
    options = {"kind": "water-200", "size": size, "slices": slices, "dose_fraction": 0.25}
    result, volume, truth = make(tmp_path / "out", **options, kernel=name)
    pixel_mm = truth["pixel_mm"]
    clean = phantom.render(phantom.build("water-200"), size, pixel_mm)
    mask = phantom.truth(phantom.build("water-200"), size, pixel_mm)[0].mask
    noise = volume.hu[:, mask]
    sd = noise.std(axis=1)
    expected, other = (_noise_of(clean, pixel_mm, one, mask) for one in _this_first(kernel))
    assert result.fewest_photons == truth["fewest_photons"] == expected.fewest_photons
    # Pixels of one slice hang together, so the spread between slices sets the tolerance.
    tolerance = 4 * sd.std(ddof=1) * np.sqrt(1 + 1 / slices)
    assert abs(sd.mean() - expected.sd_hu) < tolerance < abs(sd.mean() - other.sd_hu)
    correlation = np.corrcoef(noise)[np.triu_indices(slices, 1)]
    assert np.abs(correlation.mean()) < 4 * correlation.std() / np.sqrt(correlation.size)
    assert np.abs(correlation).max() < 0.3
    assert volume.acquisition.kernel == f"cddnet {name}"


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    noisy = {"kind": "water-200", "dose_fraction": 0.5}
    first, volume, _ = make(tmp_path / "a", **noisy, seed=1)
    make(tmp_path / "b", **noisy, seed=1)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    other, changed, _ = make(tmp_path / "c", **noisy, seed=2)
    assert other.series_uid != first.series_uid
    assert not np.any(np.all(changed.hu == volume.hu, axis=(1, 2)))
    more, longer, _ = make(tmp_path / "d", **noisy, seed=1, slices=5)
    assert np.array_equal(longer.hu[:3], volume.hu)
    assert more.series_uid != first.series_uid


def test_air_is_not_cut_where_noise_falls_below_it(tmp_path):
    _, volume, _ = make(tmp_path / "out", kind="shoulder", dose_fraction=0.02, slices=1)
    assert volume.hu.min() < -1100


def test_starved_rays_are_reported(tmp_path):
    low, _, truth = make(tmp_path / "a", kind="shoulder", dose_fraction=0.02, slices=1)
    assert low.fewest_photons < 25
    assert low.starved == truth["starved_share"] > 0
    enough, _, _ = make(tmp_path / "b", kind="water-200", dose_fraction=0.25, slices=1)
    assert enough.starved == 0


def test_a_phantom_may_be_denoised(tmp_path, tiny_weights):
    _, volume, _ = make(tmp_path / "out", kind="water-200", dose_fraction=0.25, slices=1)
    out = denoise_volume(volume, tiny_weights, 1.0)
    assert isinstance(out, CTVolume)
    assert np.abs(out.hu - volume.hu).max() > 0.1
    assert volume.notes == ("the source is itself a derived image, not the scanner's original",)


def test_the_command_names_every_phantom_and_says_what_it_made(tmp_path):
    told = CliRunner().invoke(app, ["phantom", "--help"], env={"COLUMNS": "400"}).stdout
    assert all(name in told for name in phantom.names())
    arguments = ["--kind", "rods", "--size", str(SIZE), "--slices", "2", "--dose", "0.5", "--json"]
    done = CliRunner().invoke(app, ["phantom", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["slices"], said["regions"][0], said["starved"]) == (2, "water", 0)
    assert said["series_uid"] == read_volume(tmp_path / "out").series_uid


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"kind": "knee"}, CddnetError, "no phantom 'knee'; choose water"),
        ({"kernel": "B30f"}, CddnetError, "no kernel 'B30f'; choose soft, sharp"),
        ({"dose_fraction": 0.0}, CddnetError, "dose is 0.0"),
        ({"dose_fraction": float("nan")}, CddnetError, "dose is nan"),
        ({"slices": 0}, CddnetError, "at least 1"),
        ({"size": 0}, CddnetError, "at least 1"),
        ({"pixel_mm": 0.0}, GeometryError, "above 0"),
        ({"pixel_mm": float("nan")}, GeometryError, "above 0"),
        ({"kind": "shoulder", "pixel_mm": 0.7, "size": 512}, GeometryError, "needs 500 mm"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, kind, reason):
    with pytest.raises(kind, match=reason):
        make(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone_and_a_failed_one_does_not_appear(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_bytes(b"kept")
    with pytest.raises(FormatError, match="nothing is overwritten"):
        make(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "new", PhantomOptions(kind="rods", size=SIZE), stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
