# SPDX-License-Identifier: GPL-2.0-only
#
# Targets have the kernel's names where the kernel has such a target. "make help" lists them.

# The architecture that says of itself that it stands where none is named.
REFERENCE := $(patsubst arch/%/arch.py,%,$(shell grep -l '^    reference=True' arch/*/arch.py))
# A folder outside the tree, from here if relative; its name is the architecture's.
ARCH_DIR ?=
O      ?= .
SPACE  := $(subst ,, )
$(foreach v,ARCH_DIR O,$(if $(findstring $(SPACE),$($v)),$(error \
	$v=$($v): has a blank, which make takes for the end of a name; make a link to the folder)))
ifneq ($(ARCH_DIR),)
override ARCH := $(notdir $(or $(realpath $(ARCH_DIR)),$(abspath $(ARCH_DIR))))
endif
NAMED  := $(ARCH)
ARCH   ?= $(REFERENCE)
PYTHON ?= python3
VENV   ?= .venv
V      ?= 0
# What "make run" switches on; other architectures need not have the size.
SET    ?= $(if $(filter $(REFERENCE),$(ARCH)),64kB=always)
# How long "make fuzz" looks for bugs.
SECONDS ?= 600

ifeq ($(V),1)
Q :=
VERBOSE := --verbose
else
Q := @
MAKEFLAGS += --no-print-directory
endif

WHICH   := --arch '$(ARCH)' $(if $(ARCH_DIR),--arch-dir '$(ARCH_DIR)')
CONFIGS := $(or $(ARCH_DIR),arch/$(ARCH))/configs
PY      := $(VENV)/bin/python
SETUP   := $(PYTHON) scripts/setup_venv.py --venv $(VENV) $(VERBOSE)
KCONFIG := $(PY) -m scripts.kconfig $(WHICH) --out $(O)
DOTCONF := $(O)/.config
# A run of the benchmarks that is in the repository.
BASELINE = tests/benchmarks/$(COMPARE).json
SAMPLES := $(sort $(wildcard samples/*.parquet))

# Goals follow one another, as in "make defconfig 64k.config core".
.NOTPARALLEL:
# A goal such as 64k.config is never a file to be looked for, nor a source to be made from another.
MAKEFLAGS += -rR
.SUFFIXES:

.PHONY: help setup setup-test menuconfig guiconfig defconfig olddefconfig savedefconfig \
	listnewconfig core run test san fuzz bench bench-once bench-real predict-check check clean mrproper \
	new-arch arch-check

help:
	@echo 'Run:'
	@echo '  run             - set up, and replay the samples under each named kernel; SET=64kB=always switches on'
	@echo ''
	@echo 'Configuration (.config in O=):'
	@echo '  menuconfig      - edit in the terminal'
	@echo '  guiconfig       - edit in a window (needs python3-tk)'
	@echo '  defconfig       - start from the plain defconfig of ARCH'
	@echo '  olddefconfig    - complete with defaults; list values that cannot be kept'
	@echo '  savedefconfig   - write the minimal form to O=/defconfig'
	@echo '  listnewconfig   - list what .config does not mention'
	@for f in $(sort $(wildcard $(CONFIGS)/*_defconfig)); do echo "  $${f##*/}"; done
	@echo 'Fragments, on top of a .config:'
	@for f in $(sort $(wildcard $(CONFIGS)/*.config configs/*.config)); \
	 do echo "  $${f##*/}"; done
	@echo ''
	@echo 'Build and check:'
	@echo '  core            - compile the core for .config'
	@echo '  test            - set up with test tools, and run the tests'
	@echo '  san             - run all tests, or TESTS, on cores built with ASan and UBSan (quarter of an hour)'
	@echo '  fuzz            - fuzz the C core for SECONDS=$(SECONDS) (clang and its runtime)'
	@echo '  bench           - run the benchmarks; SAVE=name keeps the run, COMPARE=name sets it beside one'
	@echo '  bench-once      - run each benchmark once, untimed, for its assertions (CI)'
	@echo '  bench-real      - the same operations on the running kernel and on a virtual one, in turns'
	@echo '  predict-check   - predict programs, run them on this kernel, compare (root, changes THP)'
	@echo '  new-arch        - write arch/ARCH, or IN/ARCH: make new-arch ARCH=foo PAGE=8K LEVELS=10,10,10'
	@echo '  arch-check      - check the architecture ARCH on each of its kernels'
	@echo '  check           - lint, format, types, import rule, spelling'
	@echo '  setup           - only make or update the virtual environment'
	@echo '  clean           - remove what was built, .config and the environment stay'
	@echo '  mrproper        - remove everything that was not in the repository'
	@echo ''
	@echo "  ARCH=$(ARCH) (of: $(patsubst arch/%/arch.py,%,$(sort $(wildcard arch/*/arch.py))))"
	@echo '  ARCH_DIR=$(ARCH_DIR)  folder of an architecture outside the tree, instead of ARCH'
	@echo '  O=$(O)  folder of .config      VENV=$(VENV)  virtual environment'
	@echo '  PYTHON=$(PYTHON)  Python to set up with      V=1  show commands'

setup:
	$(Q)$(SETUP)

setup-test:
	$(Q)$(SETUP) --extras test

menuconfig guiconfig defconfig olddefconfig savedefconfig listnewconfig: setup
	$(Q)$(KCONFIG) $@

%_defconfig: setup
	$(Q)$(KCONFIG) $@

%.config: setup
	$(Q)$(KCONFIG) $@

core: setup
	$(Q)test -f $(DOTCONF) || { echo '$(DOTCONF): no such file; run make defconfig first' >&2; exit 2; }
	$(Q)$(PY) -m virtmm.kbuild $(WHICH) $(DOTCONF)

run: setup
	$(Q)$(VENV)/bin/virtmm compare $(WHICH) $(addprefix --set ,$(SET)) $(SAMPLES)

test: setup-test
	$(Q)$(PY) -m pytest -q -n auto --dist worksteal --ignore=tests/benchmarks

san: setup-test
	$(Q)$(PY) -m scripts.sanitize $(if $(TESTS),-- $(TESTS))

fuzz: setup-test
	$(Q)$(PY) -m tests.fuzz --seconds $(SECONDS)

bench: setup-test
	$(Q)$(PY) -m pytest -q tests/benchmarks --benchmark-only \
		--benchmark-columns=min,median,iqr,ops,rounds \
		$(if $(SAVE),--benchmark-save='$(SAVE)') \
		$(if $(COMPARE),--benchmark-compare='$(or $(wildcard $(BASELINE)),*_$(COMPARE))')

bench-once: setup-test
	$(Q)$(PY) -m pytest -q tests/benchmarks --benchmark-disable

bench-real: setup
	$(Q)$(PY) -m scripts.bench_real $(if $(JSON),--json '$(JSON)')

predict-check: setup
	$(Q)$(PY) -m scripts.predict_check

new-arch: setup
	$(Q)$(VENV)/bin/virtmm new-arch $(NAMED) $(if $(PAGE),--page $(PAGE)) \
		$(if $(LEVELS),--levels $(LEVELS)) $(if $(CONT),--cont $(CONT)) $(if $(IN),--in $(IN))

arch-check: setup
	$(Q)$(VENV)/bin/virtmm arch-check $(WHICH)

check: setup-test
	$(Q)$(PY) scripts/check.py

clean:
	$(Q)rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	$(Q)find . -path ./.git -prune -o -path './$(VENV)' -prune -o \
		-name __pycache__ -type d -exec rm -rf {} +

mrproper: clean
	$(Q)rm -rf *.egg-info .benchmarks .hypothesis $(DOTCONF) $(DOTCONF).old $(O)/defconfig
	$(Q)if test -f $(VENV)/.virtmm-stamp; then rm -rf $(VENV); fi

# The Makefile is not to be made by a rule above.
Makefile: ;
