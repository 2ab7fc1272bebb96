"""Every jitted function, and nothing else: no validation, no I/O, no options.

Arrays are laid out one problem column a row: ``cross`` (T, S) and ``codes`` (T, S), so that a
column's work is contiguous and columns can be split over threads. Inputs are normalised and
live (``gram[j, j] > 0``). `hashsolve.reference` holds a slow NumPy twin of each.
"""
