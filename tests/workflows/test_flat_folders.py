"""Flat folders of pictures through the command line: denoised and evaluated by name."""

import csv
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from cddnet.cli import main
from cddnet.errors import FormatError, GeometryError
from cddnet.formats import ReadOptions, read_volume
from cddnet.formats._sidecar import FOLDER_RECORD, recorded_in
from cddnet.workflows._cases import find_cases
from cddnet.workflows._pictures import sides
from cddnet.workflows.denoise import DenoiseOptions, denoise_file, denoise_volume
from cddnet.workflows.evaluate import EvaluateOptions, evaluate
from ct_tree import write_series

LOW_HU, HIGH_HU = -700.0, 300.0
WINDOW = ("--window", "-700", "300")
SIZE = (33, 47)
# Natural order is that of the numbers; the last one is the first by letters.
NAMES = ("L067.b.2.jpg", "L067.b.9.jpeg", "L067.b.10.PNG", "l096 1.png")


def grey(name, noise):
    """Grey levels (H, W) of a disc, other for other names."""
    rows, columns = np.indices(SIZE)
    rng = np.random.default_rng(list(name.encode()))
    inside = np.hypot(rows - 16, columns - 23) < 14
    levels = np.where(inside, rng.uniform(150, 220), 10) + noise * rng.normal(size=SIZE)
    return np.clip(levels, 0, 255).astype(np.uint8)


def write(folder, names, noise=0.0):
    """8-bit pictures, every second one with three equal channels; JPEG as good as it gets."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        image = Image.fromarray(grey(name.rsplit(".", 1)[0], noise))
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        image.convert("RGB" if number % 2 else "L").save(folder / name, format=kind, quality=100)
    return folder


@pytest.fixture
def published(tmp_path):
    """The published layout: pairs of equal names in IN/ and GT/."""
    write(tmp_path / "set" / "IN", NAMES, noise=25)
    write(tmp_path / "set" / "GT", NAMES)
    return tmp_path / "set"


@pytest.fixture
def cddnet(monkeypatch, capsys):
    """Run a command line; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def levels(path):
    with Image.open(path) as image:
        values = np.asarray(image).astype(int)
    return values if values.ndim == 2 else values[..., 0]


def stems(folder):
    return {path.stem: path for path in folder.iterdir() if path.name != FOLDER_RECORD}


def hu(path):
    with Image.open(path) as image:
        most = 65535 if image.mode.startswith("I") else 255
    return levels(path) / most * (HIGH_HU - LOW_HU) + LOW_HU


def fails(cddnet, *arguments):
    code, _, error = cddnet(*arguments)
    assert code == 1
    return error


# Denoising.


def test_pictures_are_denoised_without_ground_truth_and_keep_their_names(
    published, tmp_path, tiny_weights, cddnet
):
    source, out = published / "IN", tmp_path / "out"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    code, said, _ = cddnet("denoise", source, out, *WINDOW, "--model", tiny_weights)
    assert code == 0
    assert f"{out}: 4 slices" in said
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["L067.b.2.png", "L067.b.9.png", "L067.b.10.png", "l096 1.png", FOLDER_RECORD]
    )
    volume = read_volume(source, window_hu=(LOW_HU, HIGH_HU))
    expected = denoise_volume(volume, tiny_weights)
    # Natural order of names is that of the slices.
    for name, slice_hu in zip(NAMES, expected.slices(), strict=True):
        exact = np.clip((slice_hu.astype(float) - LOW_HU) / 1000, 0, 1) * 65535
        written = levels(stems(out)[name.rsplit(".", 1)[0]])
        # Half a level, and the rounding of float32 to 24 bits.
        assert np.abs(written - exact).max() <= 0.51
        assert np.abs(slice_hu - hu(source / name)).max() > 10
    (step,) = recorded_in(out / FOLDER_RECORD)
    assert step.label.startswith("tiny@1")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_strength_zero_gives_every_level_back(published, tmp_path, tiny_weights, cddnet):
    """65535 = 255 x 257: 8-bit levels have their own among 16 bits."""
    out = tmp_path / "out"
    strength = ("--strength", "0", "--model", tiny_weights)
    assert cddnet("denoise", published / "IN", out, *WINDOW, *strength)[0] == 0
    for path in (published / "IN").iterdir():
        assert np.array_equal(levels(stems(out)[path.stem]), 257 * levels(path))


def test_sixteen_bit_pictures_and_a_single_one(tmp_path, tiny_weights):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 65536, SIZE).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.b.PNG", format="PNG")
    options = DenoiseOptions(model=tiny_weights, strength=0.0, window_hu=(-1024.0, 64511.0))
    denoise_file(tmp_path / "a.b.PNG", tmp_path / "out", options, lambda done, total: None)
    assert np.array_equal(levels(tmp_path / "out" / "a.b.png"), stored)


@pytest.mark.parametrize("with_truth", [True, False])
def test_of_the_published_layout_in_is_denoised(
    published, tmp_path, tiny_weights, cddnet, with_truth
):
    if not with_truth:
        for path in (published / "GT").iterdir():
            path.unlink()
    model = ("--model", tiny_weights)
    code, said, _ = cddnet("denoise", published, tmp_path / "whole", *WINDOW, *model)
    assert code == 0
    assert ("only IN was denoised" in said) == with_truth
    cddnet("denoise", published / "IN", tmp_path / "part", *WINDOW, *model)
    whole, part = stems(tmp_path / "whole"), stems(tmp_path / "part")
    assert whole.keys() == part.keys() == stems(published / "IN").keys()
    assert all(whole[name].read_bytes() == part[name].read_bytes() for name in whole)


def test_pictures_in_hu_become_tiff_in_hu(tmp_path, tiny_weights, rng):
    source = tmp_path / "source"
    source.mkdir()
    images = {name: rng.normal(0, 900, SIZE).astype(np.float32) for name in ("a.1", "a.2")}
    for name, image in images.items():
        tifffile.imwrite(source / f"{name}.tif", image, photometric="minisblack")
    for name, window_hu in (("alone", None), ("window", (0.0, 1.0))):
        out = tmp_path / name
        options = DenoiseOptions(model=tiny_weights, strength=0.0, window_hu=window_hu)
        denoise_file(source, out, options, lambda done, total: None)
        for name, image in images.items():
            assert np.array_equal(tifffile.imread(out / f"{name}.tif").squeeze(), image)


def test_what_cannot_be_denoised_is_refused_and_nothing_is_left(
    published, tmp_path, tiny_weights, cddnet
):
    model, out = ("--model", tiny_weights), tmp_path / "out"
    source = published / "IN"
    assert "--window" in fails(cddnet, "denoise", source, out, *model)
    assert "JPEG would change" in fails(
        cddnet, "denoise", source, tmp_path / "out.JPG", *WINDOW, *model
    )
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(source / "other.png")
    error = fails(cddnet, "denoise", source, out, *WINDOW, *model)
    assert "differ in size" in error
    assert "other.png (5 x 6)" in error
    (source / "other.png").unlink()
    Image.fromarray(grey("x", 0)).save(source / "l067.B.2.png")
    error = fails(cddnet, "denoise", source, out, *WINDOW, *model)
    assert "named alike" in error
    assert "L067.b.2.jpg" in error
    (source / "l067.B.2.png").unlink()
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert "nothing is overwritten" in fails(cddnet, "denoise", source, out, *WINDOW, *model)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_folders_of_other_things_are_no_layout_of_pictures(published, tmp_path):
    assert sides(published) == (published / "IN", published / "GT")
    assert sides(published / "IN") is None
    assert sides(tmp_path / "nowhere") is None
    write_series(tmp_path / "dicom" / "IN", "ID-1")
    write_series(tmp_path / "dicom" / "GT", "ID-1")
    assert sides(tmp_path / "dicom") is None
    Image.fromarray(grey("own", 0)).save(published / "own.png")
    assert sides(published) is None


# Evaluating.


def options():
    return EvaluateOptions(window_hu=(LOW_HU, HIGH_HU), with_physics=False)


def rmse_hu(full_dose, test):
    """By name, and the mean over images, as the published script prints it."""
    named = stems(test)
    return np.mean(
        [np.sqrt(np.mean((hu(path) - hu(named[path.stem])) ** 2)) for path in full_dose.iterdir()]
    )


def test_the_published_journey_ends_in_figures_with_the_low_dose_first(
    published, tmp_path, tiny_weights, cddnet
):
    out, table = tmp_path / "out", tmp_path / "table.csv"
    cddnet("denoise", published, out, *WINDOW, "--model", tiny_weights)
    protocol = ("--protocol", "corediff", "--fidelity-only")
    code, said, _ = cddnet("evaluate", published, out, *WINDOW, *protocol, "--csv", table)
    assert code == 0
    assert "n = 1 patient, 4 slices" in said
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["low dose"] * 4 + ["test"] * 4
    for row, folder in (("low dose", published / "IN"), ("test", out)):
        found = np.mean([float(line["RMSE (HU)"]) for line in lines if line["row"] == row])
        assert found == pytest.approx(rmse_hu(published / "GT", folder), rel=1e-5)
    low_dose = ("--low-dose", published / "IN")
    _, same, _ = cddnet("evaluate", published / "GT", out, *WINDOW, *protocol, *low_dose)
    assert same == said


def test_pairs_go_by_name_and_not_by_order(tmp_path):
    """Sorted as file names the folders differ: 1.jpg before 1.k.jpg, but 1.k.png before 1.png."""
    truth = write(tmp_path / "truth", ["1.jpg", "1.k.jpg"])
    result = write(tmp_path / "result", ["1.png", "1.k.png"])
    (case,) = find_cases(truth, {"test": result}, ReadOptions(window_hu=(LOW_HU, HIGH_HU)))
    assert case.slices == {"test": (1, 0)}
    found = evaluate(truth, {"test": result}, protocol="corediff", options=options())
    assert found.rows[0].mean["RMSE"].value == pytest.approx(rmse_hu(truth, result), rel=1e-5)
    # What JPEG of the highest quality changes, and not what two pictures differ by.
    assert found.rows[0].mean["RMSE"].value < 5 < np.abs(np.subtract(*case.reference.hu)).mean()


def test_pictures_without_a_twin_are_named(published, cddnet):
    """As many on both sides: pairs by order would go through."""
    protocol = ("--protocol", "published", "--fidelity-only")
    (published / "IN" / "l096 1.png").rename(published / "IN" / "l096 2.png")
    error = fails(cddnet, "evaluate", published / "GT", published / "IN", *WINDOW, *protocol)
    assert "test: pictures are paired by name" in error
    assert "it has none named l096 1 and the reference has none named l096 2" in error
    (published / "IN" / "l096 2.png").unlink()
    error = fails(cddnet, "evaluate", published / "GT", published / "IN", *WINDOW, *protocol)
    assert "it has none named l096 1;" in error
    assert "low dose: pictures" in fails(
        cddnet, "evaluate", published, published / "GT", *WINDOW, *protocol
    )


def test_sizes_that_differ_are_refused_and_nothing_is_resized(tmp_path):
    truth = write(tmp_path / "truth", ["1.png"])
    (tmp_path / "small").mkdir()
    Image.fromarray(grey("1", 0)[:-2]).save(tmp_path / "small" / "1.png")
    with pytest.raises(GeometryError, match=r"31 x 47, but 33 x 47 in the reference"):
        evaluate(truth, {"test": tmp_path / "small"}, protocol="full", options=options())


def test_a_name_taken_twice_is_refused(tmp_path):
    truth = write(tmp_path / "truth", ["1.png", "2.png"])
    twice = write(tmp_path / "twice", ["1.png", "1.jpg"])
    with pytest.raises(FormatError, match=r"named alike: 1\.jpg, 1\.png"):
        evaluate(truth, {"test": twice}, protocol="full", options=options())


def test_without_ground_truth_the_input_is_compared(published, tmp_path, tiny_weights, cddnet):
    cddnet("denoise", published, tmp_path / "out", *WINDOW, "--model", tiny_weights)
    for path in (published / "GT").iterdir():
        path.unlink()
    unpaired = (tmp_path / "out", "--mode", "unpaired", *WINDOW)
    code, said, _ = cddnet("evaluate", published, *unpaired)
    assert code == 0
    assert "global noise level" in said
    assert cddnet("evaluate", published / "IN", *unpaired)[1] == said
