"""Signals of schedulers and terminals, in real processes: the run saves a state, and exits with code 75."""

import os
import pty
import signal
import sys
from pathlib import Path

import pytest
from resumed_runs import make_run, positions, run_script, same_outcome, train

RUN = """
import os, signal, sys, time
from pathlib import Path
import torch
from resumed_runs import Noting, make_run, train

class Signaled(Noting):
    def calculate_train_batch_loss(self, batch):
        if len(self.images) == 2:
            {action}
        return super().calculate_train_batch_loss(batch)

torch.set_num_threads(1)
{before}
train(make_run(Path(sys.argv[1]), Signaled), train_dataloader_kwargs={{"num_workers": 2, "prefetch_factor": 1}})
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGTERM"])
def test_a_signal_to_all_processes_of_a_job_saves_and_exits_with_code_75(name: str, tmp_path: Path) -> None:
    action = f"os.killpg(0, signal.{name})"  # the loader workers too
    result = run_script(tmp_path, RUN.format(action=action, before=""))
    assert result.returncode == 75, result.stderr
    assert "Traceback" not in result.stderr
    assert f"Received {name}." in result.stdout
    assert positions(tmp_path / "run")[-1] == "0.3"
    train(make_run(tmp_path / "whole"))
    train(make_run(tmp_path / "run"), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "run") is None


@pytest.mark.parametrize(
    "before", ["signal.signal(signal.SIGHUP, signal.SIG_IGN)", "signal.signal(signal.SIGHUP, lambda *_: None)"]
)
def test_sighup_that_is_ignored_or_handled_by_the_user_stays_so(before: str, tmp_path: Path) -> None:
    script = RUN.format(action="os.kill(os.getpid(), signal.SIGHUP)", before=before)
    result = run_script(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert positions(tmp_path / "run")[-1] == "3.0"


def test_a_closed_terminal_ends_the_run_with_a_state(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    action = "print('now', flush=True); [time.sleep(0.01) for _ in range(3000) if os.isatty(1)]"  # until it is handled
    script.write_text(RUN.format(action=action, before="sys.stderr.isatty() or sys.exit(9)"))
    process, terminal = pty.fork()
    if process == 0:
        path = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        os.execve(sys.executable, [sys.executable, str(script), str(tmp_path / "run")], environment)
    shown = b""
    while b"now" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 75, shown
    assert positions(tmp_path / "run")[-1] == "0.3"


def test_handlers_are_restored_after_the_run(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    train(make_run(tmp_path), num_epochs=1)
    assert [signal.getsignal(number) for number in numbers] == before
