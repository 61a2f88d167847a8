"""The journal is lost, damaged, old or of another day: no image goes, no result is made anew."""

import os
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import datetime, timezone

import pytest
from journal_of_before import encoded, folder_of_before
from pydicom import dcmread
from pynetdicom.dsutils import encode
from small_node import Clock, ct, node_config, received, shifted, station_at
from typer.testing import CliRunner

from cddnet import cli
from cddnet.errors import CddnetError
from cddnet.node.receive.rebuild import rebuild
from cddnet.node.receive.receiver import Receiver
from cddnet.node.receive.unknown import enter_unknown
from cddnet.node.service import Node
from cddnet.node.station import Station, Surroundings
from cddnet.node.store.database import Database, JournalDamaged
from cddnet.node.store.folder import JOURNAL, LOCK, MARKER, WAL
from cddnet.node.store.images import DECISION
from cddnet.node.store.journal import Journal
from cddnet.node.store.origin import read_head
from cddnet.node.store.schema import VERSION
from cddnet.node.work.worker import Worker

CREATED = datetime(2026, 2, 3, 12, 5, 6, tzinfo=timezone.utc)
BY_SENDER = [
    {
        "name": "of one scanner",
        "when": {"calling_ae": "^SCANNER$", "kernel": "."},
        "do": [{"strength": 1, "destinations": ["pacs"]}],
    },
    {"name": "the others", "do": [{"strength": 0.5, "destinations": ["pacs"]}]},
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


def filled(config, clock, datasets=None):
    """The open folder of a node that was sent some images."""
    station = station_at(config, clock)
    received(station, datasets or [ct(0), ct(1), ct(0, series=2)])
    return station


def work(station, clock):
    clock.now += 100
    worker = Worker(station, shifted)
    while worker.step():
        pass


def images(config):
    """Every image anywhere in the folder: bytes by name, wherever it lies."""
    files = [path for path in config.folder.rglob("*.dcm") if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def results(station):
    rows = station.journal.database.rows("SELECT sop_uid, file FROM objects")
    return {row["sop_uid"]: station.images.path(row["file"]).read_bytes() for row in rows}


def killed(station):
    """What a killed process leaves: the journal with its write-ahead log, the lock as it was."""
    config = station.config
    copy = config.folder.with_name("copy")
    shutil.copytree(config.folder, copy)
    station.close()
    shutil.rmtree(config.folder)
    copy.rename(config.folder)


def reopened(config, clock):
    """The folder opened again, after a rebuild where the node asks for one; (station, rebuilt)."""
    rebuilt = False
    try:
        station = station_at(config, clock)
    except JournalDamaged:
        rebuild(config)
        rebuilt = True
        station = station_at(config, clock)
    enter_unknown(station)
    return station, rebuilt


def delete_journal(folder, rng):
    (folder / JOURNAL).unlink()


def delete_all_of_it(folder, rng):
    for file in folder.glob(f"{JOURNAL}*"):
        file.unlink()


def empty_journal(folder, rng):
    os.truncate(folder / JOURNAL, 0)


def delete_wal(folder, rng):
    (folder / WAL).unlink()


def cut_journal(folder, rng):
    os.truncate(folder / JOURNAL, max(0, (folder / JOURNAL).stat().st_size - 4096))


def cut_wal(folder, rng):
    os.truncate(folder / WAL, (folder / WAL).stat().st_size // 2)


def flip(name):
    def flipped(folder, rng):
        content = bytearray((folder / name).read_bytes())
        for _ in range(20):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(content)

    return flipped


DAMAGES = {
    "journal deleted": delete_journal,
    "all of it deleted": delete_all_of_it,
    "emptied": empty_journal,
    "log deleted": delete_wal,
    "journal cut": cut_journal,
    "log cut": cut_wal,
    "journal flipped": flip(JOURNAL),
    "log flipped": flip(WAL),
}
MUST_STOP = {"journal deleted", "all of it deleted", "emptied", "log deleted"}


@pytest.mark.parametrize(
    ("damage", "seed"),
    [(name, seed) for name in DAMAGES for seed in range(4 if "flipped" in name else 1)],
)
def test_whatever_becomes_of_the_journal_no_image_goes_and_no_result_changes(
    tmp_path, clock, damage, seed
):
    """Two series are received, one of them is denoised; then the power fails and more happens."""
    config = node_config(tmp_path / "node")
    station = filled(config, clock, [ct(0), ct(1), ct(2)])
    work(station, clock)
    received(station, [ct(index, series=2) for index in range(3)])
    kept, made = images(config), results(station)
    assert (len(kept), len(made)) == (9, 3)
    killed(station)
    DAMAGES[damage](config.folder, random.Random(seed))

    clock.now += 86_400
    station, rebuilt = reopened(config, clock)
    assert rebuilt or damage not in MUST_STOP, "it went on as if nothing were missing"
    assert images(config) == kept
    work(station, clock)
    rows = station.journal.queue()
    assert [row.received for row in rows] == [3, 3]
    assert {row.outputs[0].destinations["pacs"][0] for row in rows} == {3}
    after = results(station)
    assert {uid: after[uid] for uid in made} == made, "the results that may have been sent"
    assert len(after) == 6
    callers = station.journal.database.rows("SELECT DISTINCT caller, sender FROM series")
    assert [tuple(row) for row in callers] == [("SCANNER", "known")]
    assert images(config).items() >= kept.items()
    station.close()


def test_a_whole_journal_is_not_rebuilt_unasked(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    before = images(config)
    with pytest.raises(CddnetError, match="is whole"):
        rebuild(config)
    made = rebuild(config, force=True)
    assert (made.images, made.results, made.aside) == (3, 0, 0)
    (old,) = (config.folder / "aside").glob("journal-*")
    with closing(sqlite3.connect(old / JOURNAL)) as journal:
        assert journal.execute("SELECT count(*) FROM instances").fetchone() == (3,)
    assert images(config) == before


def test_no_rebuild_beside_a_running_node(tmp_path, clock):
    config = node_config(tmp_path / "node")
    station = filled(config, clock)
    for force in (False, True):
        with pytest.raises(CddnetError, match="another node"):
            rebuild(config, force=force)
    station.close()


def test_an_older_journal_is_gone_on_with_and_the_later_images_are_entered(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    shutil.copy(config.folder / JOURNAL, tmp_path / "backup")
    station = filled(config, clock, [ct(index) for index in range(6)])
    work(station, clock)
    made = results(station)
    station.close()
    shutil.copy(tmp_path / "backup", config.folder / JOURNAL)
    kept = images(config)
    clock.now += 5000
    station, rebuilt = reopened(config, clock)
    assert not rebuilt
    assert '"images": 4' in station.told.getvalue()
    work(station, clock)
    assert images(config) == kept
    assert results(station) == made
    assert all(row.state == "sending" for row in station.journal.queue())
    station.close()


def test_results_of_a_series_that_an_older_journal_calls_refused_are_sent_not_deleted(
    tmp_path, clock
):
    config = node_config(tmp_path / "node")
    station = filled(config, clock, [ct(0)])
    clock.now += 100
    (due,) = station.journal.due(1)
    station.journal.refuse(due, "not yet")
    station.close()
    shutil.copy(config.folder / JOURNAL, tmp_path / "backup")
    station = station_at(config, clock)
    station.journal.retry(station.journal.queue()[0].key)
    work(station, clock)
    made = results(station)
    assert len(made) == 1
    station.close()
    shutil.copy(tmp_path / "backup", config.folder / JOURNAL)
    station, _ = reopened(config, clock)
    assert station.deliveries.disposable() == []
    work(station, clock)
    assert results(station) == made
    assert station.journal.queue()[0].state == "sending"
    station.close()


def test_images_that_cannot_be_entered_on_a_full_disk_are_there_at_the_next_start(
    tmp_path, clock, monkeypatch
):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    (config.folder / "inbox" / "by hand").write_bytes(encoded(ct(9)))

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "enter", full)
        with pytest.raises(CddnetError, match="make room"):
            Node(config, denoise=shifted).start()
    station, _ = reopened(config, clock)
    assert station.journal.counts()["instances"] == 4
    station.close()


def test_of_what_the_journal_does_not_know_only_half_written_files_go(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    inbox = next((config.folder / "inbox").iterdir())
    (inbox / ".part-0123456789abcdef.dcm").write_bytes(b"half")
    (inbox / ".0badcafe.part..part-0123456789abcdef.dcm").write_bytes(b"half")
    strange = {
        "inbox/notes.txt": b"no image",
        f"inbox/{inbox.name}/cut.dcm": encoded(ct(7))[:-9000],
        "inbox/deep/er/x": b"\x00" * 2000,
        "outbox/lost.dcm": encoded(ct(8)),
        "outbox/a/result": b"DICM",
        f"inbox/{inbox.name}/again.dcm": encoded(ct(0)),
    }
    for name, content in strange.items():
        (config.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (config.folder / name).write_bytes(content)
    (config.folder / "inbox" / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(config.folder / "inbox" / "pipe")
    good = config.folder / "inbox" / "put here by hand"
    good.write_bytes(encoded(ct(9)))
    station = station_at(config, clock)
    enter_unknown(station)
    (aside,) = (config.folder / "aside").iterdir()
    there = {
        str(path.relative_to(aside)): path.read_bytes()
        for path in aside.rglob("*")
        if path.is_file()
    }
    assert there == strange
    assert (aside / "inbox" / "link").is_symlink()
    assert station.images.aside() == len(strange) + 2
    assert '"set_aside", "count": 8' in station.told.getvalue()
    assert list(config.folder.rglob(".*part*")) == []
    assert good.is_file()
    assert station.journal.file_of(str(ct(9).SOPInstanceUID)) == "inbox/put here by hand"
    assert dict(station.journal.files()).keys() == {
        str(path.relative_to(config.folder)) for path in config.folder.glob("inbox/**/*.dcm")
    } | {"inbox/put here by hand"}
    station.close()
    again = station_at(config, clock)
    assert again.unknown == ()
    assert again.images.aside() == len(strange) + 2
    again.close()


@pytest.mark.parametrize("name", ["thesis.txt", "inbox/thesis.txt", "outbox/thesis.txt"])
def test_a_folder_that_is_no_nodes_is_refused_and_nothing_in_it_changes(tmp_path, clock, name):
    config = node_config(tmp_path / "mine")
    (config.folder / name).parent.mkdir(parents=True)
    (config.folder / name).write_text("years of work")
    (tmp_path / "mine").chmod(0o755)
    for attempt in (
        lambda: Station(config),
        lambda: rebuild(config),
        lambda: rebuild(config, force=True),
    ):
        with pytest.raises(CddnetError, match="not the folder of a node"):
            attempt()
    assert [path.name for path in config.folder.rglob("*") if path.is_file()] == ["thesis.txt"]
    assert config.folder.stat().st_mode & 0o777 == 0o755


def test_another_programs_database_is_no_journal(tmp_path, clock):
    config = node_config(tmp_path / "mine")
    config.folder.mkdir()
    with sqlite3.connect(config.folder / JOURNAL) as other:
        other.execute("CREATE TABLE thesis (chapter)")
    other.close()
    (config.folder / "inbox").mkdir()
    for attempt in (lambda: Station(config), lambda: rebuild(config, force=True)):
        with pytest.raises(CddnetError, match="not the folder of a node"):
            attempt()
    assert not (config.folder / MARKER).exists()


def test_a_new_folder_may_hold_what_the_configuration_names(tmp_path, clock):
    folder = tmp_path / "node"
    folder.mkdir(mode=0o750)
    (folder / "token").write_text("0123456789abcdef")
    (folder / "lost+found").mkdir()
    (folder / ".snapshot").mkdir()
    config = node_config(
        folder, log_file=folder / "log" / "node.log", http={"token_file": folder / "token"}
    )
    for _ in range(2):
        Station(config).close()
    assert (folder / MARKER).is_file()
    assert folder.stat().st_mode & 0o777 == 0o750, "modes are for the owner to change"
    assert '"open_folder"' in (folder / "log" / "node.log").read_text()


def test_a_folder_of_the_version_before_is_taken_over_with_all_its_results(tmp_path, clock):
    config = node_config(tmp_path / "node")
    slices = [ct(index) for index in range(4)]
    made = folder_of_before(config.folder, slices, created=CREATED, made=2)
    assert len(made) == 2
    kept = images(config)
    assert not (config.folder / MARKER).exists()
    station = station_at(config, clock)
    assert enter_unknown(station) == (0, 0, 0, 0)
    assert (config.folder / MARKER).is_file()
    work(station, clock)
    (row,) = station.journal.queue()
    assert (row.state, row.rule, row.received) == ("sending", "all", 4)
    after = results(station)
    assert len(after) == 4
    assert {uid: after[uid] for uid in made} == made
    assert images(config).items() >= kept.items()
    headers = [dcmread(station.images.path(file)) for file, _ in station.journal.files()]
    dates = {header.InstanceCreationDate for header in headers if "SourceImageSequence" in header}
    assert dates == {"20260203"}, "late ones carry the date of the decision"
    station.close()
    assert len(list(config.folder.rglob(DECISION))) == 1
    with closing(sqlite3.connect(config.folder / JOURNAL)) as journal:
        assert journal.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_a_folder_of_the_version_before_that_lost_its_journal_is_rebuilt(tmp_path, clock):
    """Its images say nothing of their sender: a person decides where a rule asks for it."""
    config = node_config(tmp_path / "node", rules=BY_SENDER)
    folder_of_before(config.folder, [ct(0), ct(1)], created=CREATED, made=1)
    kept = images(config)
    (config.folder / JOURNAL).unlink()
    with pytest.raises(JournalDamaged, match="node rebuild"):
        Station(config)
    made = rebuild(config)
    # Nothing says where the result was to go; it is made again as the same object.
    assert (made.images, made.results, made.aside) == (2, 0, 1)
    assert images(config) == kept
    station = station_at(config, clock)
    for _ in range(3):
        work(station, clock)
    (row,) = station.journal.queue()
    assert row.state == "failed"
    assert "of one scanner" in row.error
    assert station.deliveries.disposable() == []
    assert station.journal.retry(row.key)
    work(station, clock)
    (row,) = station.journal.queue()
    assert (row.state, row.rule) == ("sending", "the others")
    station.close()


def test_a_sender_that_is_named_at_the_rebuild_is_taken(tmp_path, clock):
    config = node_config(tmp_path / "node", rules=BY_SENDER)
    folder_of_before(config.folder, [ct(0), ct(1)], created=CREATED)
    (config.folder / JOURNAL).unlink()
    rebuild(config, sender="SCANNER")
    station = station_at(config, clock)
    work(station, clock)
    assert station.journal.queue()[0].rule == "of one scanner"
    station.close()


def test_no_person_is_asked_where_no_rule_needs_the_sender(tmp_path, clock):
    others = {"when": {"kernel": "^none$", "calling_ae": "^X$"}, "do": "ignore", "name": "first"}
    config = node_config(tmp_path / "node", rules=[others, BY_SENDER[1], BY_SENDER[0]])
    folder_of_before(config.folder, [ct(0)], created=CREATED)
    (config.folder / JOURNAL).unlink()
    rebuild(config)
    station = station_at(config, clock)
    work(station, clock)
    assert station.journal.queue()[0].rule == "the others"
    station.close()


def test_a_slice_from_a_known_sender_answers_for_its_series(tmp_path, clock):
    config = node_config(tmp_path / "node", rules=BY_SENDER)
    folder_of_before(config.folder, [ct(0), ct(1)], created=CREATED)
    (config.folder / JOURNAL).unlink()
    rebuild(config)
    station = station_at(config, clock)
    work(station, clock)
    assert station.journal.queue()[0].state == "failed"
    received(station, [ct(2)])
    work(station, clock)
    assert station.journal.queue()[0].rule == "of one scanner"
    station.close()


def test_sender_titles_address_and_time_are_kept_with_each_image(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    for file in config.folder.glob("inbox/*/*.dcm"):
        head = read_head(file)
        assert head.origin == ("SCANNER", "CDDNET", "127.0.0.1", clock.now)
        assert dcmread(file).file_meta.SendingApplicationEntityTitle == "SCANNER"
        assert file.read_bytes()[head.length :] == encode(dcmread(file), False, True)


def test_an_upload_cannot_say_who_sent_it(tmp_path, clock):
    """A file whose head names a sender, as one of the node's own folder does."""
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    file = next(config.folder.glob("inbox/*/*.dcm"))
    station = station_at(node_config(tmp_path / "other"), clock)
    Receiver(station, lambda event: (0, None)).take_file(file)
    (copy,) = station.config.folder.glob("inbox/*/*.dcm")
    assert read_head(copy).origin[:3] == ("UPLOAD", "CDDNET", "")
    station.close()


def test_a_run_that_was_killed_lets_the_next_one_check_everything(tmp_path, clock):
    """An index that lacks a row passes the quick check, not the one after a kill."""
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    assert (config.folder / LOCK).read_bytes() == b""
    hide, show = "DELETE FROM sqlite_master WHERE name='series_state'", "series_state"
    with closing(sqlite3.connect(config.folder / JOURNAL)) as journal, journal:
        journal.execute("PRAGMA writable_schema=ON")
        index = journal.execute("SELECT * FROM sqlite_master WHERE name=?", (show,)).fetchone()
        journal.execute(hide)
    with closing(sqlite3.connect(config.folder / JOURNAL)) as journal, journal:
        journal.execute("UPDATE series SET state='ignored'")
        journal.execute("PRAGMA writable_schema=ON")
        journal.execute("INSERT INTO sqlite_master VALUES (?,?,?,?,?)", index)
    with closing(sqlite3.connect(config.folder / JOURNAL)) as journal:
        kinds = ("quick", "integrity")
        quick, whole = (journal.execute(f"PRAGMA {kind}_check").fetchone()[0] for kind in kinds)
    assert quick == "ok" != whole
    (config.folder / LOCK).write_bytes(b"open")
    (config.folder / WAL).touch()
    with pytest.raises(JournalDamaged):
        Station(config)


@pytest.mark.parametrize("place", ["recover", "files"])
def test_a_start_that_fails_on_a_full_disk_is_no_damage_to_the_journal(
    tmp_path, clock, monkeypatch, place
):
    """After a kill, and twice: the third start, with room, goes on where the first run was."""
    config = node_config(tmp_path / "node")
    killed(filled(config, clock))

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(Journal, place, full)
            with pytest.raises(CddnetError, match="make room"):
                Station(config)
    station, rebuilt = reopened(config, clock)
    assert not rebuilt
    assert station.journal.counts()["instances"] == 3
    station.close()


@pytest.mark.parametrize("fault", ["database or disk is full", "unable to open database file"])
def test_what_stands_around_the_journal_is_not_taken_for_its_damage(
    tmp_path, clock, monkeypatch, fault
):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()

    def failing(*_):
        raise sqlite3.OperationalError(fault)

    monkeypatch.setattr(Database, "_prepare", failing)
    with pytest.raises(CddnetError, match="cannot be opened") as caught:
        Station(config)
    assert not isinstance(caught.value, JournalDamaged)


def test_the_command_rebuilds_and_says_what_came_of_it(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    (config.folder / JOURNAL).unlink()
    (config.folder / "inbox" / "notes.txt").write_text("no image")
    file = tmp_path / "node.yaml"
    file.write_text(config.model_dump_json())
    outcome = CliRunner().invoke(cli.app, ["node", "rebuild", "--config", str(file)])
    assert outcome.exit_code == 0, outcome.output
    assert "3 images and 0 results" in outcome.output
    assert "1 files set aside" in outcome.output
    station = station_at(config, clock)
    assert station.journal.counts()["instances"] == 3
    station.close()


def test_a_failed_start_lets_go_of_the_folder(tmp_path, clock):
    config = node_config(tmp_path / "node")
    filled(config, clock).close()
    (config.folder / JOURNAL).rename(tmp_path / "kept")
    for _ in range(2):
        with pytest.raises(JournalDamaged):
            Station(config, Surroundings())
    shutil.move(tmp_path / "kept", config.folder / JOURNAL)
    with suppress(JournalDamaged):
        Station(config).close()
