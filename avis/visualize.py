"""Draw the visual tokens that were kept over what the model saw, and the tokens' scores beside them::

cache = VisionCache()
answer(model, processor, messages, AvisConfig(enable_kdv=True), vision_cache=cache)
draw_kept(cache, processor).save("kept.png")
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers.models.qwen2_5_vl.key_diversity import key_diversity_scores

from avis.session import VisionCache

_GAP, _TEXT = 12, 18  # pixels
_SIDE, _FRAME, _FRAMES = 448, 224, 8  # least long side of an image; long side of a strip's frames; their number
_DIM = 0.2  # share of a pruned token's colour that is drawn
# Dark blue over red to light yellow, from the least score to the largest.
_HEAT = np.array([(13, 8, 60), (106, 23, 110), (188, 55, 84), (243, 120, 25), (252, 255, 164)], dtype=float)


def draw_kept(vision_cache: VisionCache, processor) -> Image.Image:
    """Return one image for all items of a query: kept tokens at the left (above, for a video), and scores beside them.

    Args:
        vision_cache: of a query with KDV on.
        processor: the model's, which knows how pixels were scaled.

    Returns:
        An RGB image: per item a line of text and two panels of the same size. Pruned tokens are dimmed; the heat map
        runs from the item's least score (dark, redundant) to its largest (light, diverse). A video shows up to 8 steps,
        spread evenly.

    Raises:
        ValueError: the query showed nothing, or was not pruned.
    """
    if not vision_cache.items or any(item.keys is None for item in vision_cache.items):
        raise ValueError("nothing was pruned: there are no kept tokens to draw")
    blocks, taken, seen = [], {"image": 0, "video": 0}, {"image": 0, "video": 0}
    for item, kept in zip(vision_cache.items, vision_cache.kept, strict=True):
        part = processor.image_processor if item.kind == "image" else processor.video_processor
        rows = vision_cache.pixels["pixel_values" if item.kind == "image" else "pixel_values_videos"]
        count = len(item.embeds) * part.merge_size**2
        shown = _unpatchify(rows[taken[item.kind] : taken[item.kind] + count], item.grid, part)
        taken[item.kind] += count
        seen[item.kind] += 1
        scores = key_diversity_scores(item.keys).cpu()
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[kept.cpu()] = True
        share = f"kept {len(kept)} of {len(scores)} (rho = {1 - len(kept) / len(scores):.2f})"
        spread = f"scores {float(scores.min()):.2f} (dark) to {float(scores.max()):.2f} (light)"
        title = f"{item.kind} {seen[item.kind]}: {share}; {spread}"
        blocks.append(_block(title, shown, mask.view(item.grid).numpy(), scores.view(item.grid).numpy()))
    return _stacked(blocks, across=False)


def _unpatchify(rows: torch.Tensor, grid: tuple[int, int, int], part) -> np.ndarray:
    """Return what the model saw, (t, height, width, 3) in [0, 255]: each step's first frame, from its patches.

    Args:
        rows: (t * h * w * merge**2, channels * temporal patch * patch * patch), as `Qwen2VLImageProcessor` cuts them.
        grid: (t, h, w) in merged tokens.
    """
    (t, h, w), merge, patch = grid, part.merge_size, part.patch_size
    cut = rows.float().view(t, h, w, merge, merge, 3, part.temporal_patch_size, patch, patch)[..., 0, :, :]
    whole = cut.permute(0, 1, 3, 6, 2, 4, 7, 5).reshape(t, h * merge * patch, w * merge * patch, 3)
    scaled = whole * torch.tensor(part.image_std) + torch.tensor(part.image_mean)
    return (scaled * 255).round().clamp(0, 255).numpy().astype(np.uint8)


def _block(title: str, shown: np.ndarray, kept: np.ndarray, scores: np.ndarray) -> Image.Image:
    """Draw one item: its title over its two panels. shown: (t, height, width, 3); kept, scores: (t, h, w)."""
    steps = np.linspace(0, len(shown) - 1, min(len(shown), _FRAMES)).round().astype(int)
    is_strip = len(steps) > 1
    size = _size(shown.shape[2], shown.shape[1], _FRAME if is_strip else _SIDE, shrink=is_strip)
    span = max(float(scores.max() - scores.min()), 0.01)  # less is rounding, in an image of one colour
    heats = _heat((scores - scores.min()) / span)
    tokens = [_panel(shown[step], size, kept[step]) for step in steps]
    maps = [_panel(heats[step], size) for step in steps]
    panels = _stacked([_stacked(tokens, across=True), _stacked(maps, across=True)], across=not is_strip)
    font = ImageFont.load_default(14)
    width = max(panels.width, int(font.getlength(title)) + 1)
    block = Image.new("RGB", (width, panels.height + _TEXT), "white")
    ImageDraw.Draw(block).text((0, 0), title, fill="black", font=font)
    block.paste(panels, (0, _TEXT))
    return block


def _size(width: int, height: int, side: int, shrink: bool) -> tuple[int, int]:
    scale = side / max(width, height)
    scale = scale if shrink else max(scale, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _panel(pixels: np.ndarray, size: tuple[int, int], kept: np.ndarray | None = None) -> Image.Image:
    panel = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if kept is None else Image.Resampling.BICUBIC)
    if kept is None:
        return panel
    grey = Image.blend(Image.new("RGB", size, (96, 96, 96)), panel.convert("L").convert("RGB"), _DIM)
    mask = Image.fromarray((kept * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return Image.composite(panel, grey, mask)


def _heat(share: np.ndarray) -> np.ndarray:
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(share, stops, _HEAT[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def _stacked(parts: list[Image.Image], across: bool) -> Image.Image:
    long = sum(part.width if across else part.height for part in parts) + _GAP * (len(parts) - 1)
    wide = max(part.height if across else part.width for part in parts)
    whole = Image.new("RGB", (long, wide) if across else (wide, long), "white")
    place = 0
    for part in parts:
        whole.paste(part, (place, 0) if across else (0, place))
        place += (part.width if across else part.height) + _GAP
    return whole
