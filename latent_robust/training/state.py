"""The state of a trainer, to and from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .continuation import compare

if TYPE_CHECKING:
    from .loop import Trainer


def capture(trainer: Trainer) -> Checkpoint:
    """Everything that the next step depends on."""
    optimizer = trainer.optimizer.optimizer.state_dict()
    optimizer["state"] = {trainer.names[i]: _flat(m) for i, m in optimizer["state"].items()}
    schedule = {k: v for k, v in trainer.schedule.state_dict().items() if k != "lr_lambdas"}
    scaler, ema = trainer.accelerator.scaler, trainer.ema
    return Checkpoint(
        model=trained_state(trainer),
        ema={} if ema is None else dict(zip(trainer.names, ema.shadow_params, strict=True)),
        optimizer=optimizer,
        trainer={
            "step": trainer.step,
            "schedule": schedule,
            "scaler": scaler.state_dict() if scaler else None,
            "ema_steps": ema.optimization_step if ema else 0,
            "identity": trainer.identity,
        },
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Raises InputError, with the differences, if the checkpoint belongs to another run."""
    compare(checkpoint.trainer["identity"], trainer.identity)
    with torch.no_grad():
        for name, value in trained_state(trainer).items():
            value.copy_(checkpoint.model[name])
        if trainer.ema is not None:
            for name, average in zip(trainer.names, trainer.ema.shadow_params, strict=True):
                average.copy_(checkpoint.ema[name])
            trainer.ema.optimization_step = checkpoint.trainer["ema_steps"]
    position = {name: i for i, name in enumerate(trainer.names)}
    state = {position[name]: m for name, m in checkpoint.optimizer["state"].items()}
    trainer.optimizer.optimizer.load_state_dict({**checkpoint.optimizer, "state": state})
    schedule = trainer.schedule
    schedule.load_state_dict({**checkpoint.trainer["schedule"], "lr_lambdas": [None]})
    # If `steps` has changed, so have the rates: those in the checkpoint are of the old schedule.
    (rate,) = schedule.lr_lambdas
    schedule._last_lr = [base * rate(schedule.last_epoch) for base in schedule.base_lrs]
    for group, current in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = current
    if trainer.accelerator.scaler and checkpoint.trainer["scaler"]:
        trainer.accelerator.scaler.load_state_dict(checkpoint.trainer["scaler"])
    trainer.step = checkpoint.trainer["step"]


def _flat(moments: dict[str, Any]) -> dict[str, Any]:
    """bitsandbytes nests all moments except the step under one key; it loads both forms."""
    flat: dict[str, Any] = {}
    for name, value in moments.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def trained_state(trainer: Trainer) -> dict[str, Tensor]:
    """The trained parameters by name; with the buffers if the whole network is trained."""
    network = trainer.plain_network
    named = dict(zip(trainer.names, trainer.parameters, strict=True))
    whole = all(p.requires_grad for p in network.parameters())
    return {**named, **(network_buffers(network) if whole else {})}


def network_buffers(network: torch.nn.Module) -> dict[str, Tensor]:
    """Persistent buffers only."""
    state = network.state_dict()
    return {name: b for name, b in network.named_buffers() if name in state}
