"""AVIS's allocation of test-time compute: from a question about pictures to one voted answer.

    >>> from policy import AvisSettings, answer
    >>> settings = AvisSettings(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5)
    >>> answer(model, processor, messages, settings).text                       # doctest: +SKIP
    '2'

`Answer`, `answer` and `PolicyModel` are imported when they are first used: they need torch, which takes seconds.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from policy.settings import AvisSettings
from policy.vote import extract_answer, majority_vote

if TYPE_CHECKING:
    from policy.answer import Answer, answer
    from policy.policy_model import PolicyModel

__all__ = ["Answer", "AvisSettings", "PolicyModel", "answer", "extract_answer", "majority_vote"]
_LATER = {"Answer": "policy.answer", "answer": "policy.answer", "PolicyModel": "policy.policy_model"}


class _Package(ModuleType):
    """Keeps `policy.answer` the function, where importing the submodule of that name would set the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_submodule = name == "answer" and isinstance(value, ModuleType)
        super().__setattr__(name, value.answer if is_submodule else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
