"""The cache of K rollouts that continue one prompt, and the attention that reads it.

The keys and values of the prompt are stored once, whatever K is. Each row adds only those of its own tokens::

    cache = SharedPrefixCache(prefill.cache, num_rows=7, max_new_tokens=511)
    cache.grow()
    model.model(input_ids=..., past_key_values=cache, ...)

The language model's attention calls `SharedPrefixCache.attend` instead of the configured implementation.
"""

import torch
import torch.nn.functional as F

from ...cache_utils import Cache, DynamicCache, DynamicLayer

# The first capacity of each row, in tokens. The capacity doubles from there.
INITIAL_CAPACITY = 64


class _SharedPrefixLayer(DynamicLayer):
    """One layer of the cache.

    Attributes:
        prefix_keys: `(1, key heads, P, d)`, the keys of the prompt.
        prefix_values: `(1, key heads, P, d)`, the values of the prompt.
        keys: `(rows, key heads, capacity, d)`, the keys of each row's own tokens, zeros where none is written yet.
        values: `(rows, key heads, capacity, d)`, the values of each row's own tokens.
    """

    def __init__(self, prefix_keys: torch.Tensor, prefix_values: torch.Tensor, num_rows: int):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values
        self.keys = prefix_keys.new_zeros(num_rows, prefix_keys.shape[1], 0, prefix_keys.shape[3])
        self.values = prefix_values.new_zeros(num_rows, prefix_values.shape[1], 0, prefix_values.shape[3])
        self.is_initialized = True

    def grow(self, num_tokens: int) -> None:
        """Add capacity for `num_tokens` tokens to each row."""
        self.keys = F.pad(self.keys, (0, 0, 0, num_tokens))
        self.values = F.pad(self.values, (0, 0, 0, num_tokens))

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows and remove the others."""
        self.keys = self.keys[rows.to(self.keys.device)]
        self.values = self.values[rows.to(self.values.device)]

    def update(self, key_states, value_states, cache_kwargs=None):
        """Write one token of each row.

        The device reads the place of the token, so that a recorded step can be replayed for the next token.

        Args:
            key_states: `(rows, key heads, 1, d)`.
            value_states: `(rows, key heads, 1, d)`.
            cache_kwargs: `cache_position` holds the place of the token among the row's own, `(1,)`.

        Returns:
            The keys and the values of each row's own tokens, the unused capacity included.
        """
        index = cache_kwargs["cache_position"]
        return self.keys.index_copy_(2, index, key_states), self.values.index_copy_(2, index, value_states)


class SharedPrefixCache(Cache):
    """The cache of rows that continue one prompt by one token at a time.

    The keys and values of the prompt are neither copied nor repeated.

    Attributes:
        capacity: tokens that each row has memory for.
        max_new_tokens: the largest capacity.
    """

    def __init__(self, prefix: DynamicCache, num_rows: int, max_new_tokens: int):
        """Start `num_rows` rows without capacity.

        Args:
            prefix: the cache of the prompt, at batch size 1. It is only read.
            num_rows: rows that continue the prompt.
            max_new_tokens: tokens that a row writes at most.
        """
        super().__init__(layers=[_SharedPrefixLayer(layer.keys, layer.values, num_rows) for layer in prefix.layers])
        self.capacity, self.max_new_tokens = 0, max_new_tokens

    def grow(self) -> None:
        """Double the capacity: by at least `INITIAL_CAPACITY`, and to at most `max_new_tokens`."""
        num_tokens = min(max(self.capacity, INITIAL_CAPACITY), self.max_new_tokens - self.capacity)
        for layer in self.layers:
            layer.grow(num_tokens)
        self.capacity += num_tokens

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows, `(n,)` indices, and remove the others."""
        for layer in self.layers:
            layer.keep_rows(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, the unused capacity included."""
        return sum(
            states.numel() * states.element_size()
            for layer in self.layers
            for states in (layer.prefix_keys, layer.prefix_values, layer.keys, layer.values)
        )

    def attend(self, module, query, key, value, attention_mask, *, scaling: float, **kwargs):
        """Attend to the prompt and to a row's own tokens under one softmax.

        The signature is that of Transformers' attention functions. Query heads that share a key head are further
        queries to the same keys. All rows share the prompt, so there the rows are further queries, too (Hydragen,
        Juravsky et al. 2024).

        Args:
            module: the attention layer.
            query: `(rows, heads, 1, d)`.
            key: `(rows, key heads, capacity, d)`, as `update` returned it.
            value: `(rows, key heads, capacity, d)`, as `update` returned it.
            attention_mask: `(capacity,)`, 0 where a row has written a token and -inf elsewhere. Every row sees all
                of the prompt.
            scaling: the factor of the scores.

        Returns:
            `(rows, 1, heads, d)`, and None in place of the attention weights.
        """
        layer = self.layers[module.layer_idx]
        rows, heads, _, width = query.shape
        key_heads, prefix_length = layer.prefix_keys.shape[1:3]
        query = query.view(rows, key_heads, -1, width)
        folded_query = query.transpose(0, 1).reshape(key_heads, -1, width)
        scores = folded_query @ layer.prefix_keys[0].transpose(1, 2)
        scores = scores.view(key_heads, rows, -1, prefix_length)
        own_scores = query @ key.transpose(2, 3) + attention_mask
        scores = torch.cat([scores, own_scores.transpose(0, 1)], dim=-1) * scaling
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        from_prefix = weights[..., :prefix_length].flatten(1, 2) @ layer.prefix_values[0]
        from_own = weights[..., prefix_length:].transpose(0, 1) @ value
        output = from_prefix.view(key_heads, rows, -1, width).transpose(0, 1) + from_own
        return output.reshape(rows, 1, heads, width), None
