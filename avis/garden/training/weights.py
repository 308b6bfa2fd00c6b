"""Begins training with another checkpoint's weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration


def warm_start(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copy the weights of a checkpoint of the same shape into a model.

    Words that both tokenizers know keep their embeddings, whatever their numbers; new words keep the model's own.

    Args:
        model: changed in place.
        tokenizer: the model's.
        folder: of the checkpoint.

    Raises:
        ValueError: the folder has no weights, or layers of other shapes.
    """
    loaded: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded |= load_file(file)
    if not loaded:
        raise ValueError(f"{folder} has no safetensors weights to start from")
    own = model.state_dict()
    # Names in files are those of the released checkpoints; the model's own are one level deeper.
    names = {n.replace("model.visual.", "visual.").replace("model.language_model.", "model."): n for n in own}
    known, words = AutoTokenizer.from_pretrained(folder).get_vocab(), tokenizer.get_vocab()
    shared = [word for word in words if word in known]
    into, out_of = torch.tensor([words[word] for word in shared]), torch.tensor([known[word] for word in shared])
    for name, tensor in loaded.items():
        target = own[names[name]] if name in names else None
        if target is None:
            raise ValueError(f"{name} of {folder} is no part of this model")
        if name.startswith(("model.embed_tokens", "lm_head")):
            target[into] = tensor[out_of]
        elif target.shape != tensor.shape:
            raise ValueError(f"{name} of {folder} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        else:
            target.copy_(tensor)
