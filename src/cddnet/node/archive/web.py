"""Finding CT series by QIDO-RS and fetching them by WADO-RS (PS3.18 sections 10.4 and 10.6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cddnet.errors import CddnetError
from cddnet.node.archive.query import (
    TIMEOUT_S,
    Asked,
    Query,
    QueryError,
    Remote,
    needed,
    require_none,
)

PAGE = 200


@contextmanager
def _web(remote: Remote) -> Iterator[Any]:
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise needed("dicomweb-client") from error
    from cddnet.node.settings.config import read_token

    with requests.Session() as session:
        # No proxy and no password out of the environment: to the archive as written, or nowhere.
        session.trust_env = False
        if remote.tls is not None:
            session.verify = str(remote.tls.ca) if remote.tls.ca else True
            if remote.tls.certificate is not None and remote.tls.key is not None:
                session.cert = (str(remote.tls.certificate), str(remote.tls.key))
        headers = {}
        if remote.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(remote.token_file)}"
        try:
            client = DICOMwebClient(remote.url, session=session, headers=headers, timeout=TIMEOUT_S)
            # A series that failed is tried again later, and not alone.
            client.set_http_retry_params(retry=False)
            yield client
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            raise QueryError(f"the archive answered with HTTP status {status}.") from None
        except requests.JSONDecodeError:
            raise QueryError("the archive answered with what is no DICOM (JSON).") from None
        except requests.RequestException as error:
            raise QueryError(f"the archive did not answer ({type(error).__name__}).") from None
        except (CddnetError, OSError):
            raise
        except Exception as error:
            # Not chained: the library's message may quote what was answered.
            kind = type(error).__name__
            raise QueryError(f"the archive answered with what is no DICOM ({kind}).") from None


def find_web(query: Query) -> Iterator[tuple[str, str]]:
    """(study UID, series UID) of every match."""
    with _web(query.remote) as client:
        studies = _pages(
            lambda offset: client.search_for_studies(
                limit=PAGE, offset=offset, search_filters=dict(query.studies)
            ),
            "0020000D",
        )
        for study_uid in list(studies):
            wanted = {"Modality": "CT", **query.series}

            def page(
                offset: int, study_uid: str = study_uid, wanted: dict[str, str] = wanted
            ) -> list[Any]:
                found: list[Any] = client.search_for_series(
                    study_uid, limit=PAGE, offset=offset, search_filters=wanted
                )
                return found

            for series_uid in _pages(page, "0020000E"):
                yield study_uid, series_uid


def _pages(page: Any, tag: str) -> Iterator[str]:  # noqa: ANN401
    """Values of a UID over pages of answers; an archive that ignores the offset ends it."""
    seen: set[str] = set()
    offset = 0
    while True:
        answers = page(offset)
        values = [str(item[tag]["Value"][0]) for item in answers if tag in item]
        new = [value for value in dict.fromkeys(values) if value not in seen]
        yield from new
        seen.update(new)
        offset += len(answers)
        if len(answers) < PAGE or not new:
            return


def fetch_web(remote: Remote, study_uid: str, series_uid: str, folder: Path) -> tuple[Path, ...]:
    """Files of a series, in the syntax in which the archive holds it."""
    files = []
    foreign = 0
    with _web(remote) as client:
        wanted = Asked(
            study_uid=study_uid, series_uid=series_uid, patient_id=_patient(client, study_uid)
        )
        images = client.iter_series(
            study_uid, series_uid, media_types=(("application/dicom", "*"),)
        )
        for number, image in enumerate(images, 1):
            file = folder / f"{number:05d}.dcm"
            image.save_as(file, enforce_file_format=True)
            if wanted.admits(file):
                files.append(file)
            else:
                file.unlink()
                foreign += 1
    require_none(foreign)
    return tuple(files)


def _patient(client: Any, study_uid: str) -> str | None:  # noqa: ANN401
    """PatientID of a study, None where the archive does not tell one."""
    for study in client.search_for_studies(search_filters={"StudyInstanceUID": study_uid}):
        if study.get("0020000D", {}).get("Value", [study_uid])[0] == study_uid:
            for patient in study.get("00100020", {}).get("Value", ()):
                return str(patient or "") or None
    return None
