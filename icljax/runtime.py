"""How JAX is set up for a job, in one place."""

import jax

from icljax import assets


def set_up() -> None:
    """Turns on the persistent compilation cache, so that a second job starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
