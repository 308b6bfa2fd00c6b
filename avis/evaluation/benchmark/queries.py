"""The calls whose speed is measured: our engine's, as `avis.pipeline.answer` makes them, and upstream's `generate`::

prefill = model.prefill(**inputs, **pruning_arguments(0.75))
rollouts = model.rollout(prefill, 5, **rollout_arguments(5, new_tokens=64))
run_upstream(model, inputs, 5, new_tokens=64)
"""

from typing import Any

import torch

_TEMPERATURE, _TOP_P = 0.7, 0.9


def pruning_arguments(rho: float) -> dict[str, Any]:
    """Return arguments of `model.prefill` for a fraction pruned; at 0, KDV is off."""
    return {"enable_kdv": True, "kdv_ratio": rho} if rho else {}


def rollout_arguments(k: int, new_tokens: int) -> dict[str, Any]:
    """Return arguments of `model.rollout` for K rollouts: greedy for one, sampled for more."""
    return {"max_new_tokens": new_tokens, "temperature": 0.0 if k == 1 else _TEMPERATURE, "top_p": _TOP_P}


def run_upstream(model, inputs: dict[str, torch.Tensor], k: int, new_tokens: int) -> torch.Tensor:
    """Return K rollouts of upstream's own `generate`, sampled as ours are."""
    if k == 1:
        return model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=_TEMPERATURE,
        top_p=_TOP_P,
        top_k=0,
        num_return_sequences=k,
    )
