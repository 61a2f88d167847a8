"""Rules: which series are denoised, how, and where the results go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from cddnet.errors import DicomError
from cddnet.formats._facts import HeaderFacts, read_facts
from cddnet.node.settings.parts import Part, Pattern, matches
from cddnet.runtime import engines

# Conditions that are patterns, and the facts of the same names that they are looked for in.
TEXTS = (
    "series_description",
    "protocol",
    "kernel",
    "body_part",
    "manufacturer",
    "scanner",
    "station",
    "calling_ae",
)


class Conditions(Part):
    """What a series must be; all that are given must hold. Patterns match anywhere in the text."""

    series_description: Pattern | None = Field(None, description="pattern in SeriesDescription")
    protocol: Pattern | None = Field(None, description="pattern in ProtocolName")
    kernel: Pattern | None = Field(None, description="pattern in ConvolutionKernel")
    body_part: Pattern | None = Field(None, description="pattern in BodyPartExamined")
    manufacturer: Pattern | None = Field(None, description="pattern in Manufacturer")
    scanner: Pattern | None = Field(None, description="pattern in ManufacturerModelName")
    station: Pattern | None = Field(None, description="pattern in StationName")
    calling_ae: Pattern | None = Field(None, description="pattern in the sender's AE title")
    thickness_mm: tuple[float, float] | None = Field(
        None, description="smallest and largest slice thickness, both included"
    )
    image_type: tuple[str, ...] = Field((), description="values that ImageType must all have")
    image_type_not: tuple[str, ...] = Field((), description="values that ImageType must not have")

    @field_validator("thickness_mm")
    @classmethod
    def _low_high(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits is not None and not 0 <= limits[0] <= limits[1]:
            raise ValueError("expected [smallest, largest] in mm, such as [0.5, 3]")
        return limits


class Output(Part):
    """One denoised series made of each series that the rule matches."""

    model: str = Field("default", description="a shipped name or a .safetensors file")
    strength: float | None = Field(
        None, ge=0, le=1, description="0 the source, 1 the network; default: the model card's"
    )
    engine: str = Field("auto", description="what runs the network; auto: the fastest there is")
    image_type: Literal["SECONDARY", "PRIMARY"] = Field(
        "SECONDARY", description="value 2 of ImageType"
    )
    force: bool = Field(
        False, description="denoise also what the fitness check refuses; the result says so"
    )
    destinations: tuple[str, ...] = Field(min_length=1, description="names from `destinations`")

    @field_validator("engine")
    @classmethod
    def _known(cls, engine: str) -> str:
        known = ("auto", *engines.names())
        if engine not in known:
            raise ValueError(f"there is no such engine; choose one of: {', '.join(known)}")
        return engine

    @field_validator("destinations")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a destination is named twice; name each once")
        return names


class Order(Output):
    """An output as it was decided on, frozen with the series."""

    # Journals of before the check name none: what they made stays as it was.
    forced: str | None = Field(
        "", description="kinds that the fitness check refused; none: it is still to be made"
    )
    notes: tuple[str, ...] = Field((), description="what the check noted, for people")


class Rule(Part):
    """What is done to the series that meet the conditions; the first rule that matches decides."""

    name: str = Field(min_length=1, max_length=64, description="shown in queue, log and audit")
    when: Conditions = Field(Conditions(), description="none: every series")
    do: tuple[Output, ...] = Field(description="outputs, or the word ignore (held as none)")

    @field_validator("do", mode="before")
    @classmethod
    def _ignore(cls, value: object) -> object:
        if value == "ignore":
            return ()
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("expected a list of outputs, or the word ignore")
        return value

    @field_validator("do")
    @classmethod
    def _apart(cls, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        """Objects of one recipe have one UID, and so only one place to be."""
        recipes = [
            output.model_copy(update={"destinations": (), "force": False}) for output in outputs
        ]
        for place, recipe in enumerate(recipes):
            if recipe in recipes[:place]:
                first = recipes.index(recipe) + 1
                raise ValueError(
                    f"outputs {first} and {place + 1} would be the same images; name the "
                    "destinations of both in one"
                )
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts(HeaderFacts):
    """What rules look at. calling_ae: AE title of the sender, "" where nobody sent it."""

    calling_ae: str = ""


class Decision(NamedTuple):
    """What becomes of a series.

    rule: the one that decided, None if none matched or none was asked.
    outputs: to make of the series; none: it is ignored.
    why: a line for every rule; they quote headers, so they are for a terminal, never for a log.
    reason: word of the log for why it is ignored, "" if it is not.
    """

    rule: str | None
    outputs: tuple[Output, ...]
    why: tuple[str, ...]
    reason: str = ""


def facts_of(files: Iterable[Path], calling_ae: str = "") -> Facts:
    """Facts of a series: of the first of its files that is a slice, if there is one.

    Raises DicomError for a file that is no DICOM image, or damaged.
    """
    facts: Facts | None = None
    for file in files:
        found = Facts(**asdict(read_facts(file)), calling_ae=calling_ae.strip())
        if not found.stray:
            return found
        facts = facts or found
    if facts is None:
        raise DicomError("there is no file to decide on; give at least one.")
    return facts


def decide(facts: Facts, rules: Sequence[Rule]) -> Decision:
    """The first rule whose conditions all hold decides; without one a series is ignored.

    What is no CT slice, and what this package made itself, is ignored whatever the rules say.
    """
    never = _never(facts)
    if never:
        reason, told = never
        return Decision(None, (), (f"never taken: {told}",), reason)
    decided: Rule | None = None
    why = []
    for rule in rules:
        held = _conditions(facts, rule.when)
        failed = [text for holds, text in held if not holds]
        if failed:
            why.append(f"rule '{rule.name}' does not match: {'; '.join(failed)}")
        elif decided is None:
            decided = rule
            told = "; ".join(text for _, text in held) or "it takes every series"
            why.append(f"rule '{rule.name}' matches and decides: {told}")
        else:
            why.append(f"rule '{rule.name}' would match, but '{decided.name}' comes before it")
    if decided is None:
        return Decision(None, (), (*why, "no rule matches"), "no_rule")
    return Decision(decided.name, decided.do, tuple(why), "" if decided.do else "rule_ignores")


def asks_for_caller(facts: Facts, rules: Sequence[Rule]) -> str:
    """Name of the first rule whose decision depends on who sent the series, "" where none does."""
    if _never(facts):
        return ""
    for rule in rules:
        others = rule.when.model_copy(update={"calling_ae": None})
        if all(holds for holds, _ in _conditions(facts, others)):
            return "" if rule.when.calling_ae is None else rule.name
    return ""


def _never(facts: Facts) -> tuple[str, str] | None:
    """(word, sentence) for what no rule may take."""
    if facts.ours:
        return "ours", "it was derived by cddnet itself"
    if facts.modality != "CT":
        return "no_ct", f"modality is {facts.modality or 'not stated'}, not CT"
    if _is_localizer(facts):
        return "localizer", "it is a localizer, no slice"
    return None


def _is_localizer(facts: HeaderFacts) -> bool:
    return "LOCALIZER" in facts.image_type[2:]


def _conditions(facts: Facts, when: Conditions) -> list[tuple[bool, str]]:
    """(whether it holds, what was asked and found) of every condition that is given."""
    held = []
    for name in TEXTS:
        pattern, found = getattr(when, name), getattr(facts, name)
        if pattern is not None:
            holds = matches(pattern, found)
            held.append((holds, f"{name} '{found}' {_verb(holds)} '{pattern}'"))
    if when.thickness_mm is not None:
        held.append(_thickness(facts.thickness_mm, *when.thickness_mm))
    said = "\\".join(facts.image_type)
    for value in when.image_type:
        holds = value.upper() in facts.image_type
        held.append((holds, f"image_type '{said}' {'has' if holds else 'lacks'} {value}"))
    for value in when.image_type_not:
        holds = value.upper() not in facts.image_type
        held.append((holds, f"image_type '{said}' {'lacks' if holds else 'has'} {value}"))
    return held


def _thickness(found_mm: float | None, low_mm: float, high_mm: float) -> tuple[bool, str]:
    if found_mm is None:
        return False, "thickness_mm is not stated"
    holds = low_mm <= found_mm <= high_mm
    return holds, f"thickness_mm {found_mm:g} is {'' if holds else 'not '}in {low_mm:g}-{high_mm:g}"


def _verb(holds: bool) -> str:
    return "matches" if holds else "does not match"
