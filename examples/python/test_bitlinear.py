"""test_bitlinear FILE LAYER: the module against numpy, on a file with that layer of one tensor, LAYER.weight."""
import gc
import os
import sys
import tempfile
import threading

import numpy as np

import bitlinear

path, name = sys.argv[1:]
tensor = name + ".weight"
model = bitlinear.Model(path)
assert model.tensors()[tensor] == (64, 512) and model.layers()[name] == (64, 512)
layer = model.layer(name)
exact = model.layer(name, activation=1)
model.free()
model.free()

random = np.random.default_rng(1)
x = random.standard_normal((5, 512)).astype(np.float32)
w = exact.weights()
assert w.shape == (64, 512)
np.testing.assert_allclose(exact(x), x @ w.T, rtol=1e-4, atol=1e-4)
error = np.abs(layer(x) - x @ w.T).max() / np.abs(x @ w.T).max()
assert error < 0.02, error

y = layer(x)
for m in range(5):  # rows do not depend on one another
    assert (layer(x[m]) == y[m]).all()
assert (layer(x[::2]) == y[::2]).all()  # rows apart
assert (layer(np.asfortranarray(x)) == y).all()  # copied
half = x.astype(np.float16)
assert (layer(half) == layer(half.astype(np.float32))).all()
assert layer(x.reshape(1, 5, 512)).shape == (1, 5, 64)
assert layer(x[:0]).shape == (0, 64)
with open(path, "rb") as file:
    assert (bitlinear.Model(file.read()).layer(name)(x) == y).all()
assert (bitlinear.Model(path).layer(tensor)(x) == y).all()  # the matrix is all that the layer has
assert (bitlinear.Model(path, bitlinear.Context(3)).layer(name)(x) == y).all()

bias = random.standard_normal(64).astype(np.float32)
assert (bitlinear.Model(path).layer(name, bias=bias)(x) == y + bias).all()

for wrong in (
    lambda: bitlinear.Model("/nowhere"),
    lambda: bitlinear.Model(b"no model"),
    lambda: bitlinear.Model(path).layer("none"),
    lambda: bitlinear.Model(path).layer(name, activation=77),
    lambda: model.tensors(),
):
    try:
        wrong()
    except bitlinear.Error as error:
        assert error.status.startswith("BL_ERROR_") and len(str(error)) > 20
    else:
        raise AssertionError("not refused")
fixed = np.empty((5, 64), np.float32)
fixed.flags.writeable = False
with tempfile.TemporaryDirectory() as folder:
    file = os.path.join(folder, "y")
    np.zeros((5, 64), np.float32).tofile(file)
    mapped = np.memmap(file, np.float32, "r", shape=(5, 64))
freed = bitlinear.Context(2)
freed.free()
for wrong in (
    lambda: layer(x[:, 1:]),
    lambda: layer(x, out=np.empty((4, 64), np.float32)),
    lambda: layer(x, out=fixed),
    lambda: layer(x, out=mapped),
    lambda: bitlinear.Model(path).layer(name, bias=bias[1:]),
    lambda: bitlinear.Model(path).layer(tensor, bias=bias[:3]),
    lambda: bitlinear.Model(path).layer(name, bias=np.zeros((64, 1))),
    lambda: bitlinear.Model(path).layer(name + "\0"),
    lambda: bitlinear.Model(path + "\0"),
    lambda: bitlinear.Model(path, freed),
    lambda: bitlinear.Context(-1),
    lambda: bitlinear.Context(1 << 32),
):
    try:
        wrong()
    except ValueError:
        pass
    else:
        raise AssertionError("not refused")

assert len(bitlinear.devices()) >= 1
assert (layer.copy(0)(x) == y).all()
for device in range(1, len(bitlinear.devices())):  # the same bits on every GPU
    assert (bitlinear.Model(path).layer(name, device=device)(x) == y).all()
    assert (layer.copy(device)(x) == y).all()
for wrong in (lambda: layer.copy(1000), lambda: bitlinear.Model(path).layer(name, device=1000)):
    try:
        wrong()
    except bitlinear.Error as error:
        assert len(str(error)) > 10
    else:
        raise AssertionError("not refused")


def work():
    for _ in range(50):
        assert (layer(x) == y).all()


threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for _ in range(300):  # freed with their objects
    bitlinear.Model(path).layer(name)
gc.collect()
print("python: good")
