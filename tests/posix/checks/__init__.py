"""What POSIX and Linux promise of a filesystem, as functions of a directory.

A check gets a fresh, empty directory and raises if a promise is broken. It knows nothing of what is
behind the directory, so plain tmpfs is its control. Tables multiply a check over kinds of files,
system calls and errnos; test_posix.py runs them all.
"""
