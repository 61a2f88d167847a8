"""Complete series are decided on and denoised, by the code behind `cddnet denoise`.

One derived object is made per original, each for itself: what is there already stays as it is when
a slice comes late, and what a crash interrupted goes on where it was.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from cddnet.errors import (
    CddnetError,
    DicomError,
    FormatError,
    GeometryError,
    ModelError,
    UnfitError,
)
from cddnet.formats import write_volume
from cddnet.formats.dicom import DicomHeaders, read_files
from cddnet.node.settings.rules import Order, Output, asks_for_caller, decide, facts_of
from cddnet.node.station import Station
from cddnet.node.store.images import flush_folder, sha256_of
from cddnet.node.store.journal import wait_s
from cddnet.node.store.records import ENHANCED_CT, Due, End, Job, Made
from cddnet.node.watch.vocabulary import Event
from cddnet.node.work.fitness import Verdict, judged, refused_text
from cddnet.node.work.pieces import Piece, dated, object_count, pieces, recipe_of
from cddnet.runtime import store
from cddnet.volume import CTVolume

Denoise = Callable[[CTVolume, Order], CTVolume]
AT_ONCE = 16
LONGEST_UNSAVED_S = 5.0
ATTEMPTS = 3
UNKNOWN_SENDER = (
    "it is not known any more who sent this series, and rule '{rule}' asks for the sender. Retry: "
    "the rules then decide without a sender."
)
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")


class Stopping(Exception):
    """The node stops; what is half done goes on at the next start."""


def denoise_output(volume: CTVolume, output: Order, *, device: str = "auto") -> CTVolume:
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
        force=output.force,
        forced=output.forced,
    )
    return denoise_with(volume, options)


class Worker:
    """Turns complete series into derived objects, one series at a time."""

    def __init__(self, station: Station, denoise: Denoise = denoise_output) -> None:
        self._station, self._denoise = station, denoise
        self._config, self._journal, self._images = station.config, station.journal, station.images
        # Output and derived series whose decision is on the disk.
        self._noted: tuple[str, str] | None = None

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
        stop = stop or threading.Event()
        self._journal.release()
        for due in self._journal.due(self._config.quiet_s):
            if stop.is_set():
                return False
            self._settle(due)
        job = self._journal.take()
        if job is None:
            return False
        self._make(job, stop)
        return True

    def _settle(self, due: Due) -> None:
        """Decide on a series; what is wrong with it holds up no other."""
        if not self._journal.begin(due):
            return
        try:
            self._decide(due)
        except Exception as error:
            last = due.attempts + 1 >= ATTEMPTS and not _disk(error)
            again_s = None if last else wait_s(due.attempts + 1)
            self._journal.postpone(due, readable(error), again_s)
            self._station.log.error(
                "failed", error, series=due.series_uid, attempts=due.attempts + 1
            )

    def _decide(self, due: Due) -> None:
        journal, log = self._journal, self._station.log
        told: dict[str, object] = {"series": due.series_uid, "slices": len(due.sources)}
        if due.frozen:
            if journal.decide(due, None, ()):
                log.event("series_complete", late=True, generation=due.generation, **told)
                journal.note("late_slices", due.series_uid, caller=due.caller)
            return
        try:
            facts = facts_of([self._images.path(file) for _, file in due.sources], due.caller)
        except DicomError as error:
            if journal.refuse(due, readable(error)):
                log.error("series_refused", error, reason="damaged", **told)
            return
        rule = "" if due.sender_known else asks_for_caller(facts, self._config.rules)
        if rule:
            journal.ask(due, UNKNOWN_SENDER.format(rule=rule))
            log.event("failed", series=due.series_uid, rule=rule, reason="unknown_sender")
            return
        decision = decide(facts, self._config.rules)
        reason, outputs = decision.reason, decision.outputs
        verdict = self._verdict(due) if outputs else None
        if verdict and verdict.refusal:
            outputs = tuple(output for output in outputs if output.force)
            if not outputs:
                self._refuse_unfit(due, verdict)
                return
        specs = [_ordered(output, verdict) for output in outputs]
        if journal.decide(due, decision.rule, specs, reason=reason):
            if verdict and verdict.kinds:
                log.event("series_forced", series=due.series_uid, kinds=verdict.kinds)
                journal.note("series_forced", due.series_uid, caller=due.caller)
            log.event("series_complete", late=False, generation=due.generation, **told)
            event: Event = "decided" if specs else "series_ignored"
            log.event(event, series=due.series_uid, rule=decision.rule, reason=reason or None)
            journal.note(event, due.series_uid, caller=due.caller)

    def _verdict(self, due: Due) -> Verdict | None:
        """Of the fitness check; None where the series cannot be read as it is."""
        try:
            return judged(read_files(files) for files in self._groups(due.sources))
        except Exception:
            # Whatever it is, the making meets it too and tells it, without holding up other series.
            return None

    def _refuse_unfit(self, due: Due, verdict: Verdict) -> None:
        if self._journal.refuse(due, refused_text(verdict.refusal)):
            told = {"slices": len(due.sources), "kinds": verdict.kinds}
            self._station.log.event("series_refused", series=due.series_uid, reason="unfit", **told)
            self._journal.note("series_refused", due.series_uid, caller=due.caller)

    def _make(self, job: Job, stop: threading.Event) -> None:
        log, started = self._station.log, time.monotonic()
        self._noted = None
        log.event("processing", series=job.series_uid, slices=len(job.sources))
        try:
            made, weights = self._objects(job, stop)
        except Stopping:
            self._journal.pause(job)
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
        unfit = isinstance(error, DicomError | GeometryError | UnfitError)
        last = job.attempts + 1 >= ATTEMPTS and not _disk(error)
        state: End = "refused" if unfit else "failed" if last else "waiting"
        self._journal.finish(job, state, readable(error), wait_s=wait_s(job.attempts + 1))
        event: Event = "series_refused" if unfit else "failed"
        self._station.log.error(
            event, error, series=job.series_uid, state=state, attempts=job.attempts + 1
        )

    def _objects(self, job: Job, stop: threading.Event) -> tuple[int, str]:
        """Make what is missing of an output; (objects made, hash of the weights)."""
        created = datetime.fromtimestamp(job.created, timezone.utc)
        volumes = [read_files(files) for files in self._groups(job.sources)]
        output = self._checked(job, volumes)
        total, done, made = sum(object_count(volume) for volume in volumes), 0, 0
        batch: list[Made] = []
        saved = time.monotonic()
        weights = ""
        try:
            for volume in volumes:
                derived = dated(self._denoise(volume, output), created)
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

    def _checked(self, job: Job, volumes: list[CTVolume]) -> Order:
        """What is to be made; a check that was left to this moment is frozen with it.

        Raises UnfitError where it refuses the series and the output does not force it.
        """
        output = Order.model_validate(job.spec)
        if output.forced is not None:
            return output
        verdict = judged(volumes)
        if verdict.refusal and not output.force:
            raise UnfitError(refused_text(verdict.refusal))
        checked = output.model_copy(update=_found(verdict))
        self._journal.specify(job, checked.model_dump(mode="json"))
        return checked

    def _groups(self, sources: Sequence[tuple[str, str]]) -> list[list[Path]]:
        """Files that are read together: all classic slices, each Enhanced CT by itself."""
        groups = []
        classic = []
        for sop_class, file in sources:
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
                raise FormatError(
                    "a derived object was not read back as DICOM; try again, or look at the disk."
                )
            uid = headers.frames[0].sop_uid
            weights = piece.volume.derivation[-1].weights_sha256
            self._note_decision(
                job, str(headers.frames[0].header.SeriesInstanceUID), recipe, weights
            )
            held = self._journal.object_file(uid)
            file = held or self._images.outbox(job.output_key, uid)
            path = self._images.path(file)
            if held is not None and path.is_file():
                # The same object, made before: its bytes may have been sent already.
                draft.unlink()
            else:
                draft.chmod(0o600)
                os.replace(draft, path)
                self._images.counted(path.stat().st_size)
            size, sha256 = path.stat().st_size, sha256_of(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return Made(uid, piece.source_uid, recipe, piece.sop_class, file, size, sha256, weights)

    def _note_decision(self, job: Job, derived_uid: str, recipe: str, weights: str) -> None:
        noted = job.output_key, derived_uid
        if self._noted != noted:
            self._station.decisions.note(job.series_uid, derived_uid, (recipe, weights))
            self._noted = noted

    def _save(self, job: Job, batch: list[Made], done: int, total: int) -> None:
        if batch:
            flush_folder(self._images.path(batch[0].file).parent)
        self._journal.add(job, batch, done=done, total=total)


def readable(error: BaseException) -> str:
    """What people are told of an error: our own words without UIDs, of others only the kind."""
    text = str(error) if isinstance(error, CddnetError) else type(error).__name__
    if isinstance(error, FileNotFoundError):
        text = "an image of this series is not in the node's folder any more; send it again."
    return _UID.sub("(UID)", text)


def _ordered(output: Output, verdict: Verdict | None) -> Mapping[str, object]:
    """An order as JSON, with the version of weights that its name stands for today."""
    order = {**output.model_dump(mode="json"), **_found(verdict)}
    try:
        found = store.find(output.model)
    except ModelError:
        return order
    named = Path(output.model).suffix != ".safetensors"
    return {**order, "model": found.stem if named else str(found)}


def _found(verdict: Verdict | None) -> dict[str, object]:
    """What an order holds of the check."""
    if verdict is None:
        return {"forced": None, "notes": ()}
    notes = verdict.notes
    if verdict.refusal:
        notes = (f"forced, although {verdict.refusal}", *notes)
    return {"forced": verdict.kinds, "notes": notes}


def _disk(error: BaseException) -> bool:
    """Whether the disk is in the way, which a person or the retention will change."""
    known = [item for item in (error, error.__cause__) if isinstance(item, OSError)]
    return bool(known) and not any(isinstance(item, FileNotFoundError) for item in known)
