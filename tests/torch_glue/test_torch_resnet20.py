# ruff: noqa: E402
"""ResNet-20 on CIFAR-10, where the data are there: it runs, and the paper's accuracies hold."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from resnet20 import accuracy, load_images, load_model, shifted

import torch_glue

SKIP = ("conv1", "linear")


@pytest.fixture
def resnet20():
    try:
        return load_model(), load_images
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_it_runs_on_a_few_images(resnet20, tmp_path):
    model, images = resnet20
    kept = [model.conv1.weight.clone(), model.linear.weight.clone()]
    run = torch_glue.binarize(model, images("train", 64)[0], tmp_path, skip=SKIP, method="dcc")
    assert len(run.layers) == 18 and not {"conv1", "linear"} & run.relative_errors.keys()
    assert torch.equal(kept[0], model.conv1.weight) and torch.equal(kept[1], model.linear.weight)
    for result in run.layers:
        assert result.relative_error < result.row["relative_error_sign"]
        weight = model.get_submodule(result.name).weight
        assert (weight.abs() == weight.abs().amax((1, 2, 3), keepdim=True)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "propagation", "error", "low", "high"),
    [
        ("dcc", "asym", 0.181, 81, 92),
        ("dcc", "symfp", 0.076, 45, 65),
        ("sign", "asym", 0.718, 5, 15),
    ],
)
def test_accuracy(resnet20, tmp_path, method, propagation, error, low, high):
    model, images = resnet20
    run = torch_glue.binarize(
        model,
        images("train", 512)[0],
        tmp_path,
        skip=SKIP,
        method=method,
        propagation=propagation,
    )
    assert run.report.summary["mean_relative_error"] == pytest.approx(error, abs=0.003)
    # all 4,000: the first 1,000 are harder than the rest (90.8 against 92.0 in full precision)
    assert low <= accuracy(model, *images("test")) <= high


@pytest.mark.slow
def test_batchnorm_needs_images_as_in_training(resnet20):
    model, images = resnet20
    (inputs, labels), calibration = images("test", 1000), images("train", 2048)[0]
    known = accuracy(model, inputs, labels)
    found = {}
    for pixels in (0, 4):
        torch_glue.recalibrate_batchnorm(model, shifted(calibration, pixels).split(256))
        found[pixels] = accuracy(model, inputs, labels)
    assert found[4] > known - 1 and found[0] < known - 1.5
