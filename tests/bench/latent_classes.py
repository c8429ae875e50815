"""Latent classes of visits: interests of users from visits alone, an upper bound for pre-training.

P(POI | user, category, block) = sum over classes of P(class | user) P(POI | class, category, block), fitted by EM.
Place and category are equal within a group, so the classes describe interests. The product does not use them.
"""

from typing import NamedTuple

import numpy as np

from models.data.arrays import BoolArray, Float64Array, IntArray

USER_PRIOR, POI_PRIOR = 0.3, 0.5
"""Pseudo-counts of every class of a user, and of every POI of a class in proportion to its visitors."""
NUM_ITERATIONS = 60


class Classes(NamedTuple):
    """Fitted classes.

    Attributes:
        of_users: (users, classes), P(class | user).
        of_pois: (classes, POIs), P(POI | class, its group).
        shares: (POIs,), share of a POI in the visitors of its group.
        is_known: (users,), whether a user has a pair.
    """

    of_users: Float64Array
    of_pois: Float64Array
    shares: Float64Array
    is_known: BoolArray

    def log_ratios(self, users: IntArray, pois: IntArray) -> Float64Array:
        """Returns how much likelier than its share a POI is for a user, log, (pairs,); 0 where either is unknown."""
        known = (users >= 0) & (users < len(self.is_known)) & (pois >= 0)
        known[known] = self.is_known[users[known]]
        found = np.zeros(len(users))
        chances = np.einsum("pk,kp->p", self.of_users[users[known]], self.of_pois[:, pois[known]])
        found[known] = np.log(chances) - np.log(self.shares[pois[known]])
        return found


def fit_classes(
    users: IntArray, pois: IntArray, groups: IntArray, num_classes: int, *, seed: int = 0
) -> Classes:
    """Fits classes to distinct pairs of user and POI.

    Args:
        users, pois: numbers from 0, (pairs,).
        groups: group of every POI (category and block), numbers from 0.
        num_classes: number of classes.
        seed: of the first guess.
    """
    num_users, num_groups = int(users.max(initial=-1)) + 1, int(groups.max()) + 1
    visitors = np.bincount(pois, minlength=len(groups)) + 0.5
    shares = visitors / np.bincount(groups, visitors, num_groups)[groups]
    prior = POI_PRIOR * shares * np.bincount(groups, minlength=num_groups)[groups]
    weights = np.random.default_rng(seed).dirichlet(np.full(num_classes, 2.0), len(users)).T
    for _ in range(NUM_ITERATIONS):
        of_users = np.stack([np.bincount(users, each, num_users) for each in weights], axis=1) + USER_PRIOR
        of_users /= of_users.sum(axis=1, keepdims=True)
        of_pois = np.stack([np.bincount(pois, each, len(groups)) + prior for each in weights])
        of_pois /= np.stack([np.bincount(groups, each, num_groups) for each in of_pois])[:, groups]
        weights = of_users[users].T * of_pois[:, pois]
        weights /= weights.sum(axis=0)
    return Classes(of_users, of_pois, shares, np.bincount(users, minlength=num_users) > 0)
