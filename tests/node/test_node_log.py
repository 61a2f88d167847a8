"""The log: nothing of a patient gets into a line, whatever the node or a library hands it."""

import ast
import hashlib
import hmac
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from small_node import node_config, until

import cddnet.node
from cddnet.errors import CddnetError, DicomError
from cddnet.formats import read_volume
from cddnet.node.settings.config import NodeConfig
from cddnet.node.store.secret import FILE, HASH_DIGITS, Pseudonyms
from cddnet.node.watch.log import NodeLog
from cddnet.node.watch.vocabulary import CONFIGURED, KINDS, REASONS, UIDS, Event

MARK = "Zyxwvut"
CONFIG = {
    "allowed_callers": ["CT1"],
    "folder": "state",
    "destinations": {"pacs": {"kind": "dicom", "host": "h", "port": 1, "ae_title": "P"}},
    "rules": [{"name": "thin chest", "do": [{"model": "cddnet@1", "destinations": ["pacs"]}]}],
}
FIELDS = sorted({*KINDS, *UIDS, *CONFIGURED, "error"})


@pytest.fixture
def written():
    return io.StringIO()


@pytest.fixture
def log(tmp_path, written):
    return NodeLog(Pseudonyms(tmp_path), NodeConfig.model_validate(CONFIG), written)


def lines(written):
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_what_is_listed_is_written_as_it_is(log, written):
    told = {
        "rule": "thin chest",
        "destination": "pacs",
        "model": "cddnet@1",
        "caller": "CT_SCANNER-1",
        "peer": "10.0.0.7",
        "reason": "quota",
        "state": "failed",
        "bytes": 524288,
        "seconds": 1.25,
        "late": True,
        "key": "0123456789abcdef",
        "output": "0123456789abcdef-2",
        "weights": "ab" * 32,
        "syntax": "1.2.840.10008.1.2.4.90",
        "version": "0.1.0",
    }
    log.event("processed", **told, count=None)
    (line,) = lines(written)
    assert line.pop("level") == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}\+00:00", line.pop("at"))
    assert line == {"event": "processed", **told}


TEXTS = st.one_of(
    st.text(min_size=1),
    st.sampled_from(
        ["SMITH^JOHN", "12345678", "1957-02-03", "1.2.3.4.5.6", "19570203", "/a/Smith"]
    ),
)


@given(st.sampled_from([*FIELDS, "patient", "description", "message", "path"]), TEXTS)
def test_no_text_gets_through_that_is_not_one_of_ours(tmp_path_factory, name, text):
    """Every field that is not made of listed words alters the text, or leaves it out."""
    written = io.StringIO()
    log = NodeLog(
        Pseudonyms(tmp_path_factory.getbasetemp()), NodeConfig.model_validate(CONFIG), written
    )
    log.event("received", **{name: text})
    (line,) = lines(written)
    if name in UIDS:
        assert re.fullmatch(r"[0-9a-f]{16}", line[name])
        assert line[name] != text
    elif name in line:
        assert name in ("caller", "peer", "version")
        assert KINDS[name](text)
    else:
        assert line["left_out"] == 1


@pytest.mark.parametrize("value", [b"bytes", ["a"], {"a": 1}, object(), float("nan"), float("inf")])
@pytest.mark.parametrize("name", FIELDS)
def test_no_other_kind_of_value_gets_through(log, written, name, value):
    log.event("received", **{name: value})
    (line,) = lines(written)
    assert set(line) == {"at", "level", "event", "left_out"}


def test_words_of_free_fields_cannot_be_a_name_with_parts_or_a_path():
    for text in ("SMITH^JOHN", "SMITH JOHN", "/data/smith", "Müller", "A" * 17, ""):
        assert not KINDS["caller"](text)
    assert not KINDS["version"]("smith")
    assert not KINDS["syntax"]("1.2.840.113619.2.55.3")


def test_an_event_nobody_listed_is_not_told(log, written):
    log.event(MARK)
    assert lines(written)[0]["event"] == "unlisted"


def test_of_an_error_only_class_and_place_are_told(log, written, tmp_path):
    (tmp_path / f"{MARK}.txt").write_text(MARK * 99, encoding="utf-8")
    for raising in (lambda: read_volume(tmp_path / f"{MARK}.txt"), lambda: {}[MARK]):
        try:
            raising()
        except Exception as error:
            log.error("failed", error, series="1.2.3")
    ours, foreign = lines(written)
    assert (ours["level"], ours["error"]) == ("error", "FormatError")
    assert re.fullmatch(r"cddnet\.formats:\d+", ours["where"])
    assert (foreign["error"], foreign["where"]) == ("KeyError", "")
    assert MARK not in written.getvalue()


def marked(folder):
    """A CT image with a mark in every text, date and number of its header, cut short."""
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    for element in dataset:
        if element.VR in ("LO", "SH", "PN", "ST", "LT", "UT") and not element.tag.is_private:
            element.value = MARK
    dataset.PatientBirthDate = dataset.StudyDate = "19570203"
    path = folder / "a.dcm"
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def test_a_damaged_image_with_marks_everywhere_leaves_none(log, written, tmp_path):
    dataset = dcmread(marked(tmp_path))
    with log.guarding(), pytest.raises(DicomError) as caught:
        read_volume(tmp_path)
    log.error("failed", caught.value, instance=str(dataset.SOPInstanceUID))
    for name in ("pynetdicom.acse", "pydicom", "uvicorn.error"):
        with log.guarding():
            logging.getLogger(name).error("%s", dataset)
            logging.getLogger(name).error(str(dataset), extra={"patient": MARK})
    text = written.getvalue()
    assert len(lines(written)) == 7
    for marker in (MARK, "19570203", str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID)):
        assert marker not in text


def test_libraries_are_heard_from_warning_on_without_their_words(log, written, capfd):
    chatty = logging.getLogger("pynetdicom.test_chatty")
    chatty.setLevel(logging.DEBUG)
    chatty.addHandler(logging.StreamHandler())
    with log.guarding():
        chatty.debug(MARK)
        chatty.info(MARK)
        chatty.warning("%s %d", MARK, "no number")
        try:
            raise ValueError(MARK)
        except ValueError:
            chatty.exception(MARK)
        logging.getLogger(f"{MARK}.x").error(MARK)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(MARK, stacklevel=1)
        thread = threading.Thread(target=lambda: {}[MARK])
        thread.start()
        thread.join()
        sys.excepthook(OSError, OSError(MARK), None)
    found = lines(written)
    assert [line.get("severity") for line in found[:4]] == ["warning", "error", "error", "warning"]
    assert [line.get("logger") for line in found[:4]] == [
        chatty.name,
        chatty.name,
        None,
        "py.warnings",
    ]
    assert found[1]["error"] == "ValueError"
    assert [(line["event"], line["error"]) for line in found[4:]] == [
        ("crashed", "KeyError"),
        ("crashed", "OSError"),
    ]
    assert MARK not in written.getvalue() + "".join(capfd.readouterr())
    assert chatty.level == logging.DEBUG
    assert len(chatty.handlers) == 1


def test_a_stream_that_breaks_stops_nothing(tmp_path, written):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("no space left")

    log = NodeLog(Pseudonyms(tmp_path), NodeConfig.model_validate(CONFIG), Full())
    log.event("started")
    closed = NodeLog(Pseudonyms(tmp_path), NodeConfig.model_validate(CONFIG), written)
    written.close()
    closed.event("started")


def test_threads_write_whole_lines_into_a_file_of_the_owner_alone(tmp_path):
    config = NodeConfig.model_validate(CONFIG | {"log_file": tmp_path / "logs" / "node.log"})
    log = NodeLog(Pseudonyms(tmp_path), config)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda count: log.event("received", count=count), range(400)))
    log.close()
    found = [json.loads(line) for line in config.log_file.read_text("utf-8").splitlines()]
    assert sorted(line["count"] for line in found) == list(range(400))
    assert config.log_file.stat().st_mode & 0o777 == 0o600


def test_a_rotated_log_goes_on_in_a_new_file_and_no_line_is_lost(tmp_path):
    config = NodeConfig.model_validate(CONFIG | {"log_file": tmp_path / "node.log"})
    log = NodeLog(Pseudonyms(tmp_path), config)
    for number in range(6):
        log.event("received", count=number)
        if number % 2:
            config.log_file.rename(tmp_path / f"node.log.{number}")
            log.reopen()
    log.close()
    found = [
        json.loads(line)
        for file in sorted(tmp_path.glob("node.log*"))
        for line in file.read_text().splitlines()
    ]
    assert sorted(line["count"] for line in found if line["event"] == "received") == list(range(6))
    assert len(list(tmp_path.glob("node.log*"))) == 4
    assert config.log_file.stat().st_mode & 0o777 == 0o600
    blocked = NodeLog(Pseudonyms(tmp_path), config)
    config.log_file.rename(tmp_path / "moved")
    config.log_file.mkdir()
    blocked.reopen()
    blocked.event("received", count=99)
    blocked.close()
    assert '"count": 99' in (tmp_path / "moved").read_text()


LIFE = """
import sys
from pathlib import Path
from small_node import shifted
from cddnet.node.service import Node, serve
from cddnet.node.settings.config import NodeConfig
serve(Node(NodeConfig.model_validate_json(Path(sys.argv[1]).read_text()), denoise=shifted))
"""


def test_a_hangup_has_the_node_reopen_its_log_and_go_on(tmp_path):
    config = node_config(tmp_path / "node", log_file=tmp_path / "node.log")
    (tmp_path / "config").write_text(config.model_dump_json())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LIFE, str(tmp_path / "config")]
    process = subprocess.Popen(command, env=environment)
    try:
        until(lambda: config.log_file.exists() and "started" in config.log_file.read_text())
        config.log_file.rename(tmp_path / "node.log.1")
        process.send_signal(signal.SIGHUP)
        until(lambda: config.log_file.exists() and "log_reopened" in config.log_file.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "stopped" in config.log_file.read_text()
    assert "stopped" not in (tmp_path / "node.log.1").read_text()


def test_a_hash_is_keyed_and_stays_the_same(tmp_path):
    first = Pseudonyms(tmp_path / "a")
    key = (tmp_path / "a" / FILE).read_bytes()
    expected = hmac.digest(key, b"1.2.3", hashlib.sha256).hex()[:HASH_DIGITS]
    assert first.of("1.2.3") == expected == Pseudonyms(tmp_path / "a").of("1.2.3")
    assert Pseudonyms(tmp_path / "b").of("1.2.3") != expected
    assert first.of("1.2.4") != expected
    assert (tmp_path / "a" / FILE).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in (tmp_path / "a").iterdir()] == [FILE]
    (tmp_path / "a" / FILE).write_bytes(key[:5])
    with pytest.raises(CddnetError, match="has 5 bytes, expected 32"):
        Pseudonyms(tmp_path / "a")


def test_several_that_start_at_once_agree_on_the_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Pseudonyms(tmp_path).of("1.2.3"), range(32)))
    assert len(set(found)) == 1


def calls():
    """(file, event, names of fields) of every call of `log.event` and `log.error` in the node."""
    for file in Path(cddnet.node.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.search(
                r"\blog\.(event|error)$", ast.unparse(node.func)
            ):
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                reasons = {
                    keyword.value.value
                    for keyword in node.keywords
                    if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
                }
                yield file.name, ast.unparse(node.args[0]).strip("'"), names, reasons


def test_the_node_uses_listed_words_alone():
    for file, event, names, reasons in calls():
        assert not event.isidentifier() or event in (*get_args(Event), "event"), (file, event)
        assert names <= set(FIELDS), (file, event, names)
        assert reasons <= REASONS, (file, event, reasons)
