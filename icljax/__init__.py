"""Does in-context learning behave like finetuning? Measured, in JAX."""

__version__ = "0.1.0"
