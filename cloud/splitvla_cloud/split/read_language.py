"""LanguageGeometry from `text_config`, which names only what differs from LlamaConfig's defaults."""

from __future__ import annotations

from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import LanguageGeometry
from splitvla_shared.errors import CheckpointError

_ACTIVATION = "silu"  # what every engine here computes


def read_language(config: Fields) -> LanguageGeometry:
    """Raises CheckpointError for a language model that is no plain Llama.

    The defaults are those of transformers' LlamaConfig, written out because openvla-7b depends on them:
    rms_norm_eps is 1e-6 there, not the 1e-5 of Llama 2.
    """
    text = config.table("text_config", {})
    _check_plain_llama(text)
    hidden = text.integer("hidden_size", 4096)
    heads = text.integer("num_attention_heads", 32)
    if not heads or hidden % heads:
        raise CheckpointError(f"{text.where}: hidden_size {hidden} does not divide into {heads} heads")
    pad = text.data.get("pad_token_id", config.data.get("pad_token_id"))
    return LanguageGeometry(
        vocab_size=text.integer("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=text.integer("intermediate_size", 11008),
        num_hidden_layers=text.integer("num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=text.integer("num_key_value_heads", heads),
        head_dim=text.integer("head_dim", hidden // heads),
        hidden_act=_ACTIVATION,
        max_position_embeddings=text.integer("max_position_embeddings", 2048),
        rms_norm_eps=text.real("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(text),
        attention_bias=text.flag("attention_bias", False),
        mlp_bias=text.flag("mlp_bias", False),
        bos_token_id=text.integer("bos_token_id", 1),
        eos_token_id=text.integer("eos_token_id", 2),
        pad_token_id=pad if isinstance(pad, int) and pad >= 0 else None,
    )


def _check_plain_llama(text: Fields) -> None:
    kind = text.text("model_type", "llama")
    if kind != "llama":
        raise CheckpointError(f"{text.where}: model_type is {kind!r}; only llama backbones can be split")
    activation = text.text("hidden_act", _ACTIVATION)
    if activation != _ACTIVATION:
        raise CheckpointError(f"{text.where}: hidden_act is {activation!r}; only {_ACTIVATION} backbones can be split")
    if text.flag("tie_word_embeddings", False):
        raise CheckpointError(f"{text.where}: tie_word_embeddings is true; only untied language models can be split")
    for name in ("rope_scaling", "rope_parameters"):
        scaling = text.data.get(name) or {}
        rope = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else scaling
        if rope != "default":
            raise CheckpointError(f"{text.where}: {name} {rope!r} is unsupported; expected none")


def _rope_theta(text: Fields) -> float:
    """Older configs hold `rope_theta` itself, transformers 5 writes it into `rope_parameters`.

    Raises CheckpointError where the two differ: each version of transformers takes its own.
    """
    newer = text.table("rope_parameters", {}).real("rope_theta", text.real("rope_theta", 10000.0))
    theta = text.real("rope_theta", newer)
    if newer != theta:
        raise CheckpointError(
            f"{text.where}: rope_theta is {theta:g}, rope_parameters says {newer:g}; keep that of the training"
        )
    return theta
