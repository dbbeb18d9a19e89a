"""The fused operations: one folder per op, channels last, each with a reference that defines it.

Functions over maps have gradients. The prepared ops serve inference: `prepare_<op>` packs the weights once and returns a
module.
"""

from hifuse_fast.ops.batch_norm import batch_norm
from hifuse_fast.ops.concat_norm import concat_norm
from hifuse_fast.ops.depthwise_norm import depthwise_norm
from hifuse_fast.ops.gated_concat import prepare_gated_concat
from hifuse_fast.ops.layer_norm import layer_norm
from hifuse_fast.ops.linear import linear, prepare_linear
from hifuse_fast.ops.local_block import prepare_local_block
from hifuse_fast.ops.max_mean import max_mean
from hifuse_fast.ops.mixer import mixer, prepare_mixer
from hifuse_fast.ops.mlp import mlp, prepare_mlp
from hifuse_fast.ops.stem import prepare_stem
from hifuse_fast.ops.window_attention import window_attention

__all__ = [
    "batch_norm",
    "concat_norm",
    "depthwise_norm",
    "layer_norm",
    "linear",
    "max_mean",
    "mixer",
    "mlp",
    "prepare_gated_concat",
    "prepare_linear",
    "prepare_local_block",
    "prepare_mixer",
    "prepare_mlp",
    "prepare_stem",
    "window_attention",
]
