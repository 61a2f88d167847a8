"""A denoiser for archive runs that takes no time and counts what it is asked."""

import os
from dataclasses import replace
from types import SimpleNamespace

from small_node import shifted

from cddnet.models._cards import read_card
from cddnet.node.archive.manifest import Manifest
from cddnet.runtime import store
from cddnet.workflows import denoise


class Quick:
    """A denoiser that adds SHIFT_HU; counts slices, and fails as told."""

    def __init__(self):
        self.slices, self.volumes, self.errors = 0, 0, []
        self.sha256 = read_card(store.find("default")).sha256

    def __call__(self, volume, options):
        self.volumes += 1
        if self.errors:
            raise self.errors.pop(0)

        def counted(index):
            self.slices += 1
            return volume.read_slice(index)

        derived = shifted(
            replace(volume, read_slice=counted), SimpleNamespace(strength=options.strength)
        )
        steps = [replace(step, weights_sha256=self.sha256) for step in derived.derivation]
        return replace(derived, derivation=tuple(steps), headers=volume.headers)


def quick_archive(monkeypatch):
    """Install the denoiser, and do without waiting for the disk."""
    denoiser = Quick()
    monkeypatch.setattr(denoise, "denoise_with", denoiser)
    # Without waiting for the disk the order of steps is the same.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    opened = Manifest.__init__

    def unsynchronised(self, folder):
        opened(self, folder)
        self._database.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(Manifest, "__init__", unsynchronised)
    return denoiser
