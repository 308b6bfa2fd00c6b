"""What processes that train one model together compute from all of their data."""

import torch


def average(tensors: list[torch.Tensor], num_processes: int) -> None:
    """Replace each tensor by its mean over all processes."""
    if num_processes == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = flat.div_(num_processes).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def agree(is_true: bool, num_processes: int) -> bool:
    """Return what the first process says: clocks differ, and all must save and stop at the same batch."""
    if num_processes == 1:
        return is_true
    word = torch.tensor([float(is_true)])
    torch.distributed.broadcast(word, src=0)
    return bool(word.item())


def weighted_least_squares(
    inputs: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor, num_processes: int
) -> torch.Tensor:
    """Return the matrix that maps inputs to outputs with the least weighted squared error over all processes' tokens.

    Args:
        inputs: (tokens, N).
        outputs: (tokens, M).
        weights: (tokens, 1).
        num_processes: that each call this with their tokens.

    Returns:
        (N, M).
    """
    weighted = inputs * weights
    inner, outer = weighted.T @ inputs, weighted.T @ outputs
    average([inner, outer], num_processes)
    ridge = 1e-4 * inner.trace() / len(inner) * torch.eye(len(inner)).to(inner)
    return torch.linalg.solve(inner + ridge, outer)
