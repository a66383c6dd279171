# make demo    a fresh clone to streamed text, in one command
# make test    the test suite, from nothing
# Both make their own virtual environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := demo-out
export TF_CPP_MIN_LOG_LEVEL ?= 2
unexport PYTHONDONTWRITEBYTECODE  # each of the tests' processes would compile it all

.PHONY: demo test pytest explore chaos fuzz docs test-slow test-browser test-clients test-reference test-upstream test-full-size lint format bench bench-edge clean

# Rebuilt whenever the requirements change.
$(VENV)/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,dev]' -c tests/constraints.txt
	touch $@

demo: $(VENV)/ready
	test -d $(OUT)/1 || $(BIN)/optserve export models/tiny_shakespeare $(OUT)
	$(BIN)/optserve generate --model $(OUT) --max-new-tokens 150 \
	    --temperature 0.7 --top-p 0.9 --seed 7 "ROMEO:"
	@echo
	@echo "Next:  $(BIN)/optserve serve $(OUT) --port 8500 --name opt      (one terminal)"
	@echo "       $(BIN)/optserve generate --target 127.0.0.1:8500 'JULIET:' (another)"

# With these XLA compiles in an eighth of the time. What it makes without them is looked
# at by tests that ask for it, and by `make test-slow`.
QUICK_XLA := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
QUICK_XLA += --xla_cpu_parallel_codegen_split_count=1

test: $(VENV)/ready
	$(MAKE) --jobs 2 lint pytest

# Three workers keep two processors busy, for some tests wait. Files in the order of their
# names: those of export/ and models/, which take longest, come first.
pytest: $(VENV)/ready
	XLA_FLAGS="$(QUICK_XLA)" $(BIN)/python -m pytest -n 3 --dist loadfile \
	    --no-loadscope-reorder \
	    -m "not slow and not reference and not full_size and not fuzz and not browser \
        and not clients"

# The property tests on examples of their own each time, and many more of them.
explore: $(VENV)/ready
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile explore

# Generations while replicas die, stall, change version and answer garbage.
chaos: $(VENV)/ready
	OPTSERVE_CHAOS_GENERATIONS=2000 \
	    OPTSERVE_CHAOS_SEED=$${OPTSERVE_CHAOS_SEED:-$$(date +%s)} \
	    timeout 1200 $(BIN)/python -m pytest -s -m slow tests/chaos

# Hostile requests, replies, manifests, configurations and command lines, counted.
fuzz: $(VENV)/ready
	OPTSERVE_FUZZ_CASES=5000 OPTSERVE_FUZZ_SEED=$$(date +%s) \
	    $(BIN)/python -m pytest -s tests/fuzz

# The reference of the public modules as pages, made of their docstrings.
docs: $(VENV)/ready
	$(BIN)/python tests/make_docs.py build/docs

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

# Needs a browser and its driver (Debian: chromium, chromium-driver); pictures stay in
# build/pictures.
test-browser: $(VENV)/ready
	$(BIN)/python -m pip install --quiet 'selenium>=4.20'
	$(BIN)/python -m pytest -m browser tests/runtime/gateway/test_page.py

# lm-evaluation-harness, langchain and GuideLLM, which need environments of their own.
test-clients: pyproject.toml
	$(PYTHON) -m venv $(VENV)-guidellm
	$(VENV)-guidellm/bin/python -m pip install --quiet guidellm
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-clients/bin/python -m pip install --quiet -e '.[gateway,export,dev]' \
	    'transformers<5' 'lm_eval[api]' accelerate peft langchain-openai
	OPTSERVE_GUIDELLM=$(CURDIR)/$(VENV)-guidellm/bin/guidellm \
	    $(VENV)-clients/bin/python -m pytest -m clients tests/runtime/gateway/test_clients.py

test-full-size: $(VENV)/ready
	$(BIN)/python -m pytest -m full_size

# Compares with the transformers package and torch, which need an environment of their
# own (an older huggingface-hub than ours).
test-reference: pyproject.toml
	$(PYTHON) -m venv $(VENV)-reference
	$(VENV)-reference/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-reference/bin/python -m pip install --quiet -e '.[all,dev]' 'transformers<5' tf-keras
	$(VENV)-reference/bin/python -m pytest -m reference

# Transformers' own OPT tests on our classes. TESTS is a checkout of its repository at a
# release of the 4.4x series, whose package is installed; nothing of it belongs here.
UPSTREAM ?= 4.49.0
test-upstream: pyproject.toml
	test -d "$(TESTS)/tests/models/opt" || \
	    { echo "say TESTS=FOLDER, a checkout of transformers $(UPSTREAM)"; exit 2; }
	$(PYTHON) -m venv $(VENV)-upstream
	$(VENV)-upstream/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-upstream/bin/python -m pip install --quiet -e '.[all,dev]' \
	    'transformers==$(UPSTREAM)' tf-keras datasets parameterized timeout-decorator
	cd "$(TESTS)" && PYTHONPATH="$(CURDIR)/tests/upstream" HF_HUB_OFFLINE=1 \
	    $(CURDIR)/$(VENV)-upstream/bin/python -m pytest -q -rfE --noconftest \
	    -p optserve_upstream tests/models/opt/test_modeling_tf_opt.py \
	    tests/models/opt/test_modeling_flax_opt.py

PEERS := ctranslate2-int8,ctranslate2-float32,openvino-int8,openvino-int4,torch-bfloat16
DECODED := optserve-int8,optserve-xla-int8,optserve-jax-int8,optserve-litert-int8
DECODED := $(DECODED),optserve-float32,optserve-xla-float32,$(PEERS),torchao-int8,onnxruntime-float32
LOADED := optserve-int8,optserve-sessions-int8,optserve-xla-int8,openvino-paged-int8,ctranslate2-int8
LONG := optserve-int8,optserve-xla-int8,ctranslate2-int8,openvino-int8
LARGE := optserve-xla-int8,optserve-jax-int8,optserve-jax-int4
LARGE := $(LARGE),ctranslate2-int8,openvino-int8,openvino-int4
FIGURES := bench-work/figures.json bench-work/figures-900.json bench-work/figures-load.json

# Ours against the peers that can be installed, which need an environment of their own.
bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet 'matplotlib>=3.8'
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-peers/bin/python -m pip install --quiet ctranslate2 'transformers<5' \
	    onnxruntime optimum-onnx openvino-genai 'optimum-intel[openvino]' nncf torchao
	mkdir -p bench-work
	$(BIN)/optserve bench --peer-python $(VENV)-peers/bin/python --rounds 3 \
	    --batches 1,8 --engines $(DECODED) --json bench-work/figures.json
	$(BIN)/optserve bench --peer-python $(VENV)-peers/bin/python --rounds 2 \
	    --prompts 900 --engines $(LONG) --json bench-work/figures-900.json
	$(BIN)/optserve bench --peer-python $(VENV)-peers/bin/python --rounds 3 \
	    --prompts none --callers 1,8,32,64 --engines $(LOADED) \
	    --json bench-work/figures-load.json
	$(BIN)/optserve bench --peer-python $(VENV)-peers/bin/python --rounds 2 --restart \
	    --preset 1.3b --engines $(LARGE) --json bench-work/figures-1.3b.json
	@echo "Into the pages with:  $(BIN)/optserve bench --publish $(FIGURES)"
	@echo "                and:  $(BIN)/optserve bench --publish bench-work/figures-1.3b.json"

GOOGLE := litert-torch-opt-int8,litert-torch-opt-float32,litert-torch-smollm-135m-int8
EDGE := optserve-litert-int8,optserve-litert-float32,ctranslate2-int8,ctranslate2-float32

# LiteRT's files against those of Google's converter, which is one environment more.
bench-edge: $(VENV)/ready
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-peers/bin/python -m pip install --quiet ctranslate2 'transformers<5'
	$(PYTHON) -m venv $(VENV)-litert
	$(VENV)-litert/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-litert/bin/python -m pip install --quiet litert-torch tensorflow
	$(BIN)/optserve bench --peer-python $(VENV)-peers/bin/python \
	    --litert-python $(VENV)-litert/bin/python --json bench-work/figures-edge.json \
	    --engines $(EDGE),$(GOOGLE),litert-torch-smollm-135m-float32

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-reference $(VENV)-clients $(VENV)-guidellm $(VENV)-peers $(VENV)-litert bench-work $(OUT) build *.egg-info
