"""Complete series are decided on and denoised, by the code behind `cddnet denoise`.

One derived object is made per original, each for itself: what is there already stays as it is when
a slice comes late, and what a crash interrupted goes on where it was.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError, DicomError, FormatError, GeometryError, ModelError
from cddnet.formats import write_volume
from cddnet.formats.dicom import DicomHeaders, read_files
from cddnet.node.images import flush_folder, sha256_of
from cddnet.node.records import ENHANCED_CT, Due, End, Job, Made
from cddnet.node.rules import Output, decide, facts_of
from cddnet.node.station import Station
from cddnet.node.vocabulary import Event
from cddnet.runtime import store
from cddnet.volume import CTVolume

Denoise = Callable[[CTVolume, Output], CTVolume]
AT_ONCE = 16
LONGEST_UNSAVED_S = 5.0
ATTEMPTS = 3
FIRST_WAIT_S = 5.0
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")


class Piece(NamedTuple):
    """What becomes one derived object: a slice as a volume (1, H, W), or a whole Enhanced CT."""

    source_uid: str
    sop_class: str
    volume: CTVolume


class Stopping(Exception):
    """The node stops; what is half done goes on at the next start."""


def denoise_output(volume: CTVolume, output: Output, *, device: str = "auto") -> CTVolume:
    """The volume denoised as an output of a rule asks for; slices are computed as they are read.

    Raises ModelError for weights that are not there, and for an engine or device that is not.
    """
    from cddnet.workflows.denoise import DenoiseOptions, denoise_with

    options = DenoiseOptions(
        model=output.model,
        strength=output.strength,
        device=device,
        image_type=output.image_type,
        engine=output.engine,
    )
    return denoise_with(volume, options)


class Worker:
    """Turns complete series into derived objects, one series at a time."""

    def __init__(self, station: Station, denoise: Denoise = denoise_output) -> None:
        self._station, self._denoise = station, denoise
        self._config, self._journal, self._images = station.config, station.journal, station.images

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        idle_s = min(1.0, self._config.quiet_s / 4)
        while not stop.is_set():
            try:
                worked = self.step(stop)
            except Exception as error:
                # A full disk under the journal, for one: it must not end the thread.
                self._station.log.error("crashed", error)
                worked = False
            if not worked:
                stop.wait(idle_s)

    def step(self, stop: threading.Event | None = None) -> bool:
        """Decide on every complete series and make one output; False where there was none."""
        for due in self._journal.due(self._config.quiet_s):
            self._decide(due)
        job = self._journal.take()
        if job is None:
            return False
        self._make(job, stop or threading.Event())
        return True

    def _decide(self, due: Due) -> None:
        journal, log = self._journal, self._station.log
        told: dict[str, object] = {"series": due.series_uid, "slices": len(due.files)}
        if due.frozen:
            if journal.decide(due, None, ()):
                log.event("series_complete", late=True, generation=due.generation, **told)
                journal.note("late_slices", due.series_uid, caller=due.caller)
            return
        try:
            facts = facts_of([self._images.path(file) for file in due.files], due.caller)
        except (DicomError, OSError) as error:
            if journal.refuse(due, readable(error)):
                log.error("series_refused", error, reason="damaged", **told)
            return
        decision = decide(facts, self._config.rules)
        reason = decision.reason
        specs = [_pinned(output) for output in decision.outputs]
        if journal.decide(due, decision.rule, specs, reason=reason):
            log.event("series_complete", late=False, generation=due.generation, **told)
            event: Event = "decided" if specs else "series_ignored"
            log.event(event, series=due.series_uid, rule=decision.rule, reason=reason or None)
            journal.note(event, due.series_uid, caller=due.caller)

    def _make(self, job: Job, stop: threading.Event) -> None:
        log, started = self._station.log, time.monotonic()
        log.event("processing", series=job.series_uid, slices=len(job.sources))
        try:
            made, weights = self._objects(job, stop)
        except Stopping:
            return
        except Exception as error:
            self._fail(job, error)
            return
        self._journal.finish(job, "ready")
        seconds = time.monotonic() - started
        self._station.metrics.processed(seconds, made)
        log.event("processed", series=job.series_uid, slices=made, seconds=seconds, weights=weights)
        self._journal.note("processed", job.series_uid, weights=weights)

    def _fail(self, job: Job, error: Exception) -> None:
        """Refuse what is no fit CT; try again after what may pass; else leave it to a person."""
        unfit = isinstance(error, DicomError | GeometryError)
        last = job.attempts + 1 >= ATTEMPTS and not _disk(error)
        state: End = "refused" if unfit else "failed" if last else "waiting"
        wait_s = FIRST_WAIT_S * 2.0 ** min(job.attempts, 6)
        self._journal.finish(job, state, readable(error), wait_s=wait_s)
        event: Event = "series_refused" if unfit else "failed"
        self._station.log.error(
            event, error, series=job.series_uid, state=state, attempts=job.attempts + 1
        )

    def _objects(self, job: Job, stop: threading.Event) -> tuple[int, str]:
        """Make what is missing of an output; (objects made, hash of the weights)."""
        output = Output.model_validate(job.spec)
        created = datetime.fromtimestamp(job.created, timezone.utc)
        volumes = [read_files(files) for files in self._groups(job)]
        total, done, made = sum(_object_count(volume) for volume in volumes), 0, 0
        batch: list[Made] = []
        saved = time.monotonic()
        weights = ""
        try:
            for volume in volumes:
                derived = _dated(self._denoise(volume, output), created)
                weights = derived.derivation[-1].weights_sha256
                recipe = recipe_of(derived)
                there = self._journal.made(job.output_key, recipe)
                for piece in pieces(derived):
                    if stop.is_set():
                        raise Stopping
                    done += 1
                    if piece.source_uid in there:
                        continue
                    batch.append(self._written(job, piece, recipe))
                    made += 1
                    if len(batch) >= AT_ONCE or time.monotonic() - saved > LONGEST_UNSAVED_S:
                        self._save(job, batch, done, total)
                        batch, saved = [], time.monotonic()
        finally:
            self._save(job, batch, done, total)
        return made, weights

    def _groups(self, job: Job) -> list[list[Path]]:
        """Files that are read together: all classic slices, each Enhanced CT by itself."""
        groups = []
        classic = []
        for sop_class, file in job.sources:
            path = self._images.path(file)
            if sop_class == ENHANCED_CT:
                groups.append([path])
            else:
                classic.append(path)
        return [classic, *groups] if classic else groups

    def _written(self, job: Job, piece: Piece, recipe: str) -> Made:
        draft = self._images.draft(self._images.outbox(job.output_key, piece.source_uid))
        try:
            write_volume(piece.volume, draft)
            # Read back: what cannot be read must not be sent.
            headers = read_files([draft]).headers
            if not isinstance(headers, DicomHeaders):
                raise FormatError("a derived object was not read back as DICOM.")
            uid = headers.frames[0].sop_uid
            file = self._images.outbox(job.output_key, uid)
            size, sha256 = draft.stat().st_size, sha256_of(draft)
            draft.chmod(0o600)
            os.replace(draft, self._images.path(file))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._images.counted(size)
        weights = piece.volume.derivation[-1].weights_sha256
        return Made(uid, piece.source_uid, recipe, piece.sop_class, file, size, sha256, weights)

    def _save(self, job: Job, batch: list[Made], done: int, total: int) -> None:
        if batch:
            flush_folder(self._images.path(batch[0].file).parent)
        self._journal.add(job, batch, done=done, total=total)


def pieces(derived: CTVolume) -> Iterator[Piece]:
    """What becomes one derived object each, in slice order."""
    headers = derived.headers
    if not isinstance(headers, DicomHeaders):
        raise FormatError("only series that came as DICOM can be sent on.")
    for index, frame in enumerate(headers.frames):
        sop_class = str(frame.header.SOPClassUID)
        if headers.enhanced:
            yield Piece(frame.sop_uid, sop_class, derived)
            return
        yield Piece(frame.sop_uid, sop_class, _one_slice(derived, index, headers))


def recipe_of(derived: CTVolume) -> str:
    """A hash over all that decides the pixels and UIDs of derived objects, their source apart."""
    steps = [asdict(replace(step, created=None)) for step in derived.derivation]
    return hashlib.sha256(repr(steps).encode()).hexdigest()


def readable(error: BaseException) -> str:
    """What people are told of an error: our own words without UIDs, of others only the kind."""
    text = str(error) if isinstance(error, CddnetError) else type(error).__name__
    return _UID.sub("(UID)", text)


def _one_slice(volume: CTVolume, index: int, headers: DicomHeaders) -> CTVolume:
    return replace(
        volume,
        shape=(1, *volume.shape[1:]),
        read_slice=lambda _: volume.read_slice(index),
        read_padding=None if volume.read_padding is None else lambda _: volume.padding(index),
        positions_mm=(),
        headers=DicomHeaders(frames=(headers.frames[index],), enhanced=False),
    )


def _dated(volume: CTVolume, created: datetime) -> CTVolume:
    steps = tuple(replace(step, created=created) for step in volume.derivation)
    return replace(volume, derivation=steps)


def _object_count(volume: CTVolume) -> int:
    headers = volume.headers
    return 1 if isinstance(headers, DicomHeaders) and headers.enhanced else volume.shape[0]


def _pinned(output: Output) -> Mapping[str, object]:
    """An output as JSON, with the version of weights that its name stands for today."""
    try:
        found = store.find(output.model)
    except ModelError:
        return output.model_dump(mode="json")
    named = Path(output.model).suffix != ".safetensors"
    model = found.stem if named else str(found)
    return output.model_copy(update={"model": model}).model_dump(mode="json")


def _disk(error: BaseException) -> bool:
    """Whether the disk is in the way, which a person or the retention will change."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)
