"""python -m icljax.reports DIR...: many results as one report."""

from icljax.runtime.terminal import end_on_interrupt

if __name__ == "__main__":  # before the imports below
    end_on_interrupt()

from icljax.reports.report import main
from icljax.runtime import terminal

if __name__ == "__main__":
    terminal.run(main)
