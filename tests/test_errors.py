"""Every refusal is a whole sentence that says more than what is wrong."""

import ast
import re
from pathlib import Path

import cddnet
from cddnet import errors
from cddnet.formats._dicom_pixels import SEND_AGAIN
from cddnet.models._cards import FETCH_AGAIN

PACKAGE = Path(cddnet.__file__).parent
OURS = {name for name, value in vars(errors).items() if isinstance(value, type)}
# Names of what to do that several messages share.
SPELT_OUT = {"SEND_AGAIN": SEND_AGAIN, "FETCH_AGAIN": FETCH_AGAIN, "remedy": "Do that."}
UNKNOWN = "\0"
# A command to run, or a list below.
OTHER_ENDS = re.compile(rf"(pip install \S+|:\n{UNKNOWN}|\.\n{UNKNOWN})$")
TWO_PARTS = re.compile(r"(; |\. |expected |no such |not installed: |cannot become )")


def text_of(node):
    """A message as it is written; what is only known at the time is one character."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return SPELT_OUT.get(node.value.id, UNKNOWN)
    return UNKNOWN


def messages(source):
    """(line, text) of every exception of ours that is made in a source."""
    for node in ast.walk(ast.parse(source)):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name in OURS:
            yield node.lineno, text_of(node.args[0]) if node.args else ""


def faults(source):
    """Messages that say nothing, are no sentence, or have one part where two are needed."""
    for line, text in messages(source):
        # Another exception's text, passed on.
        if text == UNKNOWN:
            continue
        if not (text.endswith(".") or OTHER_ENDS.search(text)):
            yield line, "no sentence", text
        elif not TWO_PARTS.search(text):
            yield line, "says what is wrong, not what to do", text


def test_every_message_is_a_sentence_with_found_and_to_do():
    found, count = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        count += len(list(messages(source)))
        found += [(file.relative_to(PACKAGE).as_posix(), *fault) for fault in faults(source)]
    assert count > 250
    assert found == []


def test_planted_messages_are_found():
    wrong = [
        'raise FormatError("")',
        "raise ModelError()",
        'raise DicomError(f"{path}: is wrong.")',
        'raise GeometryError(f"{path}: is wrong; give another")',
        'raise CddnetError("wrong: " + what)',
    ]
    assert [len(list(faults(line))) for line in wrong] == [1] * len(wrong)
    right = [
        'raise FormatError(f"{path}: is a text; give a picture.")',
        'raise DicomError(f"{path}: no pixels; {SEND_AGAIN}")',
        'raise ModelError(f"x is not installed: pip install cddnet[{extra}]")',
        "raise DicomError(str(error))",
        'raise ValueError("")',
    ]
    assert [len(list(faults(line))) for line in right] == [0] * len(right)
