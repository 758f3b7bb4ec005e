"""The committer: turns what the journal holds into git commits, beside the mount.

    schedule    when to commit, what to do when git refuses, what came from outside   (trio)
    process     the worker process: start it, ask it, notice when it dies             (trio)
    worker      the process itself: objects, side ref, branch                         (blocking)
    build       from a batch to trees                                                 (blocking)
    message     what a commit is called                                               (pure)

mount.py starts a `schedule.Committer`. The worker's modules do without trio and pyfuse3,
so that it starts quickly and stays small.
"""
