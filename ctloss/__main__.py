"""``python -m ctloss``, the same as the command ``ctloss``."""

from .command.entry import run

if __name__ == "__main__":
    run()
