"""Names of the weights of a transformer layer, in timm and the codes that grew from it, and here."""

from __future__ import annotations

NAMES_IN_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def names_of_layer(theirs: str, ours: str, qkv_bias: bool = True) -> dict[str, tuple[str, ...]]:
    """Return which weights of our layer each weight of theirs becomes.

    Args:
        theirs: Prefix of their layer, "blocks.0".
        ours: Prefix of our layer, "layers.0".
        qkv_bias: The projections to query, key and value have a bias.

    Returns:
        Their name → our name; the fused `qkv` becomes three, equal parts of its first axis in their order.
    """
    names: dict[str, tuple[str, ...]] = {}
    for kind in ("weight", "bias"):
        names |= {f"{theirs}.{stem}.{kind}": (f"{ours}.{name}.{kind}",) for stem, name in NAMES_IN_LAYER.items()}
        if qkv_bias or kind == "weight":
            names[f"{theirs}.attn.qkv.{kind}"] = tuple(f"{ours}.attention.{part}_proj.{kind}" for part in "qkv")
    return names
