#!/bin/sh
# A worker in POSIX shell. It works through the files that are put into a
# directory, and removes each once it is done:
#
#	tidings run -n 2 -- ./worker.sh /var/spool/orders
#
# A shell cannot send datagrams: systemd-notify (Debian's package systemd) does.
# Without it any other tool will do, such as
#	printf READY=1 | socat - "UNIX-SENDTO:$NOTIFY_SOCKET"
#
# QUIT ends it when the file in hand is done; so does the end of its master. TERM
# and INT end it at once.
set -u
inbox=$1
told= nap=

# By "wait" a shell waits for what it has started and, unlike by calling it, acts on
# signals meanwhile.
nap() {
	sleep 1 >/dev/null 2>&1 &
	nap=$!
	wait "$nap"
}
trap 'told=QUIT' QUIT
trap 'exit 0' TERM INT
trap 'kill $watch $nap 2>/dev/null' EXIT
trap 'systemd-notify --status="logs opened again"' USR1

# The pipe ends when the master does.
watch=
if [ "${TIDINGS_PARENT_FD:-}" ]; then
	( read -r _ <&"$TIDINGS_PARENT_FD"; kill -QUIT $$ ) >/dev/null 2>&1 &
	watch=$!
fi

work() { # FILE
	# Whoever can rename it has it: there are other workers.
	mv "$1" "$1.taken.$$" 2>/dev/null || return 0
	printf '%s by %s\n' "$(cat "$1.taken.$$")" $$ >>"$inbox/../done"
	rm "$1.taken.$$"
}

systemd-notify --ready --status="works through $inbox"
while [ ! "$told" ]; do
	for file in "$inbox"/*.order; do
		[ "$told" ] || [ ! -e "$file" ] || work "$file"
	done
	[ "$told" ] || nap
done
systemd-notify STOPPING=1 --status="ends: $told"
