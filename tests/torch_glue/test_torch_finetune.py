# ruff: noqa: E402
"""finetune: it learns, keeps the best, says when it is worse, and resumes to the same bits."""

import copy
import functools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_support import content, record

import torch_glue
from torch_glue.training import parameter_groups


def make_loader(shuffle=True, generator=None):
    draw = torch.Generator().manual_seed(11)
    inputs = torch.randn(96, 6, generator=draw)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
    return DataLoader(TensorDataset(inputs, labels), 16, shuffle=shuffle, generator=generator)


def make_model(**options):
    torch.manual_seed(12)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2)
    )
    torch_glue.attach(model, ["0"], **options)
    return model


def two(module, outputs):
    return outputs, outputs


def accuracy(model):
    inputs, labels = make_loader().dataset.tensors
    assert not model.training and not torch.is_grad_enabled()
    return float((model(inputs).argmax(1) == labels).double().mean())


def bits(model):
    return {name: content(value) for name, value in model.state_dict().items()}


def test_it_learns_and_reports():
    model = make_model()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    seen = []
    result = torch_glue.finetune(
        model,
        make_loader(),
        epochs=12,
        lr=0.02,
        other_lr=0.02,
        evaluate=accuracy,
        progress=lambda *args: seen.append(args),
    )
    assert result.ended > result.began + 0.2 and not result.worse
    assert len(result.epochs) == 12 and result.epochs[-1].loss < result.epochs[0].loss
    assert result.ended == max(epoch.score for epoch in result.epochs)
    model.eval()
    with torch.no_grad():
        assert accuracy(model) == result.ended
    model.train()
    assert [args[:3] for args in seen[:7]] == [*((1, n, 6) for n in range(1, 7)), (2, 1, 6)]
    assert len(seen) == 72 and all(math.isfinite(args[3]) for args in seen)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch_glue.detach(model) == ["0"]


def test_each_epoch_and_seed_has_an_order_of_its_own():
    def order(seed):
        seen = []
        torch_glue.finetune(
            make_model(),
            make_loader(generator=torch.Generator()),
            epochs=2,
            lr=0.01,
            seed=seed,
            loss=lambda outputs, batch: seen.append(content(batch[0])) or outputs.square().mean(),
            evaluate=lambda model: 0.0,
        )
        return seen

    seen = order(0)
    assert seen == order(0) and seen[:6] != order(1)[:6]
    assert seen[:6] != seen[6:]


def test_a_loader_that_counts_epochs_is_told_them():
    class Counting(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    told = []
    loader = Counting(make_loader())
    torch_glue.finetune(make_model(), loader, epochs=2, evaluate=lambda model: 0.0)
    assert told[-2:] == [1, 2]


def test_by_default_the_loss_on_the_first_batches_judges():
    model, again = make_model(), make_model()
    options = {"epochs": 3, "lr": 0.02, "other_lr": 0.02}
    result = torch_glue.finetune(model, make_loader(), **options)
    assert -1.5 < result.began < result.ended < 0
    torch.manual_seed(1234)  # the batches that judge do not depend on it
    assert torch_glue.finetune(again, make_loader(), **options).began == result.began


class Stop(Exception):
    pass


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("generator", "hardening"), [(False, 0.0), (True, 0.0), (True, 0.7)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, keep, generator, hardening):
    def run(checkpoint, stop=None, **changed):
        def progress(epoch, step, steps, loss):
            if (epoch, step) == stop:
                raise Stop

        options = {"epochs": 4, "lr": 0.01, "scale_lr": 0.01, "keep": keep, "seed": 5} | changed
        options |= {"hardening": hardening}
        own = torch.Generator().manual_seed(99) if generator else None
        torch.manual_seed(7 if stop else 8)  # whatever the caller's random state is
        model = make_model()
        loader = make_loader(generator=own)
        result = torch_glue.finetune(
            model, loader, evaluate=accuracy, checkpoint=checkpoint, progress=progress, **options
        )
        return bits(model), result

    whole, wanted = run(tmp_path / "whole")
    for stop in [(1, 3), (3, 2), (3, 5), (4, 6)]:  # the last is after all training
        with pytest.raises(Stop):
            run(tmp_path / "cut", stop)
    found, result = run(tmp_path / "cut")
    assert found == whole
    for a, b in zip(result.epochs, wanted.epochs, strict=True):
        assert (a.loss, a.score) == (b.loss, b.score)
    assert (result.began, result.ended, result.left) == (wanted.began, wanted.ended, wanted.left)
    again, _ = run(tmp_path / "cut", (4, 1))  # done: nothing is trained
    assert again == whole
    assert run(tmp_path / "other", seed=6)[0] != whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "other", "whole"]


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    torch_glue.finetune(make_model(), make_loader(), lr=1e-3, checkpoint=path)
    options = {"epochs": 1, "checkpoint": tmp_path / "clipped"}
    for clip in (np.float32(1), 1):  # the same number
        torch_glue.finetune(make_model(clip=clip), make_loader(), **options)

    def refused(match, model=None, **options):
        model = model or make_model()
        before = bits(model)
        with pytest.raises(ValueError, match=match):
            torch_glue.finetune(model, make_loader(), checkpoint=path, **options)
        assert before == bits(model)

    refused(r"other settings or another model \(lr, ", lr=2e-3)
    refused(r"other settings or another model \(epochs\)", lr=1e-3, epochs=2)
    refused("other settings", make_model(scales="fixed"), lr=1e-3)
    refused(r"another model \(attach\)", make_model(clip=1), lr=1e-3)
    for options in (
        {"optimizer": functools.partial(torch.optim.Adam, betas=(0.8, 0.9))},
        {"optimizer": torch.optim.SGD},
        {"loss": lambda outputs, batch: outputs.square().mean()},
        {"evaluate": accuracy},
        {"recalibrate": make_loader().dataset.tensors[0]},
        {"teacher": nn.Linear(6, 2)},
        {"keep": "last"},
    ):
        refused("other settings", lr=1e-3, **options)
    for tensor in ("4.weight", "1.running_mean", "0.parametrizations.weight.0.scales"):
        other = make_model()
        other.state_dict()[tensor].view(-1)[0] += 0.5
        refused("other weights at the start", other, lr=1e-3)
    path.write_bytes(path.read_bytes()[:500])
    refused("damaged")
    torch.save({"settings": print}, path)  # it would have to be unpickled
    refused("damaged")
    torch.save([1, 2], path)
    refused("damaged")


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_an_interrupted_call_leaves_the_best_and_may_be_repeated_at_once(tmp_path, error):
    options = {"epochs": 3, "lr": 0.02, "other_lr": 0.02, "evaluate": accuracy}
    whole, model = make_model(), make_model()
    wanted = torch_glue.finetune(whole, make_loader(), **options)
    best = {}

    def progress(epoch, step, steps, loss):
        if (epoch, step) == (2, 4):
            best.update(torch.load(tmp_path / "c", weights_only=True)["best"])
            raise error

    options["checkpoint"] = tmp_path / "c"
    with pytest.raises(error):
        torch_glue.finetune(model, make_loader(), progress=progress, **options)
    assert bits(model) == {name: content(value) for name, value in best.items()}
    result = torch_glue.finetune(model, make_loader(), **options)
    assert bits(model) == bits(whole) and result.ended == wanted.ended
    assert len(result.epochs) == 3


def test_what_fails_after_the_first_epoch_is_refused_before_it(tmp_path):
    inputs = make_loader().dataset.tensors[0]

    def refused(match, model, **options):
        before, steps = bits(model), []
        with pytest.raises(ValueError, match=match):
            torch_glue.finetune(
                model, make_loader(), progress=lambda *args: steps.append(args), **options
            )
        assert not steps and bits(model) == before

    refused("only once", make_model(), recalibrate=iter([inputs]))
    refused("along the first axis", make_model(), recalibrate=inputs[:0])
    plain = nn.Sequential(nn.Linear(6, 2))
    torch_glue.attach(plain, ["0"])
    refused("no BatchNorm", plain, recalibrate=inputs)
    refused("is not there", make_model(), checkpoint=tmp_path / "none" / "c")
    refused("is a folder", make_model(), checkpoint=tmp_path)


def test_it_never_ends_worse_without_saying_so():
    """A step that wrecks the network."""
    options = {"epochs": 2, "lr": 5.0, "other_lr": 5.0, "warmup": 0.0, "evaluate": accuracy}
    model = make_model()
    torch_glue.finetune(model, make_loader(), epochs=12, lr=0.02, other_lr=0.02, evaluate=accuracy)
    other, before = copy.deepcopy(model), bits(model)
    result = torch_glue.finetune(model, make_loader(), **options)
    assert result.left == "start" and result.ended == result.began and not result.worse
    assert bits(model) == before
    with pytest.warns(UserWarning, match="left the network worse"):
        result = torch_glue.finetune(other, make_loader(), keep="last", **options)
    assert result.worse and result.left == "epoch 2" and result.ended < result.began
    assert "WORSE" in str(result)


def test_evaluations_may_say_more_than_one_number():
    def evaluate(model):
        return {"top1": accuracy(model), "bits": 1.0}

    result = torch_glue.finetune(make_model(), make_loader(), lr=0.01, evaluate=evaluate)
    assert result.measures["top1"] == result.began
    assert result.epochs[0].measures.keys() == {"top1", "bits"}
    assert result.to_dict()["epochs"][0]["measures"]["bits"] == 1.0


def test_the_step_rises_then_follows_a_cosine():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, *args):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*args)

    torch_glue.finetune(
        make_model(),
        make_loader(),
        epochs=5,
        lr=1.0,
        scale_lr=0.5,
        other_lr=0.25,
        warmup=1 / 3,
        optimizer=Watched,
        evaluate=accuracy,
    )
    first = [rate[0] for rate in rates]
    expected = [(n + 1) / 10 for n in range(10)]
    expected += [(1 + math.cos(math.pi * n / 20)) / 2 for n in range(20)]
    assert first == pytest.approx(expected)
    assert all(b == pytest.approx(a / 2) and c == pytest.approx(a / 4) for a, b, c in rates)


def test_groups_hold_each_parameter_once_and_steps_of_zero_leave_it(tmp_path):
    model = make_model()
    names = {"latents": 1.0, "scales": 0.1, "other": 0.0}
    groups = parameter_groups(model, names, 0.3)
    assert [group["name"] for group in groups] == ["latents", "scales"]
    assert all(group["weight_decay"] == 0 for group in groups)
    names["other"] = 0.1
    held = [p for group in parameter_groups(model, names, 0.3) for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    before = model[4].weight.clone()
    torch_glue.finetune(model, make_loader(), lr=0.01, other_lr=0)
    assert torch.equal(before, model[4].weight)


def test_distillation_pulls_towards_the_teacher_which_is_only_run():
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5))
    held = record(teacher)
    del held["random"]
    distances = {}
    for share in (0.0, 1.0):
        model = make_model()
        torch_glue.finetune(
            model,
            make_loader(),
            epochs=6,
            lr=0.02,
            other_lr=0.02,
            teacher=teacher,
            distillation=share,
            temperature=2.0,
            keep="last",
            evaluate=lambda model: 0.0,
        )
        inputs = make_loader().dataset.tensors[0]
        model.eval()
        gap = model(inputs).softmax(1) - teacher.eval()(inputs).softmax(1)
        teacher.train()
        distances[share] = float(gap.detach().abs().mean())
    assert distances[1.0] < 0.5 * distances[0.0]
    assert held.items() <= record(teacher).items()


@pytest.mark.parametrize("own", [False, True])
def test_classes_of_dense_outputs_are_on_axis_1_or_where_it_is_said(own):
    """What is added alike to all classes of a place changes nothing."""
    losses = {}
    for added in (0, 1):
        torch.manual_seed(4)
        student = nn.Sequential(nn.Conv2d(2, 3, 1))
        teacher = copy.deepcopy(student)
        torch_glue.attach(student, ["0"])

        class Shifted(nn.Module):
            def __init__(self, network, added):
                super().__init__()
                self.network, self.added = network, added

            def forward(self, x):
                shift = x[:, :, :, :1].mean(1, keepdim=True) if own else x.mean(1, keepdim=True)
                return self.network(x) + self.added * shift

        images, labels = torch.randn(12, 2, 4, 5), torch.randint(3, (12, 4, 5))
        result = torch_glue.finetune(
            student,
            [(images, labels)],
            teacher=Shifted(teacher, added),
            distillation=1.0,
            loss=(lambda outputs, batch: outputs.mean()) if own else None,
            class_axis=-1 if own else None,
            evaluate=lambda model: 0.0,
        )
        losses[added] = result.epochs[0].loss
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    rows = (1, 0, 2, 3) if not own else (3, 0, 1, 2)
    torch.manual_seed(4)
    student = nn.Sequential(nn.Conv2d(2, 3, 1))
    full = student(images).detach()
    torch_glue.attach(student, ["0"])
    with torch.no_grad():
        q, p = (
            v.double().permute(rows).flatten(1).softmax(0).numpy() for v in (student(images), full)
        )
    expected = (p * np.log(p / q)).sum(0).mean()
    assert losses[0] == pytest.approx(expected, rel=1e-4)


def test_a_frozen_layer_stays_as_it_is_and_any_state_is_kept():
    class Counting(nn.Module):
        def get_extra_state(self):
            return {"count": 3}

        def set_extra_state(self, state):
            assert state == {"count": 3}

        def forward(self, x):
            return x

    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 5), Counting(), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    torch_glue.attach(model, ["0", "2"])
    before = [model[n].weight.clone() for n in (0, 2)]
    torch_glue.finetune(model, make_loader(), lr=0.05, keep="best", evaluate=lambda model: 0.0)
    torch_glue.finetune(model, make_loader(), lr=0.05, keep="last")
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])
    model = make_model(scales="mean", clip=0.1)
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    torch_glue.finetune(model, make_loader(), lr=0.05)
    assert torch.equal(model[0].weight, frozen)


def test_batchnorm_is_frozen_or_estimated_anew_where_that_helps():
    model = make_model()
    held = model[1].running_mean.clone()
    torch_glue.finetune(model, make_loader(), lr=0.01, freeze_batchnorm=True)
    assert torch.equal(held, model[1].running_mean)
    inputs = make_loader().dataset.tensors[0]

    def fitting(model):  # larger the closer the statistics are to those of the inputs
        return -float((model[1].running_mean - model[0](inputs).mean(0)).abs().max())

    result = torch_glue.finetune(
        model, make_loader(), lr=0.01, evaluate=fitting, recalibrate=inputs, keep="last"
    )
    assert result.left == "epoch 1, BatchNorm anew" and result.ended > -1e-4
    held = bits(model)
    result = torch_glue.finetune(
        model, make_loader(), lr=1e-9, evaluate=fitting, recalibrate=inputs + 9
    )
    assert result.left == "start" and bits(model) == held


def test_a_score_that_is_no_number_is_never_the_best():
    scores = iter([0.5, math.nan, 0.4, 0.6, math.nan])
    result = torch_glue.finetune(
        make_model(), make_loader(), epochs=4, lr=0.01, evaluate=lambda model: next(scores)
    )
    assert (result.ended, result.left) == (0.6, "epoch 3")


def test_shares_grow_in_stages_of_equal_length():
    model = make_model(scales="mean")
    shares = []
    torch_glue.finetune(
        model,
        make_loader(),
        epochs=2,
        lr=0.01,
        shares=(0.5, 0.75, 0.875, 1.0),
        progress=lambda *args: shares.append(model[0].parametrizations.weight[0].share),
    )
    assert shares == [0.5] * 3 + [0.75] * 3 + [0.875] * 3 + [1.0] * 3
    assert model[0].parametrizations.weight[0].share == 1.0


def test_codes_harden_and_then_are_signs():
    model = make_model(scales="fixed")
    binary, seen = model[0].parametrizations.weight[0], []

    def progress(*args):
        weight = model[0].weight.detach().abs()
        seen.append((binary.hardness and binary.hardness.item(), weight.unique().numel() > 32))

    torch_glue.finetune(
        model, make_loader(), epochs=2, lr=0.01, hardening=0.75, keep="last", progress=progress
    )
    hardness, soft = zip(*seen, strict=True)
    assert hardness[:9] == pytest.approx([2 * 30 ** (step / 9) for step in range(9)], rel=1e-5)
    assert hardness[9:] == (None,) * 3
    assert all(soft[:9]) and not any(soft[9:])
    assert binary.hardness is None and not model[0].weight.unique().numel() > 64


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_of_the_model_are_taken_while_codes_harden(use_buffers):
    model = make_model(scales="fixed")
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)

    def progress(*args):
        average.update_parameters(model)

    torch_glue.finetune(model, make_loader(), lr=0.01, hardening=0.8, progress=progress)
    assert average(torch.zeros(4, 6)).isfinite().all() and average.n_averaged == 6
    assert average.module[0].weight.detach().abs().unique().numel() <= 32  # ±α still


def test_compiled_models_harden_alike_and_are_not_compiled_at_each_step():
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    plain, compiled = make_model(scales="fixed"), make_model(scales="fixed")
    counts = []

    def progress(*args):
        counts.append(len(graphs))

    options = {"lr": 0.01, "hardening": 0.6, "keep": "last", "evaluate": lambda model: 0.0}
    torch_glue.finetune(plain, make_loader(), epochs=2, **options)
    try:
        compiled.compile(backend=backend)
        torch_glue.finetune(compiled, make_loader(), epochs=2, progress=progress, **options)
    except RuntimeError as error:  # a Python that torch does not compile for yet
        if "not supported" not in str(error):
            raise
        pytest.skip(str(error))
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
    assert counts[1] == counts[7] < counts[8] == counts[-1]  # soft codes, then signs


def test_filters_of_zeros_are_trained_while_codes_harden():
    torch.manual_seed(0)
    model = make_model(scales="none")
    latent = model[0].parametrizations.weight.original
    with torch.no_grad():
        latent[:4] = 0
    torch_glue.finetune(model, make_loader(), epochs=2, lr=0.01, hardening=0.8, keep="last")
    assert latent.isfinite().all() and (latent[:4].abs() > 0.005).any()
    assert latent.abs().max() < 1


def test_codes_are_signs_after_an_error_too():
    model = make_model()
    with pytest.raises(ZeroDivisionError):
        torch_glue.finetune(model, make_loader(), hardening=1, progress=lambda *args: 1 // 0)
    assert model[0].parametrizations.weight[0].hardness is None


def test_latents_are_clipped_after_each_step():
    model = make_model(scales="none", clip=0.3)
    torch_glue.finetune(model, make_loader(), lr=0.2)
    assert model[0].parametrizations.weight.original.abs().max().item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("epochs", {"epochs": 0}),
        ("seed", {"seed": -1}),
        ("keep", {"keep": "first"}),
        ("shares", {"shares": (0.0, 1.0)}),
        ("shares", {"shares": ()}),
        ("shares: .* not fall", {"shares": (1, 0.5)}),
        ("distillation", {"distillation": 1.5}),
        ("temperature", {"temperature": 0}),
        ("warmup", {"warmup": -1}),
        ("hardening", {"hardening": 2}),
        ("^lr: ", {"lr": -1}),
        ("other_lr", {"other_lr": float("nan")}),
        ("evaluate", {"evaluate": lambda model: {}}),
        ("evaluate: must give a number.* got None", {"evaluate": lambda model: None}),
        ("as 'matrix'", {"evaluate": lambda model: {"top1": 1, "matrix": torch.ones(2, 2)}}),
        ("weight_decay: must be a number >= 0, got -1", {"weight_decay": -1}),
        ("weight_decay", {"weight_decay": float("nan")}),
        ("temperature", {"temperature": float("inf")}),
        ("^lr: must be a number >= 0, got '1e-3'", {"lr": "1e-3"}),
        ("^lr: ", {"lr": None}),
        ("shares", {"shares": 1.5}),
        ("shares", {"shares": ["half"]}),
        ("^lr: ", {"lr": 10**400}),
        ("teacher: must be a torch.nn.Module, got a function", {"teacher": lambda x: x}),
        (r"loss: must give one number.* shape \(16, 2\)", {"loss": lambda outputs, _: outputs}),
        ("loss: must give one number.* got float", {"loss": lambda outputs, _: 1.0}),
        ("loss: must give one number.*complex", {"loss": lambda y, _: y.sum().to(torch.cfloat)}),
        ("loss: has no gradient", {"loss": lambda outputs, _: torch.tensor(1.0)}),
        (r"the whole batch, a list .*wrap torch's", {"loss": nn.MSELoss()}),
        (r"the whole batch, a list .*wrap torch's", {"loss": nn.functional.cross_entropy}),
        ("optimizer: must give a torch optimiser, got a NoneType", {"optimizer": lambda _: None}),
        ("^lr: ", {"lr": torch.tensor(True)}),
        ("^lr: ", {"lr": np.timedelta64(5)}),
        ("^lr: ", {"lr": np.array("1e-3", dtype=object)}),
        ("^lr: ", {"lr": memoryview(b"1")}),
        ("loss: must be callable, got a str", {"loss": "mse"}),
        ("optimizer: must be callable, got a NoneType", {"optimizer": None}),
        ("^lr: ", {"lr": torch.tensor(1 + 1j)}),
        ("^lr: ", {"lr": np.array("1e-3")}),
        ("evaluate: must be callable, got a str", {"evaluate": "top1"}),
        ("optimizer: must be callable, got a SGD", {"optimizer": torch.optim.SGD([torch.ones(1)])}),
        ("progress: must be callable, got a bool", {"progress": True}),
        ("recalibrate: must give batches, got a int", {"recalibrate": 5}),
        ("shares", {"shares": [[0.5], [0.5, 1]]}),
        ("^lr: must be a number >= 0, got True", {"lr": True}),
        ("^lr: .* got b'1'", {"lr": b"1"}),
        ("^lr: ", {"lr": np.complex64(1)}),
        (r"teacher: its outputs have shape \(16, 1\)", {"teacher": nn.Linear(6, 1)}),
    ],
)
def test_settings_that_cannot_be_used(match, options):
    with pytest.raises(ValueError, match=match):
        torch_glue.finetune(make_model(), make_loader(), **options)


def test_batchnorm_anew_may_mend_a_score_that_is_no_number():
    scores = iter([0.5, float("nan"), 0.7])
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    torch_glue.attach(model, ["0"])
    result = torch_glue.finetune(
        model, make_loader(), recalibrate=torch.randn(9, 6), evaluate=lambda _: next(scores)
    )
    assert result.left == "epoch 1, BatchNorm anew" and result.ended == 0.7


def test_numbers_may_be_of_any_kind():
    given = {
        "lr": torch.tensor(0.01, dtype=torch.float64),
        "warmup": np.float32(0),
        "shares": torch.tensor([0.5, 1]),
    }
    plain = {"lr": 0.01, "warmup": 0, "shares": (0.5, 1)}
    results = []
    for options in (given, plain):
        model = make_model()
        torch_glue.finetune(
            model, make_loader(), loss=lambda y, _: y.square().mean()[None], **options
        )
        results.append(bits(model))
    assert results[0] == results[1]


@pytest.mark.parametrize("momentum", [np.float64(0.5), 0.5])
def test_checkpoints_with_numbers_of_numpy_are_read_again(tmp_path, momentum):
    options = {"checkpoint": tmp_path / "checkpoint", "keep": "last"}
    options["optimizer"] = functools.partial(torch.optim.SGD, lr=momentum, momentum=momentum)
    given = {"scales": np.str_("none"), "clip": np.float32(1), "stochastic": np.bool_(True)}
    first, again = make_model(**given), make_model(scales="none", clip=1, stochastic=True)
    result = torch_glue.finetune(first, make_loader(), **options)
    options["optimizer"] = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.5)
    assert torch_glue.finetune(again, make_loader(), **options).epochs == result.epochs
    assert bits(first) == bits(again)


def test_a_loss_of_torchs_may_be_of_the_whole_batch():
    """An autoencoder's; and a teacher that weighs nothing is not run."""
    batches, model = [torch.randn(16, 6) for _ in range(3)], nn.Linear(6, 6)
    torch_glue.attach(model, [""])
    other = nn.Linear(2, 2)
    result = torch_glue.finetune(
        model, batches, loss=nn.MSELoss(), teacher=other, distillation=0, epochs=3, lr=0.01
    )
    assert result.ended > result.began


def test_a_loss_of_ones_own_does_not_say_where_classes_lie():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(2, 3, 1))
    teacher, loader = copy.deepcopy(student), [(torch.randn(4, 2, 5, 5), torch.zeros(4))]
    torch_glue.attach(student, ["0"])
    options = {"teacher": teacher, "loss": lambda outputs, batch: outputs.mean()}
    with pytest.raises(
        ValueError, match=r"class_axis: outputs have shape \(4, 3, 5, 5\): say which"
    ):
        torch_glue.finetune(student, loader, **options)
    with pytest.raises(ValueError, match=r"class_axis: 4: outputs have shape \(4, 3, 5, 5\)"):
        torch_glue.finetune(student, loader, class_axis=4, **options)
    with pytest.raises(ValueError, match=r"class_axis: must be a whole number .*, got 'last'"):
        torch_glue.finetune(student, loader, class_axis="last", **options)


def test_the_axis_of_classes_is_part_of_a_checkpoint_where_it_matters(tmp_path):
    def run(axis, path, **options):
        torch.manual_seed(0)
        model = make_model()
        teacher = nn.Linear(6, 2)
        options = {"teacher": teacher, "loss": lambda y, _: y.square().mean(), **options}
        return torch_glue.finetune(
            model, make_loader(), epochs=1, class_axis=axis, checkpoint=path, **options
        )

    first = tmp_path / "own.pt"
    run(None, first)
    with pytest.raises(ValueError, match="other settings"):
        run(1, first)
    second = tmp_path / "undistilled.pt"
    run(None, second, distillation=0)
    run(1, second, distillation=0)
    third = tmp_path / "usual.pt"
    run(None, third, loss=None)
    run(1, third, loss=None)
    with pytest.raises(ValueError, match="other settings"):
        run(-1, third, loss=None)


def test_several_inputs_beside_labels():
    """The same batches for binarising and for training."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x, z):
            return self.other(torch.relu(self.one(x + z)))

    torch.manual_seed(1)
    model = Two()
    x, z, labels = torch.randn(20, 6), torch.randn(20, 6), torch.arange(20) % 2
    batches = [({"x": x[:10], "z": z[:10]}, labels[:10]), ({"x": x[10:], "z": z[10:]}, labels[10:])]
    teacher = copy.deepcopy(model)
    torch_glue.attach(model, ["one"])

    def loss():
        return nn.functional.cross_entropy(model(x, z), labels).item()

    before = loss()
    result = torch_glue.finetune(model, batches, teacher=teacher, epochs=5, lr=0.01, other_lr=0.01)
    assert result.ended > result.began
    assert loss() < before
    for batch in ({"x": x, "z": z, "labels": labels}, ({"x": x, "y": z}, labels)):
        with pytest.raises(ValueError, match=r"not all that a batch gives .*\(mapping, labels\)"):
            torch_glue.finetune(model, [batch], loss=lambda y, _: y.mean())


def test_models_and_loaders_that_cannot_be_used():
    with pytest.raises(ValueError, match="no attached layer"):
        torch_glue.finetune(nn.Linear(6, 2), make_loader())
    with pytest.raises(ValueError, match=r"model: must be a torch.nn.Module, got a NoneType"):
        torch_glue.finetune(None, make_loader())
    lazy = nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(2))
    torch_glue.attach(lazy, ["0"])
    with pytest.raises(ValueError, match=r"1.weight: has no size yet: run the model on a batch"):
        torch_glue.finetune(lazy, make_loader())
    for kind, given in (("int", 5), ("NoneType", None)):
        with pytest.raises(ValueError, match=f"loader: must give batches, got a {kind}"):
            torch_glue.finetune(make_model(), given)
    flat, other = (nn.Sequential(make_model(), nn.Flatten(0)) for _ in range(2))
    with pytest.raises(ValueError, match="distillation: needs outputs with an axis of classes"):
        torch_glue.finetune(flat, make_loader(), teacher=other, loss=lambda y, _: y.mean())
    with pytest.raises(ValueError, match="no batches"):
        torch_glue.finetune(make_model(), [])
    with pytest.raises(ValueError, match="only once"):
        torch_glue.finetune(make_model(), iter(make_loader()))
    samples = torch.utils.data.TensorDataset(torch.randn(4, 6), torch.zeros(4).long())
    with pytest.raises(ValueError, match="loader: give batches: a torch"):
        torch_glue.finetune(make_model(), samples)
    with pytest.raises(RuntimeError, match=r"^teacher: it does not take .* of shape \(16, 6\)"):
        torch_glue.finetune(make_model(), make_loader(), teacher=nn.Linear(5, 2))
    mapped = [{"input": torch.randn(4, 6)}]
    with pytest.raises(ValueError, match=r"loss: by default it is of batches .* got dict and Tens"):
        torch_glue.finetune(make_model(), mapped)
    pair = torch.nn.Sequential(make_model(), type("Two", (nn.Identity,), {"forward": two})())
    with pytest.raises(ValueError, match="distillation: needs outputs that are one tensor"):
        torch_glue.finetune(
            pair,
            make_loader(),
            teacher=copy.deepcopy(pair),
            loss=lambda outputs, batch: outputs[0].sum(),
        )
    with pytest.raises(ValueError, match="nothing to train"):
        torch_glue.finetune(make_model(scales="fixed").requires_grad_(False), make_loader())
    with pytest.raises(ValueError, match="hardening: has no stochastic form"):
        torch_glue.finetune(make_model(stochastic=True), make_loader(), hardening=0.5)

    class Shrinking(list):
        def __iter__(self):
            self.pop()
            return super().__iter__()

    with pytest.raises(ValueError, match="batches in epoch 1"):
        torch_glue.finetune(make_model(), Shrinking(make_loader()), evaluate=lambda model: 0.0)
    model = make_model()
    with pytest.raises(FloatingPointError, match="epoch 1, step 1: the loss is nan"):
        torch_glue.finetune(
            model,
            make_loader(),
            loss=lambda outputs, batch: outputs.sum() * torch.nan,
            evaluate=lambda model: 0.0,
        )
    assert model.training


def test_the_model_is_no_teacher_of_its_own():
    model = make_model()
    for teacher in (model, nn.DataParallel(model)):
        with pytest.raises(ValueError, match="teacher: is the model itself"):
            torch_glue.finetune(model, make_loader(), epochs=1, teacher=teacher)


def test_a_last_batch_of_one_sample_is_told():
    inputs = torch.randn(17, 6)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 16)
    with pytest.raises(
        ValueError, match=r"loader: the model takes no batch of one.*drop_last=True"
    ):
        torch_glue.finetune(make_model(), loader, epochs=1, lr=0.01)


def test_within_autocast_each_step_is_seen():
    losses = []
    for kept in (False, True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            result = torch_glue.finetune(make_model(), make_loader(), epochs=3, lr=0.02)
        losses.append([epoch.loss for epoch in result.epochs])
    assert losses[0] == losses[1]


def test_numpys_flags_and_words_are_resumed(tmp_path):
    options = {"freeze_batchnorm": np.True_, "keep": np.str_("best"), "epochs": np.int64(2)}
    for _ in range(2):
        result = torch_glue.finetune(
            make_model(), make_loader(), checkpoint=tmp_path / "tuned.pt", **options
        )
    assert len(result.epochs) == 2


def test_a_teacher_that_does_not_teach_may_be_the_model():
    model = make_model()
    torch_glue.finetune(model, make_loader(), epochs=1, teacher=model, distillation=0)


@pytest.mark.filterwarnings("ignore:fine-tuning left the network worse")
def test_processes_that_would_judge_apart_are_refused(tmp_path, monkeypatch):
    """Each by its own batches: one would leave the start, and another the last epoch."""
    model, images = make_model(), torch.randn(32, 6)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        tune = functools.partial(torch_glue.finetune, loader=make_loader(), epochs=1)
        tune(wrapped)  # one process
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        for options in ({}, {"keep": "last", "recalibrate": images}):
            with pytest.raises(ValueError, match="each process would judge by batches of its own"):
                tune(wrapped, **options)
        tune(model)  # each process its own
        tune(wrapped, keep="last")
        tune(wrapped, evaluate=accuracy, recalibrate=images)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "labels", [torch.full((96,), 2), torch.zeros(96), torch.zeros(96, 3), torch.zeros(4).long()]
)
def test_labels_that_are_no_classes_are_told(labels):
    batches = [(torch.randn(96, 6), labels)]
    with pytest.raises(ValueError, match=r"loss: by default .* shape \(96, 2\) with the labels"):
        torch_glue.finetune(make_model(), batches)


def test_how_a_loss_of_ones_own_is_called_is_told():
    with pytest.raises(AttributeError) as raised:
        torch_glue.finetune(
            make_model(), make_loader(), loss=lambda y, labels: nn.functional.mse_loss(y, labels)
        )
    assert "loss(outputs, batch)" in raised.value.__notes__[0]


def test_latents_of_float16_are_refused():
    model = make_model().half()
    with pytest.raises(ValueError, match=r"latents are float16.* model\.float\(\) first"):
        torch_glue.finetune(model, make_loader())
