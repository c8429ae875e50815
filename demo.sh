#!/usr/bin/env bash
# The demo, as the commands that one would type; `make demo` sets up the environment and calls this.
#
# Night one delivers all history up to DAY, trains, makes features and publishes release 1. Night two delivers the next
# day only, makes features for what changed with the same model, and publishes release 2. Rerunning gives the same tables.
#
#   DATA=PATH      data of your own, in any shape that a reader knows; without it the synthetic city of conf/base.yaml
#   SOURCE=NAME    the reader: checkins, getnext, tsmc or actions; with DATA alone the shape tells
#   DAY, NEXT_DAY  the days of the two nights; derived from the data (the synthetic city: 2026-02-28, 2026-03-01)
#   WORK           folder of tables, models and reports; .demo/NAME-OF-DATA
#   RECIPE         the model; conf/models/tiny.yaml
set -euo pipefail

DATA=${DATA:-} SOURCE=${SOURCE:-} RECIPE=${RECIPE:-conf/models/tiny.yaml}
[[ -n $SOURCE || -n $DATA ]] || SOURCE=synthetic

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
# Runs a job; its last line, the JSON summary, stays in $WORK/summary.json.
run() { printf '$ python -m %s\n' "$(printf '%q ' "$@")" >&2; python -m "$@" | tee "$WORK/summary.json"; }
# Prints a note of the last summary, empty where there is none: note samples pretrain_samples targets
note() {
  python - "$WORK/summary.json" "$@" <<'PY'
import json, sys
found = json.loads(open(sys.argv[1], encoding="utf-8").read().splitlines()[-1])["notes"]
for key in sys.argv[2:]:
    found = (found or {}).get(key)
print("" if found is None else found)
PY
}
# Merges JSON or YAML into the settings, later words over earlier ones. As a program: a path may hold anything.
settings() {
  python - "$WORK" "$@" <<'PY'
import json, pathlib, sys
import yaml
path, layers = pathlib.Path(sys.argv[1]) / "settings.yaml", sys.argv[2:]
def merge(one, other):
    both = {**one, **other}
    shared = [key for key in one if isinstance(one[key], dict) and isinstance(other.get(key), dict)]
    return both | {key: merge(one[key], other[key]) for key in shared}
content = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
for layer in layers:
    content = merge(content, yaml.safe_load(layer) or {})
path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
PY
}
# Where the data of a path are worked on: the name, made plain; a digest tells names apart that look alike then.
work_of() {
  python - "$1" <<'PY'
import hashlib, os, re, sys
name = os.path.basename(os.path.abspath(sys.argv[1]))
plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"
print(f".demo/{plain}" if plain == name else f".demo/{plain}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}")
PY
}
json() { python -c 'import json, sys; print(json.dumps(sys.argv[1], ensure_ascii=False))' "$1"; }

if [[ $SOURCE == synthetic ]]; then
  WORK=${WORK:-.demo/synthetic} DAY=${DAY:-2026-02-28} NEXT_DAY=${NEXT_DAY:-2026-03-01}
else
  [[ -n $DATA ]] || fail "SOURCE=$SOURCE reads files. Say where they are: make demo DATA=PATH"
  [[ -e $DATA ]] || fail "DATA='$DATA' does not exist. Say where the data are: make demo DATA=PATH"
  WORK=${WORK:-$(work_of "$DATA")}
  DATA=$(python -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$DATA")
fi

[[ $WORK != *:* ]] || fail "WORK='$WORK' holds a colon, which parts the files that SPACETIME_CONF names"
mkdir -p "$WORK"
if [[ -e $WORK/data.txt && $(cat "$WORK/data.txt") != "$DATA" ]]; then
  fail "$WORK holds the tables of other data: $(cat "$WORK/data.txt"). Name another folder with WORK=FOLDER, or remove it."
fi
printf '%s\n' "$DATA" > "$WORK/data.txt"
rm -f "$WORK/settings.yaml"
settings "{storage: {root: $(json "$WORK/warehouse"), artifacts: $(json "$WORK/artifacts")}, spark: {quick_start: true},
  source: {path: $(json "$DATA")}, mlflow: {tracking_uri: $(json "sqlite:///$WORK/mlflow.db"), artifact_root: $(json "$WORK/mlruns")}}"
export SPACETIME_CONF="$WORK/settings.yaml"

TRAIN_OPTIONS=()
if [[ $SOURCE != synthetic ]]; then
  say "What the data are, and which days and splits fit them"
  run etl outline --out "$WORK/outline.yaml" ${SOURCE:+--source "$SOURCE"} ${DAY:+--day "$DAY"} ${NEXT_DAY:+--next-day "$NEXT_DAY"}
  SOURCE=$(note source) DAY=$(note day) NEXT_DAY=$(note next_day)
  settings "$(cat "$WORK/outline.yaml")"
  # Few rows need no parallel tasks, and many are worth compiling expressions for.
  if (($(note rows) < 20000)); then
    settings '{spark: {shuffle_partitions: 1}}'
  else
    settings '{spark: {conf: {spark.sql.codegen.factoryMode: FALLBACK}}}'
  fi
  TRAIN_OPTIONS=(--allow-unvalidated)
fi

say "Night one, $DAY: raw actions to sequences, all history so far"
run etl night --source "$SOURCE" --day "$DAY"

say "Training: samples, pre-training, embedding and ranking SFT, DPO, evaluation, registration"
run etl samples --day "$DAY"
for relaxed in 'min_richness: 0' 'interest_only: false'; do
  [[ $SOURCE == synthetic || -n $(note pretrain_samples targets train) ]] && break
  say "No user has enough to learn from by the rules of a large city; once more with samples.$relaxed"
  settings "{samples: {$relaxed}}"
  run etl samples --day "$DAY"
done
run models train --day "$DAY" --recipe "$RECIPE" "${TRAIN_OPTIONS[@]}"
if [[ $(note is_champion) == False && $SOURCE != synthetic ]]; then
  say "The gate promoted no champion: the releases below are made with the challenger, to be looked at and not to be served"
  settings '{features: {model: "models:/spacetime-gr@challenger"}}'
fi

say "Features of every user, POI and request; audit; release 1; its report"
# A demo that is run once more in its folder begins again with the first day.
run udfs release --day "$DAY" --replace
run models report --day "$DAY"

if [[ -z $NEXT_DAY ]]; then
  say "Night two is left out: there is no day with data after $DAY"
else
  say "Night two, $NEXT_DAY: only what is new, release 2"
  # The last two days with data may lie months apart.
  run etl night --source "$SOURCE" --day "$NEXT_DAY" --any-day
  run udfs release --day "$NEXT_DAY"
  run models report --day "$NEXT_DAY"
fi

say "Releases; look around with: export SPACETIME_CONF=$WORK/settings.yaml"
run udfs releases
