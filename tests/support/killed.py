"""A process that kills itself at a moment of its work: the beginning of its program."""

# It is given a moment's name, how many calls of that pass before, and its own arguments.
PRELUDE = """
import os, signal, sys
moment, number, *arguments = sys.argv[1:]
calls = []
def dying(work):
    def counted(*given, **named):
        calls.append(1)
        if len(calls) > int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*given, **named)
    return counted
"""
