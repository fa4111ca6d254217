"""A run needs nothing that only some systems have."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
SCRIPT = """
import errno, os, signal, sys
import psutil, torch, torchmetrics, accelerate, timm  # they may use what their system has
for name in ("sched_getaffinity", "EX_TEMPFAIL", "getpgid", "mkfifo", "pread"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
    delattr(signal, name)
del errno.EDQUOT
sys.modules["resource"] = None
from tiny_runs import fit, make_trainer, tiny_data
from timm_accel.callbacks import CsvHistoryCallback, SaveStateCallback
from timm_accel.data.resources import available_cpus

def lock_cannot_be_touched(name, arguments):  # Windows neither writes nor removes an open file that is locked
    if (name == "open" and arguments[1] == "w") or name == "os.remove":
        if os.path.basename(str(arguments[0])) == "lock":
            raise PermissionError(errno.EACCES, "Permission denied", arguments[0])

sys.addaudithook(lock_cannot_be_touched)
assert available_cpus() == os.cpu_count()
spawned = {"num_workers": 1, "multiprocessing_context": "spawn"}  # as on macOS and Windows
for options in ({"train_dataloader_kwargs": spawned, "num_epochs": 1}, {"resume_from": "auto", "num_epochs": 3}):
    fit(make_trainer(run_dir=sys.argv[1], callbacks=[CsvHistoryCallback, SaveStateCallback()]), **options)
"""


def test_a_run_without_what_posix_alone_has_saves_and_resumes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 4
