#!/usr/bin/env bash
# Make the page's vendored files again, from the npm packages of the versions that stand here.
#
# Usage: vendor_page.sh [--help]
#
# Writes server/transport/page/vendor: each package's files as they are in the package, its licence, and
# manifest.json with version and sha256 of each. Needs npm and the network; git diff shows whether
# anything has changed.
#
# Exit codes: 0 done, 2 usage, 3 npm is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

# package, version, the files in it, the name of its licence here, the licence's SPDX name
PACKAGES="marked 18.2.1 lib/marked.umd.js marked MIT
@highlightjs/cdn-assets 11.12.0 highlight.min.js highlight BSD-3-Clause
katex 0.19.1 dist/katex.min.js katex MIT
pdfjs-dist 6.5.438 legacy/build/pdf.min.mjs,legacy/build/pdf.worker.min.mjs pdf Apache-2.0"

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
  local folder=$ROOT/server/transport/page/vendor scratch package version files name licence lines="" file here told
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064  # as it is now
  trap "rm -rf '$scratch'" EXIT
  while read -r package version files name licence; do
    mkdir "$scratch/$name"
    (cd "$scratch/$name" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz)
    cp "$scratch/$name/package/LICENSE" "$folder/$name.LICENSE"
    told=""
    for file in ${files//,/ }; do
      here=$(basename "$file" | sed -E 's/(\.umd|\.min)?\.m?js$/.js/')
      cp "$scratch/$name/package/$file" "$folder/$here"
      told="$told
    \"$here\": \"$(sha256_of "$folder/$here")\","
    done
    lines="$lines${lines:+,
}  \"$name\": {\"package\": \"$package\", \"version\": \"$version\", \"licence\": \"$licence\",$told
    \"$name.LICENSE\": \"$(sha256_of "$folder/$name.LICENSE")\"}"
    log "$package $version"
  done <<<"$PACKAGES"
  printf '{\n%s\n}\n' "$lines" >"$folder/manifest.json"
}

main "$@"
