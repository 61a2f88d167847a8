"""Small data under the names that the documents use: FOLDER, TREE, FULL_DOSE and so on."""

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from cddnet import models
from cddnet.formats import read_volume, write_volume
from ct_tree import tissue, uid_of, write_series
from document_commands import COMMAND_LINE
from document_parts import PAGES, ROOT, blocks

DEMO = Path(str(files("cddnet") / "data" / "demo" / "series"))


def make_world(world):
    """Series, links to the repository's folders, and a prepared set, into an empty folder."""
    for name, slices in (("FULL_DOSE", range(1, 8)), ("FOLDER", range(5, 8))):
        (world / name).mkdir()
        for number in slices:
            shutil.copy(DEMO / f"{number:04}.dcm", world / name)
    for folder in ("configs", "benchmarks", "deploy"):
        (world / folder).symlink_to(ROOT / folder)
    for patient in ("a", "b", "c", "d"):
        small_series(world / "TREE" / patient, patient)
    run(world, ["prepare", "TREE", "PREPARED"])


def small_series(folder, patient, name="full", **told):
    def pixels(place):
        return tissue(patient, name, place, size=(64, 64))

    return write_series(folder, patient, name=name, pixels=pixels, **told)


def run(world, words):
    """The command line in `world`, in this process: one import of torch for all of them."""
    here = Path.cwd()
    os.chdir(world)
    try:
        COMMAND_LINE.main(args=list(words), standalone_mode=False)
    finally:
        os.chdir(here)


def make_whole_world(world):
    """Besides, what only commands name."""
    make_world(world)
    run(world, ["simulate", "FULL_DOSE", "LOW_DOSE"])
    run(world, ["denoise", "LOW_DOSE", "DENOISED"])
    same = {
        "FULL_DOSE": ("REFERENCE",),
        "FOLDER": ("my_ct", "SERIES_FOLDER"),
        "LOW_DOSE": ("PATH", "INPUT", "low"),
        "DENOISED": ("TEST", "denoised"),
        "TREE": ("DATASET", "SOURCE"),
    }
    for name, others in same.items():
        for other in others:
            (world / other).symlink_to(world / name)
    shutil.copy(world / "FOLDER" / "0005.dcm", world / "SLICE.dcm")
    (world / "folders.txt").write_text("TREE\n")
    (world / "token").write_text("0123456789abcdef")
    make_pictures(world)
    make_public_sets(world)
    make_weights(world)
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml" and "allowed_callers" in block.text:
                (world / "node.yaml").write_text(block.text)
            elif block.language == "yaml" and "validation" in block.text:
                (world / "split.yaml").write_text(block.text)


def make_pictures(world):
    write_volume(read_volume(world / "FOLDER"), world / "VOLUME.mha")
    for folder in ("PICTURES", "TRAIN_DIR"):
        for side in ("IN", "GT"):
            (world / folder / side).mkdir(parents=True)
            for number, patient in enumerate(("L067", "L096", "L109", "L143")):
                hu = tissue(patient, side, size=(64, 64))
                grey = ((hu + 700.0) * 255 / 1000).clip(0, 255)
                # Air, so that the pictures can be a body in every window of the documents.
                grey[:16] = 0
                picture = Image.fromarray(grey.astype(np.uint8))
                picture.save(world / folder / side / f"{patient}_{number}.png")


def make_public_sets(world):
    for patient in ("L067", "L096", "L109", "L143", "L506"):
        for kind in ("full", "quarter"):
            small_series(
                world / "MAYO" / patient / f"{kind}_3mm",
                "Anonymous",
                StudyInstanceUID=uid_of(patient),
                FrameOfReferenceUID=uid_of(patient, "frame"),
                SeriesInstanceUID=uid_of(patient, kind),
                name=f"{patient}{kind}",
            )
        for kind in ("Full", "Low"):
            small_series(
                world / "TCIA" / patient / "study" / f"1.000000-{kind} Dose Images-12345",
                patient,
                name=f"{kind}",
            )


def make_weights(world):
    network = models.build("wgan_vgg")
    with torch.no_grad():
        # One that changes nothing, because what chance makes of an image is no HU.
        for values in network.state_dict().values():
            values.zero_()
            if values.ndim == 4:
                values[0, 0, values.shape[2] // 2, values.shape[3] // 2] = 1
    torch.save(network.state_dict(), world / "FILE.pth")
    run(world, ["models", "import", "FILE.pth", "imported", "--as", "WEIGHTS"])
    for suffix in (".safetensors", ".json"):
        shutil.copy(world / "imported" / f"WEIGHTS{suffix}", world)
    told = {"OPTIM": {"NUM_EPOCHS": 1}, "TRAINING": {"TRAIN_DIR": "TRAIN_DIR"}}
    (world / "training.yml").write_text(yaml.safe_dump(told))
