"""Shared by the commands: options, their meaning, printing, and the boundary around a command."""

from .arguments import (
    answer_options,
    content_of,
    folder_for,
    load_for,
    settings_for,
    tuned,
    with_chunk,
)
from .boundary import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    as_error,
    leave_current_folder,
    print_error,
    program,
    run,
)
from .console import PATIENCE_S, note, print_piece, print_stderr, progress, result
from .machines import leads, load_model
from .options import (
    CONTEXT,
    LEFTOVERS,
    MODEL_NAMES,
    PREFILL_STEP,
    add_answer_args,
    add_conversion_args,
    add_draft_args,
    add_kv_args,
    add_media_args,
    add_memory_args,
    add_model_args,
    add_sampling_args,
    add_variant_arg,
    count,
    json_object,
    media_part,
    seed,
    text,
)
from .screen import Screen, print_stream
from .signals import EXIT_SIGNAL, Ended
from .streams import line_reader, read_stdin, read_text

__all__ = [
    "CONTEXT",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_SIGNAL",
    "LEFTOVERS",
    "MODEL_NAMES",
    "PATIENCE_S",
    "PREFILL_STEP",
    "Ended",
    "Screen",
    "add_answer_args",
    "add_conversion_args",
    "add_draft_args",
    "add_kv_args",
    "add_media_args",
    "add_memory_args",
    "add_model_args",
    "add_sampling_args",
    "add_variant_arg",
    "answer_options",
    "as_error",
    "content_of",
    "count",
    "folder_for",
    "json_object",
    "leads",
    "line_reader",
    "load_for",
    "load_model",
    "media_part",
    "note",
    "print_error",
    "print_piece",
    "print_stderr",
    "print_stream",
    "program",
    "progress",
    "read_stdin",
    "read_text",
    "result",
    "run",
    "seed",
    "settings_for",
    "text",
    "tuned",
    "with_chunk",
]

# Now, since a command imports other libraries next, and some before `run`.
leave_current_folder()
