"""The slow, obvious implementation that the fork is tested against: the equations in float64, no cache, no batch.

Nothing here calls the fork's own code; only weights and upstream's plain forwards of the model are used. A row is a
result of `tiny.prompt`.
"""

import tiny
import torch
from transformers import DynamicCache


def scores(keys: torch.Tensor) -> torch.Tensor:
    """Return s_n = mean_h(-cos(k_hn, mean_n' k_hn' / |k_hn'|)) for keys (H, N, d), token by token, in float64."""
    heads, n, _ = keys.shape
    units = [[key / key.norm() for key in head_keys] for head_keys in keys.double()]
    anchors = [torch.stack(head_units).mean(dim=0) for head_units in units]
    result = []
    for token in range(n):
        cosines = [torch.dot(units[head][token], anchors[head]) / anchors[head].norm() for head in range(heads)]
        result.append(-torch.stack(cosines).mean())
    return torch.stack(result)


def kept_by_ratio(s: torch.Tensor, count: int) -> list[int]:
    """Select the `count` highest scores; fail when float32 cannot decide which they are."""
    order = sorted(range(len(s)), key=lambda n: -s[n])
    if count < len(s):
        gap = s[order[count - 1]] - s[order[count]]
        assert gap > 1e-6, f"the test's data are at fault: a score gap of {gap:.1e} decides what is kept"
    return sorted(order[:count])


def kept_by_angle(s: torch.Tensor, tau: float) -> list[int]:
    """Select the scores of at least -cos(tau); fail when float32 cannot decide which they are."""
    border = -torch.cos(torch.tensor(tau, dtype=torch.float64))
    assert (s - border).abs().min() > 1e-6, "the test's data are at fault: a score lies on the threshold"
    return [n for n in range(len(s)) if s[n] >= border] or [int(s.argmax())]


def window_order(grid: tuple[int, int, int], window: int = 2) -> list[int]:
    """Return the raster indices of merged tokens in the encoder's order: frame by frame, window by window."""
    t, h, w = grid
    return [
        (frame * h + row) * w + column
        for frame in range(t)
        for top in range(0, h, window)
        for left in range(0, w, window)
        for row in range(top, min(top + window, h))
        for column in range(left, min(left + window, w))
    ]


@torch.no_grad()
def item_keys(model, pixels: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Compute one item's keys of the last vision block from the block's input: (H, N, d) float64, raster order."""
    seen = {}

    def remember(module, args, kwargs):
        seen["hidden"], (seen["cos"], seen["sin"]) = args[0], kwargs["position_embeddings"]

    block = model.visual.blocks[-1]
    handle = block.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        t, h, w = grid
        model.visual(pixels, grid_thw=torch.tensor([[t, h * tiny.MERGE, w * tiny.MERGE]]))
    finally:
        handle.remove()
    hidden = block.norm1(seen["hidden"]).double()
    width = hidden.shape[1]
    weight, bias = block.attn.qkv.weight[width : 2 * width], block.attn.qkv.bias[width : 2 * width]
    keys = hidden @ weight.double().T + bias.double()
    keys = keys.view(len(hidden), block.attn.num_heads, -1)
    # Rotary embedding rotates each channel pair (c, c + d/2) by one angle.
    half = keys.shape[-1] // 2
    cos, sin = (seen[name].double()[:, None, :half] for name in ("cos", "sin"))
    a, b = keys[..., :half], keys[..., half:]
    keys = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    merged = keys.view(-1, tiny.MERGE**2, *keys.shape[1:]).mean(dim=1)
    raster = torch.empty_like(merged)
    raster[torch.tensor(window_order(grid))] = merged
    return raster.transpose(0, 1)


def items(row: dict) -> list[tuple[str, tuple[int, int, int], torch.Tensor]]:
    """Return (kind, grid in merged tokens, pixels) of each item, images first."""
    found = []
    for kind, pixels_name, grids_name in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        grids = row[grids_name].tolist() if grids_name in row else []
        pixels = row[pixels_name].split([t * h * w for t, h, w in grids]) if grids else []
        for (t, h, w), item_pixels in zip(grids, pixels):
            found.append((kind, (t, h // tiny.MERGE, w // tiny.MERGE), item_pixels))
    return found


def kept(model, row: dict, rho: float | None = None, tau: float | None = None) -> list[list[int]]:
    """Return the kept indices of each item, images first."""
    result = []
    for _, grid, pixels in items(row):
        s = scores(item_keys(model, pixels, grid))
        if tau is not None:
            result.append(kept_by_angle(s, tau))
        else:
            result.append(kept_by_ratio(s, max(1, int((1 - rho) * len(s) + 1e-6))))
    return result


def positions(model, row: dict, new_tokens: int = 0) -> torch.Tensor:
    """Return (time, row, column) of each token from left to right: (3, L + new_tokens)."""
    queues = {
        tiny.IMAGE: [grid for kind, grid, _ in items(row) if kind == "image"],
        tiny.VIDEO: [grid for kind, grid, _ in items(row) if kind == "video"],
    }
    seconds = row.get("second_per_grid_ts", torch.ones(0)).tolist()
    ids = row["input_ids"][0].tolist() + [0] * new_tokens
    found, i = [], 0
    while i < len(ids):
        start = max((max(p) for p in found), default=-1) + 1
        if ids[i] not in queues:
            found.append((start, start, start))
            i += 1
            continue
        t, h, w = queues[ids[i]].pop(0)
        step = seconds.pop(0) * model.config.vision_config.tokens_per_second if ids[i] == tiny.VIDEO else 0
        found += [(start + int(f * step), start + y, start + x) for f in range(t) for y in range(h) for x in range(w)]
        i += t * h * w
    return torch.tensor(found).T


def kept_columns(row: dict, kept_indices: list[list[int]]) -> list[int]:
    """Return the kept columns of the prompt: all text, and the kept tokens of each item (images first)."""
    ids = row["input_ids"][0].tolist()
    sizes = {"image": [], "video": []}
    for (kind, (t, h, w), _), indices in zip(items(row), kept_indices):
        sizes[kind].append((t * h * w, indices))
    columns, i = [], 0
    while i < len(ids):
        kind = {tiny.IMAGE: "image", tiny.VIDEO: "video"}.get(ids[i])
        if kind is None:
            columns.append(i)
            i += 1
        else:
            n, indices = sizes[kind].pop(0)
            columns += [i + k for k in indices]
            i += n
    return columns


@torch.no_grad()
def logits(model, row: dict, kept_indices: list[list[int]], generated: torch.Tensor) -> torch.Tensor:
    """Return next-token logits at the end of the pruned prompt and after each generated token but the last.

    The language model runs once over hand-built embeddings and positions, without any cache. The result is
    (steps, vocab).
    """
    ids = row["input_ids"][0]
    embeds = model.get_input_embeddings()(ids).clone()
    for kind, placeholder in (("image", tiny.IMAGE), ("video", tiny.VIDEO)):
        features = [
            model.visual(pixels, grid_thw=torch.tensor([[t, h * tiny.MERGE, w * tiny.MERGE]]))
            for item_kind, (t, h, w), pixels in items(row)
            if item_kind == kind
        ]
        if features:
            embeds[ids == placeholder] = torch.cat(features)
    columns = kept_columns(row, kept_indices)
    follow = generated[:-1]
    embeds = torch.cat([embeds[columns], model.get_input_embeddings()(follow)])
    where = positions(model, row, new_tokens=len(follow))
    where = torch.cat([where[:, columns], where[:, len(ids) :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None], position_ids=where[:, None], use_cache=False
    ).last_hidden_state[0]
    return model.lm_head(hidden[len(columns) - 1 :])


@torch.no_grad()
def copied_rollout_logits(model, prefill, tokens: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Return next-token logits after each token but the last of each rollout, one (len - 1, vocab) per rollout.

    The prompt's cache is copied for each of the K rows and grows by one concatenation per step, under the model's own
    attention. No row leaves the batch: short rollouts continue with padding, whose logits are left out.
    """
    cache = DynamicCache()
    for number, layer in enumerate(prefill.cache.layers):
        cache.update(layer.keys.repeat(len(tokens), 1, 1, 1), layer.values.repeat(len(tokens), 1, 1, 1), number)
    steps = max(map(len, tokens)) - 1
    fed = torch.tensor([(list(row) + [tiny.PAD] * steps)[:steps] for row in tokens])
    found = []
    for step in range(steps):
        where = prefill.input_ids.shape[1] + step + prefill.rope_delta
        hidden = model.model.language_model(
            input_ids=fed[:, step : step + 1],
            position_ids=torch.full((3, len(tokens), 1), where),
            past_key_values=cache,
        ).last_hidden_state[:, -1]
        found.append(model.lm_head(hidden))
    return [torch.stack(found)[: len(row) - 1, i] for i, row in enumerate(tokens)]
