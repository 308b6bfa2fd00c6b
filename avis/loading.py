"""Load a model and its processor from a folder or by a hub name; what is wrong is reported in one line::

model, processor = load_model("models/garden-tiny")
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from avis.checkpoint import check_model_folder

# What is fetched of a model on the hub (neither code nor pickles), which small files show that it is complete, and how
# long the hub may take to say that it has it.
_FETCHED = ("*.json", "*.jinja", "*.txt", "*.safetensors")
_SMALL = ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
HUB_SECONDS = 5.0


def load_model(
    path: str | Path, device: str | None = None, dtype: str = "auto", attn_implementation: str = "auto"
) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """Load a Qwen2.5-VL checkpoint and its processor.

    Args:
        path: a `from_pretrained` folder with safetensors weights, or a hub name, whose files are fetched when they are
            not on this disk.
        device: None: CUDA when there is one, else the CPU. "auto": spread over all CUDA devices there are.
        dtype: "auto" (float32 on the CPU, the checkpoint's own elsewhere), "float32", "bfloat16" or "float16".
        attn_implementation: "auto" (FlashAttention-2 when it is installed and usable, else SDPA), or a name.

    Returns:
        The model in eval mode, and the processor.

    Raises:
        ValueError, OSError, MemoryError: with one line.
    """
    if device is None or (device == "auto" and torch.cuda.device_count() < 2):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: there is no CUDA device")
    check_model_folder(path)
    try:
        with advise_on_memory("use a smaller model, or dtype bfloat16"):
            model, processor = _load(model_folder(path), device, dtype, attn_implementation)
            processor.tokenizer.name_or_path = str(path)  # by which `answer_format_for` knows the model
            return model, processor
    except (MemoryError, OSError, ValueError):
        raise
    except Exception as error:  # the files of a folder may hold anything, and fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load {path}: {reason}") from None


def model_folder(path: str | Path) -> Path:
    """Return where a model's files are on this disk, fetching them when a hub name's files are missing.

    Args:
        path: a folder or a hub name. The hub is asked once, and only when something is missing.

    Raises:
        ValueError, OSError: with one line.
    """
    if Path(path).is_dir():
        return Path(path)
    name = str(path)
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        check_model_folder(folder)
        if all((folder / small).is_file() for small in _SMALL):
            return folder
    except HFValidationError:
        raise ValueError(f"no such model folder, and no hub name: {name}") from None
    except (OSError, ValueError):  # nothing of it is here, or not all
        pass
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise ValueError(f"the hub has no model {name}, or you have no access to it") from None
    except OSError as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
        raise OSError(f"{name} is not on this disk, and {reason}: give a folder") from None
    return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))


@contextmanager
def advise_on_memory(advice: str) -> Iterator[None]:
    """Turn a lack of memory, of a device or of the computer, into a MemoryError of one line with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_lack = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if is_lack or "can't allocate memory" in str(error) or "ALLOC_FAILED" in str(error):
            raise MemoryError(f"out of memory: {advice}") from None
        raise


def _load_processor(path: Path) -> Any:
    """Load a processor without a warning about a plain fast tokenizer: its own files decide how it cuts words."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "load from this checkpoint is 'PreTrainedTokenizerFast'" not in record.getMessage()

    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addFilter(is_wanted)
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    finally:
        logger.removeFilter(is_wanted)


def _load(path: Path, device: str, dtype: str, attn_implementation: str):
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"{path} is a {config.model_type} model, not a Qwen2.5-VL")
    processor = _load_processor(path)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else str(config.dtype or torch.float32).removeprefix("torch.")
    if attn_implementation == "auto":
        attn_implementation = "flash_attention_2" if _flash_is_usable(device, dtype) else "sdpa"
    spread = {"device_map": "auto"} if device == "auto" else {}
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=attn_implementation,
        use_safetensors=True,
        output_loading_info=True,
        **spread,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacking = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
        raise ValueError(f"{path} is incomplete: {len(lacking)} tensors are missing or misshapen, as {lacking[0]}")
    if not spread:
        return model.to(device).eval(), processor
    if {"cpu", "disk"} & set(map(str, model.hf_device_map.values())):
        raise MemoryError  # larger than all CUDA devices together
    return model.eval(), processor


def _flash_is_usable(device: str, dtype: str) -> bool:
    """Return whether FlashAttention-2 is installed and can run there: half precision, Ampere or newer."""
    if not device.startswith(("cuda", "auto")) or dtype == "float32" or not is_flash_attn_2_available():
        return False
    return torch.cuda.get_device_capability(None if device == "auto" else device) >= (8, 0)
