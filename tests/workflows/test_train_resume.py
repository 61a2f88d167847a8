"""Runs that are killed, stopped, repeated, or started from other weights, as users do it."""

import json
import random
import signal
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cddnet.cli import main
from cddnet.config import ConfigError, TrainConfig, load_config
from cddnet.errors import FormatError, ModelError
from cddnet.models._cards import read_card
from cddnet.training import engine
from cddnet.workflows.train import TrainOptions, train_from_config
from ct_tree import tissue, write_series
from tiny_training import Stop, forkserver

SMALL = {"width": 4, "depth_width": 4}


@pytest.fixture
def data(tmp_path):
    """A folder per patient, 72 x 72 pixels, and a recipe with their split; gives the recipe."""
    for patient in ("a", "b"):
        write_series(
            tmp_path / "data" / patient,
            patient,
            places=range(2),
            pixels=lambda place, patient=patient: tissue(patient, place, size=(72, 72)),
        )
    split = {"collections": ["made up"], "train": {"A": ["a"]}, "validation": {"B": ["b"]}}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(split | {"test": {}}))
    recipe = {"split": "split.yaml", "options": SMALL, "steps": 12, "crop": 32, "workers": 0}
    recipe |= {"validate_every": 4, "checkpoint_every": 1, "log_every": 2, "device": "cpu"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml"


def run(recipe, out, *overrides, stop_at=None, start=None):
    def progress(what, done, total):
        if done == stop_at:
            raise Stop

    torch.set_num_threads(1)
    options = TrainOptions(overrides=overrides, start=start, progress=progress)
    return train_from_config(recipe, recipe.parent / "data", out, options)


def equal_weights(first, second):
    first, second = load_file(first), load_file(second)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_run(first, second):
    """Weights, best weights and the last checkpoint, to the bit; and their cards."""
    last = f"{engine.CHECKPOINTS}/*/tensors.safetensors"
    (one,), (other,) = first.glob(last), second.glob(last)
    cards = [
        json.loads((run / f"{name}.json").read_text())
        for name in ("weights", "best")
        for run in (first, second)
    ]
    return (
        equal_weights(one, other)
        and equal_weights(first / "weights.safetensors", second / "weights.safetensors")
        and equal_weights(first / "best.safetensors", second / "best.safetensors")
        and cards[0] == cards[1]
        and cards[2] == cards[3]
    )


def killed_at_random(recipe, out, *overrides, kills, within_s):
    """Kill -9 the run again and again, each time at a random moment; how many met it running.

    The moments start once the run has begun, so that they meet steps and checkpoints.
    """
    rng, met = random.Random(), 0
    for _ in range(kills):
        process = forkserver().Process(target=run, args=(recipe, out, *overrides))
        process.start()
        seen = set(out.glob(f"{engine.CHECKPOINTS}/[!.]*"))
        while process.is_alive() and set(out.glob(f"{engine.CHECKPOINTS}/[!.]*")) == seen:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, within_s))
        process.kill()
        process.join()
        met += process.exitcode == -signal.SIGKILL
    return met


def test_a_run_that_was_killed_ends_with_the_same_bits(data, tmp_path):
    run(data, tmp_path / "whole")
    assert killed_at_random(data, tmp_path / "killed", kills=2, within_s=0.1) >= 1
    assert run(data, tmp_path / "killed").resumed_from > 0
    assert same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_ten_kills_change_no_bit(workers, data, tmp_path):
    """A checkpoint at every step: most of the time one is being written."""
    chosen = ("steps=150", f"workers={workers}", "validate_every=20")
    run(data, tmp_path / "whole", *chosen)
    met = killed_at_random(data, tmp_path / "killed", *chosen, kills=10, within_s=0.3)
    assert met == 10
    assert run(data, tmp_path / "killed", *chosen).resumed_from > 9
    assert same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_same_command_goes_on_and_others_are_refused(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(data, out, stop_at=6)
    with pytest.raises(ConfigError, match=r"another recipe: learning_rate 0.001 \(now 0.1\)"):
        run(data, out, "learning_rate=0.1")
    other = tmp_path / "data" / "a" / "more"
    write_series(
        other, "a", name="more", places=range(2), pixels=lambda p: tissue(p, size=(72, 72))
    )
    with pytest.raises(FormatError, match="other data"):
        run(data, out)
    for file in other.iterdir():
        file.unlink()
    other.rmdir()
    # What changes speed and record alone may change.
    result = run(data, out, "log_every=1", "checkpoint_every=5")
    assert (result.resumed_from, result.steps) == (6, 12)
    run(data, tmp_path / "whole", "log_every=1")
    assert equal_weights(result.weights, tmp_path / "whole" / "weights.safetensors")
    with pytest.raises(FormatError, match="never overwritten"):
        run(data, out)


def test_the_command_takes_overrides_and_weights_and_says_what_it_did(
    data, tmp_path, tiny_weights, monkeypatch, capsys
):
    def command(*arguments):
        places = ("--data", tmp_path / "data", "--out", tmp_path / "run")
        monkeypatch.setattr(
            sys, "argv", ["cddnet", "train", *map(str, (data, *places, *arguments))]
        )
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    code, out, err = command("--from", tiny_weights, "--set", "steps=2", "--set", "ema=0.5")
    assert (code, err) == (0, "")
    assert "2 steps, validation PSNR" in out
    recipe = read_card(tmp_path / "run" / "weights.safetensors").training["recipe"]
    assert (recipe["steps"], recipe["ema"]) == (2, 0.5)
    code, out, err = command("--from", tiny_weights, "--set", "steps=2", "--set", "ema=0.5")
    assert (code, out) == (1, "")
    assert "finished run" in err
    assert "did you mean 'steps'" in command("--set", "step=2")[2]


def test_two_programs_never_train_in_one_folder(data, tmp_path):
    """The second is refused while the first one runs, which it does not disturb."""
    refused = []

    def progress(what, done, total):
        if done == 3:
            with pytest.raises(FormatError, match="another program") as error:
                run(data, tmp_path / "run", "steps=6")
            refused.append(str(error.value))

    options = TrainOptions(overrides=("steps=6",), progress=progress)
    train_from_config(data, data.parent / "data", tmp_path / "run", options)
    assert len(refused) == 1
    run(data, tmp_path / "alone", "steps=6")
    assert same_run(tmp_path / "run", tmp_path / "alone")


def test_a_folder_of_something_else_is_refused(data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FormatError, match="nothing is overwritten"):
        run(data, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_is_in_effect_stands_beside_the_run(data, tmp_path):
    result = run(data, tmp_path / "run", "steps=4", "noise.modulation=[0, 0.5]")
    effective = load_config(tmp_path / "run" / "recipe.yaml", TrainConfig)
    assert (effective.steps, effective.noise.modulation) == (4, (0.0, 0.5))
    expected = load_config(data, TrainConfig, ("steps=4", "noise.modulation=[0, 0.5]"))
    assert effective == expected != load_config(data, TrainConfig)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert lines[0].keys() >= {"image", "total", "rate.denoiser", "norm.denoiser", "waiting"}
    assert lines[-1]["denoised_db"] == pytest.approx(result.validation.denoised_db)
    assert 0 < lines[0]["waiting"] < 1
    card = read_card(result.weights)
    assert card.training["validation"]["denoised_db"] == result.validation.denoised_db
    assert card.training["collections"] == ["made up"]


def test_fine_tuning_starts_at_the_weights_given(data, tmp_path, tiny_weights):
    """A rate of almost nothing leaves them; the options are those of the weights."""
    overrides = ("options={}", "steps=2", "learning_rate=1e-20", "weight_decay=0")
    result = run(data, tmp_path / "run", *overrides, start=str(tiny_weights))
    assert equal_weights(result.weights, tiny_weights)
    card = read_card(result.weights)
    assert card.options["width"] == 4
    assert card.training["start"] == {
        "name": "tiny@1",
        "sha256": read_card(tiny_weights).sha256,
    }
    assert str(tiny_weights.parent) not in json.dumps(card.training)
    moved = run(data, tmp_path / "moved", "steps=2", start=str(tiny_weights))
    assert not equal_weights(moved.weights, tiny_weights)
    with pytest.raises(ModelError, match="width"):
        run(data, tmp_path / "no", "options.width=8", start=str(tiny_weights))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stepps=3", "did you mean 'steps'"),
        (
            "noise.modulaton=[0, 1]",
            "noise.modulaton: there is no such key .did you mean 'modulation'",
        ),
        ("loss.dept=1", "did you mean 'depth'"),
        ("steps", "expected KEY=VALUE"),
        ("noise..x=1", "expected KEY=VALUE"),
        ("steps=[", "no YAML"),
        ("steps.more=1", "steps"),
        ("crop=12", "crop"),
    ],
)
def test_overrides_that_are_wrong_are_refused_by_name(override, said, data, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run(data, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "left", [(), (".part.recipe.yaml", "run.json"), ("run.json", "recipe.yaml")]
)
def test_a_run_killed_before_its_first_checkpoint_starts_again(left, data, tmp_path):
    run(data, tmp_path / "whole", "steps=2")
    (tmp_path / "run").mkdir()
    for name in left:
        content = (tmp_path / "whole" / name.removeprefix(".part.")).read_bytes()
        (tmp_path / "run" / name).write_bytes(content[:20] if name.startswith(".") else content)
    assert run(data, tmp_path / "run", "steps=2").resumed_from == 0
    assert same_run(tmp_path / "whole", tmp_path / "run")
    names = [sorted(path.name for path in (tmp_path / end).iterdir()) for end in ("whole", "run")]
    assert names[0] == names[1]
