"""torch_glue: hashsolve for PyTorch. The only place that imports torch; it stays small."""

from torch_glue.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
from torch_glue.network import TorchNetwork as TorchNetwork
from torch_glue.network import binarize as binarize
