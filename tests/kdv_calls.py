"""Calls of the tiny model with KDV that several test files make."""

import contextlib

import reference

STEPS = 6
VISUAL_PROMPTS = ["image", "video", "two_images", "video_then_image", "interleaved"]
PIXEL_ARGUMENTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def generate(model, inputs, **kwargs):
    """Generate `STEPS` new tokens, greedily by default, and return the raw logits of each step with them."""
    kwargs = {"max_new_tokens": STEPS, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs, return_dict_in_generate=True, output_logits=True)


def new_tokens(inputs, output):
    """Return the tokens that follow the prompts."""
    return output.sequences[:, inputs["input_ids"].shape[1] :]


def pruned_length(row, kept):
    """Return the length of a prompt of which each item keeps the tokens `kept`."""
    return len(reference.kept_columns(row, kept))


def pixel_inputs(inputs):
    """Return the pixels and grids of the inputs."""
    return {name: value for name, value in inputs.items() if name in PIXEL_ARGUMENTS}


def replace_pixels_by_items(model, inputs):
    """Return the inputs with encoded items instead of pixels and grids."""
    items = model.model.encode_visual(**pixel_inputs(inputs))
    return {k: v for k, v in inputs.items() if k not in PIXEL_ARGUMENTS} | {"visual_items": items}


@contextlib.contextmanager
def calls_of(module):
    """Collect the keyword arguments of every call of a module, in order."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
