"""Many users against one catalogue on a GPU: a step is a fixed number of tokens, and the host works while it runs.

Users of similar length stand in one batch, filled up to a fixed number of users and tokens. So every product of a step
has one shape, whoever else is in it, and a user's scores do not depend on the others.

Shapes: B users, P user tokens, N items, V heads of the model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm.device_join import DeviceJoin
from flmrec_spark.lm.memory import SMALLEST, is_out_of_memory
from flmrec_spark.lm.segments import PAD

STEP_TOKENS = 1 << 18  # item tokens of a step, all users together: of a wide model some GB
_BUCKET = 16  # user tokens
_MOST_USERS = 256  # of a step
_AHEAD = 1 << 28  # bytes of logits that are under way at a time

User = tuple[list[int], npt.NDArray[np.float32] | None]  # a segment's ids and its collaborative token
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Chunk:
    """Users whose logits are under way to the host."""

    steps: Sequence[Tensor]  # float32 (V, B, N) each, on the host
    places: Sequence[tuple[int, int]]  # of each user: the step and its row
    done: Any  # torch.cuda.Event; None on a CPU


class UserBatches:
    """Scores users by a `DeviceJoin`, which tells how many of them go together."""

    def __init__(self, join: DeviceJoin, device: str, *, step_tokens: int = STEP_TOKENS) -> None:
        self.join, self.device, self.step_tokens = join, torch.device(device), step_tokens
        self.on_gpu = self.device.type == "cuda"

    def logits(self, users: Iterable[User]) -> Iterator[Scores]:
        """float64 (V, N) of each user, in their order; the next users are computed while these are looked at."""
        rest, before = iter(users), None
        while chunk := list(islice(rest, self._n_ahead())):
            started = self._started(chunk)
            if before is not None:
                yield from _arrived(before)
            before = started
        if before is not None:
            yield from _arrived(before)

    def take(self, index: Tensor) -> UserBatches:
        """Against some of the items, in the order of the index."""
        return UserBatches(self.join.take(index), str(self.device), step_tokens=self.step_tokens)

    @torch.inference_mode()
    def of_one(self, user: User) -> Scores:
        """float64 (V, N) of one user alone, now; the last bits may differ from those in a step of many."""
        while (found := self._fitting([user], len(user[0]), 1)) is None:
            pass
        return np.asarray(found[:, 0].double().cpu().numpy())

    def _n_ahead(self) -> int:
        """Users of a chunk: some steps, so that few batches must be filled up."""
        of_user = 4 * len(self.join.model.heads) * max(1, len(self.join.states.hidden))
        return max(1, min(8 * self._n_users(), _AHEAD // of_user))

    def _n_users(self) -> int:
        n_tokens = max(1, len(self.join.states.hidden) * self.join.n_rows)
        return max(1, min(_MOST_USERS, self.step_tokens // n_tokens))

    @torch.inference_mode()
    def _started(self, users: Sequence[User]) -> _Chunk:
        """Launches all steps of the users; on a GPU nothing here waits for it."""
        longest = self.join.model.item_position  # no position of a user's lies behind it
        sides = np.array([min(longest, -(-len(ids) // _BUCKET) * _BUCKET) for ids, _ in users])
        left, steps, places = np.argsort(sides, kind="stable"), list[Tensor](), [(0, 0)] * len(users)
        while len(left):
            side, n_users = sides[left[0]], self._n_users()
            rows = left[:n_users]
            rows = rows[sides[rows] == side]
            logits = self._fitting([users[row] for row in rows], int(side), n_users)
            if logits is None:
                continue  # with fewer at a time
            left = left[len(rows) :]
            for place, row in enumerate(rows.tolist()):
                places[row] = len(steps), place
            on_host = torch.empty(logits.shape, pin_memory=self.on_gpu)
            steps.append(on_host.copy_(logits, non_blocking=True))
        done = torch.cuda.Event() if self.on_gpu else None  # type: ignore[no-untyped-call]
        if done is not None:
            done.record()
        return _Chunk(steps, places, done)

    def _fitting(self, users: Sequence[User], side: int, n_users: int) -> Tensor | None:
        """Logits (V, n_users, N) of users of at most `side` tokens, filled up to n_users.

        None when they did not fit the memory: steps are half as large from now on.
        """
        try:
            return self._logits(users, side, n_users)
        except (MemoryError, RuntimeError) as fault:
            if not is_out_of_memory(fault):
                raise
            if self.step_tokens // 2 < SMALLEST * self.join.n_rows:
                raise EnvironmentFault(
                    f"memory: got an allocation refused for a step of {self.step_tokens} tokens, expected room for "
                    f"{SMALLEST} items of a user; share the GPU among fewer tasks"
                ) from fault
            self.step_tokens //= 2
        gc.collect()  # behind the handler: the fault held the frames, and they the tensors
        if self.on_gpu:
            torch.cuda.empty_cache()
        return None

    def _logits(self, users: Sequence[User], side: int, n_users: int) -> Tensor:
        model, n_items = self.join.model, len(self.join.states.hidden)
        filled = [*users, *[users[0]] * (n_users - len(users))]
        ids = np.full((n_users, side), PAD)
        for row, (own, _) in enumerate(filled):
            ids[row, : len(own)] = own
        lengths = self._sent(np.array([len(own) for own, _ in filled]))
        tokens = [own for _, own in filled if own is not None]
        factors = self._sent(np.stack(tokens)) if tokens else None
        states = model.encode_users(self._sent(ids), lengths, factors)
        block = max(SMALLEST, self.step_tokens // self.join.n_rows // n_users)
        parts = [self.join.logits(states, start, min(start + block, n_items)) for start in range(0, n_items, block)]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _sent(self, values: npt.NDArray[Any]) -> Tensor:
        """On the device; from pinned memory, as the host would wait for the steps before it otherwise."""
        own = torch.from_numpy(values)
        return own.pin_memory().to(self.device, non_blocking=True) if self.on_gpu else own


def _arrived(chunk: _Chunk) -> Iterator[Scores]:
    if chunk.done is not None:
        chunk.done.synchronize()
    for step, row in chunk.places:
        yield chunk.steps[step][:, row].double().numpy()
