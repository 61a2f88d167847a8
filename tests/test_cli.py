"""The command line as users see it: exit codes, messages, JSON, and its frozen options.

Above 300 lines: one module, which holds every command.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import typer

from cddnet import __version__
from cddnet.cli import app, main
from cddnet.errors import CddnetError, SeriesChoiceError
from cddnet.formats import read_volume, write_volume
from cddnet.models._cards import read_card
from cddnet.runtime import store
from cddnet.volume import CTVolume
from ct_tree import write_series

OPTIONS = {
    "": ["--version"],
    "denoise": [
        "source",
        "output",
        "--model",
        "--strength",
        "--device",
        "--series",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--image-type",
        "--engine",
        "--threads",
        "--force",
        "--uncertainty",
        "--created",
        "--json",
    ],
    "simulate": [
        "source",
        "output",
        "--dose",
        "--seed",
        "--kernel",
        "--electronic",
        "--series",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--force",
        "--json",
    ],
    "depth": [
        "source",
        "output",
        "--dose",
        "--kernel",
        "--series",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--created",
        "--force",
        "--json",
    ],
    "export": [
        "source",
        "output",
        "--window",
        "--format",
        "--bits",
        "--series",
        "--acquisition",
        "--slice-axis",
        "--json",
    ],
    "explain": [
        "source",
        "output",
        "--slice",
        "--roi",
        "--roi-mm",
        "--reference",
        "--model",
        "--strength",
        "--device",
        "--block",
        "--seed",
        "--series",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--force",
        "--json",
    ],
    "info": ["source", "--acquisition", "--slice-axis", "--json"],
    "models": ["--json"],
    "archive": [
        "source",
        "out",
        "--model",
        "--strength",
        "--image-type",
        "--force",
        "--workers",
        "--scheduler",
        "--per-hour",
        "--between",
        "--attempts",
        "--retry-failed",
        "--created",
        "--date",
        "--ae-title",
        "--token-file",
        "--ca",
        "--certificate",
        "--key",
        "--json",
    ],
    "view": [
        "before",
        "after",
        "--port",
        "--no-browser",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--uncertainty",
    ],
    "node": ["--config"],
    "doctor": ["--json"],
    "licences": ["--json"],
    "benchmark": ["--model", "--quick", "--threads", "--json"],
    "demo": [
        "output",
        "--model",
        "--strength",
        "--device",
        "--engine",
        "--threads",
        "--json",
    ],
    "evaluate": [
        "reference",
        "test",
        "--protocol",
        "--mode",
        "--low-dose",
        "--method",
        "--mask",
        "--json",
        "--csv",
        "--markdown",
        "--lpips-weights",
        "--detect",
        "--fidelity-only",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--force",
    ],
    "report": [
        "output",
        "reference",
        "--method",
        "--protocol",
        "--low-dose",
        "--mask",
        "--model",
        "--cem",
        "--region",
        "--lpips-weights",
        "--detect",
        "--fidelity-only",
        "--acquisition",
        "--window",
        "--slice-axis",
        "--force",
        "--json",
    ],
    "prepare": [
        "source",
        "out",
        "--layout",
        "--split",
        "--seed",
        "--patients",
        "--collection",
        "--window",
        "--patient-pattern",
        "--check",
        "--json",
    ],
    "phantom": [
        "output",
        "--kind",
        "--slices",
        "--dose",
        "--seed",
        "--kernel",
        "--pixel",
        "--size",
        "--json",
    ],
    "train": ["recipe", "--data", "--out", "--from", "--set"],
}


@pytest.fixture
def cddnet(monkeypatch, capsys):
    """Run a command line; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def series(tmp_path, rng):
    hu = np.rint(rng.normal(40, 30, (2, 33, 47))).astype(np.float32)
    path = tmp_path / "source.nii.gz"
    write_volume(CTVolume.from_hu(hu, (3.0, 0.7, 0.7)), path)
    return path, hu


def test_the_options_are_frozen():
    """Scripts of users depend on these names: add, but do not rename or remove."""
    command = typer.main.get_command(app)
    found = {"": command} | dict(command.commands)
    assert {
        name: [option for parameter in item.params for option in parameter.opts]
        for name, item in found.items()
    } == OPTIONS


def test_the_same_command_gives_the_same_files_and_dates_only_where_told(
    cddnet, tmp_path, tiny_weights
):
    write_series(tmp_path / "ct", "ID", places=range(3))
    common = ["denoise", tmp_path / "ct", "--force", "--model", tiny_weights]
    moment = "2026-01-31T12:00:00+01:00"
    for name, options in {"a": (), "b": (), "c": ("--created", moment)}.items():
        assert cddnet(*common[:2], tmp_path / name, *common[2:], *options)[0] == 0
    one, two, dated = ([f.read_bytes() for f in sorted((tmp_path / n).iterdir())] for n in "abc")
    assert one == two
    assert all(b"20260131120000" in content for content in dated)
    assert not set(one) & set(dated)
    for wrong, told in (("yesterday", "is no moment"), ("2026-01-31T12:00:00", "no time zone")):
        code, _, err = cddnet(*common[:2], tmp_path / "d", *common[2:], "--created", wrong)
        assert code == 2
        assert told in err
    assert not (tmp_path / "d").exists()


def test_an_error_nobody_foresaw_is_one_line_without_its_text(cddnet, monkeypatch):
    def fail():
        raise RuntimeError("PATIENT^NAME")

    monkeypatch.setattr(store, "cards", fail)
    code, _, err = cddnet("models")
    assert code == 1
    assert "RuntimeError" in err
    assert "PATIENT" not in err
    assert err.count("\n") == 1


def test_version_and_help(cddnet):
    assert cddnet("--version") == (0, f"cddnet {__version__}\n", "")
    code, out, _ = cddnet("--help")
    assert code == 0
    assert "Research use only" in out
    for name in filter(None, OPTIONS):
        code, out, _ = cddnet(name, "--help")
        assert code == 0
        assert all(option in out for option in OPTIONS[name] if option.startswith("--"))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("info",),
        ("info", "--unknown", "x"),
        ("models", "extra"),
        ("denoise", "a", "b", "--strength", "1.5"),
        ("denoise", "a", "b", "--strength", "much"),
        ("denoise", "a", "b", "--window", "3"),
        ("denoise", "a", "b", "--image-type", "ORIGINAL"),
        ("train", "recipe.yaml"),
        ("prepare", "a"),
        ("prepare", "a", "b", "--check"),
        ("prepare", "a", "b", "--layout", "flat"),
        ("prepare", "a", "b", "--split", "1/0/0", "--patients", "p.yaml"),
        ("depth", "a", "b", "--dose", "1.5"),
        ("evaluate", "a", "b"),
        ("evaluate", "a", "b", "--protocol", "full", "--method", "c"),
        ("evaluate", "a", "b", "--protocol", "full", "--method", "test=c"),
        ("evaluate", "a", "b", "--protocol", "full", "--mask", "lung"),
        ("report", "a", "b", "--protocol", "full"),
        ("report", "a", "b", "--method", "c=d"),
        ("report", "a", "b", "--protocol", "full", "--method", "c"),
        ("report", "a", "b", "--protocol", "full", "--method", "c=d", "--method", "c=e"),
        ("export", "a", "b"),
        ("export", "a", "b", "--window", "0", "80", "--format", "gif"),
    ],
)
def test_wrong_usage_exits_with_2(cddnet, arguments):
    assert cddnet(*arguments)[0] == 2


def test_what_is_refused_exits_with_1_and_says_why(cddnet, tmp_path, series):
    nowhere, out_path = tmp_path / "nowhere", tmp_path / "out.nii.gz"
    for arguments, reason in (
        (("denoise", nowhere, out_path), "no such file or folder"),
        (("denoise", series[0], out_path, "--model", "unheard"), "no weights 'unheard'"),
        (("train", nowhere, "--data", tmp_path, "--out", nowhere), "cannot be read"),
        (("demo", tmp_path), "nothing is overwritten"),
    ):
        code, out, err = cddnet(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("cddnet: ")
        assert reason in err
        assert "Traceback" not in err
    assert not out_path.exists()


@pytest.mark.parametrize(
    "error",
    [CddnetError("made up"), SeriesChoiceError("made up", (("1.2", "a"),)), MemoryError()],
)
def test_every_failure_that_is_expected_exits_with_1(cddnet, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(store, "cards", fail)
    code, _, err = cddnet("models")
    assert code == 1
    assert err.startswith("cddnet: ")
    assert len(err.splitlines()) == 1


def test_stopping_is_no_success(cddnet, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "cards", stop)
    code, out, err = cddnet("models")
    assert code != 0
    assert out == ""
    assert "Traceback" not in err


def test_a_bug_is_shown_whole_on_request(cddnet, monkeypatch):
    monkeypatch.setenv("CDDNET_TRACEBACK", "1")

    def fail():
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(store, "cards", fail)
    with pytest.raises(ZeroDivisionError):
        cddnet("models")


def test_models_are_listed(cddnet, monkeypatch, tiny_weights):
    monkeypatch.setattr(store, "shipped", lambda: {"tiny@1": tiny_weights})
    code, out, _ = cddnet("models", "--json")
    card = read_card(tiny_weights)
    assert code == 0
    (listed,) = json.loads(out)
    assert (listed["name"], listed["sha256"]) == ("tiny@1", card.sha256)
    code, out, _ = cddnet("models")
    assert out.startswith("tiny@1  network cddnet")
    assert card.sha256[:16] in out


def test_info_of_nothing_fails_and_of_something_unfit_answers(cddnet, tmp_path):
    code, out, err = cddnet("info", tmp_path / "nowhere", "--json")
    assert (code, out) == (1, "")
    assert "no such file or folder" in err
    (tmp_path / "text.txt").write_text("not an image")
    code, out, _ = cddnet("info", tmp_path / "text.txt", "--json")
    assert code == 0
    assert json.loads(out)[0]["refusal"]
    assert "refused: " in cddnet("info", tmp_path / "text.txt")[1]


def test_info_describes_a_series(cddnet, series):
    code, out, _ = cddnet("info", series[0], "--json")
    assert code == 0
    (item,) = json.loads(out)
    assert item["refusal"] is None
    assert "33 x 47 pixels" in item["description"]
    assert "may be denoised" in cddnet("info", series[0])[1]


def test_denoise_writes_what_the_library_computes(cddnet, series, tiny_weights, tmp_path):
    from cddnet.workflows.denoise import denoise_hu

    source, hu = series
    target = tmp_path / "out.nii.gz"
    arguments = ("denoise", source, target, "--model", tiny_weights, "--strength", "0.5")
    code, out, err = cddnet(*arguments, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["slices"], record["parameters"]["strength"]) == (2, "0.5")
    assert record["weights"] == read_card(tiny_weights).sha256
    expected = denoise_hu(hu, (3.0, 0.7, 0.7), tiny_weights, 0.5)
    # Files may store whole HU.
    assert np.abs(read_volume(target).hu - expected).max() <= 0.5 + 1e-3
    assert np.abs(expected - hu).max() > 2
    written = target.read_bytes()
    code, _, err = cddnet("denoise", source, target, "--model", tiny_weights, "--strength", "0")
    assert code == 1
    assert "choose another name" in err
    assert target.read_bytes() == written


def test_export_and_depth_say_what_they_wrote(cddnet, series, tmp_path):
    source, hu = series
    code, out, err = cddnet("export", source, tmp_path / "grey", "--window", -50, 130, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["slices"], record["bits"], record["window_hu"]) == (2, 8, [-50.0, 130.0])
    back = read_volume(tmp_path / "grey", window_hu=(-50, 130)).hu
    assert np.abs(back - np.clip(hu, -50, 130)).max() <= record["level_hu"] / 2 + 1e-3
    code, out, _ = cddnet(
        "export", source, tmp_path / "jpeg", "--window", 0, 80, "--format", "jpeg"
    )
    assert code == 0
    assert "window [0, 80] HU, 8 bits jpeg" in out
    assert "not for measurement" in out
    code, out, err = cddnet("depth", source, tmp_path / "maps", "--kernel", "soft", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    noise = np.load(tmp_path / "maps" / record["files"][1])
    assert record["noise_range_hu"] == [noise.min(), noise.max()]
    assert record["basis"]
    code, out, _ = cddnet("depth", source, tmp_path / "again", "--kernel", "soft", "--dose", 0.25)
    assert code == 0
    assert "25% of the source's dose" in out
    code, _, err = cddnet("depth", source, tmp_path / "again")
    assert code == 1
    assert "choose another name" in err


def test_the_package_is_a_program():
    told = subprocess.run(
        [sys.executable, "-m", "cddnet", "--version"], capture_output=True, text=True, check=True
    )
    assert told.stdout == f"cddnet {__version__}\n"


@pytest.mark.parametrize("command", [["rules-test", "folder"], ["rebuild"], []])
def test_the_node_names_the_extra_that_is_missing(command):
    """In a process of its own, where nothing is imported yet."""
    words = ["node", *command, "--config", "deploy/node.yaml"]
    code = "import sys; sys.modules['re2'] = None; from cddnet.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "this needs re2, which is not installed: pip install cddnet[node]" in done.stderr
