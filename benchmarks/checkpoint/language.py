"""The language model of a checkpoint's sizes, as transformers configures it."""

from __future__ import annotations

from typing import Any

from benchmarks.checkpoint.sizes import Sizes


def llama_config(sizes: Sizes) -> Any:
    """A LlamaConfig; whatever `sizes` does not say is transformers' default, as in openvla-7b."""
    from transformers import LlamaConfig  # slow to import, and most users of this package only write files

    return LlamaConfig(
        vocab_size=sizes.vocab_rows,
        hidden_size=sizes.llm_dim,
        intermediate_size=sizes.llm_mlp,
        num_hidden_layers=sizes.llm_layers,
        num_attention_heads=sizes.llm_heads,
        num_key_value_heads=sizes.llm_heads,
    )
