"""The figures of the node, read back by the parser of their format."""

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cddnet import __version__
from cddnet.node.settings.config import NodeConfig
from cddnet.node.watch.metrics import NodeMetrics
from cddnet.node.watch.vocabulary import REASONS, STATES

PLACE = {"kind": "dicom", "host": "h", "port": 1, "ae_title": "P"}


class Journal:
    def __init__(self, *rows):
        self.rows = rows

    def queue(self):
        return self.rows

    def oldest_unfinished_at(self):
        return min((row.first_at for row in self.rows if row.state != "done"), default=None)


class Usage:
    def used_bytes(self):
        return 1234

    def aside(self):
        return 5


def output(state="sending", **destinations):
    return SimpleNamespace(state=state, destinations=destinations)


def series(state, first_at, *outputs):
    return SimpleNamespace(state=state, first_at=first_at, outputs=outputs)


def metrics(folder, *rows):
    config = NodeConfig.model_validate(
        {
            "allowed_callers": "any",
            "folder": folder,
            "destinations": {"pacs": PLACE, "web": PLACE},
            "quota_gb": 2,
            "smallest_free_gb": 0.5,
        }
    )
    return NodeMetrics(Journal(*rows), config, Usage())


def figures(of):
    """{name: value} and {(name, label value): value} of everything but creation times."""
    found = {}
    for family in text_string_to_metric_families(of.text().decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("cddnet_node_")
            if not name.endswith("_created"):
                found[(name, *sample.labels.values()) if sample.labels else name] = sample.value
    return found


def test_counts_are_what_was_counted(tmp_path):
    of = metrics(tmp_path)
    for size in (10, 20, 30):
        of.received(size)
    of.received_again()
    of.refused("quota")
    of.refused("quota")
    of.refused("Zyxwvut")
    of.processed(3.0, 40)
    of.processed(9.0, 2)
    found = figures(of)
    assert (found["received_total"], found["received_bytes_total"]) == (3, 60)
    assert found["received_again_total"] == 1
    assert (found["refused_total", "quota"], found["refused_total", "other"]) == (2, 1)
    assert (found["processing_seconds_sum"], found["processing_seconds_count"]) == (12, 2)
    assert (found["processing_seconds_bucket", "5.0"], found["denoised_slices_total"]) == (1, 42)


def test_the_queue_is_told_by_state_and_destination(tmp_path):
    now = time.time()
    of = metrics(
        tmp_path,
        series("receiving", now - 900),
        series("sending", now - 100, output(pacs=(3, 5, 0), web=(0, 8, 0))),
        series(
            "failed", now - 400, output("done", pacs=(0, 8, 0)), output("failed", web=(1, 2, 4))
        ),
        series("done", now - 5000, output("done", pacs=(0, 7, 0))),
    )
    found = figures(of)
    assert {name: found["series", name] for name in STATES if found["series", name]} == {
        **dict.fromkeys(("receiving", "sending", "failed", "done"), 1)
    }
    assert (found["outputs", "done"], found["outputs", "failed"]) == (2, 1)
    assert (found["queued", "pacs"], found["sent", "pacs"]) == (3, 20)
    assert (found["queued", "web"], found["sent", "web"], found["send_failed", "web"]) == (1, 10, 4)
    assert found["oldest_unsent_seconds"] == pytest.approx(400, abs=60)
    assert found["oldest_unfinished_seconds"] == pytest.approx(900, abs=60)


def test_an_empty_node_says_zero_of_all_and_what_the_disk_has(tmp_path):
    found = figures(metrics(tmp_path))
    assert found["build_info", __version__] == 1
    assert found["oldest_unsent_seconds"] == found["oldest_unfinished_seconds"] == 0
    assert {key[1] for key in found if key[0] == "queued"} == {"pacs", "web"}
    assert {key[1] for key in found if key[0] == "series"} == STATES
    assert (found["quota_bytes"], found["disk_needed_bytes"]) == (2e9, 5e8)
    assert (found["used_bytes"], found["set_aside_files"]) == (1234, 5)
    assert found["disk_free_bytes"] > 0


def test_two_nodes_in_one_process_count_apart(tmp_path):
    first, second = metrics(tmp_path), metrics(tmp_path)
    first.received(1)
    assert (figures(first)["received_total"], figures(second)["received_total"]) == (1, 0)


@given(st.lists(st.text('SMITH^123.-é\n"\\', min_size=4, max_size=12), min_size=1, max_size=5))
def test_labels_come_from_closed_lists(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp()
    rows = [series(text, 0.0, output(text, **{text: (1, 0, 0)})) for text in texts]
    of = metrics(folder, *rows)
    for text in texts:
        of.refused(text)
    found = figures(of)
    labels = {key[1] for key in found if isinstance(key, tuple) and "bucket" not in key[0]}
    assert labels <= {*STATES, *REASONS, "pacs", "web", "other", __version__}
    assert found["series", "other"] == found["queued", "other"] == len(texts)
