"""Calls of rollouts that several test files make."""

import torch

SAMPLED = {"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9}


def snapshot(prefill):
    """Copy the keys and values of every layer."""
    return [(layer.keys.clone(), layer.values.clone()) for layer in prefill.cache.layers]


def rollout_with_logits(model, prefill, count, **settings):
    """Run rollouts and collect per rollout the logits after each token but its last.

    `reference.copied_rollout_logits` returns the same.
    """
    steps = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: steps.append(output))
    try:
        rollouts = model.rollout(prefill, count, **settings)
    finally:
        hook.remove()
    logits = [[] for _ in range(count)]
    for step, rows in enumerate(steps):
        running = [i for i, tokens in enumerate(rollouts.tokens) if len(tokens) > step + 1]
        assert len(running) == len(rows), "a finished row is still decoded, or an unfinished one is not"
        for i, row in zip(running, rows):
            logits[i].append(row)
    return rollouts, [torch.stack(rows) for rows in logits]
