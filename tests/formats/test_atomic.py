"""A new file or folder appears whole, or not at all."""

import errno
import os
import stat

import pytest

from cddnet.errors import FormatError
from cddnet.formats import _atomic
from cddnet.formats._atomic import new_file, new_files, new_folder


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / "scan.nii.gz"
    with new_file(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert names(tmp_path) == ["scan.nii.gz"]


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / "series"
    with new_folder(target) as temporary:
        (temporary / "1.dcm").write_bytes(b"1")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "2.dcm").write_bytes(b"2")
        assert not target.exists()
    assert names(tmp_path) == ["series"]
    assert (target / "deep" / "2.dcm").read_bytes() == b"2"


def begin(context, target, then):
    """Write something under the temporary name, then go on."""
    with context(target) as temporary:
        (temporary / "1.dcm" if context is new_folder else temporary).write_bytes(b"half")
        then()


def raising(error):
    def then():
        raise error

    return then


DISK_FULL = raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("context", [new_file, new_folder])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, FormatError, SystemExit])
def test_a_failure_inside_leaves_nothing_and_passes_through(context, failure, tmp_path):
    with pytest.raises(failure):
        begin(context, tmp_path / "out", raising(failure))
    assert names(tmp_path) == []


@pytest.mark.parametrize("context", [new_file, new_folder])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_refused_before_any_work(context, kind, tmp_path):
    target = tmp_path / "taken"
    if kind == "file":
        target.write_bytes(b"precious")
    elif kind == "folder":
        target.mkdir()
        (target / "1.dcm").write_bytes(b"precious")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="exists already"):
        begin(context, target, pytest.fail)
    assert names(tmp_path) == ["taken"]


@pytest.fixture
def empty(tmp_path):
    """A folder that is there already, beside nothing else."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_failure_leaves_the_empty_folder_and_nothing_else(empty, tmp_path):
    with pytest.raises(ZeroDivisionError):
        begin(new_folder, empty, raising(ZeroDivisionError))
    assert names(tmp_path) == ["out"]
    assert names(empty) == []


def test_what_appears_in_the_empty_folder_meanwhile_is_kept(empty, tmp_path):
    with pytest.raises(FormatError, match="exists already"):
        begin(new_folder, empty, (empty / "theirs").touch)
    assert names(tmp_path) == ["out"]
    assert names(empty) == ["theirs"]


@pytest.mark.skipif(os.name == "nt", reason="permissions and links are other there")
def test_the_filled_folder_keeps_its_permissions_and_a_link_stays_a_link(empty, tmp_path):
    empty.chmod(0o700)
    (tmp_path / "link").symlink_to("out")
    begin(new_folder, tmp_path / "link", lambda: None)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700
    assert names(empty) == ["1.dcm"]


def test_the_folder_that_one_stands_in_is_not_replaced(empty, monkeypatch):
    monkeypatch.chdir(empty)
    with pytest.raises(FormatError, match="exists already"):
        begin(new_folder, empty, pytest.fail)
    assert names(empty) == []


@pytest.mark.parametrize("context", [new_file, new_folder])
def test_what_appeared_meanwhile_is_not_overwritten(context, tmp_path):
    target = tmp_path / "taken"
    with pytest.raises(FormatError, match="exists already"):
        begin(context, target, lambda: target.write_bytes(b"theirs"))
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["taken"]


@pytest.mark.parametrize("context", [new_file, new_folder])
def test_a_full_disk_is_named_and_cleaned_up(context, tmp_path):
    with pytest.raises(FormatError, match=r"disk is full.*was removed"):
        begin(context, tmp_path / "out", DISK_FULL)
    assert names(tmp_path) == []


def test_a_full_disk_is_named_through_the_wrapping_of_a_library(tmp_path):
    def write():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError("With tag (7FE0,0010): Traceback (most recent call last)") from error

    with pytest.raises(FormatError, match="disk is full") as told, new_file(tmp_path / "a"):
        write()
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("context", [new_file, new_folder])
def test_a_disk_that_is_full_only_when_flushed_is_noticed(context, tmp_path, monkeypatch):
    monkeypatch.setattr(_atomic.os, "fsync", lambda descriptor: DISK_FULL())
    with pytest.raises(FormatError, match="disk is full"):
        begin(context, tmp_path / "out", lambda: None)
    assert names(tmp_path) == []


def test_no_permission_is_named(tmp_path):
    with pytest.raises(FormatError, match="not permitted"):
        begin(new_file, tmp_path / "out", raising(PermissionError(errno.EACCES, "denied")))


def test_what_could_not_be_removed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_atomic, "_removed", lambda path: False)
    with pytest.raises(FormatError, match=r"disk is full; remove by hand .*part\.scan\.npy"):
        begin(new_file, tmp_path / "scan.npy", DISK_FULL)


def write_both(raw, header):
    with new_files(raw, header) as both:
        for temporary in both:
            temporary.write_bytes(b"x")


def test_files_that_belong_together_appear_together(tmp_path, monkeypatch):
    raw, header = tmp_path / "a.raw", tmp_path / "a.mhd"
    replace, done = os.replace, []

    def second_fails(source, target):
        if done:
            DISK_FULL()
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(_atomic.os, "replace", second_fails)
    with pytest.raises(FormatError, match="disk is full"):
        write_both(raw, header)
    assert done == [raw]
    assert names(tmp_path) == []
    monkeypatch.undo()
    write_both(raw, header)
    assert names(tmp_path) == ["a.mhd", "a.raw"]


def test_one_missing_parent_is_made_and_a_whole_branch_is_not(tmp_path):
    with new_file(tmp_path / "new" / "scan.npy") as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path / "new") == ["scan.npy"]
    with pytest.raises(FormatError, match="no such folder"):
        begin(new_file, tmp_path / "typo" / "deep" / "scan.npy", pytest.fail)
    with pytest.raises(ValueError, match="stop"):
        begin(new_folder, tmp_path / "other" / "series", raising(ValueError("stop")))
    assert names(tmp_path) == ["new"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").write_bytes(b"x")
    with new_folder(tmp_path / "series") as temporary:
        (temporary / "file").write_bytes(b"x")
    for name in ("", "file"):
        usual, ours = tmp_path / "usual" / name, tmp_path / "series" / name
        assert ours.stat().st_mode == usual.stat().st_mode


@pytest.fixture
def events(monkeypatch):
    """What was flushed, by inode, and where "appears" falls among it."""
    happened = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        happened.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noted_replace(source, target):
        happened.append("appears")
        replace(source, target)

    monkeypatch.setattr(_atomic.os, "fsync", noted_fsync)
    monkeypatch.setattr(_atomic.os, "replace", noted_replace)
    return happened


folders_flush = pytest.mark.skipif(os.name == "nt", reason="Windows flushes folders itself")


@folders_flush
def test_everything_is_on_the_disk_before_it_appears_and_its_name_after(events, tmp_path):
    with new_folder(tmp_path / "made" / "series") as folder:
        for name in ("1.dcm", "2.dcm"):
            (folder / name).write_bytes(b"x")
        (folder / "deep").mkdir()
        (folder / "deep" / "3.dcm").write_bytes(b"x")
    assert events.count("appears") == 1
    before, after = events[: events.index("appears")], events[events.index("appears") + 1 :]
    inside = [item.stat().st_ino for item in (tmp_path / "made" / "series").rglob("*")]
    inside.append((tmp_path / "made" / "series").stat().st_ino)
    assert sorted(before) == sorted(inside)
    assert before[-1] == inside[-1]
    assert set(after) == {tmp_path.stat().st_ino, (tmp_path / "made").stat().st_ino}


@folders_flush
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_flush_folders_is_written_to(code, monkeypatch, tmp_path):
    monkeypatch.setattr(_atomic.os, "fsync", raising_for_folders(code))
    with new_folder(tmp_path / "series") as folder:
        (folder / "1.dcm").write_bytes(b"x")
    assert names(tmp_path / "series") == ["1.dcm"]


@folders_flush
def test_a_folder_that_the_disk_fails_to_flush_does_not_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(_atomic.os, "fsync", raising_for_folders(errno.EIO))
    with pytest.raises(FormatError, match="writing stopped"):
        begin(new_folder, tmp_path / "series", lambda: None)
    assert names(tmp_path) == []


def raising_for_folders(code):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    return fsync
