#!/bin/sh
# The headers that the C++ runtime is built with and a machine may lack, from Debian's packages, into build/headers:
# ONNX Runtime's C interface and nlohmann's JSON. Nothing is installed; apt keeps its lists in build/headers too.
set -eu
into=$(cd "$(dirname "$0")/.." && pwd)/build/headers
[ -e "$into/usr/include/onnxruntime/onnxruntime_c_api.h" ] && [ -e "$into/usr/include/nlohmann/json.hpp" ] && exit 0
. /etc/os-release
if [ "${ID:-}" != debian ] || ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "headers: expected Debian with apt-get and dpkg-deb, got ${PRETTY_NAME:-an unknown system};" \
    "configure with -DONNXRUNTIME_ROOT= and -DNLOHMANN_JSON_INCLUDE_DIR= instead" >&2
  exit 1
fi
work=$into/apt
mkdir -p "$work/sources" "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages"
# Debian 12 has no ONNX Runtime: the machine's own sources, of the release that has.
release=$VERSION_CODENAME
[ "$release" = bookworm ] && release=trixie
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [ -s "$list" ] || continue
  sed "s/\b$VERSION_CODENAME\b/$release/g" "$list" >"$work/sources/debian.${list##*.}"
  break
done
private() {
  apt-get -qq -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist=/dev/null \
    -o Dir::Etc::sourceparts="$work/sources" -o APT::Sandbox::User="$(id -un)" "$@"
}
private update
(cd "$work/packages" && private download libonnxruntime-dev nlohmann-json3-dev)
for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$into"; done
rm -rf "$work"
