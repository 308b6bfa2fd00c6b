"""AVIS: adaptive test-time compute for vision-language models.

    >>> from avis import AvisPipeline
    >>> avis = AvisPipeline.from_pretrained("models/garden-tiny", policy="policy_checkpoint.pt")  # doctest: +SKIP
    >>> avis("example.jpg", "How many wooden rabbits are wearing glasses?", enable_kdv=True).answer  # doctest: +SKIP
    '2'

Names that need torch, which takes seconds to import, are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avis.answers import answers_match, extract_answer
from avis.config import AvisConfig
from avis.outputs import AvisOutput
from avis.voting import majority_vote

if TYPE_CHECKING:
    from avis.pipeline import AvisPipeline, answer

__all__ = [
    "AvisConfig",
    "AvisOutput",
    "AvisPipeline",
    "answer",
    "answers_match",
    "extract_answer",
    "majority_vote",
]
_LAZY = {"AvisPipeline": "avis.pipeline", "answer": "avis.pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
