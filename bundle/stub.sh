#!/bin/sh
# sd-worker @VERSION@: a shell program in front of a gzipped tar that holds the worker and a Python of its own.
#
# At the first call it unpacks the archive into a folder named by its content and runs the program in there, in place of
# itself; later calls find the folder and run the program at once. The folder is BASE/@NAME@, where BASE is
#   $SD_WORKER_BUNDLE_DIR             when it is set, else
#   @ROOT_BASE@                    when it is there already or can be made, else
#   ${TMPDIR:-/tmp}/sd-worker-UID
# A folder counts only when root or the caller owns it and nobody else can write to it. It appears by one rename when it is
# whole, so that two first calls at once and a call killed half way do no harm.
#
# The archive alone: tail -c +OFFSET sd-worker | tar -xz
OFFSET=@OFFSET@
SHA256=@SHA256@
NAME=@NAME@
LOADER=@LOADER@
GLIBC=@GLIBC@
MEGABYTES=@MEGABYTES@
ROOT_BASE=@ROOT_BASE@
FAILED=70

fail() {
    echo "sd-worker: $1" >&2
    exit "$FAILED"
}

# Says in $reason why the folder $1 cannot be trusted; true when it can.
trusted() {
    reason=
    if [ -L "$1" ]; then reason="is a symbolic link"; return 1; fi
    if [ ! -d "$1" ]; then reason="is not there"; return 1; fi
    # shellcheck disable=SC2046
    set -- "$1" $(stat -c '%u %a' "$1" 2>/dev/null)
    if [ "$2" != 0 ] && [ ! -O "$1" ]; then reason="belongs to user ${2:-unknown}"; return 1; fi
    case $3 in
    *[2367]? | *[2367] | "") reason="can be written by others (mode ${3:-unknown})"; return 1 ;;
    esac
}

start() {
    home=$1
    shift
    unset SD_WORKER_BUNDLE_DIR
    exec "$home/bin/sd-worker" -I -m worker "$@"
}

# Makes $1 a folder that nobody else can write to, unless it is one; says why not in $reason.
made() {
    [ -e "$1" ] || [ -L "$1" ] || (umask 022 && mkdir -p "$1") 2>/dev/null
    trusted "$1" || return 1
    [ -w "$1" ] || { reason="cannot be written"; return 1; }
}

unpack() {
    base=$1
    [ -e "$LOADER" ] || fail "this file needs glibc and $LOADER, which this system does not have"
    for tool in tar gzip tail mktemp; do
        command -v "$tool" >/dev/null || fail "$tool is needed to unpack, and is not there"
    done
    [ -r "$0" ] || fail "$0 cannot be read, so it cannot be unpacked"
    find "$base" -mindepth 1 -maxdepth 1 -name '.unpacking.*' -mmin +60 -exec rm -rf {} + 2>/dev/null
    umask 022
    new=$(mktemp -d "$base/.unpacking.XXXXXX") || fail "no folder can be made in $base"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    chmod 755 "$new"
    if command -v sha256sum >/dev/null && [ "$(tail -c "+$OFFSET" "$0" | sha256sum)" != "$SHA256  -" ]; then
        fail "$0 is damaged (its SHA-256 differs): get it anew"
    fi
    said=$(tail -c "+$OFFSET" "$0" | tar -xzo -f - -C "$new" 2>&1) ||
        fail "cannot unpack into $base: $said
It takes $MEGABYTES MB. SD_WORKER_BUNDLE_DIR names another folder; an image unpacks while it is built (RUN sd-worker version)."
    said=$("$new/bin/sd-worker" -I -c 'import os, sys; os.rename(*sys.argv[1:])' "$new" "$base/$NAME" 2>&1) ||
        trusted "$base/$NAME" ||
        fail "cannot run what was unpacked into $base: $said
If the folder is mounted noexec, let SD_WORKER_BUNDLE_DIR name one that is not. This file needs glibc $GLIBC or later."
    rm -rf "$new"
    trap - EXIT HUP INT TERM
}

chosen() {
    if [ -n "$SD_WORKER_BUNDLE_DIR" ]; then
        made "$SD_WORKER_BUNDLE_DIR" || fail "SD_WORKER_BUNDLE_DIR=$SD_WORKER_BUNDLE_DIR $reason"
        base=$SD_WORKER_BUNDLE_DIR
    elif made "$ROOT_BASE"; then
        base=$ROOT_BASE
    else
        refused=$reason
        made "$own" || fail "there is no folder to unpack into: $ROOT_BASE $refused, $own $reason. SD_WORKER_BUNDLE_DIR names another"
        base=$own
    fi
}

case $SD_WORKER_BUNDLE_DIR in
"" | /*) ;;
*) SD_WORKER_BUNDLE_DIR=$PWD/$SD_WORKER_BUNDLE_DIR ;;
esac
if [ -z "$SD_WORKER_BUNDLE_DIR" ]; then
    if trusted "$ROOT_BASE" && trusted "$ROOT_BASE/$NAME"; then start "$ROOT_BASE/$NAME" "$@"; fi
    own=${TMPDIR:-/tmp}/sd-worker-$(id -u)
    if trusted "$own" && trusted "$own/$NAME"; then start "$own/$NAME" "$@"; fi
elif trusted "$SD_WORKER_BUNDLE_DIR" && trusted "$SD_WORKER_BUNDLE_DIR/$NAME"; then
    start "$SD_WORKER_BUNDLE_DIR/$NAME" "$@"
fi
mask=$(umask)
chosen
unpack "$base"
umask "$mask"
trusted "$base/$NAME" || fail "$base/$NAME $reason"
start "$base/$NAME" "$@"
