"""Slices that are not axial: noted where only quality is at stake, refused where physics is."""

from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest

from cddnet.cli import main
from cddnet.errors import GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
from cddnet.workflows.depth import DepthOptions, depth_file
from cddnet.workflows.evaluate import EvaluateOptions, evaluate, evaluate_unpaired
from cddnet.workflows.explain import EffectSettings, ExplainOptions, Watch, explain_file
from cddnet.workflows.export import ExportOptions, export_file
from cddnet.workflows.info import describe
from cddnet.workflows.prepare import PrepareOptions, prepare
from cddnet.workflows.simulate import SimulateOptions, simulate_file
from ct_tree import uid_of, write_series, write_slice

SPACING_MM = (1.5, 0.9, 0.9)
HALF = np.sqrt(0.5)
# Where the columns and the rows run to.
PLANES = {
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((1, 0, 0), (0, HALF, HALF)),
}


def quiet(*done):
    """Progress that nobody watches."""


def body(shape, seed=0):
    """A disc of tissue and a rod of bone in air, with noise: (D, H, W) whole HU."""
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    _, rows, columns = np.indices(shape)
    inside = np.hypot(rows - shape[1] / 2, columns - shape[2] / 2) < 0.4 * min(shape[1:])
    rod = np.hypot(rows - shape[1] / 3, columns - shape[2] / 2) < 4
    return np.rint(np.where(rod, 700.0, np.where(inside, 40.0, -1000.0)) + noise).astype(np.float32)


def write_plane(folder, plane, patient="a", shape=(4, 71, 83)):
    across, down = PLANES[plane]
    through = np.cross(across, down)
    for index, hu in enumerate(body(shape)):
        write_slice(
            folder / f"{index}.dcm",
            hu,
            PatientID=patient,
            StudyInstanceUID=uid_of(patient, "study"),
            FrameOfReferenceUID=uid_of(patient, "frame"),
            SeriesInstanceUID=uid_of(patient, plane),
            SOPInstanceUID=uid_of(patient, plane, index),
            ImagePositionPatient=list(np.round(3.0 * index * through, 6)),
            ImageOrientationPatient=list(np.round([*across, *down], 6)),
            InstanceNumber=index + 1,
        )
    return folder


@pytest.fixture(params=sorted(PLANES))
def reformatted(request, tmp_path):
    return request.param, write_plane(tmp_path / "series", request.param)


def test_denoising_says_the_plane(reformatted, tiny_weights, tmp_path):
    plane, folder = reformatted
    options = DenoiseOptions(model=tiny_weights, engine="torch_eager", force=True)
    denoised = denoise_file(folder, tmp_path / "out", options, quiet)
    note = f"slices are {plane}, and the networks were trained on axial ones"
    assert note in denoised.notes
    assert len(list((tmp_path / "out").iterdir())) == 4
    (info,) = describe(folder)
    assert note in info.notes


@pytest.mark.parametrize("verb", ["simulate", "depth"])
def test_physics_refuses_the_plane_and_writes_nothing(
    verb, reformatted, tmp_path, monkeypatch, capsys
):
    plane, folder = reformatted
    monkeypatch.setattr("sys.argv", ["cddnet", verb, str(folder), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert f"slices are {plane}" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["series"]


@pytest.mark.parametrize("reformatted", ["coronal"], indirect=True)
def test_the_maps_of_uncertainty_need_axial_slices(reformatted, tiny_weights, tmp_path):
    plane, folder = reformatted
    from cddnet.workflows.noise_map import noise_reader

    with pytest.raises(GeometryError, match=f"slices are {plane}"):
        noise_reader(read_volume(folder))


def test_a_training_set_leaves_them_out_and_counts_them(reformatted, tmp_path):
    plane, _ = reformatted
    source = tmp_path / "source"
    for patient in "abc":
        write_series(source / patient, patient)
    write_plane(source / "d", plane, "d")
    result = prepare(source, tmp_path / "set", PrepareOptions(split=(0.4, 0.3, 0.3)), quiet)
    assert len(result.manifest.series) == 3
    assert dict(result.left_out) == {"unfit": 4}
    assert f"slices are {plane}" in (tmp_path / "set" / "left_out.csv").read_text("utf-8")


def test_an_evaluation_says_the_plane(reformatted, tmp_path):
    plane, folder = reformatted
    options = EvaluateOptions(with_physics=False)
    found = evaluate(folder, {"itself": folder}, protocol="redcnn", options=options)
    assert (
        f"reference: slices are {plane}, and the networks were trained on axial ones" in found.notes
    )
    assert any(plane in note for note in evaluate_unpaired(folder, {"itself": folder}).notes)


@pytest.mark.parametrize("reformatted", ["coronal"], indirect=True)
def test_an_explanation_says_the_plane(reformatted, tiny_weights, tmp_path):
    plane, folder = reformatted
    options = ExplainOptions(
        slice_number=2,
        roi=(35, 40, 8),
        model=tiny_weights,
        effects=EffectSettings(block=35),
    )
    watch = Watch(quiet, quiet)
    assert (
        f"slices are {plane}" in explain_file(folder, tmp_path / "out", options, watch).described[0]
    )


# Axes of the file that run to the left, to the back and to the head, so that nothing is mirrored.
@pytest.fixture(params=["LSP", "PSL"])
def twins(request, tmp_path):
    """One volume in axial planes, and the same in another order of its axes."""
    volume = CTVolume.from_hu(body((6, 71, 83)), SPACING_MM, origin_mm=(-30.0, -20.0, 100.0))
    write_volume(volume, tmp_path / "axial.nii")
    source = nibabel.load(tmp_path / "axial.nii")
    orientations = [
        nibabel.io_orientation(source.affine),
        nibabel.orientations.axcodes2ornt(request.param),
    ]
    turned = source.as_reoriented(nibabel.orientations.ornt_transform(*orientations))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    return tmp_path / "axial.nii", tmp_path / "turned.nii.gz"


def require_same(one, other):
    """The same HU at the same places, each in the order of its source."""
    first, second = nibabel.load(one), nibabel.load(other)
    assert first.shape != second.shape
    orientations = [nibabel.io_orientation(image.affine) for image in (second, first)]
    back = second.as_reoriented(nibabel.orientations.ornt_transform(*orientations))
    np.testing.assert_allclose(back.affine, first.affine, atol=1e-5)
    np.testing.assert_array_equal(back.get_fdata(), first.get_fdata())


def test_the_order_of_axes_changes_nothing_in_the_result(twins, tiny_weights, tmp_path):
    options = DenoiseOptions(model=tiny_weights, engine="torch_eager", force=True)
    outputs = [tmp_path / f"denoised-{path.name}" for path in twins]
    for source, output in zip(twins, outputs, strict=True):
        denoise_file(source, output, options, quiet)
    require_same(*outputs)
    assert np.ptp(nibabel.load(outputs[0]).get_fdata() - nibabel.load(twins[0]).get_fdata()) > 1


def test_dose_and_depth_are_those_of_the_axial_planes(twins, tmp_path):
    outputs = [tmp_path / f"low-{path.name}" for path in twins]
    for source, output in zip(twins, outputs, strict=True):
        simulate_file(source, output, SimulateOptions(seed=3), quiet)
        depth_file(source, tmp_path / f"depth-{source.name}", DepthOptions(), quiet)
    require_same(*outputs)
    depths = [np.load(tmp_path / f"depth-{path.name}" / "depth.npy") for path in twins]
    assert depths[0].shape == (6, 71, 83)
    np.testing.assert_array_equal(*depths)


def test_a_training_set_takes_axial_slices_of_any_file(twins, tmp_path):
    """The same pixels out of both orders; planes that were reformatted thick are left out."""
    stored = []
    for name, source in zip(("one", "other"), twins, strict=True):
        folder = tmp_path / name
        for patient in "abc":
            (folder / patient).mkdir(parents=True)
            volume = read_volume(source)
            shifted = replace(volume, read_slice=partial(moved, volume, "abc".index(patient)))
            write_volume(shifted, folder / patient / "scan.nii.gz")
        thick = CTVolume.from_hu(
            body((4, 71, 83)), (3.0, 0.9, 0.9), direction=((0, 1, 0), (0, 0, -1), (1, 0, 0))
        )
        (folder / "d").mkdir()
        write_volume(thick, folder / "d" / "scan.nii.gz")
        options = PrepareOptions(split=(0.4, 0.3, 0.3), patient_pattern="^([a-d])/")
        result = prepare(folder, tmp_path / f"{name}-set", options, quiet)
        assert dict(result.left_out) == {"unfit": 4}
        files = sorted((tmp_path / f"{name}-set" / "slices").iterdir())
        stored.append({np.load(file).tobytes() for file in files})
    assert len(stored[0]) == 3
    assert stored[0] == stored[1]


def moved(volume, step, index):
    return volume.read_slice(index) + step


def test_pictures_are_of_axial_slices(twins, tmp_path):
    folders = [tmp_path / f"pictures-{path.name}" for path in twins]
    for source, folder in zip(twins, folders, strict=True):
        export_file(source, folder, ExportOptions(window_hu=(-160.0, 240.0)), quiet)
    files = [sorted(folder.glob("*.png")) for folder in folders]
    assert len(files[0]) == 6
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_an_evaluation_matches_the_two(twins):
    options = EvaluateOptions(with_physics=False)
    found = evaluate(twins[0], {"turned": twins[1]}, protocol="redcnn", options=options)
    assert found.rows[0].mean["RMSE"].value == 0
    assert len(found.rows[0].images) == 6


def test_an_array_with_slices_last_is_denoised_in_its_own_order(
    tiny_weights, tmp_path, monkeypatch, capsys
):
    hu = body((6, 83, 83))
    np.save(tmp_path / "first.npy", hu)
    np.save(tmp_path / "last.npy", hu.transpose(1, 2, 0))
    arguments = ["--model", str(tiny_weights), "--engine", "torch_eager", "--force"]
    for name, axis in (("first", ()), ("last", ("--slice-axis", "2")), ("last", ())):
        paths = [str(tmp_path / f"{name}.npy"), str(tmp_path / f"{name}{len(axis)}-out.npy")]
        monkeypatch.setattr("sys.argv", ["cddnet", "denoise", *paths, *arguments, *axis])
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or 0) == (name == "last" and not axis)
    assert "axis 2 has the odd length" in capsys.readouterr().err
    first, last = np.load(tmp_path / "first0-out.npy"), np.load(tmp_path / "last2-out.npy")
    np.testing.assert_array_equal(last, first.transpose(1, 2, 0))
    assert np.ptp(first - hu) > 1
