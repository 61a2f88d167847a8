"""Looking through a tree: links are followed, nothing comes twice, nothing is passed over."""

import codecs
import os
import socket

import pytest

from cddnet import files
from cddnet.errors import FormatError
from cddnet.files import distinct, list_folder, read_text, walk, walk_files


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def link(at, to):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to, target_is_directory=to.is_dir())


def seen(root, **options):
    """Names of the files of a tree, relative to it, as `walk` gives them."""
    return [
        file.relative_to(root).as_posix()
        for folder in walk(root, **options)
        for file in folder.files
    ]


def close(monkeypatch, name, call="scandir"):
    """Let the system refuse a folder of that name, as it refuses nobody who is root."""
    real = getattr(os, call)

    def refusing(path, *given, **named):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **named)

    monkeypatch.setattr(files.os, call, refusing)


def test_a_tree_comes_folder_by_folder_in_the_order_of_names(tmp_path):
    make(tmp_path, "b/2", "b/1", "a/x/9", "a/3", "c")
    assert seen(tmp_path) == ["c", "a/3", "a/x/9", "b/1", "b/2"]
    times = {folder.path: folder.changed_ns for folder in walk(tmp_path)}
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("name", ["a", "z"])
def test_a_link_to_a_folder_is_followed_wherever_its_name_stands(tmp_path, name):
    make(tmp_path, "tree/m/1", "elsewhere/2", "elsewhere/deep/3")
    link(tmp_path / "tree" / name, tmp_path / "elsewhere")
    expected = ["m/1", f"{name}/2", f"{name}/deep/3"]
    assert seen(tmp_path / "tree") == expected


def test_a_link_to_a_link_and_a_root_that_is_a_link(tmp_path):
    make(tmp_path, "data/1")
    link(tmp_path / "one", tmp_path / "data")
    link(tmp_path / "two", tmp_path / "one")
    link(tmp_path / "tree" / "three", tmp_path / "two")
    assert seen(tmp_path / "two") == ["1"]
    assert seen(tmp_path / "tree") == ["three/1"]


@pytest.mark.parametrize("target", [".", "a", "a/b"])
def test_a_circle_of_links_ends(tmp_path, target):
    make(tmp_path, "a/b/1", "a/2")
    link(tmp_path / "a" / "b" / "again", tmp_path / target)
    assert seen(tmp_path) == ["a/2", "a/b/1"]


def test_two_folders_that_link_to_each_other(tmp_path):
    make(tmp_path, "a/1", "b/2")
    link(tmp_path / "a" / "other", tmp_path / "b")
    link(tmp_path / "b" / "other", tmp_path / "a")
    assert seen(tmp_path) == ["a/1", "b/2"]
    assert seen(tmp_path / "a") == ["1", "other/2"]


def test_a_folder_in_the_tree_keeps_its_own_name_and_comes_once(tmp_path):
    make(tmp_path, "tree/z/1", "elsewhere/2")
    link(tmp_path / "tree" / "a", tmp_path / "tree" / "z")
    link(tmp_path / "tree" / "b", tmp_path / "elsewhere")
    link(tmp_path / "tree" / "c", tmp_path / "elsewhere")
    assert seen(tmp_path / "tree") == ["z/1", "b/2"]


@pytest.mark.parametrize("how", ["symlink", "hard link"])
def test_a_file_under_two_names_is_one_file(tmp_path, how):
    make(tmp_path, "a/1", "a/2")
    other = tmp_path / "b" / "one"
    other.parent.mkdir()
    if how == "symlink":
        link(other, tmp_path / "a" / "1")
    else:
        os.link(tmp_path / "a" / "1", other)
    assert seen(tmp_path) == ["a/1", "a/2", "b/one"]
    assert [file.name for file in walk_files(tmp_path)] == ["1", "2"]
    assert list(distinct([other, tmp_path / "a" / "1", other])) == [other]


def test_equal_content_is_not_the_same_file(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).write_text("equal")
    assert len(list(walk_files(tmp_path))) == 2


def test_drives_that_number_no_files(tmp_path, monkeypatch):
    make(tmp_path, "tree/a/1", "tree/b/2", "elsewhere/3")
    link(tmp_path / "tree" / "c", tmp_path / "elsewhere")
    link(tmp_path / "tree" / "d", tmp_path / "tree")
    real = type(tmp_path).stat

    def unnumbered(self, **named):
        found = list(real(self, **named))
        found[1] = 0
        return os.stat_result(found)

    monkeypatch.setattr(type(tmp_path), "stat", unnumbered)
    assert [file.name for file in walk_files(tmp_path / "tree")] == ["1", "2", "3"]


def test_hidden_names_and_folders_to_leave_out(tmp_path):
    make(tmp_path, ".git/1", "a/.2", "a/3", "out/4", "out/deep/5")
    link(tmp_path / "a" / "results", tmp_path / "out")
    assert seen(tmp_path, skip_hidden=True) == ["a/3", "out/4", "out/deep/5"]
    assert seen(tmp_path, leave_out=(tmp_path / "out",)) == [".git/1", "a/.2", "a/3"]
    assert seen(tmp_path, leave_out=(tmp_path,)) == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a/1", "b/closed/2", "c/3")
    close(monkeypatch, "closed")
    with pytest.raises(FormatError, match=r"b/closed: .*Permission denied.*permissions"):
        list(walk(tmp_path))
    with pytest.raises(FormatError, match=r"b/closed: "):
        list_folder(tmp_path / "b" / "closed")
    assert seen(tmp_path, leave_out=(tmp_path / "b" / "closed",)) == ["a/1", "c/3"]


def test_a_folder_that_vanishes_or_is_none_is_named(tmp_path):
    make(tmp_path, "a")
    for path in (tmp_path / "gone", tmp_path / "a"):
        with pytest.raises(FormatError, match=f"{path.name}: "):
            list(walk(path))


def test_a_link_that_leads_nowhere_is_a_file_unless_it_is_hidden(tmp_path):
    make(tmp_path, "1")
    link(tmp_path / "lost", tmp_path / "gone")
    link(tmp_path / "round", tmp_path / "round")
    link(tmp_path / ".#1", tmp_path / "user@host.4711")
    assert seen(tmp_path) == ["1", "lost", "round"]
    assert len(list(walk_files(tmp_path))) == 3


CODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("text", ["A\n", "", "gr\u00f6\u00dfer\r\n", "\u80f8\u90e8", "\U0001fa7b"])
@pytest.mark.parametrize("coding", CODINGS)
def test_text_comes_back_whatever_the_editor_wrote(tmp_path, coding, text):
    (tmp_path / "text").write_bytes(CODINGS[coding] + text.encode(coding))
    assert read_text(tmp_path / "text") == text


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(tmp_path, coding):
    (tmp_path / "text").write_bytes("a/\u80f8\n".encode(coding))
    assert read_text(tmp_path / "text") == "a/\u80f8\n"


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_that_was_converted_with_the_text_is_no_text(tmp_path, coding):
    (tmp_path / "text").write_bytes("\ufeffa\n".encode(coding))
    assert read_text(tmp_path / "text") == "a\n"


def test_text_in_a_national_code_page_is_no_guess(tmp_path):
    (tmp_path / "text").write_bytes("gr\u00f6\u00dfer".encode("cp1252"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "text")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_and_sockets_are_left_aside(tmp_path, monkeypatch):
    make(tmp_path, "1")
    os.mkfifo(tmp_path / "pipe")
    link(tmp_path / "to_pipe", tmp_path / "pipe")
    # A socket's path may have some hundred characters only.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert seen(tmp_path) == ["1"]
