"""Fields of requests that the dialects share, and how a body is checked.

A null is an absent field, and unknown fields are let pass. A number is a JSON number, never a text
or a truth value. What is wrong is one RequestError that names the field.
"""

from collections.abc import Collection, Mapping
from functools import partial
from reprlib import repr as brief
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)

from ...errors import RequestError
from ..request import Penalties

JSON = Mapping[str, Any]
SEEDS = 1 << 63
MOST_STOPS = 64
LARGEST_BIAS = 100.0
MOST_ALTERNATIVES = 20


def _require_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("a number")
    return value


def _as_list(value: Any) -> Any:
    """Return a text alone as a list of it, and an empty one as none."""
    return ([value] if value else []) if isinstance(value, str) else value


def _require_tokens(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("at least 1, or -1 for as many as there is room for")
    return value


Number = Annotated[float, BeforeValidator(_require_number)]
Integer = Annotated[int, BeforeValidator(_require_number)]
Flag = StrictBool
Object = dict[str, Any]
Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    Field(max_length=MOST_STOPS),
]
# As the engine's Sampling and Decoding take them, but for clients' other ways to ask for nothing.
Temperature = Annotated[Number, Field(ge=0, le=100)]
Share = Annotated[Number, Field(ge=0, le=1)]
TopK = Annotated[Integer, Field(ge=-1, le=1 << 20), AfterValidator(partial(max, 0))]  # -1 is none
Repetition = Annotated[Number, Field(ge=0, le=10)]  # 0 is mlx-lm's word for none
Addend = Annotated[Number, Field(ge=-2, le=2)]
Bias = dict[
    Annotated[int, Field(ge=0)], Annotated[Number, Field(ge=-LARGEST_BIAS, le=LARGEST_BIAS)]
]
Alternatives = Annotated[Integer, Field(ge=0, le=MOST_ALTERNATIVES)]
MaxTokens = Annotated[Integer, AfterValidator(_require_tokens)]
# What a field needs, by pydantic's name of the problem and what it tells of that.
NEEDED = {
    "missing": "a value",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "bytes_type": "a file",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} item",
    "value_error": "{error}",
}


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: each for key, each in value.items() if each is not None}


class Chosen(Body):
    """How tokens are chosen, as OpenAI's endpoints and Ollama's name it."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    presence_penalty: Addend = 0.0
    frequency_penalty: Addend = 0.0
    seed: Integer | None = None
    stop: Texts = Field(default_factory=list)

    def chosen(self, repetition: float) -> dict[str, Any]:
        """Return the fields of a ChatRequest that these decide; 0 is no `repetition` penalty."""
        return {
            "sampling": given(
                temp=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
            ),
            "penalties": Penalties(
                repetition or 1.0, self.presence_penalty, self.frequency_penalty
            ),
            "seed": reduced_seed(self.seed),
            "stop": self.stop,
        }


def given(**options: Any) -> dict[str, Any]:
    """Return the options that a client gave."""
    return {name: value for name, value in options.items() if value is not None}


Checked = TypeVar("Checked", bound=Body)


def read_fields(kind: type[Checked], body: Any) -> Checked:
    """Return a body checked.

    Raises: RequestError that names the first field at fault, what it needs and what it got.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        wording = NEEDED.get(first["type"])
        needed = wording.format(**first.get("ctx", {})) if wording else first["msg"]
        got = "none" if first["type"] == "missing" else brief(first["input"])
        raise RequestError(
            f"[{_path(first['loc'])}] needed {needed}, got {got}. Correct it."
        ) from problem


def _path(places: tuple[int | str, ...]) -> str:
    """Return the path of a field as its client would write it."""
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
        elif place != "[key]":
            path += f".{place}" if path else place
    return path or "request"


class Unserved(NamedTuple):
    """An option that is refused, but for values that ask for nothing; `remedy` is what to do."""

    remedy: str
    harmless: Collection[Any] = ()


def refuse(body: JSON, unserved: Mapping[str, Unserved]) -> None:
    """Refuse what would be accepted and ignored.

    Raises: RequestError that names the option.
    """
    for name, (remedy, harmless) in unserved.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            allowed = f" or {' or '.join(map(repr, harmless))}" if harmless else ""
            raise RequestError(f"[{name}] needed nothing{allowed}, got {brief(value)}. {remedy}")


def reduced_seed(seed: int | None) -> int | None:
    """Return a seed that a generator takes, the same for the same number; -1 asks for none."""
    return None if seed is None or seed == -1 else seed % SEEDS


def limit(max_tokens: int | None) -> int | None:
    """Return the limit of an answer; -1 asks for none."""
    return None if max_tokens == -1 else max_tokens
