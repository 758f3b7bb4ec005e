# Short names for the scripts in .ci, which also work where make is missing.

.PHONY: crash soak failover demo test check lint format setup share deb package-test bench bench-quick monitoring-test fuzz

demo:
	@sh .ci/demo

test:
	@sh .ci/test

check:
	@sh .ci/run

setup:
	@sh .ci/setup test

lint:
	@sh .ci/lint

# The example of a settings file, made anew from the list of options.
share: setup
	.venv/bin/python -m caiafs config example >systemd/caiafs.toml.example

# A Debian package in dist/, for the Debian that this runs on.
deb: setup
	PYTHONPATH=.:.ci /usr/bin/python3 -m shipping.deb dist

# What is shipped, installed and used on bare Debians in namespaces, and the completions of every shell: as
# root, 20 minutes on two cores. Makes the bare Debian once, in .cache.
package-test:
	@sh .ci/setup package-test
	.venv/bin/python -m pytest tests/packaging tests/unit/test_completion.py -m "slow or not slow"

# A mount read by Debian's Prometheus and node exporter, over HTTP and from .stats; half a minute.
monitoring-test: setup
	.venv/bin/python -m pytest tests/mount/test_prometheus.py -m slow

# Every fault of a repository and of a journal's disk under a real mount, as root; two minutes.
failover: setup
	.venv/bin/python -m pytest tests/unit/test_failover_*.py tests/mount/test_failing_tiers.py -m "slow or not slow"

format: setup
	.venv/bin/ruff format caiafs tests bench .ci/shipping
	.venv/bin/ruff check --fix caiafs tests bench .ci/shipping

# The drills of docs/reliability.md, by minutes: kill -9 under load, then power loss at every write; and an hour of
# everything at once. As root, for small disks that can be filled. SEED repeats a run.
KILLS = 300
WRITES = 600
MINUTES = 60
SEED := $(shell date +%s)

crash: setup
	.venv/bin/python tests/crash/run.py kills --kills $(KILLS) --seed $(SEED)
	.venv/bin/python tests/crash/run.py power --writes $(WRITES) --seed $(SEED)

soak: setup
	.venv/bin/python tests/crash/run.py soak --minutes $(MINUTES) --seed $(SEED)

# Fuzzing led by coverage, SECONDS for each target; TARGETS=tree,index chooses (docs/contributing.md).
SECONDS = 60
TARGETS =

fuzz: setup
	.venv/bin/python -m pip install -q -e '.[fuzz]'
	.venv/bin/python tests/fuzz/run.py --seconds $(SECONDS) $(subst $(comma), ,$(TARGETS))

comma = ,

# caiafs and its peers at the same work (docs/performance.md). BENCH_ARGS chooses, for example
# make bench BENCH_ARGS='--cases create,unlink --peers caiafs,bindfs --rounds 3'; --help has the rest.
BENCH_ARGS =

bench: setup
	.venv/bin/python -m bench $(BENCH_ARGS)

bench-quick: setup
	.venv/bin/python -m bench --quick $(BENCH_ARGS)
