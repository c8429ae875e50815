# `make` lists the targets. Every target sets up what it needs; a second run finds it there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.ONESHELL:

PYTHON ?= python3.11
PY := .venv/bin/python
AIRFLOW_PY := .venv-airflow/bin/python
UV := $(CURDIR)/.venv/bin/uv

# The demo: a synthetic city, or DATA=PATH in any shape that a reader knows; udfs/demo.py derives what is not given.
export SOURCE DATA WORK DAY NEXT_DAY RECIPE
DEMO_WORK = $(or $(WORK),.demo/$(or $(notdir $(DATA:%/=%)),synthetic))

# Certificates come from the system, so that a company's own are honoured; nothing here reports usage to anyone.
export UV_SYSTEM_CERTS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: results-page help setup demo test test-fast test-airflow test-browser lint fmt bench bench-dags bench-airflow-click bench-rows bench-rerun bench-demo bench-lift-gate bench-test bench-protocols bench-others bench-resume bench-drift bench-conservation bench-cases bench-delivered bench-etl bench-scale bench-increments bench-night-cost bench-kills bench-index bench-leaks bench-training-set bench-own-data bench-nights-missed bench-erasure bench-deletions bench-sequences bench-gates bench-gate-time bench-operations bench-rates bench-structure bench-skew bench-cluster bench-dag-clears bench-train paper-tables bench-posttraining bench-posttraining-curve bench-images bench-online bench-parity bench-prefix bench-udf bench-refresh bench-generation bench-poison bench-gpu results docs airflow lock clean

help: ## Lists the targets
	@echo "Spacetime-GR features. Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# --- set-up -----------------------------------------------------------------------------------------------------------

setup: .ivy/.stamp ## Makes the environment: Python packages, JDK check, Delta's jars

.venv/.uv.stamp: requirements-uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH. Install Python 3.11 with its venv \
	module (Debian and Ubuntu: apt-get install python3.11-venv; macOS: brew install python@3.11; any: pyenv)." >&2; exit 2; }
	@$(PYTHON) -m etl.spark.java
	@echo "set-up: environment .venv"
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/.packages.stamp: requirements.lock requirements-torch.lock .venv/.uv.stamp
	@echo "set-up: Python packages of requirements.lock, then torch (the first time several GB; a few minutes)"
	@$(UV) pip install --quiet --compile-bytecode --python $(PY) --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --compile-bytecode --python $(PY) --no-deps -r requirements-torch.lock
	@touch $@

.venv/.installed.stamp: pyproject.toml .venv/.packages.stamp
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

.ivy/.stamp: etl/spark/session.py etl/setup/jars.py etl/setup/class_archive.py .venv/.installed.stamp
	@$(PY) -m etl.setup.jars
	@$(PY) -m etl.setup.class_archive
	@touch $@

# Rivals of the ETL's benches; nothing else needs them.
.venv/.bench.stamp: requirements-bench.lock .ivy/.stamp
	@$(UV) pip install --quiet --python $(PY) --require-hashes -r $<
	@touch $@

.venv-airflow/.stamp: requirements-airflow.lock .venv/.uv.stamp
	@echo "set-up: Airflow in its own environment .venv-airflow"
	@$(PYTHON) -m venv .venv-airflow
	@$(UV) pip install --quiet --compile-bytecode --python $(AIRFLOW_PY) --require-hashes -r $<
	@touch $@

lock: .venv/.uv.stamp ## Resolves all versions anew (network); torch and its CUDA packages go without hashes
	@$(UV) pip compile --quiet --python-version 3.11 --universal --no-annotate --no-header pyproject.toml --extra dev \
	  | grep -E '^(torch|triton|nvidia-|cuda-)' > requirements-torch.lock
	@$(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header pyproject.toml --extra dev \
	  $$(sed -E 's/[ =].*//; s/^/--no-emit-package /' requirements-torch.lock) -o requirements.lock
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' \
	  | $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements-bench.lock
	@printf '%s\n' apache-airflow-core==3.3.2 apache-airflow-task-sdk apache-airflow-providers-standard \
	  | $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements-airflow.lock

# --- the product ------------------------------------------------------------------------------------------------------

demo: setup ## From raw actions to two published releases [DATA=FILE OR FOLDER]
	@PATH="$(CURDIR)/.venv/bin:$$PATH" ./demo.sh

airflow: setup .venv-airflow/.stamp ## Airflow's UI with our DAGs, on the demo's warehouse if there is one [WORK=FOLDER]
	@set -a; . airflow_dags/local.env
	if [ -f "$(DEMO_WORK)/airflow.env" ]; then . "$(DEMO_WORK)/airflow.env"; echo "On the demo's warehouse, $(DEMO_WORK)"; fi
	export AIRFLOW_HOME="$(CURDIR)/.airflow" AIRFLOW__CORE__DAGS_FOLDER="$(CURDIR)/airflow_dags"
	export SPACETIME_PYTHON="$(CURDIR)/$(PY)" PATH="$(CURDIR)/.venv-airflow/bin:$$PATH"
	airflow db migrate >/dev/null 2>&1
	echo "Airflow's page is http://localhost:8080 in about a minute; Ctrl-C ends it"
	airflow standalone

# --- checks -----------------------------------------------------------------------------------------------------------

test: setup .venv-airflow/.stamp ## The tests on two processes, one real Airflow night included; browsers and benchmarks apart
	@.venv/bin/lint-imports
	@.venv/bin/pytest -m "not browser and not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40

test-browser: setup ## Tests of pages in Chromium, which the machine has to have
	@.venv/bin/pytest -m browser

test-fast: setup ## Tests that need neither Spark nor Airflow
	@.venv/bin/pytest -m "not spark and not airflow and not slow and not browser and not long"

test-airflow: setup .venv-airflow/.stamp ## Executes the nightly DAG once on a small city
	@.venv/bin/pytest tests/airflow_dags

lint: .venv/.installed.stamp ## Format, lint, types, import rules
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

fmt: .venv/.installed.stamp ## Formats and mends what can be mended
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

# --- measurements -----------------------------------------------------------------------------------------------------

bench: bench-dags bench-demo bench-lift-gate bench-airflow-click bench-rows bench-rerun bench-resume bench-drift bench-parity bench-prefix bench-udf bench-refresh bench-generation bench-poison bench-gpu bench-conservation bench-cases bench-delivered bench-increments bench-night-cost bench-kills bench-index bench-leaks bench-training-set bench-erasure bench-deletions bench-sequences bench-gates bench-gate-time bench-operations bench-skew bench-cluster bench-dag-clears bench-test ## Measures the project's claims about itself into results/

bench-demo: setup ## Seconds, peak memory and lift of make demo, from an empty folder
	@rm -rf $(DEMO_WORK)
	@missed=0
	@$(PY) -m tests.bench.measure demo -- make demo $(if $(DATA),DATA=$(DATA)) || missed=1
	@$(if $(DATA),:,$(PY) -m tests.bench.demo_lift --work $(DEMO_WORK)) || missed=1
	@exit $$missed

bench-lift-gate: setup ## Does the gate refuse a trained model that lifts less? [after make demo]
	@$(PY) -m tests.bench.lift_gate --work $(DEMO_WORK)

bench-airflow-click: setup .venv-airflow/.stamp ## Does one click in a real Airflow make the next release of the demo? [after make demo]
	@$(PY) -m tests.bench.airflow_click --work $(DEMO_WORK)

bench-rows: setup ## Rows of the demo that are unexplained [DATA=FOLDER, after make demo]
	@$(PY) -m tests.bench.unexplained --root $(DEMO_WORK)/warehouse --name $(if $(DATA),nyc-)unexplained-rows

bench-rerun: setup ## Runs the synthetic demo's last night once more and compares all digests [after make demo]
	@SPACETIME_CONF=$(DEMO_WORK)/settings.yaml $(PY) -m tests.bench.rerun --day 2026-03-01

bench-protocols: setup ## Trains on public check-ins and scores them beside the baselines [DATA=FOLDER of folders]
	@$(PY) -m tests.bench.protocols --data $(DATA)

bench-others: setup ## What the crowd copy adds in the pipeline, with the switch and without [DATA=CHECK-IN FOLDER]
	@$(PY) -m tests.bench.others --data $(DATA)

bench-train: setup ## Training speed against transformers' Llama, padding, cost per history length [DATA=CHECK-IN FOLDER]
	@$(PY) -m tests.bench.train_speed --data $(DATA)

paper-tables: setup ## Measures the paper's Tables 4 and 6 to 9 again, hours, cell by cell [DATA=CHECK-IN FOLDER MINUTES=N]
	@$(PY) -m tests.bench.paper_city --out .demo/paper-tables/city-data
	@$(PY) -m tests.bench.paper_tables $(if $(DATA),--data $(DATA)) --city .demo/paper-tables/city-data $(if $(MINUTES),--minutes $(MINUTES))
	@$(MAKE) bench-posttraining

bench-posttraining-curve: setup ## Table 8 over SFT requests, on simulated cities, with baselines and an upper bound; resumable [POSTTRAINING=FOLDER] [SEEDS=LIST] [NUMBERS=LIST]
	@$(PY) -m tests.bench.posttraining_curve --work $(or $(POSTTRAINING),.demo/posttraining) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(NUMBERS),--numbers $(NUMBERS))

bench-posttraining: setup ## Tables 4, 8, 9 on simulated cities and [DATA=CHECK-IN FOLDER] check-ins; resumable [POSTTRAINING=FOLDER]
	@$(PY) -m tests.bench.posttraining_tables --work $(or $(POSTTRAINING),.demo/posttraining)
	@$(if $(DATA),$(PY) -m tests.bench.posttraining_checkins --data $(DATA) --work $(or $(POSTTRAINING),.demo/posttraining))

bench-images: setup ## What pictures of POIs add to ranking SFT, on simulated cities; resumable [SEEDS=LIST]
	@$(PY) -m tests.bench.images $(if $(SEEDS),--seeds $(SEEDS))

bench-online: setup ## Table 5 and the A/B test on simulated cities; resumable [SEEDS=N,N]
	@$(PY) -m tests.bench.online $(if $(SEEDS),--seeds $(SEEDS))

bench-parity: setup ## One candidate, one score: alone, among 300, any order, padding, batch, cache, trainer or feature job
	@$(PY) -m tests.bench.parity

bench-prefix: setup ## Ranking scores with the user part read once, beside a pass for each pair: speed and memory
	@$(PY) -m tests.bench.prefix_sharing

bench-udf: setup ## User embeddings through Spark beside plain torch: same rows, batches and cores [USERS=N]
	@$(PY) -m tests.bench.udf_speed $(if $(USERS),--users $(USERS))

bench-refresh: setup ## Nights that embed only what changed: equal to a full refresh? at what cost? [USERS=N]
	@$(PY) -m tests.bench.refresh equal
	@$(PY) -m tests.bench.refresh cost $(if $(USERS),--users $(USERS))

bench-generation: setup ## 10^5 generated POIs: live as of their request, and the top k of a brute-force scan?
	@$(PY) -m tests.bench.generation

bench-poison: setup ## One row in a thousand makes the model fail: what is lost, and what does it cost?
	@$(PY) -m tests.bench.poison

bench-gpu: setup ## Do tasks of a standalone cluster take the GPU that a discovery script tells of? Needs no GPU
	@$(PY) -m tests.bench.gpu_tasks

bench-resume: setup ## Kills 40 trainings at random steps and resumes them: are the weights equal, bit for bit?
	@$(PY) -m tests.bench.resume

bench-drift: setup ## How far figures move with hash seed, batch size, row order, threads [PROTOCOL=NAME DATA=FOLDER]
	@$(PY) -m tests.bench.drift $(if $(PROTOCOL),--protocol $(PROTOCOL) --data $(DATA))

bench-conservation: setup ## Cleans a city of 10^6 rows full of planted dirt: is every verdict right? [ROWS=N]
	@$(PY) -m tests.bench.conservation --rows $(or $(ROWS),1000000)

bench-cases: setup ## Damaged and unusual exports: does each folder of tests/cases end as expected?
	@$(PY) -m tests.bench.cases

bench-delivered: setup ## Damaged records in every format: is each accounted for, and every row right? [SEEDS="N N" EACH=N]
	@$(PY) -m tests.bench.delivered $(if $(SEEDS),--seeds $(SEEDS)) $(if $(EACH),--each $(EACH))

bench-etl: .venv/.bench.stamp ## Clean, index, sequences: ours beside DuckDB and Polars on the same rows [ROWS="N N" ROUNDS=N]
	@$(PY) -m tests.bench.etl_rivals --rows $(or $(ROWS),1000000 10000000 50000000) --rounds $(or $(ROUNDS),1) --runs 2

bench-scale: .venv/.bench.stamp ## One user with a tenth of all actions; 60 small nights through Delta
	@$(PY) -m tests.bench.hot_user
	@$(PY) -m tests.bench.small_files

bench-increments: setup ## Thirty nights as they come, a rebuild, a backfill out of order: are the tables equal?
	@$(PY) -m tests.bench.increments

bench-night-cost: setup ## Seconds of a night with 1 % active users over those of a rebuild [ACTIONS=N]
	@$(PY) -m tests.bench.night_cost --actions $(or $(ACTIONS),12000000)

bench-kills: setup ## Kills the ETL's jobs 60 times; goes on where it was if interrupted [MINUTES=N]
	@$(PY) -m tests.bench.kills --minutes $(or $(MINUTES),60)

bench-index: setup ## Grid cells of 10^6 points beside an oracle of another kind
	@$(PY) -m tests.bench.index_oracle

bench-leaks: setup ## Ranking samples beside a brute-force scan of planted futures
	@$(PY) -m tests.bench.leaks

bench-training-set: setup ## Training sets beside a brute-force oracle: does a feature of the future come through?
	@$(PY) -m tests.bench.training_set

bench-nights-missed: setup ## Twenty nights of which any six do not run, against all twenty, row by row
	@$(PY) -m tests.bench.nights_missed

bench-own-data: setup ## make demo with DATA alone on public and tiny data; resumable [DATA=FOLDER OF CHECK-IN FOLDERS]
	@$(PY) -m tests.bench.own_data $(if $(DATA),--data "$(DATA)")

bench-gates: setup ## Planted faults and clean nights: what do the gates catch, what do they refuse wrongly? [WORK=FOLDER]
	@$(PY) -m tests.bench.gates $(if $(WORK),--work "$(WORK)")

bench-gate-time: setup ## What the audit costs of a night, at the size of bench-night-cost [ACTIONS=N] [WORK=FOLDER]
	@$(PY) -m tests.bench.gate_time $(if $(ACTIONS),--actions $(ACTIONS)) $(if $(WORK),--work "$(WORK)")

bench-operations: setup ## Faults of operations found by hand: do the tests of each one hold?
	@$(PY) -m tests.bench.operations

bench-deletions: setup ## Vacuum, new histories and --out at odd roots, killed at random: is a file lost that is needed?
	@$(PY) -m tests.bench.deletions

bench-erasure: setup ## Erases 40 of 120 users of a simulated city: are their ids left in the raw bytes of anything kept?
	@$(PY) -m tests.bench.erasure_hits

bench-sequences: setup ## 500 random sequences by two operators, killed and disturbed: what may readers see? [MINUTES=N]
	@$(PY) -m tests.bench.sequences $(if $(MINUTES),--minutes $(MINUTES))

bench-structure: setup ## Import floors and circles of the rooms, lines, lengths of functions, comments
	@$(PY) -m tests.bench.structure

bench-refactor: setup ## The demo at two commits: equal tables, equal learning? [BASE=COMMIT]
	@$(PY) -m tests.bench.refactor --base $(BASE)

bench-rates: setup ## Rows per core second of each stage, and docs/scale.md computed from them [after make bench-train]
	@$(PY) -m tests.bench.scale_rates
	@$(PY) -m tests.bench.scale_on_paper

bench-skew: setup ## Tries to publish feature tables of two models or indexes in every way: is each refused?
	@$(PY) -m tests.bench.skewed_publishes

bench-cluster: setup ## Two nights on a Spark standalone cluster of two workers: the tables of a local run?
	@$(PY) -m tests.bench.cluster_equals_local
	@$(PY) -m tests.bench.cluster_training

bench-dag-clears: setup .venv-airflow/.stamp ## Airflow's night with every task killed once or cleared: equal digests?
	@$(PY) -m tests.bench.dag_clears

bench-dags: setup .venv-airflow/.stamp ## Seconds that Airflow takes to parse the DAG files
	@$(PY) -m tests.bench.dag_parse

bench-test: setup .venv-airflow/.stamp ## Seconds of make test
	@$(PY) -m tests.bench.measure test -- make test

results: .venv/.installed.stamp ## Prints the ledger of results/; marks what falls short
	@$(PY) -m conf.results

results-page: .venv/.installed.stamp ## Writes docs/results.md from the ledger
	@$(PY) -m conf.results --page docs/results.md

docs: setup ## Writes the table pages of etl/README.md from the contracts
	@$(PY) -m etl docs

clean: ## Removes what demo and tests made; keeps environments and jars
	@rm -rf .demo .airflow .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache spark-warehouse build *.egg-info
