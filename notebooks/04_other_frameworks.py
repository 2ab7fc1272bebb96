# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Other frameworks: JAX and ONNX
#
# hashsolve binarises whatever implements the six methods of `hashsolve.Network`. Here are two such
# adapters, each under 100 lines: for equinox models (JAX), and for ONNX files, run by onnxruntime.
# Take them and change them. At the end they are held against each other: one network, two
# frameworks.
#
# Needs `pip install jax equinox onnx onnxruntime scikit-learn`.

# %%
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

import hashsolve as hs

digits = load_digits()
images = (digits.images / 16).astype(np.float32)[:, None]  # (n, 1, 8, 8)
labels = digits.target
train, test = slice(0, 1200), slice(1200, None)
batches = np.split(images[train], 4)  # calibration: the same batches each time, no labels


# %% [markdown]
# ## An adapter for equinox
#
# An equinox model is a tree. We take convolutions and linear layers as its leaves, and put a tap in
# the place of one to see its input; `jit` then drops all that comes after the tap.


# %%
class EquinoxNetwork:
    """An equinox model of one sample, whose layers are eqx.nn.Conv and eqx.nn.Linear."""

    def __init__(self, model):
        paths, self.tree = jax.tree_util.tree_flatten_with_path(model, is_leaf=self._is_layer)
        self.leaves = [leaf for _, leaf in paths]
        self.places = {
            jax.tree_util.keystr(path, simple=True, separator="."): place
            for place, (path, leaf) in enumerate(paths)
            if self._is_layer(leaf)
        }
        self.original = list(self.leaves)
        self.taps = {}

    @staticmethod
    def _is_layer(leaf):
        return isinstance(leaf, (eqx.nn.Conv, eqx.nn.Linear))

    @property
    def model(self):
        """The model with all that was written."""
        return self.tree.unflatten(self.leaves)

    def layers(self, batch):
        self.leaves = list(self.original)
        self.taps.clear()
        order, tapped = [], list(self.leaves)
        for name, place in self.places.items():
            tapped[place] = partial(self._note, order, name, self.leaves[place])
        jax.eval_shape(
            jax.vmap(self.tree.unflatten(tapped)), batch
        )  # a trace, in the model's order
        calls = Counter(order)
        names = dict.fromkeys([*order, *self.places])
        return [self._layer(name, self.original[self.places[name]], calls[name]) for name in names]

    @staticmethod
    def _note(order, name, layer, x, *, key=None):
        order.append(name)
        return layer(x)

    @staticmethod
    def _layer(name, leaf, calls):
        geometry = hs.Geometry()
        if isinstance(leaf, eqx.nn.Conv):
            geometry = hs.Geometry.conv(
                leaf.kernel_size, leaf.stride, leaf.padding, leaf.dilation, leaf.groups
            )
        return hs.Layer(name, geometry, leaf.weight.shape, calls=calls)

    def weight(self, name):
        return np.asarray(self.original[self.places[name]].weight, dtype=float)

    def layer_input(self, name, batch, *, binarized):
        if (name, binarized) not in self.taps:
            leaves = list(self.leaves if binarized else self.original)
            place = self.places[name]

            def tapped(sample):
                caught = []

                def tap(x, *, key=None):
                    caught.append(x)
                    return self.original[place](x)

                self.tree.unflatten([*leaves[:place], tap, *leaves[place + 1 :]])(sample)
                return caught[0]

            self.taps[name, binarized] = jax.jit(jax.vmap(tapped))
        return np.asarray(self.taps[name, binarized](batch))

    def write(self, name, weight):
        place = self.places[name]
        leaf = self.leaves[place]
        weight = jnp.asarray(weight, leaf.weight.dtype)
        self.leaves[place] = eqx.tree_at(lambda layer: layer.weight, leaf, weight)
        self.taps.clear()

    def state(self):
        arrays = jax.tree.leaves(eqx.filter(self.tree.unflatten(self.original), eqx.is_array))
        return {str(number): np.asarray(array) for number, array in enumerate(arrays)}


# %% [markdown]
# ## A network in JAX
#
# A small CNN on scikit-learn's digits, trained by plain gradient descent with momentum.

# %%
keys = jax.random.split(jax.random.key(0), 4)
start = eqx.nn.Sequential(
    [
        eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(32, 32, 3, padding=1, key=keys[2]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(32 * 4 * 4, 10, key=keys[3]),
    ]
)
arrays, static = eqx.partition(start, eqx.is_array)


def cross_entropy(arrays, x, y):
    logits = jax.vmap(eqx.combine(arrays, static))(x)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


@jax.jit
def step(arrays, momentum, x, y):
    gradient = jax.grad(cross_entropy)(arrays, x, y)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
    return jax.tree.map(lambda a, m: a - 0.05 * m, arrays, momentum), momentum


rng = np.random.default_rng(0)
momentum = jax.tree.map(jnp.zeros_like, arrays)
for _ in range(12):
    for index in np.split(rng.permutation(1200), 20):
        arrays, momentum = step(arrays, momentum, images[index], labels[index])
trained = eqx.combine(arrays, static)


def accuracy(logits):
    """Per cent of the test images."""
    return 100 * np.mean(np.asarray(logits).argmax(axis=1) == labels[test])


full = accuracy(jax.vmap(trained)(images[test]))
print(f"full precision, JAX: {full:.1f} % of {len(labels[test])} test images")

# %% [markdown]
# ## Binarise it
#
# First a check of the adapter, worth making for any: a layer's own output is its patches times its
# weights. The classifier and the first convolution stay in full precision.

# %%
network = EquinoxNetwork(trained)
layers = network.layers(batches[0])
print("layers:", ", ".join(layer.name for layer in layers))
first, middle, last, head = layers
seen = network.layer_input(middle.name, batches[0], binarized=False)
own = jax.vmap(trained.layers[2])(seen) - trained.layers[2].bias
patches = middle.geometry.patches(seen)  # (S, rows)
product = network.weight(middle.name).reshape(middle.shape[0], -1) @ patches
assert np.allclose(np.moveaxis(np.asarray(own), 1, 0).reshape(product.shape), product, atol=1e-4)

scratch = tempfile.TemporaryDirectory()
found = {}
for method in ("sign", "auto"):
    run = hs.binarize(
        network, batches, Path(scratch.name, method), method, "fast", skip=[first.name, head.name]
    )
    found[f"JAX, {method}"] = accuracy(jax.vmap(network.model)(images[test]))
    print(f"{method}: {found[f'JAX, {method}']:.1f} %")
print(run.report)

# %% [markdown]
# ## An adapter for ONNX
#
# Layers are Conv, Gemm and MatMul nodes whose weight is stored in the file; a layer goes by the
# name of its weight. To see its input, the graph is cut before its node, and that input made the
# output.


# %%
class OnnxNetwork:
    """An ONNX model, run by onnxruntime; what is written goes into the graph."""

    def __init__(self, model):
        self.model = model
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes, self.calls = {}, Counter()
        for index, node in enumerate(model.graph.node):  # in an order of execution
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in self.stored:
                self.nodes.setdefault(node.input[1], index)
                self.calls[node.input[1]] += 1
        self.original = {name: self._array(name) for name in self.stored}
        self.sessions = {}

    def _array(self, name):
        return numpy_helper.to_array(self.stored[name]).copy()

    def _attributes(self, name):
        node = self.model.graph.node[self.nodes[name]]
        return {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def _turned(self, name, weight):
        """Between what the file holds and one row a filter: Gemm and MatMul hold columns."""
        columns = not self._convolution(name) and not self._attributes(name).get("transB")
        return weight.T if columns else weight

    def _convolution(self, name):
        return self.model.graph.node[self.nodes[name]].op_type == "Conv"

    def _geometry(self, name):
        if not self._convolution(name):
            return hs.Geometry()
        a, dims = self._attributes(name), self.original[name].ndim - 2
        auto = a.get("auto_pad", b"NOTSET").decode()
        pads = a.get("pads", [0] * 2 * dims)
        padding = list(zip(pads[:dims], pads[dims:], strict=True))
        if auto != "NOTSET":
            padding = {"SAME_UPPER": "same", "VALID": "valid"}[auto]
        ones = [1] * dims
        kernel = self.original[name].shape[2:]
        strides, dilations = a.get("strides", ones), a.get("dilations", ones)
        return hs.Geometry.conv(kernel, strides, padding, dilations, a.get("group", 1))

    def layers(self, batch):
        for name in self.nodes:
            self.write(name, self.weight(name))
        return [
            hs.Layer(name, self._geometry(name), self.weight(name).shape, calls=self.calls[name])
            for name in self.nodes
        ]

    def weight(self, name):
        return self._turned(name, self.original[name]).astype(float)

    def write(self, name, weight):
        weight = self._turned(name, weight).astype(self.original[name].dtype)
        self.stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), name))
        self.sessions.clear()

    def layer_input(self, name, batch, *, binarized):
        if (name, binarized) not in self.sessions:
            cut = onnx.ModelProto()
            cut.CopyFrom(self.model)
            wanted = cut.graph.node[self.nodes[name]].input[0]
            del cut.graph.node[self.nodes[name] :], cut.graph.output[:]
            # passed through, as a layer may also be the first to see the model's own input
            cut.graph.node.append(helper.make_node("Identity", [wanted], ["hashsolve_input"]))
            cut.graph.output.append(onnx.ValueInfoProto(name="hashsolve_input"))
            if not binarized:
                for tensor in cut.graph.initializer:
                    tensor.CopyFrom(
                        numpy_helper.from_array(self.original[tensor.name], tensor.name)
                    )
            self.sessions[name, binarized] = session(cut)
        return run_session(self.sessions[name, binarized], batch)

    def state(self):
        return {**self.original, "graph": [str(node) for node in self.model.graph.node]}


def session(model):
    """An onnxruntime session; weights that a cut graph no longer needs are no news."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_session(session, batch):
    """The only output for a batch of the only input."""
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


# %% [markdown]
# ## The same network as an ONNX file
#
# Any file would do. We write the trained network's weights into one, so that the two adapters can
# be compared.


# %%
def as_onnx(model):
    """The network above as an ONNX graph."""
    nodes, tensors, value = [], [], "images"
    for number, layer in enumerate(model.layers):
        parts = [f"layer{number}.weight", f"layer{number}.bias"]
        if isinstance(layer, eqx.nn.Conv):
            kind = "Conv"
            attributes = {"pads": [1, 1, 1, 1], "strides": list(layer.stride)}
        elif isinstance(layer, eqx.nn.Linear):
            kind, attributes = "Gemm", {"transB": 1}
        else:
            kind, attributes, parts = ("Relu", {}, []) if number < 6 else ("Flatten", {}, [])
        if parts:
            tensors.append(numpy_helper.from_array(np.asarray(layer.weight), parts[0]))
            tensors.append(numpy_helper.from_array(np.asarray(layer.bias).ravel(), parts[1]))
        nodes.append(helper.make_node(kind, [value, *parts], [f"value{number}"], **attributes))
        value = f"value{number}"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


path = Path(scratch.name, "digits.onnx")
onnx.save(as_onnx(trained), path)
network = OnnxNetwork(onnx.load(path))
top1 = accuracy(run_session(session(network.model), images[test]))
print(f"full precision, ONNX: {top1:.1f} %")

# %%
names = [layer.name for layer in network.layers(batches[0])]
onnx_runs = {}
for method in ("sign", "auto"):
    place = Path(scratch.name, f"onnx-{method}")
    skip = [names[0], names[-1]]
    onnx_runs[method] = hs.binarize(network, batches, place, method, "fast", skip=skip)
    found[f"ONNX, {method}"] = accuracy(run_session(session(network.model), images[test]))
    print(f"{method}: {found[f'ONNX, {method}']:.1f} %")
onnx.save(network.model, path)  # a plain ONNX file, with weights of exactly ±α a filter
again = onnx.load(path)
assert accuracy(run_session(session(again), images[test])) == found["ONNX, auto"]
for tensor in again.graph.initializer:
    if tensor.name in names[1:-1]:
        size = np.abs(numpy_helper.to_array(tensor).reshape(tensor.dims[0], -1))
        assert (size == size[:, :1]).all()

# %% [markdown]
# ## The two against each other
#
# The forward passes of two frameworks differ in their last bits, so codes may differ where two
# choices are as good as equal. Here is how many do.

# %%
for ours, theirs in zip(run.layers, onnx_runs["auto"].layers, strict=True):
    differ = int((ours.solution.codes != theirs.solution.codes).sum())
    print(f"{theirs.name}: {differ} of {ours.solution.codes.size} codes differ between the two")

figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
bars = axes.barh(
    ["full precision", *found], [full, *found.values()], color=["#3d9a5f"] + ["#2b7bd9"] * 4
)
axes.bar_label(bars, fmt="%.1f", padding=3)
axes.set(xlabel="accuracy on test images, %", xlim=(0, 110))
axes.invert_yaxis()
plt.show()
scratch.cleanup()
