"""Results -> tables, figures and pages.

Reads results alone: no model, no data, no devices. What a thing is called and how it is read is in
`catalog`, how its numbers are written in `text`.
"""
