"""Will a job fit, and how long will it take: before anything is paid for.

Compiles the job's own programs for chips that need not be there, or estimates them from shapes.
"""
