"""Update Lookahead's slow weights before each evaluation."""

from typing import Any

import torch
from timm.optim import Lookahead

from timm_accel.training import LoopTrainer


class LookaheadMixin(LoopTrainer):
    """At the end of each training epoch, move Lookahead's slow weights towards the fast ones and continue from them.

    Evaluation, the best weights and the next epoch then all start from the slow weights. Does nothing with any other
    optimizer. timm's ``sync_lookahead()`` (1.0.31) skips every parameter without a gradient, and after ``zero_grad()``
    none has one; accelerate's wrapper (1.15) also hides the method.

    Source: Lookahead Optimizer, arXiv 1907.08610; ``timm.optim.Lookahead.update_slow``.
    """

    def train_epoch_end(self) -> None:
        optimizer = self.current_run().unwrapped_optimizer
        if isinstance(optimizer, Lookahead):
            _sync(optimizer)
        super().train_epoch_end()


@torch.no_grad()
def _sync(optimizer: Any) -> None:
    state = optimizer._base_optimizer.state  # timm gives no other way to the slow weights
    stateless = not state  # plain SGD before its first slow weights
    for group in optimizer.param_groups:
        for fast in group["params"]:
            if not (stateless or fast in state):  # never updated: Adam would mistake our buffer for its state
                continue
            slow = state[fast].setdefault("lookahead_slow_buff", fast.detach().clone())
            slow.add_(fast - slow, alpha=group["lookahead_alpha"])
            fast.copy_(slow)
