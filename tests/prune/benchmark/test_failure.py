import pickle
import subprocess
import sys

from prune.benchmark.failure import Failure


def test_it_means_the_same_to_both_ends_of_the_pipe() -> None:
    program = (
        "import sys, pickle\n"
        "import prune.benchmark.worker as worker\n"
        "sys.stdout.buffer.write(pickle.dumps(worker.Failure('no', True)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert pickle.loads(done.stdout) == Failure("no", True)
    assert isinstance(pickle.loads(done.stdout), Failure)
