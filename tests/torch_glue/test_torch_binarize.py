# ruff: noqa: E402
"""torch_glue.binarize: against the core on patches made by hand, its inputs, refusals, recovery."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset
from torch_support import Wandering, content, mlp, record, small_images, small_net

import hashsolve
import torch_glue

LAYERS = ["0", "2", "5"]


def by_hand(model, images, propagation):
    """Codes × scales of `small_net`'s layers from patches that torch's own unfold makes."""

    def inputs(values, layer):
        if isinstance(layer, nn.Linear):
            return values.T
        columns = nn.functional.unfold(
            values, layer.kernel_size, padding=layer.padding, stride=layer.stride
        )
        return columns.transpose(0, 1).flatten(1)

    result = {}
    full = changed = images
    with torch.no_grad():
        for name, layer in model.named_children():
            if name in LAYERS:
                weight = layer.weight.clone()
                flat = weight.flatten(1).T.double().numpy()
                x, seen = (inputs(v, layer).double().numpy() for v in (full, changed))
                problem = {
                    "asym": lambda: hashsolve.Problem.from_arrays(seen, flat, reference=x),  # noqa: B023
                    "symfp": lambda: hashsolve.Problem.from_arrays(x, flat),  # noqa: B023
                    "symqt": lambda: hashsolve.Problem.from_arrays(seen, flat),  # noqa: B023
                }[propagation]()
                solution = hashsolve.solve(problem, "dcc")
                result[name] = solution
                full = layer(full)
                layer.weight.copy_(
                    torch.from_numpy(solution.codes * solution.scales).T.reshape(weight.shape)
                )
                changed = layer(changed)
                layer.weight.copy_(weight)
            else:
                full, changed = layer(full), layer(changed)
    return result


@pytest.mark.parametrize("propagation", ["asym", "symfp", "symqt"])
def test_it_is_the_core_on_patches_made_by_hand(tmp_path, propagation):
    model, images = small_net(), small_images()
    expected = by_hand(model, images, propagation)
    biases = [content(model[int(name)].bias) for name in LAYERS]
    run = torch_glue.binarize(model, [images], tmp_path, method="dcc", propagation=propagation)
    assert [result.name for result in run.layers] == LAYERS
    for result in run.layers:
        solution = expected[result.name]
        np.testing.assert_array_equal(result.solution.codes, solution.codes)
        np.testing.assert_allclose(result.solution.scales, solution.scales, rtol=1e-9)
        written = (solution.codes * solution.scales).T.reshape(result.layer.shape)
        np.testing.assert_allclose(model[int(result.name)].weight.detach(), written, rtol=1e-6)
    assert [content(model[int(name)].bias) for name in LAYERS] == biases


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_filter_has_one_magnitude_and_the_output_is_that_of_signs(tmp_path, dtype, groups):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(), nn.Conv2d(6, 4, 2)).to(
        dtype
    )
    images = torch.randn(8, 4, 6, 6).to(dtype)
    run = torch_glue.binarize(model, images, tmp_path, method="dcc")
    hand = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(), nn.Conv2d(6, 4, 2)).to(dtype)
    for result in run.layers:
        layer, target = model[int(result.name)], hand[int(result.name)]
        flat = layer.weight.detach().flatten(1)
        assert layer.weight.dtype == dtype
        assert all(len(row.abs().unique()) == 1 for row in flat)
        with torch.no_grad():
            for t in range(len(flat)):
                bits = torch.from_numpy(result.solution.codes[:, t]).to(dtype)
                alpha = torch.tensor(result.solution.scales[t]).to(dtype)
                target.weight[t] = (bits * alpha).reshape(target.weight[t].shape)
            target.bias.copy_(layer.bias)
    assert torch.equal(model(images), hand(images))


class Batches:
    """A container of batches that is neither list nor loader."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


ROWS = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
LABELS = torch.zeros(20)
SPLIT = list(ROWS.split(10))
ACCEPTED = {
    "tensor": ROWS,
    "list": SPLIT,
    "tuple": tuple(SPLIT),
    "iterable": Batches(SPLIT),
    "labels": [(x, y) for x, y in zip(SPLIT, LABELS.split(10), strict=True)],
    "names": [[x, ["a"] * 10] for x in SPLIT],
    "mapping": [{"input": x} for x in SPLIT],
    "mapping and labels": [({"input": x}, y) for x, y in zip(SPLIT, LABELS.split(10), strict=True)],
    "samples": list(ROWS),
    "data set": TensorDataset(ROWS, LABELS),
    "plain loader": DataLoader(ROWS, 10),
    "loader": DataLoader(TensorDataset(ROWS, LABELS), 7, shuffle=False),
    "mapping loader": DataLoader([{"input": x} for x in ROWS], 10),
    "unbatched loader": DataLoader(ROWS, batch_size=None),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_images_of_every_form(tmp_path, form):
    expected = torch_glue.binarize(mlp(), [ROWS], tmp_path / "expected", method="dcc")
    random = content(torch.get_rng_state())
    run = torch_glue.binarize(mlp(), ACCEPTED[form], tmp_path / "run", method="dcc")
    assert run.codes_sha256 == expected.codes_sha256
    assert {result.row["rows"] for result in run.layers} == {20}
    assert content(torch.get_rng_state()) == random


@pytest.mark.parametrize("form", ["mapping", "in a tuple", "parallel"])
def test_a_forward_that_takes_one_mapping(tmp_path, form):
    class OfMapping(nn.Sequential):
        def forward(self, batch, mask=None):
            return super().forward(batch["pixels"])

    expected = torch_glue.binarize(mlp(), ROWS, tmp_path / "expected", method="dcc")
    model = OfMapping(*mlp())
    if form == "parallel":
        model = nn.DataParallel(model)
    batches = [({"pixels": x},) if form == "in a tuple" else {"pixels": x} for x in SPLIT]
    run = torch_glue.binarize(model, batches, tmp_path / "run", method="dcc")
    assert run.codes_sha256 == expected.codes_sha256


def test_a_data_set_of_images_is_put_into_batches(tmp_path):
    class Pictures(Dataset):
        def __len__(self):
            return 70

        def __getitem__(self, i):
            return small_images(70)[i], i

    model = nn.Sequential(nn.BatchNorm2d(3), *small_net())
    run = torch_glue.binarize(model, Pictures(), tmp_path, method="sign")
    assert run.layers[0].row["rows"] == 70 * 64


def test_numpy_arrays_are_images(tmp_path):
    runs = [
        torch_glue.binarize(mlp(), images, tmp_path / str(i), method="dcc")
        for i, images in enumerate([ROWS, ROWS.numpy(), [ROWS.numpy()]])
    ]
    assert len({run.codes_sha256 for run in runs}) == 1


class Changing:
    def __iter__(self):
        return iter([torch.rand(5, 4)])


REFUSED = {
    "generator": ((x for x in SPLIT), "only once"),
    "shuffling loader": (DataLoader(ROWS, 5, shuffle=True), "shuffle=False"),
    "subset": (DataLoader(ROWS, 5, sampler=SubsetRandomSampler(range(9))), "shuffle=False"),
    "other each time": (Changing(), "shuffling or random"),
    "no batches": ([], "no batches"),
    "no input": ([[]], "images: the model takes no batch that is empty"),
    "text": (["x"], "images: the model takes no batch that is 'x'"),
    "no samples": (torch.ones(0, 4), "samples along the first axis"),
    "one axis": (torch.ones(4), "samples along the first axis"),
    "one mapping": ({"x": torch.ones(5, 4)}, r"images: a dict is no iterable of batches"),
    "none": (None, "images: must give batches, got a NoneType"),
    "integers": (torch.ones(5, 4, dtype=torch.uint8), r"does not take torch.uint8 .*\.float\(\)"),
    "not finite": (torch.full((5, 4), torch.nan), "0: .*nan"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_images_that_are_refused(tmp_path, form):
    images, match = REFUSED[form]
    model = mlp()
    before = record(model)
    with pytest.raises(ValueError, match=match):
        torch_glue.binarize(model, images, tmp_path / "run", method="dcc")
    assert record(model)["tensors"] == before["tensors"]
    if form in ("generator", "shuffling loader", "subset"):
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "dccc"},
        {"effort": "heroic"},
        {"propagation": "sym"},
        {"dtype": "int8"},
        {"skip": ["frist"]},
        {"skip": "*"},
    ],
)
def test_a_bad_setting_changes_nothing(tmp_path, setting):
    model = Wandering()
    before = record(model)
    with pytest.raises(ValueError, match=f"{next(iter(setting))}|every layer is skipped"):
        torch_glue.binarize(model, torch.ones(8, 4), tmp_path / "run", **setting)
    assert record(model) == before and not (tmp_path / "run").exists()


def nested():
    """Layers "conv1", "layer1.0.conv1", "layer1.1.conv1", "linear"."""
    model, block = nn.Module(), lambda: nn.ModuleDict({"conv1": nn.Conv1d(2, 2, 1)})
    model.conv1, model.linear = nn.Conv1d(2, 2, 1), nn.Linear(5, 2)
    model.layer1 = nn.ModuleList([block(), block()])

    def forward(x):
        for layer in (model.conv1, *(block["conv1"] for block in model.layer1), model.linear):
            x = layer(x)
        return x

    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["conv1", "linear"], ["layer1.0.conv1", "layer1.1.conv1"]),
        ("layer1.*", ["conv1", "linear"]),
        (("*conv1",), ["linear"]),
        (["layer1.?.conv1", "linear"], ["conv1"]),
    ],
)
def test_skip_takes_whole_names_and_globs(tmp_path, skip, left):
    model = nested()
    before = {name: content(p) for name, p in model.named_parameters()}
    run = torch_glue.binarize(model, torch.randn(8, 2, 5), tmp_path, skip=skip, method="sign")
    assert list(run.relative_errors) == left
    after = {name: content(p) for name, p in model.named_parameters()}
    assert [n for n in before if before[n] != after[n]] == [
        f"{name}.weight" for name, _ in model.named_modules() if name in left
    ]


def test_a_model_that_needs_more_than_a_batch_gives(tmp_path):
    class Two(nn.Linear):
        def forward(self, x, mask):
            return super().forward(x * mask)

    class Inheriting(Two):
        pass

    images = torch.ones(5, 4)
    parallel = nn.DataParallel(Two(4, 2))
    for model in (Two(4, 2), Inheriting(4, 2), parallel):
        with pytest.raises(ValueError, match=r"the model takes more than a batch gives .*mask"):
            torch_glue.binarize(model, images, tmp_path / "run", method="dcc")


def test_a_model_without_values_is_refused(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="layer 0: its weight is on the meta device"):
        torch_glue.binarize(model, torch.ones(5, 4), tmp_path / "run", method="dcc")


@pytest.mark.parametrize("skip", ["layer1", "conv", "1.conv1"])
def test_skip_of_part_of_a_name_is_an_error(tmp_path, skip):
    with pytest.raises(ValueError, match="matches no layer"):
        torch_glue.binarize(nested(), torch.randn(8, 2, 5), tmp_path / "run", skip=[skip])


class Sharing(nn.Module):
    """Layers "a", "b" and "c", the latter two with something odd about them."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.how = how
        if how == "same parameter":
            self.c.weight = self.b.weight
        elif how == "same memory":
            self.c.weight = nn.Parameter(self.b.weight.detach())
        elif how == "embedding":
            self.words = nn.Embedding(4, 4)
            self.c.weight = self.words.weight
        elif how == "parametrized":
            parametrizations.orthogonal(self.c)
        elif how == "weight_norm":
            parametrizations.weight_norm(self.c)
        elif how == "pruned":
            prune.l1_unstructured(self.c, "weight", 0.5)

    def forward(self, x):
        x = self.c(self.b(self.a(x)))
        return self.b(x) if self.how == "twice" else x


ODD = {
    "embedding": ("layer c shares its weight with words", ["c"]),
    "parametrized": ("layer c: its weight is computed", ["c"]),
    "weight_norm": ("layer c: its weight is computed", ["c"]),
    "pruned": ("layer c: its weight is computed", ["c"]),
}


@pytest.mark.parametrize("how", ODD)
def test_odd_layers_are_refused_by_name_and_can_be_skipped(tmp_path, how):
    message, skip = ODD[how]
    model = Sharing(how)
    before = record(model)
    with pytest.raises(ValueError, match=f"{message}.*add it to skip"):
        torch_glue.binarize(model, ROWS, tmp_path / "run", method="sign")
    assert record(model) == before and not (tmp_path / "run").exists()
    run = torch_glue.binarize(model, ROWS, tmp_path / "run", method="sign", skip=skip)
    assert [r.name for r in run.layers] == [n for n in "abc" if n not in skip]
    if how == "parametrized":
        assert parametrize.is_parametrized(model.c)


@pytest.mark.parametrize("how", ["same parameter", "same memory"])
def test_one_of_two_sharers_cannot_be_binarised_alone(tmp_path, how):
    for skip in ("b", "c"):
        with pytest.raises(ValueError, match=r"shares its weight with ., which is skipped"):
            torch_glue.binarize(Sharing(how), ROWS, tmp_path / "run", skip=[skip])
    run = torch_glue.binarize(Sharing(how), ROWS, tmp_path / "run", method="sign", skip="[bc]")
    assert [r.name for r in run.layers] == ["a"]


def test_a_layer_under_two_names_is_one_layer(tmp_path):
    model = mlp()
    model.alias = model[0]
    model.forward = lambda x: model[2](torch.relu(model.alias(x)))
    run = torch_glue.binarize(model, ROWS, tmp_path, method="sign")
    assert list(run.relative_errors) == ["0", "2"]


@pytest.mark.parametrize("always", [True, False])
def test_a_layer_that_is_not_reached_is_refused(tmp_path, always):
    model = mlp()
    network = model[2]
    unreached = lambda x: len(x) < 10 or always  # noqa: E731
    model.forward = lambda x: model[0](x) if unreached(x) else network(model[0](x))
    batches = [ROWS[:10], ROWS[10:13]]
    with pytest.raises(ValueError, match=r"layer 2 is not reached .*add it to skip"):
        torch_glue.binarize(model, batches, tmp_path / "run", method="sign")
    run = torch_glue.binarize(model, batches, tmp_path / "other", method="sign", skip=["2"])
    assert list(run.relative_errors) == ["0"]


def test_only_weights_change(tmp_path):
    model = Wandering()
    before = record(model)
    torch_glue.binarize(model, ROWS, tmp_path, method="dcc")
    after = record(model)
    for name in before.keys() - {"tensors"}:
        assert after[name] == before[name], name
    names = [b[0] for b, a in zip(before["tensors"], after["tensors"], strict=True) if a != b]
    assert sorted(names) == ["branch.weight", "first.weight", "last.weight"]
    assert [t[:-1] for t in after["tensors"]] == [t[:-1] for t in before["tensors"]]


def test_callers_in_inference_mode_can_train_afterwards(tmp_path):
    model = mlp()
    with torch.inference_mode():
        run = torch_glue.binarize(model, ROWS, tmp_path / "a", method="dcc")
    other = torch_glue.binarize(mlp(), ROWS, tmp_path / "b", method="dcc")
    assert run.codes_sha256 == other.codes_sha256
    model(ROWS).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


class Stopped(BaseException):
    pass


def stop_at(layer, stage):
    """A progress callback that raises there, and notes what was resumed."""
    resumed = []

    def progress(name, index, count, what):
        if what == "resumed":
            resumed.append(name)
        if (name, what) == (layer, stage):
            raise Stopped

    progress.resumed = resumed
    return progress


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stage", ["extracting activations", "summing", "solving"])
def test_an_error_restores_the_weights_and_the_next_run_resumes(tmp_path, dtype, stage):
    images = small_images().to(dtype)
    whole = small_net().to(dtype)
    expected = torch_glue.binarize(whole, images, tmp_path / "whole", method="dcc")
    model = small_net().to(dtype)
    before = record(model)
    for k, layer in enumerate(LAYERS):
        progress = stop_at(layer, stage)
        with pytest.raises(Stopped):
            torch_glue.binarize(model, images, tmp_path / "run", method="dcc", progress=progress)
        assert record(model) == before
        assert progress.resumed == LAYERS[: max(k - 1, 0)]
    progress = stop_at("", "")
    run = torch_glue.binarize(model, images, tmp_path / "run", method="dcc", progress=progress)
    assert progress.resumed == LAYERS[:2]
    assert run.codes_sha256 == expected.codes_sha256
    assert all(
        content(a) == content(b)
        for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )


def test_an_error_in_the_models_forward_leaves_it_as_found(tmp_path):
    model = Wandering()
    calls = iter(range(12))

    def fail(*_):
        if next(calls) == 11:
            raise ZeroDivisionError

    model.norm.register_forward_pre_hook(fail)
    before = record(model)
    with pytest.raises(ZeroDivisionError):
        torch_glue.binarize(model, list(ROWS.split(5)), tmp_path, method="dcc")
    assert record(model) == before
    assert [p.name for p in (tmp_path / "layers").glob("*.solution.h5")] == [
        f"{name}.solution.h5" for name in ("first", "branch")
    ]


KILLED = """
import os, signal, sys
import torch_glue
from torch_support import small_images, small_net

layer, stage, batch = sys.argv[2:]

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

class Images:
    served = 0
    def __iter__(self):
        for part in small_images().split(6):
            Images.served += 1
            if Images.served == int(batch):
                kill()
            yield part

torch_glue.binarize(small_net(), Images(), sys.argv[1], method="dcc",
    progress=lambda name, index, count, what: (name, what) == (layer, stage) and kill())
"""


@pytest.mark.parametrize(
    ("layer", "stage", "batch", "resumed"),
    [
        ("2", "extracting activations", 0, ["0"]),  # between two layers
        ("5", "solving", 0, ["0", "2"]),
        ("", "", 1 + 4 + 4 + 3, ["0"]),  # in the third batch of layer 2
    ],
)
def test_a_killed_run_resumes_to_the_same_codes(tmp_path, layer, stage, batch, resumed):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), layer, stage, str(batch)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    batches = list(small_images().split(6))
    progress = stop_at("", "")
    run = torch_glue.binarize(
        small_net(), batches, tmp_path / "run", method="dcc", progress=progress
    )
    assert progress.resumed == resumed
    whole = torch_glue.binarize(small_net(), batches, tmp_path / "whole", method="dcc")
    assert run.codes_sha256 == whole.codes_sha256
    assert not [*(tmp_path / "run").glob("**/.*.part")]
    assert not [*(tmp_path / "run" / "activations").iterdir()]


def test_another_model_or_other_images_do_not_resume(tmp_path):
    torch_glue.binarize(mlp(), ROWS, tmp_path, method="dcc")
    with pytest.raises(ValueError, match="other calibration data"):
        torch_glue.binarize(mlp(), ROWS + 1, tmp_path, method="dcc")
    model = mlp()
    with torch.no_grad():
        model[0].bias.add_(1)
    with pytest.raises(ValueError, match="other weights"):
        torch_glue.binarize(model, ROWS, tmp_path, method="dcc")


def test_an_adapter_can_be_used_again(tmp_path):
    """What an earlier run has written is no part of the next one's network."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )

    torch.manual_seed(1)
    batches = [torch.randn(50, 8)]
    network = torch_glue.TorchNetwork(make())
    hashsolve.binarize(network, batches, tmp_path / "a", "dcc")
    again = hashsolve.binarize(network, batches, tmp_path / "b", "dcc", skip=["0"])
    fresh = torch_glue.TorchNetwork(make())
    wanted = hashsolve.binarize(fresh, batches, tmp_path / "c", "dcc", skip=["0"])
    assert again.codes_sha256 == wanted.codes_sha256
    assert torch.equal(network.model[0].weight, make()[0].weight)


@pytest.mark.parametrize("method", ["sign", "dcc"])
def test_within_autocast_what_is_written_is_seen(tmp_path, method):
    """Autocast keeps casts of weights until its outermost region ends."""
    cold, warm = small_net(), small_net()
    images = small_images()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = torch_glue.binarize(cold, images, tmp_path / "cold", method=method)
        outputs = cold(images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        before = warm(images).detach()
        run = torch_glue.binarize(warm, images, tmp_path / "warm", method=method)
        assert run.codes_sha256 == expected.codes_sha256
        assert torch.equal(warm(images), outputs) and not torch.equal(outputs, before)
        torch_glue.save_packed(cold, tmp_path / "cold.safetensors")
        other = small_net()
        assert torch.equal(other(images), before)
        torch_glue.load_packed(other, tmp_path / "cold.safetensors")
        assert torch.equal(other(images), outputs)
