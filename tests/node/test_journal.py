"""The journal: whatever the moment of a crash, what was accepted ends at every destination.

Above 300 lines: each moment of a crash is a case of its own.
"""

import shutil
import sqlite3
import threading
from itertools import count

import pytest
from small_node import Clock, quick

from cddnet.errors import CddnetError
from cddnet.node.settings.parts import Retries
from cddnet.node.store.clock import SteadyClock
from cddnet.node.store.database import Database
from cddnet.node.store.deliveries import Deliveries, backoff_s
from cddnet.node.store.images import decision_file
from cddnet.node.store.journal import LONGEST_WAIT_S, Journal
from cddnet.node.store.records import Instance, Made
from cddnet.node.watch import health

SPEC = {"model": "m@1", "strength": 0.8, "destinations": ["a", "b"]}
QUIET_S = 60.0
RETRIES = Retries(first_s=10, longest_s=35, attempts=4)


def opened(folder, clock):
    journal = quick(Journal(folder / "journal.sqlite", clock=clock))
    return journal, Deliveries(journal.database, journal.name)


def instance(number, series="1.2.3", **changes):
    told = {
        "sop_uid": f"{series}.{number}",
        "series_uid": series,
        "sop_class": "1.2",
        "file": f"inbox/{series}/{number}",
        "size": 10,
        "sha256": str(number),
        "caller": "SCANNER",
    }
    return Instance(**(told | changes))


def made(source):
    return Made(f"9.{source}", source, "recipe", "1.2", f"outbox/{source}", 5, "x")


def make(journal, job, sources):
    """What a worker does: only what is missing, one object after the other."""
    there = journal.made(job.output_key, "recipe")
    for source in sources:
        if source not in there:
            journal.add(job, [made(source)], done=1, total=len(sources))
            yield
    journal.finish(job, "ready")
    yield


def life(journal, deliveries, clock, *, quiet=True):
    """All that a node does with what it has, a step at a time, until nothing is left to do."""
    journal.recover()
    yield
    if quiet:
        clock.now += QUIET_S
    for due in journal.due(QUIET_S):
        journal.decide(due, "rule", [SPEC])
        yield
    while (job := journal.take()) is not None:
        yield
        uids = [file.replace("inbox/", "").replace("/", ".") for _, file in job.sources]
        yield from make(journal, job, uids)
    for name in ("a", "b"):
        while parcels := deliveries.due(name, 2):
            yield "sent", name, [parcel.sop_uid for parcel in parcels]
            deliveries.delivered(name, [item.sop_uid for item in parcels], commitment=name == "b")
            yield
    while parcels := deliveries.to_commit("b", 10):
        deliveries.asked("b", parcels, "7.7", 100)
        yield
        deliveries.committed("7.7", [parcel.sop_uid for parcel in parcels])
        yield
        clock.now += 101


def run(journal, deliveries, clock, steps=None, got=None):
    """Live for some steps, or to the end; returns how many there were."""
    done = 0
    for event in life(journal, deliveries, clock):
        if event is not None and got is not None:
            got.setdefault(event[1], []).extend(event[2])
        done += 1
        if steps is not None and done > steps:
            break
    return done


def crashed(folder, target, clock):
    """The folder as a power cut leaves it: copied while the journal is open."""
    shutil.copytree(folder, target)
    return opened(target, clock)


def test_a_crash_between_any_two_steps_changes_nothing_in_the_end(tmp_path):
    """For every step k: die after k, come back, live on; each destination gets each object."""
    clock = Clock()
    whole = run(*_filled(tmp_path / "whole", clock), clock)
    assert whole > 15
    for step in range(whole):
        clock = Clock()
        folder = tmp_path / f"{step}"
        journal, deliveries = _filled(folder, clock)
        got = {}
        run(journal, deliveries, clock, step, got)
        again, again_deliveries = crashed(folder, tmp_path / f"{step}-later", clock)
        # What was asked about and not answered is asked again after a while.
        clock.now += 200
        run(again, again_deliveries, clock, got=got)
        (row,) = again.queue()
        assert row.state == "done", f"after step {step}"
        assert row.outputs[0].destinations == {"a": (0, 3, 0), "b": (0, 3, 0)}
        for name in ("a", "b"):
            assert set(got[name]) == {f"9.1.2.3.{number}" for number in (1, 2, 3)}
        journal.close()
        again.close()


def _filled(folder, clock):
    journal, deliveries = opened(folder, clock)
    for number in (1, 2, 3):
        journal.accept(instance(number))
    return journal, deliveries


def test_what_was_accepted_survives_a_power_cut(tmp_path):
    clock = Clock()
    journal, _ = opened(tmp_path / "a", clock)
    for number in range(5):
        journal.accept(instance(number))
        later, _ = crashed(tmp_path / "a", tmp_path / f"b{number}", clock)
        assert later.counts()["instances"] == number + 1
        assert len(later.files()) == number + 1
        later.close()


def test_many_threads_share_a_flush_and_none_is_lost(tmp_path):
    """Group commit: every accept returns after its own row is readable by another connection."""
    journal, _ = opened(tmp_path, Clock())
    numbers, missing = count(), []

    def accept():
        for _ in range(10):
            item = instance(next(numbers))
            journal.accept(item)
            with sqlite3.connect(tmp_path / "journal.sqlite") as other:
                found = other.execute(
                    "SELECT 1 FROM instances WHERE sop_uid=?", (item.sop_uid,)
                ).fetchall()
            other.close()
            if not found:
                missing.append(item)

    threads = [threading.Thread(target=accept) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == []
    assert journal.counts()["instances"] == 40


def test_a_commit_is_on_the_disk_before_it_returns(tmp_path):
    """SQLite's own names for it: write-ahead log, synchronous FULL (2), files for the owner."""
    database = Database(tmp_path / "j")
    assert database.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert database.number("PRAGMA synchronous") == 2
    assert (tmp_path / "j").stat().st_mode & 0o077 == 0


def test_a_failing_write_fails_alone_in_what_it_tells(tmp_path):
    database = Database(tmp_path / "j")

    def broken(connection):
        connection.execute("INSERT INTO nothing VALUES (1)")

    with pytest.raises(sqlite3.Error):
        database.together(broken)
    database.together(
        lambda connection: connection.execute(
            "INSERT INTO audit (at, what, series, caller, weights, count) "
            "VALUES (0, 'x', '', '', '', 0)"
        )
    )
    assert database.number("SELECT count(*) FROM audit") == 1


def test_one_write_that_cannot_be_made_fails_alone(tmp_path):
    """Of writes that share a transaction, all but the poisoned one are kept and confirmed."""
    journal, _ = opened(tmp_path, Clock())
    numbers, outcomes, gate = count(), {}, threading.Barrier(9)

    def accept(number):
        gate.wait()
        poison = {"expected": 1 << 70} if number == 4 else {}
        try:
            outcomes[number] = journal.accept(instance(number, **poison))
        except OverflowError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=accept, args=(next(numbers),)) for _ in range(8)]
    with journal.database.unchanged():
        # While this holds the journal, all of them come to wait for one transaction.
        for thread in threads:
            thread.start()
        gate.wait()
        while len(journal.database._waiting) < 8:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert isinstance(outcomes.pop(4), OverflowError)
    assert len(outcomes) == 7
    assert not any(isinstance(outcome, Exception) for outcome in outcomes.values())
    assert journal.counts()["instances"] == 7


def test_a_commit_that_fails_leaves_the_journal_usable(tmp_path):
    """SQLite's own limit on pages stands for a full disk."""
    database = Database(tmp_path / "j")
    line = (
        "INSERT INTO audit (at, what, series, caller, weights, count) "
        "VALUES (0, 'x', '', '', hex(zeroblob(9000)), 0)"
    )
    database.rows(f"PRAGMA max_page_count={database.number('PRAGMA page_count') + 2}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.together(lambda connection: connection.execute(line))
    database.rows("PRAGMA max_page_count=1000000")
    database.together(lambda connection: connection.execute(line))
    assert database.number("SELECT count(*) FROM audit") == 1


def test_a_series_is_complete_when_quiet_or_counted_never_before(tmp_path):
    clock = Clock()
    journal, _ = opened(tmp_path, clock)
    journal.accept(instance(1))
    journal.accept(instance(1, "4.5", expected=2))
    clock.now += QUIET_S - 1
    assert journal.due(QUIET_S) == []
    journal.accept(instance(2))
    journal.accept(instance(2, "4.5", expected=2))
    assert [due.series_uid for due in journal.due(QUIET_S)] == ["4.5"]
    clock.now += QUIET_S
    assert {due.series_uid for due in journal.due(QUIET_S)} == {"4.5", "1.2.3"}
    clock.now -= 10 * QUIET_S
    assert len(journal.due(QUIET_S)) == 2, "a clock that was put back holds nothing up"


@pytest.mark.parametrize("back_s", [120, 86_400 * 365])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_put_back_lets_nothing_wait_longer_than_the_longest_wait(
    tmp_path, back_s, restarted
):
    """A series, an output and an object wait when it happens; each is due within its own bound."""
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    for _ in zip(range(9), life(journal, deliveries, clock), strict=False):
        pass
    uid = deliveries.due("a", 1)[0].sop_uid
    deliveries.failed("a", [uid], "no", RETRIES)
    for series in ("4.5", "6.7"):
        journal.accept(instance(1, series))
    clock.now += QUIET_S
    four, six = sorted(journal.due(QUIET_S))
    journal.decide(four, "rule", [SPEC])
    journal.finish(journal.take(), "waiting", "no", wait_s=LONGEST_WAIT_S)
    journal.begin(six)
    journal.postpone(six, "no", LONGEST_WAIT_S)
    journal.accept(instance(1, "8.9"))
    clock.now -= back_s
    if restarted:
        journal.close()
        journal, deliveries = opened(tmp_path, clock)
        journal.recover()
    longest_s = RETRIES.longest_s
    assert passed(clock, lambda: uid in sop_uids(deliveries.due("a", 9, longest_s))) <= longest_s
    # In one run the clock is steady (below); one that is not costs another quiet time at most.
    quiet_s = QUIET_S if restarted else 2 * QUIET_S
    assert passed(clock, lambda: "8.9" in series_uids(journal.due(QUIET_S))) <= quiet_s
    assert (
        passed(clock, lambda: "6.7" in series_uids(journal.due(QUIET_S)))
        <= LONGEST_WAIT_S + (quiet_s - QUIET_S) * 2
    )
    assert passed(clock, lambda: journal.take() is not None) <= LONGEST_WAIT_S
    journal.close()


def passed(clock, condition):
    """Seconds until it holds, looked at all the time."""
    begun = clock.now
    while not condition():
        clock.now += 1
        assert clock.now < begun + 10_000
    return clock.now - begun


def sop_uids(parcels):
    return {parcel.sop_uid for parcel in parcels}


def series_uids(dues):
    return {due.series_uid for due in dues}


def test_a_steady_clock_follows_no_change_of_the_systems():
    wall, ticks = Clock(), Clock(50)
    steady = SteadyClock(wall, ticks)
    assert steady() == wall.now
    seen = []
    for change in (0, -120, 3600, -1e9):
        wall.now += change
        ticks.now += 10
        seen.append(steady())
    assert seen == [1.7e9 + 10 * n for n in (1, 2, 3, 4)]


def test_the_oldest_unfinished_is_what_anybody_waits_for(tmp_path):
    """From its last slice until its last destination has it; then the next one."""
    clock = Clock()
    journal, deliveries = opened(tmp_path, clock)
    assert journal.oldest_unfinished_at() is None
    for number in (1, 2, 3):
        journal.accept(instance(number))
    began = clock.now
    ages = {journal.oldest_unfinished_at() for _ in life(journal, deliveries, clock)}
    assert ages == {began, None}
    assert journal.oldest_unfinished_at() is None
    journal.accept(instance(1, "4.5"))
    assert journal.oldest_unfinished_at() == clock.now
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    journal.postpone(due, "no", None)
    assert journal.oldest_unfinished_at() == clock.now - QUIET_S, "a person is waited for"


def test_health_answers_while_the_journal_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE_S", 0.05)
    clock = Clock()
    journal, _ = opened(tmp_path, clock)
    journal.accept(instance(1))
    view = health.Health(journal, lambda: 3, clock).view
    clock.now += 5
    assert view() == {"status": "ok", "oldest_unfinished_s": 5.0, "set_aside": 3}
    answers, held, over = [], threading.Event(), threading.Event()

    def write():
        with journal.database.transaction():
            held.set()
            over.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    held.wait(30)
    clock.now += 5
    answers.append(view())
    over.set()
    writer.join()
    assert answers == [{"status": "ok", "oldest_unfinished_s": 10.0, "set_aside": 3}]


def test_a_slice_between_looking_and_deciding_wins(tmp_path):
    clock = Clock()
    journal, _ = opened(tmp_path, clock)
    journal.accept(instance(1))
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    journal.accept(instance(2))
    assert not journal.decide(due, "rule", [SPEC])
    assert not journal.refuse(due, "unfit")
    assert journal.queue()[0].state == "receiving"
    assert journal.queue()[0].outputs == ()


def test_late_slices_add_objects_and_leave_the_decision_and_the_date(tmp_path):
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    run(journal, deliveries, clock)
    files = set(journal.files())
    clock.now += 5000
    assert journal.accept(instance(4)), "it was closed, and is open again"
    assert journal.queue()[0].state == "receiving"
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    assert due.frozen
    assert journal.decide(due, "another rule", [])
    (row,) = journal.queue()
    assert (row.rule, len(row.outputs)) == ("rule", 1)
    job = journal.take()
    assert job.created == Clock().now + QUIET_S
    assert len(list(make(journal, job, [f"1.2.3.{number}" for number in (1, 2, 3, 4)]))) == 2
    assert set(journal.files()) - files == {("inbox/1.2.3/4", 10), ("outbox/1.2.3.4", 5)}


def test_a_slice_that_comes_during_the_work_makes_it_go_on_afterwards(tmp_path):
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    journal.decide(due, "rule", [SPEC])
    job = journal.take()
    journal.accept(instance(4))
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    assert journal.decide(due, None, [])
    list(make(journal, job, [f"1.2.3.{number}" for number in (1, 2, 3)]))
    run(journal, deliveries, clock)
    (row,) = journal.queue()
    assert row.state == "done"
    assert row.outputs[0].destinations["a"] == (0, 4, 0)


def test_failures_wait_longer_and_longer_and_end_in_the_failed_box(tmp_path):
    assert [backoff_s(RETRIES, n) for n in (1, 2, 3, 4, 10_000)] == [10, 20, 35, 35, 35]
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    for _ in zip(range(9), life(journal, deliveries, clock), strict=False):
        pass
    uid = deliveries.due("a", 1)[0].sop_uid
    for wait_s in (10, 20, 35):
        deliveries.failed("a", [uid], "no", RETRIES)
        clock.now += wait_s - 0.5
        assert uid not in [item.sop_uid for item in deliveries.due("a", 9)]
        clock.now += 0.5
        assert uid in [item.sop_uid for item in deliveries.due("a", 9)]
    deliveries.failed("a", [uid], "no", RETRIES)
    clock.now += 10_000
    assert uid not in [item.sop_uid for item in deliveries.due("a", 9)]
    (row,) = journal.queue()
    assert row.state == "failed"
    assert row.outputs[0].destinations["a"][2] == 1
    assert not journal.retry("another key")
    assert journal.retry(row.key)
    assert uid in [item.sop_uid for item in deliveries.due("a", 9)]
    assert not journal.retry(row.key), "nothing failed any more"


def test_only_what_was_asked_about_is_committed(tmp_path):
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    for event in life(journal, deliveries, clock):
        if event is None and deliveries.to_commit("b", 9):
            break
    parcels = deliveries.to_commit("b", 9)
    deliveries.asked("b", parcels[:1], "7.7", 100)
    uids = [parcel.sop_uid for parcel in parcels]
    assert deliveries.committed("another", uids) == 0
    assert deliveries.committed("7.7", ["unknown", *uids]) == 1
    assert deliveries.asked_about("7.7") == frozenset()
    assert deliveries.destination_of("8.8") == ""


def test_nothing_goes_before_everything_arrived(tmp_path):
    """Purging is refused at every step but the last one, and then forgets no name."""
    clock = Clock()
    journal, deliveries = _filled(tmp_path, clock)
    gone = []
    for _ in life(journal, deliveries, clock):
        if journal.queue()[0].state != "done":
            assert deliveries.disposable() == []
            assert deliveries.purge("1.2.3", lambda *item: gone.append(item)) == 0
    assert gone == []
    assert [uid for uid, _ in deliveries.disposable()] == ["1.2.3"]
    files = journal.files()
    assert deliveries.purge("1.2.3", lambda *item: gone.append(item)) == 6
    assert sorted(gone) == sorted([*files, (decision_file("1.2.3"), 0)])
    assert journal.files() == []
    (row,) = journal.queue()
    assert (row.state, row.received) == ("done", 3)
    assert journal.arrival("1.2.3.1", "1") == "new", "what comes again is taken again"
    journal.accept(instance(1))
    assert run(journal, deliveries, clock)
    assert journal.queue()[0].outputs[0].destinations["a"] == (0, 1, 0)


def test_the_same_instance_is_told_from_another_of_its_name(tmp_path):
    journal, _ = opened(tmp_path, Clock())
    assert journal.arrival("1.2.3.1", "1") == "new"
    journal.accept(instance(1))
    assert journal.arrival("1.2.3.1", "1") == "again"
    assert journal.arrival("1.2.3.1", "2") == "different"


def test_people_see_names_that_are_no_uids(tmp_path):
    journal, _ = _filled(tmp_path, Clock())
    journal.note("received", "1.2.3", caller="SCANNER", weights="ab")
    shown = repr((journal.queue(), journal.audit(), journal.counts()))
    assert "1.2.3" not in shown
    assert journal.audit()[0]["count"] == 3
    assert journal.audit()[0]["series"] == journal.queue()[0].key


def test_a_damaged_or_newer_journal_is_not_touched(tmp_path):
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(b"no database" * 500)
    with pytest.raises(CddnetError, match="cannot be used"):
        Database(bad)
    assert bad.read_bytes() == b"no database" * 500
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CddnetError, match="version 99"):
        Database(newer)


def test_the_queue_is_read_as_of_one_moment(tmp_path, monkeypatch):
    """A series that is decided while the queue is read is shown before or after, not in between."""
    clock = Clock()
    journal, _ = _filled(tmp_path, clock)
    clock.now += QUIET_S
    (due,) = journal.due(QUIET_S)
    writers, rows = [], Database.rows

    def interrupted(database, sql, *values):
        found = rows(database, sql, *values)
        if "FROM outputs" in sql and not writers:
            writers.append(threading.Thread(target=journal.decide, args=(due, "rule", [SPEC])))
            writers[0].start()
            writers[0].join(0.5)
        return found

    monkeypatch.setattr(Database, "rows", interrupted)
    (before,) = journal.queue()
    writers[0].join()
    (after,) = journal.queue()
    assert (before.outputs, len(after.outputs)) == ((), 1)
    assert (before.state, after.state) == ("receiving", "complete")
    journal.close()
