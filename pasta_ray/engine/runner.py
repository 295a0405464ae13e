"""From scheduled tokens to tensors, and through the model.

Axes as in :mod:`pasta_ray.engine.model`.
"""

import numpy as np
import numpy.typing as npt
import torch

from pasta_ray.engine.model import DecoderModel, RequestRows
from pasta_ray.engine.scheduler import RequestFeeds


class Runner:
    """Runs one batch of several requests' tokens as one forward pass."""

    def __init__(self, model: DecoderModel) -> None:
        self.model = model

    def run(self, batch: list[RequestFeeds]) -> torch.Tensor:
        """Logits, float32 [R, V]: for each feed in order, those of its last ``num_logits`` rows."""
        ids: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        requests: list[RequestRows] = []
        for feeds in batch:
            start = len(ids)
            slots: list[int] = []
            for feed in feeds:
                branch, fed = feed.branch, slice(feed.branch.num_fed, feed.branch.num_fed + feed.num_tokens)
                ids += branch.tokens[fed]
                positions += branch.positions[fed]
                slots += branch.slots[fed]
                logit_rows += range(len(ids) - feed.num_logits, len(ids))
            slab = feeds[0].branch.slab
            masks = self._masks(feeds, np.array(positions[start:]))
            requests.append(RequestRows(slab, start, len(ids), self._tensor(slots), masks))
        return self.model.forward(self._tensor(ids), self._tensor(positions), requests, self._tensor(logit_rows))

    def _masks(self, feeds: RequestFeeds, positions_T: npt.NDArray[np.int64]) -> dict[int | None, torch.Tensor]:
        """Additive [Q, S], one for each window: a token sees nothing that stands ``window`` or more before it."""
        shape, num_groups = self.model.kv_shape, self.model.num_heads // self.model.num_kv_heads
        visible_TS = self._visible(feeds)
        positions_S = feeds[0].branch.slab.positions_S[: visible_TS.shape[1]]
        masks = {}
        for window in self.model.windows:
            seen_TS = visible_TS if window is None else visible_TS & (positions_T[:, None] - positions_S < window)
            mask_TS = torch.from_numpy(np.where(seen_TS, np.float32(0.0), np.float32("-inf")))
            masks[window] = mask_TS.to(shape.device, shape.dtype).repeat(num_groups, 1)
        return masks

    def _visible(self, feeds: RequestFeeds) -> npt.NDArray[np.bool_]:
        """Bool [T, S]: each token sees its branch's row without the tokens that come later in the branch, and without
        what a join brings to the tokens behind it."""
        slab = feeds[0].branch.slab
        rows = np.repeat([feed.branch.row for feed in feeds], [feed.num_tokens for feed in feeds])
        visible_TS = slab.visible_BS[rows, : slab.end]
        start = 0
        for feed in feeds:
            stop = start + feed.num_tokens
            if feed.branch.num_pending > 1:
                own = feed.slots + feed.unfed_slots
                visible_TS[start:stop, own] = np.tri(feed.num_tokens, len(own), dtype=np.bool_)
            for first, slots in feed.branch.joins:
                if first > feed.branch.num_fed:
                    visible_TS[start : min(stop, start + first - feed.branch.num_fed), slots] = False
            start = stop
        num_seen = int(np.flatnonzero(visible_TS.any(axis=0))[-1]) + 1
        return visible_TS[:, :num_seen]

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.kv_shape.device)
