"""AdamW as the project uses it: which parameters decay, which learn faster, and the rate of every step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Builds the optimiser of a stage; `scale` of a group is its factor on the learning rate."""
    groups = group_parameters(model, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def scale_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Returns the learning rate of a step (from 0): linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1))
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def group_parameters(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Groups parameters for AdamW: matrices decay, vectors and tables with a rate of their own do not.

    Raises:
        ValueError: a name of `rate_scales` is none of its module's, so a rename would silently have lost its rate.
    """
    scales = collect_rate_scales(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = scales.get(name, 1.0)
        decay = config.weight_decay if parameter.dim() > 1 and name not in scales else 0.0
        # A checkpoint numbers parameters by place, so their order must follow from model and recipe alone.
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def collect_rate_scales(model: nn.Module) -> dict[str, float]:
    """Returns the factor on the learning rate of every parameter that has one, by the parameter's name.

    A module says so in `rate_scales`: names of its own members or parameters -> factor of all below; "" = all of it.

    Raises:
        ValueError: a name is none of the module's.
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
    """Puts back what `read_optimizer` returned."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        states.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
