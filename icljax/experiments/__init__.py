"""One file each, with default(), validate() and run(): what a config may ask for.

An experiment reads like the paper's section and leaves the work to the rooms below.
"""
