"""Causal effects and gradients against networks whose dependence is known in closed form.

Above 300 lines: effects and gradients are checked on the same networks.
"""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from typer.testing import CliRunner

from cddnet.cli import app
from cddnet.errors import CddnetError, FormatError, GeometryError, ModelError
from cddnet.formats import write_volume
from cddnet.metrics.fidelity import psnr
from cddnet.runtime import store
from cddnet.volume import Acquisition, CTVolume
from cddnet.workflows import explain
from cddnet.workflows._causal import (
    PSNR_WINDOW_HU,
    Box,
    EffectSettings,
    Scene,
    Watch,
    attribution,
    effect_map,
)
from cddnet.workflows.denoise import denoise_slice
from cddnet.workflows.explain import ExplainOptions, denoiser, explain_file, region_of

REGION = Box(27, 22, 8, 8)
SETTINGS = EffectSettings(
    block=4, reach_hu=1e-3, most_tiles=10**6, coarse=2, fine=3, tolerance_hu=1e-3
)
DONOR_HU = 300.0
SPACING_MM = (3.0, 0.8, 0.5)
SILENT = Watch(lambda what, done, total: None, lambda line: None)


def shifted(hu):
    """Each pixel is the one five columns to its right."""
    return functional.pad(hu, (0, 5))[..., 5:]


def boxed(hu):
    """Mean of 7 x 7 pixels."""
    return functional.avg_pool2d(hu[:, None], 7, stride=1, padding=3)[:, 0]


def constant(hu):
    return torch.full_like(hu, 40.0)


def scene(denoise, rng, reference=None):
    """Donors of one value, so that every patch is the same and effects are exact."""
    hu = rng.normal(0, 100, (67, 75)).astype(np.float32)
    donors = np.full((3, 67, 75), DONOR_HU, np.float32)
    return Scene(
        hu=hu,
        region=REGION,
        denoise=denoise,
        reference=reference,
        donors=donors,
        donor_body=donors > 0,
    )


def closed_form(made, effects, score):
    """Effect of every block: replaced by hand, in the whole slice."""
    before = made.denoise(torch.from_numpy(made.hu)[None])[0].numpy()[REGION.inside]
    expected = np.zeros(effects.hu.shape)
    for i, (top, bottom) in enumerate(zip(effects.row_edges, effects.row_edges[1:], strict=False)):
        for j, (left, right) in enumerate(
            zip(effects.column_edges, effects.column_edges[1:], strict=False)
        ):
            hu = made.hu.copy()
            hu[top:bottom, left:right] = DONOR_HU
            after = made.denoise(torch.from_numpy(hu)[None])[0].numpy()[REGION.inside]
            expected[i, j] = score(after, before)
    return expected


def rmse(one, other):
    return np.sqrt(np.mean((one.astype(np.float64) - other) ** 2))


@pytest.mark.parametrize("denoise", [shifted, boxed])
def test_effects_without_a_reference_are_the_change_of_the_region(denoise, rng):
    made = scene(denoise, rng)
    effects = effect_map(made, SETTINGS, rng, SILENT)
    expected = closed_form(made, effects, rmse)
    known = np.isfinite(effects.hu)
    assert np.allclose(effects.hu[known], expected[known], atol=1e-4)
    assert np.array_equal(effects.hu[known] > 0, expected[known] > 0)
    assert np.isnan(effects.db[known][expected[known] > 0]).all()
    # Blocks of 4 start at the region's corner: four of its own, and those that it depends on.
    assert (~known).sum() == 4
    rows, columns = np.nonzero(np.nan_to_num(effects.hu))
    first = effects.row_edges[rows.min()], effects.column_edges[columns.min()]
    last = effects.row_edges[rows.max() + 1], effects.column_edges[columns.max() + 1]
    if denoise is shifted:
        assert (first, last) == ((27, 30), (35, 38))
        assert len(rows) == 4
    else:
        assert (first, last) == ((23, 18), (39, 34))
        assert len(rows) == 16 - 4


@pytest.mark.parametrize("denoise", [shifted, boxed])
def test_effects_against_full_dose_have_their_sign_and_decibels(denoise, rng):
    reference = rng.normal(0, 60, (8, 8)).astype(np.float32)
    reference[:, 4:] = 0.5 * DONOR_HU
    made = scene(denoise, rng, reference)
    effects = effect_map(made, SETTINGS, rng, SILENT)
    known = np.isfinite(effects.hu)
    in_hu = closed_form(made, effects, lambda a, b: rmse(a, reference) - rmse(b, reference))
    in_db = closed_form(
        made,
        effects,
        lambda a, b: (
            psnr(reference, b, window_hu=PSNR_WINDOW_HU)
            - psnr(reference, a, window_hu=PSNR_WINDOW_HU)
        ),
    )
    assert np.allclose(effects.hu[known], in_hu[known], atol=2e-3)
    assert np.allclose(effects.db[known], in_db[known], atol=1e-3)
    assert effects.hu[known].max() > 1
    assert np.array_equal(np.sign(effects.db[known]), np.sign(effects.hu[known]))
    before = made.denoise(torch.from_numpy(made.hu)[None])[0].numpy()[REGION.inside]
    assert effects.baseline_rmse_hu == pytest.approx(rmse(before, reference), rel=1e-6)


def test_a_network_that_ignores_its_input_has_no_effect(rng):
    made = scene(constant, rng, np.zeros((8, 8), np.float32))
    effects = effect_map(made, SETTINGS, rng, SILENT)
    assert np.array_equal(np.nan_to_num(effects.hu), np.zeros(effects.hu.shape))
    assert (effects.reached, effects.refined, effects.beyond_hu) == (0, 0, 0.0)
    weights = attribution(made, 3)
    assert not weights.weight.any()
    assert weights.change_hu == 0


def test_few_blocks_are_tried_one_by_one_and_in_a_small_frame(rng):
    hu = rng.normal(0, 100, (200, 260)).astype(np.float32)
    donors = np.full((2, 200, 260), DONOR_HU, np.float32)
    sizes = []

    def watched(images):
        sizes.append(tuple(images.shape[1:]))
        return boxed(images)

    made = Scene(
        hu=hu,
        region=Box(86, 86, 8, 8),
        denoise=watched,
        reference=None,
        donors=donors,
        donor_body=donors > 0,
    )
    effects = effect_map(made, SETTINGS, rng, SILENT)
    assert effects.refined == 12
    assert effects.reached < 100 < effects.hu.size
    assert sizes[-1] == (64, 64) == effects.frame[2:]
    # What depends on the whole slice is never cropped.
    whole = effect_map(
        Scene(
            hu=hu,
            region=Box(86, 86, 8, 8),
            denoise=lambda images: images - images.mean(dim=(1, 2), keepdim=True),
            reference=None,
            donors=donors,
            donor_body=donors > 0,
        ),
        SETTINGS,
        rng,
        SILENT,
    )
    assert whole.frame == (0, 0, 200, 260)
    assert whole.reached == effects.hu.size - 4


def test_a_frame_that_changes_the_answer_is_not_used(rng):
    """A gain that depends on the mean of the slice; far tiles hardly move the region."""
    hu = rng.normal(0, 100, (200, 260)).astype(np.float32)
    hu[:, :130] += 500
    donors = np.full((1, 200, 260), DONOR_HU, np.float32)
    made = Scene(
        hu=hu,
        region=Box(86, 86, 8, 8),
        denoise=lambda images: boxed(images) * (1 + images.mean(dim=(1, 2), keepdim=True) / 1000),
        reference=None,
        donors=donors,
        donor_body=donors > 0,
    )
    effects = effect_map(made, replace(SETTINGS, reach_hu=5.0), rng, SILENT)
    assert effects.frame.height * effects.frame.width > 4 * 64 * 64
    assert 0 < effects.reached < 100
    assert 0.1 < effects.beyond_hu < 5


def test_the_region_itself_is_not_replaced_and_time_is_bounded(rng):
    same = effect_map(scene(lambda hu: hu, rng), SETTINGS, rng, SILENT)
    assert (same.reached, same.beyond_hu) == (0, 0.0)
    few = replace(SETTINGS, most_tiles=1)
    full, bounded = (effect_map(scene(boxed, rng), s, rng, SILENT) for s in (SETTINGS, few))
    assert 0 < bounded.reached < full.reached
    assert bounded.beyond_hu > SETTINGS.reach_hu > full.beyond_hu


def test_patches_come_from_the_body_of_the_donors(rng):
    hu = np.zeros((40, 40), np.float32)
    donors = np.full((2, 40, 40), 900.0, np.float32)
    donors[1] = np.arange(40)
    body = np.zeros(donors.shape, np.bool_)
    body[1, 10:30, 10:30] = True
    seen = []

    def keep(images):
        seen.append(images.numpy().max())
        return images

    made = Scene(
        hu=hu, region=Box(8, 8, 4, 4), denoise=keep, reference=None, donors=donors, donor_body=body
    )
    effect_map(made, SETTINGS, rng, SILENT)
    assert 10 <= max(seen) <= 39


def test_one_seed_gives_one_map(rng):
    hu = rng.normal(0, 100, (3, 67, 75)).astype(np.float32)
    made = Scene(
        hu=hu[0],
        region=REGION,
        denoise=boxed,
        reference=None,
        donors=hu[1:],
        donor_body=np.ones((2, 67, 75), np.bool_),
    )
    one, same, other = (
        effect_map(made, SETTINGS, np.random.default_rng(seed), SILENT).hu for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same, equal_nan=True)
    assert not np.array_equal(one, other, equal_nan=True)


def test_the_gradient_of_a_linear_filter_is_its_kernel(rng):
    kernel = torch.from_numpy(rng.normal(size=(5, 7)).astype(np.float32))

    def filtered(hu):
        return functional.conv2d(hu[:, None], kernel[None, None], padding=(2, 3))[:, 0]

    made = scene(filtered, rng)
    pixel = Scene(
        hu=made.hu,
        region=Box(30, 20, 1, 1),
        denoise=filtered,
        reference=None,
        donors=made.donors,
        donor_body=made.donor_body,
    )
    found = attribution(pixel, 4)
    expected = np.zeros_like(made.hu)
    expected[28:33, 17:24] = kernel
    assert np.allclose(found.weight, expected, atol=1e-6)
    assert found.explained_hu == pytest.approx(found.change_hu, rel=1e-4)
    # Over a region it is the mean of the kernels of its pixels.
    wide = attribution(made, 2)
    mean = np.zeros_like(made.hu)
    for row in range(27, 35):
        for column in range(22, 30):
            mean[row - 2 : row + 3, column - 3 : column + 4] += kernel.numpy() / 64
    assert np.allclose(wide.weight, mean, atol=1e-6)


def test_the_gradients_of_a_curve_add_up_to_its_change(rng):
    made = scene(lambda hu: hu + hu**2 / 500, rng)
    found = attribution(made, 8)
    # The midpoint rule is exact for the square.
    assert found.explained_hu == pytest.approx(found.change_hu, rel=1e-3)
    assert abs(found.change_hu) > 1


@pytest.fixture
def series(tmp_path, rng):
    """Four slices of a body, and their full dose."""
    full = np.full((4, 61, 70), -1000, np.float32)
    full[:, 8:52, 9:60] = 40 + rng.normal(0, 20, (4, 44, 51))
    low = full.copy()
    low[:, 8:52, 9:60] += rng.normal(0, 40, (4, 44, 51))
    paths = []
    for name, hu in (("full", full), ("low", low)):
        paths.append(tmp_path / f"{name}.nii.gz")
        volume = CTVolume.from_hu(hu, SPACING_MM, origin_mm=(-12.0, 30.0, -100.0))
        write_volume(volume, paths[-1])
    return tuple(paths)


def options(weights, **chosen):
    settings = EffectSettings(block=8, reach_hu=0.01, coarse=1, fine=1, tolerance_hu=1e-3)
    chosen = {"slice_number": 2, "roi": (30, 30, 8)} | chosen
    return ExplainOptions(model=weights, device="cpu", effects=settings, **chosen)


def test_a_folder_of_maps_picture_and_record(series, tiny_weights, tmp_path):
    full, low = series
    said, target = [], tmp_path / "out"
    watch = Watch(lambda what, done, total: said.append((what, done, total)), said.append)
    result = explain_file(low, target, options(tiny_weights, reference=full), watch)
    record = json.loads((target / "explanation.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    assert sorted(path.name for path in target.iterdir()) == sorted(result.files)
    effect = np.load(target / "effect_hu.npy")
    weight = np.load(target / "attribution.npy")
    assert effect.shape == weight.shape == (61, 70)
    assert np.isnan(effect[26:34, 26:34]).all()
    assert np.isfinite(effect).sum() == 61 * 70 - 64
    counts = record["effects"]
    assert counts["positive"] + counts["negative"] > 0
    blocks = (1 + 8) * (1 + 9)
    assert sum(counts[k] for k in ("positive", "negative", "zero")) == blocks - 1
    assert counts["largest_hu"] == pytest.approx(float(np.nanmax(effect)), rel=1e-6)
    assert counts["least_db"] is not None
    assert "PSNR in window [-1024, 3071] HU" in record["compared_with"]
    assert record["replacements_from_slices"] == [1, 3, 4]
    assert any(
        "the others move the region by at most" in line for line in said if isinstance(line, str)
    )
    assert ("coarse pass", counts["replaced_one_by_one"]) in [
        item[:2] for item in said if isinstance(item, tuple)
    ]
    with Image.open(target / "explanation.png") as picture:
        assert picture.mode == "RGB"
    with pytest.raises(FormatError, match="nothing is overwritten"):
        explain_file(low, target, options(tiny_weights), SILENT)
    again = tmp_path / "again"
    explain_file(low, again, options(tiny_weights, reference=full), SILENT)
    for name in result.files:
        assert (again / name).read_bytes() == (target / name).read_bytes()


def test_without_full_dose_it_says_sensitivity(series, tiny_weights, tmp_path):
    result = explain_file(series[1], tmp_path / "out", options(tiny_weights), SILENT)
    assert "sensitivity" in result.record["compared_with"]
    counts = result.record["effects"]
    assert counts["least_db"] is None
    assert counts["baseline_rmse_hu"] == 0
    assert counts["negative"] == 0 < counts["positive"]
    assert not (tmp_path / "out" / "effect_db.npy").exists()


def test_it_explains_what_denoising_does(tiny_weights, rng):
    network, _ = store.load(tiny_weights)
    hu = rng.normal(0, 100, (33, 47)).astype(np.float32)
    found = denoiser(network, 0.5)(torch.from_numpy(hu)[None])[0].numpy()
    expected = denoise_slice(hu, np.zeros(hu.shape, np.bool_), network, strength=0.5)
    assert np.allclose(found, expected, atol=1e-3)
    assert np.abs(expected - hu).max() > 2


def test_the_region_in_mm_is_the_region_in_voxels():
    volume = CTVolume.from_hu(
        np.zeros((2, 61, 70), np.float32), SPACING_MM, origin_mm=(-12.0, 30.0, -100.0)
    )

    def asked(**chosen):
        return region_of(volume, 1, ExplainOptions(slice_number=2, **chosen))

    # Rows run along y in steps of 0.8 mm, columns along x in steps of 0.5 mm.
    assert asked(roi_mm=(-12 + 0.5 * 31, 30 + 0.8 * 24, 8.0)) == Box(19, 23, 10, 16)
    square = CTVolume.from_hu(np.zeros((1, 50, 50), np.float32), (1, 2.0, 2.0))
    for number, roi in enumerate([(20, 30, 8), (11, 12, 5)]):
        in_mm = (2.0 * roi[1], 2.0 * roi[0], 2.0 * roi[2])
        options_mm = ExplainOptions(slice_number=1, roi_mm=in_mm)
        assert region_of(square, 0, options_mm) == region_of(
            square, 0, ExplainOptions(slice_number=1, roi=roi)
        ), number
    coronal = CTVolume.from_hu(
        np.zeros((2, 50, 50), np.float32),
        (1.0, 1.0, 1.0),
        direction=((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)),
    )
    with pytest.raises(GeometryError, match="give --roi in voxels"):
        region_of(coronal, 0, ExplainOptions(slice_number=1, roi_mm=(20.0, 20.0, 5.0)))


@pytest.mark.parametrize(
    ("chosen", "error", "reason"),
    [
        ({"roi": (3, 30, 8)}, GeometryError, "rows -1 to 6"),
        ({"roi": (30, 67, 8)}, GeometryError, "columns 63 to 70, the slice has 61 x 70"),
        ({"roi": (30, 30, 0)}, GeometryError, "above 0"),
        ({"roi": None}, CddnetError, "a region is needed and"),
        ({"roi_mm": (0.0, 40.0, 4.0)}, CddnetError, "a region is needed and"),
        ({"slice_number": 5}, GeometryError, "choose 1 to 4"),
        ({"strength": 1.5}, ModelError, "strength is 1.5"),
    ],
)
def test_what_cannot_be_explained_is_refused(series, tiny_weights, tmp_path, chosen, error, reason):
    with pytest.raises(error, match=reason):
        explain_file(series[1], tmp_path / "out", options(tiny_weights, **chosen), SILENT)
    assert not (tmp_path / "out").exists()


def test_a_reference_must_fit_and_a_series_needs_other_slices(series, tiny_weights, tmp_path, rng):
    hu = rng.normal(40, 20, (4, 61, 70)).astype(np.float32)
    for name, volume, reason in (
        (
            "sized",
            CTVolume.from_hu(hu[:, :50], SPACING_MM),
            "sized.nii.gz: does not belong .*rows and columns",
        ),
        (
            "elsewhere",
            CTVolume.from_hu(hu, SPACING_MM, origin_mm=(-12.0, 30.0, 500.0)),
            "elsewhere.nii.gz: does not belong .*no low-dose slice lies within",
        ),
    ):
        path = tmp_path / f"{name}.nii.gz"
        write_volume(volume, path)
        chosen = options(tiny_weights, reference=path)
        with pytest.raises(CddnetError, match=reason):
            explain_file(series[1], tmp_path / "out", chosen, SILENT)
    lone = tmp_path / "lone.nii.gz"
    write_volume(CTVolume.from_hu(hu[:1], SPACING_MM), lone)
    with pytest.raises(CddnetError, match="give the whole series"):
        explain_file(lone, tmp_path / "out", options(tiny_weights, slice_number=1), SILENT)


def test_another_patient_is_refused_without_a_name(series, tiny_weights, tmp_path, monkeypatch):
    read, patients = explain.read_volume, iter(["ONE", "OTHER"])

    def named(path, **chosen):
        return replace(read(path, **chosen), acquisition=Acquisition(patient_id=next(patients)))

    monkeypatch.setattr(explain, "read_volume", named)
    chosen = options(tiny_weights, reference=series[0])
    with pytest.raises(GeometryError, match="another patient") as refused:
        explain_file(series[1], tmp_path / "out", chosen, SILENT)
    assert "ONE" not in str(refused.value)


def test_a_network_without_parameters_is_explained_too():
    class Same(torch.nn.Module):
        def forward(self, image):
            return SimpleNamespace(image=0.5 * image)

    hu = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(denoiser(Same(), 1.0)(hu), 0.5 * hu)
    assert torch.equal(denoiser(Same(), 0.5)(hu), 0.75 * hu)


def test_the_command_writes_what_the_library_does(series, tiny_weights, tmp_path):
    full, low = series
    where = ["explain", str(low)]
    chosen = ["--slice", "2", "--roi", "30", "30", "8", "--model", str(tiny_weights)]
    chosen += ["--block", "16", "--device", "cpu", "--reference", str(full)]
    run = CliRunner().invoke(app, [*where, str(tmp_path / "a"), *chosen, "--json"])
    assert run.exit_code == 0
    printed = json.loads(run.stdout)
    assert printed["settings"] == asdict(EffectSettings())
    assert printed["effects"]["baseline_rmse_hu"] > 0
    assert "probing" in run.stderr
    run = CliRunner().invoke(app, [*where, str(tmp_path / "b"), *chosen, "--strength", "0"])
    assert run.exit_code == 0
    assert "compared with full dose" in run.stdout
    assert "0 without which the region's RMSE rises" in run.stdout
    assert "weight of the region's own pixels in its mean: 100% of all" in run.stdout
    assert "Research use only" in run.stdout
    run = CliRunner().invoke(app, [*where, str(tmp_path / "c"), "--roi", "30", "30", "8"])
    assert run.exit_code == 2
