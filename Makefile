# Two commands to know: `make demo` runs the main job, `make test` passes the tests. Each installs what it needs into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo
# Processes that run the tests; a file stays in one of them, with its fixtures.
WORKERS ?= 2

.PHONY: help demo test check fix bench story proto wheel clean
help:
	@echo "make demo   convert, quantize and profile, then let the small story model answer (about three minutes, installation included)"
	@echo "make test   run the tests"
	@echo "make check  ruff, mypy strict, import-linter"
	@echo "make fix    format and mend what ruff can mend"
	@echo "make bench  accuracy and speed tables (benchmarks/)"
	@echo "make story  build the shipped story model folder anew from its checkpoint"
	@echo "make proto  write the gRPC messages anew from aiasst/serve/rpc/aiasst.proto"
	@echo "make wheel  build the wheel into dist/"
	@echo "make clean  remove everything that was built"

# The stamp depends on what is installed, so that a changed constraint installs again and nothing else does.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e '.[convert,serve]'
	@touch $@

demo: $(VENV)/.installed
	@echo "--- 1. a trained checkpoint becomes ONNX"
	$(BIN)/aiasst convert checkpoints/story-7m -o $(DEMO)/story --force
	@echo "--- 2. ... becomes int4, calibrated, with an accuracy card"
	$(BIN)/aiasst quantize $(DEMO)/story --recipe int4 -o $(DEMO)/story-int4 --force
	@echo "--- 3. ... meets the machine it runs on"
	$(BIN)/aiasst profile $(DEMO)/story-int4 -o $(DEMO)/device.json --force
	@echo "--- 4. ... answers twelve prompts at once"
	$(BIN)/aiasst run $(DEMO)/story-int4 --config $(DEMO)/device.json benchmarks/prompts/story.jsonl \
		-o $(DEMO)/answers.jsonl --restart --max-tokens 80 --seed 1
	@echo "--- 5. ... and tells a story"
	@echo "Once upon a time there was a little girl who" | \
		$(BIN)/aiasst chat $(DEMO)/story-int4 --config $(DEMO)/device.json --max-tokens 120 --seed 7
	@echo "--- Next:  $(BIN)/aiasst chat $(DEMO)/story-int4      answers of step 4: $(DEMO)/answers.jsonl"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The model folder that `aiasst chat` runs without a DIR, from the checkpoint beside it; the same checkpoint gives the same bytes.
story: $(VENV)/.installed
	$(BIN)/aiasst convert checkpoints/story-7m -o build/story --force
	$(BIN)/aiasst quantize build/story --recipe int8 -o checkpoints/story-7m-int8 --force

# The same compiler gives the same bytes (tests/serve/rpc/test_generated.py).
proto: $(VENV)/.installed
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. aiasst/serve/rpc/aiasst.proto

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/accuracy.py build/bench --heldout ../shared/corpus/heldout.txt.xz --sts ../shared/data/stsb/stsb-en-test.csv
	$(BIN)/python benchmarks/random_llama.py build/bench/llama-1b
	$(BIN)/python benchmarks/llama_1b.py build/bench/llama-1b build/bench/1b

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
