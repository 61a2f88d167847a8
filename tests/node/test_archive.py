"""Archive runs: each series once, the same bytes however it was done, no patient named.

Above 300 lines: one package, from its pace to whole runs that are killed.
"""

import hashlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from quick_denoiser import quick_archive
from small_node import FAMILY, ROOT, SHIFT_HU, ct

from cddnet.errors import CddnetError
from cddnet.node.archive.manifest import FILE, Manifest, Outcome
from cddnet.node.archive.pace import Pace, Window
from cddnet.node.archive.query import is_query, parse_query
from cddnet.node.archive.run import LOG_FILE, ArchiveOptions, archive
from cddnet.node.archive.series import _told, noise_levels_hu
from cddnet.node.store.images import hidden
from cddnet.workflows.denoise import DenoiseOptions, denoise_file

CREATED = datetime(2026, 2, 3, 12, 5, 6, tzinfo=timezone.utc)
moments = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2030, 1, 1))


def save(folder, datasets, start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets, start):
        dataset.save_as(folder / f"{FAMILY}-{number}.dcm", enforce_file_format=True)


def slices(series, count=3, **changes):
    return [ct(index, series, **changes) for index in range(count)]


def tree(folder, count, depth=3):
    """`count` series, a folder each."""
    for series in range(1, count + 1):
        save(folder / f"s{series}", slices(series, depth))
    return folder


def content(out):
    """SHA-256 of every file of the results."""
    files = sorted((out / "series").rglob("*.dcm"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows(out):
    with sqlite3.connect(out / FILE) as database:
        database.row_factory = sqlite3.Row
        return {row["series_uid"]: row for row in database.execute("SELECT * FROM series")}


def run(source, out, **options):
    options = {"workers": 0, "retry_s": 0.0, "created": CREATED} | options
    return archive(ArchiveOptions(source=str(source), out=out, **options), lambda _: None)


@pytest.fixture
def quick(monkeypatch):
    return quick_archive(monkeypatch)


def test_every_fit_series_of_a_tree_is_denoised_and_the_others_have_a_reason(quick, tmp_path):
    source = tmp_path / "source"
    both = [*slices(1), *slices(2)]
    save(source / "both", both[:4])
    save(source / "both" / "deeper", both[4:], start=5)
    save(source / "scout", slices(3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    save(source / "mr", slices(4, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))
    mixed = slices(5)
    mixed[1].ImageOrientationPatient = ["0", "1", "0", "-1", "0", "0"]
    save(source / "mixed", mixed)
    (source / "both" / "notes.txt").write_text("nothing")
    report = run(source, tmp_path / "out")
    assert (report.done, report.slices, report.waiting, report.failed) == (2, 6, 0, ())
    reasons = {item.key: item.reason for item in report.refused}
    assert reasons.keys() == {hidden(f"{ROOT}.3.{series}") for series in (3, 4, 5)}
    assert "MR" in reasons[hidden(f"{ROOT}.3.4")]
    assert "orientation" in reasons[hidden(f"{ROOT}.3.5")]
    assert "localizer" in reasons[hidden(f"{ROOT}.3.3")].lower()
    for series in (1, 2):
        files = sorted((tmp_path / "out" / "series" / hidden(f"{ROOT}.3.{series}")).iterdir())
        assert len(files) == 3
        made = dcmread(files[0])
        original = next(
            one
            for one in slices(series)
            if one.SOPInstanceUID == made.SourceImageSequence[0].ReferencedSOPInstanceUID
        )
        change = made.pixel_array.astype(int) - original.pixel_array
        assert np.median(change) == SHIFT_HU
        assert made.InstanceCreationDate == "20260203"
        assert made.ContentDate == original.ContentDate
    # What an archive made is no source for another.
    again = run(tmp_path / "out" / "series", tmp_path / "again")
    assert (again.done, len(again.refused)) == (0, 2)
    assert all("made by cddnet" in item.reason for item in again.refused)


def test_linked_folders_are_part_of_the_tree_and_circles_end(quick, tmp_path):
    source, out = tree(tmp_path / "source", 2), tmp_path / "out"
    (source / "s3").symlink_to(tree(tmp_path / "elsewhere", 3) / "s3", target_is_directory=True)
    (source / "s1" / "round").symlink_to(source, target_is_directory=True)
    (source / "results").symlink_to(out, target_is_directory=True)
    (source / "again").mkdir()
    for file in sorted((source / "s1").glob("*.dcm")):
        (source / "again" / file.name).symlink_to(file)
    (source / "s2" / "lost.dcm").symlink_to(tmp_path / "gone")
    report = run(source, out)
    assert (report.done, report.slices, report.unreadable) == (3, 9, 1)
    assert (report.refused, report.failed) == ((), ())
    report = run(source, out)
    assert (quick.volumes, report.done, report.unreadable) == (3, 3, 1)


def test_a_folder_of_the_tree_that_cannot_be_read_ends_the_run_with_its_name(
    quick, tmp_path, monkeypatch
):
    source, scandir = tree(tmp_path / "source", 3), os.scandir

    def refusing(path):
        if Path(path).name == "s2":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("cddnet.files.os.scandir", refusing)
    with pytest.raises(CddnetError, match=r"s2: the folder cannot be read \(Permission denied\)"):
        run(source, tmp_path / "out")


def test_a_second_run_does_nothing_twice_and_finds_what_is_new(quick, tmp_path):
    source, out = tree(tmp_path / "source", 3), tmp_path / "out"
    run(source, out)
    before = content(out)
    times = {file: file.stat().st_mtime_ns for file in (out / "series").rglob("*")}
    assert quick.volumes == 3
    save(source / "s9", slices(9))
    # Into a folder that was looked through before.
    save(source / "s1", slices(10), start=20)
    report = run(source, out)
    assert quick.volumes == 5
    assert report.done == 5
    assert before.items() <= content(out).items()
    assert all(file.stat().st_mtime_ns == then for file, then in times.items())
    save(source / "s2", [ct(7, 2)], start=40)
    report = run(source, out)
    assert (quick.volumes, report.grown) == (5, 1)


def test_bytes_depend_on_the_date_that_is_given_and_on_no_clock(quick, tmp_path):
    source = tree(tmp_path / "source", 2)
    for name in ("a", "b"):
        assert run(source, tmp_path / name, created=None).done == 2
    assert content(tmp_path / "a") == content(tmp_path / "b")
    later = CREATED + timedelta(seconds=1)
    for name, moment in (("c", CREATED), ("d", CREATED), ("e", later)):
        run(source, tmp_path / name, created=moment)
    assert content(tmp_path / "c") == content(tmp_path / "d")
    uids = {
        name: {dcmread(file).SOPInstanceUID for file in (tmp_path / name).rglob("*.dcm")}
        for name in "ace"
    }
    assert len(set().union(*uids.values())) == 3 * 6, "other bytes are other objects"
    # A run that goes on without naming the date keeps it.
    save(source / "s9", slices(9))
    run(source, tmp_path / "e", created=None)
    (made,) = (tmp_path / "e" / "series" / hidden(f"{ROOT}.3.9")).glob("0001.dcm")
    assert dcmread(made).InstanceCreationTime[2:] == later.strftime("%M%S.%f")
    with pytest.raises(CddnetError, match="another created"):
        run(source, tmp_path / "a", created=CREATED)


def test_an_archive_writes_what_denoise_writes(tmp_path, tiny_weights):
    source = tree(tmp_path / "source", 2)
    run(source, tmp_path / "out", created=None, model=str(tiny_weights), force=True)
    for series in (1, 2):
        options = DenoiseOptions(model=tiny_weights, force=True)
        alone = tmp_path / f"alone {series}"
        denoise_file(source / f"s{series}", alone, options, lambda *_: None)
        made = tmp_path / "out" / "series" / hidden(f"{ROOT}.3.{series}")
        for one, other in zip(sorted(alone.iterdir()), sorted(made.iterdir()), strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_a_result_that_was_written_but_not_noted_is_taken_over(quick, tmp_path, monkeypatch):
    source, out = tree(tmp_path / "source", 3), tmp_path / "out"
    kept = Manifest.record

    def killed(self, key, outcome, moment):
        if self.counts()["done"] == 1:
            raise KeyboardInterrupt
        kept(self, key, outcome, moment)

    monkeypatch.setattr(Manifest, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, out)
    monkeypatch.setattr(Manifest, "record", kept)
    before, quick.slices = content(out), 0
    assert len(before) == 6
    (out / "series" / ".0badcafe.part.x").mkdir()
    report = run(source, out)
    assert (report.done, quick.slices) == (3, 3)
    assert before.items() <= content(out).items()
    assert all(row["noise_after_hu"] == row["noise_before_hu"] for row in rows(out).values())
    assert len(list((out / "series").iterdir())) == 3


def test_a_series_that_ends_the_run_three_times_is_set_aside_and_the_rest_goes_on(
    quick, tmp_path, monkeypatch
):
    """A process of its own, ended as the system would, at the same series each time."""
    source, out = tree(tmp_path / "source", 3), tmp_path / "out"
    deadly = sorted(hidden(f"{ROOT}.3.{series}") for series in (1, 2, 3))[1]
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cddnet.node.archive import pool, run\n"
        "from cddnet.node.archive.manifest import Outcome\n"
        "def work(task):\n"
        f"    if task.key == {deadly!r}: os._exit(9)\n"
        "    return Outcome('done')\n"
        "pool.denoise_series = work\n"
        f"options = run.ArchiveOptions(source={str(source)!r}, out=Path({str(out)!r}), workers=0)\n"
        "run.archive(options, lambda _: None)\n"
    )
    ended = [subprocess.run([sys.executable, "-c", code], check=False).returncode for _ in range(4)]
    assert ended == [9, 9, 9, 0]
    found = {hidden(uid): row for uid, row in rows(out).items()}
    assert sorted(row["state"] for row in found.values()) == ["done", "done", "failed"]
    assert (found[deadly]["state"], found[deadly]["attempts"]) == ("failed", 3)
    assert "at each attempt" in found[deadly]["reason"]
    (line,) = [json.loads(line) for line in log_lines(out) if deadly in line]
    assert (line["state"], line["error"]) == ("failed", "Died")
    report = run(source, out, retry_failed=True, created=None)
    assert (report.done, len(report.failed)) == (3, 0)


def test_a_run_that_is_interrupted_blames_no_series(quick, tmp_path, monkeypatch):
    source, out = tree(tmp_path / "source", 1), tmp_path / "out"

    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setattr("cddnet.node.archive.pool.denoise_series", interrupted)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    monkeypatch.undo()
    (row,) = rows(out).values()
    assert (row["state"], row["attempts"], row["begun"]) == ("waiting", 0, 0)


def test_a_manifest_of_before_is_gone_on_with(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add_remote([("1.2", "1.2.3")])
    manifest.close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("ALTER TABLE series DROP COLUMN begun")
    database.close()
    manifest = Manifest(tmp_path)
    due = manifest.due("")
    manifest.begin(due.key, CREATED)
    assert manifest.count_deaths(3) == ()
    assert manifest.due("").attempts == 1
    manifest.close()


def test_what_fails_is_tried_again_up_to_a_limit(quick, tmp_path):
    source, out = tree(tmp_path / "source", 2), tmp_path / "out"
    quick.errors = [OSError("gone"), OSError("gone"), OSError("gone")]
    report = run(source, out)
    assert (report.done, quick.volumes) == (2, 5)
    assert sorted(row["attempts"] for row in rows(out).values()) == [2, 3]
    save(source / "s3", slices(3))
    quick.errors = [MemoryError()] * 3
    report = run(source, out)
    assert (report.done, len(report.failed)) == (2, 1)
    assert report.failed[0][2:] == ("MemoryError", 3)
    quick.errors = []
    assert run(source, out).done == 2
    assert run(source, out, retry_failed=True).done == 3


def test_a_list_names_folders_relative_to_itself(quick, tmp_path):
    tree(tmp_path / "source", 3)
    names = tmp_path / "source" / "list.txt"
    names.write_text("# two of three\ns1\n\n s3 \n")
    run(names, tmp_path / "out")
    assert rows(tmp_path / "out").keys() == {f"{ROOT}.3.1", f"{ROOT}.3.3"}
    names.write_text("s1\ns4\n")
    with pytest.raises(CddnetError, match="line 2"):
        run(names, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_list_is_read_as_windows_saves_it(quick, tmp_path, coding):
    source = tmp_path / "source"
    for number, name in enumerate(("first", "gr\u00f6\u00dfer", "\u80f8\u90e8"), start=1):
        save(source / name, slices(number))
    names = source / "list.txt"
    names.write_bytes("first\r\ngr\u00f6\u00dfer\r\n\u80f8\u90e8\r\n".encode(coding))
    assert run(names, tmp_path / "out").done == 3


def test_a_list_in_a_code_page_is_refused_with_the_remedy(quick, tmp_path):
    names = tmp_path / "list.txt"
    names.write_bytes("gr\u00f6\u00dfer\r\n".encode("cp1252"))
    with pytest.raises(CddnetError, match=r"no text in UTF-8.*saved as UTF-8"):
        run(names, tmp_path / "out")


def test_an_archive_keeps_its_recipe_its_source_and_one_run_at_a_time(quick, tmp_path):
    source, out = tree(tmp_path / "source", 1), tmp_path / "out"
    run(source, out)
    for change, named in (
        ({"strength": 0.5}, "strength"),
        ({"image_type": "PRIMARY"}, "image type"),
        ({"model": "total_variation"}, "weights"),
        ({"created": CREATED + timedelta(days=1)}, "created"),
    ):
        with pytest.raises(CddnetError, match=f"another {named}"):
            run(source, out, **change)
    with pytest.raises(CddnetError, match="another source"):
        run(source / "s1", out)
    held = Manifest(out)
    with pytest.raises(CddnetError, match="another run"):
        run(source, out)
    held.close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(CddnetError, match="other things"):
        run(source, tmp_path / "full")
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_nothing_outside_the_images_names_a_patient_and_only_the_owner_reads(quick, tmp_path):
    source, out = tree(tmp_path / "source", 2), tmp_path / "out"
    damaged = dcmread(source / "s2" / f"{FAMILY}-2.dcm")
    damaged.PixelData = damaged.PixelData[:100]
    damaged.save_as(source / "s2" / f"{FAMILY}-2.dcm")
    report = run(source, out)
    assert (report.done, len(report.refused)) == (1, 1)
    written = [file for file in out.iterdir() if file.is_file()]
    assert {f.name for f in written} == {FILE, LOG_FILE, "report.json", "report.md"}
    for file in written:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        text = file.read_bytes()
        # The manifest may hold UIDs; names of files are packed, and are the source's own.
        assert FAMILY.encode() not in text
        assert (ROOT.encode() in text) == (file.name == FILE)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert hidden(f"{ROOT}.3.1") in (out / LOG_FILE).read_text()


def test_names_of_files_and_uids_leave_a_reason():
    files = (Path("/data/Zyx Anna/Zyx.dcm"), Path("/data/Zyx Anna/1"))
    error = CddnetError("Zyx.dcm: is not /data/Zyx Anna/1 of series 1.2.3.4.5; see slice 1")
    told = _told(error, files)
    assert "Zyx" not in told
    assert "1.2.3" not in told
    assert told.endswith("see slice 1")
    assert _told(CddnetError("1: is damaged"), files) == "(file): is damaged"
    assert "Zyx" not in _told(ValueError("Zyx"), files)


def test_the_noise_level_is_that_of_flat_tissue(rng):
    before = {i: 50 + rng.normal(0, 12, (128, 128)).astype(np.float32) for i in range(3)}
    after = {i: 50 + (hu - 50) / 3 for i, hu in before.items()}
    level, denoised = noise_levels_hu(0.7, before, after)
    # A window of 13 x 13 pixels knows its standard deviation to 5.5 %, the mode is better.
    assert level == pytest.approx(12, rel=0.05)
    assert denoised == pytest.approx(level / 3, rel=1e-3)
    air = {0: np.full((64, 64), -1000, np.float32)}
    assert noise_levels_hu(0.7, air, air) == (None, None)


def test_noise_of_each_scanner_is_in_the_report(quick, tmp_path):
    save(tmp_path / "source" / "a", slices(1, Manufacturer="A|B", ConvolutionKernel="soft"))
    save(tmp_path / "source" / "b", slices(2, Manufacturer="C", ConvolutionKernel="sharp"))
    report = run(tmp_path / "source", tmp_path / "out")
    assert [item.kernel for item in report.scanners] == ["soft", "sharp"]
    assert [item.series for item in report.scanners] == [1, 1]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| A/B |" in text
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()


@given(moments, st.times(), st.times())
def test_a_window_opens_when_it_says(now, start, end):
    start, end = (one.replace(second=0, microsecond=0) for one in (start, end))
    if start == end:
        return
    window = Window(start=start, end=end)
    wait_s = window.wait_s(now)
    assert 0 <= wait_s < 86400
    assert window.holds(now + timedelta(seconds=wait_s))
    assert wait_s == 0 or not window.holds(now + timedelta(seconds=wait_s / 2))
    other = Window(start=end, end=start)
    assert window.holds(now) != other.holds(now)
    assert window.share + other.share == pytest.approx(1)


def test_a_window_over_midnight():
    window = Window.parse("20:00-06:00")
    day = datetime(2026, 1, 5)
    assert window.wait_s(day.replace(hour=19, minute=59)) == 60
    assert window.wait_s(day.replace(hour=23)) == window.wait_s(day.replace(hour=5)) == 0
    assert window.wait_s(day.replace(hour=6)) == 14 * 3600
    assert window.share == pytest.approx(10 / 24)
    for wrong in ("20-6", "24:00-06:00", "20:00", "20:00-20:00", ""):
        with pytest.raises(CddnetError, match="window"):
            Window.parse(wrong)


@given(moments, st.floats(0.5, 5000), st.integers(2, 40))
def test_a_rate_is_never_passed_in_any_hour(now, per_hour, count):
    pace, last, begun = Pace(per_hour=per_hour), None, []
    for _ in range(count):
        now += timedelta(seconds=pace.wait_s(now, last))
        begun.append(now)
        last = now
    # Each gap is rounded to a microsecond.
    spent_s = (begun[-1] - begun[0]).total_seconds()
    assert spent_s == pytest.approx((count - 1) * 3600 / per_hour, abs=1e-5 * count)


def test_pace_and_time_left():
    now = datetime(2026, 1, 5, 12)
    both = Pace(per_hour=60, window=Window.parse("20:00-06:00"))
    assert both.wait_s(now, now) == 8 * 3600
    assert both.wait_s(now.replace(hour=22), now.replace(hour=22)) == 60
    assert Pace().wait_s(now, now) == 0
    # The clock was set back by a day.
    assert Pace(per_hour=60).wait_s(now, now + timedelta(days=1)) == 60
    assert Pace().left_s(5, None) is None
    assert Pace().left_s(0, None) == 0
    assert Pace().left_s(5, 10.0) == 50
    assert Pace(per_hour=60).left_s(5, 10.0) == 300
    assert both.left_s(5, 90.0) == pytest.approx(5 * 90 * 2.4)
    with pytest.raises(CddnetError, match="above 0"):
        Pace(per_hour=0)


def test_series_begin_at_the_rate(quick, tmp_path):
    pace = Pace(per_hour=3600 / 0.3)
    began = time.monotonic()
    run(tree(tmp_path / "source", 3), tmp_path / "out", pace=pace)
    assert time.monotonic() - began >= 0.6
    starts = sorted(row["started_at"] for row in rows(tmp_path / "out").values())
    first, _, last = (datetime.fromisoformat(text) for text in starts)
    assert (last - first).total_seconds() >= 0.6


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("dicom://pacs:104", "TITLE"),
        ("dicom://A@pacs", "port"),
        ("dicom://A@pacs:99999", "port"),
        ("https://me:secret@pacs/x", "password"),
        ("https:///x", "expected"),
        ("https://pacs/x?PatientName=Zyx", "PatientName cannot"),
    ],
)
def test_an_address_that_cannot_be_asked_is_refused(source, why):
    with pytest.raises(CddnetError, match=why) as caught:
        parse_query(source)
    assert "secret" not in str(caught.value)
    assert "Zyx" not in str(caught.value)


def test_an_address_is_taken_apart():
    query = parse_query("dicom://PACS@host:104?StudyDate=20240101-&StationName=CT1")
    assert query.remote.address == "dicom://PACS@host:104"
    assert (query.studies, query.series) == ({"StudyDate": "20240101-"}, {"StationName": "CT1"})
    query = parse_query("https://pacs/dicom-web/?StudyDate=20240101")
    assert query.remote.address == "https://pacs/dicom-web"
    assert not is_query("folder")


def test_a_manifest_that_is_none_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database " * 100)
    with pytest.raises(CddnetError, match="no manifest"):
        Manifest(tmp_path)


def test_a_record_is_all_that_an_outcome_says(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add_remote([("1.2", "1.2.3")])
    outcome = Outcome(*(["done"] + [f"t{i}" for i in range(3)] + list(range(4, 10)) + ["w"] * 5))
    manifest.record(hidden("1.2.3"), outcome, CREATED)
    (row,) = manifest.rows("done")
    assert {name: row[name] for name in outcome._fields} == outcome._asdict()
    manifest.close()


def wait_for(condition, timeout_s=100):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


AUDIT = """
import os, sys
def hook(event, told):
    if event in ("socket.connect", "socket.sendto", "socket.bind", "socket.getaddrinfo"):
        address = told[0] if event == "socket.getaddrinfo" else told[1]
        host = address[0] if isinstance(address, tuple) else address
        local = str(host).startswith(("127.", "::1", "/", "localhost"))
        with open(os.environ["AUDIT_FILE"], "a") as file:
            file.write(f"{'local' if local else 'FOREIGN'} {os.getpid()} {event} {address}\\n")
sys.addaudithook(hook)
"""


def begin(source, out, workers, **environment):
    """An archive run in a process of its own."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from datetime import datetime\n"
        "from cddnet.node.archive.run import ArchiveOptions, archive\n"
        "if __name__ == '__main__':\n"
        f"    archive(ArchiveOptions(source={str(source)!r}, out=Path({str(out)!r}), "
        f"workers={workers}, created=datetime.fromisoformat({CREATED.isoformat()!r})), "
        "lambda _: None)\n"
    )
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, "-c", code], env=variables, start_new_session=True)


def log_lines(out):
    path = out / LOG_FILE
    return path.read_text().splitlines() if path.exists() else []


def workers_of(pid):
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [item for item in found if any("spawn_main" in part for part in item.cmdline())]


@pytest.mark.slow
def test_the_same_bytes_with_one_two_and_four_workers_and_no_foreign_connection(tmp_path):
    source = tree(tmp_path / "source", 9, depth=4)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AUDIT)
    found = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        audit = tmp_path / f"audit{workers}"
        hook = {"PYTHONPATH": str(tmp_path / "hook"), "AUDIT_FILE": str(audit)}
        assert begin(source, out, workers, **hook).wait(200) == 0
        found.append(content(out))
        lines = audit.read_text().splitlines()
        # The hook is in the client and in every worker.
        talked = {line.split()[1] for line in lines if "socket.connect" in line}
        assert len(talked) > workers
        assert [line for line in lines if line.startswith("FOREIGN")] == []
    assert len(found[0]) == 36
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_a_killed_worker_costs_at_most_its_own_series(tmp_path):
    source = tree(tmp_path / "source", 10, depth=25)
    assert begin(source, tmp_path / "calm", 2).wait(200) == 0
    out = tmp_path / "out"
    process = begin(source, out, 2)
    wait_for(lambda: len(log_lines(out)) >= 2)
    workers_of(process.pid)[0].send_signal(signal.SIGKILL)
    assert process.wait(200) == 0
    lines = [json.loads(line) for line in log_lines(out)]
    assert sum(line["state"] == "done" for line in lines) == 10
    assert len(lines) <= 11
    assert sum(line["attempts"] > 1 for line in lines) <= 1
    assert content(out) == content(tmp_path / "calm")
    assert not list((out / "series").glob(".*"))


@pytest.mark.slow
def test_a_killed_client_loses_nothing_that_was_done(tmp_path):
    source, out = tree(tmp_path / "source", 8, depth=25), tmp_path / "out"
    process = begin(source, out, 2)
    wait_for(lambda: len(log_lines(out)) >= 3)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(item.is_running() for item in workers))
    before, done = content(out), len(log_lines(out))
    times = {file: file.stat().st_mtime_ns for file in (out / "series").glob("[0-9a-f]*/*")}
    assert begin(source, out, 2).wait(200) == 0
    lines = [json.loads(line) for line in log_lines(out)]
    # Each series has one line, those of the first run included.
    assert len({line["series"] for line in lines}) == len(lines) == 8
    assert done >= 3
    assert {name: content(out)[name] for name in before if "/." not in name}.items() <= (
        before.items()
    )
    assert all(file.stat().st_mtime_ns == then for file, then in times.items())
    assert begin(source, tmp_path / "calm", 1).wait(200) == 0
    assert content(out) == content(tmp_path / "calm")
