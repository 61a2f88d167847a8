"""The benchmark: every engine that can run, figures that fit together."""

import json

import pytest

from cddnet.errors import FormatError, ModelError
from cddnet.models._cards import read_card
from cddnet.runtime import store
from cddnet.runtime.engines import Job, refusals
from cddnet.workflows import benchmark as module
from cddnet.workflows.benchmark import BenchmarkOptions, benchmark, table, write_json

# 300 slices in 30 s and 6 s before the first one: a hundred an hour.
MEASURED = {"opening": 6.0, "per_slice": 0.1, "peak_bytes": 2e8}


def ignore(*_):
    """No progress shown."""


@pytest.fixture(scope="module")
def result():
    options = BenchmarkOptions(rounds=2, side=96, threads=1, only=("cddnet@1", "wgan_vgg"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_series", lambda contender, threads: MEASURED)
        return benchmark(options, ignore)


def test_every_engine_that_can_run_is_in_it(result):
    weights = store.find("cddnet@1")
    job = Job(weights, read_card(weights), "cpu", 1)
    able = {name for name, reason in refusals(job).items() if not reason}
    assert "torch_eager" in able
    rows = {(row.network, row.engine) for row in result.rows}
    plain = {("cddnet@1", "torch, float32"), ("wgan_vgg", "torch, float32")}
    assert rows == plain | {("cddnet@1", name) for name in able}


def test_the_figures_fit_together(result):
    for row in result.rows:
        assert 0 < row.fastest <= row.seconds <= row.slowest
        achieved = 2e9 * row.gmac / row.seconds
        assert row.peak_share == pytest.approx(achieved / result.peak_flops[row.precision])
        with_series = row.engine != "torch, float32"
        assert (row.series_per_hour is not None) == with_series
        if with_series:
            assert row.series_per_hour == pytest.approx(100)
            assert row.peak_bytes == 2e8
    macs = {row.network: row.gmac for row in result.rows}
    # 128 x 128 after padding: a sixteenth of 512 x 512, which test_model_matrix knows.
    assert macs["cddnet@1"] == pytest.approx(5.29 / 16, rel=0.01)


@pytest.mark.slow
def test_a_series_is_measured_in_a_process_of_its_own():
    options = BenchmarkOptions(rounds=1, side=96, threads=1, only=("cddnet@1",))
    for row in benchmark(options, ignore).rows[1:]:
        assert 10 < row.series_per_hour < 1000
        # Not of this process, which holds torch and whatever was tested before.
        assert row.peak_bytes is None or 5e7 < row.peak_bytes < 1e9


def test_it_is_told_as_text_and_json(result, tmp_path):
    text = table(result)
    assert "1 threads" in text
    assert all(row.network in text and row.engine in text for row in result.rows)
    write_json(result, tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert len(read["rows"]) == len(result.rows)
    assert read["rows"][0]["seconds"] == result.rows[0].seconds
    with pytest.raises(FormatError, match="exists"):
        write_json(result, tmp_path / "out.json")


def test_an_unknown_network_is_refused():
    with pytest.raises(ModelError, match="no weights 'unheard'"):
        benchmark(BenchmarkOptions(only=("unheard",)), ignore)
