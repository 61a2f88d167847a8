"""A training run small enough for tests, and processes to run it in."""

import multiprocessing
import os
import socket
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cddnet.config import TrainConfig
from cddnet.models._output import Output
from cddnet.physics.beam import SliceGeometry
from cddnet.training import engine, methods
from cddnet.training.methods import adamw, frozen
from cddnet.training.methods.supervised import Supervised
from cddnet.training.pairs import FullDoseSlice
from cddnet.training.processes import Processes, joined

ALONE = Processes(device=torch.device("cpu"))


def config(**values):
    small = {"crop": 16, "crops_per_slice": 2, "workers": 0, "device": "cpu", "log_every": 1}
    return TrainConfig(**(small | {"precision": "float32", "ema": 0.9, "steps": 12} | values))


def slices(count=3, size=24):
    rng = np.random.default_rng(7)
    return [
        FullDoseSlice(
            rng.normal(40, 60, (size, size)).astype(np.float32),
            SliceGeometry(2.5, 5.0),
            "1.2.3",
            index,
        )
        for index in range(count)
    ]


class Tiny(nn.Module):
    """Has what is hard to resume: dropout, a layout of its own, a parameter without gradient."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        self.dead = nn.Parameter(torch.ones(2))
        for parameter in self.body.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, image):
        return Output(image + 0.1 * self.body(image))


class Adversarial:
    """The updates of a Wasserstein scheme: a critic trained twice with a penalty on its gradient,
    by a detached denoiser, and a denoiser by a frozen critic.
    """

    def __init__(self, config, denoiser):
        self.denoiser = denoiser
        self.critic = methods.like(
            nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 1, 3)), denoiser
        )
        self.networks = {"denoiser": denoiser, "critic": self.critic}
        self.optimisers = {
            name: adamw(network.parameters(), config) for name, network in self.networks.items()
        }

    def step(self, pair, updates):
        denoise, critic = updates.network("denoiser"), updates.network("critic")
        for _ in range(2):
            with torch.no_grad():
                fake = denoise(pair.low_dose).image
            share = updates.uniform(len(fake), 1, 1, 1)
            mixed = (share * fake + (1 - share) * pair.full_dose).requires_grad_()
            (slope,) = torch.autograd.grad(
                critic(mixed).mean((1, 2, 3)).sum(), mixed, create_graph=True
            )
            penalty = (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
            critic_loss = critic(fake).mean() - critic(pair.full_dose).mean() + 10 * penalty
            updates.minimise("critic", critic_loss)
        denoised = denoise(pair.low_dose).image
        with frozen(self.critic):
            judged = -self.critic(denoised).mean()
        loss = 0.01 * judged + (denoised - pair.full_dose).square().mean()
        updates.minimise("denoiser", loss)
        return {"critic": critic_loss, "penalty": penalty, "denoiser": loss}


def validate(network):
    """A score that rises and falls: the sine of a large multiple of a weight."""
    score = float(torch.sin(3000 * network.body[0].weight.detach().double().sum()))
    return engine.Validation(score, {"score": score}, lambda: np.zeros((4, 12), np.float32))


def job(folder, chosen, *, method="supervised", processes=ALONE, dropout=0.0):
    """A run in a folder, the best network of which is kept there."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(chosen.seed)
    network = Tiny(dropout).to(engine.number_type(chosen))
    kind = Adversarial if method == "adversarial" else Supervised

    def keep_best(best, step, figures):
        torch.save(best.state_dict(), folder / "best.pt")

    return engine.Job(
        config=chosen,
        method=kind(chosen, network),
        slices=slices(),
        folder=folder,
        processes=processes,
        validate=validate,
        keep_best=keep_best,
        progress=lambda what, done, total: None,
    )


class Stop(Exception):
    pass


def stopping_at(step, wanted):
    """The job, stopped after a step as a kill would."""

    def progress(what, done, total):
        if done == step:
            raise Stop

    return replace(wanted, progress=progress)


def _train_shared(rank, size, port, folder, values, method):
    values = dict(values)
    last = values.pop("stop_at", None)
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ.update(address | {"RANK": str(rank), "WORLD_SIZE": str(size)})
    with joined("cpu") as processes:
        wanted = job(folder, config(**values), method=method, processes=processes)
        with suppress(Stop):
            engine.train(stopping_at(last, wanted))


def forkserver():
    """Processes that start at once: torch is imported before they part."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training", "cddnet.workflows.train"])
    return context


def train_shared(size, folder, values, method):
    """Train in several processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = (size, port, folder, values, method)
    every = [
        forkserver().Process(target=_train_shared, args=(rank, *arguments)) for rank in range(size)
    ]
    for process in every:
        process.start()
    for process in every:
        process.join(60)
        assert process.exitcode == 0
