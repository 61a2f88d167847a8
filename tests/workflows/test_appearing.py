"""Files of a folder that is built up over several runs: whole or not there, and said in words."""

import errno

import pytest

from cddnet.errors import FormatError
from cddnet.workflows._appearing import appearing, remove_partial, resumable, write_whole


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")]
)
def test_a_fault_says_what_to_do(code, said, tmp_path):
    again = rf"{said}.* run the same command again"
    with pytest.raises(FormatError, match=again) as told, resumable(tmp_path):
        raise OSError(code, "Permission denied", str(tmp_path / "file"))
    assert isinstance(told.value.__cause__, OSError)
    assert str(tmp_path) in str(told.value)


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), resumable(tmp_path):
        raise KeyError("x")


@pytest.mark.parametrize("error", [OSError("x"), KeyboardInterrupt()])
def test_a_file_that_was_interrupted_leaves_the_one_before(error, tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"before")

    def interrupted():
        with appearing(path) as part:
            part.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".part.a").write_bytes(b"half")
    write_whole(tmp_path / "b", b"whole")
    remove_partial(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_a_training_run_that_cannot_begin_says_so(tmp_path, monkeypatch):
    """The folder of the run lies below a file."""
    from cddnet.workflows import train

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(train, "_data", lambda *_: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: cddnet\nsteps: 1\ndevice: cpu\nworkers: 0\n")
    with pytest.raises(FormatError, match="Not a directory; mend that and run"):
        train.train_from_config(recipe, tmp_path, tmp_path / "file" / "run")
