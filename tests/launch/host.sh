# PID 1 of a host of cluster.py: sets the host up, starts its sshd, and stays.
# In the environment: NAME, CLUSTER and HOST (folders), SSHD; arguments: folders to be private.
set -e
hostname "$NAME"
mount --bind "$CLUSTER/hosts" /etc/hosts
mount --bind "$CLUSTER/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$CLUSTER/ssh_config" /etc/ssh/ssh_config
# The user's own configuration would win; there is no other way to tell ssh to leave it.
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=2g tmpfs /dev/shm
for folder in "$@"; do
    mkdir -p "$HOST/private$folder"
    mount --bind "$HOST/private$folder" "$folder"
done
mkdir -p /run/sshd
export HOME="$HOST/home"
"$SSHD" -D -e -f "$HOST/sshd_config" 2>>"$HOST/sshd.log" &
touch "$HOST/booted"
wait  # this shell is PID 1 of the host: it reaps orphans, and when it is killed all are
