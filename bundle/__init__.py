"""Builds `dist/sd-worker`: one file that carries the worker, its libraries and a Python of its own.

The file is a shell stub in front of a compressed folder (`stub.sh` says what it does at a call). The folder is a
relocatable Python: the interpreter that runs the build, its standard library, the shared libraries that both need, and
the worker with its locked dependencies. Nothing is frozen, so everything imports, reads its data files and prints its
tracebacks as it does from source; and no variable has to be set for it, so none can reach the server's process.

Only the standard library is imported here, for the build has to run on a bare base. The steps stand in `__main__`.
"""
