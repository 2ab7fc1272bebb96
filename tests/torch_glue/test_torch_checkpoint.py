# ruff: noqa: E402
"""save_packed and load_packed: bit for bit, small, and nothing half loaded."""

import copy
import json
import subprocess
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch_support import content, small_images, small_net

import torch_glue
from hashsolve.packed_checkpoint import read_packed_checkpoint

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def binary_net(seed=0, dtype=torch.float32):
    """Every kind of tensor: binary, zero scales of both signs, plain, tied, buffers, integers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.Linear(40, 12),
        nn.Embedding(12, 40),
    )
    for layer in (model[0], model[2], model[4]):
        alpha = torch.rand(len(layer.weight), *[1] * (layer.weight.dim() - 1))
        alpha[1] = 0.0
        layer.weight.data = layer.weight.data.sign() * alpha
    transposed = model[3].weight.data
    alpha = torch.rand(2, 1, 3).expand(2, 4, 3).reshape(8, 3)
    model[3].weight.data = transposed.sign() * alpha[:, :, None, None]
    model[5].weight = model[4].weight
    model.register_buffer("counts", torch.arange(5))
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("broken", torch.tensor([[torch.nan, 1.0], [-0.0, torch.inf]]))
    return model.to(dtype)


def other_net(model):
    """The same shapes, other numbers."""
    other = copy.deepcopy(model)
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data = torch.zeros_like(tensor.data)
    return other


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert content(a[name]) == content(b[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_loads_bit_for_bit(tmp_path, dtype):
    model = binary_net(dtype=dtype)
    sizes = torch_glue.save_packed(model, tmp_path / "m")
    assert sizes.layers == [f"{n}.weight" for n in (0, 2, 3, 4)]
    assert model[0].weight[1].signbit().any() and not model[0].weight[1].signbit().all()
    other = other_net(model)
    names = torch_glue.load_packed(other, tmp_path / "m")
    assert names == ["0", "2", "3"]  # 4 is tied to an embedding, which cannot be attached
    same(model, other)
    assert other[5].weight is other[4].weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numpy_reader_agrees(tmp_path, dtype):
    model = binary_net(dtype=dtype)
    torch_glue.save_packed(model, tmp_path / "m")
    found = read_packed_checkpoint(tmp_path / "m")
    state = model.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        value = value.float() if dtype == torch.bfloat16 and value.dtype == dtype else value
        assert found[name].dtype == value.numpy().dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.numpy().tobytes(), name


def test_the_numpy_reader_needs_no_torch(tmp_path):
    torch_glue.save_packed(binary_net(), tmp_path / "m")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from hashsolve.packed_checkpoint import read_packed_checkpoint as read\n"
        f"print(read({str(tmp_path / 'm')!r})['0.weight'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(32, 16, 3, 3)"


def test_sizes_are_those_of_the_tensors_and_the_file(tmp_path):
    model = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64))
    torch_glue.attach(model, ["0"])
    torch_glue.detach(model)
    sizes = torch_glue.save_packed(model, tmp_path / "m")
    assert sizes.binarized_before == 64 * 576 * 4
    assert sizes.binarized_after == 64 * 576 // 8 + 64 * 4
    assert sizes.binarized_ratio > 25
    assert sizes.total_before == sizes.binarized_before + 4 * 64 * 4 + 8
    assert sizes.total_after == (tmp_path / "m").stat().st_size
    assert sizes.total_after - sizes.binarized_after - 4 * 64 * 4 - 8 < 1000  # the header
    assert "30.3 x smaller" in str(sizes) and "1 binarised" in str(sizes)


def test_the_format_is_as_described(tmp_path):
    """By hand, from the module's text alone."""
    weight = torch.tensor([[0.5, -0.5, -0.5], [2.0, 2.0, -2.0], [-0.0, 0.0, 0.0]]).repeat(1, 5)
    layer = nn.Linear(15, 3, bias=False)
    layer.weight.data = weight
    torch_glue.save_packed(layer, tmp_path / "m")
    with safe_open(tmp_path / "m", "np") as file:
        assert sorted(file.keys()) == ["weight::codes", "weight::scales"]
        codes, scales = (file.get_tensor(key) for key in sorted(file.keys()))
        metadata = file.metadata()
    assert metadata["format"] == "hashsolve.packed" and metadata["version"] == "1"
    assert json.loads(metadata["layers"]) == {"weight": [[3, 15], 0]}
    assert scales.tolist() == [[0.5], [2.0], [0.0]] and len(codes) == 6
    for index in range(45):
        bit = codes[index // 8] >> (index % 8) & 1
        assert bit == (not weight.reshape(-1)[index].signbit())


def test_attached_layers_are_written_as_detach_leaves_them(tmp_path):
    model = small_net()
    torch_glue.attach(model, ["0", "2"], stochastic=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(small_images()).square().sum().backward()
    optimizer.step()
    model.train()
    torch_glue.save_packed(model, tmp_path / "m")
    assert model[0].parametrizations.weight[0].training
    other = small_net()
    assert torch_glue.load_packed(other, tmp_path / "m") == ["0", "2"]
    torch_glue.detach(model)
    same(model, other)
    assert torch_glue.attach(other, ["0", "2"]) == ["0", "2"]  # and on from there
    assert torch.equal(other[2].weight, model[2].weight)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_weight_survives(tmp_path, data):
    """Scales a group, a filter, none; zeros, NaN, infinities, subnormal numbers."""
    filters, parts, length = (data.draw(st.integers(1, n)) for n in (4, 3, 9))
    dtype = data.draw(st.sampled_from(DTYPES))
    special = st.sampled_from([0.0, 1.0, 2.0, 1e-40, 6e-8, float("inf"), float("nan")])
    size = data.draw(st.lists(special, min_size=filters * parts, max_size=filters * parts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weight = torch.tensor(size).reshape(filters, parts, 1)
    weight = weight * torch.from_numpy(rng.choice([-1.0, 1.0], (filters, parts, length)))
    layer = nn.Linear(parts * length, filters, bias=False)
    layer.weight.data = weight.reshape(filters, -1).to(dtype)
    other = copy.deepcopy(layer)
    other.weight.data.zero_()
    torch_glue.save_packed(layer, tmp_path / "m")
    torch_glue.load_packed(other, tmp_path / "m")
    same(layer, other)


def test_a_group_of_inputs_may_have_its_own_scale(tmp_path):
    layer = nn.Linear(64, 8, bias=False)
    layer.weight.data = layer.weight.data.sign() * torch.rand(8, 2).repeat_interleave(32, 1)
    sizes = torch_glue.save_packed(layer, tmp_path / "m")
    assert sizes.binarized_after == 64 + 16 * 4
    assert read_packed_checkpoint(tmp_path / "m")["weight"].tobytes() == content(layer.weight)


def test_a_model_that_has_no_shapes_yet_is_refused(tmp_path):
    torch_glue.save_packed(nn.Sequential(nn.Linear(3, 16)), tmp_path / "m")
    with pytest.raises(ValueError, match=r"0.weight: has no shape yet"):
        torch_glue.load_packed(nn.Sequential(nn.LazyLinear(16)), tmp_path / "m")


def test_a_model_without_memory_is_refused(tmp_path):
    torch_glue.save_packed(nn.Sequential(nn.Linear(3, 16)), tmp_path / "m")
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 16))
    with pytest.raises(ValueError, match=r"0.weight: is on the meta device: model.to_empty"):
        torch_glue.load_packed(model, tmp_path / "m")


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, compiled])
def test_of_wrapped_models_it_is_what_is_within(tmp_path, wrap):
    plain, other = small_net(), small_net()
    nn.init.zeros_(other[0].weight)
    torch_glue.attach(plain, ["0"])
    try:
        wrapped, target = wrap(plain), wrap(other)
    except RuntimeError as error:  # a Python that torch does not compile for yet
        pytest.skip(str(error))
    prefix = "_orig_mod." if wrap is compiled else "module."
    torch_glue.save_packed(wrapped, tmp_path / "wrapped", layers=[f"{prefix}0"])
    torch_glue.save_packed(plain, tmp_path / "plain")
    assert (tmp_path / "wrapped").read_bytes() == (tmp_path / "plain").read_bytes()
    assert torch_glue.load_packed(target, tmp_path / "wrapped") == [f"{prefix}0"]
    assert torch_glue.attach(target, [f"{prefix}0"]) == torch_glue.detach(target)
    torch_glue.detach(plain)
    same(plain, target._orig_mod if wrap is compiled else target.module)


def test_scripted_models(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but there
        model, other = (torch.jit.script(nn.Sequential(nn.Linear(4, 3))) for _ in range(2))
    torch_glue.save_packed(model, tmp_path / "m")
    torch_glue.load_packed(other, tmp_path / "m")
    same(model, other)


def test_a_layer_of_its_own_within_a_wrapper(tmp_path):
    model, other = (nn.DataParallel(nn.Linear(64, 32)) for _ in range(2))
    assert torch_glue.attach(model, ["module"]) == ["module"]
    torch_glue.save_packed(model, tmp_path / "one", layers=["module"])
    assert torch_glue.load_packed(other, tmp_path / "one") == ["module"]
    assert torch_glue.attach(other, ["module"]) == ["module"]


def test_wrappers_with_forwards_of_their_own_and_children_called_as_theirs(tmp_path):
    class Own(nn.DataParallel):
        def forward(self, *args):
            return self.module(*args)

    plain, other = small_net(), small_net()
    torch_glue.save_packed(Own(plain), tmp_path / "m")
    torch_glue.load_packed(other, tmp_path / "m")
    same(plain, other)
    model = nn.Sequential(OrderedDict(_orig_mod=nn.Linear(4, 3), head=nn.Linear(3, 2)))
    torch_glue.save_packed(model, tmp_path / "whole")
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head.weight)
    torch_glue.load_packed(other, tmp_path / "whole")
    same(model, other)


def test_into_a_model_made_in_inference_mode(tmp_path):
    plain = small_net()
    torch_glue.save_packed(plain, tmp_path / "m")
    with torch.inference_mode():
        other = small_net()
        nn.init.zeros_(other[0].weight)
    torch_glue.load_packed(other, tmp_path / "m")
    same(plain, other)


def test_a_model_that_passes_attributes_on_is_no_wrapper(tmp_path):
    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = compiled(nn.Linear(4, 3)), nn.Linear(3, 2)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    try:
        model, other = Passing(), Passing()
    except RuntimeError as error:  # a Python that torch does not compile for yet
        pytest.skip(str(error))
    torch_glue.save_packed(model, tmp_path / "m")
    torch_glue.load_packed(other, tmp_path / "m")
    same(model, other)


@pytest.mark.parametrize("model", [None, {"weight": torch.ones(2, 2)}])
def test_what_is_no_model_is_refused(tmp_path, model):
    for call in (torch_glue.save_packed, torch_glue.load_packed):
        with pytest.raises(ValueError, match=r"model: must be a torch.nn.Module"):
            call(model, tmp_path / "m")


def test_layers_that_must_be_binary(tmp_path):
    model = small_net()
    with pytest.raises(ValueError, match=r"0.weight: it is not exactly ±α"):
        torch_glue.save_packed(model, tmp_path / "m", layers=["0"])
    single = nn.Sequential(nn.Linear(1, 16))
    torch_glue.attach(single, ["0"])
    with pytest.raises(ValueError, match=r"0.weight: it has too few inputs a filter"):
        torch_glue.save_packed(single, tmp_path / "m", layers=["0"])
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"1.weight: it is not exactly ±α"):
        torch_glue.save_packed(norm, tmp_path / "m", layers=["1"])
    with pytest.raises(ValueError, match=r"no tensor 'conv9.weight'"):
        torch_glue.save_packed(model, tmp_path / "m", layers=["conv9"])
    type_with_state = type("Net", (nn.Sequential,), {"get_extra_state": lambda self: "text"})
    with pytest.raises(ValueError, match="_extra_state: is not a plain tensor"):
        torch_glue.save_packed(type_with_state(*model), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def damaged(kind, tensors, metadata):
    """What an untrusted file may claim."""
    layers = json.loads(metadata["layers"])
    if kind == "cut":
        tensors["0.weight::codes"] = tensors["0.weight::codes"][:-1]
    elif kind == "scales":
        tensors["0.weight::scales"] = tensors["0.weight::scales"][:-1]
    elif kind == "groups":
        tensors["0.weight::scales"] = tensors["0.weight::scales"].repeat(1, 5)
    elif kind == "codes type":
        tensors["0.weight::codes"] = tensors["0.weight::codes"].to(torch.int8)
    elif kind == "scales type":
        tensors["0.weight::scales"] = tensors["0.weight::scales"].long()
    elif kind == "shape":
        layers["0.weight"] = [[2**40, 2**40], 0]
    elif kind == "zero":
        layers["0.weight"] = [[0, 3], 0]
    elif kind == "negative":
        layers["0.weight"] = [[-32, -16, 3, 3], 0]
    elif kind == "not numbers":
        layers["0.weight"] = [["a"], None]
    elif kind == "negative groups":
        layers["0.weight"][1] = -1
    elif kind == "odd groups":
        layers["3.weight"][1] = 3
    elif kind == "missing":
        del tensors["0.weight::codes"]
    elif kind == "both":
        tensors["0.weight"] = torch.zeros(32, 16, 3, 3)
    elif kind == "alias":
        metadata["aliases"] = '{"a": "nowhere"}'
    elif kind == "alias of itself":
        metadata["aliases"] = '{"0.weight": "0.weight"}'
    elif kind == "alias type":
        metadata["aliases"] = '{"a": ["0.weight"]}'
    elif kind == "json":
        metadata["layers"] = "{"
    elif kind == "deep":
        metadata["layers"] = "[" * 100000
    elif kind == "list":
        metadata["layers"] = "[]"
    elif kind == "version":
        metadata["version"] = "2"
    elif kind == "format":
        metadata["format"] = "pt"
    if kind not in ("json", "deep", "list"):
        metadata["layers"] = json.dumps(layers)


@pytest.mark.parametrize(
    "kind",
    [
        *("cut", "scales", "groups", "codes type", "scales type", "shape", "zero", "negative"),
        *("not numbers", "negative groups", "odd groups", "missing", "both", "alias"),
        *("alias of itself", "alias type", "json", "deep", "list", "version", "format"),
    ],
)
def test_damaged_files_are_refused_before_anything_is_changed(tmp_path, kind):
    model = binary_net()
    torch_glue.save_packed(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        metadata = dict(file.metadata())
    damaged(kind, tensors, metadata)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "d", metadata)
    other = binary_net(1)
    before = {name: content(value) for name, value in other.state_dict().items()}
    for read in (lambda: torch_glue.load_packed(other, tmp_path / "d"), None):
        with pytest.raises(ValueError, match=str(tmp_path / "d")) as caught:
            (read or (lambda: read_packed_checkpoint(tmp_path / "d")))()
        assert "\n" not in str(caught.value)
    assert before == {name: content(value) for name, value in other.state_dict().items()}


def test_files_of_another_model_are_refused_before_anything_is_changed(tmp_path):
    torch_glue.save_packed(binary_net(), tmp_path / "m")
    other = binary_net(1)

    def refused(match, model, path=tmp_path / "m"):
        before = {name: content(value) for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            torch_glue.load_packed(model, path)
        assert before == {name: content(value) for name, value in model.state_dict().items()}

    refused(r"is torch.float32, the model's torch.float16", binary_net(1, torch.half))
    fewer = binary_net(1)
    del fewer[5]
    refused("has '5.weight', and 0 more", fewer)
    more = binary_net(1)
    more.append(nn.Linear(2, 2))
    refused("lacks '6.bias', and 1 more", more)
    more = binary_net(1)
    more[4] = nn.Linear(40, 11)
    refused(r"4.weight is of shape \(12, 40\), the model's of \(11, 40\)", more)
    more = binary_net(1)
    torch_glue.attach(more, ["0"])
    refused("detach", more)
    (tmp_path / "text").write_text("no")
    refused("not a safetensors file", other, tmp_path / "text")
    refused("no such file", other, tmp_path / "gone")
    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    refused("not a packed checkpoint", other, tmp_path / "plain")
    (tmp_path / "short").write_bytes((tmp_path / "m").read_bytes()[:-10])
    refused("damaged", other, tmp_path / "short")


def test_a_name_that_packed_parts_would_have_is_refused(tmp_path):
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.ones(4, 40)))
    model.register_buffer("w::codes", torch.ones(3))
    with pytest.raises(ValueError, match="a tensor's name ends in"):
        torch_glue.save_packed(model, tmp_path / "m")


def test_one_model_gives_one_file(tmp_path):
    model = binary_net()
    model.register_buffer('tab\t"ü\x1f', torch.ones(2))
    for name in "abcdef":
        torch_glue.save_packed(model, tmp_path / name)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    other = other_net(model)
    torch_glue.load_packed(other, tmp_path / "a")
    same(model, other)


def test_what_comes_back_is_what_attach_takes(tmp_path):
    def make():
        torch.manual_seed(0)
        model = nn.Module()
        model.at, model.last = nn.MultiheadAttention(16, 2), nn.Linear(16, 16)
        model.words, model.weight = nn.Embedding(9, 16), nn.Parameter(torch.ones(9, 16))
        for weight in (model.at.in_proj_weight, model.at.out_proj.weight, model.last.weight):
            weight.data = weight.data.sign()
        model.words.weight.data.fill_(1)
        return model

    model, other = make(), make()
    assert len(torch_glue.save_packed(model, tmp_path / "m").layers) == 5
    names = torch_glue.load_packed(other, tmp_path / "m")
    parts = ["at.k_proj", "at.out_proj", "at.q_proj", "at.v_proj"]
    assert sorted(names) == [*parts, "last"]
    assert torch_glue.attach(other, names) == names
    layer = nn.Linear(40, 3)
    layer.weight.data = layer.weight.data.sign()
    torch_glue.save_packed(layer, tmp_path / "one", layers="")
    assert torch_glue.load_packed(layer, tmp_path / "one") == [""]
    assert torch_glue.attach(layer, [""]) == [""]


def test_a_tied_layer_must_be_binary_where_that_is_asked(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    for name in "ab":
        with pytest.raises(ValueError, match=rf"{name}\.weight: it is not exactly ±α"):
            torch_glue.save_packed(model, tmp_path / "m", layers=[name])
    assert not (tmp_path / "m").exists()
    torch_glue.attach(model, ["a"])
    assert torch_glue.save_packed(model, tmp_path / "m", layers=["b"]).layers == ["a.weight"]


@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.MultiheadAttention(16, 2)])
def test_an_attached_layer_under_two_names(tmp_path, layer):
    layer = copy.deepcopy(layer)
    model, other = (nn.ModuleList([each, each]) for each in (layer, copy.deepcopy(layer)))
    names = [f"0.{part}_proj" for part in "qkv"] if hasattr(layer, "out_proj") else ["0"]
    torch_glue.attach(model, names)
    torch_glue.save_packed(model, tmp_path / "m", layers=names)
    assert torch_glue.load_packed(other, tmp_path / "m") == names
    torch_glue.detach(model)
    same(model, other)


def test_two_values_do_not_load_into_one_tensor(tmp_path):
    tied, untied = binary_net(), binary_net()
    untied[5].weight = nn.Parameter(untied[4].weight.detach().clone())
    torch_glue.save_packed(untied, tmp_path / "equal")
    torch_glue.load_packed(tied, tmp_path / "equal")
    same(tied, untied)
    with torch.no_grad():
        untied[5].weight[3, 4] *= -1
    torch_glue.save_packed(untied, tmp_path / "other")
    before = {name: content(value) for name, value in tied.state_dict().items()}
    with pytest.raises(ValueError, match=r"4.weight and 5.weight differ, but are one tensor"):
        torch_glue.load_packed(tied, tmp_path / "other")
    assert before == {name: content(value) for name, value in tied.state_dict().items()}
    torch_glue.save_packed(tied, tmp_path / "tied")
    torch_glue.load_packed(untied, tmp_path / "tied")  # the other way round nothing is lost
    same(tied, untied)


def test_targets_and_names_are_checked_before_the_work(tmp_path):
    model = binary_net()
    with pytest.raises(ValueError, match=r"path: the folder .*none is not there"):
        torch_glue.save_packed(model, tmp_path / "none" / "m")
    with pytest.raises(ValueError, match="is a folder"):
        torch_glue.save_packed(model, tmp_path)
    with pytest.raises(ValueError, match=r"no tensor 'conv1.weight'"):
        torch_glue.save_packed(model, tmp_path / "m", layers="conv1")
    assert "0.weight" in torch_glue.save_packed(model, tmp_path / "m", layers="0").layers


def test_nothing_to_pack_and_nothing_to_load_are_told(tmp_path, caplog):
    model, path = nn.Linear(64, 8), tmp_path / "model.safetensors"
    assert torch_glue.save_packed(model, path).layers == []
    assert "no weight is exactly ±α in each filter" in caplog.text
    path.unlink()
    for load in (lambda: torch_glue.load_packed(model, path), lambda: read_packed_checkpoint(path)):
        with pytest.raises(ValueError, match="no such file"):
            load()
