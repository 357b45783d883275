"""Google BERT's `create_pretraining_data.py`, its code unchanged, on a TensorFlow of today.

    ENVIRONMENT/bin/python benchmarks/bert_pretraining_data.py FOLDER --input_file=… --output_file=…

FOLDER has `create_pretraining_data.py` and `tokenization.py` of github.com/google-research/bert,
which were written for TensorFlow 1. TensorFlow 2 still carries that interface as
`tensorflow.compat.v1`, and here it goes by the name `tensorflow`: flags, files, the examples and
the writer of records are TensorFlow's own. The last line tells the processor's seconds: those of
the whole process, and those until the script's own `main` began.
"""

import atexit
import json
import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv.pop(1))
    import tensorflow.compat.v1 as tensorflow_1

    sys.modules["tensorflow"] = tensorflow_1
    sys.path.insert(0, str(folder))
    started = time.process_time()
    atexit.register(
        lambda: print(json.dumps({"all": time.process_time(), "until_main": started}), flush=True)
    )
    runpy.run_path(str(folder / "create_pretraining_data.py"), run_name="__main__")


if __name__ == "__main__":
    main()
