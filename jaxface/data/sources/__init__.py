"""The data sets that `jaxface.prepare` understands, one file each. Importing this package registers them."""

from jaxface.data.sources import celeba_hq, fairface, lagenda, manifest, raf_db, utkface, vggface2
from jaxface.data.sources import drawn as synthetic
from jaxface.data.sources.base import SOURCES, Reading, Skipped, Source, get_source, register_source

__all__ = [
    "SOURCES",
    "Reading",
    "Skipped",
    "Source",
    "celeba_hq",
    "fairface",
    "get_source",
    "lagenda",
    "manifest",
    "raf_db",
    "register_source",
    "synthetic",
    "utkface",
    "vggface2",
]
