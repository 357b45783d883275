"""`python -m lert_ds COMMAND …`, and `deepspeed --module lert_ds COMMAND …`."""

from lert_ds.cli import main

if __name__ == "__main__":
    main()
