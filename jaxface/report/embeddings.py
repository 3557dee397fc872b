"""Features in two dimensions: principal components, and t-SNE of the first fifty of them (thesis, section 4.8)."""

from __future__ import annotations

import numpy as np

COMPONENTS = 50
"""Principal components that t-SNE starts from."""


def pca(features: np.ndarray, components: int) -> np.ndarray:
    """`[N, D]` -> the first principal components `[N, k]`, k at most `components`; each one's largest value is positive."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = (u * s)[:, :components]
    largest = np.abs(points).argmax(axis=0)
    return points * np.sign(points[largest, np.arange(points.shape[1])] + 1e-300)


def t_sne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """`[N, D]` -> `[N, 2]`, the same for the same features."""
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, (len(features) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500)
    return model.fit_transform(pca(features, COMPONENTS).astype(np.float32))
