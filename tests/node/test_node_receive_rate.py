"""The node takes images at least as fast as Orthanc: a fifth of benchmarks/node_receive.py."""

import pytest
from receive_rate import measured

pytestmark = [
    pytest.mark.net,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_the_node_takes_images_at_least_as_fast_as_orthanc(tmp_path, record_property):
    times = measured(tmp_path, count=40, rounds=3)
    record_property("figures", str(times))
    assert times.ratio >= 1, times
