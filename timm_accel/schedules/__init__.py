"""Learning-rate schedules without a trainer: timm's, fitted to a run, and their simulation."""

from timm_accel.schedules.arguments import SCHEDULERS, check_scheduler_args
from timm_accel.schedules.fitting import check_fits, create_schedule
from timm_accel.schedules.simulation import SimulatedSchedule, simulate_schedule

__all__ = [
    "SCHEDULERS",
    "SimulatedSchedule",
    "check_fits",
    "check_scheduler_args",
    "create_schedule",
    "simulate_schedule",
]
