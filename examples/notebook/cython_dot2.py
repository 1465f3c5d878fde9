"""The kernel that the notebook imports: Shoal's shared-memory, many-core dot product."""

from shoal import dot_product

__all__ = ["dot_product"]
