"""Misfits: refused in node and archive alike, or forced and marked; decided once for good."""

from dataclasses import replace
from typing import get_args

import pytest
from pydicom import dcmread
from small_node import Clock, archive_at, ct, node_config, received, shifted, station_at

from cddnet.errors import UnfitError
from cddnet.node.archive.run import ArchiveOptions, archive
from cddnet.node.settings.rules import Order, decide, facts_of
from cddnet.node.watch import vocabulary
from cddnet.node.work import worker
from cddnet.node.work.explain import explain
from cddnet.node.work.worker import Worker, denoise_output
from cddnet.workflows import fitness

MISFIT = {"RescaleIntercept": "-24"}  # CT_small has -1024
COLD = {"RescaleIntercept": "-2024"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def clock():
    return Clock()


def opened(folder, clock, *forces):
    """A node with an output of strength 0 for each, forced or not."""
    outputs = [
        # Another image type for each, so that they are different series.
        {"strength": 0, "force": force, "image_type": kind, "destinations": ["pacs"]}
        for force, kind in zip(forces, ("SECONDARY", "PRIMARY"), strict=False)
    ]
    rules = [{"name": "all", "do": outputs}]
    return station_at(node_config(folder, {"pacs": archive_at(4)}, rules=rules), clock)


def unchanged(volume, order):
    """As `denoise_output` of strength 0, without opening a network."""
    (step,) = shifted(volume, order).derivation
    step = fitness.forced(replace(step, image_type=order.image_type), order.forced)
    return volume.derived(volume.read_slice, step)


def worked(station, clock):
    clock.now += 100
    own = Worker(station, unchanged)
    while own.step():
        pass


def made(station):
    """SOP instance UID -> bytes of every derived object."""
    rows = station.journal.database.rows("SELECT sop_uid, file FROM objects")
    return {row["sop_uid"]: station.images.path(row["file"]).read_bytes() for row in rows}


def headers(station):
    return [dcmread(file) for file in (station.config.folder / "outbox").rglob("*.dcm")]


def marked(header):
    return "FORCED although the fitness check refused it: values." in header.DerivationDescription


@pytest.mark.parametrize("changes", [MISFIT, COLD])
def test_a_misfit_is_refused_with_a_reason_and_nothing_is_made(tmp_path, clock, changes):
    station = opened(tmp_path / "node", clock, False, False)
    received(station, [ct(index, **changes) for index in range(3)])
    worked(station, clock)
    (row,) = station.journal.queue()
    assert (row.state, row.outputs) == ("refused", ())
    assert "may not be denoised: the values are not HU" in row.error
    assert "force: true" in row.error
    assert made(station) == {}
    told = station.told.getvalue()
    assert '"reason": "unfit"' in told
    assert '"kinds": "values"' in told
    assert "not HU" not in told
    assert [line["what"] for line in station.journal.audit()] == ["series_refused"]
    station.close()


def test_a_fit_series_is_made_and_not_marked(tmp_path, clock):
    station = opened(tmp_path / "node", clock, False, True)
    received(station, [ct(index) for index in range(3)])
    worked(station, clock)
    assert len(made(station)) == 6
    assert not any(marked(header) for header in headers(station))
    assert "series_forced" not in station.told.getvalue()
    station.close()


def test_only_the_output_that_forces_is_made_and_says_so(tmp_path, clock):
    station = opened(tmp_path / "node", clock, False, True)
    received(station, [ct(index, **MISFIT) for index in range(3)])
    worked(station, clock)
    found = headers(station)
    assert len(found) == 3
    assert all(marked(header) and header.ImageType[1] == "PRIMARY" for header in found)
    (output,) = station.journal.queue()[0].outputs
    assert output.state == "sending"
    assert output.notes[0].startswith("forced, although the values are not HU")
    assert "series_forced" in {line["what"] for line in station.journal.audit()}
    station.close()


@pytest.mark.parametrize(("first", "late"), [({}, MISFIT), (MISFIT, {})])
def test_a_late_slice_changes_nothing_of_what_was_made(tmp_path, clock, first, late):
    """Neither is what was fit refused later, nor does what was forced lose its mark."""
    station = opened(tmp_path / "node", clock, bool(first))
    received(station, [ct(index, **first) for index in range(2)])
    worked(station, clock)
    before = made(station)
    assert len(before) == 2
    received(station, [ct(index, **late) for index in range(2, 9)])
    worked(station, clock)
    after = made(station)
    assert len(after) == 9
    assert {uid: after[uid] for uid in before} == before
    assert len({header.SeriesInstanceUID for header in headers(station)}) == 1
    assert {marked(header) for header in headers(station)} == {bool(first)}
    station.close()


def test_a_refused_series_is_looked_at_again_once_it_has_more_slices(tmp_path, clock):
    station = opened(tmp_path / "node", clock, False)
    received(station, [ct(0, **MISFIT)])
    worked(station, clock)
    assert station.journal.queue()[0].state == "refused"
    received(station, [ct(index) for index in range(1, 9)])
    worked(station, clock)
    assert len(made(station)) == 9
    station.close()


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_read_yet_is_checked_once_it_can(tmp_path, clock, force):
    """Of two orientations there is no volume to judge; the verdict then comes with the making."""
    station = opened(tmp_path / "node", clock, force)
    turned = ct(1, **MISFIT, ImageOrientationPatient=["0", "1", "0", "-1", "0", "0"])
    received(station, [ct(0, **MISFIT), turned])
    worked(station, clock)
    (output,) = station.journal.queue()[0].outputs
    assert output.state == "refused"
    assert "may not be denoised" not in output.error
    _repair(station, ct(1, **MISFIT))
    assert station.journal.retry(station.journal.queue()[0].key)
    worked(station, clock)
    (output,) = station.journal.queue()[0].outputs
    assert ("may not be denoised" in output.error) is not force
    assert [marked(header) for header in headers(station)] == [True, True] * force
    station.close()


def test_a_check_that_fails_holds_nothing_up_and_is_made_later(tmp_path, clock, monkeypatch):
    station = opened(tmp_path / "node", clock, True)
    check, failures = worker.judged, [RuntimeError("a decoder"), OSError("a disk")]

    def failing(volumes):
        if failures:
            raise failures.pop()
        return check(volumes)

    monkeypatch.setattr(worker, "judged", failing)
    for series in (1, 2):
        received(station, [ct(index, series, **MISFIT) for index in range(2)])
    worked(station, clock)
    assert failures == []
    assert [marked(header) for header in headers(station)] == [True] * 4
    for (spec,) in station.journal.database.rows("SELECT spec FROM outputs"):
        assert '"forced": "values"' in spec
    station.close()


def _repair(station, dataset):
    """The slice as it should have come, in place of the one that did."""
    file = station.journal.file_of(dataset.SOPInstanceUID)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(station.images.path(file), enforce_file_format=True)


def test_orders_of_before_the_check_are_made_as_they_were():
    order = Order.model_validate({"model": "default", "destinations": ["pacs"]})
    assert order.forced == ""


def test_every_kind_is_a_word_of_the_log():
    assert {kind.value for kind in fitness.Kind} == vocabulary.FITNESS_KINDS
    assert {"series_refused", "series_forced"} <= set(get_args(vocabulary.Event))
    allowed = vocabulary.KINDS["kinds"]
    assert allowed("metal, values")
    assert not allowed("Doe^Jane")
    assert not allowed("values, Doe")


def test_the_explanation_says_what_the_check_finds(tmp_path, clock):
    for index in range(3):
        _save(tmp_path / f"{index}.dcm", ct(index, **MISFIT))
    for force, told in ((False, "no output forces it: refused"), (True, "an output forces it")):
        station = opened(tmp_path / f"node{force}", clock, force)
        rules = station.config.rules
        assert decide(facts_of([tmp_path / "0.dcm"]), rules).outputs
        files = sorted(tmp_path.glob("*.dcm"))
        line = explain(files, rules).splitlines()[-1]
        assert "fitness check: the values are not HU" in line
        assert told in line
        station.close()


def _save(path, dataset):
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("force", [False, True])
def test_an_archive_refuses_or_marks_a_misfit(tmp_path, force):
    for series, changes in ((1, {}), (2, MISFIT)):
        for index in range(3):
            _save(tmp_path / "source" / f"{series}-{index}.dcm", ct(index, series, **changes))
    options = ArchiveOptions(
        source=str(tmp_path / "source"), out=tmp_path / "out", workers=0, strength=0, force=force
    )
    report = archive(options, lambda _: None)
    assert report.done == 1 + force
    assert len(report.refused) == 1 - force
    if not force:
        assert report.refused[0].error == UnfitError.__name__
        assert "the values are not HU" in report.refused[0].reason
    found = [dcmread(file) for file in (tmp_path / "out" / "series").rglob("*.dcm")]
    assert sum(marked(header) for header in found) == 3 * force
    assert len(found) == 3 + 3 * force


def test_denoise_output_leaves_the_check_to_the_order(tmp_path):
    from cddnet.formats.dicom import read_files

    for index in range(2):
        _save(tmp_path / f"{index}.dcm", ct(index, **MISFIT))
    volume = read_files(sorted(tmp_path.glob("*.dcm")))
    order = Order(strength=0, destinations=("pacs",), forced="values")
    assert "FORCED" in denoise_output(volume, order).derivation[-1].description
    with pytest.raises(UnfitError):
        denoise_output(volume, order.model_copy(update={"forced": None}))
