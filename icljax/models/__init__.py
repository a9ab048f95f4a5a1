"""The decoder, the model families as data, published sizes, and models by name.

One decoder for every family; it knows no settings, no meshes and no files. A family is a row of a
table in `family_tables`, a model that the package index has a row of `named`.
"""
