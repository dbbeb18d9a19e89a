"""What a network is, but for its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from hifuse_fast.blocks import CHANNEL_GATES, MIXERS, check_window_size
from hifuse_fast.checks import check_choice, check_count, check_counts, check_flag, check_heads, check_rate

STAGES = 4
MAX_SIZE = 2**31 - 1  # of anything counted; a file can say more
RATES = ("drop_rate", "attn_drop_rate", "drop_path_rate", "conv_drop_path_rate", "hff_drop_path_rate")


@dataclass(frozen=True)
class HiFuseOptions:
    """What a network is, but for its weights: the arguments of `HiFuse`, checked.

    Sequences become tuples and integers plain ones, so that equal networks have equal options.

    Args:
        num_classes: length of the logits; 0 for no classifier: the forward returns the pooled, normalised features [B, C4].
        in_chans: channels of the image.
        dims: widths of the four stages, any.
        depths: global blocks of each stage.
        conv_depths: local blocks of each stage; `depths` unless given.
        num_heads: attention heads of each stage; each divides its width.
        window_size: side of an attention window, 1 to 16.
        qkv_bias: whether q, k, v have a bias.
        channel_gate: "sigmoid", or "double_sigmoid" for checkpoints trained with the official code of before 2024-01-16.
        mixer: "dense" (the official code and checkpoints) or "depthwise" (the paper), see `InvertedMLP`.
        drop_rate: dropout after the patch embedding and the attention.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate, conv_drop_path_rate: stochastic depth of the last global and local block, rising linearly from 0.
        hff_drop_path_rate: stochastic depth of every fusion block.

    Raises:
        TypeError, ValueError: an option that does not fit, named in the message.
    """

    num_classes: int = 1000
    in_chans: int = 3
    dims: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (2, 2, 2, 2)
    conv_depths: Sequence[int] = None  # type: ignore[assignment]  # never None once made
    num_heads: Sequence[int] = (3, 6, 12, 24)
    window_size: int = 7
    qkv_bias: bool = True
    channel_gate: str = "sigmoid"
    mixer: str = "dense"
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    conv_drop_path_rate: float = 0.0
    hff_drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        depths = check_counts("depths", self.depths, STAGES, most=MAX_SIZE)
        checked = {
            "num_classes": check_count("num_classes", self.num_classes, least=0, most=MAX_SIZE),
            "in_chans": check_count("in_chans", self.in_chans, most=MAX_SIZE),
            "dims": check_counts("dims", self.dims, STAGES, most=MAX_SIZE),
            "depths": depths,
            "conv_depths": depths
            if self.conv_depths is None
            else check_counts("conv_depths", self.conv_depths, STAGES, most=MAX_SIZE),
            "num_heads": check_counts("num_heads", self.num_heads, STAGES),
            "window_size": check_window_size(self.window_size),
            **{name: check_rate(name, getattr(self, name)) for name in RATES},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for i in range(STAGES):
            check_heads(f"num_heads[{i}]", self.num_heads[i], self.dims[i])
        check_flag("qkv_bias", self.qkv_bias)
        check_choice("channel_gate", self.channel_gate, CHANNEL_GATES)
        check_choice("mixer", self.mixer, MIXERS)

    def to_dict(self) -> dict[str, Any]:
        """The options by name, as JSON has them: tuples are lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The options that `to_dict` gave.

        Raises:
            TypeError, ValueError: `values` is no mapping, lacks an option, has one more, or one that does not fit.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"options must be a mapping, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        for kind, names in (("missing", set(known) - set(values)), ("unknown", set(values) - set(known))):
            if names:
                raise ValueError(f"{kind} option {', '.join(sorted(map(repr, names))[:4])}")
        options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**options)
