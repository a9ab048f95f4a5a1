"""The decoder, the model families as data, and published sizes.

One decoder for every family; it knows no settings, no meshes and no files. A family is a row of a
table in `family_tables`.
"""
