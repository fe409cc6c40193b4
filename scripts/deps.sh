#!/usr/bin/env bash
# Installs from Debian what building, testing and demonstrating vOS needs: the
# real programs that vOS is run on, and the compilers of the test fixtures.
#
# With the argument "soak" also what make soak alone needs: LibreOffice.
#
# Idempotent, and without a call of apt when everything is there. Packages that
# bring a daemon do not start it: tests start their own, under their control.
# Progress goes to stderr; nothing goes to stdout.
set -euo pipefail

packages=(
  nginx-light redis-server memcached mosquitto sqlite3 python3 python3-lxml python3-numpy haproxy postgresql curl apache2-bin gstreamer1.0-tools gstreamer1.0-plugins-base
  gcc g++ gcc-multilib libc6-dev musl-tools binutils make dpkg-dev
  xvfb xdotool galculator l3afpad mousepad
  gdb procps util-linux iproute2 rpm criu
  vim-tiny nano htop
)
if [[ ${1:-} == soak ]]; then packages+=(libreoffice-writer-nogui); fi

say() { printf 'deps: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  die "this machine has no apt: vOS's tests run on Debian 12. Install by hand: ${packages[*]} nodejs default-jre-headless"
fi

# present tells whether a package, or another one that provides the same
# program (nginx-core for nginx-light), is installed.
installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ') "
present() {
  case $1 in
    nginx-light) [[ -x /usr/sbin/nginx ]] ;;
    *) [[ $installed == *" $1 "* ]] ;;
  esac
}

missing=()
for p in "${packages[@]}"; do
  present "$p" || missing+=("$p")
done
command -v node >/dev/null || missing+=(nodejs)
command -v java >/dev/null || missing+=(default-jre-headless)
((${#missing[@]})) || exit 0

[[ $(id -u) == 0 ]] || die "missing: ${missing[*]}. Run scripts/deps.sh as root, or install these yourself"

# A daemon's package asks policy-rc.d whether it may start it; 101 forbids it.
# An answer that the machine's owner wrote is kept aside meanwhile and put
# back; one that a killed run of this script left is cleared up.
policy=/usr/sbin/policy-rc.d
aside=$policy.before-vos
mark='# written by vos scripts/deps.sh for the time of one installation'

restore_policy() {
  if [[ -f $policy ]] && grep -qxF "$mark" "$policy"; then rm -f "$policy"; fi
  if [[ -e $aside ]]; then mv -f "$aside" "$policy"; fi
}
restore_policy
trap restore_policy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [[ -e $policy ]]; then mv "$policy" "$aside"; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
apt() {
  local log
  log=$(mktemp)
  if apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null; then
    rm -f "$log"
    return 0
  fi
  tail -n 30 "$log" >&2
  rm -f "$log"
  return 1
}

say "installing ${missing[*]}"
lists_known=false
if compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then lists_known=true; fi
if ! $lists_known; then
  say 'fetching the package lists'
  apt update || die 'apt-get update failed: is the network there?'
fi
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  # Lists that are too old name versions that the archive no longer has.
  $lists_known || die 'apt-get install failed'
  say 'fetching newer package lists, then trying again'
  apt update || die 'apt-get update failed: is the network there?'
  apt install -y --no-install-recommends "${missing[@]}" || die 'apt-get install failed'
fi
say 'done'
