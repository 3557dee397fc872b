"""Features in two dimensions."""

import numpy as np
import sklearn.decomposition

from jaxface.report.embeddings import pca, t_sne


def test_principal_components_are_scikit_learns_up_to_sign():
    features = np.random.default_rng(0).normal(size=(60, 8)) * np.arange(1, 9)
    ours, theirs = pca(features, 3), sklearn.decomposition.PCA(3, svd_solver="full").fit_transform(features)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    assert (ours[np.abs(ours).argmax(0), range(3)] > 0).all()


def test_t_sne_keeps_far_groups_apart_and_gives_the_same_again():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 8)) + np.repeat([[0.0], [30.0]], 30, axis=0)
    points = t_sne(features)
    np.testing.assert_array_equal(points, t_sne(features))
    centres = points[:30].mean(0), points[30:].mean(0)
    nearest = np.linalg.norm(points[:, None] - np.stack(centres), axis=-1).argmin(1)
    assert (nearest == np.repeat([0, 1], 30)).all()
