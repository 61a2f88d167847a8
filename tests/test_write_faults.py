"""A disk that is full, or may not be written, at any write: nothing is left, or the whole.

Opening, writing, flushing, renaming and making folders are counted in a run that ends well; then
each of them, with all that follow it, fails once. What had been there before is never touched.
"""

import errno
import sys
from datetime import datetime, timezone

import numpy as np
import pytest
import torch

from cddnet.cli import main
from cddnet.errors import CddnetError
from cddnet.formats import read_volume, write_volume
from cddnet.training import checkpoint
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
from cddnet.workflows.depth import DepthOptions, depth_file
from cddnet.workflows.evaluate import evaluate
from cddnet.workflows.export import ExportOptions, export_file
from cddnet.workflows.import_weights import import_weights
from cddnet.workflows.phantom import PhantomOptions, write_phantom
from cddnet.workflows.results import write_results
from cddnet.workflows.simulate import SimulateOptions, simulate_file
from ct_tree import write_series, write_tree
from write_faults import NEVER, Disk, contents

WINDOW_HU = (-160.0, 240.0)
STEP = Derivation(
    label="shift",
    description="A shift",
    parameters=(),
    version="0",
    created=datetime(2024, 1, 2, tzinfo=timezone.utc),
)
FULL, FORBIDDEN = errno.ENOSPC, errno.EACCES


def ignore(*_):
    """No bar."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What is read and must stay: a DICOM series, a NIfTI file, a checkpoint of others."""
    folder = tmp_path_factory.mktemp("kept")
    write_series(folder / "ct", "ID", places=range(2))
    write_volume(read_volume(folder / "ct"), folder / "ct.nii")
    from cddnet import models

    torch.save(models.build("wgan_vgg").state_dict(), folder / "theirs.pth")
    return folder


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "before.txt").write_text("precious")
    return Disk(tmp_path / "out", monkeypatch)


def fail_everywhere(disk, write, kept, *, calls=None):
    """Run `write(folder)` with a fault at each call in turn; returns how many there are."""
    folder, originals = disk.folder, contents(kept)
    before = contents(folder)
    with disk.faulty_from(NEVER):
        write(folder)
    made, count = contents(folder), len(disk.calls)
    assert made.items() > before.items()
    for name in made.keys() - before.keys():
        remove(folder / name)
    for call in range(1, count + 1) if calls is None else calls(count):
        message = ""
        with disk.faulty_from(call):
            try:
                write(folder)
            except CddnetError as error:
                message = str(error)
        what = f"call {call} of {count}, {disk.calls[-1]}"
        assert message, f"no error at {what}"
        said = "full" if disk.code == FULL else "not permitted"
        assert said in message or "space" in message.lower() or "denied" in message, message
        assert "Traceback" not in message
        assert contents(folder) == before, f"something is left at {what}: {message}"
    assert contents(kept) == originals
    return count


def remove(path):
    if path.is_dir():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("code", [FULL, FORBIDDEN])
@pytest.mark.parametrize(
    "name",
    [
        "series",
        "one.dcm",
        "v.nii",
        "v.nii.gz",
        "v.npz",
        "v.npy",
        "v.mha",
        "v.mhd",
        "v.tif",
        "v.png",
    ],
)
def test_a_volume_in_any_format(name, code, kept, disk):
    disk.code = code
    source = read_volume(kept / "ct" / "im0.dcm" if name == "one.dcm" else kept / "ct")
    volume = source.derived(lambda index: source.read_slice(index) + 1, STEP)

    def write(folder):
        write_volume(volume, folder / name, window_hu=WINDOW_HU)

    assert fail_everywhere(disk, write, kept) >= 4


@pytest.mark.parametrize("target", ["series", "v.nii.gz"])
def test_denoising(target, kept, disk, tiny_weights):
    def write(folder):
        options = DenoiseOptions(model=tiny_weights, threads=1)
        denoise_file(kept / "ct", folder / target, options, ignore)

    # Its writers are those above; here the reading ahead must end with them.
    some = {1, 2, 3}
    fail_everywhere(disk, write, kept, calls=lambda count: sorted({*some, count // 2, count}))


@pytest.mark.parametrize("picture", ["png", "jpeg"])
def test_exported_pictures(picture, kept, disk):
    def write(folder):
        options = ExportOptions(window_hu=WINDOW_HU, picture=picture, bits=8)
        export_file(kept / "ct.nii", folder / "pictures", options, ignore)

    fail_everywhere(disk, write, kept)


def test_imported_weights(kept, disk):
    def write(folder):
        import_weights(kept / "theirs.pth", "theirs", folder / "weights", "wgan_vgg")

    fail_everywhere(disk, write, kept)


def test_results_of_an_evaluation(kept, disk):
    found = evaluate(kept / "ct.nii", {"same": kept / "ct.nii"}, protocol="full")

    def write(folder):
        write_results(found, json=folder / "a.json", csv=folder / "a.csv", markdown=folder / "a.md")

    fail_everywhere(disk, write, kept)


@pytest.mark.parametrize("name", ["simulate", "depth"])
def test_other_series(name, kept, disk):
    def write(folder):
        if name == "simulate":
            simulate_file(kept / "ct", folder / "low", SimulateOptions(dose_fraction=0.5), ignore)
        else:
            depth_file(kept / "ct", folder / "depth", DepthOptions(), ignore)

    fail_everywhere(disk, write, kept, calls=lambda count: sorted({1, 2, 3, count // 2, count}))


def test_a_phantom(kept, disk):
    def write(folder):
        write_phantom(folder / "phantom", PhantomOptions(size=64, slices=1), ignore)

    fail_everywhere(disk, write, kept, calls=lambda count: sorted({1, count // 2, count}))


def test_a_checkpoint_keeps_the_one_before(kept, disk):
    """Its tensors are written by a library of another language, and so are flushed only here."""
    run = disk.folder / "run"

    def of_step(step):
        return checkpoint.Checkpoint({"w": torch.full((3,), float(step))}, {"step": step})

    checkpoint.write(run, 1, of_step(1))
    before = contents(disk.folder)
    with disk.faulty_from(NEVER):
        checkpoint.write(run, 2, of_step(2))
    count = len(disk.calls)
    remove(run)
    checkpoint.write(run, 1, of_step(1))
    for call in range(1, count + 1):
        with disk.faulty_from(call), pytest.raises(CddnetError, match="cannot be written"):
            checkpoint.write(run, 2, of_step(2))
        found = checkpoint.read_latest(run)
        # The last flush is of a name that is there already.
        assert found.record["step"] == 1 or disk.calls[-1] == "fsync"
        assert contents(disk.folder) == before or found.record["step"] == 2
        if found.record["step"] == 2:
            remove(run)
            checkpoint.write(run, 1, of_step(1))
    assert count >= 6


def test_the_command_line_says_it_in_a_sentence(kept, disk, tiny_weights, monkeypatch, capsys):
    out = disk.folder / "denoised"
    given = ["denoise", str(kept / "ct"), str(out), "--model", str(tiny_weights), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["cddnet", *given])
    before = contents(disk.folder)
    with disk.faulty_from(2), pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 1
    assert "disk is full" in told
    assert "Traceback" not in told
    assert contents(disk.folder) == before


def test_the_disk_of_these_tests_fails_where_it_should(disk):
    path = disk.folder / "file"
    with disk.faulty_from(NEVER):
        path.write_bytes(b"whole")
    assert disk.calls == ["open", "write"]
    assert path.read_bytes() == b"whole"
    for call in (1, 2):
        with disk.faulty_from(call), pytest.raises(OSError, match="No space"):
            path.write_bytes(b"half")
    with disk.faulty_from(1):
        assert np.fromfile(path, np.uint8).size == 0
        path.unlink()


def test_a_volume_that_is_computed_fails_as_one_that_is_read(kept, disk):
    """A fault of the reader's own is no full disk, and leaves as little."""

    def broken(index):
        raise OSError(errno.EIO, "Input/output error")

    volume = CTVolume.from_hu(np.zeros((2, 5, 7), np.float32), (1.0, 1.0, 1.0)).derived(
        broken, STEP
    )
    before = contents(disk.folder)
    with pytest.raises(CddnetError, match="Input/output error"):
        write_volume(volume, disk.folder / "v.mha")
    assert contents(disk.folder) == before


def test_a_training_set_goes_on_where_a_full_disk_stopped_it(kept, disk, capsys, monkeypatch):
    """What is built up over several runs keeps what is whole, and ends as if nothing had been."""
    tree, out = kept.parent / "tree", disk.folder / "set"
    if not tree.exists():
        write_tree(tree, places=range(2))
    monkeypatch.setattr(sys, "argv", ["cddnet", "prepare", str(tree), str(out)])

    def prepared():
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    with disk.faulty_from(NEVER):
        assert not prepared()
    whole, count = contents(out), len(disk.calls)
    remove(out)
    for call in sorted({2, count // 2, count}):
        with disk.faulty_from(call):
            assert prepared() == 1
        assert "Traceback" not in capsys.readouterr().err
        left = contents(out) if out.exists() else {}
        # A set is one once its manifest is there, which comes last.
        assert "manifest.json" not in left or left == whole
        if left != whole:
            assert not prepared()
        assert contents(out) == whole
        remove(out)
