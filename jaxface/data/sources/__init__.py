"""The data sets that `jaxface.prepare` understands, one file each. Importing this package registers them."""

from jaxface.data.sources import manifest, raf_db, synthetic
from jaxface.data.sources.base import SOURCES, Source, register_source

__all__ = ["SOURCES", "Source", "manifest", "raf_db", "register_source", "synthetic"]
