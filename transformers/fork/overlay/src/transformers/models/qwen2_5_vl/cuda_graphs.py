"""CUDA graphs: the kernels of one decoding step are recorded once and launched by one call.

`decoding.Decoder` captures a step with `capture_cuda_graph` where `can_capture` allows it.
"""

from collections.abc import Callable
from functools import lru_cache
from weakref import WeakSet

import torch

# Models with layers that a graph cannot hold. A failed capture may harm the allocator, so it is not tried again.
_MODELS_WITHOUT_GRAPHS: WeakSet = WeakSet()


def can_capture(model, device: torch.device) -> bool:
    """Return whether a decoding step is likely to fit into a CUDA graph.

    All weights must be on one GPU and not quantised, and no module may have hooks, which a replay would not call.
    """
    if device.type != "cuda" or model in _MODELS_WITHOUT_GRAPHS or getattr(model, "hf_quantizer", None) is not None:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    return all(weight.device == device for weight in model.parameters())


def never_capture_again(model) -> None:
    """Exclude a model whose capture has failed from `can_capture`."""
    _MODELS_WITHOUT_GRAPHS.add(model)


@lru_cache
def _capture_stream_and_pool_owner(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """Return the stream of all captures on a GPU, and a small graph that owns the memory pool they share.

    Both are made once: cuBLAS keeps a workspace for every stream that it has seen, and the pool of a graph of its own
    would stay reserved after it.
    """
    stream, pool_owner = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        pool_owner.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        pool_owner.capture_end()
    return stream, pool_owner


def capture_cuda_graph(step: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Record the kernels of a step on a GPU without running them.

    `torch.cuda.graph` is not used, because it empties the allocator's cache each time.

    Args:
        step: launches the kernels and returns a tensor.
        device: the GPU.

    Returns:
        A function that runs all recorded kernels by one call, and returns the tensor that `step` returned.
    """
    with torch.cuda.device(device):
        graph, (stream, pool_owner) = torch.cuda.CUDAGraph(), _capture_stream_and_pool_owner(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool_owner.pool(), capture_error_mode="thread_local")
            try:
                output = step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay
