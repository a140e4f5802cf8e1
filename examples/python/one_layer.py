"""one_layer FILE LAYER: y = x W^T + b for one layer of a GGUF or safetensors file, x all ones."""
import sys

import numpy as np

import bitlinear

if len(sys.argv) != 3:
    sys.exit("usage: one_layer FILE LAYER")
try:
    layer = bitlinear.Model(sys.argv[1]).layer(sys.argv[2])
except bitlinear.Error as error:
    sys.exit(str(error))
y = layer(np.ones(layer.in_features, np.float32))
print(f"{layer.out_features} x {layer.in_features}, {layer.kernel()}")
print("y =", *(f"{v:.6g}" for v in y[:8]))
