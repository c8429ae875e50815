"""The project's AdamW: parameters with weight decay, parameters that learn faster, and the rate of every step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.config import TrainConfig

BETAS = (0.9, 0.98)
"""Decay of the averages of gradients and of their squares, as in the paper of the transformer."""


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Builds the optimiser of a stage; `scale` of a group is its factor on the learning rate."""
    groups = group_parameters(model, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)


def scale_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Returns the learning rate of a step (from 0): linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1))
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def group_parameters(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Groups parameters for AdamW: matrices decay; vectors and parameters with a scaled rate do not.

    Raises:
        ValueError: `rate_scales` names a part that its module does not have, for example after a rename.
    """
    scales = collect_rate_scales(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = scales.get(name, 1.0)
        decay = config.weight_decay if parameter.dim() > 1 and name not in scales else 0.0
        # A checkpoint numbers parameters by place, so their order must depend on model and recipe alone.
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def collect_rate_scales(model: nn.Module) -> dict[str, float]:
    """Returns parameter names -> factor on the learning rate, for parameters that have one.

    A module declares `rate_scales`: name of a member or parameter -> factor of all parameters below; "" = the module.

    Raises:
        ValueError: the module has no part of that name.
    """
    scales: dict[str, float] = {}
    for path, module in model.named_modules():
        of_module: Mapping[str, float] = getattr(module, "rate_scales", {})
        for member, scale in of_module.items():
            start = ".".join(part for part in (path, member) if part)
            below = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{start}.")]
            if not below:
                raise ValueError(f"a learning rate is scaled of {start!r}, which the model does not have")
            scales |= dict.fromkeys(below, scale)
    return scales


def read_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimiser's state as named tensors."""
    return {
        f"{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state that `read_optimizer` returned."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        states.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
