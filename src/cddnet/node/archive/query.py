"""Finding CT series in another archive and fetching them: QIDO and WADO, or C-FIND and C-GET.

Source of the latter: PS3.4 annex C.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from cddnet.errors import CddnetError
from cddnet.node.settings.parts import ClientTls
from cddnet.node.settings.tls import client_tls

if TYPE_CHECKING:
    from pydicom import Dataset

STUDY_KEYS = ("StudyDate", "StudyDescription", "AccessionNumber", "StudyInstanceUID")
SERIES_KEYS = (
    *("SeriesDescription", "SeriesInstanceUID", "BodyPartExamined", "ProtocolName"),
    *("Manufacturer", "ManufacturerModelName", "StationName"),
)
TIMEOUT_S = 60.0
SUCCESS, PENDING = 0x0000, (0xFF00, 0xFF01)
OUT_OF_RESOURCES, DOES_NOT_MATCH = 0xA700, 0xA900
MOST_PORT = 65535


class QueryError(CddnetError):
    """Another archive that does not answer, or not with what was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """Another archive. url: of DICOMweb; or host, port and titles of its DICOM port.

    token_file: holds a bearer token.  tls: of https and of the DICOM port; None: https with the
    authorities of the system, a DICOM port without TLS.
    """

    kind: Literal["dicomweb", "dicom"]
    url: str = ""
    host: str = ""
    port: int = 0
    called: str = ""
    calling: str = "CDDNET"
    token_file: Path | None = None
    tls: ClientTls | None = None

    @property
    def address(self) -> str:
        """Which archive this is, without what is asked of it."""
        scheme = "dicom" if self.tls is None else "dicoms"
        return self.url or f"{scheme}://{self.called}@{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What is asked of an archive; Modality is always CT."""

    remote: Remote
    studies: Mapping[str, str]
    series: Mapping[str, str]


def is_query(source: str) -> bool:
    """Whether a source is an address, and no folder or list."""
    return source.startswith(("http://", "https://", "dicom://", "dicoms://"))


def parse_query(
    source: str,
    *,
    calling: str = "CDDNET",
    token_file: Path | None = None,
    tls: ClientTls | None = None,
) -> Query:
    """`https://host/dicom-web?StudyDate=20240101-20240131`, `dicom://TITLE@host:104?...`, or
    `dicoms://` in its place, which is TLS.

    tls: for https and dicoms; None: the authorities of the system.  Raises CddnetError for an
    address that lacks a part, or a key that is not listed: whom a series is of is no choice for a
    command line, which others can see.
    """
    parts = urlsplit(source)
    try:
        port = parts.port
    except ValueError:
        port = None
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(asked) - {*STUDY_KEYS, *SERIES_KEYS})
    if unknown:
        known = ", ".join((*STUDY_KEYS, *SERIES_KEYS))
        raise CddnetError(f"query: {unknown[0]} cannot be asked for; choose among {known}.")
    studies = {key: value for key, value in asked.items() if key in STUDY_KEYS}
    series = {key: value for key, value in asked.items() if key in SERIES_KEYS}
    if tls is not None and parts.scheme not in ("https", "dicoms"):
        raise CddnetError(f"query: {parts.scheme}:// knows no TLS; write https:// or dicoms://.")
    if parts.scheme in ("dicom", "dicoms"):
        if not (parts.hostname and parts.username and port):
            raise CddnetError("query: expected dicom://TITLE@host:port, with title and port.")
        remote = Remote(
            kind="dicom",
            host=parts.hostname,
            port=port,
            called=parts.username,
            calling=calling,
            tls=(tls or ClientTls()) if parts.scheme == "dicoms" else None,
        )
    else:
        if not parts.hostname or parts.username or parts.password:
            raise CddnetError(
                "query: expected https://host/path; a password goes into no address, give the "
                "file of a token."
            )
        url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        remote = Remote(kind="dicomweb", url=url, token_file=token_file, tls=tls)
    return Query(remote=remote, studies=studies, series=series)


@contextmanager
def silence() -> Iterator[None]:
    """Keep libraries quiet: their messages quote headers and addresses with UIDs."""
    for name in ("pydicom", "pynetdicom", "dicomweb_client", "urllib3", "retrying"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find(query: Query) -> Iterator[tuple[str, str]]:
    """(study UID, series UID) of every CT series that matches.  Raises QueryError."""
    from cddnet.node.archive.web import find_web

    with silence():
        yield from find_web(query) if query.remote.kind == "dicomweb" else _find_dicom(query)


def fetch(remote: Remote, study_uid: str, series_uid: str, folder: Path) -> tuple[Path, ...]:
    """Files of a series, written into an empty folder under numbers.

    Raises: QueryError, also where an image is of another patient, study or series than asked for.
    """
    from cddnet.node.archive.web import fetch_web

    take = fetch_web if remote.kind == "dicomweb" else _fetch_dicom
    files = take(remote, study_uid, series_uid, folder)
    if not files:
        raise QueryError("the archive sent no image of this series; it may have been deleted.")
    return files


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What images must say of themselves. patient_id: None where the archive does not tell it."""

    study_uid: str
    series_uid: str
    patient_id: str | None

    def admits(self, file: Path) -> bool:
        """Whether a file is of this series, study and patient."""
        from pydicom import dcmread

        try:
            header = dcmread(
                file,
                stop_before_pixels=True,
                specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "PatientID"],
            )
            found = [
                str(header.get(keyword) or "").strip()
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID")
            ]
        except OSError:
            raise
        except Exception:
            return False
        patient = found[2] if self.patient_id is None else self.patient_id.strip()
        return found == [self.study_uid, self.series_uid, patient]


def require_none(foreign: int) -> None:
    """Raises QueryError where images came that were not asked for."""
    if foreign:
        raise QueryError(
            f"the archive sent {foreign} images of another patient, study or series, or that do "
            "not say of which; they were refused, and nothing is made of the rest. Look at the "
            "archive."
        )


def needed(library: str) -> CddnetError:
    """What to raise where a library is missing."""
    return CddnetError(f"a query needs {library}, not installed: pip install cddnet[archive]")


@contextmanager
def _associated(remote: Remote, contexts: list[Any], **options: Any) -> Iterator[Any]:  # noqa: ANN401
    from pynetdicom import AE

    entity = AE(remote.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_S
    entity.connection_timeout = TIMEOUT_S
    entity.requested_contexts = contexts
    association = entity.associate(
        remote.host,
        remote.port,
        ae_title=remote.called,
        tls_args=None if remote.tls is None else (client_tls(remote.tls), remote.host),
        **options,
    )
    if not association.is_established:
        why = "refused this caller" if association.is_rejected else "did not answer"
        raise QueryError(f"the archive {why}; check address, port and both AE titles.")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _find_dicom(query: Query) -> Iterator[tuple[str, str]]:
    try:
        from pynetdicom import build_context
        from pynetdicom.sop_class import (  # type: ignore[attr-defined]
            StudyRootQueryRetrieveInformationModelFind as Model,
        )
    except ImportError as error:
        raise needed("pynetdicom") from error
    with _associated(query.remote, [build_context(Model)]) as association:

        def ask(level: str, uid: str, **keys: str) -> list[str]:
            asked = _identifier(QueryRetrieveLevel=level, **{uid: "", **keys})
            found = []
            for status, answer in association.send_c_find(asked, Model):
                code = _status(status)
                if code in PENDING and answer is not None and uid in answer:
                    found.append(str(answer[uid].value))
                elif code not in (*PENDING, SUCCESS):
                    raise QueryError(f"the archive answered a query with status {code:04X}.")
            return found

        for study_uid in ask("STUDY", "StudyInstanceUID", **query.studies):
            keys = {"StudyInstanceUID": study_uid, "Modality": "CT", **query.series}
            for series_uid in ask("SERIES", "SeriesInstanceUID", **keys):
                yield study_uid, series_uid


def _fetch_dicom(remote: Remote, study_uid: str, series_uid: str, folder: Path) -> tuple[Path, ...]:
    from pynetdicom import build_context, build_role, evt
    from pynetdicom.sop_class import (  # type: ignore[attr-defined]
        CTImageStorage,
        EnhancedCTImageStorage,
    )
    from pynetdicom.sop_class import (  # type: ignore[attr-defined]
        StudyRootQueryRetrieveInformationModelFind as Find,
    )
    from pynetdicom.sop_class import (  # type: ignore[attr-defined]
        StudyRootQueryRetrieveInformationModelGet as Model,
    )

    from cddnet.node.receive.arriving import SYNTAXES

    kinds = (CTImageStorage, EnhancedCTImageStorage)
    files: list[Path] = []
    foreign = 0
    wanted: Asked | None = None

    def store(event: Any) -> int:  # noqa: ANN401
        nonlocal foreign
        file = folder / f"{len(files) + 1:05d}.dcm"
        try:
            file.write_bytes(event.encoded_dataset())
            if wanted is None or not wanted.admits(file):
                file.unlink()
                foreign += 1
                return DOES_NOT_MATCH
        except OSError:
            return OUT_OF_RESOURCES
        files.append(file)
        return SUCCESS

    contexts = [
        *(build_context(model) for model in (Find, Model)),
        *(build_context(kind, list(SYNTAXES)) for kind in kinds),
    ]
    roles = [build_role(kind, scp_role=True) for kind in kinds]
    handlers = [(evt.EVT_C_STORE, store)]
    asked = _identifier(
        QueryRetrieveLevel="SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid
    )
    with _associated(remote, contexts, ext_neg=roles, evt_handlers=handlers) as association:
        wanted = Asked(
            study_uid=study_uid,
            series_uid=series_uid,
            patient_id=_patient(association.send_c_find, study_uid, Find),
        )
        for status, _ in association.send_c_get(asked, Model):
            code = _status(status)
            failed = int(status.get("NumberOfFailedSuboperations") or 0)
            if code not in PENDING:
                require_none(foreign)
            # What was refused is counted among the failed ones too.
            if code not in (*PENDING, SUCCESS) or failed > foreign:
                raise QueryError(
                    f"the archive ended with status {code:04X}, {len(files)} images came and "
                    f"{failed} failed."
                )
    require_none(foreign)
    return tuple(files)


def _patient(send_c_find: Any, study_uid: str, model: Any) -> str | None:  # noqa: ANN401
    """PatientID of a study, None where the archive does not tell one."""
    asked = _identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=study_uid, PatientID="")
    patient: str | None = None
    for status, answer in send_c_find(asked, model):
        told = _status(status) in PENDING and answer is not None
        if told and str(answer.get("StudyInstanceUID") or study_uid) == study_uid:
            patient = str(answer.get("PatientID") or "") or patient
    return patient


def _identifier(**keys: str) -> Dataset:
    from pydicom import Dataset

    identifier = Dataset()
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _status(status: Dataset) -> int:
    if "Status" not in status:
        raise QueryError("the archive broke the connection or did not answer in time.")
    return int(status.Status)
