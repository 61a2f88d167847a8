"""Real DICOM programs, for tests marked net. What is missing fails: such tests never skip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# In the IHE AI Results profile, and newer than this edition of the validator.
KNOWN = "DeviceUID(0018,1002)> - Attribute is not present in standard DICOM IOD"


def peer(*command):
    """Run a program of dicom3tools, dcmtk or Orthanc to its end."""
    found = require(command[0])
    return subprocess.run([found, *command[1:]], capture_output=True, text=True, check=False)


def require(program):
    """Its path; not the storescu that pynetdicom puts beside Python."""
    beside_python = Path(sys.executable).parent
    others = [folder for folder in os.get_exec_path() if Path(folder) != beside_python]
    found = shutil.which(program, path=os.pathsep.join(others)) or shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is not installed; tests marked net need it")
    return found


def complaints(path):
    """Errors and warnings of dciodvfy, the known one apart."""
    said = peer("dciodvfy", "-new", str(path))
    lines = (said.stdout + said.stderr).splitlines()
    return {line for line in lines if line.startswith(("Error", "Warning")) and KNOWN not in line}
