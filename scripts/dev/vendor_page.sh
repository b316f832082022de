#!/usr/bin/env bash
# Make the page's vendored files again, from the npm packages of the versions that stand here.
#
# Usage: vendor_page.sh [--help]
#
# Writes server/transport/page/vendor: each package's one file as it is in the package, its licence, and
# manifest.json with version and sha256 of both. Needs npm and the network; git diff shows whether
# anything has changed.
#
# Exit codes: 0 done, 2 usage, 3 npm is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

# package, version, the file in it, the name here, the licence's SPDX name
PACKAGES="marked 18.2.1 lib/marked.umd.js marked MIT
@highlightjs/cdn-assets 11.12.0 highlight.min.js highlight BSD-3-Clause"

sha256_of() {
  shasum -a 256 "$1" | cut -d " " -f 1
}

main() {
  case ${1-} in
    "") ;;
    --help) usage && exit 0 ;;
    *) die 2 "unknown argument: $1; see --help" ;;
  esac
  need npm "brew install node, or apt-get install npm"
  need shasum "it is part of perl"
  local folder=$ROOT/server/transport/page/vendor scratch package version file name licence lines=""
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064  # as it is now
  trap "rm -rf '$scratch'" EXIT
  while read -r package version file name licence; do
    mkdir "$scratch/$name"
    (cd "$scratch/$name" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz)
    cp "$scratch/$name/package/$file" "$folder/$name.js"
    cp "$scratch/$name/package/LICENSE" "$folder/$name.LICENSE"
    lines="$lines${lines:+,
}  \"$name\": {\"package\": \"$package\", \"version\": \"$version\", \"licence\": \"$licence\",
    \"$name.js\": \"$(sha256_of "$folder/$name.js")\",
    \"$name.LICENSE\": \"$(sha256_of "$folder/$name.LICENSE")\"}"
    log "$package $version"
  done <<<"$PACKAGES"
  printf '{\n%s\n}\n' "$lines" >"$folder/manifest.json"
}

main "$@"
