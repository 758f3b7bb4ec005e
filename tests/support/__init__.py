"""What the tests share: mounts that clean up after themselves, other users, system calls, snapshots."""
