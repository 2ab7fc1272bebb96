"""torch_glue: hashsolve for PyTorch. The only place that imports torch; it stays small."""

from torch_glue.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
from torch_glue.finetune import finetune as finetune
from torch_glue.network import TorchNetwork as TorchNetwork
from torch_glue.network import binarize as binarize
from torch_glue.parametrize import attach as attach
from torch_glue.parametrize import detach as detach
