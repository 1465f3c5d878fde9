# Shoal. `make run` and `make test` set up what they need by themselves; see tools/.
.PHONY: help build run test peers faults fuzz models bench lint format sanitize clean

help:
	@echo "make run       build, run the notebook on Shoal, the C examples, and compare with the standard library, joblib and NumPy"
	@echo "make test      build, run all tests"
	@echo "make peers     CPython's own tests of multiprocessing, on the standard library and on Shoal"
	@echo "make faults    the campaigns of kills, longer than in make test (ROUNDS=20)"
	@echo "make fuzz      what reads the store's files, under libFuzzer (SECONDS=60)"
	@echo "make models    the protocols' models, checked by spin"
	@echo "make bench     cases side by side with the peers: a table and a chart (QUICK=1 for a short one)"
	@echo "make lint      clang-format, clang-tidy, cppcheck, ruff, mypy"
	@echo "make sanitize  the engine's tests under ASan+UBSan and under TSan"
	@echo "make format    format C and Python in place"
	@echo "make build     the package, libshoal and the examples, into .venv and build/"
	@echo "make clean     remove what was built (not .venv)"

build:
	@tools/setup.sh run
	@tools/build.sh -Dexamples=true

run: build
	@tools/run.sh $(ARGS)

test:
	@tools/setup.sh test
	@tools/build.sh -Dexamples=true -Dtests=true
	@tools/test.sh

peers:
	@tools/peers.sh $(ARGS)

faults:
	@tools/setup.sh test
	@tools/build.sh -Dexamples=true -Dtests=true
	@SHOAL_FAULT_ROUNDS=$${ROUNDS:-20} tools/test.sh faults

fuzz:
	@tools/setup.sh fuzz
	@tests/fuzz/run_fuzz.sh $(or $(SECONDS),60) $(CORPUS)

models:
	@tools/setup.sh models
	@tests/models/run.sh

bench:
	@VENV=.venv-bench tools/setup.sh bench
	@VENV=.venv-bench BUILD=build/bench tools/build.sh
	@VENV=.venv-bench tools/bench.sh

lint:
	@tools/setup.sh lint
	@tools/build.sh -Dexamples=true -Dtests=true
	@tools/lint.sh

format:
	@tools/setup.sh lint
	@.venv/bin/clang-format -i $$(git ls-files '*.c' '*.h')
	@.venv/bin/ruff format -q . && .venv/bin/ruff check -q --fix .

sanitize:
	@tools/setup.sh test
	@tools/sanitize.sh

clean:
	rm -rf build
