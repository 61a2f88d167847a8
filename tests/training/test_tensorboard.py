"""Curves and pictures by the real TensorBoard, read back with its own reader, without a network."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cddnet.training.journal import LOG, JsonLines, TensorBoard

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the extra cddnet[tensorboard] is not installed",
)
PICTURE = "low dose, denoised, full dose"

# Every look-up of a name and every connection is told by the interpreter itself.
OFFLINE = """
import sys
from pathlib import Path

reached = []
sys.addaudithook(lambda event, _: reached.append(event) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
    "urllib.Request", "http.client.connect"
) else None)

import numpy as np
from cddnet.training.journal import JsonLines, TensorBoard

folder = Path(sys.argv[1])
board = TensorBoard(folder, JsonLines(folder, last_step=0))
board.figures(1, {"total": 0.5})
board.picture(1, lambda: np.zeros((3, 5), np.float32))
assert "torch.utils.tensorboard" in sys.modules
assert reached == [], reached
# A connection would have been seen.
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
assert "socket.connect" in reached

# Killed at once: nothing is written by closing, or by a thread that has time.
board.picture(2, lambda: np.zeros((3, 5), np.float32))
import os
os._exit(0)
"""


def board(folder, last_step=0):
    return TensorBoard(folder, JsonLines(folder, last_step=last_step))


def read(folder):
    found = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_figures_come_back_at_their_steps_and_stand_in_the_log_too(tmp_path):
    writer = board(tmp_path)
    values = {3: 0.125, 7: -2.5, 9: float("inf")}
    for step, value in values.items():
        writer.figures(step, {"loss.image": value, "rate.denoiser": step / 8})
    found = read(tmp_path)
    assert sorted(found.Tags()["scalars"]) == ["loss.image", "rate.denoiser"]
    assert {event.step: event.value for event in found.Scalars("loss.image")} == values
    rates = [(event.step, event.value) for event in found.Scalars("rate.denoiser")]
    assert rates == [(step, step / 8) for step in values]
    assert len((tmp_path / LOG).read_text().splitlines()) == 3


def test_a_picture_comes_back_with_its_levels(tmp_path):
    picture = np.linspace(0, 1, 7 * 15, dtype=np.float32).reshape(7, 15)
    board(tmp_path).picture(4, lambda: picture)
    (event,) = read(tmp_path).Images(PICTURE)
    assert (event.step, event.height, event.width) == (4, 7, 15)
    levels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"), float)
    assert np.abs(levels - 255 * picture).max() <= 1


def test_steps_that_a_killed_run_left_are_hidden_after_it_goes_on(tmp_path):
    """As in the log: what came after the checkpoint happens again."""
    killed = board(tmp_path)
    for step in (1, 2, 3, 4):
        killed.figures(step, {"total": float(step)})
    resumed = board(tmp_path, last_step=2)
    resumed.figures(3, {"total": 30.0})
    found = [(event.step, event.value) for event in read(tmp_path).Scalars("total")]
    assert found == [(1, 1.0), (2, 2.0), (3, 30.0)]
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['{"step": 1', '{"step": 2', '{"step": 3']


def test_it_reaches_for_no_network_and_loses_nothing_when_killed(tmp_path):
    """In a process of its own, so that the import is watched too."""
    command = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path)
    assert [event.step for event in found.Scalars("total")] == [1]
    assert [event.step for event in found.Images(PICTURE)] == [1, 2]
