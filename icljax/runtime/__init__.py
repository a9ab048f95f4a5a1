"""What a process runs on: devices, several processes, commits, folders, progress, downloads.

Knows nothing of models or metrics. What is written here is what a kill, a full disk or a second job
may meet: change it with tests/runtime/test_resume.py beside you.
"""
