# A private Slurm cluster on this machine: see docs/sandbox.md. SANDBOX_ARGS are options of `up`, as "--max-array-size 5".
SANDBOX_PYTHON ?= python3
SANDBOX_ARGS ?=
SANDBOX_FOLDER := $(dir $(lastword $(MAKEFILE_LIST)))

.PHONY: sandbox-up sandbox-down sandbox-status slurm-packages

slurm-packages:  ## install the Slurm packages (as root), or say which to install
	@$(SANDBOX_PYTHON) $(SANDBOX_FOLDER)packages.py

sandbox-up: slurm-packages  ## start a private Slurm cluster
	@$(SANDBOX_PYTHON) $(SANDBOX_FOLDER)cluster.py up $(SANDBOX_ARGS)

sandbox-down:  ## stop it; nothing keeps running
	@$(SANDBOX_PYTHON) $(SANDBOX_FOLDER)cluster.py down

sandbox-status:  ## its daemons and nodes
	@$(SANDBOX_PYTHON) $(SANDBOX_FOLDER)cluster.py status
