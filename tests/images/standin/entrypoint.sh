#!/bin/bash
# As the entrypoint of the Automatic1111 image does it: folders of the program become links into /data.
set -Eeuo pipefail
mkdir -p /data/config/auto /data/models/VAE-approx /data/embeddings
for pair in models:/data/models embeddings:/data/embeddings extensions:/data/config/auto/extensions; do
  to="${ROOT}/${pair%%:*}" from="${pair#*:}"
  rm -rf "$to"
  mkdir -p "$from"
  ln -sT "$from" "$to"
done
mkdir -p ~/.cache
chown -R root ~/.cache/
exec "$@"
