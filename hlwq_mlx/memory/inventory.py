"""List the tensors of a model from the headers of its files.

The model is a repository on the hub (read by range requests), a local source or a converted folder.
No tensor is read, and nothing is kept on disk. `doubts` compares a source with what the config and
the publisher's rules let one expect. Whether a model fits a machine is decided in verdict.

Source: spec hlwq_format §3, §7.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..disk.failures import is_there
from ..disk.tensorfile import TensorFile, TensorSpec
from ..errors import CheckpointError, naming
from ..folder import published
from ..folder.folder import CONFIG, Converted, DrafterFolder, Folder, is_ours
from ..folder.names import (
    ROW_TABLE,
    check_depths,
    coded_names,
    coded_shapes,
    drafter_shapes,
    row_width,
)
from ..folder.rows import FILE_NAME as ROW_STORE
from ..folder.rows import coded_specs
from ..gemma4.config import Gemma4Config
from ..gemma4.drafter import TOKEN_ORDERING
from ..gemma4.drafter_config import DrafterConfig, is_drafter
from ..gemma4.towers.tower import TOWER_PREFIXES
from ..gemma4.unified import is_unserved
from ..quant.packing import BLOCK
from ..quant.tables import centroids, error_energy
from ..source import rules
from ..source.coded import parse_key
from ..source.locate import find_local, local_path
from ..source.repository import Source
from ..write import leftovers
from ..write.check import canonical_name, normalize_config

Specs = Mapping[str, TensorSpec]
Shape = tuple[int, ...]
_NORM_BYTES = _MEAN_BYTES = 2
_PUBLISHERS_TABLE = "clip4_100"
_NAMED = 3


@dataclass(frozen=True)
class Entry:
    """A tensor: `bits` is the width of its codes, None when it is not coded.

    `has_means` says that means of blocks lie beside its codes, or would.
    """

    name: str
    shape: Shape
    bits: int | None
    stored_bytes: int
    has_means: bool = False

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def is_order(self) -> bool:
        """Whether it orders a drafter's tokens: whole numbers, which nothing casts."""
        return self.name == TOKEN_ORDERING

    @property
    def is_row_table(self) -> bool:
        return self.name == ROW_TABLE

    @property
    def is_tower(self) -> bool:
        return self.name.startswith(TOWER_PREFIXES)


@dataclass(frozen=True)
class Inventory:
    """The tensors of one variant and its config, which is the file `origin`.

    `problems` are contradictions between its headers, one line each. `drafter` lists the drafter
    that goes with a model; a drafter has an inventory too, of which `args` cannot be asked.
    """

    variant: str | None
    config: Mapping[str, Any]
    entries: tuple[Entry, ...]
    is_converted: bool = False
    problems: tuple[str, ...] = ()
    origin: str = field(default=CONFIG, compare=False)
    drafter: tuple[Entry, ...] = ()

    @cached_property
    def args(self) -> Gemma4Config:
        """Raises: ConfigError for a config that is incomplete."""
        with naming(self.origin):
            return Gemma4Config.from_dict(self.config)

    @property
    def is_drafter(self) -> bool:
        """Whether this is a drafter and no model."""
        return is_drafter(self.config)

    @cached_property
    def expected(self) -> Mapping[str, Shape]:
        """The tensors that the config lets one expect, with their shapes.

        Raises: ConfigError; CheckpointError when there are not as many layers as it says.
        """
        args = DrafterConfig.from_dict(self.config) if self.is_drafter else self.args
        check_depths(args, (entry.name for entry in self.entries))
        if isinstance(args, DrafterConfig):
            return drafter_shapes(args)
        return published.tensors(self.config)

    @property
    def dead(self) -> Mapping[str, Shape]:
        """The tensors that released files carry and no layer reads."""
        return {} if self.is_drafter else published.dead(self.args)

    @property
    def stored_bytes(self) -> int:
        return sum(entry.stored_bytes for entry in self.entries)

    @cached_property
    def live(self) -> tuple[Entry, ...]:
        """The tensors that some layer reads."""
        dead = self.dead
        return tuple(entry for entry in self.entries if entry.name not in dead)

    def kinds(self) -> dict[tuple[str, int | None], tuple[int, int, int]]:
        """Sum tensors, weights and stored bytes by class and width of code."""
        sums: dict[tuple[str, int | None], tuple[int, int, int]] = {}
        for entry in self.entries:
            kind = rules.class_of(entry.name) or ("rows" if entry.is_row_table else "other")
            count, weights, size = sums.get((kind, entry.bits), (0, 0, 0))
            total = count + 1, weights + entry.weights, size + entry.stored_bytes
            sums[kind, entry.bits] = total
        return sums


def take(model: str, variant: str | None = None) -> Inventory:
    """Return the inventory of a converted folder, a local source or a repository on the hub.

    Raises: SourceError, CheckpointError as opening it would.
    """
    path = local_path(model)
    folder = Folder.find(path)
    if folder is not None:
        folder.require_variant(variant)
        return of_converted(folder)
    drafter = DrafterFolder.find(path)
    if drafter is not None:
        made_of, origin = drafter.manifest.get("variant"), str(path / CONFIG)
        entries = _entries_of(drafter)
        return Inventory(made_of, drafter.config, entries, is_converted=True, origin=origin)
    local = find_local(model, variant)
    if local is None:
        from ..source import hub  # a client of the web, which what is here does not need

        found = hub.read_headers(model, variant)
        origin = f"{model}/{CONFIG}"
        return of_headers(found.variant, found.config, found.headers, origin)
    opened = Source(*local)
    listed = _of_source(opened, local[1])
    beside = opened.drafter
    return listed if beside is None else replace(listed, drafter=_of_source(beside).entries)


def _of_source(opened: Source, variant: str | None = None) -> Inventory:
    headers = [TensorFile(path).specs for path in opened.weight_files]
    return of_headers(variant, opened.config, headers, str(opened.config_path))


def is_at_hand(model: str, variant: str | None = None) -> bool:
    """Return whether a model needs no download.

    Raises: SourceError when it is not clear which variant is meant.
    """
    if is_ours(local_path(model)) or find_local(model, variant) is not None:
        return True
    from ..source import hub  # as above

    return hub.is_cached(model, variant)


def of_variant(variant: str) -> Inventory:
    """Return what a published variant of E4B holds, by the rules we infer for its publisher.

    Raises: RequestError for a variant that was never published.
    """
    name, rule = rules.variant_rule(variant)
    config = published.e4b_config()
    entries = []
    for tensor, shape in published.tensors(config).items():
        bits = rule(tensor, shape)
        entries.append(Entry(tensor, shape, bits, stored_bytes(shape, bits)))
    return Inventory(name, config, tuple(entries))


def as_converted(found: Inventory, choice: str) -> Inventory:
    """Return what `convert` would make of a source; `choice` is one of leftovers.CHOICES.

    It is an estimate: no header shows where means of blocks will lie beside the codes.
    """
    if found.is_converted:
        return found
    entries, drafter = (_all_coded(each, choice) for each in (found.live, found.drafter))
    return replace(found, entries=entries, drafter=drafter, is_converted=True)


def as_quantized(found: Inventory, rule: rules.Rule, choice: str) -> Inventory:
    """Return what coding a 16-bit model by a rule, and converting it, would make."""
    entries = []
    for entry in found.live:
        bits = None if entry.is_row_table else rule(entry.name, entry.shape)
        if bits is not None:
            entry = _with_codes(entry, bits)
        entries.append(entry)
    return as_converted(replace(found, entries=tuple(entries)), choice)


def _all_coded(entries: Sequence[Entry], choice: str) -> tuple[Entry, ...]:
    own = _own_energy(entries)
    return tuple(_coded_leftover(entry, choice, own) for entry in entries)


def _own_energy(entries: Iterable[Entry]) -> float:
    """Return the relative error energy of the text model's coded weights; 0 if none are coded."""
    weights: Counter[int] = Counter()
    for entry in entries:
        if entry.bits is not None and not entry.is_tower:
            weights[entry.bits] += entry.weights
    lost = sum(
        count * error_energy(centroids(_PUBLISHERS_TABLE, bits)) for bits, count in weights.items()
    )
    return lost / weights.total() if weights else 0.0


def _coded_leftover(entry: Entry, choice: str, own: float) -> Entry:
    if entry.is_row_table:  # the row store has no codes of ours
        size = entry.stored_bytes if entry.bits is None else stored_bytes(entry.shape, None)
        if choice == leftovers.SMALL:
            size = sum(spec.nbytes for spec in coded_specs((entry.shape[0], entry.shape[1])))
        return replace(entry, bits=None, stored_bytes=size)
    bits = leftovers.width_of(choice, entry.name, entry.shape, own)
    if entry.bits is not None or bits is None:
        return entry
    return _with_codes(entry, bits)


def _with_codes(entry: Entry, bits: int) -> Entry:
    size = stored_bytes(entry.shape, bits, entry.has_means)
    return replace(entry, bits=bits, stored_bytes=size)


def with_means(found: Inventory, names: Collection[str]) -> Inventory:
    """Return an inventory that knows which matrices would have means beside their codes."""
    entries = (replace(each, has_means=each.name in names) for each in found.entries)
    return replace(found, entries=tuple(entries))


def stored_bytes(shape: Shape, bits: int | None, has_means: bool = False) -> int:
    """Return what a tensor takes as codes, norms and means, or as bfloat16 when it is not coded."""
    if bits is None:
        return 2 * math.prod(shape)
    blocks = math.prod(shape[:-1]) * -(-shape[-1] // BLOCK)
    return blocks * (BLOCK * bits // 8 + _NORM_BYTES + (_MEAN_BYTES if has_means else 0))


def doubts(inventory: Inventory) -> Iterator[str]:
    """Yield a line for each deviation from the config or from the rule of a published variant."""
    yield from inventory.problems
    try:
        with naming(inventory.origin):
            expected = inventory.expected
    except CheckpointError as problem:
        yield str(problem)
        return
    dead = inventory.dead  # transformers leaves them out when it saves
    found = {entry.name: entry for entry in inventory.entries}
    yield from _named("missing", expected.keys() - found.keys() - dead.keys())
    yield from _named("in no released file", found.keys() - expected.keys())
    known = found.keys() & expected.keys()
    misshapen = {name for name in known if not _is_shape(found[name], expected[name])}
    yield from _named("not of config.json's shape", misshapen)
    if not inventory.is_converted:
        yield from _departures(inventory)


def _departures(inventory: Inventory) -> Iterator[str]:
    """Yield a line for each deviation of a source from the rule of its variant's name."""
    if inventory.variant not in rules.VARIANTS:
        return
    _, rule = rules.variant_rule(inventory.variant)
    departures: dict[str, set[str]] = {}
    for entry in inventory.entries:
        wanted = rule(entry.name, entry.shape)
        if entry.bits != wanted:
            key = f"{_width(entry.bits)}, where {inventory.variant} should be {_width(wanted)}"
            departures.setdefault(key, set()).add(entry.name)
    for key, names in departures.items():
        yield from _named(key, names)


def _width(bits: int | None) -> str:
    return "uncoded" if bits is None else f"coded at {bits} bits"


def _named(what: str, names: Iterable[str]) -> Iterator[str]:
    """Yield a line with the count of some tensors and a few names, if there are any."""
    listed = sorted(names)
    if listed:
        more = " ..." if len(listed) > _NAMED else ""
        yield f"{len(listed)} tensors {what}: {', '.join(listed[:_NAMED])}{more}"


def _is_shape(entry: Entry, expected: Shape) -> bool:
    """Return whether a tensor has the expected shape, or codes whose blocks are padded to it."""
    return entry.shape in ((expected,) if entry.bits is None else coded_shapes(expected))


def of_headers(
    variant: str | None, config: Mapping[str, Any], headers: Iterable[Specs], origin: str
) -> Inventory:
    with naming(origin):
        config = normalize_config(config)
    named = str if is_drafter(config) else canonical_name
    plain: list[Entry] = []
    parts: dict[str, dict[str, TensorSpec]] = {}
    for specs in headers:
        for name, spec in specs.items():
            key = parse_key(name)
            if is_unserved(config, name):
                continue
            if key is None:
                name = named(name)
                plain.append(Entry(name, spec.shape, None, spec.nbytes))
            else:
                parts.setdefault(named(key.tensor), {})[key.role] = spec
    problems: list[str] = []
    coded = [_coded(name, roles, problems) for name, roles in sorted(parts.items())]
    entries = (*sorted(plain, key=lambda entry: entry.name), *filter(None, coded))
    return Inventory(variant, config, entries, problems=tuple(problems), origin=origin)


def _coded(name: str, roles: Specs, problems: list[str]) -> Entry | None:
    """Return a coded tensor with its width, told by the sizes of its parts, or add a problem."""
    size = sum(spec.nbytes for spec in roles.values())
    if not {"codes", "norms"} <= roles.keys():
        problems.append(f"{name} has {' and '.join(sorted(roles))} but not both codes and norms")
        return None
    norms = roles["norms"]
    count = math.prod(norms.shape)
    bits, rest = divmod(8 * roles["codes"].nbytes, max(1, count * BLOCK))
    if rest or not 1 <= bits <= 8:
        problems.append(
            f"{name} has {roles['codes'].nbytes} bytes of codes for {count} blocks of {BLOCK}, "
            "which is no whole number of bits a weight"
        )
        return None
    codes, rows = roles["codes"].shape, norms.shape[0] if len(norms.shape) > 1 else 0
    rows = rows or (codes[0] if len(codes) == 2 else 1)
    if norms.dtype != "F16" or roles["codes"].dtype != "U8" or "meta" not in roles:
        problems.append(f"{name} is not the published layout: U8 codes, F16 norms and a meta")
    return Entry(name, (rows, count // rows * BLOCK), bits, size)


def of_converted(folder: Folder) -> Inventory:
    """List what a converted folder holds, and its drafter.

    Raises: SourceError, CheckpointError for files that are missing or damaged.
    """
    rows = []
    store = folder.path / ROW_STORE
    if is_there(store):  # in whatever dtype
        shape = (folder.args.text_config.vocab_size_per_layer_input, row_width(folder.args))
        size = sum(spec.nbytes for spec in TensorFile(store).specs.values())
        rows.append(Entry(ROW_TABLE, shape, None, size))
    beside = folder.drafter
    return Inventory(
        folder.manifest.get("variant"),
        folder.config,
        (*rows, *_entries_of(folder)),
        is_converted=True,
        origin=str(folder.path / CONFIG),
        drafter=() if beside is None else _entries_of(beside),
    )


def _entries_of(folder: Converted) -> tuple[Entry, ...]:
    """List the tensors in a converted folder's shards.

    Raises: as `of_converted`.
    """
    manifest, specs = folder.manifest, dict(folder.specs)
    entries = []
    for name, entry in manifest["tensors"].items():
        names = coded_names(name)
        parts = {part: specs.pop(part) for part in names if part in specs}
        if parts.keys() >= {names.codes, names.norms, names.centroids}:
            norms = parts[names.norms].shape
            size = sum(part.nbytes for part in parts.values())
            shape = (norms[0], norms[1] * BLOCK)
            entries.append(Entry(name, shape, entry["bits"], size, names.means in parts))
    entries += [Entry(name, spec.shape, None, spec.nbytes) for name, spec in specs.items()]
    return tuple(entries)


def draft_bytes(entries: Iterable[Entry], args: DrafterConfig) -> int:
    """Return how many bytes of weights one draft reads.

    With ordered embeddings it reads the rows of the chosen groups of tokens alone.
    """
    rows, share = ("model.embed_tokens.weight", TOKEN_ORDERING), 1.0
    if args.use_ordered_embeddings:
        share = args.centroid_intermediate_top_k / args.num_centroids
    return round(
        sum(entry.stored_bytes * (share if entry.name in rows else 1.0) for entry in entries)
    )


def of_drafter(variant: str | None) -> tuple[Entry, ...]:
    """List E4B's drafter as it is published, or coded as a variant of the model would be.

    Raises: RequestError for a variant that was never published.
    """
    rule = rules.variant_rule(variant)[1] if variant else (lambda name, shape: None)
    entries = []
    for name, shape in drafter_shapes(DrafterConfig.from_dict(published.E4B_DRAFTER)).items():
        bits = rule(name, shape)
        size = 8 * math.prod(shape) if name == TOKEN_ORDERING else stored_bytes(shape, bits)
        entries.append(Entry(name, shape, bits, size))
    return tuple(entries)
