"""What an encoder attends to, and what its patches have in common, as a picture.

python examples/attention_maps.py WEIGHTS_OR_RUN PHOTO... [--out attention.png]

A row per photo: the photo; where the pool's probe looks (mean over heads); where the last block's class token looks; and the patches'
features, their three main directions as red, green and blue.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxface
from jaxface.data.photos import read_photos
from jaxface.errors import run_command
from jaxface.kernels.attention import rotate
from jaxface.models.encoder import Encoder, join_stages, normalize_images
from jaxface.models.pool import split_heads


def weights_of(q: jax.Array, k: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)): [..., N, d], [..., M, d] -> [..., N, M]"""
    return jax.nn.softmax(jnp.einsum("...nd,...md->...nm", q, k) * q.shape[-1] ** -0.5)


def block_attention(encoder: Encoder, images: jax.Array, block: int) -> jax.Array:
    """The weights of one block: [B, H, N, N]. `block` counts from 0, or from the end."""
    block = range(encoder.config.depth)[block]
    x, (_, angles) = encoder.hidden_states(images)[block], encoder.embed(images)
    one = jax.tree.map(lambda leaf: leaf[block], join_stages(encoder))
    q, k, _ = (split_heads(part, one.attn.heads) for part in jnp.split(one.attn.qkv(one.norm1(x)), 3, -1))
    return weights_of(rotate(q, angles), rotate(k, angles))


def pool_attention(encoder: Encoder, images: jax.Array) -> jax.Array:
    """The weights of the pool's probe: [B, H, N]."""
    pool, tokens = encoder.pool, encoder.tokens(images)
    q = split_heads(pool.q(pool.probe[...]), pool.heads)
    k, _ = jnp.split(pool.kv(tokens), 2, -1)
    return weights_of(q, split_heads(k, pool.heads))[:, :, 0]


def as_grid(encoder: Encoder, values: jax.Array, images: jax.Array) -> np.ndarray:
    """Values of tokens [B, N, ...] as those of patches [B, rows, columns, ...], without the class token."""
    rows, columns = (side // encoder.config.patch for side in images.shape[1:3])
    return np.asarray(values[:, int(encoder.config.class_token) :]).reshape(len(images), rows, columns, *values.shape[2:])


def main_directions(features: np.ndarray, count: int = 3) -> np.ndarray:
    """Features [B, rows, columns, D] along the directions in which they differ most, each between 0 and 1: [B, rows, columns, count]."""
    flat = features.reshape(-1, features.shape[-1])
    flat = flat - flat.mean(0)
    flat = flat @ np.linalg.svd(flat, full_matrices=False)[2][:count].T
    low, high = np.percentile(flat, (2, 98), axis=0)
    return np.clip((flat - low) / (high - low), 0, 1).reshape(*features.shape[:-1], count)


def over(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photo [S, S, 3] with a map [rows, columns] over it, the largest value brightest: uint8 [S, S, 3]."""
    wide = cv2.resize(heat.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    wide = np.clip((wide - wide.min()) / (wide.max() - wide.min()), 0, 1)
    colours = plt.get_cmap("inferno")(wide)[..., :3] * 255
    return (0.45 * photo + 0.55 * colours).astype(np.uint8)


def draw(encoder: Encoder, photos: np.ndarray, out: Path) -> None:
    """Writes the picture of photos uint8 [B, S, S, 3]."""
    images = normalize_images(jnp.asarray(photos))
    columns = {"photo": list(photos)}
    if encoder.pool is not None:
        columns["the pool's probe"] = list(map(over, photos, as_grid(encoder, pool_attention(encoder, images).mean(1), images)))
    if encoder.config.class_token:
        last = block_attention(encoder, images, -1).mean(1)[:, 0]
        columns["last block, class token"] = list(map(over, photos, as_grid(encoder, last, images)))
    columns["patch features"] = list(main_directions(as_grid(encoder, encoder.tokens(images), images)))
    figure, axes = plt.subplots(len(photos), len(columns), figsize=(2.6 * len(columns), 2.7 * len(photos) + 0.2), squeeze=False)
    for axis, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        axis[0].set_title(title, fontsize=11)
        for cell, picture in zip(axis, pictures, strict=True):
            cell.imshow(picture, interpolation="nearest")
            cell.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


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
