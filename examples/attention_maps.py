"""What an encoder attends to, and what its patches have in common, as a picture.

python examples/attention_maps.py WEIGHTS_OR_RUN PHOTO... [--out attention.png]

A row per photo: the photo; where the pool's probe looks (mean over heads); where the last block's class token looks; and the patches'
features, their three main directions as red, green and blue.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxface
from jaxface.data.photos import read_photos
from jaxface.errors import run_command
from jaxface.models.encoder import Encoder, normalize_images
from jaxface.plots import to_png_bytes
from jaxface.report.maps import draw_grid, maps_columns


@jax.jit
def maps_of(encoder: Encoder, images: jax.Array) -> dict[str, jax.Array]:
    """The pool's map [B, H, N] where there is a pool, the last block's [B, H, N, N], and the tokens [B, N, D]."""
    tokens = encoder.tokens(images)
    maps = {"block": encoder.attention_maps(images, [-1])[0], "tokens": tokens}
    return maps if encoder.pool is None else maps | {"pool": encoder.pool.weights(tokens)}


def draw(encoder: Encoder, photos: np.ndarray, out: Path) -> None:
    """Writes the picture of photos uint8 [B, S, S, 3]."""
    maps = {name: np.asarray(x) for name, x in maps_of(encoder, normalize_images(jnp.asarray(photos))).items()}
    out.write_bytes(to_png_bytes(draw_grid({"photo": list(photos), **maps_columns(photos, maps, encoder.config)})))


def main() -> None:
    """Reads the command line, draws, and says where the picture is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a checkpoint in any layout, or a run folder")
    parser.add_argument("photos", type=Path, nargs="+", help="pictures, squashed to the encoder's size")
    parser.add_argument("--out", type=Path, default=Path("attention.png"), help="the picture to write")
    options = parser.parse_args()
    encoder = jaxface.load_encoder(options.weights)
    photos = read_photos(options.photos, encoder.config.image_size)
    draw(encoder, photos, options.out)
    print(options.out)


if __name__ == "__main__":
    run_command(main)
