"""What the commands share: options, what they mean, printing, and the boundary around a command."""

from .arguments import content_of, folder_for, load_for, media_options, settings_for, tuned
from .boundary import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    as_error,
    leave_current_folder,
    program,
    run,
    tell,
)
from .console import PATIENCE_S, murmur, note, progress, result, say
from .options import (
    CONTEXT,
    MODEL_NAMES,
    PREFILL_STEP,
    add_answer_args,
    add_conversion_args,
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
    "MODEL_NAMES",
    "PATIENCE_S",
    "PREFILL_STEP",
    "Ended",
    "Screen",
    "add_answer_args",
    "add_conversion_args",
    "add_kv_args",
    "add_media_args",
    "add_memory_args",
    "add_model_args",
    "add_sampling_args",
    "add_variant_arg",
    "as_error",
    "content_of",
    "count",
    "folder_for",
    "json_object",
    "line_reader",
    "load_for",
    "media_options",
    "media_part",
    "murmur",
    "note",
    "print_stream",
    "program",
    "progress",
    "read_stdin",
    "read_text",
    "result",
    "run",
    "say",
    "seed",
    "settings_for",
    "tell",
    "text",
    "tuned",
]

# Now, since a command imports other libraries next, and some before `run`.
leave_current_folder()
