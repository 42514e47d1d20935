"""Every objective by name, and what is true of it. factory.py makes them.

Imports no torch, so that a command can print its help or refuse a typo at once.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTACKS = {
    "displacement": "along the displacement that a random perturbation causes, by forward passes",
    "gradient": "by the gradient of that displacement's size (FGSM), as in the paper",
    "random": "at random",
}
# Defaults of the peers' own settings.
HUBER_C = 0.1
GAMMA = 0.1

ADVERSARIAL = tuple(name for name in ATTACKS if name != "random")


@dataclass(frozen=True)
class ObjectiveFacts:
    """What is true of an objective. Other code asks for these facts, never for its name.

    summary: for help texts.
    regularized: adds the penalty, so the penalty's settings and cost apply.
    random: its perturbation is random, whatever the setting `attack` is.
    equivariant: False for the negative control.
    needs_levels: trains on a sample only at noise levels above the sample's own.
    needs_audit: the levels come from a model that is trained or loaded first.
    standard_noising: the network's input is alpha * sample + sigma * noise at every time.
    plain: the denoising loss alone.
    """

    summary: str
    regularized: bool = False
    random: bool = False
    equivariant: bool = True
    needs_levels: bool = False
    needs_audit: bool = False
    standard_noising: bool = True
    plain: bool = False

    @property
    def takes_levels(self) -> bool:
        """The user gives the levels: as a file, or by a contamination of known strength."""
        return self.needs_levels and not self.needs_audit


OBJECTIVES = {
    "ddpm": ObjectiveFacts("plain denoising", plain=True),
    "robust-adversarial": ObjectiveFacts(
        "the regularizer, perturbed where it moves the prediction most", regularized=True
    ),
    "robust-random": ObjectiveFacts(
        "the regularizer, perturbed at random", regularized=True, random=True
    ),
    "audited": ObjectiveFacts(
        "ambient diffusion with the levels that a trained model finds in its own data",
        needs_levels=True,
        needs_audit=True,
        standard_noising=False,
    ),
    "ambient": ObjectiveFacts(
        "ambient diffusion, given the noise level of each sample",
        needs_levels=True,
        standard_noising=False,
    ),
    "invariance": ObjectiveFacts(
        "the regularizer without its equivariance; a negative control",
        regularized=True,
        equivariant=False,
    ),
    "pseudo-huber": ObjectiveFacts("scheduled pseudo-Huber loss"),
    "hellinger": ObjectiveFacts("denoising in which samples of large error count little (NED)"),
    "input-perturbation": ObjectiveFacts("DDPM-IP", standard_noising=False),
    "at-diff": ObjectiveFacts(
        "adversarial training of the denoising loss itself", standard_noising=False
    ),
}


def facts_of(name: str | None) -> ObjectiveFacts:
    """The facts of the objective `name`, a key of OBJECTIVES. None: of no objective."""
    return OBJECTIVES[name] if name is not None else ObjectiveFacts("")


def check_share(penalty_fraction: float, penalty_every: int) -> None:
    """Raises ValueError unless every N-th batch can hold N times the penalized share."""
    if not 0 < penalty_fraction <= 1:
        raise ValueError(f"`penalty_fraction` must lie in (0, 1], got {penalty_fraction}")
    if penalty_every < 1 or penalty_every * penalty_fraction > 1:
        raise ValueError(
            "`penalty_every` must lie between 1 and 1 / penalty_fraction, got "
            f"{penalty_every} with penalty_fraction {penalty_fraction}: the samples would not fit "
            "into one batch; 1 always works"
        )
