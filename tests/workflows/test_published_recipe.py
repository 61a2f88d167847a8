"""The published training.yml: what is taken, what its own code ignores, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cddnet import models
from cddnet.config import ConfigError, TrainConfig, checked, load_config
from cddnet.workflows._published_recipe import is_published, load_recipe, translated
from cddnet.workflows.prepare import PrepareOptions, prepare
from cddnet.workflows.train import TrainOptions, train_from_config

LITERAL = Path(__file__).parents[2] / "configs" / "train_cddnet_literal.yaml"
# As the project publishes it, without its comments.
PUBLISHED = """
GPU: [5]
VERBOSE: True
OPTIM:
  BATCH_SIZE: 12
  NUM_EPOCHS: 300
  LR_INITIAL: 1e-3
TRAINING:
  RESUME: False
  TRAIN_DIR_KCL: '/data/ct/train'
  VAL_DIR_KCL: '/data/ct/valid'
  SAVE_DIR: '/saved_models/CDDNet'
"""
# Those it knows besides, and those of its relatives.
FURTHER = """
MODEL: {MODE: global, SESSION: ps128}
OPTIM: {NEPOCH_DECAY: [100], LR_MIN: 1.0e-5, BETA1: 0.5}
TRAINING: {VAL_AFTER_EVERY: 3, TRAIN_PS: 64, VAL_PS: 64, SAVE_IMAGES: true, TRAIN_DIR: a}
"""


def translation(text, slices=1000):
    return translated(yaml.safe_load(text), slices, "training.yml")


def sentences(text):
    """Key -> what was said of it, each once."""
    told = [sentence.split(": ", 1) for sentence in translation(text).told]
    assert len(dict(told)) == len(told)
    return dict(told)


def refusal(text):
    with pytest.raises(ConfigError) as error:
        translation(text)
    assert str(error.value).startswith("training.yml: ")
    return str(error.value)


def test_published_files_are_told_from_ours():
    assert is_published(yaml.safe_load(PUBLISHED))
    assert is_published({"OPTIMS": {}})
    for ours in (TrainConfig().model_dump(mode="json"), {}, None, "text", ["GPU"]):
        assert not is_published(ours)


def test_the_published_file_is_a_recipe():
    recipe = checked(translation(PUBLISHED).values, TrainConfig, "training.yml")
    assert recipe.model in models.names()
    assert recipe.method == "cddnet_literal"
    assert (recipe.slices_per_step, recipe.crops_per_slice, recipe.crop) == (12, 1, 512)
    # The last batch of an epoch is short there: 84 batches of 1000 slices.
    assert recipe.steps == 300 * 84
    assert recipe.validate_every == 84
    # YAML 1.1 reads 1e-3 as a text.
    assert isinstance(yaml.safe_load(PUBLISHED)["OPTIM"]["LR_INITIAL"], str)
    assert recipe.learning_rate == 1e-3
    assert (recipe.betas, recipe.weight_decay, recipe.schedule) == ((0.9, 0.999), 1e-8, "cosine")


def test_it_is_the_shipped_literal_recipe():
    """Of which the file may change three figures, and the data a fourth."""
    shipped = load_config(LITERAL, TrainConfig).model_dump()
    found = checked(translation(PUBLISHED).values, TrainConfig, "training.yml").model_dump()
    apart = {key for key in found if found[key] != shipped[key]}
    assert apart == {"split", "method_options", "steps", "validate_every", "seed"}
    rate = shipped["method_options"]["estimator_rate"]
    assert found["method_options"] == {"estimator_rate": pytest.approx(rate)}


@pytest.mark.parametrize(("slices", "steps"), [(1, 300), (12, 300), (13, 600), (24, 600)])
def test_an_epoch_is_every_slice_once(slices, steps):
    assert translation(PUBLISHED, slices).values["steps"] == steps


def test_each_key_of_the_file_has_its_sentence():
    told = sentences(PUBLISHED)
    assert list(told) == [
        *("GPU", "VERBOSE", "OPTIM.BATCH_SIZE", "OPTIM.NUM_EPOCHS", "OPTIM.LR_INITIAL"),
        *("TRAINING.RESUME", "TRAINING.TRAIN_DIR_KCL", "TRAINING.VAL_DIR_KCL", "TRAINING.SAVE_DIR"),
    ]
    assert told["OPTIM.NUM_EPOCHS"].startswith("used as 300 epochs of 84 steps")
    assert "learning_rate 0.001" in told["OPTIM.LR_INITIAL"]
    assert "cddnet prepare" in told["TRAINING.TRAIN_DIR_KCL"]
    assert "--out" in told["TRAINING.SAVE_DIR"]


def test_keys_that_the_published_code_ignores_are_said_to_be_so_and_change_nothing():
    told = sentences(FURTHER)
    ignored = {key for key, text in told.items() if "the published code ignores it too" in text}
    assert ignored == {
        *("MODEL.MODE", "MODEL.SESSION", "OPTIM.NEPOCH_DECAY", "OPTIM.LR_MIN", "OPTIM.BETA1"),
        *("TRAINING.VAL_AFTER_EVERY", "TRAINING.TRAIN_PS", "TRAINING.VAL_PS"),
        "TRAINING.SAVE_IMAGES",
    }
    assert translation(FURTHER).values == translation("OPTIM: {}").values
    assert "ignores" not in sentences(PUBLISHED)["GPU"]


def test_what_the_file_leaves_out_is_the_published_default_and_said():
    found = translation("MODEL:\nOPTIM: {NUM_EPOCHS: 2}", slices=5)
    assert (found.values["slices_per_step"], found.values["steps"]) == (1, 10)
    assert found.values["learning_rate"] == 2e-4
    assert sum("(not given, the published default)" in sentence for sentence in found.told) == 2


def test_unknown_keys_are_refused_all_at_once_with_the_nearest():
    message = refusal("OPTIM: {BATCHSIZE: 1, LR: 1}\nTRAINNING: {}\nsteps: 3")
    assert "OPTIM.BATCHSIZE: a published training.yml has no such key" in message
    assert "did you mean 'OPTIM.BATCH_SIZE'?" in message
    assert all(f"{key}: " in message for key in ("OPTIM.LR", "TRAINNING", "steps"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("OPTIM: 3", "OPTIM: expected keys below it, found 3"),
        ("OPTIM: {BATCH_SIZE: 0}", "OPTIM.BATCH_SIZE: expected a whole number above 0, found 0"),
        ("OPTIM: {BATCH_SIZE: true}", "OPTIM.BATCH_SIZE"),
        ("OPTIM: {NUM_EPOCHS: 1.5}", "OPTIM.NUM_EPOCHS"),
        ("OPTIM: {NUM_EPOCHS: }", "OPTIM.NUM_EPOCHS"),
        ("OPTIM: {LR_INITIAL: fast}", "OPTIM.LR_INITIAL: expected a number above 0, found 'fast'"),
        ("OPTIM: {LR_INITIAL: 0}", "OPTIM.LR_INITIAL"),
        ("OPTIM: {LR_INITIAL: .inf}", "OPTIM.LR_INITIAL"),
        ("OPTIM: {LR_INITIAL: [1]}", "OPTIM.LR_INITIAL"),
        ("OPTIM: {LR_INITIAL: true}", "OPTIM.LR_INITIAL"),
    ],
)
def test_wrong_values_are_named(text, named):
    assert named in refusal(text)


@pytest.mark.slow
def test_the_published_file_trains_on_its_own_layout(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("IN", "GT"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for name in range(20):
            grey = rng.integers(130, 250, (64, 64), dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "train" / folder / f"L{name:03}_1.jpg")
    (tmp_path / "training.yml").write_text(PUBLISHED, encoding="utf-8")
    options = PrepareOptions(window_hu=(-700.0, 300.0), patient_pattern="^(L[0-9]+)_")
    prepare(tmp_path / "train", tmp_path / "set", options, lambda what, done, total: None)
    told = []
    small = ("steps=1", "crop=32", "slices_per_step=2", "workers=0", "validate_every=1")
    result = train_from_config(
        tmp_path / "training.yml",
        tmp_path / "set",
        tmp_path / "run",
        TrainOptions(overrides=small, tell=told.append),
    )
    assert result.weights.is_file()
    assert [text.split(":")[0] for text in told] == list(sentences(PUBLISHED))


def test_the_published_file_needs_a_prepared_set(tmp_path):
    (tmp_path / "training.yml").write_text(PUBLISHED, encoding="utf-8")
    with pytest.raises(ConfigError, match="cddnet prepare"):
        load_recipe(tmp_path / "training.yml", tmp_path)
