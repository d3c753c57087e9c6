# A real coding agent for one end-to-end test: Codex CLI, from npm. The search itself needs none of this.
CODEX_VERSION := 0.169.0
CODING_CLI := .cache/coding-cli
CODING_CLI_STAMP := $(CODING_CLI)/.installed-$(CODEX_VERSION)

.PHONY: coding-cli

coding-cli: ## install the coding agent that one test drives, or say how
	@if [ -f $(CODING_CLI_STAMP) ]; then :; elif command -v npm >/dev/null; then \
	  npm install --prefix $(CODING_CLI) --no-save --no-audit --no-fund --no-update-notifier --ignore-scripts \
	    --loglevel=error @openai/codex@$(CODEX_VERSION) && touch $(CODING_CLI_STAMP); \
	else echo "npm is not installed here: one test of a coding agent needs it (Node.js 16 or newer)"; [ "$$CI" != true ]; fi
