"""What a checkpoint is made of: sizes of the towers, the projector and the language model, and how images enter."""

from __future__ import annotations

from dataclasses import dataclass

from splitvla_shared.spec import Resize


@dataclass(frozen=True, slots=True)
class TowerGeometry:
    """One ViT. `prefix` is where its tensors live in the checkpoint, with the final dot.

    depth counts the blocks that run: one less than are stored. registers and has_cls say what precedes the patches.
    mean and std are those of the tower's normalisation, three channels each.
    """

    prefix: str
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_size: int
    patches: int
    has_cls: bool
    registers: int
    layer_scale: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """All that the encoder graph computes. projector_widths are the output widths of fc1, fc2 (and fc3).

    letterbox_fill is the RGB grey of the padding, None where images are stretched to the square.
    """

    towers: tuple[TowerGeometry, ...]
    projector_widths: tuple[int, ...]
    image_size: int
    resize: Resize
    letterbox_fill: tuple[int, int, int] | None

    @property
    def patches(self) -> int:
        return self.towers[0].patches

    @property
    def embed_dim(self) -> int:
        return self.projector_widths[-1]


@dataclass(frozen=True, slots=True)
class LanguageGeometry:
    """The Llama backbone, every field explicit; field names are those of transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    attention_bias: bool
    mlp_bias: bool
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int | None


Shape = tuple[int, ...]


def tower_shapes(tower: TowerGeometry) -> dict[str, Shape]:
    """The tensors that a tower's forward pass reads, by full name, in the order they are read."""
    dim, prefix = tower.dim, tower.prefix
    shapes: dict[str, Shape] = {
        "patch_embed.proj.weight": (dim, 3, tower.patch_size, tower.patch_size),
        "patch_embed.proj.bias": (dim,),
        "pos_embed": (1, tower.patches, dim),
    }
    if tower.has_cls:
        shapes["cls_token"] = (1, 1, dim)
    if tower.registers:
        shapes["reg_token"] = (1, tower.registers, dim)
    for index in range(tower.depth):
        block = {
            **_affine("norm1", (dim,)),
            **_affine("attn.qkv", (3 * dim, dim)),
            **_affine("attn.proj", (dim, dim)),
            **_affine("norm2", (dim,)),
            **_affine("mlp.fc1", (tower.mlp_dim, dim)),
            **_affine("mlp.fc2", (dim, tower.mlp_dim)),
        }
        if tower.layer_scale:
            block |= {"ls1.scale_factor": (dim,), "ls2.scale_factor": (dim,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return {prefix + name: shape for name, shape in shapes.items()}


def vision_shapes(vision: VisionGeometry) -> dict[str, Shape]:
    """The tensors of the encoder graph: towers, then projector."""
    shapes: dict[str, Shape] = {}
    for tower in vision.towers:
        shapes |= tower_shapes(tower)
    fan_in = sum(tower.dim for tower in vision.towers)
    for number, width in enumerate(vision.projector_widths, start=1):
        shapes |= _affine(f"projector.fc{number}", (width, fan_in))
        fan_in = width
    return shapes


def language_shapes(language: LanguageGeometry) -> dict[str, Shape]:
    """The tensors of LlamaForCausalLM, named as transformers names them (no `language_model.` before them)."""
    hidden, mlp = language.hidden_size, language.intermediate_size
    queries = language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    attention: dict[str, Shape] = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }
    feed_forward: dict[str, Shape] = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (language.vocab_size, hidden)}
    for index in range(language.num_hidden_layers):
        layer = f"model.layers.{index}."
        for group, linears, bias in (
            ("self_attn", attention, language.attention_bias),
            ("mlp", feed_forward, language.mlp_bias),
        ):
            for name, shape in linears.items():
                shapes[f"{layer}{group}.{name}.weight"] = shape
                if bias:
                    shapes[f"{layer}{group}.{name}.bias"] = shape[:1]
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (language.vocab_size, hidden)
    return shapes


def _affine(name: str, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
