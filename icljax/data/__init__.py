"""Tasks, sources, prompts and corpora: from a user's files to tokens of static shape.

A label means one thing, a prompt has the tokens of its text, and examples are told apart by their
texts. No model is known here, only a tokenizer.
"""
