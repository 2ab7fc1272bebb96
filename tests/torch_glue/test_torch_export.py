# ruff: noqa: E402
"""export_onnx: what onnxruntime computes is what torch computes."""

import copy
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx", reason="needs hashsolve[onnx]")
pytest.importorskip("onnxscript", reason="needs hashsolve[onnx]")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs what is exported")
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_support import record, small_images

import torch_glue


@pytest.mark.parametrize("absorbed", [False, True])
def test_onnxruntime_agrees(tmp_path, absorbed):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    )
    model(small_images())  # statistics
    torch_glue.attach(model, ["0"])
    if absorbed:
        torch_glue.detach(model)
        torch_glue.absorb_scales(model)
    before = record(model)
    with pytest.raises(ValueError, match="is not there"):
        torch_glue.export_onnx(model, tmp_path / "none" / "model.onnx", small_images(2))
    torch_glue.export_onnx(model, tmp_path / "model.onnx", small_images(2))
    assert record(model) == before and model.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    name = session.get_inputs()[0].name
    plain = copy.deepcopy(model).eval()
    for count in (1, 7):  # any number of samples
        images = small_images(count)
        (found,) = session.run(None, {name: images.numpy()})
        with torch.no_grad():
            wanted = plain(images).numpy()
        assert np.abs(found - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())
    weights = [
        onnx.numpy_helper.to_array(t) for t in onnx.load(session._model_path).graph.initializer
    ]
    (weight,) = (w for w in weights if w.shape == (8, 3, 3, 3))
    with torch.no_grad():
        rows = np.abs(weight.reshape(8, -1))
    assert (rows == rows[:, :1]).all()


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_samples_after_an_example_of_one(tmp_path, count):
    """A transformer's reshapes would take an axis of 1 to be always 1."""
    torch.manual_seed(1)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    torch_glue.export_onnx(model, tmp_path / "model.onnx", torch.randn(count, 5, 8))
    check(model, tmp_path / "model.onnx", lambda model, x: model(x), (5, 8))


class ClassToken(nn.Module):
    """Its sequences are one longer than those that are given, as a ViT's."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))


class Two(nn.Module):
    """Two inputs, and what may be left out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, x, z, scale=None):
        sums = self.a(x) + self.b(z)
        return sums if scale is None else sums * scale


class OneMapping(Two):
    def forward(self, both):
        return super().forward(both["x"], both["z"])


class OneList(Two):
    def forward(self, both):
        return super().forward(*both)


class AnyNumber(Two):
    def forward(self, *both):
        return super().forward(*both)


class AnyName(Two):
    def forward(self, **both):
        return super().forward(**both)


def check(model, path, call, *shapes):
    """onnxruntime computes what the call gives, of any number of samples of these shapes."""
    session = runtime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for samples in (1, 2, 5):
        inputs = [torch.randn(samples, *shape) for shape in shapes]
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (found,) = session.run(None, feed)
        with torch.no_grad():
            np.testing.assert_allclose(found, call(model, *inputs).numpy(), atol=1e-5)


def test_an_encoder_behind_a_class_token(tmp_path):
    """Without gradients, torch would fuse it."""
    torch.manual_seed(2)
    model = ClassToken().eval()
    torch_glue.export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 5, 8))
    check(model, tmp_path / "model.onnx", lambda model, x: model(x), (5, 8))


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, compiled])
def test_what_is_within_a_wrapped_model(tmp_path, wrap):
    torch.manual_seed(3)
    model = Two()
    torch_glue.attach(model, ["a"])
    before = record(model)
    wrapped = wrap(model)
    torch_glue.export_onnx(wrapped, tmp_path / "model.onnx", (torch.ones(2, 6), torch.ones(2, 4)))
    assert record(model) == before
    check(model, tmp_path / "model.onnx", lambda model, x, z: model(x, z), (6,), (4,))


@pytest.mark.parametrize(
    ("kind", "example", "kwargs", "call"),
    [
        (Two, lambda x, z: (x, z), None, lambda model, x, z: model(x, z)),
        (Two, lambda x, z: (x, z, None), None, lambda model, x, z: model(x, z)),
        (Two, lambda x, z: [x, z, 3.5], None, lambda model, x, z: model(x, z, 3.5)),
        (Two, lambda x, z: (x.double().numpy(), z.numpy()), None, lambda model, x, z: model(x, z)),
        (Two, lambda x, z: {"z": z, "x": x}, None, lambda model, x, z: model(x, z)),
        (Two, lambda x, z: (), lambda x, z: {"z": z, "x": x}, lambda model, x, z: model(x, z)),
        (Two, lambda x, z: x, lambda x, z: {"z": z, "scale": 2}, lambda m, x, z: m(x, z, 2)),
        (OneMapping, lambda x, z: {"x": x, "z": z}, None, lambda m, x, z: m({"x": x, "z": z})),
        (OneList, lambda x, z: ([x, z],), None, lambda model, x, z: model([x, z])),
        (AnyNumber, lambda x, z: (x, z), None, lambda model, x, z: model(x, z)),
    ],
)
def test_examples_of_any_form(tmp_path, kind, example, kwargs, call):
    torch.manual_seed(4)
    model, path = kind(), tmp_path / "model.onnx"
    given = torch.randn(1, 6), torch.randn(1, 4)
    torch_glue.export_onnx(model, path, example(*given), kwargs=kwargs and kwargs(*given))
    check(model, path, call, (6,), (4,))


def test_examples_that_are_not_taken(tmp_path):
    x, z = torch.randn(2, 6), torch.randn(2, 4)
    for example in (x, (x, z, None, z), {"x": x, "y": z}, ({"x": x, "z": z}, x, x, x)):
        with pytest.raises(ValueError, match=r"forward does not take it .*no labels"):
            torch_glue.export_onnx(Two(), tmp_path / "model.onnx", example)
    with pytest.raises(ValueError, match=r"takes 'x' by .*both, whose axes .* name it there"):
        torch_glue.export_onnx(AnyName(), tmp_path / "model.onnx", {"x": x, "z": z})
    assert not list(tmp_path.iterdir())


def test_the_exporter_before(tmp_path):
    pair, path = (torch.randn(2, 6), torch.randn(2, 4)), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"dynamo=False: .* give dynamic_axes and input_names"):
        torch_glue.export_onnx(Two(), path, pair, dynamo=False)
    assert not path.exists()
    model, axes = Two(), {"x": {0: "samples"}, "z": {0: "samples"}}
    torch_glue.export_onnx(
        model, path, pair, dynamo=False, dynamic_axes=axes, input_names=["x", "z"]
    )
    check(model, path, lambda model, x, z: model(x, z), (6,), (4,))


def test_it_says_nothing_about_itself(tmp_path):
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addHandler(handler)
    level = logger.level
    try:
        torch_glue.export_onnx(nn.Linear(8, 4), tmp_path / "model.onnx", torch.ones(2, 8))
    finally:
        logger.removeHandler(handler)
    assert not said and logger.level == level


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("opened", [False, True])
def test_an_argument_that_is_a_tuple_or_a_list(tmp_path, kind, opened):
    """It stays what it is; a list that does not fit the arguments is one."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, pair):
            assert isinstance(pair, kind)
            return self.layer(pair[0]) - self.layer(pair[1])

    model, pair = Both(), kind([torch.randn(5, 4), torch.randn(5, 4)])
    axes = {0: torch.export.Dim.DYNAMIC}
    shapes = {"dynamic_shapes": (kind([axes, axes]),)} if opened else {}
    example = pair if kind is list else (pair,)
    torch_glue.export_onnx(model, tmp_path / "model.onnx", example, **shapes)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, {n: x.numpy() for n, x in zip(names, pair, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(pair).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("example", [torch.zeros(1, 5), torch.zeros(()), None, "x"])
def test_an_example_that_the_model_does_not_take(example, tmp_path):
    with pytest.raises(ValueError, match="example: the model does not take it"):
        torch_glue.export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", example)
    assert not list(tmp_path.iterdir())


class Taking(nn.Module):
    """It changes what it is given, and itself."""

    def __init__(self):
        super().__init__()
        self.linear, self.rows = nn.Linear(4, 2), None
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, batch):
        x = batch.pop("x").relu_()
        self.rows = torch.arange(x.shape[0]) if self.rows is None else self.rows
        out = self.linear(x) + self.seen
        self.seen.copy_(out.mean(0))
        return out


def test_the_example_is_tried_on_a_copy(tmp_path):
    model, x = Taking(), -torch.ones(2, 4)
    example = {"batch": {"x": x.clone()}}
    torch_glue.export_onnx(model, tmp_path / "model.onnx", example, dynamic_shapes=None)
    assert torch.equal(example["batch"]["x"], x) and model.rows is None
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    (seen,) = (tensor for tensor in stored if tensor.name == "seen")
    assert not onnx.numpy_helper.to_array(seen).any()
    with pytest.raises(ValueError, match=r"example: the model does not take it \(KeyError"):
        torch_glue.export_onnx(model, tmp_path / "no.onnx", {"batch": {"y": x}})
