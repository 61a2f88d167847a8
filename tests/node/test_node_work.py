"""Work: one derived object per slice, the same whenever it is made and whatever came before.

Above 300 lines: all look at the same derived series.
"""

import shutil
import sqlite3
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread, uid
from small_node import (
    FAMILY,
    ROOT,
    SHIFT_HU,
    Clock,
    archive_at,
    ct,
    node_config,
    received,
    shifted,
    station_at,
)

from cddnet.errors import DicomError, ModelError
from cddnet.formats._derived_headers import Recipe, derived_uid
from cddnet.formats.dicom import read_files
from cddnet.node.service import Cleaner
from cddnet.node.settings.rules import Order
from cddnet.node.store import database, images
from cddnet.node.work import worker
from cddnet.node.work.worker import Worker, denoise_output


class Killed(BaseException):
    """Stands for kill -9: nothing catches it to tidy up."""


def worked(station, clock, denoise=shifted):
    """Let the quiet time pass, and do all the work there is."""
    clock.now += 100
    worker = Worker(station, denoise)
    while worker.step():
        pass


def results(station):
    """Derived SOP instance UID -> bytes, of the files that the journal knows."""
    return {
        row["sop_uid"]: station.images.path(row["file"]).read_bytes()
        for row in station.journal.database.rows("SELECT sop_uid, file FROM objects")
    }


def derived(station):
    files = (station.config.folder / "outbox").rglob("*.dcm")
    return sorted((dcmread(file) for file in files), key=lambda item: int(item.InstanceNumber))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def station(tmp_path, clock):
    opened = station_at(node_config(tmp_path / "node"), clock)
    yield opened
    opened.close()


def test_each_slice_becomes_one_object_of_one_new_series(station, clock):
    sources = [ct(index) for index in range(3)]
    received(station, sources)
    worked(station, clock)
    made = derived(station)
    assert len(made) == 3
    assert len({item.SOPInstanceUID for item in made}) == 3
    (series,) = {item.SeriesInstanceUID for item in made}
    assert series not in {item.SeriesInstanceUID for item in sources}
    for source, item in zip(sources, made, strict=True):
        assert item.StudyInstanceUID == source.StudyInstanceUID
        assert item.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        before = np.frombuffer(source.PixelData, "<i2")
        after = np.frombuffer(item.PixelData, "<i2")
        padding = before == source.get("PixelPaddingValue", None)
        assert np.array_equal(after[~padding], before[~padding] + int(SHIFT_HU))
    (row,) = station.journal.queue()
    assert (row.done, row.total, row.received) == (3, 3, 3)
    assert row.outputs[0].destinations == {"pacs": (3, 0, 0)}


def test_any_order_of_arrival_gives_the_same_objects(tmp_path):
    """All at once, or one by one with a completed series in between: the same bytes."""
    found = []
    for name, groups in {"all": [(0, 1, 2, 3)], "late": [(2,), (3, 0), (1,)]}.items():
        clock = Clock()
        station = station_at(node_config(tmp_path / name), clock)
        for group in groups:
            received(station, [ct(index) for index in group])
            # The first completion is at the same time in both; the later ones are not.
            worked(station, clock)
        found.append(results(station))
        station.close()
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_late_slices_leave_what_is_there_untouched(station, clock):
    received(station, [ct(1), ct(2)])
    worked(station, clock)
    before, times = results(station), _times(station)
    clock.now += 86_400
    received(station, [ct(0), ct(3)])
    worked(station, clock)
    after = results(station)
    assert len(after) == 4
    assert {uid: after[uid] for uid in before} == before
    assert {file: _times(station)[file] for file in times} == times, "not even written again"
    dates = {(item.InstanceCreationDate, item.InstanceCreationTime) for item in derived(station)}
    assert len(dates) == 1, "late ones carry the date of the first run"


def _times(station):
    files = (station.config.folder / "outbox").rglob("*.dcm")
    return {file: file.stat().st_mtime_ns for file in files}


def test_interleaved_series_stay_apart(station, clock):
    for index in range(3):
        received(station, [ct(index, series=1), ct(index, series=2)])
    worked(station, clock)
    made = derived(station)
    pairs = {(item.SeriesInstanceUID, item.StudyInstanceUID) for item in made}
    assert len(made) == 6
    assert {study for _, study in pairs} == {f"{ROOT}.2.1", f"{ROOT}.2.2"}
    assert len(pairs) == 2


def steps_that_last(monkeypatch, act):
    """Call `act` before everything that changes the disk: a name, a flush, a transaction."""
    for module, name in (
        (worker.os, "replace"),
        (images, "flush_folder"),
        (worker, "flush_folder"),
    ):
        before = getattr(module, name)

        def step(*arguments, before=before):
            act()
            return before(*arguments)

        monkeypatch.setattr(module, name, step)
    begin = database.Database.transaction

    def transaction(self):
        act()
        return begin(self)

    monkeypatch.setattr(database.Database, "transaction", transaction)
    write = worker.write_volume
    monkeypatch.setattr(worker, "write_volume", lambda *told: (write(*told), act()))


def test_killed_before_any_step_it_goes_on_to_the_same_objects(tmp_path, monkeypatch):
    """For every n: die before the n-th change of the disk, open the folder again, go on."""
    source = tmp_path / "source"
    clock = Clock()
    station = station_at(node_config(source), clock)
    received(station, [ct(0), ct(1)])
    station.close()
    clock.now += 100

    def life(folder, die_at):
        """Work in a copy of the folder until the end or death; (bytes, steps)."""
        shutil.copytree(source, folder)
        own, counted = Clock(clock.now), [0]
        station = station_at(node_config(folder), own)

        def act():
            counted[0] += 1
            if counted[0] == die_at:
                raise Killed

        with monkeypatch.context() as patched:
            steps_that_last(patched, act)
            try:
                while Worker(station, shifted).step():
                    pass
                died = False
            except Killed:
                died = True
        station.close()
        if died:
            again = station_at(node_config(folder), own)
            own.now += 50
            while Worker(again, shifted).step():
                pass
            station = again
        else:
            station = station_at(node_config(folder), own)
        found = results(station)
        on_disk = {file.name for file in (folder / "outbox").rglob("*") if file.is_file()}
        known = {images.hidden(uid) + ".dcm" for uid in found}
        assert on_disk == known, "no half file, none that nobody knows"
        assert station.journal.queue()[0].outputs[0].destinations == {"pacs": (2, 0, 0)}
        station.close()
        return found, counted[0]

    whole, steps = life(tmp_path / "whole", 0)
    assert len(whole) == 2
    assert steps >= 10
    # The first two steps note that the deciding begins, and what was decided: before the second
    # has been made, the date of the first run is not fixed.
    same = 0
    for number in range(1, steps + 1):
        found, _ = life(tmp_path / f"{number}", number)
        assert set(found) == set(whole)
        same += found == whole
    assert same == steps - 2


def test_a_series_that_is_no_ct_in_hu_is_refused_with_its_reason(station, clock):
    received(station, [ct(0, RescaleSlope="0")])
    worked(station, clock)
    (row,) = station.journal.queue()
    assert row.state == "refused"
    assert "RescaleSlope is 0" in row.error
    assert station.journal.take() is None
    assert FAMILY not in station.told.getvalue()


def test_slices_of_two_patients_are_refused_without_naming_uids(station, clock):
    received(station, [ct(0), ct(1, PatientID="another")])
    worked(station, clock)
    (row,) = station.journal.queue()
    assert row.state == "refused"
    assert "2 patients" in row.error
    assert ROOT not in row.error


def test_no_rule_means_ignored_and_never_our_own(tmp_path, clock):
    rules = [{"name": "head", "when": {"kernel": "^none$"}, "do": [{"destinations": ["pacs"]}]}]
    station = station_at(node_config(tmp_path / "a", rules=rules), clock)
    received(station, [ct(0)])
    worked(station, clock)
    assert station.journal.queue()[0].state == "ignored"
    station.close()

    station = station_at(node_config(tmp_path / "b"), clock)
    received(station, [ct(0)])
    worked(station, clock)
    (ours,) = derived(station)
    received(station, [ours])
    worked(station, clock)
    assert sorted(row.state for row in station.journal.queue()) == ["ignored", "sending"]
    station.close()


def test_several_outputs_and_destinations(tmp_path, clock):
    pair = {"a": archive_at(4), "b": archive_at(5)}
    do = [
        {"strength": 1, "destinations": ["a", "b"]},
        {"strength": 0.5, "destinations": ["b"], "image_type": "PRIMARY"},
    ]
    config = node_config(tmp_path / "n", pair, rules=[{"name": "two", "do": do}])
    station = station_at(config, clock)
    received(station, [ct(0), ct(1)])
    worked(station, clock)
    (row,) = station.journal.queue()
    assert [output.destinations for output in row.outputs] == [
        {"a": (2, 0, 0), "b": (2, 0, 0)},
        {"b": (2, 0, 0)},
    ]
    assert len({item.SeriesInstanceUID for item in derived(station)}) == 2
    station.close()


def test_what_passes_is_tried_again_and_then_left_to_a_person(station, clock):
    calls = []

    def broken(volume, output):
        calls.append(1)
        raise ModelError("no weights.")

    received(station, [ct(0)])
    for _ in range(6):
        worked(station, clock, broken)
    assert len(calls) == worker.ATTEMPTS
    (row,) = station.journal.queue()
    assert (row.state, row.error) == ("failed", "no weights.")
    assert station.journal.retry(row.key)
    worked(station, clock)
    assert len(results(station)) == 1
    assert station.journal.queue()[0].error == ""


def dying(station, clock, place, monkeypatch):
    """Begin to work, and end as a killed process would; returns the folder opened again."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        if place == "deciding":
            patched.setattr(worker, "facts_of", killed)
        with suppress(Killed):
            worked(station, clock, killed)
    config = station.config
    station.close()
    return station_at(config, clock)


@pytest.mark.parametrize("place", ["deciding", "making"])
def test_after_three_deaths_a_series_waits_for_a_person_and_the_rest_goes_on(
    tmp_path, clock, place, monkeypatch
):
    station = station_at(node_config(tmp_path / "n"), clock)
    received(station, [ct(0)])
    if place == "making":
        clock.now += 100
        (due,) = station.journal.due(1)
        station.journal.decide(due, "all", [Order(destinations=("pacs",)).model_dump(mode="json")])
    key = station.journal.queue()[0].key
    for _ in range(2):
        station = dying(station, clock, place, monkeypatch)
        assert station.journal.queue()[0].state != "failed"
    received(station, [ct(1)])
    station = dying(station, clock, place, monkeypatch)
    (row,) = station.journal.queue()
    assert row.state == "failed", "a late slice does not start the count anew"
    assert "3 times" in row.error
    assert '"reason": "died"' in station.told.getvalue()
    received(station, [ct(0, series=2)])
    received(station, [ct(2)])
    worked(station, clock)
    states = {row.key: row.state for row in station.journal.queue()}
    assert states.pop(key) == "failed", "nor does one let it begin again"
    assert list(states.values()) == ["sending"]
    assert station.journal.retry(key)
    worked(station, clock)
    row = next(row for row in station.journal.queue() if row.key == key)
    assert (row.state, row.error, row.received) == ("sending", "", 3)
    assert len(results(station)) == 4
    station.close()


def test_a_stop_in_order_is_no_death(tmp_path, clock):
    station = station_at(node_config(tmp_path / "n"), clock)
    received(station, [ct(0)])
    clock.now += 100
    (due,) = station.journal.due(1)
    station.journal.decide(due, "all", [Order(destinations=("pacs",)).model_dump(mode="json")])
    stop = threading.Event()
    stop.set()
    for _ in range(5):
        assert Worker(station, shifted).step(stop), "it was begun, and stopped before its slice"
        config = station.config
        station.close()
        station = station_at(config, clock)
    assert results(station) == {}
    worked(station, clock)
    assert len(results(station)) == 1
    station.close()


def test_a_series_that_comes_further_at_each_death_is_not_set_aside(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(worker, "AT_ONCE", 1)

    def killed_at_the_second_slice(volume, output):
        read = iter([volume.read_slice])

        def read_slice(index):
            for first in read:
                return first(index)
            raise Killed

        return shifted(replace(volume, read_slice=read_slice), output)

    save = Worker._save

    def saved_if_any(worker, job, batch, *how_far):
        if batch:
            save(worker, job, batch, *how_far)

    station = station_at(node_config(tmp_path / "n"), clock)
    received(station, [ct(index) for index in range(6)])
    for count in range(1, 6):
        # The process ends without a chance to tidy up, so nothing may be noted on the way out.
        with monkeypatch.context() as patched, suppress(Killed):
            patched.setattr(Worker, "_save", saved_if_any)
            worked(station, clock, killed_at_the_second_slice)
        config = station.config
        station.close()
        station = station_at(config, clock)
        assert len(results(station)) == count
    worked(station, clock)
    assert len(results(station)) == 6
    station.close()


def test_nothing_stays_under_way_where_its_end_cannot_be_noted(station, clock, monkeypatch):
    """A disk that is full while the end is noted, then has room again: made, and only once."""
    received(station, [ct(0), ct(1)])
    monkeypatch.setattr(station.journal, "finish", _full)
    clock.now += 100
    with pytest.raises(sqlite3.OperationalError):
        Worker(station, shifted).step()
    monkeypatch.undo()
    calls = []

    def counted(volume, output):
        calls.append(1)
        return shifted(volume, output)

    for _ in range(3):
        worked(station, clock, counted)
    (row,) = station.journal.queue()
    assert (row.state, row.outputs[0].destinations) == ("sending", {"pacs": (2, 0, 0)})
    assert row.error == ""
    assert len(calls) == 1


def _full(*_, **__):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_text_that_cannot_be_encoded_is_kept_as_far_as_it_can(station, clock):
    def broken(volume, output):
        raise DicomError("kernel \ud800 is unknown.")

    received(station, [ct(0)])
    worked(station, clock, broken)
    (row,) = station.journal.queue()
    assert (row.state, row.error) == ("refused", "kernel ? is unknown.")


def test_a_series_that_cannot_be_decided_on_holds_up_no_other(station, clock, monkeypatch):
    """An error that nobody foresaw: tried three times, then left to a person; nothing goes."""
    before, calls = worker.facts_of, []

    def broken(files, caller):
        if len(files) == 1:
            calls.append(1)
            raise RecursionError
        return before(files, caller)

    monkeypatch.setattr(worker, "facts_of", broken)
    received(station, [ct(0)])
    clock.now += 1
    received(station, [ct(0, series=2), ct(1, series=2)])
    for _ in range(5):
        worked(station, clock)
    assert len(calls) == worker.ATTEMPTS
    rows = {row.received: row for row in station.journal.queue()}
    assert (rows[1].state, rows[1].error) == ("failed", "RecursionError")
    assert rows[2].state == "sending"
    assert station.deliveries.disposable() == []
    monkeypatch.undo()
    assert station.journal.retry(rows[1].key)
    worked(station, clock)
    assert len(results(station)) == 3


def test_an_image_that_is_gone_is_no_full_disk(station, clock):
    received(station, [ct(0)])
    next((station.config.folder / "inbox").rglob("*.dcm")).unlink()
    for _ in range(5):
        worked(station, clock)
    (row,) = station.journal.queue()
    assert row.state in ("failed", "refused")
    assert row.error


def test_an_unexpected_error_tells_nothing_of_the_patient(station, clock):
    def broken(volume, output):
        raise ValueError(f"{FAMILY} broke it")

    received(station, [ct(0)])
    worked(station, clock, broken)
    assert FAMILY not in station.told.getvalue()
    assert station.journal.queue()[0].error == "ValueError"
    assert FAMILY not in repr(station.journal.queue())


def test_other_weights_make_a_whole_new_series(station, clock):
    """After an update, a late slice must not end alone in a series of its own."""

    def updated(volume, output):
        changed = shifted(volume, output)
        step = replace(changed.derivation[-1], weights_sha256="cd" * 32)
        return replace(changed, derivation=(step,))

    received(station, [ct(0), ct(1)])
    worked(station, clock)
    received(station, [ct(2)])
    worked(station, clock, updated)
    sizes = {}
    for item in derived(station):
        sizes[item.SeriesInstanceUID] = sizes.get(item.SeriesInstanceUID, 0) + 1
    assert sorted(sizes.values()) == [2, 3]
    (output,) = station.journal.queue()[0].outputs
    assert list(output.versions.values()) == [3, 2], "the page offers both, the newest first"
    told = station.journal.versions(output.key)
    assert [version.key for version in told] == list(output.versions)
    for version, count in zip(told, (3, 2), strict=True):
        made = {dcmread(station.images.path(file)).SeriesInstanceUID for file in version.results}
        assert [sizes[uid] for uid in made] == [count]
        assert len(version.originals) == 3


def test_images_go_after_their_time_and_come_back_the_same(tmp_path, clock):
    config = node_config(tmp_path / "n", keep_originals_h=1)
    station = station_at(config, clock)
    cleaner = Cleaner(station)
    received(station, [ct(0), ct(1)])
    worked(station, clock)
    before = results(station)
    clock.now += 7200
    assert cleaner.step() == 0, "the archive has nothing yet"
    station.deliveries.delivered("pacs", before, commitment=False)
    assert cleaner.step() == 0, "not kept for its time yet"
    clock.now += 3601
    assert cleaner.step() == 4
    assert [
        path.name for box in ("inbox", "outbox") for path in (config.folder / box).iterdir()
    ] == []
    assert station.images.image_bytes() == 0
    (row,) = station.journal.queue()
    assert (row.state, row.removed, row.outputs[0].versions) == ("done", True, {})
    assert station.journal.versions(row.outputs[0].key) == []
    received(station, [ct(1), ct(0)])
    worked(station, clock)
    assert results(station) == before
    assert not station.journal.queue()[0].removed
    station.close()


@pytest.mark.parametrize("pixel", [0, 1])
def test_what_comes_again_after_its_removal_is_the_same_object_only_with_its_pixels(
    tmp_path, clock, pixel
):
    config = node_config(tmp_path / "n", keep_originals_h=1)
    station = station_at(config, clock)
    received(station, [ct(0), ct(1)])
    worked(station, clock)
    before = {item.InstanceNumber: item for item in derived(station)}
    station.deliveries.delivered("pacs", results(station), commitment=False)
    clock.now += 7200
    assert Cleaner(station).step() == 4
    again = ct(0)
    stored = np.frombuffer(again.PixelData, "<i2").copy()
    stored[500] += pixel
    again.PixelData = stored.tobytes()
    again.compress(uid.RLELossless, generate_instance_uid=False)
    received(station, [again, ct(1)])
    worked(station, clock)
    for item in derived(station):
        earlier = before[item.InstanceNumber]
        assert item.SeriesInstanceUID == earlier.SeriesInstanceUID
        other = item.PixelData != earlier.PixelData
        assert other == (pixel == 1 and item.InstanceNumber == 1)
        assert (item.SOPInstanceUID != earlier.SOPInstanceUID) == other
    assert len(results(station)) == 2
    station.close()


def test_late_slices_join_results_of_before_pixels_decided(tmp_path, clock, monkeypatch):
    """An update in the middle of a series: what the journal names stays as it is."""
    station = station_at(node_config(tmp_path / "n"), clock)
    received(station, [ct(0), ct(1)])

    def of_before(self, index):
        sources = [f"{frame.sop_uid}/{frame.index}" for frame in self.sources(index or 0)[:1]]
        return derived_uid("image", self._series_uid, self._text, *sources)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "_sop_uid", of_before)
        patch.setattr(Recipe, "uids", lambda self, index: {})
        patch.setattr(Recipe, "sop_uid", of_before)
        worked(station, clock)
    before = results(station)
    assert len(before) == 2
    received(station, [ct(2)])
    worked(station, clock)
    after = results(station)
    assert {name: after[name] for name in before} == before
    assert len(after) == 3
    assert len({item.SeriesInstanceUID for item in derived(station)}) == 1
    station.close()


def test_a_short_disk_lets_the_oldest_go_before_their_time(tmp_path, clock):
    station = station_at(node_config(tmp_path / "n", quota_gb=2.2e-3), clock)
    pixels = np.tile(np.frombuffer(ct(0).PixelData, "<i2").reshape(128, 128), (4, 4))
    large = {"Rows": 512, "Columns": 512, "PixelData": pixels.tobytes()}
    for series in (1, 2):
        received(station, [ct(0, series=series, **large)])
        worked(station, clock)
        station.deliveries.delivered("pacs", results(station), commitment=False)
    assert station.images.crowded()
    assert Cleaner(station).step() == 2
    left = station.journal.database.rows("SELECT series_uid FROM instances WHERE purged_at IS NULL")
    assert [row["series_uid"] for row in left] == [f"{ROOT}.3.2"]
    station.close()


def test_the_real_network_is_the_one_of_the_command_line(station, clock, tmp_path):
    """Pixels by the node equal those of `cddnet denoise` on the same files."""
    from cddnet.workflows.denoise import DenoiseOptions, denoise_file

    received(station, [ct(0)])
    worked(station, clock, denoise_output)
    (by_node,) = derived(station)
    (file,) = (station.config.folder / "inbox").rglob("*.dcm")
    options = DenoiseOptions(model="default", strength=1.0)
    denoise_file(file, tmp_path / "out.dcm", options, lambda done, total: None)
    by_command = dcmread(tmp_path / "out.dcm")
    assert by_node.PixelData == by_command.PixelData
    assert by_node.PixelData != ct(0).PixelData
    assert by_node.SeriesInstanceUID != by_command.SeriesInstanceUID


def test_engine_and_device_reach_the_network(station, clock, monkeypatch):
    from cddnet.workflows import denoise

    asked = []

    def stub(volume, options):
        asked.append(options)
        return shifted(volume, Order(destinations=("pacs",)))

    monkeypatch.setattr(denoise, "denoise_with", stub)
    output = Order(engine="torch_eager", strength=0.25, destinations=("pacs",))
    denoise_output(_volume(station), output, device="cpu")
    (options,) = asked
    told = (options.engine, options.device, options.strength, options.image_type)
    assert told == ("torch_eager", "cpu", 0.25, "SECONDARY")
    with pytest.raises(ValueError, match="no such engine"):
        Order(engine="abacus", destinations=("pacs",))


def _volume(station):
    received(station, [ct(0)])
    return read_files(sorted((station.config.folder / "inbox").rglob("*.dcm")))


def test_localizers_are_called_so_and_late_slices_are_in_the_audit(station, clock):
    received(station, [ct(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])])
    received(station, [ct(0, series=2)])
    worked(station, clock)
    assert '"reason": "localizer"' in station.told.getvalue()
    received(station, [ct(1, series=2)])
    worked(station, clock)
    (late,) = (line for line in station.journal.audit() if line["what"] == "late_slices")
    assert late["count"] == 2
    assert late["caller"] == "SCANNER"


def test_enhanced_ct_and_errors_are_told_apart():
    assert worker.readable(DicomError("series 1.2.840.1.2: bad")) == "series (UID): bad"
    assert worker.readable(KeyError("x")) == "KeyError"
