"""The fused operations: one folder per op, channels last, each with a reference that defines it.

Functions over maps have gradients. The prepared ops serve inference: `prepare_<op>` packs the weights once and returns a
module.
"""

from hifuse_fast.ops.functions.batch_norm import batch_norm
from hifuse_fast.ops.functions.concat_norm import concat_norm
from hifuse_fast.ops.functions.depthwise_norm import depthwise_norm
from hifuse_fast.ops.functions.layer_norm import layer_norm
from hifuse_fast.ops.functions.linear import linear
from hifuse_fast.ops.functions.max_mean import max_mean
from hifuse_fast.ops.functions.mixer import mixer
from hifuse_fast.ops.functions.mlp import mlp
from hifuse_fast.ops.functions.window_attention import window_attention
from hifuse_fast.ops.prepared.gated_concat import prepare_gated_concat
from hifuse_fast.ops.prepared.linear import prepare_linear
from hifuse_fast.ops.prepared.local_block import prepare_local_block
from hifuse_fast.ops.prepared.mixer import prepare_mixer
from hifuse_fast.ops.prepared.mlp import prepare_mlp
from hifuse_fast.ops.prepared.stem import prepare_stem
from hifuse_fast.ops.prepared.window_attention import prepare_window_attention

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
    "prepare_window_attention",
    "window_attention",
]
