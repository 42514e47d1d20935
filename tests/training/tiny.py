"""A task of milliseconds for the tests of the loop; run as a script it is killed and resumed.

python tiny.py OUT STEPS [resume] [workers] [record]

record: one of several processes; writes what it drew and what it learned to OUT/rank-N.safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from latent_robust.core import NoiseProcess
from latent_robust.training.config import TrainConfig
from latent_robust.training.continuation import identity
from latent_robust.training.loop import Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.resume import resume
from latent_robust.training.run import start_accelerator
from latent_robust.training.state import capture


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


class Recording:
    """An objective that records what each of its calls is given."""

    def __init__(self, objective):
        self.objective, self.penalty = objective, objective.penalty
        self.times, self.noise, self.seeds, self.levels = [], [], [], []

    def __call__(self, denoise, sample, t, noise, generator=None, **options):
        self.times.append(t)
        self.noise.append(noise)
        # Of the perturbation, and of dropout.
        self.seeds.append(torch.tensor([generator.initial_seed(), torch.initial_seed()]))
        self.levels.append(options["levels"])
        return self.objective(denoise, sample, t, noise, generator, **options)


def make_trainer(
    out: Path, *, dataset=None, dropout=0.2, fingerprint="points", levels=None, **settings
) -> Trainer:
    defaults = {
        "objective": "robust-adversarial",
        "weight": 3.0,
        "band": 0.5,
        "steps": 12,
        "batch_size": 5,
        "penalty_fraction": 1.0,
        "warmup": 2,
        "ema_decay": 0.9,
        "checkpoint_every": 4,
        "log_every": 1,
        "device": "cpu",
    }
    config = TrainConfig(**{**defaults, **settings}, out=out)
    task = TinyTask(dataset, dropout)
    accelerator = start_accelerator(config)
    trainer = Trainer(
        task,
        build_objective(config, task.process),
        config,
        accelerator,
        out=out,
        levels=levels,
        identity=identity(config, fingerprint, accelerator.num_processes),
    )
    resume(trainer, config.resume, out)
    return trainer


def write_record(trainer: Trainer, recording: Recording, file: Path) -> None:
    """Each step's times, noise, seeds and sample indices; the weights, moments and averages."""
    state = capture(trainer)
    moments = {
        f"{name}/{key}": value
        for name, moments in state.optimizer["state"].items()
        for key, value in moments.items()
    }
    drawn = {
        "times": torch.stack(recording.times),
        "noise": torch.stack(recording.noise),
        "seeds": torch.stack(recording.seeds),
        "indices": torch.tensor(trainer.task.dataset.seen),
    }
    learned = {"model": state.model, "ema": state.ema, "moments": moments}
    learned = {f"{part}/{key}": v for part, values in learned.items() for key, v in values.items()}
    tensors = {**{f"drawn/{key}": value for key, value in drawn.items()}, **learned}
    save_file({key: value.detach().clone() for key, value in tensors.items()}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run, steps = Path(sys.argv[1]), int(sys.argv[2])
    record = "record" in sys.argv
    trainer = make_trainer(
        run,
        steps=steps,
        checkpoint_every=steps if record else 1,
        resume="auto" if "resume" in sys.argv else None,
        workers=1 if "workers" in sys.argv else 0,
    )
    if record:
        trainer.objective = Recording(trainer.objective)
    print("training", flush=True)
    finished = trainer.train()
    if record:
        rank = trainer.accelerator.process_index
        write_record(trainer, trainer.objective, run / f"rank-{rank}.safetensors")
    sys.exit(0 if finished else 3)
