"""Initial weights and optimisers that the training runs share."""

import torch
from torch import nn


def initialise(model: nn.Module) -> None:
    """Matrices from a truncated normal of standard deviation 0.02, as usual for ViTs; biases zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def initialise_convolutions(model: nn.Module) -> None:
    """Kaiming-normal weights for convolutions: 0.02 suits wide matrices, but these read few values."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def optimisers(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            in_block = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if in_block else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
