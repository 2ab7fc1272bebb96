"""Vector search by hashing: a database vector is a column of W, queries are the inputs X."""

from hashsolve.retrieval.index import InnerProductIndex as InnerProductIndex

__all__ = ["InnerProductIndex"]
