"""An evaluation end to end: pairing and its refusals, means, flags, files and the command.

Above 300 lines: one verb from its files to its table, on one set of series.
"""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from cddnet.cli import main
from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import METRICS, VIF_WINDOW_HU
from cddnet.volume import Acquisition, CTVolume
from cddnet.workflows import _perceptual
from cddnet.workflows._cases import Case, find_cases
from cddnet.workflows._evaluation import Evaluation
from cddnet.workflows._protocols import PROTOCOLS, protocol_named, under
from cddnet.workflows.demo import demo_series
from cddnet.workflows.evaluate import (
    LOW_DOSE,
    EvaluateOptions,
    evaluate,
    evaluate_cases,
)
from cddnet.workflows.results import csv_text, summary, write_results
from ct_tree import write_series, write_tree

SHAPE = (43, 47)
SPACING_MM = (3.0, 0.7, 0.7)
# Slices of each patient: a mean over all images is another one.
SLICES = {"a": 2, "b": 3, "c": 5}


def anatomy(slices, seed):
    """A body of soft tissue in air with some bone, with noise: (D, H, W) HU."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(SHAPE)
    inside = np.hypot(rows - 21, columns - 23) < 19
    hu = np.where(inside, 50 + 30 * np.sin(columns / 4), -1000.0)
    hu[18:22, 20:25] = 700
    return (hu + rng.normal(0, 8, (slices, *SHAPE))).astype(np.float32)


def noisy(hu, noise_hu, seed):
    added = np.random.default_rng(seed).normal(0, noise_hu, hu.shape)
    return (hu + added).astype(np.float32)


def volume(hu, spacing_mm=SPACING_MM, **fields):
    return CTVolume.from_hu(hu, spacing_mm, **fields)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Folders of NIfTI, one file per patient: full dose, low dose, a better and a worse method."""
    root = tmp_path_factory.mktemp("patients")
    for number, (name, slices) in enumerate(SLICES.items()):
        full = anatomy(slices, number)
        low = noisy(full, 40 + 5 * number, 10 + number)
        worse = low + np.float32(60)
        rows = {"full": full, "low": low, "better": full + (low - full) / 2, "worse": worse}
        for folder, hu in rows.items():
            (root / folder).mkdir(exist_ok=True)
            write_volume(volume(hu), root / folder / f"{name}.npz")
    return root


@pytest.fixture(scope="module")
def three(patients):
    methods = {"better": patients / "better", "worse": patients / "worse"}
    return evaluate(patients / "full", methods, protocol="redcnn", low_dose=patients / "low")


@pytest.fixture
def pair(tmp_path):
    """Write a reference and a test, evaluate them under `full`."""

    def run(reference, test, **choices):
        number = len(list(tmp_path.iterdir()))
        paths = [tmp_path / f"{number}-{side}.npz" for side in ("reference", "test")]
        for path, item in zip(paths, (reference, test), strict=True):
            write_volume(item, path)
        return evaluate(paths[0], {"method": paths[1]}, **({"protocol": "full"} | choices))

    return run


def hu_of(patients, folder, name):
    return read_volume(patients / folder / f"{name}.npz").hu


# Protocols.


def test_one_pair_has_as_many_psnrs_as_protocols(pair):
    full = anatomy(1, 0)
    # Fat at the lower end of two windows, which differ by 10 HU.
    full[:, 24:30, 15:32] = -155
    low = noisy(full, 40, 1)
    found = {}
    for name, protocol in PROTOCOLS.items():
        result = pair(volume(full), volume(low), protocol=name)
        found[name] = result.rows[0].mean["PSNR"].value
        low_hu, high_hu = protocol.window_hu
        x, y = (np.clip((hu[0] - low_hu) / (high_hu - low_hu), 0, 1) for hu in (full, low))
        if protocol.bits:
            x, y = (np.floor(v.astype(np.float64) * 255) / 255 for v in (x, y))
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        # A level of 8 bits may fall on either side; elsewhere fractions are in float32.
        assert found[name] == pytest.approx(expected, abs=1e-2 if protocol.bits else 1e-4)
        assert protocol.described in summary(result)
    assert len(found) >= 6
    assert np.diff(sorted(found.values())).min() > 0.01


def test_windows_are_those_of_the_sources():
    windows = {name: protocol.window_hu for name, protocol in PROTOCOLS.items()}
    assert windows == {
        "redcnn": (-160, 240),
        "ldctbench-chest": (-1350, 150),
        "ldctbench-abdomen": (-150, 250),
        "ldctbench-neuro": (0, 80),
        "corediff": (-1000, 1000),
        "full": (-1024, 3071),
        "published": (-700, 300),
    }
    for name, protocol in PROTOCOLS.items():
        is_benchmark = name.startswith("ldctbench")
        assert (protocol.error_window_hu == VIF_WINDOW_HU) == is_benchmark
        assert ("VIF-ldctbench" in protocol.metrics) == is_benchmark
        assert set(protocol.metrics) <= set(METRICS)
    with pytest.raises(CddnetError, match="redcnn"):
        protocol_named("unheard")


def test_errors_of_ldctbench_go_up_to_bone_and_psnr_does_not(pair):
    full = anatomy(1, 0)
    bone = full.copy()
    bone[:, 18:22, 20:25] += 150
    found = pair(volume(full), volume(bone), protocol="ldctbench-abdomen").rows[0].mean
    assert found["RMSE"].value == pytest.approx(np.sqrt(150**2 * 20 / full[0].size), rel=1e-4)
    assert found["PSNR"].value == np.inf


def test_published_levels_are_cut_and_cutting_again_changes_nothing():
    published = PROTOCOLS["published"]
    hu = np.arange(-900, 500, dtype=np.float32).reshape(1, -1)
    levels = (under(published, hu) + 700) / 1000 * 255
    exact = [max(0, min(255, (value + 700) * 255 // 1000)) for value in range(-900, 500)]
    assert np.abs(levels[0] - exact).max() < 1e-3
    assert (under(published, under(published, hu)) == under(published, hu)).all()
    # Cutting takes half a level on average, as rounding does not.
    inside = (hu > -700) & (hu < 300)
    assert (hu - under(published, hu))[inside].mean() == pytest.approx(1000 / 255 / 2, abs=0.05)
    assert under(PROTOCOLS["full"], hu) is hu


# Means, intervals, flags.


def test_means_are_per_image_then_patient_then_overall(three, patients):
    better = three.rows[1]
    window_hu = PROTOCOLS["redcnn"].window_hu
    means = []
    for name, scores in zip(SLICES, better.per_patient.values(), strict=True):
        full, test = (hu_of(patients, folder, name) for folder in ("full", "better"))
        images = [
            METRICS["SSIM"].function(x, y, window_hu=window_hu)
            for x, y in zip(full, test, strict=True)
        ]
        means.append(np.mean(images))
        assert scores["SSIM"] == pytest.approx(means[-1], rel=1e-9)
    found = better.mean["SSIM"]
    assert found.value == pytest.approx(np.mean(means), rel=1e-9)
    assert min(means) <= found.low < found.value < found.high <= max(means)
    every_image = np.mean([image.values["SSIM"] for image in better.images])
    assert abs(found.value - every_image) > 1e-4
    assert len(better.images) == sum(SLICES.values())


def test_the_low_dose_is_first_and_what_is_worse_is_flagged(three):
    assert [row.name for row in three.rows] == [LOW_DOSE, "better", "worse"]
    assert [row.is_low_dose for row in three.rows] == [True, False, False]
    assert three.rows[0].flagged == three.rows[1].flagged == ()
    assert {"PSNR", "RMSE", "MAE"} <= set(three.rows[2].flagged)
    assert "worse is worse than the low dose in PSNR" in summary(three)
    assert not any("--low-dose" in note for note in three.notes)


def test_a_missing_low_dose_is_said(patients):
    result = evaluate(patients / "full", {"better": patients / "better"}, protocol="redcnn")
    assert any("low-dose row is missing" in note for note in result.notes)
    assert "low-dose row is missing" in summary(result)


def test_comparisons_are_paired_over_patients(three):
    (found,) = [c for c in three.comparisons if (c.metric, c.first) == ("RMSE", "better")]
    assert found.second == LOW_DOSE
    low, better = ([v["RMSE"] for v in row.per_patient.values()] for row in three.rows[:2])
    assert found.difference.value == pytest.approx(np.mean(np.subtract(better, low)))
    assert found.difference.high < 0
    # All three of one sign: 2 of 8 patterns.
    assert found.p_value == 0.25
    assert found.patients == 3
    pairs = {(c.first, c.second) for c in three.comparisons}
    assert pairs == {("better", LOW_DOSE), ("worse", LOW_DOSE), ("worse", "better")}
    assert any("not corrected for the 3 pairs" in note for note in three.notes)


def test_identical_images_are_perfect_and_survive_json(pair):
    full = anatomy(2, 0)
    result = pair(volume(full), volume(full), protocol="ldctbench-chest")
    mean = result.rows[0].mean
    assert (mean["PSNR"].value, mean["RMSE"].value, mean["MAE"].value) == (np.inf, 0, 0)
    for name in ("SSIM", "SSIM-Gaussian", "VIF", "VIF-ldctbench"):
        assert mean[name].value == pytest.approx(1)
    assert mean["PSNR"].low is None
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


def test_the_body_mask_is_that_of_the_reference(pair):
    full = anatomy(1, 0)
    low = noisy(full, 40, 1)
    result = pair(volume(full), volume(low), protocol="redcnn", mask="body")
    mask = body_mask(full[0])
    assert 0.3 < mask.mean() < 0.8
    for name, interval in result.rows[0].mean.items():
        window_hu = VIF_WINDOW_HU if name == "VIF" else PROTOCOLS["redcnn"].window_hu
        expected = METRICS[name].function(full[0], low[0], window_hu=window_hu, mask=mask)
        assert interval.value == pytest.approx(expected, rel=1e-9)
    assert result.mask.startswith("body")
    with pytest.raises(CddnetError, match="no mask 'lung'"):
        pair(volume(full), volume(low), mask="lung")


def test_what_small_images_do_not_allow_is_said(pair):
    full = anatomy(1, 0)[:, :33]
    result = pair(volume(full), volume(noisy(full, 9, 1)))
    assert "41 pixels" in result.unavailable["VIF"]
    assert "VIF" not in result.rows[0].mean
    assert "VIF: unavailable: needs sides of 41 pixels, the images have 33" in summary(result)


def test_a_slice_without_structure_is_left_out_of_vif_alone(pair):
    full = anatomy(2, 0)
    full[1] = -1000
    result = pair(volume(full), volume(noisy(full, 20, 1)))
    first, second = (image.values for image in result.rows[0].images)
    assert np.isnan(second["VIF"])
    assert result.rows[0].mean["VIF"].value == pytest.approx(first["VIF"])
    assert np.isfinite(second["PSNR"])
    assert any(note.startswith("1 scores of images") for note in result.notes)
    assert np.isnan(
        Evaluation.model_validate_json(result.model_dump_json()).rows[0].images[1].values["VIF"]
    )


def test_slices_are_read_once_and_none_is_kept():
    full = anatomy(4, 0)
    reads = []

    def counted(name, hu):
        return CTVolume(
            shape=hu.shape,
            spacing_mm=SPACING_MM,
            read_slice=lambda index: reads.append((name, index)) or hu[index],
        )

    case = Case(
        patient="patient 1",
        series="series 1",
        reference=counted("full", full),
        rows={"test": counted("test", noisy(full, 9, 1))},
        slices={"test": (0, 1, 2, 3)},
    )
    seen = []
    options = EvaluateOptions(
        progress=lambda what, done, total: seen.append((done, total)), with_physics=False
    )
    evaluate_cases([case], PROTOCOLS["full"], mask="body", options=options)
    assert reads == [(name, index) for index in range(4) for name in ("full", "test")]
    assert seen == [(done, 4) for done in (1, 2, 3, 4)]


# LPIPS.


def test_lpips_without_weights_is_unavailable_and_says_what_to_do(three):
    for network in ("alexnet", "vgg16"):
        assert "--lpips-weights FOLDER" in three.unavailable[f"LPIPS {network}"]
        assert f"LPIPS {network}: unavailable: needs {network}" in summary(three)
    assert not any(metric.name.startswith("LPIPS") for metric in three.metrics)


def test_lpips_with_weights_is_a_metric_of_the_protocol(pair, monkeypatch):
    class Distance:
        name, definition = "LPIPS alexnet", "made up"

        def __call__(self, full_dose, test, *, window_hu):
            return float(window_hu[1] + np.abs(full_dose - test).max())

    unavailable = _perceptual.Unavailable("unavailable: needs more")
    monkeypatch.setattr(
        _perceptual,
        "load_lpips",
        lambda folder, network: Distance() if network == "alexnet" else unavailable,
    )
    full = anatomy(1, 0)
    result = pair(volume(full), volume(full + 2), protocol="redcnn")
    assert result.rows[0].mean["LPIPS alexnet"].value == pytest.approx(242, rel=1e-5)
    assert not result.metrics[-1].higher_is_better
    assert result.unavailable == {"LPIPS vgg16": "needs more"}


# Pairing.


def test_slices_pair_by_position_within_a_tenth_of_their_spacing():
    hu = anatomy(3, 0)
    reference = volume(hu, positions_mm=(30.0, 33.0, 36.0))
    near, far = (
        volume(hu, positions_mm=(30.0 - apart, 33.0, 36.0 + apart)) for apart in (0.25, 0.35)
    )
    assert find_in_memory(reference, near).slices["method"] == (0, 1, 2)
    with pytest.raises(GeometryError, match=r"within 0\.3 mm of 30\.00 mm"):
        find_in_memory(reference, far)


def find_in_memory(reference, test):
    """The case of two volumes, without files."""
    from cddnet.workflows import _cases

    slices = _cases._slices(reference, test, "method")
    return Case(
        patient="patient 1",
        series="series 1",
        reference=reference,
        rows={"method": test},
        slices={"method": slices},
    )


def of(patient="", frame="", kernel=""):
    return {
        "acquisition": Acquisition(patient_id=patient, frame_of_reference_uid=frame, kernel=kernel)
    }


TURNED = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
GRID = (4, 9, 11)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "fields", "values"),
    [
        ((4, 9, 12), SPACING_MM, {}, ("9 x 11", "9 x 12")),
        ((4, 8, 11), SPACING_MM, {}, ("9 x 11", "8 x 11")),
        (GRID, (3.0, 0.8, 0.8), {}, ("0.7 x 0.7", "0.8 x 0.8")),
        (GRID, (2.5, 0.7, 0.7), {}, ("3", "2.5", "slice spacing")),
        (GRID, SPACING_MM, {"thickness_mm": 5.0}, ("thickness", "3.0", "5.0")),
        ((3, 9, 11), SPACING_MM, {}, ("3 slices but 4", "9.00 mm")),
        ((5, 9, 11), SPACING_MM, {}, ("5 slices but 4", "12.00 mm")),
        (GRID, SPACING_MM, {"origin_mm": (0.0, 0.0, 1.0)}, ("0.00 mm", "0.3 mm")),
        (GRID, SPACING_MM, {"origin_mm": (0.5, 0.0, 0.0)}, ("0.50, 0.00", "0.00, 0.00, 0.00")),
        (
            GRID,
            SPACING_MM,
            {"direction": TURNED},
            ("orientation", "columns from left to right", "columns from right"),
        ),
        (GRID, SPACING_MM, of("somebody"), ("patient",)),
        (GRID, SPACING_MM, of("patient", "1.2.9"), ("1.2.3", "1.2.9")),
    ],
)
def test_what_does_not_agree_is_refused_with_both_values(shape, spacing_mm, fields, values):
    own = {"thickness_mm": 3.0} | of("patient", "1.2.3")
    reference = volume(np.zeros(GRID, np.float32), **own)
    test = volume(np.zeros(shape, np.float32), spacing_mm, **(own | fields))
    assert find_in_memory(reference, reference).slices["method"] == (0, 1, 2, 3)
    with pytest.raises(GeometryError, match="method: ") as refused:
        find_in_memory(reference, test)
    for value in values:
        assert value in str(refused.value)


def test_a_refused_patient_is_not_named():
    one, two = (volume(np.zeros(GRID, np.float32), **of(name)) for name in ("MUELLER", "SCHMIDT"))
    with pytest.raises(GeometryError, match="digest") as refused:
        find_in_memory(one, two)
    assert not {"MUELLER", "SCHMIDT"} & set(str(refused.value).split())
    assert "MUELLER" not in str(refused.value)
    digests = [
        word.strip(",;") for word in str(refused.value).split() if len(word.strip(",;")) == 8
    ]
    assert len({word for word in digests if all(c in "0123456789abcdef" for c in word)}) == 2


def test_files_of_two_folders_pair_by_name(patients, tmp_path):
    for name in ("b", "a"):
        write_volume(volume(hu_of(patients, "low", name)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(GeometryError, match="no series belong to 'c'"):
        evaluate(patients / "full", {"method": tmp_path}, protocol="full")
    write_volume(volume(hu_of(patients, "low", "c")), tmp_path / "c.nii.gz")
    cases = find_cases(patients / "low", {"method": tmp_path})
    for case in cases:
        assert np.abs(case.rows["method"].hu - case.reference.hu).max() < 0.6
    write_volume(volume(hu_of(patients, "low", "a")), tmp_path / "d.nii.gz")
    with pytest.raises(GeometryError, match="'d' without a reference, which has 'a', 'b', 'c'"):
        evaluate(patients / "full", {"method": tmp_path}, protocol="full")


def test_dicom_series_pair_by_frame_of_reference(tmp_path):
    pixels = {name: anatomy(4, number) for number, name in enumerate("abcd")}
    write_tree(tmp_path / "full")
    # The same patients under other folder names, their derived series in another order.
    for folder, patient in enumerate("dbca"):
        write_series(
            tmp_path / "low" / str(folder),
            f"ID-{patient}",
            name="low",
            pixels=lambda place, patient=patient: pixels[patient][place][:33, :27],
        )
    cases = find_cases(tmp_path / "full", {"method": tmp_path / "low"})
    for case in cases:
        patient = case.reference.acquisition.patient_id
        assert case.rows["method"].acquisition.patient_id == patient
        assert patient not in case.patient
    assert len({case.patient for case in cases}) == 4
    # A second kernel of one patient, at the same places in the same frame.
    sharp = {"name": "sharp", "ConvolutionKernel": "B70f"}
    write_series(tmp_path / "low" / "4", "ID-d", **sharp)
    with pytest.raises(GeometryError, match="without a reference"):
        find_cases(tmp_path / "full", {"method": tmp_path / "low"})
    write_series(tmp_path / "full" / "e", "ID-d", **sharp | {"name": "full sharp"})
    cases = find_cases(tmp_path / "full", {"method": tmp_path / "low"})
    kernels = [
        (case.reference.acquisition.kernel, case.rows["method"].acquisition.kernel)
        for case in cases
    ]
    assert sorted(kernels) == [("B30f", "B30f")] * 4 + [("B70f", "B70f")]
    assert sorted(case.series for case in cases) == ["series 1"] * 4 + ["series 2"]


def test_without_patient_ids_each_study_is_a_patient(tmp_path):
    for side in ("full", "low"):
        for number in (1, 2):
            told = {"StudyInstanceUID": f"1.2.{number}", "FrameOfReferenceUID": f"1.3.{number}"}
            # The low dose lost no ID, which is no contradiction.
            patient = "" if side == "full" else f"ID-{number}"
            write_series(tmp_path / side / str(number), patient, name=f"{side}{number}", **told)
    result = evaluate(tmp_path / "full", {"low": tmp_path / "low"}, protocol="full")
    assert len(result.rows[0].per_patient) == 2
    assert any("without a patient ID" in note for note in result.notes)


def test_folders_of_pictures_are_patients_and_keep_their_window(tmp_path):
    for side, shift in (("full", 0), ("low", 9)):
        for patient in ("a", "b"):
            folder = tmp_path / side / patient
            folder.mkdir(parents=True)
            grey = (np.indices((48, 44)).sum(axis=0) + 60 + shift).astype(np.uint8)
            Image.fromarray(grey).save(folder / "1.png")
    options = EvaluateOptions(window_hu=(-160.0, 350.0))
    result = evaluate(
        tmp_path / "full", {"low": tmp_path / "low"}, protocol="full", options=options
    )
    # 9 levels of 2 HU.
    assert result.rows[0].mean["RMSE"].value == pytest.approx(18, rel=1e-4)
    assert len(result.rows[0].per_patient) == 2
    assert any("8-bit grey levels of the window -160 to 350 HU" in note for note in result.notes)
    with pytest.raises(FormatError, match="--window"):
        evaluate(tmp_path / "full", {"low": tmp_path / "low"}, protocol="full")


def test_reserved_names_are_refused(patients):
    for name in (LOW_DOSE, "reference"):
        with pytest.raises(CddnetError, match="named"):
            evaluate(patients / "full", {name: patients / "low"}, protocol="full")


# What is written.


def test_every_table_states_protocol_window_range_mask_and_n(three, tmp_path):
    paths = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "markdown")}
    write_results(three, **paths)
    facts = ("redcnn", "[-160, 240] HU", "range 400 HU", "none (every pixel)", "3 patients")
    for text in (summary(three), paths["markdown"].read_text().replace("\\", "")):
        assert all(fact in text for fact in facts)
    assert Evaluation.model_validate_json(paths["json"].read_text()) == three
    with paths["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * sum(SLICES.values())
    for line in lines:
        assert line["protocol"] == "redcnn"
        assert (line["window_low_hu"], line["window_high_hu"]) == ("-160.0", "240.0")
        assert line["mask"] == "none (every pixel)"
    expected = [image.values["PSNR"] for row in three.rows for image in row.images]
    assert [float(line["PSNR (dB)"]) for line in lines] == expected


def test_nothing_is_overwritten_and_nothing_half_written(three, tmp_path):
    (tmp_path / "old.csv").write_text("mine")
    with pytest.raises(FormatError, match="exists"):
        write_results(three, json=tmp_path / "new.json", csv=tmp_path / "old.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    with pytest.raises(FormatError, match="twice"):
        write_results(three, json=tmp_path / "one", csv=tmp_path / "one")


def test_no_name_of_a_patient_leaves(tmp_path):
    for side, name in (("full", "full"), ("low", "low")):
        write_series(tmp_path / "MUELLER" / side, "MUELLER^ANNA", name=name)
    result = evaluate(
        tmp_path / "MUELLER" / "full", {"test": tmp_path / "MUELLER" / "low"}, protocol="full"
    )
    for text in (result.model_dump_json(), csv_text(result), summary(result)):
        assert "MUELLER" not in text.upper()
        assert "1 patient" in text or "patient 1 (" in text


@pytest.fixture
def cddnet(monkeypatch, capsys):
    """Run a command line; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_on_files(cddnet, patients, tmp_path):
    code, out, err = cddnet(
        *("evaluate", patients / "full", patients / "better", "--low-dose", patients / "low"),
        *("--protocol", "ldctbench-abdomen", "--method", f"worse={patients / 'worse'}"),
        *("--mask", "body", "--json", tmp_path / "e.json", "--csv", tmp_path / "e.csv"),
    )
    assert (code, err) == (0, "")
    assert "window [-150, 250] HU, range 400 HU" in out
    assert "Research use only" in out
    found = json.loads((tmp_path / "e.json").read_text())
    assert [row["name"] for row in found["rows"]] == [LOW_DOSE, "test", "worse"]
    assert len((tmp_path / "e.csv").read_text().splitlines()) == 1 + 3 * sum(SLICES.values())
    code, out, err = cddnet("evaluate", patients / "full", patients / "low", "--protocol", "hu")
    assert (code, out) == (1, "")
    assert all(name in err for name in PROTOCOLS)
    code, out, _ = cddnet("evaluate", "--help")
    assert all(name in out for name in PROTOCOLS)
    assert "never by name" in " ".join(out.split())


def test_the_command_on_the_demo_series(cddnet, tmp_path):
    from cddnet.workflows.denoise import DenoiseOptions, denoise_file
    from cddnet.workflows.simulate import SimulateOptions, calibrated_source, simulate_volume

    full = tmp_path / "full"
    full.mkdir()
    for path in sorted(demo_series().glob("*.dcm"))[4:6]:
        (full / path.name).write_bytes(path.read_bytes())
    series = read_volume(full)
    low = simulate_volume(series, calibrated_source(series), SimulateOptions(dose_fraction=0.25))
    write_volume(low, tmp_path / "low")
    denoise_file(tmp_path / "low", tmp_path / "out", DenoiseOptions(), lambda done, total: None)
    code, out, err = cddnet(
        *("evaluate", full, tmp_path / "out", "--low-dose", tmp_path / "low"),
        *("--protocol", "redcnn", "--mask", "body", "--json", tmp_path / "e.json"),
    )
    assert (code, err) == (0, "")
    result = Evaluation.model_validate_json((tmp_path / "e.json").read_text())
    low_dose, test = result.rows
    for name in ("PSNR", "SSIM", "SSIM-Gaussian", "VIF"):
        assert test.mean[name].value > low_dose.mean[name].value
    assert test.mean["RMSE"].value < low_dose.mean["RMSE"].value
    assert test.flagged == ()
    assert "1 patient, 2 slices" in out
