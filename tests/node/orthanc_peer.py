"""A real Orthanc, started and stopped, and files for it."""

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from small_node import free_port, until

from peers import require

PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))


def dicomweb_plugin():
    found = [path for folder in PLUGINS for path in folder.glob("libOrthancDicomWeb.so*")]
    if not found:
        pytest.fail("orthanc-dicomweb is not installed; tests marked net need it")
    return str(found[0])


class Orthanc:
    """A running one. node_port: where it tells what it committed to. changes: to its settings."""

    def __init__(self, folder, node_port=4, plugins=(), **changes):
        self.port, self.http = free_port(), free_port()
        self.config = {
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "DicomPort": self.port,
            "DicomAet": "ARCHIVE",
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": list(plugins),
            "OverwriteInstances": False,
            "DicomModalities": {
                "node": {
                    "AET": "CDDNET",
                    "Host": "127.0.0.1",
                    "Port": node_port,
                    "AllowStorageCommitment": True,
                }
            },
            **changes,
        }
        self.file = folder / "orthanc.json"

    def get(self, place):
        return httpx.get(f"http://127.0.0.1:{self.http}{place}", trust_env=False, timeout=20).json()

    @contextmanager
    def running(self):
        require("Orthanc")
        self.file.write_text(json.dumps(self.config))
        with self.file.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(["Orthanc", str(self.file)], stdout=log, stderr=log)
        try:
            until(self._answers, 120)
            yield self
        finally:
            self.process.terminate()
            self.process.wait(30)

    def _answers(self):
        assert self.process.poll() is None, self.file.with_suffix(".log").read_text()
        try:
            return bool(self.get("/system"))
        except httpx.HTTPError:
            return False
