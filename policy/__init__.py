"""AVIS's allocation of test-time compute: from a question about pictures to one voted answer.

    >>> from policy import AvisSettings, answer
    >>> settings = AvisSettings(enable_kdv=True, kdv_ratio=0.75, num_rollouts=5)
    >>> answer(model, processor, messages, settings).text                       # doctest: +SKIP
    '2'
"""

from policy.answer import Answer, AvisSettings, answer
from policy.vote import extract_answer, majority_vote

__all__ = ["Answer", "AvisSettings", "answer", "extract_answer", "majority_vote"]
