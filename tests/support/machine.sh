#!/bin/sh
# The way from a bare process to a booted systemd, in namespaces; machine.py starts it and says what W, R … are.
#
#   W  a directory of this machine's own: lib (units), generators, root (where the new root is built),
#      files (copied over the new root), prepare (run inside before systemd)
#   D  what survives from boot to boot; it is /srv inside
#   CG the control group that is to be ours
#   BINDS  directories that are on other filesystems than /, one a line
set -eu
m() { mount -n "$@"; }
case $1 in
join) # the first process of the new pid namespace: into our control group, then a namespace rooted there
    echo 0 >"$CG/cgroup.procs"
    exec unshare --cgroup "$0" build
    ;;
build)
    R=$W/root
    m -t tmpfs -o mode=755,size=256m machine "$W/upper"
    mkdir "$W/upper/up" "$W/upper/work"
    m -t overlay -o "lowerdir=/,upperdir=$W/upper/up,workdir=$W/upper/work" machine "$R"
    m -t proc -o nosuid,nodev,noexec proc "$R/proc"
    m --bind "$R/proc/sys" "$R/proc/sys"
    m -o remount,bind,ro "$R/proc/sys"
    m -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys"
    m -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
    m -t tmpfs -o mode=755,nosuid dev "$R/dev"
    mkdir "$R/dev/pts" "$R/dev/shm"
    for device in null zero full random urandom tty autofs; do
        : >"$R/dev/$device"
        m --bind "/dev/$device" "$R/dev/$device"
    done
    mknod -m 666 "$R/dev/fuse" c 10 229 # open to everyone, whatever the host's is
    m -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$R/dev/pts"
    m -t tmpfs -o mode=1777 shm "$R/dev/shm"
    ln -s pts/ptmx "$R/dev/ptmx"
    ln -s /proc/self/fd "$R/dev/fd"
    ln -s fd/0 "$R/dev/stdin"
    ln -s fd/1 "$R/dev/stdout"
    ln -s fd/2 "$R/dev/stderr"
    m -t tmpfs -o mode=755,nosuid,nodev run "$R/run"
    m --bind "$W/lib" "$R/usr/lib/systemd/system"
    m --bind "$W/generators" "$R/usr/lib/systemd/system-generators"
    m -t tmpfs -o mode=755 units "$R/etc/systemd/system"
    m --bind "$D" "$R/srv"
    printf '%s\n' "$BINDS" | while read -r directory; do
        [ -z "$directory" ] || { mkdir -p "$R$directory" && m --bind "$directory" "$R$directory"; }
    done
    cp -a "$W/files/." "$R/"
    cd "$R"
    mkdir .old
    pivot_root . .old
    cd /
    umount -n -l /.old
    rmdir /.old
    m --make-rshared /
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
    sh -eu /prepare
    exec env -i PATH="$PATH" LANG="$LANG" container=caiafs-test \
        /lib/systemd/systemd --system --unit=multi-user.target --show-status=no </dev/null
    ;;
esac
