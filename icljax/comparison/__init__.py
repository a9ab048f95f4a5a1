"""Prompts and updates on queries: inputs, forward passes, finetuning, similarities, statistics.

ZSL, ICL and FT are one function with different (params, state). Programs have static shapes and
compile once; reductions run on the device.
"""
