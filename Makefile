# The book's commands; `make help` lists them. Each sets up what it needs in .venv and works alone.
PYTHON ?= python3
WORKERS ?= 2
PORT ?= 8000
CHAPTERS ?=
TESTS ?=

ifeq ($(OS),Windows_NT)
IN_VENV := .venv/Scripts/python.exe
else
IN_VENV := .venv/bin/python
endif

.DEFAULT_GOAL := help
.PHONY: help book pdf serve serve-model test lab record bench book-environment full-environment

help:
	@echo 'make book          build the website into _build/html              1 minute'
	@echo 'make pdf           print it into _build/the-attention-book.pdf     2 minutes'
	@echo 'make serve         build it and serve it (PORT=8000)               1 minute'
	@echo 'make serve-model   answer completions with the small GPT (PORT=8000)'
	@echo 'make test          run every test (WORKERS=2)                      20 minutes'
	@echo '                   (TESTS=tests/kernels for some of them)'
	@echo 'make lab           open the chapters in JupyterLab                 seconds'
	@echo 'make record        run the chapters on this GPU, keep the outputs  2 minutes a chapter'
	@echo '                   (CHAPTERS="01 02" for some of them)'
	@echo 'make bench         measure the kernels and their peers on this GPU'
	@echo
	@echo 'The first call also installs what it needs into .venv: 2 to 5 minutes.'
	@echo 'Python 3.11 or newer is needed; name one with PYTHON=python3.12.'

book-environment full-environment:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here:" \
	  "install Python 3.11 or newer, or name one, as in PYTHON=python3.12."; exit 1; }
	@$(PYTHON) scripts/environment.py $(subst -environment,,$@)

book: book-environment
	@$(IN_VENV) -m scripts.build_book

pdf: book
	@$(IN_VENV) -m scripts.build_pdf

serve: book
	@$(IN_VENV) -m scripts.serve $(PORT)

serve-model: full-environment
	@$(IN_VENV) -m serving --port $(PORT)

# One thread a worker: the interpreter is single-threaded NumPy, and threads would only get in each
# other's way.
test: full-environment
	@$(IN_VENV) -m scripts.older_triton
	@echo 'Running $(or $(TESTS),every test: about 20 minutes on 2 cores) …'
	@OMP_NUM_THREADS=1 $(IN_VENV) -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

lab: full-environment
	@$(IN_VENV) -m jupyterlab book

record: full-environment
	@$(IN_VENV) -m scripts.notebooks sync
	@$(IN_VENV) -m scripts.notebooks record $(CHAPTERS)

bench: full-environment
	@$(IN_VENV) -m benchmarks
