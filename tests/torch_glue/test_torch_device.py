# ruff: noqa: E402
"""Models on another device than the processor: all is as it is there, to the same bits.

The device is made of the processor (`elsewhere`), so that this runs where no GPU is.
"""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
try:
    from elsewhere import DEVICE, Elsewhere
except ImportError as error:  # of torch's own tests' machinery
    pytest.skip(f"this torch makes no device of Python: {error}", allow_module_level=True)
from torch import nn

import torch_glue


@pytest.fixture(autouse=True)
def device():
    with Elsewhere():
        yield


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)

    def forward(self, x):
        return (x + self.last(self.second(self.norm(self.first(x)).relu()))).relu()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 16), nn.Linear(16, 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.words(x)
        return self.out((x + self.attention(x, x, x)[0]).mean(1))


def network():
    """It, and the same elsewhere."""
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Block())
    here += nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    here += nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))
    here.train()
    with torch.no_grad():
        for _ in range(3):
            here(images())
    return here.eval(), copy.deepcopy(here).eval().to(DEVICE)


def images():
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def same(here, there):
    theirs = there.state_dict()
    assert all(value.device == DEVICE for value in theirs.values())
    return all(torch.equal(value, theirs[name].cpu()) for name, value in here.state_dict().items())


def binarized(tmp_path, **options):
    """Both networks, and the run of the one elsewhere."""
    here, there = network()
    options = {"method": "dcc", "skip": ["0", "9"]} | options
    runs = [
        torch_glue.binarize(model, images(), tmp_path / name, **options)
        for name, model in (("here", here), ("there", there))
    ]
    assert runs[0].codes_sha256 == runs[1].codes_sha256 and same(here, there)
    assert runs[0].report.summary["remarks"] == runs[1].report.summary["remarks"]
    return here, there, runs[1]


def test_the_device_refuses_what_a_gpu_would():
    x = torch.ones(3).to(DEVICE)
    assert (x + torch.tensor(1)).device == DEVICE and (2 * x).sum().item() == 6
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="NumPy cannot read"):
        np.asarray(x)


@pytest.mark.parametrize(
    "options",
    [
        {"residual": "auto", "intercept": "auto"},
        {"propagation": "symfp"},
        {"propagation": "symqt", "scale_group": 4},
    ],
    ids=str,
)
def test_binarize(tmp_path, options):
    binarized(tmp_path, **options)


@pytest.mark.parametrize("kind", ["array", "there"])
def test_images_may_be_anywhere(tmp_path, kind):
    _, there = network()
    given = images().numpy() if kind == "array" else images().to(DEVICE)
    run = torch_glue.binarize(there, given, tmp_path / "a", method="dcc", skip=["0", "9"])
    assert run.codes_sha256 == binarized(tmp_path)[2].codes_sha256


def test_attention(tmp_path):
    torch.manual_seed(0)
    here, words = Attention().eval(), torch.randint(0, 20, (32, 7))
    there = copy.deepcopy(here).to(DEVICE)
    runs = [
        torch_glue.binarize(model, words, tmp_path / name, method="dcc", residual="auto")
        for name, model in (("here", here), ("there", there))
    ]
    assert len(runs[0].layers) == 5 and runs[0].report.summary["residual"]
    assert runs[0].codes_sha256 == runs[1].codes_sha256 and same(here, there)


def test_refit_and_recalibrate(tmp_path):
    here, there, _ = binarized(tmp_path)
    for model, full in zip((here, there), network(), strict=True):
        torch_glue.refit(model, full, images(), ["9"])
        torch_glue.recalibrate_batchnorm(model, images())
    assert same(here, there)


@pytest.mark.parametrize("scales", ["fixed", "trained", "mean", "none"])
def test_own_training_loop(tmp_path, scales):
    here, there, run = binarized(tmp_path, residual="auto", intercept="auto")
    labels = torch.arange(48) % 4
    for model, where in ((here, "cpu"), (there, DEVICE)):
        torch_glue.attach(model, run, scales=scales)
        stepper = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(images().to(where)), labels.to(where))
            stepper.zero_grad()
            loss.backward()
            stepper.step()
        torch_glue.detach(model)
    assert same(here, there)


@pytest.mark.parametrize(
    "settings", [{}, {"hardening": 0.8}, {"shares": (0.5, 1.0)}], ids=["plain", "hard", "shares"]
)
def test_finetune(tmp_path, settings):
    here, there, run = binarized(tmp_path)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images(), torch.arange(48) % 4), batch_size=16, shuffle=True
    )
    for model, full in zip((here, there), network(), strict=True):
        torch_glue.attach(model, run, scales="mean" if "shares" in settings else "fixed")
        torch_glue.finetune(
            model, loader, epochs=2, teacher=full, recalibrate=images(), keep="last", **settings
        )
        torch_glue.detach(model)
    assert same(here, there)


def test_absorbed_and_packed(tmp_path):
    here, there, _ = binarized(tmp_path)
    for model in (here, there):
        folded = torch_glue.absorb_scales(model, ["3.first", "3.second", "5"])
        assert folded == {"3.first": "3.norm", "3.second": "3.last", "5": "6"}
    assert same(here, there)
    torch_glue.save_packed(there, tmp_path / "model.safetensors")
    for model in network():
        torch_glue.load_packed(model, tmp_path / "model.safetensors")
        assert torch.equal(model[5].weight.cpu(), here[5].weight)


def test_export(tmp_path):
    pytest.importorskip("onnxscript", reason="needs hashsolve[onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs what is exported")
    here, there, _ = binarized(tmp_path)
    torch_glue.export_onnx(there, tmp_path / "model.onnx", images()[:1])
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, here(images()).numpy(), rtol=1e-4, atol=1e-4)
