# make build | tool | demo | test | bench | bench-own | install | clean        (build: the library and the examples)
CARGO  ?= cargo
PYTHON ?= python3
CC     ?= cc
PROMPT ?= Why is the sky blue?
LENGTH ?= 120

# These reach recipes through the environment, as they were given: no quote and no `$` in them means anything to
# make or to the shell. `override`, or a variable of make's command line would win, and be expanded.
override PROMPT     := $(value PROMPT)
override LENGTH     := $(value LENGTH)
override PYTHON     := $(value PYTHON)
override PREFIX     := $(value PREFIX)
override DESTDIR    := $(value DESTDIR)
override LIBDIR     := $(value LIBDIR)
override INCLUDEDIR := $(value INCLUDEDIR)
export PROMPT LENGTH PYTHON PREFIX DESTDIR LIBDIR INCLUDEDIR

# Where cargo puts what it builds, and what is built here beside it.
TARGET   := $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)
# For every cargo that is called from here, whatever a configuration file says.
export CARGO_TARGET_DIR := $(abspath $(TARGET))
RELEASE  := $(TARGET)/release
EXAMPLES := $(TARGET)/examples
LIB      := $(RELEASE)/libbitlinear.so
CFLAGS   ?= -O3
# -ffp-contract=off: the program promises the same logits on every CPU, so that the compiler may not
# fuse what the source does not.
LLM_FLAGS := -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wpedantic -ffp-contract=off
LLM_SOURCES := $(wildcard examples/c/llm/*.c)

.PHONY: build demo test bench bench-own install clean library examples tool

build: library examples

# Through `cargo rustc`: a plain `cargo build` cannot run LTO while an rlib is among the outputs.
library:
	$(CARGO) rustc --quiet --release --lib --features reserve --crate-type cdylib,staticlib
	@ln -sf libbitlinear.so $(RELEASE)/libbitlinear.so.0
# Not before cargo has ended, with -j too; examples are linked anew where it wrote the file.
$(LIB): library ;

examples: library $(EXAMPLES)/digits $(EXAMPLES)/gpu_layer $(EXAMPLES)/one_layer $(EXAMPLES)/llm $(EXAMPLES)/embed

$(EXAMPLES)/one_layer: examples/c/one_layer.c include/bitlinear.h $(LIB)
	@mkdir -p $(EXAMPLES)
	$(CC) -std=c99 -O2 -Wall -Wextra -Wpedantic -Iinclude $< -o $@ -L$(RELEASE) -lbitlinear -Wl,-rpath,'$$ORIGIN/../release'

$(EXAMPLES)/gpu_layer: examples/c/gpu_layer.c include/bitlinear.h $(LIB)
	@mkdir -p $(EXAMPLES)
	$(CC) -std=c99 -O2 -Wall -Wextra -Wpedantic -Iinclude $< -o $@ -L$(RELEASE) -lbitlinear -ldl -Wl,-rpath,'$$ORIGIN/../release'

$(EXAMPLES)/digits: examples/c/digits/digits.c include/bitlinear.h $(LIB)
	@mkdir -p $(EXAMPLES)
	$(CC) -std=c99 -O2 -Wall -Wextra -Wpedantic -Iinclude $< -o $@ -L$(RELEASE) -lbitlinear -lm -Wl,-rpath,'$$ORIGIN/../release'

$(EXAMPLES)/llm: $(LLM_SOURCES) $(wildcard examples/c/llm/*.h) include/bitlinear.h $(LIB)
	@mkdir -p $(EXAMPLES)
	$(CC) $(LLM_FLAGS) $(CFLAGS) -Iinclude $(LLM_SOURCES) -o $@ -L$(RELEASE) -lbitlinear -lm -lpthread -Wl,-rpath,'$$ORIGIN/../release'

$(EXAMPLES)/embed: examples/c/embed/embed.c include/bitlinear.h $(LIB)
	@mkdir -p $(EXAMPLES)
	$(CC) -std=c11 -Wall -Wextra -Wpedantic -ffp-contract=off $(CFLAGS) -Iinclude $< -o $@ -L$(RELEASE) -lbitlinear -lm -Wl,-rpath,'$$ORIGIN/../release'

# The command-line tool `bitlinear`, in $(RELEASE). Built in a folder of its own: cargo would put a library without
# the feature `reserve` where the real one lies.
tool:
	$(CARGO) build --release --features cli --bin bitlinear --target-dir $(TARGET)/tool
	@mkdir -p $(RELEASE) && ln -f $(TARGET)/tool/release/bitlinear $(RELEASE)/bitlinear

demo: build
	@sh examples/demo.sh

test: build
	@CARGO='$(CARGO)' CC='$(CC)' sh tests/run.sh

# PREFIX=/usr/local, LIBDIR=lib and INCLUDEDIR=include (below PREFIX, or absolute); DESTDIR for packages.
install:
	$(CARGO) xtask install --prefix "$$PREFIX" --destdir "$$DESTDIR" --libdir "$$LIBDIR" --includedir "$$INCLUDEDIR"

# The limits of this machine, bitlinear and its peers side by side, in layers and in a whole language model; tables
# and charts into docs/performance. benches/peers/README.md says what is needed and what BENCH may be.
BENCH ?=
PEERS := benches/peers/target/release/peers
FIGURES ?= $(TARGET)/peers.json

bench: build tool
	cd benches/peers && BITLINEAR_LIBRARY='$(abspath $(RELEASE))' $(CARGO) build --quiet --release --target-dir target
	ONNXRUNTIME="$$(sh benches/peers/onnxruntime.sh)" $(PEERS) layers --out $(FIGURES) $(BENCH)
	$(PEERS) programs --out $(FIGURES) --llm $(EXAMPLES)/llm --model "$$("$$PYTHON" examples/models/fetch.py | tail -n 1)"
	$(PEERS) files --out $(FIGURES) --llm $(EXAMPLES)/llm --tool $(RELEASE)/bitlinear --text tests/llm/text.txt \
	  --model "$$("$$PYTHON" examples/models/fetch.py | tail -n 1)"
	$(PEERS) report --from $(FIGURES) --to docs/performance

# Without peers, and without what they need: every layout against the limits on one thread, one row against a reader of
# memory, what threads and joint calls gain; every kernel by criterion.
bench-own:
	$(CARGO) bench --bench roofline
	$(CARGO) bench --bench one_row
	$(CARGO) bench --bench threads
	$(CARGO) bench --bench shapes
	cd benches/kernels && $(CARGO) bench

clean:
	$(CARGO) clean
