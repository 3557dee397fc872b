"""The data sets that `jaxface.prepare` understands, one file each. Importing this package registers them."""

from jaxface.data.sources import (
    celeba_hq,
    coco,
    drawn,
    fairface,
    folders,
    huggingface,
    label_studio,
    lagenda,
    manifest,
    raf_db,
    utkface,
    vggface2,
)
from jaxface.data.sources.base import SOURCES, Reading, Skipped, Source, get_source, register_source

__all__ = [
    "SOURCES",
    "Reading",
    "Skipped",
    "Source",
    "celeba_hq",
    "coco",
    "drawn",
    "fairface",
    "folders",
    "get_source",
    "huggingface",
    "label_studio",
    "lagenda",
    "manifest",
    "raf_db",
    "register_source",
    "utkface",
    "vggface2",
]
