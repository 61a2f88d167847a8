"""The conformance statement says what the code does, no more and no less."""

import re
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom")

from pydicom import uid
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID

from cddnet.formats._derived_headers import IMPLEMENTATION_UID
from cddnet.node.receive import arriving
from cddnet.node.receive import receiver as receive
from cddnet.node.send import dicom as send_dicom
from cddnet.node.send import sender as send
from cddnet.node.send import web as send_web
from cddnet.node.settings.config import NodeConfig

TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def section(number):
    return re.split(rf"\n### {re.escape(number)} ", TEXT)[1].split("\n### ")[0].split("\n## ")[0]


def test_exactly_the_accepted_transfer_syntaxes_are_listed_in_order():
    told = re.findall(r"\| (1\.2\.840\.10008\.[0-9.]+) \|", section("2.4"))
    assert told == [str(syntax) for syntax in arriving.SYNTAXES]
    assert uid.DeflatedExplicitVRLittleEndian not in told


def test_exactly_the_statuses_of_c_store_are_listed():
    told = {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", section("2.5"), re.M)}
    codes = (
        arriving.OUT_OF_RESOURCES,
        arriving.DOES_NOT_MATCH,
        arriving.CANNOT_UNDERSTAND,
        arriving.NOT_AUTHORISED,
        arriving.PROCESSING_FAILURE,
    )
    assert told == {receive.SUCCESS, *codes}


def test_identities_and_limits_are_those_of_the_code():
    assert str(PYNETDICOM_IMPLEMENTATION_UID) in TEXT
    assert IMPLEMENTATION_UID in TEXT
    config = NodeConfig(allowed_callers=("any",), folder=Path("x"))
    assert f"default {config.maximum_pdu} bytes" in TEXT
    assert f"default {config.maximum_associations} |" in TEXT
    assert f"`associations_per_address`, default {config.associations_per_address} |" in TEXT
    assert f"`longest_pdu_s`, default {config.longest_pdu_s:g} s" in TEXT
    assert f"`longest_message_s`, default {config.longest_message_s:g} s" in TEXT
    assert f"default {config.timeout_s:g} s" in TEXT
    assert f"default {config.largest_in_memory_mb:g} MB" in TEXT
    assert f"sends up to {send.AT_ONCE} of them" in TEXT
    assert f"up to {send.ASKED_AT_ONCE} references" in TEXT
    assert f"up to {send_dicom.ANSWER_AT_ONCE_S:g} s" in TEXT
    assert f"up to {send_web.MOST_BYTES / 1e6:g} MB" in TEXT
    assert f"{send_dicom.PROCESSING_FAILURE:04X}" in section("2.7")
