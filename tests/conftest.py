"""Where there is no GPU, Triton kernels run in its interpreter: to be said before anything loads them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
