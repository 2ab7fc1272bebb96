"""Problem: the sums H, C, e of one hashing problem; build, merge, save, load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.centring import centred_sums, centring_error
from hashsolve.files import attribute, check_h5_target, digest, open_h5, write_attributes, write_h5
from hashsolve.packing import combine
from hashsolve.suggest import did_you_mean
from hashsolve.sums import Sums, in_range, sum_arrays
from hashsolve.threads import magnitudes_times, one_blas_thread, product
from hashsolve.validation import validated


def cancelling(gram: np.ndarray) -> float:
    """How large bᵀHb may be and yet counts as 0: 1e-12 trace H. The rounding of H itself may give
    such codes any loss, so that no method takes them."""
    return float((1e-12 * np.diagonal(gram)).sum())


@dataclass(frozen=True, eq=False)
class Problem:
    """min over codes b ∈ {−1,+1}^S and a scale α, per column t:  e_t − 2α c_tᵀb + α² bᵀHb.

    That is ‖Y − X̂ᵀBA‖² of BWNH (Hu, Wang & Cheng, AAAI 2018, eq. 4) in its sufficient
    statistics H = X̂X̂ᵀ, C = X̂Y, e_t = ‖Y_t‖²: neither X̂ nor Y is needed once they are summed.

    Parameters
    ----------
    gram : array (S, S)
        H, symmetric.
    cross : array (S, T)
        C = X̂Y.
    energy : array (T,)
        e = ‖Y_t‖² of each column.
    rows : int
        Number of rows summed (N).
    weights : array (S, T), optional
        The full-precision weights: the start of the methods, and the bit of dead inputs.
    fixed_scales : float or array (T,), optional
        Scales that are given instead of found (1: none at all, the paper's ablation); with them H
        may be indefinite.
    input_sum, target_sum : array (S,), (T,), optional
        ΣX̂ and ΣY over rows.
    row_weight : float, optional
        Σ of row weights; ``rows`` where they have none.
    intercept : bool
        Whether each column also gets the best constant (a filter's bias), in closed form; needs
        the two sums.
    scale_group : int, optional
        One scale per so many consecutive inputs of a column, instead of one per column.
    bases : int
        M codes and scales a column: its weights become α₁b₁ + … + α_M b_M.
    name : str
        What the problem belongs to, for error messages.

    Raises
    ------
    ValueError
        Naming the array at fault: wrong shape or dtype, empty, not finite, H not symmetric or
        all zero, all energies zero.

    Examples
    --------
    >>> import numpy as np, hashsolve as hs
    >>> p = hs.Problem(gram=np.eye(2), cross=[[1.0], [-2.0]], energy=[5.0])
    >>> p
    Problem(S=2, T=1, rows=1)
    """

    gram: np.ndarray
    cross: np.ndarray
    energy: np.ndarray
    rows: int = 1
    weights: np.ndarray | None = None
    fixed_scales: np.ndarray | None = None
    input_sum: np.ndarray | None = None
    target_sum: np.ndarray | None = None
    row_weight: float | None = None
    intercept: bool = False
    scale_group: int | None = None
    bases: int = 1
    name: str = "problem"

    def __post_init__(self) -> None:
        for field, value in validated(self).items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        weights: Any = None,
        *,
        target: Any = None,
        reference: Any = None,
        row_weights: Any = None,
        name: str = "problem",
        precision: str = "double",
        **variant: Any,
    ) -> Problem:
        """The problem of approximating Y by X̂ᵀBA.

        Parameters
        ----------
        inputs : array (S, N)
            X̂, the inputs the layer will see; any real dtype, or an HDF5 data set (read in
            blocks of columns). Sums are float64 whatever the dtype.
        weights : array (S, T), optional
            W. The target is Y = XᵀW, X being ``reference`` or else ``inputs``.
        target : array (N, T), optional
            Y itself, instead of weights (or beside them: then W is only the start).
        reference : array (S, N), optional
            X, the full-precision inputs, row by row those of ``inputs`` (the asymmetric
            problem, BWNH section 3.3).
        row_weights : array (N,), optional
            Weights >= 0 of the rows in the loss.
        name : str
            What it belongs to, for error messages.
        precision : {"double", "single"}
            "single": rows are rounded to float32, and multiplied in it in blocks of at most 8,192,
            at up to twice the rate; ``hashsolve.sums`` says how far off that may be. Weighted rows
            (but for targets that ``reference`` gives), and blocks with values too large or too
            small for it, are multiplied in float64.
        **variant
            ``fixed_scales``, ``scale_group``, ``bases``, ``intercept``, as in `Problem`.

        Raises
        ------
        ValueError
            Naming the array at fault.

        Examples
        --------
        >>> import numpy as np, hashsolve as hs
        >>> rng = np.random.default_rng(0)
        >>> X, W = rng.normal(size=(8, 100)), rng.normal(size=(8, 3))
        >>> hs.Problem.from_arrays(X, W)
        Problem(S=8, T=3, rows=100)
        >>> hs.Problem.from_arrays(X, target=X.T @ W).energy.shape
        (3,)
        """
        sums, w = sum_arrays(inputs, weights, target, reference, row_weights, name, precision)
        return cls.from_sums(sums, w, **variant)

    @classmethod
    def from_sums(cls, sums: Sums, weights: np.ndarray | None = None, **variant: Any) -> Problem:
        """The problem of `hashsolve.sums.Sums`; where those hold no target, Y = X̂ᵀW.

        Parameters
        ----------
        sums : Sums
        weights : array (S, T), optional
            W; not optional where the sums hold no target.
        **variant
            As in `Problem.from_arrays`.
        """
        gram = sums.finish().gram  # it changes no more, so no copy is needed
        if weights is None or sums.energy.size:
            cross, energy, target_sum = sums.cross, sums.energy, sums.target_sum
        else:
            # by columns of magnitude 1, so that only the results can leave the range
            exponent = np.frexp(np.abs(weights).max(axis=0))[1]
            unit = np.ldexp(weights, -exponent)
            unit_cross = product(gram, unit)
            unit_energy = np.maximum(np.einsum("st,st->t", unit, unit_cross), 0.0)
            with one_blas_thread(), np.errstate(over="ignore", under="ignore"):
                target_sum = np.ldexp(unit.T @ sums.input_sum, exponent)
                # outputs that cancel (weights +1, −1 on equal inputs) leave rounding: that is zero
                np.abs(unit, out=unit)
                size = np.einsum("st,st->t", unit, magnitudes_times(gram, unit))
                cancel = np.isfinite(size) & (unit_energy <= np.finfo(float).eps * size)
                unit_energy[cancel], unit_cross[:, cancel] = 0.0, 0.0
                cross = np.ldexp(unit_cross, exponent, out=unit_cross)
                energy = np.ldexp(unit_energy, 2 * exponent)
            for array in (cross, energy, target_sum):
                array.flags.writeable = False
            for t in np.flatnonzero(unit_energy):
                in_range(f"outputs of column {t}", sums.name, 1.0, energy[t])
        return cls(
            gram=gram,
            cross=cross,
            energy=energy,
            rows=sums.rows,
            weights=weights,
            input_sum=sums.input_sum,
            target_sum=target_sum,
            row_weight=sums.row_weight,
            name=sums.name,
            **variant,
        )

    @classmethod
    def from_quadratic(cls, quadratic: Any, linear: Any = None, name: str = "problem") -> Problem:
        """The quadratic programme  min bᵀQb − 2cᵀb  over b ∈ {−1,+1}^S; Q may be indefinite.

        Parameters
        ----------
        quadratic : array (S, S)
            Q; only its symmetric part counts.
        linear : array (S,) or (S, T), optional
            c, or one a column; zero where not given.
        name : str
            What it belongs to, for error messages.

        Examples
        --------
        >>> import hashsolve as hs
        >>> hs.solve(hs.Problem.from_quadratic([[0, 1], [1, 0]], [1, 0])).loss
        array([-4.])
        """
        q = checks.matrix(quadratic, f"{name}: quadratic (Q)")
        if q.shape[0] != q.shape[1]:
            raise ValueError(f"{name}: quadratic (Q): must be square, got shape {q.shape}")
        c = np.zeros(len(q)) if linear is None else linear
        c = checks.matrix(c, f"{name}: linear (c)", (1, 2)).reshape(len(c), -1)
        ones = np.ones(c.shape[1])
        return cls(0.5 * q + 0.5 * q.T, c, 0 * ones, fixed_scales=ones, name=name)

    @property
    def inputs(self) -> int:
        """Fan-in S."""
        return self.gram.shape[0]

    @property
    def columns(self) -> int:
        """Number of filters T."""
        return self.cross.shape[1]

    @property
    def free_scale(self) -> bool:
        """Whether scales are found by the solver."""
        return self.fixed_scales is None

    def select(self, columns: Any) -> Problem:
        """The problem of some columns only.

        Parameters
        ----------
        columns : array
            Indices, in their order, or a boolean mask (T,).

        Raises
        ------
        ValueError
            For anything else, or indices out of range.
        """
        kept = np.asarray(columns)
        if kept.dtype == bool and kept.shape == (self.columns,):
            kept = np.flatnonzero(kept)
        if kept.ndim != 1 or kept.dtype.kind not in "iu" or not kept.size:
            raise ValueError(
                f"{self.name}: columns: must be indices or a mask of T = {self.columns} columns "
                f"with at least one, got {columns!r}"
            )
        if (kept >= self.columns).any() or (kept < -self.columns).any():
            raise ValueError(f"{self.name}: columns: {kept.max()} of T = {self.columns}")
        sub = {
            field: getattr(self, field)[..., kept]
            for field in ("cross", "energy", "weights", "fixed_scales", "target_sum")
            if getattr(self, field) is not None
        }
        return replace(self, **sub)

    def centred(self) -> Problem:
        """The problem whose loss is this one's at the best intercepts: sums less their means."""
        if not self.intercept:
            return self
        gram, cross, energy = centred_sums(self)
        return replace(self, gram=gram, cross=cross, energy=energy, intercept=False)

    def centring_error(self, weight: np.ndarray) -> np.ndarray:
        """What taking means off sums can have done to the loss of weights (S, T), (T,)."""
        return centring_error(self, weight) if self.intercept else np.zeros(self.columns)

    def rounding(self, weight: np.ndarray) -> np.ndarray:
        """What rounding of the sums can do to the loss of weights (S, T), (T,)."""
        size = np.abs(weight)
        return np.einsum("st,st->t", 1e-13 * size, np.abs(self.gram) @ size)

    def intercepts(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The best constant of each column beside these codes and scales.

        Parameters
        ----------
        codes, scales : array
            As in `Problem.loss`.

        Returns
        -------
        array (T,)
        """
        # column by column, so that no bit depends on how many there are
        means = [self.input_sum @ w for w in np.ascontiguousarray(combine(codes, scales).T)]
        return (self.target_sum - np.array(means)) / self.row_weight

    def best_scales(self, codes: np.ndarray) -> np.ndarray:
        """α* = cᵀb / bᵀHb of each column (BWNH, eq. 6), 0 where that cancels; or the fixed scales.

        Parameters
        ----------
        codes : array (S, T)

        Returns
        -------
        array (T,)
            Negative where the codes of a column point away from its target.

        Raises
        ------
        ValueError
            For codes of another shape or other entries than −1 and +1, or with several scales a
            column.
        """
        codes = checks.codes(codes, self.cross.shape)
        if codes.ndim == 3 or self.scale_group is not None:
            raise ValueError("scales: give them where a column has several; solve finds the best")
        if self.fixed_scales is not None:
            return self.fixed_scales.copy()
        plain = self.centred()
        b = codes.astype(float)
        q = np.einsum("st,st->t", b, plain.gram @ b)
        p = np.einsum("st,st->t", b, plain.cross)
        return np.divide(p, q, out=np.zeros_like(p), where=q > cancelling(plain.gram))

    def loss(self, codes: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """‖Y_t − X̂ᵀb_t α_t‖² of each column, for any codes; at the best scales by default.

        Parameters
        ----------
        codes : array (S, T), or (M, S, T) for M bases
        scales : array (T,), (M, T) for M bases, or (S / scale_group, T); optional for one scale

        Returns
        -------
        array (T,)

        Raises
        ------
        ValueError
            For codes of another shape or other entries than −1 and +1, or scales that are missing.

        Examples
        --------
        >>> import numpy as np, hashsolve as hs
        >>> p = hs.Problem(gram=np.eye(2), cross=[[1.0], [-2.0]], energy=[5.0])
        >>> p.loss(np.array([[1], [-1]])), p.loss(np.array([[1], [-1]]), np.array([1.0]))
        (array([0.5]), array([1.]))
        """
        codes = checks.codes(codes, self.cross.shape)
        plain = self.centred()
        given = plain.best_scales(codes) if scales is None else np.asarray(scales, dtype=float)
        if given.ndim == 0:
            given = np.full(self.columns, given)
        groups = codes.ndim == given.ndim == 2 and self.inputs % max(1, len(given)) == 0
        rows = given.shape[:-1] if groups else codes.shape[:-2]
        if given.shape != (*rows, self.columns) or not given.size:
            raise ValueError(f"scales: must have shape {(*rows, self.columns)}, got {given.shape}")
        u = combine(codes, given)
        quadratic = np.einsum("st,st->t", u, plain.gram @ u)
        return plain.energy - 2 * np.einsum("st,st->t", u, plain.cross) + quadratic

    def __repr__(self) -> str:
        name = "" if self.name == "problem" else f"{self.name!r}, "
        more = "" if self.free_scale else ", fixed scales"
        more += f", scale_group={self.scale_group}" if self.scale_group else ""
        more += f", bases={self.bases}" if self.bases > 1 else ""
        more += ", intercept" if self.intercept else ""
        return f"Problem({name}S={self.inputs}, T={self.columns}, rows={self.rows}{more})"

    def __radd__(self, other: Any) -> Problem:  # sum() starts at 0
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __add__(self, other: Problem) -> Problem:
        """The problem over the rows of both; sums are simply added.

        Parameters
        ----------
        other : Problem

        Raises
        ------
        ValueError
            If the two differ in shape, weights or fixed scales.
        """
        if not isinstance(other, Problem):
            return NotImplemented
        for field in ("cross", "weights", "fixed_scales", "input_sum"):
            a, b = getattr(self, field), getattr(other, field)
            if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
                raise ValueError(f"cannot add {self!r} and {other!r}: {field} differ in shape")
        for field in ("weights", "fixed_scales", "intercept", "scale_group", "bases"):
            a, b = getattr(self, field), getattr(other, field)
            if a is not None and not np.array_equal(a, b):
                raise ValueError(f"cannot add {self!r} and {other!r}: {field} differ")
        added = ("gram", "cross", "energy", "rows", "row_weight", "input_sum", "target_sum")
        sums: dict[str, Any] = {
            field: None
            if getattr(self, field) is None
            else getattr(self, field) + getattr(other, field)
            for field in added
        }
        return replace(self, **sums)

    _ARRAYS = ("gram", "cross", "energy", "weights", "fixed_scales", "input_sum", "target_sum")
    _NUMBERS = ("rows", "row_weight", "intercept", "scale_group", "bases")

    def write(self, group: h5py.Group) -> None:
        """Write the sums into an open HDF5 group.

        Parameters
        ----------
        group : h5py.Group
        """
        numbers = {f: getattr(self, f) for f in self._NUMBERS if getattr(self, f) is not None}
        write_attributes(group, {"name": self.name, **numbers})
        for field in self._ARRAYS:
            value = getattr(self, field)
            if value is not None:
                group.create_dataset(field, data=value, fletcher32=True)
        write_attributes(group, {"sha256": self._fingerprint()})

    def _fingerprint(self) -> str:
        """Of all that a file holds."""
        return digest(*(getattr(self, f) for f in (*self._ARRAYS, *self._NUMBERS)))

    def save(self, path: str | PathLike) -> None:
        """Write the problem to an HDF5 file; the file appears whole or not at all.

        Parameters
        ----------
        path : path

        Raises
        ------
        ValueError
            For a folder, or a name of another kind of file.
        """
        check_h5_target(path)
        with write_h5(path) as file:
            self.write(file)

    @classmethod
    def load(cls, path: str | PathLike, group: str = "/") -> Problem:
        """Read a problem: data sets ``gram``, ``cross``, ``energy`` and what else is known.

        Parameters
        ----------
        path : path
            An HDF5 file.
        group : str
            The group in it that holds the data sets.

        Raises
        ------
        ValueError
            Where the file is damaged, or is not a problem; it names the file.
        """
        with open_h5(path) as file:
            node = file.get(group)
            if not isinstance(node, h5py.Group):
                hint = did_you_mean(group.strip("/"), file)
                raise ValueError(f"{path}: no group {group!r}; it holds {sorted(file)}{hint}")
            missing = [f for f in ("gram", "cross", "energy") if f not in node]
            if missing:
                raise ValueError(
                    f"{path}: group {group!r} is no problem: no data set {missing[0]!r}; it holds "
                    f"{sorted(node)}"
                )
            known = {f: node[f][()] for f in cls._ARRAYS if f in node}
            known |= {f: attribute(node, f).item() for f in cls._NUMBERS if f in node.attrs}
            try:
                name = attribute(node, "name")
            except KeyError:  # others may write none, or one of variable length
                name = group.strip("/") or "problem"
            problem = cls(**known, name=name)
            # those that others write have none
            if "sha256" in node.attrs and attribute(node, "sha256") != problem._fingerprint():
                raise ValueError(f"{path}: damaged: its contents do not match its SHA-256")
            return problem
