#!/bin/sh
# Install the Debian packages that tests need beside .venv: real servers and rigs. Usage: apt_packages.sh LIST...
# Never fails: without root, apt or a network the tests that need a package skip and name it.
missing=""
for name in $(cat "$@"); do
    dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing="$missing $name"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed here (tests that need them will skip and say so):$missing"
    exit 0
fi
echo "installing Debian packages for tests:$missing"
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -qq -y --no-install-recommends $missing || { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing; }; } >/dev/null 2>&1 ||
    echo "apt could not install them (tests that need them will skip and say so)"
