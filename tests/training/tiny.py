"""A task of milliseconds for the tests of the loop; run as a script it is killed and resumed.

python tiny.py OUT STEPS [resume] [workers]
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from latent_robust.core import NoiseProcess
from latent_robust.training.config import TrainConfig
from latent_robust.training.continuation import identity
from latent_robust.training.loop import Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.resume import resume
from latent_robust.training.run import start_accelerator


class Points(Dataset):
    """Records which samples were asked for."""

    def __init__(self, count=37, bad=()):
        self.values = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.values[list(bad)] = float("nan")
        self.seen = []

    def __len__(self):
        return len(self.values)

    def __getitems__(self, indices):
        self.seen.append(list(indices))
        return {"sample": self.values[indices], "index": torch.tensor(indices)}


class TinyTask:
    def __init__(self, dataset=None, dropout=0.2):
        torch.manual_seed(1)
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(6, 1, 1)
        )
        self.dataset = Points() if dataset is None else dataset
        self.buckets = [range(len(self.dataset))]
        alphas = torch.linspace(0.9999, 0.01, 100)
        self.process = NoiseProcess.from_alphas_cumprod(alphas, "epsilon")
        self.previews = []

    def prepare(self, batch, generator):
        return batch["sample"], None

    def draw_times(self, batch, generator):
        return self.process.draw_times(batch, generator)

    def denoiser(self, network, conditions):
        return lambda noisy, t, rows: network(noisy)

    def auxiliary_loss(self, denoise, sample, t):
        return None

    def on_checkpoint(self, network, step):
        self.previews.append(step)


def make_trainer(out: Path, *, dataset=None, **settings) -> Trainer:
    defaults = {
        "objective": "robust-adversarial",
        "weight": 3.0,
        "band": 0.5,
        "steps": 12,
        "batch_size": 5,
        "fraction": 1.0,
        "warmup": 2,
        "ema_decay": 0.9,
        "checkpoint_every": 4,
        "log_every": 1,
        "device": "cpu",
    }
    config = TrainConfig(**{**defaults, **settings}, out=out)
    task = TinyTask(dataset)
    accelerator = start_accelerator(config)
    trainer = Trainer(
        task,
        build_objective(config, task.process),
        config,
        accelerator,
        out=out,
        identity=identity(config, "points", accelerator.num_processes),
    )
    resume(trainer, config.resume, out)
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    run, steps = Path(sys.argv[1]), int(sys.argv[2])
    trainer = make_trainer(
        run,
        steps=steps,
        checkpoint_every=1,
        resume="auto" if "resume" in sys.argv else None,
        workers=1 if "workers" in sys.argv else 0,
    )
    print("training", flush=True)
    sys.exit(0 if trainer.train() else 3)
