"""Every lever that was built or thought of, as a training with it and one without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """Ours with something changed.

    Attributes:
        values: keys of the recipe.
        patches: names in ``speed_patches``.
        shelf: none or cold.
        processes: that share the shards, one or two.
    """

    values: dict[str, Any]
    patches: tuple[str, ...] = ()
    shelf: str = "cold"
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Ablation:
    """A lever: ours with it and without it.

    Attributes:
        lever: in words.
        used: whether it is, in words.
        base: name of the base that is trained.
        one: with it.
        other: without it.
        epochs: passes.
    """

    lever: str
    used: str
    base: str
    one: Variant
    other: Variant
    epochs: int = 1


UNCHANGED = Variant({})
ALWAYS, DEFAULT, ASKED, NEVER = "always", "by default", "if asked for", "never"
_TWO_LAYERS = {"layers": "last-2"}

ABLATIONS = (
    *(
        Ablation("batches of like length, against pass order", DEFAULT, base, UNCHANGED, Variant({"batching": "order"}))
        for base in ("encoder", "llama")
    ),
    *(
        Ablation("our LoRA arithmetic, against PEFT's modules", ALWAYS, base, UNCHANGED, Variant({}, ("peft_lora",)))
        for base in ("encoder", "llama")
    ),
    Ablation(
        "what frozen layers make kept over 3 epochs (layers: last-2), against made anew",
        DEFAULT,
        "encoder",
        Variant(_TWO_LAYERS),
        Variant(_TWO_LAYERS, shelf="none"),
        3,
    ),
    Ablation(
        "trained positions scored alone, against all of them (32,000 words)",
        ALWAYS,
        "wide",
        UNCHANGED,
        Variant({}, ("whole_logits",)),
    ),
    Ablation(
        "16 positions scored at once (loss_positions), against all that are trained (32,000 words)",
        ASKED,
        "wide",
        Variant({"loss_positions": 16}),
        UNCHANGED,
    ),
    Ablation("gradient_checkpointing", ASKED, "llama", Variant({"gradient_checkpointing": True}), UNCHANGED),
    *(
        Ablation("sdpa, against eager attention", DEFAULT, base, UNCHANGED, Variant({"attention": "eager"}))
        for base in ("encoder", "llama")
    ),
    Ablation("fused AdamW, against foreach", ALWAYS, "encoder", UNCHANGED, Variant({}, ("foreach",))),
    Ablation(
        "two processes of one thread, against one of two",
        DEFAULT,
        "encoder",
        Variant({}, processes=2),
        Variant({"threads": 2}),
    ),
    Ablation("torch.compile of each layer", NEVER, "encoder", Variant({}, ("compiled",)), UNCHANGED),
)
