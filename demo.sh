#!/usr/bin/env bash
# The demo, as the commands that one would type; `make demo` sets up the environment and calls this.
#
# Night one delivers all history up to DAY, trains, makes features and publishes release 1. Night two delivers the next
# day only, makes features for what changed with the same model, and publishes release 2. Rerunning gives the same tables.
#
#   SOURCE=synthetic            the synthetic city of conf/base.yaml
#   SOURCE=checkins DATA=DIR    real check-ins: DIR holds checkins.parquet and pois.parquet
set -euo pipefail

SOURCE=${SOURCE:-synthetic}
WORK=${WORK:-.demo/$SOURCE}
RECIPE=${RECIPE:-conf/models/tiny.yaml}
case $SOURCE in
  synthetic) DAY=${DAY:-2026-02-28} NEXT_DAY=${NEXT_DAY:-2026-03-01} ;;
  *) DAY=${DAY:-2013-02-14} NEXT_DAY=${NEXT_DAY:-2013-02-16} ;; # the last two days of the Foursquare New York check-ins
esac
if [[ $SOURCE != synthetic && ! -e ${DATA:-} ]]; then
  echo "error: SOURCE=$SOURCE reads files, but DATA='${DATA:-}' does not exist. Say where they are: make demo SOURCE=$SOURCE DATA=FOLDER" >&2
  exit 2
fi

mkdir -p "$WORK"
# Ten months of check-ins are rows enough to compile expressions for.
SPARK='{quick_start: true}'
[[ $SOURCE == synthetic ]] || SPARK='{quick_start: true, conf: {spark.sql.codegen.factoryMode: FALLBACK}}'
cat > "$WORK/settings.yaml" <<YAML
storage: {root: $WORK/warehouse, artifacts: $WORK/artifacts}
spark: $SPARK
source: {path: "${DATA:-}"}
mlflow: {tracking_uri: "sqlite:///$WORK/mlflow.db", artifact_root: $WORK/mlruns}
YAML
# Ten months of check-ins have longer held-out stretches than two months of a city.
[[ $SOURCE == synthetic ]] || echo "samples: {val_days: 21, test_days: 21}" >> "$WORK/settings.yaml"
export SPACETIME_CONF="$WORK/settings.yaml"

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
run() { printf '$ python -m %s\n' "$*" >&2; python -m "$@"; }

say "Night one, $DAY: raw actions to sequences, all history so far"
run etl night --source "$SOURCE" --day "$DAY"

say "Training: samples, pre-training, embedding and ranking SFT, DPO, evaluation, registration"
run etl samples --day "$DAY"
run models train --day "$DAY" --recipe "$RECIPE"

say "Features of every user, POI and request; audit; release 1; its report"
run udfs release --day "$DAY"
run models report --day "$DAY"

say "Night two, $NEXT_DAY: only what is new, release 2"
run etl night --source "$SOURCE" --day "$NEXT_DAY" --set source.since="$DAY"
run udfs release --day "$NEXT_DAY"
run models report --day "$NEXT_DAY"

say "Releases"
run udfs releases
