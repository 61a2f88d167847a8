"""Licences: what is needed is listed, GPL is flagged, data are attributed."""

from email.message import Message

import pytest

from cddnet.runtime import store
from cddnet.workflows import licences as module
from cddnet.workflows.licences import NOT_STATED, licence_of, licences, objection, table


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-or-later",
        "GPLv2",
        "AGPL-3.0",
        "GNU General Public License v3 (GPLv3)",
        "MIT AND GPL-2.0-only",
        "CC BY-NC 4.0",
        "for non-commercial use",
    ],
)
def test_what_may_not_be_passed_on_is_flagged(licence):
    assert objection(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "LGPL-3.0-only",
        "GNU Lesser General Public License v3 (LGPLv3)",
        "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1",
        "Mozilla Public License 2.0 (MPL 2.0)",
        "Apache-2.0 WITH LLVM-exception",
        NOT_STATED,
    ],
)
def test_what_may_be_passed_on_is_not(licence):
    assert objection(licence) == ""


class Installed:
    """A distribution with these metadata and requirements."""

    def __init__(self, name="a", requires=(), **fields):
        self.name, self.version, self.requires = name, "1", list(requires)
        self.metadata = Message()
        for field, value in fields.items():
            for one in value if isinstance(value, list) else [value]:
                self.metadata[field.replace("_", "-")] = one


def test_the_expression_goes_before_classifiers_and_these_before_text():
    classifiers = ["Programming Language :: Python", "License :: OSI Approved :: MIT License"]
    every = {"License_Expression": "BSD-3-Clause", "Classifier": classifiers, "License": "text"}
    assert licence_of(Installed(**every)) == "BSD-3-Clause"
    assert licence_of(Installed(Classifier=classifiers, License="text")) == "MIT License"
    assert licence_of(Installed(License="Copyright somebody\n\nmany words")) == "Copyright somebody"
    assert licence_of(Installed()) == NOT_STATED


def test_needed_are_requirements_of_requirements_and_the_others_only_if_objected_to(monkeypatch):
    installed = {
        "cddnet": Installed("cddnet", ["Under_Score>=1", 'left-out; extra == "dev"']),
        "under-score": Installed("under.score", ["deep[more]>=2"], License="MIT"),
        "deep": Installed("deep", ['far; extra == "more"', 'never; extra == "other"']),
        "far": Installed("far", License="GPL-3.0"),
        "left-out": Installed("left-out", License="MIT"),
        "never": Installed("never", License="AGPL-3.0"),
    }

    def find(name):
        try:
            return installed[module._normal(name)]
        except KeyError:
            raise module.PackageNotFoundError(name) from None

    monkeypatch.setattr(module, "distribution", find)
    monkeypatch.setattr(module, "distributions", installed.values)
    monkeypatch.setattr(module, "EXTRAS", {"tiff": (("absent",), "")})
    shown = {package.name: package for package in licences().packages}
    assert set(shown) == {"cddnet", "under.score", "deep", "far", "never"}
    assert shown["far"].needed
    assert shown["far"].objection
    assert not shown["never"].needed
    assert shown["under.score"].objection == ""
    lines = table(licences()).splitlines()
    assert any(line.startswith("! far") for line in lines)


def test_nothing_that_cddnet_needs_is_objected_to_and_data_are_attributed():
    found = licences()
    names = {package.name.lower() for package in found.packages if package.needed}
    assert names >= {"cddnet", "numpy", "torch", "pydicom", "python-gdcm", "pynetdicom"}
    assert "pytest" not in names
    assert [package for package in found.packages if package.needed and package.objection] == []
    assert {name for name, _ in found.data} == {card.name for card in store.cards()}
    assert all(collections for _, collections in found.data)
    text = table(found)
    assert "10.7937/QXK2-QG03" in text
    assert "Creative Commons Attribution 4.0" in text
