#!/bin/bash
# A Ceph RADOS Gateway for the tests: real S3 that checks every signature, path and subdomain style, http and https.
#
#   .ci/ceph.sh start DIR    installs what is missing (Debian's packages, as root), starts, prints lines to eval:
#                            ENDPOINT ACCESS_KEY SECRET_KEY REGION BUCKET VHOST_SUFFIX TLS_ENDPOINT TLS_VHOST_SUFFIX CA
#                            STS (tokens for web identities, https) NO_LIST (a user's two keys, who may not list the bucket)
#   .ci/ceph.sh stop DIR
#
# One monitor, one OSD that keeps its objects in memory, one gateway. Everything is in DIR and listens on 127.0.0.1 only,
# on TEST_CEPH_PORT (28000) and ports above it: +443 https, +91 monitor, +100 to +140 OSD.
# The host of a bucket is BUCKET.VHOST_SUFFIX; few resolvers know it: it is 127.0.0.1. (The gateway takes any other name
# that a request comes to for a bucket: https://localhost would be the bucket "localhost".)
set -u
PORT=${TEST_CEPH_PORT:-28000}
TLS=$((PORT + 443)) MON=$((PORT + 91))
NAME=s3.localhost
FSID=5e1f1ab0-0000-4000-8000-0000000028ce
ACCESS=TESTCEPHACCESSKEY001 SECRET='testCephSecret/Key+0001abcdefghijklmnopq'
ACCESS2=TESTCEPHACCESSKEY002 SECRET2='testCephSecret/Key+0002abcdefghijklmnopq'
export CEPH_ARGS=

say() { printf '%s\n' "ceph: $*" >&2; }
fail() { say "$*"; exit 1; }

packages() {
  local missing=() p
  for p in ceph-mon ceph-osd radosgw ceph-common openssl curl; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] || fail "needs the packages ${missing[*]}"
  say "installing ${missing[*]}"
  local get="apt-get -o DPkg::Lock::Timeout=300 -qq" install="install -y --no-install-recommends"
  export DEBIAN_FRONTEND=noninteractive
  # A new machine's package lists are missing or old, and then the first try fails.
  $get $install "${missing[@]}" >"$DIR/apt.log" 2>&1 ||
    { $get update && $get $install "${missing[@]}"; } >>"$DIR/apt.log" 2>&1 ||
    { tail -n 20 "$DIR/apt.log" >&2; fail "apt-get could not install ${missing[*]}"; }
}

# A CA and a certificate from it. Python 3.13 and later insist on the key identifiers, and openssl's versions differ in
# adding them unasked: every extension is written out.
certificates() {
  local key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
  cat >"$DIR/openssl.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = minis3storage test
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, DNS:*.localhost, DNS:$NAME, DNS:*.$NAME, IP:127.0.0.1
END
  (
    cd "$DIR" || exit
    openssl req -config openssl.cnf -extensions ca -x509 $key -days 30 -keyout ca.key -out ca.pem &&
      openssl req -config openssl.cnf -new $key -subj /CN=localhost -keyout key.pem -out request.pem &&
      openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
        -extfile openssl.cnf -extensions server -out cert.pem
  ) >"$DIR/openssl.log" 2>&1 || fail "no certificate, see $DIR/openssl.log"
}

configuration() {
  cat >"$DIR/ceph.conf" <<END
[global]
fsid = $FSID
mon host = v2:127.0.0.1:$MON
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = $((PORT + 100))
ms bind port max = $((PORT + 140))
auth cluster required = none
auth service required = none
auth client required = none
keyring = $DIR/keyring
run dir = $DIR
crash dir = $DIR/crash
admin socket = $DIR/\$name.asok
log file = $DIR/\$name.log
mon cluster log file = $DIR/cluster.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail warn = 2
mon data avail crit = 1
[mon]
mon data = $DIR/mon
paxos propose interval = 0.1
paxos min wait = 0.05
[osd]
osd data = $DIR/osd
osd objectstore = memstore
memstore device bytes = 8589934592
[client.rgw.test]
rgw data = $DIR/rgw
rgw frontends = beast endpoint=127.0.0.1:$PORT ssl_endpoint=127.0.0.1:$TLS ssl_certificate=$DIR/cert.pem ssl_private_key=$DIR/key.pem
rgw dns name = $NAME
rgw enable apis = s3, sts, iam
rgw s3 auth use sts = true
rgw sts key = testStsKey123456
rgw thread pool size = 48
# Give the memory of deleted objects back after seconds, not hours.
rgw gc obj min wait = 5
rgw gc processor period = 5
# Unlike the other daemons the gateway asks for an encrypted connection to the monitor, which takes keys.
ms mon client mode = crc
END
  : >"$DIR/keyring"
}

# daemon NAME COMMAND...: start it, out of reach of this shell's signals, and write down its process id
daemon() {
  local name=$1; shift
  setsid nohup "$@" --conf "$DIR/ceph.conf" >"$DIR/$name.out" 2>&1 </dev/null &
  echo $! >"$DIR/$name.pid"
}

# runs NAME: the process of that id still is this DIR's daemon (ids are used again)
runs() {
  local id; id=$(cat "$DIR/$1.pid" 2>/dev/null) && [ -r "/proc/$id/cmdline" ] || return 1
  tr '\0' ' ' <"/proc/$id/cmdline" | grep -qF -- "--conf $DIR/ceph.conf"
}

# within SECONDS COMMAND...: repeat it until it succeeds
within() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
gone() { ! runs "$1"; }
osd_up() { timeout 20 ceph --conf "$DIR/ceph.conf" osd stat | grep -q '1 up'; }

# put PATH BODY: over https, so that the certificate is tried too. curl before 8 does not send the header.
put() {
  curl -sS --fail --noproxy '*' --max-time 60 --cacert "$DIR/ca.pem" --aws-sigv4 aws:amz:us-east-1:s3 --user "$ACCESS:$SECRET" \
    -H "x-amz-content-sha256: $(printf %s "$2" | sha256sum | cut -d ' ' -f 1)" -X PUT --data-binary "$2" "https://127.0.0.1:$TLS/$1" >&2
}

start() {
  local p
  for p in $PORT $TLS $MON; do ! listens $p || fail "port $p is taken; set TEST_CEPH_PORT"; done
  [ ! -e "$DIR/ceph.conf" ] || fail "$DIR was used before"
  packages
  certificates
  configuration
  local conf="--conf $DIR/ceph.conf" log="$DIR/setup.log"
  monmaptool --create --fsid $FSID --addv a "[v2:127.0.0.1:$MON]" "$DIR/monmap" >"$log" 2>&1 &&
    ceph-mon $conf --mkfs -i a --monmap "$DIR/monmap" >>"$log" 2>&1 || fail "no monitor, see $log"
  daemon mon ceph-mon -f -i a
  within 30 listens $MON || fail "the monitor does not listen, see $DIR/mon.out"
  mkdir "$DIR/osd"
  timeout 60 ceph $conf osd create $FSID >>"$log" 2>&1 &&
    ceph-osd $conf -i 0 --mkfs --osd-uuid $FSID >>"$log" 2>&1 || fail "no OSD, see $log"
  daemon osd ceph-osd -f -i 0
  within 60 osd_up || fail "the OSD is not up, see $DIR/osd.out"
  timeout 120 radosgw-admin $conf --name client.rgw.test user create --uid test --display-name test \
    --access-key "$ACCESS" --secret-key "$SECRET" --caps 'oidc-provider=*;roles=*' >>"$log" 2>&1 &&
    timeout 120 radosgw-admin $conf --name client.rgw.test user create --uid other --display-name other \
      --access-key "$ACCESS2" --secret-key "$SECRET2" >>"$log" 2>&1 || fail "no users, see $log"
  daemon rgw radosgw -f --name client.rgw.test
  within 60 listens $TLS || fail "the gateway does not listen, see $DIR/rgw.out"
  put test '' || fail "no bucket, see $DIR/client.rgw.test.log"
  put 'test?policy=' '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/other"]},
    "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": ["arn:aws:s3:::test/*"]}]}' || fail "no policy"
  say "ready in $SECONDS s"
  cat <<END
ENDPOINT=http://127.0.0.1:$PORT
ACCESS_KEY=$ACCESS
SECRET_KEY=$SECRET
REGION=us-east-1
BUCKET=test
VHOST_SUFFIX=$NAME:$PORT
TLS_ENDPOINT=https://127.0.0.1:$TLS
TLS_VHOST_SUFFIX=$NAME:$TLS
CA=$DIR/ca.pem
STS=https://127.0.0.1:$TLS
NO_LIST="$ACCESS2 $SECRET2"
END
}

stop() {
  local name
  for name in rgw osd mon; do
    runs $name && kill "$(cat "$DIR/$name.pid")"
    within 15 gone $name || kill -KILL "$(cat "$DIR/$name.pid")"
    rm -f "$DIR/$name.pid"
  done
}

[ $# = 2 ] || fail "usage: ceph.sh start|stop DIR"
mkdir -p "$2" && DIR=$(cd "$2" && pwd) || exit 1
case $1 in
  start) (start) || { stop; exit 1; } ;;
  stop) stop ;;
  *) fail "usage: ceph.sh start|stop DIR" ;;
esac
