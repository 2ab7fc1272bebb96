"""Problem: the sums H, C, e of one hashing problem; build, merge, save, load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.files import atomic, open_h5
from hashsolve.sums import Sums, block_rows, in_range


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
        C.
    energy : array (T,)
        e.
    rows : int
        Number of rows summed (N).
    weights : array (S, T), optional
        The full-precision weights: the start of the methods, and the bit of dead inputs.
    fixed_scales : array (T,), optional
        Scales that are given instead of found; with them H may be indefinite.
    input_sum, target_sum : array (S,), (T,), optional
        ΣX̂ and ΣY over rows.
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
    name: str = "problem"

    def __post_init__(self) -> None:
        def put(field: str, value: Any) -> None:
            object.__setattr__(self, field, value)

        at = f"{self.name}: "
        gram = checks.matrix(self.gram, at + "gram")
        if gram.shape[0] != gram.shape[1]:
            raise ValueError(f"{at}gram: must be square (S, S), got shape {gram.shape}")
        put("gram", _symmetric(gram, at + "gram"))
        inputs = gram.shape[0]
        cross = checks.matrix(self.cross, at + "cross", (1, 2))
        put("cross", cross.reshape(len(cross), -1))
        if len(cross) != inputs:
            raise ValueError(f"{at}cross: must be (S, T) with S = {inputs}, got {cross.shape}")
        targets = self.cross.shape[1]
        put("energy", checks.matrix(self.energy, at + "energy", (0, 1)).reshape(-1))
        for field, shape in {
            "energy": (targets,),
            "weights": (inputs, targets),
            "fixed_scales": (targets,),
            "input_sum": (inputs,),
            "target_sum": (targets,),
        }.items():
            value = getattr(self, field)
            if value is None:
                continue
            value = checks.matrix(value, at + field, (1, 2))
            if field == "weights" and value.ndim == 1:
                value = value[:, None]
            if value.shape != shape:
                raise ValueError(f"{at}{field}: must have shape {shape}, got {value.shape}")
            put(field, value)
        if self.fixed_scales is None:
            self._check_free()
        elif not (self.fixed_scales > 0).all():
            raise ValueError(f"{at}fixed_scales: every scale must be > 0")
        if int(self.rows) != self.rows or self.rows < 1:
            raise ValueError(f"{at}rows: must be a whole number >= 1, got {self.rows!r}")
        put("rows", int(self.rows))

    def _check_free(self) -> None:
        at = f"{self.name}: "
        diagonal = np.diagonal(self.gram)
        if (diagonal < 0).any():
            raise ValueError(
                f"{at}gram: negative diagonal entry at {int(np.argmin(diagonal))}; a Gram matrix "
                "has none (for a quadratic programme use Problem.from_quadratic)"
            )
        if not diagonal.any():
            raise ValueError(f"{at}gram: all zero: every input is zero on all rows")
        dead = diagonal == 0
        if self.gram[dead].any():
            raise ValueError(
                f"{at}gram: zero on the diagonal but not in its row: not a Gram matrix"
            )
        # Cauchy-Schwarz, with room for diagonal entries that underflowed
        pull = np.abs(self.cross[dead]).max(axis=0, initial=0.0)
        if (pull > 1e-9 * np.sqrt(diagonal.max()) * np.sqrt(np.abs(self.energy))).any():
            raise ValueError(f"{at}cross: not zero for an input whose gram diagonal is zero")
        if (self.energy < 0).any():
            raise ValueError(f"{at}energy: negative at {int(np.argmin(self.energy))}")
        if not self.energy.any():
            raise ValueError(f"{at}energy: all zero: the targets (outputs) are zero on all rows")
        in_range("gram", self.name, 1.0, float(diagonal.max()))

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        weights: Any = None,
        *,
        target: Any = None,
        reference: Any = None,
        name: str = "problem",
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
        at = f"{name}: "
        x = checks.array(inputs, at + "inputs (X)", 2)
        w = None if weights is None else checks.matrix(weights, at + "weights (W)")
        y = None if target is None else checks.array(target, at + "target (Y)", 2)
        ref = None if reference is None else checks.array(reference, at + "reference (X)", 2)
        size, rows = x.shape
        if w is None and y is None:
            raise ValueError(f"{at}give weights (W) or a target (Y)")
        if w is not None and w.shape[0] != size:
            raise ValueError(f"{at}weights (W): must be (S, T) with S = {size}, got {w.shape}")
        if y is not None and (y.shape[0] != rows or (w is not None and y.shape[1] != w.shape[1])):
            raise ValueError(f"{at}target (Y): must be (N, T) with N = {rows}, got {y.shape}")
        if ref is not None and (y is not None or ref.shape != x.shape):
            why = f"must have the shape of inputs, {x.shape}, got {ref.shape}"
            raise ValueError(f"{at}reference (X): " + (why if y is None else "has no use beside Y"))

        summed_targets = 0 if y is None and ref is None else (w if y is None else y).shape[1]
        sums = Sums(size, summed_targets, name)
        step = block_rows(size)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for start in range(0, rows, step):
                cut = slice(start, start + step)
                x_block = np.asarray(x[:, cut], dtype=np.float64)
                y_block = None
                if y is not None:
                    y_block = np.asarray(y[cut], dtype=np.float64).T
                elif ref is not None:
                    block = np.asarray(ref[:, cut], dtype=np.float64)
                    y_block = w.T @ checks.finite(block, at + "reference (X)")
                sums.add_block(x_block, y_block)
        return cls.from_sums(sums, w)

    @classmethod
    def from_sums(cls, sums: Sums, weights: np.ndarray | None = None) -> Problem:
        """The problem of `hashsolve.sums.Sums`; where those hold no target, Y = X̂ᵀW."""
        sums.finish()
        gram = sums.gram
        if sums.energy.size:
            cross, energy, target_sum = sums.cross, sums.energy, sums.target_sum
        else:
            # by columns of magnitude 1, so that only the results can leave the range
            exponent = np.frexp(np.abs(weights).max(axis=0))[1]
            unit = np.ldexp(weights, -exponent)
            unit_cross = gram @ unit
            unit_energy = np.maximum(np.einsum("st,st->t", unit, unit_cross), 0.0)
            with np.errstate(over="ignore", under="ignore"):
                # outputs that cancel (weights +1, −1 on equal inputs) leave rounding: that is zero
                size = np.einsum("st,st->t", np.abs(unit), np.abs(gram) @ np.abs(unit))
                cancel = np.isfinite(size) & (unit_energy <= np.finfo(float).eps * size)
                unit_energy[cancel], unit_cross[:, cancel] = 0.0, 0.0
                cross = np.ldexp(unit_cross, exponent)
                energy = np.ldexp(unit_energy, 2 * exponent)
                target_sum = np.ldexp(unit.T @ sums.input_sum, exponent)
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
            name=sums.name,
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

    def best_scales(self, codes: np.ndarray) -> np.ndarray:
        """α* = cᵀb / bᵀHb of each column (BWNH, eq. 6), 0 where bᵀHb is 0; or the fixed scales.

        Parameters
        ----------
        codes : array (S, T)

        Returns
        -------
        array (T,)
            Negative where the codes of a column point away from its target.
        """
        if self.fixed_scales is not None:
            return self.fixed_scales.copy()
        b = np.asarray(codes, dtype=float)
        q = np.einsum("st,st->t", b, self.gram @ b)
        p = np.einsum("st,st->t", b, self.cross)
        return np.divide(p, q, out=np.zeros_like(p), where=q > 0)

    def loss(self, codes: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """‖Y_t − X̂ᵀb_t α_t‖² of each column, for any codes; at the best scales by default.

        Parameters
        ----------
        codes : array (S, T)
        scales : array (T,), optional

        Returns
        -------
        array (T,)

        Examples
        --------
        >>> import numpy as np, hashsolve as hs
        >>> p = hs.Problem(gram=np.eye(2), cross=[[1.0], [-2.0]], energy=[5.0])
        >>> p.loss(np.array([[1], [-1]])), p.loss(np.array([[1], [-1]]), np.array([1.0]))
        (array([0.5]), array([1.]))
        """
        u = np.asarray(codes, dtype=float)
        u = u * (self.best_scales(u) if scales is None else scales)
        quadratic = np.einsum("st,st->t", u, self.gram @ u)
        return self.energy - 2 * np.einsum("st,st->t", u, self.cross) + quadratic

    def __repr__(self) -> str:
        name = "" if self.name == "problem" else f"{self.name!r}, "
        fixed = "" if self.free_scale else ", fixed scales"
        return f"Problem({name}S={self.inputs}, T={self.columns}, rows={self.rows}{fixed})"

    def __add__(self, other: Problem) -> Problem:
        """The problem over the rows of both; sums are simply added.

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
        for field in ("weights", "fixed_scales"):
            a, b = getattr(self, field), getattr(other, field)
            if a is not None and not np.array_equal(a, b):
                raise ValueError(f"cannot add {self!r} and {other!r}: {field} differ")
        sums = {
            field: None
            if getattr(self, field) is None
            else getattr(self, field) + getattr(other, field)
            for field in ("gram", "cross", "energy", "rows", "input_sum", "target_sum")
        }
        return replace(self, **sums)

    _ARRAYS = ("gram", "cross", "energy", "weights", "fixed_scales", "input_sum", "target_sum")

    def write(self, group: h5py.Group) -> None:
        """Write the sums into an open HDF5 group."""
        group.attrs["rows"], group.attrs["name"] = self.rows, self.name
        for field in self._ARRAYS:
            value = getattr(self, field)
            if value is not None:
                group.create_dataset(field, data=value, fletcher32=True)

    def save(self, path: str | PathLike) -> None:
        """Write the problem to an HDF5 file; the file appears whole or not at all."""
        with atomic(path) as part, h5py.File(part, "w", locking=False) as file:
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
                raise ValueError(f"{path}: no group {group!r}; it holds {sorted(file)}")
            missing = [f for f in ("gram", "cross", "energy") if f not in node]
            if missing:
                raise ValueError(
                    f"{path}: group {group!r} is no problem: no data set {missing[0]!r}; it holds "
                    f"{sorted(node)}"
                )
            arrays = {f: node[f][()] for f in cls._ARRAYS if f in node}
            name = node.attrs.get("name", group.strip("/") or "problem")
            return cls(**arrays, rows=int(node.attrs.get("rows", 1)), name=str(name))


def _symmetric(gram: np.ndarray, name: str) -> np.ndarray:
    """``gram`` made exactly symmetric, if rounding is all that it lacks."""
    if np.array_equal(gram, gram.T):
        return gram
    with np.errstate(over="ignore"):
        difference = np.abs(gram - gram.T)
    worst = np.unravel_index(np.argmax(difference), gram.shape)
    if not difference[worst] <= 1e-6 * np.abs(gram).max():
        i, j = (int(k) for k in worst)
        raise ValueError(
            f"{name}: not symmetric: entry ({i}, {j}) is {gram[i, j]:.6g}, "
            f"({j}, {i}) is {gram[j, i]:.6g}"
        )
    return 0.5 * gram + 0.5 * gram.T
