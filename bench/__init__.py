"""The benchmark: caiafs and its peers at the same work, in one run.

`make bench` runs all of it, `make bench-quick` a form of a few minutes; `python -m bench --help`
has the rest. It measures and writes, and never decides a test.

    cases       what is measured, on whom, how much of it in which form
    work/       the work itself: functions of a directory, run by the driver
    driver      a process that runs one of them at a time and is killed when it hangs
    peers/      the filesystems that are compared: how each is started, settled and stopped
    session     rounds: every case on every peer in turn, so that a noisy minute hits all alike
    results     medians and spread; the JSON that is kept
    goals       what has to be reached, as ratios of two results
    report      docs/performance.md and its charts

Three choices make the figures comparable. One driver does the work for every peer, in one tight
loop on paths prepared beforehand. Rounds interleave. What a peer does after it has answered (a
commit, an upload, write-back) is waited for before the next one has its turn, and is told beside
the time, not hidden in somebody else's.
"""
