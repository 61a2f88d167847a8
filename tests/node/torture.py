"""A node that is killed again and again while callers send and the archive comes and goes.

Senders, node and archive are processes of their own. Kills are bound to how far the work is, some
fall into the start after a kill, so that a seed means the same on a slow machine. The archive notes
every object before it says that it has it, and is itself killed.

With every so-manyth kill one of five things happens besides: the journal is deleted, its write-
ahead log is deleted, its last 4 kB are cut, the disk is full for a while, or the clock is put
back. Where the node then stops for damage, `cddnet node rebuild` is run, as a person would; a
series that it set aside because it had been under way at three kills is retried.

Above 300 lines: senders, node, archive and count are one experiment.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import config as reading
from pydicom import uid
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from small_node import SHIFT_HU, Archive, archive_at, ct, free_port, node_config, shifted

SIDE = 64
# Studies are told apart in the header, so that nothing but the UIDs says which series is which.
SHARE_OF_KILLS_AT_START = 0.25
AGAIN, ABORT = 0.05, 0.01
UP_S, DOWN_S = (1.0, 5.0), (0.5, 2.5)
DAMAGED, NO_START = 3, 4
BACK_S = 120
CUT_BYTES = 4096
REBUILD = "from cddnet.cli import main; main()"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done."""

    seed: int
    instances: int
    series: int
    kills: int
    senders: int = 4
    real: bool = False  # the shipped network instead of a shift by a known value
    commitment: bool = False
    trouble_every: int = 0  # kills; 0: kills alone
    full_s: float = 30.0  # how long the disk is full
    tmpfs_mb: int = 0  # a real disk of this size, for root alone; 0: full by what stands for it
    longest_s: float = 900.0


@dataclass(kw_only=True)
class Seen:
    """What came of it; `wrong` is empty where nothing was lost, doubled, changed or stuck."""

    accepted: int = 0
    objects: int = 0
    stored: int = 0
    sent_again: int = 0
    kills: int = 0
    troubles: Counter = field(default_factory=Counter)
    rebuilds: int = 0
    starts_on_a_full_disk: int = 0
    retried: int = 0
    archive_kills: int = 0
    archive_down: float = 0.0
    seconds: float = 0.0
    events: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)

    def __str__(self):
        return (
            f"{self.accepted} accepted, {self.objects} objects in the archive, stored "
            f"{self.stored} times, sent again by callers {self.sent_again}; node killed "
            f"{self.kills} times, besides {dict(self.troubles)}, journal rebuilt {self.rebuilds} "
            f"times, {self.starts_on_a_full_disk} starts failed on a full disk, {self.retried} "
            f"series retried; archive killed {self.archive_kills} times and down "
            f"{self.archive_down:.0%} of the time; {self.seconds:.0f} s; wrong: {self.wrong}"
        )


def places(plan):
    """(series, slice) of every instance, spread over series of unequal length."""
    return [(index % plan.series + 1, index // plan.series) for index in range(plan.instances)]


def stored_pixels(plan, series, index):
    """(H, W) int16; other values in every image."""
    rng = np.random.default_rng([plan.seed, series, index])
    return rng.integers(0, 2000, (SIDE, SIDE), np.int16)


def image(plan, series, index):
    """The instance of a place."""
    pixels = stored_pixels(plan, series, index).tobytes()
    return ct(index, series, Rows=SIDE, Columns=SIDE, PixelData=pixels)


def run_sender(plan, folder, config, number):
    """Send a quarter of the series, interleaved, until each instance was accepted."""
    rng = random.Random(f"{plan.seed} sender {number}")
    own = [place for place in places(plan) if place[0] % plan.senders == number]
    # Slices of a few series come mixed, as from several scanners behind one gateway.
    own.sort(key=lambda place: place[1] + rng.uniform(0, plan.instances / plan.series / 3))
    own += rng.sample(own, int(AGAIN * len(own)))
    entity = AE(f"SENDER{number}")
    entity.add_requested_context(CTImageStorage, [uid.ExplicitVRLittleEndian])
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.connection_timeout = 5
    with Lines(folder / f"accepted{number}") as accepted:
        while own:
            link = entity.associate("127.0.0.1", config.dicom_port, ae_title="CDDNET")
            if not link.is_established:
                time.sleep(0.1)
                continue
            while own and link.is_established:
                data = image(plan, *own[-1])
                status = None
                with suppress(RuntimeError):
                    status = link.send_c_store(data)
                if status is None or getattr(status, "Status", None) != 0:
                    time.sleep(0.05)
                    break
                accepted.add(str(data.SOPInstanceUID))
                own.pop()
                if rng.random() < ABORT:
                    link.abort()
            if link.is_established:
                link.release()


def run_archive(folder, port):
    """Note what comes, then say that it is stored."""
    reading.settings.reading_validation_mode = reading.IGNORE
    lines = Lines(folder / "archive").__enter__()

    class Noting(Archive):
        def _store(self, event):
            data = event.dataset
            source = data.SourceImageSequence[0].ReferencedSOPInstanceUID
            whole = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
            pixels = hashlib.sha256(data.PixelData).hexdigest()
            lines.add(f"{data.SOPInstanceUID} {source} {pixels} {whole}")
            return 0x0000

        def _commit(self, event):
            self.objects = dict.fromkeys(line.split()[0] for line in lines.read())
            return super()._commit(event)

    with Noting(port):
        signal.pause()


def run_node(config, *, real):
    """The node as `cddnet node` runs it, with the quick denoiser unless `real`."""
    from cddnet.errors import CddnetError
    from cddnet.node.service import Node, serve
    from cddnet.node.store.database import JournalDamaged

    try:
        serve(Node(config, **({} if real else {"denoise": shifted})))
    except JournalDamaged as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(DAMAGED)
    except CddnetError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NO_START)


class Disk:
    """The disk of the node's folder, which can be full for a while."""

    def __init__(self, folder, trouble, megabytes):
        self.folder, self.trouble, self.real = folder, trouble, megabytes > 0
        self.full_until, self.was_full = None, False
        folder.mkdir(mode=0o700)
        if self.real:
            size = f"size={megabytes}m,mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)

    def fill(self, seconds):
        self.full_until, self.was_full = time.monotonic() + seconds, True
        (self.trouble / "full").touch()
        if self.real:
            (self.trouble / "full").unlink()
            with suppress(OSError), (self.folder / ".filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1 << 16))

    def free(self):
        self.full_until = None
        (self.trouble / "full").unlink(missing_ok=True)
        (self.folder / ".filler").unlink(missing_ok=True)

    @property
    def full(self):
        return self.full_until is not None

    def unmount(self):
        if self.real:
            subprocess.run(["umount", "-l", self.folder], check=False)


class Troubles:
    """What happens besides a kill, in an order of the seed; the node is down while it does."""

    def __init__(self, plan, config, folder, disk):
        self.plan, self.folder, self.disk, self.node = plan, folder, disk, config.folder
        self.log, self.starts = config.log_file, 0
        self.kinds = list(self.ACTS)
        random.Random(f"{plan.seed} troubles").shuffle(self.kinds)
        self.seen, self.back_s, self.damaged = Counter(), 0, False

    def after(self, kills):
        if self.started() > self.starts:
            # It took the journal as it is: from now on it has no cause to stop.
            self.damaged = False
        every = self.plan.trouble_every
        if not every or kills % every:
            return
        kind = self.kinds[sum(self.seen.values()) % len(self.kinds)]
        self.disk.free()
        self.ACTS[kind](self)
        self.seen[kind] += 1
        self.starts = self.started()

    def started(self):
        """How often the node came up so far, by its log."""
        return self.log.read_text().count('"event": "started"') if self.log.exists() else 0

    def journal_deleted(self):
        (self.node / "journal.sqlite").unlink(missing_ok=True)
        self.damaged = True

    def log_deleted(self):
        (self.node / "journal.sqlite-wal").unlink(missing_ok=True)
        self.damaged = True

    def journal_cut(self):
        file = self.node / "journal.sqlite"
        if file.exists():
            os.truncate(file, max(0, file.stat().st_size - CUT_BYTES))
        self.damaged = True

    def disk_full(self):
        self.disk.fill(self.plan.full_s)

    def clock_back(self):
        self.back_s += BACK_S
        (self.folder / "clock.part").write_text(str(self.back_s))
        (self.folder / "clock.part").replace(self.folder / "clock")

    ACTS = {  # noqa: RUF012
        "journal deleted": journal_deleted,
        "its log deleted": log_deleted,
        "its end cut": journal_cut,
        "disk full": disk_full,
        "clock put back": clock_back,
    }


class Lines:
    """A file that several processes append whole lines to, and that a kill leaves whole."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    def add(self, line):
        os.write(self.handle, (line + "\n").encode())

    def read(self):
        return self.path.read_text().splitlines() if self.path.exists() else []


class Torture:
    """One run in an empty folder."""

    def __init__(self, plan, folder):
        self.plan, self.folder, self.seen = plan, folder, Seen()
        archive = archive_at(free_port(), commitment=plan.commitment, timeout_s=2)
        self.config = node_config(
            folder / "node",
            {"pacs": archive},
            allowed_callers=[f"SENDER{number}" for number in range(plan.senders)],
            quiet_s=0.5,
            timeout_s=20,
            log_file=folder / "log",
            device="cpu",
            # Its images are random numbers, which the fitness check refuses.
            rules=[
                {"name": "all", "do": [{"strength": 1, "force": True, "destinations": ["pacs"]}]}
            ],
        )
        (folder / "config").write_text(self.config.model_dump_json())
        (folder / "plan").write_text(json.dumps(vars(plan)))
        (folder / "trouble").mkdir()
        self.down_s, self.running = 0.0, []
        self.disk = Disk(self.config.folder, folder / "trouble", plan.tmpfs_mb)
        self.troubles = Troubles(plan, self.config, folder / "trouble", self.disk)

    def start(self, *role):
        command = [sys.executable, __file__, str(self.folder), *map(str, role)]
        environment = dict(os.environ)
        if role[0] == "node":
            here = str(Path(__file__).parent / "trouble")
            path = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
            trouble = str(self.folder / "trouble")
            node = str(self.config.folder)
            environment |= {"PYTHONPATH": path, "TROUBLE": trouble, "NODE": node}
        with (self.folder / f"output-{role[0]}").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self.running.append(process)
        return process

    def kill(self, process):
        process.kill()
        process.wait()
        self.running.remove(process)

    def kill_node(self, node):
        """Kill it, let happen what happens besides, start it again."""
        self.kill(node)
        self.seen.kills += 1
        self.troubles.after(self.seen.kills)
        return self.start("node")

    def started_again(self, node):
        """A node that ended by itself, as a person or the system puts it right; None: wrongly."""
        self.running.remove(node)
        if node.returncode == NO_START and self.disk.was_full:
            # The service manager tries again and again.
            self.seen.starts_on_a_full_disk += 1
            time.sleep(0.5)
            return self.start("node")
        if node.returncode == DAMAGED and self.troubles.damaged:
            command = ["node", "rebuild", "--config", str(self.folder / "config")]
            with (self.folder / "output-rebuild").open("ab") as output:
                rebuilt = subprocess.run(
                    [sys.executable, "-c", REBUILD, *command],
                    stdout=output,
                    stderr=output,
                    check=False,
                )
            if rebuilt.returncode == 0:
                self.troubles.damaged = False
                self.seen.rebuilds += 1
                return self.start("node")
        self.seen.wrong.append(f"the node ended by itself: {node.returncode}")
        return None

    def accepted(self):
        numbers = range(self.plan.senders)
        return [line for n in numbers for line in Lines(self.folder / f"accepted{n}").read()]

    def stored(self):
        return Lines(self.folder / "archive").read()

    def run(self):
        """Everything, to the end; returns what was seen."""
        started = time.monotonic()
        try:
            try:
                self._run(started)
            finally:
                for process in list(self.running):
                    self.kill(process)
            self.seen.seconds = time.monotonic() - started
            self.seen.troubles = self.troubles.seen
            self._examine()
        finally:
            self.disk.unmount()
        return self.seen

    def _run(self, started):
        plan, seen = self.plan, self.seen
        rng = random.Random(f"{plan.seed} kills")
        moments = sorted(rng.random() for _ in range(plan.kills))
        node = self.start("node")
        archive, turn_at = self.start("archive"), started + rng.uniform(*UP_S)
        senders = [self.start("sender", number) for number in range(plan.senders)]
        looked_at, look_at = node, started
        while True:
            now = time.monotonic()
            if node is not looked_at:
                # By then it has checked its journal, or has stopped for damage.
                looked_at, look_at = node, now + 3
            if now >= look_at and all(item.poll() is not None for item in senders):
                look_at = now + 1
                if node.poll() is None:
                    self._retry_set_aside()
            if now - started > plan.longest_s:
                seen.wrong.append(f"not done after {plan.longest_s:g} s")
                return
            if self.disk.full and now > self.disk.full_until:
                self.disk.free()
            if node.poll() is not None:
                node = self.started_again(node)
                if node is None:
                    return
            accepted, stored = len(set(self.accepted())), self._arrived()
            if moments and (accepted + stored) / (2 * plan.instances) >= moments[0]:
                moments.pop(0)
                time.sleep(rng.uniform(0, 0.05))
                node = self.kill_node(node)
                if moments and rng.random() < SHARE_OF_KILLS_AT_START:
                    moments.pop(0)
                    time.sleep(rng.uniform(0.2, 2.0))
                    node = self.kill_node(node)
            if now >= turn_at:
                if archive:
                    self.kill(archive)
                    archive, down_from = None, now
                    seen.archive_kills += 1
                    turn_at = now + rng.uniform(*DOWN_S)
                else:
                    archive = self.start("archive")
                    self._until_it_listens()
                    self.down_s += time.monotonic() - down_from
                    turn_at = time.monotonic() + rng.uniform(*UP_S)
            over = all(item.poll() is not None for item in senders) and stored == plan.instances
            if over and not moments and not self.disk.full:
                break
            time.sleep(0.05)
        seen.archive_down = self.down_s / (time.monotonic() - started)
        if archive is None:
            archive = self.start("archive")
        seen.wrong += [f"a sender ended with {i.returncode}" for i in senders if i.returncode]
        while node is not None:
            # What the last kill did besides may show only now.
            time.sleep(3)
            if node.poll() is None:
                self._end(node)
                return
            node = self.started_again(node)

    def _retry_set_aside(self):
        """As a person does with a series that was under way at three kills. Returns all rows."""
        from cddnet.node.store.journal import DIED, Journal

        journal = Journal(self.config.folder / "journal.sqlite")
        try:
            rows = journal.queue()
            for row in rows:
                if row.state == "failed" and DIED in (row.error, *(o.error for o in row.outputs)):
                    self.seen.retried += journal.retry(row.key)
        finally:
            journal.close()
        return rows

    def _arrived(self):
        return len({line.split()[1] for line in self.stored()})

    def _until_it_listens(self):
        import socket

        there = self.config.destinations["pacs"]
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection((there.host, there.port), 1):
                return
            time.sleep(0.02)

    def _end(self, node):
        """Let the node send what it does not know to be there, and stop it in order."""
        until = time.monotonic() + 300
        states = Counter()
        while time.monotonic() < until:
            states = Counter(row.state for row in self._retry_set_aside())
            if set(states) == {"done"}:
                break
            time.sleep(0.5)
        if states != {"done": self.plan.series}:
            self.seen.wrong.append(f"series end as {dict(states)}")
        node.send_signal(signal.SIGTERM)
        try:
            ended = node.wait(60)
        except subprocess.TimeoutExpired:
            ended = "a hang"
        if ended != 0:
            self.seen.wrong.append(f"the node stopped with {ended}")

    def _examine(self):
        """Compare what callers were told with what the archive has, and look into the folder."""
        plan, seen, wrong = self.plan, self.seen, self.seen.wrong
        accepted = self.accepted()
        expected = {str(image_uid(*place)): place for place in places(plan)}
        seen.accepted, seen.sent_again = len(set(accepted)), len(accepted) - len(set(accepted))
        if set(accepted) != set(expected):
            wrong.append("callers did not get rid of everything")
        objects, sources = {}, {}
        for line in self.stored():
            derived, source, *content = line.split()
            seen.stored += 1
            if objects.setdefault(derived, content) != content:
                wrong.append("an object was sent again with other bytes")
            if sources.setdefault(source, derived) != derived:
                wrong.append("two objects of one instance")
        seen.objects = len(objects)
        if set(sources) != set(expected):
            wrong.append(f"{len(set(expected) - set(sources))} instances have no object")
        if not plan.real:
            shift = np.int16(SHIFT_HU)
            for source, derived in sources.items():
                pixels = (stored_pixels(plan, *expected[source]) + shift).tobytes()
                if hashlib.sha256(pixels).hexdigest() != objects[derived][0]:
                    wrong.append("an object has other pixels than its original")
        # Of a run that was given up the folder may be in any state.
        if not wrong:
            self._examine_folder(set(objects))

    def _examine_folder(self, derived):
        from cddnet.node.station import Station
        from cddnet.node.store.folder import JOURNAL_FILES

        wrong = self.seen.wrong
        there = {
            str(path.relative_to(self.config.folder)): path.stat().st_size
            for box in ("inbox", "outbox")
            for path in (self.config.folder / box).rglob("*")
            if path.is_file() and path.name != "decision.json"
        }
        station = Station(self.config)
        try:
            if dict(station.journal.files()) != there:
                wrong.append("files and journal differ")
            rows = station.journal.database.rows("SELECT sop_uid FROM objects")
            if {row[0] for row in rows} != derived:
                wrong.append("the journal knows other objects than the archive")
            if station.images.aside() > len(JOURNAL_FILES) * self.seen.rebuilds:
                wrong.append(f"{station.images.aside()} files were set aside")
            if {len(row.outputs) for row in station.journal.queue()} != {1}:
                wrong.append("a series has not one output")
        finally:
            station.close()
        for line in (self.folder / "log").read_text().splitlines():
            self.seen.events[json.loads(line)["event"]] += 1
        # A full disk is told in these words; nothing else is.
        bad = {"missing", "series_refused"}
        if not self.seen.troubles["disk full"]:
            bad |= {"crashed", "failed"}
        # A series that was set aside says so once, before it is retried.
        for name, count in (self.seen.events - Counter(failed=self.seen.retried)).items():
            if name in bad:
                wrong.append(f"{count} times {name}")


def image_uid(series, index):
    return ct(index, series).SOPInstanceUID


def main(folder, role, *rest):
    from cddnet.node.settings.config import NodeConfig

    plan = Plan(**json.loads((folder / "plan").read_text()))
    config = NodeConfig.model_validate_json((folder / "config").read_text())
    if role == "node":
        run_node(config, real=plan.real)
    elif role == "archive":
        run_archive(folder, config.destinations["pacs"].port)
    else:
        run_sender(plan, folder, config, int(rest[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
