"""BinaryWeight: the parametrization α·sign(latent), of which all rivals are settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_glue.filters import PROJECTIONS, as_rows, from_rows

SMALL = 0.01  # of the mean |latent| of all filters: soft codes of smaller ones are softer


class BinaryWeight(nn.Module):
    """A weight α·sign(latent) with the straight-through gradient, as a parametrization.

    The forward value of sign is exactly ±1, sign(0) being +1; its gradient is that of the identity
    (straight-through, Bengio et al., arXiv:1308.3432), or of a clamp to ±``clip``. All rivals are
    settings of this one class:

    ===================  ==============================================================
    BWNH, hashsolve      ``scales="trained"`` or "fixed", latents |W|·B of the solver
    BWN                  ``scales="mean"``: α = mean |latent| of each filter (Rastegari
                         et al., XNOR-Net, arXiv:1603.05279, section 3.1). Its gradient is that
                         of this function; eq. 12 there keeps of the mean's but each weight's own
    BinaryConnect        ``scales="none", clip=1``, and ``stochastic=True`` for sign +1 with
                         probability clamp((latent + 1) / 2, 0, 1) while training (Courbariaux
                         et al., arXiv:1511.00363, section 2.2-2.4)
    SQ-BWN               BWN whose ``share`` grows: in each training pass that share of the
                         filters is binarised and the others keep their latents; drawn without
                         replacement, with probability ∝ 1 / (‖W − Q‖₁ / ‖W‖₁) (Dong et al.,
                         arXiv:1708.01001, section 3: filter-wise, linear function). Gradients of
                         both are of one scale, as there (here α times those of the weight, which
                         Adam divides out; there one times), but for that of mean |latent| which
                         binarised filters have too
    ===================  ==============================================================

    While ``hardness`` holds a number h, training passes have tanh(h · latent / m) in place of the
    sign, which it tends to as h grows: the continuation of Cao et al. (HashNet, arXiv:1702.00758),
    of weights GD-tanh (Ajanthan et al., arXiv:1910.08237). m is the mean |latent| of its filter (of
    each group of inputs that has a scale); such codes are divided by their root mean square, so
    that a filter is as large as with signs. Both are held while differentiating.

    In eval mode every filter is binarised by its deterministic sign.

    Parameters
    ----------
    scales : tensor (T, G) or None
        α of each filter, and of each of its G groups of consecutive inputs (G is mostly 1). None
        for "mean" and "none".
    kind : {"trained", "fixed", "mean", "none"}
    groups : int
        Of a transposed convolution, else 0.
    stochastic : bool
    clip : float or None
        Latents beyond it get no gradient, and `clip_` brings them back.
    """

    scales: Tensor | None

    order: tuple[str, ...] = ()  # of the layer's parameters before it was attached

    def __init__(
        self,
        scales: Tensor | None,
        kind: str = "trained",
        groups: int = 0,
        *,
        stochastic: bool = False,
        clip: float | None = None,
    ):
        super().__init__()
        self.kind, self.groups = kind, groups
        self.stochastic, self.clip, self.share = stochastic, clip, 1.0
        if scales is not None:  # a copy in plain strides, as data parallelism wants them
            scales = scales.new_empty(scales.shape).copy_(scales)
        if kind == "trained" and scales is not None:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)
        self.hardness: Tensor | None = None  # no buffer: averages pair buffers by their order

    def forward(self, latent: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        through = latent if self.clip is None else latent.clamp(-self.clip, self.clip)
        if self.training and self.hardness is not None:
            codes = self._soft(through, self.hardness)
        else:
            one = torch.ones((), dtype=latent.dtype, device=latent.device)
            positive = latent >= 0
            if self.stochastic and self.training:
                positive = torch.rand_like(latent) < (latent.detach() + 1) / 2
            # the difference is exactly 0, so that codes are exactly ±1
            codes = torch.where(positive, one, -one) + (through - through.detach())
        weight = self._scaled(codes, latent)
        if self.training and self.share < 1:
            weight = self._partly(weight, latent)
        return weight

    def _soft(self, latent: Tensor, hardness: Tensor) -> Tensor:
        rows = as_rows(latent, self.groups)
        parts = rows.unflatten(1, (1 if self.scales is None else self.scales.shape[1], -1))
        size = parts.detach().abs().mean(2, keepdim=True)
        # a filter of zeros is measured by the others
        size = torch.maximum(size, (SMALL * size.mean()).clamp(min=SMALL**2))
        codes = (hardness * (parts / size)).tanh()
        norm = codes.detach().square().mean(2, keepdim=True).sqrt().clamp(min=SMALL)
        return from_rows((codes / norm).flatten(1), latent.shape, self.groups)

    def _scaled(self, codes: Tensor, latent: Tensor) -> Tensor:
        if self.kind == "none":
            return codes
        rows = as_rows(codes, self.groups)
        scales = self.scales
        if self.kind == "mean" or scales is None:
            scales = as_rows(latent, self.groups).abs().mean(1, keepdim=True)
        if scales.shape[1] > 1:
            rows = (rows.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)
        elif not self.groups:  # the common case, without a change of memory layout
            return codes * scales.reshape(-1, *[1] * (codes.dim() - 1))
        else:
            rows = rows * scales
        return from_rows(rows, codes.shape, self.groups)

    def _partly(self, weight: Tensor, latent: Tensor) -> Tensor:
        """SQ: the drawn share of filters as they are, the others with their latents, and gradients
        as if they were binarised: else their steps would be 1/α as large."""
        rows = as_rows(latent, self.groups)
        with torch.no_grad():
            error = (rows - as_rows(weight, self.groups)).abs().sum(1)
            likely = rows.abs().sum(1) / error.clamp(min=torch.finfo(rows.dtype).tiny)
            likely = likely.float().clamp(max=1e7)  # SQ's ε: an error of 0 is not certain
            drawn = torch.multinomial(likely, max(1, round(self.share * len(rows))))
            kept = torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
            kept[drawn] = True
            kept = from_rows(kept.expand_as(rows), latent.shape, self.groups)
        held = latent.detach()
        return torch.where(kept, weight, held + self._scaled(latent - held, latent))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Latents for an assigned weight, which also gives the scales: its own, where each filter
        is exactly ±α, else mean |weight|."""
        if self.scales is not None:
            groups = self.scales.shape[1]
            found = scales_of(as_rows(weight, self.groups), groups)
            with torch.no_grad():
                self.scales.copy_(found)
        return weight

    @torch.no_grad()
    def clip_(self, latent: Tensor) -> None:
        """Bring latents back to ±clip, as BinaryConnect does after each step."""
        if self.clip is not None:
            latent.clamp_(-self.clip, self.clip)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"kind={self.kind!r}, stochastic={self.stochastic}, clip={self.clip}"


class Projections(nn.Module):
    """The packed weight of an `nn.MultiheadAttention`: equal parts of its rows, some binary.

    Attributes
    ----------
    parts : nn.ModuleList
        What computes each part: a `BinaryWeight`, or nothing that changes it.
    """

    order: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Identity() for _ in PROJECTIONS)

    def forward(self, latent: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        rows = latent.chunk(len(self.parts))
        return torch.cat([part(own) for part, own in zip(self.parts, rows, strict=True)])

    def right_inverse(self, weight: Tensor) -> Tensor:
        """As that of its parts."""
        for part, own in zip(self.parts, weight.chunk(len(self.parts)), strict=True):
            if isinstance(part, BinaryWeight):
                part.right_inverse(own)
        return weight


@dataclass(frozen=True)
class Attached:
    """A layer whose weight, or whose part of a packed weight, is computed by a `BinaryWeight`.

    Attributes
    ----------
    module : nn.Module
        Who holds the weight.
    tensor : str
        Its name there.
    binary : BinaryWeight
    part : int or None
        Which part of a packed weight is the layer's.
    """

    module: nn.Module
    tensor: str
    binary: BinaryWeight
    part: int | None = None

    @property
    def _chain(self) -> Any:
        parametrizations: Any = self.module.parametrizations
        return parametrizations[self.tensor]

    @property
    def parameter(self) -> Tensor:
        """What is trained: the latents, of all parts where the weight is packed."""
        return self._chain.original

    @property
    def computed_by(self) -> tuple[int, ...]:
        """Equal for layers that compute the same weight, of one parameter by the same modules."""
        return id(self.parameter), *map(id, self._chain)

    @property
    def latent(self) -> Tensor:
        """The layer's own latents, in the parameter's memory."""
        return self._own(self.parameter.detach())

    @property
    def weight(self) -> Tensor:
        """The layer's own weight as `detach` would leave it."""
        return self._own(self.whole)

    @property
    def whole(self) -> Tensor:
        """The weight, all of it, as `detach` would leave it."""
        modes = [(each, each.training) for each in self._chain.modules()]
        try:
            self._chain.eval()
            with torch.no_grad():
                return getattr(self.module, self.tensor).detach()
        finally:
            for each, mode in modes:
                each.training = mode

    def _own(self, whole: Tensor) -> Tensor:
        return whole if self.part is None else whole.chunk(len(PROJECTIONS))[self.part]


def attached(model: nn.Module) -> dict[str, Attached]:
    """The attached layers of a model, by name."""
    return {
        f"{name}.{suffix}".strip("."): layer
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for suffix, layer in _attached_to(module)
    }


def _attached_to(module: nn.Module) -> Iterator[tuple[str, Attached]]:
    """The attached layers whose weights a module holds, and what their names end in."""
    parametrizations: Any = module.parametrizations
    for tensor, chain in parametrizations.items():
        for each in chain if isinstance(chain, parametrize.ParametrizationList) else ():
            if isinstance(each, BinaryWeight):
                yield tensor.removesuffix("weight").rstrip("_"), Attached(module, tensor, each)
            elif isinstance(each, Projections):
                for number, (suffix, part) in enumerate(zip(PROJECTIONS, each.parts, strict=True)):
                    if isinstance(part, BinaryWeight):
                        yield suffix, Attached(module, tensor, part, number)


def scales_of(rows: Tensor, groups: int) -> Tensor:
    """α (T, G) of rows: their magnitude where it is one, else its mean."""
    parts = rows.detach().reshape(len(rows) * groups, -1).abs()
    mean = parts.float().mean(1).to(parts) if parts.element_size() < 4 else parts.mean(1)
    same = (parts == parts[:, :1]).all(1)
    return torch.where(same, parts[:, 0], mean).reshape(len(rows), groups)
