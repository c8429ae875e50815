"""Latent classes find two planted circles of users who go to different POIs of the same groups."""

import numpy as np

from tests.bench.latent_classes import fit_classes


def test_users_of_a_circle_are_told_to_like_its_pois() -> None:
    groups = np.repeat(np.arange(6), 4)  # six groups of four POIs; each circle likes two of every group
    chance = np.random.default_rng(1)
    pairs = [
        (user, 4 * group + 2 * (user % 2) + which)
        for user in range(40)
        for group in range(5)
        for which in range(2)
        if chance.random() < 0.7
    ]
    users, pois = np.array(pairs).T

    classes = fit_classes(users, pois, groups, 2)

    asked = np.repeat(np.arange(40), 4)
    ratios = classes.log_ratios(asked, np.tile(np.arange(4), 40)).reshape(40, 4)
    liked = np.array([[place // 2 == user % 2 for place in range(4)] for user in range(40)])
    assert ratios[liked].min() > ratios[~liked].max()
    assert classes.log_ratios(np.array([-1, 0]), np.array([0, -1])).tolist() == [0.0, 0.0]
    # Nobody went to the last group, where all POIs are as likely as their share.
    np.testing.assert_allclose(classes.log_ratios(np.zeros(4, int), np.arange(20, 24)), 0.0, atol=1e-9)
