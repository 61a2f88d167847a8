"""Sources put together with links, and folders that may not be read, in every command."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cddnet import files
from cddnet.errors import CddnetError
from cddnet.formats import ReadOptions, dicom, raster, read_all_series, read_volume
from cddnet.node.work import explain
from cddnet.workflows._cases import found_series
from cddnet.workflows._layouts import layout_of
from cddnet.workflows.info import describe
from cddnet.workflows.prepare import PrepareOptions, prepare
from ct_tree import uid_of, write_series, write_tree

GREY = ReadOptions(window_hu=(-160, 240))


def link(at, to):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to, target_is_directory=to.is_dir())


def close(monkeypatch, name):
    """Refuse a folder of that name, as the system refuses nobody who is root."""
    real = os.scandir

    def refusing(path):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(files.os, "scandir", refusing)


def only_a_link(tmp_path):
    link(tmp_path / "source" / "series", write_series(tmp_path / "elsewhere", "P"))


def a_link_beside_slices(tmp_path):
    write_series(tmp_path / "source", "P")
    (tmp_path / "elsewhere").mkdir()
    moved = sorted((tmp_path / "source").iterdir())[1:]
    for file in moved:
        file.rename(tmp_path / "elsewhere" / file.name)
    link(tmp_path / "source" / "rest", tmp_path / "elsewhere")


def a_circle(tmp_path):
    write_series(tmp_path / "source", "P")
    link(tmp_path / "source" / "again", tmp_path / "source")


def links_to_files(tmp_path):
    for file in write_series(tmp_path / "elsewhere", "P").iterdir():
        link(tmp_path / "source" / file.name, file)


def files_under_two_names(tmp_path):
    for file in write_series(tmp_path / "source" / "one", "P").iterdir():
        link(tmp_path / "source" / "two" / file.name, file)


def a_root_that_is_a_link(tmp_path):
    link(tmp_path / "source", write_series(tmp_path / "elsewhere", "P"))


@pytest.fixture(
    params=[
        only_a_link,
        a_link_beside_slices,
        a_circle,
        links_to_files,
        files_under_two_names,
        a_root_that_is_a_link,
    ]
)
def source(request, tmp_path):
    """One series of four slices."""
    request.param(tmp_path)
    return tmp_path / "source"


def test_a_linked_series_is_read_whole_and_each_slice_once(source, tmp_path):
    volume = read_volume(source)
    assert volume.shape[0] == 4
    assert not volume.notes
    assert volume.series_uid == uid_of("P", "full")
    (described,) = describe(source)
    assert described.description.startswith("4 slices")
    (summary,) = dicom.list_series(source)
    assert summary.slices == 4
    assert [one.shape for one in read_all_series(source)] == [volume.shape]
    (found,) = found_series(source, ReadOptions())
    np.testing.assert_array_equal(found.volume.hu, volume.hu)
    assert len(list(explain._files([source]))) == 4


def test_prepare_stores_linked_series_once(source, tmp_path):
    made = prepare(source, tmp_path / "out", PrepareOptions(split=(1, 0, 0)), lambda *_: None)
    assert sum(len(file.slices) for one in made.manifest.series for file in one.files) == 4
    assert made.left_out == ()


def test_a_list_of_files_may_name_one_of_them_twice(tmp_path):
    names = sorted(write_series(tmp_path / "source", "P").iterdir())
    link(tmp_path / "again.dcm", names[0])
    assert dicom.read_files([*names, tmp_path / "again.dcm", names[1]]).shape[0] == len(names)


def test_names_of_linked_folders_tell_the_layout(tmp_path):
    for kind in ("full_3mm", "quarter_3mm"):
        link(tmp_path / "source" / "L067" / kind, write_series(tmp_path / kind, "P", name=kind))
    assert layout_of(tmp_path / "source") == "mayo2016"


@pytest.mark.parametrize("deep", ["closed", "b/closed"])
def test_a_closed_folder_is_never_passed_over(tmp_path, monkeypatch, deep):
    source = write_tree(tmp_path / "source")
    write_series(source / deep, "P")
    close(monkeypatch, "closed")
    asked = {
        "read": lambda: read_volume(source / "b" if "/" in deep else source),
        "list": lambda: dicom.list_series(source),
        "evaluate": lambda: found_series(source, ReadOptions()),
        "prepare": lambda: prepare(source, tmp_path / "out", PrepareOptions(), lambda *_: None),
        "explain": lambda: list(explain._files([source])),
    }
    for ask in asked.values():
        with pytest.raises(CddnetError, match=f"{deep}: the folder cannot be read"):
            ask()
    (described,) = describe(source)
    assert f"{deep}: the folder cannot be read" in described.refusal
    assert not (tmp_path / "out").exists()


def test_a_closed_folder_of_pictures_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "closed"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "1.png")
    close(monkeypatch, "closed")
    for ask in (raster.picture_files, read_volume, lambda path: found_series(path, GREY)):
        with pytest.raises(CddnetError, match="closed: the folder cannot be read"):
            ask(folder)


@pytest.mark.parametrize("deep", ["", "deep"])
def test_a_slice_whose_link_leads_nowhere_is_missed(tmp_path, deep):
    source = write_series(tmp_path / "source", "P")
    link(source / deep / "im9.dcm", tmp_path / "gone")
    (described,) = describe(source)
    assert "im9.dcm: is a link to a file that is not there" in described.refusal
    with pytest.raises(CddnetError, match=r"im9.dcm: .*bring that file back"):
        dicom.list_series(source)
    made = prepare(source, tmp_path / "out", PrepareOptions(split=(1, 0, 0)), lambda *_: None)
    assert made.left_out == (("unreadable", 1),)


def test_a_slice_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    source = write_series(tmp_path / "source", "P")
    real = Path.open

    def refusing(self, *given, **named):
        if self.name == "im2.dcm":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *given, **named)

    monkeypatch.setattr(Path, "open", refusing)
    (described,) = describe(source)
    assert "im2.dcm: reading is not permitted" in described.refusal


def test_pictures_are_linked_by_their_names(tmp_path):
    """Two names of one file are two slices here: names are all that pictures have."""
    (tmp_path / "source").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "air.png")
    for name in ("1.png", "2.png"):
        link(tmp_path / "source" / name, tmp_path / "air.png")
    assert read_volume(tmp_path / "source", window_hu=(-160, 240)).shape[0] == 2


def test_folders_of_pictures_that_go_round_in_a_circle(tmp_path):
    for patient in ("a", "b"):
        (tmp_path / "source" / patient).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "source" / patient / "1.png")
    link(tmp_path / "source" / "c", tmp_path / "source")
    found = found_series(tmp_path / "source", GREY)
    assert [one.name for one in found] == ["a", "b"]
