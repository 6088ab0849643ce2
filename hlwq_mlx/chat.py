"""`python -m hlwq_mlx.chat`: talk with a model in the terminal.

Answers and tool calls go to stdout. Thoughts go to stderr, dimmed on a terminal, so a pipe carries
answers alone. `--tools FILE` offers the functions in a JSON file: each call is printed as a line of
JSON, and its result is read as a line.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .dialog.conversation import Conversation
from .dialog.interface import TokenizerLike
from .dialog.parts import URL_SCHEMES
from .dialog.readable import readable
from .dialog.template import Rendered
from .errors import RequestError

if TYPE_CHECKING:
    from .folder.folder import Folder
    from .library import Session
    from .memory.need import Settings

MAX_TOKENS = 2048
PROMPT, MORE, RESULT = ">>> ", "... ", "result> "
BLOCK = '"""'
HELP = f"""\
/reset            forget the conversation
/system TEXT      give the model instructions; without TEXT, none
/think on|off     let the model think before it answers
/image PATH       show a picture with the next message; /audio and /video likewise
/save FILE        write the conversation as JSON
/help             show this
/exit             leave, as Ctrl-D does
Ctrl-C stops an answer. {BLOCK} begins a text of several lines and ends it."""


class Chat:
    """A conversation in a terminal: reads lines, runs commands, shows answers.

    `stream` yields the responses to a prompt; `read` returns the next line; `media` are the content
    parts that the first message begins with; `forget` clears what is kept between prompts.
    """

    def __init__(
        self,
        conversation: Conversation,
        tokenizer: TokenizerLike,
        stream: Callable[[Rendered], Iterable[Any]],
        read: Callable[[str], str],
        screen: cli.Screen,
        media: Iterable[dict[str, Any]] = (),
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._stream = stream
        self._read = read
        self._screen = screen
        self._media = list(media)
        self._forget = forget
        self._finish_reason: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._system,
            "/think": self._think,
            "/image": partial(self._attach, "image"),
            "/audio": partial(self._attach, "audio"),
            "/video": partial(self._attach, "video"),
            "/save": self._save,
            "/help": self._help,
            "/exit": self._exit,
        }

    def run(self) -> None:
        """Talk until the user leaves; an error costs one message, not the conversation."""
        while True:
            try:
                self._turn()
            except (EOFError, BrokenPipeError):
                return
            except KeyboardInterrupt:
                cli.note("\nCtrl-D or /exit leaves.")
            except Exception as problem:  # noqa: BLE001 - the person can go on
                cli.print_error(problem)

    def _turn(self) -> None:
        line = self._read(PROMPT)
        word, _, rest = line.strip().partition(" ")
        if word.startswith(BLOCK):
            self._ask(self._read_block(line.lstrip().removeprefix(BLOCK)))
        elif word.startswith("/"):
            self._commands.get(word, self._unknown)(rest.strip())
        elif word:
            self._ask(line)

    def _read_block(self, text: str) -> str:
        """Read lines up to the closing quotes."""
        while BLOCK not in text:
            text += "\n" + self._read(MORE)
        return "".join(text.split(BLOCK, 1)).strip("\n")

    def _ask(self, text: str) -> None:
        """Answer a message and the results of the calls that it leads to.

        When a result is refused or a prompt cannot be served, the message is taken back.
        """
        self._conversation.add_user(cli.content_of(self._media, text))
        self._media = []
        try:
            self._answer()
            while self._conversation.pending:
                self._ask_results()
                self._answer()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Take back the last message, and its media: their files may change before the next try."""
        self._conversation.undo()
        self._forget()

    def _answer(self) -> None:
        prompt = self._conversation.prompt(self._tokenizer)
        events = self._conversation.take(self._pieces(prompt), prompt=prompt.text)
        try:
            with contextlib.closing(events):
                for event in events:
                    self._screen.show(event)
        except KeyboardInterrupt:
            self._finish_reason = None
            self._screen.end()
            cli.note("")  # after the terminal's own ^C
        finally:
            self._screen.end()
        if self._finish_reason == "length":
            cli.note("The answer was cut off; --max-tokens allows longer ones.")

    def _pieces(self, prompt: Rendered) -> Iterator[str]:
        for response in self._stream(prompt):
            self._finish_reason = response.finish_reason
            yield response.text

    def _ask_results(self) -> None:
        """Print each call as a line of JSON and read its result: an object, a list or text."""
        for call in self._conversation.pending:
            self._screen.show_call(call)
            self._conversation.add_result(parse_result(self._read(RESULT)))

    def _attach(self, kind: str, rest: str) -> None:
        if not rest:
            cli.note(f"Usage: /{kind} PATH")
            return
        source = rest if rest.startswith(URL_SCHEMES) else find_file(rest)
        if source is None:
            cli.note(f"error: [/{kind}] needed a file, got {rest}. Check the path.")
            return
        self._media.append(cli.media_part(kind, source))
        cli.note(f"The next message begins with this {kind}.")

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        self._forget()
        self._media = []
        cli.note("The conversation is forgotten.")

    def _system(self, rest: str) -> None:
        self._conversation.system = rest
        cli.note("The instructions are set." if rest else "There are no instructions now.")

    def _think(self, rest: str) -> None:
        if rest not in ("on", "off"):
            cli.note("Usage: /think on or /think off")
            return
        self._conversation.thinking = rest == "on"
        cli.note(f"Thinking is {rest}.")

    def _save(self, rest: str) -> None:
        if not rest:
            cli.note("Usage: /save FILE")
            return
        try:
            save_transcript(self._conversation, Path(rest).expanduser())
        except (OSError, RuntimeError) as problem:  # the latter for a user's ~ that is not there
            reason = problem.strerror if isinstance(problem, OSError) else problem
            cli.note(f"error: [/save] needed to write {rest}, got '{reason}'.")
        else:
            cli.note(f"Saved in {rest}.")

    def _help(self, rest: str) -> None:
        cli.note(HELP)

    def _exit(self, rest: str) -> None:
        raise EOFError

    def _unknown(self, rest: str) -> None:
        cli.note(f"There is no such command. /help lists them; {BLOCK} begins any other text.")


def find_file(text: str) -> str | None:
    """Return the file that a text names, or None.

    A file dropped on a terminal may be quoted, have backslashes before spaces, or be a file URL.
    """
    spellings = [text]
    if text.startswith("file://"):
        spellings.append(urllib.parse.unquote(text.removeprefix("file://")))
    with contextlib.suppress(ValueError):  # an apostrophe may be part of the name
        spellings.append(" ".join(shlex.split(text)))
    with contextlib.suppress(OSError, RuntimeError):  # too long for a name; no such user's ~
        return next((each for each in spellings if Path(each).expanduser().is_file()), None)
    return None


def parse_result(line: str) -> Any:
    """Read a tool's result: JSON when it is an object or a list, else text."""
    if line.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            return readable(json.loads(line))
    return line


def save_transcript(conversation: Conversation, path: Path) -> None:
    """Write a conversation as JSON; the file appears whole or stays as it was."""
    transcript = {
        "messages": conversation.messages,
        "tools": conversation.tools,
        "thinking": conversation.thinking,
    }
    text = json.dumps(transcript, ensure_ascii=False, indent=2) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # A file's name may hold bytes that are not UTF-8: they become escapes.
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_tools(path: str) -> list[dict[str, Any]]:
    """Read a file of tools: a JSON list, or one tool alone.

    Raises: RequestError when it is not that.
    """
    try:
        tools = readable(json.loads(cli.read_text(Path(path).expanduser())))
    except (OSError, RuntimeError, ValueError) as problem:
        raise RequestError(
            f"[--tools] needed a JSON file of tools, got {path} ({problem}). Correct the file."
        ) from problem
    return tools if isinstance(tools, list) else [tools]


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog=cli.program("chat"),
        description=__doc__,
        epilog=f"commands:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_model_args(parser)
    cli.add_media_args(parser, message="your first message")
    cli.add_answer_args(parser, max_tokens=MAX_TOKENS)
    parser.add_argument("--tools", metavar="FILE", help="JSON list of functions the model may call")
    cli.add_sampling_args(parser)
    cli.add_memory_args(parser)
    cli.add_draft_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, talk."""
    arguments = make_parser().parse_args(argv)
    conversation = Conversation(
        system=arguments.system_prompt or "",
        tools=read_tools(arguments.tools) if arguments.tools else (),
        thinking=arguments.think,
    )
    with cli.tuned():
        if cli.leads(arguments):
            talk(arguments, conversation)


def talk(arguments: argparse.Namespace, conversation: Conversation) -> None:
    """Load the model and talk until the user leaves."""
    import mlx.core as mx

    from . import library

    settings = cli.settings_for(arguments, cli.CONTEXT)
    loaded = cli.load_for(arguments, settings)
    settings = cli.with_chunk(arguments, loaded.folder, settings)
    if arguments.seed is not None:
        mx.random.seed(arguments.seed)

    session = session_for(loaded.folder, settings)

    def stream(prompt: Rendered) -> Iterator[Any]:
        return library.stream_generate(
            loaded.model,
            loaded.tokenizer,
            prompt,
            session=session,
            **cli.answer_options(arguments, settings, loaded),
        )

    if sys.stdin.isatty():
        cli.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
    reader = cli.line_reader()
    screen = cli.Screen(is_terminal=sys.stderr.isatty())
    tokenizer = loaded.tokenizer
    Chat(conversation, tokenizer, stream, reader, screen, arguments.media, session.forget).run()


def session_for(folder: "Folder", settings: "Settings") -> "Session":
    """Return a conversation's state, which takes no more memory than the model leaves.

    One conversation always has room, since reading it again for every turn is worse.
    """
    from .engine.prefix_cache import MAX_BYTES
    from .library import Session
    from .memory.verdict import plan

    verdict = plan(folder, settings)
    return Session(max(verdict.needed.kv, min(MAX_BYTES, verdict.spare_bytes)))


if __name__ == "__main__":
    sys.exit(cli.run(main))
