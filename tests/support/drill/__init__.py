"""Drills: a mount under load is killed, loses its disk or its repository, and must have lost nothing.

    model      what a writer's folder must hold: operations, applied to memory as to a directory
    writers    the processes that make the load, and what they were promised
    forks      daemons without the start of an interpreter: many kills a minute
    moments    named places in daemon and worker at which a process ends
    history    the commits of a repository against what was done
    kill       rounds of load, kill, recovery and proof
    faults     what a long run does to the repository, the disk and the worker besides killing

tests/crash has the tests and `run.py`, the command behind `make crash` and `make soak`.
Promises are recorded outside of the mount by the process to which they were made.
"""
