#!/usr/bin/env bash
# The demo in the environment of this checkout; `make demo` sets it up and calls this. Variables: udfs/demo.py --help.
exec python -m udfs.demo "$@"
