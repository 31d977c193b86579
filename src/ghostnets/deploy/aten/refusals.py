# SPDX-License-Identifier: Apache-2.0
"""What to use instead of an operation that no generated code has."""

from __future__ import annotations

from collections.abc import Mapping

ACTIVATIONS = "the activations are ReLU, ReLU6, hard-sigmoid, hard-swish, sigmoid and SiLU"
NORMS = "the nearest is BatchNorm2d with running statistics, which folds away"
UPSAMPLING = "the nearest is nearest upsampling, then a convolution"
MEANS = "means and greatest values are taken over places: AdaptiveAvgPool2d(1), mean((2, 3)) or AdaptiveMaxPool2d(1)"
POOLS = "the nearest are MaxPool2d and AvgPool2d"
CONVOLUTIONS = "the nearest is Conv2d over (N, C, H, W)"
ATTENTION = "the nearest are 1x1 convolutions and squeeze-and-excite"
ARITHMETIC = "maps are added, subtracted and multiplied, and divided by constants"
PARTS = "write it out of place, with torch.cat of the parts"
BRANCHES = "write the forward so that it does the same for every image"

USUAL = (
    "the nearest supported layers are Conv2d, Linear, BatchNorm2d, pooling, ReLU and its kin, add, multiply, "
    "concat, slices and nearest upsampling"
)

NEAREST: Mapping[str, str] = {
    **dict.fromkeys(
        "gelu elu selu celu leaky_relu prelu rrelu mish tanh softplus softsign tanhshrink hardshrink softshrink "
        "threshold log_sigmoid glu hardtanh clamp clamp_min clamp_max exp erf".split(),
        ACTIVATIONS,
    ),
    **dict.fromkeys(
        "layer_norm native_layer_norm group_norm instance_norm rms_norm local_response_norm".split(), NORMS
    ),
    **dict.fromkeys("linalg_vector_norm norm std var var_mean".split(), NORMS),
    **dict.fromkeys(
        "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler".split(),
        UPSAMPLING,
    ),
    **dict.fromkeys("conv_transpose1d conv_transpose2d conv_transpose3d".split(), UPSAMPLING),
    **dict.fromkeys("conv1d conv3d convolution unfold im2col".split(), CONVOLUTIONS),
    **dict.fromkeys("sum max min amin argmax prod median logsumexp topk std_mean".split(), MEANS),
    **dict.fromkeys("max_pool1d avg_pool1d max_pool3d avg_pool3d lp_pool2d fractional_max_pool2d".split(), POOLS),
    **dict.fromkeys("scaled_dot_product_attention matmul bmm mm addmm einsum baddbmm".split(), ATTENTION),
    **dict.fromkeys("pow sqrt rsqrt reciprocal abs maximum minimum where floor round".split(), ARITHMETIC),
    **dict.fromkeys("slice_scatter select_scatter index_put copy fill zero masked_fill scatter".split(), PARTS),
    **dict.fromkeys("cond while_loop map_impl".split(), BRANCHES),
    "wrap_with_autocast": "leave torch.autocast to whoever calls the network",
    "log_softmax": "the nearest is softmax; take its logarithm outside, or return the logits",
    "stack": "the nearest is cat along the channels",
}
"""ATen's name -> what stands nearest to it."""
