"""A node's folder as the first version of the journal left it: no marker, no sender in the files.

The tables and rows are written here in the words of that version, not by the code under test.
"""

import hashlib
import io
import json
import sqlite3

from pydicom import Dataset, dcmread
from small_node import shifted

from cddnet.formats import write_volume
from cddnet.formats.dicom import read_files
from cddnet.node.settings.rules import Order
from cddnet.node.store.secret import Pseudonyms
from cddnet.node.work.pieces import dated, pieces, recipe_of

SCHEMA = """
CREATE TABLE instances (
  sop_uid TEXT PRIMARY KEY, series_uid TEXT NOT NULL, sop_class TEXT NOT NULL,
  file TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
  caller TEXT NOT NULL, received_at REAL NOT NULL, purged_at REAL) WITHOUT ROWID;
CREATE INDEX instances_series ON instances (series_uid);
CREATE TABLE series (
  series_uid TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
  generation INTEGER NOT NULL, expected INTEGER NOT NULL, caller TEXT NOT NULL,
  first_at REAL NOT NULL, last_at REAL NOT NULL, frozen TEXT, reason TEXT NOT NULL DEFAULT '')
  WITHOUT ROWID;
CREATE INDEX series_state ON series (state);
CREATE TABLE outputs (
  output_key TEXT PRIMARY KEY, series_uid TEXT NOT NULL, place INTEGER NOT NULL,
  spec TEXT NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
  total INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX outputs_series ON outputs (series_uid);
CREATE INDEX outputs_state ON outputs (state, next_at);
CREATE TABLE objects (
  sop_uid TEXT PRIMARY KEY, output_key TEXT NOT NULL, source_uid TEXT NOT NULL,
  recipe TEXT NOT NULL, sop_class TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL,
  sha256 TEXT NOT NULL, weights TEXT NOT NULL, made_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX objects_output ON objects (output_key, recipe);
CREATE TABLE sends (
  number INTEGER PRIMARY KEY, sop_uid TEXT NOT NULL, destination TEXT NOT NULL,
  state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '', transaction_uid TEXT, changed_at REAL NOT NULL,
  UNIQUE (sop_uid, destination));
CREATE INDEX sends_due ON sends (destination, state, next_at);
CREATE INDEX sends_transaction ON sends (transaction_uid);
CREATE TABLE audit (
  number INTEGER PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL, series TEXT NOT NULL,
  caller TEXT NOT NULL, weights TEXT NOT NULL, count INTEGER NOT NULL,
  object TEXT NOT NULL DEFAULT '', destination TEXT NOT NULL DEFAULT '');
"""


def hidden(uid):
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def encoded(dataset):
    """The bytes of a file with the file meta information of that version: no sender in it."""
    whole = Dataset()
    whole.update(dataset)
    whole.file_meta = Dataset()
    whole.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    whole.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    whole.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = io.BytesIO()
    whole.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return stream.getvalue()


def folder_of_before(folder, datasets, *, created, made=0, caller="SCANNER"):
    """One series, decided on at `created`; `made` of its results are there and wait to be sent.

    Returns {UID of a result: its bytes}.
    """
    folder.mkdir(parents=True)
    series_uid = str(datasets[0].SeriesInstanceUID)
    key = Pseudonyms(folder).of(series_uid)
    output_key = f"{key}-1"
    spec = Order(strength=1, destinations=("pacs",), forced="").model_dump(mode="json")
    journal = sqlite3.connect(folder / "journal.sqlite")
    journal.executescript(SCHEMA)
    inbox = folder / "inbox" / hidden(series_uid)
    outbox = folder / "outbox" / hidden(output_key)
    inbox.mkdir(parents=True)
    outbox.mkdir(parents=True)
    files = []
    for dataset in datasets:
        file = inbox / f"{hidden(dataset.SOPInstanceUID)}.dcm"
        file.write_bytes(encoded(dataset))
        files.append(file)
        row = (str(dataset.SOPInstanceUID), series_uid, str(dataset.SOPClassUID))
        place = (str(file.relative_to(folder)), file.stat().st_size, "0" * 64, caller)
        journal.execute(
            "INSERT INTO instances VALUES (?,?,?,?,?,?,?,?,NULL)",
            (*row, *place, created.timestamp()),
        )
    frozen = {"rule": "all", "created": created.timestamp(), "outputs": 1, "reason": ""}
    journal.execute(
        "INSERT INTO series VALUES (?,?,'complete',?,0,?,?,?,?,'')",
        (series_uid, key, len(files), caller, *(created.timestamp(),) * 2, json.dumps(frozen)),
    )
    journal.execute(
        "INSERT INTO outputs (output_key, series_uid, place, spec, generation, state) "
        "VALUES (?,?,1,?,?,'waiting')",
        (output_key, series_uid, json.dumps(spec), len(files)),
    )
    derived = dated(shifted(read_files(files), Order.model_validate(spec)), created)
    results = {}
    for piece, _ in zip(pieces(derived), range(made), strict=False):
        draft = outbox / "draft.dcm"
        write_volume(piece.volume, draft)
        uid = str(dcmread(draft, stop_before_pixels=True).SOPInstanceUID)
        file = draft.rename(outbox / f"{hidden(uid)}.dcm")
        results[uid] = file.read_bytes()
        journal.execute(
            "INSERT INTO objects VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                *(uid, output_key, piece.source_uid, recipe_of(derived), piece.sop_class),
                *(str(file.relative_to(folder)), file.stat().st_size, "0" * 64, "ab" * 32),
                created.timestamp(),
            ),
        )
        journal.execute(
            "INSERT INTO sends (sop_uid, destination, state, changed_at) "
            "VALUES (?,'pacs','queued',?)",
            (uid, created.timestamp()),
        )
    journal.execute("PRAGMA user_version=1")
    journal.execute("PRAGMA journal_mode=WAL")
    journal.commit()
    journal.close()
    return results
