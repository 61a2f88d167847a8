"""Rules: the first that matches decides; compared with an independent reading of them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file

from cddnet.errors import DicomError
from cddnet.node.settings.config import load_node
from cddnet.node.settings.parts import matches
from cddnet.node.settings.rules import TEXTS, Conditions, Facts, Output, Rule, decide, facts_of
from cddnet.node.watch.vocabulary import REASONS
from cddnet.node.work.explain import explain

DEMO = sorted((Path(__file__).parents[2] / "src/cddnet/data/demo/series").glob("*.dcm"))
CHEST = Facts(
    modality="CT",
    series_description="Thorax low dose 1.0",
    protocol="LungLD",
    kernel="Br40d",
    body_part="CHEST",
    manufacturer="SIEMENS",
    scanner="Force",
    station="CT7",
    thickness_mm=1.0,
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    calling_ae="CT_SCANNER_1",
)
DO = ({"destinations": ["pacs"]},)


def rule(name="r", do=DO, **when):
    return Rule(name=name, when=Conditions(**when), do=do)


@pytest.mark.parametrize("name", TEXTS)
def test_each_text_has_its_own_condition(name):
    """A pattern of a field's own value matches; it does not once that field alone is different."""
    asked = rule(**{name: f"^{getattr(CHEST, name)}$"})
    assert decide(CHEST, [asked]).rule == "r"
    assert decide(replace(CHEST, **{name: "other"}), [asked]).rule is None
    assert decide(replace(CHEST, **{name: ""}), [asked]).rule is None


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({}, True),
        ({"series_description": "low.?dose"}, True),
        ({"series_description": "LOW"}, False),
        ({"series_description": "(?i)LOW"}, True),
        ({"thickness_mm": [1.0, 1.0]}, True),
        ({"thickness_mm": [1.01, 3]}, False),
        ({"thickness_mm": [0, 0.99]}, False),
        ({"image_type": ["original", "AXIAL"]}, True),
        ({"image_type": ["ORIGINAL", "SECONDARY"]}, False),
        ({"image_type_not": ["SECONDARY"]}, True),
        ({"image_type_not": ["SECONDARY", "axial"]}, False),
        ({"kernel": "^Br", "body_part": "ABDOMEN"}, False),
    ],
)
def test_all_conditions_must_hold(when, matches):
    assert (decide(CHEST, [rule(**when)]).rule == "r") == matches


@pytest.mark.parametrize(
    "pattern",
    ["^Br", "low.?dose", "(?i)LOW", r"\bdose\b", "^Thorax.*1\\.0", "ä|é", "(?i)É", "[^a-z]$", ""],
)
@pytest.mark.parametrize(
    "text", ["", "Br40d", "Thorax low-dose 1.0", "low dose", "caf\u00e9", "lowdosed", "x\nBr"]
)
def test_patterns_mean_what_they_mean_elsewhere(pattern, text):
    assert matches(pattern, text) == (re.search(pattern, text) is not None)


def test_no_pattern_takes_longer_than_its_text():
    """Each of these takes other engines longer than the world is old."""
    facts = replace(CHEST, series_description="a" * 64 + "b")
    for pattern in ("(a+)+$", "(a|aa)+$", "(.*)*$x", "(a|a)+$"):
        assert decide(facts, [rule(series_description=pattern)]).rule is None


def test_half_a_character_is_one_that_no_pattern_names():
    facts = replace(CHEST, series_description="Thorax \ud800")
    assert decide(facts, [rule(series_description="^Thorax .$")]).rule == "r"


def test_an_unknown_thickness_meets_no_range():
    facts = replace(CHEST, thickness_mm=None)
    assert decide(facts, [rule(thickness_mm=[0, 1000])]).rule is None
    assert decide(facts, [rule()]).rule == "r"


def test_ignore_is_a_decision_and_hides_what_follows():
    decision = decide(CHEST, [rule("out", do="ignore", kernel="B"), rule("all")])
    assert (decision.rule, decision.outputs) == ("out", ())
    assert "'all' would match, but 'out' comes before it" in decision.why[1]


@pytest.mark.parametrize(
    ("facts", "reason", "told"),
    [
        (replace(CHEST, ours=True), "ours", "derived by cddnet itself"),
        (replace(CHEST, modality="MR"), "no_ct", "modality is MR"),
        (replace(CHEST, modality=""), "no_ct", "modality is not stated"),
        (replace(CHEST, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), "localizer", "no slice"),
    ],
)
def test_some_are_never_taken_whatever_the_rules_say(facts, reason, told):
    decision = decide(facts, [rule()])
    assert (decision.rule, decision.outputs, decision.reason) == (None, (), reason)
    assert told in decision.why[0]


WORDS = st.sampled_from(["", "B30f", "Br40d", "chest", "Chest LD", "CT7", "a.b", "SIEMENS"])
PATTERNS = st.sampled_from(["B", "^Br", "(?i)CHEST", "LD$", "7|S", "a\\.b", "", "^$", "zzz"])
NUMBERS = st.sampled_from([0.5, 0.6, 1.0, 2.5, 5.0])
TYPES = st.sampled_from(["ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL"])


@st.composite
def rules(draw):
    when = draw(st.dictionaries(st.sampled_from(TEXTS), PATTERNS, max_size=3))
    if draw(st.booleans()):
        when["thickness_mm"] = sorted([draw(NUMBERS), draw(NUMBERS)])
    for name in ("image_type", "image_type_not"):
        when[name] = draw(st.lists(TYPES, max_size=2))
    return when, draw(st.sampled_from(["ignore", DO]))


@st.composite
def facts(draw):
    texts = {name: draw(WORDS) for name in TEXTS}
    kinds = tuple(draw(st.lists(TYPES, max_size=3)))
    thickness = draw(st.none() | NUMBERS)
    return Facts(modality="CT", **texts, thickness_mm=thickness, image_type=kinds)


def oracle(seen, when):
    """One boolean, written without the code under test."""
    for name, wanted in when.items():
        if name == "thickness_mm":
            ok = seen.thickness_mm is not None
            ok = ok and not (seen.thickness_mm < wanted[0] or seen.thickness_mm > wanted[1])
        elif name == "image_type":
            ok = not set(wanted) - set(seen.image_type)
        elif name == "image_type_not":
            ok = not set(wanted) & set(seen.image_type)
        else:
            ok = bool(re.compile(wanted).findall(getattr(seen, name)))
        if not ok:
            return False
    return True


@given(facts(), st.lists(rules(), max_size=5))
def test_the_first_that_matches_decides(seen, drawn):
    listed = [rule(str(place), do, **when) for place, (when, do) in enumerate(drawn)]
    matching = [item for item, (when, _) in zip(listed, drawn, strict=True) if oracle(seen, when)]
    decision = decide(seen, listed)
    first = matching[0] if matching else None
    assert decision.rule == (first.name if first else None)
    assert decision.outputs == (first.do if first else ())
    assert decision.reason == ("no_rule" if not first else "" if first.do else "rule_ignores")
    assert decision.reason in {"", *REASONS}
    assert len(decision.why) == len(listed) + (first is None)
    for item, line in zip(listed, decision.why, strict=False):
        assert line.startswith(f"rule '{item.name}'")
        assert ("does not match:" in line) == (item not in matching)


def test_a_series_is_judged_by_a_slice_not_by_its_scout(tmp_path):
    dataset = dcmread(DEMO[0])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.save_as(tmp_path / "scout.dcm")
    files = [tmp_path / "scout.dcm", DEMO[3]]
    for order in (files, files[::-1]):
        assert facts_of(order, " AE ").image_type[2:] == facts_of([DEMO[3]]).image_type[2:]
        assert facts_of(order, " AE ").calling_ae == "AE"
    assert decide(facts_of(files[:1]), [rule()]).rule is None
    with pytest.raises(DicomError, match="there is no file"):
        facts_of([])


def test_the_explanation_says_what_was_asked_found_and_done(tmp_path):
    listed = [
        rule("thin", thickness_mm=[0.5, 1.5]),
        rule("thick", [Output(strength=0.5, destinations=("pacs", "web"))], thickness_mm=[2, 9]),
    ]
    (tmp_path / "note.txt").write_text("no image", encoding="utf-8")
    told = explain([DEMO[0].parent, tmp_path], listed)
    lines = told.splitlines()
    assert lines[0] == f"{DEMO[0].name} and {len(DEMO) - 1} like it"
    assert "rule 'thin' does not match: thickness_mm 5 is not in 0.5-1.5" in lines[1]
    assert "rule 'thick' matches and decides: thickness_mm 5 is in 2-9" in lines[2]
    assert lines[3] == "  -> model default, strength 50%, to pacs, web"
    assert lines[4] == "  fitness check: fit"
    assert "is no DICOM image" in lines[6]
    mr = explain([Path(get_testdata_file("MR_small.dcm"))], listed)
    assert "modality is MR, not CT" in mr
    assert mr.splitlines()[-1] == "  -> ignored"
    with pytest.raises(DicomError, match="no such file"):
        explain([tmp_path / "none"], listed)


def test_no_identity_is_in_the_explanation(tmp_path):
    dataset = dcmread(DEMO[0])
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Zyxwvut", "PID-55", "19570203"
    dataset.save_as(tmp_path / "a.dcm")
    told = explain([tmp_path / "a.dcm"], [rule(kernel="x")])
    for marker in ("Zyxwvut", "PID-55", "19570203", str(dataset.SeriesInstanceUID)):
        assert marker not in told


@pytest.mark.parametrize(
    ("description", "decided"),
    [
        ("Thorax Low Dose MPR cor", "no reformats"),
        ("Coronary low-dose", "thin chest, two strengths"),
        ("Thorax", "soft kernels of one scanner"),
    ],
)
def test_the_rules_of_the_example_do_what_they_are_named_after(description, decided):
    example = load_node(Path(__file__).parents[2] / "deploy" / "node.yaml")
    facts = replace(CHEST, series_description=description)
    assert decide(facts, example.rules).rule == decided
