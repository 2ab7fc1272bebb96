# ruff: noqa: E402
"""attach and detach: they start at the codes, gradients pass, nothing of torch's breaks."""

import copy
import io
import re
import shutil

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_support import content, mlp, record, small_images, small_net

import hashsolve
import torch_glue
from hashsolve.instance import signs
from hashsolve.runfolder import RunFolder
from torch_glue.binary_weight import BinaryWeight
from torch_glue.parametrize import SCALES
from torch_glue.training import parameter_groups


@pytest.fixture(scope="module")
def binarized(tmp_path_factory):
    """A binarised small net, its run, and the net in full precision."""
    full = small_net()
    with torch.no_grad():
        full[2].weight[0, 0] = 0.0  # codes that |W| alone would lose
        full[0].weight[1] = 0.0  # a filter whose outputs are zero: its scale will be 0
        full[0].bias[1] = 0.5
    model = copy.deepcopy(full)
    folder = tmp_path_factory.mktemp("run")
    run = torch_glue.binarize(model, small_images(), folder, skip=["5"], method="dcc")
    return full, model, run


def latent(module):
    return module.parametrizations.weight.original


def binary(module):
    return module.parametrizations.weight[0]


def test_it_starts_at_the_solvers_codes_bit_for_bit(binarized):
    full, model, run = binarized
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = copy.deepcopy(model)
    assert torch_glue.attach(model, run) == ["0", "2"]
    assert (before["0.weight"][1] == 0).all()
    for result in run.layers:
        module = model.get_submodule(result.name)
        assert torch.equal(module.weight, before[f"{result.name}.weight"])
        codes = signs(latent(module).detach().numpy()).reshape(len(latent(module)), -1)
        assert np.array_equal(codes.T, result.solution.codes)
        size, least = full.get_submodule(result.name).weight.abs(), 2.0**-23
        assert torch.equal(latent(module).abs()[size > least], size[size > least])
        assert (latent(module).abs()[size <= least] <= least).all()
    images = small_images()
    assert torch.equal(model(images), binarized[1](images))


def test_magnitudes_come_from_a_network_in_full_precision_too(binarized):
    full, model, run = binarized
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    torch_glue.attach(first, run)
    torch_glue.attach(second, run, magnitudes=full)
    third = copy.deepcopy(model)
    torch_glue.attach(third, ["0", "2"], magnitudes=full.state_dict())  # codes of the model itself
    for name in ("0", "2"):
        assert torch.equal(latent(first.get_submodule(name)), latent(second.get_submodule(name)))
    assert torch.equal(latent(third[2]), latent(first[2]))


def test_a_run_in_groups_gives_magnitudes(tmp_path):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 2))
    full = copy.deepcopy(model)
    images = torch.randn(40, 4, 3, 3)
    images[:, 2:] = 0.0  # the second group has no data
    run = torch_glue.binarize(model, images, tmp_path, skip=["2"], method="dcc")
    before = model[0].weight.clone()
    torch_glue.attach(model, run)
    assert torch.equal(before, model[0].weight)
    assert torch.equal(latent(model[0])[:3].abs(), full[0].weight[:3].abs())
    assert torch.equal(latent(model[0])[3:], model[0].weight[3:])  # mean |W|, all that is known


def test_without_a_run_it_is_bwn_of_the_weights():
    model = small_net()
    full = copy.deepcopy(model)
    torch_glue.attach(model, ["0", "2"], scales="mean")
    for name in ("0", "2"):
        weight = full.get_submodule(name).weight
        expected = weight.sign() * weight.abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(model.get_submodule(name).weight, expected, rtol=1e-6, atol=0)
        assert torch.equal(latent(model.get_submodule(name)), weight)


@pytest.mark.parametrize("scales", SCALES)
def test_each_kind_of_scale_starts_from_the_codes(binarized, scales):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run, scales=scales)
    for result in run.layers:
        module, before = (m.get_submodule(result.name) for m in (attached, model))
        codes = torch.from_numpy(result.solution.codes.T.reshape(before.weight.shape)).float()
        if scales == "none":
            assert torch.equal(module.weight, codes)
        elif scales == "mean":
            torch.testing.assert_close(module.weight, before.weight, rtol=1e-6, atol=1e-37)
        else:
            assert torch.equal(module.weight, before.weight)
        assert (signs(latent(module).detach().numpy()) == codes.numpy()).all()
    trained = any("scales" in name for name, _ in attached.named_parameters())
    assert trained == (scales == "trained")


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SCALES),
    st.sampled_from([None, 0.5]),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_forward_and_gradient_against_numpy(seed, scales, clip, dtype):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(3, 2, 2)) * (rng.random((3, 2, 2)) < 0.8)
    weight = torch.tensor(w, dtype=dtype, requires_grad=True)
    w = weight.detach().double().numpy()
    alpha = torch.tensor(rng.random((3, 1)), dtype=dtype)
    binary = BinaryWeight(alpha if scales in ("trained", "fixed") else None, scales, clip=clip)
    out = binary(weight)
    size = np.abs(w).mean((1, 2), keepdims=True)
    kinds = {"mean": size, "none": np.ones((3, 1, 1))}
    a = kinds.get(scales, alpha.double().numpy()[:, :, None])
    assert np.allclose(out.detach().double(), a * signs(w), rtol=2 * torch.finfo(dtype).eps)
    assert set(np.unique((out.detach().double() / torch.tensor(a)).sign())) <= {-1.0, 0.0, 1.0}
    up = torch.tensor(rng.normal(size=w.shape), dtype=dtype)
    out.backward(up)
    u = up.double().numpy()
    expected = a * u * (1 if clip is None else np.abs(w) <= clip)
    if scales == "mean":  # of mean |w| too, whose own derivative is sign(w), and 0 at 0
        expected = expected + np.sign(w) * (u * signs(w)).mean((1, 2), keepdims=True)
    tolerance = 40 * torch.finfo(dtype).eps
    assert np.allclose(weight.grad.double(), expected, rtol=tolerance, atol=tolerance)
    if scales == "trained":
        wanted = (u * signs(w)).sum((1, 2))[:, None]
        assert np.allclose(binary.scales.grad.double(), wanted, rtol=tolerance, atol=10 * tolerance)


def test_detach_leaves_plain_layers_of_exactly_alpha(binarized):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    assert torch_glue.detach(attached) == ["0", "2"]
    assert torch_glue.detach(attached) == []
    assert attached.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert content(value) == content(attached.state_dict()[name]), name  # −0.0 too
    assert type(attached[0]) is nn.Conv2d
    assert isinstance(attached[0].weight, nn.Parameter) and attached[0].weight.requires_grad


def test_detaching_a_copy_leaves_the_model_attached(binarized):
    """Both have the class that torch made for the first."""
    _, model, run = binarized
    first = copy.deepcopy(model)
    torch_glue.attach(first, run)
    second = copy.deepcopy(first)
    torch_glue.detach(second)
    assert torch.equal(first(small_images()), second(small_images()))
    assert torch_glue.detach(first) == ["0", "2"]


def train(model, make, steps=5):
    images = small_images()
    labels = torch.arange(len(images)) % 5
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 0.05),
        lambda p: torch.optim.AdamW(p, 0.05),
        lambda p: torch.optim.RMSprop(p, 0.02),
        lambda p: torch.optim.Adagrad(p, 0.05),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop", "adagrad"],
)
def test_any_optimizer_flips_codes_and_keeps_filters_binary(binarized, make):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    train(attached, make)
    torch_glue.detach(attached)
    flips = (attached[2].weight.signbit() != model[2].weight.signbit()).sum()
    assert flips > 0 and not torch.equal(attached[2].weight.abs(), model[2].weight.abs())
    rows = attached[2].weight.flatten(1).abs()
    assert (rows == rows[:, :1]).all()


def test_an_optimizer_built_before_still_trains_the_latents(binarized):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    optimizer = torch.optim.SGD(attached.parameters(), 0.1)
    torch_glue.attach(attached, run)
    before = latent(attached[2]).clone()
    attached(small_images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, latent(attached[2]))


def test_state_dicts_round_trip(binarized):
    _, model, run = binarized
    first, second = copy.deepcopy(model), small_net()
    torch_glue.attach(first, run)
    train(first, lambda p: torch.optim.Adam(p, 0.01))
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    torch_glue.attach(second, ["0", "2"])
    second.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(first(small_images()), second(small_images()))
    assert record(first)["tensors"][0][-1] == record(second)["tensors"][0][-1]


def test_averages_of_parameters_are_binary_too(binarized):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    average = AveragedModel(attached, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    train(attached, lambda p: torch.optim.Adam(p, 0.05))
    before = average.module[2].weight.clone()
    average.update_parameters(attached)  # the first only copies
    train(attached, lambda p: torch.optim.Adam(p, 0.05))
    average.update_parameters(attached)
    assert not torch.equal(before, average.module[2].weight)
    assert torch_glue.detach(average) == ["module.0", "module.2"]


def test_data_parallel_wrapping(binarized, tmp_path):
    """One process: gradients still go through DDP's own hooks and buckets."""
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    alone = copy.deepcopy(attached)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(attached)
        train(wrapped, lambda p: torch.optim.SGD(p, 0.1))
    finally:
        torch.distributed.destroy_process_group()
    train(alone, lambda p: torch.optim.SGD(p, 0.1))
    torch.testing.assert_close(alone[2].weight, attached[2].weight)
    assert (alone[2].weight != model[2].weight).any()


def test_compiled_models_train_alike(binarized):
    _, model, run = binarized
    plain = copy.deepcopy(model)
    torch_glue.attach(plain, run)
    compiled = copy.deepcopy(plain)
    train(plain, lambda p: torch.optim.SGD(p, 0.1))
    try:
        train(torch.compile(compiled, backend="aot_eager"), lambda p: torch.optim.SGD(p, 0.1))
    except RuntimeError as error:  # a Python that torch does not compile for yet
        if "not supported" not in str(error):
            raise
        pytest.skip(str(error))
    torch.testing.assert_close(plain[2].weight, compiled[2].weight)


def test_stochastic_signs_follow_the_hard_sigmoid():
    torch.manual_seed(0)
    values = torch.tensor([[-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]])
    binary = BinaryWeight(None, "none", stochastic=True, clip=1.0)
    drawn = torch.stack([binary(values) for _ in range(2000)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    share = (drawn > 0).double().mean(0)[0]
    wanted = torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1], dtype=torch.float64)
    assert (share - wanted).abs().max() < 0.045  # four standard deviations
    binary.eval()
    assert torch.equal(binary(values), torch.tensor([[-1.0, -1, -1, 1, 1, 1, 1]]))


def test_clip_brings_latents_back():
    model = nn.Sequential(nn.Linear(4, 3))
    torch_glue.attach(model, ["0"], scales="none", clip=0.25)
    with torch.no_grad():
        latent(model[0]).mul_(10)
    kept = latent(model[0]).clone()
    model(torch.ones(2, 4)).sum().backward()
    assert (latent(model[0]).grad[kept.abs() > 0.25] == 0).all() and (kept.abs() > 0.25).any()
    binary(model[0]).clip_(latent(model[0]))
    assert torch.equal(latent(model[0]), kept.clamp(-0.25, 0.25))


def test_a_share_of_filters_stays_in_full_precision_likelier_those_of_large_error():
    torch.manual_seed(0)
    rows = torch.randn(40, 16)
    rows[:20] = rows[:20].sign()  # a fit without error: SQ takes these first
    rows.requires_grad_()
    binary = BinaryWeight(None, "mean")
    binary.share = 0.5
    out = binary(rows)
    whole = (out == rows).all(1)
    q = rows.sign() * rows.abs().mean(1, keepdim=True)
    assert ((out - q).abs().amax(1) < 1e-6)[:20].all()
    assert whole[20:].all()  # against 1e7 : 2 odds, none of them is drawn
    binary.share = 0.75
    counts = sum((binary(rows) != rows).any(1).double() for _ in range(200)) / 200
    assert counts[20:].mean() == pytest.approx(0.5)  # 30 of 40, 20 of them the first
    error = ((rows - q).abs().sum(1) / rows.abs().sum(1))[20:].detach()
    assert np.corrcoef(error, counts[20:])[0, 1] < -0.5
    binary.eval()
    torch.testing.assert_close(binary(rows), q)
    binary.train()
    binary.share = 0.5
    binary(rows).sum().backward()
    torch.testing.assert_close(rows.grad[20:], q[20:].abs())  # as if they were binarised


@pytest.mark.parametrize("kind", ["trained", "fixed", "none"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_gradients_of_filters_do_not_tell_whether_they_were_binarised(kind, share):
    rows = torch.randn(40, 16, requires_grad=True)
    scales = torch.rand(40, 2) + 0.1
    binary = BinaryWeight(None if kind == "none" else scales, kind)
    binary.share = share
    weights = torch.randn(40, 16)
    (binary(rows) * weights).sum().backward()
    alpha = torch.ones(40, 16) if kind == "none" else scales.repeat_interleave(8, 1)
    torch.testing.assert_close(rows.grad, alpha * weights)


@pytest.mark.parametrize("groups", [0, 2])
def test_codes_of_some_hardness_are_tanh_of_latents_in_means_of_their_filter(groups):
    """As NumPy has them, filter by filter; their sizes are those of signs."""
    torch.manual_seed(0)
    latents = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    filters = 6 if groups else 4
    binary = BinaryWeight(torch.linspace(1, 2, filters).double()[:, None], "fixed", groups)
    binary.hardness = torch.tensor(3.0)
    out = binary(latents)
    numbers, scales = latents.detach().numpy(), binary.scales.numpy()
    alpha, mean, wanted = (np.empty_like(numbers) for _ in range(3))
    for number in range(filters):  # a transposed convolution's filter is of its group's inputs
        where = (slice(number // 3 * 2, number // 3 * 2 + 2), number % 3) if groups else number
        alpha[where], mean[where] = scales[number], np.abs(numbers[where]).mean()
        codes = np.tanh(3 * numbers[where] / mean[where])
        wanted[where] = scales[number] * codes / np.sqrt((codes**2).mean())
        assert np.square(wanted[where]).mean() == pytest.approx(scales[number].item() ** 2)
    np.testing.assert_allclose(out.detach(), wanted, rtol=1e-12)
    out.sum().backward()
    assert (latents.grad > 0).all()  # of the tanh, which is flat far from 0
    order = latents.detach().abs().flatten().argsort()
    assert latents.grad.flatten()[order[-1]] < 0.1 * latents.grad.flatten()[order[0]]
    hard = binary.eval()(latents)
    np.testing.assert_array_equal(hard.detach(), alpha * np.sign(numbers))
    binary.train()
    binary.hardness = torch.tensor(1e9)
    torch.testing.assert_close(binary(latents), hard)
    assert "hardness" not in binary.state_dict()


def test_soft_codes_are_those_of_clipped_latents():
    binary = BinaryWeight(None, "none", clip=1.0)
    binary.hardness = torch.tensor(1.0)
    rows = torch.tensor([[4.0, 0.5, 0.0]], requires_grad=True)
    out = binary(rows)
    codes = (torch.tensor([[1.0, 0.5, 0.0]]) / 0.5).tanh()
    torch.testing.assert_close(out, codes / codes.square().mean().sqrt())
    out.sum().backward()
    assert rows.grad[0, 0] == 0 and rows.grad[0, 1] > 0


def test_soft_codes_of_groups_of_inputs_are_measured_by_their_own_group():
    alpha = torch.tensor([[1.0, 0.01]])
    binary = BinaryWeight(alpha, "fixed")
    binary.hardness = torch.tensor(2.0)
    weight = binary(torch.tensor([[1.0, -2, 3, 0.01, -0.02, 0.03]]))
    torch.testing.assert_close(weight[:, :3] * 0.01, weight[:, 3:])


@pytest.mark.parametrize("rows", [torch.zeros(2, 3), torch.tensor([[1.0, 2, 3], [0, 0, 0]])])
def test_gradients_of_soft_zeros_are_bounded(rows):
    binary = BinaryWeight(None, "none")
    binary.hardness = torch.tensor(2.0)
    rows.requires_grad_()
    out = binary(rows)
    assert torch.equal(out[1], torch.zeros(3))
    out.sum().backward()
    assert rows.grad.isfinite().all() and 0 < rows.grad[1].max() < 1e8


def test_scales_of_groups_of_inputs():
    alpha = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    binary = BinaryWeight(alpha, "fixed")
    weight = binary(torch.tensor([[1.0, -1, 1, 1], [-1, 1, -1, 1]]))
    assert torch.equal(weight, torch.tensor([[1.0, -1, 2, 2], [-3, 3, -0.0, 0]]))


def test_transposed_convolutions_have_their_filters_on_the_second_axis():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    binary = BinaryWeight(torch.arange(1.0, 7.0)[:, None], "fixed", groups=2)
    weight = binary(layer.weight.detach())
    expected = torch.arange(1.0, 7.0).reshape(2, 1, 3).expand(2, 2, 3).reshape(4, 3)
    assert torch.equal(weight.abs(), expected[:, :, None, None].expand(4, 3, 3, 3))


def test_assigning_a_weight_gives_its_own_signs_and_scales(binarized):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    new = torch.full_like(model[2].weight, -3.0)
    attached[2].weight = new
    assert torch.equal(attached[2].weight, new)


def test_settings_and_layers_that_cannot_be_used(binarized, tmp_path):
    full, model, run = binarized

    def refused(match, *args, made=None, **options):
        made = copy.deepcopy(model) if made is None else made
        before = record(made)["tensors"]
        with pytest.raises(ValueError, match=match):
            torch_glue.attach(made, *args, **options)
        assert record(made)["tensors"] == before

    refused("scales: 'learned' is not one of", run, scales="learned")
    refused("clip", run, clip=0)
    refused("no module 'conv9'", ["0", "conv9"])
    refused("named twice", ["0", "0"])
    refused("is a path; give the run itself", run.run_dir)
    refused("magnitudes: the weight of 2", ["0", "2"], magnitudes={"0.weight": full[0].weight})
    refused("magnitudes: it holds no tensors", run, magnitudes={})
    refused("1 is a ReLU", ["0", "1"])
    refused("codes of shape", run, made=nn.Sequential(*small_net()[:2], nn.Conv2d(4, 7, 3)))
    refused("magnitudes: expected", run, magnitudes=[1])
    refused("magnitudes: the weight of 0", run, magnitudes={"2.weight": full[2].weight})
    tied = mlp()
    tied[2] = nn.Embedding(4, 3)
    tied[2].weight = tied[0].weight
    refused("0: shares its weight with 2, which is no layer of the same kind", ["0"], made=tied)
    broken = mlp()
    broken[0].weight.data[0, 0] = torch.nan
    refused("not finite", ["0"], made=broken)
    moved = copy.copy(run)
    object.__setattr__(moved, "run_dir", tmp_path / "gone")
    refused("magnitudes", moved)
    twice = copy.deepcopy(model)
    torch_glue.attach(twice, run)
    refused("parametrized already", run, made=twice)


def test_what_is_not_binary_is_not_detached(binarized):
    _, model, run = binarized
    attached = copy.deepcopy(model)
    torch_glue.attach(attached, run)
    with torch.no_grad():
        binary(attached[2]).scales[0] = torch.nan
    with pytest.raises(ValueError, match="2: its weight is not exactly ±α"):
        torch_glue.detach(attached)
    assert binary(attached[0]) is not None


@pytest.mark.parametrize("groups", [1, 2])
def test_a_damaged_folder_is_refused_not_guessed(tmp_path, groups):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.Flatten(), nn.Linear(6, 2))
    run = torch_glue.binarize(model, torch.randn(40, 4, 3, 3), tmp_path, skip=["2"], method="dcc")
    path = RunFolder(run.run_dir).problem_path("0")
    whole, before = path.read_bytes(), record(model)["tensors"]
    with h5py.File(path) as file:
        node = file["weights" if groups == 1 else "group1/weights"]
        start = node.id.get_chunk_info(0).byte_offset if node.chunks else node.id.get_offset()
    flipped = bytearray(whole)
    flipped[start + 5] ^= 255  # one byte of one weight
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^0: \|W\| .*{path.name}.* magnitudes"):
            torch_glue.attach(model, run)
        assert record(model)["tensors"] == before
    path.write_bytes(whole)
    assert torch_glue.attach(model, run) == ["0"]


@pytest.mark.parametrize("layer", [nn.Linear(64, 8), nn.Conv1d(16, 8, 4), nn.Linear(6, 2)])
def test_scales_of_groups_are_found_by_names(layer):
    torch.manual_seed(0)
    model, other = nn.Sequential(copy.deepcopy(layer)), nn.Sequential(copy.deepcopy(layer))
    shape, count = layer.weight.shape, layer.weight[0].numel()
    for length in (count, count // 2):
        alpha = torch.rand(shape[0], count // length).repeat_interleave(length, 1)
        model[0].weight.data = layer.weight.data.sign() * alpha.reshape(shape)
        before = model[0].weight.detach().clone()
        torch_glue.attach(model, ["0"])
        assert torch.equal(model[0].weight, before)
        assert binary(model[0]).scales.shape == (shape[0], count // length)
        torch_glue.detach(model)
        assert torch.equal(model[0].weight, before)
    torch_glue.attach(other, ["0"])  # not binary: mean |W|
    assert binary(other[0]).scales.shape == (shape[0], 1)


def test_a_run_in_groups_of_inputs_trained_packed_and_trained_further(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(200, 64)

    def make():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    model, loaded = make(), make()
    run = torch_glue.binarize(
        model, inputs, tmp_path / "run", skip=["2"], method="dcc", scale_group=16
    )
    before = model(inputs)
    torch_glue.attach(model, run)
    assert torch.equal(model(inputs), before)
    torch_glue.save_packed(model, tmp_path / "m")
    names = torch_glue.load_packed(loaded, tmp_path / "m")
    assert torch_glue.attach(loaded, names) == ["0"]
    assert torch.equal(loaded(inputs), before)


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.at = nn.MultiheadAttention(16, 2, batch_first=True, **options)
        self.last = nn.Linear(16, 16)

    def forward(self, x):
        width = self.at.kdim
        return self.last(self.at(x, x[..., :width], x[..., :width])[0])


PARTS = ["at.q_proj", "at.k_proj", "at.v_proj"]
FORMS = pytest.mark.parametrize("options", [{}, {"kdim": 8, "vdim": 8}])


def projections(attention):
    """The weights of the three by hand, packed or not."""
    if attention.in_proj_weight is not None:
        return attention.in_proj_weight.reshape(3, 16, 16)
    return [getattr(attention, f"{part}_proj_weight") for part in "qkv"]


@FORMS
@pytest.mark.parametrize("scales", SCALES)
def test_projections_of_an_attention_start_at_the_codes(tmp_path, options, scales):
    torch.manual_seed(0)
    model, inputs = Attending(**options), torch.randn(24, 5, 16)
    full = copy.deepcopy(model)
    run = torch_glue.binarize(model, inputs, tmp_path, method="dcc")
    binarized = copy.deepcopy(model)
    names = [result.name for result in run.layers]
    assert set(PARTS) < set(names)
    assert torch_glue.attach(model, run, scales=scales) == names
    for own, wanted in zip(projections(model.at), projections(binarized.at), strict=True):
        if scales in ("trained", "fixed"):
            assert torch.equal(own, wanted)
        assert torch.equal(own.sign(), wanted.sign())
        alpha = own.detach().abs()
        assert torch.equal(alpha, alpha[:, :1].expand_as(alpha))
    stored = model.at.parametrizations
    if options:
        latents = [stored[f"{part}_proj_weight"].original for part in "qkv"]
    else:
        latents = stored.in_proj_weight.original.reshape(3, 16, 16)
    if scales != "mean":
        for own, original in zip(latents, projections(full.at), strict=True):
            assert torch.equal(own.abs(), original.abs())
    if scales in ("trained", "fixed"):
        assert torch.equal(model(inputs), binarized(inputs))
        assert torch_glue.detach(model) == names
        assert model.state_dict().keys() == binarized.state_dict().keys()
        for name, value in binarized.state_dict().items():
            assert content(value) == content(model.state_dict()[name]), name
        assert type(model.at) is nn.MultiheadAttention


@FORMS
def test_projections_of_an_attention_are_trained_and_packed(tmp_path, options):
    torch.manual_seed(0)
    model, inputs = Attending(**options), torch.randn(24, 5, 16)
    empty = copy.deepcopy(model)
    run = torch_glue.binarize(model, inputs, tmp_path / "run", method="dcc")
    torch_glue.attach(model, run)
    again = copy.deepcopy(empty)
    torch_glue.attach(again, [result.name for result in run.layers])
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs), again(inputs))
    loader = [(inputs, torch.zeros(24))]
    result = torch_glue.finetune(
        model, loader, epochs=4, lr=0.05, loss=lambda found, batch: found.square().mean()
    )
    assert result.ended > result.began
    scales = {name for name, _ in model.named_parameters() if name.endswith("scales")}
    assert len(scales) == 5  # q, k, v, out, last
    for own, before in zip(projections(model.at), projections(again.at), strict=True):
        assert not torch.equal(own, before)
    sizes = torch_glue.save_packed(model, tmp_path / "m", layers=PARTS)
    assert len(sizes.layers) == (5 if options else 3)
    wanted = model.eval()(inputs)
    names = torch_glue.load_packed(empty, tmp_path / "m")
    assert torch.equal(empty.eval()(inputs), wanted)
    assert set(names) == {*PARTS, "at.out_proj", "last"}
    torch_glue.attach(empty, names)
    assert torch.equal(empty(inputs), wanted)
    assert set(torch_glue.detach(model)) == set(names)
    assert torch.equal(model(inputs), wanted)


@FORMS
def test_some_projections_of_an_attention(tmp_path, options):
    torch.manual_seed(0)
    model, inputs = Attending(**options), torch.randn(24, 5, 16)
    run = torch_glue.binarize(
        model, inputs, tmp_path / "run", skip=["at.k_proj", "last"], method="dcc"
    )
    wanted, key = model(inputs), projections(model.at)[1].detach().clone()
    names = torch_glue.attach(model, run)
    assert sorted(names) == ["at.out_proj", "at.q_proj", "at.v_proj"]
    assert torch.equal(model(inputs), wanted)
    with pytest.raises(ValueError, match=r"at\.q_proj: its weight is parametrized already"):
        torch_glue.attach(model, ["at.q_proj"])
    if not options:
        with pytest.raises(ValueError, match=r"at\.k_proj: .*by one call"):
            torch_glue.attach(model, ["at.k_proj"])
    with pytest.raises(ValueError, match="_proj_weight: it is not exactly ±α"):
        torch_glue.save_packed(model, tmp_path / "m", layers=["at.k_proj"])
    model(inputs).square().sum().backward()
    model.zero_grad()
    torch_glue.detach(model)
    assert torch.equal(projections(model.at)[1], key)
    assert torch.equal(model(inputs), wanted)


def test_parts_of_an_attention_obey_their_own_settings():
    torch.manual_seed(0)
    model = Attending()
    full = copy.deepcopy(model)
    torch_glue.attach(model, ["at.v_proj"], scales="none", clip=0.01, magnitudes=full)
    stored = model.at.parametrizations.in_proj_weight
    torch_glue.finetune(
        model, [(torch.randn(8, 5, 16),)], loss=lambda found, _: found.square().mean(), lr=1e-4
    )
    key, value = stored.original[16:32], stored.original[32:]
    assert value.abs().max() <= 0.01 < key.abs().max()
    (group,) = [
        g
        for g in parameter_groups(model, {"latents": 1, "scales": 1, "other": 1})
        if g["name"] == "latents"
    ]
    assert [p is stored.original for p in group["params"]] == [True]


class Tied(nn.Module):
    """Two of each kind of layer that share their weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.first, self.second = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in "ab")
        self.b.weight = self.a.weight
        self.second.in_proj_weight = self.first.in_proj_weight
        self.unpacked = nn.MultiheadAttention(16, 2, kdim=16, vdim=8, batch_first=True)
        self.unpacked.k_proj_weight = self.unpacked.q_proj_weight

    def forward(self, x):
        x = self.b(self.a(x).relu())
        for layer in (self.first, self.second):
            x = x + layer(x, x, x)[0]
        return x + self.unpacked(x, x, x[..., :8])[0]


def test_layers_that_share_a_weight_are_attached_together(tmp_path):
    torch.manual_seed(0)
    model, inputs = Tied(), torch.randn(24, 5, 16)
    empty = copy.deepcopy(model)
    skip = ["*.out_proj", "unpacked.v_proj"]
    run = torch_glue.binarize(model, inputs, tmp_path / "run", skip=skip, method="dcc")
    wanted, plain = model(inputs), copy.deepcopy(model)
    names = torch_glue.attach(model, run)
    firsts = ["a", *(f"first.{part}_proj" for part in "kqv"), "unpacked.q_proj"]
    assert sorted(names) == firsts
    assert torch.equal(model(inputs), wanted)
    parameters = dict(model.named_parameters())
    assert sum("original" in name for name in parameters) == 3
    assert sum("scales" in name for name in parameters) == 5
    torch_glue.detach(copy.deepcopy(model))
    torch_glue.finetune(
        model, [(inputs,)], epochs=3, lr=0.05, loss=lambda found, _: found.square().mean()
    )
    trained = model(inputs)
    assert not torch.equal(trained, wanted)
    assert torch.equal(model.a.weight, model.b.weight)
    sizes = torch_glue.save_packed(model, tmp_path / "m")
    assert sorted(sizes.layers) == ["a.weight", "first.in_proj_weight", "unpacked.q_proj_weight"]
    assert sorted(torch_glue.load_packed(empty, tmp_path / "m")) == firsts
    assert torch.equal(empty(inputs), trained)
    torch_glue.detach(model)
    assert torch.equal(model(inputs), trained)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for again in (model, empty):
        assert again.a.weight is again.b.weight
        assert again.first.in_proj_weight is again.second.in_proj_weight
        assert again.unpacked.q_proj_weight is again.unpacked.k_proj_weight
    both = ["b", "a", "second.q_proj", "first.q_proj"]
    assert torch_glue.attach(empty, both) == both
    assert torch.equal(empty(inputs), trained)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_ties_that_cannot_be_kept_are_refused(tmp_path):
    def pair(first, second):
        first.weight = second.weight
        return nn.ModuleDict({"a": first, "b": second})

    grouped = pair(nn.ConvTranspose2d(4, 8, 3), nn.ConvTranspose2d(4, 16, 3, groups=2))
    with pytest.raises(ValueError, match="a: shares its weight with b, which is no layer of the"):
        torch_glue.attach(grouped, ["a"])
    model = pair(nn.Linear(8, 8), nn.Linear(8, 8))
    torch_glue.attach(model, ["a"])
    copied = copy.deepcopy(model)
    parametrize.register_parametrization(copied["b"], "weight", Half())
    before = record(copied)
    with pytest.raises(ValueError, match=r"b: shares its latents .* computes another weight"):
        torch_glue.detach(copied)
    assert record(copied) == before
    torch_glue.save_packed(copied, tmp_path / "m")
    other = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    torch_glue.load_packed(other, tmp_path / "m")
    for name in "ab":
        assert torch.equal(other[name].weight, copied[name].weight)
    torch_glue.detach(model["a"])
    with pytest.raises(ValueError, match="a: shares its weight with b, which is attached: detach"):
        torch_glue.attach(model, ["a"])
    untied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    run = torch_glue.binarize(untied, torch.randn(30, 8), tmp_path / "run", method="dcc")
    untied[1].weight = untied[0].weight
    with pytest.raises(ValueError, match="codes of layers that share one weight here"):
        torch_glue.attach(untied, run)


def test_a_layer_of_two_names_is_attached_once():
    two = nn.ModuleDict({"a": nn.MultiheadAttention(16, 2), "b": nn.MultiheadAttention(16, 2)})
    two["b"].out_proj = two["a"].out_proj
    assert torch_glue.attach(two, ["b.out_proj", "a.out_proj"]) == ["b.out_proj", "a.out_proj"]
    assert len(two["a"].out_proj.parametrizations.weight) == 1
    assert torch_glue.detach(two) == ["a.out_proj"]
    assert not hasattr(two["b"].out_proj, "parametrizations")


def test_what_cannot_be_trained_is_refused():
    with torch.inference_mode():
        model = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="its weight was made in inference mode"):
        torch_glue.attach(model, [""])
    for call in (torch_glue.detach, lambda model: torch_glue.attach(model, [""])):
        with pytest.raises(ValueError, match=r"model: must be a torch.nn.Module, got a str"):
            call("model")


def test_magnitudes_of_another_shape_are_refused():
    model = Attending()
    for full in (torch.ones(()), torch.ones(96, 16), torch.ones(4, 16)):
        shape = re.escape(str(tuple(full.shape)))
        with pytest.raises(ValueError, match=rf"at\.q_proj must be .*\(48, 16\), got {shape}"):
            torch_glue.attach(model, ["at.q_proj"], magnitudes={"at.in_proj_weight": full})
    full = torch.ones(48, 16)
    full[40] = torch.nan
    with pytest.raises(ValueError, match=r"at\.v_proj holds what is not finite"):
        torch_glue.attach(model, ["at.v_proj"], magnitudes={"at.in_proj_weight": full})
    torch_glue.attach(model, ["at.q_proj"], magnitudes={"at.in_proj_weight": full})


def test_modules_of_other_kinds_are_left_alone():
    class Alone(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(16, 2)
            del self.out_proj

    own = nn.Module()
    own.parametrizations = nn.ModuleDict({"a": nn.Linear(3, 3)})
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "alone": Alone(), "own": own})
    assert torch_glue.attach(model, ["linear"]) == ["linear"]
    assert torch_glue.detach(model) == ["linear"]


def test_a_model_that_is_one_layer(tmp_path):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 2), torch.randn(30, 8)
    full = copy.deepcopy(layer)
    run = torch_glue.binarize(layer, inputs, tmp_path, method="dcc")
    assert torch_glue.attach(layer, run, magnitudes=full) == [""]
    assert torch.equal(latent(layer).abs(), full.weight.abs())


@pytest.mark.parametrize("inputs", [1, 8])
def test_a_run_whose_scales_are_elsewhere_by_now_is_not_attached(tmp_path, inputs):
    torch.manual_seed(3)
    layer = nn.Linear(inputs, 6)
    model = nn.Sequential(layer, nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    full, images = copy.deepcopy(model), torch.randn(100, inputs)
    run = torch_glue.binarize(model, images, tmp_path / "run", skip=["3"], method="dcc")
    torch_glue.attach(copy.deepcopy(full), run)  # in full precision
    with torch.no_grad():
        full[0].weight.copy_(0.3 * full[0].weight.sign())
    other = copy.deepcopy(full)
    constant = torch_glue.binarize(other, images, tmp_path / "other", skip=["3"], method="dcc")
    torch_glue.attach(copy.deepcopy(full), constant, magnitudes=full)  # so, too
    torch_glue.attach(copy.deepcopy(model).half(), run)
    before = model(images)
    torch_glue.absorb_scales(model)
    with pytest.raises(ValueError, match="0: its weight is binary, but not as the run left it"):
        torch_glue.attach(model, run)
    with pytest.raises(ValueError, match="0: its weight is binary, but not as the run left it"):
        torch_glue.attach(model, run, magnitudes=model)
    shutil.rmtree(tmp_path / "run" / "layers")
    with pytest.raises(ValueError, match="0: its weight is binary, but not as the run left it"):
        torch_glue.attach(model, run, magnitudes=full)
    torch_glue.attach(model, ["0"])
    torch.testing.assert_close(model(images), before)


def test_constants_of_a_run_are_not_lost(tmp_path):
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    model, again, inputs = copy.deepcopy(full), copy.deepcopy(full), torch.rand(100, 16)
    run = torch_glue.binarize(model, inputs, tmp_path, method="dcc", intercept=True)
    with pytest.raises(ValueError, match="0: the run has a constant for each of its filters"):
        torch_glue.attach(again, run)
    assert not nn.utils.parametrize.is_parametrized(again[0])
    torch_glue.binarize(again, inputs, tmp_path, method="dcc", intercept=True)
    outputs = model(inputs)
    for each in (model, again):
        torch_glue.attach(each, run)
        assert torch.equal(each(inputs), outputs)


@pytest.mark.parametrize("parts", [["k_proj"], ["v_proj", "q_proj"], ["v_proj", "k_proj"]])
@pytest.mark.parametrize("calls", [1, 2])
def test_detaching_parts_keeps_the_order_of_the_parameters(parts, calls):
    class Own(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(8, 2, kdim=6, vdim=4)
            self.own = nn.Parameter(torch.ones(3))
            later = {name: self._parameters.pop(name) for name in ("q_proj_weight", "in_proj_bias")}
            self._parameters.update(later)  # the module's own comes before these

    model = Own()
    before = [name for name, _ in model.named_parameters()]
    for names in [parts] if calls == 1 else [[part] for part in parts]:
        torch_glue.attach(model, names)
    torch_glue.detach(model)
    assert [name for name, _ in model.named_parameters()] == before


def test_detaching_keeps_the_order_of_the_parameters():
    """An optimiser's state is loaded by it."""
    model = nn.ModuleList([nn.Linear(4, 3), nn.Conv2d(3, 4, 3), nn.MultiheadAttention(8, 2)])
    model.append(nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True))
    before, shapes = list(model.state_dict()), [p.shape for p in model.parameters()]
    parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    torch_glue.attach(model, ["0", "1", *(f"{n}.{part}" for n in (2, 3) for part in parts)])
    torch_glue.detach(model)
    assert list(model.state_dict()) == before
    assert [p.shape for p in model.parameters()] == shapes


def test_of_wrapped_models_what_is_within_is_attached():
    with pytest.raises(ValueError, match="no module '0': it is wrapped; attach to what is within"):
        torch_glue.attach(nn.DataParallel(nn.Sequential(nn.Linear(4, 3))), ["0"])


def test_within_autocast_detaching_forgets_what_latents_were_cast_to():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 8)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs)
        torch_glue.attach(model, ["0"])
        torch_glue.detach(model)
        within = model(inputs)
    torch_glue.attach(plain, ["0"])
    torch_glue.detach(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(inputs), within)


@pytest.mark.parametrize(
    ("scales", "size"),
    [("trained", 1), ("trained", 4e-4), ("fixed", 1e-5), ("mean", 1), ("mean", 4e-4)],
)
def test_codes_of_zero_weights_outlive_half_precision(tmp_path, scales, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    with torch.no_grad():
        model[0].weight *= size
        model[0].weight[:, ::2] = 0
        model[2].weight[:, ::3] = 1e-9
    run = torch_glue.binarize(model, torch.randn(200, 16), tmp_path, method="dcc")
    codes = [torch.sign(model[n].weight.detach()) for n in (0, 2)]
    assert (codes[0][:, ::2] < 0).any()
    full = copy.deepcopy(model)
    torch_glue.attach(model, run, scales=scales)
    for n in (0, 2):
        torch.testing.assert_close(model[n].weight, full[n].weight, rtol=0.01, atol=0)
    model.half()
    for n, wanted in zip((0, 2), codes, strict=True):
        assert torch.equal(torch.sign(model[n].weight.detach().float()), wanted)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_parametrizations_of_others_are_told_from_attached_layers(norm):
    model = nn.Sequential(getattr(nn.utils.parametrizations, norm)(nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=r"parametrized by others .*remove_parametrizations first"):
        torch_glue.attach(model, ["0"])


def test_what_is_no_layer_and_no_network_of_a_run_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"layers: give what binarize returns, .* got a NoneType"):
        torch_glue.attach(model, None)
    run = torch_glue.binarize(model, torch.randn(60, 8), tmp_path, method="dcc")
    with pytest.raises(ValueError, match="the model has no layer '0': is it of another network"):
        run.apply(torch_glue.TorchNetwork(nn.Linear(8, 6)))


def test_tensors_are_arrays_to_the_core():
    x, w = torch.randn(8, 60), torch.randn(8, 3)
    one, two = (hashsolve.Problem.from_arrays(a, b) for a, b in ((x, w), (x.numpy(), w.numpy())))
    np.testing.assert_array_equal(one.gram, two.gram)
    np.testing.assert_array_equal(one.cross, two.cross)
    with pytest.raises(ValueError, match=r"weights.*not an array of numbers .*detach\(\)"):
        hashsolve.Problem.from_arrays(x, w.requires_grad_())
