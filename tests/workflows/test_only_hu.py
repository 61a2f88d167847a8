"""Commands that need HU refuse what is none, in the same words, or are forced and say so."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from cddnet.cli import main
from cddnet.errors import UnfitError
from cddnet.formats import read_volume, write_volume
from cddnet.node.web.pairs import LocalPair
from cddnet.volume import CTVolume
from cddnet.workflows import train
from cddnet.workflows.fitness import examine, why_not_hu
from ct_tree import write_series
from trunk import SHAPE, SPACING_MM, trunk

NO_HU = {
    "offset": lambda hu: hu + 1024,
    "normalised": lambda hu: (hu + 1024) / 4096,
    "wrong sign": lambda hu: np.where(hu < -900, hu + 65536, hu),
}


def saved(path, hu):
    write_volume(CTVolume.from_hu(hu.astype(np.float32), SPACING_MM), path)
    return path


@pytest.fixture
def files(tmp_path, tiny_weights):
    """A trunk, the same with more noise, and both of them as no HU."""
    sound, loud = trunk(), trunk(noise_hu=40)
    made = {"sound": saved(tmp_path / "sound.nii.gz", sound)}
    made["loud"] = saved(tmp_path / "loud.nii.gz", loud)
    for name, change in NO_HU.items():
        made[name] = saved(tmp_path / f"{name}.nii.gz", change(sound))
    return made | {"out": tmp_path / "out", "weights": tiny_weights}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program; returns its exit code and what it wrote."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["cddnet", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        written = capsys.readouterr()
        return code, written.out + written.err

    return call


def commands(files, bad):
    """Name -> words of each command that needs HU, with a source that is none."""
    source, out, protocol = files[bad], files["out"], ("--protocol", "full")
    return {
        "denoise": ("denoise", source, out.with_suffix(".mha"), "--model", files["weights"]),
        "simulate": ("simulate", source, out.with_suffix(".mha")),
        "depth": ("depth", source, out),
        "explain": ("explain", source, out, "--slice", 1, "--roi", 48, 56, 8, "--block", 32,
                    "--model", files["weights"]),
        "evaluate": ("evaluate", source, files["sound"], *protocol, "--fidelity-only",
                     "--json", out.with_suffix(".json")),
        "evaluate, test": ("evaluate", files["sound"], source, *protocol, "--fidelity-only",
                           "--json", out.with_suffix(".json")),
        "evaluate, unpaired": ("evaluate", files["loud"], source, "--mode", "unpaired",
                               "--json", out.with_suffix(".json")),
        "report": ("report", out, files["sound"], "--method", f"made={files['loud']}",
                   "--low-dose", source, *protocol, "--fidelity-only"),
    }  # fmt: skip


COMMANDS = (
    "denoise",
    "simulate",
    "depth",
    "explain",
    "evaluate",
    "evaluate, test",
    "evaluate, unpaired",
    "report",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("bad", NO_HU)
def test_no_hu_is_refused_in_the_same_words_and_nothing_is_written(files, run, command, bad):
    before = set(files["out"].parent.iterdir())
    code, said = run(*commands(files, bad)[command])
    assert code == 1
    assert why_not_hu(read_volume(files[bad])) in said
    assert "--force" in said
    assert set(files["out"].parent.iterdir()) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_hu_is_not_refused(files, run, command):
    code, said = run(*commands(files, "sound")[command])
    assert code == 0, said
    assert "forced" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_forced_results_say_so(files, run, command):
    code, said = run(*commands(files, "offset")[command], "--force")
    assert code == 0, said
    assert "forced, although the values are not HU" in said
    records = [*files["out"].parent.glob("out*.json"), *files["out"].glob("*.json")]
    assert records
    assert any("forced" in file.read_text(encoding="utf-8").lower() for file in records)


def test_a_forced_simulation_of_dicom_stands_in_its_header(tmp_path, run):
    def pixels(place):
        return (trunk()[place % 2] + 1024).astype(np.int16)

    source = write_series(tmp_path / "source", "a", places=range(2), pixels=pixels)
    assert run("simulate", source, tmp_path / "refused")[0] == 1
    assert not (tmp_path / "refused").exists()
    assert run("simulate", source, tmp_path / "made", "--force")[0] == 0
    assert run("depth", source, tmp_path / "maps", "--force")[0] == 0
    for file in (*(tmp_path / "made").iterdir(), *(tmp_path / "maps").glob("*.dcm")):
        equipment = dcmread(file).ContributingEquipmentSequence
        steps = " ".join(item.get("ContributionDescription", "") for item in equipment)
        assert "FORCED although the fitness check refused it: values" in steps


def test_prepare_leaves_out_what_is_no_hu_and_counts_it(tmp_path, run):
    for number, patient in enumerate("abcd"):
        shift = 1024 if patient == "b" else 0

        def pixels(place, number=number, shift=shift):
            return (trunk(seed=10 * number + place)[0] + shift).astype(np.int16)

        write_series(tmp_path / "tree" / patient, f"ID-{patient}", places=range(2), pixels=pixels)
    code, said = run("prepare", tmp_path / "tree", tmp_path / "out")
    assert code == 0, said
    assert "left out: 2 slices or files, not in HU" in said
    with (tmp_path / "out" / "left_out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["kind"], row["slices"]) == ("not in HU", "2")
    assert "HU + 1024" in row["reason"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["series"]) == 3


def test_training_names_the_folder_that_is_no_hu(tmp_path):
    write_series(
        tmp_path / "a", "ID-a", places=range(2), pixels=lambda _: (trunk()[0] + 1000).astype("i2")
    )
    with pytest.raises(UnfitError, match=r"not HU of a body.*take it out of the split"):
        train._series_in_hu(tmp_path / "a")


def test_export_and_view_note_it(files, run):
    code, said = run("export", files["offset"], files["out"], "--window", -160, 240)
    assert code == 0
    assert "note: the values are not HU" in said
    notes = LocalPair(files["sound"], files["offset"]).pair("pair").manifest().notes
    assert any(note.startswith("after: the values are not HU") for note in notes)
    sound = LocalPair(files["sound"], files["loud"]).pair("pair").manifest().notes
    assert not any("not HU" in note for note in sound)


def grey(folder, slices, bits=16):
    folder.mkdir()
    for number, one in enumerate(slices):
        dtype = np.uint16 if bits == 16 else np.uint8
        levels = np.clip(np.rint(one), 0, 2**bits - 1).astype(dtype)
        Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("offset", "window_hu", "hint"),
    [
        (32768, (-1024, 64511), "-32768 32767"),
        (32768, (-160, 240), "-32768 32767"),
        (1024, (-32768, 32767), "-1024 64511"),
        (1000, (-160, 240), "-1000 64535"),
        (1024, (-1000, 1000), "-1024 64511"),
    ],
)
def test_a_window_that_gives_no_hu_is_refused_and_the_right_one_named(
    tmp_path, run, offset, window_hu, hint
):
    folder = grey(tmp_path / "in", trunk() + offset)
    code, said = run("denoise", folder, tmp_path / "out", "--window", *window_hu)
    assert code == 1
    assert "not HU of a body" in said
    assert "--window that the pictures were made with, here" in said
    assert hint in said
    assert not (tmp_path / "out").exists()
    volume = read_volume(folder, window_hu=tuple(map(float, hint.split())))
    assert why_not_hu(volume) == ""


@pytest.mark.parametrize(
    "window_hu",
    [(-160, 240), (-1350, 150), (-1024, 3071), (0, 80), (-500, 1300), (-200, 1800), (-1000, -150),
     (20, 60), (-1000, -250), (300, 1500)],
)  # fmt: skip
@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_of_their_own_window_are_hu(tmp_path, window_hu, bits):
    low, high = window_hu
    levels = np.clip((trunk() - low) / (high - low), 0, 1) * (2**bits - 1)
    volume = read_volume(grey(tmp_path / "in", levels, bits), window_hu=window_hu)
    assert volume.window_hu == window_hu
    assert examine(volume).refusal is None


def test_a_window_beside_hu_changes_nothing(tmp_path):
    """A TIFF in HU takes no window, and so none excuses its values."""
    path = saved(tmp_path / "a.tif", trunk() + 1024)
    volume = read_volume(path, window_hu=(-160.0, 240.0))
    assert volume.window_hu is None
    assert why_not_hu(volume)
    assert volume.shape == SHAPE
