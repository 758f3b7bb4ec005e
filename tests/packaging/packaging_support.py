"""What is done on a machine once caiafs is installed there, one way or the other."""

SESSION = """set -e
mkdir /srv/notes
caiafs mount -o init /srv/notes.git /srv/notes
echo hello >/srv/notes/hello.txt
mkdir /srv/notes/more && cp -r /etc/apt /srv/notes/more/
caiafs commit -m 'First note' /srv/notes
caiafs config show /srv/notes | grep -q 'memory .*256 MiB .*default'
echo more >>/srv/notes/hello.txt
caiafs umount /srv/notes
test "$(git -C /srv/notes.git show main:hello.txt)" = "$(printf 'hello\\nmore')"
git -C /srv/notes.git fsck --strict
caiafs check /srv/notes.git
rm -rf /srv/notes /srv/notes.git
"""
