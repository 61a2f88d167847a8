"""A node in a process of its own, to look at from outside: its memory, its files, what it says."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from raw_dicom import TRANSIENT
from small_node import associate, shifted

from cddnet.node.service import Node, serve


class Running:
    """output: all that the process writes beside its log."""

    def __init__(self, process, output, port):
        self.process, self.output, self.port = process, output, port

    def megabytes(self, name="VmHWM"):
        """Resident memory, by default the most there ever was."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise AssertionError(name)

    def answers(self, caller):
        """Whether it does C-ECHO, soon where it is full of callers who have just gone."""
        until = time.monotonic() + 10
        echo = associate(self.port, caller=caller)
        while full(echo) and time.monotonic() < until:
            time.sleep(0.1)
            echo = associate(self.port, caller=caller)
        if not echo.is_established:
            return False
        status = echo.send_c_echo()
        echo.release()
        return getattr(status, "Status", None) == 0


def full(association):
    """Whether it was refused for now, because too many were there."""
    return association.is_rejected and association.acceptor.primitive.result == TRANSIENT


@contextmanager
def running_node(config, folder, *, caller="SCANNER", page=False):
    """The node of a configuration, with the quick denoiser; stopped in order at the end.

    page: with its page.  Its working folder and the one for temporary files are below `folder`.
    """
    for name in ("work", "temporary"):
        (folder / name).mkdir()
    file = folder / "config.pickle"
    file.write_bytes(pickle.dumps((config, page)))
    output = folder / "output"
    environment = os.environ | {"TMPDIR": str(folder / "temporary")}
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__, file],
            cwd=folder / "work",
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        running = Running(process, output, config.dicom_port)
        until = time.monotonic() + 60
        while not running.answers(caller):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, "the node does not start"
            time.sleep(0.1)
        yield running
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    told, with_page = pickle.loads(Path(sys.argv[1]).read_bytes())
    serve(Node(told, denoise=shifted), page=with_page)
