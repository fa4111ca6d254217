"""One training technique per file, each a `LoopTrainer` that works alone; combine those that you need.

```python
class Lean(ModelEmaMixin, LookaheadMixin, TimmSchedulerMixin): ...
```
"""

from timm_accel.mixins.batch_norm import DistributedBatchNormMixin, SyncBatchNormMixin
from timm_accel.mixins.distillation import DistillationMixin
from timm_accel.mixins.eval_loss import EvalLossMixin
from timm_accel.mixins.freezing import FreezingMixin
from timm_accel.mixins.gradient_clipping import GradientClippingMixin
from timm_accel.mixins.lookahead import LookaheadMixin
from timm_accel.mixins.metrics import ClassificationMetricsMixin
from timm_accel.mixins.mixup import MixupMixin
from timm_accel.mixins.model_ema import ModelEmaMixin
from timm_accel.mixins.optimizer_mode import OptimizerModeMixin
from timm_accel.mixins.scheduled_resolution import ScheduledResolutionMixin
from timm_accel.mixins.scheduler import TimmSchedulerMixin
from timm_accel.mixins.second_order import SecondOrderMixin

__all__ = [
    "ClassificationMetricsMixin",
    "DistillationMixin",
    "DistributedBatchNormMixin",
    "EvalLossMixin",
    "FreezingMixin",
    "GradientClippingMixin",
    "LookaheadMixin",
    "MixupMixin",
    "ModelEmaMixin",
    "OptimizerModeMixin",
    "ScheduledResolutionMixin",
    "SecondOrderMixin",
    "SyncBatchNormMixin",
    "TimmSchedulerMixin",
]
