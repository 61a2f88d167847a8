"""Images over which decoders crash or hang cost a node and an archive run their series alone."""

import pytest
from pydicom.encaps import get_frame
from quick_denoiser import quick_archive
from small_node import Clock, ct, node_config, received, shifted, station_at

from cddnet.formats import _decoder_pool, _dicom_pixels
from cddnet.node.archive.run import ArchiveOptions, archive
from cddnet.node.store.images import hidden
from cddnet.node.work.worker import Worker
from poisoned import POISONS, TWELVE_BITS, crashing, endless, image


def poisoned_series():
    """(reason, data set), each of a series of its own."""
    known = [
        ("of 128 bits", *POISONS["deep"]),
        ("damaged or cut short", *POISONS[f"{TWELVE_BITS[0]} ffdc"]),
        ("damaged or cut short", *POISONS[f"{TWELVE_BITS[2]} fffe"]),
    ]
    unknown = [
        ("the decoder crashed", TWELVE_BITS[0], crashing),
        ("the decoder did not come to an end", TWELVE_BITS[1], endless),
    ]
    for number, (reason, name, poison) in enumerate([*known, *unknown], 100):
        dataset = image(name, poison)
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(dataset, keyword, f"{dataset[keyword].value}.{number}")
        yield reason, dataset


@pytest.fixture
def poisons(monkeypatch):
    """The last ones are not recognised before they reach their decoder."""
    series = list(poisoned_series())
    check = _dicom_pixels._require_sound_stream

    unknown = {
        get_frame(dataset.PixelData, 0, number_of_frames=1)
        for reason, dataset in series
        if reason.startswith("the decoder")
    }

    def blind(stream, header, name):
        if stream not in unknown:
            check(stream, header, name)

    monkeypatch.setattr(_dicom_pixels, "_require_sound_stream", blind)
    monkeypatch.setattr(_decoder_pool, "LIMIT_S", 0.3)
    return series


def test_a_node_refuses_poisoned_series_and_denoises_the_others(tmp_path, poisons):
    clock = Clock()
    station = station_at(node_config(tmp_path / "node"), clock)
    received(station, [dataset for _, dataset in poisons])
    received(station, [ct(index) for index in range(3)])
    clock.now += 100
    worker = Worker(station, shifted)
    while worker.step():
        pass
    assert len(station.journal.database.rows("SELECT * FROM objects")) == 3
    told = station.journal.database.rows("SELECT series_uid, state, error FROM outputs")
    outcomes = {row["series_uid"]: (row["state"], row["error"]) for row in told}
    for reason, dataset in poisons:
        state, error = outcomes[dataset.SeriesInstanceUID]
        assert state == "refused"
        assert reason in error
    station.close()


def test_an_archive_run_refuses_poisoned_series_and_denoises_the_others(
    tmp_path, monkeypatch, poisons
):
    quick_archive(monkeypatch)
    for number, (_, dataset) in enumerate([*poisons, *(("", ct(index)) for index in range(3))]):
        folder = tmp_path / "in" / str(min(number, len(poisons)))
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    options = ArchiveOptions(source=str(tmp_path / "in"), out=tmp_path / "out", workers=0)
    report = archive(options, lambda _: None)
    assert (report.done, report.slices, report.failed) == (1, 3, ())
    reasons = {item.key: item.reason for item in report.refused}
    assert len(reasons) == len(poisons)
    for reason, dataset in poisons:
        assert reason in reasons[hidden(dataset.SeriesInstanceUID)]
