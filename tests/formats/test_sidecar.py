"""The record of processing steps beside a file."""

import json
from dataclasses import replace
from datetime import datetime, timezone

from cddnet.formats._sidecar import record, recorded
from cddnet.volume import Derivation

STEP = Derivation(
    label="a", description="b", parameters=(("model", "c"),), version="1", weights_sha256="d"
)


def test_steps_come_back_with_and_without_a_date():
    dated = replace(STEP, created=datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone.utc))
    assert recorded(record((STEP, dated)), "there") == (STEP, dated)


def test_a_step_without_date_is_told_as_before_there_were_dates():
    (told,) = json.loads(record((STEP,)))["derivation"]
    assert "created" not in told
