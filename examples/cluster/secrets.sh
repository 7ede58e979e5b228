#!/bin/sh
# Makes what the nodes of a cluster share, in this directory, readable by its owner alone:
#
#   token             for applications: nats://...?token-file=PATH/token
#   secrets.conf      the same for the nodes
#   cluster.pem       the certificate of all nodes; applications that use tls:// need it, too
#   cluster-key.pem   its key
#
# usage: sh secrets.sh [ADDRESS...]    the nodes' names or IP addresses; default 127.0.0.1
set -eu
umask 077
if [ -e token ] || [ -e cluster-key.pem ]; then
	echo "secrets.sh: token or cluster-key.pem is there already: remove both to make new ones, and restart every node" >&2
	exit 1
fi
[ $# -gt 0 ] || set -- 127.0.0.1
names=
for a; do
	case $a in
	*:*) names=$names,IP:$a ;;
	*[!0-9.]*) names=$names,DNS:$a ;;
	*) names=$names,IP:$a ;;
	esac
done
openssl rand -hex 32 >token
printf 'TOKEN: "%s"\n' "$(cat token)" >secrets.conf
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=tidings-cluster \
	-addext "subjectAltName=${names#,}" -addext extendedKeyUsage=serverAuth,clientAuth \
	-keyout cluster-key.pem -out cluster.pem 2>/dev/null
