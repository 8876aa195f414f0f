#!/bin/sh
# What the C++ runtime is built with and a machine may lack, from Debian's packages. Nothing is installed: apt keeps its
# lists within the same folder while it works.
#   fetch-headers.sh        ONNX Runtime's C interface and nlohmann's JSON, headers alone, into build/headers
#   fetch-headers.sh arm64  libjpeg, libpng and zlib for 64-bit ARM into build/headers-arm64, for the cross toolchain
set -eu
architecture=${1:-}
into=$(cd "$(dirname "$0")/.." && pwd)/build/headers${architecture:+-$architecture}
[ -e "$into/fetched" ] && exit 0
. /etc/os-release
if [ "${ID:-}" != debian ] || ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "headers: expected Debian with apt-get and dpkg-deb, got ${PRETTY_NAME:-an unknown system};" \
    "configure with -DONNXRUNTIME_ROOT= and -DNLOHMANN_JSON_INCLUDE_DIR= instead" >&2
  exit 1
fi
release=$VERSION_CODENAME
if [ -n "$architecture" ]; then
  packages="libjpeg62-turbo-dev libjpeg62-turbo libpng-dev libpng16-16 zlib1g-dev zlib1g"
else
  packages="libonnxruntime-dev nlohmann-json3-dev"
  [ "$release" = bookworm ] && release=trixie # Debian 12 has no ONNX Runtime: the machine's own sources, of the next
fi
work=$into/apt
mkdir -p "$work/sources" "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages"
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [ -s "$list" ] || continue
  sed "s/\b$VERSION_CODENAME\b/$release/g" "$list" >"$work/sources/debian.${list##*.}"
  break
done
private() {
  apt-get -qq ${architecture:+-o APT::Architecture=$architecture -o APT::Architectures=$architecture} \
    -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist=/dev/null \
    -o Dir::Etc::sourceparts="$work/sources" -o APT::Sandbox::User="$(id -un)" "$@"
}
private update
(cd "$work/packages" && private download $packages)
for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$into"; done
if [ -d "$into/lib" ]; then # one folder, as a merged /usr has it
  cp -a "$into/lib/." "$into/usr/lib/"
  rm -rf "$into/lib"
fi
rm -rf "$work"
touch "$into/fetched"
