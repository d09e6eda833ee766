"""Popularity and means: what counting gives.

With likes and n counted over the history, m the global mean (likes + 1) / (R + 2):

popularity       ln(1 + likes of the item)
item_mean        P(liked | item) = (likes + 5 m) / (n + 5)
user_mean        P(liked | user), likewise; it cannot order items, so it has no lists
user_item_mean   P(liked | user, item) if user and item tell independently of each other (naive Bayes):
                 logit = logit(item_mean) + logit(user_mean) - logit(m)

Means are shrunk to m as if by 5 more interactions; what was never seen has the mean m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flmrec_spark.stages.baselines.world import SHRINKAGE, Floats, User, World, logit


@dataclass(frozen=True)
class Popularity:
    likes: Floats  # [N]
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats:  # noqa: ARG002  the same for all
        return np.asarray(np.log1p(self.likes))


@dataclass(frozen=True)
class ItemMean:
    log_odds: Floats  # [N]
    is_probability: ClassVar[bool] = True

    def scores(self, user: User) -> Floats:  # noqa: ARG002  the same for all
        return self.log_odds


@dataclass(frozen=True)
class UserMean:
    mean: float
    n_items: int
    is_probability: ClassVar[bool] = True

    def log_odds(self, user: User) -> float:
        likes = float(user.liked.sum())
        return float(logit((likes + SHRINKAGE * self.mean) / (len(user.liked) + SHRINKAGE)))

    def scores(self, user: User) -> Floats:
        return np.full(self.n_items, self.log_odds(user))


@dataclass(frozen=True)
class UserItemMean:
    item: ItemMean
    user: UserMean
    is_probability: ClassVar[bool] = True

    def scores(self, user: User) -> Floats:
        return self.item.log_odds + (self.user.log_odds(user) - float(logit(self.user.mean)))


def popularity(world: World) -> Popularity:
    return Popularity(world.n_likes)


def item_mean(world: World) -> ItemMean:
    return ItemMean(np.asarray(logit(world.shrunk_mean(world.n_likes, world.counts))))


def user_mean(world: World) -> UserMean:
    return UserMean(world.mean, len(world.item_ids))


def user_item_mean(world: World) -> UserItemMean:
    return UserItemMean(item_mean(world), user_mean(world))
