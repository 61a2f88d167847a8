"""Imports point down only, and heavy packages stay behind their fences."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cddnet

PACKAGE = Path(cddnet.__file__).parent
LINES = (
    ("errors",),
    ("files",),
    ("volume", "grid", "config", "plugins", "console"),
    ("intensity",),
    ("formats", "models", "losses", "metrics", "physics"),
    ("training", "runtime"),
    ("workflows",),
    ("node",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {area: height for height, line in enumerate(LINES) for area in line}
FENCES = {
    "torch": {"models", "losses", "physics", "training", "runtime", "workflows"},
    "pydicom": {"formats", "node"},
}
LATE = {"torch": {"metrics/perceptual.py", "cli.py"}}
# A public file in models/ or metrics/ would be a plug-in; what packages above share is named here.
SHARED = {
    "formats._atomic",
    "formats._facts",
    "formats._new_series",
    "formats._parametric",
    "formats._parametric_read",
    "formats._sidecar",
    "metrics._body",
    "models._cards",
    "models._checkpoint",
    "models._depth_estimator",
    "models._features",
    "models._grey_window",
    "models._output",
    "models._ra_depth",
    "models._weights",
    "workflows._pairing",
    "workflows._upright",
}


def imports(node, late=False, typing=False):
    """(module, inside a function, for type checkers only) of every import below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            origin = "." * child.level + (child.module or "")
            yield from ((f"{origin}.{alias.name}", late, typing) for alias in child.names)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, late or function, typing or checking)


def broken_rules(file, source):
    """What a file, named relative to the package, imports although it may not."""
    own = file.split("/")[0].removesuffix(".py")
    broken = []
    for module, late, typing in imports(ast.parse(source)):
        top, *path = module.split(".")
        if top == "":
            broken.append(f"{file}: relative import {module}")
        elif top == "cddnet" and path[0] != "__version__":
            below = HEIGHT.get(path[0], len(LINES)) < HEIGHT.get(own, -1)
            if path[0] != own and not below:
                broken.append(f"{file}: {path[0]} is not below {own}")
            private = [name for name in path[1:] if name[0] == "_" and name[:2] != "__"]
            if path[0] != own and private and ".".join(path[:2]) not in SHARED:
                broken.append(f"{file}: {module} is private")
        elif top in FENCES and own not in FENCES[top] and not typing:
            if late and file in LATE.get(top, ()):
                continue
            broken.append(f"{file}: {top} does not belong here")
    return broken


def test_every_file_imports_downwards():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    areas = {path.parts[0].removesuffix(".py") for path in files} - {"__init__"}
    assert areas <= set(HEIGHT)
    assert len(files) > 30
    assert [
        line
        for path in files
        if path != Path("__init__.py")
        for line in broken_rules(path.as_posix(), (PACKAGE / path).read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "from cddnet import volume"),
        ("volume.py", "from cddnet import config"),
        ("volume.py", "import cddnet.intensity.hu"),
        ("intensity/hu.py", "from cddnet.formats import read_volume"),
        ("metrics/noise.py", "def f():\n    from cddnet.physics import dose"),
        ("models/cddnet.py", "from cddnet.losses.pixel import charbonnier"),
        ("training/pairs.py", "from cddnet.runtime import store"),
        ("workflows/train.py", "from cddnet import cli"),
        ("node/rules.py", "from cddnet.somewhere import something"),
        ("somewhere.py", "from cddnet import errors"),
        ("workflows/train.py", "from cddnet.formats._stored import plain_slices"),
        ("workflows/train.py", "from cddnet.training.pairs import _crop"),
        ("workflows/train.py", "from cddnet.formats import _stored"),
        ("workflows/train.py", "from . import denoise"),
        ("workflows/train.py", "import pydicom"),
        ("workflows/train.py", "def f():\n    from pydicom.uid import UID"),
        ("metrics/fidelity.py", "import torch"),
        ("metrics/fidelity.py", "def f():\n    import torch"),
        ("metrics/perceptual.py", "from torch import nn"),
        ("cli.py", "if True:\n    import torch.nn"),
        ("config.py", "class A:\n    def f(self):\n        import torch"),
    ],
)
def test_a_planted_import_is_found(file, source):
    assert len(broken_rules(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "from cddnet import __version__"),
        ("models/_weights.py", "from cddnet.models._cards import Card"),
        ("workflows/train.py", "from cddnet.models import _weights"),
        ("metrics/perceptual.py", "def f():\n    import torch"),
        ("cli.py", "def f():\n    from cddnet.workflows.train import train_from_config"),
        ("cli.py", "if TYPE_CHECKING:\n    import torch"),
        ("node/queue.py", "from pydicom import dcmread"),
    ],
)
def test_an_import_that_may_be_is_left_alone(file, source):
    assert broken_rules(file, source) == []


HEAVY = ("torch", "pydicom", "scipy")


def heavy_after(code):
    """Heavy packages that a fresh interpreter holds after running the code."""
    report = f"import sys; print('loaded', *[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()[-1].split()[1:]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cddnet', '--help']; from cddnet.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0"
    )
    assert heavy_after(code) == []
    assert heavy_after("import scipy.fft") == ["scipy"]


def test_arrays_and_cards_need_neither_torch_nor_dicom():
    code = (
        "import cddnet.volume, cddnet.config, cddnet.intensity.window, cddnet.intensity.normalise\n"
        "import cddnet.metrics.fidelity, cddnet.metrics.noise, cddnet.metrics._body\n"
        "import cddnet.models, cddnet.models._cards, cddnet.runtime.store, cddnet.physics.dose"
    )
    assert heavy_after(code) == ["scipy"]
