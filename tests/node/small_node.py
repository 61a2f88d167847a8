"""A small node and its neighbours for the tests: CT slices, a sender, an archive that counts."""

import io
import itertools
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress

from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    CTImageStorage,
    EnhancedCTImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from cddnet.node.settings.config import NodeConfig
from cddnet.node.station import Station, Surroundings
from cddnet.volume import Derivation

ROOT = "1.2.826.0.1.3680043.10.999.7"
CT_SMALL = dcmread(get_testdata_file("CT_small.dcm"))
FAMILY = "Zyxwvut"
# None that a system gives away by itself, and in an order of our own: other processes look too.
PORTS = itertools.cycle(random.sample(range(10_000, 32_000), 22_000))
SHIFT_HU = 7.0


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now=1.7e9):
        self.now = now

    def __call__(self):
        return self.now


def ct(index=0, series=1, **changes):
    """One slice of 128 x 128 at z = index mm."""
    dataset = Dataset()
    dataset.update(CT_SMALL)
    dataset.file_meta = Dataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.StudyInstanceUID = f"{ROOT}.2.{series}"
    dataset.SeriesInstanceUID = f"{ROOT}.3.{series}"
    dataset.SOPInstanceUID = f"{ROOT}.4.{series}.{index + 1}"
    dataset.FrameOfReferenceUID = f"{ROOT}.5.{series}"
    dataset.InstanceNumber = str(index + 1)
    dataset.ImagePositionPatient = ["-20", "-30", f"{index:.1f}"]
    dataset.PatientName = f"{FAMILY}^Anna"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def coded(dataset, *, implicit=False, little=True, says=None, preamble=True, meta=True, length=0):
    """A file of a data set.

    says: a transfer syntax that may be untrue.  length: added to the true length of the meta
    header, None for none.
    """
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = implicit, little
    write_dataset(body, Dataset({element.tag: element for element in dataset}))
    head = FileMetaDataset()
    head.MediaStorageSOPClassUID = dataset.SOPClassUID
    head.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    head.update(dataset.file_meta)
    if says is not None:
        head.TransferSyntaxUID = says
    begin = DicomBytesIO()
    begin.is_implicit_VR, begin.is_little_endian = False, True
    write_dataset(begin, Dataset({e.tag: e for e in head if e.value is not None}))
    told = begin.getvalue()
    if length is not None:
        told = b"\x02\0\0\0UL\4\0" + (len(told) + length).to_bytes(4, "little") + told
    return (bytes(128) + b"DICM") * preamble + told * meta + body.getvalue()


def shifted(volume, output):
    """A denoiser that is quick: every value grows by SHIFT_HU times the strength."""
    strength = 1.0 if output.strength is None else output.strength
    step = Derivation(
        label="shift",
        description="Every value is shifted.",
        parameters=(("model", "shift"), ("strength", repr(strength))),
        version="0",
        weights_sha256="ab" * 32,
    )
    return volume.derived(lambda index: volume.read_slice(index) + SHIFT_HU * strength, step)


def free_port():
    """Of no listener here, and not given before."""
    for port in PORTS:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def quick_retries(attempts):
    return {"first_s": 0.05, "longest_s": 0.2, "attempts": attempts}


def archive_at(port, **changes):
    told = {"kind": "dicom", "host": "127.0.0.1", "port": port, "ae_title": "ARCHIVE"}
    retries = quick_retries(1000)
    return told | {"timeout_s": 5, "retries": retries} | changes


def node_config(folder, destinations=None, **changes):
    """A node that sends every CT series to every destination."""
    destinations = {"pacs": archive_at(4)} if destinations is None else destinations
    told = {
        "allowed_callers": ["SCANNER"],
        "folder": folder,
        "dicom_port": free_port(),
        "quiet_s": 0.2,
        "timeout_s": 5,
        "smallest_free_gb": 0,
        "destinations": destinations,
        "rules": [{"name": "all", "do": [{"strength": 1, "destinations": list(destinations)}]}],
    }
    return NodeConfig.model_validate(told | changes)


def quick(journal):
    """The journal without waiting for the disk: its order of steps is the same."""
    journal.database._connection.execute("PRAGMA synchronous=OFF")
    return journal


def station_at(config, clock=None, **around):
    """The opened folder of a node, its log kept in `.told`."""
    told = io.StringIO()
    if clock is not None:
        around["clock"] = clock
    station = Station(config, replace_stream(Surroundings(**around), told))
    station.told = told
    quick(station.journal)
    return station


def replace_stream(surroundings, stream):
    return surroundings._replace(stream=stream)


def associate(port, caller="SCANNER", called="CDDNET", kinds=(CTImageStorage,)):
    entity = AE(caller)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    entity.add_requested_context(Verification)
    for kind in kinds:
        entity.add_requested_context(kind, [uid.ExplicitVRLittleEndian])
    return entity.associate("127.0.0.1", port, ae_title=called)


def send(port, datasets, **options):
    """Statuses of a C-STORE of each data set, None where the connection went."""
    association = associate(port, **options)
    assert association.is_established
    try:
        return [getattr(association.send_c_store(dataset), "Status", None) for dataset in datasets]
    finally:
        if association.is_established:
            association.release()


class Archive:
    """A storage SCP that counts.

    refuse: instances to answer with a failure, and how often.  uncommitted: how many commitment
    requests to answer with a failure first.  own_association: report on one of its own, to
    `node_port`, instead of the one that asked; silent: never report.
    """

    def __init__(self, port=None, tls=None):
        self.port, self.tls = port or free_port(), tls
        self.got, self.objects = Counter(), {}
        self.refuse, self.uncommitted, self.asked = Counter(), 0, 0
        self.node_port, self.silent = None, False
        self.server = None
        self.lock = threading.Lock()

    def __enter__(self):
        entity = AE("ARCHIVE")
        entity.add_supported_context(CTImageStorage)
        entity.add_supported_context(EnhancedCTImageStorage)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._commit)]
        self.entity = entity
        there = ("127.0.0.1", self.port)
        self.server = entity.start_server(there, False, evt_handlers=handlers, ssl_context=self.tls)
        return self

    def __exit__(self, *_):
        self.entity.shutdown()

    def _store(self, event):
        name = str(event.request.AffectedSOPInstanceUID)
        with self.lock:
            if self.refuse[name]:
                self.refuse[name] -= 1
                return 0xA700
            self.got[name] += 1
            content = event.request.DataSet.getvalue()
            before = self.objects.setdefault(name, content)
            assert before == content, "sent again with other bytes"
        return 0x0000

    def _commit(self, event):
        asked = event.action_information
        self.asked += 1
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        good = self.uncommitted <= 0
        self.uncommitted -= 1
        items = list(asked.ReferencedSOPSequence)
        if good:
            good = all(item.ReferencedSOPInstanceUID in self.objects for item in items)
        if good:
            report.ReferencedSOPSequence = items
        else:
            for item in items:
                item.FailureReason = 0x0110
            report.FailedSOPSequence = items
        if not self.silent:
            target = self._report_apart if self.node_port else self._report_here
            arguments = (report, 1 if good else 2, event.assoc)
            threading.Thread(target=target, args=arguments).start()
        return 0x0000, None

    def _report_apart(self, report, kind, _):
        entity = AE("ARCHIVE")
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate(
            "127.0.0.1", self.node_port, ae_title="CDDNET", ext_neg=[role]
        )
        assert association.is_established
        _report(association, report, kind)
        association.release()

    def _report_here(self, report, kind, association):
        _report(association, report, kind)


def _report(association, report, kind):
    association.send_n_event_report(
        report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )


def received(station, datasets, caller="SCANNER"):
    """Put data sets into a station as its receiver does, without a network."""
    from cddnet.node.receive.inflow import Budget
    from cddnet.node.receive.intake import Intake, Sent

    intake = Intake(station, Budget(1 << 30))
    for dataset in datasets:
        announced = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        data = io.BytesIO(encode(dataset, False, True))
        syntax = dataset.file_meta.TransferSyntaxUID
        intake.accept(Sent(caller, "127.0.0.1", announced, syntax, data))
