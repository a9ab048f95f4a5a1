"""python -m icljax.models: see icljax/models/cached.py."""

from icljax.models.cached import main
from icljax.runtime import terminal

if __name__ == "__main__":
    terminal.run(main)
