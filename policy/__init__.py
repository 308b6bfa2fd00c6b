"""The policy: a predictor of a query's solvability p, and the rule that turns p into K rollouts.

>>> from policy.policy_model import PolicyModel
>>> policy = PolicyModel("policy_checkpoint.pt")  # doctest: +SKIP
>>> policy(embeds)  # visual embeddings (1, N, D) to K  # doctest: +SKIP
5
"""
