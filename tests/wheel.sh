#!/usr/bin/env bash
# Builds the wheel, installs it with the locked versions into a new environment, and runs the demo in an empty folder:
# what the wheel lacks cannot come from the sources.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git -C "$root" archive HEAD | tar -x -C "$work" --one-top-level=source
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" wheel -q --no-deps -w "$work/dist" "$work/source"
grep -v '^-e' "$root/requirements.lock" > "$work/requirements.lock"
rm -rf "$work/source"
"$work/venv/bin/pip" install -q -r "$work/requirements.lock"
"$work/venv/bin/pip" install -q --no-deps "$work"/dist/carbrand-*.whl
mkdir "$work/empty" && cd "$work/empty"
"$work/venv/bin/carbrand" demo --dir demo --photos_per_brand 12 --epochs 0.5
test -s demo/run/evaluation-test/report.json
"$work/venv/bin/python" -c 'import carbrand.config as c; [c.find_recipe(n) for n in ("probe", "finetune", "scratch", "smoke")]'
"$work/venv/bin/python" -c 'from carbrand.serving import app as a; assert all((a._PAGE / name).is_file() for name in a._PAGE_TYPES)'
"$work/venv/bin/python" -c 'from importlib import resources as r; assert all((r.files("carbrand.monitoring") / "templates" / f"{n}.html").is_file() for n in ("monitor", "review"))'
echo "the wheel runs the demo without the sources"
