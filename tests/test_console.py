"""A result that was written is a success, whatever the console or the pipe can take."""

import io
import json
import os
import sys

import numpy as np
import pytest

from cddnet import console
from cddnet.cli import main
from cddnet.errors import CddnetError
from cddnet.formats import read_volume, write_volume
from cddnet.runtime import store
from cddnet.volume import CTVolume

NAME = "胸部"
NO_UTF8 = os.fsdecode(b"\xe9t\xe9")


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def stream(encoding, errors="strict", kind=io.TextIOWrapper):
    return kind(io.BytesIO(), encoding=encoding, errors=errors, newline="")


def printed(text):
    text.flush()
    return text.buffer.getvalue()


@pytest.fixture
def on(monkeypatch):
    """Run a command line on streams; gives the exit code."""

    def run(out, err, *arguments):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0

    return run


@pytest.fixture
def source(tmp_path, rng):
    """Air around soft tissue, in a folder and a file whose names most consoles cannot show."""
    hu = np.full((2, 96, 96), -1000, np.float32)
    hu[:, 16:80, 16:80] = np.rint(rng.normal(40, 15, (2, 64, 64)))
    path = tmp_path / NAME / "Łódź ½.nii.gz"
    path.parent.mkdir()
    write_volume(CTVolume.from_hu(hu, (3.0, 0.7, 0.7)), path)
    return path


COMMANDS = {
    "info": ("info", "SOURCE"),
    "denoise": ("denoise", "SOURCE", "OUT.nii.gz", "--model", "WEIGHTS"),
    "simulate": ("simulate", "SOURCE", "OUT.nii.gz", "--kernel", "soft"),
    "depth": ("depth", "SOURCE", "OUT", "--kernel", "soft"),
    "export": ("export", "SOURCE", "OUT", "--window", "-160", "240"),
}


@pytest.mark.parametrize("encoding", ["latin-1", "shift_jis"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_succeeds_on_a_console_of_another_encoding(
    on, source, tiny_weights, tmp_path, command, encoding
):
    target = tmp_path / NAME / "Ergebnis ≤ ½"
    words = {"SOURCE": source, "OUT": target, "OUT.nii.gz": f"{target}.nii.gz"}
    words["WEIGHTS"] = tiny_weights
    out, err = stream(encoding), stream(encoding, "backslashreplace")
    assert on(out, err, *(words.get(word, word) for word in COMMANDS[command])) == 0
    assert printed(err) == b""
    shown = printed(out).decode(encoding)
    assert "?" in shown
    assert str(tmp_path) in shown
    if command != "info":
        # The name itself is whole.
        assert any(item.name.startswith(target.name) for item in target.parent.iterdir())
    if command == "denoise":
        assert read_volume(f"{target}.nii.gz").shape == (2, 96, 96)


@pytest.mark.parametrize(
    ("encoding", "errors"),
    [("ascii", "strict"), ("ascii", "surrogateescape"), ("cp1252", "strict"), ("cp866", "strict")],
)
def test_progress_and_refusals_do_not_depend_on_the_encoding(
    on, source, tmp_path, encoding, errors
):
    out, err = stream(encoding, errors), stream(encoding, errors, Terminal)
    arguments = ("export", source, tmp_path / "grey", "--window", "0", "80")
    assert on(out, err, *arguments) == 0
    assert "exporting" in printed(err).decode(encoding)
    err = stream(encoding, errors)
    assert on(out, err, "info", tmp_path / NAME / "nowhere") == 1
    assert printed(err).startswith(b"cddnet: ")
    assert b"no such file or folder" in printed(err)
    # Wrong usage is printed by the library that reads the command line.
    assert on(out, stream(encoding, errors), "info", NAME, NAME) == 2


def test_a_name_that_is_no_utf8_is_kept(on, source, tmp_path):
    try:
        (tmp_path / NO_UTF8).mkdir()
    except OSError:
        pytest.skip("this file system holds Unicode names alone")
    out = stream("utf-8")
    arguments = ("export", source, tmp_path / NO_UTF8 / "grey", "--window", "0", "80")
    assert on(out, stream("utf-8"), *arguments) == 0
    assert (tmp_path / NO_UTF8 / "grey" / "0001.png").is_file()
    assert b"?t?" in printed(out)
    # A stream that hands such names back does so.
    out = stream("utf-8", "surrogateescape")
    assert on(out, stream("utf-8"), "info", tmp_path / NO_UTF8 / "grey") == 0
    assert b"\xe9t\xe9" in printed(out)


def test_a_volume_of_two_files_keeps_a_name_that_is_no_utf8(source, tmp_path):
    file = tmp_path / f"{NO_UTF8}.mhd"
    try:
        file.touch()
    except OSError:
        pytest.skip("this file system holds Unicode names alone")
    file.unlink()
    volume = read_volume(source)
    write_volume(volume, file)
    np.testing.assert_array_equal(read_volume(file).hu, volume.hu)


class Closed(io.RawIOBase):
    """What a pipe says whose reader went away, or a disk that is full."""

    def __init__(self, error):
        self.error = error

    def writable(self):
        return True

    def write(self, data):
        raise self.error


def closed(error):
    return io.TextIOWrapper(io.BufferedWriter(Closed(error)), encoding="utf-8")


def test_a_reader_that_went_away_does_not_undo_a_result(on, source, tmp_path, capsys):
    arguments = ("export", source, tmp_path / "grey", "--window", "0", "80")
    assert on(closed(BrokenPipeError(32, "Broken pipe")), stream("utf-8"), *arguments) == 0
    assert len(list((tmp_path / "grey").glob("*.png"))) == 2


def test_no_console_at_all_is_no_error(on, source, tmp_path):
    arguments = ("export", source, tmp_path / "grey", "--window", "0", "80")
    assert on(None, None, *arguments) == 0
    assert len(list((tmp_path / "grey").glob("*.png"))) == 2


def test_a_disk_too_full_for_the_output_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdout", closed(OSError(28, "No space left on device")))
    with pytest.raises(CddnetError, match="No space left on device"):
        console.echo("a result")
    monkeypatch.setattr(sys, "stderr", closed(OSError(28, "No space left on device")))
    console.echo("a progress line", err=True)


def test_a_real_pipe_that_is_closed_leaves_a_clean_exit(on, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="ascii") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        for _ in range(3):
            console.echo("x" * 100_000)


def test_what_fits_is_printed_as_it_is(on, monkeypatch):
    card = store.cards()[0]
    monkeypatch.setattr(store, "cards", lambda: [card])
    out = stream("utf-8")
    assert on(out, stream("utf-8"), "models") == 0
    assert printed(out).decode().startswith(f"{card.name}  network")
    out = stream("cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    console.echo("Größe ½ 5 µm, ≤ 3")
    assert printed(out).decode("cp1252") == "Größe ½ 5 µm, ? 3\n"


@pytest.mark.parametrize(
    "control", ["\x1b[2J", "\x9b2J", "\r", "\b", "\x00", "\x7f", "\u202e", "\u2066", "\u2028"]
)
def test_no_text_gives_the_terminal_an_order(monkeypatch, control):
    out = stream("utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    console.echo(f"a\t{control}b\nc")
    shown = printed(out).decode()
    assert shown == f"a\t\\u{ord(control[0]):04x}{control[1:]}b\nc\n"
    assert json.loads(f'"{control[0]}"', strict=False) == json.loads(f'"{shown[2:8]}"')


def test_names_of_files_give_the_terminal_no_order(on, source, tmp_path):
    folder = source.parent.rename(tmp_path / "a\x1b]0;title\x07[b]")
    out, err = stream("utf-8"), stream("utf-8")
    assert on(out, err, "info", folder) == 0
    assert on(out, err, "denoise", folder / "nothing.dcm", tmp_path / "out") == 1
    for shown in (printed(out), printed(err)):
        assert b"a\\u001b]0;title\\u0007[b]" in shown
        assert not {0x1B, 0x07} & {*shown}
