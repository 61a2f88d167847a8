"""Files that people write: what is wrong is named, and the ones shipped are right."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cddnet import models
from cddnet.config import ConfigError, PatientSplit, TrainConfig, checked, load_config, read_yaml
from cddnet.errors import CddnetError

CONFIGS = Path(__file__).parents[1] / "configs"
SPLIT = {
    "collections": ["made up"],
    "train": {"A": ["a1", "a2"]},
    "validation": {"B": ["b"]},
    "test": {"C": ["c"]},
}


def written(folder, values):
    path = folder / "file.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


def refusal(path, kind):
    with pytest.raises(ConfigError) as error:
        load_config(path, kind)
    assert isinstance(error.value, CddnetError)
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_is_written_is_what_is_read(tmp_path):
    recipe = TrainConfig(split="s.yaml", steps=7, options={"width": 4}, loss={"depth": 0.5})
    assert load_config(written(tmp_path, recipe.model_dump(mode="json")), TrainConfig) == recipe
    assert recipe != TrainConfig(split="s.yaml")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"split": "s", "learningrate": 1}, "learningrate"),
        ({"split": "s", "noise": {"dose": 1}}, "noise.dose"),
        ({"split": "s", "loss": {"image": -1}}, "loss.image"),
        ({"split": "s", "crop": 100}, "crop"),
        ({"split": "s", "steps": 0}, "steps"),
        ("just a sentence", "file"),
        ("a: [1", "YAML"),
        ("", "file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, values, named):
    assert named in refusal(written(tmp_path, values), TrainConfig)


def test_every_wrong_key_is_named_at_once(tmp_path):
    message = refusal(written(tmp_path, {"spilt": "s", "stepps": 3}), TrainConfig)
    assert all(word in message for word in ("spilt", "stepps"))


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "nowhere.yaml", TrainConfig)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_is_read_as_windows_saves_it(tmp_path, coding):
    path = tmp_path / "file.yaml"
    path.write_bytes("split: Größe\r\nsteps: 7\r\n".encode(coding))
    assert read_yaml(path) == {"split": "Größe", "steps": 7}


@pytest.mark.parametrize("coding", ["latin-1", "cp437"])
def test_a_file_of_another_encoding_is_refused(tmp_path, coding):
    path = tmp_path / "file.yaml"
    path.write_bytes("split: Größe".encode(coding))
    assert "save it as UTF-8" in refusal(path, TrainConfig)


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_patient_on_two_sides_is_refused(tmp_path, side):
    twice = SPLIT | {side: {"A": ["another"]}}
    assert "two sides" in refusal(written(tmp_path, twice), PatientSplit)


@pytest.mark.parametrize("patients", [{"B": ["a2"]}, {"B": ["b", "b"]}])
def test_a_folder_of_two_patients_or_listed_twice_is_refused(tmp_path, patients):
    message = refusal(written(tmp_path, SPLIT | {"validation": patients}), PatientSplit)
    assert "two sides" in message


def test_a_cut_body_of_nobody_is_refused(tmp_path):
    split = load_config(written(tmp_path, SPLIT | {"cut": ["A"]}), PatientSplit)
    assert split.cut == ("A",)
    assert "no side: Z" in refusal(written(tmp_path, SPLIT | {"cut": ["A", "Z"]}), PatientSplit)


def test_both_splits_agree_on_the_patients_they_share():
    """By folder, in case a patient had two names: those of the first lie in `ct` of the second."""

    def sides(name):
        split = load_config(CONFIGS / f"{name}.yaml", PatientSplit)
        return split, {
            folder: (side, patient)
            for side in ("train", "validation", "test")
            for patient, folders in getattr(split, side).items()
            for folder in folders
        }

    _, first = sides("split_open_ct")
    second, later = sides("split_open_ct_2")
    shared = {folder: where for folder, where in later.items() if folder.startswith("ct/")}
    assert len(shared) > 40
    assert all(first[folder.removeprefix("ct/")] == where for folder, where in shared.items())
    patients = {patient: side for side, patient in first.values()}
    contiguous = {folder: where for folder, where in later.items() if folder not in shared}
    assert all(folder == f"series/{patient}" for folder, (_, patient) in contiguous.items())
    assert all(patients.get(patient, side) == side for side, patient in later.values())
    assert patients.keys() <= {patient for _, patient in later.values()}
    assert set(second.cut) == {patient for _, patient in later.values() if "STS" in patient}


def test_a_good_split_is_read(tmp_path):
    split = load_config(written(tmp_path, SPLIT), PatientSplit)
    assert split.train == {"A": ("a1", "a2")}


def test_configurations_are_frozen():
    with pytest.raises(ValidationError):
        TrainConfig(split="s").steps = 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_is_right(path):
    if path.stem.startswith("split_"):
        split = load_config(path, PatientSplit)
        assert all((split.train, split.validation, split.test))
        return
    recipe = load_config(path, TrainConfig)
    assert recipe.model in models.names()
    load_config(path.parent / recipe.split, PatientSplit)
    models.build(recipe.model, **recipe.options)


def test_files_are_shipped():
    recipes = {"train_cddnet", "train_cddnet_dual_task", "train_red_cnn", "train_wgan_vgg"}
    files = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert files >= recipes | {"train_cncl", "split_open_ct"}


def test_a_wrong_key_within_a_list_is_named_with_the_nearest():
    lesions = {"per_slice": 1, "strata": [{"diameter": (1, 2), "contrast_hu": (5, 6)}]}
    with pytest.raises(ConfigError, match=r"strata\.0\.diameter: .*'diameter_mm'"):
        checked({"split": "s", "lesions": lesions}, TrainConfig, "recipe")


@pytest.mark.parametrize("text", ["1:30", "12:30:00", "-1:30", "1:30.5", "190:20:30.15"])
def test_a_time_of_the_day_is_no_number_to_the_base_of_60(tmp_path, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"steps: {text}\n")
    with pytest.raises(ConfigError, match="steps: Input should be a valid integer"):
        load_config(recipe, TrainConfig)


@pytest.mark.parametrize(
    "text",
    ["1" * 100_000, "0x" + "f" * 100_000, "!!int '" + "1:" * 50_000 + "1'", "1." + "0" * 100_000],
)
def test_numbers_that_would_take_time_are_refused(tmp_path, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"steps: {text}\n")
    with pytest.raises(ConfigError, match="line 1 holds a number of 100"):
        load_config(recipe, TrainConfig)


WHOLE = ["0", "7", "-12", "+3", "1_000", "0x1F", "0b101", "017", "_1"]
BROKEN = ["1.5", "-.5", "1e-3", "1.0e-5", "2.5E+3", ".5", ".inf", "-.INF", "12.", "1.2.3"]


@pytest.mark.parametrize("text", [*WHOLE, *BROKEN, "~", "on", "2001-01-01", "1-2"])
def test_all_other_values_are_those_of_the_library(tmp_path, text):
    (tmp_path / "values.yaml").write_text(f"- {text}\n")
    assert repr(read_yaml(tmp_path / "values.yaml")) == repr([yaml.safe_load(text)])
