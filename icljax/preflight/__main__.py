"""python -m icljax.preflight: see icljax/preflight/check.py."""

from icljax.runtime.terminal import end_on_interrupt

end_on_interrupt()  # before the imports below, which take seconds

from icljax.preflight import check

if __name__ == "__main__":
    check.run()
