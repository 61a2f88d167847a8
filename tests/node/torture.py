"""A node that is killed again and again while callers send and the archive comes and goes.

Senders, node and archive are processes of their own. Kills are bound to how far the work is, some
fall into the start after a kill, so that a seed means the same on a slow machine. The archive notes
every object before it says that it has it, and is itself killed.

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done. real: the shipped network instead of a shift by a known value."""

    seed: int
    instances: int
    series: int
    kills: int
    senders: int = 4
    real: bool = False
    commitment: bool = False
    longest_s: float = 900.0


@dataclass(kw_only=True)
class Seen:
    """What came of it; `wrong` is empty where nothing was lost, doubled, changed or stuck."""

    accepted: int = 0
    objects: int = 0
    stored: int = 0
    sent_again: int = 0
    kills: int = 0
    archive_kills: int = 0
    archive_down: float = 0.0
    seconds: float = 0.0
    events: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)

    def __str__(self):
        return (
            f"{self.accepted} accepted, {self.objects} objects in the archive, stored "
            f"{self.stored} times, sent again by callers {self.sent_again}; node killed "
            f"{self.kills} times, archive {self.archive_kills} times and down "
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
    from cddnet.node.service import Node

    Node(config, **({} if real else {"denoise": shifted})).run_forever()


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
        self.down_s, self.running = 0.0, []

    def start(self, *role):
        command = [sys.executable, __file__, str(self.folder), *map(str, role)]
        with (self.folder / f"output-{role[0]}").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        self.running.append(process)
        return process

    def kill(self, process):
        process.kill()
        process.wait()
        self.running.remove(process)

    def accepted(self):
        numbers = range(self.plan.senders)
        return [line for n in numbers for line in Lines(self.folder / f"accepted{n}").read()]

    def stored(self):
        return Lines(self.folder / "archive").read()

    def run(self):
        """Everything, to the end; returns what was seen."""
        started = time.monotonic()
        try:
            self._run(started)
        finally:
            for process in list(self.running):
                self.kill(process)
        self.seen.seconds = time.monotonic() - started
        self._examine()
        return self.seen

    def _run(self, started):
        plan, seen = self.plan, self.seen
        rng = random.Random(f"{plan.seed} kills")
        moments = sorted(rng.random() for _ in range(plan.kills))
        node = self.start("node")
        archive, turn_at = self.start("archive"), started + rng.uniform(*UP_S)
        senders = [self.start("sender", number) for number in range(plan.senders)]
        while True:
            now = time.monotonic()
            if now - started > plan.longest_s:
                seen.wrong.append(f"not done after {plan.longest_s:g} s")
                return
            if node.poll() is not None:
                seen.wrong.append(f"the node ended by itself: {node.returncode}")
                return
            accepted, stored = len(set(self.accepted())), self._arrived()
            if moments and (accepted + stored) / (2 * plan.instances) >= moments[0]:
                moments.pop(0)
                time.sleep(rng.uniform(0, 0.05))
                self.kill(node)
                seen.kills += 1
                node = self.start("node")
                if moments and rng.random() < SHARE_OF_KILLS_AT_START:
                    moments.pop(0)
                    time.sleep(rng.uniform(0.2, 2.0))
                    self.kill(node)
                    seen.kills += 1
                    node = self.start("node")
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
            if over and not moments:
                break
            time.sleep(0.05)
        seen.archive_down = self.down_s / (time.monotonic() - started)
        if archive is None:
            archive = self.start("archive")
        seen.wrong += [f"a sender ended with {i.returncode}" for i in senders if i.returncode]
        self._end(node)

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
        from cddnet.node.store.journal import Journal

        journal = Journal(self.config.folder / "journal.sqlite")
        until = time.monotonic() + 60
        states = Counter()
        while time.monotonic() < until:
            states = Counter(row.state for row in journal.queue())
            if set(states) == {"done"}:
                break
            time.sleep(0.2)
        journal.close()
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
        self._examine_folder(set(objects))

    def _examine_folder(self, derived):
        from cddnet.node.station import Station

        wrong = self.seen.wrong
        there = {
            str(path.relative_to(self.config.folder)): path.stat().st_size
            for box in ("inbox", "outbox")
            for path in (self.config.folder / box).rglob("*")
            if path.is_file()
        }
        station = Station(self.config)
        try:
            if dict(station.journal.files()) != there:
                wrong.append("files and journal differ")
            rows = station.journal.database.rows("SELECT sop_uid FROM objects")
            if {row[0] for row in rows} != derived:
                wrong.append("the journal knows other objects than the archive")
            if {len(row.outputs) for row in station.journal.queue()} != {1}:
                wrong.append("a series has not one output")
        finally:
            station.close()
        for line in (self.folder / "log").read_text().splitlines():
            self.seen.events[json.loads(line)["event"]] += 1
        bad = {name: self.seen.events[name] for name in ("crashed", "failed", "series_refused")}
        wrong += [f"{count} times {name}" for name, count in bad.items() if count]


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
