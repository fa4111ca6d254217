"""One rank of `test_consensus.py`: syncs requests of each rank and of several, then loses the last rank."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch import distributed

from benchmarks.collectives import recorded
from timm_accel.distributed.connections import lost_connection_explained
from timm_accel.distributed.consensus import Consensus, Stop
from timm_accel.distributed.processes import process_state


def found(requests: dict[int, Callable[[Consensus], Any]], later: Callable[[Consensus], Any] | None = None) -> Any:
    """What this rank learns of the requests of some ranks and of the last one before all act; then nothing is left."""
    rank, last = distributed.get_rank(), distributed.get_world_size() - 1
    consensus = Consensus(last + 1)
    requests.get(rank, lambda _: None)(consensus)
    agreed = [consensus.sync(lambda: later(consensus) if later and rank == last else None) for _ in range(2)]
    return [None if agreed[0].stop is None else agreed[0].stop.name, *agreed[0][1:], any(agreed[1])]


def stop(kind: Stop, reason: str) -> Callable[[Consensus], None]:
    return lambda consensus: consensus.request_stop(kind, reason)


def save(milestone: bool) -> Callable[[Consensus], None]:
    return lambda consensus: consensus.request_save(milestone, everywhere=False)


def check_requests() -> dict[str, Any]:
    count = distributed.get_world_size()
    last = count - 1
    with_outcome = {0: save(False), last: lambda consensus: consensus.request_outcome()}
    return {
        "none": found({}),
        "stop of one": [found({rank: stop(Stop.FINISHED, f"by {rank}")}) for rank in range(count)],
        "save of one": [found({rank: save(True)}) for rank in range(count)],
        "outcome of one": [found({rank: lambda consensus: consensus.request_outcome()}) for rank in range(count)],
        "two kinds": found({0: stop(Stop.INTERRUPTED, "a signal"), last: stop(Stop.FINISHED, "enough")}),
        "one kind": found({rank: stop(Stop.FAILED, f"by {rank}") for rank in range(1, count)}),
        "save and outcome": found(with_outcome),
        "stop and save": found({0: stop(Stop.INTERRUPTED, "a signal"), last: save(True)}),
        "failure before a save": found({0: save(False)}, later=stop(Stop.FAILED, "late")),
        "signal before a stop": found({0: stop(Stop.FINISHED, "enough")}, later=stop(Stop.INTERRUPTED, "late")),
    }


class Late:
    """A receipt that is announced 0.3 s late."""

    def __init__(self, announce: Callable[[], Any]) -> None:
        self.announce = announce

    def wait(self) -> None:
        time.sleep(0.3)
        self.announce().wait()


def check_late() -> Any:
    """Rank 1 announces late what it receives; of 6 ranks rank 0, which sends to it, has learned all before."""
    receive = distributed.irecv
    if distributed.get_rank() == 1:
        distributed.irecv = lambda *args, **kwargs: Late(lambda: receive(*args, **kwargs))
    result = found({0: save(False)})
    distributed.irecv = receive
    return result


def check_messages() -> list[Any]:
    """What an exchange without a request sends and receives."""
    consensus = Consensus(distributed.get_world_size())
    return recorded(lambda: consensus.sync(lambda: None))


def lose(folder: Path, how: str) -> str:
    """Sync with all but the last rank, which is gone or silent; return the error."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    if rank == count - 1:
        while how == "silent" and len(list(folder.glob(f"{how}_{count}_*.json"))) < count - 1:
            time.sleep(0.05)
        os._exit(0)
    try:
        with lost_connection_explained():
            Consensus(count).sync(lambda: None)
    except ConnectionError as error:
        return str(error)
    return ""


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    count = process_state().num_processes
    results: dict[str, Any] = {"requests": check_requests(), "messages": check_messages(), "late": check_late()}
    distributed.barrier()
    began = time.monotonic()
    results |= {"lost": lose(folder, how), "seconds": time.monotonic() - began}
    part = folder / f"part_{distributed.get_rank()}"
    part.write_text(json.dumps(results))
    part.rename(folder / f"{how}_{count}_{distributed.get_rank()}.json")
    os._exit(0)  # without the last rank the group cannot be ended
