#!/usr/bin/env bash
# Builds what tests/kube.py runs: a real kube-apiserver, kube-controller-manager and kube-scheduler (1.20.2), and etcd.
#   scripts/kube/build.sh [FOLDER]      default: ${XDG_CACHE_HOME:-~/.cache}/tierline/kube/bin; what is there stays
# For Debian 12 on amd64, out of Debian's own source package and its Go; nothing is installed on the machine. About 15
# minutes on two cores and 4 GB of scratch space. Needs: dpkg-dev gcc jq make rsync
set -euo pipefail

PROGRAMS=(kube-apiserver kube-controller-manager kube-scheduler)
VERSION=1.20.2

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tierline/kube/bin}
mkdir -p "$folder"
folder=$(realpath "$folder")
exec 9>"$folder/.lock"
flock --nonblock 9 || { echo "== another run builds them: waiting for it"; flock 9; }
wanted=()
for program in etcd "${PROGRAMS[@]}"; do [ -x "$folder/$program" ] || wanted+=("$program"); done
[ ${#wanted[@]} -gt 0 ] || { echo "== all there: $folder"; exit 0; }
for tool in dpkg-source gcc jq make rsync; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install dpkg-dev gcc jq make rsync" >&2; exit 2; }
done

scratch=$(mktemp -d "${TMPDIR:-/tmp}/kube-build.XXXXXX")
trap 'chmod -R u+w "$scratch" && rm -rf "$scratch"' EXIT
say() { echo "== $(date +%T) $*"; }

# A package list of our own, for the machine's may lack the sources.
cd "$scratch"
mkdir -p lists/partial archives/partial sources
sed 's/^Types:.*/Types: deb deb-src/' /etc/apt/sources.list.d/debian.sources >sources/debian.sources
debian() {
  apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$scratch/sources" \
    -o Dir::State::lists="$scratch/lists" -o Dir::Cache="$scratch" -o APT::Sandbox::User=root "$@" >/dev/null
}
say "fetching sources"
debian update
debian download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server
debian source --download-only kubernetes
for package in ./*.deb; do dpkg-deb --extract "$package" root; done
install root/usr/bin/etcd "$folder/etcd"
dpkg-source --no-check --extract kubernetes_*.dsc kubernetes >/dev/null 2>&1
cd kubernetes

# Go since 1.18 crashes reflect2 1.0.1 when it encodes a map: Debian's own 1.0.2 takes its place.
reflect2=vendor/github.com/modern-go/reflect2
rm -rf "$reflect2"
cp -r ../root/usr/share/gocode/src/github.com/modern-go/reflect2 "$reflect2"
rm -f "$reflect2"/*_test.go
# To newer Go, an empty string is deeply equal to the zero value, and validation would refuse each as a null.
sed -i 's/if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {/if data == nil {/' \
  vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go

export HOME=$scratch GOROOT=$scratch/root/usr/lib/go-1.19 GOPATH=$PWD/.go GOCACHE=$scratch/go-cache GO111MODULE=off CGO_ENABLED=0
export PATH=$GOROOT/bin:$PATH
export KUBE_GIT_VERSION=v$VERSION KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=archive
mkdir -p "$GOPATH/src/k8s.io"
ln -sfn "$PWD" "$GOPATH/src/k8s.io/kubernetes"
say "generating code"
make generated_files >"$scratch/generate.log" 2>&1 || { tail -20 "$scratch/generate.log" >&2; exit 1; }

cd "$GOPATH/src/k8s.io/kubernetes"
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags+=" -X $package.gitVersion=v$VERSION -X $package.gitMajor=1 -X $package.gitMinor=20"
done
for program in "${PROGRAMS[@]}"; do
  [ -x "$folder/$program" ] && continue
  say "building $program"
  go build -o "$scratch/$program" -ldflags "$flags" "./cmd/$program"
  install "$scratch/$program" "$folder/$program"
done
say "done: $folder"
