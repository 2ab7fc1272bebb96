"""TorchNetwork: hashsolve's Network protocol for torch modules."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hashsolve
from hashsolve.files import update
from torch_glue.checks import check_model
from torch_glue.filters import NORMS
from torch_glue.own_forwards import computed_otherwise
from torch_glue.passes import evaluating, no_fused_attention, run_batch, run_model
from torch_glue.places import as_array, fill, places_of, writable
from torch_glue.shortcuts import Shortcuts, checked_shortcuts, named_shortcut
from torch_glue.watch import Found, Seen, Watch


@update.register
def _(value: Tensor, state: Any) -> None:
    update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy(), state)
    update(f"{value.dtype}{tuple(value.shape)}", state)


class TorchNetwork:
    """A torch module as a `hashsolve.Network`.

    Layers are convolutions and transposed convolutions in 1, 2 and 3 dimensions, Linear, and the
    four projections of `nn.MultiheadAttention`, called ``q_proj``, ``k_proj``, ``v_proj`` and
    ``out_proj``. Their order is that in which one forward pass reaches them. Passes run in eval
    mode without gradients; the module's modes, hooks, gradients, device and the random state are
    left as found, also after an error.

    A layer that one pass reaches several times is binarised for all its calls, and modules that
    share a weight are binarised together. A module that is never called, and a weight that is
    shared with no layer, or used there in another way, are refused by `hashsolve.binarize`
    unless skipped. So is a weight that is computed from other tensors, as parametrizations and
    pruning leave it.

    Parameters
    ----------
    model : torch.nn.Module
    forward : callable, optional
        Runs a batch: ``forward(model, batch)``. By default a tensor is passed as it is, of a list
        or tuple (images, labels) the first, and a mapping as keyword arguments (as it is where
        it names none of them).
    shortcuts : {"auto", False} or mapping
        What layers' outputs are added to. "auto": found by watching one pass: a layer, perhaps a
        BatchNorm, then the addition of something of the same shape that does not depend on the
        layer. A mapping says it for some layers, by the name of the module whose output it is, or
        "name:input" for what that module is given first; ``(norm, name)`` also names the
        BatchNorm in between, else found by watching.

    Examples
    --------
    >>> import torch, torch_glue
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> network = torch_glue.TorchNetwork(model)
    >>> [layer.name for layer in network.layers(torch.ones(5, 4))]
    ['0', '2']
    >>> network.layer_input("2", torch.ones(5, 4), binarized=False).shape
    (5, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        shortcuts: Shortcuts = "auto",
    ):
        check_model(model)
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError("model: is scripted: give the module that it was made of")
        self.model = model
        self.remarks: list[str] = []
        self._forward = forward or run_batch
        self._places = places_of(model)
        self._asked = checked_shortcuts(shortcuts, model, self._places)
        self._original: dict[tuple[nn.Module, str], Tensor] = {}  # before it was written
        self._calls: dict[str, int] = {}
        self._otherwise: set[str] = set()  # what a forward of its own computes in another way
        self._constants: dict[str, tuple[nn.Module, str, slice, int]] = {}
        self._sources: dict[str, tuple[str | None, str | None]] = {}  # norm, module or watched
        self._kept: tuple[Any, ...] | None = None  # a shortcut that came with an input
        self._orders: dict[str, bool] = {}  # of named shortcuts of attention: positions first?

    def layers(self, batch: Any) -> list[hashsolve.Layer]:
        """All layers in the order in which a forward pass of ``batch`` reaches them.

        Weights that an earlier run has written through this adapter are put back first.

        Parameters
        ----------
        batch : tensor, tuple or mapping
        """
        for (owner, attribute), value in self._original.items():
            fill(getattr(owner, attribute), value)
        self._original.clear()
        self._kept = None
        run = partial(self._run, batch, {}, None)
        self._otherwise = computed_otherwise(self._places, run)
        order, watch = self._first_pass(batch)
        self._otherwise |= watch.otherwise if watch else set()
        self._calls = Counter(order)
        seen = watch.seen if watch else {}
        self._find_constants(seen, order)
        self._find_shortcuts(seen)
        owners = self._other_owners()
        result = []
        for name in [*dict.fromkeys(order), *(n for n in self._places if n not in self._calls)]:
            place = self._places[name]
            address, holder = place.address, name
            if address is not None:
                holder = owners.setdefault(address, name)
            taker = self._constants.get(name)
            norm, _ = self._sources.get(name, (None, None))
            result.append(
                hashsolve.Layer(
                    name=name,
                    geometry=place.geometry,
                    shape=place.shape,
                    calls=self._calls[name],
                    shares=None if holder == name else holder,
                    bits=8 * next(place.owner.parameters()).element_size(),
                    shortcut=(norm or "added") if name in self._sources else None,
                    constant=None if taker is None else taker[1],
                    layout=place.layout,
                )
            )
        return result

    def weight(self, name: str) -> np.ndarray:
        """The full-precision weight of a layer, float64.

        Parameters
        ----------
        name : str
        """
        current, place = self._parameter(name), self._places[name]
        full = place.read(self._original.get((place.owner, place.weight), current))
        return full.detach().to("cpu", torch.float64, copy=True).numpy()

    def layer_input(
        self, name: str, batch: Any, *, binarized: bool
    ) -> np.ndarray | list[np.ndarray]:
        """The input of a layer for one batch; the pass ends there.

        Parameters
        ----------
        name : str
        batch : tensor, tuple or mapping
        binarized : bool
            Whether with all that was written.

        Returns
        -------
        array
            Of a layer that `layers` has seen called several times, a list.
        """
        wanted = max(1, self._calls.get(name, 1))
        caught: list[np.ndarray] = []
        watched = self._sources.get(name, (None, ""))[1] is None
        watch = self._watch(name) if watched else None

        def catch(args: tuple, kwargs: dict) -> None:
            if len(caught) < wanted:
                caught.append(self._places[name].inputs(args, kwargs))
            if len(caught) == wanted and not watched:
                raise Found

        with self._weights(binarized):
            self._run(batch, {name: catch}, watch)
        if not caught:
            raise ValueError(f"layer {name} is not reached by this batch: add it to skip")
        if watch is not None:  # the same pass goes on to what the output is added to
            self._kept = name, batch, binarized, watch.shortcut
        return caught[0] if wanted == 1 else caught

    def shortcut(self, name: str, batch: Any, *, binarized: bool) -> np.ndarray:
        """What is added to the output of a layer, over the factor of the BatchNorm before that.

        Parameters
        ----------
        name : str
        batch : tensor, tuple or mapping
        binarized : bool
            Whether with all that was written.
        """
        norm, source = self._sources[name]
        if source is not None:

            def run() -> None:
                with self._weights(binarized):
                    self._run(batch, {}, None)

            value = named_shortcut(
                self.model, self._places[name], name, norm, source, self._orders, run
            )
        else:
            kept, self._kept = self._kept, None
            if kept is None or kept[0] != name or kept[1] is not batch or kept[2] != binarized:
                watch = self._watch(name)
                with self._weights(binarized):
                    self._run(batch, {}, watch)
                value = watch.shortcut
            else:
                value = kept[3]
        if value is None:
            raise ValueError(
                f"layer {name}: this batch adds nothing to its output, as the first did: use "
                "residual=False, or name the shortcuts"
            )
        return as_array(self._places[name].with_samples(value))

    def write(self, name: str, weight: np.ndarray, constant: np.ndarray | None = None) -> None:
        """Replace a layer's weight, in place and in its own dtype.

        Parameters
        ----------
        name : str
        weight : array
        constant : array (filters,), optional
            What to add to each filter's outputs, by its bias or the running mean of the BatchNorm
            behind it.
        """
        current, place = self._parameter(name), self._places[name]
        if constant is not None and name not in self._constants:
            raise ValueError(
                f"layer {name}: what takes up its constant is known once a pass was seen: call "
                "layers(batch) first; its bias, or a BatchNorm behind it, must be there"
            )
        for other in self._places.values():  # other modules may hold the same memory
            held = other.parameter
            if held is not None and held.data_ptr() == current.data_ptr():
                self._keep(other.owner, other.weight)
        with writable(current):
            place.fill(current, torch.from_numpy(np.ascontiguousarray(weight)))
        if constant is None and name not in self._constants:
            return
        owner, attribute, rows, sign = self._constants[name]
        if constant is None and (owner, attribute) not in self._original:
            return
        self._keep(owner, attribute)
        full = self._original[owner, attribute][rows]
        if constant is not None:
            added = torch.from_numpy(np.asarray(constant, dtype=np.float64)).to(full.device)
            full = full.double() + sign * added
        fill(getattr(owner, attribute)[rows], full)

    def takers(self, name: str) -> list[Tensor]:
        """What shapes a layer's outputs where its constant is taken up: its bias, or all of the
        BatchNorm behind it; nothing for other layers.

        Parameters
        ----------
        name : str
        """
        owner, attribute, *_ = self._constants.get(name, (None, ""))
        if owner is None:
            return []
        if attribute != "running_mean":
            return [getattr(owner, attribute).detach()]
        return [value.detach() for value in owner.state_dict().values()]

    def state(self) -> dict[str, Any]:
        """The full-precision parameters and the buffers, persistent or not."""
        with self._weights(binarized=False):
            tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
            return {name: value.detach().clone() for name, value in tensors}

    def _parameter(self, name: str) -> Tensor:
        """A layer's weight, as long as it is one that can be written."""
        if name not in self._places:
            raise ValueError(f"the model has no layer {name!r}: is it of another network?")
        weight = self._places[name].parameter
        if weight is None:
            raise ValueError(
                f"layer {name}: its weight is computed from other tensors (a parametrization, "
                "weight_norm, pruning): remove that first, or add it to skip"
            )
        if weight.is_complex():
            raise ValueError(f"layer {name}: its weight is complex: add it to skip")
        if weight.is_meta:
            raise ValueError(f"layer {name}: its weight is on the meta device: load values first")
        if name in self._otherwise:
            kind = type(self._places[name].module).__name__
            raise ValueError(
                f"layer {name}: the forward of {kind} gives another output than its weight and "
                "torch's own would: skip it"
            )
        return weight

    def _keep(self, owner: nn.Module, attribute: str) -> None:
        """Remember a tensor as it is before it is first written."""
        if (owner, attribute) not in self._original:
            current = getattr(owner, attribute)
            with torch.inference_mode(current.is_inference()), torch.no_grad():
                self._original[owner, attribute] = current.detach().clone()

    def _other_owners(self) -> dict[int, str]:
        """Who else holds each weight's memory: modules that are no layers, such as an embedding."""
        own = {(place.owner, place.weight) for place in self._places.values()}
        return {
            parameter.data_ptr(): name
            for name, module in self.model.named_modules()
            for attribute, parameter in module._parameters.items()
            if parameter is not None and (module, attribute) not in own and attribute != "bias"
        }

    def _watch(self, wanted: str | None = None) -> Watch:
        return Watch(self._places, wanted)

    def _first_pass(self, batch: Any) -> tuple[list[str], Watch | None]:
        """The layers in the order in which a pass reaches them, and what watching it has shown."""
        order: list[str] = []
        hooks = {name: (lambda *_, name=name: order.append(name)) for name in self._places}
        watch = self._watch()
        try:
            self._run(batch, hooks, watch)
        except Exception as error:
            order.clear()
            self._run(batch, hooks, None)
            self.remarks.append(f"a watched pass failed: no shortcuts were looked for ({error})")
            return order, None
        return order, watch

    def _find_constants(self, seen: dict[str, Seen], order: list[str]) -> None:
        """What can take up a constant for each filter of a layer."""
        calls, self._constants = Counter(order), {}
        norms = {n: m for n, m in self.model.named_modules() if isinstance(m, NORMS)}
        named = self.model.named_parameters(remove_duplicate=False)
        holders = Counter(parameter.data_ptr() for _, parameter in named)
        used = Counter(user for found in seen.values() for user in found.users)
        for name, place in self._places.items():
            bias = place.owner._parameters.get(place.bias)
            users = seen[name].users if name in seen else []
            if bias is not None:
                if holders[bias.data_ptr()] == 1:
                    self._constants[name] = place.owner, place.bias, slice(*place.bias_rows), 1
            elif calls[name] == 1 and len(users) == 1 and used[users[0]] == 1:
                norm = norms.get(users[0])
                if norm is not None and norm.running_mean is not None:
                    self._constants[name] = norm, "running_mean", slice(None), -1

    def _find_shortcuts(self, seen: dict[str, Seen]) -> None:
        """Where what is added to a layer's output comes from."""
        self._sources = {}
        if isinstance(self._asked, dict):
            for name, (norm, source) in self._asked.items():
                users = seen[name].users if name in seen else []
                self._sources[name] = norm or next(iter(users), None), source
        elif self._asked:
            for name, found in seen.items():
                if found.shortcuts == 1 and self._calls[name] == 1:
                    self._sources[name] = found.norm, None

    @contextmanager
    def _weights(self, binarized: bool) -> Iterator[None]:
        """Within, the modules hold the full-precision weights, if so asked."""
        if binarized or not self._original:
            yield
            return
        kept = {place: getattr(*place).data for place in self._original}
        try:
            for place, value in self._original.items():
                getattr(*place).data = value
            yield
        finally:
            for place, value in kept.items():
                getattr(*place).data = value

    def _run(self, batch: Any, hooks: dict[str, Callable], watch: Watch | None) -> None:
        """One forward pass that calls ``hooks`` of layers with their inputs, perhaps watched;
        everything is left as found."""
        attention = [name for name in hooks if self._places[name].watched]
        if attention and watch is None:
            watch = self._watch("")
        with evaluating(self.model), no_fused_attention():
            handles = []

            def on(module: nn.Module, hook: Callable) -> None:
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

            try:
                for module, note in watch.hooks(self.model) if watch else ():
                    on(module, note)
                for name, hook in hooks.items():
                    if watch is not None and name in attention:
                        watch.projected[name] = lambda value, hook=hook: hook((value,), {})
                    else:
                        on(
                            self._places[name].module,
                            lambda _, args, kwargs, hook=hook: hook(args, kwargs),
                        )
                with watch or nullcontext():
                    run_model(self._forward, self.model, batch)
            except Found:
                pass
            finally:
                for handle in handles:
                    handle.remove()
